"""The page of outputs: the most suspicious first, with reasons, marks and filters."""

import re

import pytest

from bedstone.errors import BedstoneError
from bedstone.report.output_pages import LONGEST, write_output_page

SOURCES = [
    "Ein Hund schläft.",
    "Zwei Kinder <b>spielen</b> gerne.",
    "Er zahlt 1.000 Euro.",
    "Nein.",
]
OUTPUTS = ["A dog sleeps.", "Two children spielen gladly.", "He pays euros.", ""]
REFERENCES = ["A dog is asleep.", ["Two kids play.", "Two children play."], "He pays 1,000.", "No."]


def page(tmp_path, *args, **more) -> str:
    return write_output_page(tmp_path / "page.html", *args, **more).read_text()


def order(text: str) -> list[str]:
    return re.findall(r"<span>(row \d)</span>", text)


def test_the_most_suspicious_stands_first(tmp_path):
    text = page(tmp_path, "Outputs", SOURCES, OUTPUTS, REFERENCES, lead="Four rows.")
    assert order(text) == ["row 3", "row 2", "row 1", "row 0"]
    assert "Four rows. 3 of 4 outputs have a sign of an error." in text
    assert "<mark>spielen</mark>" in text and "<mark>1.000</mark>" in text
    assert '<span class="nothing">nothing</span>' in text
    assert "&lt;b&gt;spielen&lt;/b&gt;" in text and "<b>" not in text
    assert text.count("<h2>references</h2>") == 1 and text.count("<h2>reference</h2>") == 3
    assert "<script" not in text and "http" not in text


def test_rows_are_filtered_by_their_reasons(tmp_path):
    text = page(tmp_path, "Outputs", SOURCES, OUTPUTS, REFERENCES)
    labels = re.findall(r'<label for="f(\d)">([a-z ]+) <span>(\d)</span>', text)
    assert ("0", "all", "4") in labels and {name for _, name, _ in labels} >= {
        "empty", "numbers missing", "untranslated",
    }  # fmt: skip
    for number, _, count in labels[1:]:
        assert len(re.findall(rf'<li class="[^"]*\br{number}\b', text)) == int(count)
        assert f"#f{number}:checked ~ ol li:not(.r{number})" in text
        assert f'id="f{number}"' in text


def test_coverage_places_and_languages(tmp_path):
    text = page(
        tmp_path, "Outputs", SOURCES, OUTPUTS, coverage=[0.1, 1, 1, 1],
        places=["a:1", "a:2", "a:3", "a:4"], languages=("de", "en"), most=2,
    )  # fmt: skip
    assert "10 % of" in text or "100 % of" in text
    assert text.count("<li class") == 2 and "the 2 most suspicious are shown" in text
    assert 'lang="de"' in text and "reference" not in text
    with pytest.raises(BedstoneError, match="places: 1 were given for 4"):
        page(tmp_path, "x", SOURCES, OUTPUTS, places=["a"])
    with pytest.raises(BedstoneError, match="outputs: 1 were given for 4"):
        page(tmp_path, "x", SOURCES, ["a"])


def test_no_rows_and_long_texts(tmp_path):
    assert "There are no outputs." in page(tmp_path, "Outputs", [], [])
    text = page(tmp_path, "Outputs", ["word " * 2000], ["x"], translated=False)
    assert len(text) < LONGEST + 6000 and "…" in text
