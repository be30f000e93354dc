"""Rows with what is to be said of them: from files, a folder, a glob or the hub.

A column is found by the names that published sets give it, or by `columns`, which says for a part
(`text`, `label`, ...) which column holds it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from bedstone.data.records import (
    check_text,
    csv_rows,
    data_suffix,
    hub_rows,
    json_rows,
    read_text,
    table_rows,
)
from bedstone.data.sources import Files, Hub, Raw, find, raw_rows
from bedstone.errors import BedstoneError, nearest
from bedstone.settings import at_least, check_shares

# A part of a row, and the columns that may hold it.
PARTS = {
    "text": ("text", "sentence", "sentence1", "premise", "question1"),
    "pair": ("text_pair", "sentence2", "hypothesis", "question2"),
    "label": ("label", "labels", "score", "stars"),
    "tokens": ("tokens", "words"),
    "tags": ("ner_tags", "tags", "labels"),
    "question": ("question",),
    "context": ("context",),
    "answers": ("answers",),
    "prompt": ("prompt",),
    "completion": ("completion",),
    "instruction": ("instruction",),
    "input": ("input",),
    "output": ("output",),
}


class Dataset:
    """Rows by column.

    Attributes:
        rows: each {column: value}.
        name: what they are called in messages.
        columns: {part: column}, where the usual names aren't used.
        names: {column: names}, what a column's numbers stand for, where the set says it.
    """

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        name: str = "rows",
        columns: Mapping[str, str] | None = None,
        *,
        places: Sequence[str] | None = None,
        names: Mapping[str, list[str]] | None = None,
    ) -> None:
        self.rows, self.name = list(rows), name
        self.columns, self.names = dict(columns or {}), dict(names or {})
        self._places = places
        self._known = {key for row in self.rows for key in row}
        if not self.rows:
            raise BedstoneError(f"data {name!r}: holds no row. Name data with at least one.")
        for part, column in self.columns.items():
            if part not in PARTS:
                raise BedstoneError(f"columns: {part!r} is no part of a row{nearest(part, PARTS)}.")
            if column not in self._known:
                raise BedstoneError(
                    f"columns.{part}: data {name!r} has no column {column!r}"
                    f"{nearest(str(column), map(str, self._known))}."
                )

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int) -> str:
        """Where a row is from, for a message: `train.jsonl: line 3`."""
        return self._places[row] if self._places else f"{self.name}: row {row + 1:,}"

    def column(self, part: str) -> str | None:
        """The column that holds a part; None where there is none."""
        if part in self.columns:
            return self.columns[part]
        return next((name for name in PARTS[part] if name in self._known), None)

    def need(self, part: str) -> str:
        """The column that holds a part.

        Raises:
            BedstoneError: there is none; it names the columns there are.
        """
        column = self.column(part)
        if column is None:
            have = ", ".join(sorted(repr(str(key)) for key in self._known)[:20])
            usual = " or ".join(PARTS[part])
            raise BedstoneError(
                f"data {self.name!r}: has no column for the {part} ({usual}); it has {have}. Name "
                f"it: columns: {{{part}: ...}}"
            )
        return column

    def value(self, row: int, column: str) -> Any:
        """What a row has in a column.

        Raises:
            BedstoneError: nothing, or null.
        """
        value = self.rows[row].get(column)
        if value is None:
            missing = "null" if column in self.rows[row] else "missing"
            raise self.fault(row, column, f"is {missing}", "Fill it in, or leave the row out.")
        return value

    def texts(self, column: str, *, empty: bool = False) -> list[str]:
        """A column of texts.

        Args:
            empty: whether a text may be empty; null then is.

        Raises:
            BedstoneError: one is no text that a tokenizer can read, naming its row.
        """
        found = []
        for number, row in enumerate(self.rows):
            value = row.get(column)
            if not (empty and (value is None or value == "")):
                check_text(self.value(number, column), f"{self.where(number)}: column {column!r}")
            found.append(value or "")
        return found

    def fault(self, row: int, column: str, what: str, advice: str) -> BedstoneError:
        """The error that a row has in a column."""
        return BedstoneError(f"{self.where(row)}: column {column!r} {what}. {advice}")

    def hold_out(self, share: float) -> tuple["Dataset", "Dataset"]:
        """Rows to learn from and rows held out: equal rows stay on one side, whatever the order.

        Raises:
            BedstoneError: a side would be empty.
        """
        if not 0 < share < 1:
            raise BedstoneError(f"validation_share: {share} is out of range; expected 0 to 1.")
        held = [_hash(row) < share for row in self.rows]
        sides = [[i for i, out in enumerate(held) if out is side] for side in (False, True)]
        if not all(sides):
            raise BedstoneError(
                f"data {self.name!r}: has too few rows ({len(self):,}) to hold out {share:.0%} of "
                "them. Name more rows, or rows to validate on."
            )
        return self.pick(sides[0]), self.pick(sides[1])

    def take(self, count: int, seed: int = 0) -> "Dataset":
        """At most `count` of the rows, drawn by `seed`, in their order."""
        if count >= len(self):
            return self
        drawn = np.random.default_rng(seed).permutation(len(self))[:count]
        return self.pick(sorted(drawn.tolist()))

    def pick(self, chosen: Sequence[int]) -> "Dataset":
        """Some of the rows, which know where they are from."""
        return Dataset(
            [self.rows[i] for i in chosen],
            self.name,
            self._of(chosen),
            places=[self.where(i) for i in chosen],
            names=self.names,
        )

    def with_rows(self, rows: Sequence[dict[str, Any]]) -> "Dataset":
        """Other rows with the same columns, such as augmented ones."""
        return Dataset(rows, self.name, self.columns, names=self.names)

    def fingerprint(self) -> str:
        """A hash (hex) of all rows, in their order."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(_json(row))
        return digest.hexdigest()

    def _of(self, chosen: Sequence[int]) -> dict[str, str]:
        kept = {key for i in chosen for key in self.rows[i]}
        return {part: column for part, column in self.columns.items() if column in kept}


def open_dataset(
    name: str | Path, *, columns: Mapping[str, str] | None = None, split: str | None = None
) -> Dataset:
    """All rows that `name` stands for: JSON, JSONL, CSV, Parquet, Arrow, or a set on the hub.

    A text file is one row with the column `text`. Of a folder, `split` picks the files so named;
    see `sources.open_source`.

    Raises:
        BedstoneError: there is no such data, it can't be read, or `columns` doesn't fit it.
    """
    rows, places = [], []
    names: dict[str, list[str]] = {}
    chosen = (columns or {}).get("label")
    labels = (chosen,) if chosen else PARTS["label"]
    for place, row in _read(str(name), split, names, labels):
        if not isinstance(row, dict):
            raise BedstoneError(
                f"{place} is of type {type(row).__name__}; expected an object with named columns. "
                "Mend or remove that row."
            )
        rows.append(row)
        places.append(place)
    return Dataset(rows, str(name), columns, places=places, names=names)


def _read(
    name: str, split: str | None, names: dict[str, list[str]], labels: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    source = find(name, "text", split)
    if isinstance(source, Hub):
        for place, row in hub_rows(name, source.split, names):
            yield f"{name}: {place}", row
        return
    if not isinstance(source, Files):
        for number, piece in enumerate(source.pieces(), 1):
            yield f"{name}: document {number:,}", {"text": piece.text}
        return
    for path in source.paths:
        for place, row in _file(path, names, labels):
            yield f"{path}: {place}", row


def _file(
    path: Path, names: dict[str, list[str]], labels: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    suffix = data_suffix(path)
    if suffix in (".json", ".jsonl"):
        yield from json_rows(path)
    elif suffix == ".csv":
        rows = list(csv_rows(path))
        numbers = _numbers([row for _, row in rows], labels)
        for place, row in rows:
            # null where a cell is empty, as other formats have it
            yield place, {key: numbers.get(key, {}).get(v, v or None) for key, v in row.items()}
    elif suffix in (".parquet", ".arrow"):
        yield from table_rows(path, names)
    else:
        yield "the file", {"text": "".join(piece.text for piece in read_text(path))}


def _numbers(rows: Sequence[dict[str, str]], labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """What the cells of a CSV stand for, in columns of labels that hold only numbers."""
    found: dict[str, dict[str, float]] = {}
    for column in set(rows[0]) & set(labels) if rows else ():
        cells = {row[column] for row in rows} - {""}
        for kind in (int, float):
            try:
                found[column] = {cell: kind(cell) for cell in cells}
                break
            except ValueError:
                continue
    return found


def _hash(row: dict[str, Any]) -> float:
    """A number from 0 to 1 that a row's content alone decides."""
    digest = hashlib.sha256(_json(row)).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _json(row: dict[str, Any]) -> bytes:
    return json.dumps(row, sort_keys=True, default=str).encode()


# Rows that have a picture each: picked, held out by their pictures, and counted where broken.

REPORTED = 5  # broken rows that a message names

ImageRow = bytes | Path | np.ndarray | Callable[[], np.ndarray]


class HasImage(Protocol):
    """A row with a picture: encoded bytes, a file, pixels, or what draws them."""

    @property
    def picture(self) -> ImageRow: ...

    @property
    def place(self) -> str:
        """Where it is from, for messages."""


Row = TypeVar("Row", bound=HasImage)


@dataclass
class Faults:
    """Rows that were left out, and why."""

    name: str
    most: float
    rows: int = 0
    broken: list[str] = field(default_factory=list)

    def add(self, error: BedstoneError | str) -> None:
        self.broken.append(str(error))

    def check(self) -> None:
        """Raises BedstoneError where more than the share `most` of the rows is broken."""
        if len(self.broken) > self.most * self.rows:
            raise BedstoneError(
                f"data {self.name!r}: {len(self.broken):,} of {self.rows:,} rows are broken, more "
                f"than data.most_broken = {self.most:g} of them: {self.told()} Mend or remove "
                "them, or raise data.most_broken."
            )

    def told(self) -> str:
        """The first broken rows, and how many more there are."""
        more = len(self.broken) - REPORTED
        return "; ".join(self.broken[:REPORTED]) + (f"; and {more:,} more." if more > 0 else ".")


class ImageDataset(Generic[Row]):
    """Rows in the source's order, and what was left out.

    Attributes:
        rows: what there is to learn.
        name: what they are called in messages.
        faults: rows that were left out.

    Raises:
        BedstoneError: there is no row.
    """

    what = "row with a picture"  # of which there is none, in a message

    def __init__(self, rows: Sequence[Row], name: str, faults: Faults | None = None) -> None:
        self.rows, self.name = list(rows), name
        self.faults = faults or Faults(name, 0.0, len(self.rows))
        if not self.rows:
            left = f" Left out: {self.faults.told()}" if self.faults.broken else ""
            raise BedstoneError(f"data {name!r}: holds no {self.what}.{left}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Row:
        return self.rows[row]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def pick(self, chosen: Sequence[int]) -> Self:
        """Some of the rows, by their numbers."""
        raise NotImplementedError

    def content(self, row: Row) -> bytes:
        """All that a row says, without its picture."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A hash (hex) of all rows in their order: what they say, and pictures or their sizes."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(self.content(row) + _pixels(row))
        return digest.hexdigest()

    def hold_out(self, share: float) -> tuple[Self, Self]:
        """Rows to learn from and rows held out; equal pictures stay on one side.

        Raises:
            BedstoneError: a side would be empty.
        """
        held = [_place(row) < share for row in self.rows]
        sides = [[i for i, out in enumerate(held) if out is side] for side in (False, True)]
        if not all(sides):
            raise BedstoneError(
                f"data {self.name!r}: has too few rows ({len(self):,}) to hold out {share:.0%} of "
                "them. Name more rows, or rows to validate on (data.validation)."
            )
        return self.pick(sides[0]), self.pick(sides[1])

    def take(self, count: int, seed: int = 0) -> Self:
        """At most `count` of the rows, drawn by `seed`, in their order."""
        if not count or count >= len(self):
            return self
        drawn = np.random.default_rng(seed).permutation(len(self))[:count]
        return self.pick(sorted(drawn.tolist()))


def _pixels(row: HasImage) -> bytes:
    """What tells a picture from another; of a file, its name and size."""
    picture = row.picture
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).digest()
    if isinstance(picture, Path):
        return f"{picture.name} {picture.stat().st_size}".encode()
    if isinstance(picture, np.ndarray):
        return hashlib.sha256(picture.tobytes()).digest()
    return row.place.encode()  # what is drawn is drawn by its place alone


def _place(row: HasImage) -> float:
    """A number from 0 to 1 that a picture's content alone decides."""
    return int.from_bytes(hashlib.sha256(_pixels(row)).digest()[:6], "big") / 2**48


# Rows that may have a picture beside their text and other columns: posts, items of a catalogue.

IMAGES = ("image", "img", "picture", "photo", "image_path", "file_name")  # columns by usual names


def with_images(
    name: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    image: str | None = None,
    split: str | None = None,
) -> Dataset:
    """All rows of a source (see `data.sources`), whose `image` is a `Path`, bytes or None.

    Nothing is decoded. A path is relative to the folder of the file that names it.

    Args:
        columns: {part: column} of texts and labels, where the usual names aren't used.
        image: the column of pictures, where it hasn't a usual name.

    Raises:
        BedstoneError: there is no such data or column, or a row's picture is neither bytes nor a
            file's name.
    """
    names: dict[str, list[str]] = {}
    raw = list(raw_rows(str(name), split, names))
    known = {key for each in raw for key in each.values}
    if image is not None and image not in known:
        raise BedstoneError(f"data {str(name)!r}: has no column {image!r}{nearest(image, known)}.")
    column = image or next((each for each in IMAGES if each in known), None)
    rows = [{**each.values, "image": _picture(each, column)} for each in raw]
    return Dataset(rows, str(name), columns, places=[each.place for each in raw], names=names)


def _picture(raw: Raw, column: str | None) -> Path | bytes | None:
    value: Any = raw.values.get(column) if column else None
    if isinstance(value, Mapping):  # as the `datasets` library stores them
        value = value.get("bytes") or value.get("path")
    if value is None or isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value.strip():
        raise BedstoneError(
            f"{raw.place}: column {column!r} is {str(value)[:60]!r}; expected a picture's bytes or "
            "its file's name. Mend it, or leave the row out."
        )
    path = raw.folder / value
    if raw.inside and not path.resolve().is_relative_to(raw.folder.resolve()):
        raise BedstoneError(
            f"{raw.place}: column {column!r} is {value!r}, which lies outside {raw.folder}; "
            "expected a file of that folder."
        )
    return path


@dataclass
class ImagesConfig:
    """Rows with pictures.

    Attributes:
        source: scenes (built in), a Parquet, Arrow, JSONL or CSV file, a folder of pictures with a
            metadata.jsonl, a glob or a hub id.
        validation: another source to validate on; empty holds out a share of `source`.
        split: of a hub id or a folder with splits.
        validation_share: share of the pictures held out.
        columns: which column holds what, where the usual names aren't used, as `{text: title}`. A
            text may be a sentence made of columns, `"{title}, a {colour} {kind}"`, and there may
            be a list of them.
        most_rows: take this many rows at most, drawn by the seed; 0 takes all. Of scenes, how many
            are drawn; 0 is 20,000.
        most_broken: share of rows that may be broken; such rows are left out and named.
        objects: things in a picture of scenes, the fewest and the most.
        enlarge: how many times larger than the network's pictures they are kept, for crops to
            choose from; 1.25 suits photos that are cropped.
        memory_mb: megabytes of decoded pictures to keep; larger sets are decoded as they are read.
        workers: threads that make batches ready.
    """

    source: str = "scenes"
    validation: str = ""
    split: str | None = None
    validation_share: float = 0.05
    columns: dict[str, Any] = field(default_factory=dict)
    most_rows: int = 0
    most_broken: float = 0.05
    objects: tuple[int, ...] = (1, 5)
    enlarge: float = 1.0
    memory_mb: float = 2048.0
    workers: int = 1

    def __post_init__(self) -> None:
        at_least(self, 0, "most_rows", "workers", prefix="data.")
        for name in ("most_broken", "validation_share"):
            check_shares({f"data.{name}": getattr(self, name)})
        if not 1 <= self.enlarge <= 4:
            raise BedstoneError(f"data.enlarge: {self.enlarge} was given; expected 1 to 4.")
        if len(self.objects) != 2:
            raise BedstoneError(
                f"data.objects: {list(self.objects)} was given; expected two numbers, the fewest "
                "and the most things in a picture."
            )

    @property
    def things(self) -> tuple[int, int]:
        """The fewest and the most things in a scene."""
        return self.objects[0], self.objects[1]
