"""Evaluation of preferences: loss, accuracy, rewards, log-probabilities and lengths of answers.

Shapes: P rows of two windows each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.rule import Rule

from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.open import first_row, open_dataset
from bedstone.data.records import MOST_BROKEN
from bedstone.data.text.preference_examples import PreferenceExamples, preference_batches
from bedstone.data.text.preferences import usable_pairs
from bedstone.evaluate.runner import Evaluation, Progress, present
from bedstone.metrics.figures import Figures
from bedstone.metrics.preferences import judgements, preferences
from bedstone.objectives.preferences import (
    JudgedLoss,
    PairPreferenceLoss,
    RewardLoss,
    answer_log_probs,
    answer_scores,
    log_ratios,
)
from bedstone.runtime import Precision
from bedstone.train.logs import ProgressBar


@dataclass(frozen=True)
class Measured:
    """What a network makes of all rows.

    Attributes:
        loss: mean over rows.
        rewards: (P, 2) of the two windows of each row: scores, or beta times log-ratios.
        log_probs: (P, 2) of the answers; None of scores.
        ratios: (P, 2) log-ratios to the reference; None of scores.
    """

    loss: float
    rewards: np.ndarray
    log_probs: np.ndarray | None = None
    ratios: np.ndarray | None = None


@dataclass
class PreferenceEvaluation(Evaluation):
    """Loss and figures of a model on preferences.

    Attributes:
        name: of the rows: validation or test.
        model: that is measured.
        examples: the rows.
        precision: of the matrix products.
        objective: that it learns by.
        batch_size: rows of a batch.
    """

    name: str
    model: Model
    examples: PreferenceExamples
    precision: Precision
    objective: PairPreferenceLoss | JudgedLoss | RewardLoss
    batch_size: int = 16

    def predict(self, progress: Progress = None) -> Measured:
        return self.measure(self.model.network, progress)

    def score(self, found: Measured, resamples: int) -> dict[str, Figures]:
        figures = self.measured(found, resamples)
        return {figures.kind: figures}

    def log(self, network: Any) -> dict[str, float]:
        found = self.measure(network)
        figures = self.measured(found, 0).values
        named = {name: v for name, v in figures.items() if not name.startswith("tokens")}
        return {f"validation_{name}": v for name, v in {"loss": found.loss, **named}.items()}

    def report(
        self, folder: Path, metrics: dict[str, float], *, quiet: bool = False
    ) -> dict[str, Any]:
        found = self.predict()
        figures = self.measured(found, 1000)
        if not quiet:
            Console().print(Rule(f"{self.name}: {self.examples.rows.name}", align="left"), figures)
        return {self.name: {"loss": found.loss, **figures.record()}}

    def measured(self, found: Measured, resamples: int) -> Figures:
        """The figures of what was measured."""
        lengths = self.examples.counts().reshape(-1, 2).astype(float)
        if isinstance(self.objective, JudgedLoss):
            assert found.log_probs is not None and found.ratios is not None
            own = found.ratios[:, 0]
            away = max(float(found.ratios[:, 1].mean()), 0.0)
            labels = np.array(self.examples.actual, bool)
            means = {
                "log_prob": found.log_probs[:, 0],
                "kl": own * len(own) / lengths[:, 0].sum(),
            }
            rewards = self.objective.beta * (own - away)
            return judgements(rewards, labels, lengths[:, 0], means, resamples=resamples)
        means = {}
        if found.log_probs is not None and found.ratios is not None:
            means = {
                "log_prob_chosen": found.log_probs[:, 0],
                "log_prob_rejected": found.log_probs[:, 1],
                "kl": found.ratios.sum(1) * len(found.ratios) / lengths.sum(),
            }
        return preferences(found.rewards, lengths, means, resamples=resamples)

    def measure(self, network: Any, progress: Progress = None) -> Measured:
        """What a network makes of all rows, in evaluation mode."""
        say: Callable[[float], None] = progress or (lambda share: None)
        total, parts = 0.0, []
        reads = getattr(network.head, "reads", "last")
        was_training = network.training
        network.eval()
        batches = preference_batches(self.examples, self.batch_size, reads=reads)
        with torch.inference_mode(), self.precision.autocast():
            for number, batch in enumerate(batches):
                there = batch.to(self.precision.device)
                loss, columns = self._read(network, there)
                total += loss
                halves = [column.float().cpu().chunk(2) for column in columns]
                parts.append(np.stack([torch.stack(each, 1).numpy() for each in halves]))
                say((number + 1) / len(batches))
        network.train(was_training)
        found = np.concatenate(parts, axis=1).astype(float)  # (columns, P, 2)
        loss = total / len(self.examples.rows)
        if isinstance(self.objective, RewardLoss):
            return Measured(loss, found[0])
        return Measured(loss, self.objective.beta * found[1], found[0], found[1])

    def _read(self, network: Any, batch: Any) -> tuple[float, list[torch.Tensor]]:
        """The sum of losses of a batch, and columns of (n,)."""
        if isinstance(self.objective, RewardLoss):
            scores = answer_scores(network, batch)
            return float(self.objective.of(scores, batch).sum()), [scores]
        found = answer_log_probs(network, batch)
        ratios = log_ratios(found, batch)
        if isinstance(self.objective, JudgedLoss):
            own, away = ratios.chunk(2)
            losses = self.objective.of(own, away, batch.labels)
        else:
            losses = self.objective.of(found, batch)
        return float(losses.sum()), [found.sums, ratios]


# `bedstone evaluate` for a reward model: its figures on pairs of answers.


def holds_pairs(data: str, split: str | None = None) -> bool:
    """Whether rows have a chosen and a rejected answer."""
    return {"chosen", "rejected"} <= first_row(data, split).keys()


def evaluate_rewards(
    model: Model,
    data: str,
    precision: Precision,
    *,
    split: str | None = None,
    context: int | None = None,
    batch_size: int = 16,
    as_json: bool = False,
) -> dict[str, Any]:
    """Prints and returns the figures of a reward model with 95 % intervals over all pairs.

    Args:
        model: whose head gives one score.
        data: rows with a chosen and a rejected answer.
        context: tokens of a prompt with an answer at most; None is as in training.

    Raises:
        BedstoneError: the rows can't be read, or too many are broken.
    """
    rows = open_dataset(data, split=split, most_broken=MOST_BROKEN, option="")
    recipe = model.record.get("recipe")
    learnt = recipe.get("limit") if isinstance(recipe, dict) else 0
    limit = min(context or learnt or model.config.context, model.config.context)
    causal = bool(model.network.causal)
    examples = PreferenceExamples(
        usable_pairs(rows), tokenizer_of(model), limit=limit, causal=causal, scored=True
    )
    evaluation = PreferenceEvaluation(data, model, examples, precision, RewardLoss(), batch_size)
    with ProgressBar("evaluating", quiet=as_json) as bar:
        found = evaluation.predict(bar.update)
    figures = evaluation.measured(found, 1000)
    notes = filter(None, [examples.rows.faults.left_out(), examples.cuts.note(limit)])
    return present(
        {"loss": found.loss, **figures.record()},
        {f"{model.path} on {data}": figures},
        notes=list(notes),
        as_json=as_json,
    )
