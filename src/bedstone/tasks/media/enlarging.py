"""Enlarging given images by a model that draws larger ones beside smaller ones.

Shapes: B images, C channels, h x w pixels of the smaller ones, H x W of the larger.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bedstone.checkpoints.enlarging import enlarge
from bedstone.data.signals.enlarging import USUAL_NOISE
from bedstone.diffusion.sample import Progress, SampleControls
from bedstone.errors import BedstoneError
from bedstone.tasks.media.generator import (
    Generated,
    MediaGenerator,
    Prompt,
    check_seeds,
    named_image,
    settings,
)
from bedstone.tasks.task import shown


class EnlargingGenerator(MediaGenerator):
    """What draws larger images of smaller ones, by `draw` with an `image`."""

    def draw(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        *,
        image: Any = None,
        upsample_noise: float = USUAL_NOISE,
        progress: Progress | None = None,
        **given: Any,
    ) -> Generated:
        """The image, enlarged from each seed's noise.

        Args:
            prompts: none is taken, as the image says all; one of None for each seed.
            image: as in `MediaGenerator.draw`; brought to the size of the smaller images.
            upsample_noise: deviation of the noise that it gets first, which hides its faults.
            given: settings of sampling.

        Raises:
            BedstoneError: no image, or what this model doesn't take.
        """
        small = self.model.signal.small
        check_seeds(seeds, len(prompts))
        if image is None:
            size = " x ".join(map(str, small[1:]))
            raise BedstoneError(
                f"image: none was given; {self.model.path} enlarges images. Give one of {size} "
                "pixels (--image); others are brought to that size first."
            )
        said = {name: value for name, value in given.items() if value not in (None, "", [], ())}
        for name in ("negative", "strength", "mask", "size"):
            if name in said:
                raise BedstoneError(
                    f"{name}: {shown(said[name])} was given; {self.model.path} enlarges images and "
                    "takes none. Leave it out."
                )
        for prompt in prompts:
            if prompt not in (None, ""):
                raise BedstoneError(
                    f"prompt: {shown(prompt)} was given; {self.model.path} draws "
                    f"{self.model.inputs()}. Leave it out."
                )
        sampling, _ = settings(self.model, said)
        start: Tensor = self.engine.signal(image, tuple(small))
        found = enlarge(
            self.model,
            start.expand(len(seeds), *small),
            seeds,
            noise=upsample_noise,
            steps=sampling.steps,
            network=self.engine.network,
            autocast=self.engine.precision.autocast,
            progress=progress,
        )
        record = {"enlarged": named_image(image), "upsample_noise": upsample_noise}
        return self._generated(found, prompts, seeds, sampling, SampleControls(), record)
