"""The plan of a run: what is wrong with its rows, how large it is, when it ends, what it costs.

Nothing is trained that is kept: the run is made ready as `train.run.prepare` does, its rows are
looked through, one micro-batch is passed forward for memory and work, and a few steps are timed.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from bedstone.checkpoints.store import CheckpointStore
from bedstone.data.lint import Finding
from bedstone.files import write_text
from bedstone.recipes.base import load_method
from bedstone.recipes.stages import finished
from bedstone.runtime import keep_memory
from bedstone.settings import to_yaml
from bedstone.train.lint import lint_splits
from bedstone.train.logs import ProgressBar, clock
from bedstone.train.loop import Trainer
from bedstone.train.memory import MB, Memory, predict_memory
from bedstone.train.optim import build_optimizer
from bedstone.train.resume import RECIPE
from bedstone.train.run import RunPlan, plan_text, prepare, said
from bedstone.train.schedule import Budget, build_schedule, parse_budget
from bedstone.train.start import weight_counts

WARM = 2  # steps that are slower than the rest, and not counted
LEAST, MOST = 3, 40  # steps that are timed, after these
EVALUATIONS = 10  # of a run whose recipe doesn't say how often
WATTS = 10.0  # of a core at work, where nothing is measured
RAPL = Path("/sys/class/powercap")


@dataclass
class Timing:
    """How long a run takes, from steps that were timed.

    Attributes:
        steps: of the run.
        each: seconds of each timed step.
        evaluation: seconds of one; None where it was not timed, or took too long for it.
        evaluations: that the run makes.
        budget: seconds of a budget of time; None of others.
    """

    steps: int
    each: list[float]
    evaluation: float | None = None
    evaluations: int = 0
    budget: float | None = None

    @property
    def step(self) -> float:
        """Seconds of a step, on average."""
        return statistics.fmean(self.each)

    @property
    def seconds(self) -> float:
        """Of the run."""
        if self.budget is not None:
            return self.budget
        return self.steps * self.step + self.evaluations * (self.evaluation or 0.0)

    @property
    def interval(self) -> tuple[float, float]:
        """The seconds between which the run takes, with 95 %, by the scatter of steps: that of
        their mean, and that of all steps to come."""
        if self.budget is not None or len(self.each) < 2:
            return self.seconds, self.seconds
        count = len(self.each)
        spread = statistics.stdev(self.each) * math.sqrt(1 / count + 1 / max(self.steps, 1))
        apart = student(count) * spread * self.steps
        done = sum(self.each)
        return max(self.seconds - apart, min(done, self.seconds)), self.seconds + apart

    def record(self) -> dict[str, Any]:
        """For JSON."""
        low, high = self.interval
        found = {"steps": self.steps, "step_seconds": self.step, "timed_steps": len(self.each)}
        found |= {"seconds": self.seconds, "from_seconds": low, "to_seconds": high}
        return {**found, "evaluation_seconds": self.evaluation, "evaluations": self.evaluations}

    def text(self, now: datetime) -> str:
        """When it ends, if it began now."""
        low, high = self.interval
        times = [_hour(now, seconds) for seconds in (self.seconds, low, high)]
        what = f"about {self.steps:,} steps of {_spoken(self.step)}"
        if self.evaluation:
            what += f" and {self.evaluations} evaluations of {_spoken(self.evaluation)}"
        if self.budget is not None:
            return f"{what} fit into {clock(self.budget)}; begun now, it ends at {times[0]}"
        text = f"{what}: {clock(self.seconds)}"
        if len(self.each) > 1:
            text += f" (from {clock(low)} to {clock(high)}); begun now, it ends at {times[0]} "
            text += f"(from {times[1]} to {times[2]})"
        else:
            text += (
                f"; begun now, it ends at {times[0]}; one step was timed, so how far that is off "
            )
            text += "isn't known"
        return text if self.evaluation else f"{text}; evaluations are not counted"


@dataclass
class Plan:
    """What a plan says.

    Attributes:
        recipe: its name.
        text: what the run prints before it begins.
        findings: of the rows, the gravest first.
        parameters, trained: weights that there are, and that learn.
        flops: floating point operations of a step, forward and backward.
        memory: that the run will take.
        timing: None where nothing was timed.
        joules: of a step as RAPL measured them; None where it can't be read.
        watts: that are taken instead.
        cost: of an hour; 0 is not known.
        limit: bytes that the run may take; 0 is not known.
        batch_size: of the recipe, and the rows of it that are passed at a time.
        stage: the name of the part that the run makes for another, which plans it; else empty.
        stages: plans of the runs that are trained before this one.
    """

    recipe: str
    text: str
    findings: list[Finding]
    parameters: int
    trained: int
    flops: int | None = None
    memory: Memory | None = None
    timing: Timing | None = None
    joules: float | None = None
    watts: float = 0.0
    price_hour: float = 0.0
    limit: float = 0.0
    batch_size: int = 0
    stage: str = ""
    stages: list["Plan"] = field(default_factory=list)

    def failed(self, *, strict: bool = False) -> bool:
        """Whether an error was found in the rows, or, if it is strict, a warning; or the run
        doesn't fit; or one of its stages."""
        levels = ("error", "warning") if strict else ("error",)
        if any(each.failed(strict=strict) for each in self.stages):
            return True
        return self.fits is False or any(each.level in levels for each in self.findings)

    @property
    def fits(self) -> bool | None:
        """Whether the peak is within the limit; None where one of them isn't known."""
        return None if self.memory is None or not self.limit else self.memory.peak <= self.limit

    @property
    def largest_batch(self) -> int | None:
        """The largest batch_size within the limit, of micro-batches that grow with it."""
        if self.memory is None or not self.limit or not self.batch_size:
            return None
        return int(self.batch_size * self.memory.growth(self.limit))

    def _fit(self) -> str:
        assert self.memory is not None
        peak, limit = self.memory.peak / 1e9, self.limit / 1e9
        text = "fits" if self.fits else "doesn't fit"
        text = f"{text}: {peak:.2f} GB of {limit:.2f} GB at its peak"
        if (largest := self.largest_batch) is None:
            return text
        if not largest:
            return f"{text}; no batch_size does: take a smaller model, or shorter rows"
        return f"{text}; the largest batch_size is about {largest:,} (now {self.batch_size:,})"

    @property
    def energy(self) -> tuple[float, str] | None:
        """Kilowatt-hours and where they are from."""
        if self.timing is None:
            return None
        if self.joules is not None:
            kwh = self.joules * self.timing.steps / 3.6e6
            return kwh, "measured: RAPL over the timed steps, by the number of steps"
        kwh = self.watts * self.timing.seconds / 3.6e6
        return kwh, f"estimated: {self.watts:g} W x time; nothing was measured"

    def record(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {
            "recipe": self.recipe,
            "findings": [each.record() for each in self.findings],
            "parameters": self.parameters,
            "trained_parameters": self.trained,
            "flops_a_step": self.flops,
            "memory_bytes": self.memory and self.memory.record(),
            "fits": self.fits,
            "largest_batch_size": self.largest_batch,
            "time": self.timing and self.timing.record(),
        }
        if (energy := self.energy) is not None:
            found["energy"] = {"kilowatt_hours": energy[0], "source": energy[1]}
        if self.timing is not None and self.price_hour:
            low, high = (each / 3600 * self.price_hour for each in self.timing.interval)
            cost = self.timing.seconds / 3600 * self.price_hour
            found["cost"] = {"price_hour": self.price_hour, "cost": cost, "from": low, "to": high}
        if self.stages:
            found["stages"] = {each.stage: each.record() for each in self.stages}
            found["whole"] = self._whole()
        return found

    def _whole(self) -> dict[str, float]:
        """Of the run with its stages: they are trained one after another, by one process."""
        plans = [*self.stages, self]
        found: dict[str, float] = {}
        if memories := [each.memory.peak for each in plans if each.memory is not None]:
            found["peak_bytes"] = max(memories)
        timings = [each.timing for each in plans if each.timing is not None]
        if len(timings) == len(plans):
            found["seconds"] = sum(each.seconds for each in timings)
            # the ends add up as if all were off the same way: stages share the machine
            found["from_seconds"] = sum(each.interval[0] for each in timings)
            found["to_seconds"] = sum(each.interval[1] for each in timings)
            found["kilowatt_hours"] = sum(each.energy[0] for each in plans if each.energy)
            if self.price_hour:
                found["cost"] = found["seconds"] / 3600 * self.price_hour
        return found

    def lines(self, now: datetime) -> Iterator[str]:
        """For people."""
        if self.stages:
            yield from self._staged_lines(now)
        else:
            yield from self._own_lines(now)

    def _staged_lines(self, now: datetime) -> Iterator[str]:
        """A stage after another, and the sum."""
        begun = now
        for number, each in enumerate([*self.stages, self], 1):
            yield f"{number}. {each.stage or 'the run itself'}"
            yield from (
                f"   {line}" for part in each._own_lines(begun) for line in part.split("\n")
            )
            yield ""
            begun += timedelta(seconds=each.timing.seconds if each.timing else 0)
        whole = self._whole()
        if "peak_bytes" in whole:
            peak = f"peak memory about {whole['peak_bytes'] / MB:,.0f} MB"
            yield f"all {len(self.stages) + 1} runs: {peak}"
        if "seconds" in whole:
            text = f"training takes {clock(whole['seconds'])}"
            if whole["from_seconds"] < whole["to_seconds"]:
                ends = clock(whole["from_seconds"]), clock(whole["to_seconds"])
                text += f" (from {ends[0]} to {ends[1]})"
            yield f"{text}; begun now, it ends at {_hour(now, whole['seconds'])}"
            yield "reading the data, and what a stage makes of all rows for the next, isn't counted"
            yield f"energy {whole['kilowatt_hours']:.3g} kWh"
        if "cost" in whole:
            yield f"cost {whole['cost']:.2f}"

    def _own_lines(self, now: datetime) -> Iterator[str]:
        """Of this run alone."""
        yield self.text
        if not (self.stage or self.stages):
            yield ""
        yield from (each.text() for each in self.findings)
        counts = {
            level: sum(each.level == level for each in self.findings)
            for level in ("error", "warning", "note")
        }
        yield f"rows: {', '.join(f'{count} {level}s' for level, count in counts.items())}"
        yield f"{self.parameters:,} parameters, {self.trained:,} of them trained"
        if self.flops is not None:
            yield f"{self.flops:.4g} floating point operations a step (products and convolutions)"
        if self.memory is not None:
            yield self.memory.text()
            if self.limit:
                yield self._fit()
        if self.timing is not None:
            yield self.timing.text(now)
        if (energy := self.energy) is not None:
            yield f"energy {energy[0]:.3g} kWh ({energy[1]})"
        if "cost" in (record := self.record()):
            cost = record["cost"]
            yield f"cost {cost['cost']:.2f} (from {cost['from']:.2f} to {cost['to']:.2f})"


def make_plan(
    method: Any,
    recipe: Any,
    *,
    seconds: float = 20.0,
    watts: float = 0.0,
    price_hour: float = 0.0,
    memory_gb: float = 0.0,
    quiet: bool = False,
) -> Plan:
    """The plan of a run; nothing is written into its folder.

    Args:
        method: a `recipes.base.Method`.
        recipe: of that method.
        seconds: for timing steps; 0 times none, and passes nothing through the network.
        watts: of the machine at work, where energy can't be measured; 0 takes `WATTS` a thread.
        price_hour: of the machine.
        memory_gb: that the run may take, in 1e9 bytes; 0 says nothing of whether it fits.

    Raises:
        BedstoneError: as `train.run.prepare`.
    """
    chosen = {"watts": watts, "price_hour": price_hour, "limit": memory_gb * 1e9}
    if list(getattr(recipe, "to_train", ())) and not recipe.init:
        return _plan_stages(method, recipe, chosen, seconds=seconds, quiet=quiet)
    made, _ = _plan_run(method, recipe, None, chosen, seconds=seconds, quiet=quiet)
    return made


def _plan_run(
    method: Any,
    recipe: Any,
    folder: Path | None,
    chosen: Mapping[str, float],
    *,
    seconds: float,
    quiet: bool,
) -> tuple[Plan, RunPlan]:
    """The plan of one run, and what was made ready for it.

    Args:
        folder: for what methods keep while they make a run ready; None keeps nothing.
        chosen: watts, price_hour and limit of the plan.
    """
    plan = prepare(method, recipe, folder, quiet=quiet)
    findings = lint_splits(plan.splits, plan.model.tokenizer)
    parameters, trained = weight_counts(plan.model)
    made = Plan(
        recipe.out, plan_text(method, recipe, plan), findings, parameters, trained,
        watts=chosen["watts"] or WATTS * torch.get_num_threads(), price_hour=chosen["price_hour"],
        limit=chosen["limit"], batch_size=int(getattr(recipe, "batch_size", 0) or 0),
    )  # fmt: skip
    if seconds > 0:
        _calibrate(method, recipe, plan, made, seconds, quiet)
    return made, plan


def _plan_stages(
    method: Any, recipe: Any, chosen: Mapping[str, float], *, seconds: float, quiet: bool
) -> Plan:
    """The plan of a run that trains other models first, each stage planned as a run of its own.

    A stage leaves its model with fresh weights, for those after it to be made ready with: what they
    take is the same. One that is finished in the run's folder is read from there.
    """
    stages = list(recipe.to_train)
    done = [stage.name for stage in stages if finished(stage.folder(recipe))]
    each = seconds / (1 + len(stages) - len(done))
    plans: list[Plan] = []
    with tempfile.TemporaryDirectory() as spare:
        moved = replace(recipe, out=spare)
        for stage, there in zip(stages, moved.to_train, strict=True):
            folder = there.folder(moved)
            folder.parent.mkdir(exist_ok=True)
            if stage.name in done:
                folder.symlink_to(stage.folder(recipe).resolve(), target_is_directory=True)
                continue
            folder.mkdir()
            own, values = load_method(stage.method), there.recipe(moved)
            made, ready = _plan_run(own, values, folder, chosen, seconds=each, quiet=quiet)
            write_text(folder / RECIPE, to_yaml(said(values)))
            ready.model.record.update(recipe=said(values), data=ready.splits.record)
            own.save(ready.model, folder / "model")
            made.stage = stage.name
            plans.append(made)
            del ready
        whole, _ = _plan_run(method, moved, Path(spare), chosen, seconds=each, quiet=quiet)
        for made in (*plans, whole):
            made.text, made.recipe = (
                text.replace(spare, recipe.out) for text in (made.text, made.recipe)
            )
    notes = [f"{name}: is finished, and taken as it is" for name in done]
    whole.text = "\n".join([*notes, whole.text])
    whole.stages = plans
    return whole


def _calibrate(
    method: Any, recipe: Any, plan: RunPlan, made: Plan, seconds: float, quiet: bool
) -> None:
    """Predicts memory, counts work and times steps."""
    keep_memory()
    network, precision = plan.model.network, plan.start.precision
    optimizer = build_optimizer(network, recipe.optim)
    accumulate = method.accumulate(recipe)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            network=network,
            objective=plan.objective,
            batches=plan.batches,
            optimizer=optimizer,
            budget=parse_budget(plan.budget),
            schedule=build_schedule(recipe.schedule),
            precision=precision,
            store=CheckpointStore(Path(folder) / "checkpoints", 1),
            write_model=lambda path, metrics: None,
            accumulate=accumulate,
            clip=recipe.optim.clip,
        )
        if (first := getattr(plan.objective, "before_step", None)) is not None:
            first(network, 0.0)
        batch = next(plan.batches).to(precision.device)
        made.memory = predict_memory(network, plan.objective, batch, optimizer, precision)
        made.flops = accumulate * count_flops(network, plan.objective, batch, precision)
        optimizer.zero_grad()
        each: list[float] = []
        before = energy_counters()
        began, spent = time.monotonic(), 0.0
        with ProgressBar("timing steps", quiet=quiet) as bar:
            while len(each) < WARM + MOST:
                start = time.monotonic()
                trainer.one_step(0.0)
                each.append(time.monotonic() - start)
                spent = time.monotonic() - began
                bar.update(min(spent / seconds, 1.0))
                if len(each) >= WARM + LEAST and spent >= seconds / 2:
                    break
                if spent + each[-1] > seconds:
                    break
        made.joules = joules_between(before, energy_counters(), len(each))
        timed = each[min(WARM, max(len(each) - LEAST, 0)) :]  # of few, the first ones count
        items = trainer.tokens / trainer.step
        made.timing = _timing(trainer.budget, timed, items)
        evaluations = method.evaluations(recipe, plan)
        if evaluations and seconds > spent:
            made.timing.evaluation = _evaluated(evaluations[0], network, seconds - spent)
            every = method.evaluate_every(recipe, plan.splits)
            made.timing.evaluations = max(made.timing.steps // every, 1) if every else EVALUATIONS


def _timing(budget: Budget, each: list[float], items: float) -> Timing:
    """The timing of a run by its budget."""
    step = statistics.fmean(each)
    if budget.unit == "seconds":
        return Timing(int(budget.amount / step), each, budget=budget.amount)
    steps = budget.amount if budget.unit == "steps" else budget.amount / max(items, 1)
    return Timing(math.ceil(steps), each)


def _evaluated(evaluation: Any, network: Any, seconds: float) -> float | None:
    """How long an evaluation takes; None where it is more than so many seconds."""
    began = time.monotonic()
    with suppress(_TooLong), _Deadline(began + seconds):
        evaluation.log(network)
        return time.monotonic() - began
    return None


class _TooLong(Exception):
    """What is timed takes too long for it."""


class _Deadline(TorchFunctionMode):
    """Leaves what computes by torch, once its time is over.

    Only at functions of tensors: those that put a mode back, as at the end of `no_grad`, are let
    through.
    """

    def __init__(self, until: float) -> None:
        super().__init__()
        self.until = until

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if time.monotonic() > self.until and any(isinstance(each, torch.Tensor) for each in args):
            raise _TooLong
        return func(*args, **(kwargs or {}))


def student(count: int) -> float:
    """About the quantile of Student's distribution that 95 % of a mean of so many values are in."""
    return 1.96 + 2.4 / (count - 1) + 2.6 / (count - 1) ** 2


# Work.


def count_flops(network: Any, objective: Any, batch: Any, precision: Any) -> int:
    """Floating point operations of products and convolutions in one micro-batch, forward and
    backward, as they are computed: two for each multiplication with its addition.

    torch.utils.flop_counter counts them; to it comes attention as it is computed on CPUs.
    """
    network.train()
    shapes = {_FORWARD: _attention, _BACKWARD: _attention_backward}
    with FlopCounterMode(display=False, custom_mapping=shapes) as counter:
        with precision.autocast():
            loss, _ = objective(network, batch)
        loss.backward()
    return int(counter.get_total_flops())


_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
               ) -> int:  # fmt: skip
    """Scores and their sums, of shapes (B, H, T, D), (B, H, S, D) and (B, H, S, E)."""
    rows, heads, length, width = query
    return 2 * rows * heads * length * key[2] * (width + value[3])


def _attention_backward(
    gradient: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int],
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Scores again, and the gradients of scores, queries, keys and values."""
    rows, heads, length, width = query
    return 2 * rows * heads * length * key[2] * (3 * width + 2 * value[3])


# Energy.


def energy_counters(root: Path = RAPL) -> dict[str, int]:
    """Microjoules of each processor package so far; empty where RAPL can't be read."""
    found = {}
    with suppress(OSError, ValueError):
        for folder in sorted(root.glob("intel-rapl:?")):
            found[folder.name] = int((folder / "energy_uj").read_text())
    return found


def joules_between(before: dict[str, int], after: dict[str, int], steps: int) -> float | None:
    """Joules of a step; None where they weren't read, or a counter began anew."""
    if not before or before.keys() != after.keys():
        return None
    moved = [after[name] - before[name] for name in before]
    return None if min(moved) < 0 else sum(moved) / 1e6 / steps


def _hour(now: datetime, seconds: float) -> str:
    ends = now + timedelta(seconds=seconds)
    return ends.strftime("%H:%M" if ends.date() == now.date() else "%Y-%m-%d %H:%M")


def _spoken(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
