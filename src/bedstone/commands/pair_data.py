"""What a run on pairs reads: rows, tokenizer and batches."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bedstone.checkpoints.hub import resolve
from bedstone.commands.picture_data import (
    MOST_SCENES,
    augment_of,
    held_out,
    image_side,
    learnt_pictures,
    record_of,
)
from bedstone.data.clip_tokenizer import train_clip
from bedstone.data.image_processor import ImageProcessor
from bedstone.data.known_texts import Encode
from bedstone.data.pair_batches import PairBatches, PairTexts
from bedstone.data.pair_reader import Reader, open_pairs
from bedstone.data.pairs import PairRows
from bedstone.data.scene_pairs import measured_scenes, scene_pairs
from bedstone.data.scenes import NAME as SCENES
from bedstone.data.tokenizer import Tokenizer
from bedstone.data.tower_text import text_rows
from bedstone.errors import BedstoneError
from bedstone.recipes_pairs import ContrastiveRecipe, PairsConfig
from bedstone.train.progress import ProgressBar


@dataclass
class PairSplits:
    """Pairs to learn from, pairs held out, and what an artefact says of them."""

    train: PairRows
    held: PairRows
    record: dict[str, Any]

    @classmethod
    def open(
        cls, recipe: ContrastiveRecipe, run: Path | None, *, quiet: bool = False
    ) -> "PairSplits":
        """Reads or draws them.

        Raises:
            BedstoneError: they can't be read, or aren't what the run in this folder began with.
        """
        data = recipe.data
        size = image_side(recipe)
        if data.source == SCENES:
            with ProgressBar("drawing scenes", quiet=quiet) as bar:
                train = scene_pairs(
                    data.most_rows or MOST_SCENES,
                    seed=recipe.seed,
                    size=size,
                    objects=data.things,
                    wrong=recipe.hard_negatives > 0,
                    told=bar.update,
                )
            held = measured_scenes("validation", size=size)
        else:
            train, held = held_out(recipe, partial(_opened, data))
        # What zero-shot accuracy is asked of are the classes of both.
        classes = tuple(dict.fromkeys((*train.classes, *held.classes)))
        train.classes = held.classes = classes
        held = held.take(recipe.evaluate_pairs, recipe.seed)
        return cls(train, held, record_of(recipe, train, run))


def reader_of(data: PairsConfig) -> Reader:
    """What a recipe says of the columns."""
    return Reader(data.columns, data.templates, data.classes)


def pair_tokenizer(recipe: ContrastiveRecipe, rows: PairRows, run: Path) -> Tokenizer:
    """The run's own if it has one; else the one named, an initial model's, or a new one.

    Raises:
        BedstoneError: it can't be read, or its kind can't be trained here.
    """
    own = run / "tokenizer"
    if (own / "tokenizer.json").is_file():
        return Tokenizer.load(own)
    tokenizer = known_tokenizer(recipe)
    if tokenizer is None:
        if recipe.tokenizer.kind != "bpe":
            raise BedstoneError(
                f"tokenizer.kind: {recipe.tokenizer.kind!r} was given; a tower for text reads bpe, "
                "or a tokenizer that tokenizer.path names."
            )
        tokenizer = train_clip(rows.texts(), recipe.tokenizer.vocab_size)
    own.mkdir(parents=True, exist_ok=True)
    tokenizer.save(own)
    return tokenizer


def known_tokenizer(recipe: ContrastiveRecipe) -> Tokenizer | None:
    """The tokenizer that a recipe names, or that of a model it begins with."""
    if recipe.tokenizer.path:
        return Tokenizer.load(recipe.tokenizer.path)
    begun = recipe.init or recipe.text_init
    return Tokenizer.load(resolve(begun)) if begun else None


def encoder_of(tokenizer: Tokenizer, config: Any) -> Encode:
    """Texts to ids as the text tower reads them, cut at its context."""
    return lambda texts: [row.ids for row in text_rows(tokenizer, texts, config)]


def pair_batches(
    recipe: ContrastiveRecipe,
    rows: PairRows,
    processor: ImageProcessor,
    encode: Encode,
    quiet: bool,
) -> PairBatches:
    """The endless stream that a run learns from."""
    return PairBatches(
        learnt_pictures(recipe, rows, processor, quiet),
        PairTexts(rows, encode),
        recipe.batch_size,
        processor.normalise,
        augment=augment_of(recipe, processor.size),
        negatives=recipe.hard_negatives,
        seed=recipe.seed,
        workers=recipe.data.workers,
    )


def _opened(data: PairsConfig, name: str) -> PairRows:
    return open_pairs(name, reader_of(data), split=data.split, most_broken=data.most_broken)
