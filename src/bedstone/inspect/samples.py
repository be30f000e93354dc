"""Sheets of made pictures: samples, how they came out of noise, and what they resemble.

Each is a PNG that keeps its recipe in its notes (`data.png_notes`). Signals are about [-1, 1].

Shapes: B samples, C channels (1 or 3), H and W, K frames, k neighbours.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.inspect.contact_sheet import contact_sheet
from bedstone.inspect.neighbours import Neighbours

Recipe = Mapping[str, Any]


def as_pixels(signals: Tensor) -> np.ndarray:
    """(B, 1 or 3, H, W), about [-1, 1], to (B, H, W, 3) uint8.

    Raises:
        BedstoneError: they have another shape.
    """
    if signals.ndim != 4 or signals.shape[1] not in (1, 3):
        raise BedstoneError(
            f"sheet: signals of shape {tuple(signals.shape)} are no pictures; expected (pictures, "
            "1 or 3 channels, height, width)."
        )
    values = torch.nan_to_num(signals.detach().float().cpu(), nan=0.0)  # a lost picture is grey
    values = ((values + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return values.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def samples_sheet(
    samples: Tensor,
    path: str | Path,
    *,
    titles: Sequence[str] = (),
    recipe: Recipe | None = None,
    columns: int = 0,
    cell: int = 96,
) -> Path:
    """Writes samples (B, C, H, W) in rows, with what each was asked by; raises as `contact_sheet`
    does."""
    return contact_sheet(
        list(as_pixels(samples)), path, titles=titles, columns=columns, cell=cell, recipe=recipe
    )


def strip_sheet(
    frames: Sequence[Tensor],
    path: str | Path,
    *,
    titles: Sequence[str] = (),
    recipe: Recipe | None = None,
    cell: int = 96,
) -> Path:
    """Writes the same samples at several moments side by side, a row each: from noise to picture,
    or a film's frames.

    Args:
        frames: K of (B, C, H, W), the first on the left.
        titles: of the K frames, written below each row's; none leaves the room out.

    Raises:
        BedstoneError: there is no frame, they differ in shape, or as `contact_sheet` does.
    """
    if not frames or any(frame.shape != frames[0].shape for frame in frames):
        shapes = sorted({tuple(frame.shape) for frame in frames})
        raise BedstoneError(f"{path}: frames of shapes {shapes}; expected some, all of one shape.")
    if titles and len(titles) != len(frames):
        raise BedstoneError(f"{path}: {len(frames)} frames and {len(titles)} titles.")
    pixels = np.stack([as_pixels(frame) for frame in frames], 1)  # (B, K, H, W, 3)
    cells = list(pixels.reshape(-1, *pixels.shape[2:]))
    below = list(titles) * len(pixels)
    return contact_sheet(cells, path, titles=below, columns=len(frames), cell=cell, recipe=recipe)


def chosen_frames(count: int, most: int = 10) -> list[int]:
    """At most `most` of `count` frames, the first and the last among them, evenly."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def neighbours_sheet(
    samples: Tensor,
    training: Tensor,
    found: Neighbours,
    path: str | Path,
    *,
    recipe: Recipe | None = None,
    cell: int = 96,
) -> Path:
    """Writes each sample beside its nearest training pictures, with their distances.

    Args:
        samples: (B, C, H, W).
        training: (M, C, H, W), all that `found` speaks of.
        found: of `neighbours.nearest`, in pixels or in features.

    Raises:
        BedstoneError: `found` is of other pictures, or as `contact_sheet` does.
    """
    if len(found.places) != len(samples) or int(found.places.max()) >= len(training):
        raise BedstoneError(
            f"{path}: neighbours of {len(found.places)} samples for {len(samples)} samples and "
            f"{len(training)} training pictures; give those that were compared."
        )
    cells: list[np.ndarray] = []
    titles: list[str] = []
    for number, sample in enumerate(as_pixels(samples)):
        cells += [sample, *as_pixels(training[found.places[number]])]
        titles += ["sample", *(f"{away:.3f}" for away in found.distances[number].tolist())]
    columns = 1 + found.places.shape[1]
    return contact_sheet(cells, path, titles=titles, columns=columns, cell=cell, recipe=recipe)
