"""Rows of an index, how they become a table's, and what is wrong with a condition on them.

Shapes: n rows, E numbers of a vector.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bedstone.errors import BedstoneError, nearest
from bedstone.tasks.index_values import Kind, plain


@dataclass(frozen=True)
class Row:
    """What is indexed.

    Attributes:
        key: its name, once in an index.
        vector: (E,), of any length but 0; it is kept at length 1.
        columns: metadata: numbers, text, true or false, None; a list or dictionary becomes JSON.
        stamp: what tells the row's maker whether it is still of today; never shown.
    """

    key: str
    vector: np.ndarray
    columns: Mapping[str, Any] = field(default_factory=dict)
    stamp: str = ""


@dataclass(frozen=True)
class Found:
    """A row that was found: its key, its cosine with the query, and its metadata."""

    key: str
    score: float
    columns: dict[str, Any]


def table_of(rows: Sequence[Row], schema: Any, columns: Mapping[str, Kind], width: int) -> Any:
    """Rows as an Arrow table.

    Raises:
        BedstoneError: a vector has another width or no direction, or a key is no text.
    """
    import pyarrow as pa

    vectors = units([row.vector for row in rows], [f"row {row.key!r}" for row in rows], width)
    values: dict[str, Any] = {"key": [_text(row.key) for row in rows]}
    values["stamp"] = [row.stamp for row in rows]
    for name, kind in columns.items():
        values[name] = [plain(row.columns.get(name), kind) for row in rows]
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width)
    arrays = [flat if f.name == "vector" else pa.array(values[f.name], f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def units(vectors: Sequence[Any], names: Sequence[str], width: int) -> np.ndarray:
    """Vectors at length 1, (n, E) fp32; `names` are told in errors.

    Raises:
        BedstoneError: one has another width, isn't finite, or is zero.
    """
    given = [np.asarray(vector, dtype=np.float32) for vector in vectors]
    for vector, name in zip(given, names, strict=True):
        if vector.shape != (width,) or not np.isfinite(vector).all() or not vector.any():
            raise BedstoneError(
                f"{name}: its vector has the shape {vector.shape}, or isn't finite, or is zero; "
                f"expected {width} numbers."
            )
    whole = np.stack(given)
    return whole / np.linalg.norm(whole, axis=1, keepdims=True)


def among(keys: Sequence[str]) -> str:
    """The condition that a row has one of these keys."""
    return "key in ({})".format(", ".join("'" + key.replace("'", "''") + "'" for key in keys))


def refusal(where: str, told: str, columns: Mapping[str, Kind]) -> str:
    """What is wrong with a condition, of which LanceDB told in its words."""
    if unknown := re.search(r"No field named [`\"]?([^`\"]+?)[`\"]?\.(\s|$)", told):
        name = unknown[1]
        return f"where {where!r}: there is no column {name!r}{nearest(name, ['key', *columns])}"
    have = ", ".join(f"{name} ({kind})" for name, kind in {"key": "text", **columns}.items())
    return (
        f"where {where!r}: can't be understood ({short(told)}). Expected one as SQL has it, "
        f"such as \"price < 20 and colour = 'red'\", on the columns {have}."
    )


def short(error: object) -> str:
    """The first line of a library's error, without where in its source it was raised."""
    told = str(error).splitlines()[0] if str(error) else type(error).__name__
    return re.sub(r",? */\S+\.rs:\S*|Invalid (user )?input[,:] ", "", told)[:200].strip()


def _text(key: str) -> str:
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise BedstoneError(f"{key!r}: its name is not Unicode. Rename it.") from error
    return key
