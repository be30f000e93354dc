"""What a row's columns hold: its picture, its texts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from bedstone.data.pair_rows import Raw
from bedstone.data.pictured import Picture
from bedstone.data.reading import check_text
from bedstone.errors import BedstoneError, nearest

# Columns that may hold a row's picture, and its texts.
IMAGE = ("image", "img", "picture", "file_name", "image_path", "path", "jpg", "png")
TEXT = ("text", "caption", "captions", "texts", "sentences")


@dataclass(frozen=True)
class ColumnReader:
    """Which columns hold the parts of a row.

    Attributes:
        columns: {part: column}, where the usual names aren't used.
        parts: the parts of a row, and the names that their columns usually have.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    parts: ClassVar[Mapping[str, Sequence[str]]] = {}

    def __post_init__(self) -> None:
        for part in self.columns:
            if part not in self.parts:
                raise BedstoneError(
                    f"data.columns: {part!r} is no part of a row{nearest(part, self.parts)}."
                )

    def column(self, part: str, values: Mapping[str, Any]) -> str | None:
        """The column of a row that holds a part; None where it has none."""
        if part in self.columns:
            return self.columns[part]
        return next((name for name in self.parts[part] if name in values), None)

    def picture(self, raw: Raw) -> Picture:
        """A row's picture, not decoded.

        Raises:
            BedstoneError: there is no such column, or no picture in it.
        """
        column = self.column("image", raw.values)
        if column is None or column not in raw.values:
            raise BedstoneError(
                f"{raw.place}: has no column for the picture ({', '.join(IMAGE)}); it has "
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
