"""Labels and numbers as arrays for scoring; what can't be scored is named by its row.

Shapes: N rows, C classes.
"""

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bedstone.errors import BedstoneError, nearest


def label_names(labels: Sequence[str] | None, seen: Iterable[Any]) -> list[str]:
    """All classes: `labels`, or those `seen`, sorted.

    Raises:
        BedstoneError: a label is there twice, or no label is named and one seen is no string.
    """
    if labels is None:
        found = list(seen)
        for label in found:
            if not isinstance(label, str):
                raise BedstoneError(
                    f"labels: {label!r} is no name of a class; where classes are numbers, give "
                    "their names as `labels`."
                )
        return sorted(set(found))
    names = list(labels)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BedstoneError(f"labels: {twice!r} is there twice; each must be another.")
    return names


def label_codes(values: Sequence[Any], names: Sequence[str], side: str) -> np.ndarray:
    """(N,) int64: each label's number.

    Args:
        side: predicted or actual, for messages.

    Raises:
        BedstoneError: a label that is not one of `names`.
    """
    known = {name: number for number, name in enumerate(names)}
    return np.array(
        [_code(value, known, side, row) for row, value in enumerate(values)], dtype=np.int64
    )


def label_sets(values: Sequence[Any], side: str) -> list[list[Any]]:
    """A list of labels a row.

    Raises:
        BedstoneError: a row that is a string or no collection.
    """
    rows = []
    for row, value in enumerate(values):
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise BedstoneError(
                f"{side}, row {row}: {value!r} is one value, where a list of labels was expected."
            )
        rows.append(list(value))
    return rows


def label_indicators(rows: Sequence[Sequence[Any]], names: Sequence[str], side: str) -> np.ndarray:
    """(N, C) bool: which labels each row has.

    Raises:
        BedstoneError: a label that is not one of `names`.
    """
    known = {name: number for number, name in enumerate(names)}
    found = np.zeros((len(rows), len(names)), dtype=bool)
    for row, labels in enumerate(rows):
        found[row, [_code(label, known, side, row) for label in labels]] = True
    return found


def finite_numbers(values: Sequence[Any], side: str) -> np.ndarray:
    """(N, C) float64; a number a row gives one column.

    Raises:
        BedstoneError: what is no number, nan or infinite; rows of unlike lengths.
    """
    rows = [np.atleast_1d(np.asarray(value, dtype=object)).tolist() for value in values]
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]) or not row:
            raise BedstoneError(
                f"{side}, row {number}: has {len(row)} numbers, where row 0 has {len(rows[0])}; "
                "expected one or more, as many in each."
            )
        for value in row:
            if not isinstance(value, numbers.Real) or isinstance(value, bool):
                raise BedstoneError(f"{side}, row {number}: {value!r} is no number.")
            if not math.isfinite(value):
                raise BedstoneError(
                    f"{side}, row {number}: is {value}; expected a finite number. Drop the row, "
                    "or look at what made it so."
                )
    return np.array(rows, dtype=float)


def _code(value: Any, known: dict[str, int], side: str, row: int) -> int:
    """A label's number, of its name or of its number."""
    if isinstance(value, str) and value in known:
        return known[value]
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        number = int(value)
        if 0 <= number < len(known):
            return number
        raise BedstoneError(
            f"{side}, row {row}: {value} is no number of a label; there are {len(known)}, "
            f"from 0 to {len(known) - 1}."
        )
    hint = nearest(value, known) if isinstance(value, str) else f"; expected {_some(known)}"
    raise BedstoneError(f"{side}, row {row}: {value!r} is no known label{hint}.")


def _some(known: dict[str, int]) -> str:
    names = list(known)
    return "one of " + ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
