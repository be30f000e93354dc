"""The built-in data `scenes`: drawn pictures with captions, questions and answers.

Everything about scenes can be had from here. `scene_world` says what a scene is, `scene_chance`
draws one at random, `scene_drawing` makes its picture, `scene_words`, `scene_negatives` and
`scene_questions` speak of it, `scene_truth` judges what others say of it.
"""

import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bedstone.data.dataset import Faults
from bedstone.data.fields import ImageTextDataset, ImageTextPair, PairDataset, Question, Sample
from bedstone.data.images.image_text import CAPTION, answer_text, question_text
from bedstone.data.records import Piece
from bedstone.data.scenes.captions import all_captions, caption, negatives, prompts
from bedstone.data.scenes.questions import all_questions
from bedstone.data.scenes.render import draw
from bedstone.data.scenes.world import HELD_OUT, PAIRS, Scene, make_scene
from bedstone.errors import BedstoneError, nearest

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
        told = {"captions": all_captions(scene), "questions": all_questions(scene)}
        rows.append({"image": image, **told, "scene": scene})
    return tuple(rows)


# The built-in data `scenes` as pairs: what is learnt from, and what is measured on.
#
# Measured are pictures of one thing each, to be told apart among all 80 combinations of shape and
# colour, and pictures of several, each to be found by the sentence that names all its things. All
# show combinations that training never does.

ONES, SEVERAL = 320, 100  # pictures of one thing, and of several, to measure on


def _class(shape: str, colour: str) -> str:
    """`a red circle`: what all prompts have in common."""
    return prompts(shape, colour)[0]


CLASSES = tuple(_class(*pair) for pair in PAIRS)
TEMPLATES = tuple(text.replace(CLASSES[0], "{label}") for text in prompts(*PAIRS[0]))


def scene_pairs(
    count: int,
    *,
    seed: int = 0,
    size: int = 64,
    objects: tuple[int, int] = (1, 5),
    wrong: bool = False,
    told: Callable[[float], None] | None = None,
) -> PairDataset:
    """`count` scenes to learn from, with true captions of several kinds; with nearly true ones
    where `wrong` says so, which takes longer than all else.

    Raises:
        BedstoneError: a number of things outside 1 to 5.
    """
    pairs = []
    for number in range(count):
        scene = make_scene(seed * APART + number, objects=objects)
        picture = partial(draw, scene, size)
        place = f"scene {number}"
        nearly = negatives(scene) if wrong else ()
        pairs.append(ImageTextPair(picture, all_captions(scene), nearly, place=place))
        if told is not None and number % 64 == 0:
            told(number / count)
    return _pair_rows(pairs)


def heldout_scene_pairs(
    split: str = "test", *, size: int = 64, ones: int | None = None, several: int | None = None
) -> PairDataset:
    """Scenes of a split with held-out combinations: `ones` of one thing (320), `several` of
    more (100).

    Raises:
        BedstoneError: no such split.
    """
    if split not in HELD_OUT:
        raise BedstoneError(f"scenes: split {split!r} is unknown{nearest(split, HELD_OUT)}.")
    pairs = []
    for number in range(ONES if ones is None else ones):
        scene = make_scene(number, split=split, objects=(1, 1))
        label = _class(*scene.objects[0].pair)
        texts = tuple(form.replace("{label}", label) for form in TEMPLATES)
        picture = partial(draw, scene, size)
        pairs.append(
            ImageTextPair(picture, texts, label=label, made=True, place=f"{split} one {number}")
        )
    for number in range(SEVERAL if several is None else several):
        scene = make_scene(number, split=split, objects=(2, 5))
        text = all_captions(scene)[0]
        picture = partial(draw, scene, size)
        pairs.append(ImageTextPair(picture, (text,), place=f"{split} several {number}"))
    return _pair_rows(pairs)


def _pair_rows(pairs: list[ImageTextPair]) -> PairDataset:
    faults = Faults(NAME, 0.0, len(pairs))
    return PairDataset(pairs, NAME, classes=CLASSES, templates=TEMPLATES, faults=faults)


# The built-in data `scenes` with captions, questions and answers.

MEASURED = 400  # pictures of a split with held-out combinations
CAPTIONS = ("all", "whole", "none")


def image_text_scenes(
    count: int,
    *,
    seed: int = 0,
    size: int = 64,
    objects: tuple[int, int] = (1, 5),
    captions: str = "all",
    questions: bool = True,
    told: Callable[[float], None] | None = None,
) -> ImageTextDataset:
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
        scene = make_scene(seed * APART + number, objects=objects)
        rows.append(_row(scene, size, f"scene {number}", captions, questions))
        if told is not None and number % 64 == 0:
            told(number / count)
    return ImageTextDataset(rows, NAME, faults=Faults(NAME, 0.0, count))


def heldout_image_text_scenes(
    split: str = "test", count: int = MEASURED, *, size: int = 64, objects: tuple[int, int] = (1, 5)
) -> ImageTextDataset:
    """`count` scenes of a split, each with a combination that training never shows.

    Raises:
        BedstoneError: no such split.
    """
    if split not in HELD_OUT:
        raise BedstoneError(f"scenes: split {split!r} is unknown{nearest(split, HELD_OUT)}.")
    drawn = [make_scene(number, split=split, objects=objects) for number in range(count)]
    rows = [_row(scene, size, f"{split} {number}") for number, scene in enumerate(drawn)]
    return ImageTextDataset(rows, NAME, faults=Faults(NAME, 0.0, count))


def _row(
    scene: Scene, size: int, place: str, captions: str = "all", questions: bool = True
) -> Sample:
    said: tuple[str, ...] = ()
    if captions != "none":
        said = (caption(scene),) if captions == "whole" else all_captions(scene)
    asked = all_questions(scene) if questions else ()
    return Sample(
        partial(draw, scene, size),
        said,
        tuple(Question(one.text, (one.answer,), one.kind) for one in asked),
        place,
        scene,
    )


# The text of the built-in data `scenes`, without pictures: what a GPT reads before it sees.
#
# Three kinds of documents: captions; questions with answers; and captions that name all things of a
# scene with its questions behind them, by which answers are learnt from what is said. Only scenes
# to learn from speak here: what is held out stays so.

SCENES = 20_000
_SEED = 7 * 10**9  # apart from the scenes that are seen in training


@functools.lru_cache(maxsize=1)  # a run reads them several times
def scene_texts(count: int = SCENES) -> tuple[Piece, ...]:
    """The texts of `count` scenes, those of one side by side."""
    return tuple(_texts(count))


def _texts(count: int) -> Iterator[Piece]:
    for number in range(count):
        scene = make_scene(_SEED + number)
        key = f"scene {number}"
        captions = [CAPTION + answer_text(text) for text in all_captions(scene)]
        asked = [question_text(one.text) + answer_text(one.answer) for one in all_questions(scene)]
        yield from (Piece(text, key=key) for text in (*captions[:3], *asked))
        yield Piece("\n".join((captions[0], *asked)), key=key)
