"""Kahneman-Tversky optimisation: a policy learns from answers that are judged good or bad.

Ethayarajh et al., 2024, https://arxiv.org/abs/2402.01306. Rows needn't be pairs: of a prompt one
answer with a label is enough, as thumbs up and down give it.
"""

from dataclasses import dataclass
from typing import Any

from bedstone.checkpoints.model import Model
from bedstone.data.text.preference_examples import PreferenceExamples
from bedstone.data.text.preferences import PROMPTS, read_judged, usable_judged
from bedstone.objectives.preferences import JudgedLoss
from bedstone.recipes.preferences import Policy, PolicyRecipe
from bedstone.settings import number
from bedstone.train.start import Start


@dataclass
class KTORecipe(PolicyRecipe):
    """Kahneman-Tversky optimisation, of answers that are desirable or not.

    Attributes, besides those of `PolicyRecipe`:
        desirable, undesirable: weights of both kinds of answers.
    """

    out: str = "runs/kto"
    desirable: float = number(0, default=1.0)
    undesirable: float = number(0, default=1.0)


class KTO(Policy[KTORecipe]):
    """A policy that learns from answers that are desirable or not."""

    name = "kto"
    alone = "its loss compares each answer with the mean of the whole batch"
    Recipe = KTORecipe
    reader = staticmethod(read_judged)
    usable = staticmethod(usable_judged)
    fields = (*PROMPTS, "input", "system", "completion")

    def labels(self, examples: dict[str, PreferenceExamples]) -> dict[str, list[Any]]:
        names = {True: "desirable", False: "undesirable"}
        return {split: [names[one] for one in each.actual] for split, each in examples.items()}

    def objective(self, recipe: KTORecipe, model: Model, start: Start) -> JudgedLoss:
        return JudgedLoss(recipe.beta, recipe.desirable, recipe.undesirable)
