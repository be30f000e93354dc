"""The built-in data `scenes` as pairs: what is learnt from, and what is measured on.

Measured are pictures of one thing each, to be told apart among all 80 combinations of shape and
colour, and pictures of several, each to be found by the sentence that names all its things. All
show combinations that training never does.
"""

from collections.abc import Callable
from functools import partial

from bedstone.data import scenes
from bedstone.data.pairs import Pair, PairRows
from bedstone.data.pictured import Faults
from bedstone.errors import BedstoneError, nearest

ONES, SEVERAL = 320, 100  # pictures of one thing, and of several, to measure on


def _class(shape: str, colour: str) -> str:
    """`a red circle`: what all prompts have in common."""
    return scenes.prompts(shape, colour)[0]


CLASSES = tuple(_class(*pair) for pair in scenes.PAIRS)
TEMPLATES = tuple(text.replace(CLASSES[0], "{label}") for text in scenes.prompts(*scenes.PAIRS[0]))


def scene_pairs(
    count: int,
    *,
    seed: int = 0,
    size: int = 64,
    objects: tuple[int, int] = (1, 5),
    wrong: bool = False,
    told: Callable[[float], None] | None = None,
) -> PairRows:
    """`count` scenes to learn from, with true captions of several kinds; with nearly true ones
    where `wrong` says so, which takes longer than all else.

    Raises:
        BedstoneError: a number of things outside 1 to 5.
    """
    pairs = []
    for number in range(count):
        scene = scenes.make_scene(seed * scenes.APART + number, objects=objects)
        picture = partial(scenes.draw, scene, size)
        place = f"scene {number}"
        nearly = scenes.negatives(scene) if wrong else ()
        pairs.append(Pair(picture, scenes.captions(scene), nearly, place=place))
        if told is not None and number % 64 == 0:
            told(number / count)
    return _rows(pairs)


def measured_scenes(
    split: str = "test", *, size: int = 64, ones: int | None = None, several: int | None = None
) -> PairRows:
    """Scenes of a split with held-out combinations: `ones` of one thing (320), `several` of
    more (100).

    Raises:
        BedstoneError: no such split.
    """
    if split not in scenes.HELD_OUT:
        raise BedstoneError(f"scenes: split {split!r} is unknown{nearest(split, scenes.HELD_OUT)}.")
    pairs = []
    for number in range(ONES if ones is None else ones):
        scene = scenes.make_scene(number, split=split, objects=(1, 1))
        label = _class(*scene.objects[0].pair)
        texts = tuple(form.replace("{label}", label) for form in TEMPLATES)
        picture = partial(scenes.draw, scene, size)
        pairs.append(Pair(picture, texts, label=label, made=True, place=f"{split} one {number}"))
    for number in range(SEVERAL if several is None else several):
        scene = scenes.make_scene(number, split=split, objects=(2, 5))
        text = scenes.captions(scene)[0]
        picture = partial(scenes.draw, scene, size)
        pairs.append(Pair(picture, (text,), place=f"{split} several {number}"))
    return _rows(pairs)


def _rows(pairs: list[Pair]) -> PairRows:
    faults = Faults(scenes.NAME, 0.0, len(pairs))
    return PairRows(pairs, scenes.NAME, classes=CLASSES, templates=TEMPLATES, faults=faults)
