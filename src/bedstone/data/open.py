"""Opening of datasets by name: built-in data, a file, a folder, a glob or a hub id.

`open_dataset` is the way in for all rows; `ImagesConfig` and its kinds say in a recipe what is
opened, and how.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from bedstone.data.dataset import CONTENT, Dataset
from bedstone.data.fields import (
    FIELDS,
    IMAGE_TEXT,
    IMAGES,
    PAIRS,
    TEMPLATES,
    Need,
    SampleReader,
    named_file,
    needed,
)
from bedstone.data.records import MOST_BROKEN, Faults, Reading, Record
from bedstone.data.sources import BUILT_IN as DOCUMENTS
from bedstone.data.sources import read_records
from bedstone.errors import BedstoneError, nearest
from bedstone.settings import Settings, number, share, whole

# Built-in samples: the module and function that make them, loaded when asked for.
BUILT_IN = {"scenes": ("bedstone.data.scenes.datasets", "heldout_scenes")}
# Built-in rows of texts, likewise.
TEXT_ROWS = {
    "numbers": ("bedstone.data.numbers", "number_rows"),
    "numbers-held-out": ("bedstone.data.numbers", "held_out_rows"),
    "small-talk-chats": ("bedstone.data.small_talk", "chat_rows"),
    "small-talk-chats-held-out": ("bedstone.data.small_talk", "held_out_chats"),
    "small-talk-preferences": ("bedstone.data.small_talk", "preference_rows"),
    "small-talk-preferences-held-out": ("bedstone.data.small_talk", "held_out_preferences"),
    "small-talk-problems": ("bedstone.data.small_talk", "problem_rows"),
    "small-talk-problems-held-out": ("bedstone.data.small_talk", "held_out_problems"),
}
# Columns of rows that may have an image beside their text.
IMAGE_COLUMNS = ("image", "img", "picture", "photo", "image_path", "file_name")


def open_dataset(
    name: str | Path,
    need: Sequence[Need] = (),
    *,
    columns: Mapping[str, Any] | None = None,
    split: str | None = None,
    most_broken: float | None = None,
    option: str = "data.most_broken",
    as_written: bool = False,
    **sampling: Any,
) -> Dataset:
    """All rows of a source; see `data.sources` for what its name may be.

    Without a need, rows are dictionaries by column: JSON, JSONL, CSV, Parquet, Arrow, or a set on
    the hub; a text file is one row with the column `text`. With one, they are samples; of the
    built-in scenes, those with held-out combinations, of `test` where no split is named.

    Args:
        need: fields that a row must have, such as `("image", any_of("captions", "questions"))`.
        columns: {part: column}, where the usual names (`data.fields`) aren't used.
        split: train, validation or test, of a folder's files or of a hub id.
        most_broken: the share of rows that may be broken; they are left out and named. None is
            0.05 of samples, and of other rows none.
        option: the recipe's field that says `most_broken`, for messages; empty in commands.
        as_written: of rows without a need, whether labels of a CSV that are numbers stay texts.
        sampling: how samples are read: other arguments of `data.fields.SampleReader`.

    Raises:
        BedstoneError: there is no such data, it can't be read, `columns` doesn't fit it, or too
            much of it is broken.
    """
    if not need:
        labels = () if as_written else _label_columns(columns)
        return _open_rows(str(name), columns, split, most_broken, option, labels)
    names = tuple(needed(need))
    kept = [each for each in CONTENT if each in names or (each == "label" and "class" in names)]
    if str(name) in BUILT_IN:
        module, function = BUILT_IN[str(name)]
        found: Dataset = getattr(importlib.import_module(module), function)(kept, split or "test")
        return found
    reader = SampleReader(need, columns or {}, **sampling)
    option = "" if most_broken is None else option
    most = MOST_BROKEN if most_broken is None else most_broken
    faults = Faults(str(name), most, option=option)
    reading, samples, first = Reading(faults), [], True
    for record in read_records(name, split, images=True, reading=reading):
        if first:
            column = reader.column("class", record.values) or ""
            reader = replace(reader, names=reader.class_names(reading.names.get(column, ())))
            first = False
        try:
            samples.append(reader.read(record))
        except BedstoneError as error:
            faults.add(error)
    faults.check()
    return Dataset(
        samples,
        str(name),
        fields=kept,
        classes=tuple(dict.fromkeys(reader.names.values())) if "class" in names else (),
        templates=reader.templates or TEMPLATES,
        reading=reading,
    )


def first_row(name: str, split: str | None = None, *, images: bool = False) -> dict[str, Any]:
    """The values of the first row of a source, by column; none of built-in documents or samples.

    Raises:
        BedstoneError: there is no such data, or it can't be read.
    """
    if name in TEXT_ROWS:
        return dict(open_dataset(name)[0])
    if name in BUILT_IN or name in DOCUMENTS:
        return {}
    found = read_records(name, split, images=images, reading=Reading(Faults("", 1.0)))
    first = next(iter(found), None)
    return {} if first is None else first.values


def _label_columns(columns: Mapping[str, Any] | None) -> Sequence[str]:
    """The columns that may hold labels, which in a CSV are numbers where all cells are."""
    chosen = (columns or {}).get("label")
    return (chosen,) if chosen else FIELDS["label"].columns


def _open_rows(
    name: str,
    columns: Mapping[str, str] | None,
    split: str | None,
    most_broken: float | None,
    option: str,
    labels: Sequence[str],
) -> Dataset:
    if name in TEXT_ROWS:
        module, function = TEXT_ROWS[name]
        made: list[dict[str, Any]] = getattr(importlib.import_module(module), function)()
        return Dataset(made, name, columns)
    option = "" if most_broken is None else option
    reading = Reading(Faults(name, most_broken or 0.0, option=option), labels)
    assert reading.faults is not None
    found = list(read_records(name, split, reading=reading))
    reading.faults.check()
    return _by_column(name, [each.values for each in found], columns, found, reading)


def _by_column(
    name: str,
    rows: list[dict[str, Any]],
    columns: Mapping[str, str] | None,
    found: Sequence[Record],
    reading: Reading,
) -> Dataset:
    return Dataset(
        rows,
        name,
        columns,
        places=[each.place for each in found],
        reading=reading,
    )


def with_images(
    name: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    image: str | None = None,
    split: str | None = None,
) -> Dataset:
    """All rows of a source by their columns, `image` being a `Path`, bytes or None.

    Nothing is decoded. A path is relative to the folder of the file that names it. Broken rows,
    and those whose image is neither bytes nor a file's name, are left out and named on stderr.

    Args:
        columns: {part: column} of texts and labels, where the usual names aren't used.
        image: the column of images, where it hasn't a usual name.

    Raises:
        BedstoneError: there is no such data or column, or more than 0.05 of the rows are broken.
    """
    faults = Faults(str(name), MOST_BROKEN, option="")
    reading = Reading(faults)
    found = list(read_records(name, split, images=True, reading=reading))
    known = {key for each in found for key in each.values}
    if image is not None and image not in known:
        raise BedstoneError(f"data {str(name)!r}: has no column {image!r}{nearest(image, known)}.")
    column = image or next((each for each in IMAGE_COLUMNS if each in known), None)
    rows, kept = [], []
    for each in found:
        try:
            rows.append({**each.values, "image": _image(each, column)})
            kept.append(each)
        except BedstoneError as error:
            faults.add(error)
    faults.check()
    faults.warn()
    return _by_column(str(name), rows, columns, kept, reading)


def _image(record: Record, column: str | None) -> Path | bytes | None:
    value: Any = record.values.get(column) if column else None
    if isinstance(value, Mapping):  # as the `datasets` library stores them
        value = value.get("bytes") or value.get("path")
    if value is None or isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value.strip():
        raise BedstoneError(
            f"{record.place}: column {column!r} is {str(value)[:60]!r}; expected a picture's bytes "
            "or its file's name. Mend it, or leave the row out."
        )
    return named_file(record, value)


# What recipes say of rows with images.


@dataclass
class ImagesConfig(Settings):
    """Rows with images.

    Attributes:
        source: scenes (built in), a Parquet, Arrow, JSONL or CSV file, a folder of images with a
            metadata.jsonl, a glob or a hub id.
        validation: another source to validate on; empty holds out a share of `source`.
        split: of a hub id or a folder with splits.
        validation_share: share of the images held out.
        columns: which column holds what, where the usual names aren't used, as `{text: title}`. A
            text may be a sentence made of columns, `"{title}, a {colour} {kind}"`, and there may
            be a list of them.
        most_rows: take this many rows at most, drawn by the seed; 0 takes all. Of scenes, how many
            are drawn; 0 is 20,000.
        most_broken: share of rows that may be broken; such rows are left out and named.
        objects: objects in an image of scenes, the fewest and the most.
        enlarge: how many times larger than the network's images they are kept, for crops to
            choose from; 1.25 suits photos that are cropped.
        memory_mb: megabytes of decoded images to keep; larger sets are decoded as they are read.
        workers: threads that make batches ready.
    """

    source: str = "scenes"
    validation: str = ""
    split: str | None = None
    validation_share: float = share(below_one=True, default=0.05)
    columns: dict[str, Any] = field(default_factory=dict)
    most_rows: int = whole(0, default=0)
    most_broken: float = share(below_one=True, default=MOST_BROKEN)
    objects: tuple[int, ...] = (1, 5)
    enlarge: float = number(1, 4, default=1.0)
    memory_mb: float = 2048.0
    workers: int = whole(0, default=1)

    section: ClassVar[str] = "data."
    need: ClassVar[Sequence[Need]] = IMAGES

    def __post_init__(self) -> None:
        super().__post_init__()
        check_objects(self.objects)

    @property
    def things(self) -> tuple[int, int]:
        """The fewest and the most objects of a scene."""
        return self.objects[0], self.objects[1]

    def open(
        self, name: str, split: str | None = None, *, option: str = "data.most_broken"
    ) -> Dataset:
        """The rows of a source, read as the recipe says; for `option` see `open_dataset`.

        Raises:
            BedstoneError: they can't be read, or too many are broken.
        """
        return open_dataset(
            name,
            self.need,
            columns=self.columns,
            split=split,
            most_broken=self.most_broken,
            option=option,
            **self.reading(),
        )

    def reading(self) -> dict[str, Any]:
        """How samples are read, beside their columns: arguments of `SampleReader`."""
        return {}


@dataclass
class PlainConfig(ImagesConfig):
    """Images without texts.

    Attributes, besides those of all rows with images:
        sizes: of things in scenes: small, medium, large; empty is all of them.
        textures: whether things in scenes may be striped or dotted.
        signs: whether scenes may have signs with words.
    """

    sizes: list[str] = field(default_factory=list)
    textures: bool = True
    signs: bool = True

    @property
    def drawn(self) -> dict[str, Any]:
        """Which scenes, as `data.scenes.datasets` makes them."""
        shown = {"sizes": self.sizes, "textures": self.textures, "signs": self.signs}
        return {"objects": self.things, **shown}


@dataclass
class PairsConfig(PlainConfig):
    """Images with texts.

    Attributes, besides those of images without (columns: image, text, label, negatives):
        templates: texts made of a label, as `a photo of a {label}`: captions where rows have none,
            and the prompts of zero-shot classification.
        classes: names of the labels' classes by what stands in the rows: a list or a mapping.
    """

    templates: list[str] = field(default_factory=list)
    classes: Any = field(default_factory=list)

    need: ClassVar[Sequence[Need]] = PAIRS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_classes(self.classes)

    def reading(self) -> dict[str, Any]:
        return {"templates": self.templates, "classes": self.classes}


@dataclass
class ImageTextConfig(ImagesConfig):
    """Images with captions, questions and answers.

    Attributes, besides those of all rows with images (columns: image, text, question, answer,
    kind, messages):
        test: a source to measure the finished model on.
        apart: what separates several right answers in one text, such as a comma.
        captions: of scenes: all kinds, or whole: the one that names all objects.
        blank: hide all images, in training and in evaluation: a baseline of texts alone.
    """

    test: str = ""
    apart: str = ""
    captions: str = "all"
    blank: bool = False

    need: ClassVar[Sequence[Need]] = IMAGE_TEXT

    def reading(self) -> dict[str, Any]:
        return {"separator": self.apart}


def check_objects(objects: Sequence[int]) -> None:
    """Raises BedstoneError unless `data.objects` is the fewest and the most objects."""
    if len(objects) != 2:
        raise BedstoneError(
            f"data.objects: {list(objects)} was given; expected two numbers, the fewest and the "
            "most things in a picture."
        )


def check_classes(classes: Any) -> None:
    """Raises BedstoneError unless `data.classes` is a list or a mapping."""
    if not isinstance(classes, list | dict):
        raise BedstoneError(
            f"data.classes: {classes!r} was given; expected a list of names, or a mapping from "
            "what stands in the rows to names."
        )
