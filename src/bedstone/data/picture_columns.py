"""What a row's column holds: its picture, or its texts."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bedstone.data.pair_rows import Raw
from bedstone.data.pictured import Picture
from bedstone.data.reading import check_text
from bedstone.errors import BedstoneError


def picture_in(raw: Raw, column: str | None, usual: Sequence[str]) -> Picture:
    """The picture in a column, not decoded.

    Args:
        usual: names that such a column has, for the message.

    Raises:
        BedstoneError: there is no such column, or no picture in it.
    """
    if column is None or column not in raw.values:
        raise BedstoneError(
            f"{raw.place}: has no column for the picture ({', '.join(usual)}); it has "
            f"{columns_of(raw)}. Name it: data.columns: {{image: ...}}"
        )
    return read_picture(raw, raw.values[column], f"column {column!r}")


def read_picture(raw: Raw, value: Any, what: str) -> Picture:
    """The picture that a value of a row is or names: its bytes or its file.

    Raises:
        BedstoneError: it is none, or its file isn't there.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray) and value:
        return bytes(value)
    if isinstance(value, str) and value:
        path = raw.folder / value
        if raw.inside and not path.resolve().is_relative_to(raw.folder.resolve()):
            raise BedstoneError(f"{raw.place}: {value!r} leads out of {raw.folder}.")
        if not path.is_file():
            raise BedstoneError(f"{raw.place}: there is no file {path}.")
        return path
    raise BedstoneError(
        f"{raw.place}: {what} holds no picture (it is {str(value)[:40]!r}); expected encoded "
        "bytes or a path."
    )


def texts_in(raw: Raw, column: str | Sequence[str]) -> tuple[str, ...]:
    """The texts of a column, one or several; empty ones of several are passed over.

    A column with braces is a sentence made of columns, as `a {colour} {kind}: {title}`; of several
    columns or sentences each gives its texts.

    Raises:
        BedstoneError: there is none, or one is broken.
    """
    if not isinstance(column, str):
        return tuple(text for one in column for text in texts_in(raw, one))
    if "{" in column:
        return (_filled(raw, column),)
    value = raw.values.get(column)
    found: list[Any] = [value]
    if isinstance(value, list | tuple):
        found = [text for text in value if text]
    if not found or found == [None]:
        raise BedstoneError(f"{raw.place}: column {column!r} holds no text.")
    for text in found:
        check_text(text, f"{raw.place}: column {column!r}")
    return tuple(text.strip() for text in found)


def _filled(raw: Raw, sentence: str) -> str:
    """A sentence with what the row's columns hold in the place of their names."""

    def value(name: re.Match[str]) -> str:
        held = raw.values.get(name[1])
        if held is None or isinstance(held, list | dict | bytes) or not str(held).strip():
            raise BedstoneError(
                f"{raw.place}: column {name[1]!r}, which the text {sentence!r} is made of, holds "
                f"no word (it is {str(held)[:40]!r}); the row has {columns_of(raw)}."
            )
        return str(held).strip()

    text = re.sub(r"\{(\w+)\}", value, sentence)
    check_text(text, f"{raw.place}: text {sentence!r}")
    return text


def columns_of(raw: Raw) -> str:
    """The names of a row's columns, for a message."""
    return ", ".join(sorted(repr(str(key)) for key in raw.values)[:20])
