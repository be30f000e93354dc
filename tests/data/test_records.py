"""Cells of a file's column, read as they are asked for: right in any order, and never all held."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bedstone.data.tables import stored_cells

ROWS = 6000


@pytest.fixture
def table():
    draw = random.Random(0)
    pictures = [{"bytes": draw.randbytes(800), "path": None} for _ in range(ROWS)]
    pictures[3] = None
    return pa.table({"image": pictures, "n": range(ROWS)})


def write(table, path, kind):
    if kind.startswith("groups of "):
        size = int(kind.split()[-1])
        pq.write_table(table, path, row_group_size=size, use_dictionary=False)
        return
    new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with new(str(path), table.schema) as out:
        out.write_table(table, max_chunksize=90)


@pytest.mark.parametrize(
    "kind", ["groups of 100", "groups of 300", "groups of 6000", "stream", "file"]
)
def test_cells_are_those_of_the_table_in_any_order(table, tmp_path, kind):
    path = tmp_path / ("t.parquet" if kind.startswith("groups") else "t.arrow")
    write(table, path, kind)
    wanted = table.column("image").to_pylist()
    cells = stored_cells(path, "image")
    assert [cells[number] for number in range(ROWS)] == wanted
    order = random.Random(1).sample(range(ROWS), 60)
    assert [cells[number] for number in order] == [wanted[number] for number in order]
    back = [*range(128, 256), *range(130, 300), 0, ROWS - 1]
    assert [cells[number] for number in back] == [wanted[number] for number in back]
    with pytest.raises(IndexError):
        cells[ROWS]


@pytest.mark.parametrize("kind", ["groups of 6000", "stream", "file"])
def test_a_file_larger_than_what_is_held(table, tmp_path, kind):
    path = tmp_path / ("t.parquet" if kind.startswith("groups") else "t.arrow")
    write(table, path, kind)
    size = table.nbytes
    del table
    before = pa.total_allocated_bytes()
    cells = stored_cells(path, "image")
    most = 0
    for number in range(ROWS):
        cells[number]
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < (0.5 * size if kind.startswith("groups") else 0.01 * size)
