"""`bedstone finetune`: a model learns a task from labelled rows, whole or by an adapter."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.rule import Rule
from torch import nn

from bedstone.checkpoints.adapters import adapt, load_adapter, save_adapter, write_adapter_files
from bedstone.checkpoints.artefact import Model, load
from bedstone.checkpoints.opening import open_model
from bedstone.checkpoints.store import Checkpoint, CheckpointStore
from bedstone.checks import check_shares
from bedstone.commands.find_rate import find_rate
from bedstone.commands.picture_rows import freeze_body, open_picture_model
from bedstone.commands.pretrain_told import run_told
from bedstone.commands.scoring import MAIN, score
from bedstone.commands.task_rows import TaskRows
from bedstone.commands.training import Course, Finished, begin, train
from bedstone.data.examples import Examples
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.files import write_json
from bedstone.inspect.confusion import draw_confusion
from bedstone.mapping import from_mapping, read_recipe, read_values
from bedstone.models.heads import HeadConfig
from bedstone.nn.attention import SelfAttention
from bedstone.nn.lora import LoraConfig, fold, remove_adapter
from bedstone.nn.quantize import quantize
from bedstone.objectives.labels import objective_of
from bedstone.recipes import PICTURES, FinetuneRecipe
from bedstone.recipes_told import TASKS as TELLING
from bedstone.recipes_told import ToldRecipe
from bedstone.runtime import Precision, pick_device, pick_precision, seed_everything
from bedstone.train.loop import Done
from bedstone.train.schedule import build_schedule, parse_budget


def read_finetuning(path: str | Path, overrides: Sequence[str] = ()) -> FinetuneRecipe | ToldRecipe:
    """The recipe in a file: of pictures that are put into words where its task is that.

    Raises:
        BedstoneError: as `mapping.read_recipe`.
    """
    if read_values(path, overrides).get("task") in TELLING:
        return read_recipe(ToldRecipe, path, overrides)
    return read_recipe(FinetuneRecipe, path, overrides)


def finetune(recipe: FinetuneRecipe | ToldRecipe, *, quiet: bool = False) -> Finished:
    """Fine-tunes as the recipe says, into the folder `recipe.out`.

    The folder holds what every run's does; `model/` is the best checkpoint, and of an adapter
    there is also `adapter/`, as peft has it, while `model/` has it merged.

    Raises:
        BedstoneError: the recipe, the model or the data can't do it, said before training
            starts; or a loss that isn't finite.
    """
    run = Path(recipe.out)
    begin(run)
    if isinstance(recipe, ToldRecipe):
        return run_told(recipe, run, None, quiet)
    return run_finetuning(recipe, run, None, quiet)


def run_finetuning(
    recipe: FinetuneRecipe, run: Path, checkpoint: Checkpoint | None, quiet: bool
) -> Finished:
    """A new run, or one that goes on from a checkpoint."""
    course, rows, precision = set_up(recipe, checkpoint, quiet)
    finished = train(recipe, run, course, precision, checkpoint, quiet=quiet)
    if finished.model is not None:
        _report(run, course.model, rows, precision, quiet)
    return finished


def propose_rate(recipe: FinetuneRecipe | ToldRecipe, *, quiet: bool = False) -> float:
    """Tries learning rates out and tells which one to take; trains nothing.

    Raises:
        BedstoneError: as `finetune`, or no rate makes the loss fall.
    """
    if isinstance(recipe, ToldRecipe):
        raise BedstoneError(f"find_rate: isn't there for {recipe.task}; leave it out.")
    course, _, precision = set_up(recipe, None, quiet)
    folder = Path(recipe.out) / "find-rate"
    found = find_rate(course, recipe.optim, precision, folder, quiet=quiet)
    if not quiet:
        Console().print(
            f"optim.adamw_lr: {found:.1e} is proposed, {recipe.optim.adamw_lr:.1e} is in the "
            f"recipe. The curve: {folder / 'rates.png'}",
            highlight=False,
        )
    return found


def set_up(
    recipe: FinetuneRecipe, checkpoint: Checkpoint | None, quiet: bool
) -> tuple[Course, TaskRows, Precision]:
    """What is learnt and how, from the recipe's seed on, and the rows it is measured on."""
    precision = pick_precision(recipe.precision, pick_device(recipe.device))
    build_schedule(recipe.schedule)
    seed_everything(recipe.seed)
    model, rows = open_all(recipe, checkpoint, precision, quiet)
    return course_of(recipe, model, rows, precision), rows, precision


def open_all(
    recipe: FinetuneRecipe, checkpoint: Checkpoint | None, precision: Precision, quiet: bool
) -> tuple[Model, TaskRows]:
    """The model on its device, with the head and the adapter that will learn, and its rows."""
    adapted = bool(recipe.lora)
    model = open_start(recipe, None if adapted else checkpoint)
    rows = TaskRows.open(recipe, model, quiet=quiet)
    prepare(model, recipe, rows.train)
    if adapted and checkpoint is not None:
        load_adapter(model, checkpoint.path)
    elif adapted:
        adapt(model.network, lora_config(recipe), seed=recipe.seed)
    model.network.to(precision.device)
    if recipe.train == "head":
        rows = rows.seen(model, precision, quiet=quiet)
        freeze_body(model.network)
    return model, rows


def open_start(recipe: FinetuneRecipe, checkpoint: Checkpoint | None) -> Model:
    """The model to start from, in fp32: a run's checkpoint, or the recipe's model."""
    if checkpoint is not None:
        return load(checkpoint.path, dtype=torch.float32)
    if recipe.task == PICTURES:
        return open_picture_model(recipe)
    model = open_model(recipe.model, dtype=torch.float32)
    if recipe.task == "text-generation" and not model.network.causal:
        raise BedstoneError(
            f"task: text-generation needs a decoder, and {recipe.model} is a "
            f"{model.config.layout}, which reads in both directions; name a GPT."
        )
    if recipe.tokenizer:
        model.tokenizer = Tokenizer.load(recipe.tokenizer)
    return model


def prepare(model: Model, recipe: FinetuneRecipe, examples: Examples) -> None:
    """Gives the network the head and the dropout that the task asks for; quantises its body."""
    kind, labels, problem = examples.head
    head = HeadConfig(kind, tuple(labels), problem)
    if model.config.head != head:
        model.network.set_head(head, seed=recipe.seed)
    if recipe.dropout is not None:
        set_dropout(model.network, recipe.dropout)
    if recipe.quantize:
        sizes = (model.config.width, model.config.hidden)
        group = next(size for size in (64, 32) if not any(n % size for n in sizes) or size == 32)
        quantize(model.network, bits=recipe.quantize, group=group)
    model.pooling = None  # it makes labels now, not vectors


def set_dropout(network: Any, share: float) -> None:
    """Dropout everywhere at that share, and in the configuration."""
    check_shares({"dropout": share})
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        elif isinstance(module, SelfAttention):
            module.dropout = share
    names = {item.name for item in dataclasses.fields(network.config)}
    shares = {name: share for name in ("dropout", "attention_dropout") if name in names}
    network.config = dataclasses.replace(network.config, **shares)


def lora_config(recipe: FinetuneRecipe) -> LoraConfig:
    """The adapter that a recipe asks for."""
    return from_mapping(LoraConfig, recipe.lora, "recipe", "lora.")


def best_by(recipe: FinetuneRecipe, model: Model) -> str:
    """The figure that picks the best checkpoint; `-` where higher is better."""
    if recipe.best in ("", "last"):
        return MAIN[(model.config.head.kind, model.config.head.problem)]
    name = f"validation_{recipe.best.removeprefix('validation_')}"
    return name if name.endswith(("loss", "rmse", "mae")) else f"-{name}"


def course_of(recipe: FinetuneRecipe, model: Model, rows: TaskRows, precision: Precision) -> Course:
    """What is learnt, and how: ready for `training.train`."""
    network = model.network
    batches = rows.batches(recipe, getattr(network.head, "reads", "all"))
    steps = math.ceil(len(rows.train) / (recipe.batch_size * recipe.accumulate))
    if recipe.budget:
        parse_budget(recipe.budget)

    def evaluate(network: nn.Module) -> dict[str, float]:
        found = score(model, rows.validation, precision, resamples=0)
        figures = found.figures.values if found.figures else {}
        named = {name: value for name, value in figures.items() if "/" not in name}
        return {f"validation_{name}": v for name, v in {"loss": found.loss, **named}.items()}

    def write_model(folder: Path) -> None:
        if recipe.lora:
            write_adapter_files(model, folder)
        else:
            model.write_files(folder)

    def finish(run: Path, done: Done, store: CheckpointStore) -> Path:
        return _finish(recipe, model, run, done, store)

    return Course(
        model=model,
        batches=batches,
        objective=objective_of(model.config.head),
        evaluate=evaluate,
        data={
            "source": recipe.data.train,
            "fingerprint": rows.train.fingerprint(),
            "rows": len(rows.train),
        },
        plan=_plan(recipe, model, rows, precision),
        budget=recipe.budget or f"{max(round(recipe.epochs * steps), 1)} steps",
        write_model=write_model,
        finish=finish,
        best_by=best_by(recipe, model),
        patience=recipe.patience,
        save_best=recipe.best != "last",
        evaluate_every=recipe.evaluate_every or steps,
    )


def _finish(
    recipe: FinetuneRecipe, model: Model, run: Path, done: Done, store: CheckpointStore
) -> Path:
    """The best checkpoint's weights as the run's model; of an adapter, also its own folder."""
    best = None if recipe.best == "last" else store.best()
    if best is not None and best.step != done.step:
        if recipe.lora:
            remove_adapter(model.network, "default")
            load_adapter(model, best.path)
        else:
            weights = load(best.path, dtype=torch.float32).network.state_dict()
            model.network.load_state_dict(weights)
        model.record["metrics"] = done.metrics = best.metrics
    if recipe.lora:
        save_adapter(model, run / "adapter")
        fold(model.network)
    return model.save(run / "model")


def _report(run: Path, model: Model, rows: TaskRows, precision: Precision, quiet: bool) -> None:
    """Figures of the finished model with their intervals: `evaluation.json`, `confusion.png`."""
    found = {"validation": rows.validation, **({"test": rows.test} if rows.test else {})}
    record = {}
    for name, examples in found.items():
        scored = score(model, examples, precision)
        if scored.figures is None:
            continue
        record[name] = {"loss": scored.loss, **scored.figures.record()}
        if scored.figures.confusion is not None:
            figures = scored.figures
            draw_confusion(
                figures.confusion or [],
                figures.labels,
                run / f"confusion-{name}.png",
                f"{run.name}: {name}",
            )
        if not quiet:
            Console().print(Rule(f"{name}: {examples.rows.name}", align="left"), scored.figures)
    if record:
        write_json(run / "evaluation.json", record)


def _plan(recipe: FinetuneRecipe, model: Model, rows: TaskRows, precision: Precision) -> str:
    """What is about to be spent, said before it is."""
    weights = list(model.network.parameters())
    start = "fresh weights" if isinstance(recipe.model, dict) else recipe.model
    whole, moved = (sum(w.numel() for w in ws) for ws in (weights, _moved(weights)))
    return (
        f"{recipe.data.train}: {rows.train.describe()}\n"
        f"validation: {rows.validation.describe()}\n"
        f"{model.config.layout} from {start}: {whole / 1e6:.2f}M parameters, "
        f"{moved / 1e6:.2f}M of them trained, {precision.name} on {precision.device}\n"
        f"{recipe.batch_size * recipe.accumulate} rows a step, "
        f"{recipe.budget or f'{recipe.epochs:g} epochs'}, into {recipe.out}"
    )


def _moved(weights: list[nn.Parameter]) -> list[nn.Parameter]:
    return [weight for weight in weights if weight.requires_grad]
