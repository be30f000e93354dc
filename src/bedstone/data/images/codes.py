"""Images as codes, with captions: what a DALL-E learns from.

An image is encoded once, before training; a caption of it is drawn each time it is read.

Shapes: B rows, t tokens of the longest text, N = h x w codes of an image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bedstone.data.signals.batches import SignalTexts
from bedstone.data.stream import Batch, Stream


@dataclass(frozen=True)
class CodeBatch(Batch):
    """A batch of images with a text each.

    Attributes:
        ids: words, (B, t) int64.
        keep: which of them are words, (B, t) bool; of a row that is learnt without text, none.
        codes: (B, N) int64, row by row.
        hidden: the codes that are to be predicted from the others, (B, N) bool; None where each is
            from those before it.
        places: where each is from.
        number: which batch of the stream this is, from 0.
    """

    ids: Tensor
    keep: Tensor
    codes: Tensor
    hidden: Tensor | None
    places: list[str]
    number: int

    unit: ClassVar[str] = "images"
    by_row = ("codes", "ids", "keep", "hidden", "places")

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
        hides: whether codes are hidden, for a network that predicts them from the others.
    """

    codes: np.ndarray
    texts: SignalTexts
    places: list[str]
    hides: bool = False

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
        hidden = hidden_codes(len(rows), places, chance) if self.hides else None
        keep = condition.keep & ~silent[:, None]
        where = [self.places[row] for row in rows]
        return CodeBatch(condition.ids, keep, codes, hidden, where, number)

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


def hidden_codes(rows: int, places: int, chance: np.random.Generator) -> Tensor:
    """Which codes are hidden, (rows, places) bool: at least one of a row, and a share of them whose
    distribution is that of the cosine by which they become known (Chang et al., 2022, 3.2)."""
    share = np.cos(np.pi / 2 * chance.random(rows))
    count = np.ceil(share * places).clip(1, places)
    order = chance.random((rows, places)).argsort(1).argsort(1)
    return torch.from_numpy(order < count[:, None])
