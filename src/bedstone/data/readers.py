"""A file's bytes -> text in pieces, never the whole file at once.

Everything a file may do wrong ends in a `BedstoneError` that names the file and the place: it can't
be read, is damaged, binary, or no UTF-8.
"""

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bedstone.data.cut import find_cut
from bedstone.errors import BedstoneError

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
        cut = find_cut(held, len(held) - _TAIL, len(held) - 1)
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
