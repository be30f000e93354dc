"""The built-in data `scenes`: synthetic images with captions, questions and answers.

A scene is made at random by `scenes.world` and drawn by `scenes.render`; `scenes.captions` and
`scenes.questions` describe it and check captions. Held-out scenes show combinations of shape and
colour that training never does.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from bedstone.data.bytes import Piece
from bedstone.data.dataset import Dataset
from bedstone.data.fields import Question, Sample
from bedstone.data.images.image_text import CAPTION, answer_text, question_text
from bedstone.data.scenes.captions import all_captions, caption, negatives, prompts
from bedstone.data.scenes.questions import all_questions
from bedstone.data.scenes.render import draw
from bedstone.data.scenes.world import HELD_OUT, PAIRS, Scene, make_scene, without_textures
from bedstone.errors import BedstoneError, nearest

NAME = "scenes"  # of the built-in data
APART = 10**9  # scenes that one seed of rows may have
PAIRS_READ, IMAGE_TEXT_READ = ("captions", "negatives", "label"), ("captions", "questions")


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
        texts = {"captions": all_captions(scene), "questions": all_questions(scene)}
        rows.append({"image": image, **texts, "scene": scene})
    return tuple(rows)


# Scenes as image-text pairs for contrastive training.
#
# Held out are images of one object each, for zero-shot classification among all 80 combinations of
# shape and colour, and images of several, for retrieval by the caption that names all objects.

ONES, SEVERAL = 320, 100  # held-out images of one object, and of several


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
    sizes: Sequence[str] = (),
    textures: bool = True,
    signs: bool = True,
    wrong: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Dataset:
    """`count` training scenes with true captions of several kinds.

    Args:
        sizes, textures, signs: as of `plain_scenes`.
        wrong: whether each has hard negatives, which takes longer than all else.
        progress: is called with the share done.

    Raises:
        BedstoneError: a number of objects outside 1 to 5.
    """
    rows = []
    for number in range(count):
        scene = make_scene(seed * APART + number, objects=objects, sizes=sizes)
        scene = simplified(scene, textures=textures, signs=signs)
        hard = negatives(scene) if wrong else ()
        image, captions = partial(draw, scene, size), all_captions(scene)
        rows.append(Sample(image, captions, negatives=hard, place=f"scene {number}"))
        if progress is not None and number % 64 == 0:
            progress(number / count)
    return _pairs(rows)


def heldout_scene_pairs(
    split: str = "test",
    *,
    size: int = 64,
    ones: int | None = None,
    several: int | None = None,
    objects: tuple[int, int] = (1, 5),
    sizes: Sequence[str] = (),
    textures: bool = True,
    signs: bool = True,
) -> Dataset:
    """Scenes of a split with held-out combinations: `ones` of one object (320), `several` of
    more (100), of up to five, or of as many as `objects` says where `sizes` are named.

    Args:
        sizes, textures, signs: as of `plain_scenes`.

    Raises:
        BedstoneError: no such split.
    """
    _check_split(split)
    rows = []
    for number in range(ONES if ones is None else ones):
        scene = make_scene(number, split=split, objects=(1, 1), sizes=sizes)
        scene = simplified(scene, textures=textures, signs=signs)
        label = _class(*scene.objects[0].pair)
        texts = tuple(form.replace("{label}", label) for form in TEMPLATES)
        image, place = partial(draw, scene, size), f"{split} one {number}"
        rows.append(Sample(image, texts, label=label, made=True, place=place))
    most = max(objects[1], 2) if sizes else 5
    for number in range(SEVERAL if several is None else several):
        scene = make_scene(number, split=split, objects=(2, most), sizes=sizes)
        scene = simplified(scene, textures=textures, signs=signs)
        image, texts = partial(draw, scene, size), all_captions(scene)[:1]
        rows.append(Sample(image, texts, place=f"{split} several {number}"))
    return _pairs(rows)


def _pairs(rows: list[Sample]) -> Dataset:
    return Dataset(rows, NAME, fields=PAIRS_READ, classes=CLASSES, templates=TEMPLATES)


def _check_split(split: str) -> None:
    if split not in HELD_OUT:
        raise BedstoneError(f"scenes: split {split!r} is unknown{nearest(split, HELD_OUT)}.")


# Scenes with captions, questions and answers.

MEASURED = 400  # images of a split with held-out combinations
CAPTIONS = ("all", "whole", "none")


def image_text_scenes(
    count: int,
    *,
    seed: int = 0,
    size: int = 64,
    objects: tuple[int, int] = (1, 5),
    captions: str = "all",
    questions: bool = True,
    progress: Callable[[float], None] | None = None,
) -> Dataset:
    """`count` training scenes. Images are drawn when they are asked for.

    Args:
        captions: all kinds; whole, the one that names all objects; or none.
        questions: whether they have questions, which takes time.
        progress: is called with the share done.

    Raises:
        BedstoneError: a number of objects outside 1 to 5, or no such captions.
    """
    if captions not in CAPTIONS:
        raise BedstoneError(f"data.captions: {captions!r} is unknown{nearest(captions, CAPTIONS)}.")
    rows = []
    for number in range(count):
        scene = make_scene(seed * APART + number, objects=objects)
        rows.append(_sample(scene, size, f"scene {number}", captions, questions))
        if progress is not None and number % 64 == 0:
            progress(number / count)
    return Dataset(rows, NAME, fields=IMAGE_TEXT_READ)


def heldout_image_text_scenes(
    split: str = "test", count: int = MEASURED, *, size: int = 64, objects: tuple[int, int] = (1, 5)
) -> Dataset:
    """`count` scenes of a split, each with a combination that training never shows.

    Raises:
        BedstoneError: no such split.
    """
    _check_split(split)
    drawn = [make_scene(number, split=split, objects=objects) for number in range(count)]
    rows = [_sample(scene, size, f"{split} {number}") for number, scene in enumerate(drawn)]
    return Dataset(rows, NAME, fields=IMAGE_TEXT_READ)


def _sample(
    scene: Scene, size: int, place: str, captions: str = "all", questions: bool = True
) -> Sample:
    texts: tuple[str, ...] = ()
    if captions != "none":
        texts = (caption(scene),) if captions == "whole" else all_captions(scene)
    found = all_questions(scene) if questions else ()
    return Sample(
        partial(draw, scene, size),
        texts,
        tuple(Question(one.text, (one.answer,), one.kind) for one in found),
        place,
        scene,
    )


def plain_scenes(
    count: int,
    *,
    split: str = "train",
    seed: int = 0,
    size: int = 64,
    objects: tuple[int, int] = (1, 5),
    sizes: Sequence[str] = (),
    textures: bool = True,
    signs: bool = True,
) -> Dataset:
    """`count` scenes of a split without texts. Images are drawn when they are asked for.

    Args:
        sizes: of the things; of all, where none is named.
        textures, signs: whether scenes may have them.

    Raises:
        BedstoneError: a number of objects outside 1 to 5, or no such split or size.
    """
    rows = []
    for number in range(count):
        scene = make_scene(seed * APART + number, split=split, objects=objects, sizes=sizes)
        scene = simplified(scene, textures=textures, signs=signs)
        image, place = partial(draw, scene, size), f"{split} scene {number}"
        rows.append(Sample(image, place=place, scene=scene))
    return Dataset(rows, NAME, fields=())


def simplified(scene: Scene, *, textures: bool, signs: bool) -> Scene:
    """A scene without the textures and the sign that it isn't to have."""
    scene = scene if signs else replace(scene, sign=None)
    return scene if textures else without_textures(scene)


def heldout_scenes(fields: Sequence[str], split: str) -> Dataset:
    """The held-out scenes of a split, read for some fields; see `data.open`."""
    if "questions" in fields:
        return heldout_image_text_scenes(split)
    return heldout_scene_pairs(split) if fields else plain_scenes(MEASURED, split=split)


# Scenes as text without images, which a GPT is pretrained on before it is given images.
#
# Three kinds of documents: captions; questions with answers; and captions that name all objects of
# a scene, followed by its questions. Held-out combinations don't occur.

SCENES = 20_000
_SEED = 7 * 10**9  # other scenes than those that image-text training sees


@functools.lru_cache(maxsize=1)  # a run reads them several times
def scene_texts(count: int = SCENES) -> tuple[Piece, ...]:
    """The texts of `count` scenes, those of one side by side."""
    return tuple(_texts(count))


def _texts(count: int) -> Iterator[Piece]:
    for number in range(count):
        scene = make_scene(_SEED + number)
        key = f"scene {number}"
        captions = [CAPTION + answer_text(text) for text in all_captions(scene)]
        answered = [
            question_text(one.text) + answer_text(one.answer) for one in all_questions(scene)
        ]
        yield from (Piece(text, key=key) for text in (*captions[:3], *answered))
        yield Piece("\n".join((captions[0], *answered)), key=key)
