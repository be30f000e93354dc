"""A model made ready to draw: rows by their seeds, some at a time; signals in and out of latents.

Shapes: B rows, C channels; *S the sizes of a signal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bedstone.checkpoints.artefact import Model
from bedstone.checkpoints.drawing import DrawingModel, check_parts
from bedstone.data.conditions import Condition
from bedstone.errors import BedstoneError
from bedstone.generation.denoise_steps import noise_like
from bedstone.generation.drawing import Asked, Given, draw, generators_of
from bedstone.nn.inference import for_inference
from bedstone.recipes_diffusion import SamplingConfig
from bedstone.runtime import pick_precision
from bedstone.tasks.draw_pictures import mask_signal, picture_signal
from bedstone.tasks.task import shown

TOGETHER = 64  # rows drawn at a time


@dataclass(frozen=True)
class Moment:
    """A step of a drawing, for those who watch it.

    Attributes:
        share: of all the drawing that is done.
        first: the first of the rows that are being drawn.
        step, steps: which step it is, and of how many.
        x: (B, C, *S) after the step, latents where latents are drawn.
        clean: (B, C, *S), the clean signals predicted in it.
    """

    share: float
    first: int
    step: int
    steps: int
    x: Tensor
    clean: Tensor


Watch = Callable[[Moment], None]


class DrawingEngine:
    """A model, its device and its precision.

    Raises:
        BedstoneError: the model draws nothing, or its parts don't fit one another.
    """

    def __init__(self, model: Model, precision: str = "fp32") -> None:
        if not isinstance(model, DrawingModel):
            raise BedstoneError(
                f"{model.path or 'this model'}: is a {model.config.layout}, which draws nothing. "
                "Give the folder that `bedstone pretrain` reports for a recipe that draws, or a "
                "published DiT pipeline."
            )
        check_parts(model)
        self.model = model
        self.device = next(model.network.denoiser.parameters()).device
        self.precision = pick_precision(precision, self.device)
        self.network: Any = for_inference(model.network, self.precision.dtype)
        if model.autoencoder is not None:
            model.autoencoder.network.to(self.device)

    def draw(
        self,
        shape: tuple[int, ...],
        sampling: SamplingConfig,
        seeds: Sequence[int],
        condition: Given,
        null: Given,
        asked: Asked,
        watch: Watch | None,
        network: Any = None,
    ) -> Tensor:
        """All rows, some at a time."""
        model, parts = self.model, []
        for first in range(0, len(seeds), TOGETHER):
            part = slice(first, first + TOGETHER)
            own = asked if asked.noise is None else replace(asked, noise=asked.noise[part])
            if watch is not None:
                own = replace(own, callback=_told_to(watch, first, len(seeds)))
            parts.append(
                draw(
                    network or self.network,
                    model.process,
                    model.target,
                    shape,
                    sampling,
                    generators_of(seeds[part]),
                    condition=_rows(condition, part),
                    null=null,
                    asked=own,
                    autocast=self.precision.autocast,
                )
            )
        return torch.cat(parts)

    def signal(self, image: Any, shape: tuple[int, ...]) -> Tensor:
        """What is begun from, (1, C, *S)."""
        if isinstance(image, Tensor):
            if tuple(image.shape) != shape:
                raise BedstoneError(
                    f"image: a signal of {tuple(image.shape)} was given; expected {shape}, "
                    "channels first."
                )
            if not image.isfinite().all():
                raise BedstoneError("image: holds values that aren't finite. Mend it.")
            return image.detach().float().cpu()[None]
        if self.model.signal.kind != "image":
            raise BedstoneError(
                f"image: {shown(image)} was given; the model draws {self.model.signal.kind}, and "
                "begins from such a signal as a tensor, not from a picture."
            )
        return picture_signal(image, shape)

    def mask(self, mask: Any, image: Any, shape: tuple[int, ...]) -> Tensor:
        """What is drawn anew, (1, 1, *S), of 0 to 1."""
        if not isinstance(mask, Tensor):
            if isinstance(image, Tensor):
                raise BedstoneError("mask: is a picture, and the image is none; give a tensor.")
            return mask_signal(mask, image, shape)
        if tuple(mask.shape) != (1, *shape[1:]):
            raise BedstoneError(
                f"mask: its shape is {tuple(mask.shape)}; expected {(1, *shape[1:])}, the image's "
                "size, 1 where something is to be drawn."
            )
        return mask.detach().float().cpu()[None]

    def shrunk(self, mask: Tensor, drawn: tuple[int, ...]) -> Tensor:
        """The mask of latents: drawn is whatever shows in a pixel that is to be."""
        if tuple(mask.shape[2:]) == drawn[1:]:
            return mask
        return torch.nn.functional.adaptive_max_pool2d(mask, drawn[1:])

    @torch.no_grad()
    def encoded(self, signals: Tensor) -> Tensor:
        if self.model.autoencoder is None:
            return signals
        latents: Tensor = self.model.autoencoder.network.latents(signals.to(self.device))
        return latents

    @torch.no_grad()
    def decoded(self, drawn: Tensor) -> Tensor:
        coder = self.model.autoencoder
        if coder is not None:
            # One by one: an autoencoder's maps are large, and small batches cost it nothing.
            rows = drawn.float().to(self.device)
            drawn = torch.cat([coder.network.pictures(row[None]) for row in rows])
        return drawn.float().cpu()

    def noise(self, seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
        """(B, *shape): what drawing by these seeds begins with."""
        return noise_like(torch.empty(len(seeds), *shape), generators_of(seeds))

    def shown(self, x: Tensor) -> Tensor:
        """Signals of what a watcher sees, noise among them: (B, C, *S), about -1 to 1."""
        spread = x.flatten(1).std(1).clamp_min(1).reshape(-1, *(1,) * (x.dim() - 1))
        return self.decoded(x / spread)


def _rows(condition: Given, part: slice) -> Given:
    if condition is None:
        return None
    if isinstance(condition, Condition):
        return condition.pick(part)
    return {name: value[part] for name, value in condition.items()}


def _told_to(watch: Watch, first: int, count: int) -> Callable[[int, int, Tensor, Tensor], None]:
    def told(step: int, steps: int, x: Tensor, clean: Tensor) -> None:
        share = (first + len(x) * step / steps) / count
        watch(Moment(share, first, step, steps, x, clean))

    return told
