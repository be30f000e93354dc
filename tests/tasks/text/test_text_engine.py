"""Batches on all cores: the same results in the same order, and torch's threads as they were."""

import threading

import pytest
import torch

from bedstone.tasks.text import engine
from bedstone.tasks.text.engine import _on_all_cores


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_each_core_reads_its_own_part():
    meeting = threading.Barrier(2, timeout=20)  # passes only if two parts are read at a time
    threads = []

    def work(part):
        meeting.wait()
        threads.append(torch.get_num_threads())

    _on_all_cores(work, [[0], [1]])
    assert threads == [1, 1]


def test_threads_are_as_before_even_after_an_error():
    def work(part):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        _on_all_cores(work, [[0], [1]])
    assert torch.get_num_threads() == 2
    later = []
    other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert later == [2]


def test_one_part_has_all_threads():
    seen = []
    _on_all_cores(lambda part: seen.append(torch.get_num_threads()), [[0]])
    assert seen == [2]


def test_batches_hold_every_row_once(monkeypatch):
    monkeypatch.setattr(engine, "TOKENS", 10)
    parts = list(engine.batches([3, 12, 1, 5, 5, 2], None))
    assert sorted(number for part in parts for number in part) == list(range(6))
    assert [sum([3, 12, 1, 5, 5, 2][i] for i in part) for part in parts] == [6, 10, 12]
