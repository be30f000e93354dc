"""Pictures of scenes show what the scene says, at every resolution."""

import dataclasses

import numpy as np
import pytest

from bedstone.data.scenes import render as scene_glyphs
from bedstone.data.scenes.render import draw, paint
from bedstone.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    DISTANCES,
    REACH,
    SHAPES,
    SIZES,
    TINTS,
    VARIANTS,
    Scene,
    Sign,
    Thing,
    mask,
)
from bedstone.data.scenes.world import make_scene as make


def alone(shape="circle", colour="red", size="large", **other):
    return Thing(shape, colour, size, 0.5, 0.5, **other)


def changed(one, other):
    """Where two pictures differ."""
    return (one.astype(int) != other.astype(int)).any(-1)


@pytest.mark.parametrize("size", [16, 33, 64, 150])
def test_any_resolution_shows_the_same(size):
    for seed in (3, 51):
        scene = make(seed)
        picture = draw(scene, size)
        assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
        # Each pixel beside the mean of what a sharper picture shows there.
        sharp = draw(scene, size * 4).reshape(size, 4, size, 4, 3).mean((1, 3))
        assert np.abs(picture - sharp).mean() < (14 if size < 64 else 4)


def test_drawing_changes_nothing_it_keeps():
    scene = make(3)
    first = draw(scene)
    first_copy = first.copy()
    first[:] = 0
    assert (draw(scene) == first_copy).all()
    night = paint("night", 0, 0, 64)
    night[:] = 0
    assert paint("night", 0, 0, 64).max() > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_their_size_and_edges_their_distance(shape):
    axis = np.linspace(-1.4, 1.4, 281, dtype=np.float32)
    u, v = axis[None, :], axis[:, None]
    distance = DISTANCES[shape](u + 0 * v, v + 0 * u)
    inside = distance < 0
    far = np.sqrt(u * u + v * v)
    assert far[inside].max() <= REACH
    assert 1.1 < inside.mean() * 2.8**2 < 3.0  # none is much larger than another
    down, across = np.gradient(distance, axis, axis)
    steep = np.sqrt(down**2 + across**2)[np.abs(distance) < 0.05]
    assert np.quantile(steep, 0.1) > 0.85 and steep.max() < 1.06  # else edges blur or break


def test_shapes_differ():
    masks = {shape: mask(alone(shape)) for shape in SHAPES}
    for one in SHAPES:
        for other in SHAPES:
            both = (masks[one] & masks[other]).sum() / (masks[one] | masks[other]).sum()
            assert one == other or both < 0.82


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("size", SIZES)
def test_a_thing_has_its_colour_before_every_background(colour, size):
    for background in BACKGROUNDS:
        picture = draw(Scene(background, (alone("square", colour, size),)))
        middle = picture[30:34, 30:34].reshape(-1, 3).mean(0)
        away = {name: np.abs(middle - rgb).sum() for name, rgb in COLOURS.items()}
        assert min(away, key=away.get) == colour


def lab(rgb):
    """CIE L*a*b* of sRGB values to 255: distances as eyes see them."""
    share = np.asarray(rgb, float) / 255
    linear = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = linear @ np.array(to_xyz).T / (0.95047, 1, 1.08883)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def test_colours_differ_from_each_other_and_from_backgrounds():
    seen = {name: lab(rgb) for name, rgb in COLOURS.items()}
    assert min(np.linalg.norm(seen[a] - seen[b]) for a in seen for b in seen if a < b) > 30
    for background in BACKGROUNDS:
        for number in range(max(TINTS, VARIANTS)):
            behind = lab(paint(background, number % TINTS, number % VARIANTS, 32))
            for name, point in seen.items():
                near = (np.linalg.norm(behind - point, axis=-1) < 22).mean()
                assert near < 0.02, (background, number, name)


def test_backgrounds_differ():
    pictures = [draw(Scene(name, ())) for name in BACKGROUNDS]
    for number, one in enumerate(pictures):
        for other in pictures[:number]:
            assert changed(one, other).mean() > 0.5


def test_the_front_thing_hides_the_other():
    one = Thing("square", "red", "large", 0.45, 0.5, 0)
    other = Thing("square", "blue", "large", 0.6, 0.5, 1)
    front = draw(Scene("plain", (one, other)))[32, 34]
    swapped = dataclasses.replace(one, z=1), dataclasses.replace(other, z=0)
    back = draw(Scene("plain", swapped))[32, 34]
    assert front[2] > front[0] and back[0] > back[2]


def test_textures_and_tilt_show():
    plain = draw(Scene("plain", (alone(),)))
    for other in (alone(texture="striped"), alone(texture="dotted"), alone("square", tilt=10)):
        different = changed(plain, draw(Scene("plain", (other,))))
        assert different.sum() > 60
        assert not different[:10].any() and not different[:, :10].any()


def test_every_sign_reads_differently():
    symbols = "ABCDEFGHIJKLMNOPQRSTUVWXYZ123456789"  # 0 and O are one glyph
    pictures = {text: draw(Scene("plain", (), Sign(text, 0.5, 0.5))) for text in symbols}
    for one in pictures:
        for other in pictures:
            if one < other:
                apart = np.abs(pictures[one].astype(int) - pictures[other]).sum() / 255 / 3
                assert apart > 2.5, (one, other)  # pixels from black to white


def test_strokes_are_where_they_should_be():
    points = np.array([[0.0]], np.float32)
    assert scene_glyphs.glyph_distance("I", points, points) == 0  # its stem stands in the middle
    assert scene_glyphs.glyph_distance("I", points + 1.5, points) == pytest.approx(1.5)
    assert scene_glyphs.glyph_distance("II", points, points) == pytest.approx(3)
    assert scene_glyphs.segments("?").shape == (0, 4)
