"""Rows written to a file: CSV, TSV, JSON, JSONL or Parquet, by the file's ending.

Rows are dictionaries, a mapping of columns, a DataFrame or a `datasets.Dataset`; images of Pillow
become PNG bytes. A file is written whole or not at all.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from bedstone.data.bytes import half_character
from bedstone.errors import BedstoneError, nearest
from bedstone.files import atomic_file, write_text

FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


def write_rows(rows: Any, path: str | Path, name: str = "rows") -> Path:
    """Writes rows to a file.

    Args:
        rows: an iterable of dictionaries, a mapping {column: values}, a pandas DataFrame or a
            `datasets.Dataset`.
        name: what the error calls them.

    Raises:
        BedstoneError: they are none of these, or there are none; the file's ending is unknown, or
            the file can't be written.
    """
    path = Path(path)
    check_format(path)
    suffix = path.suffix.lower()
    if hasattr(rows, "features") and suffix == ".parquet" and len(rows):  # of `datasets`
        table = rows.with_format("arrow")[:]
        known = rows.features.arrow_schema.metadata  # names of classes, kinds of columns
        _write_table(table.replace_schema_metadata(known), path)
        return path
    listed = dictionaries(rows, name)
    if suffix == ".parquet":
        _write_parquet(listed, path, name)
    elif suffix == ".jsonl":
        write_text(path, "".join(f"{_json(row)}\n" for row in listed))
    elif suffix == ".json":
        write_text(path, "[\n" + ",\n".join(map(_json, listed)) + "\n]\n")
    else:
        write_text(path, _csv(listed, "	" if suffix == ".tsv" else ",", name))
    return path


def check_format(path: Path) -> None:
    """Raises BedstoneError where rows can't be written to a file of that ending."""
    if path.suffix.lower() not in FORMATS:
        raise BedstoneError(
            f"{path}: its ending {path.suffix!r} is no format of rows"
            f"{nearest(path.suffix, FORMATS)}."
        )


def dictionaries(rows: Any, name: str) -> list[dict[str, Any]]:
    """Rows as dictionaries; arguments and errors as of `write_rows`."""
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # a DataFrame
        rows = rows.to_dict("records")
    if isinstance(rows, Mapping):
        sizes = {len(values) if hasattr(values, "__len__") else -1 for values in rows.values()}
        if len(sizes) != 1 or -1 in sizes:
            raise BedstoneError(
                f"{name}: columns have {sorted(sizes)} values; expected lists of one length."
            )
        rows = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    listed = list(rows) if isinstance(rows, Iterable) and not isinstance(rows, str) else None
    if listed is None:
        raise BedstoneError(
            f"{name}: {type(rows).__name__} was given; expected a list of dictionaries, a mapping "
            "of columns, a DataFrame or a datasets.Dataset."
        )
    for number, row in enumerate(listed):
        if not isinstance(row, Mapping):
            raise BedstoneError(
                f"{name}[{number}]: is {type(row).__name__}; expected a dictionary of columns."
            )
    if not listed:
        raise BedstoneError(f"{name}: has no rows. Give at least one.")
    return [{str(key): _plain(value) for key, value in row.items()} for row in listed]


def _plain(value: Any) -> Any:
    """A value as files hold it."""
    if isinstance(value, Image.Image):
        with io.BytesIO() as file:
            value.save(file, "PNG")
            return file.getvalue()
    if isinstance(value, Path):
        return str(value)
    return value.tolist() if hasattr(value, "tolist") else value  # of numpy, torch


def _write_parquet(rows: list[dict[str, Any]], path: Path, name: str) -> None:
    import pyarrow

    columns = dict.fromkeys(key for row in rows for key in row)
    try:
        table = pyarrow.table({key: _array([row.get(key) for row in rows]) for key in columns})
    except (pyarrow.ArrowException, OverflowError, TypeError, UnicodeEncodeError) as error:
        why = " ".join(str(error).split())
        raise BedstoneError(
            f"{name}: can't be written as columns of one type ({why}). Make each column's values "
            "of one kind."
        ) from error
    _write_table(table, path)


def _array(values: list[Any]) -> Any:
    """A column; its type is inferred, but for what Arrow would refuse or cut."""
    import pyarrow

    if any(isinstance(value, str) for value in values):  # pandas writes NaN for no text
        gaps = [isinstance(value, float) and math.isnan(value) for value in values]
        values = [None if gap else value for gap, value in zip(gaps, values, strict=True)]
    if exact := [value for value in values if getattr(value, "nanosecond", 0) > 0]:  # of pandas
        zone = exact[0].tzinfo
        return pyarrow.array(values, pyarrow.timestamp("ns", None if zone is None else str(zone)))
    if any(type(value) is int and value >= 2**63 for value in values):
        return pyarrow.array(values, pyarrow.uint64())
    return pyarrow.array(values)


def _write_table(table: Any, path: Path) -> None:
    from pyarrow import parquet

    with atomic_file(path) as temporary:
        parquet.write_table(table, str(temporary))


def _json(row: Mapping[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False, default=_text)
    return text if half_character(text) is None else json.dumps(row, default=_text)


def _text(value: Any) -> str:
    return f"<{len(value):,} bytes>" if isinstance(value, bytes) else str(value)


def _csv(rows: list[dict[str, Any]], separator: str, name: str) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    file = io.StringIO()
    # With CRLF it quotes either of both; lines end with LF all the same.
    writer = csv.writer(file, delimiter=separator, lineterminator="\r\n")
    found = []
    for row in [dict(zip(columns, columns, strict=True)), *rows]:
        writer.writerow([_cell(row.get(key)) for key in columns])
        found.append(file.getvalue().removesuffix("\r\n") + "\n")
        file.seek(0)
        file.truncate()
    text = "".join(found)
    if half := half_character(text):
        raise BedstoneError(f"{name}: holds {half}. Mend it, or write JSON.")
    return text


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | dict | tuple):
        return json.dumps(value, ensure_ascii=False, default=_text)
    return _text(value)
