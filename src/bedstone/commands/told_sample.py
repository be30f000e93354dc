"""A sheet of pictures as they are and as a network would see them, with what is said of them."""

from pathlib import Path

import numpy as np
import torch

from bedstone.commands.pair_data import larger
from bedstone.commands.told_data import ToldSplits, augment_of, image_side, pictures_of
from bedstone.data.fact_augment import facts_of
from bedstone.data.image_processor import blip_processor
from bedstone.data.pictures import decoded
from bedstone.data.told import Told
from bedstone.inspect.contact_sheet import contact_sheet
from bedstone.recipes_told import ToldRecipe

SAMPLES = 16  # pictures, each in several forms
FORMS = 4


def draw_told_sample(recipe: ToldRecipe, path: str, *, quiet: bool = False) -> Path:
    """Draws the sheet: each picture is changed only as its own text allows.

    Raises:
        BedstoneError: the data can't be read, or the sheet can't be written.
    """
    few = recipe.data.most_rows or 4 * SAMPLES
    recipe.data.most_rows = min(few, 4 * SAMPLES)
    rows = ToldSplits.open(recipe, None, quiet=quiet).train.take(SAMPLES, recipe.seed)
    processor = blip_processor(image_side(recipe))
    augment = augment_of(recipe, processor.size)
    wide = larger(processor, recipe.data.enlarge)
    pictures = pictures_of(rows, wide, recipe.data, "reading pictures", quiet)
    numbers, pixels = pictures.read(pictures.readable)
    texts = [_text(rows[number], recipe.head) for number in numbers.tolist()]
    forms = [torch.from_numpy(pixels)] * FORMS
    if augment is not None:
        facts = np.array([facts_of(text) for text in texts])
        draws = [torch.Generator().manual_seed(recipe.seed + n) for n in range(FORMS)]
        forms = [augment(form, draw, facts) for form, draw in zip(forms, draws, strict=True)]
    shown: list[np.ndarray] = []
    titles: list[str] = []
    for place, number in enumerate(numbers.tolist()):
        shown += [decoded(rows[number]), *(form[place].numpy() for form in forms)]
        titles += [texts[place], *[""] * FORMS]
    return contact_sheet(shown, path, titles=titles, columns=1 + FORMS)


def _text(row: Told, head: str) -> str:
    """What the sheet teaches with a picture: a question with its answer, or a caption."""
    if row.asked and (head == "answers" or not row.captions):
        return f"{row.asked[0].question} {row.asked[0].answers[0]}"
    return row.captions[0]
