"""What all runs on pictures with texts read alike: rows held out, pictures, augmentation."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from bedstone.data.dataset import Dataset
from bedstone.data.images.augment import FactAugment, fact_augment
from bedstone.data.images.pixels import ImageCache
from bedstone.data.images.processor import ImageProcessor
from bedstone.data.open import ImagesConfig
from bedstone.data.sources import Source
from bedstone.data.text.token_cache import TokenCache, token_cache
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.settings import from_mapping
from bedstone.train.logs import ProgressBar
from bedstone.train.run import check_unchanged

MAX_SCENES = 20_000  # drawn where a recipe doesn't say how many

Recipe = Any  # of pictures with a `data` section of ImagesConfig
Config = TypeVar("Config", bound=ImagesConfig)


def held_out(recipe: Recipe, opened: Callable[[str], Dataset]) -> tuple[Dataset, Dataset]:
    """Rows to learn from and rows to validate on, of sources that `opened` reads."""
    data = recipe.data
    train = opened(data.source)
    if data.validation:
        held = opened(data.validation)
    else:
        train, held = train.hold_out(data.validation_share or 0.05)
    return train.take(data.most_rows, recipe.seed), held


def record_of(recipe: Recipe, train: Dataset, run: Path | None) -> dict[str, Any]:
    """What `data.json` and an artefact say of the rows.

    Raises:
        BedstoneError: the run in this folder began with others.
    """
    record = {
        "source": recipe.data.source,
        "fingerprint": train.fingerprint(),
        "rows": len(train),
        "left_out": len(train.faults.broken),
    }
    if run is not None:
        check_unchanged(run, record)
    return record


def recorded_data(kind: type[Config], recipe: Mapping[str, Any]) -> Config:
    """What the recipe that made a model says of its data; as usual where there is none."""
    recorded = recipe.get("data") or {}
    names = {each.name for each in dataclasses.fields(kind)} & recorded.keys()
    values = {name: recorded[name] for name in names}
    return from_mapping(kind, values, "bedstone.json", "recipe.data.")


def pictures_of(
    rows: Dataset,
    processor: ImageProcessor,
    data: ImagesConfig,
    label: str,
    quiet: bool,
) -> ImageCache:
    """The rows' pictures, as the processor fits them."""
    with ProgressBar(label, quiet=quiet) as bar:
        return ImageCache(
            rows, processor.fit, processor.size, memory_mb=data.memory_mb, progress=bar.update
        )


def learnt_pictures(
    recipe: Recipe, rows: Dataset, processor: ImageProcessor, quiet: bool
) -> ImageCache:
    """Pictures to learn from: as much larger than the network's as the recipe says, for crops."""
    wide = wider(processor, recipe.data.enlarge)
    return pictures_of(rows, wide, recipe.data, "reading pictures", quiet)


def wider(processor: ImageProcessor, by: float) -> ImageProcessor:
    """A processor whose pictures are larger by a factor."""

    def grown(size: Any) -> Any:
        if size is None or by == 1:
            return size
        return round(size * by) if isinstance(size, int) else tuple(round(s * by) for s in size)

    return dataclasses.replace(
        processor, resize=grown(processor.resize), crop=grown(processor.crop)
    )


def augment_of(recipe: Recipe, size: tuple[int, int]) -> FactAugment | None:
    """How a recipe asks for pictures to be changed; None where they stay."""
    if not recipe.augment and recipe.data.enlarge == 1:
        return None
    if "size" in recipe.augment or size[0] != size[1]:
        raise BedstoneError(
            "augment.size: what comes out is as large as the network's pictures, which must be "
            "square; leave it out."
        )
    return fact_augment(recipe.augment, size[0])


def image_side(recipe: Recipe) -> int:
    """Pixels of a picture's side, as the recipe says; 64 where a model's folder says it."""
    size = (recipe.model.get("image") or {}).get("image_size", 64)
    return max(size) if isinstance(size, list | tuple) else int(size)


MB = 1_000_000


def cached(source: Source, tokenizer: Tokenizer, share: float, quiet: bool = False) -> TokenCache:
    """The source's token cache, with a bar while it is made."""
    with ProgressBar("tokenising", quiet=quiet) as bar:

        def told(done: int, total: int | None) -> None:
            bar.update(done / total if total else 0.0, read=f"{done / MB:,.0f} MB")

        return token_cache(source, tokenizer, validation_share=share, progress=told)
