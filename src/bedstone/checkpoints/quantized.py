"""Quantised weights in a file of their own: `quantized.safetensors` beside the plain form.

It holds every tensor of the model under its published name; of a quantised weight `NAME.codes`,
`NAME.scales` and, in four bits, `NAME.lowest`, as the layers of `nn/quantize.py` keep them: outputs
by inputs, whatever the published form is. `bedstone.load` opens it in the place of the plain
weights, and nothing is made whole.

Shapes: E outputs, D inputs, G inputs a group.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bedstone.checkpoints.headers import REFETCH
from bedstone.checkpoints.tensors import load_tensors, save_tensors
from bedstone.errors import BedstoneError
from bedstone.models.families import QUANTIZED
from bedstone.models.published import FLOATS, to_published
from bedstone.nn.quantize import Codes, Quantized

PARTS = ("codes", "scales", "lowest")


def is_quantized(network: Any) -> bool:
    """Whether a network has quantised layers."""
    return any(isinstance(module, Quantized) for module in network.modules())


def save_quantized(folder: Path, layout: Any, network: Any) -> None:
    """Writes a network's weights, quantised ones as they stand, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for name, weight in to_published(layout, network, held=True).items():
        if isinstance(weight, Codes):
            tensors |= {f"{name}.{part}": each for part, each in weight.parts.items()}
        else:
            tensors[name] = weight
    save_tensors(folder, tensors, name=QUANTIZED)


def load_quantized(folder: Path) -> dict[str, Any]:
    """Tensors and codes by their published names, mapped from disk: read where touched.

    Raises:
        BedstoneError: the file isn't what it says, or codes lack a part or don't fit together.
    """
    stored = load_tensors(folder, name=QUANTIZED)
    found: dict[str, Any] = {}
    for key in sorted(stored):
        name, _, part = key.rpartition(".")
        if part == "codes":
            codes, scales, lowest = (stored.pop(f"{name}.{each}", None) for each in PARTS)
            found[name] = _codes(codes, scales, lowest, f"{folder / QUANTIZED}: {name}")
    return found | stored


def _codes(codes: Any, scales: Tensor | None, lowest: Tensor | None, where: str) -> Codes:
    """Codes whose parts fit together.

    Raises:
        BedstoneError: they don't.
    """
    if scales is None:
        raise BedstoneError(f"{where}: has codes and no scales. {REFETCH}")
    kind = torch.int8 if lowest is None else torch.uint8
    if codes.dtype is not kind or codes.dim() != 2:
        raise BedstoneError(
            f"{where}: its codes are {codes.dtype} of shape {tuple(codes.shape)}; expected {kind} "
            f"of two dimensions. {REFETCH}"
        )
    outputs, width = codes.shape
    inputs = width if lowest is None else 2 * width
    for part, each in (("scales", scales), ("lowest", lowest)):
        if each is None:
            continue
        groups = each.shape[-1] if each.dim() == 2 else 0
        fits = groups == 1 if lowest is None else groups > 0 and inputs % groups == 0
        if each.dtype not in FLOATS or not fits or each.shape != (outputs, groups):
            raise BedstoneError(
                f"{where}: its {part} are {each.dtype} of shape {tuple(each.shape)}, which don't "
                f"fit {outputs} rows of {inputs} numbers. {REFETCH}"
            )
    if lowest is not None and lowest.shape != scales.shape:
        raise BedstoneError(f"{where}: its scales and lowest values differ in shape. {REFETCH}")
    return Codes(codes, scales, lowest)
