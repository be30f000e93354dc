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

from bedstone.checkpoints.model import Model
from bedstone.data.text.preferences import PreferenceExamples, preference_batches
from bedstone.evaluate.runner import Evaluation, Progress
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
