"""image-text-matching: the probability that a text describes an image; re-ranking by it.

Shapes: P images, n = m P texts (row i of image i // m), T tokens, E joint width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bedstone.checkpoints.model import Model
from bedstone.data.images.image_text import padded
from bedstone.errors import BedstoneError
from bedstone.nn.layers import normalise
from bedstone.runtime import check_finite
from bedstone.tasks.image_text.engine import (
    ImageTextTask,
    by_count,
    image_of,
    matches,
    some_at_a_time,
    texts_of,
)
from bedstone.tasks.images.engine import ImageOptions, LabelledQuery

BATCH = 256  # pairs of an image and a text that are read at a time


@dataclass(frozen=True)
class MatchOptions(ImageOptions):
    """Options of image-text-matching.

    Attributes:
        text: what images that come without a text are compared with; or a list.
        truncation: cut a text that is too long, and say so.
    """

    text: str | Sequence[str] | None = None
    truncation: bool | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text is not None and not isinstance(self.text, str):
            object.__setattr__(self, "text", texts_of(self.text, "text"))


@dataclass(frozen=True)
class Compared(LabelledQuery):
    """An image and the texts it is compared with.

    Attributes:
        texts: one or several, and their ids as they are read.
        several: whether a list was given.
    """

    texts: tuple[str, ...] = ()
    ids: tuple[tuple[int, ...], ...] = ()
    several: bool = False


class ImageTextMatching(ImageTextTask):
    """An image and a text -> {"score", "similarity"}; of a list [{"text", ...}], best first.

    The score is the probability that they belong together, by a network that reads the text with
    the image; the similarity is the cosine of the two, each read alone.
    """

    name = "image-text-matching"
    fields = ("image", "captions")
    metric = "matching"
    asks = "a network that matches texts with pictures (BlipForImageTextRetrieval)"
    settings = MatchOptions
    keys = ("image", "text")

    @classmethod
    def fits(cls, model: Model) -> bool:
        return matches(model)

    def __call__(self, inputs: Any = None, text: Any = None, **options: Any) -> Any:
        if text is not None:
            options["text"] = text
        return super().__call__(image_of(inputs, options), **options)

    def prepare(self, value: Any, options: MatchOptions) -> Compared:
        query = super().prepare(value, options)
        own = value if isinstance(value, dict) else {}
        text = options.text if own.get("text") is None else own["text"]
        if text is None:
            raise BedstoneError(
                'text: none was given; say what the picture is compared with: text="a red car".'
            )
        several = not isinstance(text, str)
        texts = texts_of(text, "text") if several else (str(text),)
        names = [f"text[{number}]" for number in range(len(texts))] if several else ["text"]
        form = self.engine.form
        ids = tuple(
            tuple(form.framed(self.cut(one, form.question, form.room, what, options)))
            for one, what in zip(texts, names, strict=True)
        )
        return Compared(query.image, texts=texts, ids=ids, several=several)

    def say(
        self, memory: Tensor, rows: Sequence[Sequence[Compared]], options: MatchOptions
    ) -> list[list[Any]]:
        pairs = [[ids for row in own for ids in row.ids] for own in rows]
        results: list[list[Any]] = [[] for _ in rows]
        vectors = normalise(self.engine.network.image_vectors(memory).float())  # (P, E)
        for places, states, read in by_count(memory, pairs):
            each = len(read) // len(places)
            alone = self._alone(read)  # (n, E)
            cosines = (alone.view(len(places), each, -1) * vectors[places][:, None]).sum(-1)
            chances = self._together(read, states, each)
            found = list(zip(chances, cosines.flatten().tolist(), strict=True))
            for number, place in enumerate(places):
                mine = iter(found[number * each : (number + 1) * each])
                results[place] = [[next(mine) for _ in row.texts] for row in rows[place]]
        return results

    def finish(self, row: Any, output: Any, options: MatchOptions) -> Any:
        results = [dict(zip(("score", "similarity"), one, strict=True)) for one in output]
        if not row.several:
            return results[0]
        both = [{"text": text} | one for text, one in zip(row.texts, results, strict=True)]
        return sorted(both, key=lambda one: -one["score"])

    def _alone(self, read: Sequence[tuple[int, ...]]) -> Tensor:
        """Vectors of texts read without an image, (n, E); of equal texts one is read."""
        distinct = list(dict.fromkeys(read))
        parts = []
        for part in some_at_a_time(distinct):
            ids, keep = self._padded(part)
            parts.append(normalise(self.engine.network.text_vectors(ids, keep).float()))
        places = {ids: place for place, ids in enumerate(distinct)}
        found: Tensor = torch.cat(parts)[[places[ids] for ids in read]]
        return found

    def _together(self, read: Sequence[tuple[int, ...]], states: Tensor, each: int) -> list[float]:
        """The probability that each text belongs to its image, of (P, S, D) and `each` texts."""
        chances: list[float] = []
        for at, part in _blocks(len(states), each):
            # whole images with all their texts, or one image with some of them
            rows = [ids for place in at for ids in read[place * each :][part]]
            ids, keep = self._padded(rows)
            logits = self.engine.network.match_logits(ids, keep, states[at.start : at.stop])
            check_finite(logits, "the matching head's outputs")
            chances += logits.float().softmax(-1)[:, 1].tolist()  # no, yes
        return chances

    def _padded(self, read: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        ids, keep = padded(read, self.engine.words.pad)
        return ids.to(self.engine.device), keep.to(self.engine.device)


def _blocks(images: int, each: int) -> Iterator[tuple[range, slice]]:
    """Images, and which of their `each` texts, so that few are read together."""
    several = max(BATCH // each, 1)
    for first in range(0, images, several):
        for start in range(0, each, BATCH):
            last = min(first + several, images)
            yield range(first, last), slice(start, min(start + BATCH, each))


def rerank(
    task: ImageTextMatching, words: str, images: Sequence[Any]
) -> list[dict[str, float] | None]:
    """The match of each image with a text, {"score", "similarity"}; None if it can't be read.

    Raises:
        BedstoneError: the words can't be read.
    """
    found: list[dict[str, float] | None] = [None] * len(images)
    there = [number for number, image in enumerate(images) if image is not None]
    rows = ({"image": images[number], "text": words} for number in there)
    for number, results in task.each(rows, lambda number, error: None):
        found[there[number]] = results
    return found
