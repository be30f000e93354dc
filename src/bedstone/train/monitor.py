"""Is the reward still what is wanted? Its rise beside held-out truth, evaluation by evaluation.

A policy finds what a reward pays for, not what it was meant for. It shows where the reward that is
learnt from goes on rising while what is measured on held-out prompts falls: there, training does
harm. Both changes must be surer than the scatter of prompts, so that a run that only wavers isn't
stopped.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SURE = 3.0  # standard errors that a change of two evaluations must reach
KEPT = 3  # evaluations that are compared


@dataclass
class Monitor:
    """Rewards and truths of the last evaluations.

    Attributes:
        learnt: mean rewards of the prompts that were answered in training since the last one.
        rewards: of each evaluation: the reward that is learnt from, of held-out prompts where the
            truth is another figure, else `learnt`.
        truths: of each evaluation, of the same held-out prompts in the same order.
        paired: whether rewards are of the same prompts each time.
        before: figures of the model that the run began with.
        hacked_at: how many evaluations there had been when the reward was found to mislead; 0 says
            that it wasn't.
        count: evaluations so far.
    """

    learnt: list[float] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)
    truths: list[list[float]] = field(default_factory=list)
    paired: bool = False
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
        self.paired = rewards is not None
        self.count += 1
        self.rewards.append(self.learnt if rewards is None else [float(each) for each in rewards])
        self.truths.append([float(each) for each in truths])
        self.learnt = []
        self.rewards, self.truths = self.rewards[-KEPT:], self.truths[-KEPT:]
        found = self.misleads()
        if found and not self.hacked_at:
            self.hacked_at = self.count
        return found

    def misleads(self) -> bool:
        """Whether rewards rose and truths fell, two evaluations in a row, and surely."""
        if len(self.truths) < KEPT or not all(self.rewards):
            return False
        truths, rewards = (
            [float(np.mean(each)) for each in kept] for kept in (self.truths, self.rewards)
        )
        falls = truths[0] > truths[1] > truths[2]
        rises = rewards[0] < rewards[1] < rewards[2]
        if not (falls and rises):
            return False
        fall = sureness(self.truths[0], self.truths[2], True)
        rise = sureness(self.rewards[0], self.rewards[2], self.paired)
        return fall < -SURE and rise > SURE

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return {
            "learnt": list(self.learnt),
            "rewards": [list(each) for each in self.rewards],
            "truths": [list(each) for each in self.truths],
            "paired": self.paired,
            "before": dict(self.before),
            "hacked_at": self.hacked_at,
            "count": self.count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a `state_dict`."""
        for name in self.state_dict():
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
