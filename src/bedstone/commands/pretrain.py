"""`bedstone pretrain` and `bedstone resume`: from a recipe to an artefact."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedstone.checkpoints.store import Checkpoint
from bedstone.commands.picture_sample import draw_sample
from bedstone.commands.pretrain_autoencoder import run_autoencoder
from bedstone.commands.pretrain_diffusion import run_diffusion
from bedstone.commands.pretrain_model import layout_of
from bedstone.commands.pretrain_pairs import run_pairs
from bedstone.commands.pretrain_sighted import run_sighted
from bedstone.commands.pretrain_text import run_text
from bedstone.commands.pretrain_told import run_told
from bedstone.commands.training import Finished, begin
from bedstone.config import PretrainRecipe
from bedstone.errors import BedstoneError, nearest
from bedstone.mapping import read_recipe, read_values
from bedstone.models.bert import LAYOUTS as ENCODERS
from bedstone.models.dit_config import LAYOUTS as DENOISERS
from bedstone.models.gpt import LAYOUTS as DECODERS
from bedstone.recipes_autoencoder import LAYOUTS as AUTOENCODERS
from bedstone.recipes_autoencoder import TASK as AUTOENCODING
from bedstone.recipes_autoencoder import AutoencoderRecipe
from bedstone.recipes_diffusion import TASKS as DRAWING
from bedstone.recipes_diffusion import DiffusionRecipe
from bedstone.recipes_pairs import LAYOUTS as PAIRED
from bedstone.recipes_pairs import ContrastiveRecipe
from bedstone.recipes_sighted import LAYOUT as SIGHTED
from bedstone.recipes_sighted import SightedRecipe
from bedstone.recipes_told import LAYOUTS as TELLING
from bedstone.recipes_told import TASKS as TOLD
from bedstone.recipes_told import ToldRecipe

Recipe = PretrainRecipe | ContrastiveRecipe | ToldRecipe | AutoencoderRecipe | DiffusionRecipe
Run = Callable[[Any, Path, Checkpoint | None, bool], Finished]


@dataclass(frozen=True)
class Kind:
    """A kind of training.

    Attributes:
        recipe: of it.
        run: (recipe, folder, checkpoint, quiet): a new run, or one that goes on.
        layouts: of the networks it trains.
        tasks: that its recipes name; none where the layout says all.
    """

    recipe: type[Any]
    run: Run
    layouts: tuple[str, ...]
    tasks: tuple[str, ...] = ()


KINDS = (
    Kind(PretrainRecipe, run_text, (*DECODERS, *ENCODERS)),
    Kind(ContrastiveRecipe, run_pairs, PAIRED),
    Kind(ToldRecipe, run_told, TELLING, tuple(TOLD)),
    Kind(SightedRecipe, run_sighted, (SIGHTED,), tuple(TOLD)),
    Kind(AutoencoderRecipe, run_autoencoder, AUTOENCODERS, (AUTOENCODING,)),
    Kind(DiffusionRecipe, run_diffusion, DENOISERS, tuple(DRAWING)),
)
TASKS = tuple(dict.fromkeys(task for kind in KINDS for task in kind.tasks))


def read_pretraining(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file: its task, or the layout of its model, says of what kind it is.

    Raises:
        BedstoneError: as `mapping.read_recipe`, or the task or the model's layout is unknown.
    """
    values = read_values(path, overrides)
    shape, init, task = (values.get(name) for name in ("model", "init", "task"))
    layout = shape.get("layout") if isinstance(shape, dict) else None
    if task is not None and task not in TASKS:
        raise BedstoneError(f"{path}: task: {task!r} is unknown{nearest(str(task), TASKS)}.")
    if task is None and layout is None and isinstance(init, str) and init:
        layout = layout_of(PretrainRecipe(init=init), None)
    able = [kind for kind in KINDS if task is None or task in kind.tasks]
    fit = [kind for kind in able if layout in kind.layouts]
    if task is None and layout is not None and not fit:
        known = [name for kind in KINDS for name in kind.layouts]
        raise BedstoneError(
            f"{path}: model.layout: {layout!r} is unknown{nearest(str(layout), known)}."
        )
    return read_recipe((fit or able)[0].recipe, path, overrides)


def pretrain(recipe: Recipe, *, quiet: bool = False) -> Finished:
    """Trains as the recipe says, into the folder `recipe.out`.

    The folder holds `recipe.yaml`, `data.json`, `tokenizer/`, `log.jsonl`, `tensorboard/`,
    `checkpoints/`, `curve.png` and, at the end, the artefact in `model/`.

    Raises:
        BedstoneError: the recipe, the data or the disk can't do it, said before training
            starts; or a loss that isn't finite.
    """
    run = Path(recipe.out)
    begin(run)
    return run_pretraining(recipe, run, None, quiet)


def show_sample(recipe: Recipe, path: str) -> None:
    """Draws what a network would see of a recipe's pictures, and trains nothing.

    Raises:
        BedstoneError: the recipe has no pictures, or they can't be read.
    """
    if isinstance(recipe, PretrainRecipe):
        raise BedstoneError("sample: the recipe is of text, which has no pictures to draw.")
    if isinstance(recipe, AutoencoderRecipe | DiffusionRecipe):
        raise BedstoneError(f"sample: isn't drawn for {recipe.task}; its run draws pictures.")
    print(f"Pictures as they are, then augmented: {draw_sample(recipe, path)}")


def run_pretraining(
    recipe: Recipe, run: Path, checkpoint: Checkpoint | None, quiet: bool
) -> Finished:
    """A new run, or one that goes on from a checkpoint."""
    # a recipe's class may stand under another's
    kind = next(kind for kind in KINDS if kind.recipe is type(recipe))
    return kind.run(recipe, run, checkpoint, quiet)
