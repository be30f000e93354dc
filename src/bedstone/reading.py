"""Reading what files and users name: one way to make a path of a name, and to read a whole file.

A name may have 5,000 letters or a NUL, or be that of a pipe that never ends. A file may be larger
than memory, and JSON may hold anything. Each is refused in one paragraph, before memory is taken.
"""

import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError, near_name


def to_path(name: str | Path, where: str = "") -> Path:
    """A name out of a file or of the command line as a path, `~` opened.

    Args:
        where: what names it, for the error: a file with its key, or an option.

    Raises:
        BedstoneError: no file can have that name.
    """
    text = str(name)
    fault = ""
    try:
        longest = max((len(os.fsencode(part)) for part in text.split("/")), default=0)
        if longest > 255 or len(os.fsencode(text)) > 4095:
            fault = f"is {len(text):,} characters long, more than a file's name can be"
        elif "\0" in text:
            fault = "holds a NUL character"
        else:
            return Path(text).expanduser()
    except UnicodeEncodeError:
        fault = "holds half a character"
    except RuntimeError:  # ~nobody/x
        fault = f"begins with the home of {text.partition('/')[0][1:]!r}, a user unknown here"
    raise BedstoneError(f"{where + ': ' if where else ''}{shown(text)} {fault}. Mend the name.")


def kind_of(path: Path) -> str:
    """What stands at a path, in words: `a plain file`, `a folder`, `a pipe`, ...; "" for nothing.

    Raises:
        BedstoneError: the system doesn't let it be seen.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError) as error:
        raise BedstoneError(f"{path}: can't be read ({_reason(error)}).") from error
    return _KINDS.get(stat.S_IFMT(mode), "no file")


_KINDS = {
    stat.S_IFREG: "a plain file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a disk device",
    stat.S_IFSOCK: "a socket",
}


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def is_plain(path: Path) -> bool:
    """Whether a plain file stands at a path.

    Raises:
        BedstoneError: the system doesn't let it be seen, where `Path.is_file` would raise or lie.
    """
    return kind_of(path) == "a plain file"


def read_bytes(path: str | Path, limit: int) -> bytes:
    """All of a plain file of at most `limit` bytes; a pipe or a device is never waited at.

    Raises:
        BedstoneError: it is missing, unreadable, no plain file, or larger.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind != "a plain file":
        found = f"is {kind}; expected a plain file" if kind else "there is no such file"
        raise BedstoneError(f"{path}: can't be read: {found}.")
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise BedstoneError(f"{path}: can't be read ({error.strerror}).") from error
    if len(data) > limit:
        raise BedstoneError(
            f"{path}: holds {path.stat().st_size:,} bytes; expected at most {limit:,}. It isn't "
            "what its name says: fetch or write the file again."
        )
    return data


def read_text(path: str | Path, limit: int) -> str:
    """All of a plain UTF-8 file of at most `limit` bytes.

    Raises:
        BedstoneError: as `read_bytes`, or it is no UTF-8.
    """
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as error:
        raise BedstoneError(
            f"{path}: is not UTF-8 at byte {error.start:,}. Fetch or write the file again."
        ) from error


JSON_LIMIT = 64 << 20  # bytes: the largest vocabularies take a third of it


def read_json(path: str | Path, limit: int = JSON_LIMIT) -> Any:
    """The value in a JSON file.

    Raises:
        BedstoneError: the file is missing, unreadable, larger than `limit` bytes, or no JSON.
    """
    data = read_bytes(path, limit)
    try:
        value = json.loads(data.decode())
        if b"\\ud" in data.lower():  # of a pair, which makes one character, or half of one
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits are ValueErrors
        raise BedstoneError(
            f"{path}: is not valid JSON ({str(error)[:200]}). Fetch or write the file again."
        ) from error


# Published files say "no limit" by -Infinity here; all of diffusers' solvers write it.
UNLIMITED = ("lambda_min_clipped",)


def read_object(path: str | Path, *, finite: bool = True) -> dict[str, Any]:
    """The object in a published JSON file, or in one of ours.

    Args:
        finite: whether NaN and infinity are refused, wherever they stand in it.

    Raises:
        BedstoneError: as `read_json`, or it holds something else than an object, or a number that
            isn't finite, which is named by its key.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise BedstoneError(
            f"{path}: holds {shown(value)}; expected a JSON object. Fetch or write the file again."
        )
    if finite:
        for key, number in numbers(value):
            if key in UNLIMITED and number == -math.inf:
                continue
            if isinstance(number, float) and not math.isfinite(number):
                raise BedstoneError(f"{path}: {key} = {number}; expected a finite number.")
    return value


def numbers(value: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number in a JSON value, with its key (`rope_parameters.factor`, `sizes[0]`)."""
    waiting = [(key, value)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{key}.{name}" if key else name, item) for name, item in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{key}[{number}]", item) for number, item in enumerate(value)]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value


def printable(text: str, kept: str = "\n\t") -> str:
    """A text for a terminal, which other control characters than those kept would command."""
    return "".join(c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in text)


def shown(value: Any, longest: int = 80) -> str:
    """A value as errors show it: its beginning where it is long."""
    if isinstance(value, int) and abs(value) >= 10**longest:
        return f"a whole number of {value.bit_length():,} bits"
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= longest else f"{text[:longest]}…"


# Kinds of values in JSON, by the words of errors.


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(holds, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _either(one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: one(value) or _are(one)(value)


KINDS: dict[str, Callable[[Any], bool]] = {
    "a whole number": _is_whole,
    "a number": _is_number,
    "text": _is_text,
    "true or false": lambda value: isinstance(value, bool),
    "an object": lambda value: isinstance(value, dict),
    "a list of texts": _are(_is_text),
    "a list of whole numbers": _are(_is_whole),
    "a list of numbers": _are(_is_number),
    "a list of objects": _are(lambda value: isinstance(value, dict)),
    "text or a list of texts": _either(_is_text),
    "a whole number or a list of them": _either(_is_whole),
    "a number or a list of them": _either(_is_number),
    "an object or a list": lambda value: isinstance(value, dict | list),
    "text or an object": lambda value: isinstance(value, str | dict),
}


def check_kinds(values: Mapping[str, Any], kinds: Mapping[str, str], path: str | Path) -> None:
    """Checks values of a JSON object that are there and not null, by the kinds in `KINDS`.

    Raises:
        BedstoneError: one is of another kind; the file, the key and the value are named.
    """
    for key, kind in kinds.items():
        value = values.get(key)
        if value is not None and not KINDS[kind](value):
            raise BedstoneError(f"{path}: {key} = {shown(value)}; expected {kind}.")


def near_path(path: Path) -> str:
    """` (perhaps ... is meant)`: a folder beside a missing one, or its first missing parent."""
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    try:
        names = [each.name for each in missing.parent.iterdir() if each.is_dir()]
    except OSError:  # it may not be read
        names = []
    if near := near_name(missing.name, names):
        return f" (perhaps {str(missing.parent / near)!r} is meant)"
    return f" (looked in {missing.parent.absolute()})"
