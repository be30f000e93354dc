"""BLEU and chrF are those of sacrebleu's command line, with its signature; signs are counted."""

import json
import subprocess
import sys

import pytest

from bedstone.errors import BedstoneError
from bedstone.metrics.translation import TOKENIZERS, translations

SOURCES = [f"Satz Nummer {n} über ein Haus." for n in range(30)]
REFERENCES = [f"Sentence number {n} about a House, isn't it?" for n in range(30)]
OUTPUTS = [
    [f"sentence number {n} about a house", f"Sentence about {n} Houses, no?", "nothing"][n % 3]
    for n in range(30)
]
OTHERS = [f"the sentence no. {n} says something of a house" for n in range(30)]


def by_command(folder, outputs, references, *options):
    """What sacrebleu's command line gives: score and signature by metric."""
    for name, lines in {"out": outputs, **dict(enumerate(references))}.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    files = [str(folder / f"{n}.txt") for n in range(len(references))]
    command = [sys.executable, "-m", "sacrebleu", *files, "-i", str(folder / "out.txt")]
    command += ["-m", "bleu", "chrf", "-w", "10", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {each["name"].lower().rstrip("2"): each for each in json.loads(done.stdout)}


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_figures_are_those_of_sacrebleu_s_command_line(lowercase, several, tmp_path):
    streams = [REFERENCES, OTHERS] if several else [REFERENCES]
    known = [list(own) for own in zip(*streams, strict=True)] if several else REFERENCES
    found = translations(SOURCES, OUTPUTS, known, lowercase=lowercase, resamples=0)
    options = ["-lc", "--chrf-lowercase"] if lowercase else []
    theirs = by_command(tmp_path, OUTPUTS, streams, *options)
    for name in ("bleu", "chrf"):
        assert 100 * found[name] == pytest.approx(theirs[name]["score"], abs=1e-9)
        assert found.signatures[name] == theirs[name]["signature"]
    case = "case:lc" if lowercase else "case:mixed"
    assert case in found.signatures["bleu"]
    assert found.record()["signatures"] == found.signatures


def test_sums_over_rows_are_the_figures_of_the_set():
    """Intervals are of the same figures: with one row drawn as often as another they are equal."""
    whole = translations(SOURCES, OUTPUTS, REFERENCES)
    for name in ("bleu", "chrf", "length_ratio"):
        low, high = whole.intervals[name]
        assert low < whole[name] < high < low + 0.4
    same = translations(["x"] * 4, ["a b c d e"] * 4, ["a b c d f"] * 4)
    for name in ("bleu", "chrf"):
        assert same.intervals[name] == pytest.approx((same[name], same[name]))
    assert translations(SOURCES, OUTPUTS, REFERENCES) == whole


def test_rows_are_counted_by_their_signs():
    outputs = list(REFERENCES)
    outputs[0], outputs[1], outputs[2] = "", SOURCES[1], "sentence " * 9
    outputs[3] = "Sentence about a House, isn't it?"
    found = translations(SOURCES, outputs, REFERENCES, resamples=0)
    assert found["empty"] == found["copied"] == found["repeated"] == 1 / 30
    assert found["numbers_missing"] == 2 / 30  # of the loop too
    assert found["over_long"] > 0 and found["untranslated"] > 0
    assert "coverage" not in found.values
    read = translations(SOURCES, outputs, REFERENCES, coverage=[0.5] * 30, resamples=0)
    assert read["coverage"] == 0.5


def test_a_wall_of_equal_rows_is_scored():
    assert translations(["a"], ["b c"], ["b c"])["bleu"] >= 0
    assert translations(["a"], [""], ["b c"])["bleu"] == 0


def test_what_cannot_be_scored_is_named():
    with pytest.raises(BedstoneError, match="1 predictions for 2 references"):
        translations(["a", "b"], ["a"], ["a", "b"])
    with pytest.raises(BedstoneError, match="2 predictions for 1 sources"):
        translations(["a"], ["a", "b"], ["a", "b"])
    with pytest.raises(BedstoneError, match="references, row 1: has 1, row 0 has 2"):
        translations(["a", "b"], ["a", "b"], [["a", "b"], ["c"]])
    for given in ([], None, [3]):
        with pytest.raises(BedstoneError, match="references, row 1"):
            translations(["a", "b"], ["a", "b"], ["a", given])
    with pytest.raises(BedstoneError, match="predicted, row 0: None is no text"):
        translations(["a"], [None], ["a"])
    with pytest.raises(BedstoneError, match=r"tokenize: '13b'.*13a"):
        translations(["a"], ["a"], ["a"], tokenize="13b")
    with pytest.raises(BedstoneError, match="no references to score"):
        translations([], [], [])


@pytest.mark.parametrize("tokenize", TOKENIZERS)
def test_tokenizers_need_no_download(tokenize):
    found = translations(["你好"], ["你好 世界"], ["你好 世界"], tokenize=tokenize, resamples=0)
    assert f"tok:{tokenize}" in found.signatures["bleu"]


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(BedstoneError, match=r"pip install 'bedstone\[evaluate\]'"):
        translations(["a"], ["a"], ["a"])
