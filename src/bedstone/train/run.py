"""A run of any training method: from a recipe to the artefact in the run's folder."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from bedstone import ranks
from bedstone.checkpoints.adapters import load_adapter, save_adapter
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.checkpoints.store import Checkpoint, CheckpointStore
from bedstone.data.summary import Summary
from bedstone.data.text.marian_tokenizer import load_tokenizer
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError, nearest
from bedstone.files import lock, make_folder, write_json, write_text
from bedstone.models.interfaces import Denoiser, ImageTextModel
from bedstone.nn.lora import fold, remove_adapter
from bedstone.report.plots import draw_curve
from bedstone.report.trained_tokens import as_text, token_rows, write_token_page
from bedstone.runtime import Precision, pick_device, pick_precision, seed_everything
from bedstone.settings import Settings, number, one_of, to_yaml, whole
from bedstone.train.averaging import Average, Unaveraged
from bedstone.train.data import Splits, understood
from bedstone.train.distributed import WAYS, parallel
from bedstone.train.lint import first_errors
from bedstone.train.logs import ProgressBar, RunLog, clock, counted, read_log
from bedstone.train.loop import Batches, Done, Objective, Trainer, Watch
from bedstone.train.memory import Foretelling
from bedstone.train.optim import OptimConfig, build_optimizer
from bedstone.train.pace import Pace
from bedstone.train.resume import DATA, RECIPE, check_data, check_recipe, checked_tokenizer
from bedstone.train.schedule import ScheduleConfig, build_schedule, parse_budget
from bedstone.train.start import Start, weight_counts
from bedstone.train.trackers import USUAL, check_trackers, open_trackers

Method = Any  # a `recipes.base.Method`, which stands above


SHOWN = 20  # rows of the page of trained tokens


@dataclass
class RunRecipe(Settings):
    """Settings of every run.

    Attributes:
        method: the training method, by its name in `recipes.base.METHODS`; where it isn't given,
            the task or the model's layout decides.
        out: the folder of the run.
        seed: of all random draws: fresh weights, the order of the data, dropout.
        optim: the optimizer.
        schedule: of the learning rate.
        accumulate: micro-batches a step.
        precision: auto, bf16 or fp32.
        device: auto, cpu, cuda, mps.
        compile: whether to compile the step; it pays on long runs.
        evaluate_every: steps between evaluations; 0 spreads ten over the run.
        save_every: steps between checkpoints; 0 saves every `save_minutes`.
        save_minutes: minutes between checkpoints.
        keep: checkpoints to keep besides the best.
        log: where figures go besides log.jsonl: tensorboard (where it is installed), wandb, mlflow.
        log_every: steps between lines of the log.
        strict: refuse data of which something may have been misunderstood, such as labels that
            differ by a space, instead of reporting it.
        parallel: what ranks that torchrun starts share out: ddp (rows; every rank has all weights)
            or fsdp (rows, weights and the optimizer's state).
    """

    method: str = ""
    out: str = "runs/run"
    seed: int = whole(0, 2**63 - 1, default=0)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    accumulate: int = whole(1, default=1)
    precision: str = "auto"
    device: str = "auto"
    compile: bool = False
    evaluate_every: int = whole(0, default=0)
    save_every: int = whole(0, default=0)
    save_minutes: float = number(0, open_least=True, default=5.0)
    keep: int = whole(1, default=2)
    log: list[str] = field(default_factory=lambda: list(USUAL))
    log_every: int = whole(1, default=10)
    strict: bool = False
    parallel: str = one_of(*WAYS, default="ddp")


@dataclass(frozen=True)
class Stopping:
    """When a run stops early, and which checkpoint becomes its model.

    Attributes:
        best_by: the figure that picks the best checkpoint, lower is better; `-name` turns it.
        patience: evaluations in a row without a better one after which to stop; 0 never does.
        keep_best: whether the best checkpoint's weights become the model, not the last ones.
        from_start: whether the weights that a run begins with are measured, and kept as a
            checkpoint, so that a run that only did harm ends with them.
    """

    best_by: str = "validation_loss"
    patience: int = 0
    keep_best: bool = False
    from_start: bool = False


@dataclass
class RunPlan:
    """A run made ready: the model on its device, and what it learns from.

    Attributes:
        start: what it begins with.
        splits: the data.
        model: the network, on its device, with tokenizer and processor.
        batches: the endless stream that it learns from.
        objective: (network, batch) to (sum of losses, number of targets).
        budget: how long: `5m`, `1000 steps`.
    """

    start: Start
    splits: Splits
    model: Model
    batches: Batches
    objective: Objective
    budget: str


@dataclass
class RunResult:
    """What a run leaves: how it ended, its folder, and its artefact if it came to the end."""

    done: Done
    run: Path
    model: Path | None


@contextlib.contextmanager
def held_folder(run: str | Path) -> Iterator[Path]:
    """A run's folder, made where there is none, held so that no other run writes there.

    Raises:
        BedstoneError: another run does, or nothing can be written there.
    """
    busy = "another run is training there. Wait until it has ended, or choose another out=..."
    with contextlib.ExitStack() as stack:

        def held() -> str:
            folder = make_folder(run)
            stack.enter_context(lock(folder, busy))
            return str(folder)

        yield Path(ranks.first(held))  # rank 0 holds it for all ranks


def new_folder(run: Path) -> None:
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
    for name in ("log.jsonl", DATA):
        (run / name).unlink(missing_ok=True)


def run(
    method: Method,
    recipe: Any,
    folder: Path,
    checkpoint: Checkpoint | None = None,
    *,
    quiet: bool = False,
    watch: Watch | None = None,
) -> RunResult:
    """Trains by a method, until the budget is spent or a signal asks to leave.

    The folder gets `recipe.yaml`, `data.json`, `tokenizer/` where the run has its own, `log.jsonl`,
    `tensorboard/`, `checkpoints/`, `curve.png` and, at the end, the artefact in `model/`,
    `adapter/` of a run that trains one, and `evaluation.json`.

    Args:
        method: a `recipes.base.Method`.
        recipe: of that method.
        checkpoint: of this run, to go on from.
        watch: of `train.loop.Trainer`.

    Raises:
        BedstoneError: the recipe, the data, a model or the disk can't do it, said before training
            starts; or a loss isn't finite.
    """
    if ranks.count() > 1:
        check_spread(method, recipe, ranks.count())
    for stage in method.stages(recipe, checkpoint, quiet=quiet):
        if stage.model is None:
            return RunResult(stage.done, folder, None)
    # Rank 0 makes the tokenizer and the caches; the others then find them.
    quiet = quiet or ranks.rank() > 0
    plan = ranks.in_turn(lambda: prepare(method, recipe, folder, checkpoint, quiet=quiet))
    _check_same_data(plan)
    evaluations: list[Any] = []
    ranks.first(lambda: evaluations.extend(method.evaluations(recipe, plan)))
    result = _train(method, recipe, folder, plan, evaluations, watch)
    if result.model is not None:
        ranks.first(lambda: _report(evaluations, folder, result.done, quiet))
    return result


def _report(evaluations: Sequence[Any], folder: Path, done: Done, quiet: bool) -> None:
    """Writes what the finished model is worth."""
    record: dict[str, Any] = {}
    for evaluation in evaluations:
        record |= evaluation.report(folder, done.metrics, quiet=quiet)
    if record:
        write_json(folder / "evaluation.json", record)


def check_spread(method: Method, recipe: Any, count: int) -> None:
    """Refuses what can't be trained by several ranks, before anything is read.

    Raises:
        BedstoneError: the method or the recipe can't.
    """
    why = method.lone(recipe, count)
    if not why and recipe.parallel == "fsdp" and recipe.compile:
        why = "compile: compiled steps aren't known to work with parallel=fsdp"
    if why:
        raise BedstoneError(
            f"{why}. Train it in one process, without torchrun, or on {count} ranks another way."
        )


def _check_same_data(plan: RunPlan) -> None:
    """Raises BedstoneError, on all ranks, where they read other data than rank 0."""
    own = plan.splits.record.get("fingerprint")
    for rank, other in enumerate(ranks.gathered(own)):
        if other != ranks.agreed(own):
            raise ranks.EveryRank(
                f"data.source: rank {rank} read other data (fingerprint {other}) than rank 0. "
                "Give all machines the same data."
            )


def prepare(
    method: Method,
    recipe: Any,
    folder: Path | None,
    checkpoint: Checkpoint | None = None,
    *,
    quiet: bool = False,
) -> RunPlan:
    """Data, tokenizer, model, batches and objective of a run; with no folder nothing is written.

    Raises:
        BedstoneError: as `run`.
    """
    precision = check_values(method, recipe)
    if folder is not None:
        check_recipe(folder / RECIPE, said(recipe), checkpoint)
    start = Start(precision, folder, checkpoint, quiet=quiet)
    start.model = method.begin(recipe, checkpoint)
    if start.model is None:
        start.parts = method.parts(recipe)
    splits = method.open(recipe, start)
    splits.understood = splits.understood or understood(splits)
    if recipe.strict:
        splits.understood.check()
    if folder is not None:
        check_data(folder, splits.record, checkpoint)
    tokenizer = choose_tokenizer(method, recipe, splits, start)
    seed_everything(recipe.seed)
    model = method.model(recipe, splits, tokenizer, start)
    model.network.to(precision.device)
    batches = method.batches(recipe, model, splits, start)
    objective = method.objective(recipe, model, start)
    return RunPlan(start, splits, model, batches, objective, method.budget(recipe, splits))


def check_values(method: Method, recipe: Any) -> Precision:
    """Refuses what can be refused of a recipe before data is read; how it computes.

    Raises:
        BedstoneError: the recipe can't be run.
    """
    precision = pick_precision(recipe.precision, pick_device(recipe.device), learns=True)
    build_schedule(recipe.schedule)
    check_trackers(recipe.log)
    if recipe.budget or not method.epochs:
        parse_budget(recipe.budget)
    method.check(recipe)
    return precision


def choose_tokenizer(method: Method, recipe: Any, splits: Splits, start: Start) -> Tokenizer | None:
    """The run's own if it has one; else the one named, the initial model's, or a new one.

    None where the method reads no text, or reads it with its model's tokenizer.

    Raises:
        BedstoneError: it can't be read, or its kind isn't one that the method trains.
    """
    texts = method.texts(recipe, splits, start)
    if texts is None:
        return None
    own = None if start.folder is None else start.folder / "tokenizer"
    initial = start.model or start.parts.get("text")
    tokenizer = None if own is None else checked_tokenizer(own, start.checkpoint)
    if tokenizer is None:
        if recipe.tokenizer.path:
            tokenizer = method.adopt(load_tokenizer(recipe.tokenizer.path))
        elif initial is not None:
            tokenizer = method.adopt(tokenizer_of(initial))
        else:
            tokenizer = trainer_of(method, recipe)(texts, recipe.tokenizer)
        if own is not None:
            tokenizer.save(own)
    if method.records_tokenizer:
        splits.record["tokenizer"] = tokenizer.fingerprint()
    return tokenizer


def trainer_of(method: Method, recipe: Any) -> Callable[[Iterable[str], Any], Tokenizer]:
    """What trains a new tokenizer of the recipe's kind; raises BedstoneError where none does."""
    trainers, kind = method.trainers(recipe), recipe.tokenizer.kind
    if kind not in trainers:
        raise BedstoneError(
            f"tokenizer.kind: {kind!r} was given, which {method.name} doesn't train"
            f"{nearest(kind, trainers)}. Or name a tokenizer by tokenizer.path."
        )
    return trainers[kind]


def plan_text(method: Method, recipe: Any, plan: RunPlan) -> str:
    """What is about to be spent, said before it is: data, model, precision, budget."""
    model, precision = plan.model, plan.start.precision
    count, learning = weight_counts(model)
    network = model.config.layout
    if recipe_start := getattr(recipe, "init", "") or getattr(recipe, "model", ""):
        network += f" from {recipe_start}" if isinstance(recipe_start, str) else ""
    words = "" if model.tokenizer is None else f", vocabulary {model.tokenizer.vocab_size:,}"
    if model.tokenizer is not None and model.tokenizer.separate:
        words += f" and {model.tokenizer.target.vocab_size:,} of targets"
    return "\n".join(
        (
            *plan.splits.notes,
            *(plan.splits.understood or Summary()).text(),
            f"{network}: {count / 1e6:.2f}M parameters, {learning / 1e6:.2f}M of them trained "
            f"by {method.name}{words}, {precision.name} on {precision.device}",
            f"{method.step_size(recipe) * recipe.accumulate:,} {method.unit} a step, budget "
            f"{plan.budget}, into {recipe.out}",
        )
    )


def said(recipe: RunRecipe) -> dict[str, Any]:
    """The recipe as `recipe.yaml` and the artefact record it: some fields only where they say more.

    They are `method`, where it was given, `parallel`, where it isn't the usual, and `log`, where it
    isn't TensorBoard alone.
    """
    values = dataclasses.asdict(recipe)
    if not values["method"]:
        del values["method"]
    if values["parallel"] == WAYS[0]:
        del values["parallel"]
    if values["log"] == list(USUAL):
        del values["log"]
    return values


def _train(
    method: Method,
    recipe: Any,
    folder: Path,
    plan: RunPlan,
    evaluations: Sequence[Any],
    watch: Watch | None,
) -> RunResult:
    """The training loop, and what it writes."""
    start, model = plan.start, plan.model
    say = ProgressBar("", quiet=start.quiet).say
    adapts, stopping = bool(getattr(recipe, "lora", None)), method.stopping(recipe, model)
    decay = method.average(recipe)
    _align(model.network)
    spread = parallel(recipe.parallel, model.network, plan.objective, start.precision.device)
    learner = model.network if spread.whole is None else spread.network
    optimizer = build_optimizer(learner, recipe.optim, spread.orthogonalise)
    average = Average(learner, decay) if decay else Unaveraged()

    def announce() -> None:
        _check_disk(folder, model, recipe.keep, copies=5 if decay else 3)
        write_text(folder / RECIPE, to_yaml(said(recipe)))
        write_json(folder / DATA, plan.splits.record)
        say(plan_text(method, recipe, plan))
        if not start.quiet:
            for finding in first_errors(plan.splits, model.tokenizer):
                say(finding.text())
        if (shown := plan.splits.shown) is not None:
            first = token_rows(shown, range(min(len(shown), SHOWN)))
            say(as_text(first[0]))
            name = f"{folder.name}: trained tokens"
            write_token_page(folder / "trained-tokens.html", name, first)

    ranks.first(announce)
    model.record.update(recipe=said(recipe), data=plan.splits.record)
    if recipe.compile:
        _compile(model.network)
    write: Callable[[Path], None] = lambda path: method.save(model, path)  # noqa: E731
    if adapts:
        write = lambda path: method.save_adapter(model, path)  # noqa: E731

    def write_model(path: Path, metrics: dict[str, float]) -> None:
        model.record["metrics"] = metrics
        write(path)

    trainer = Trainer(
        network=learner,
        objective=plan.objective,
        batches=plan.batches,
        optimizer=optimizer,
        budget=parse_budget(plan.budget),
        schedule=build_schedule(recipe.schedule),
        precision=start.precision,
        store=CheckpointStore(folder / "checkpoints", recipe.keep),
        write_model=write_model,
        evaluate=_figures(evaluations),
        accumulate=method.accumulate(recipe),
        clip=recipe.optim.clip,
        best_by=stopping.best_by,
        patience=stopping.patience,
        average=average,
        ranks=spread,
        watch=watch,
        pace=Pace(
            method.evaluate_every(recipe, plan.splits),
            recipe.save_every,
            recipe.save_minutes,
            recipe.log_every,
            stopping.keep_best,
            stopping.from_start,
        ),
    )
    if start.checkpoint is not None:
        trainer.resume(start.checkpoint)
        say(f"Going on from step {trainer.step}, {clock(trainer.seconds)} into the run.")
    kinds = [] if ranks.rank() else recipe.log
    trackers = open_trackers(kinds, folder, trainer.step, said(recipe))
    log = RunLog(folder, step=trainer.step, trackers=trackers)
    try:
        with ProgressBar("training", quiet=start.quiet) as bar:
            if not (start.quiet or recipe.compile or spread.whole is not None):
                trainer.objective = Foretelling(plan.objective, optimizer, bar.say)
            done = trainer.run(log, bar)
    finally:
        log.close()
    if done.reason == "finished":
        average.settle()
        spread.gather()

    def finish() -> str:
        curve = draw_curve(read_log(folder / "log.jsonl"), folder / "curve.png", folder.name)
        if done.reason != "finished":
            again = f"Go on: bedstone resume {folder}"
            say(f"Stopped by {done.reason} at step {done.step}, saved. {again}")
            return ""
        if stopping.keep_best:
            with method.bare(model.network):
                _restore_best(model, trainer.store, done, adapts)
        model.record["metrics"] = done.metrics
        if adapts:
            save_adapter(model, folder / "adapter")
            fold(model.network)
        path = method.finish(model, folder / "model")
        spent = f"{counted(done.step, 'step')}, {done.tokens:,} {done.unit}, {clock(done.seconds)}"
        say(f"{spent}. Model: {path}")
        say(f"Curve: {curve}" if curve else "For a curve: pip install 'bedstone[train]'")
        return str(path)

    made = ranks.first(finish)
    return RunResult(done, folder, Path(made) if made else None)


def _figures(evaluations: Sequence[Any]) -> Callable[[Any], dict[str, float]] | None:
    """What measures the network in training, of rank 0's evaluations; None where there are none."""
    measure = evaluations[0].log if evaluations else None
    if not ranks.agreed(measure is not None):
        return None
    found: Callable[[Any], dict[str, float]] = measure or dict  # no other rank calls it
    return found


def _restore_best(model: Model, store: CheckpointStore, done: Done, adapts: bool) -> None:
    """Puts the best checkpoint's weights into the model, and its figures into `done`."""
    best = store.best()
    if best is None or best.step == done.step:
        return
    if adapts:
        remove_adapter(model.network, "default")
        load_adapter(model, best.path)
    else:
        weights = open_model(best.path, dtype=torch.float32).network.state_dict()
        model.network.load_state_dict(weights)
    done.metrics = best.metrics


def _align(network: Any) -> None:
    """Lays weights where fresh ones lie: products' last bits depend on it, and resuming is exact.

    Those of a file begin wherever they stand in it.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


def _compile(network: Any) -> None:
    """Compiles the part with most of the work: the states, the image tower, or the denoiser."""
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
