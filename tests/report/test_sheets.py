"""Sheets of samples: each picture in its place, the recipe in the file."""

import numpy as np
import pytest
import torch
from PIL import Image

from bedstone.data.images.png import read_recipe
from bedstone.errors import BedstoneError
from bedstone.metrics.generative import NearestNeighbours, nearest
from bedstone.report.sheets import (
    as_pixels,
    chosen_frames,
    neighbours_sheet,
    samples_sheet,
    strip_sheet,
)

RECIPE = {"prompt": "ein grüner Stern", "seed": 3, "steps": 10, "scale": 4.5}


def plain(*values, channels=1, side=8):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, channels, side, side).clone()


def opened(path):
    return np.array(Image.open(path))


def at(sheet, row, column, cell=16, titled=False):
    """The grey value in the middle of a cell."""
    high = cell + 6 + (2 * 13 if titled else 0)
    return int(sheet[6 + row * high + cell // 2, 6 + column * (cell + 6) + cell // 2, 0])


def test_pixels():
    found = as_pixels(plain(-1.0, 0.0, 1.0, 7.0, torch.nan))
    assert found.shape == (5, 8, 8, 3) and found.dtype == np.uint8
    assert found[:, 0, 0, 0].tolist() == [0, 128, 255, 255, 128]
    colours = torch.tensor([1.0, -1.0, 0.2]).view(1, 3, 1, 1).expand(-1, -1, 4, 5)
    assert as_pixels(colours)[0, 3, 4].tolist() == [255, 0, 153]
    for wrong in (torch.zeros(1, 2, 4, 4), torch.zeros(3, 4, 4)):
        with pytest.raises(BedstoneError, match="no pictures"):
            as_pixels(wrong)


def test_samples(tmp_path):
    path = samples_sheet(
        plain(-1.0, 0.0, 1.0), tmp_path / "a.png", columns=2, cell=16, recipe=RECIPE
    )
    sheet = opened(path)
    assert [at(sheet, 0, 0), at(sheet, 0, 1), at(sheet, 1, 0)] == [0, 128, 255]
    assert read_recipe(path) == RECIPE
    assert read_recipe(samples_sheet(plain(0.0), tmp_path / "b.png")) is None


def test_strips(tmp_path):
    frames = [plain(-1.0, 1.0), plain(-0.5, 0.5), plain(0.0, 0.0)]
    sheet = opened(strip_sheet(frames, tmp_path / "a.png", cell=16, recipe=RECIPE))
    assert [at(sheet, 0, n) for n in range(3)] == [0, 64, 128]
    assert [at(sheet, 1, n) for n in range(3)] == [255, 191, 128]
    titled = strip_sheet(frames, tmp_path / "b.png", cell=16, titles=["1.0", "0.5", "0.0"])
    assert opened(titled).shape[0] > sheet.shape[0]
    assert read_recipe(tmp_path / "a.png") == RECIPE
    for wrong, titles, told in (
        ([], (), "expected some"),
        ([frames[0], frames[0][:1]], (), "all of one shape"),
        (frames, ("a",), "3 frames and 1"),
    ):
        with pytest.raises(BedstoneError, match=told):
            strip_sheet(wrong, tmp_path / "c.png", titles=titles)


def test_chosen_frames():
    assert chosen_frames(3) == [0, 1, 2]
    found = chosen_frames(51, 6)
    assert found == [0, 10, 20, 30, 40, 50]
    assert chosen_frames(1000)[-1] == 999 and len(chosen_frames(1000)) == 10


def test_neighbours(tmp_path):
    training = plain(-1.0, -0.5, 0.0, 0.5, 1.0)
    samples = plain(0.9, -0.55)
    found = nearest(samples, training, 2)
    path = neighbours_sheet(samples, training, found, tmp_path / "a.png", cell=16, recipe=RECIPE)
    sheet = opened(path)
    assert [at(sheet, 0, n, titled=True) for n in range(3)] == [242, 255, 191]
    assert [at(sheet, 1, n, titled=True) for n in range(3)] == [57, 64, 0]
    assert read_recipe(path) == RECIPE
    for wrong in (
        nearest(samples[:1], training),
        NearestNeighbours(torch.tensor([[0], [9]]), found.distances),
    ):
        with pytest.raises(BedstoneError, match="that were compared"):
            neighbours_sheet(samples, training, wrong, tmp_path / "b.png")
