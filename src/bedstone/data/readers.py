"""A file in, pieces of text out: one function a format, each lazy, none holding a whole file.

Everything a file may do wrong ends in a `BedstoneError` that names the file and the place: binary
content, text that is no UTF-8, a broken row, a missing column, a row too large to hold.
"""

import codecs
import csv
import gzip
import json
import logging
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bedstone.data.cut import find_cut
from bedstone.errors import BedstoneError, nearest

BLOCK = 1 << 20  # bytes read at a time, and about the size of a long document's pieces
LARGEST_ROW = 64 << 20  # bytes; a row is held whole, so it needs a limit
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
        cut = find_cut(held, len(held) - _TAIL, len(held) - 1)
        if cut is None:  # no word ends here, so a cut anywhere is as good
            cut = len(held) - 1
        yield Piece(held[:cut], ends=False)
        held = held[cut:]
    yield Piece(held)


def _decoded(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    at = 0  # bytes before this block
    for block in _blocks(path):
        waiting = len(decoder.getstate()[0])
        if at == 0:
            if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise BedstoneError(
                    f"{path}: looks like UTF-16; expected UTF-8. Convert it with: "
                    f"iconv -f UTF-16 -t UTF-8 {path.name} > converted.txt"
                )
            block, at = _without_bom(block)
        try:
            text = decoder.decode(block)
        except UnicodeDecodeError as error:
            raise _bad_utf8(path, at - waiting + error.start) from error
        if "\0" in text:
            offset = at - waiting + len(text[: text.index("\0")].encode())
            raise _binary(path, f"a NUL byte at offset {offset:,}")
        at += len(block)
        yield text
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _bad_utf8(path, at - len(error.object)) from error


def _without_bom(block: bytes) -> tuple[bytes, int]:
    bom = codecs.BOM_UTF8
    return (block[len(bom) :], len(bom)) if block.startswith(bom) else (block, 0)


def _blocks(path: Path) -> Iterator[bytes]:
    with open_bytes(path) as file:
        while block := _careful(path, lambda: file.read(BLOCK)):
            yield block


def _careful(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, EOFError, zlib.error) as error:
        raise BedstoneError(
            f"{path}: can't be read ({error}). The file may be cut short or damaged; "
            "copy or fetch it again."
        ) from error


def _bad_utf8(path: Path, offset: int) -> BedstoneError:
    return BedstoneError(
        f"{path}: is not UTF-8 at byte {offset:,}; expected UTF-8 text. If it is in another "
        f"encoding, such as Latin-1, convert it with: "
        f"iconv -f LATIN1 -t UTF-8 {path.name} > converted.txt"
    )


def _binary(path: Path, sign: str) -> BedstoneError:
    return BedstoneError(
        f"{path}: is not text ({sign}). Expected UTF-8 text (txt, md, source code) or rows "
        "(jsonl, json, csv, parquet, arrow); name only such files."
    )


def read_jsonl(path: Path, column: str) -> Iterator[Piece]:
    """One document a line: the string in `column` of that line's object.

    A `.json` file may also be one array of objects; it is then held whole in memory.
    """
    with open_bytes(path) as file:
        first = _careful(path, lambda: file.read(64)).lstrip()
    if first.startswith(b"["):
        yield from _read_array(path, column)
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
        yield Piece(_cell(row, column, path, f"line {number:,}"))


def _read_array(path: Path, column: str) -> Iterator[Piece]:
    data = b"".join(_blocks(path))
    try:
        rows = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise _bad_utf8(path, error.start) from error
    except (ValueError, RecursionError) as error:
        raise BedstoneError(
            f"{path}: is not valid JSON ({_short(error)}); expected an array of objects, or one "
            "object a line. Mend or write it again."
        ) from error
    del data
    for number, row in enumerate(rows, 1):
        yield Piece(_cell(row, column, path, f"row {number:,}"))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    at = 0
    with open_bytes(path) as file:
        number = 0
        while line := _careful(path, lambda: file.readline(LARGEST_ROW + 1)):
            number += 1
            if len(line) > LARGEST_ROW:
                raise _too_large(path, f"line {number:,}")
            if number == 1:
                line, at = _without_bom(line)
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise _bad_utf8(path, at + error.start) from error
            if "\0" in text:
                raise _binary(path, f"a NUL byte in line {number:,}")
            at += len(line)
            yield number, text


def _too_large(path: Path, place: str) -> BedstoneError:
    return BedstoneError(
        f"{path}: {place} is larger than {LARGEST_ROW >> 20} MiB, the most one row may hold. "
        "Split that row, or store the text as a .txt file, which may be of any size."
    )


def read_csv(path: Path, column: str) -> Iterator[Piece]:
    """One document a row; the first row names the columns."""
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
        if names is None:
            names = row
            _cell(dict.fromkeys(names, ""), column, path, "the header")
        elif row:
            if len(row) != len(names):
                raise BedstoneError(
                    f"{path}: the row ending in line {rows.line_num:,} has {len(row)} fields; "
                    f"expected {len(names)}, as in the header. Mend or remove that row."
                )
            yield Piece(row[names.index(column)])


def read_rows(path: Path, column: str) -> Iterator[Piece]:
    """One document a row of a Parquet or Arrow file, read by the `datasets` library."""
    kind = data_suffix(path)[1:]
    datasets = import_datasets()
    yield from _dataset_pieces(
        lambda: datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True),
        column,
        path,
    )


def read_hub(name: str, split: str, column: str) -> Iterator[Piece]:
    """One document a row of a data set on the hub, or of its copy in the offline cache."""
    datasets = import_datasets()
    yield from _dataset_pieces(
        lambda: datasets.load_dataset(name, split=split, streaming=True), column, name
    )


def import_datasets() -> Any:
    """The `datasets` module, imported when first needed: it takes about a second."""
    import datasets

    # A broken file is told in one paragraph, not also by that library's log.
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    return datasets


def _dataset_pieces(load: Callable[[], Any], column: str, name: str | Path) -> Iterator[Piece]:
    try:
        for number, row in enumerate(load(), 1):
            text = _cell(row, column, name, f"row {number:,}")
            if len(text) > LARGEST_ROW:
                raise _too_large(Path(name), f"row {number:,}")
            yield Piece(text)
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
    return text


def _guess(column: str, row: dict[str, Any]) -> str:
    guess = nearest(column, [str(key) for key in row])
    return guess if guess.startswith("; did") else "."


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


def looks_like_text(path: Path) -> bool:
    """Whether the first kilobytes are UTF-8 without NUL."""
    with open_bytes(path) as file:
        sample = _careful(path, lambda: file.read(8192))
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return False
    return b"\0" not in sample
