"""Learning to give pictures back: from latents (KL), or from codes (FSQ)."""

from pathlib import Path

from bedstone.checkpoints.store import Checkpoint, CheckpointStore
from bedstone.commands.autoencoder_model import (
    autoencoder_model,
    objective_of,
    without_judge,
    write_with_judge,
)
from bedstone.commands.autoencoder_scoring import AutoencoderScorer
from bedstone.commands.pair_model import weight_counts
from bedstone.commands.picture_data import (
    MOST_SCENES,
    augment_of,
    held_out,
    learnt_pictures,
    pictures_of,
    record_of,
)
from bedstone.commands.training import Course, Finished, train
from bedstone.data.image_processor import ImageProcessor
from bedstone.data.plain_pictures import (
    PixelBatches,
    PlainReader,
    PlainRows,
    open_plain,
    plain_scenes,
)
from bedstone.data.scenes import NAME as SCENES
from bedstone.files import write_json
from bedstone.recipes_autoencoder import AutoencoderRecipe
from bedstone.runtime import Precision, pick_device, pick_precision, seed_everything
from bedstone.train.loop import Done
from bedstone.train.schedule import build_schedule, parse_budget

HELD = 1000  # scenes with held-out combinations


def run_autoencoder(
    recipe: AutoencoderRecipe, run: Path, checkpoint: Checkpoint | None, quiet: bool
) -> Finished:
    """A new run, or one that goes on from a checkpoint."""
    precision = pick_precision(recipe.precision, pick_device(recipe.device))
    parse_budget(recipe.budget), build_schedule(recipe.schedule)  # before the data is read
    augment_of(recipe, (1, 1))
    course, scorer = autoencoder_course(recipe, run, precision, checkpoint, quiet)
    finished = train(recipe, run, course, precision, checkpoint, quiet=quiet)
    if finished.model is not None:
        write_json(run / "evaluation.json", finished.done.metrics)
        scorer.draw_sheet(run / "pictures.png")
    return finished


def autoencoder_course(
    recipe: AutoencoderRecipe,
    run: Path,
    precision: Precision,
    checkpoint: Checkpoint | None,
    quiet: bool,
) -> tuple[Course, AutoencoderScorer]:
    """What is learnt, and what it is measured by.

    Raises:
        BedstoneError: the recipe, the data or a model it begins with can't do it.
    """
    seed_everything(recipe.seed)
    model = autoencoder_model(recipe, checkpoint)
    objective = objective_of(recipe, precision.device)
    processor = model.processor
    assert processor is not None
    rows, held = _rows(recipe, processor)
    record = record_of(recipe, rows, run)
    seed_everything(recipe.seed)
    model.network.to(precision.device)
    pictures = learnt_pictures(recipe, rows, processor, quiet)
    augment = augment_of(recipe, processor.size)
    batches = PixelBatches(
        pictures,
        recipe.batch_size,
        processor.normalise,
        augment=None if augment is None else augment.allowed(0),
        seed=recipe.seed,
        workers=recipe.data.workers,
    )
    shown = pictures_of(held, processor, recipe.data, "reading held-out pictures", quiet)
    scorer = AutoencoderScorer(model, shown, precision, objective, recipe.batch_size)
    count, _ = weight_counts(model)
    high, wide = processor.size
    shrink = model.config.shrink

    def finish(run: Path, done: Done, store: CheckpointStore) -> Path:
        with without_judge(model.network):
            return model.save(run / "model")

    course = Course(
        model=model,
        batches=batches,
        objective=objective,
        evaluate=scorer.flat,
        data=record,
        plan=(
            f"{recipe.data.source}: {rows.describe()}, "
            f"{'in memory' if pictures.kept else 'decoded as they are read'}\n"
            f"held out: {held.describe()}\n"
            f"{model.config.layout}: {count / 1e6:.2f}M parameters, {high} by {wide} pixels "
            f"to {high // shrink} by {wide // shrink} places, {precision.name} on "
            f"{precision.device}\n{batches.batch_size * recipe.accumulate:,} pictures a step, "
            f"budget {recipe.budget}, into {recipe.out}"
        ),
        budget=recipe.budget,
        write_model=lambda folder: write_with_judge(model, folder),
        finish=finish,
    )
    return course, scorer


def _rows(recipe: AutoencoderRecipe, processor: ImageProcessor) -> tuple[PlainRows, PlainRows]:
    """Pictures to learn from, and pictures held out."""
    data, seed = recipe.data, recipe.seed
    if data.source == SCENES:
        size = max(processor.size)
        count = data.most_rows or MOST_SCENES
        train = plain_scenes(count, seed=seed, size=size, objects=data.things)
        held = plain_scenes(
            recipe.evaluate_pictures or HELD, split="validation", size=size, objects=data.things
        )
        return train, held

    def opened(name: str) -> PlainRows:
        reader = PlainReader(data.columns)
        return open_plain(name, reader, split=data.split, most_broken=data.most_broken)

    train, held = held_out(recipe, opened)
    return train, held.take(recipe.evaluate_pictures, seed)
