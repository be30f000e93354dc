"""Inputs from the command line of tasks that take both texts and pictures, such as posts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bedstone.data.illustrated import illustrated
from bedstone.data.images import IMAGE_SUFFIXES
from bedstone.data.rows import data_suffix
from bedstone.tasks.search import ROWS, read_corpus

TASKS = ("moderation", "similar-items", "complementary-items")  # that take both


def posts(texts: Sequence[str], file: str | None, column: str | None) -> list[Any]:
    """Texts, names of pictures as `Path`, and the lines or rows of a file.

    A word is a picture where there is a file of that name and its suffix is a picture's.
    """
    found: list[Any] = [_picture(text) or text for text in texts]
    if file is None:
        return found
    path = Path(file)
    if path.is_file() and data_suffix(path) not in ROWS:
        return [*found, *read_corpus(file, column)[0]]
    rows = illustrated(file, columns={"text": column} if column else None)
    text = rows.column("text")
    for row in rows.rows:
        both = {"text": row.get(text) if text else None, "image": row["image"]}
        found.append({key: value for key, value in both.items() if value is not None})
    return found


def told(value: Any) -> Any:
    """An input as it is printed: pictures by their names."""
    if isinstance(value, dict):
        return {key: told(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [told(each) for each in value]
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    return str(value) if isinstance(value, Path) else value


def _picture(word: str) -> Path | None:
    try:
        path = Path(word)
        named = path.suffix.lower() in IMAGE_SUFFIXES
        return path if named and path.is_file() else None
    except (OSError, ValueError):  # too long to be a name, or with a NUL
        return None
