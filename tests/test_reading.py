"""Names and files from anyone: each is read, or refused in one paragraph without waiting for it."""

import json
import os

import pytest

from bedstone.errors import BedstoneError
from bedstone.reading import (
    KINDS,
    check_kinds,
    kind_of,
    numbers,
    read_bytes,
    read_json,
    read_object,
    read_text,
    shown,
    to_path,
)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("a" * 5000, "5,000 characters long"),
        ("a/" * 2500, "characters long"),
        ("é" * 200, "characters long"),  # 400 bytes
        ("a\0b", "a NUL character"),
        ("\ud800", "half a character"),
        ("~nosuchuser42/x", "the home of 'nosuchuser42'"),
    ],
)
def test_names_that_no_file_has_are_refused(name, fault):
    with pytest.raises(BedstoneError, match=fault) as caught:
        to_path(name, "modules.json: path")
    assert str(caught.value).startswith("modules.json: path: ") and len(str(caught.value)) < 300
    assert "\0" not in str(caught.value) and str(caught.value).isprintable()


def test_other_names_are_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert to_path("~/rows[12].parquet") == tmp_path / "rows[12].parquet"
    assert str(to_path("\udcff.txt")) == "\udcff.txt"  # a name that is no UTF-8


def test_only_plain_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, fault in {
        tmp_path / "pipe": "is a pipe; expected a plain file",
        tmp_path: "is a folder",
        tmp_path / "none": "there is no such file",
    }.items():
        with pytest.raises(BedstoneError, match=fault):
            read_bytes(path, 10)
    assert kind_of(tmp_path / "pipe") == "a pipe" and kind_of(tmp_path / "pipe" / "x") == ""


def test_files_are_read_up_to_a_limit(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_text(path, 5) == "12345"
    with pytest.raises(BedstoneError, match="holds 5 bytes; expected at most 4"):
        read_bytes(path, 4)
    with path.open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(BedstoneError, match="3,221,225,472 bytes"):
        read_json(path)
    path.write_bytes(b"ab\xff")
    with pytest.raises(BedstoneError, match="not UTF-8 at byte 2"):
        read_text(path, 5)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[1]", r"holds \[1\]; expected a JSON object"),
        ("null", "holds None"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"a": [1, {"b": NaN}]}', r"a\[1\]\.b = nan; expected a finite number"),
        ('{"a": 1e999}', "a = inf"),
        ('{"a": "\\ud83d"}', "not valid JSON"),
        ('{"a": "' + "x" * 10**6, "not valid JSON"),
    ],
)
def test_objects_are_checked_before_they_are_used(tmp_path, text, fault):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(BedstoneError, match=fault) as caught:
        read_object(path)
    assert str(caught.value).startswith(str(path)) and len(str(caught.value)) < 600


def test_pairs_of_surrogates_are_one_character(tmp_path):
    (tmp_path / "a.json").write_text('{"a": "\\uD83D\\ude00"}')
    assert read_object(tmp_path / "a.json") == {"a": "\U0001f600"}


def test_errors_show_the_beginning_of_a_long_word():
    assert str(BedstoneError(f"a/{'b' * 255}: {'x' * 5000} c")) == f"a/{'b' * 255}: {'x' * 80}… c"


def test_records_may_hold_numbers_that_are_not_finite(tmp_path):
    (tmp_path / "a.json").write_text('{"loss": NaN}')
    assert read_object(tmp_path / "a.json", finite=False)["loss"] != 0


VALUES = [None, True, 5, -1.5, "x", [], [1], [1.5], ["x"], [[1]], [{}], {}, {"a": 1}]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_takes_some_values_and_refuses_others_by_name(kind):
    refused = 0
    for value in VALUES:
        try:
            check_kinds({"key": value}, {"key": kind}, "f.json")
        except BedstoneError as error:
            refused += 1
            assert str(error) == f"f.json: key = {value!r}; expected {kind}."
    assert 0 < refused < len(VALUES) - 1  # null passes everywhere


def test_a_switch_is_no_number():
    assert not KINDS["a whole number"](True) and not KINDS["a number"](False)
    assert not KINDS["a list of whole numbers"]([1, True]) and not KINDS["true or false"](1)


def test_values_are_shown_short_and_in_one_line():
    assert shown(10**5000) == f"a whole number of {(10**5000).bit_length():,} bits"
    assert shown("a\nb\x1b[31m") == repr("a\nb\x1b[31m") and len(shown(["x" * 999])) == 81
    assert dict(numbers(json.loads('{"a": 1, "b": [2.5, true]}'))) == {"a": 1, "b[0]": 2.5}
