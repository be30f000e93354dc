"""Is the reward still what is wanted? Its rise beside held-out truth, evaluation by evaluation.

A policy finds what a reward pays for, not what it was meant for. It shows where the reward that is
learnt from has risen since the best evaluation while what is measured on held-out prompts has
fallen: there, training does harm. Both changes must be surer than the scatter of prompts, at two
evaluations in a row, so that a run that only wavers isn't stopped. The comparison is with the best
evaluation, not the last one: a truth that fell at once and stays low is found too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SURE = 3.0  # standard errors that a change since the best evaluation must reach
IN_A_ROW = 2  # evaluations that must show it


@dataclass
class Monitor:
    """Rewards and truths of the evaluation with the best truth, and what came after it.

    Attributes:
        learnt: mean rewards of the prompts that were answered in training since the last one.
        best_rewards: of the best evaluation: the reward that is learnt from, of held-out prompts
            where the truth is another figure, else `learnt`.
        best_truths: of the best evaluation, of the same held-out prompts in the same order.
        in_a_row: evaluations without a break, up to the last, that show harm.
        before: figures of the model that the run began with.
        hacked_at: how many evaluations there had been when the reward was found to mislead; 0 says
            that it wasn't.
        count: evaluations so far.
    """

    learnt: list[float] = field(default_factory=list)
    best_rewards: list[float] = field(default_factory=list)
    best_truths: list[float] = field(default_factory=list)
    in_a_row: int = 0
    before: dict[str, float] = field(default_factory=dict)
    hacked_at: int = 0
    count: int = 0

    def add(self, truths: np.ndarray, rewards: np.ndarray | None = None) -> bool:
        """Takes an evaluation; whether it shows that the reward misleads.

        Args:
            truths: (rows,) of held-out prompts.
            rewards: (rows,) the reward that is learnt from, of the same answers; None where the
                truth is that reward, which is then compared with that of training.
        """
        paired = rewards is not None
        found = [float(each) for each in (self.learnt if rewards is None else rewards)]
        wanted = [float(each) for each in truths]
        self.learnt, self.count = [], self.count + 1
        if not found:  # no rollout before it
            return False
        if not self.best_truths or np.mean(wanted) > np.mean(self.best_truths):
            self.best_truths, self.best_rewards, self.in_a_row = wanted, found, 0
            return False
        falls = sureness(self.best_truths, wanted, True) < -SURE
        rises = sureness(self.best_rewards, found, paired) > SURE
        self.in_a_row = self.in_a_row + 1 if falls and rises else 0
        if self.in_a_row < IN_A_ROW:
            return False
        self.hacked_at = self.hacked_at or self.count
        return True

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return {
            "learnt": list(self.learnt),
            "best_rewards": list(self.best_rewards),
            "best_truths": list(self.best_truths),
            "in_a_row": self.in_a_row,
            "before": dict(self.before),
            "hacked_at": self.hacked_at,
            "count": self.count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a `state_dict`. One of an older version, without the best, begins anew."""
        for name in self.state_dict():
            if name in state:
                setattr(self, name, state[name])


def sureness(first: list[float], last: list[float], paired: bool) -> float:
    """The difference of the means, last less first, in its standard errors.

    Args:
        paired: whether entries belong together, one by one.
    """
    one, other = np.array(first), np.array(last)
    if paired:
        apart = other - one
        error = apart.std(ddof=1) / math.sqrt(len(apart)) if len(apart) > 1 else math.inf
        change = float(apart.mean())
    else:
        parts = [each.var(ddof=1) / len(each) if len(each) > 1 else math.inf
                 for each in (one, other)]  # fmt: skip
        error, change = math.sqrt(sum(parts)), float(other.mean() - one.mean())
    if error == 0:
        return math.copysign(math.inf, change) if change else 0.0
    return change / error
