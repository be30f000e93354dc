"""Scenes: the split, what hides what, and that a seed is a scene everywhere."""

import dataclasses
import hashlib
from collections import Counter

import numpy as np
import pytest

from bedstone.data.scenes.datasets import (
    heldout_scene_pairs,
    plain_scenes,
    scene_pairs,
    scene_rows,
)
from bedstone.data.scenes.relations import place
from bedstone.data.scenes.render import draw
from bedstone.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    COVERED,
    HELD_OUT,
    PAIRS,
    SHAPES,
    SIGNS,
    SIZES,
    SPLITS,
    VISIBLE,
    Dice,
    Thing,
    allowed_pairs,
    held_out,
    make_scene,
    near,
    visible_share,
)
from bedstone.data.scenes.world import hidden_share as hidden
from bedstone.errors import BedstoneError


@pytest.fixture(scope="module")
def scenes():
    return {split: [make_scene(seed, split=split) for seed in range(400)] for split in SPLITS}


def test_the_world_is_as_large_as_promised():
    assert (len(SHAPES), len(COLOURS), len(SIZES), len(PAIRS)) == (8, 10, 3, 80)
    assert len(BACKGROUNDS) == 8 and len(set(SIGNS)) == 32


def test_each_shape_and_colour_is_known_but_not_each_combination():
    kept = [pair for pair in PAIRS if not held_out(*pair)]
    assert 12 <= 80 - len(kept) <= 16
    assert not HELD_OUT["validation"] & HELD_OUT["test"]
    assert set(kept) == set(PAIRS) - HELD_OUT["validation"] - HELD_OUT["test"]
    assert min(Counter(shape for shape, _ in kept).values()) >= 6
    assert min(Counter(colour for _, colour in kept).values()) >= 6
    assert set(allowed_pairs("train")) == set(kept)


def test_splits_hold_out_whole_combinations(scenes):
    def of(split):
        return [{thing.pair for thing in scene.objects} for scene in scenes[split]]

    assert not any(held_out(*pair) for pairs in of("train") for pair in pairs)
    for split, other in (("validation", "test"), ("test", "validation")):
        assert all(pairs & HELD_OUT[split] for pairs in of(split))
        assert not any(pairs & HELD_OUT[other] for pairs in of(split))
        assert set().union(*of(split)) >= HELD_OUT[split]
    alone = [make_scene(seed, split="test", objects=(1, 1)) for seed in range(200)]
    assert {scene.objects[0].pair for scene in alone} == HELD_OUT["test"]
    assert len({thing.pair for scene in scenes["all"] for thing in scene.objects}) == 80


def test_everything_occurs(scenes):
    seen = scenes["train"]
    things = [thing for scene in seen for thing in scene.objects]
    assert {scene.background for scene in seen} == set(BACKGROUNDS)
    assert {thing.size for thing in things} == set(SIZES)
    assert {thing.texture for thing in things} == {"plain", "striped", "dotted"}
    numbers = Counter(len(scene.objects) for scene in seen)
    assert set(numbers) == {1, 2, 3, 4, 5} and min(numbers.values()) > 40
    assert 0.2 < np.mean([scene.sign is not None for scene in seen]) < 0.5
    places = Counter(place(thing) for thing in things)
    assert sum(where is not None for where in places) == 9
    touched = [any(hidden(a, b) for a in s.objects for b in s.objects) for s in seen]
    assert 0.2 < np.mean(touched) < 0.7


def test_every_thing_is_plain_to_see(scenes):
    for scene in (scene for split in SPLITS for scene in scenes[split]):
        for thing in scene.objects:
            reach = thing.radius * 1.16
            assert reach <= min(thing.x, thing.y) and max(thing.x, thing.y) <= 1 - reach
            assert visible_share(thing, scene.objects) >= VISIBLE
            for other in scene.objects:
                share = hidden(thing, other)
                assert share == 0 or share >= COVERED
                assert other is thing or thing.colour != other.colour or not near(thing, other)
            if sign := scene.sign:
                x = max(abs(thing.x - sign.x) - sign.width / 2, 0)
                y = max(abs(thing.y - sign.y) - sign.height / 2, 0)
                assert (x * x + y * y) ** 0.5 > reach


def test_a_seed_is_a_scene():
    assert make_scene(5) == make_scene(5)
    assert len({make_scene(seed) for seed in range(200)}) == 200
    assert make_scene(5, split="test") != make_scene(5, split="validation")


def test_a_seed_is_the_same_scene_everywhere():
    # Whoever changes these changes everyone's data: say so in the changelog.
    several = repr([make_scene(seed, split=split) for split in SPLITS for seed in range(20)])
    assert hashlib.sha256(several.encode()).hexdigest()[:16] == "ae4e174c5e546b4c"
    assert [Dice("a").below(1000), Dice("b").below(1000)] == [272, 722]


def test_things_are_of_the_sizes_wanted():
    for sizes in (("large",), ("medium", "small")):
        made = [make_scene(seed, objects=(1, 3), sizes=sizes) for seed in range(60)]
        assert {thing.size for scene in made for thing in scene.objects} == set(sizes)
    assert make_scene(5, sizes=("large", "medium", "small")) == make_scene(5)


def test_hidden_share_knows_who_is_in_front():
    back = Thing("square", "red", "large", 0.5, 0.5, 0)
    front = Thing("circle", "blue", "small", 0.5, 0.5, 1)
    area = 3.14159 * (0.96 * 0.095) ** 2 / (1.6 * 0.195) ** 2
    assert hidden(back, front) == pytest.approx(area, rel=0.06)
    assert hidden(front, back) == 0
    away = dataclasses.replace(front, x=0.1)
    assert hidden(back, away) == 0 and visible_share(back, (back, away)) == 1
    assert visible_share(back, (back, front)) == pytest.approx(1 - area, rel=0.06)


def test_rows():
    rows = scene_rows(6, "test", 3, 32, (2, 3))
    assert [len(row["scene"].objects) in (2, 3) for row in rows] == [True] * 6
    assert all(row["image"].shape == (32, 32, 3) for row in rows)
    assert all(row["captions"] and row["questions"] for row in rows)
    assert (rows[4]["image"] == draw(rows[4]["scene"], 32)).all()
    assert [row["scene"] for row in scene_rows(4, "test", 3, 32, (2, 3))] == [
        row["scene"] for row in rows[:4]
    ]
    other = {row["scene"] for row in scene_rows(6, "test", 4, 32, (2, 3))}
    assert not other & {row["scene"] for row in rows}
    rows[0]["image"] = None  # a caller's own dictionary
    assert scene_rows(6, "test", 3, 32, (2, 3))[0]["image"] is not None


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: make_scene(0, split="tests"), "perhaps 'test'"),
        (lambda: make_scene(0, objects=(0, 3)), "from 1 to 5"),
        (lambda: make_scene(0, objects=(4, 3)), "from 1 to 5"),
        (lambda: make_scene(0, sizes=["larg"]), "perhaps 'large'"),
        (lambda: [make_scene(n, objects=(5, 5), sizes=["large"]) for n in range(50)], "no room"),
        (lambda: scene_rows(-1), "-1 pictures"),
        (lambda: draw(make_scene(0), 8), "8 pixels"),
        (lambda: draw(make_scene(0), 5000), "5000 pixels"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(BedstoneError, match=says):
        call()


def test_which_scenes_are_drawn():
    """Large and plain things without signs, for those who see few pixels."""
    how = {"sizes": ["large"], "textures": False, "signs": False, "objects": (1, 2)}
    plain = plain_scenes(12, **how)
    assert all(row.scene.sign is None for row in plain)
    for row in plain:
        assert {thing.size for thing in row.scene.objects} == {"large"}
        assert {thing.texture for thing in row.scene.objects} == {"plain"}
    for rows in (scene_pairs(12, **how), heldout_scene_pairs(ones=6, several=6, **how)):
        words = " ".join(" ".join(row.captions) for row in rows)
        assert not {"small", "sign"} & set(words.split())
        assert len(rows) == 12
    assert any(row.scene.sign is not None for row in plain_scenes(12))
