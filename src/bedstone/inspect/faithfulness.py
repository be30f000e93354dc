"""Whether an explanation says what counts: parts are taken away and put back in its order.

Where the parts that score highest go first, F has to fall faster than where they go by chance
(deletion), and where they come first, to rise faster (insertion; Petsiuk et al., 2018). An order
by a score that says nothing does neither. Weights that are shuffled have to change the scores
(Adebayo et al., 2018).

Shapes: n parts, K steps of a curve, R orders drawn at random.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from bedstone.inspect.attribution import Case
from bedstone.metrics.figures import bootstrap

STEPS = 16  # of a curve, at most
ORDERS = 20  # drawn at random
FEWEST = 3  # parts: with fewer, an order says nothing
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Curves:
    """F as parts go and come.

    Attributes:
        shares: (K + 1,) of parts that are gone or there, from 0 to 1.
        deletion, insertion: (K + 1,) F in the order of the scores.
        random_deletion, random_insertion: (R, K + 1) in orders by chance.
        fall: how much lower F is on average than by chance as parts go, in units of F.
        rise: how much higher as they come.
        fall_interval, rise_interval: of both, 95 % by bootstrap over the random orders.
        comprehensiveness: how much F falls where the fifth that scores highest is gone.
        sufficiency: how much F falls where nothing else is left (DeYoung et al., 2020).
    """

    shares: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    random_deletion: np.ndarray
    random_insertion: np.ndarray
    fall: float
    rise: float
    fall_interval: tuple[float, float]
    rise_interval: tuple[float, float]
    comprehensiveness: float
    sufficiency: float

    @property
    def holds(self) -> bool:
        """Whether both are better than chance."""
        return self.fall_interval[0] > 0 and self.rise_interval[0] > 0

    @property
    def failures(self) -> list[str]:
        """What isn't better than chance, in words."""
        found = []
        if not self.fall_interval[0] > 0:
            found.append("taking away what scores highest changes F no more than chance does")
        if not self.rise_interval[0] > 0:
            found.append("putting back what scores highest changes F no more than chance does")
        return found


class Faithfulness:
    """Curves of a case; those by chance are computed once for all methods."""

    def __init__(
        self, case: Case, *, orders: int = ORDERS, steps: int = STEPS, seed: int = 0
    ) -> None:
        self.case = case
        count = len(case)
        self.sizes = np.unique(np.linspace(0, count, min(count, steps) + 1).round().astype(int))
        random = np.random.default_rng(seed)
        drawn = [random.permutation(count) for _ in range(orders)]
        both = np.array([self._curves(order) for order in drawn])  # (R, 2, K + 1)
        self.random_deletion, self.random_insertion = both[:, 0], both[:, 1]

    def _curves(self, order: np.ndarray) -> np.ndarray:
        """F as parts go in an order, and as they come, (2, K + 1)."""
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order))
        there = (ranks[None] < self.sizes[:, None]).astype(np.float32)
        return self.case.at(np.concatenate((1 - there, there))).reshape(2, -1)

    def curves(self, scores: np.ndarray) -> Curves:
        """The curves of scores (n,)."""
        order = np.argsort(-scores, kind="stable")
        deletion, insertion = self._curves(order)
        falls = _areas(self.random_deletion) - _areas(deletion)  # (R,)
        rises = _areas(insertion) - _areas(self.random_insertion)
        fifth = np.zeros((2, len(scores)), np.float32)
        top = order[: max(1, round(len(order) / 5))]
        fifth[0], fifth[0, top], fifth[1, top] = 1, 0, 1
        without, alone = self.case.at(fifth)
        return Curves(
            shares=self.sizes / len(order),
            deletion=deletion,
            insertion=insertion,
            random_deletion=self.random_deletion,
            random_insertion=self.random_insertion,
            fall=float(falls.mean()),
            rise=float(rises.mean()),
            fall_interval=_interval(falls),
            rise_interval=_interval(rises),
            comprehensiveness=float(deletion[0] - without),
            sufficiency=float(deletion[0] - alone),
        )


def _areas(curves: np.ndarray) -> np.ndarray:
    """Mean F over the steps, those with all parts and with none left out: they are the same."""
    inner = curves[..., 1:-1]
    return np.asarray(inner.mean(-1))


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Where the mean lies, 95 %."""
    ends = bootstrap(lambda drawn: drawn @ values[:, None] / len(values), len(values))
    return float(ends[0, 0]), float(ends[0, 1])


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's, from -1 to 1; 0 where one of them doesn't vary."""
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (one, other)]
    first, second = (each - each.mean() for each in ranks)
    size = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / size) if size else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, equals sharing theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return np.asarray((ends - (counts - 1) / 2)[places])


@torch.no_grad()
def randomised(network: Network, *, seed: int = 0, names: Sequence[str] = ("",)) -> Network:
    """A copy whose weights are shuffled, each tensor in itself, so that their sizes stay.

    Args:
        names: beginnings of the names of the weights that are; all by default.
    """
    found: Any = copy.deepcopy(network)
    random = torch.Generator().manual_seed(seed)
    for name, weight in found.named_parameters():
        if name.startswith(tuple(names)) and weight.numel() > 1:
            order = torch.randperm(weight.numel(), generator=random).to(weight.device)
            weight.copy_(weight.flatten()[order].view_as(weight))
    return found.eval()
