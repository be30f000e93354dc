"""Direct preference optimisation and its kin: a policy learns from pairs of answers.

Rafailov et al., 2023, https://arxiv.org/abs/2305.18290. A policy is rewarded for how much more
likely than its reference it makes the chosen answer, beside the rejected one; no reward model and
no sampling is needed.
"""

from dataclasses import dataclass

from bedstone.checkpoints.model import Model
from bedstone.objectives.preferences import LOSSES, PairPreferenceLoss
from bedstone.recipes.preferences import Policy, PolicyRecipe
from bedstone.settings import number, one_of
from bedstone.train.start import Start


@dataclass
class DPORecipe(PolicyRecipe):
    """Direct preference optimisation, and its kin.

    Attributes, besides those of `PolicyRecipe`:
        loss: sigmoid, hinge, ipo, robust or sigmoid_norm: see
            `objectives.preferences.PairPreferenceLoss`.
        flipped: of robust: the share of pairs whose answers are the wrong way round.
        sft: weight of the cross-entropy of chosen answers, which keeps them likely.
    """

    out: str = "runs/dpo"
    loss: str = one_of(*LOSSES, default="sigmoid")
    flipped: float = number(0, 0.5, open_most=True, default=0.0)
    sft: float = number(0, default=0.0)


class DPO(Policy[DPORecipe]):
    """A policy that learns from pairs of a chosen and a rejected answer."""

    name = "dpo"
    Recipe = DPORecipe

    def lone(self, recipe: DPORecipe, count: int) -> str:
        if recipe.sft:
            return "sft: is a mean over the whole batch, of which a rank has a part; set it to 0"
        return super().lone(recipe, count)

    def objective(self, recipe: DPORecipe, model: Model, start: Start) -> PairPreferenceLoss:
        return PairPreferenceLoss(recipe.loss, recipe.beta, recipe.flipped, recipe.sft)
