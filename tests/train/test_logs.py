"""Logs, interrupts and progress."""

import os
import signal

import pytest

from bedstone.train.logs import Interrupts, ProgressBar, RunLog, clock, read_log


def test_a_resumed_log_forgets_what_came_after(tmp_path):
    log = RunLog(tmp_path)
    for step in range(1, 6):
        log.write(step, loss=1.0 / step)
    log.write(6, loss=float("nan"))
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 7, "los')  # cut by a crash
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert read_log(tmp_path / "log.jsonl")[-1]["loss"] is None
    log = RunLog(tmp_path, step=3)
    log.write(4, loss=0.5)
    log.close()
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4]


def test_the_first_signal_asks_and_the_second_leaves():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        assert interrupts.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.received is signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (60, "1:00"), (3729, "1:02:09"), (-3, "0s")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_progress_tells_the_time_left_where_there_is_no_terminal(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("bedstone.train.logs.time.monotonic", lambda: now[0])
    with ProgressBar("training") as bar:
        bar.update(0.0)
        now[0] += 30
        bar.update(0.25, loss="2.5")
    told = capsys.readouterr().err
    assert "training  25%" in told
    assert "1:30 left" in told
    assert "loss 2.5" in told
    with ProgressBar("quiet", quiet=True) as bar:
        bar.update(0.5)
        bar.say("nothing")
    assert capsys.readouterr().err == ""
