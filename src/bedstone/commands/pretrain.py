"""`bedstone pretrain` and `bedstone resume`: from a recipe to an artefact."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from bedstone.checkpoints.store import Checkpoint
from bedstone.commands.picture_sample import draw_sample
from bedstone.commands.pretrain_autoencoder import pretrain_autoencoder, run_autoencoder
from bedstone.commands.pretrain_masked import masked_course
from bedstone.commands.pretrain_model import Fresh, layout_of, plan, pretrain_model
from bedstone.commands.pretrain_pairs import pretrain_pairs, run_pairs
from bedstone.commands.pretrain_sighted import pretrain_sighted, run_sighted
from bedstone.commands.pretrain_told import pretrain_told, run_told
from bedstone.commands.text_data import TextData
from bedstone.commands.training import Course, Finished, begin, train
from bedstone.config import PretrainRecipe
from bedstone.data.batches import evaluation_batches
from bedstone.errors import BedstoneError, nearest
from bedstone.inspect.evaluate import text_figures, text_loss
from bedstone.mapping import read_recipe, read_values
from bedstone.models.bert import LAYOUTS as ENCODERS
from bedstone.models.gpt import LAYOUTS as DECODERS
from bedstone.models.gpt import build
from bedstone.models.gpt_config import GPTConfig
from bedstone.objectives.tokens import next_token_loss
from bedstone.recipes_autoencoder import LAYOUTS as AUTOENCODERS
from bedstone.recipes_autoencoder import TASK as AUTOENCODING
from bedstone.recipes_autoencoder import AutoencoderRecipe
from bedstone.recipes_pairs import LAYOUTS as PAIRED
from bedstone.recipes_pairs import ContrastiveRecipe
from bedstone.recipes_sighted import LAYOUT as SIGHTED
from bedstone.recipes_sighted import SightedRecipe
from bedstone.recipes_told import LAYOUTS as TELLING
from bedstone.recipes_told import TASKS, ToldRecipe
from bedstone.runtime import Precision, pick_device, pick_precision, seed_everything
from bedstone.train.schedule import build_schedule, parse_budget

Recipe = PretrainRecipe | ContrastiveRecipe | ToldRecipe | AutoencoderRecipe


def read_pretraining(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file: its task, or the layout of its model, says of what kind it is.

    Raises:
        BedstoneError: as `mapping.read_recipe`, or the model's layout is unknown.
    """
    values = read_values(path, overrides)
    shape, init = values.get("model"), values.get("init")
    layout = shape.get("layout") if isinstance(shape, dict) else None
    if layout == SIGHTED:
        return read_recipe(SightedRecipe, path, overrides)
    if values.get("task") == AUTOENCODING or layout in AUTOENCODERS:
        return read_recipe(AutoencoderRecipe, path, overrides)
    if values.get("task") in TASKS:
        return read_recipe(ToldRecipe, path, overrides)
    if layout is None and isinstance(init, str) and init:
        layout = layout_of(PretrainRecipe(init=init), None)
    known = (*DECODERS, *ENCODERS, *PAIRED, *TELLING, *AUTOENCODERS, SIGHTED)
    if layout is not None and layout not in known:
        raise BedstoneError(
            f"{path}: model.layout: {layout!r} is unknown{nearest(str(layout), known)}."
        )
    if layout in PAIRED:
        return read_recipe(ContrastiveRecipe, path, overrides)
    if layout in TELLING:
        return read_recipe(ToldRecipe, path, overrides)
    return read_recipe(PretrainRecipe, path, overrides)


def pretrain(recipe: Recipe, *, quiet: bool = False) -> Finished:
    """Trains as the recipe says, into the folder `recipe.out`.

    The folder holds `recipe.yaml`, `data.json`, `tokenizer/`, `log.jsonl`, `tensorboard/`,
    `checkpoints/`, `curve.png` and, at the end, the artefact in `model/`.

    Raises:
        BedstoneError: the recipe, the data or the disk can't do it, said before training
            starts; or a loss that isn't finite.
    """
    run = Path(recipe.out)
    if isinstance(recipe, ContrastiveRecipe):
        return pretrain_pairs(recipe, quiet=quiet)
    if isinstance(recipe, SightedRecipe):
        return pretrain_sighted(recipe, quiet=quiet)
    if isinstance(recipe, ToldRecipe):
        return pretrain_told(recipe, quiet=quiet)
    if isinstance(recipe, AutoencoderRecipe):
        return pretrain_autoencoder(recipe, quiet=quiet)
    begin(run)
    return run_pretraining(recipe, run, None, quiet)


def show_sample(recipe: Recipe, path: str) -> None:
    """Draws what a network would see of a recipe's pictures, and trains nothing.

    Raises:
        BedstoneError: the recipe has no pictures, or they can't be read.
    """
    if isinstance(recipe, PretrainRecipe):
        raise BedstoneError("sample: the recipe is of text, which has no pictures to draw.")
    if isinstance(recipe, AutoencoderRecipe):
        raise BedstoneError("sample: isn't drawn for autoencoding; its run draws pictures.png.")
    print(f"Pictures as they are, then augmented: {draw_sample(recipe, path)}")


def run_pretraining(
    recipe: Recipe, run: Path, checkpoint: Checkpoint | None, quiet: bool
) -> Finished:
    """A new run, or one that goes on from a checkpoint."""
    if isinstance(recipe, ContrastiveRecipe):
        return run_pairs(recipe, run, checkpoint, quiet)
    if isinstance(recipe, SightedRecipe):
        return run_sighted(recipe, run, checkpoint, quiet)
    if isinstance(recipe, ToldRecipe):
        return run_told(recipe, run, checkpoint, quiet)
    if isinstance(recipe, AutoencoderRecipe):
        return run_autoencoder(recipe, run, checkpoint, quiet)
    precision = pick_precision(recipe.precision, pick_device(recipe.device))
    parse_budget(recipe.budget), build_schedule(recipe.schedule)  # before the data is read
    make = masked_course if layout_of(recipe, checkpoint) in ENCODERS else _course
    course = make(recipe, run, precision, checkpoint, quiet)
    return train(recipe, run, course, precision, checkpoint, quiet=quiet)


def _course(
    recipe: PretrainRecipe,
    run: Path,
    precision: Precision,
    checkpoint: Checkpoint | None,
    quiet: bool,
) -> Course:
    """Predicting the next token of text."""
    text = TextData.open(recipe, run, quiet=quiet)
    seed_everything(recipe.seed)
    model = pretrain_model(recipe, text.tokenizer, checkpoint, Fresh(GPTConfig, build))
    model.network.to(precision.device)
    return Course(
        model=model,
        batches=text.batches,
        objective=next_token_loss,
        evaluate=_evaluation(recipe, text, precision),
        data=text.record,
        plan=plan(recipe, model, text.record, precision),
        budget=recipe.budget,
    )


def _evaluation(
    recipe: PretrainRecipe, text: TextData, precision: Precision
) -> Callable[[nn.Module], dict[str, float]] | None:
    """The callable that measures the network on held-out text; None where there is none."""
    if (split := text.validation) is None or len(split) < 2:
        return None
    most = -(-recipe.evaluate_tokens // (recipe.batch_size * recipe.context)) or None
    tokens_a_byte = len(split) / max(split.bytes, 1)

    def evaluate(network: nn.Module) -> dict[str, float]:
        batches = evaluation_batches(split, recipe.context, recipe.batch_size)
        loss, _ = text_loss(network, next_token_loss, batches, precision, most_batches=most)
        figures = text_figures(loss, tokens_a_byte)
        return {f"validation_{name}": value for name, value in figures.items()}

    return evaluate
