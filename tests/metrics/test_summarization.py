"""ROUGE is that of rouge-score's command line; several references; signs of summaries."""

import csv
import subprocess
import sys

import numpy as np
import pytest

from bedstone.errors import BedstoneError
from bedstone.metrics.summarization import TYPES, summaries

SOURCES = [f"Dear all, meeting number {n} is moved. Please come to the room." for n in range(20)]
REFERENCES = [f"Meetings moving to room {n}\nPlease come, running" for n in range(20)]
OUTPUTS = [
    [f"Meeting moves to rooms {n}\nrun", f"please COME to meetings\nmoved {n}", "nothing"][n % 3]
    for n in range(20)
]


def by_command(folder, stemmer):
    """Mean F1 of each type that rouge-score's command line gives for each row."""
    for name, texts in {"target": REFERENCES, "prediction": OUTPUTS}.items():
        (folder / name).write_text("".join(f"{text}\x01" for text in texts))
    command = [sys.executable, "-m", "rouge_score.rouge", "--delimiter", "\x01", "--noaggregate"]
    command += [f"--rouge_types={','.join(TYPES)}", f"--output_filename={folder / 'out.csv'}"]
    command += [f"--target_filepattern={folder / 'target'}"]
    command += [f"--prediction_filepattern={folder / 'prediction'}"]
    command += ["--use_stemmer"] if stemmer else []
    subprocess.run(command, capture_output=True, text=True, check=True)
    with (folder / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: np.mean([float(row[f"{name}-F"]) for row in rows]) for name in TYPES}


@pytest.mark.parametrize("stemmer", [True, False])
def test_figures_are_those_of_rouge_score_s_command_line(stemmer, tmp_path):
    found = summaries(SOURCES, OUTPUTS, REFERENCES, stemmer=stemmer, resamples=0)
    theirs = by_command(tmp_path, stemmer)
    for name in TYPES:
        assert found[name] == pytest.approx(theirs[name], abs=2e-6)  # the file has six digits
    assert found["rougeL"] != found["rougeLsum"]  # of two lines
    assert f"stemmer:{'yes' if stemmer else 'no'}|lsum:lines|version:" in found.signatures["rouge"]


def test_stemming_raises_figures():
    plain = summaries(SOURCES, OUTPUTS, REFERENCES, stemmer=False, resamples=0)
    assert summaries(SOURCES, OUTPUTS, REFERENCES, resamples=0)["rouge1"] > plain["rouge1"]


def test_the_best_reference_counts_and_all_rows_have_as_many():
    both = summaries(["x y"], ["a b c"], [["d", "a b"]], resamples=0)
    assert both["rouge1"] == pytest.approx(0.8) and "nrefs:2" in both.signatures["rouge"]
    with pytest.raises(BedstoneError, match="references, row 1: has 1, row 0 has 2"):
        summaries(["a", "b"], ["a", "b"], [["a", "b"], ["c"]])


def test_intervals_draw_rows():
    found = summaries(SOURCES, OUTPUTS, REFERENCES)
    for name in TYPES:
        low, high = found.intervals[name]
        assert low < found[name] < high
    assert found == summaries(SOURCES, OUTPUTS, REFERENCES)


def test_signs_are_counted():
    outputs = list(REFERENCES)
    outputs[0], outputs[1], outputs[2] = "", SOURCES[1], "meeting 77 moved"
    found = summaries(SOURCES, outputs, REFERENCES, resamples=0)
    assert found["empty"] == found["copied"] == found["numbers_added"] == 1 / 20
    assert 0 < found["copied_share"] < 1


def test_other_scripts_are_doubted():
    found = summaries(["你好世界"], ["你好"], ["你好"], resamples=0)
    assert found["rouge1"] == 0 and "rouge-score" in found.warning
    assert not summaries(["a"], ["a"], ["schöner Tag"], resamples=0).warning


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(BedstoneError, match=r"pip install 'bedstone\[evaluate\]'"):
        summaries(["a"], ["a"], ["a"])
