"""Rows of Parquet and Arrow files and of data sets on the hub, and single cells of such files."""

import json
import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from itertools import accumulate, count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bedstone.data.bytes import check_unpacked, data_suffix, short
from bedstone.errors import BedstoneError

ROWS, CELLS = 256, 128  # of a table, and of one column, read at a time
# A page at a time: else the whole column of a row group would be read at once.
PAGES: dict[str, Any] = {"buffer_size": 1 << 16, "pre_buffer": False}

Row = tuple[str, Any]  # its place in the file, such as "line 3", and its columns
Names = dict[str, list[str]]  # {column: names}: what the numbers of a column stand for


def table_rows(path: Path, names: Names | None = None) -> Iterator[Row]:
    """The rows of a Parquet or Arrow file; images and sounds are the bytes that are stored.

    `names` is given those that the file holds.
    """
    number, unpacked = count(1), 0
    try:
        size = path.stat().st_size
        if data_suffix(path) == ".parquet":
            file = pq.ParquetFile(path, **PAGES)
            check_unpacked(path, size, _declared(file.metadata))
            schema, batches = file.schema_arrow, file.iter_batches(ROWS)
        else:
            batches = _open_arrow(path)
            schema = batches.schema
        _check_header(path, schema)
        if names is not None:
            _stored_names(schema, names)
        for batch in batches:
            unpacked += batch.nbytes
            check_unpacked(path, size, unpacked)
            for row in batch.to_pylist():
                yield f"row {next(number):,}", row
    except BedstoneError:
        raise
    # OverflowError and ValueError: a time or a number that Python's types don't hold
    except (pa.ArrowException, OSError, MemoryError, OverflowError, ValueError) as error:
        raise BedstoneError(
            f"{path}: can't be read as a {data_suffix(path)[1:]} file ({short(error)}). "
            f"{_remedy(path)}"
        ) from error


def _remedy(path: Path) -> str:
    if path.suffix == ".gz":
        return "It is packed by gzip; unpack it first."
    return "The file may be cut short or of another format; write or fetch it again."


def _check_header(path: Path, schema: pa.Schema) -> None:
    """Raises BedstoneError where two columns have one name."""
    names = schema.names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BedstoneError(f"{path}: has the column {twice!r} twice. Rename one of them.")


def _declared(about: pq.FileMetaData) -> int:
    """Bytes that a Parquet file says it holds; a row takes one at least."""
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    return max(about.num_rows, sum(max(group.total_byte_size, 0) for group in groups))


def _open_arrow(path: Path) -> pa.RecordBatchReader:
    """An Arrow file, a stream or with an index, mapped into memory."""
    mapped = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(mapped)
    except pa.ArrowInvalid:
        return pa.ipc.open_file(mapped).read_all().to_reader(ROWS)


def _stored_names(schema: pa.Schema, names: Names) -> None:
    """Names of classes, as the `datasets` library keeps them beside the columns."""
    stored = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(stored)["info"]["features"] if stored else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    if not isinstance(features, dict):
        return
    for column, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else feature
        if isinstance(inner, dict) and isinstance(inner.get("names"), list):
            names[column] = [str(name) for name in inner["names"]]


def hub_rows(
    name: str, split: str, names: Names | None = None, built_in: str = "python-docs"
) -> Iterator[Row]:
    """The rows of a data set on the hub, or of its copy in the offline cache.

    `names` is given those that the set holds; `built_in` is data that an error recommends instead.
    """
    datasets = import_datasets()
    try:
        found = datasets.load_dataset(name, split=split, streaming=True)
        for column, feature in (found.features or {}).items():
            if isinstance(feature, datasets.Image):
                found = found.cast_column(column, datasets.Image(decode=False))
            inner = getattr(feature, "feature", feature)
            if names is not None and getattr(inner, "names", None):
                names[column] = list(inner.names)
        for number, row in enumerate(found, 1):
            yield f"row {number:,}", row
    except Exception as error:  # that library raises dozens of kinds, all about the data
        raise BedstoneError(
            f"data {name!r}: is no file or folder here, and can't be read from the hub "
            f"({short(error)}). Without a network, download it elsewhere with "
            f"datasets.load_dataset({name!r}) and its to_parquet(), then name that file; "
            f"or use the built-in data: {built_in}."
        ) from error


def import_datasets() -> Any:
    """The `datasets` module, imported when first needed: it takes about a second."""
    import datasets

    # The message of a fault is one paragraph, without that library's log.
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    return datasets


class ParquetCells:
    """Cells of a Parquet file: cheap in rising order; a step back reads its row group again.

    Two batches of cells are held, and a page of the file.
    """

    def __init__(self, path: Path, column: str) -> None:
        self._file, self._column = pq.ParquetFile(path, **PAGES), column
        about = self._file.metadata
        sizes = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        self._starts = list(accumulate(sizes, initial=0))
        self._held: deque[tuple[int, Any]] = deque(maxlen=2)  # first row and cells
        self._group, self._next = -1, 0  # where reading stands
        self._left: Iterator[Any] = iter(())

    def __getitem__(self, number: int) -> Any:
        """A cell as Python has it. Raises IndexError, and what pyarrow does."""
        for first, cells in self._held:
            if first <= number < first + len(cells):
                return cells[number - first].as_py()
        group = bisect_right(self._starts, number) - 1
        if not 0 <= number < self._starts[-1]:
            raise IndexError(number)
        if group != self._group or number < self._next:
            self._group, self._next = group, self._starts[group]
            self._left = self._file.iter_batches(CELLS, row_groups=[group], columns=[self._column])
        for batch in self._left:
            first, cells = self._next, batch.column(0)
            self._held.append((first, cells))
            self._next += len(cells)
            if number < self._next:
                return cells[number - first].as_py()
        raise IndexError(number)


class ArrowCells:
    """Cells of an Arrow file, which is mapped into memory."""

    def __init__(self, path: Path, column: str) -> None:
        self._cells = _open_arrow(path).read_all().column(column)

    def __getitem__(self, number: int) -> Any:
        """A cell as Python has it. Raises IndexError."""
        return self._cells[number].as_py()


def stored_cells(path: Path, column: str) -> ParquetCells | ArrowCells:
    """The cells of a column of a Parquet or Arrow file. Raises what pyarrow does."""
    kind = ParquetCells if data_suffix(path) == ".parquet" else ArrowCells
    return kind(path, column)
