"""Group relative policy optimisation: answers to a prompt are compared with each other.

Shao et al., 2024, https://arxiv.org/abs/2402.03300. No value is learnt: what is to be expected of a
prompt is the mean reward of its group.
"""

from dataclasses import dataclass, replace

from bedstone.checkpoints.model import Model
from bedstone.objectives.policy import NORMALISATIONS, SCALES, PolicyLoss
from bedstone.recipes.reinforcement import Reinforcement, ReinforcementRecipe
from bedstone.settings import one_of
from bedstone.train.rollout import RolloutSettings
from bedstone.train.start import Start


@dataclass
class GRPORecipe(ReinforcementRecipe):
    """Group relative policy optimisation.

    Attributes, besides those of `ReinforcementRecipe`:
        scale: what advantages are divided by: the standard deviation of rewards of the `group` or
            the `batch`, or `none` (Dr. GRPO).
        normalise: `token` weighs all tokens alike (DAPO), `sequence` all answers (GRPO), `constant`
            divides by max_new_tokens (Dr. GRPO), `sum` by nothing.
        ratio: whether probabilities are clipped by `token` or by `sequence` (GSPO).
    """

    out: str = "runs/grpo"
    scale: str = one_of(*SCALES, default="none")
    normalise: str = one_of(*NORMALISATIONS, default="token")
    ratio: str = one_of("token", "sequence", default="token")


class GRPO(Reinforcement[GRPORecipe]):
    """A policy that learns by how much an answer is better than the others to its prompt."""

    name = "grpo"
    Recipe = GRPORecipe

    def settings(self, recipe: GRPORecipe) -> RolloutSettings:
        own = super().settings(recipe)
        return replace(own, scale=recipe.scale, normalise=recipe.normalise)

    def objective(self, recipe: GRPORecipe, model: Model, start: Start) -> PolicyLoss:
        return self.loss(recipe, ratio=recipe.ratio, normalise=recipe.normalise)
