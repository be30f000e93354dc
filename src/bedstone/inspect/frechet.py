"""The Fréchet distance between features of real and of made pictures (FID; Heusel et al., 2017).

Each set is taken for a Gaussian: |mean - mean'|² + tr(C + C' - 2 (C C')^(1/2)). Sums are kept in
double precision and taken round the mean (Chan et al., 1983), so that a set may come in any number
of parts. A distance means something only beside another by the same network and as many pictures:
it falls as there are more.

Shapes: N rows, F features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.inspect.feature_rows import checked, same_width


@dataclass(frozen=True)
class Moments:
    """What is kept of a set of features.

    Attributes:
        count: rows, N.
        mean: (F,) double.
        scatter: (F, F) double, the sum over rows of (x - mean) (x - mean)ᵀ.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Of (N, F).

        Raises:
            BedstoneError: they have another shape, there are none, or one is not finite.
        """
        x = checked(features, "features")
        mean = x.mean(0)
        x = x - mean
        return cls(len(x), mean, x.T @ x)

    def joined(self, other: "Moments") -> "Moments":
        """Of both sets together."""
        same_width(self.mean, other.mean)
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        between = torch.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """(F, F), divided by N - 1. Raises BedstoneError where there is one row alone."""
        if self.count < 2:
            raise BedstoneError("features: one row has no covariance; give two or more.")
        return self.scatter / (self.count - 1)


def frechet_distance(one: Moments, other: Moments) -> float:
    """The squared distance of two Gaussians, never below 0.

    The trace of (C C')^(1/2) is that of (R C' R)^(1/2), R the root of C: symmetric, so that no
    imaginary parts arise, and with fewer rows than features all is still defined.

    Raises:
        BedstoneError: their widths differ, or one has less than two rows.
    """
    same_width(one.mean, other.mean)
    first, second = one.covariance, other.covariance
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ second @ root
    shared = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    apart = (one.mean - other.mean).square().sum()
    return max(float(apart + first.trace() + second.trace() - 2 * shared), 0.0)
