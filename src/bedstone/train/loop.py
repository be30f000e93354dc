"""The training loop, which knows no family and no loss.

It knows no family and no loss: an objective maps (network, batch) to a sum of losses and a
count of targets, and evaluation is a callable handed in. A step's gradient is the sum over all
its micro-batches divided by all their real targets, so that neither padding nor accumulation
changes what a token weighs. What is not finite stops the run before it touches the weights.

Everything the next step depends on is in `state()`: a run that is killed and resumed from a
checkpoint goes on with the same losses, bit for bit (for a budget in steps or tokens; with a
wall-clock budget the clock itself takes part).
"""

import contextlib
import math
import random
import signal
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bedstone import ranks
from bedstone.checkpoints.state import load_state, save_state
from bedstone.checkpoints.store import Checkpoint, CheckpointStore, score
from bedstone.checkpoints.writer import Writer, has_room
from bedstone.errors import BedstoneError
from bedstone.runtime import KeptMemory, Precision
from bedstone.train.averaging import Unaveraged
from bedstone.train.distributed import Alone
from bedstone.train.logs import Interrupts, ProgressBar, RunLog
from bedstone.train.memory import tensor_bytes
from bedstone.train.optim import Optimizer
from bedstone.train.pace import FEW, TIMED, Pace, TimePlan
from bedstone.train.schedule import Budget

Objective = Callable[[nn.Module, Any], tuple[Tensor, float]]
Watch = Callable[[float, dict[str, float]], bool]


class Diverged(BedstoneError):
    """A loss or a gradient that isn't finite."""


class Batches(Protocol):
    """An endless stream of batches that can say where it is and go back there."""

    def __iter__(self) -> Iterator[Any]: ...
    def __next__(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Done:
    """How a run ended: `finished`, `pruned`, or the signal's name that stopped it."""

    reason: str
    step: int
    tokens: int
    seconds: float
    metrics: dict[str, float]
    unit: str = "tokens"  # what `tokens` counts
    ledger: str = ""  # a hash over the rows of every batch, in their order


@dataclass
class Trainer:
    """A run, made of its parts.

    Attributes:
        network: what learns.
        objective: (network, batch) to (sum of losses, number of targets); where it has them,
            `before_step` is called with the network and the share of the budget that is spent
            before each update, and `after_step` with the network after it; its `figures` go
            into the log.
        batches: what it learns from; each has `ids`, `target_count` and `describe()`.
        optimizer: moves the weights.
        budget: when it ends, and how far along it is.
        schedule: share of the budget spent to a factor on the learning rates.
        precision: of the matrix products.
        store: where checkpoints go.
        write_model: writes the artefact's files into a folder.
        evaluate: the network's figures on held-out data.
        best_by: the figure that picks the best checkpoint, lower is better; `-name` turns it.
        patience: evaluations in a row without a better one after which to stop; 0 never does.
        average: of the weights, which is what is evaluated and written.
        ranks: the processes of the run, of which this is one.
        ledger: a hash over the rows of every batch so far, in their order.
        watch: is handed the share of the budget that is spent and the figures of each evaluation
            in training; True ends the run there, for the reason `pruned`.
    """

    network: nn.Module
    objective: Objective
    batches: Batches
    optimizer: Optimizer
    budget: Budget
    schedule: Callable[[float], float]
    precision: Precision
    store: CheckpointStore
    write_model: Callable[[Path, dict[str, float]], None]
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    best_by: str = "validation_loss"
    patience: int = 0
    average: Unaveraged = field(default_factory=Unaveraged)
    ranks: Alone = field(default_factory=Alone)
    accumulate: int = 1
    clip: float = 1.0
    pace: Pace = field(default_factory=Pace)
    watch: Watch | None = None
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # before and after each resume
    metrics: dict[str, float] = field(default_factory=dict)
    recent: list[float] = field(default_factory=list)  # losses since the log's last line
    history: list[float] = field(default_factory=list)  # what each evaluation gave, by `best_by`
    ledger: str = ""
    unit: str = field(default="tokens", init=False)  # what `tokens` counts, as its batches say
    started: float = field(default=0.0, init=False)  # by the monotonic clock, less `seconds`
    saved_at: tuple[int, float] = field(default=(-1, 0.0), init=False)  # step, clock
    evaluated_at: tuple[int, float] = field(default=(-1, 0.0), init=False)  # step, share
    plan: TimePlan | None = field(default=None, init=False)  # of a budget of time
    interrupts: Interrupts | None = field(default=None, init=False)
    pruned: bool = field(default=False, init=False)  # by `watch`
    writer: Writer = field(default_factory=Writer, init=False)  # of checkpoints

    def resume(self, checkpoint: Checkpoint) -> None:
        """Goes back to a checkpoint; its model's weights are the caller's to load.

        Raises:
            BedstoneError: the checkpoint has no training state.
        """
        state = self.ranks.own(load_state(checkpoint.state))
        self.ledger = state.get("ledger", "")
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.metrics, self.recent = state["metrics"], state["recent"]
        self.history = state["history"]
        self.evaluated_at = tuple(state["evaluated_at"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["batches"])
        self.average.load_state_dict(state.get("average", {}))
        random.setstate(state["random"]["python"])
        np.random.set_state(state["random"]["numpy"])
        torch.set_rng_state(state["random"]["torch"])
        if torch.cuda.is_available() and state["random"]["cuda"]:
            torch.cuda.set_rng_state_all(state["random"]["cuda"])

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, beside the weights."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.elapsed(),
            "metrics": self.metrics,
            "recent": self.recent,
            "history": self.history,
            "evaluated_at": self.evaluated_at,
            "ledger": self.ledger,
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
            "average": self.average.state_dict(),
            "random": {
                "python": random.getstate(),
                "numpy": np.random.get_state(),
                "torch": ranks.shared_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        }

    def elapsed(self) -> float:
        """Seconds of training so far, evaluation and saving counted; the same on all ranks."""
        return self.ranks.clock(self.own_seconds())

    def own_seconds(self) -> float:
        """Likewise by this process's clock."""
        return time.monotonic() - self.started if self.started else self.seconds

    def received(self) -> signal.Signals | None:
        """The signal that this process was sent."""
        return None if self.interrupts is None else self.interrupts.received

    def share(self) -> float:
        """How much of the budget is spent, leaving room for what must follow the last step."""
        reserve = self.plan.evaluation + self.plan.save if self.plan else 0.0
        return self.budget.share(
            step=self.step, tokens=self.tokens, seconds=self.elapsed() + reserve
        )

    def enough(self) -> bool:
        """Whether the last `patience` evaluations all failed to be the best so far, or the batches
        or `watch` say that there is no use in more."""
        if self.pruned or getattr(self.batches, "stopped", False):
            return True
        if not self.patience or len(self.history) <= self.patience:
            return False
        return min(self.history[: -self.patience]) <= min(self.history[-self.patience :])

    def run(self, log: RunLog, bar: ProgressBar) -> Done:
        """Trains until the budget is spent or a signal asks to leave; saves either way.

        Raises:
            Diverged: a loss or gradient that isn't finite; the weights are as they were before
                that step.
        """
        self.started = time.monotonic() - self.seconds
        self.ranks.begin(self)
        if self.budget.unit == "seconds":
            self.plan = TimePlan(self.budget.amount)
        first = self.step
        self.saved_at = (self.step, self.elapsed())
        self.network.train()
        if self.pace.from_start and self.step == 0:
            self.run_evaluation(log, bar)
            if self.pace.save_best:
                self.save()
        logged = (self.tokens, self.elapsed())  # at the last line of the log
        memory = KeptMemory()
        with contextlib.closing(self.writer), Interrupts() as self.interrupts:
            while (
                self.ranks.signal(self.received()) is None
                and not self.enough()
                and (share := self.share()) < 1.0
            ):
                began = self.elapsed()
                loss, norm, rate = self.one_step(share)
                memory.after_step()
                self.recent.append(loss)
                if self.plan is not None and not self.plan.step:
                    self.time_plan(self.plan, self.step - first, began, log, bar)
                if self.step % self.pace.log_every == 0:
                    figures = self.figures(*logged)
                    logged = (self.tokens, self.elapsed())
                    rates = self.optimizer.rates(rate)
                    log.write(self.step, **figures, **rates, gradient_norm=norm)
                    bar.update(
                        self.share(),
                        step=str(self.step),
                        loss=f"{figures['loss']:.3f}",
                        **{f"{self.unit}_s": f"{figures[f'{self.unit}_per_second']:,.0f}"},
                    )
                if self.evaluation_due():
                    self.run_evaluation(log, bar)
                    if self.watch is not None and self.share() < 1.0:
                        self.pruned = self.watch(self.share(), dict(self.metrics))
                if self.save_due():
                    self.save()
            left = self.ranks.signal(self.received())
            reason = left.name if left else "finished"
            reason = "pruned" if self.pruned else reason
            if reason == "finished" and self.evaluated_at[0] != self.step:
                self.run_evaluation(log, bar)
            if self.saved_at[0] != self.step or reason == "finished":
                self.save(wait=True)
            self.writer.wait()
        self.seconds = self.elapsed()
        figures = dict(self.metrics)
        return Done(reason, self.step, self.tokens, self.seconds, figures, self.unit, self.ledger)

    def time_plan(
        self, plan: TimePlan, made: int, began: float, log: RunLog, bar: ProgressBar
    ) -> None:
        """Times a step, an evaluation and a save, and says how many steps fit into the budget.

        Args:
            made: steps since the run began or went on.
            began: when the last of them did.

        Raises:
            BedstoneError: hardly a step fits.
        """
        taken = self.elapsed() - began
        left = plan.seconds - self.elapsed()
        if made < TIMED and FEW * taken < left:
            return
        plan.step = max(taken, 1e-6)
        plan.batch = f"{self.tokens // max(self.step, 1):,} {self.unit}"
        if plan.steps(self.elapsed()) + self.step >= FEW:
            self.run_evaluation(log, bar)
        said = plan.check(self.step, self.elapsed())
        self.save(wait=True)
        bar.say(said)

    def figures(self, tokens: int, seconds: float) -> dict[str, float]:
        """The mean loss and the pace since the log's last line, at those tokens and seconds."""
        now = self.elapsed()
        loss = sum(self.recent) / len(self.recent)
        self.recent = []
        return {
            "loss": loss,
            self.unit: float(self.tokens),
            "seconds": now,
            f"{self.unit}_per_second": (self.tokens - tokens) / max(now - seconds, 1e-9),
            **getattr(self.batches, "figures", dict)(),  # such as how long they let us wait
            **getattr(self.objective, "figures", dict)(),
        }

    def one_step(self, share: float) -> tuple[float, float, float]:
        """One update; returns the loss a target, the gradient's norm, the rate's factor."""
        if (prepare := getattr(self.objective, "before_step", None)) is not None:
            prepare(self.network, share)
        micro = self.micro_batches()
        if (fault := self.writer.fault) is not None:  # of a save that went on beside
            self.ranks.spoilt(fault, named=True)
        count = max(sum(batch.target_count for batch in micro), 1)
        device = self.precision.device
        total = 0.0
        for batch in micro:
            with self.ranks.part(batch) as mine, self.precision.autocast():
                loss = self.ranks.loss(self.objective, self.network, mine.to(device))
            if not math.isfinite(value := loss.item()):
                self.ranks.spoilt(self._fault(f"the loss is {value}", [mine]))
            (loss / count).backward()
            total += value
        total = self.ranks.summed(total, micro)
        norm = self.ranks.clip(self.network, self.clip)
        if not math.isfinite(norm):
            raise self._fault(f"the gradient's norm is {norm}", micro)
        factor = self.schedule(share)
        self.optimizer.step(factor)
        if (bound := getattr(self.objective, "after_step", None)) is not None:
            bound(self.network)
        self.average.update()
        self.optimizer.zero_grad()
        self.step += 1
        self.tokens += sum(batch.items for batch in micro)
        for batch in micro:
            rows = getattr(batch, "identify", lambda: b"")()
            self.ledger = sha256(self.ledger.encode() + rows).hexdigest()
        return total / count, norm, factor

    def micro_batches(self) -> list[Any]:
        """The batches of one step: `accumulate`, or what is left of an epoch that counts rows."""
        micro: list[Any] = []
        while len(micro) < self.accumulate:
            micro.append(next(self.batches))
            if getattr(self.batches, "ends_epoch", False):
                break
        self.unit = getattr(micro[0], "unit", self.unit)
        return micro

    def _fault(self, what: str, batches: list[Any]) -> BedstoneError:
        self.optimizer.zero_grad()
        described = "; ".join(batch.describe() for batch in batches)
        where = textwrap.shorten(described.replace("\n", ";"), 800, placeholder=" ...")
        self.writer.close()
        last = self.store.latest()
        kept = f"The last checkpoint is {last.path}." if last else "There is no checkpoint yet."
        kind = Diverged if ranks.count() == 1 else ranks.EveryRank
        return kind(
            f"step {self.step + 1}: {what}, in {where}. Nothing was updated. {kept} Look at that "
            "batch, or lower optim.lr and optim.adamw_lr, or train in precision=fp32."
        )

    def evaluation_due(self) -> bool:
        if self.evaluate is None or self.evaluated_at[0] == self.step:
            return False
        if self.pace.evaluate_every:
            due = self.step % self.pace.evaluate_every == 0
        else:
            due = self.share() - self.evaluated_at[1] >= 0.1
        return due and (self.plan is None or self.plan.allows("evaluation", self.elapsed()))

    def run_evaluation(self, log: RunLog, bar: ProgressBar) -> None:
        """Figures on held-out data, into the log, the bar and `metrics`."""
        if self.evaluate is None:
            return
        began = time.monotonic()
        with self.average.applied():
            self.metrics = self.ranks.evaluate(self.evaluate, self.network)
        self.network.train()
        self.history.append(_or_infinity(score(self.metrics, self.best_by)))
        if self.plan is not None:
            self.plan.took("evaluation", ranks.agreed(time.monotonic() - began))
        self.evaluated_at = (self.step, self.share())
        seen = {self.unit: float(self.tokens)}
        log.write(self.step, **self.metrics, seconds=self.elapsed(), **seen)
        figures = "  ".join(
            f"{name.replace('_', ' ')} {value:.3f}" for name, value in self.metrics.items()
        )
        bar.say(f"step {self.step}: {figures}")

    def save_due(self) -> bool:
        best = self.pace.save_best and self.evaluated_at[0] == self.step
        if self.saved_at[0] == self.step:
            return False
        if best and self.history[-1] < min(self.history[:-1], default=math.inf):
            due = True
        elif self.pace.save_every:
            due = self.step % self.pace.save_every == 0
        else:
            due = self.elapsed() - self.saved_at[1] >= 60 * self.pace.save_minutes
        return due and (self.plan is None or self.plan.allows("save", self.elapsed()))

    def save(self, *, wait: bool = False) -> None:
        """A checkpoint: the artefact, deployable as it is, and the training state beside it.

        It is written while the training goes on, where there is memory for a copy of it.

        Args:
            wait: until it is on the disk, with no copy made.

        Raises:
            BedstoneError: it, or the one before, can't be written.
        """
        began = time.monotonic()
        self.writer.wait()
        state, shards = self.ranks.shards(self.state())

        def write(folder: Path) -> None:
            with self.average.applied():
                self.ranks.write(partial(self.write_model, folder, self.metrics))
            save_state(folder / "state", state, shards)

        # Metrics older than the weights would crown the wrong checkpoint.
        fresh = self.metrics if self.evaluated_at[0] == self.step else None
        room = not wait and all(ranks.gathered(has_room(self._bytes(state, shards))))
        writer = self.writer if room else None
        self.store.save(self.step, write, fresh, self.best_by, writer)
        if self.plan is not None:  # one that goes on beside counts as if it stopped the run
            seconds = ranks.agreed(time.monotonic() - began)
            self.plan.took("save", max(seconds, self.plan.save) if room else seconds)
        self.saved_at = (self.step, self.elapsed())

    def _bytes(self, *state: dict[str, Any]) -> int:
        """How much memory a copy of the weights and of training state takes."""
        network = self.network if self.ranks.whole is None else self.ranks.whole
        return tensor_bytes([*network.parameters(), *network.buffers(), *_tensors(state)])


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in a nest of dictionaries, lists and tuples."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict | list | tuple):
        for each in values.values() if isinstance(values, dict) else values:
            yield from _tensors(each)


def _or_infinity(value: float | None) -> float:
    return math.inf if value is None else value
