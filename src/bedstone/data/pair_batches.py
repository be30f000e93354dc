"""Batches of pictures with texts: endless, shuffled by a seed, exactly resumable, made ahead.

Which of a picture's captions a batch has, which hard negatives, and how it is augmented is decided
by the seed and the batch's place in the stream alone.

Shapes: B pictures, n texts (the pictures' own and hard negatives), N tokens, H x W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.data.fact_augment import FactAugment
from bedstone.data.known_texts import Encode, KnownTexts
from bedstone.data.packing import Packed, lay
from bedstone.data.pairs import PairRows
from bedstone.data.picture_stream import PictureStream
from bedstone.data.pictures import Pictures


@dataclass(frozen=True)
class PairBatch:
    """What one training step sees of pairs.

    Attributes:
        pixels: (B, 3, H, W) fp32, normalised.
        rows: n texts laid end to end, N tokens; the first B are the pictures' own.
        groups: (n,) int64, which text each is: equal numbers are equal texts, or captions made
            from one label.
        extra: how many hard negatives stand after the B.
        places: where each picture is from.
        number: which batch of the stream this is, from 0.
    """

    pixels: Tensor
    rows: Packed
    groups: Tensor
    extra: int
    places: list[str]
    number: int

    @property
    def ids(self) -> Tensor:
        """(1, N) token ids."""
        return self.rows.ids

    @property
    def target_count(self) -> int:
        """Pictures that are to find their text."""
        return len(self.pixels)

    def to(self, device: torch.device | str) -> "PairBatch":
        """The same batch with its tensors there."""
        return replace(
            self,
            pixels=self.pixels.to(device, non_blocking=True),
            rows=self.rows.to(device),
            groups=self.groups.to(device, non_blocking=True),
        )

    def describe(self) -> str:
        """Which pictures are in it."""
        places = ", ".join(self.places)
        return (
            f"batch {self.number}: {len(self.pixels)} pictures, {self.extra} more texts: {places}"
        )


class PairTexts:
    """The texts of pairs, tokenised once, each distinct one once.

    Args:
        encode: texts to token ids, as the network reads them.
    """

    def __init__(self, rows: PairRows, encode: Encode) -> None:
        self.known = KnownTexts()
        self.captions = [self.known.add(pair.captions) for pair in rows]
        self.negatives = [self.known.add(pair.negatives) for pair in rows]
        self.known.finish(encode)
        self.group, self.facts = np.arange(len(self.known)), self.known.facts
        for pair, own in zip(rows, self.captions, strict=True):
            if pair.made:  # "a photo of a cat" is no wrong answer to "a picture of a cat"
                self.group[own] = self.group[own[0]]
                self.facts[own] = 0  # what keeps a class as it is, the recipe knows

    def __len__(self) -> int:
        return len(self.known)

    def pack(self, chosen: Sequence[int] | np.ndarray) -> Packed:
        """Texts by their numbers, laid end to end."""
        texts = [self.known[i] for i in chosen]
        ids = np.concatenate(texts).astype(np.int64)
        return lay(ids, np.zeros_like(ids), np.array([len(text) for text in texts]))

    def draw(
        self, rows: np.ndarray, random: np.random.Generator, negatives: int
    ) -> tuple[Packed, Tensor, np.ndarray]:
        """A caption of each row, and up to `negatives` hard ones of each after them.

        Returns:
            The texts, their groups (n,), and what facts the rows' own captions state (B,).
        """
        own = [self.captions[i][random.integers(len(self.captions[i]))] for i in rows]
        hard: list[int] = []
        if negatives:
            for i in rows:
                wrong = self.negatives[i]
                hard += random.permutation(wrong)[:negatives].tolist() if wrong else []
        chosen = np.array([*own, *hard])
        return self.pack(chosen), torch.from_numpy(self.group[chosen]), self.facts[own]


class PairBatches(PictureStream[PairBatch]):
    """An endless stream of `PairBatch`; see `PictureStream`.

    How hard a batch is depends on its size, so all have the same.

    Args:
        pictures: of the rows.
        texts: of the same rows.
        normalise: (B, H, W, 3) uint8 to (B, 3, H, W) fp32.
        augment: how pictures are changed, where the caption drawn allows it.
        negatives: hard negatives drawn a picture, at most.
    """

    def __init__(
        self,
        pictures: Pictures,
        texts: PairTexts,
        batch_size: int,
        normalise: Callable[[Tensor], Tensor],
        *,
        augment: FactAugment | None = None,
        negatives: int = 0,
        seed: int = 0,
        workers: int = 1,
        ahead: int = 4,
    ) -> None:
        super().__init__(
            pictures, batch_size, augment=augment, seed=seed, workers=workers, ahead=ahead
        )
        self.texts, self.normalise, self.negatives = texts, normalise, negatives

    def identity(self) -> dict[str, Any]:
        rows, tokens = len(self.pictures.readable), len(self.texts.known.ids)
        return {"seed": self.seed, "rows": rows, "texts": len(self.texts), "tokens": tokens}

    def make(self, rows: np.ndarray, random: np.random.Generator, number: int) -> PairBatch:
        rows, pixels = self.pictures.read(rows)
        packed, groups, facts = self.texts.draw(rows, random, self.negatives)
        shown = self.augmented(pixels, random, facts)
        extra = len(groups) - len(rows)
        places = [self.pictures.rows[int(i)].place for i in rows]
        return PairBatch(self.normalise(shown), packed, groups, extra, places, number)
