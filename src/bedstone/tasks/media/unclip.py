"""Drawing with an unCLIP: from words, like an image, between two images, by what words change.

All go by the CLIP's embedding of an image (Ramesh et al., 2022, section 3): that of a given one, a
point of the arc between two, or one that is moved by the difference of two texts. What is
drawn from an embedding is drawn without words.

Shapes: B rows, E width of embeddings, C channels, H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bedstone.checkpoints.dalle import DallePipeline
from bedstone.checkpoints.enlarging import enlarges
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.unclip import UnclipPipeline, check_unclip
from bedstone.diffusion.sample import Progress, SampleControls
from bedstone.diffusion.samplers import slerp
from bedstone.errors import BedstoneError
from bedstone.models.unclip.network import joint
from bedstone.report.sheets import as_pixels
from bedstone.settings import check_whole
from bedstone.tasks.images.engine import ImageEngine
from bedstone.tasks.media.dalle import DalleGenerator
from bedstone.tasks.media.enlarging import EnlargingGenerator
from bedstone.tasks.media.generator import (
    Generated,
    MediaGenerator,
    Prompt,
    check_seeds,
    named_image,
    settings,
    shapes,
)
from bedstone.tasks.task import shown

TURN = 0.4  # share of the arc towards a difference of words' own embeddings
SAME = 1 - 1e-6  # cosine of embeddings that are one


def open_generator(
    model: Model, precision: str = "fp32"
) -> "MediaGenerator | DalleGenerator | UnclipGenerator":
    """What draws with a model, whatever it draws by.

    Raises:
        BedstoneError: the model draws nothing, or its parts don't fit one another.
    """
    kind: Any = DalleGenerator if isinstance(model, DallePipeline) else MediaGenerator
    kind = EnlargingGenerator if enlarges(model) else kind
    kind = UnclipGenerator if isinstance(model, UnclipPipeline) else kind
    found: MediaGenerator | DalleGenerator | UnclipGenerator = kind(model, precision)
    return found


class UnclipGenerator(MediaGenerator):
    """An unCLIP that draws: `draw`, `story`, and by embeddings `like`, `variations`, `between`."""

    model: UnclipPipeline

    def __init__(self, model: UnclipPipeline, precision: str = "fp32") -> None:
        super().__init__(model, precision)
        check_unclip(model)
        model.clip.network.to(self.engine.device)
        self.clip = ImageEngine(model.clip)

    def embedding(self, image: Any) -> Tensor:
        """The CLIP's embedding (E,) of an image, or of a signal (C, H, W) from -1 to 1.

        Raises:
            BedstoneError: it can't be read.
        """
        if isinstance(image, Tensor):
            if image.dim() != 3 or not image.isfinite().all():
                raise BedstoneError(
                    f"image: a signal of {tuple(image.shape)} was given; expected finite values, "
                    "(channels, height, width)."
                )
            image = as_pixels(image[None])[0]
        vectors = self.clip.images([image])
        return self.model.image_embeddings(vectors)[0].cpu()

    def variations(
        self,
        image: Any,
        seeds: Sequence[int],
        *,
        prompt: Prompt = None,
        change: float | None = None,
        progress: Progress | None = None,
        **given: Any,
    ) -> Generated:
        """Images with the embedding of one, each from its seed's noise.

        Args:
            image: as for `embedding`.
            prompt, change: none is taken, as the embedding says all.
        """
        for name, value in (("prompt", prompt), ("strength", change)):
            if value is not None:
                raise BedstoneError(
                    f"{name}: {shown(value)} was given; variations of an unCLIP are drawn from the "
                    "image's embedding alone. Leave it out."
                )
        check_seeds(seeds, len(seeds))
        rows = self.embedding(image).expand(len(seeds), -1)
        return self.decoded(rows, seeds, {"like": named_image(image)}, given, progress)

    def like(
        self,
        image: Any,
        seeds: Sequence[int],
        *,
        towards: Any = None,
        towards_text: str | None = None,
        prompt: Prompt = None,
        strength: float | None = None,
        progress: Progress | None = None,
        **given: Any,
    ) -> Generated:
        """Variations of an image; or images on the way from it, from the first seed's noise each.

        Args:
            image: as for `embedding`.
            seeds: one for each image that is drawn.
            towards: another image, to whose embedding the way leads.
            towards_text: words instead, for what is to change in the image.
            prompt: what the image shows in their place; without it, the empty text.
            strength: share of the arc at the last image, 1 where it isn't said; 0.4 towards words
                without a prior.

        Raises:
            BedstoneError: both ends are given or both are the same, or as `variations`.
        """
        if towards is None and towards_text is None:
            more: dict[str, Any] = {"prompt": prompt, "change": strength, "progress": progress}
            return self.variations(image, seeds, **more, **given)
        if towards is not None and towards_text is not None:
            raise BedstoneError("towards: an image and words were given; expected one of them.")
        check_whole("count", len(seeds), 1)
        share = (1.0 if towards_text is None else self.turn) if strength is None else strength
        if not 0 < share <= 1:
            raise BedstoneError(f"strength: {share} was given; expected above 0, to 1 (the end).")
        start = self.embedding(image)
        if towards_text is None:
            end, named = self.embedding(towards), named_image(towards)
            if prompt is not None:
                raise BedstoneError("prompt: belongs to --towards-text. Leave it out.")
            if float(_cosine(start, end)) > SAME:
                raise BedstoneError(
                    f"towards: {named} has the same embedding as the image, so that nothing lies "
                    "between. Name another image."
                )
        else:
            end, named = self.changed(start[None], [towards_text], [prompt])[0], towards_text
        shares = torch.linspace(0, share, len(seeds)) if len(seeds) > 1 else torch.tensor([share])
        rows = slerp(start.expand(len(shares), -1), end.expand(len(shares), -1), shares)
        record = {"like": named_image(image), "towards": named, "from": prompt}
        drawn = self.decoded(joint(rows), [seeds[0]] * len(seeds), record, given, progress)
        for recipe, each in zip(drawn.recipes, shares.tolist(), strict=True):
            recipe["share"] = each
        return drawn

    def between(
        self,
        first: Prompt,
        last: Prompt,
        count: int,
        seeds: tuple[int, int] = (0, 0),
        *,
        negative: Prompt = None,
        size: Sequence[int] = (),
        progress: Progress | None = None,
        **given: Any,
    ) -> Generated:
        """`count` images on the arc between the embeddings that the prior makes of two prompts.

        All are drawn from the first seed's noise.
        """
        check_whole("count", count, 2)
        check_seeds(seeds, 2)
        if negative is not None:
            raise BedstoneError("negative: images between two are drawn without words. Leave it.")
        sampling: Any = settings(self.model, given)[0]
        said = ["" if each is None else str(each) for each in (first, last)]
        ends = self.model.prompts.condition(said)
        found = self.model.embeddings(list(seeds), ends, sampling).cpu()
        shares = torch.linspace(0, 1, count)
        rows = joint(slerp(found[:1].expand(count, -1), found[1:].expand(count, -1), shares))
        record = {"between": [first, last], "seeds": list(seeds)}
        drawn = self.decoded(rows, [seeds[0]] * count, record, given, progress, size=size)
        for recipe, each in zip(drawn.recipes, shares.tolist(), strict=True):
            recipe["share"] = each
        return drawn

    def decoded(
        self,
        embeddings: Tensor,
        seeds: Sequence[int],
        record: dict[str, Any],
        given: dict[str, Any],
        progress: Progress | None = None,
        *,
        prompts: Sequence[str] = (),
        size: Sequence[int] = (),
    ) -> Generated:
        """An image of each embedding (B, E) from its seed's noise, without words where none are
        given.

        Args:
            prompts: words beside each embedding.
            record: what recipes say of it.
            given: fields of `UnclipSampling` that are to be otherwise.
        """
        said = {name: value for name, value in given.items() if value is not None}
        sampling, way = settings(self.model, said)
        _, drawn = shapes(self.model, size)
        words = self.model.prompts.condition(prompts or [""] * len(seeds))
        condition = replace(words, embedding=embeddings.float())
        controls = SampleControls(way=way)
        found = self.engine.sample(drawn, sampling, seeds, condition, None, controls, progress)
        return self._generated(
            found, prompts or [None] * len(seeds), seeds, sampling, controls, record
        )

    def _generated(
        self,
        signals: Tensor,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        sampling: Any,
        controls: SampleControls,
        more: dict[str, Any],
    ) -> Generated:
        """As of every generator; the images are enlarged first, where there is an up-sampler."""
        large = self.model.enlarged(signals, seeds, sampling)
        return super()._generated(large, prompts, seeds, sampling, controls, more)

    def changed(self, starts: Tensor, texts: Sequence[str], prompts: Sequence[Prompt]) -> Tensor:
        """Where images of embeddings (B, E) are moved to by what texts change, (B, E).

        With a prior: by the difference of the embeddings that it makes of the text and of what the
        image shows, or the empty text, from the same noise. Without one: the direction of the
        difference of the words' own embeddings (Ramesh et al., 2022, section 3.3), which lie apart
        from those of images.

        Raises:
            BedstoneError: a text says what the image shows.
        """
        bases = ["" if each is None else str(each) for each in prompts]
        for text, base in zip(texts, bases, strict=True):
            if not text.strip() or text.strip() == base.strip():
                raise BedstoneError(
                    f"towards_text: {text[:60]!r} says nothing else than the image shows. Say what "
                    "it is to show instead."
                )
        sampling = replace(self.model.sampling, prior=self._prior(), prior_samples=1)
        read = self.model.prompts.condition
        last, first = (
            self.model.embeddings([0] * len(said), read(said), sampling).cpu()
            for said in (list(texts), bases)
        )
        return joint(last - first if sampling.prior == "none" else starts + last - first)

    @property
    def turn(self) -> float:
        """Share of the arc towards where words move an image, where none is said."""
        return TURN if self._prior() == "none" else 1.0

    def _prior(self) -> str:
        """The kind of the model's prior; none where it has none."""
        prior = self.model.prior
        return "none" if prior is None else str(prior.config.kind)


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(one, other, dim=0)
