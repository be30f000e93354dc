"""Faults planted into clean rows are found, each by its own check; clean rows are clean."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from bedstone.data.lint import Finding, Item, Rows, lint, personal
from bedstone.errors import BedstoneError

WORDS = [f"{a}{b}" for a in "bdfgklmnprstvz" for b in ("a", "eno", "ilu", "or", "ush", "yte")]
SIZES = {"train": 300, "validation": 100}


def sentence(draw: random.Random, length: int = 20) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(length))


def clean() -> dict[str, list[Item]]:
    """Rows of two classes in which nothing is wrong."""
    draw = random.Random(3)
    return {
        split: [Item(sentence(draw), label=("good", "bad")[row % 2]) for row in range(size)]
        for split, size in SIZES.items()
    }


def written() -> dict[str, list[Item]]:
    """Prompts with completions."""
    draw = random.Random(4)
    return {
        split: [Item(sentence(draw), sentence(draw)) for _ in range(size)]
        for split, size in SIZES.items()
    }


def found(splits: dict[str, list[Item]], **broken: list[str]) -> dict[str, Finding]:
    rows = {
        split: Rows(items, lambda row, split=split: f"{split}.jsonl: line {row + 1}")
        for split, items in splits.items()
    }
    for split, each in broken.items():
        rows[split].broken = each
    return {each.check: each for each in lint(rows)}


def test_clean_rows_have_nothing():
    assert found(clean()) == {}
    assert found(written()) == {}


def with_row(splits, split, row, **changes):
    items = list(splits[split])
    items[row] = items[row]._replace(**changes)
    return {**splits, split: items}


def changed(text: str) -> str:
    """A text with another last word."""
    return f"{text.rpartition(' ')[0]} otherwise"


def leak():
    splits = clean()
    return {**splits, "validation": [*splits["validation"][:-2], *splits["train"][:2]]}


def near_leak():
    splits = clean()
    return with_row(splits, "validation", 7, text=changed(splits["train"][9].text))


def duplicates():
    splits = clean()
    return {**splits, "train": [*splits["train"], splits["train"][5]]}


def near_duplicates():
    splits = clean()
    return with_row(splits, "train", 8, text=changed(splits["train"][4].text))


def conflict():
    splits = clean()
    return {**splits, "train": [*splits["train"], splits["train"][5]._replace(label="good")]}


def shift():
    splits = clean()
    return {**splits, "validation": [each._replace(label="bad") for each in splits["validation"]]}


def rare():
    return with_row(
        {s: [each._replace(label="bad") for each in rows] for s, rows in clean().items()},
        "train",
        2,
        label="good",
    )


PLANTED = {
    "leak": (leak, "leak", "error", 2, "validation.jsonl: line 99 = train.jsonl: line 1"),
    "near-leak": (
        near_leak,
        "near-leak-rows",
        "warning",
        1,
        "validation.jsonl: line 8 = train.jsonl: line 10",
    ),
    "duplicates": (duplicates, "duplicates", "note", 1, "train.jsonl: line 301"),
    "near-duplicates": (near_duplicates, "near-duplicates", "note", 1, "train.jsonl: line 9"),
    "conflict": (conflict, "conflicts", "warning", 1, "train.jsonl: line 301"),
    "shift": (shift, "shift", "warning", None, ""),
    "missing": (shift, "missing-class", "warning", 1, "train.jsonl: line 1"),
    "rare": (rare, "balance", "note", 1, "train.jsonl: line 3"),
    "unknown": (
        lambda: with_row(clean(), "validation", 3, label="Good"),
        "unknown-class",
        "error",
        1,
        "validation.jsonl: line 4",
    ),
    "empty": (lambda: with_row(written(), "train", 6, target=" "), "empty", "error", 1, "line 7"),
    "replacement": (
        lambda: with_row(clean(), "train", 0, text="na\ufffdve " * 12),
        "encoding",
        "warning",
        1,
        "train.jsonl: line 1",
    ),
    "control": (
        lambda: with_row(clean(), "train", 0, text="a\x00b"),
        "encoding",
        "warning",
        1,
        "line 1",
    ),
    "latin": (
        lambda: with_row(clean(), "train", 0, text="cafÃ©, donâ€™t"),
        "encoding",
        "warning",
        1,
        "line 1",
    ),
    "iban": (
        lambda: with_row(written(), "train", 1, target="GB29 NWBK 6016 1331 9268 19"),
        "personal",
        "warning",
        1,
        "train.jsonl: line 2",
    ),
    "same-input": (
        lambda: with_row(written(), "validation", 1, text=written()["train"][0].text),
        "same-input",
        "note",
        1,
        "validation.jsonl: line 2",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name):
    plant, check, level, count, place = PLANTED[name]
    each = found(plant())[check]
    assert each.level == level
    assert count is None or each.count == count
    assert place in "; ".join(each.places)
    assert each.what in each.text() and each.record()["check"] == check


def test_what_is_planted_is_all_that_is_found():
    beside = {"duplicates": {"conflicts"}, "conflict": {"duplicates"}, "shift": {"missing-class"}}
    beside |= {"missing": {"shift"}, "conflict": {"duplicates"}}
    for name, (plant, check, *_) in PLANTED.items():
        assert set(found(plant())) - {check} <= beside.get(name, set()), name


def test_broken_rows_are_errors_where_they_are_many():
    assert found(clean(), train=["x.jsonl: line 4: no label"])["broken"].level == "warning"
    each = found(clean(), train=["x.jsonl: line 4: no label"] * 9)["broken"]
    assert (each.level, each.count) == ("error", 9)
    assert each.places[0] == "x.jsonl: line 4: no label"


def test_personal_data_is_counted_by_its_checksum_and_never_shown():
    assert personal("write to ann.lee@example.org") == ["e-mail addresses"]
    for number in ("+49 30 1234 5678", "(030) 555-0199", "555.123.4567"):
        assert personal(f"call {number} now") == ["phone numbers"], number
    assert personal("card 4111 1111 1111 1111") == ["card numbers"]
    assert personal("card 4111 1111 1111 1112") == []
    assert personal("DE89370400440532013000") == ["bank accounts (IBAN)"]
    assert personal("DE89370400440532013001") == []
    for harmless in ("2012-2013 10:12:13", "3.14159265358979", "a@b", "1,234,567,890", "10.0.0.1"):
        assert personal(harmless) == [], harmless
    text = "mine: secret.name@example.org"
    each = found(with_row(written(), "train", 1, target=text))["personal"]
    assert "secret" not in each.text() and "1 e-mail addresses in 1 texts" in each.what


def picture(seed: int) -> np.ndarray:
    """A picture with shapes of its own."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 255, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC))


def saved_again(pixels: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).resize((50, 50)).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


def test_pictures_that_are_shared_near_or_broken():
    shown = {row: picture(row) for row in range(120)}

    def item(row: int, pixels=None) -> Item:
        return Item(
            "", f"caption {row}", image=hash(str(row)) or 1, pixels=pixels or shown[row].copy
        )

    rows = {
        "train": [item(r) for r in range(100)],
        "validation": [item(r) for r in range(100, 120)],
    }
    assert found(rows) == {}
    rows["validation"][3] = item(103, lambda: saved_again(shown[50]))
    rows["train"][7] = item(7, lambda: saved_again(shown[60]))

    def broken() -> np.ndarray:
        raise BedstoneError("x.jpg: is broken")

    rows["train"][9] = item(9, broken)
    rows["train"][20] = rows["train"][20]._replace(image=rows["train"][21].image)
    rows["validation"][0] = rows["validation"][0]._replace(image=rows["train"][2].image)
    each = found(rows)
    assert each["near-leak-pictures"].places == ["validation.jsonl: line 4 = train.jsonl: line 51"]
    assert each["near-pictures"].places == ["train.jsonl: line 61 = train.jsonl: line 8"]
    assert each["broken-pictures"].places == ["train.jsonl: line 10"]
    assert {each[check].count for check in each} == {1}
    assert set(each) == {
        "near-leak-pictures",
        "near-pictures",
        "broken-pictures",
        "shared-pictures",
    }


def test_rows_are_read_once():
    def items():
        yield from clean()["train"]

    assert lint({"train": Rows(items(), str)}) == []
