"""Learning from pairs of pictures and texts: CLIP, SigLIP, CLIP with a CNN."""

from pathlib import Path

import numpy as np
import torch

from bedstone.checkpoints.store import Checkpoint
from bedstone.commands.pair_data import (
    PairSplits,
    augment_of,
    encoder_of,
    image_side,
    larger,
    pair_batches,
    pair_tokenizer,
    pictures_of,
)
from bedstone.commands.pair_model import pair_model, weight_counts
from bedstone.commands.pair_scoring import PairScorer
from bedstone.commands.training import Course, Finished, begin, train
from bedstone.data.fact_augment import facts_of
from bedstone.data.image_processor import clip_processor
from bedstone.data.pair_batches import PairTexts
from bedstone.data.pictures import decoded
from bedstone.errors import BedstoneError
from bedstone.files import write_json
from bedstone.inspect.contact_sheet import contact_sheet
from bedstone.models.clip import CLIPConfig
from bedstone.objectives.contrastive import Contrastive, patches_of, refuse_batch_norm
from bedstone.recipes_pairs import ContrastiveRecipe
from bedstone.runtime import Precision, pick_device, pick_precision, seed_everything
from bedstone.train.schedule import build_schedule, parse_budget

SAMPLES = 16  # pictures of a sheet, each in several forms
FORMS = 4


def pretrain_pairs(recipe: ContrastiveRecipe, *, quiet: bool = False) -> Finished:
    """Trains as the recipe says, into the folder `recipe.out`, which holds what every run's does.

    Raises:
        BedstoneError: the recipe, the data or the disk can't do it, said before training
            starts; or a loss that isn't finite.
    """
    run = Path(recipe.out)
    begin(run)
    return run_pairs(recipe, run, None, quiet)


def run_pairs(
    recipe: ContrastiveRecipe, run: Path, checkpoint: Checkpoint | None, quiet: bool
) -> Finished:
    """A new run, or one that goes on from a checkpoint."""
    precision = pick_precision(recipe.precision, pick_device(recipe.device))
    parse_budget(recipe.budget), build_schedule(recipe.schedule)  # before the data is read
    augment_of(recipe, (1, 1))
    course, scorer = pair_course(recipe, run, precision, checkpoint, quiet)
    finished = train(recipe, run, course, precision, checkpoint, quiet=quiet)
    if finished.model is not None:
        record = {name: found.record() for name, found in scorer.figures().items()}
        for found in record.values():
            found.pop("confusion", None)
        write_json(run / "evaluation.json", record)
    return finished


def pair_course(
    recipe: ContrastiveRecipe,
    run: Path,
    precision: Precision,
    checkpoint: Checkpoint | None,
    quiet: bool,
) -> tuple[Course, PairScorer]:
    """What is learnt, and what it is measured by.

    Raises:
        BedstoneError: the recipe, the data or a model it begins with can't do it.
    """
    splits = PairSplits.open(recipe, run, quiet=quiet)
    tokenizer = pair_tokenizer(recipe, splits.train, run)
    seed_everything(recipe.seed)
    model = pair_model(recipe, tokenizer, checkpoint)
    objective = objective_of(recipe, model.config)
    if recipe.patch_dropout:
        patches_of(model.network)
    if recipe.chunk and recipe.chunk < recipe.batch_size and recipe.freeze != "image":
        refuse_batch_norm(model.network.image.train())
    model.network.to(precision.device)
    encode = encoder_of(tokenizer, model.config)
    processor = model.processor
    assert processor is not None
    batches = pair_batches(recipe, splits.train, processor, encode, quiet)
    held = pictures_of(splits.held, processor, recipe.data, "reading held-out pictures", quiet)
    scorer = PairScorer(
        model,
        held,
        PairTexts(splits.held, encode),
        precision,
        objective.kind,
        min(recipe.batch_size, len(held.readable)),
    )
    count, learning = weight_counts(model)
    kept = "in memory" if batches.pictures.kept else "decoded as they are read"
    record = {**splits.record, "tokenizer": tokenizer.fingerprint()}
    course = Course(
        model=model,
        batches=batches,
        objective=objective,
        evaluate=scorer.flat,
        data=record,
        plan=(
            f"{recipe.data.source}: {splits.train.describe()}, {kept}\n"
            f"held out: {splits.held.describe()}\n"
            f"{model.config.layout}: {count / 1e6:.2f}M parameters, {learning / 1e6:.2f}M of them "
            f"trained, vocabulary {tokenizer.vocab_size:,}, {precision.name} on "
            f"{precision.device}\n{batches.batch_size * recipe.accumulate:,} pairs a step, budget "
            f"{recipe.budget}, into {recipe.out}"
        ),
        budget=recipe.budget,
    )
    return course, scorer


def objective_of(recipe: ContrastiveRecipe, config: CLIPConfig) -> Contrastive:
    """How a recipe learns: SigLIP by a sigmoid, others by a softmax, where it doesn't say."""
    kind = recipe.objective or ("sigmoid" if config.layout == "siglip" else "softmax")
    if kind == "sigmoid" and config.layout != "siglip":
        raise BedstoneError(
            f"objective: the {config.layout} layout has no bias, which sigmoid needs; take "
            "model.layout: siglip, or softmax."
        )
    return Contrastive(kind, recipe.chunk, recipe.patch_dropout)


def draw_sample(recipe: ContrastiveRecipe, path: str, *, quiet: bool = False) -> Path:
    """Draws a sheet of pictures: as they are, and as the network would see them, augmented.

    Raises:
        BedstoneError: the data can't be read, or the sheet can't be written.
    """
    few = recipe.data.most_rows or 4 * SAMPLES
    recipe.data.most_rows = min(few, 4 * SAMPLES)
    splits = PairSplits.open(recipe, None, quiet=quiet)
    rows = splits.train.take(SAMPLES, recipe.seed)
    processor = clip_processor(image_side(recipe))
    augment = augment_of(recipe, processor.size)
    pictures = pictures_of(
        rows, larger(processor, recipe.data.enlarge), recipe.data, "reading pictures", quiet
    )
    _, pixels = pictures.read(pictures.readable)
    forms = [torch.from_numpy(pixels)] * FORMS
    if augment is not None:
        draws = [torch.Generator().manual_seed(recipe.seed + n) for n in range(FORMS)]
        facts = [facts_of(rows[number].captions[0]) for number in pictures.readable.tolist()]
        forms = [augment(form, draw, facts) for form, draw in zip(forms, draws, strict=True)]
    shown: list[np.ndarray] = []
    titles: list[str] = []
    for place, number in enumerate(pictures.readable.tolist()):
        shown += [decoded(rows[number]), *(form[place].numpy() for form in forms)]
        titles += [rows[number].captions[0], *[""] * FORMS]
    return contact_sheet(shown, path, titles=titles, columns=1 + FORMS)
