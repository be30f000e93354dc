"""GGUF files: metadata and tensors in one file, as llama.cpp reads and writes them.

The format (version 3): magic, version, counts; metadata as keys with typed values; for each tensor
its name, dimensions (the fastest first), type and offset; then the data. All of the header is
checked by hand before memory is taken for anything that it names; `gguf_blocks.py` makes numbers of
what is stored.
"""

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.reading import kind_of, shown

SUFFIX = ".gguf"
MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_KEYS = 1 << 16
MOST_TENSORS = 1 << 20
MOST_TEXTS = 1 << 20  # in a list; the largest vocabularies have a quarter of that
LONGEST_KEY = (1 << 16) - 1
LONGEST_TEXT = 16 << 20  # bytes
LONGEST_NAME = 64  # bytes of a tensor's name, as in ggml
MOST_SIDE = 2**31 - 1
ALIGNMENT = 32
REFETCH = "Fetch or write the file again; don't use this copy."

# Kinds of metadata values by their number in files, as `struct` and numpy name them.
_TEXT, _LIST, _BOOL = 8, 9, 7
_NUMBERS = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "u1",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
READ = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K",
        "Q5_K", "Q6_K")  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        kind: how its numbers are stored: F32, Q4_0, ...
        shape: as torch has it, the fastest dimension last.
        path, start, size: where its bytes are.
    """

    kind: str
    shape: tuple[int, ...]
    path: Path
    start: int
    size: int

    def read(self, start: int = 0, size: int | None = None) -> np.ndarray[Any, Any]:
        """Its bytes, or some of them, in memory of their own.

        Raises:
            BedstoneError: the file was cut meanwhile, or can't be read.
        """
        size = self.size if size is None else size
        data = np.empty(size, np.uint8)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.start + start)
                done = 0
                while done < size and (more := file.readinto(data[done:].data)):
                    done += more
        except OSError as error:
            raise BedstoneError(f"{self.path}: can't be read ({error.strerror}).") from error
        if done < size:
            raise BedstoneError(f"{self.path}: was cut off while it was read. {REFETCH}")
        return data


@dataclass
class GGUF:
    """What a file holds: metadata by key, tensors by name."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Stored] = field(default_factory=dict)

    def section(self, prefix: str) -> dict[str, Any]:
        """The values whose keys begin with `prefix.`, by the rest of their keys."""
        start = f"{prefix}."
        return {k.removeprefix(start): v for k, v in self.values.items() if k.startswith(start)}


def gguf_in(path: Path) -> Path | None:
    """The GGUF file that a name stands for: itself, or the one in a folder without config.json.

    Raises:
        BedstoneError: a folder holds several models.
    """
    if path.suffix.lower() == SUFFIX and kind_of(path) == "a plain file":
        return path
    if kind_of(path) != "a folder" or (path / "config.json").exists():
        return None
    found = sorted(each for each in path.iterdir() if each.suffix.lower() == SUFFIX)
    firsts = [each for each in found if "-of-" not in each.stem or "-00001-of-" in each.stem]
    firsts = firsts or found[:1]  # only later parts are there: reading says which are missing
    if len(firsts) > 1:
        raise BedstoneError(
            f"{path}: holds {len(firsts)} GGUF files ({', '.join(each.name for each in firsts[:4])}"
            "). Name one of them."
        )
    return firsts[0] if firsts else None


def read_gguf(path: Path) -> GGUF:
    """The header of a GGUF file, its tensors not yet read; of a split set, of all parts.

    Raises:
        BedstoneError: it is no such file, a part of a set is missing, or it says of itself what
            isn't so.
    """
    first = _read_part(path)
    count = first.values.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return first
    stem, number, total = _part_of(path)
    if total != count:
        raise BedstoneError(
            f"{path}: split.count = {shown(count)}, but its name says "
            f"{total or 'no parts'}. Give the parts their published names "
            "(NAME-00001-of-00003.gguf)."
        )
    parts = [path.with_name(f"{stem}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]
    if missing := [each.name for each in parts if kind_of(each) != "a plain file"]:
        raise BedstoneError(
            f"{path}: is part {number} of {count}; {', '.join(missing[:3])} is missing beside it. "
            "Fetch all parts into one folder."
        )
    whole = GGUF(parts[0])
    for part in parts:
        found = first if part == path else _read_part(part)
        for name, tensor in found.tensors.items():
            if name in whole.tensors:
                raise BedstoneError(f"{part}: tensor {shown(name)} is in another part too.")
            whole.tensors[name] = tensor
        whole.values = {**found.values, **whole.values}
    expected = whole.values.get("split.tensors.count", len(whole.tensors))
    if expected != len(whole.tensors):
        raise BedstoneError(
            f"{path}: split.tensors.count = {shown(expected)}, but its parts hold "
            f"{len(whole.tensors):,} tensors. Fetch all parts again."
        )
    return whole


def _part_of(path: Path) -> tuple[str, int, int]:
    """The name without its ending, the number of a part, and of how many; 0 of no set."""
    pieces = path.stem.rsplit("-", 3)
    if len(pieces) == 4 and pieces[2] == "of" and pieces[1].isdigit() and pieces[3].isdigit():
        return pieces[0], int(pieces[1]), int(pieces[3])
    return path.stem, 0, 0


def _read_part(path: Path) -> GGUF:
    if (kind := kind_of(path)) != "a plain file":
        found = f"is {kind}; expected a plain file" if kind else "there is no such file"
        raise BedstoneError(f"{path}: can't be read: {found}.")
    try:
        with path.open("rb") as file:
            if path.stat().st_size < 24:
                raise BedstoneError(f"{path}: is cut off, or no GGUF file. {REFETCH}")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise BedstoneError(f"{path}: can't be read ({error.strerror}).") from error
    with data:
        return _Header(path, data).read()


class _Header:
    """Reads the header of one file, from its beginning to its end."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at = path, data, 0

    def error(self, fault: str) -> BedstoneError:
        return BedstoneError(f"{self.path}: {fault}. {REFETCH}")

    def read(self) -> GGUF:
        if self.data[:4] != MAGIC:
            raise BedstoneError(
                f"{self.path}: is no GGUF file: it begins with {shown(bytes(self.data[:4]))}."
            )
        self.at = 4
        version = self._number("<I")
        if version not in VERSIONS:
            order = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            why = "of another byte order" if order else "which isn't read"
            raise BedstoneError(
                f"{self.path}: is GGUF of version {version:,}, {why}; versions 2 and 3 "
                "in little-endian order are. Convert it again with llama.cpp of today."
            )
        tensors, keys = self._number("<Q"), self._number("<Q")
        if keys > MOST_KEYS or 13 * keys > self._left:
            raise self.error(f"claims {keys:,} metadata keys")
        if tensors > MOST_TENSORS or 33 * tensors > self._left:
            raise self.error(f"claims {tensors:,} tensors")
        found = GGUF(self.path)
        for _ in range(keys):
            key = self._text("a key", LONGEST_KEY)
            if not key or key in found.values:
                raise self.error(f"metadata key {shown(key)} is there twice or empty")
            found.values[key] = self._value(key, self._number("<I"))
        entries = [self._entry() for _ in range(tensors)]
        alignment = found.values.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment not in [1 << n for n in range(3, 17)]:
            raise self.error(f"general.alignment = {shown(alignment)}; expected a power of two")
        start = -(-self.at // alignment) * alignment
        self._place(found, entries, start, alignment)
        return found

    @property
    def _left(self) -> int:
        return len(self.data) - self.at

    def _take(self, size: int, what: str) -> int:
        """The place of the next `size` bytes, which are passed over."""
        if size > self._left:
            raise self.error(f"is cut off, or lies: {what} would take {size:,} bytes")
        at, self.at = self.at, self.at + size
        return at

    def _number(self, form: str) -> Any:
        size = struct.calcsize(form)
        return struct.unpack_from(form, self.data, self._take(size, "a number"))[0]

    def _text(self, what: str, longest: int = LONGEST_TEXT) -> str:
        size = self._number("<Q")
        if size > longest:
            raise self.error(f"{what} claims {size:,} bytes; expected at most {longest:,}")
        at = self._take(size, what)
        try:
            return self.data[at : at + size].decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8 at byte {at + error.start:,}") from error

    def _value(self, key: str, kind: int) -> Any:
        if kind == _TEXT:
            return self._text(key)
        if kind == _LIST:
            return self._list(key)
        if kind not in _NUMBERS:
            raise self.error(f"{key} is of kind {kind:,}, which the format doesn't have")
        form = np.dtype(_NUMBERS[kind])
        at = self._take(form.itemsize, key)
        value = np.frombuffer(self.data[at : self.at], form)[0].item()
        if isinstance(value, float) and not math.isfinite(value):
            raise self.error(f"{key} = {value}; expected a finite number")
        return bool(value) if kind == _BOOL else value

    def _list(self, key: str) -> Any:
        kind, count = self._number("<I"), self._number("<Q")
        if kind == _LIST:
            raise self.error(f"{key} holds lists of lists, which no model needs")
        if kind == _TEXT:
            if count > MOST_TEXTS or 8 * count > self._left:
                raise self.error(f"{key} claims {count:,} texts")
            return self._texts(key, count)
        if kind not in _NUMBERS:
            raise self.error(f"{key} holds values of kind {kind:,}, which the format doesn't have")
        form = np.dtype(_NUMBERS[kind])
        if count * form.itemsize > self._left:
            raise self.error(f"{key} claims {count:,} numbers")
        at = self._take(count * form.itemsize, key)
        return np.frombuffer(self.data[at : self.at], form)

    def _texts(self, key: str, count: int) -> list[str]:
        """As `_text`, so many times over, in one loop: a vocabulary has 100,000."""
        found, data, at, end = [], self.data, self.at, len(self.data)
        length = struct.Struct("<Q").unpack_from
        for _ in range(count):
            start = at + 8
            size = length(data, at)[0] if start <= end else end
            at = start + size
            if size > LONGEST_TEXT or at > end:
                break
            try:
                found.append(data[start:at].decode())
            except UnicodeDecodeError:
                break
            self.at = at
        # the one that isn't sound is read once more, for its error
        return found + [self._text(f"{key}[{number}]") for number in range(len(found), count)]

    def _entry(self) -> tuple[str, str, tuple[int, ...], int, int]:
        """Name, kind, shape, bytes and offset of a tensor."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self._text("a tensor's name", LONGEST_NAME)
        dimensions = self._number("<I")
        if not 1 <= dimensions <= 4:
            raise self.error(f"tensor {shown(name)} has {dimensions:,} dimensions; expected 1 to 4")
        shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
        if not all(1 <= side <= MOST_SIDE for side in shape):
            raise self.error(f"tensor {shown(name)} has shape {shown(shape)}")
        number, offset = self._number("<I"), self._number("<Q")
        try:
            kind = GGMLQuantizationType(number)
            block, size = GGML_QUANT_SIZES[kind]
        except (KeyError, ValueError):
            raise self.error(f"tensor {shown(name)} is of the unknown type {number:,}") from None
        if kind.name not in READ:
            raise BedstoneError(
                f"{self.path}: tensor {shown(name)} is of type {kind.name}, which isn't read; "
                f"{', '.join(READ)} are. Take the same model as Q8_0 or F16."
            )
        if shape[-1] % block:
            raise self.error(
                f"tensor {shown(name)} of type {kind.name} has rows of {shape[-1]:,} numbers, "
                f"which blocks of {block} don't divide"
            )
        return name, kind.name, shape, math.prod(shape) // block * size, offset

    def _place(
        self,
        found: GGUF,
        entries: list[tuple[str, str, tuple[int, ...], int, int]],
        start: int,
        alignment: int,
    ) -> None:
        end, last = 0, ""
        for name, kind, shape, size, offset in sorted(entries, key=lambda entry: entry[4]):
            if name in found.tensors:
                raise self.error(f"tensor {shown(name)} is there twice")
            if offset % alignment:
                raise self.error(f"tensor {shown(name)} begins at {offset:,}, no multiple of "
                                 f"{alignment}")  # fmt: skip
            if offset < end:
                raise self.error(f"tensors {shown(last)} and {shown(name)} overlap")
            end, last = offset + size, name
            if start + end > len(self.data):
                raise self.error(
                    f"is cut off: tensor {shown(name)} would end at byte {start + end:,}, the file "
                    f"at {len(self.data):,}"
                )
            found.tensors[name] = Stored(kind, shape, self.path, start + offset, size)
