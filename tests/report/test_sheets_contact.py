"""Sheets of pictures: each where it belongs, whole, with its words."""

import numpy as np
import pytest
from PIL import Image

from bedstone.data.images.augment import ImageAugment
from bedstone.errors import BedstoneError
from bedstone.report.sheets import augmentation_sheet, contact_sheet


def plain(colour, height=20, width=20):
    return np.full((height, width, 3), colour, np.uint8)


def opened(path):
    return np.array(Image.open(path))


def test_pictures_lie_in_rows(tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (0, 99, 0)]
    path = contact_sheet([plain(c) for c in colours], tmp_path / "in" / "sheet.png", cell=40)
    sheet = opened(path)
    assert path == tmp_path / "in" / "sheet.png"
    assert sheet.shape == (2 * 46 + 6, 3 * 46 + 6, 3)  # 5 pictures: rows of 3
    for number, colour in enumerate(colours):
        top, left = 6 + number // 3 * 46, 6 + number % 3 * 46
        assert (sheet[top : top + 40, left : left + 40] == colour).all()
    assert (sheet[52:, 98:] == 255).all()  # nothing in the last place
    one_row = contact_sheet([plain(c) for c in colours], tmp_path / "b.png", cell=10, columns=9)
    assert opened(one_row).shape == (22, 5 * 16 + 6, 3)


def test_pictures_keep_their_shape(tmp_path):
    wide, small, thin = plain((255, 0, 0), 50, 100), plain((0, 0, 255), 3, 2), plain(7, 1, 4000)
    sheet = opened(contact_sheet([wide, small, thin], tmp_path / "a.png", cell=32, columns=3))
    red = (sheet[:, :38] == (255, 0, 0)).all(2)
    assert red.any(0).sum() == 32 and red.any(1).sum() == 16
    blue = (sheet[:, 40:76] == (0, 0, 255)).all(2)
    assert blue.any(0).sum() == 20 and blue.any(1).sum() == 30  # ten times, in whole steps


def test_titles(tmp_path):
    pictures = [plain(255, 20, 20)] * 3
    titles = ["", "dog", "a very long title " * 20]
    sheet = opened(contact_sheet(pictures, tmp_path / "a.png", titles=titles, cell=100, columns=3))
    ink = [(sheet[:, 6 + n * 106 : 106 + n * 106] < 128).any(2) for n in range(3)]
    assert not ink[0].any() and ink[1].any()
    assert ink[2].sum() > 3 * ink[1].sum()
    assert (sheet[:, -6:] == 255).all()  # long ones are cut
    assert sheet.shape[0] > 112
    long_word = contact_sheet([plain(255)], tmp_path / "b.png", titles=["x" * 500], cell=64)
    assert (opened(long_word)[:, -6:] == 255).all()


def test_bad_sheets(tmp_path):
    path = tmp_path / "a.png"
    for pictures, options, told in (
        ([], {}, "no picture"),
        ([plain(0)], {"titles": ["a", "b"]}, "2 titles"),
        ([plain(0)] * 200, {"columns": 200}, "16,384"),
    ):
        with pytest.raises(BedstoneError, match=told):
            contact_sheet(pictures, path, **options)
    assert not path.exists()
    with pytest.raises(BedstoneError, match="is a folder"):
        contact_sheet([plain(0)], tmp_path)


def test_augmentations_beside_their_picture(tmp_path):
    left_red = plain((0, 0, 255))
    left_red[:, :10] = (255, 0, 0)
    path = augmentation_sheet(
        ImageAugment(flip=1.0), [left_red, plain(3)], tmp_path / "a.png", copies=2, cell=20
    )
    sheet = opened(path)
    assert sheet.shape == (2 * 26 + 6, 3 * 26 + 6, 3)
    assert (sheet[6:26, 6:26] == left_red).all()
    for left in (32, 58):
        assert (sheet[6:26, left : left + 20] == left_red[:, ::-1]).all()
    assert (sheet[32:52, 6:26] == 3).all()
    with pytest.raises(BedstoneError, match="copies"):
        augmentation_sheet(ImageAugment(), [left_red], path, copies=0)


def test_the_seed_decides_the_sheet(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    augment = ImageAugment(crop=(0.2, 0.5))
    sheets = [
        opened(augmentation_sheet(augment, [noise], tmp_path / f"{n}.png", seed=seed))
        for n, seed in enumerate((1, 1, 2))
    ]
    assert (sheets[0] == sheets[1]).all() and (sheets[0] != sheets[2]).any()
