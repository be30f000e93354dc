"""`bedstone pretrain`, `finetune` and `resume`: from a recipe to an artefact, and its previews."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from bedstone.checkpoints.store import CheckpointStore
from bedstone.data.fields import Sample
from bedstone.data.images.augment import facts_of
from bedstone.data.images.pixels import decoded
from bedstone.data.images.processor import blip_processor, clip_processor
from bedstone.data.open import open_dataset
from bedstone.data.text.augment import sample
from bedstone.errors import BedstoneError
from bedstone.evaluate.image_text import IMAGE_TEXT_TASKS
from bedstone.recipes import contrastive, image_text
from bedstone.recipes.base import method_of, read, train
from bedstone.recipes.contrastive import ContrastiveRecipe
from bedstone.recipes.image_text import ImageTextRecipe
from bedstone.recipes.supervised import (
    IMAGE_TASKS,
    FinetuneRecipe,
    augment_config,
    augment_parts,
    augmenter,
    open_image_model,
    open_image_rows,
)
from bedstone.report.sheets import augmentation_sheet, contact_sheet
from bedstone.settings import read_recipe, read_values
from bedstone.tasks.images.engine import processor_of
from bedstone.train.data import augment_of, cached_training_images, image_side
from bedstone.train.lr_finder import find_rate
from bedstone.train.run import RunRecipe, RunResult, prepare, run

SAMPLES = 16  # images, each in several forms
FORMS = 4


def read_pretraining(path: str | Path, overrides: Sequence[str] = ()) -> Any:
    """Reads a recipe from a file; its method, task or layout decides its class.

    Raises:
        BedstoneError: as `recipes.base.read`.
    """
    return read(path, overrides)


def read_finetuning(path: str | Path, overrides: Sequence[str] = ()) -> Any:
    """Reads a fine-tuning recipe from a file: of labelled rows, or of an image-text task.

    Raises:
        BedstoneError: as `recipes.base.read`.
    """
    values = read_values(path, overrides)
    if values.get("method") or values.get("task") in IMAGE_TEXT_TASKS:
        return read(path, overrides)
    return read_recipe(FinetuneRecipe, path, overrides)


def pretrain(recipe: RunRecipe, *, quiet: bool = False) -> RunResult:
    """Trains a model by a recipe, into the folder `recipe.out`.

    The folder holds `recipe.yaml`, `data.json`, `tokenizer/`, `log.jsonl`, `tensorboard/`,
    `checkpoints/`, `curve.png` and, at the end, the artefact in `model/`.

    Raises:
        BedstoneError: the recipe, the data or the disk can't do it, said before training
            starts; or a loss that isn't finite.
    """
    return train(recipe, quiet=quiet)


def finetune(recipe: RunRecipe, *, quiet: bool = False) -> RunResult:
    """Fine-tunes a model by a recipe, into the folder `recipe.out`.

    The folder holds the files of every run. `model/` is the best checkpoint. A LoRA run also has
    `adapter/`, in the format of peft; `model/` then has the adapter merged.

    Raises:
        BedstoneError: the recipe, the model or the data can't do it, said before training
            starts; or a loss that isn't finite.
    """
    return train(recipe, quiet=quiet)


def resume(folder: str | Path, *, quiet: bool = False) -> RunResult:
    """Resumes a run from its last complete checkpoint, with the same results as without a stop.

    Raises:
        BedstoneError: there is no run there, or its data has changed since it began.
    """
    folder = Path(folder)
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise BedstoneError(f"{folder}: holds no recipe.yaml, so it is not a run's folder.")
    checkpoint = CheckpointStore(folder / "checkpoints").latest()
    # The folder may have been moved since: `out` is where it is now.
    recipe = dataclasses.replace(read(path, usual="supervised"), out=str(folder))
    return run(method_of(recipe), recipe, folder, checkpoint, quiet=quiet)


def propose_rate(recipe: Any, *, quiet: bool = False) -> float:
    """Runs a learning-rate range test and proposes a rate (`--find-rate`).

    Raises:
        BedstoneError: as `finetune`, or no rate makes the loss fall.
    """
    plan = prepare(method_of(recipe), recipe, None, quiet=quiet)
    folder = Path(recipe.out) / "find-rate"
    found = find_rate(plan, recipe.optim, folder, quiet=quiet)
    if not quiet:
        Console().print(
            f"optim.adamw_lr: {found:.1e} is proposed, {recipe.optim.adamw_lr:.1e} is in the "
            f"recipe. The curve: {folder / 'rates.png'}",
            highlight=False,
        )
    return found


# Previews of augmentation.


def preview_augmented(recipe: Any, count: int) -> None:
    """Prints some rows beside their augmented forms; of labelled images, draws a sheet.

    Raises:
        BedstoneError: the recipe asks for none, or the rows can't be read.
    """
    if not isinstance(recipe, FinetuneRecipe):
        raise BedstoneError("sample: pictures are drawn by bedstone pretrain RECIPE --sample PNG.")
    if not recipe.augment:
        example = "flip: 0.5" if recipe.task == IMAGE_TASKS else "copies: 1"
        raise BedstoneError(f"augment: the recipe asks for none; give it, as {{{example}}}.")
    if recipe.task == IMAGE_TASKS:
        print(f"Augmented pictures: {augmented_sheet(recipe, count)}")
        return
    rows = open_dataset(recipe.data.train, columns=recipe.data.columns, split=recipe.data.split)
    config = augment_config(recipe)
    print(sample(rows.rows, config, count, **augment_parts(config, rows)))


def augmented_sheet(recipe: FinetuneRecipe, count: int) -> Path:
    """A sheet of some labelled training images, each beside its augmented forms.

    Raises:
        BedstoneError: the model or the images can't be read.
    """
    augment = augmenter(recipe)
    assert augment is not None
    processor = processor_of(open_image_model(recipe))
    rows = open_image_rows(recipe, recipe.data.train).take(count, recipe.seed)
    shown = [processor.fit(decoded(pair)).copy() for pair in rows]
    sheet = Path(recipe.out) / "augmented.png"
    return augmentation_sheet(augment, shown, sheet, seed=recipe.seed)


def show_sample(recipe: Any, path: str) -> None:
    """Draws a sheet of a recipe's augmented images, without training.

    Raises:
        BedstoneError: the recipe has no images with texts, or they can't be read.
    """
    if isinstance(recipe, ContrastiveRecipe | ImageTextRecipe):
        print(f"Pictures as they are, then augmented: {augmentation_sample(recipe, path)}")
        return
    if not getattr(recipe, "task", ""):
        raise BedstoneError("sample: the recipe is of text, which has no pictures to draw.")
    raise BedstoneError(f"sample: isn't drawn for {recipe.task}; its run draws pictures.")


def augmentation_sample(
    recipe: ContrastiveRecipe | ImageTextRecipe, path: str, *, quiet: bool = False
) -> Path:
    """Draws the sheet: each image is augmented only as its own text allows.

    Raises:
        BedstoneError: the data can't be read, or the sheet can't be written.
    """
    few = recipe.data.most_rows or 4 * SAMPLES
    recipe.data.most_rows = min(few, 4 * SAMPLES)
    side = image_side(recipe.model)
    if isinstance(recipe, ContrastiveRecipe):
        opened, processor = contrastive.open_rows(recipe, quiet=quiet), clip_processor(side)
    else:
        opened, processor = image_text.open_rows(recipe, quiet=quiet), blip_processor(side)
    rows = opened.train.take(SAMPLES, recipe.seed)
    augment = augment_of(recipe.augment, recipe.data, processor.size)
    images = cached_training_images(rows, processor, recipe.data, quiet)
    numbers, pixels = images.read(images.readable)
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
    """The text trained on with an image: a question with its answer, or a caption."""
    if row.questions:
        answers = isinstance(recipe, ImageTextRecipe) and recipe.head == "answers"
        if answers or not row.captions:
            return f"{row.questions[0].question} {row.questions[0].answers[0]}"
    return row.captions[0]


# The commands.


def pretrain_(recipe: str, overrides: list[str], sample: str | None = None) -> None:
    """Pretrain a model by a recipe: on text, images, images with texts, audio, video or volumes.

    Any field of the recipe can be overridden: `budget=5m optim.lr=1e-3 model.layers=6`.

    Args:
        recipe: a YAML file; the folder recipes/ has examples.
        overrides: fields of the recipe to set, as key=value.
        sample: a PNG file; write a sheet of augmented training images into it, without training.

    Example:
        bedstone pretrain recipes/python-docs.yaml budget=20m
    """
    read = read_pretraining(recipe, overrides)
    if sample is not None:
        show_sample(read, sample)
    else:
        _leave(pretrain(read).done.reason)


def finetune_(recipe: str, overrides: list[str], find_rate: bool = False, sample: int = 0) -> None:
    """Fine-tune a model on labelled rows by a recipe, fully or by a LoRA adapter.

    Any field of the recipe can be overridden: `epochs=2 lora.rank=16 data.train=rows.jsonl`.

    Args:
        recipe: a YAML file; the folder recipes/ has examples.
        overrides: fields of the recipe to set, as key=value.
        find_rate: run a learning-rate range test and propose a rate, without training.
        sample: show this many augmented rows beside the originals, without training.

    Example:
        bedstone finetune recipes/finetune-own.yaml model=runs/bert-python-docs data.train=rows.csv
    """
    read = read_finetuning(recipe, overrides)
    if sample:
        preview_augmented(read, sample)
    elif find_rate:
        propose_rate(read)
    else:
        _leave(finetune(read).done.reason)


def resume_(run: str) -> None:
    """Resume a stopped run from its last checkpoint.

    Args:
        run: the run's folder.

    Example:
        bedstone resume runs/python-docs
    """
    _leave(resume(run).done.reason)


def _leave(reason: str) -> None:
    """The exit code that shells expect of a process that a signal stopped."""
    if reason != "finished":
        sys.exit({"SIGINT": 130, "SIGTERM": 143}.get(reason, 1))
