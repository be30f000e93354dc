"""The data of a run: held-out rows, cached images, augmentation, token caches."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bedstone.data.dataset import Dataset
from bedstone.data.images.augment import FactAugment, fact_augment
from bedstone.data.images.pixels import ImageCache
from bedstone.data.images.processor import ImageProcessor
from bedstone.data.open import ImagesConfig, first_row
from bedstone.data.sources import Source
from bedstone.data.summary import Summary, summarise
from bedstone.data.text.fim_cuts import FimCutter
from bedstone.data.text.token_cache import TokenCache, token_cache
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.reading import is_plain, read_object
from bedstone.settings import Settings, from_mapping
from bedstone.train.logs import ProgressBar

MAX_SCENES = 20_000  # drawn where a recipe doesn't say how many
MB = 1_000_000

Config = TypeVar("Config", bound=Settings)


@dataclass
class Splits:
    """The data of a run.

    Attributes:
        train: what it learns from.
        validation: what it is measured on in training; None where nothing is held out.
        test: what the finished model is measured on besides.
        record: what `data.json` and the artefact say of it; `source` and `fingerprint` at least.
        notes: lines of the plan that is printed before training.
        understood: the columns, classes and doubts of the rows, printed with it.
        cut: targets that are longer than the network reads, and are cut or left out.
        shown: examples whose first rows are shown, by which of their tokens are trained.
    """

    train: Any
    validation: Any
    test: Any = None
    record: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    understood: Summary | None = None
    shown: Any = None
    cut: int = 0


def understood(splits: Splits) -> Summary:
    """What was understood of the rows of a run; empty where they are no datasets."""
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    rows = {split: each for split, each in named.items() if isinstance(each, Dataset)}
    return summarise(rows, labels_of(rows)) if rows else Summary()


def labels_of(splits: Mapping[str, Dataset]) -> dict[str, list[str]]:
    """The classes of samples, by their split; empty where they have none."""
    labels = {split: [row.label or "" for row in rows] for split, rows in splits.items()}
    return labels if any(any(each) for each in labels.values()) else {}


# The version of how labelled rows become examples: `split` of a run's data.json, which runs of the
# first lack. A run goes on as it began.
VERSION = 3
HELD_BY_CLASS = 2  # from here on the same share of each class is held out
ENDS_KEPT = 2  # from here on the end of a long prompt is kept
OWN_TEMPLATE = 3  # from here on instructions are written by the model's own chat template


def version_of(folder: Path | None) -> int:
    """The version that a run reads its rows by.

    Args:
        folder: of the run, where it may have begun under an earlier version.
    """
    path = None if folder is None else folder / "data.json"
    if path is None or not is_plain(path):
        return VERSION
    return int(read_object(path, finite=False).get("split", 1))


def held_out(
    data: ImagesConfig, opened: Callable[[str], Dataset], seed: int
) -> tuple[Dataset, Dataset]:
    """Rows to learn from and rows to validate on, of sources that `opened` reads."""
    train = opened(data.source)
    if data.validation:
        held = opened(data.validation)
    else:
        train, held = train.hold_out(data.validation_share or 0.05)
    return train.take(data.most_rows, seed), held


def record_of(data: ImagesConfig, train: Dataset) -> dict[str, Any]:
    """What `data.json` and an artefact say of rows with images."""
    return {
        "source": data.source,
        "fingerprint": train.fingerprint(),
        "rows": len(train),
        "left_out": len(train.faults.broken),
    }


# The data that a model learnt from, as the recipe in its record says.


def _recorded(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `data` section of the recipe; empty where there is none."""
    recipe = record.get("recipe")
    section = recipe.get("data") if isinstance(recipe, Mapping) else None
    return section if isinstance(section, Mapping) else {}


def recorded_data(kind: type[Config], record: Mapping[str, Any]) -> Config:
    """The section as settings, as far as they have its fields; defaults where it has none."""
    recorded = _recorded(record)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]  # sections are dataclasses
    names = {each.name for each in fields} & recorded.keys()
    values = {name: recorded[name] for name in names}
    return from_mapping(kind, values, "bedstone.json", "recipe.data.")


def recorded_columns(
    record: Mapping[str, Any],
    data: str,
    given: Mapping[str, Any] | None = None,
    *,
    split: str | None = None,
    images: bool = False,
) -> dict[str, Any]:
    """The columns of other rows than a run learnt from: those given, else its own where they exist.

    Args:
        given: {part: column} that are named now.
        images: whether rows have images.
    """
    columns = _recorded(record).get("columns")
    known = columns if isinstance(columns, Mapping) else {}
    found = dict(given or {})
    rest = {part: column for part, column in known.items() if part not in found}
    if rest and (values := first_row(data, split, images=images)):
        for part, column in rest.items():
            if not isinstance(column, str) or "{" in column or column in values:
                found[part] = column
    return found


# Images.


def cached_images(
    rows: Dataset,
    processor: ImageProcessor,
    data: ImagesConfig,
    label: str,
    quiet: bool,
) -> ImageCache:
    """The images of rows, as the processor fits them."""
    with ProgressBar(label, quiet=quiet) as bar:
        return ImageCache(
            rows, processor.fit, processor.size, memory_mb=data.memory_mb, progress=bar.update
        )


def cached_training_images(
    rows: Dataset, processor: ImageProcessor, data: ImagesConfig, quiet: bool
) -> ImageCache:
    """Training images, larger than the network's by `data.enlarge`, for crops."""
    return cached_images(rows, wider(processor, data.enlarge), data, "reading pictures", quiet)


def wider(processor: ImageProcessor, by: float) -> ImageProcessor:
    """A processor whose images are larger by a factor."""

    def grown(size: Any) -> Any:
        if size is None or by == 1:
            return size
        return round(size * by) if isinstance(size, int) else tuple(round(s * by) for s in size)

    return dataclasses.replace(
        processor, resize=grown(processor.resize), crop=grown(processor.crop)
    )


def augment_of(
    augment: Mapping[str, Any], data: ImagesConfig, size: tuple[int, int] = (1, 1)
) -> FactAugment | None:
    """The augmentation of the `augment` section; None where images stay as they are.

    Raises:
        BedstoneError: a field is unknown or out of range, or the images aren't square.
    """
    if not augment and data.enlarge == 1:
        return None
    if "size" in augment or size[0] != size[1]:
        raise BedstoneError(
            "augment.size: what comes out is as large as the network's pictures, which must be "
            "square; leave it out."
        )
    return fact_augment(augment, size[0])


def image_side(model: Mapping[str, Any]) -> int:
    """Pixels of an image's side in a `model` section; 64 where it doesn't say."""
    size = (model.get("image") or {}).get("image_size", 64)
    return max(size) if isinstance(size, list | tuple) else int(size)


def cached(
    source: Source,
    tokenizer: Tokenizer,
    share: float,
    quiet: bool = False,
    fim: FimCutter | None = None,
) -> TokenCache:
    """The source's token cache, with a progress bar while it is made."""
    with ProgressBar("tokenising", quiet=quiet) as bar:

        def progress(done: int, total: int | None) -> None:
            bar.update(done / total if total else 0.0, read=f"{done / MB:,.0f} MB")

        made = token_cache(source, tokenizer, validation_share=share, progress=progress, fim=fim)
        if (faults := source.faults) is not None and faults.broken:
            bar.say(f"{source.name}: {faults.left_out()}")
        return made
