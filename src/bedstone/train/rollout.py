"""Rollouts: answers that the policy samples, their rewards, and the batches that are made of them.

The stream of batches is the run's own data: each rollout is sampled with the weights as they are,
in this process, and its random numbers follow from the seed and its place in the stream. What is
still to be learnt of the last rollout is part of the state, so that a run goes on exactly.

Shapes: P prompts, G answers to each, n = P G answers, T tokens of the longest.
"""

import contextlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bedstone.data.stream import Batches, Stream
from bedstone.data.text.reinforcement import Laid, PolicyBatch, Prompts, lay_answers
from bedstone.errors import BedstoneError
from bedstone.generation.rollout import Sampled, joined, sample_answers
from bedstone.generation.tool_rollout import Tools, runs_of, sample_with_tools
from bedstone.objectives.policy import (
    denominator,
    generalised_advantages,
    group_advantages,
    kl_terms,
    leave_one_out,
    sampled_log_probs,
    whitened,
    with_spread,
)
from bedstone.runtime import Precision
from bedstone.train.monitor import Monitor
from bedstone.train.reference import without_adapter

PATIENCE = 20  # rollouts in a row of which nothing can be learnt, before the run is stopped
SHOWN = 4  # rollouts that are kept to be shown
BASELINES = ("group", "others", "critic")  # what an answer's reward is compared with


@dataclass(frozen=True)
class Scored:
    """Rewards of n answers.

    Attributes:
        texts: the answers.
        names: of K parts of the reward.
        parts: (n, K).
        totals: (n,) weighted sums.
    """

    texts: Sequence[str]
    names: Sequence[str]
    parts: np.ndarray
    totals: np.ndarray


class Score(Protocol):
    """What scores answers to prompts, by the numbers of their rows.

    `runs` are those of `generation.tool_rollout.runs_of`, given where answers may call functions.
    """

    def __call__(
        self, rows: Sequence[int], ids: Sequence[Sequence[int]], runs: Any = None
    ) -> Scored: ...


@dataclass(frozen=True)
class RolloutSettings:
    """How answers are sampled, compared, and made into batches.

    Attributes:
        prompts: P of a rollout.
        group: G.
        max_tokens: of an answer.
        temperature: that tokens are drawn at.
        skip_cut: whether answers that the limit cut don't count.
        resample: how often at most groups without spread are replaced by answers to other prompts.
        baseline: one of `BASELINES`.
        scale: as for `objectives.policy.group_advantages`.
        kl: weight of the divergence from the reference.
        kl_in: loss or reward.
        estimator: of it.
        updates: passes over a rollout.
        minibatches: steps of a pass.
        batch_size: answers read at a time.
        normalise: as for `objectives.policy.token_weights`.
        gamma, decay: as for `objectives.policy.generalised_advantages`.
        seed: of prompts and answers.
    """

    prompts: int
    group: int
    max_tokens: int
    temperature: float = 1.0
    skip_cut: bool = False
    resample: int = 0
    baseline: str = "group"
    scale: str = "none"
    kl: float = 0.0
    kl_in: str = "loss"
    estimator: str = "k3"
    updates: int = 1
    minibatches: int = 1
    batch_size: int = 64
    normalise: str = "token"
    gamma: float = 1.0
    decay: float = 0.95
    seed: int = 0

    @property
    def steps(self) -> int:
        """Steps of a rollout."""
        return self.updates * self.minibatches

    @property
    def micro_batches(self) -> int:
        """Batches of a step at most."""
        answers = -(-self.prompts * self.group // self.minibatches)
        return -(-answers // self.batch_size)


@dataclass
class Answered:
    """Answers and their rewards.

    Attributes:
        rows: (n,) the row of each answer's prompt.
        sampled: the answers.
        rewards: (n,) fp64.
        counted: (n,) bool, which answers count.
        spread: (P,) bool, which groups have answers of different rewards.
    """

    rows: Tensor
    sampled: Sampled
    rewards: Tensor
    counted: Tensor
    spread: Tensor

    def replaced(self, more: "Answered") -> "Answered":
        """Groups without spread replaced by those of others that have it, as far as they go."""
        group = len(self.rows) // len(self.spread)
        dead, live = ((~self.spread).nonzero()[:, 0], more.spread.nonzero()[:, 0])
        chosen = torch.arange(len(self.spread))
        chosen[dead[: len(live)]] = len(chosen) + live[: len(dead)]
        answers = (chosen[:, None] * group + torch.arange(group)).flatten()
        both = (self, more)
        return Answered(
            torch.cat([each.rows for each in both])[answers],
            joined([each.sampled for each in both]).pick(answers),
            torch.cat([each.rewards for each in both])[answers],
            torch.cat([each.counted for each in both])[answers],
            torch.cat([each.spread for each in both])[chosen],
        )


@dataclass
class Rollout:
    """Sampled answers and what is learnt of them.

    Attributes:
        rows: (n,) the row of each answer's prompt.
        sampled: the answers.
        rewards: (n,) fp64.
        counted: (n,) bool, which answers count.
        live: (n,) bool, which are learnt: those of groups with spread.
        advantages: (n, T) fp32.
        old, reference, values, returns: (n, T) fp32, as in `PolicyBatch`, or None.
    """

    rows: Tensor
    sampled: Sampled
    rewards: Tensor
    counted: Tensor
    live: Tensor
    advantages: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors."""
        return {**vars(self), "sampled": dict(vars(self.sampled))}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Rollout":
        """That of a `state_dict`."""
        return cls(**{**state, "sampled": Sampled(**state["sampled"])})


@dataclass
class Part:
    """A batch that is still to be learnt.

    Attributes:
        answers: their numbers.
        beside: what those that aren't learnt add to the denominator.
        last: whether it ends a step.
    """

    answers: list[int]
    beside: float
    last: bool


@dataclass
class Tally:
    """Figures of rollouts since the log's last line: sums and counts."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, values: Tensor | float) -> None:
        """Counts values for the mean of that name."""
        some = torch.as_tensor(values, dtype=torch.float64)
        self.sums[name] = self.sums.get(name, 0.0) + float(some.sum())
        self.counts[name] = self.counts.get(name, 0.0) + some.numel()

    def means(self) -> dict[str, float]:
        """The mean of each, and forgets them."""
        found = {name: total / max(self.counts[name], 1) for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return found


class Rollouts(Batches[PolicyBatch]):
    """The endless stream of `PolicyBatch`: a rollout, its updates, the next rollout.

    Args:
        network: the policy; of baseline critic it has a `critic`.
        prompts: to be answered.
        score: gives the rewards of answers.
        ends: ids that end an answer.
        reference: another network; the policy itself stands for its base, without its adapter.
        tools: that answers may call.

    Attributes:
        monitor: rewards beside held-out truth.
        last: the rollout that was sampled last.
        shown: the last few.
        stopped: whether the run is to end.
    """

    def __init__(
        self,
        network: Any,
        prompts: Prompts,
        score: Score,
        settings: RolloutSettings,
        *,
        ends: Sequence[int],
        precision: Precision,
        reference: Any = None,
        tools: Tools | None = None,
    ) -> None:
        self.tools = tools
        self.network, self.prompts, self.score = network, prompts, score
        self.settings, self.ends, self.precision = settings, tuple(ends), precision
        self.reference = reference
        self.monitor, self.stopped = Monitor(), False
        self.last: Rollout | None = None
        self.shown: deque[Rollout] = deque(maxlen=SHOWN)
        self._stream: Stream[tuple[np.ndarray, np.random.Generator]] = Stream(
            len(prompts),
            lambda rows, random, number: (rows, random),
            settings.prompts,
            seed=settings.seed,
            workers=0,
        )
        self._waiting: deque[int] = deque()  # prompts that were drawn and aren't answered yet
        self._parts: deque[Part] = deque()
        self._number, self._ended = 0, True
        self._dead = self._cut = 0  # rollouts in a row without spread, and of cut answers alone
        self._tally = Tally()

    def identity(self) -> dict[str, Any]:
        own = self.settings
        return {
            "seed": own.seed,
            "rows": len(self.prompts),
            "prompts": own.prompts,
            "group": own.group,
            "max_new_tokens": own.max_tokens,
        }

    def position(self) -> dict[str, Any]:
        return {
            "stream": self._stream.position(),
            "waiting": list(self._waiting),
            "number": self._number,
            "in_a_row": [self._dead, self._cut],
            "parts": [[part.answers, part.beside, part.last] for part in self._parts],
            "rollout": None if self.last is None else self.last.state_dict(),
            "monitor": self.monitor.state_dict(),
            "stopped": self.stopped,
        }

    def go(self, position: Mapping[str, Any]) -> None:
        self._stream.go(position["stream"])
        self._waiting = deque(position.get("waiting", ()))
        self._number = position["number"]
        self._dead, self._cut = position["in_a_row"]
        self._parts = deque(Part(*each) for each in position["parts"])
        self.last = None if position["rollout"] is None else Rollout.of(position["rollout"])
        self.monitor.load_state_dict(position["monitor"])
        self.stopped = position["stopped"]

    @property
    def ends_epoch(self) -> bool:
        """Whether the last batch was the last of a step."""
        return self._ended

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a pass over the prompts."""
        return max(self._stream.steps_per_epoch, 1) * self.settings.steps

    def figures(self) -> dict[str, float]:
        """For the log: means of the rollouts since the last call."""
        return self._tally.means()

    def __next__(self) -> PolicyBatch:
        while not self._parts:
            self._sample()
        part, rollout = self._parts.popleft(), self.last
        assert rollout is not None
        self._ended = part.last
        batch = self._batch(rollout, part)
        self._number += 1
        return batch

    def _batch(self, rollout: Rollout, part: Part) -> PolicyBatch:
        answers = torch.tensor(part.answers)
        rows = rollout.rows[answers].tolist()
        laid = self._laid(rollout, answers)

        def of_tokens(matrix: Tensor | None) -> Tensor | None:
            return None if matrix is None else matrix[answers].flatten()[laid.places]

        advantages = of_tokens(rollout.advantages)
        assert advantages is not None
        own = denominator(len(laid.targets), len(answers), self.settings.normalise)
        places = [self.prompts.rows.where(row) for row in dict.fromkeys(rows)]
        return PolicyBatch(
            rows=laid.rows,
            read=laid.read,
            targets=laid.targets,
            owners=laid.owners,
            advantages=advantages,
            old=of_tokens(rollout.old) if self.settings.steps > 1 else None,
            reference=of_tokens(rollout.reference) if self.settings.kl_in == "loss" else None,
            values=of_tokens(rollout.values),
            returns=of_tokens(rollout.returns),
            reward=float(rollout.rewards[rollout.counted].mean()),
            target_count=own + part.beside,
            number=self._number,
            places=places,
        )

    def _laid(self, rollout: Rollout, answers: Tensor) -> Laid:
        """Some answers with their prompts, laid end to end."""
        sampled = rollout.sampled
        return lay_answers(
            [self.prompts.ids[row] for row in rollout.rows[answers].tolist()],
            sampled.ids[answers],
            sampled.lengths[answers],
            None if sampled.read is None else sampled.read[answers],
        )

    # A rollout.

    def _sample(self) -> None:
        """Samples answers and scores them; without any to learn from, nothing is left to do.

        Raises:
            BedstoneError: a reward is missing; or for `PATIENCE` rollouts all answers were cut, or
                no group had answers of different rewards.
        """
        rows, random = next(self._stream)
        answered, again = self._answered(rows, random), 0
        for _ in range(self.settings.resample):
            dead = int((~answered.spread).sum())
            if dead:
                answered = answered.replaced(self._answered(self._others(dead), random))
            again += dead
        if self.settings.resample:
            self._tally.add("resampled", again / len(answered.spread))
        rollout = self._compared(answered)
        self.last = rollout
        self.shown.append(rollout)
        self._go_on(rollout)
        self._parts = self._divided(rollout, random)

    def _answered(self, rows: np.ndarray, random: np.random.Generator) -> Answered:
        """Answers to some prompts, by their rows."""
        began, own = time.monotonic(), self.settings
        asks = [self.prompts.ids[row] for row in rows]
        how: dict[str, Any] = {"group": own.group, "temperature": own.temperature, "random": random}
        sampled = self.answer(self.network, asks, **how)
        generated = time.monotonic()
        owners = np.repeat(rows, own.group)
        scored = self.judge(self.score, owners.tolist(), sampled)
        judged = time.monotonic()
        self._tally.add("generate_seconds", generated - began)
        self._tally.add("score_seconds", judged - generated)
        rewards = torch.from_numpy(scored.totals)
        counted = sampled.ended.clone() if own.skip_cut else torch.ones_like(sampled.ended)
        grouped = rewards.view(-1, own.group)
        spread = with_spread(grouped, counted.view(-1, own.group))
        self.monitor.learnt += grouped.mean(1).tolist()
        self._note(sampled, scored)
        if own.baseline != "critic":
            self._tally.add("no_spread", (~spread).double())
        return Answered(torch.from_numpy(owners), sampled, rewards, counted, spread)

    def answer(self, network: Any, asks: Sequence[Sequence[int]], **how: Any) -> Sampled:
        """Answers to prompts as the run samples them, with tools where it has some.

        Args:
            asks: tokens of each prompt.
            how: arguments of `generation.rollout.sample_answers`.
        """
        how |= {"max_tokens": self.settings.max_tokens, "precision": self.precision}
        if self.tools is None:
            return sample_answers(network, asks, self.ends, **how)
        return sample_with_tools(network, asks, self.tools, **how)

    def judge(self, score: Score, rows: Sequence[int], sampled: Sampled) -> Scored:
        """The rewards of answers."""
        if self.tools is None:
            return score(rows, sampled.answers())
        return score(rows, sampled.answers(), runs_of(sampled))

    def _others(self, count: int) -> np.ndarray:
        """Further prompts of the stream, by their rows; those left over wait for the next time."""
        while len(self._waiting) < count:
            self._waiting.extend(next(self._stream)[0].tolist())
        return np.array([self._waiting.popleft() for _ in range(count)])

    def _compared(self, answered: Answered) -> Rollout:
        """A rollout with the advantages of its answers."""
        own, sampled, rewards = self.settings, answered.sampled, answered.rewards
        live = counted = answered.counted
        if own.baseline != "critic":
            live = counted & answered.spread.repeat_interleave(own.group)
        rollout = Rollout(answered.rows, sampled, rewards, counted, live, torch.zeros(0))
        if not live.any():
            rollout.advantages = torch.zeros_like(sampled.log_probs)
            return rollout
        in_reward = bool(own.kl) and own.kl_in == "reward"
        if own.steps > 1 or in_reward or own.baseline == "critic":
            mine = counted if in_reward or own.baseline == "critic" else live
            rollout.old, rollout.values = self.read(self.network, rollout, mine)
        if own.kl:
            rollout.reference = self.refer(rollout, counted if in_reward else live)
        penalty = torch.zeros_like(sampled.log_probs)
        if in_reward:
            assert rollout.old is not None and rollout.reference is not None
            penalty = own.kl * kl_terms(rollout.old, rollout.reference, own.estimator)
        if own.baseline == "critic":
            self._by_critic(rollout, penalty)
            return rollout
        grouped = (rewards - penalty.double().sum(1)).view(-1, own.group)
        kept = counted.view(-1, own.group)
        if own.baseline == "others":
            found = leave_one_out(grouped, kept)
        else:
            found = group_advantages(grouped, kept, own.scale)
        apart = (found.flatten() * live).float()
        rollout.advantages = apart[:, None] * sampled.real()
        return rollout

    def _by_critic(self, rollout: Rollout, penalty: Tensor) -> None:
        own, sampled = self.settings, rollout.sampled
        assert rollout.values is not None
        rewards = -penalty
        last = (sampled.lengths - 1)[:, None]
        rewards = rewards.scatter_add(1, last, rollout.rewards.float()[:, None])
        rollout.advantages, rollout.returns = generalised_advantages(
            rewards, rollout.values, sampled.lengths, own.gamma, own.decay
        )
        real = sampled.real() & rollout.live[:, None]
        rollout.advantages[real] = whitened(rollout.advantages[real])

    def _divided(self, rollout: Rollout, random: np.random.Generator) -> deque[Part]:
        """The batches of all steps of a rollout; none where nothing is learnt."""
        own, sizes = self.settings, rollout.sampled.real().sum(1)
        live = rollout.live.nonzero()[:, 0].numpy()
        if not len(live):
            return deque()
        dead = rollout.counted & ~rollout.live
        beside = denominator(int(sizes[dead].sum()), int(dead.sum()), own.normalise)
        found: deque[Part] = deque()
        for _ in range(own.updates):
            order = random.permutation(live) if own.steps > 1 else live
            for step in np.array_split(order, own.minibatches):
                parts = [
                    step[at : at + own.batch_size].tolist()
                    for at in range(0, len(step), own.batch_size)
                ]
                for number, answers in enumerate(parts):
                    more = beside / own.minibatches if number == 0 else 0.0
                    found.append(Part(answers, more, number == len(parts) - 1))
        return found

    def _note(self, sampled: Sampled, scored: Scored) -> None:
        """Figures of all answers that are sampled, those too that aren't learnt."""
        for name, column in zip(scored.names, scored.parts.T, strict=True):
            if len(scored.names) > 1:
                self._tally.add(f"reward_{name}", torch.from_numpy(column))
        self._tally.add("reward", torch.from_numpy(scored.totals))
        self._tally.add("answer_tokens", sampled.real().sum(1))
        self._tally.add("truncated", (~sampled.ended).double())
        self._tally.add("entropy", sampled.entropy[sampled.real()])

    def _go_on(self, rollout: Rollout) -> None:
        """Whether there is use in going on.

        Raises:
            BedstoneError: as `_sample`.
        """
        own, sampled = self.settings, rollout.sampled
        if rollout.old is not None and rollout.reference is not None:
            known = sampled.real() & rollout.live[:, None]
            self._tally.add("kl", kl_terms(rollout.old, rollout.reference, "k3")[known])
        self._cut = 0 if bool(sampled.ended.any()) else self._cut + 1
        self._dead = 0 if bool(rollout.live.any()) else self._dead + 1
        if self._cut >= PATIENCE:
            raise BedstoneError(
                f"max_new_tokens: all answers of {PATIENCE} rollouts in a row were cut at "
                f"{own.max_tokens:,} tokens, so none came to its end. Raise max_new_tokens, or "
                "begin with a model that ends its answers (method: sft)."
            )
        if self._dead >= PATIENCE:
            raise BedstoneError(
                f"rewards: in {PATIENCE} rollouts in a row, the answers to each prompt had equal "
                f"rewards (mean {float(rollout.rewards.mean()):g}), so nothing could be learnt. "
                "Raise group or temperature, choose prompts that are answered rightly at times, "
                "or give a reward that tells better answers from worse."
            )

    # Log-probabilities of what was sampled.

    @torch.no_grad()
    def read(self, network: Any, rollout: Rollout, chosen: Tensor) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of tokens by a network, and values by its critic, each (n, T).

        Args:
            chosen: (n,) bool, answers that are asked for; of the others both are 0.
        """
        sampled, device = rollout.sampled, self.precision.device
        log_probs = torch.zeros_like(sampled.log_probs)
        critic = getattr(network, "critic", None)
        values = None if critic is None else torch.zeros_like(log_probs)
        numbers = chosen.nonzero()[:, 0]
        was_training = network.training
        network.eval()
        with self.precision.autocast():
            for part in numbers.split(self.settings.batch_size):
                laid = self._laid(rollout, part)
                there = laid.to(device)
                states = there.states(network)
                found = sampled_log_probs(network, states, there.targets, self.settings.temperature)
                owners, within = part[laid.owners], laid.places % sampled.ids.shape[1]
                log_probs[owners, within] = found.float().cpu()
                if values is not None and critic is not None:
                    values[owners, within] = critic(states).float().cpu()
        network.train(was_training)
        return log_probs, values

    def refer(self, rollout: Rollout, chosen: Tensor) -> Tensor:
        """Log-probabilities of tokens by the reference, (n, T)."""
        assert self.reference is not None, "there is no reference"
        own = self.reference is self.network
        with without_adapter(self.network) if own else contextlib.nullcontext():
            return self.read(self.reference, rollout, chosen)[0]

    def divergence(self) -> float | None:
        """The mean of the divergence from the reference (k3) of the last rollout's tokens."""
        rollout = self.last
        if rollout is None or self.reference is None:
            return None
        every = torch.ones_like(rollout.counted)
        theirs = self.refer(rollout, every)
        real = rollout.sampled.real()
        return float(kl_terms(rollout.sampled.log_probs, theirs, "k3")[real].mean())
