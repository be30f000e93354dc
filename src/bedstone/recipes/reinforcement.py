"""What reinforcement learning shares: prompts, rewards, rollouts, the reference, the monitor.

The methods are `grpo`, `rloo` and `ppo`.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.checkpoints.store import Checkpoint
from bedstone.data.summary import summarise
from bedstone.data.text.reinforcement import Prompts
from bedstone.errors import BedstoneError
from bedstone.evaluate.reinforcement import GUARDS, PolicyEvaluation, Scorer
from bedstone.evaluate.rewards import RewardSum, load_function, source_print
from bedstone.evaluate.runner import Evaluation
from bedstone.generation.tool_rollout import Tools
from bedstone.nn.lora import LoraConfig
from bedstone.objectives.policy import ESTIMATORS, PolicyLoss
from bedstone.recipes.preferences import (
    PreferenceConfig,
    PreferenceOptim,
    PreferenceRecipe,
    Preferences,
    check_vocabulary,
    check_writes,
)
from bedstone.recipes.supervised import TuneOptim, set_dropout
from bedstone.settings import from_mapping, number, one_of, whole
from bedstone.train.data import Splits
from bedstone.train.loop import Batches
from bedstone.train.reference import weights_print
from bedstone.train.resume import record_of
from bedstone.train.rollout import Rollouts, RolloutSettings
from bedstone.train.run import RunPlan, Stopping
from bedstone.train.start import Start, freeze

R = TypeVar("R", bound="ReinforcementRecipe")


@dataclass
class PromptConfig(PreferenceConfig):
    """What to answer: rows with a `prompt`, whose other columns go to the rewards.

    Attributes, besides those of `PreferenceConfig`:
        columns: which column holds what, where the usual names aren't used: prompt, messages,
            tools.
    """


@dataclass
class ReinforcementRecipe(PreferenceRecipe):
    """Reinforcement learning: a policy answers prompts and learns from the answers' rewards.

    Attributes, besides those of `PreferenceRecipe`:
        epochs: passes over the prompts.
        batch_size: answers that are read at a time; it changes no result but by rounding.
        rewards: what answers are rewarded for: `FILE.py:FUNCTION`, `regex:PATTERN`, a reward model,
            or a list of these, each as `{reward: ..., weight: 1, name: ...}`.
        monitor: what is wanted, in the same form, measured on held-out prompts; empty takes the
            rewards themselves.
        tools: Python functions that answers may call, each `FILE.py:FUNCTION`: the model's chat
            template writes calls, and results are read and not learnt.
        prompts: answered in a rollout.
        group: answers to each.
        max_new_tokens: of an answer.
        temperature: that tokens are drawn at; log-probabilities are those of that temperature.
        truncated: `score` learns from answers that the limit cut too; `skip` leaves them out.
        resample: rounds at most in which groups of equal rewards are replaced by answers to further
            prompts (dynamic sampling of DAPO); 0 keeps them.
        updates: passes over a rollout.
        minibatches: steps of a pass.
        clip_low, clip_high: how far a token's probability may move below and above what it was, as
            a share of it.
        kl: weight of the divergence from the reference.
        kl_in: whether it is part of the `loss` or of the `reward`.
        kl_estimator: k1, k2 or k3: see `objectives.policy.kl_terms`.
        kl_corrected: whether the divergence in the loss is multiplied by the ratio of
            probabilities, which makes the gradients of k1 and k3 those of the divergence.
        reference: another model as the reference; empty is the model that the run begins with.
        evaluate_rows: held-out prompts that an evaluation answers at most; 0 takes all.
        guard: what to do where the reward rises and what is wanted falls: stop, warn or off.
        best: whether the weights of the evaluation with the best held-out `reward` become the
            model, or the `last`.
    """

    data: PromptConfig = field(default_factory=PromptConfig)
    rewards: Any = ""
    monitor: Any = ""
    tools: list[str] = field(default_factory=list)
    batch_size: int = whole(1, default=64)
    prompts: int = whole(1, default=32)
    group: int = whole(1, default=8)
    max_new_tokens: int = whole(1, default=256)
    temperature: float = number(0, open_least=True, default=1.0)
    truncated: str = one_of("score", "skip", default="score")
    resample: int = whole(0, default=0)
    updates: int = whole(1, default=1)
    minibatches: int = whole(1, default=1)
    clip_low: float = number(0, 1, default=0.2)
    clip_high: float = number(0, default=0.2)
    kl: float = number(0, default=0.0)
    kl_in: str = one_of("loss", "reward", default="loss")
    kl_estimator: str = one_of(*ESTIMATORS, default="k3")
    kl_corrected: bool = True
    reference: str = ""
    evaluate_rows: int = whole(0, default=256)
    guard: str = one_of(*GUARDS, default="stop")
    best: str = one_of("reward", "last", default="reward")
    optim: TuneOptim = field(default_factory=PreferenceOptim)

    least_group: ClassVar[int] = 2  # answers to a prompt that can be compared

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rewards:
            raise BedstoneError(
                "rewards: none was given; name a function as rewards.py:exact, a reward model, or "
                "regex:PATTERN."
            )
        if self.lora and from_mapping(LoraConfig, self.lora, "recipe", "lora.").dropout:
            raise BedstoneError(
                "lora.dropout: makes the probabilities of answers noise; leave it out."
            )
        if self.group < self.least_group:
            raise BedstoneError(
                f"group: {self.group} was given; answers to a prompt are compared with each other, "
                f"so there must be {self.least_group} or more. One alone is for method: ppo."
            )
        if self.resample and self.least_group < 2:
            raise BedstoneError(
                f"resample: {self.resample} was given; it replaces groups of equal rewards, and a "
                "critic compares no groups. Leave it out."
            )
        if self.tools and self.least_group < 2:
            raise BedstoneError(
                "tools: a critic values each token, and results of calls are no tokens of the "
                "policy. Take method: grpo or rloo."
            )
        if self.accumulate != 1:
            raise BedstoneError(
                f"accumulate: {self.accumulate} was given; a step is of all answers of a rollout, "
                "and batch_size says how many are read at a time. Leave it out."
            )
        if self.minibatches > self.prompts * self.group:
            raise BedstoneError(
                f"minibatches: {self.minibatches:,} steps can't share the {self.prompts:,} x "
                f"{self.group:,} answers of a rollout. Lower it."
            )


class Reinforcement(Preferences[R]):
    """What the methods share."""

    unit = "answers"
    alone = "its answers are generated and rewarded for the whole batch"
    baseline: ClassVar[str] = "group"
    fields = ("prompt", "messages")

    def begin(self, recipe: R, checkpoint: Checkpoint | None) -> Model:
        model = super().begin(recipe, checkpoint)
        check_writes(model, "model", recipe.model)
        if not model.end_ids:
            raise BedstoneError(
                f"model: {recipe.model} has no end token, so no answer would come to its end. Name "
                "it as eos_token in tokenizer_config.json, or train it first on answers "
                "(method: sft)."
            )
        return model

    def open(self, recipe: R, start: Start) -> Splits:
        data, model = recipe.data, start.model
        context = min(recipe.limit or model.config.context, model.config.context)
        room = context - recipe.max_new_tokens
        if room < 1:
            raise BedstoneError(
                f"max_new_tokens: {recipe.max_new_tokens:,} leave no room for a prompt in a "
                f"context of {context:,} tokens. Lower it."
            )
        rewards = RewardSum(recipe.rewards, start.precision)
        monitor = None
        if recipe.monitor:
            monitor = RewardSum(recipe.monitor, start.precision, "monitor")
        tools = self.tools(recipe, model)
        start.parts |= {"rewards": rewards, "monitor": monitor, "tools": tools}

        found = data.open(recipe.seed)
        found["validation"] = found["validation"].take(recipe.evaluate_rows, recipe.seed)
        tokenizer = tokenizer_of(model)
        schemas = tools.schemas if tools else ()
        prompts = {
            split: Prompts(rows, tokenizer, room=room, tools=schemas)
            for split, rows in found.items()
        }
        for each in prompts.values():
            columns, places = each.all_values()
            rewards.check(columns, places)
            if monitor is not None:
                monitor.check(columns, places)
        train = prompts["train"]
        record = {
            "source": data.train,
            "fingerprint": train.rows.fingerprint(),
            "rows": len(train),
            "left_out": len(train.rows.faults.broken),
            "rewards": rewards.fingerprint(),
        }
        if tools:
            record["tools"] = [source_print(each) for each in tools.functions.values()]
        _check_same(record, start.checkpoint, recipe)
        notes = [
            f"{data.train}: {train.describe()}",
            f"held out: {prompts['validation'].describe()}",
            *self.notes(recipe),
        ]
        understood = summarise({name: each.rows for name, each in prompts.items()}, {}, self.fields)
        return Splits(train, prompts["validation"], prompts.get("test"), record, notes, understood)

    def tools(self, recipe: R, model: Model) -> Tools | None:
        """The functions that answers may call; None where there are none."""
        if not recipe.tools:
            return None
        functions = [load_function(spec, "tools") for spec in recipe.tools]
        return Tools(functions, tokenizer_of(model), model.end_ids)

    def notes(self, recipe: R) -> list[str]:
        """Lines of the plan: what a setting means that may not be meant."""
        if recipe.kl and recipe.kl_in == "loss":
            if recipe.kl_estimator == "k1" and not recipe.kl_corrected:
                return ["kl_estimator: the gradient of k1 in the loss is 0 in the mean; take k2"]
            if recipe.kl_estimator == "k2" and recipe.kl_corrected:
                return ["kl_estimator: the gradient of k2 is the divergence's uncorrected only"]
        return []

    def settings(self, recipe: R) -> RolloutSettings:
        """How rollouts are made."""
        return RolloutSettings(
            prompts=recipe.prompts,
            group=recipe.group,
            max_tokens=recipe.max_new_tokens,
            temperature=recipe.temperature,
            skip_cut=recipe.truncated == "skip",
            resample=recipe.resample,
            baseline=self.baseline,
            kl=recipe.kl,
            kl_in=recipe.kl_in,
            estimator=recipe.kl_estimator,
            updates=recipe.updates,
            minibatches=recipe.minibatches,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
        )

    def batches(self, recipe: R, model: Model, splits: Splits, start: Start) -> Batches:
        rewards: RewardSum = start.parts["rewards"]
        return Rollouts(
            model.network,
            splits.train,
            Scorer(splits.train, rewards, watched=True),
            self.settings(recipe),
            ends=sorted(model.end_ids),
            precision=start.precision,
            reference=self.refer(recipe, model, splits, start),
            tools=start.parts["tools"],
        )

    def refer(self, recipe: R, model: Model, splits: Splits, start: Start) -> Any:
        """The reference: the model that is named, the base of an adapter (which the policy stands
        for), or the one that the run began with.

        Raises:
            BedstoneError: it has another vocabulary, or isn't the one it was.
        """
        other = recipe.reference or (recipe.model if start.checkpoint and not recipe.lora else "")
        if other:
            opened = open_model(other, dtype=torch.float32)
            check_writes(opened, "reference", other)
            check_vocabulary(opened, model, other)
            set_dropout(opened.network, 0.0)
            found = opened.network.to(start.precision.device)
        else:
            with self.bare(model.network):
                found = model.network if recipe.lora else copy.deepcopy(model.network)
        if found is not model.network:
            freeze(found)
        with self.bare(found):
            weights = weights_print(found)
        began = (record_of(start.checkpoint).get("data") or {}).get("reference")
        if began not in (None, weights):
            raise BedstoneError(
                f"reference: {other or recipe.model} isn't the model that it was when the run "
                "began. Bring it back, or start a new run."
            )
        splits.record["reference"] = weights
        return found

    def loss(self, recipe: R, **more: Any) -> PolicyLoss:
        """The objective, with what all methods say of it."""
        return PolicyLoss(
            low=recipe.clip_low,
            high=recipe.clip_high,
            limit=recipe.max_new_tokens,
            kl=recipe.kl if recipe.kl_in == "loss" else 0.0,
            estimator=recipe.kl_estimator,
            corrected=recipe.kl_corrected,
            temperature=recipe.temperature,
            **more,
        )

    def evaluations(self, recipe: R, plan: RunPlan) -> Sequence[Evaluation]:
        rollouts, parts = plan.batches, plan.start.parts
        assert isinstance(rollouts, Rollouts)
        found = []
        for name in ("validation", "test"):
            prompts = getattr(plan.splits, name)
            if prompts is None:
                continue
            monitor = parts["monitor"]
            found.append(
                PolicyEvaluation(
                    name,
                    plan.model.network,
                    Scorer(prompts, parts["rewards"]),
                    None if monitor is None else Scorer(prompts, monitor),
                    rollouts,
                    plan.start.precision,
                    recipe.guard,
                    plan.start.folder,
                )
            )
        return found

    def budget(self, recipe: R, splits: Splits) -> str:
        rollouts = max(len(splits.train) // min(recipe.prompts, len(splits.train)), 1)
        steps = math.ceil(recipe.epochs * rollouts) * recipe.updates * recipe.minibatches
        return recipe.budget or f"{max(steps, 1)} steps"

    def step_size(self, recipe: R) -> int:
        return recipe.prompts * recipe.group // recipe.minibatches

    def accumulate(self, recipe: R) -> int:
        return self.settings(recipe).micro_batches

    def stopping(self, recipe: R, model: Model) -> Stopping:
        return Stopping("validation_loss", recipe.patience, recipe.best != "last", True)


def _check_same(
    record: dict[str, Any], checkpoint: Checkpoint | None, recipe: ReinforcementRecipe
) -> None:
    """Raises BedstoneError where a run goes on with other rewards or tools than it began with."""
    for name in ("rewards", "tools"):
        began = (record_of(checkpoint).get("data") or {}).get(name)
        if began not in (None, record.get(name)):
            raise BedstoneError(
                f"{name}: {getattr(recipe, name)} has changed since the run began, so it can't go "
                "on exactly. Bring it back as it was, or begin a new run with model= the last "
                "checkpoint."
            )
