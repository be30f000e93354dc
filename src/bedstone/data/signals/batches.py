"""Batches of signals to learn from: endless, shuffled by a seed, exactly resumable, made ahead.

Which of a signal's texts a batch has, which rows are learnt without their condition, and which are
mirrored is decided by the seed and the batch's place in the stream alone.

Shapes: B signals, C channels, S sides, T tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.data.images.augment import SIDES, facts_of
from bedstone.data.signals.signals import (
    Condition,
    Prompts,
    Signals,
    class_condition,
    text_condition,
)
from bedstone.data.stream import Stream
from bedstone.data.text.packing import Encode, KnownTexts


@dataclass(frozen=True)
class SignalBatch:
    """What one training step sees of signals.

    Attributes:
        signals: (B, C, *S) float32, of about -1 to 1.
        condition: what each is made from; None where nothing is told.
        null: the condition of one row that says nothing.
        drop: (B,) bool, the rows that are learnt with `null` in the place of their own.
        rows: (B,) int64, their numbers in the set.
        places: where each is from.
        number: which batch of the stream this is, from 0.
    """

    signals: Tensor
    condition: Condition | None
    null: Condition | None
    drop: Tensor
    rows: Tensor
    places: list[str]
    number: int

    @property
    def ids(self) -> Tensor:
        """(B,): a signal counts as one of what a run reads."""
        return self.rows

    @property
    def target_count(self) -> int:
        return len(self.signals)

    def conditions(self, network: Any = None) -> dict[str, Tensor]:
        """What a network is called with beside signals and times: `classes`, or `ids` and `keep`.

        Dropped rows have the class that is none, or the text that says nothing.
        """
        if self.condition is None or self.null is None:
            return {}
        return self.condition.but(self.drop, self.null).arguments()

    def to(self, device: torch.device | str) -> "SignalBatch":
        """The same batch with its tensors there."""
        return replace(
            self,
            signals=self.signals.to(device, non_blocking=True),
            condition=self.condition and self.condition.to(device),
            null=self.null and self.null.to(device),
            drop=self.drop.to(device, non_blocking=True),
            rows=self.rows.to(device, non_blocking=True),
        )

    def describe(self) -> str:
        """Which signals are in it."""
        return f"batch {self.number}: {len(self.signals)} signals: {', '.join(self.places)}"


class SignalTexts:
    """The captions of signals, tokenised once, each distinct one once.

    Args:
        encode: texts to token ids, as the text encoder reads them.
        nothing: the ids of the text that says nothing.
        context: tokens of a text at most; longer ones are cut.
        pad: the id that fills shorter texts up.

    Attributes:
        cut: how many texts were longer.
        longest: tokens of the longest, to which all are filled up: batches of one shape.
        null: the condition that says nothing.
    """

    def __init__(
        self,
        signals: Signals,
        encode: Encode,
        nothing: Sequence[int],
        *,
        context: int = 77,
        pad: int = 0,
    ) -> None:
        self.known, self.pad = KnownTexts(), pad
        self.numbers = [self.known.add(texts) for texts in signals.captions or ()]
        self.cut = self.known.finish(encode, context)
        nothing = list(nothing)[:context]
        self.longest = max([len(nothing), *(len(self.known[i]) for i in range(len(self.known)))])
        self.null = text_condition([nothing], self.longest, pad)

    def draw(
        self, rows: np.ndarray, random: np.random.Generator | None
    ) -> tuple[Condition, np.ndarray]:
        """A caption of each row, the first where nothing is drawn; and what facts each states."""
        texts = [self.numbers[row] for row in rows]
        chosen = [t[random.integers(len(t))] if random is not None else t[0] for t in texts]
        found = text_condition([self.known[i].tolist() for i in chosen], self.longest, self.pad)
        return found, self.known.facts[np.array(chosen)]


class SignalBatches(Stream[SignalBatch]):
    """An endless stream of `SignalBatch`; see `Stream`.

    Args:
        texts: the signals' captions, where they are made from words; else from their classes, if
            they have any.
        drop: share of rows that are learnt without their condition.
        flip: share of signals mirrored along their last side; none whose text or class
            names a side is.
    """

    def __init__(
        self,
        signals: Signals,
        batch_size: int,
        *,
        texts: SignalTexts | None = None,
        drop: float = 0.1,
        flip: float = 0.0,
        seed: int = 0,
        workers: int = 1,
        ahead: int = 4,
    ) -> None:
        rows = np.arange(len(signals))
        super().__init__(rows, batch_size, seed=seed, workers=workers, ahead=ahead)
        self.signals, self.texts, self.drop, self.flip = signals, texts, drop, flip

    def identity(self) -> dict[str, Any]:
        told = {"seed": self.seed, "rows": len(self.signals), "batch_size": self.batch_size}
        return {**told, "drop": self.drop, "flip": self.flip}

    def make(self, rows: np.ndarray, random: np.random.Generator, number: int) -> SignalBatch:
        drop = torch.from_numpy(random.random(len(rows)) < self.drop)
        mirrored = random.random(len(rows)) < self.flip
        condition, null, facts = _condition(self.signals, self.texts, rows, random)
        batch = _batch(self.signals, rows, condition, null, drop, number)
        chosen = np.flatnonzero(mirrored & (facts & SIDES == 0))
        if len(chosen):
            batch.signals[chosen] = batch.signals[chosen].flip(-1)
        return batch


def in_batches(
    signals: Signals, batch_size: int, texts: SignalTexts | None = None, most: int = 0
) -> Iterator[SignalBatch]:
    """Signals in their order, at most `most`, as they are and with the first of their texts."""
    count = min(most or len(signals), len(signals))
    for number, first in enumerate(range(0, count, batch_size)):
        rows = np.arange(first, min(first + batch_size, count))
        condition, null, _ = _condition(signals, texts, rows, None)
        whole = torch.zeros(len(rows), dtype=torch.bool)
        yield _batch(signals, rows, condition, null, whole, number)


def _condition(
    signals: Signals,
    texts: SignalTexts | None,
    rows: np.ndarray,
    random: np.random.Generator | None,
) -> tuple[Condition | None, Condition | None, np.ndarray]:
    """What those rows are made from, what says nothing, and the facts that their texts state."""
    if texts is not None:
        condition, facts = texts.draw(rows, random)
        return condition, texts.null, facts
    if signals.classes is None:
        return None, None, np.zeros(len(rows), np.int64)
    count, classes = len(signals.names), signals.classes[rows]
    facts = np.array([facts_of(name) for name in signals.names], np.int64)[classes]
    own = Condition(classes=torch.from_numpy(classes))
    return own, class_condition([count], count), facts


def _batch(
    signals: Signals,
    rows: np.ndarray,
    condition: Condition | None,
    null: Condition | None,
    drop: Tensor,
    number: int,
) -> SignalBatch:
    places = [signals.places[row] for row in rows]
    return SignalBatch(
        signals.read(rows), condition, null, drop, torch.from_numpy(rows), places, number
    )


def texts_of(signals: Signals, prompts: Prompts | None) -> SignalTexts | None:
    """The captions of signals by their tokens; None where no words are read."""
    if prompts is None:
        return None
    return SignalTexts(
        signals, prompts.encode, prompts.nothing, context=prompts.context, pad=prompts.pad
    )
