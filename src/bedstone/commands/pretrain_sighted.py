"""Learning to see: a frozen GPT's gated cross-attention over a frozen tower's states."""

from functools import partial
from pathlib import Path

from bedstone.checkpoints.artefact import Model, tokenizer_of
from bedstone.checkpoints.store import Checkpoint
from bedstone.commands.pair_model import weight_counts
from bedstone.commands.picture_data import augment_of
from bedstone.commands.pretrain_told import evaluated, scorers_of, told_plan
from bedstone.commands.sighted_model import sighted_model
from bedstone.commands.sighted_scoring import SightedScorer
from bedstone.commands.told_data import ToldSplits, told_batches
from bedstone.commands.training import Course, Finished, train
from bedstone.data.gpt_told import GPTTexts, gpt_words
from bedstone.files import write_json
from bedstone.objectives.sighted import sighted_loss
from bedstone.recipes_sighted import SightedRecipe
from bedstone.runtime import Precision, pick_device, pick_precision, seed_everything
from bedstone.train.schedule import build_schedule, parse_budget


def run_sighted(
    recipe: SightedRecipe, run: Path, checkpoint: Checkpoint | None, quiet: bool
) -> Finished:
    """A new run, or one that goes on from a checkpoint."""
    precision = pick_precision(recipe.precision, pick_device(recipe.device))
    parse_budget(recipe.budget), build_schedule(recipe.schedule)  # before the data is read
    augment_of(recipe, (1, 1))
    seed_everything(recipe.seed)
    model = sighted_model(recipe, checkpoint)
    course, scorers = sighted_course(recipe, run, model, precision, quiet)
    finished = train(recipe, run, course, precision, checkpoint, quiet=quiet)
    if finished.model is not None:
        write_json(run / "evaluation.json", evaluated(scorers))
    return finished


def sighted_course(
    recipe: SightedRecipe, run: Path, model: Model, precision: Precision, quiet: bool
) -> tuple[Course, dict[str, SightedScorer]]:
    """What is learnt, and what it is measured by: `validation`, and `test` where there is one.

    Raises:
        BedstoneError: the recipe, the data or a model it begins with can't do it.
    """
    splits = ToldSplits.open(recipe, run, quiet=quiet)
    tokenizer, network, processor = tokenizer_of(model), model.network, model.processor
    assert processor is not None
    network.to(precision.device)
    texts = GPTTexts(splits.train, gpt_words(tokenizer, model.config.context))
    batches = told_batches(recipe, splits.train, texts, processor, quiet)
    kind = partial(SightedScorer, kind=recipe.head)
    scorers = scorers_of(kind, recipe, splits, model, precision, quiet)
    count, learning = weight_counts(model)
    course = Course(
        model=model,
        batches=batches,
        objective=sighted_loss,
        evaluate=scorers["validation"].flat,
        data={**splits.record, "tokenizer": tokenizer.fingerprint()},
        plan=told_plan(
            recipe,
            splits,
            batches,
            f"{recipe.init} sees by the tower of {recipe.image_init}: {count / 1e6:.2f}M "
            f"parameters, {learning / 1e6:.2f}M of them ({learning / count:.0%}) trained, "
            f"{precision.name} on {precision.device}",
        ),
        budget=recipe.budget,
    )
    return course, scorers
