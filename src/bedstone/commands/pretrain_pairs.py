"""Learning from pairs of pictures and texts: CLIP, SigLIP, CLIP with a CNN."""

from pathlib import Path

from bedstone.checkpoints.store import Checkpoint
from bedstone.commands.pair_data import PairSplits, encoder_of, pair_batches, pair_tokenizer
from bedstone.commands.pair_model import pair_model, weight_counts
from bedstone.commands.pair_scoring import PairScorer
from bedstone.commands.picture_data import augment_of, pictures_of
from bedstone.commands.training import Course, Finished, train
from bedstone.data.pair_batches import PairTexts
from bedstone.errors import BedstoneError
from bedstone.files import write_json
from bedstone.models.clip import CLIPConfig
from bedstone.objectives.contrastive import Contrastive, patches_of, refuse_batch_norm
from bedstone.recipes_pairs import ContrastiveRecipe
from bedstone.runtime import Precision, pick_device, pick_precision, seed_everything
from bedstone.train.schedule import build_schedule, parse_budget


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
