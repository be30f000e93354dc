"""Reward models: a score of an answer, learnt from pairs of a chosen and a rejected one."""

from dataclasses import dataclass, field

from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.checkpoints.store import Checkpoint
from bedstone.data.text.preference_examples import pad_apart
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from bedstone.objectives.preferences import RewardLoss
from bedstone.recipes.preferences import PreferenceRecipe, Preferences
from bedstone.recipes.supervised import TuneOptim, set_dropout
from bedstone.settings import number, share
from bedstone.train.start import Start

SCORE = HeadConfig("sequence", ("reward",), "regression")  # the head of a reward model


@dataclass
class RewardRecipe(PreferenceRecipe):
    """A reward model: scores of answers, learnt from pairs of a chosen and a rejected answer.

    Attributes, besides those of `PreferenceRecipe`:
        centring: weight of the squared sum of a pair's scores, which keeps their mean near 0.
        dropout: in training.
    """

    out: str = "runs/reward"
    centring: float = number(0, default=0.01)
    dropout: float = share(below_one=True, default=0.0)
    optim: TuneOptim = field(default_factory=TuneOptim)


class Reward(Preferences[RewardRecipe]):
    """A reward model: one score of an answer, of pairs of a chosen and a rejected one."""

    name = "reward"
    Recipe = RewardRecipe
    scored = True

    def begin(self, recipe: RewardRecipe, checkpoint: Checkpoint | None) -> Model:
        model = super().begin(recipe, checkpoint)
        if not hasattr(model.config, "head") or not hasattr(model.network, "packed_states"):
            raise BedstoneError(
                f"model: {recipe.model} is a {model.config.layout}, which scores no texts; name a "
                "GPT or a BERT."
            )
        if model.network.causal:
            pad_apart(tokenizer_of(model))
        return model

    def ready(self, recipe: RewardRecipe, model: Model) -> None:
        if model.config.head != SCORE:
            model.network.set_head(SCORE, seed=recipe.seed)
        set_dropout(model.network, recipe.dropout)
        model.pooling = None  # it makes scores now, not vectors

    def objective(self, recipe: RewardRecipe, model: Model, start: Start) -> RewardLoss:
        return RewardLoss(recipe.centring)
