"""What a run on pictures and what is said of them reads: rows, tokenizer, pictures, batches."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedstone.checkpoints.artefact import Model, tokenizer_of
from bedstone.checkpoints.opening import open_model
from bedstone.commands.pair_data import larger
from bedstone.data.fact_augment import FactAugment, fact_augment
from bedstone.data.image_processor import ImageProcessor
from bedstone.data.pictures import Pictures
from bedstone.data.tokenizer import Tokenizer
from bedstone.data.told import ToldRows
from bedstone.data.told_batches import ToldBatches, ToldTexts
from bedstone.data.told_reader import ToldReader, open_told
from bedstone.data.told_scenes import NAME as SCENES
from bedstone.data.told_scenes import measured_told_scenes, told_scenes
from bedstone.data.told_text import Words, as_told, train_told
from bedstone.errors import BedstoneError
from bedstone.files import read_json
from bedstone.inspect.asked import Blind
from bedstone.recipes_told import ToldConfig, ToldRecipe
from bedstone.train.progress import ProgressBar

MOST_SCENES = 20_000  # drawn where a recipe doesn't say how many
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
            train = opened(data, data.source, split=data.split)
            if data.validation:
                held = opened(data, data.validation, split=data.split)
            else:
                train, held = train.hold_out(data.validation_share or 0.05)
            train = train.take(data.most_rows, recipe.seed)
        measured = {"validation": held.take(recipe.evaluate_rows, recipe.seed)}
        if data.test:
            measured["test"] = opened(data, data.test, size=image_side(recipe))
        for name, rows in {"data": train, **measured}.items():
            check_parts(recipe.head, rows, f"{name} {rows.name!r}")
        record = {
            "source": data.source,
            "fingerprint": train.fingerprint(),
            "rows": len(train),
            "left_out": len(train.faults.broken),
        }
        if recipe.head in ("answers", "joint") and train.answers:
            record["answers"] = list(candidates_of(train))  # what its task chooses among
        if run is not None:
            _check_unchanged(run, record)
        return cls(train, measured, record)


def opened(data: ToldConfig, name: str, *, split: str | None = None, size: int = 64) -> ToldRows:
    """The rows of a source, as a recipe says of its columns; of scenes, those to measure on."""
    if name == SCENES:
        return measured_told_scenes(split or "test", MOST_MEASURED, size=size)
    reader = ToldReader(data.columns, data.apart)
    return open_told(name, reader, split=split, most_broken=data.most_broken)


def check_parts(head: str, rows: ToldRows, where: str) -> None:
    """Raises BedstoneError where rows lack what a head is for: captions, or questions."""
    captions, questions = (
        any(getattr(row, name) for row in rows) for name in ("captions", "asked")
    )
    if head in ("captions", "matching", "joint") and not captions:
        raise BedstoneError(
            f"{where}: no row has a caption, which {head} needs; name its column by data.columns: "
            "{text: ...}, or choose task: visual-question-answering."
        )
    if head == "answers" and not questions:
        raise BedstoneError(
            f"{where}: no row has a question with an answer; name the columns by data.columns: "
            "{question: ..., answer: ...}, or choose task: image-to-text."
        )


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


def pictures_of(
    rows: ToldRows, processor: ImageProcessor, data: ToldConfig, label: str, quiet: bool
) -> Pictures:
    """The rows' pictures, as the processor fits them."""
    with ProgressBar(label, quiet=quiet) as bar:
        return Pictures(
            rows, processor.fit, processor.size, memory_mb=data.memory_mb, told=bar.update
        )


def augment_of(recipe: ToldRecipe, size: tuple[int, int]) -> FactAugment | None:
    """How a recipe asks for pictures to be changed; None where they stay."""
    if not recipe.augment and recipe.data.enlarge == 1:
        return None
    if "size" in recipe.augment or size[0] != size[1]:
        raise BedstoneError(
            "augment.size: what comes out is as large as the network's pictures, which must be "
            "square; leave it out."
        )
    return fact_augment(recipe.augment, size[0])


def told_batches(recipe: ToldRecipe, rows: ToldRows, model: Model, quiet: bool) -> ToldBatches:
    """The endless stream that a run learns from."""
    processor, config = model.processor, model.config
    assert processor is not None
    wide = larger(processor, recipe.data.enlarge)
    head, context = recipe.head, config.context
    return ToldBatches(
        pictures_of(rows, wide, recipe.data, "reading pictures", quiet),
        ToldTexts(rows, Words.of(tokenizer_of(model), context)),
        recipe.batch_size,
        processor.normalise,
        captions=0 if head == "answers" else recipe.texts,
        answers=recipe.texts if head == "answers" or (head == "joint" and rows.answers) else 0,
        augment=augment_of(recipe, processor.size),
        blank=recipe.data.blank,
        seed=recipe.seed,
        workers=recipe.data.workers,
    )


def blind_of(rows: ToldRows) -> Blind | None:
    """What rows teach who doesn't look; None where nothing is asked of them."""
    asked = [(one.question, one.answers) for row in rows for one in row.asked]
    return Blind(asked) if asked else None


def candidates_of(rows: ToldRows) -> tuple[str, ...]:
    """The commonest answers, to choose among."""
    return tuple(answer for answer, _ in rows.answers.most_common(MOST_CANDIDATES))


def image_side(recipe: ToldRecipe) -> int:
    """Pixels of a picture's side, as the recipe says; 64 where a model's folder says it."""
    size = (recipe.model.get("image") or {}).get("image_size", 64)
    return max(size) if isinstance(size, list | tuple) else int(size)


def _scenes(recipe: ToldRecipe, quiet: bool) -> tuple[ToldRows, ToldRows]:
    """Scenes to learn from, and those of held-out combinations."""
    data, size = recipe.data, image_side(recipe)
    if len(data.objects) != 2:
        raise BedstoneError(
            f"data.objects: {list(data.objects)} was given; expected two numbers, the fewest "
            "and the most things in a picture."
        )
    with ProgressBar("drawing scenes", quiet=quiet) as bar:
        train = told_scenes(
            data.most_rows or MOST_SCENES,
            seed=recipe.seed,
            size=size,
            objects=(data.objects[0], data.objects[1]),
            captions="none" if recipe.head == "answers" else data.captions,
            questions=recipe.head in ("answers", "joint"),
            told=bar.update,
        )
    return train, measured_told_scenes("validation", MOST_MEASURED, size=size)


def _check_unchanged(run: Path, record: dict[str, Any]) -> None:
    path = run / "data.json"
    if path.is_file() and read_json(path).get("fingerprint") != record["fingerprint"]:
        raise BedstoneError(
            f"data.source: {record['source']!r} has changed since the run in {run} began, so it "
            "can't go on exactly. Bring the data back as it was, or begin another run with "
            "init= the last checkpoint."
        )
