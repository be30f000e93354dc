"""Rows that may have a picture beside their text and other columns: posts, items of a catalogue."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bedstone.data.labelled import LabelledRows
from bedstone.data.pair_rows import Raw, raw_rows
from bedstone.errors import BedstoneError, nearest

IMAGES = ("image", "img", "picture", "photo", "image_path", "file_name")  # columns by usual names


def illustrated(
    name: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    image: str | None = None,
    split: str | None = None,
) -> LabelledRows:
    """All rows of a source (see `data.pair_rows`), whose `image` is a `Path`, bytes or None.

    Nothing is decoded. A path is relative to the folder of the file that names it.

    Args:
        columns: {part: column} of texts and labels, where the usual names aren't used.
        image: the column of pictures, where it hasn't a usual name.

    Raises:
        BedstoneError: there is no such data or column, or a row's picture is neither bytes nor a
            file's name.
    """
    names: dict[str, list[str]] = {}
    raw = list(raw_rows(str(name), split, names))
    known = {key for each in raw for key in each.values}
    if image is not None and image not in known:
        raise BedstoneError(f"data {str(name)!r}: has no column {image!r}{nearest(image, known)}.")
    column = image or next((each for each in IMAGES if each in known), None)
    rows = [{**each.values, "image": _picture(each, column)} for each in raw]
    return LabelledRows(rows, str(name), columns, places=[each.place for each in raw], names=names)


def _picture(raw: Raw, column: str | None) -> Path | bytes | None:
    value: Any = raw.values.get(column) if column else None
    if isinstance(value, Mapping):  # as the `datasets` library stores them
        value = value.get("bytes") or value.get("path")
    if value is None or isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value.strip():
        raise BedstoneError(
            f"{raw.place}: column {column!r} is {str(value)[:60]!r}; expected a picture's bytes or "
            "its file's name. Mend it, or leave the row out."
        )
    path = raw.folder / value
    if raw.inside and not path.resolve().is_relative_to(raw.folder.resolve()):
        raise BedstoneError(
            f"{raw.place}: column {column!r} is {value!r}, which lies outside {raw.folder}; "
            "expected a file of that folder."
        )
    return path
