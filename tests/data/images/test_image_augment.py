"""Each augmentation does what it says, and nothing else."""

import colorsys
import math

import numpy as np
import pytest
import torch

from bedstone.data.images.augment import ImageAugment, hue_matrix
from bedstone.errors import BedstoneError
from bedstone.settings import from_mapping

ALL = ImageAugment(
    crop=(0.3, 1.0),
    flip=0.5,
    rotation=20,
    scale=(0.8, 1.2),
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    erase=0.5,
)


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)


def ramp(count, height=64, width=64):
    """Red is x and green is y, both from 0 to 255: where a pixel came from can be read off it."""
    x = ((torch.arange(width) + 0.5) / width * 255).expand(height, width)
    y = ((torch.arange(height) + 0.5) / height * 255)[:, None].expand(height, width)
    return torch.stack([x, y, torch.zeros_like(x)], dim=2).round().byte().expand(count, -1, -1, -1)


def test_as_it_stands_nothing_changes():
    pixels = noise(4, 13, 17)
    found = ImageAugment()(pixels, 3)
    assert torch.equal(found, pixels) and found.data_ptr() != pixels.data_ptr()
    never = ImageAugment(colour=0.0, hue=0.5, brightness=1.0)
    assert torch.equal(never(pixels, 3), pixels)


def test_a_map_that_moves_nothing_gives_the_same_bits():
    pixels = noise(3, 14, 18)
    still = ImageAugment(scale=(1.0, 1.0 + 1e-12))  # read through the grid all the same
    assert still.turns and torch.equal(still(pixels, 0), pixels)
    calm = ImageAugment(brightness=1e-9)
    assert calm.recolours and torch.equal(calm(pixels, 0), pixels)


def test_flip():
    pixels = noise(200, 4, 5)
    assert torch.equal(ImageAugment(flip=1.0)(pixels, 0), pixels.flip(2))
    some = ImageAugment(flip=0.3)(pixels, 0)
    flipped = (some == pixels.flip(2)).flatten(1).all(1)
    same = (some == pixels).flatten(1).all(1)
    assert (flipped ^ same).all() and 40 <= flipped.sum() <= 80
    through_the_grid = ImageAugment(flip=0.3, scale=(1.0, 1.0 + 1e-12))(pixels, 0)
    through_the_cut = ImageAugment(flip=0.3, crop=(0.9999999, 1.0))(pixels, 0)
    assert torch.equal(through_the_grid, some) and torch.equal(through_the_cut, some)


@pytest.mark.parametrize("shape", [(64, 64), (48, 96)])
@pytest.mark.parametrize("turns", [False, True])
def test_crop_area_and_shape_are_in_range(shape, turns):
    extra = {"scale": (1.0, 1.0 + 1e-12)} if turns else {}
    augment = ImageAugment(crop=(0.25, 0.6), ratio=(0.8, 1.25), **extra)
    found = augment(ramp(300, *shape), 1).float() / 255
    assert found.shape[1:3] == shape
    wide = (found[:, :, -1, 0] - found[:, :, 0, 0]).mean(1) / (1 - 1 / shape[1])
    tall = (found[:, -1, :, 1] - found[:, 0, :, 1]).mean(1) / (1 - 1 / shape[0])
    area, ratio = wide * tall, wide / tall * shape[1] / shape[0]
    assert area.min() > 0.23 and area.max() < 0.63
    assert area.min() < 0.29 and area.max() > 0.56  # all of the range is used
    left, top = found[:, :, 0, 0].mean(1), found[:, 0, :, 1].mean(1)
    assert left.min() < 0.05 and top.min() < 0.05  # and all places
    assert (left + wide).max() > 0.95 and (top + tall).max() > 0.95
    inside = (ratio > 0.75) & (ratio < 1.33)
    limited = (wide > 0.97) | (tall > 0.97)  # the picture's own shape leaves no other
    assert (inside | limited).all() and inside.float().mean() > 0.7


def test_both_ways_to_crop_agree():
    pixels = ramp(20)
    cut = ImageAugment(crop=(0.2, 0.9), flip=0.5)(pixels, 5)
    moved = ImageAugment(crop=(0.2, 0.9), flip=0.5, rotation=1e-6)(pixels, 5)
    assert (cut.int() - moved.int()).abs()[:, 4:-4, 4:-4].max() <= 4  # whole pixels, 255 / 64


def test_another_size():
    pixels = ramp(3, 60, 90)
    found = ImageAugment(size=32)(pixels, 0)
    assert found.shape == (3, 32, 32, 3)
    assert (found.int() - ramp(3, 32, 32).int()).abs().max() <= 2
    turned = ImageAugment(size=32, rotation=1e-6)(pixels, 0)
    assert (turned.int() - ramp(3, 32, 32).int()).abs()[:, 1:-1, 1:-1].max() <= 4


def test_shrinking_does_not_alias():
    """Lines four pixels apart become grey, whichever way they are read."""
    lines = torch.zeros(1, 128, 128, 3, dtype=torch.uint8)
    lines[:, :, ::4] = 255
    for augment in (ImageAugment(size=32), ImageAugment(size=32, rotation=1e-6)):
        inner = augment(lines, 0)[:, 2:-2, 2:-2].int()
        assert (inner - 64).abs().max() <= 10


def test_rotation_turns_about_the_middle_and_keeps_shapes():
    for shape in ((64, 64), (48, 96)):
        height, width = shape
        pixels = ramp(200, *shape)
        found = ImageAugment(rotation=30)(pixels, 2).double()
        middle = found[:, height // 2 - 1 : height // 2 + 1, width // 2 - 1 : width // 2 + 1]
        wanted = torch.tensor([127.5, 127.5], dtype=torch.float64)
        assert (middle[..., :2].mean(dim=(1, 2)) - wanted).abs().max() < 3
        # Where the new axes run in the old picture, in its pixels.
        step, row, column = 10, height // 2, width // 2
        x = found[:, row, column + step] - found[:, row, column - step]
        y = found[:, row + step, column] - found[:, row - step, column]
        x, y = (axis[:, :2] / 255 * torch.tensor([width, height]) / (2 * step) for axis in (x, y))
        assert (x.norm(dim=1) - 1).abs().max() < 0.06 and (y.norm(dim=1) - 1).abs().max() < 0.06
        assert (x * y).sum(1).abs().max() < 0.06 and (x[:, 0] * y[:, 1] > 0).all()
        angle = torch.atan2(x[:, 1], x[:, 0]) * 180 / math.pi
        assert angle.abs().max() < 31.5 and angle.min() < -26 and angle.max() > 26


def test_scale_enlarges():
    twice = ImageAugment(scale=(2.0, 2.0))(ramp(1), 0)[0].int()
    assert (
        twice[:, :, 0] - ramp(1)[0, 16:48, 16:48, 0].int().repeat_interleave(2, 1)[0]
    ).abs().max() <= 3
    half = ImageAugment(scale=(0.5, 0.5))(ramp(1), 0)[0, 32, :, 0].int()
    assert half[16] < 8 and half[47] > 247
    assert (half[:16] - half[16:32].flip(0)).abs().max() <= 2  # beside it, it is mirrored


def colours(count):
    """Pictures of one plain colour each, neither too dark nor too light to change."""
    picked = 70 + noise(count, 1, 1).int() * 60 // 255
    return picked.byte().expand(-1, 4, 4, -1)


def test_brightness():
    pixels = colours(200)
    ratio = ImageAugment(brightness=0.3)(pixels, 0).double() / pixels
    per_picture = ratio.flatten(1).mean(1)
    assert (ratio.flatten(1) - per_picture[:, None]).abs().max() < 0.02
    assert 0.69 < per_picture.min() < 0.73 and 1.27 < per_picture.max() < 1.31


def test_contrast():
    grey = torch.tensor([80, 120], dtype=torch.uint8)[:, None].expand(2, 3).reshape(1, 1, 2, 3)
    found = ImageAugment(contrast=0.5)(grey.expand(200, -1, -1, -1), 0).double()
    assert (found.mean(dim=(1, 2, 3)) - 100).abs().max() <= 0.5  # the mean stays
    spread = found[:, 0, 1, 0] - found[:, 0, 0, 0]
    assert 20 <= spread.min() < 24 and 56 < spread.max() <= 60
    assert (found == found[..., :1]).all()  # greys stay grey


def test_saturation():
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    pixels = colours(200)
    found = ImageAugment(saturation=1.0)(pixels, 0).double()
    before, after = pixels.double() @ luma, found @ luma
    assert (before - after).abs().max() <= 0.6
    distance = lambda x, y: (x - y[..., None])[:, 0, 0].norm(dim=1)  # noqa: E731
    factor = distance(found, after) / distance(pixels.double(), before).clamp_min(1)
    assert factor.min() < 0.1 and 1.8 < factor.max() < 2.2


def test_hue():
    third = hue_matrix(torch.tensor([1 / 3]))[0]
    torch.testing.assert_close(third @ torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0]))
    torch.testing.assert_close(third @ torch.tensor([0, 1.0, 0]), torch.tensor([0, 0, 1.0]))
    matrices = hue_matrix(torch.linspace(-0.5, 0.5, 9))
    torch.testing.assert_close(matrices @ torch.ones(3), torch.ones(9, 3))  # greys stay
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(9))
    pixels = torch.tensor([160, 90, 90], dtype=torch.uint8).expand(300, 2, 2, 3)
    found = ImageAugment(hue=0.1)(pixels, 0)[:, 0, 0].numpy() / 255
    hues = np.array([(colorsys.rgb_to_hsv(*colour)[0] + 0.5) % 1 - 0.5 for colour in found])
    assert -0.12 < hues.min() < -0.08 and 0.08 < hues.max() < 0.12


def test_colours_only_with_their_probability():
    pixels = colours(300)
    found = ImageAugment(brightness=0.5, hue=0.2, colour=0.25)(pixels, 0)
    changed = (found != pixels).flatten(1).any(1)
    assert 50 <= changed.sum() <= 100


def test_erase():
    pixels = noise(300, 32, 40)
    found = ImageAugment(erase=0.5, erase_area=(0.1, 0.3))(pixels, 0)
    shares = []
    for old, new in zip(pixels, found, strict=True):
        changed = (old != new).any(2)
        if changed.any():
            rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
            inner = new[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert len(inner.flatten(0, 1).unique(dim=0)) == 1  # a rectangle of one colour
            shares.append(inner[..., 0].numel() / changed.numel())
    assert 120 <= len(shares) <= 180
    assert 0.07 < min(shares) < 0.13 and 0.27 < max(shares) < 0.34


def test_the_callers_pictures_stay():
    pixels = noise(8, 16, 16)
    kept = pixels.clone()
    for augment in (ALL, ImageAugment(erase=1.0), ImageAugment(flip=0.5, erase=1.0)):
        augment(pixels, 0)
        assert torch.equal(pixels, kept)


def test_the_seed_decides():
    pixels = noise(6, 20, 24)
    one = ALL(pixels, 7)
    assert one.shape == pixels.shape and one.dtype == torch.uint8
    assert torch.equal(one, ALL(pixels, 7))
    assert torch.equal(one, ALL(pixels, torch.Generator().manual_seed(7)))
    assert not torch.equal(one, ALL(pixels, 8))
    generator = torch.Generator().manual_seed(7)
    assert not torch.equal(ALL(pixels, generator), ALL(pixels, generator))
    same = ALL(pixels[:1].expand(6, -1, -1, -1), 7)
    assert len(same.flatten(1).unique(dim=0)) == 6  # each picture has its own draws


def test_no_picture_and_one_pixel():
    assert ALL(noise(0, 8, 8), 0).shape == (0, 8, 8, 3)
    assert ALL(noise(2, 1, 1), 0).shape == (2, 1, 1, 3)
    assert ImageAugment(crop=(0.1, 0.2), size=4)(noise(2, 1, 5), 0).shape == (2, 4, 4, 3)


def test_from_a_recipe():
    found = from_mapping(ImageAugment, {"crop": [0.5, 1], "flip": 0.5, "hue": "1e-1"}, "r.yaml")
    assert found == ImageAugment(crop=(0.5, 1.0), flip=0.5, hue=0.1)
    with pytest.raises(BedstoneError, match="rotation"):
        from_mapping(ImageAugment, {"rotate": 3}, "r.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": (0.0, 1.0)}, "augment.crop: 0.0"),
        ({"crop": (0.5, 1.5)}, "augment.crop: 1.5"),
        ({"crop": (1.0, 0.5)}, r"\[0.5, 1.0\]"),
        ({"crop": 0.5}, "two numbers"),
        ({"crop": (0.5,)}, "two numbers"),
        ({"scale": (0.0, 1.0)}, "augment.scale"),
        ({"ratio": (1.0, 40.0)}, "augment.ratio"),
        ({"erase_area": (0.0, 0.1)}, "augment.erase_area"),
        ({"flip": 1.1}, "augment.flip"),
        ({"flip": True}, "augment.flip"),
        ({"erase": -0.1}, "augment.erase"),
        ({"hue": 0.6}, "augment.hue"),
        ({"brightness": 1.5}, "augment.brightness"),
        ({"rotation": -3}, "augment.rotation"),
        ({"rotation": math.nan}, "augment.rotation"),
        ({"size": -1}, "augment.size"),
        ({"size": 1.5}, "augment.size"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(BedstoneError, match=message):
        ImageAugment(**options)


@pytest.mark.parametrize("pixels", [noise(4, 4), noise(1, 4, 4).float(), noise(1, 4, 4)[..., :1]])
def test_pictures_of_another_form(pixels):
    with pytest.raises(BedstoneError, match="expected"):
        ALL(pixels, 0)
