"""The picture of a confusion matrix."""

import sys

import numpy as np
import pytest
from PIL import Image

from bedstone.errors import BedstoneError
from bedstone.report.plots import _short_count, draw_confusion


def pixels(path):
    return np.asarray(Image.open(path).convert("L"), dtype=float)


@pytest.mark.parametrize("size", [1, 2, 17])
def test_it_is_drawn(tmp_path, size):
    names = [f"${'long ' * 9}{number}" for number in range(size)]
    path = tmp_path / "confusion.png"
    assert draw_confusion(np.eye(size, dtype=int) * 12345, names, path, "a $title") == path
    assert Image.open(path).width > 250
    assert [found.name for found in tmp_path.iterdir()] == ["confusion.png"]


def test_colour_is_the_share_of_the_row(tmp_path):
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    draw_confusion([[5, 5], [50, 50]], "ab", one)
    draw_confusion([[5, 5], [0, 100]], "ab", other)
    assert pixels(other).min() < 50 < pixels(one)[100:-100, 150:].mean()
    upper = [pixels(path)[: pixels(path).shape[0] // 3] for path in (one, other)]
    assert abs(upper[0].mean() - upper[1].mean()) < 1  # the first row is as it was


def test_counts_stay_short():
    numbers = (0, 999, 9999, 10_000, 123_456, 1_500_000, 20_000_000)
    assert [_short_count(n) for n in numbers] == ["0", "999", "9999", "10k", "123k", "1.5M", "20M"]


def test_without_matplotlib_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw_confusion([[1]], "a", tmp_path / "x.png") is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, 3, 101])
def test_bad_sizes_are_named(tmp_path, size):
    with pytest.raises(BedstoneError, match="confusion: "):
        draw_confusion(np.eye(2 if size == 3 else size), ["x"] * size, tmp_path / "x.png")
