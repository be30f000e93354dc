"""A sheet of pictures as they are and as a network would see them, with what is said of them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from bedstone.commands.pair_data import PairSplits
from bedstone.commands.picture_data import augment_of, image_side, learnt_pictures
from bedstone.commands.told_data import ToldSplits
from bedstone.data.fact_augment import facts_of
from bedstone.data.image_processor import blip_processor, clip_processor
from bedstone.data.pairs import Pair
from bedstone.data.pictured import PicturedRows
from bedstone.data.pictures import decoded
from bedstone.data.told import Told
from bedstone.inspect.contact_sheet import contact_sheet
from bedstone.recipes_pairs import ContrastiveRecipe
from bedstone.recipes_told import ToldRecipe

SAMPLES = 16  # pictures, each in several forms
FORMS = 4


def draw_sample(recipe: ContrastiveRecipe | ToldRecipe, path: str, *, quiet: bool = False) -> Path:
    """Draws the sheet: each picture is changed only as its own text allows.

    Raises:
        BedstoneError: the data can't be read, or the sheet can't be written.
    """
    few = recipe.data.most_rows or 4 * SAMPLES
    recipe.data.most_rows = min(few, 4 * SAMPLES)
    rows: PicturedRows[Any]
    if isinstance(recipe, ContrastiveRecipe):
        rows = PairSplits.open(recipe, None, quiet=quiet).train
        processor = clip_processor(image_side(recipe))
    else:
        rows = ToldSplits.open(recipe, None, quiet=quiet).train
        processor = blip_processor(image_side(recipe))
    rows = rows.take(SAMPLES, recipe.seed)
    augment = augment_of(recipe, processor.size)
    pictures = learnt_pictures(recipe, rows, processor, quiet)
    numbers, pixels = pictures.read(pictures.readable)
    texts = [_text(rows[number], recipe) for number in numbers.tolist()]
    forms = [torch.from_numpy(pixels)] * FORMS
    if augment is not None:
        made = [getattr(rows[number], "made", False) for number in numbers.tolist()]
        facts = [0 if one else facts_of(text) for one, text in zip(made, texts, strict=True)]
        draws = [torch.Generator().manual_seed(recipe.seed + n) for n in range(FORMS)]
        forms = [augment(form, draw, facts) for form, draw in zip(forms, draws, strict=True)]
    shown: list[np.ndarray] = []
    titles: list[str] = []
    for place, number in enumerate(numbers.tolist()):
        shown += [decoded(rows[number]), *(form[place].numpy() for form in forms)]
        titles += [texts[place], *[""] * FORMS]
    return contact_sheet(shown, path, titles=titles, columns=1 + FORMS)


def _text(row: Pair | Told, recipe: ContrastiveRecipe | ToldRecipe) -> str:
    """What is learnt with a picture: a question with its answer, or a caption."""
    if isinstance(row, Told) and row.asked:
        answers = isinstance(recipe, ToldRecipe) and recipe.head == "answers"
        if answers or not row.captions:
            return f"{row.asked[0].question} {row.asked[0].answers[0]}"
    return row.captions[0]
