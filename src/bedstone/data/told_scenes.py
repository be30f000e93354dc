"""The built-in data `scenes` with captions, questions and answers."""

from collections.abc import Callable
from functools import partial

from bedstone.data import scenes
from bedstone.data.pictured import Faults
from bedstone.data.told import Asked, Told, ToldRows
from bedstone.errors import BedstoneError, nearest

MEASURED = 400  # pictures of a split with held-out combinations
CAPTIONS = ("all", "whole", "none")


def told_scenes(
    count: int,
    *,
    seed: int = 0,
    size: int = 64,
    objects: tuple[int, int] = (1, 5),
    captions: str = "all",
    questions: bool = True,
    told: Callable[[float], None] | None = None,
) -> ToldRows:
    """`count` scenes to learn from. Pictures are drawn when they are asked for.

    Args:
        captions: all kinds; whole, the one that names all things; or none.
        questions: whether to ask, which takes time.
        told: is handed the share done.

    Raises:
        BedstoneError: a number of things outside 1 to 5, or no such captions.
    """
    if captions not in CAPTIONS:
        raise BedstoneError(f"data.captions: {captions!r} is unknown{nearest(captions, CAPTIONS)}.")
    rows = []
    for number in range(count):
        scene = scenes.make_scene(seed * scenes.APART + number, objects=objects)
        rows.append(_row(scene, size, f"scene {number}", captions, questions))
        if told is not None and number % 64 == 0:
            told(number / count)
    return ToldRows(rows, scenes.NAME, faults=Faults(scenes.NAME, 0.0, count))


def measured_told_scenes(
    split: str = "test", count: int = MEASURED, *, size: int = 64, objects: tuple[int, int] = (1, 5)
) -> ToldRows:
    """`count` scenes of a split, each with a combination that training never shows.

    Raises:
        BedstoneError: no such split.
    """
    if split not in scenes.HELD_OUT:
        raise BedstoneError(f"scenes: split {split!r} is unknown{nearest(split, scenes.HELD_OUT)}.")
    drawn = [scenes.make_scene(number, split=split, objects=objects) for number in range(count)]
    rows = [_row(scene, size, f"{split} {number}") for number, scene in enumerate(drawn)]
    return ToldRows(rows, scenes.NAME, faults=Faults(scenes.NAME, 0.0, count))


def _row(
    scene: scenes.Scene, size: int, place: str, captions: str = "all", questions: bool = True
) -> Told:
    said: tuple[str, ...] = ()
    if captions != "none":
        said = (scenes.caption(scene),) if captions == "whole" else scenes.captions(scene)
    asked = scenes.questions(scene) if questions else ()
    return Told(
        partial(scenes.draw, scene, size),
        said,
        tuple(Asked(one.text, (one.answer,), one.kind) for one in asked),
        place,
        scene,
    )
