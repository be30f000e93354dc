"""Sources of an image index (a folder with metadata, or rows of a table) and filling it.

A source lists its items cheaply; an item's bytes are read only where its mark (size and time of
change) differs from what the index has.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bedstone.bulk.places import Aside
from bedstone.bulk.shares import WHOLE, Shard
from bedstone.data.bytes import data_suffix
from bedstone.data.folders import find_metadata
from bedstone.data.images.decode import IMAGE_SUFFIXES, find_images, find_unread
from bedstone.data.open import open_dataset
from bedstone.data.records import FORMATS, Reading, cell_numbers
from bedstone.data.sources import read_records
from bedstone.data.tables import ArrowCells, ParquetCells, stored_cells
from bedstone.errors import BedstoneError, nearest
from bedstone.tasks.search.index import Index, Row, kinds_of

FILE_COLUMNS = ("file_name", "file", "filename", "image", "path")
PICTURE_COLUMNS = ("image", "img", "picture", "file_name", "path")
STORED: Any = object()  # stands for bytes in a row, which are read when they are asked for


@dataclass(frozen=True)
class Item:
    """An image to index.

    Attributes:
        key: its name in the index.
        mark: changes whenever its content may have.
        read: its bytes or path, as `data.images.decode.decode` takes them; raises OSError.
        columns: its metadata.
    """

    key: str
    mark: str
    read: Callable[[], Any]
    columns: Mapping[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """A hash of the content. Raises OSError."""
        image = self.read()
        if isinstance(image, Path):
            with image.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()[:32]
        return hashlib.sha256(image).hexdigest()[:32]


class Source(Protocol):
    """Where items come from.

    Attributes:
        place: its absolute path.
        strays: rows of metadata that name no image.
        broken: items that can't even be listed, and why.
    """

    place: str
    strays: list[str]
    broken: dict[str, str]

    def items(self) -> list[Item]:
        """All of them, in a fixed order."""

    def image(self, key: str) -> Any:
        """The path or bytes of an item by its key; None where it is gone."""


def open_source(place: str | Path, metadata: str | Path | None = None) -> Source:
    """A folder of images, or a file of rows that hold them.

    Args:
        metadata: a file of rows with a column `file_name`, instead of the folder's metadata.jsonl
            or metadata.csv.

    Raises:
        BedstoneError: there is no such thing, it has no image, or the metadata can't be read.
    """
    path = Path(place)
    if path.is_file() and data_suffix(path) in FORMATS:
        if metadata is not None:
            raise BedstoneError(f"{path}: its rows have their own columns; leave --metadata out.")
        return RowSource(path)
    if path.is_file():
        raise BedstoneError(
            f"{path}: is a file; expected a folder of pictures, or rows ({', '.join(FORMATS)})."
        )
    return FolderSource(path, None if metadata is None else Path(metadata))


class FolderSource:
    """The images below a folder; their keys are their paths in it."""

    def __init__(self, folder: Path, metadata: Path | None = None) -> None:
        self.folder, self.place = folder, str(folder.resolve())
        self.strays: list[str] = []
        self.broken: dict[str, str] = {}
        if not folder.is_dir():
            raise BedstoneError(f"{folder}: no such folder. Name a folder of pictures.")
        if metadata is not None and not metadata.is_file():
            raise BedstoneError(f"{metadata}: no such file of metadata.")
        self._metadata = [(metadata, folder)] if metadata else find_metadata(folder)

    def items(self) -> list[Item]:
        columns: dict[str, dict[str, Any]] = {}
        for file, home in self._metadata:
            columns |= _read(file, home.relative_to(self.folder))
        items = []
        for path in find_unread(self.folder):
            key = ascii(path.relative_to(self.folder).as_posix())
            self.broken[key] = f"{key}: is a picture in a format that isn't read ({path.suffix})"
        for path in find_images(self.folder):
            key = path.relative_to(self.folder).as_posix()
            try:
                key.encode()
                mark = _mark(path)
            except (OSError, UnicodeEncodeError) as error:
                self.broken[ascii(key)] = f"{key!a}: can't be read ({error})"
                continue
            items.append(Item(key, mark, lambda path=path: path, columns.pop(key, {})))  # type: ignore[misc]
        self.strays = sorted(columns)
        if not items and not self.broken:
            raise BedstoneError(
                f"{self.folder}: holds no picture ({', '.join(sorted(IMAGE_SUFFIXES))}). Name a "
                "folder that does."
            )
        return items

    def image(self, key: str) -> Any:
        path = self.folder / key
        return path if path.is_file() else None


class RowSource:
    """The rows of a file with a column of images; their keys are the file's name and the row.

    Images that the file holds aren't kept in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.place = path, str(path.resolve())
        self.strays: list[str] = []
        self.broken: dict[str, str] = {}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """All rows, `STORED` in the place of bytes, classes by their names."""
        reading = Reading()
        rows = [
            {name: STORED if _bytes(value) else value for name, value in raw.values.items()}
            for raw in read_records(self.path, images=True, reading=reading)
        ]
        for row in rows:
            for column in reading.names.keys() & row.keys():
                names = reading.names[column]
                if isinstance(row[column], int) and 0 <= row[column] < len(names):
                    row[column] = names[row[column]]
        return rows

    @cached_property
    def column(self) -> str:
        """The column that holds the images.

        Raises:
            BedstoneError: there is none.
        """
        known = {name for row in self.rows for name in row}
        found = next((name for name in PICTURE_COLUMNS if name in known), None)
        if found is None:
            raise BedstoneError(
                f"{self.path}: has no column of pictures ({', '.join(PICTURE_COLUMNS)}); it has "
                f"{', '.join(sorted(map(str, known))) or 'no row'}. Rename the one that holds them."
            )
        return found

    @cached_property
    def _cells(self) -> ParquetCells | ArrowCells:
        return stored_cells(self.path, self.column)

    def items(self) -> list[Item]:
        mark = _mark(self.path)
        items = []
        for number, row in enumerate(_typed(self.rows, self.path)):
            key = f"{self.path.name}#{number}"
            rest = {
                name: value
                for name, value in row.items()
                if name != self.column and value is not STORED
            }
            image = self._named(number)
            if image is None:
                self.broken[key] = f"{self.path}: row {number + 1:,} has no picture"
                continue
            own = _mark(image) if isinstance(image, Path) else mark
            items.append(Item(key, own, lambda key=key: self.image(key), rest))  # type: ignore[misc]
        if not items and not self.broken:
            raise BedstoneError(f"{self.path}: holds no row. Name a file that does.")
        return items

    def image(self, key: str) -> Any:
        number = key.rpartition("#")[2]
        if not number.isdigit() or int(number) >= len(self.rows):
            return None
        named = self._named(int(number))
        return _bytes(self._cells[int(number)]) if named is STORED else named

    def _named(self, number: int) -> Any:
        """The path of a row's image, or `STORED`; None where it has none."""
        value = self.rows[number].get(self.column)
        if isinstance(value, Mapping):
            value = value.get("path")
        if isinstance(value, str) and value:
            return self.path.parent / value
        return STORED if value is STORED else None


def _bytes(value: Any) -> bytes | None:
    """The bytes that a cell holds, by themselves or as `datasets` stores images."""
    held = value.get("bytes") if isinstance(value, Mapping) else value
    return held if isinstance(held, bytes) and held else None


def _mark(path: Path) -> str:
    """Size and time of change; of a file that is gone, none that was ever noted."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return "gone"
    return f"{state.st_size}:{state.st_mtime_ns}"


def _read(file: Path, home: Path) -> dict[str, dict[str, Any]]:
    """Metadata by the key of its image."""
    rows = open_dataset(file)
    known = {name for row in rows.rows for name in row}
    column = next((name for name in FILE_COLUMNS if name in known), None)
    if column is None:
        raise BedstoneError(
            f"{file}: has no column file_name, which says whose picture a row tells of"
            f"{nearest('file_name', known)}."
        )
    found = {}
    for number, row in enumerate(_typed(rows.rows, file)):
        name = row.get(column)
        if not isinstance(name, str) or not name:
            raise BedstoneError(
                f"{rows.where(number)}: column {column!r} is {name!r}; expected a file's name."
            )
        found[(home / name).as_posix()] = {k: v for k, v in row.items() if k != column}
    return found


def _typed(rows: list[dict[str, Any]], file: Path) -> list[dict[str, Any]]:
    """Rows whose columns may be an index's; a CSV's columns of only numbers hold numbers."""
    named = [{_column_name(key): value for key, value in row.items()} for row in rows]
    if data_suffix(file) not in (".csv", ".tsv"):
        return named
    numbers = cell_numbers(named, sorted({name for row in named for name in row}))
    return [
        {k: numbers[k].get(v, v) if k in numbers else v for k, v in row.items()} for row in named
    ]


def _column_name(name: Any) -> str:
    """A point would mean a part of the column."""
    return str(name).replace(".", "_")


# Filling an index from a source: only what is new or changed is embedded.
#
# What the index says of an item is its stamp: the mark of its content (size and time), the hash of
# its content and the hash of its metadata. An item with an equal mark is left alone; with another
# mark and an equal hash, only its stamp is renewed; with other metadata, its vector is kept.
# Batches are stored as they come, so a run that is stopped goes on where it was.

BATCH = 128  # images of a commit

Stored = Callable[[list[str]], None]
# Batches of images, as `Item.read` gives them, to a vector or an `Aside` of each, in their order.
Embedding = Callable[[Iterable[list[Any]]], Iterator[list[Any]]]


class Embeds(Protocol):
    """A model that embeds, such as `tasks.images.engine.ImageEngine`."""

    @property
    def name(self) -> str:
        """A name that only this model with these weights has."""

    @property
    def width(self) -> int:
        """Numbers of a vector."""

    def images(
        self, images: Iterable[Any], *, faults: Callable[[int, BedstoneError], None] | None = None
    ) -> np.ndarray:
        """Vectors (n, E) of images; `faults` is told of each that can't be read, left out."""

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (n, E) of texts."""


@dataclass
class Filled:
    """The result of filling: counts of items, and the broken ones by key with the reason."""

    added: int = 0
    changed: int = 0
    renewed: int = 0  # metadata or time alone
    unchanged: int = 0
    removed: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    strays: int = 0  # rows of metadata that name no image

    def summary(self) -> str:
        """One line for people."""
        parts = [f"{self.added:,} added", f"{self.changed:,} changed"]
        parts += [f"{self.renewed:,} with new metadata"] if self.renewed else []
        parts += [f"{self.unchanged:,} unchanged", f"{self.removed:,} removed"]
        parts += [f"{len(self.broken):,} broken"] if self.broken else []
        parts += [f"{self.strays:,} rows of metadata name no picture"] if self.strays else []
        return ", ".join(parts)


def fill(
    index: Index,
    embedder: Embeds,
    source: Source,
    *,
    batch: int = BATCH,
    stored: Stored = lambda keys: None,
    elsewhere: Embedding | None = None,
    share: Shard = WHOLE,
) -> Filled:
    """Synchronises the index with its source: new and changed items are embedded.

    Args:
        batch: items embedded and stored at a time.
        stored: is told the keys of each batch when it is on the disk.
        elsewhere: embeds batches in the place of `embedder`.
        share: of the items, in blocks of a batch; the index holds no others.

    Raises:
        BedstoneError: the source is empty, metadata doesn't fit the index, or another process
            writes to it. Items that can't be read are left out, and told in the result.
    """
    items = source.items()
    index.prepare(kinds_of(item.columns for item in items))
    items = [items[row] for row in share.rows(len(items), batch)]
    known = index.stamps()
    done = Filled(strays=len(source.strays), broken=dict(source.broken))
    here = {item.key for item in items}
    done.removed += index.remove(known.keys() - here)
    renewed: list[tuple[Item, str]] = []
    given: deque[list[tuple[Item, str]]] = deque()  # batches that are embedded, in order

    def batches() -> Iterator[list[Any]]:
        waiting: list[tuple[Item, str]] = []
        for item, stamp, same in _changes(items, known, done):
            if stamp == known.get(item.key):
                done.unchanged += 1
                continue
            (renewed if same else waiting).append((item, stamp))
            if len(waiting) >= batch:
                given.append(waiting)
                yield [each.read() for each, _ in waiting]
                waiting = []
            if len(renewed) >= batch:
                _renew(index, renewed, done, stored)
                renewed.clear()
        if waiting:
            given.append(waiting)
            yield [each.read() for each, _ in waiting]

    for results in (elsewhere or _by(embedder))(batches()):
        _store(index, given.popleft(), results, known, done, stored)
    _renew(index, renewed, done, stored)
    done.removed += index.remove(known.keys() & done.broken.keys())  # what it was is no more
    index.tidy()  # where nothing was new too: it takes away what an earlier rewrite replaced
    return done


def embed_images(embedder: Embeds, images: list[Any]) -> list[Any]:
    """The vector of each image, (E,), or an `Aside` for one that can't be read."""
    faulty: dict[int, BedstoneError] = {}
    vectors = iter(embedder.images(images, faults=faulty.__setitem__))
    return [
        Aside(str(faulty[number])) if number in faulty else next(vectors)
        for number in range(len(images))
    ]


def _by(embedder: Embeds) -> Embedding:
    return lambda batches: (embed_images(embedder, images) for images in batches)


def _changes(
    items: Sequence[Item], known: dict[str, str], done: Filled
) -> Iterator[tuple[Item, str, bool]]:
    """Each item that can be read, its stamp of today, and whether its content is as known."""
    for item in items:
        mark, content, _ = known.get(item.key, "  ").split(" ")
        same = mark == item.mark
        if not same:
            try:
                now = item.digest()
            except (OSError, ValueError) as error:
                done.broken[item.key] = f"{item.key}: can't be read ({error})"
                continue
            same, content = now == content, now
        yield item, f"{item.mark} {content} {_digest(item.columns)}", same


def _store(
    index: Index,
    given: Sequence[tuple[Item, str]],
    results: Sequence[Any],
    known: dict[str, str],
    done: Filled,
    stored: Stored,
) -> None:
    rows = []
    for (item, stamp), result in zip(given, results, strict=True):
        if isinstance(result, Aside):
            reason, key = result.reason, item.key
            done.broken[key] = reason if key in reason else f"{key}: {reason}"
        else:
            rows.append(Row(item.key, result, item.columns, stamp))
    keys = index.add(rows)
    fresh = sum(key not in known for key in keys)
    done.added += fresh
    done.changed += len(keys) - fresh
    if keys:
        stored(keys)


def _renew(index: Index, given: Sequence[tuple[Item, str]], done: Filled, stored: Stored) -> None:
    """Stores items again with the vectors they have."""
    vectors = index.get([item.key for item, _ in given])
    rows = [Row(item.key, vectors[item.key], item.columns, stamp) for item, stamp in given]
    keys = index.add(rows)
    done.renewed += len(keys)
    if keys:
        stored(keys)


def _digest(columns: Any) -> str:
    text = json.dumps(dict(columns), sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
