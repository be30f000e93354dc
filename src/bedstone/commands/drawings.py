"""Many drawings, one of each seed, for what measures or shows them.

Shapes: B drawings, C channels; *S the sizes of a signal.
"""

import torch
from torch import Tensor

from bedstone.checkpoints.drawing import DrawingModel
from bedstone.data.conditions import Condition
from bedstone.generation.denoiser import clip
from bedstone.generation.drawing import Asked, draw, generators_of
from bedstone.nn.inference import for_inference
from bedstone.runtime import Precision

TOGETHER = 250  # drawn at a time


def drawings(
    model: DrawingModel,
    precision: Precision,
    condition: Condition | None,
    null: Condition | None,
    count: int,
    *,
    first: int = 0,
) -> Tensor:
    """`count` drawings, (B, C, *S), of the seeds from `first` on."""
    shape = latent_shape(model)
    drawn = draw(
        for_inference(model.network, precision.dtype),
        model.process,
        model.target,
        shape,
        model.sampling,
        generators_of(range(first, first + count)),
        condition=condition,
        null=null,
        asked=Asked(limit=clip() if model.autoencoder is None else None),
        autocast=precision.autocast,
    )
    if model.autoencoder is not None:
        with torch.no_grad():
            drawn = model.autoencoder.network.pictures(drawn)
    return drawn.cpu()


def latent_shape(model: DrawingModel) -> tuple[int, ...]:
    """(C, *S) of what the network draws."""
    return (model.config.channels, *model.config.size)
