"""REINFORCE leave-one-out: an answer is compared with the mean of the others to its prompt.

Ahmadian et al., 2024, https://arxiv.org/abs/2402.14740. An answer is one action: its probability is
that of all its tokens, and the divergence from the reference is a part of its reward.
"""

from dataclasses import dataclass, replace

from bedstone.checkpoints.model import Model
from bedstone.objectives.policy import ESTIMATORS, PolicyLoss
from bedstone.recipes.reinforcement import Reinforcement, ReinforcementRecipe
from bedstone.settings import number, one_of
from bedstone.train.rollout import RolloutSettings
from bedstone.train.start import Start


@dataclass
class RLOORecipe(ReinforcementRecipe):
    """REINFORCE leave-one-out; attributes as in `ReinforcementRecipe`."""

    out: str = "runs/rloo"
    kl: float = number(0, default=0.05)
    kl_in: str = one_of("loss", "reward", default="reward")
    kl_estimator: str = one_of(*ESTIMATORS, default="k1")


class RLOO(Reinforcement[RLOORecipe]):
    """A policy that learns by how much an answer is better than the mean of the others."""

    name = "rloo"
    Recipe = RLOORecipe
    baseline = "others"

    def settings(self, recipe: RLOORecipe) -> RolloutSettings:
        return replace(super().settings(recipe), normalise="sum")

    def objective(self, recipe: RLOORecipe, model: Model, start: Start) -> PolicyLoss:
        return self.loss(recipe, ratio="product", normalise="sum")
