"""Labelled rows from files, and what is said of those that can't be learnt."""

import json
import time

import datasets
import numpy as np
import pytest

from bedstone.data.dataset import Dataset, image_numbers
from bedstone.data.fields import IMAGE_TEXT
from bedstone.data.open import open_dataset
from bedstone.data.records import Faults, Reading
from bedstone.data.signals.signals import Signals
from bedstone.errors import BedstoneError

ROWS = [{"text": "so good", "label": 1}, {"text": "so, bad", "label": 0}]


def write(folder, name, rows=ROWS):
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    elif name.endswith(".csv"):
        lines = [f'"{row["text"]}",{row["label"]}' for row in rows]
        path.write_text("\n".join(["text,label", *lines]))
    elif name.endswith(".parquet"):
        datasets.Dataset.from_list(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_formats_give_the_same_rows(tmp_path, name):
    path = write(tmp_path, name)
    rows = open_dataset(path)
    assert rows.rows == ROWS
    assert rows.where(1).startswith(f"{path}: ")
    assert rows.column("label") == "label"


def test_csv_reads_labels_as_what_they_are(tmp_path):
    path = write(tmp_path, "a.csv", [{"text": "12", "label": "3.5"}, {"text": "b", "label": ""}])
    assert open_dataset(path).rows == [{"text": "12", "label": 3.5}, {"text": "b", "label": None}]
    path = write(tmp_path, "b.csv", [{"text": "12", "label": "3"}, {"text": "b", "label": "x"}])
    assert [row["label"] for row in open_dataset(path).rows] == ["3", "x"]


def test_a_set_that_names_its_classes(tmp_path):
    names = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list(ROWS, features=features).to_parquet(path)
    assert open_dataset(path).names == {"label": ["bad", "good"]}


def test_splits_of_a_folder(tmp_path):
    write(tmp_path, "train.jsonl")
    write(tmp_path, "validation.jsonl", ROWS[:1])
    assert len(open_dataset(tmp_path)) == 2
    assert len(open_dataset(tmp_path, split="validation")) == 1
    assert len(open_dataset(f"{tmp_path}/*.jsonl", split="train")) == 2


def test_a_text_file_is_a_row(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo")
    assert open_dataset(tmp_path / "a.txt").rows == [{"text": "one\ntwo"}]


def test_columns_named_by_hand():
    rows = Dataset([{"review": "x", "n": 1, "text": "no"}], columns={"text": "review"})
    assert rows.need("text") == "review"
    with pytest.raises(BedstoneError, match=r"no column for the label .*'n', 'review', 'text'"):
        rows.need("label")
    with pytest.raises(BedstoneError, match=r"columns.text: .*'reviw'; perhaps 'review'"):
        Dataset(rows.rows, columns={"text": "reviw"})
    with pytest.raises(BedstoneError, match="'txt' is no part of a row; perhaps 'text'"):
        Dataset(rows.rows, columns={"txt": "review"})


def test_rows_that_are_none(tmp_path):
    with pytest.raises(BedstoneError, match="holds no row"):
        Dataset([], "nothing")
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n[3]\n')
    with pytest.raises(BedstoneError, match=r"a\.jsonl: line 2 is of type list"):
        open_dataset(path)
    path.write_text('{"text": "a"}\n{"text"\n')
    with pytest.raises(BedstoneError, match="line 2 is not valid JSON"):
        open_dataset(path)
    with pytest.raises(BedstoneError, match="no such file"):
        open_dataset(tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": ""}, r"line 2: column 'text': is empty"),
        ({"text": " \t"}, r"line 2: column 'text': is empty"),
        ({"text": None}, r"line 2: column 'text' is null"),
        ({"label": 1}, r"line 2: column 'text' is missing"),
        ({}, r"line 2 has no columns"),
        ({"text": 3}, r"line 2: column 'text': is '3' of type int; expected a string"),
        ({"text": "a\ud800"}, r"line 2: column 'text': holds half a character"),
        ({"text": "a" * 10_000_000}, r"line 2: column 'text': has 10,000,000 characters"),
    ],
)
def test_a_bad_text_is_reported_with_its_place(tmp_path, row, said):
    path = write(tmp_path, "a.jsonl", [{"text": "a"}, row])
    with pytest.raises(BedstoneError, match=said):
        open_dataset(path).texts("text")


def test_held_out_rows_are_the_same_whatever_the_order():
    many = [{"text": f"row {number % 900}", "label": 1} for number in range(1000)]
    train, held = Dataset(many).hold_out(0.2)
    assert len(train) + len(held) == 1000
    assert 130 < len(held) < 270
    texts = {row["text"] for row in held.rows}
    assert not texts & {row["text"] for row in train.rows}
    assert {row["text"] for row in Dataset(many[::-1]).hold_out(0.2)[1].rows} == texts
    number = int(held.where(3).split("row ")[1])
    assert many[number - 1] == held.rows[3]
    with pytest.raises(BedstoneError, match="too few rows"):
        Dataset(ROWS[:1]).hold_out(0.1)
    with pytest.raises(BedstoneError, match="validation_share"):
        Dataset(ROWS).hold_out(1.5)


def test_some_of_the_rows():
    many = Dataset([{"text": str(number)} for number in range(100)])
    some = many.take(10, seed=3)
    assert [row["text"] for row in some.rows] == [row["text"] for row in many.take(10, 3).rows]
    assert len(some) == 10
    assert some.rows != many.take(10, 4).rows
    assert many.take(200) is many
    assert some.fingerprint() != many.fingerprint()


def test_rows_of_one_image_are_one_image(tmp_path):
    from PIL import Image

    for name in ("a/0.png", "b/0.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (9 * len(name), ord(name[0]), ord(name[2]))).save(tmp_path / name)
    rows = [
        {"image": name, "question": f"what {n}?", "answer": "x"}
        for n, name in enumerate(("a/0.png", "b/0.png", "a/0.png", "b/1.png", "b/0.png"))
    ]
    write(tmp_path, "a.jsonl", rows)
    found = open_dataset(tmp_path / "a.jsonl", IMAGE_TEXT)
    assert image_numbers(found, range(5)) == [0, 1, 0, 2, 1]
    assert found.describe().startswith("3 pictures in 5 rows, 5 questions")
    assert len({(tmp_path / name).stat().st_size for name in ("a/0.png", "b/0.png")}) == 1


def test_what_is_left_out_of_a_part_is_not_left_out_of_another():
    reading = Reading(Faults("rows", 0.5, 10, ["line 3: broken."]))
    rows = Dataset([{"text": str(n), "n": n} for n in range(9)], reading=reading)
    parts = [rows.pick(range(5)), rows.pick(range(5, 9))]

    def check(number):
        if parts[0].rows[number]["n"] == 2:
            raise BedstoneError("line 4: broken.")

    kept = parts[0].usable(check)
    assert (len(kept), len(kept.faults.broken), kept.faults.rows) == (4, 2, 10)
    for other in (rows, *parts):
        assert other.faults.broken == ["line 3: broken."]
    parts[0].usable(check)  # a second check counts nothing twice
    assert len(kept.faults.broken) == 2 and len(parts[0].faults.broken) == 1
    parts[1].faults.add("line 9: broken.")  # such as an image that can't be decoded
    assert len(rows.faults.broken) == len(parts[0].faults.broken) == 1
    assert kept.reading.faults is kept.faults and kept.names is kept.reading.names


def test_left_out_rows_are_worded_in_one_way():
    faults = Faults("rows", 0.9, 10, ["line 3: broken."])
    expected = "1 rows left out: line 3: broken."
    assert faults.left_out() == expected and Faults("rows", 0.9, 10).left_out("; ") == ""
    reading = Reading(faults)
    assert Dataset([{"text": "a"}], reading=reading).describe() == f"1 rows; {expected}"
    with pytest.raises(BedstoneError, match=f"at least one. {expected}"):
        Dataset([], reading=reading)
    signals = {"kind": "image", "name": "rows", "faults": faults}
    assert (
        Signals(np.zeros((2, 1, 4, 4), np.float32), **signals).describe().endswith(f"; {expected}")
    )
    with pytest.raises(BedstoneError, match=f"learn from. {expected}"):
        Signals(np.zeros((0, 1, 4, 4), np.float32), **signals)


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_of_few_rows_one_is_held_out_and_one_is_kept(share):
    rows = [{"text": f"row {number}"} for number in range(5)]
    train, held = Dataset(rows).hold_out(share)
    assert {len(train), len(held)} == {1, 4}
    again = Dataset(rows[::-1]).hold_out(share)
    assert sorted(map(str, again[1].rows)) == sorted(map(str, held.rows))
    with pytest.raises(BedstoneError, match="too few rows"):
        Dataset(rows[:1] * 3).hold_out(share)


def test_many_rows_are_held_out_in_time_that_grows_with_them():
    rows = Dataset([{"text": str(number)} for number in range(30_000)])
    began = time.process_time()
    train, held = rows.hold_out(0.1)
    assert time.process_time() - began < 5  # a look at all rows for each takes half a minute
    assert len(train) + len(held) == 30_000 and 2_700 < len(held) < 3_300
