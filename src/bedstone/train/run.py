"""A run: from what a recipe has made ready to the artefact, for every kind of recipe.

A recipe's own command says what is learnt: a `Course`. What all runs share stands here: optimizer,
budget, checkpoints, logs, the curve, leaving and coming back.
"""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from bedstone.checkpoints.model import Model
from bedstone.checkpoints.store import Checkpoint, CheckpointStore
from bedstone.errors import BedstoneError
from bedstone.files import read_json, write_json, write_text
from bedstone.models.interfaces import Denoiser, ImageTextModel
from bedstone.report.plots import draw_curve
from bedstone.runtime import Precision, keep_memory
from bedstone.settings import at_least, to_yaml
from bedstone.train.averaging import Average, Decay, Unaveraged
from bedstone.train.logs import ProgressBar, RunLog, clock, read_log
from bedstone.train.loop import Batches, Done, Objective, Pace, Trainer
from bedstone.train.optim import OptimConfig, build_optimizer
from bedstone.train.schedule import ScheduleConfig, build_schedule, parse_budget


@dataclass
class RunRecipe:
    """What every recipe says of its run.

    Attributes:
        out: the folder of the run.
        seed: of all that is drawn: fresh weights, the order of the data, dropout.
        optim: how weights move.
        schedule: how the learning rate moves.
        accumulate: micro-batches a step.
        precision: auto, bf16 or fp32.
        device: auto, cpu, cuda, mps.
        compile: whether to compile the step; it pays on long runs.
        evaluate_every: steps between evaluations; 0 spreads ten over the run.
        save_every: steps between checkpoints; 0 saves every `save_minutes`.
        save_minutes: minutes between checkpoints.
        keep: checkpoints to keep besides the best.
        log_every: steps between lines of the log.
    """

    out: str = "runs/run"
    seed: int = 0
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    accumulate: int = 1
    precision: str = "auto"
    device: str = "auto"
    compile: bool = False
    evaluate_every: int = 0
    save_every: int = 0
    save_minutes: float = 5.0
    keep: int = 2
    log_every: int = 10

    def __post_init__(self) -> None:
        at_least(self, 1, "accumulate", "keep", "log_every")
        at_least(self, 0, "seed")
        if self.seed >= 2**63:
            raise BedstoneError(f"seed: {self.seed} was given; expected less than 2^63.")
        if self.save_minutes <= 0:
            raise BedstoneError(f"save_minutes: {self.save_minutes} was given; it must be above 0.")


@dataclass
class RunPlan:
    """What is learnt, and from what.

    Attributes:
        model: the network, on its device, with what is needed to use it.
        batches: the endless stream that it learns from.
        objective: (network, batch) to (sum of losses, number of targets).
        evaluate: the network's figures on held-out data; None where nothing is held out.
        data: what `data.json` and the artefact say of the data.
        plan: what is about to be spent, to be said before it is.
        budget: how long: `5m`, `1000 steps`.
        write_model: writes a checkpoint's deployable files; the whole model by default.
        finish: the finished run to its artefact's folder; the model of the last step by default.
        evaluate_every: steps between evaluations; 0 is as the recipe has it.
        average: the decay of the weights' moving average, which is then what is evaluated and
            written; None has none.
        best_by, patience, save_best: as `train.loop.Trainer` and `Pace` have them.
    """

    model: Model
    batches: Batches
    objective: Objective
    evaluate: Callable[[nn.Module], dict[str, float]] | None
    data: dict[str, Any]
    plan: str
    budget: str
    write_model: Callable[[Path], None] | None = None
    finish: Callable[[Path, Done, CheckpointStore], Path] | None = None
    average: Decay | None = None
    best_by: str = "validation_loss"
    patience: int = 0
    save_best: bool = False
    evaluate_every: int = 0


@dataclass
class RunResult:
    """What a run leaves: how it ended, its folder, and its artefact if it came to the end."""

    done: Done
    run: Path
    model: Path | None


def begin(run: Path) -> None:
    """Makes a folder ready for a new run.

    Raises:
        BedstoneError: it holds a run already.
    """
    if (latest := CheckpointStore(run / "checkpoints").latest()) is not None:
        raise BedstoneError(
            f"{run}: holds a run already, at step {latest.step}. Go on with it by `bedstone resume "
            f"{run}`, or choose another folder with out=..."
        )
    # What a run that came to no checkpoint left behind is not this run's.
    shutil.rmtree(run / "tokenizer", ignore_errors=True)
    for name in ("log.jsonl", "data.json"):
        (run / name).unlink(missing_ok=True)


def train(
    recipe: RunRecipe,
    run: Path,
    course: RunPlan,
    precision: Precision,
    checkpoint: Checkpoint | None,
    *,
    quiet: bool = False,
) -> RunResult:
    """Trains until the budget is spent or a signal asks to leave, from a checkpoint if given.

    The folder gets `recipe.yaml`, `data.json`, `log.jsonl`, `tensorboard/`, `checkpoints/`,
    `curve.png` and, at the end, the artefact in `model/`.

    Raises:
        BedstoneError: the disk can't hold it, or a loss isn't finite.
    """
    keep_memory()
    say = ProgressBar("", quiet=quiet).say
    model = course.model
    budget, schedule = parse_budget(course.budget), build_schedule(recipe.schedule)
    _align(model.network)
    optimizer = build_optimizer(model.network, recipe.optim)
    average = Average(model.network, course.average) if course.average else Unaveraged()
    _check_disk(run, model, recipe.keep, copies=5 if course.average else 3)
    write_text(run / "recipe.yaml", to_yaml(recipe))
    write_json(run / "data.json", course.data)
    say(course.plan)
    model.record.update(recipe=dataclasses.asdict(recipe), data=course.data)
    if recipe.compile:
        _compile(model.network)

    def write_model(folder: Path, metrics: dict[str, float]) -> None:
        model.record["metrics"] = metrics
        (course.write_model or model.write_files)(folder)

    trainer = Trainer(
        network=model.network,
        objective=course.objective,
        batches=course.batches,
        optimizer=optimizer,
        budget=budget,
        schedule=schedule,
        precision=precision,
        store=CheckpointStore(run / "checkpoints", recipe.keep),
        write_model=write_model,
        evaluate=course.evaluate,
        accumulate=recipe.accumulate,
        clip=recipe.optim.clip,
        best_by=course.best_by,
        patience=course.patience,
        average=average,
        pace=Pace(
            course.evaluate_every or recipe.evaluate_every,
            recipe.save_every,
            recipe.save_minutes,
            recipe.log_every,
            course.save_best,
        ),
    )
    if checkpoint is not None:
        trainer.resume(checkpoint)
        say(f"Going on from step {trainer.step}, {clock(trainer.seconds)} into the run.")
    log = RunLog(run, step=trainer.step)
    try:
        with ProgressBar("training", quiet=quiet) as bar:
            done = trainer.run(log, bar)
    finally:
        log.close()
    curve = draw_curve(read_log(run / "log.jsonl"), run / "curve.png", run.name)
    if done.reason != "finished":
        say(f"Stopped by {done.reason} at step {done.step}, saved. Go on: bedstone resume {run}")
        return RunResult(done, run, None)
    average.settle()
    model.record["metrics"] = done.metrics
    path = course.finish(run, done, trainer.store) if course.finish else model.save(run / "model")
    say(f"{done.step:,} steps, {done.tokens:,} tokens, {clock(done.seconds)}. Model: {path}")
    say(f"Curve: {curve}" if curve else "For a curve: pip install 'bedstone[train]'")
    return RunResult(done, run, path)


def check_unchanged(run: Path, record: Mapping[str, Any]) -> None:
    """Raises BedstoneError where the run in this folder began with other data."""
    path = run / "data.json"
    if path.is_file() and read_json(path).get("fingerprint") != record["fingerprint"]:
        raise BedstoneError(
            f"data.source: {record['source']!r} has changed since the run in {run} began, so it "
            "can't go on exactly. Bring the data back as it was, or begin another run with "
            "init= the last checkpoint."
        )


def _align(network: nn.Module) -> None:
    """Lays weights where fresh ones lie: products' last bits depend on it, and resuming is exact.

    Those of a file begin wherever they stand in it.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


def _compile(network: Any) -> None:
    """Compiles what most of the work is in: a network's states, the tower that sees, or what
    takes noise away."""
    if isinstance(network, Denoiser):
        cast(Any, network).denoiser.compile()
        return
    body, name = (network.image, "features") if hasattr(network, "image") else (network, "states")
    # text attends to all states of an image
    name = "states" if isinstance(network, ImageTextModel) else name
    setattr(body, name, torch.compile(getattr(body, name)))


def _check_disk(run: Path, model: Model, keep: int, copies: int) -> None:
    """Raises BedstoneError if what the run will write can't fit on the disk.

    Args:
        copies: a checkpoint's size in weights: they and up to two moments; an average has two more.
    """
    run.mkdir(parents=True, exist_ok=True)
    weights = 4 * sum(parameter.numel() for parameter in model.network.parameters())
    # Those kept; the newest, the best, one in the making.
    needed = copies * weights * (keep + 2) + weights
    free = shutil.disk_usage(run).free
    if free < needed:
        raise BedstoneError(
            f"{run}: the run will need up to {needed / 1e9:.1f} GB for its checkpoints and "
            f"{free / 1e9:.1f} GB are free. Make room, lower keep, or choose another folder "
            "with out=..."
        )
