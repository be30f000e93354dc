"""Enlarging images by a model that draws larger ones beside smaller ones (super-resolution).

Shapes: B images, C channels, h x w pixels of the smaller ones, H x W of the larger.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bedstone.checkpoints.pipeline import DiffusionPipeline
from bedstone.data.signals.enlarging import USUAL_NOISE, read_beside
from bedstone.data.signals.signals import Condition
from bedstone.diffusion.denoiser import clip
from bedstone.diffusion.sample import (
    BATCH,
    Autocast,
    Progress,
    SampleControls,
    generators_of,
)
from bedstone.diffusion.samplers import noise_like
from bedstone.errors import BedstoneError


def enlarge(
    model: DiffusionPipeline,
    images: Tensor,
    seeds: Sequence[int],
    *,
    noise: float = USUAL_NOISE,
    steps: int = 0,
    network: Any = None,
    autocast: Autocast = contextlib.nullcontext,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> Tensor:
    """Larger images (B, C, H, W) fp32 on the CPU, -1 to 1, of smaller ones (B, C, h, w).

    Args:
        model: trained by `method: upsample`.
        seeds: one for each image; the same seed gives the same larger image.
        noise: deviation of the noise that the smaller ones get, which hides their faults.
        steps: of sampling; 0 takes the model's own.
        network: a copy of the network that is ready for inference; the network itself for None.

    Raises:
        BedstoneError: the model enlarges nothing, or images of another size.
    """
    check_enlarges(model, tuple(images.shape[1:]), str(model.path or "the model"))
    small = images.float().cpu()
    drawn = noise_like(torch.empty_like(small), generators_of(seeds))
    levels = torch.full((len(small),), float(noise))
    condition = Condition(beside=read_beside(small, model.signal.shape[1:], levels, drawn))
    sampling = replace(model.sampling, guidance=1.0, steps=steps or model.sampling.steps)
    found = model.sample(
        seeds,
        condition=condition,
        sampling=sampling,
        controls=SampleControls(limit=clip()),
        network=network,
        autocast=autocast,
        batch=batch,
        progress=progress,
    )
    return found.clamp(-1, 1)


def enlarges(model: Any) -> bool:
    """Whether a model draws larger images of smaller ones."""
    return isinstance(model, DiffusionPipeline) and bool(model.signal.small)


def check_enlarges(model: Any, shape: tuple[int, ...], where: str) -> None:
    """Raises BedstoneError unless a model enlarges images of a shape (C, h, w)."""
    if not enlarges(model):
        raise BedstoneError(
            f"{where} is a {model.config.layout}, which enlarges no images. Name a run of "
            "method: upsample."
        )
    if tuple(model.signal.small) != shape:
        raise BedstoneError(
            f"{where} enlarges images of {list(model.signal.small)} (channels, height, width), and "
            f"these have {list(shape)}. Give it such images, or train one for these."
        )
