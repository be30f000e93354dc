"""Drawing with a DALL-E: guidance, candidates of which a CLIP keeps the best, parts drawn anew.

A row has a seed, and depends on nothing beside it. Of several candidates the first has the row's
seed and the others have seeds that follow from it, so that four are the first four of sixteen.

Shapes: B rows, n candidates of each, C channels, H x W pixels, h x w codes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.checkpoints.dalle import DallePipeline
from bedstone.data.signals.signals import Condition
from bedstone.diffusion.sample import Progress, candidate_seeds
from bedstone.errors import BedstoneError, nearest
from bedstone.generation.codes import CodeSampling
from bedstone.report.sheets import as_pixels
from bedstone.runtime import pick_precision
from bedstone.settings import from_mapping
from bedstone.tasks.images.engine import ImageEngine
from bedstone.tasks.media.files import image_signal, mask_signal
from bedstone.tasks.media.generator import (
    Generated,
    Prompt,
    check_seeds,
    conditions,
    named_image,
)

HALF = 0.5  # of an image, which is drawn anew where nothing is said
SETTINGS = [field.name for field in dataclasses.fields(CodeSampling)]


class DalleGenerator:
    """A DALL-E that draws: `draw`, `story`."""

    def __init__(self, model: DallePipeline, precision: str = "fp32") -> None:
        self.model = model
        how = pick_precision(precision, model.device)
        self.precision = how.name
        self.options = model.prepared(how)
        self._clip: ImageEngine | None = None

    @property
    def clip(self) -> ImageEngine:
        """What chooses among candidates.

        Raises:
            BedstoneError: the model has none.
        """
        if self.model.clip is None:
            raise BedstoneError(
                f"candidates: {self.model.path or 'the model'} has no CLIP to choose among them. "
                "Take 1, or train one with it (the recipe's clip, or parts.clip)."
            )
        if self._clip is None:
            self._clip = ImageEngine(self.model.clip)
        return self._clip

    def draw(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        *,
        negative: Prompt = None,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        size: Sequence[int] = (),
        progress: Progress | None = None,
        **given: Any,
    ) -> Generated:
        """An image for each prompt and its seed; `recipes` hold the scores of all candidates.

        Args:
            prompts: words, or None for an image of the model's own.
            seeds: as many.
            negative: words to lead away from, instead of the null prompt.
            image: an image, or a signal (C, H, W), of which a part stays.
            strength: share of its rows that are drawn anew, from below; 0.5 where it isn't said.
            mask: an image of its size: white is drawn anew. In raster order that must be all
                below a place.
            given: fields of `CodeSampling` that are to be otherwise.

        Raises:
            BedstoneError: what is asked can't be, each said by its name.
        """
        check_seeds(seeds, len(prompts))
        sampling = self.settings(given)
        self._check(prompts, size, negative, sampling)
        condition, null = conditions(self.model, prompts, negative)
        record: dict[str, Any] = {"negative": negative}
        start = anew = clean = None
        if image is not None:
            clean, start, anew = self._started(image, strength, mask)
            record |= {"image": named_image(image), "mask": named_image(mask)}
            record["strength"] = strength
        elif strength is not None or mask is not None:
            name = "mask" if strength is None else "strength"
            raise BedstoneError(f"{name}: was given without an image; give the image too.")
        count = sampling.candidates
        if count > 1:
            self.clip  # noqa: B018  # said before anything is drawn
        every = [each for seed in seeds for each in candidate_seeds(seed, count)]
        assert isinstance(condition, Condition)
        rows = condition.pick(torch.arange(len(prompts)).repeat_interleave(count))
        drawn = self.model.sample(
            every,
            condition=rows,
            null=null,
            sampling=sampling,
            start=start,
            mask=anew,
            progress=progress,
            **self.options,
        )
        if clean is not None and anew is not None:  # what stays is as it was, to the last pixel
            drawn = torch.where(self._pixels(anew), drawn, clean)
        more: list[dict[str, Any]] = [{}] * len(prompts)
        if count > 1:
            drawn, more = self._best(drawn.unflatten(0, (-1, count)), prompts)
        same = {"model": str(self.model.path or ""), "sampling": dataclasses.asdict(sampling)}
        same["precision"] = self.precision
        same |= {name: value for name, value in record.items() if value not in (None, "")}
        recipes = [
            {"prompt": prompt, "seed": seed, **same, **own}
            for prompt, seed, own in zip(prompts, seeds, more, strict=True)
        ]
        return Generated(drawn, recipes, "image")

    def story(
        self, prompts: Sequence[str], seed: int = 0, *, style: str = "", **more: Any
    ) -> Generated:
        """A series: an image for each prompt, all of one seed and with one `style`."""
        whole = [f"{prompt}, {style}" if style else prompt for prompt in prompts]
        return self.draw(whole, [seed] * len(whole), **more)

    def variations(self, image: Any, seeds: Sequence[int], **given: Any) -> Generated:
        """Raises BedstoneError: codes have no noise that could be changed a little."""
        raise BedstoneError(
            "variations: a DALL-E draws none of an image. Draw a part of it anew (--image with "
            "--strength or --mask), or take a diffusion model."
        )

    def between(
        self, first: Prompt, last: Prompt, count: int, *ends: Any, **given: Any
    ) -> Generated:
        """Raises BedstoneError: there is nothing between two sequences of codes."""
        raise BedstoneError(
            "between: a DALL-E draws nothing between two prompts. Take a diffusion model."
        )

    def settings(self, given: Mapping[str, Any]) -> CodeSampling:
        """The model's own, overridden by those given; None is not given.

        Raises:
            BedstoneError: a setting of another kind of model, or a value that can't be.
        """
        said = {name: value for name, value in given.items() if value is not None}
        for name in said:
            if name not in SETTINGS:
                raise BedstoneError(
                    f"{name}: is no setting of a DALL-E{nearest(name, SETTINGS)}. Leave it out."
                )
        base = dataclasses.asdict(self.model.sampling)
        return from_mapping(CodeSampling, {**base, **said}, "sampling")

    def scores(self, images: Tensor, prompts: Sequence[str]) -> np.ndarray:
        """The cosine of each candidate with its prompt, (B, n), of images (B, n, C, H, W)."""
        count = images.shape[1]
        shown = self.clip.images(as_pixels(images.flatten(0, 1))).reshape(len(images), count, -1)
        words = self.clip.texts(list(prompts))
        found: np.ndarray = (shown * words[:, None]).sum(-1)
        return found

    def _best(
        self, images: Tensor, prompts: Sequence[Prompt]
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """Of each row's candidates (B, n, C, H, W) the best, and what recipes say of it."""
        if any(prompt is None for prompt in prompts):
            raise BedstoneError(
                "candidates: an image without words has no best; give a prompt, or take 1."
            )
        scores = self.scores(images, [str(prompt) for prompt in prompts])
        best = scores.argmax(1)
        chosen = images[torch.arange(len(images)), torch.from_numpy(best)]
        return chosen, [
            {"scores": [round(float(each), 4) for each in row], "candidate": int(place)}
            for row, place in zip(scores, best, strict=True)
        ]

    def _pixels(self, codes: Tensor) -> Tensor:
        """Which pixels (1, 1, H, W) are those of some codes (h, w), bool."""
        size = self.model.signal.shape[1:]
        return F.interpolate(codes[None, None].float(), size=tuple(size)) > 0

    def _started(
        self, image: Any, strength: float | None, mask: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """An image (1, C, H, W), its codes (1, h, w), and which are drawn anew, (h, w) bool."""
        shape, grid = tuple(self.model.signal.shape), tuple(self.model.config.grid)
        if isinstance(image, Tensor):
            if tuple(image.shape) != shape or not image.isfinite().all():
                raise BedstoneError(
                    f"image: a signal of {tuple(image.shape)} was given; expected finite values "
                    f"of the shape {shape}, channels first."
                )
            clean = image.detach().float().cpu()[None]
        else:
            clean = image_signal(image, shape)
        start = self.model.autoencoder.network.encode(clean.to(self.model.device))
        if mask is None:
            share = HALF if strength is None else strength
            if not 0 <= share <= 1:
                raise BedstoneError(f"strength: {share} was given; expected 0 to 1.")
            rows = round(share * grid[0])
            below = torch.arange(grid[0]) >= grid[0] - rows
            return clean, start, below[:, None].expand(grid)
        if strength is not None:
            raise BedstoneError("strength: a mask says what is drawn anew; leave strength out.")
        if isinstance(mask, Tensor):
            if tuple(mask.shape) != (1, *shape[1:]):
                raise BedstoneError(
                    f"mask: its shape is {tuple(mask.shape)}; expected {(1, *shape[1:])}, the "
                    "image's size, 1 where something is to be drawn."
                )
            white = mask.detach().float().cpu()[None]
        else:
            white = mask_signal(mask, image, shape)
        return clean, start, F.adaptive_max_pool2d(white, grid)[0, 0] > 0.5

    def _check(
        self,
        prompts: Sequence[Prompt],
        size: Sequence[int],
        negative: Prompt,
        sampling: CodeSampling,
    ) -> None:
        own = list(self.model.signal.shape[1:])
        if size and list(size) != own:
            raise BedstoneError(
                f"size: {list(size)} was given; a DALL-E draws the size that it has learnt, {own}."
            )
        if negative is not None and sampling.guidance <= 1:
            raise BedstoneError(
                f"negative: {str(negative)[:60]!r} has no effect without guidance; give guidance "
                "above 1, which is none."
            )
        if any(isinstance(prompt, str) and not prompt.strip() for prompt in prompts):
            raise BedstoneError("prompt: is empty. Say what to draw.")
