"""Do pictures show what was asked for? The CLIP score (Hessel et al., 2021).

2.5 max(cos, 0) of a picture's and its text's vectors, by a CLIP that is named beside the figure:
scores of different CLIPs can't be compared. Small CLIPs give high cosines to anything, so the same
pictures are scored with each other's texts too.

Shapes: N pictures, E width of the joint space.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bedstone.errors import BedstoneError

SCALE = 2.5


class Compares(Protocol):
    """What makes vectors of length 1 of pictures and of texts, as `tasks.PictureEngine` does."""

    @property
    def name(self) -> str: ...

    def images(self, pictures: Iterable[Any]) -> np.ndarray: ...

    def texts(self, texts: Sequence[str]) -> np.ndarray: ...


@dataclass(frozen=True)
class ClipScore:
    """A CLIP score.

    Attributes:
        mean: over the pictures.
        others: the mean with texts that other pictures were asked for by; nan where all are alike.
        first: the share of pictures that are nearer to their own text than to each of the other
            texts.
        scores: (N,) of each picture.
        clip: the name of what compared.
    """

    mean: float
    others: float
    first: float
    scores: np.ndarray
    clip: str


def clip_score(clip: Compares, pictures: Iterable[Any], texts: Sequence[str]) -> ClipScore:
    """The score of each picture with its own text.

    Args:
        clip: such as `tasks.picture_engine.PictureEngine`.
        pictures: paths, bytes, arrays (H, W, 3) uint8 or Pillow's images.

    Raises:
        BedstoneError: there are none, or not as many pictures as texts.
    """
    shown, kinds = clip.images(pictures), list(dict.fromkeys(texts))
    if not texts or len(shown) != len(texts):
        raise BedstoneError(
            f"clip score: {len(shown)} pictures and {len(texts)} texts were given; expected one "
            "text for each picture."
        )
    places = {text: number for number, text in enumerate(kinds)}
    own = np.array([places[text] for text in texts])
    cosines = shown @ clip.texts(kinds).T  # (N, texts that differ)
    rows = np.arange(len(texts))
    scores = SCALE * cosines.clip(0)
    mine = scores[rows, own].copy()
    scores[rows, own] = np.nan
    return ClipScore(
        mean=float(mine.mean()),
        others=float(np.nanmean(scores)) if len(kinds) > 1 else float("nan"),
        first=float((cosines.argmax(1) == own).mean()),
        scores=mine,
        clip=clip.name,
    )
