"""The built-in data `scenes`: drawn pictures with captions, questions and answers.

Everything about scenes can be had from here. `scene_world` says what a scene is, `scene_chance`
draws one at random, `scene_drawing` makes its picture, `scene_words`, `scene_negatives` and
`scene_questions` speak of it, `scene_truth` judges what others say of it.
"""

import functools
from typing import Any

from bedstone.data.scene_chance import make_scene
from bedstone.data.scene_drawing import draw
from bedstone.data.scene_negatives import negatives
from bedstone.data.scene_questions import Question, questions
from bedstone.data.scene_shapes import SHAPES
from bedstone.data.scene_truth import check_caption
from bedstone.data.scene_words import caption, captions, prompts
from bedstone.data.scene_world import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    PAIRS,
    SIGNS,
    SIZES,
    SPLITS,
    TEXTURES,
    Scene,
    Sign,
    Thing,
    held_out,
)
from bedstone.errors import BedstoneError

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "HELD_OUT",
    "PAIRS",
    "SHAPES",
    "SIGNS",
    "SIZES",
    "SPLITS",
    "TEXTURES",
    "Question",
    "Scene",
    "Sign",
    "Thing",
    "caption",
    "captions",
    "check_caption",
    "draw",
    "held_out",
    "make_scene",
    "negatives",
    "prompts",
    "questions",
    "scene_rows",
]

NAME = "scenes"  # of the built-in data
APART = 10**9  # scenes a seed of rows may have


def scene_rows(
    count: int,
    split: str = "train",
    seed: int = 0,
    size: int = 64,
    objects: tuple[int, int] = (1, 5),
) -> list[dict[str, Any]]:
    """`count` scenes as rows, the same for the same arguments; a longer list begins like a shorter.

    A row holds `image` ((size, size, 3) uint8, read only), `captions` (true ones, the first of
    which names all things), `questions` and `scene`. Another seed gives other scenes. The latest
    two lists are kept in memory.

    Raises:
        BedstoneError: a count below 0 or over a thousand million, or what `make_scene` and `draw`
            can't take.
    """
    if not 0 <= count <= APART:
        raise BedstoneError(f"scenes: {count} pictures can't be drawn. Give a number from 0.")
    return [dict(row) for row in _rows(count, split, seed, size, tuple(objects))]


@functools.lru_cache(maxsize=2)
def _rows(
    count: int, split: str, seed: int, size: int, objects: tuple[int, int]
) -> tuple[dict[str, Any], ...]:
    rows = []
    for number in range(count):
        scene = make_scene(seed * APART + number, split=split, objects=objects)
        image = draw(scene, size)
        image.setflags(write=False)
        told = {"captions": captions(scene), "questions": questions(scene)}
        rows.append({"image": image, **told, "scene": scene})
    return tuple(rows)
