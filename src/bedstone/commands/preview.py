"""Previews of a recipe without training: augmented rows and images, a learning-rate range test."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from bedstone.data.fields import Sample
from bedstone.data.images.augment import facts_of
from bedstone.data.images.pixels import decoded
from bedstone.data.images.processor import blip_processor, clip_processor
from bedstone.data.open import open_dataset
from bedstone.data.text.augment import sample
from bedstone.errors import BedstoneError
from bedstone.recipes import contrastive, image_text
from bedstone.recipes.base import method_of
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
    open_start,
    open_texts,
)
from bedstone.report.sheets import augmentation_sheet, contact_sheet
from bedstone.report.trained_tokens import as_text, token_rows, write_token_page
from bedstone.tasks.images.engine import processor_of
from bedstone.train.data import augment_of, cached_training_images, image_side
from bedstone.train.lr_finder import find_rate
from bedstone.train.run import prepare

SAMPLES = 16  # images, each in several forms
FORMS = 4


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


def preview_augmented(recipe: Any, count: int) -> None:
    """Prints some rows beside their augmented forms; of labelled images, draws a sheet.

    Raises:
        BedstoneError: the recipe asks for none, or the rows can't be read.
    """
    if not isinstance(recipe, FinetuneRecipe):
        raise BedstoneError("sample: pictures are drawn by bedstone pretrain RECIPE --sample PNG.")
    if recipe.task == "text-generation" and not recipe.augment:
        show_trained(recipe, count)
        return
    if not recipe.augment:
        example = "flip: 0.5" if recipe.task == IMAGE_TASKS else "copies: 1"
        raise BedstoneError(f"augment: the recipe asks for none; give it, as {{{example}}}.")
    if recipe.task == IMAGE_TASKS:
        print(f"Augmented pictures: {augmented_sheet(recipe, count)}")
        return
    data = recipe.data
    rows = open_dataset(
        data.train, columns=data.columns, split=data.split, most_broken=data.most_broken
    )
    config = augment_config(recipe)
    print(sample(rows.rows, config, count, **augment_parts(config, rows)))


def show_trained(recipe: FinetuneRecipe, count: int) -> None:
    """Prints rows with what is trained of them in colour, and writes the page of them.

    Raises:
        BedstoneError: the model or the rows can't be read.
    """
    model = open_start(recipe, None)
    examples, _, _ = open_texts(recipe, model, False)
    drawn = np.random.default_rng(recipe.seed).permutation(len(examples))[:count]
    rows = token_rows(examples, sorted(drawn.tolist()))
    for row in rows:
        Console().print(as_text(row), highlight=False)
    page = Path(recipe.out) / "trained-tokens.html"
    print(f"{examples.describe()}. In colour: {write_token_page(page, str(recipe.model), rows)}")


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
