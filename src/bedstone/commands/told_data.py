"""What a run on pictures and what is said of them reads: rows, tokenizer and batches."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bedstone.checkpoints.artefact import tokenizer_of
from bedstone.checkpoints.opening import open_model
from bedstone.commands.picture_data import (
    MOST_SCENES,
    augment_of,
    held_out,
    image_side,
    learnt_pictures,
    record_of,
)
from bedstone.data.image_processor import ImageProcessor
from bedstone.data.scenes import NAME as SCENES
from bedstone.data.tokenizer import Tokenizer
from bedstone.data.told import ToldRows
from bedstone.data.told_batches import ToldBatches, ToldTexts
from bedstone.data.told_reader import ToldReader, open_told
from bedstone.data.told_scenes import measured_told_scenes, told_scenes
from bedstone.data.told_text import as_told, train_told
from bedstone.errors import BedstoneError
from bedstone.inspect.asked import Blind
from bedstone.recipes_told import ToldConfig, ToldRecipe
from bedstone.train.progress import ProgressBar

MOST_MEASURED = 400  # scenes that are measured on, of combinations that training never shows
MOST_CANDIDATES = 1000  # answers that are ranked: the commonest of the training rows


@dataclass
class ToldSplits:
    """Rows to learn from, rows to measure on by name, and what an artefact says of them."""

    train: ToldRows
    measured: dict[str, ToldRows]
    record: dict[str, Any]

    @classmethod
    def open(cls, recipe: ToldRecipe, run: Path | None, *, quiet: bool = False) -> "ToldSplits":
        """Reads or draws them.

        Raises:
            BedstoneError: they can't be read, lack what the task needs, or aren't what the run in
                this folder began with.
        """
        data = recipe.data
        if data.source == SCENES:
            train, held = _scenes(recipe, quiet)
        else:
            train, held = held_out(recipe, partial(opened, data, split=data.split))
        train = with_parts(recipe.head, train, f"data {train.name!r}")
        held = with_parts(recipe.head, held, f"validation {held.name!r}")
        measured = {"validation": held.take(recipe.evaluate_rows, recipe.seed)}
        if data.test:
            test = opened(data, data.test, size=image_side(recipe))
            measured["test"] = with_parts(recipe.head, test, f"test {test.name!r}")
        record = record_of(recipe, train, run)
        if recipe.head in ("answers", "joint") and train.answers:
            record["answers"] = list(candidates_of(train))  # what its task chooses among
        return cls(train, measured, record)


def opened(data: ToldConfig, name: str, *, split: str | None = None, size: int = 64) -> ToldRows:
    """The rows of a source, as a recipe says of its columns; of scenes, those to measure on."""
    if name == SCENES:
        return measured_told_scenes(split or "test", MOST_MEASURED, size=size)
    reader = ToldReader(data.columns, data.apart)
    return open_told(name, reader, split=split, most_broken=data.most_broken)


def with_parts(head: str, rows: ToldRows, where: str) -> ToldRows:
    """The rows that have what a head is for: a caption, or a question; joint takes all.

    Raises:
        BedstoneError: none has it.
    """
    asks = head == "answers"
    kept = [i for i, row in enumerate(rows) if (row.asked if asks else row.captions)]
    if not kept and asks:
        raise BedstoneError(
            f"{where}: no row has a question with an answer; name the columns by data.columns: "
            "{question: ..., answer: ...}, or choose task: image-to-text."
        )
    if not kept:
        raise BedstoneError(
            f"{where}: no row has a caption, which {head} needs; name its column by data.columns: "
            "{text: ...}, or choose task: visual-question-answering."
        )
    return rows if head == "joint" or len(kept) == len(rows) else rows.pick(kept)


def told_tokenizer(recipe: ToldRecipe, rows: ToldRows, run: Path) -> Tokenizer:
    """The run's own if it has one; else the one named, an initial model's, or a new one.

    Raises:
        BedstoneError: it can't be read, or its kind can't be trained here.
    """
    own = run / "tokenizer"
    if (own / "tokenizer.json").is_file():
        return Tokenizer.load(own)
    if recipe.tokenizer.path:
        tokenizer = as_told(Tokenizer.load(recipe.tokenizer.path))
    elif begun := recipe.init or recipe.text_init:
        tokenizer = as_told(tokenizer_of(open_model(begun)))
    elif recipe.tokenizer.kind == "wordpiece":
        tokenizer = train_told(rows.texts(), recipe.tokenizer.vocab_size)
    else:
        raise BedstoneError(
            f"tokenizer.kind: {recipe.tokenizer.kind!r} was given; a model that puts pictures into "
            "words reads wordpiece, or a tokenizer that tokenizer.path names."
        )
    own.mkdir(parents=True, exist_ok=True)
    tokenizer.save(own)
    return tokenizer


def told_batches(
    recipe: ToldRecipe, rows: ToldRows, texts: ToldTexts, processor: ImageProcessor, quiet: bool
) -> ToldBatches:
    """The endless stream that a run learns from."""
    asks = recipe.head == "answers" or (recipe.head == "joint" and bool(rows.answers))
    return ToldBatches(
        learnt_pictures(recipe, rows, processor, quiet),
        texts,
        recipe.batch_size,
        processor.normalise,
        captions=0 if recipe.head == "answers" else recipe.texts,
        answers=recipe.texts if asks else 0,
        augment=augment_of(recipe, processor.size),
        blank=recipe.data.blank,
        seed=recipe.seed,
        workers=recipe.data.workers,
    )


def blind_of(rows: ToldRows) -> Blind | None:
    """What rows teach who doesn't look; None where nothing is asked of them."""
    asked = [(one.question, one.answers) for row in rows for one in row.asked]
    return Blind(asked) if asked else None


def usual_of(rows: ToldRows) -> str:
    """The commonest caption: what is said who says the same of every picture. Empty for none."""
    said = Counter(caption for row in rows for caption in row.captions)
    return said.most_common(1)[0][0] if said else ""


def candidates_of(rows: ToldRows) -> tuple[str, ...]:
    """The commonest answers, to choose among."""
    return tuple(answer for answer, _ in rows.answers.most_common(MOST_CANDIDATES))


def _scenes(recipe: ToldRecipe, quiet: bool) -> tuple[ToldRows, ToldRows]:
    """Scenes to learn from, and those of held-out combinations."""
    data, size = recipe.data, image_side(recipe)
    with ProgressBar("drawing scenes", quiet=quiet) as bar:
        train = told_scenes(
            data.most_rows or MOST_SCENES,
            seed=recipe.seed,
            size=size,
            objects=data.things,
            captions="none" if recipe.head == "answers" else data.captions,
            questions=recipe.head in ("answers", "joint"),
            told=bar.update,
        )
    return train, measured_told_scenes("validation", MOST_MEASURED, size=size)
