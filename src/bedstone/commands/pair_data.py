"""What a run on pairs reads: rows, tokenizer, pictures and batches."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedstone.checkpoints.hub import resolve
from bedstone.data.clip_tokenizer import train_clip
from bedstone.data.fact_augment import FactAugment, fact_augment
from bedstone.data.image_processor import ImageProcessor
from bedstone.data.known_texts import Encode
from bedstone.data.pair_batches import PairBatches, PairTexts
from bedstone.data.pair_reader import Reader, open_pairs
from bedstone.data.pairs import PairRows
from bedstone.data.pictures import Pictures
from bedstone.data.scene_pairs import NAME as SCENES
from bedstone.data.scene_pairs import measured_scenes, scene_pairs
from bedstone.data.tokenizer import Tokenizer
from bedstone.data.tower_text import text_rows
from bedstone.errors import BedstoneError
from bedstone.files import read_json
from bedstone.recipes_pairs import ContrastiveRecipe, PairsConfig
from bedstone.train.progress import ProgressBar

MOST_SCENES = 20_000  # drawn where a recipe doesn't say how many


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
                    objects=_objects(data),
                    wrong=recipe.hard_negatives > 0,
                    told=bar.update,
                )
            held = measured_scenes("validation", size=size)
        else:
            train = _opened(data, data.source)
            if data.validation:
                held = _opened(data, data.validation)
            else:
                train, held = train.hold_out(data.validation_share or 0.05)
            train = train.take(data.most_rows, recipe.seed)
        # What zero-shot accuracy is asked of are the classes of both.
        classes = tuple(dict.fromkeys((*train.classes, *held.classes)))
        train.classes = held.classes = classes
        held = held.take(recipe.evaluate_pairs, recipe.seed)
        record = {
            "source": data.source,
            "fingerprint": train.fingerprint(),
            "rows": len(train),
            "left_out": len(train.faults.broken),
        }
        if run is not None:
            _check_unchanged(run, record)
        return cls(train, held, record)


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


def pictures_of(
    rows: PairRows, processor: ImageProcessor, data: PairsConfig, label: str, quiet: bool
) -> Pictures:
    """The rows' pictures, as the processor fits them."""
    with ProgressBar(label, quiet=quiet) as bar:
        return Pictures(
            rows,
            processor.fit,
            processor.size,
            memory_mb=data.memory_mb,
            told=bar.update,
        )


def larger(processor: ImageProcessor, by: float) -> ImageProcessor:
    """A processor whose pictures are `by` times as large, for crops to choose from."""

    def grown(size: Any) -> Any:
        if size is None or by == 1:
            return size
        return round(size * by) if isinstance(size, int) else tuple(round(s * by) for s in size)

    return dataclasses.replace(
        processor, resize=grown(processor.resize), crop=grown(processor.crop)
    )


def augment_of(recipe: ContrastiveRecipe, size: tuple[int, int]) -> FactAugment | None:
    """How a recipe asks for pictures to be changed; None where they stay."""
    if not recipe.augment and recipe.data.enlarge == 1:
        return None
    if "size" in recipe.augment or size[0] != size[1]:
        raise BedstoneError(
            "augment.size: what comes out is as large as the network's pictures, which must be "
            "square; leave it out."
        )
    return fact_augment(recipe.augment, size[0])


def pair_batches(
    recipe: ContrastiveRecipe,
    rows: PairRows,
    processor: ImageProcessor,
    encode: Encode,
    quiet: bool,
) -> PairBatches:
    """The endless stream that a run learns from."""
    augment = augment_of(recipe, processor.size)
    wide = larger(processor, recipe.data.enlarge)
    pictures = pictures_of(rows, wide, recipe.data, "reading pictures", quiet)
    return PairBatches(
        pictures,
        PairTexts(rows, encode),
        recipe.batch_size,
        processor.normalise,
        augment=augment,
        negatives=recipe.hard_negatives,
        seed=recipe.seed,
        workers=recipe.data.workers,
    )


def image_side(recipe: ContrastiveRecipe) -> int:
    """Pixels of a picture's side, as the recipe says; 64 where a model's folder says it."""
    size = (recipe.model.get("image") or {}).get("image_size", 64)
    return max(size) if isinstance(size, list | tuple) else int(size)


def _opened(data: PairsConfig, name: str) -> PairRows:
    return open_pairs(name, reader_of(data), split=data.split, most_broken=data.most_broken)


def _objects(data: PairsConfig) -> tuple[int, int]:
    if len(data.objects) != 2:
        raise BedstoneError(
            f"data.objects: {list(data.objects)} was given; expected two numbers, the fewest "
            "and the most things in a picture."
        )
    return data.objects[0], data.objects[1]


def _check_unchanged(run: Path, record: dict[str, Any]) -> None:
    path = run / "data.json"
    if path.is_file() and read_json(path).get("fingerprint") != record["fingerprint"]:
        raise BedstoneError(
            f"data.source: {record['source']!r} has changed since the run in {run} began, so it "
            "can't go on exactly. Bring the data back as it was, or begin another run with "
            "init= the last checkpoint."
        )
