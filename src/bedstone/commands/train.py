"""`bedstone pretrain` and `bedstone resume`: from a recipe to an artefact."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from bedstone.checkpoints.store import Checkpoint, CheckpointStore
from bedstone.data.fields import Sample
from bedstone.data.images.augment import facts_of
from bedstone.data.images.pixels import decoded
from bedstone.data.images.processor import blip_processor, clip_processor
from bedstone.data.signals.signals import TASKS as DRAWING
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.image_text import IMAGE_TEXT_TASKS as TOLD
from bedstone.models.bert.network import LAYOUTS as ENCODERS
from bedstone.models.dit.network import LAYOUTS as DENOISERS
from bedstone.models.flamingo.network import FLAMINGO, OLD_NAMES
from bedstone.models.gpt.network import LAYOUTS as DECODERS
from bedstone.recipes.autoencoder import LAYOUTS as AUTOENCODERS
from bedstone.recipes.autoencoder import TASK as AUTOENCODING
from bedstone.recipes.autoencoder import AutoencoderRecipe, run_autoencoder
from bedstone.recipes.base import PretrainRecipe, layout_of
from bedstone.recipes.causal_lm import run_text
from bedstone.recipes.contrastive import LAYOUTS as PAIRED
from bedstone.recipes.contrastive import ContrastiveRecipe, ContrastiveSplits, run_contrastive
from bedstone.recipes.diffusion import DiffusionRecipe, run_diffusion
from bedstone.recipes.image_text import LAYOUTS as TELLING
from bedstone.recipes.image_text import (
    FlamingoRecipe,
    ImageTextRecipe,
    ImageTextSplits,
    run_flamingo,
    run_image_text,
)
from bedstone.recipes.supervised import (
    FinetuneRecipe,
    finetune,
    preview_augmented,
    propose_rate,
    read_finetuning,
    run_finetuning,
)
from bedstone.report.sheets import contact_sheet
from bedstone.settings import read_recipe, read_values
from bedstone.train.data import augment_of, image_side, learnt_pictures
from bedstone.train.run import RunResult, begin

SAMPLES = 16  # pictures, each in several forms
FORMS = 4


def augmentation_sample(
    recipe: ContrastiveRecipe | ImageTextRecipe, path: str, *, quiet: bool = False
) -> Path:
    """Draws the sheet: each picture is changed only as its own text allows.

    Raises:
        BedstoneError: the data can't be read, or the sheet can't be written.
    """
    few = recipe.data.most_rows or 4 * SAMPLES
    recipe.data.most_rows = min(few, 4 * SAMPLES)
    if isinstance(recipe, ContrastiveRecipe):
        rows = ContrastiveSplits.open(recipe, None, quiet=quiet).train
        processor = clip_processor(image_side(recipe))
    else:
        rows = ImageTextSplits.open(recipe, None, quiet=quiet).train
        processor = blip_processor(image_side(recipe))
    rows = rows.take(SAMPLES, recipe.seed)
    augment = augment_of(recipe, processor.size)
    pictures = learnt_pictures(recipe, rows, processor, quiet)
    numbers, pixels = pictures.read(pictures.readable)
    texts = [_text(rows[number], recipe) for number in numbers.tolist()]
    forms = [torch.from_numpy(pixels)] * FORMS
    if augment is not None:
        made = [rows[number].made for number in numbers.tolist()]
        facts = [0 if one else facts_of(text) for one, text in zip(made, texts, strict=True)]
        draws = [torch.Generator().manual_seed(recipe.seed + n) for n in range(FORMS)]
        forms = [augment(form, draw, facts) for form, draw in zip(forms, draws, strict=True)]
    shown: list[np.ndarray] = []
    titles: list[str] = []
    for place, number in enumerate(numbers.tolist()):
        shown += [decoded(rows[number]), *(form[place].numpy() for form in forms)]
        titles += [texts[place], *[""] * FORMS]
    return contact_sheet(shown, path, titles=titles, columns=1 + FORMS)


def _text(row: Sample, recipe: ContrastiveRecipe | ImageTextRecipe) -> str:
    """What is learnt with a picture: a question with its answer, or a caption."""
    if row.questions:
        answers = isinstance(recipe, ImageTextRecipe) and recipe.head == "answers"
        if answers or not row.captions:
            return f"{row.questions[0].question} {row.questions[0].answers[0]}"
    return row.captions[0]


Recipe = PretrainRecipe | ContrastiveRecipe | ImageTextRecipe | AutoencoderRecipe | DiffusionRecipe
Run = Callable[[Any, Path, Checkpoint | None, bool], RunResult]


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
    Kind(ContrastiveRecipe, run_contrastive, PAIRED),
    Kind(ImageTextRecipe, run_image_text, TELLING, tuple(TOLD)),
    Kind(FlamingoRecipe, run_flamingo, (FLAMINGO, *OLD_NAMES), tuple(TOLD)),
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


def pretrain(recipe: Recipe, *, quiet: bool = False) -> RunResult:
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
    print(f"Pictures as they are, then augmented: {augmentation_sample(recipe, path)}")


def run_pretraining(
    recipe: Recipe, run: Path, checkpoint: Checkpoint | None, quiet: bool
) -> RunResult:
    """A new run, or one that goes on from a checkpoint."""
    # a recipe's class may stand under another's
    kind = next(kind for kind in KINDS if kind.recipe is type(recipe))
    return kind.run(recipe, run, checkpoint, quiet)


# `bedstone resume`: a run goes on, whatever recipe it began with.


def resume(run: str | Path, *, quiet: bool = False) -> RunResult:
    """Goes on with a run from its last whole checkpoint, exactly as if it had never stopped.

    Raises:
        BedstoneError: there is no run there, or its data has changed since it began.
    """
    run = Path(run)
    path = run / "recipe.yaml"
    if not path.is_file():
        raise BedstoneError(f"{run}: holds no recipe.yaml, so it is not a run's folder.")
    checkpoint = CheckpointStore(run / "checkpoints").latest()
    # The folder may have been moved since: `out` is where it is now.
    task = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("task")
    if task is not None and task not in TASKS:
        tuned = dataclasses.replace(read_recipe(FinetuneRecipe, path), out=str(run))
        return run_finetuning(tuned, run, checkpoint, quiet)
    recipe = dataclasses.replace(read_pretraining(path), out=str(run))
    return run_pretraining(recipe, run, checkpoint, quiet)


# The commands.


def pretrain_(recipe: str, overrides: list[str], sample: str | None = None) -> None:
    """Train a model from scratch, as a recipe says: on text, or on pictures with their texts.

    Any field of the recipe can be set after it: `budget=5m optim.lr=1e-3 model.layers=6`.

    Args:
        recipe: a YAML file; recipes/ has one for each use.
        overrides: fields of the recipe to set, as key=value.
        sample: only draw pictures as the network would see them, augmented, into this PNG.
    """
    read = read_pretraining(recipe, overrides)
    if sample is not None:
        show_sample(read, sample)
    else:
        _leave(pretrain(read).done.reason)


def finetune_(recipe: str, overrides: list[str], find_rate: bool = False, sample: int = 0) -> None:
    """Fine-tune a model on labelled rows, whole or by an adapter (LoRA), as a recipe says.

    Any field of the recipe can be set after it: `epochs=2 lora.rank=16 data.train=rows.jsonl`.

    Args:
        recipe: a YAML file; recipes/ has one for each use.
        overrides: fields of the recipe to set, as key=value.
        find_rate: only try rates out, and propose one with its curve.
        sample: only show so many augmented rows beside what they were made from.
    """
    read = read_finetuning(recipe, overrides)
    if sample:
        preview_augmented(read, sample)
    elif find_rate:
        propose_rate(read)
    else:
        _leave(finetune(read).done.reason)


def resume_(run: str) -> None:
    """Go on with a stopped run, exactly where its last checkpoint stands.

    Args:
        run: the run's folder.
    """
    _leave(resume(run).done.reason)


def _leave(reason: str) -> None:
    """The exit code that shells expect of a process that a signal stopped."""
    if reason != "finished":
        sys.exit({"SIGINT": 130, "SIGTERM": 143}.get(reason, 1))
