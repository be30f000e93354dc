"""The kernel distance between features of real and of made pictures (KID; Bińkowski et al., 2018).

The squared maximum mean discrepancy with the kernel (x·y / F + 1)³, estimated without bias, so that
it doesn't depend on how many pictures there are, and may fall below 0 where sets are alike. The
mean over random subsets is given with their spread, as published.

Shapes: N rows, F features, S of a subset.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bedstone.checks import check_whole
from bedstone.inspect.feature_rows import checked, same_width


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance.

    Attributes:
        mean: over the subsets.
        spread: the standard deviation of one subset's.
        subsets: how many were drawn.
        size: rows of each, S.
    """

    mean: float
    spread: float
    subsets: int
    size: int


def kernel_distance(
    real: Tensor, made: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> KernelDistance:
    """KID between (N, F) and (M, F), by subsets of both.

    Args:
        size: rows of a subset; no more than there are of either are taken.
        seed: of the subsets.

    Raises:
        BedstoneError: widths differ, less than two rows, a value that is not finite.
    """
    check_whole("subsets", subsets, 1)
    check_whole("size", size, 2)
    a, b = checked(real, "real", 2), checked(made, "made", 2)
    same_width(a, b)
    size = min(size, len(a), len(b))
    random = torch.Generator().manual_seed(seed)
    values = torch.stack(
        [
            discrepancy(
                a[torch.randperm(len(a), generator=random)[:size]],
                b[torch.randperm(len(b), generator=random)[:size]],
            )
            for _ in range(subsets)
        ]
    )
    return KernelDistance(float(values.mean()), float(values.std(correction=0)), subsets, size)


def discrepancy(one: Tensor, other: Tensor) -> Tensor:
    """The unbiased estimate of the squared discrepancy between (N, F) and (M, F), ().

    Pairs of a row with itself are left out (Gretton et al., 2012, lemma 6).
    """
    same_width(one, other)
    n, m = len(one), len(other)
    within = (_kernel(one, one).sum() - _own(one)) / (n * (n - 1))
    within = within + (_kernel(other, other).sum() - _own(other)) / (m * (m - 1))
    return within - 2 * _kernel(one, other).mean()


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    return (one @ other.T / one.shape[1] + 1).pow(3)  # (N, M)


def _own(rows: Tensor) -> Tensor:
    """The sum over rows of each with itself."""
    return (rows.square().mean(1) + 1).pow(3).sum()
