"""Files of rows -> documents: one function a format, each lazy.

Everything that may be wrong with a row ends in a `BedstoneError` that names the file, the line or
row, and the column: broken syntax, a missing column, a value that is no string, a row too large.
"""

import csv
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bedstone.data.readers import (
    Piece,
    bad_utf8,
    binary,
    blocks,
    careful,
    open_bytes,
    read_text,
    without_bom,
)
from bedstone.errors import BedstoneError, closest

LARGEST_ROW = 64 << 20  # bytes; a row is held whole, so it needs a limit


Row = tuple[str, dict[str, Any]]  # its place, such as "line 3", and its columns


def json_rows(path: Path) -> Iterator[Row]:
    """A row a line, of any type.

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


def read_jsonl(path: Path, column: str) -> Iterator[Piece]:
    """One document a row: the string in `column` of that row's object."""
    for place, row in json_rows(path):
        yield Piece(_cell(row, column, path, place))


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


def read_csv(path: Path, column: str) -> Iterator[Piece]:
    """One document a row; the first row names the columns."""
    rows = _csv(path)
    for header in rows:
        _cell(header[1], column, path, "the header")
        for place, row in rows:
            yield Piece(_cell(row, column, path, place))


def csv_rows(path: Path) -> Iterator[Row]:
    """The rows under the header; every value is a string."""
    rows = _csv(path)
    next(rows, None)
    yield from rows


def _csv(path: Path) -> Iterator[Row]:
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


def read_rows(path: Path, column: str) -> Iterator[Piece]:
    """One document a row of a Parquet or Arrow file, read by the `datasets` library."""
    yield from _dataset_pieces(table_rows(path), column, path)


def table_rows(path: Path, names: dict[str, list[str]] | None = None) -> Iterator[Row]:
    """The rows of a Parquet or Arrow file; see `_dataset_rows` for `names`."""
    kind = data_suffix(path)[1:]
    datasets = import_datasets()
    return _dataset_rows(
        lambda: datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True),
        path,
        names,
    )


def read_hub(name: str, split: str, column: str) -> Iterator[Piece]:
    """One document a row of a data set on the hub, or of its copy in the offline cache."""
    yield from _dataset_pieces(hub_rows(name, split), column, name)


def hub_rows(name: str, split: str, names: dict[str, list[str]] | None = None) -> Iterator[Row]:
    """The rows of a data set on the hub; see `_dataset_rows` for `names`."""
    datasets = import_datasets()
    return _dataset_rows(
        lambda: datasets.load_dataset(name, split=split, streaming=True), name, names
    )


def import_datasets() -> Any:
    """The `datasets` module, imported when first needed: it takes about a second."""
    import datasets

    # A broken file is told in one paragraph, not also by that library's log.
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    return datasets


def _dataset_pieces(rows: Iterator[Row], column: str, name: str | Path) -> Iterator[Piece]:
    for place, row in rows:
        text = _cell(row, column, name, place)
        if len(text) > LARGEST_ROW:
            raise _too_large(Path(name), place)
        yield Piece(text)


def _dataset_rows(
    load: Callable[[], Any], name: str | Path, names: dict[str, list[str]] | None
) -> Iterator[Row]:
    """The rows; `names` is given what the numbers of a column stand for, where the set says it."""
    try:
        found = load()
        for column, feature in (found.features or {}).items() if names is not None else ():
            inner = getattr(feature, "feature", feature)
            if names is not None and getattr(inner, "names", None):
                names[column] = list(inner.names)
        for number, row in enumerate(found, 1):
            yield f"row {number:,}", row
    except BedstoneError:
        raise
    except Exception as error:  # that library raises dozens of kinds, all about the data
        if isinstance(name, Path):
            raise BedstoneError(
                f"{name}: can't be read as a {name.suffix[1:]} file ({_short(error)}). "
                "The file may be cut short or of another format; write or fetch it again."
            ) from error
        raise BedstoneError(
            f"data {name!r}: is no file or folder here, and can't be read from the hub "
            f"({_short(error)}). Without a network, download it elsewhere with "
            f"datasets.load_dataset({name!r}) and its to_parquet(), then name that file; "
            "or use the built-in data: python-docs."
        ) from error


def _cell(row: Any, column: str, name: str | Path, place: str) -> str:
    if not isinstance(row, dict):
        raise BedstoneError(
            f"{name}: {place} is of type {type(row).__name__}; expected an object with the column "
            f"{column!r}. Mend or remove that row."
        )
    if column not in row:
        have = ", ".join(repr(str(key)) for key in list(row)[:20]) or "none"
        raise BedstoneError(
            f"{name}: {place} has no column {column!r}{_guess(column, row)} It has the columns "
            f"{have}. Name the one that holds the text with text_column=..."
        )
    text = row[column]
    if not isinstance(text, str):
        raise BedstoneError(
            f"{name}: column {column!r} in {place} holds {_short(repr(text))} of type "
            f"{type(text).__name__}; expected a string. Remove that row or name another column "
            "with text_column=..."
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
            raise BedstoneError(
                f"{name}: column {column!r} in {place} holds half a character "
                f"({text[error.start]!a}) at position {error.start:,}, which UTF-8 can't "
                "write. Mend or remove that row."
            ) from error
    return text


def _guess(column: str, row: dict[str, Any]) -> str:
    return closest(column, [str(key) for key in row]) + "."


def _short(value: object) -> str:
    text = " ".join(str(value).split()) or type(value).__name__
    return text if len(text) <= 120 else text[:117] + "..."


READERS: dict[str, Callable[[Path, str], Iterator[Piece]]] = {
    ".jsonl": read_jsonl,
    ".json": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_rows,
    ".arrow": read_rows,
}


def read_file(path: Path, column: str) -> Iterator[Piece]:
    """The pieces of one file, by the format that its name says."""
    reader = READERS.get(data_suffix(path))
    return reader(path, column) if reader else read_text(path)


def data_suffix(path: Path) -> str:
    """`.jsonl` of `rows.jsonl` and of `rows.jsonl.gz`, in lower case."""
    name = path.with_suffix("") if path.suffix == ".gz" else path
    return name.suffix.lower()
