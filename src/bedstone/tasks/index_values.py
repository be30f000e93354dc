"""Metadata as an index keeps it: text, numbers, true or false; anything else as JSON text."""

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Kind = Literal["text", "numbers", "true or false"]

OWN = ("key", "stamp", "vector")  # columns that an index has for itself
_LARGEST = 2**53  # whole numbers that fp64 holds


def kinds_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Kind]:
    """What each column holds over all rows; columns of nothing but None are left out."""
    found: dict[str, Kind] = {}
    for row in rows:
        for name, value in row.items():
            if (kind := _kind(value)) is not None:
                found[name] = kind if found.get(name, kind) == kind else "text"
    return found


def plain(value: Any, kind: Kind) -> Any:
    """A value as its column keeps it; None where it has none."""
    if _kind(value) is None:
        return None
    if kind == "true or false":
        return bool(value)
    if kind == "numbers":
        return float(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # lone surrogates can't be stored
    return json.dumps(_item(value), ensure_ascii=False, default=str).strip('"')


def shown(value: Any) -> str:
    """A value for people: whole numbers without a point, of a list of texts the first."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and value.startswith('["'):
        with contextlib.suppress(ValueError):
            first, *more = json.loads(value)
            return f"{first} (+{len(more)})" if more else str(first)
    return "" if value is None else str(value)


def arrow_type(kind: Kind) -> Any:
    """The type of a column in the table."""
    import pyarrow as pa

    types = {"text": pa.string(), "numbers": pa.float64(), "true or false": pa.bool_()}
    return types[kind]


def kind_of(type_: Any) -> Kind:
    """What a column of the table holds."""
    import pyarrow as pa

    if pa.types.is_boolean(type_):
        return "true or false"
    return "numbers" if pa.types.is_floating(type_) else "text"


def _kind(value: Any) -> Kind | None:
    value = _item(value)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, float) or (isinstance(value, int) and abs(value) <= _LARGEST):
        return "numbers"
    return "text"


def _item(value: Any) -> Any:
    """numpy's scalars as Python's."""
    return value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value
