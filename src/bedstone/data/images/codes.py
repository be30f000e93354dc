"""Images as codes, with captions: what a DALL-E learns from.

An image is encoded once, before training; a caption of it is drawn each time it is read.

Shapes: B rows, t tokens of the longest text, N = h x w codes of an image.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bedstone.data.signals.batches import SignalTexts
from bedstone.data.stream import Batch, Stream

# Of rows, places and chance: which codes are hidden, and which of them are learnt.
Hides = Callable[[int, int, np.random.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class CodeBatch(Batch):
    """A batch of images with a text each.

    Attributes:
        ids: words, (B, t) int64.
        keep: which of them are words, (B, t) bool; of a row that is learnt without text, none.
        codes: (B, N) int64, row by row.
        hidden: the codes that aren't shown, (B, N) bool; None where each is predicted from those
            before it.
        learnt: of the hidden codes those that are to be predicted, (B, N) bool.
        places: where each is from.
        number: which batch of the stream this is, from 0.
    """

    ids: Tensor
    keep: Tensor
    codes: Tensor
    hidden: Tensor | None
    learnt: Tensor | None
    places: list[str]
    number: int

    unit: ClassVar[str] = "images"
    by_row = ("codes", "ids", "keep", "hidden", "learnt", "places")

    @property
    def items(self) -> int:
        return len(self.codes)

    @property
    def target_count(self) -> int:
        return self.items


@dataclass(frozen=True)
class CodeRows:
    """Images as codes.

    Attributes:
        codes: (rows, h, w) uint16.
        texts: their captions.
        places: where each is from.
        hides: of rows, places and chance, which codes are hidden and which of these are learnt,
            (rows, places) bool each; None for a network that predicts each from those before it.
    """

    codes: np.ndarray
    texts: SignalTexts
    places: list[str]
    hides: Hides | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def batch(
        self,
        rows: np.ndarray,
        number: int,
        chance: np.random.Generator,
        *,
        drop: float = 0.0,
        first: bool = False,
    ) -> CodeBatch:
        """The batch of some rows.

        Args:
            drop: share of rows that are learnt without text.
            first: whether each has the first of its captions, or a drawn one.
        """
        silent = torch.from_numpy(chance.random(len(rows)) < drop)
        condition, _ = self.texts.draw(rows, None if first else chance)
        assert condition.ids is not None and condition.keep is not None
        codes = torch.from_numpy(self.codes[rows].reshape(len(rows), -1).astype(np.int64))
        places = codes.shape[1]
        hidden, learnt = self.hides(len(rows), places, chance) if self.hides else (None, None)
        keep = condition.keep & ~silent[:, None]
        where = [self.places[row] for row in rows]
        return CodeBatch(condition.ids, keep, codes, hidden, learnt, where, number)

    def stream(
        self, batch_size: int, *, drop: float, seed: int = 0, workers: int = 1
    ) -> Stream[CodeBatch]:
        """The endless stream of batches."""

        def collate(rows: np.ndarray, chance: np.random.Generator, number: int) -> CodeBatch:
            return self.batch(rows, number, chance, drop=drop)

        identity = {"rows": len(self), "batch_size": min(batch_size, len(self)), "drop": drop}
        return Stream(len(self), collate, batch_size, seed=seed, workers=workers, identity=identity)

    def in_order(self, batch_size: int, most: int = 0) -> Iterator[CodeBatch]:
        """At most `most` rows in their order, each with its first caption."""
        chance = np.random.default_rng(0)  # hides the same codes each time
        count = min(most or len(self), len(self))
        for number, start in enumerate(range(0, count, batch_size)):
            rows = np.arange(start, min(start + batch_size, count))
            yield self.batch(rows, number, chance, first=True)


def hidden_codes(rows: int, places: int, chance: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Codes hidden at random, all of them learnt: at least one of a row, and a share of them whose
    distribution is that of the cosine by which they become known (Chang et al., 2022, 3.2)."""
    share = np.cos(np.pi / 2 * chance.random(rows))
    count = np.ceil(share * places).clip(1, places)
    order = chance.random((rows, places)).argsort(1).argsort(1)
    hidden = torch.from_numpy(order < count[:, None])
    return hidden, hidden


def hidden_scales(
    scales: Tensor, rows: int, places: int, chance: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Codes hidden from a scale on, which each row draws; that scale is learnt.

    Args:
        scales: of each place, (places,), from 0.
    """
    first = torch.from_numpy(chance.integers(0, int(scales.max()) + 1, (rows, 1)))
    return scales >= first, scales == first
