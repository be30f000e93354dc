"""Readers of files: text, JSON, JSONL, CSV, Parquet, Arrow, and data sets on the hub.

Each format is read by one lazy function. `file_records` gives rows as `Record`s, `file_pieces` the
text of one column. Every fault is a `BedstoneError` that names the file, the line or row, and the
column: broken syntax, a missing column, a value that is no string, a row too large, bad UTF-8.
"""

import codecs
import csv
import gzip
import json
import logging
import re
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bedstone.errors import BedstoneError, closest

PIECE = 8_192  # characters; where tokenizers are fastest: cache-friendly, many per batch
LONGEST = 65_536  # characters; a text without a single space is cut here, whatever it costs

_SPACE = re.compile(r"(?<=\w) (?=\w)")


@dataclass(frozen=True)
class Record:
    """A row as a file has it.

    Attributes:
        place: where it is from, for messages: the file, and the line or row.
        values: {column: value}.
        folder: what a file's path in it is relative to.
        inside: whether such a path must stay in the folder.
    """

    place: str
    values: dict[str, Any]
    folder: Path = Path()
    inside: bool = False


def find_break(text: str, start: int, stop: int) -> int | None:
    """The first harmless cut in `text[start:stop]`, as an index of `text`; None if none is."""
    found = _SPACE.search(text, start, min(stop + 1, len(text)))
    return found.start() if found and found.start() < stop else None


def cuts(text: str, piece: int = PIECE, longest: int = LONGEST) -> Iterator[str]:
    """Pieces of `text`, in order: at least `piece` and at most `longest` characters but the last.

    Where `longest` characters hold no harmless cut, the piece ends after a line break if there is
    one, else anywhere: the ids near such a cut may differ from those of the uncut text.
    """
    start = 0
    while len(text) - start > piece:
        cut = find_break(text, start + piece, start + longest)
        if cut is None:
            if len(text) - start <= longest:
                break
            cut = text.rfind("\n", start + piece, start + longest) + 1 or start + longest
        yield text[start:cut]
        start = cut
    yield text[start:] if start else text


# Text files: decoded block by block, never the whole file at once.

BLOCK = 1 << 20  # bytes read at a time, and about the size of a long document's pieces
_TAIL = 1 << 16  # characters at the end of a block where a harmless cut is looked for


class Piece(NamedTuple):
    """Part of a document, in order; most documents are one piece.

    `ends` is whether the document ends here. Documents of equal `key` are kept on the same side
    when a share is held out; None means that equal content is.
    """

    text: str
    ends: bool = True
    key: str | None = None


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, unpacked where the name ends in `.gz`."""
    try:
        if path.suffix == ".gz":
            return gzip.open(path)  # type: ignore[return-value]
        return path.open("rb")
    except OSError as error:
        raise BedstoneError(f"{path}: can't be read ({error.strerror}).") from error


def read_text(path: Path) -> Iterator[Piece]:
    """One document a file, its line ends as they are, in pieces of about a megabyte."""
    held = ""
    for block in _decoded(path):
        held += block
        if len(held) < BLOCK:
            continue
        cut = find_break(held, len(held) - _TAIL, len(held) - 1)
        if cut is None:  # no word ends here, so a cut anywhere is as good
            cut = len(held) - 1
        yield Piece(held[:cut], ends=False)
        held = held[cut:]
    yield Piece(held)


def _decoded(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    at = 0  # bytes before this block
    for block in blocks(path):
        waiting = len(decoder.getstate()[0])
        if at == 0:
            if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise BedstoneError(
                    f"{path}: looks like UTF-16; expected UTF-8. Convert it with: "
                    f"iconv -f UTF-16 -t UTF-8 {path.name} > converted.txt"
                )
            block, at = without_bom(block)
        try:
            text = decoder.decode(block)
        except UnicodeDecodeError as error:
            raise bad_utf8(path, at - waiting + error.start) from error
        if "\0" in text:
            offset = at - waiting + len(text[: text.index("\0")].encode())
            raise binary(path, f"a NUL byte at offset {offset:,}")
        at += len(block)
        yield text
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise bad_utf8(path, at - len(error.object)) from error


def without_bom(block: bytes) -> tuple[bytes, int]:
    bom = codecs.BOM_UTF8
    return (block[len(bom) :], len(bom)) if block.startswith(bom) else (block, 0)


def blocks(path: Path) -> Iterator[bytes]:
    """The file's bytes, a megabyte at a time."""
    with open_bytes(path) as file:
        while block := careful(path, lambda: file.read(BLOCK)):
            yield block


def careful(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, EOFError, zlib.error) as error:
        raise BedstoneError(
            f"{path}: can't be read ({error}). The file may be cut short or damaged; "
            "copy or fetch it again."
        ) from error


def bad_utf8(path: Path, offset: int) -> BedstoneError:
    return BedstoneError(
        f"{path}: is not UTF-8 at byte {offset:,}; expected UTF-8 text. If it is in another "
        f"encoding, such as Latin-1, convert it with: "
        f"iconv -f LATIN1 -t UTF-8 {path.name} > converted.txt"
    )


def binary(path: Path, sign: str) -> BedstoneError:
    return BedstoneError(
        f"{path}: is not text ({sign}). Expected UTF-8 text (txt, md, source code) or rows "
        "(jsonl, json, csv, parquet, arrow); name only such files."
    )


def looks_like_text(path: Path) -> bool:
    """Whether the first kilobytes are UTF-8 without NUL."""
    with open_bytes(path) as file:
        sample = careful(path, lambda: file.read(8192))
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return False
    return b"\0" not in sample


# Rows of each format. A JSON row may be of any type; what needs columns checks it.

LARGEST_ROW = 64 << 20  # bytes; a row is held whole, so it needs a limit
ROWS, CELLS = 256, 128  # of a table, and of one column, read at a time
# A page at a time: else the whole column of a row group would be read at once.
PAGES: dict[str, Any] = {"buffer_size": 1 << 16, "pre_buffer": False}

Row = tuple[str, Any]  # its place in the file, such as "line 3", and its columns
Names = dict[str, list[str]]  # {column: names}: what the numbers of a column stand for


def json_rows(path: Path) -> Iterator[Row]:
    """The rows of a file with one JSON value a line.

    A `.json` file may also be one array of objects; it is then held whole in memory.
    """
    with open_bytes(path) as file:
        first = careful(path, lambda: file.read(64)).lstrip()
    if first.startswith(b"["):
        yield from _read_array(path)
        return
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BedstoneError(
                f"{path}: line {number:,} is not valid JSON ({_short(error)}); expected one "
                "object a line. Mend or remove that line."
            ) from error
        yield f"line {number:,}", row


def _read_array(path: Path) -> Iterator[Row]:
    data = b"".join(blocks(path))
    try:
        rows = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise bad_utf8(path, error.start) from error
    except (ValueError, RecursionError) as error:
        raise BedstoneError(
            f"{path}: is not valid JSON ({_short(error)}); expected an array of objects, or one "
            "object a line. Mend or write it again."
        ) from error
    del data
    for number, row in enumerate(rows, 1):
        yield f"row {number:,}", row


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    at = 0
    with open_bytes(path) as file:
        number = 0
        while line := careful(path, lambda: file.readline(LARGEST_ROW + 1)):
            number += 1
            if len(line) > LARGEST_ROW:
                raise _too_large(path, f"line {number:,}")
            if number == 1:
                line, at = without_bom(line)
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise bad_utf8(path, at + error.start) from error
            if "\0" in text:
                raise binary(path, f"a NUL byte in line {number:,}")
            at += len(line)
            yield number, text


def _too_large(path: Path, place: str) -> BedstoneError:
    return BedstoneError(
        f"{path}: {place} is larger than {LARGEST_ROW >> 20} MiB, the most one row may hold. "
        "Split that row, or store the text as a .txt file, which may be of any size."
    )


def csv_rows(path: Path, numbers: Sequence[str] = ()) -> Iterator[Row]:
    """The rows under the header; an empty cell is None, as in other formats, others are strings.

    Args:
        numbers: columns whose cells are numbers, where all of a column's are.
    """
    rows = _csv(path)
    next(rows, None)
    known: dict[str, dict[str, float]] = {}
    if numbers:
        held = list(rows)
        known = _numbers([row for _, row in held], numbers)
        rows = iter(held)
    for place, row in rows:
        yield place, {key: known.get(key, {}).get(cell, cell or None) for key, cell in row.items()}


def _numbers(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> dict[str, dict[str, float]]:
    """The numbers of cells, in those of the columns that hold only numbers."""
    found: dict[str, dict[str, float]] = {}
    for column in set(rows[0]) & set(columns) if rows else ():
        cells = {row[column] for row in rows} - {""}
        for kind in (int, float):
            try:
                found[column] = {cell: kind(cell) for cell in cells}
                break
            except ValueError:
                continue
    return found


def _csv(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The header, with its names as keys, then the rows."""
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_ROW))
    rows = csv.reader((text for _, text in _lines(path)), strict=True)
    names: list[str] | None = None
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            if "field limit" in str(error):
                raise _too_large(path, f"the row ending in line {rows.line_num:,}") from error
            raise BedstoneError(
                f"{path}: line {rows.line_num:,} is not valid CSV ({error}). "
                "Mend or remove that row."
            ) from error
        if row is None:
            return
        place = f"the row ending in line {rows.line_num:,}"
        if names is None:
            names = row
            yield place, dict.fromkeys(names, "")
        elif row:
            if len(row) != len(names):
                raise BedstoneError(
                    f"{path}: {place} has {len(row)} fields; expected {len(names)}, as in the "
                    "header. Mend or remove that row."
                )
            yield place, dict(zip(names, row, strict=True))


def table_rows(path: Path, names: Names | None = None) -> Iterator[Row]:
    """The rows of a Parquet or Arrow file; images and sounds are the bytes that are stored.

    `names` is given those that the file holds.
    """
    number = count(1)
    try:
        if data_suffix(path) == ".parquet":
            file = pq.ParquetFile(path, **PAGES)
            schema, batches = file.schema_arrow, file.iter_batches(ROWS)
        else:
            batches = _open_arrow(path)
            schema = batches.schema
        if names is not None:
            _stored_names(schema, names)
        for batch in batches:
            for row in batch.to_pylist():
                yield f"row {next(number):,}", row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BedstoneError(
            f"{path}: can't be read as a {path.suffix[1:]} file ({_short(error)}). "
            "The file may be cut short or of another format; write or fetch it again."
        ) from error


def _open_arrow(path: Path) -> pa.RecordBatchReader:
    """An Arrow file, a stream or with an index, mapped into memory."""
    mapped = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(mapped)
    except pa.ArrowInvalid:
        return pa.ipc.open_file(mapped).read_all().to_reader(ROWS)


def _stored_names(schema: pa.Schema, names: Names) -> None:
    """Names of classes, as the `datasets` library keeps them beside the columns."""
    stored = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(stored)["info"]["features"] if stored else {}
    except (ValueError, KeyError, TypeError):
        return
    for column, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else feature
        if isinstance(inner, dict) and isinstance(inner.get("names"), list):
            names[column] = [str(name) for name in inner["names"]]


def hub_rows(
    name: str, split: str, names: Names | None = None, built_in: str = "python-docs"
) -> Iterator[Row]:
    """The rows of a data set on the hub, or of its copy in the offline cache.

    `names` is given those that the set holds; `built_in` is data that an error recommends instead.
    """
    datasets = import_datasets()
    try:
        found = datasets.load_dataset(name, split=split, streaming=True)
        for column, feature in (found.features or {}).items():
            if isinstance(feature, datasets.Image):
                found = found.cast_column(column, datasets.Image(decode=False))
            inner = getattr(feature, "feature", feature)
            if names is not None and getattr(inner, "names", None):
                names[column] = list(inner.names)
        for number, row in enumerate(found, 1):
            yield f"row {number:,}", row
    except Exception as error:  # that library raises dozens of kinds, all about the data
        raise BedstoneError(
            f"data {name!r}: is no file or folder here, and can't be read from the hub "
            f"({_short(error)}). Without a network, download it elsewhere with "
            f"datasets.load_dataset({name!r}) and its to_parquet(), then name that file; "
            f"or use the built-in data: {built_in}."
        ) from error


def import_datasets() -> Any:
    """The `datasets` module, imported when first needed: it takes about a second."""
    import datasets

    # The message of a fault is one paragraph, without that library's log.
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    return datasets


def data_suffix(path: Path) -> str:
    """`.jsonl` of `rows.jsonl` and of `rows.jsonl.gz`, in lower case."""
    name = path.with_suffix("") if path.suffix == ".gz" else path
    return name.suffix.lower()


def file_rows(
    path: Path, names: Names | None = None, numbers: Sequence[str] = ()
) -> Iterator[Row] | None:
    """The rows of a file by the format that its name says; None where it is text."""
    suffix = data_suffix(path)
    if suffix in (".json", ".jsonl"):
        return json_rows(path)
    if suffix == ".csv":
        return csv_rows(path, numbers)
    if suffix in (".parquet", ".arrow"):
        return table_rows(path, names)
    return None


def records(name: str | Path, rows: Iterator[Row], folder: Path = Path()) -> Iterator[Record]:
    """Rows as records, their places named after `name`.

    Raises:
        BedstoneError: a row has no columns.
    """
    for place, row in rows:
        if not isinstance(row, dict):
            raise BedstoneError(
                f"{name}: {place} is of type {type(row).__name__}; expected an object with "
                "named columns. Mend or remove that row."
            )
        yield Record(f"{name}: {place}", row, folder)


# Text in one column of rows.

FORMATS = (".jsonl", ".json", ".csv", ".parquet", ".arrow")  # of rows; any other file is text


def file_pieces(path: Path, column: str) -> Iterator[Piece]:
    """The text of a file: one document, or of rows a document each, the string in `column`."""
    if data_suffix(path) == ".csv":
        return _csv_pieces(path, column)
    rows = file_rows(path)
    return read_text(path) if rows is None else _pieces(rows, column, path)


def hub_pieces(name: str, split: str, column: str) -> Iterator[Piece]:
    """The text of a data set on the hub: a document a row, the string in `column`."""
    return _pieces(hub_rows(name, split), column, name)


def _csv_pieces(path: Path, column: str) -> Iterator[Piece]:
    rows = _csv(path)
    for header in rows:
        _cell(header[1], column, path, "the header")
        for place, row in rows:
            yield Piece(_cell(row, column, path, place))


def _pieces(rows: Iterator[Row], column: str, name: str | Path) -> Iterator[Piece]:
    for place, row in rows:
        text = _cell(row, column, name, place)
        if len(text) > LARGEST_ROW:
            raise _too_large(Path(name), place)
        yield Piece(text)


def _cell(row: Any, column: str, name: str | Path, place: str) -> str:
    if not isinstance(row, dict):
        raise BedstoneError(
            f"{name}: {place} is of type {type(row).__name__}; expected an object with the column "
            f"{column!r}. Mend or remove that row."
        )
    if column not in row:
        have = ", ".join(repr(str(key)) for key in list(row)[:20]) or "none"
        raise BedstoneError(
            f"{name}: {place} has no column {column!r}{closest(column, list(map(str, row)))}. It "
            f"has the columns {have}. Name the one that holds the text with text_column=..."
        )
    text = row[column]
    if not isinstance(text, str):
        raise BedstoneError(
            f"{name}: column {column!r} in {place} holds {_short(repr(text))} of type "
            f"{type(text).__name__}; expected a string. Remove that row or name another column "
            "with text_column=..."
        )
    if half := _half_character(text):
        raise BedstoneError(
            f"{name}: column {column!r} in {place} holds {half}. Mend or remove that row."
        )
    return text


def _short(value: object) -> str:
    text = " ".join(str(value).split()) or type(value).__name__
    return text if len(text) <= 120 else text[:117] + "..."


class ParquetCells:
    """Cells of a Parquet file: cheap in rising order; a step back reads its row group again.

    Two batches of cells are held, and a page of the file.
    """

    def __init__(self, path: Path, column: str) -> None:
        self._file, self._column = pq.ParquetFile(path, **PAGES), column
        about = self._file.metadata
        sizes = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        self._starts = list(accumulate(sizes, initial=0))
        self._held: deque[tuple[int, Any]] = deque(maxlen=2)  # first row and cells
        self._group, self._next = -1, 0  # where reading stands
        self._left: Iterator[Any] = iter(())

    def __getitem__(self, number: int) -> Any:
        """A cell as Python has it. Raises IndexError, and what pyarrow does."""
        for first, cells in self._held:
            if first <= number < first + len(cells):
                return cells[number - first].as_py()
        group = bisect_right(self._starts, number) - 1
        if not 0 <= number < self._starts[-1]:
            raise IndexError(number)
        if group != self._group or number < self._next:
            self._group, self._next = group, self._starts[group]
            self._left = self._file.iter_batches(CELLS, row_groups=[group], columns=[self._column])
        for batch in self._left:
            first, cells = self._next, batch.column(0)
            self._held.append((first, cells))
            self._next += len(cells)
            if number < self._next:
                return cells[number - first].as_py()
        raise IndexError(number)


class ArrowCells:
    """Cells of an Arrow file, which is mapped into memory."""

    def __init__(self, path: Path, column: str) -> None:
        self._cells = _open_arrow(path).read_all().column(column)

    def __getitem__(self, number: int) -> Any:
        """A cell as Python has it. Raises IndexError."""
        return self._cells[number].as_py()


def stored_cells(path: Path, column: str) -> ParquetCells | ArrowCells:
    """The cells of a column of a Parquet or Arrow file. Raises what pyarrow does."""
    kind = ParquetCells if data_suffix(path) == ".parquet" else ArrowCells
    return kind(path, column)


LARGEST = 1 << 22  # characters of one text: more than any book has


def check_text(text: object, what: str) -> None:
    """Raises BedstoneError if `text` is no string, empty, far too long or broken."""
    if not isinstance(text, str):
        raise BedstoneError(
            f"{what}: is {str(text)[:60]!r} of type {type(text).__name__}; expected a string."
        )
    if not text.strip():
        raise BedstoneError(f"{what}: is empty; expected some text. Leave it out or mend it.")
    if len(text) > LARGEST:
        raise BedstoneError(
            f"{what}: has {len(text):,} characters, beginning {text[:20]!r}; one text may have "
            f"{LARGEST:,}. Split it into several."
        )
    check_characters(text, what)


def check_characters(text: str, what: str) -> None:
    """Raises BedstoneError if `text` holds half of a surrogate pair."""
    if half := _half_character(text):
        raise BedstoneError(f"{what}: holds {half}. Mend or remove it.")


def _half_character(text: str) -> str | None:
    """Where a text holds half of a surrogate pair, which JSON can write; None where it doesn't."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = f"({text[error.start]!a}) at position {error.start:,}"
        return f"half a character {at}, which UTF-8 can't write"
    return None
