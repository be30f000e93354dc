"""Has it copied? The nearest training pictures of made ones, in pixels or in features.

How near is too near is told by real pictures that were held out from training: who copies is
nearer to training than they are.

Shapes: N made rows, M training rows, F values of a row, k neighbours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bedstone.checks import check_whole
from bedstone.errors import BedstoneError
from bedstone.inspect.feature_rows import AT_ONCE, checked, same_width, squared_distances

SPARE = 4  # candidates beyond k, of which the nearest are found again without rounding


@dataclass(frozen=True)
class Neighbours:
    """The nearest training rows of each row, nearest first.

    Attributes:
        places: (N, k) their numbers.
        distances: (N, k) double: root mean square of the differences, as large as one value's.
    """

    places: Tensor
    distances: Tensor


@dataclass(frozen=True)
class Copying:
    """How near made pictures are to training, beside held-out real ones.

    Attributes:
        made, held: the median distance to the nearest training picture.
        nearer: the chance that a made picture is nearer to training than a held-out one; 0.5
            where they are alike, 1 where all are copied.
        suspects: the share of made pictures that are nearer than all but 1 % of held-out ones;
            0.01 where they are alike.
    """

    made: float
    held: float
    nearer: float
    suspects: float


def nearest(rows: Tensor, training: Tensor, count: int = 1) -> Neighbours:
    """The `count` nearest of training (M, F) for each of (N, F); pictures may be given whole.

    Raises:
        BedstoneError: widths differ, there are too few rows, or a value is not finite.
    """
    check_whole("count", count, 1)
    one = checked(rows.flatten(1) if rows.ndim > 2 else rows, "rows", 1, torch.float32)
    other = training.flatten(1) if training.ndim > 2 else training
    other = checked(other, "training", count, torch.float32)
    same_width(one, other)
    places, distances = [], []
    most = min(count + SPARE, len(other))
    # The candidates' values are held too, so of few training rows not all are compared at once.
    at_once = AT_ONCE * len(other) // max(len(other), most * one.shape[1])
    for part, away in squared_distances(one, other, at_once):
        found = away.topk(most, largest=False).indices  # (n, k + spare)
        # Products round: of pictures that are almost alike little would be left of a difference.
        apart = (one[part, None] - other[found]).double().square().mean(-1).sqrt()
        exact, order = apart.sort(dim=1, stable=True)
        places.append(found.gather(1, order)[:, :count])
        distances.append(exact[:, :count])
    return Neighbours(torch.cat(places), torch.cat(distances))


def copying(made: Neighbours, held: Neighbours) -> Copying:
    """Compares the nearest distances of made pictures with those of held-out real ones.

    Raises:
        BedstoneError: there are none of either.
    """
    one, other = made.distances[:, 0].contiguous(), held.distances[:, 0]
    if not len(one) or not len(other):
        raise BedstoneError("neighbours: there are no pictures to compare; give some of both.")
    ordered = other.sort().values
    # A held-out picture that is as far counts half.
    above = len(ordered) - torch.searchsorted(ordered, one, right=True)
    above_or_same = len(ordered) - torch.searchsorted(ordered, one)
    nearer = (above + above_or_same).double().mean() / (2 * len(ordered))
    return Copying(
        made=float(one.median()),
        held=float(other.median()),
        nearer=float(nearer),
        suspects=float((one < other.quantile(0.01)).double().mean()),
    )
