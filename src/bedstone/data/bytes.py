"""Bytes and text of files: unpacked within limits, decoded from UTF-8, checked, cut into pieces."""

import codecs
import gzip
import re
import shlex
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bedstone.errors import BedstoneError

PIECE = 8_192  # characters; where tokenizers are fastest: cache-friendly, many per batch
LONGEST = 65_536  # characters; a text without a single space is cut here, whatever it costs

_SPACE = re.compile(r"(?<=\w) (?=\w)")


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


# Bytes, unpacked where the file's name ends in `.gz`.

BLOCK = 1 << 20  # bytes read at a time, and about the size of a long document's pieces
UNPACKED = 256 << 20  # bytes that any packed file may become
RATIO = 250  # times its size that a packed file may become beyond that; text packs 3 to 100 times

# The first bytes of formats that are often taken for text.
_FORMATS = (
    (b"\x1f\x8b", "gzip; give its name the ending .gz"),
    (b"BZh", "bzip2; unpack it first"),
    (b"\xfd7zXZ\0", "xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "Zstandard; unpack it first"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet; unpack it, or export it as CSV"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"\xd0\xcf\x11\xe0", "an Office document; export it as CSV or as text"),
    (b"%PDF", "PDF; convert it to text first"),
    (b"SQLite format 3", "an SQLite database; export its rows as CSV"),
    (b"PAR1", "Parquet; give its name the ending .parquet"),
    (b"ARROW1", "Arrow; give its name the ending .arrow"),
    (b"version https://git-lfs.", "a pointer of Git LFS; fetch the file itself with git lfs pull"),
)


class Unpacking:
    """The bytes of a packed file; a decompression bomb is refused while it is read.

    Raises:
        BedstoneError: while it is read, it became more than `UNPACKED` bytes and `RATIO` times
            its size.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.total = path, path.stat().st_size, 0
        self.file = gzip.open(path)  # noqa: SIM115

    def __enter__(self) -> "Unpacking":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes."""
        return self._count(self.file.read(size))

    def readline(self, size: int = -1) -> bytes:
        """A line, or the first `size` bytes of it."""
        return self._count(self.file.readline(size))

    def _count(self, data: bytes) -> bytes:
        self.total += len(data)
        check_unpacked(self.path, self.size, self.total)
        return data


def check_unpacked(path: Path, size: int, unpacked: int) -> None:
    """Raises BedstoneError where a file of `size` bytes becomes more than packed data can be."""
    if unpacked > UNPACKED and unpacked > RATIO * size:
        raise BedstoneError(
            f"{path}: unpacks to over {unpacked >> 20:,} MiB from {size:,} bytes, more than "
            f"{RATIO} times its size, as no data does that is worth learning. Unpack it yourself "
            "and look at it, or leave it out."
        )


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, unpacked where the name ends in `.gz`."""
    try:
        if path.suffix == ".gz":
            return Unpacking(path)  # type: ignore[return-value]
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise BedstoneError(f"{str(path)[:200]!r}: can't be read ({reason}).") from error


def blocks(path: Path) -> Iterator[bytes]:
    """The file's bytes, a megabyte at a time."""
    with open_bytes(path) as file:
        while block := careful(path, lambda: file.read(BLOCK)):
            yield block


def careful(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` gives.

    Raises:
        BedstoneError: the file is damaged or cut short.
    """
    try:
        return read()
    except (OSError, EOFError, zlib.error) as error:
        raise BedstoneError(
            f"{path}: can't be read ({error}). The file may be cut short or damaged; "
            "copy or fetch it again."
        ) from error


def data_suffix(path: Path) -> str:
    """`.jsonl` of `rows.jsonl` and of `rows.jsonl.gz`, in lower case."""
    name = path.with_suffix("") if path.suffix == ".gz" else path
    return name.suffix.lower()


# Text: UTF-8, with or without a byte order mark; other encodings are named.


class Piece(NamedTuple):
    """Part of a document, in order; most documents are one piece.

    `ends` is whether the document ends here. Documents of equal `key` are kept on the same side
    when a share is held out; None means that equal content is.
    """

    text: str
    ends: bool = True
    key: str | None = None


_TAIL = 1 << 16  # characters at the end of a block where a harmless cut is looked for


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
            block, at = start_of_text(path, block)
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


def start_of_text(path: Path, block: bytes) -> tuple[bytes, int]:
    """The first block of a text without its byte order mark, and the bytes of that mark.

    Raises:
        BedstoneError: it is UTF-16, UTF-32 or a packed file; the message names which.
    """
    if block.startswith(codecs.BOM_UTF8):
        rest = block
        while rest.startswith(codecs.BOM_UTF8):  # twice, where two programs each put one
            rest = rest[len(codecs.BOM_UTF8) :]
        return rest, len(block) - len(rest)
    if encoding := _wide_encoding(block):
        raise BedstoneError(
            f"{path}: is {encoding}; expected UTF-8. Convert it with: {_convert(path, encoding)}"
        )
    for first, kind in _FORMATS:
        if block.startswith(first):
            raise BedstoneError(f"{path}: is not text but {kind}.")
    return block, 0


def _wide_encoding(block: bytes) -> str:
    """UTF-16 or UTF-32 by the byte order mark, or UTF-16 by every other byte of a start being 0."""
    if block.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    sample = block[:512]
    for name, empty, full in (("LE", sample[1::2], sample[::2]), ("BE", sample[::2], sample[1::2])):
        if len(empty) > 3 and 2 * empty.count(0) > len(empty) and not full.count(0):
            return f"UTF-16{name}"
    return ""


def _convert(path: Path, encoding: str) -> str:
    """The command that makes UTF-8 of a file."""
    name, how = shlex.quote(path.name), f"iconv -f {encoding} -t UTF-8"
    packed = path.suffix == ".gz"
    ending = data_suffix(path) or ".txt"  # which says how the file is read
    command = f"gunzip -c {name} | {how}" if packed else f"{how} {name}"
    return f"{command} > converted{ending}"


def bad_utf8(path: Path, offset: int) -> BedstoneError:
    """The error of bytes that are no UTF-8."""
    return BedstoneError(
        f"{path}: is not UTF-8 at byte {offset:,}; expected UTF-8 text. If it is in another "
        f"encoding, such as Latin-1, convert it with: {_convert(path, 'LATIN1')}"
    )


def binary(path: Path, sign: str) -> BedstoneError:
    """The error of bytes that are no text."""
    return BedstoneError(
        f"{path}: is not text ({sign}). Expected UTF-8 text (txt, md, source code) or rows "
        "(jsonl, json, csv, tsv, parquet, arrow); name only such files."
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


# Lines of a text, for rows.

LARGEST_ROW = 64 << 20  # bytes; a row is held whole, so it needs a limit


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text with their numbers, from 1, without byte order marks.

    Such a mark begins the text, and each that was appended to it.

    Raises:
        BedstoneError: a line is too large, no UTF-8, or holds a NUL byte.
    """
    at = 0
    with open_bytes(path) as file:
        number = 0
        while line := careful(path, lambda: file.readline(LARGEST_ROW + 1)):
            number += 1
            if len(line) > LARGEST_ROW:
                raise too_large(path, f"line {number:,}")
            if number == 1:
                line, at = start_of_text(path, line)
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise bad_utf8(path, at + error.start) from error
            if "\0" in text:
                raise binary(path, f"a NUL byte in line {number:,}")
            at += len(line)
            yield number, text.lstrip("\ufeff") if text.startswith("\ufeff") else text


def too_large(path: Path, place: str) -> BedstoneError:
    """The error of a row that is too large to be held."""
    return BedstoneError(
        f"{path}: {place} is larger than {LARGEST_ROW >> 20} MiB, the most one row may hold. "
        "Split that row, or store the text as a .txt file, which may be of any size."
    )


def short(value: object) -> str:
    """A value in a message: one line of at most 120 characters."""
    text = " ".join(str(value).split()) or type(value).__name__
    return text if len(text) <= 120 else text[:117] + "..."


# Checks of one text.

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
    if half := half_character(text):
        raise BedstoneError(f"{what}: holds {half}. Mend or remove it.")


def half_character(text: str) -> str | None:
    """Where a text holds half of a surrogate pair, which JSON can write; None where it doesn't."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = f"({text[error.start]!a}) at position {error.start:,}"
        return f"half a character {at}, which UTF-8 can't write"
    return None
