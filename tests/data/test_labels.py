"""Labels as they are written: vectors, names that may be one, values that stand for none."""

import json

import pytest

from bedstone.data.dataset import Dataset
from bedstone.data.labels import doubtful_names, ordered, several, single, vector_names
from bedstone.data.open import open_dataset
from bedstone.data.summary import summarise
from bedstone.data.text.supervised import make_examples, usable_rows
from bedstone.data.text.train_tokenizer import train_wordpiece
from bedstone.errors import BedstoneError

VECTORS = [[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]]


def rows_of(values, column="labels", **more):
    return Dataset([{"text": f"row {n}", column: value} for n, value in enumerate(values)], **more)


@pytest.mark.parametrize("kind", [int, bool, float])
@pytest.mark.parametrize("column", ["label", "labels"])
def test_a_vector_of_0_and_1_says_which_labels_a_row_has(kind, column):
    rows = rows_of([[kind(one) for one in each] for each in VECTORS], column)
    assert several(rows, column, None) == [["1", "2"], ["0"], [], ["0", "1"]]
    named = [["b", "c"], ["a"], [], ["a", "b"]]
    assert several(rows, column, ["a", "b", "c"]) == named
    rows.reading.names[column] = ["a", "b", "c"]
    assert several(rows, column, None) == named
    with pytest.raises(BedstoneError, match=r"vectors of 3 numbers.* 4 labels"):
        several(rows, column, ["a", "b", "c", "d"])


def test_a_label_that_no_vector_sets_is_learnt_too():
    rows = rows_of([[0, 1, 0], [1, 0, 0], [1, 1, 0]])
    tokenizer = train_wordpiece(["row 0 1 2 3"] * 9, 120)
    made = make_examples("text-classification", rows, tokenizer, limit=16)
    assert made.labels == ("0", "1", "2")
    assert made.problem == "multi"


@pytest.mark.parametrize(
    "values",
    [
        [[0], [1], [0]],
        [[0, 1], [1], []],
        [[0, 2], [1, 2], [0, 1]],
        [[3, 4], [1, 0]],
        [["0", "1"], ["1", "1"]],
        [["a"], ["b", "a"]],
    ],
)
def test_lists_of_numbers_and_names_of_labels_stay_such(values):
    rows = rows_of(values)
    assert vector_names(rows, "labels", None) is None
    assert several(rows, "labels", None) == [list(dict.fromkeys(map(str, each))) for each in values]


def test_a_vector_of_another_length_is_a_broken_row():
    rows = rows_of([*VECTORS * 3, [1, 0], [0, 2, 1], 3])
    with pytest.raises(BedstoneError, match=r"row 13: .* expected a vector of 3 numbers"):
        several(rows, "labels", None)
    with pytest.raises(BedstoneError, match="3 of 15 rows are broken"):
        usable_rows("text-classification", rows)


@pytest.mark.parametrize("value", [-100, "-100", None, "", 2.5, [1]])
def test_what_stands_for_no_label_is_a_broken_row(value):
    rows = rows_of([1, 0, 1, value] if not isinstance(value, str) else ["1", "0", "1", value])
    with pytest.raises(BedstoneError, match="row 4"):
        usable_rows("text-classification", rows)


def test_the_type_that_most_rows_have_is_right():
    with pytest.raises(BedstoneError, match=r"row 1: .*expected int, as in rows: row 2"):
        single(rows_of(["1", 1, 0, 1]), "labels", None)


def test_names_that_may_be_one_are_named():
    counts = {"Billing": 40, "billing": 3, "billing ": 1, "biling": 2, "refund": 30, "zo\u00eb": 5}
    counts |= {"zoe\u0308": 5, "01": 2, "1": 7, "001": 1}
    found = " ".join(doubtful_names(counts))
    assert "'Billing' (40), 'billing' (3), 'billing ' (1) differ only" in found
    assert "'biling' (2) may be a slip of 'Billing'" in found
    assert "'01' (2), '1' (7), '001' (1)" in found
    assert "zo" in found and "refund" not in found
    assert doubtful_names({"sports": 50, "sport1": 2, "0": 9, "1": 9, "10": 9}) == []
    assert "-1" in doubtful_names({"0": 5, "-1": 2})[0]
    for name in ("nan", "NaN", "N/A", "null", "None", "<NA>"):
        assert "where there is none" in doubtful_names({"good": 5, name: 2})[0]
    assert "decimal comma" in doubtful_names({"1,5": 5, "2": 2})[0]
    for one, other in (("good", "go\u200bod"), ("co-op", "co\u2010op"), ("1", "\uff11")):
        assert "differ only" in doubtful_names({one: 5, other: 2})[0]
    assert doubtful_names({"positive": 9, "negative": 1, "neutral": 3}) == []
    for one, other in (
        ("desirable", "undesirable"),
        ("incorrect", "correct"),
        ("Toxic", "nontoxic"),
    ):
        assert doubtful_names({one: 900, other: 2}) == []
        assert "may be a slip" in doubtful_names({one: 900, f"{one}s": 2})[0]


def test_numbers_are_in_one_order_whatever_their_zeros():
    names = {"1", "01", "001", "2", "10", "-1"}
    assert ordered(names) == ("-1", "001", "01", "1", "2", "10")


# What is said before training.


def test_columns_classes_duplicates_and_doubts_are_summed_up(tmp_path):
    rows = [{"body": f"text {n}", "kind": "refund" if n % 3 else "billing "} for n in range(30)]
    rows += [rows[0], {"body": "text 1", "kind": "billing"}]
    lines = [f"{row['body']};{row['kind']}\n" for row in rows]
    (tmp_path / "a.csv").write_text("".join(["body;kind\n", *lines]))
    columns = {"text": "body", "label": "kind"}
    train = open_dataset(tmp_path / "a.csv", columns=columns)
    held = Dataset([{"body": "text 2", "kind": "refund"}], columns=columns)
    labels = {
        "train": [row["kind"] for row in train],
        "validation": [row["kind"] for row in held],
    }
    found = summarise({"train": train, "validation": held}, labels, ("text", "pair", "label"))
    by_name = summarise({"train": train, "validation": held}, labels, ("label", "text"))
    assert by_name.doubts == found.doubts  # a label is known by its name, wherever it stands
    lines = found.text()
    assert lines[0] == "columns: text from 'body' (text), label from 'kind' (text)"
    assert any("semicolons" in line for line in lines)
    assert "'refund' 20 / 1, 'billing ' 11 / 0, 'billing' 1 / 0" in " ".join(lines)
    assert "2 rows of train repeat the input of another" in lines
    doubts = " ".join(found.doubts)
    assert "'billing ' (11), 'billing' (1) differ only" in doubts
    assert "1 rows of validation have the input of a row of another split" in doubts
    assert "1 inputs have several labels" in doubts
    with pytest.raises(BedstoneError, match="strict: what is doubtful in the data"):
        found.check()
    clean = Dataset([{"text": str(n), "label": n % 2} for n in range(9)])
    summary = summarise(
        {"train": clean}, {"train": [str(n % 2) for n in range(9)]}, ("text", "label")
    )
    summary.check()
    assert summary.doubts == []


def test_the_same_share_of_each_class_is_held_out():
    rows = [{"text": f"{n}", "label": "rare" if n % 10 == 0 else f"{n % 3}"} for n in range(300)]
    rows += [{"text": "alone", "label": "single"}, *[rows[5]] * 4]
    data = Dataset(rows)
    train, held = data.hold_out(0.1, [row["label"] for row in rows])
    counts = {
        name: sum(row["label"] == name for row in held)
        for name in ["rare", "0", "1", "2", "single"]
    }
    assert counts["rare"] == 3 and counts["single"] == 0
    assert 26 <= counts["0"] + counts["1"] + counts["2"] <= 32
    keys = {json.dumps(row) for row in train}
    assert not keys & {json.dumps(row) for row in held}
    again = Dataset(rows[::-1]).hold_out(0.1, [row["label"] for row in rows[::-1]])[1]
    assert sorted(map(json.dumps, again)) == sorted(map(json.dumps, held))
