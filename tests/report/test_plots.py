"""Accuracy against minutes, from a run's log."""

import builtins
from itertools import pairwise

import pytest
from PIL import Image

from bedstone.report.plots import _apart, draw_learning_curve, learning_curves

LOG = [
    {"step": 1, "seconds": 30.0, "loss": 2.0},
    {
        "step": 2,
        "seconds": 60.0,
        "validation_accuracy": 0.4,
        "validation_accuracy/colour": 0.5,
        "validation_accuracy/sign": None,
        "validation_loss": 1.0,
    },
    {
        "step": 4,
        "seconds": 150.0,
        "validation_accuracy": 0.9,
        "validation_accuracy/colour": 0.95,
        "validation_accuracy/sign": 0.3,
    },
    {"step": 5, "validation_accuracy": 0.99},  # an older log's line, without a time
]


def test_lines_are_read_from_the_log():
    assert learning_curves(LOG) == {
        "": ([1.0, 2.5], [0.4, 0.9]),
        "colour": ([1.0, 2.5], [0.5, 0.95]),
        "sign": ([2.5], [0.3]),
    }
    under = [{name.replace("/", "_"): value for name, value in line.items()} for line in LOG]
    assert learning_curves(under) == learning_curves(LOG)
    assert learning_curves(LOG, "validation_acc") == {}


def test_the_figure_is_drawn(tmp_path):
    path = draw_learning_curve(LOG, tmp_path / "minutes.png", "a run", beside={"blind": 0.35})
    with Image.open(path) as image:
        assert image.width > 800 and len(image.convert("RGB").getcolors(1 << 20)) > 50
    assert draw_learning_curve(LOG[:1], tmp_path / "none.png", "a run") is None
    assert not (tmp_path / "none.png").exists()


def test_without_matplotlib_nothing_is_drawn(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert draw_learning_curve(LOG, tmp_path / "minutes.png", "a run") is None


def test_names_stand_apart():
    values = [0.9, 0.91, 0.2, 0.9, 1.0]
    heights = _apart(values)
    order = sorted(heights)
    gaps = [high - low for low, high in pairwise(order)]
    assert min(gaps) == pytest.approx(0.042) and max(heights) <= 1
    assert heights[2] == 0.2
    assert _apart([]) == []
