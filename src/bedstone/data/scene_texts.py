"""The text of the built-in data `scenes`, without pictures: what a GPT reads before it sees.

Three kinds of documents: captions; questions with answers; and captions that name all things of a
scene with its questions behind them, by which answers are learnt from what is said. Only scenes to
learn from speak here: what is held out stays so.
"""

import functools
from collections.abc import Iterator

from bedstone.data import scenes
from bedstone.data.readers import Piece
from bedstone.data.told_prompts import CAPTION, question_text, said_text

SCENES = 20_000
_SEED = 7 * 10**9  # apart from the scenes that are seen in training


@functools.lru_cache(maxsize=1)  # a run reads them several times
def scene_texts(count: int = SCENES) -> tuple[Piece, ...]:
    """The texts of `count` scenes, those of one side by side."""
    return tuple(_texts(count))


def _texts(count: int) -> Iterator[Piece]:
    for number in range(count):
        scene = scenes.make_scene(_SEED + number)
        key = f"scene {number}"
        captions = [CAPTION + said_text(text) for text in scenes.captions(scene)]
        asked = [question_text(one.text) + said_text(one.answer) for one in scenes.questions(scene)]
        yield from (Piece(text, key=key) for text in (*captions[:3], *asked))
        yield Piece("\n".join((captions[0], *asked)), key=key)
