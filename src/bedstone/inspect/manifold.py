"""How true and how various made pictures are: precision and recall, density and coverage.

Each set is taken to fill the balls round its rows that just reach the k-th nearest row of the same
set (Kynkäänniemi et al., 2019): `precision` is the share of made pictures inside the real ones'
balls, `recall` the share of real ones inside the made ones'. One far real picture has a ball that
holds much; `density` and `coverage` (Naeem et al., 2020) mend that: how many real balls hold a made
picture, divided by k, and the share of real balls that hold any.

All need as many real as made pictures to be compared with others' figures.

Shapes: N real rows, M made rows, F features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bedstone.checks import check_whole
from bedstone.errors import BedstoneError
from bedstone.inspect.feature_rows import checked, same_width, squared_distances


@dataclass(frozen=True)
class Manifold:
    """Shares, of which only density may be above 1; `nearest` is k."""

    precision: float
    recall: float
    density: float
    coverage: float
    nearest: int


def precision_recall(real: Tensor, made: Tensor, *, nearest: int = 3) -> Manifold:
    """Of features (N, F) and (M, F), some distances at a time.

    Raises:
        BedstoneError: widths differ, there are no more rows than `nearest`, or a value is not
            finite.
    """
    check_whole("nearest", nearest, 1)
    a, b = checked(real, "real"), checked(made, "made")
    same_width(a, b)
    if min(len(a), len(b)) <= nearest:
        raise BedstoneError(
            f"nearest: {nearest} was given, of {len(a)} real and {len(b)} made pictures; give more "
            "pictures of both than that."
        )
    real_reach, made_reach = _reach(a, nearest), _reach(b, nearest)
    found = torch.zeros(len(a), dtype=torch.bool)
    covered = torch.zeros(len(a), dtype=torch.bool)
    inside = held = 0
    for rows, away in squared_distances(b, a):  # (m, N)
        holds = away <= real_reach
        inside += int(holds.any(1).sum())
        held += int(holds.sum())
        covered |= holds.any(0)
        found |= (away <= made_reach[rows, None]).any(0)
    return Manifold(
        precision=inside / len(b),
        recall=float(found.double().mean()),
        density=held / (nearest * len(b)),
        coverage=float(covered.double().mean()),
        nearest=nearest,
    )


def _reach(rows: Tensor, nearest: int) -> Tensor:
    """The squared distance of each row to its k-th nearest other, (N,)."""
    found = torch.empty(len(rows), dtype=rows.dtype)
    for part, away in squared_distances(rows, rows):
        numbers = torch.arange(part.start, part.stop)
        away[numbers - part.start, numbers] = torch.inf  # itself
        found[part] = away.kthvalue(nearest, 1).values
    return found
