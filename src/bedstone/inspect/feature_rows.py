"""Rows of features: checked before anything is said of them, and how far they are from each other.

Shapes: N and M rows, F features.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bedstone.errors import BedstoneError

AT_ONCE = 1 << 24  # distances held in memory at one time


def checked(
    features: Tensor, name: str, least: int = 1, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Features, (N, F), as doubles or as asked for.

    Raises:
        BedstoneError: they have another shape, fewer rows than `least`, or one is not finite.
    """
    if features.ndim != 2 or len(features) < least:
        raise BedstoneError(
            f"{name}: the shape {tuple(features.shape)} was given; expected a row of features for "
            f"each picture, and {least} or more of them."
        )
    finite = features.isfinite().all(1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise BedstoneError(
            f"{name}, row {row}: holds values that are not finite. Look at what was drawn there."
        )
    return features.detach().to(dtype)


def same_width(one: Tensor, other: Tensor) -> None:
    """Raises BedstoneError where two sets have different numbers of features."""
    if one.shape[-1] != other.shape[-1]:
        raise BedstoneError(
            f"features: {one.shape[-1]} and {other.shape[-1]} of them are compared; expected both "
            "from the same network."
        )


def squared_distances(
    one: Tensor, other: Tensor, at_once: int = 0
) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of `one` at a time, and their squared distances to all of `other`, (n, M).

    |a|² + |b|² - 2 a·b, after moving both sets to where their values are small. At most `at_once`
    of them are made together; 0 takes `AT_ONCE`.
    """
    middle = other.mean(0)
    one, other = one - middle, other - middle
    lengths = other.square().sum(1)
    step = max(1, (at_once or AT_ONCE) // max(len(other), 1))
    for start in range(0, len(one), step):
        rows = one[start : start + step]
        found = torch.addmm(lengths, rows, other.T, alpha=-2)
        found += rows.square().sum(1, keepdim=True)
        yield slice(start, start + len(rows)), found.clamp_(min=0)
