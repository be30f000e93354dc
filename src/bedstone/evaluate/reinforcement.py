"""Evaluation of a policy that learns from rewards: greedy answers to held-out prompts.

What the policy is rewarded for is measured beside what is wanted (`train.monitor`): the same reward
on prompts that it doesn't learn from, or another one, `monitor`.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.rule import Rule

from bedstone.data.text.reinforcement import Prompts
from bedstone.evaluate.rewards import Answers, RewardSum
from bedstone.evaluate.runner import Evaluation, Progress
from bedstone.generation.rollout import Sampled
from bedstone.metrics.figures import Figures, bootstrap, with_ends
from bedstone.report.advantages import write_advantage_page
from bedstone.runtime import Precision
from bedstone.train.rollout import Rollouts, Scored

PAGE = "advantages.html"
GUARDS = ("stop", "warn", "off")


@dataclass(frozen=True)
class Scorer:
    """Scores answers to prompts by their rows: what `train.rollout.Score` asks for."""

    prompts: Prompts
    rewards: RewardSum
    watched: bool = False  # whether a reward that stays the same is warned of

    def __call__(
        self, rows: Sequence[int], ids: Sequence[Sequence[int]], runs: Any = None
    ) -> Scored:
        talks = None if runs is None else [self._talk(own) for own in runs]
        if talks is None:
            texts = [self.prompts.written(row, own) for row, own in zip(rows, ids, strict=True)]
        else:  # what was said last
            texts = [talk[-1]["content"] for talk in talks]
        answers = Answers(
            prompts=[self.prompts.texts[row] for row in rows],
            texts=texts,
            ids=ids,
            talks=talks,
            columns=self.prompts.values(rows),
            places=[self.prompts.rows.where(row) for row in rows],
        )
        parts = self.rewards.score(answers)
        totals = self.rewards.total(parts)
        if self.watched:
            self.rewards.watch(totals)
        return Scored(texts, self.rewards.names, parts, totals)

    def _talk(self, runs: Sequence[tuple[bool, Sequence[int]]]) -> list[dict[str, Any]]:
        """An answer's runs as messages: those of the assistant, and what tools gave."""
        roles = ["tool" if read else "assistant" for read, _ in runs]
        texts = [self.prompts.tokenizer.decode(list(ids)).strip() for _, ids in runs]
        talk = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        return talk if talk[-1]["role"] == "assistant" else [*talk, dict(NOTHING)]


NOTHING = {"role": "assistant", "content": ""}  # of an answer that ends with what a tool gave


@dataclass(frozen=True)
class Measured:
    """Greedy answers to all held-out prompts.

    Attributes:
        sampled: the answers.
        scored: by the reward that is learnt from.
        truth: (rows,) by what is wanted: `monitor`, or the same reward.
    """

    sampled: Sampled
    scored: Scored
    truth: np.ndarray


@dataclass
class PolicyEvaluation(Evaluation):
    """Rewards, lengths and the divergence of a policy on held-out prompts.

    Attributes:
        name: of the rows: validation or test.
        network: the policy.
        rewards: by the reward that is learnt from.
        truth: by `monitor`; None where the truth is that reward.
        rollouts: the run's stream, which has the monitor.
        precision: of the matrix products.
        guard: what to do where the reward misleads, one of `GUARDS`.
        folder: of the run, for the page of advantages; None writes none.
    """

    name: str
    network: Any
    rewards: Scorer
    truth: Scorer | None
    rollouts: Rollouts
    precision: Precision
    guard: str = "stop"
    folder: Path | None = None

    def predict(self, progress: Progress = None) -> Measured:
        return self.measure(self.network)

    def measure(self, network: Any) -> Measured:
        """Greedy answers, and their rewards."""
        prompts, judge = self.rewards.prompts, self.rollouts.judge
        sampled = self.rollouts.answer(network, prompts.ids, temperature=0.0)
        rows = range(len(prompts))
        scored = judge(self.rewards, rows, sampled)
        truth = scored.totals if self.truth is None else judge(self.truth, rows, sampled).totals
        return Measured(sampled, scored, truth)

    def columns(self, found: Measured) -> dict[str, np.ndarray]:
        """Figures of each row, whose means are the figures."""
        columns = {"reward": found.scored.totals}
        if len(found.scored.names) > 1:
            parts = zip(found.scored.names, found.scored.parts.T, strict=True)
            columns |= {f"reward_{name}": column for name, column in parts}
        if self.truth is not None:
            columns["truth"] = found.truth
        columns["answer_tokens"] = found.sampled.real().sum(1).numpy().astype(float)
        columns["truncated"] = 1.0 - found.sampled.ended.numpy().astype(float)
        return columns

    def measured(self, found: Measured, resamples: int) -> Figures:
        """The figures of what was measured, with intervals over rows."""
        named = self.columns(found)
        values = np.stack(list(named.values()), 1)
        names, rows = list(named), len(values)
        intervals = {}
        if resamples:
            ends = bootstrap(lambda drawn: drawn @ values / rows, rows, resamples=resamples)
            intervals = with_ends(names, ends)
        means = {name: float(mean) for name, mean in zip(names, values.mean(0), strict=True)}
        main = "reward" if self.truth is None else "truth"
        doubts = []
        before = self.rollouts.monitor.before.get(main)
        if self.name == "validation" and before is not None and means[main] <= before:
            doubts.append(
                f"No better than the model that the run began with: {main} {means[main]:.4f}, "
                f"{before:.4f} before. Look at the answers, or at the reward."
            )
        return Figures("rewards", main, means, intervals, rows, doubts=tuple(doubts))

    def score(self, found: Measured, resamples: int) -> dict[str, Figures]:
        figures = self.measured(found, resamples)
        return {figures.kind: figures}

    def log(self, network: Any) -> dict[str, float]:
        found = self.measure(network)
        figures = {name: float(each.mean()) for name, each in self.columns(found).items()}
        monitor = self.rollouts.monitor
        monitor.before = monitor.before or figures
        figures = {"loss": -float(found.truth.mean()), **figures}
        real = self.rollouts.last
        if real is not None:
            figures["entropy"] = float(real.sampled.entropy[real.sampled.real()].mean())
        if (divergence := self.rollouts.divergence()) is not None:
            figures["kl"] = divergence
        misleads = monitor.add(found.truth, None if self.truth is None else found.scored.totals)
        if misleads and self.guard != "off":
            self._warn()
        self._write_page()
        return {f"validation_{name}": value for name, value in figures.items()}

    def _warn(self) -> None:
        stops = self.guard == "stop"
        self.rollouts.stopped = self.rollouts.stopped or stops
        done = "The run ends, with" if stops else "Look at the answers; best: reward keeps"
        warnings.warn(
            "the reward misleads: since the best evaluation it rose and held-out "
            f"{'truth' if self.truth else 'reward'} fell, by more than chance, at two evaluations "
            f"in a row. {done} the weights "
            "of the best evaluation. Mend the reward, raise kl, or train for less long.",
            stacklevel=2,
        )

    def report(
        self, folder: Path, metrics: dict[str, float], *, quiet: bool = False
    ) -> dict[str, Any]:
        figures = self.measured(self.predict(), 1000)
        if not quiet:
            rows = self.rewards.prompts.rows
            Console().print(Rule(f"{self.name}: {rows.name}", align="left"), figures)
        record = figures.record()
        if self.name == "validation":
            monitor = self.rollouts.monitor
            record |= {"before": dict(monitor.before), "misleading": bool(monitor.hacked_at)}
        return {self.name: record}

    def _write_page(self) -> None:
        if self.folder is None or not self.rollouts.shown:
            return
        write_advantage_page(
            self.folder / PAGE,
            f"{self.folder.name}: advantages of sampled tokens",
            self.rollouts.prompts,
            self.rollouts.shown,
        )
