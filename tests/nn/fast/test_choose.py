"""How many threads a step takes: measured, kept, and never a reason to fail."""

import json
import time

import pytest
import torch

from bedstone.nn.fast import choose, kernels
from bedstone.nn.fast.choose import FILE, best_threads

LARGE = 100 << 20


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache of its own, on a machine of eight threads."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    return tmp_path / "bedstone" / "engine"


def step_of(seconds, asked):
    """A step that takes so long on each number of threads."""

    def step(threads):
        asked.append(threads)
        time.sleep(seconds[threads])

    return step


def test_the_fastest_number_is_taken_and_kept(folder):
    asked = []
    seconds = {8: 0.02, 4: 0.004, 2: 0.012, 1: 0.03}
    assert best_threads("shape", LARGE, step_of(seconds, asked)) == 4
    assert asked[:4] == [8, 4, 2, 1]
    count = len(asked)
    assert best_threads("shape", LARGE, step_of(seconds, asked)) == 4
    assert len(asked) == count  # not measured again
    (key,) = json.loads((folder / FILE).read_text())
    assert kernels.processor()[0] in key and "8 threads" in key
    assert best_threads("another", LARGE, step_of(dict.fromkeys((8, 4, 2, 1), 0.002), asked)) == 8
    assert len(json.loads((folder / FILE).read_text())) == 2


def test_little_gain_keeps_all_threads(folder):
    assert best_threads("shape", LARGE, step_of({8: 0.02, 4: 0.019, 2: 0.03, 1: 0.03}, [])) == 8


def test_small_networks_are_not_measured(folder):
    assert best_threads("shape", 1000, step_of({}, [])) == 8
    assert not folder.exists()


@pytest.mark.parametrize("content", ["", "[1]", '{"a": "b"}', "\x00"])
def test_a_damaged_file_is_measured_over(folder, content):
    folder.mkdir(parents=True)
    (folder / FILE).write_text(content)
    seconds = {8: 0.02, 4: 0.02, 2: 0.004, 1: 0.02}
    assert best_threads("shape", LARGE, step_of(seconds, [])) == 2
    assert best_threads("shape", LARGE, step_of({}, [])) == 2


def test_a_number_that_cannot_be_is_measured_over(folder):
    folder.mkdir(parents=True)
    key = f"{kernels.processor()[0]}, 8 threads, shape"
    (folder / FILE).write_text(json.dumps({key: 64}))
    assert best_threads("shape", LARGE, step_of(dict.fromkeys((8, 4, 2, 1), 0.002), [])) == 8


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_measure(folder):
    folder.parent.mkdir(parents=True)
    folder.write_text("a file where the folder would be")
    assert best_threads("shape", LARGE, step_of(dict.fromkeys((8, 4, 2, 1), 0.002), [])) == 8


def test_slow_steps_are_measured_once(monkeypatch):
    monkeypatch.setattr(choose, "SECONDS", 0.01)
    asked = []
    best_threads("shape", LARGE, step_of(dict.fromkeys((8, 4, 2, 1), 0.01), asked))
    assert asked == [8, 4, 2, 1]
