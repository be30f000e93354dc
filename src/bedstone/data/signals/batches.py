"""Batches of signals with their conditions, some of which are dropped or mirrored at random.

Shapes: B signals, C channels, S sides, T tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bedstone.data.images.augment import SIDES, facts_in
from bedstone.data.signals.signals import (
    Condition,
    Prompts,
    Signals,
    class_condition,
    text_condition,
)
from bedstone.data.stream import Batch, Stream
from bedstone.data.text.packing import Encode, KnownTexts


@dataclass(frozen=True)
class SignalBatch(Batch):
    """A batch of signals.

    Attributes:
        signals: (B, C, *S) float32, of about -1 to 1.
        condition: of each row; None without conditions.
        null: the empty condition, of one row.
        drop: (B,) bool, the rows that have `null` in the place of their own condition.
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

    unit: ClassVar[str] = "signals"
    by_row = ("signals", "drop", "rows", "places")

    @property
    def items(self) -> int:
        return len(self.signals)

    @property
    def target_count(self) -> int:
        return self.items

    def holds(self) -> str:
        return f"{len(self.signals)} signals"

    def pick(self, rows: np.ndarray) -> "SignalBatch":
        condition = None if self.condition is None else self.condition.pick(rows.tolist())
        return replace(super().pick(rows), condition=condition)

    def conditions(self, network: Any = None) -> dict[str, Tensor]:
        """The network's conditioning arguments: `classes`, or `ids` and `keep`.

        Dropped rows have the class that is none, or the empty text.
        """
        if self.condition is None or self.null is None:
            return {}
        return self.condition.but(self.drop, self.null).arguments()


class SignalTexts:
    """The captions of signals, each distinct one tokenised once.

    Args:
        encode: texts to token ids, as the text encoder reads them.
        nothing: the ids of the empty text.
        context: tokens of a text at most; longer ones are cut.
        pad: the id that fills shorter texts up.

    Attributes:
        cut: how many texts were longer.
        longest: tokens of the longest, to which all are filled up: batches of one shape.
        facts: what facts each text states.
        null: the empty condition.
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
        self.facts = facts_in(self.known.numbers)
        nothing = list(nothing)[:context]
        self.longest = max([len(nothing), *(len(self.known[i]) for i in range(len(self.known)))])
        self.null = text_condition([nothing], self.longest, pad)

    def draw(
        self, rows: np.ndarray, random: np.random.Generator | None
    ) -> tuple[Condition, np.ndarray]:
        """A caption of each row, the first without `random`; and the facts that each states."""
        texts = [self.numbers[row] for row in rows]
        chosen = [t[random.integers(len(t))] if random is not None else t[0] for t in texts]
        found = text_condition([self.known[i].tolist() for i in chosen], self.longest, self.pad)
        return found, self.facts[np.array(chosen)]


@dataclass(frozen=True)
class SignalCollate:
    """Makes a `SignalBatch` of some signals.

    Attributes:
        texts: the signals' captions, for conditions of text; else conditions are their classes, if
            they have any.
        drop: share of rows whose condition is dropped.
        flip: share of signals mirrored along their last side; none whose text or class
            names a side is.
        drop_text: of signals with embeddings, share of rows whose text alone is dropped; `drop` is
            then of the embedding alone.
    """

    signals: Signals
    texts: SignalTexts | None = None
    drop: float = 0.1
    flip: float = 0.0
    drop_text: float = 0.0

    def __call__(self, rows: np.ndarray, random: np.random.Generator, number: int) -> SignalBatch:
        drop = torch.from_numpy(random.random(len(rows)) < self.drop)
        mirrored = random.random(len(rows)) < self.flip
        condition, null, facts = _condition(self.signals, self.texts, rows, random)
        if condition is not None and null is not None and condition.embedding is not None:
            silent = torch.from_numpy(random.random(len(rows)) < self.drop_text)
            condition, drop = dropped_apart(condition, null, drop, silent), torch.zeros_like(drop)
        batch = _batch(self.signals, rows, condition, null, drop, number)
        chosen = np.flatnonzero(mirrored & (facts & SIDES == 0))
        if len(chosen):
            for values in (batch.signals, condition.beside if condition is not None else None):
                if values is not None:
                    values[chosen] = values[chosen].flip(-1)
        return batch


def signal_stream(
    signals: Signals,
    batch_size: int,
    *,
    texts: SignalTexts | None = None,
    drop: float = 0.1,
    flip: float = 0.0,
    drop_text: float = 0.0,
    seed: int = 0,
    workers: int = 1,
) -> Stream[SignalBatch]:
    """The endless stream of `SignalBatch`; see `SignalCollate`."""
    return Stream(
        len(signals),
        SignalCollate(signals, texts, drop, flip, drop_text),
        batch_size,
        seed=seed,
        workers=workers,
        identity={
            "rows": len(signals),
            "batch_size": min(batch_size, len(signals)),
            "drop": drop,
            "flip": flip,
            **({"drop_text": drop_text} if drop_text else {}),
        },
    )


def dropped_apart(condition: Condition, null: Condition, drop: Tensor, silent: Tensor) -> Condition:
    """A condition without the embeddings of the rows `drop` and the texts of the rows `silent`,
    both (B,) bool: independent of one another (Ramesh et al., 2022, section 2.1)."""
    return replace(condition.but(silent, null), embedding=condition.but(drop, null).embedding)


def in_batches(
    signals: Signals, batch_size: int, texts: SignalTexts | None = None, most: int = 0
) -> Iterator[SignalBatch]:
    """Signals in their order, at most `most`, not mirrored, with the first of their texts."""
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
    """The rows' condition, the empty condition, and the facts that their texts state."""
    if texts is not None:
        condition, facts = texts.draw(rows, random)
        if signals.embeddings is None:
            return condition, texts.null, facts
        made = torch.from_numpy(signals.embeddings[rows])
        null = replace(texts.null, embedding=torch.zeros_like(made[:1]))
        return replace(condition, embedding=made), null, facts
    if signals.beside is not None:
        made = signals.beside(signals.read(rows), random)
        none = Condition(beside=torch.zeros_like(made[:1]))
        return Condition(beside=made), none, np.zeros(len(rows), np.int64)
    if signals.classes is None:
        return None, None, np.zeros(len(rows), np.int64)
    count, classes = len(signals.names), signals.classes[rows]
    facts = facts_in(signals.names)[classes]
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
    """The captions of signals as tokens; None without prompts."""
    if prompts is None:
        return None
    return SignalTexts(
        signals, prompts.encode, prompts.nothing, context=prompts.context, pad=prompts.pad
    )
