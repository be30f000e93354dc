"""What is fastest here: measured once, kept, and never believed where it can't be."""

import json
from types import SimpleNamespace

import pytest
import torch

from bedstone import measured
from bedstone.measured import FILE, FORMAT, KEPT, best_count, fastest, machine

TIMES = {"first": 0.004, "second": 0.001}
clock = SimpleNamespace(now=0.0, share=1.0)  # of time, what this process has the processor for


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    """A cache of its own, and nothing known to this process."""
    monkeypatch.setenv("BEDSTONE_CACHE", str(tmp_path))
    monkeypatch.setattr(measured, "_known", {})
    clock.now, clock.share = 0.0, 1.0
    timer = SimpleNamespace(
        perf_counter=lambda: clock.now, process_time=lambda: clock.share * clock.now
    )
    monkeypatch.setattr(measured, "time", timer)
    return tmp_path / "speed" / FILE


def forget():
    measured._known.clear()


def ways(times, calls):
    """What takes so long, and notes that it was called."""

    def way(name):
        def call():
            calls.append(name)
            clock.now += times[name]

        return call

    return {name: way(name) for name in times}


def test_the_fastest_is_taken_and_kept(file):
    calls = []
    found = fastest("q", ways(TIMES, calls))
    assert (found.best, found.kept) == ("second", False)
    assert calls[:4] == ["first", "second"] * 2
    count = len(calls)
    assert fastest("q", ways(TIMES, calls)).kept and len(calls) == count
    forget()  # as in another process
    again = fastest("q", ways(TIMES, calls))
    assert again.kept and again.seconds == found.seconds and len(calls) == count
    fastest("other", ways(TIMES, []))
    kept = json.loads(file.read_text())
    assert kept["format"] == FORMAT and set(kept["results"][machine()]) == {"q", "other"}


def test_a_little_gain_keeps_the_first():
    assert fastest("q", ways({"first": 0.004, "second": 0.0039}, [])).best == "first"
    assert fastest("r", ways(TIMES, []), better=0.01).best == "first"


@pytest.mark.parametrize(
    "held",
    [
        {"first": 1.0},
        {"first": 1.0, "second": "fast"},
        {"first": 1.0, "second": True},
        {"first": 1.0, "second": -1.0},
        {"first": 1.0, "second": 0},
        {"first": 1e300, "second": 1.0},
        {"first": 1.0, "second": 2.0, "third": 0.1},
        [1.0, 2.0],
        None,
    ],
)
def test_what_cannot_be_is_measured_over(file, held):
    file.parent.mkdir()
    file.write_text(json.dumps({"format": FORMAT, "results": {machine(): {"q": held}}}))
    found = fastest("q", ways(TIMES, []))
    assert (found.best, found.kept) == ("second", False)
    forget()
    assert fastest("q", ways(TIMES, [])).kept


@pytest.mark.parametrize(
    "content",
    ["", "[1]", "{", "\x00", '{"format": 0, "results": {}}', '{"format": 1, "results": 3}',
     '{"format": 1, "results": {"a": 7}}', '{"format": 1, "results": NaN}', "[" * 100_000,
     '{"a": "' + "x" * (2 << 20) + '"}'],
)  # fmt: skip
def test_a_damaged_file_is_measured_over(file, content):
    file.parent.mkdir()
    file.write_text(content)
    assert fastest("q", ways(TIMES, [])).best == "second"
    forget()
    assert fastest("q", ways(TIMES, [])).kept


def test_another_machine_s_results_are_left_alone(file, monkeypatch):
    file.parent.mkdir()
    foreign = {"q": {"first": 0.001, "second": 0.004}}
    file.write_text(json.dumps({"format": FORMAT, "results": {"another": foreign}}))
    assert fastest("q", ways(TIMES, [])).best == "second"
    assert json.loads(file.read_text())["results"]["another"] == foreign
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert not fastest("q", ways(TIMES, [])).kept  # of as many threads nothing is known


def test_another_user_s_file_is_not_read(file, monkeypatch):
    fastest("q", ways(TIMES, []))
    forget()
    monkeypatch.setattr(measured.os, "getuid", lambda: file.stat().st_uid + 1)
    assert not fastest("q", ways(TIMES, [])).kept


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_measure(file):
    file.parent.write_text("a file where the folder would be")
    assert fastest("q", ways(TIMES, [])).best == "second"
    assert fastest("q", ways(TIMES, [])).kept  # by this process


def test_slow_ways_are_called_twice(monkeypatch):
    monkeypatch.setattr(measured, "SECONDS", 0.001)
    calls = []
    fastest("q", ways(TIMES, calls))
    assert calls == ["first", "second"] * 2


def test_the_file_stays_small(file):
    file.parent.mkdir()
    held = {str(number): {"a": 1.0} for number in range(KEPT)}
    results = {"old": {"z": {"a": 1.0}}, machine(): held}
    file.write_text(json.dumps({"format": FORMAT, "results": results}))
    fastest("q", ways(TIMES, []))
    kept = json.loads(file.read_text())["results"]
    assert list(kept) == [machine()] and len(kept[machine()]) == KEPT
    assert list(kept[machine()])[-1] == "q" and "0" not in kept[machine()]


def test_what_was_measured_beside_others_is_not_kept(file):
    clock.share = 0.4
    calls = []
    assert fastest("q", ways(TIMES, calls)).best == "second"
    assert not file.exists()
    count = len(calls)
    fastest("q", ways(TIMES, calls))
    assert len(calls) == count  # this process measures once
    forget()
    clock.share = 0.9
    assert not fastest("q", ways(TIMES, calls)).kept and file.exists()


def test_the_best_number_of_threads():
    seconds, counts = {8: 0.02, 4: 0.004, 2: 0.012, 1: 0.03}, []

    def call(threads):
        counts.append(threads)
        clock.now += seconds[threads]

    assert best_count("shape", 8, call) == 4
    assert counts[:4] == [8, 4, 2, 1]
    assert best_count("shape", 8, call) == 4
    seconds = {8: 0.004, 4: 0.0039, 2: 0.01, 1: 0.01}
    assert best_count("another", 8, call) == 8
