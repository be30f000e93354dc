"""Cells of one column of a Parquet or Arrow file, read when they are asked for.

Of a Parquet file two batches of cells are held, and a page of it; an Arrow file is mapped.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bedstone.data.rows import data_suffix

TOGETHER = 128  # rows read at a time
# A page at a time: else the whole column of a row group would be read at once.
PAGES: dict[str, Any] = {"buffer_size": 1 << 16, "pre_buffer": False}


class ParquetCells:
    """Cheap in rising order; a step back begins again at the row group."""

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
            self._left = self._file.iter_batches(
                TOGETHER, row_groups=[group], columns=[self._column]
            )
        for batch in self._left:
            first, cells = self._next, batch.column(0)
            self._held.append((first, cells))
            self._next += len(cells)
            if number < self._next:
                return cells[number - first].as_py()
        raise IndexError(number)


class ArrowCells:
    """Of a file that is mapped into memory."""

    def __init__(self, path: Path, column: str) -> None:
        mapped = pa.memory_map(str(path))
        try:
            table = pa.ipc.open_stream(mapped).read_all()
        except pa.ArrowInvalid:
            table = pa.ipc.open_file(mapped).read_all()
        self._cells = table.column(column)

    def __getitem__(self, number: int) -> Any:
        """A cell as Python has it. Raises IndexError."""
        return self._cells[number].as_py()


def stored_cells(path: Path, column: str) -> ParquetCells | ArrowCells:
    """The cells of a column of a Parquet or Arrow file. Raises what pyarrow does."""
    kind = ParquetCells if data_suffix(path) == ".parquet" else ArrowCells
    return kind(path, column)
