"""Judges of signals learn what is real, keep it on disk, and refuse what they can't read."""

import json

import numpy as np
import pytest
import torch

from bedstone.data.signals.signals import Signals
from bedstone.errors import BedstoneError
from bedstone.evaluate.judges import (
    SignalClassifier,
    SignalClassifierConfig,
    SignalJudge,
    open_signal_judge,
)
from signal_judge import train_signal_judge

SHAPES = [(3, 32), (1, 12, 9), (2, 4, 3, 16)]


def waves(shape: tuple[int, ...], count: int, seed: int) -> Signals:
    """Slow and fast waves along the last side, in noise."""
    random = np.random.default_rng(seed)
    classes = np.arange(count) % 2
    places = np.linspace(0, 2 * np.pi, shape[-1])
    turns = random.uniform(0, 6, count)[:, None]
    lines = np.sin(places * (1 + 2 * classes[:, None]) + turns)  # (N, S)
    values = np.broadcast_to(lines.reshape(count, *[1] * (len(shape) - 1), -1), (count, *shape))
    values = 0.7 * values + 0.1 * random.standard_normal(values.shape)
    return Signals(
        values.astype(np.float32), kind="volume", name="waves", classes=classes, names=("a", "b")
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_parameter_learns_and_sides_of_one_stay(shape):
    config = SignalClassifierConfig(shape, ("a", "b", "c"), width=8, stages=4)
    network = SignalClassifier(config)
    network(torch.randn(5, *shape)).square().sum().backward()
    assert network(torch.randn(5, *shape)).shape == (5, 3)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_learns_and_is_the_same_from_disk(shape, tmp_path):
    learnt, held = waves(shape, 200, 0), waves(shape, 60, 1)
    judge = train_signal_judge(learnt, held, steps=60, width=8, batch=16)
    assert judge.record["accuracy"] > 0.9
    again = open_signal_judge(judge.save(tmp_path / "judge"))
    signals = held.read(range(10))
    for mine, theirs in zip(judge.read(signals), again.read(signals), strict=True):
        assert torch.equal(mine, theirs)
    assert again.labels == ("a", "b") and again.record["accuracy"] == judge.record["accuracy"]


def test_what_is_done_before_judging(tmp_path):
    judge = SignalJudge(SignalClassifier(SignalClassifierConfig((3, 32), ("a", "b"), 8)))
    signals = torch.rand(4, 3, 32)
    plain = judge.read(signals)[1]
    judge.made = lambda given: given.flip(2)
    assert torch.allclose(judge.read(signals.flip(2))[1], plain)
    assert not torch.allclose(judge.read(signals)[1], plain)


def test_what_it_refuses(tmp_path):
    judge = SignalJudge(SignalClassifier(SignalClassifierConfig((3, 32), ("a", "b"), 8)))
    with pytest.raises(BedstoneError, match=r"signals of \(2, 3, 31\).*reads \(3, 32\)"):
        judge.read(torch.zeros(2, 3, 31))
    with pytest.raises(BedstoneError, match="holds no judge of signals"):
        open_signal_judge(tmp_path)
    folder = judge.save(tmp_path / "judge")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "width": 16}))
    with pytest.raises(BedstoneError, match=r"weights are not of its config\.json"):
        open_signal_judge(folder)
    with pytest.raises(BedstoneError, match="two classes or more"):
        SignalClassifierConfig((3, 32), ("a",))
    silent = Signals(np.zeros((4, 1, 8), np.float32), kind="audio", name="s", captions=[("x",)] * 4)
    with pytest.raises(BedstoneError, match="no classes"):
        train_signal_judge(silent, silent)
    rows, named = np.zeros((4, 1, 8), np.float32), {"kind": "audio", "name": "s"}
    two = Signals(rows, classes=[0, 1, 0, 1], names=("a", "b"), **named)
    fewer = Signals(rows, classes=[0, 0, 0, 0], names=("b",), **named)
    with pytest.raises(BedstoneError, match="it learns a, b; those held out are of b"):
        train_signal_judge(two, fewer)
