"""Proximal policy optimisation: a critic says what is to be expected at each token.

Schulman et al., 2017, https://arxiv.org/abs/1707.06347, on texts as Ziegler et al., 2019,
https://arxiv.org/abs/1909.08593: the reward comes with the last token, the divergence from the
reference is a penalty on each. The critic is a linear map of the policy's own states.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bedstone.checkpoints.adapters import write_adapter_files
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.tensors import load_tensors, save_tensors
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.objectives.policy import ESTIMATORS, Critic, PolicyLoss
from bedstone.recipes.reinforcement import Reinforcement, ReinforcementRecipe
from bedstone.settings import number, one_of, whole
from bedstone.train.data import Splits
from bedstone.train.rollout import RolloutSettings
from bedstone.train.start import Start, without_part

CRITIC = "critic.safetensors"  # in a checkpoint


@dataclass
class PPORecipe(ReinforcementRecipe):
    """Proximal policy optimisation.

    Attributes, besides those of `ReinforcementRecipe`:
        gamma: discount of what comes a token later.
        decay: lambda of generalised advantage estimation: 1 trusts rewards alone, 0 the critic.
        value: weight of the critic's loss.
        value_clip: how far a value may move from what it was; 0 doesn't clip.
    """

    out: str = "runs/ppo"
    group: int = whole(1, default=1)
    prompts: int = whole(1, default=128)
    updates: int = whole(1, default=4)
    kl: float = number(0, default=0.05)
    kl_in: str = one_of("loss", "reward", default="reward")
    kl_estimator: str = one_of(*ESTIMATORS, default="k1")
    gamma: float = number(0, 1, open_least=True, default=1.0)
    decay: float = number(0, 1, default=0.95)
    value: float = number(0, open_least=True, default=0.1)
    value_clip: float = number(0, default=0.2)

    least_group = 1


class PPO(Reinforcement[PPORecipe]):
    """A policy that learns beside a critic of its states."""

    name = "ppo"
    Recipe = PPORecipe
    baseline = "critic"

    def settings(self, recipe: PPORecipe) -> RolloutSettings:
        return replace(super().settings(recipe), gamma=recipe.gamma, decay=recipe.decay)

    def model(
        self, recipe: PPORecipe, splits: Splits, tokenizer: Tokenizer | None, start: Start
    ) -> Model:
        model = super().model(recipe, splits, tokenizer, start)
        critic = Critic(model.config.width)
        if start.checkpoint is not None:
            critic.load_state_dict(load_tensors(start.checkpoint.path, name=CRITIC))
        model.network.critic = critic
        return model

    def objective(self, recipe: PPORecipe, model: Model, start: Start) -> PolicyLoss:
        return self.loss(recipe, value=recipe.value, value_clip=recipe.value_clip)

    def bare(self, network: Any) -> AbstractContextManager[Any]:
        return without_part(network, "critic")

    def save(self, model: Model, folder: Path) -> None:
        with self.bare(model.network) as critic:
            model.write_files(folder)
        save_tensors(folder, critic.state_dict(), name=CRITIC)

    def save_adapter(self, model: Model, folder: Path) -> None:
        with self.bare(model.network) as critic:
            write_adapter_files(model, folder)
        save_tensors(folder, critic.state_dict(), name=CRITIC)

    def finish(self, model: Model, folder: Path) -> Path:
        with self.bare(model.network):
            return model.save(folder)
