"""Tokens with their scores to words and entities, by the strategies of version 4's pipeline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

STRATEGIES = ("none", "simple", "first", "average", "max")
Joined = Callable[[Sequence[str]], str]  # names of tokens to their text


@dataclass(frozen=True)
class Piece:
    """A token, or a word that several were joined to.

    Attributes:
        name: as the vocabulary has it.
        scores: (L,) probabilities of the labels.
        score: of `label`.
        start, end: characters in the text.
        index: the token's place in the row.
        word: which word it is of; None where that isn't known.
    """

    name: str
    scores: np.ndarray
    label: str
    score: float
    start: int
    end: int
    index: int
    word: int | None


def words_of(
    pieces: Sequence[Piece], strategy: str, labels: Sequence[str], joined: Joined
) -> list[Piece]:
    """Each word as one piece: labelled by its first token, its surest, or the mean of all.

    Fine-tuning teaches a word's label at its first token, so `first` is as it was learnt.
    """
    parted: list[list[Piece]] = []
    for piece in pieces:
        if parted and piece.word is not None and piece.word == parted[-1][0].word:
            parted[-1].append(piece)
        else:
            parted.append([piece])
    return [_word(parts, strategy, labels, joined) for parts in parted]


def _word(parts: list[Piece], strategy: str, labels: Sequence[str], joined: Joined) -> Piece:
    if strategy == "average":
        scores = np.mean([part.scores for part in parts], axis=0)
    elif strategy == "max":
        scores = max(parts, key=lambda part: part.score).scores
    else:
        scores = parts[0].scores
    best, first = int(scores.argmax()), parts[0]
    name = joined([part.name for part in parts])
    score = float(scores[best])
    return Piece(
        name, scores, labels[best], score, first.start, parts[-1].end, first.index, first.word
    )


def entities_of(pieces: Sequence[Piece], bioes: bool, joined: Joined) -> list[dict[str, Any]]:
    """Neighbours of one type as one entity, their scores averaged.

    Args:
        bioes: whether labels may begin with S-, U-, E- and L- too.
    """
    groups: list[list[Piece]] = []
    kind, closed = "", True
    for piece in pieces:
        prefix, name = _parts(piece.label, bioes)
        if closed or prefix in ("B", "S", "U") or name != kind:
            groups.append([])
        groups[-1].append(piece)
        kind, closed = name, prefix in ("E", "L", "S", "U")
    return [
        {
            "entity_group": group[0].label.split("-", 1)[-1],
            "score": float(np.mean([piece.score for piece in group])),
            "word": joined([piece.name for piece in group]),
            "start": group[0].start,
            "end": group[-1].end,
        }
        for group in groups
    ]


def _parts(label: str, bioes: bool) -> tuple[str, str]:
    prefix, dash, name = label.partition("-")
    known = ("B", "I", "S", "U", "E", "L") if bioes else ("B", "I")
    return (prefix, name) if dash and prefix in known else ("I", label)
