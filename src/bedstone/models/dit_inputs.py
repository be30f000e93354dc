"""What a DiT can be given: shapes that fit its configuration, classes that it knows."""

import torch
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.models.dit_config import DiTConfig, divided


def check_inputs(
    config: DiTConfig,
    x: Tensor,
    classes: Tensor | None,
    memory: Tensor | None,
    keep: Tensor | None,
) -> None:
    """Raises BedstoneError where a network of `config` can't read these."""
    rows, sizes = len(x), tuple(x.shape[2:])
    if len(sizes) != len(config.size) or x.shape[1] != config.channels:
        raise BedstoneError(
            f"x: has the shape {list(x.shape)}; this network reads signals of {config.channels} "
            f"channels and {len(config.size)} dimensions, (rows, channels, sizes)."
        )
    if sizes != config.size:
        divided(sizes, config.patches, "x")
        if config.positions == "learnt":
            raise BedstoneError(
                f"x: has the sizes {list(sizes)}; this network has learnt the places of "
                f"{list(config.size)} alone. Give it that size, or train one with sincos positions."
            )
    if classes is not None:
        _check_classes(config, classes, rows)
    if memory is None:
        if config.layout == "pixart" and config.memory_width:
            raise BedstoneError("memory: none was given; a PixArt reads the states of a text.")
        return
    if not config.memory_width:
        raise BedstoneError("memory: was given, but this network has no cross-attention to text.")
    if memory.dim() != 3 or len(memory) != rows or memory.shape[2] != config.memory_width:
        raise BedstoneError(
            f"memory: has the shape {list(memory.shape)}; this network reads a text's states of "
            f"width {config.memory_width} for each of {rows} rows. Take the text encoder that it "
            "was trained with."
        )
    if keep is not None and keep.shape != memory.shape[:2]:
        raise BedstoneError(
            f"memory_keep: has the shape {list(keep.shape)}; expected {list(memory.shape[:2])}, "
            "True where a state of the memory is real."
        )


def _check_classes(config: DiTConfig, classes: Tensor, rows: int) -> None:
    if not config.classes and config.layout != "dit":
        raise BedstoneError("classes: were given, but this network was made without any.")
    if classes.shape != (rows,):
        raise BedstoneError(
            f"classes: have the shape {list(classes.shape)}; expected one number for each of "
            f"{rows} rows."
        )
    # On a GPU a look at the numbers waits for all work before it, at every step.
    if classes.device.type != "cpu" or torch.compiler.is_compiling() or not rows:
        return
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high > config.classes:
        raise BedstoneError(
            f"classes: {low if low < 0 else high} is out of range; this network has the classes 0 "
            f"to {config.classes - 1}, and {config.classes} for none."
        )
