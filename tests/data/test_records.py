"""Rows and cells of files: as they are written, in any order, broken ones counted and named."""

import csv
import gzip
import json
import random
import struct
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedstone.data.open import open_dataset, with_images
from bedstone.data.records import csv_rows, number_of
from bedstone.data.sources import open_source
from bedstone.data.tables import stored_cells
from bedstone.errors import BedstoneError

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


# Cells of CSV files.


def write_csv(path, text):
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_separators_are_found_and_said(tmp_path, name, mark):
    if name == "a.tsv" and mark != "\t":
        pytest.skip("its name says tabs")
    text = f'text{mark}label\n"a, b; c"{mark}x\nd{mark}"y{mark}z"\n'
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    rows = open_dataset(path)
    assert rows.rows == [{"text": "a, b; c", "label": "x"}, {"text": "d", "label": f"y{mark}z"}]
    words = {",": [], ";": ["semicolons"], "\t": ["tabs"] if "tsv" not in name else []}[mark]
    assert [note.rsplit(" ", 1)[1] for note in rows.reading.notes] == words


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "0", "12"], [1, 0, 12]),
        (["-1", "2.5"], [-1.0, 2.5]),
        (["01", "1", "001"], ["01", "1", "001"]),
        (["007", "8"], ["007", "8"]),
        (["+1", "1"], ["+1", "1"]),
        (["-0", "1"], ["-0", "1"]),
        (["1_000", "5"], ["1_000", "5"]),
        (["nan", "1"], ["nan", "1"]),
        (["inf", "1"], ["inf", "1"]),
        (["1e999", "1"], ["1e999", "1"]),
        (["\u0661", "1"], ["\u0661", "1"]),
        (["1 ", "1"], ["1 ", "1"]),
        (
            ["1234567890123456789", "1234567890123456790"],
            [1234567890123456789, 1234567890123456790],
        ),
        (["1234567890123456789", "0.5"], ["1234567890123456789", "0.5"]),
        (["0.12345678901234567890123", "1"], ["0.12345678901234567890123", "1"]),
        (["1" * 5000, "1"], ["1" * 5000, "1"]),
    ],
)
def test_a_column_is_of_numbers_only_where_nothing_is_lost(tmp_path, cells, values):
    path = write_csv(tmp_path / "a.csv", "text,label\n" + "".join(f"a,{cell}\n" for cell in cells))
    found = [row["label"] for row in open_dataset(path).rows]
    assert found == values
    assert list(map(type, found)) == list(map(type, values))


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "arrow"])
def test_a_column_named_twice_is_refused(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        path.write_text("text,label,text\na,x,b\n".replace(",", mark))
    else:
        table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
        if kind == "parquet":
            pq.write_table(table, path)
        else:
            with pa.ipc.new_file(str(path), table.schema) as out:
                out.write_table(table)
    with pytest.raises(BedstoneError, match="'text' twice"):
        open_dataset(path)


def test_all_broken_rows_of_a_file_are_named_at_once(tmp_path):
    rows = [json.dumps({"text": "a"})] * 20
    rows[3:5] = ['{"text"', "[3]"]
    rows[8:10] = ["9" * 5000, "[" * 100_000]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    with pytest.raises(BedstoneError, match="4 of 20 rows are broken") as caught:
        open_dataset(tmp_path / "a.jsonl")
    for place in ("line 4 ", "line 5 ", "line 9 ", "line 10 "):
        assert place in str(caught.value)
    assert len(str(caught.value)) < 1200
    kept = open_dataset(tmp_path / "a.jsonl", most_broken=0.2)
    assert len(kept) == 16
    assert "4 rows left out" in kept.describe()
    with pytest.raises(BedstoneError, match=r"more than data.most_broken = 0.1"):
        open_dataset(tmp_path / "a.jsonl", most_broken=0.1)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("kind", ["rows", "images", "samples", "text"])
def test_a_small_share_of_many_rows_may_be_broken(tmp_path, monkeypatch, suffix, kind):
    monkeypatch.setattr("bedstone.data.records.EARLY", 10)
    path = tmp_path / f"a.{suffix}"
    (tmp_path / "i.png").touch()
    broken = [row % 40 == 20 for row in range(800)]
    if suffix == "parquet":
        if kind in ("rows", "images"):
            pytest.skip("a row of a table is read, whatever is in it")
        texts = pa.array([None if bad else "a" for bad in broken])
        pq.write_table(pa.table({"text": texts, "label": texts, "image": texts}), path)
    else:
        head, sound, bad = "text,label,image", "a,x,i.png", "a,x,i.png,more"
        if suffix == "jsonl":
            head, sound, bad = "", '{"text": "a", "label": "x", "image": "i.png"}', '{"text"'
        path.write_text("\n".join([head, *(bad if each else sound for each in broken)]))
    if kind == "text":
        source = open_source(path, most_broken=0.05)
        count, faults = sum(1 for _ in source.documents()), source.faults
    else:
        if kind == "samples":
            rows = open_dataset(path, ("captions",), most_broken=0.05)
        elif kind == "images":
            rows = with_images(path)
        else:
            rows = open_dataset(path, most_broken=0.05)
        count, faults = len(rows), rows.faults
    assert (count, faults.rows, len(faults.broken)) == (780, 800, 20)


def test_broken_rows_of_csv(tmp_path):
    text = 'text,label\na,x\nb\nc,y,z\n\n,\n"d"e,x\nf,x\n'
    path = write_csv(tmp_path / "a.csv", text)
    rows = open_dataset(path, most_broken=0.9)
    assert [row["text"] for row in rows.rows] == ["a", "f"]
    assert len(rows.faults.broken) == 3
    path = write_csv(path, 'text,label\na,x\n"b,y\nc,z\nd,w\n')
    with pytest.raises(BedstoneError, match="quote that opens in the row of line 3 is never"):
        open_dataset(path, most_broken=0.9)
    path = write_csv(path, ",".join(f"c{number}" for number in range(200_000)) + "\n")
    with pytest.raises(BedstoneError, match="200,000 names"):
        open_dataset(path)


def test_a_parquet_file_that_holds_far_more_than_its_size(tmp_path, monkeypatch):
    from bedstone.data import bytes as limits

    monkeypatch.setattr(limits, "UNPACKED", 1 << 20)
    pq.write_table(pa.table({"text": ["a" * 10_000] * 20_000}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": pa.array([1] * 3_000_000, pa.int8())}), tmp_path / "b.parquet")
    for name in ("a", "b"):
        with pytest.raises(BedstoneError, match="unpacks to over"):
            open_dataset(tmp_path / f"{name}.parquet")


def test_notes_and_texts_of_parquet_that_are_untrue(tmp_path):
    for features in ([1], {"label": [3]}, 7, {"label": {"names": 3}}):
        note = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        table = pa.table({"text": ["a"]}).replace_schema_metadata(note)
        pq.write_table(table, tmp_path / "a.parquet")
        assert open_dataset(tmp_path / "a.parquet").rows == [{"text": "a"}]
    letters = [None, pa.py_buffer(struct.pack("<iii", 0, 2, 4)), pa.py_buffer(b"\xff\xfe\xff\xfe")]
    bad = pa.Array.from_buffers(pa.string(), 2, letters)
    pq.write_table(pa.table({"text": bad}), tmp_path / "b.parquet")
    with pytest.raises(BedstoneError, match=r"b\.parquet: can't be read"):
        open_dataset(tmp_path / "b.parquet")


# Whatever stands in a cell comes back as it is.

CELLS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)
SETTINGS = settings(deadline=None, derandomize=True, max_examples=60)


@SETTINGS
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_cells_of_csv_come_back(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(
                [("name", "text"), *rows]
            )
        found = [(row["name"] or "", row["text"] or "") for _, row in csv_rows(path)]
    assert found == [row for row in rows if any(row)]


@SETTINGS
@given(st.one_of(st.text(max_size=12), st.integers().map(str), st.floats().map(repr)))
def test_a_number_can_be_written_back_as_its_cell(cell):
    number = number_of(cell)
    if number is not None:
        assert type(number) in (int, float)
        assert str(number) == cell if type(number) is int else float(cell) == number
        assert not cell.startswith(("+", " ")) and cell == cell.strip()


@SETTINGS
@given(st.integers(-(10**38), 10**38))
def test_whole_numbers_are_exact(number):
    assert number_of(str(number)) == number
