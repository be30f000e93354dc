"""Attribution: how much each part of an input adds to a number that a network gives.

The methods know a `Case` alone: values that a network reads (embedded tokens, pixels), a baseline
that stands for "nothing there", which of them make a part (a word, a cell of a picture), and a
number F of them. So each is written once for all families.

Shapes: B rows, *S the shape of the values, n parts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from bedstone.errors import BedstoneError

TOLERANCE = 0.01  # share of F's change by which attributions may miss it
MOST = 512  # gradients of an integral
# Nodes and weights of Gauss and Lobatto on 0 to 1: exact for polynomials up to degree 7.
_INNER = math.sqrt(3 / 7) / 2
NODES = (0.0, 0.5 - _INNER, 0.5, 0.5 + _INNER, 1.0)
WEIGHTS = (1 / 20, 49 / 180, 16 / 45, 49 / 180, 1 / 20)
HALVED = 7  # gradients that halving a stretch costs
# Stretches to begin with: near the baseline a little changes much, most of all in text.
STRETCHES = (0.0, 0.25, 0.5, 1.0)
LEAST = 1e-9  # a change of F that is none, as a share of its size


@dataclass(frozen=True)
class Case:
    """A number F that a network gives of values, and what is left of them where parts are gone.

    Attributes:
        values: what the network reads, fp32 (*S): embedded tokens (T, D), pixels (C, H, W).
        baseline: what stands in the place of a part that is gone, (*S).
        parts: the number of the part that a value is of, -1 where it is of none and stays; int64,
            of as many dimensions as `values`, 1 where all along it are of one part.
        names: of the parts, n of them.
        score: F of rows (B, *S) to (B,); gradients pass through it unless `straight` is False.
        rows: read at a time.
    """

    values: Tensor
    baseline: Tensor
    parts: Tensor
    names: Sequence[str]
    score: Callable[[Tensor], Tensor]
    rows: int = 32

    def __len__(self) -> int:
        return len(self.names)

    def mixed(self, kept: Tensor) -> Tensor:
        """Values (B, *S) with the parts that `kept` (B, n), 1 or 0, leaves."""
        gates = torch.cat((kept, kept.new_ones(len(kept), 1)), 1)[:, self.parts]
        return torch.lerp(self.baseline, self.values, gates)

    @torch.no_grad()
    def at(self, kept: np.ndarray) -> np.ndarray:
        """F with the parts that `kept` (B, n) leaves, (B,) float64.

        Raises:
            BedstoneError: the network gives a number that isn't finite.
        """
        found = []
        for part in torch.from_numpy(np.asarray(kept, np.float32)).split(self.rows):
            found.append(self.score(self.mixed(part.to(self.values.device))).double().cpu())
        return _finite(torch.cat(found)).numpy()

    def summed(self, values: Tensor) -> np.ndarray:
        """Sums of values (*S) over each part, (n,) float64."""
        owners = self.parts.expand(values.shape).flatten()
        sums = values.new_zeros(len(self) + 1, dtype=torch.float64)
        sums.index_add_(0, owners % (len(self) + 1), values.flatten().double())
        return sums[:-1].cpu().numpy()

    def detail(self, values: Tensor) -> np.ndarray:
        """Values (*S) summed where a part's number can't differ: of each token, of each pixel."""
        along = [side for side, size in enumerate(self.parts.shape) if size == 1]
        return values.double().sum(along).cpu().numpy() if along else values.double().cpu().numpy()


def _finite(values: Tensor) -> Tensor:
    if not values.isfinite().all():
        raise BedstoneError(
            "explain: the network gives a number that isn't finite. See whether its weights are "
            "damaged, by bedstone check."
        )
    return values


@dataclass(frozen=True)
class Completeness:
    """Whether attributions add up to what they explain (Sundararajan et al., 2017, proposition 1).

    Attributes:
        total: sum of all attributions.
        change: F of the input less F of the baseline.
        missed: what is missing, summed over stretches of the path without regard to sign; the
            share that it is of the change is `error`.
        gradients: that were computed.
    """

    total: float
    change: float
    missed: float
    gradients: int

    @property
    def error(self) -> float:
        """|total - change| / |change|; infinite where nothing changes."""
        return abs(self.total - self.change) / max(abs(self.change), 1e-300)

    @property
    def met(self) -> bool:
        return self.error <= TOLERANCE


@dataclass(frozen=True)
class Attribution:
    """What each part adds.

    Attributes:
        method: by its name.
        scores: (n,) in units of F.
        detail: of each token (T,) or pixel (H, W), where the method says it.
        completeness: of methods that integrate.
        deviations: (n,) standard errors of methods that sample.
        proof: whether the scores are effects on F, rather than a picture of the network's insides.
    """

    method: str
    scores: np.ndarray
    detail: np.ndarray | None = None
    completeness: Completeness | None = None
    deviations: np.ndarray | None = None
    proof: bool = True


@dataclass
class _Stretch:
    """A stretch of the path with what its gradients say; its ends say by how much it is wrong."""

    start: float
    end: float
    change: float = 0.0
    integral: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def missed(self) -> float:
        return abs(float(self.integral.sum()) - self.change)

    @property
    def nodes(self) -> list[float]:
        """Places of the path, the ends first and last."""
        inner = [self.start + (self.end - self.start) * node for node in NODES[1:-1]]
        return [self.start, *inner, self.end]


def integrated_gradients(
    case: Case, *, tolerance: float = TOLERANCE, most: int = MOST
) -> Attribution:
    """Integrated gradients along the straight line from the baseline (Sundararajan et al., 2017).

    Steps are set where they are needed. A stretch of the line is integrated by Gauss and Lobatto,
    whose nodes are its ends and three between; its integral has to be the difference of F at its
    ends, so its error is known, and those with the largest errors are halved until all errors
    together, whatever their signs, are at most `tolerance` of the change of F, or `most` gradients
    are computed.
    """
    along = (case.values - case.baseline).double()
    weights = torch.tensor(WEIGHTS, dtype=case.values.dtype, device=case.values.device)
    ends: dict[float, tuple[float, Tensor]] = {}  # F and its gradient, which neighbours share
    gradients, change = 0, 0.0
    done: list[_Stretch] = []
    new = [_Stretch(*both) for both in pairwise(STRETCHES)]
    while new:
        places = list(dict.fromkeys(place for one in new for place in one.nodes))
        places = [place for place in places if place not in ends]
        known = ends | dict(zip(places, _looked(case, places), strict=True))
        gradients += len(places)
        for one in new:
            at = [known[place] for place in one.nodes]
            ends |= {one.start: at[0], one.end: at[-1]}
            one.change = at[-1][0] - at[0][0]
            mean = torch.tensordot(weights, torch.stack([slope for _, slope in at]), 1)
            one.integral = mean.double() * along * (one.end - one.start)
        change = ends[1.0][0] - ends[0.0][0]
        done, new = [*done, *new], []
        allowed = tolerance * abs(change)
        left, room = sum(one.missed for one in done), most - gradients
        for one in sorted(done, key=lambda one: -one.missed):
            if left <= allowed or room < HALVED:  # no more of them than need it
                break
            left, room = left - one.missed, room - HALVED
            middle = (one.start + one.end) / 2
            new += [_Stretch(one.start, middle), _Stretch(middle, one.end)]
            done.remove(one)
    values = torch.stack([one.integral for one in done]).sum(0)
    scores = case.summed(values)
    found = Completeness(
        total=float(values.sum()),
        change=change,
        missed=sum(one.missed for one in done),
        gradients=gradients,
    )
    return Attribution("integrated-gradients", scores, case.detail(values), found)


def _looked(case: Case, places: Sequence[float]) -> list[tuple[float, Tensor]]:
    """F and its gradient (*S) at places on the line from the baseline, 0, to the input, 1."""
    shape = (-1, *(1,) * case.values.dim())
    along = torch.tensor(places, dtype=case.values.dtype, device=case.values.device)
    found: list[tuple[float, Tensor]] = []
    for part in along.split(case.rows):
        x = torch.lerp(case.baseline, case.values, part.reshape(shape))
        with torch.enable_grad():
            values = case.score(x.requires_grad_())
            (slopes,) = torch.autograd.grad(values.sum(), x)
        found += zip(_finite(values.detach().double()).tolist(), _finite(slopes), strict=True)
    return found


def gradient_times_input(case: Case) -> Attribution:
    """The gradient of F at the input times its distance from the baseline: one step of the path."""
    ((_, slope),) = _looked(case, [1.0])
    values = slope * (case.values - case.baseline)
    return Attribution("gradient-x-input", case.summed(values), case.detail(values))


def occlusion(case: Case) -> Attribution:
    """How much F falls where each part alone is gone (Zeiler and Fergus, 2014)."""
    kept = np.concatenate((np.ones((1, len(case))), 1 - np.eye(len(case))))
    found = case.at(kept)
    return Attribution("occlusion", found[0] - found[1:])


def shapley(case: Case, *, pairs: int = 8, seed: int = 0) -> Attribution:
    """Shapley values by orders drawn at random, each beside its reverse (Mitchell et al., 2022).

    Of every order the scores add up to F's change, so their mean does.

    Args:
        pairs: orders drawn; each costs 2 (n - 1) passes.
    """
    random, count = np.random.default_rng(seed), len(case)
    sums = []
    for _ in range(pairs):
        order = random.permutation(count)
        both = np.stack([_steps(case, order), _steps(case, order[::-1])])
        sums.append(both.mean(0))
    drawn = np.stack(sums)
    spread = drawn.std(0, ddof=1) / math.sqrt(pairs) if pairs > 1 else np.full(count, np.nan)
    return Attribution("shapley", drawn.mean(0), deviations=spread)


def _steps(case: Case, order: np.ndarray) -> np.ndarray:
    """What each part adds to F as it joins those before it, (n,)."""
    values = case.at(np.concatenate((np.zeros((1, len(case))), joining(order))))
    found = np.zeros(len(case))
    found[order] = np.diff(values)
    return found


def joining(order: np.ndarray) -> np.ndarray:
    """Which parts are there as they come one by one in an order, (n, n) of 0 and 1."""
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return (ranks[None] <= np.arange(len(order))[:, None]).astype(np.float32)


METHODS: dict[str, Callable[[Case], Attribution]] = {
    "integrated-gradients": integrated_gradients,
    "occlusion": occlusion,
    "shapley": shapley,
    "gradient-x-input": gradient_times_input,
}
FORWARD = ("occlusion", "shapley")  # those that need no gradient
