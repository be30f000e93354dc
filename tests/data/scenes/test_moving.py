"""Videos of moving things: what is said of them is so."""

import numpy as np
import pytest
import torch

from bedstone.data.scenes.moving import (
    CLASSES,
    DIRECTIONS,
    draw_moving,
    make_moving,
    moving_captions,
    moving_signals,
)
from bedstone.data.scenes.world import HELD_OUT, PAIRS, SIZES, held_out
from bedstone.data.signals.batches import signal_stream
from bedstone.data.signals.signals import SignalsConfig
from bedstone.errors import BedstoneError
from bedstone.recipes.diffusion import DiffusionRecipe
from diffusion_runs import signals_of


def test_things_go_where_it_says_inside_the_picture_and_apart():
    for seed in range(150):
        moving = make_moving(seed, objects=(1, 3))
        begin, end = moving.at(0).objects, moving.at(1).objects
        for first, last, way in zip(begin, end, moving.ways, strict=True):
            x, y = DIRECTIONS[way]
            gone = (last.x - first.x) * x + (last.y - first.y) * y
            assert 0.29 < gone < 0.46
            assert abs((last.x - first.x) * y) + abs((last.y - first.y) * x) < 1e-6
        for share in np.linspace(0, 1, 9):
            things = moving.at(share).objects
            for thing in things:
                assert thing.radius <= thing.x <= 1 - thing.radius
                assert thing.radius <= thing.y <= 1 - thing.radius
            for one in things:
                for other in things:
                    far = np.hypot(one.x - other.x, one.y - other.y)
                    assert one is other or far > one.radius + other.radius


@pytest.mark.parametrize("way", DIRECTIONS)
def test_the_picture_moves_as_the_caption_says(way):
    """By the middle of what differs from the background, in pixels."""
    seed = next(n for n in range(99) if make_moving(n).ways[0] == way)
    moving = make_moving(seed)
    video = draw_moving(moving, 8, 48).astype(np.int64)
    assert video.shape == (3, 8, 48, 48)
    still = np.median(video, axis=1)  # a thing is at no place for long
    middles = []
    for frame in (0, 7):
        away = np.abs(video[:, frame] - still).sum(0) > 60
        rows, columns = np.nonzero(away)
        middles.append((columns.mean(), rows.mean()))
    (x0, y0), (x1, y1) = middles
    steps = {"left": x0 - x1, "right": x1 - x0, "up": y0 - y1, "down": y1 - y0}
    assert max(steps, key=steps.get) == way and steps[way] > 6
    assert all(f"{way}" in text for text in moving_captions(moving))


def test_captions_name_every_thing():
    for seed in range(50):
        moving = make_moving(seed, objects=(2, 2))
        for text in moving_captions(moving):
            for thing, way in zip(moving.scene.objects, moving.ways, strict=True):
                assert f"{thing.colour} {thing.shape} mov" in text and way in text
            assert " a orange" not in text


def test_videos_as_signals():
    recipe = DiffusionRecipe(
        task="class-to-video",
        data=SignalsConfig(source="moving-scenes", most_rows=300),
        evaluate_rows=20,
    )
    learnt, held = signals_of(recipe)
    assert learnt.shape == (3, 8, 32, 32) and learnt.names == CLASSES and len(held) == 20
    assert len(set(learnt.classes)) == 32
    moving = make_moving(5)
    assert CLASSES[learnt.classes[5]] == f"{moving.scene.objects[0].shape} moving {moving.ways[0]}"
    plain = torch.from_numpy(draw_moving(moving, 8, 32)).float() / 127.5 - 1
    assert torch.equal(learnt.read([5])[0], plain)
    batch = next(signal_stream(learnt, 64, flip=0.9, workers=0))
    mirrored = [
        not torch.equal(shown, own)
        for shown, own in zip(batch.signals, learnt.read(batch.rows.numpy()), strict=True)
    ]
    ways = [CLASSES[number].split()[-1] for number in learnt.classes[batch.rows]]
    assert not any(m for m, way in zip(mirrored, ways, strict=True) if way in ("left", "right"))
    assert any(mirrored)


def test_combinations_are_held_out_and_what_cant_move_is_reported():
    learnt = moving_signals(SignalsConfig(size=(4, 16, 16)), "text", count=60)
    held = moving_signals(SignalsConfig(size=(4, 16, 16)), "text", split="test", count=20)
    named = {(s, c) for s, c in PAIRS if f"{c} {s}" in "|".join(learnt.texts())}
    assert named and not any(held_out(*pair) for pair in named)
    first = [texts[0] for texts in held.captions]
    assert all(any(f"{c} {s}" in text for s, c in HELD_OUT["test"]) for text in first)
    with pytest.raises(BedstoneError, match="square, with 3"):
        moving_signals(SignalsConfig(size=(4, 16, 32)))
    with pytest.raises(BedstoneError, match="can't move out of each other's way"):
        moving_signals(SignalsConfig(objects=(1, 5)), "text", count=3)
    with pytest.raises(BedstoneError, match=r"data\.memory_mb"):
        moving_signals(SignalsConfig(memory_mb=10))


def test_things_are_of_the_sizes_and_the_plainness_wanted():
    every = {each.size for seed in range(40) for each in make_moving(seed).scene.objects}
    assert every == set(SIZES)
    for seed in range(40):
        moving = make_moving(seed, objects=(1, 2), sizes=("large", "medium"))
        assert {each.size for each in moving.scene.objects} <= {"large", "medium"}
    shape = {"source": "moving-scenes", "sizes": ["large"], "most_rows": 30}
    rough = moving_signals(SignalsConfig(**shape))
    plain = moving_signals(SignalsConfig(**shape, textures=False))
    assert "large" in plain.places[0] and "plain" in plain.places[0]
    rows = np.arange(30)
    same_kind = (rough.read(rows) == plain.read(rows)).flatten(1).all(1)
    assert same_kind.any() and not same_kind.all()  # only some had stripes or dots


def test_things_too_large_to_move_apart_are_refused():
    with pytest.raises(BedstoneError, match=r"data\.sizes: 3 things of \['large'\] can't move"):
        for seed in range(20):
            make_moving(seed, objects=(3, 3), sizes=("large",))
