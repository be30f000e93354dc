"""Learning to put pictures into words: captions, answers, matching, or all of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from bedstone.checkpoints.adapters import save_adapter, write_adapter_files
from bedstone.checkpoints.artefact import Model
from bedstone.checkpoints.store import Checkpoint, CheckpointStore
from bedstone.commands.pair_model import weight_counts
from bedstone.commands.picture_data import augment_of, pictures_of
from bedstone.commands.told_data import (
    ToldSplits,
    blind_of,
    candidates_of,
    told_batches,
    told_tokenizer,
    usual_of,
)
from bedstone.commands.told_model import told_model
from bedstone.commands.told_scoring import ToldScorer
from bedstone.commands.training import Course, Finished, train
from bedstone.data.told_batches import ToldBatches, ToldTexts
from bedstone.data.told_text import Words
from bedstone.files import write_json
from bedstone.nn.lora import fold
from bedstone.objectives.told import Telling
from bedstone.recipes_told import ToldRecipe
from bedstone.runtime import Precision, pick_device, pick_precision, seed_everything
from bedstone.train.loop import Done
from bedstone.train.schedule import build_schedule, parse_budget

Scorer = TypeVar("Scorer", bound=ToldScorer)


def run_told(recipe: ToldRecipe, run: Path, checkpoint: Checkpoint | None, quiet: bool) -> Finished:
    """A new run, or one that goes on from a checkpoint."""
    precision = pick_precision(recipe.precision, pick_device(recipe.device))
    parse_budget(recipe.budget), build_schedule(recipe.schedule)  # before the data is read
    augment_of(recipe, (1, 1))
    course, scorers = told_course(recipe, run, precision, checkpoint, quiet)
    finished = train(recipe, run, course, precision, checkpoint, quiet=quiet)
    if finished.model is not None:
        write_json(run / "evaluation.json", evaluated(scorers))
    return finished


def told_course(
    recipe: ToldRecipe, run: Path, precision: Precision, checkpoint: Checkpoint | None, quiet: bool
) -> tuple[Course, dict[str, ToldScorer]]:
    """What is learnt, and what it is measured by: `validation`, and `test` where there is one.

    Raises:
        BedstoneError: the recipe, the data or a model it begins with can't do it.
    """
    splits = ToldSplits.open(recipe, run, quiet=quiet)
    tokenizer = told_tokenizer(recipe, splits.train, run)
    seed_everything(recipe.seed)
    model = told_model(recipe, tokenizer, checkpoint)
    model.network.to(precision.device)
    processor = model.processor
    assert processor is not None
    texts = ToldTexts(splits.train, Words.of(tokenizer, model.config.context))
    batches = told_batches(recipe, splits.train, texts, processor, quiet)
    scorers = scorers_of(ToldScorer, recipe, splits, model, precision, quiet)
    count, learning = weight_counts(model)

    def write_model(folder: Path) -> None:
        write_adapter_files(model, folder) if recipe.lora else model.write_files(folder)

    def finish(run: Path, done: Done, store: CheckpointStore) -> Path:
        if recipe.lora:
            save_adapter(model, run / "adapter")
            fold(model.network)
        return model.save(run / "model")

    course = Course(
        model=model,
        batches=batches,
        objective=objective_of(recipe),
        evaluate=scorers["validation"].flat,
        data={**splits.record, "tokenizer": tokenizer.fingerprint()},
        plan=told_plan(
            recipe,
            splits,
            batches,
            f"{model.config.layout} for {recipe.task}: {count / 1e6:.2f}M parameters, "
            f"{learning / 1e6:.2f}M of them trained, vocabulary {tokenizer.vocab_size:,}, "
            f"{precision.name} on {precision.device}",
        ),
        budget=recipe.budget,
        write_model=write_model,
        finish=finish,
    )
    return course, scorers


def scorers_of(
    kind: Callable[..., Scorer],
    recipe: ToldRecipe,
    splits: ToldSplits,
    model: Model,
    precision: Precision,
    quiet: bool,
) -> dict[str, Scorer]:
    """What measures a model, by the rows' name."""
    processor, blind = model.processor, blind_of(splits.train)
    assert processor is not None
    candidates = candidates_of(splits.train) if recipe.rank else ()
    usual = usual_of(splits.train)
    return {
        name: kind(
            model,
            pictures_of(rows, processor, recipe.data, f"reading {name} pictures", quiet),
            precision,
            blind,
            candidates,
            recipe.data.blank,
            usual,
        )
        for name, rows in splits.measured.items()
    }


def told_plan(recipe: ToldRecipe, splits: ToldSplits, batches: ToldBatches, network: str) -> str:
    """What a run is about to do; `network` is a line about it."""
    kept = "in memory" if batches.pictures.kept else "decoded as they are read"
    cut = batches.texts.cut
    return (
        f"{recipe.data.source}: {splits.train.describe()}, {kept}\n"
        + (f"{cut:,} texts are longer than the network reads, and are cut\n" if cut else "")
        + f"held out: {splits.measured['validation'].describe()}\n{network}\n"
        f"{batches.batch_size * recipe.accumulate:,} pictures a step, {recipe.texts} texts each, "
        f"budget {recipe.budget}, into {recipe.out}"
    )


def objective_of(recipe: ToldRecipe) -> Telling:
    """What a recipe learns by: one objective, matching with contrast, or all by their weights."""
    weights, kind = recipe.weights, recipe.head
    joint, matching = kind == "joint", kind in ("matching", "joint")
    return Telling(
        caption=weights.caption if joint else float(kind == "captions"),
        answer=weights.answer if joint else float(kind == "answers"),
        contrast=weights.contrast if matching else 0.0,
        match=weights.match if matching else 0.0,
        smoothing=recipe.smoothing,
    )


def evaluated(scorers: Mapping[str, ToldScorer]) -> dict[str, Any]:
    """All figures with their intervals, by the rows' name and by kind."""
    return {
        name: {kind: found.record() for kind, found in scorer.figures().items()}
        for name, scorer in scorers.items()
    }
