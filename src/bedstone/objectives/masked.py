"""The masked language modelling loss, and next sentence classification.

BERT (Devlin et al., 2019, section 3.1) adds the mean loss of words and the mean loss of pairs. A
mean over a batch is another for each split of a step into micro-batches; so a pair weighs here as
much as a fixed number of words, and the sum is divided by the words of the whole step.

Logits are computed at hidden tokens alone. Shapes: n rows, N tokens, M hidden tokens, D width.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.data.stream import IGNORED
from bedstone.data.text.masked_lm import MaskedBatch
from bedstone.models.heads import Head, PretrainingHeads
from bedstone.objectives.tokens import token_loss
from bedstone.runtime import Precision

CHUNK = 512  # rows of logits that stand at once in evaluation


@dataclass(frozen=True)
class MaskedLoss:
    """(network, batch) to the sum of losses in nats and the number of hidden words.

    Attributes:
        pair_weight: how many words a pair weighs. At the hidden words of an average row, words and
            pairs count alike, as in BERT.
    """

    pair_weight: float = 0.0

    def __call__(self, network: Any, batch: MaskedBatch) -> tuple[Tensor, int]:
        words, pairs = heads(network.head)
        hidden, first = handed(network, batch)
        loss, count = token_loss(words.prepare(hidden), words.out, batch.targets)
        if pairs is not None and batch.pairs is not None and self.pair_weight:
            logits = pairs(first).float()
            pair_loss = F.cross_entropy(logits, batch.pairs, ignore_index=IGNORED, reduction="sum")
            loss = loss + self.pair_weight * pair_loss
        return loss, count


def heads(head: nn.Module) -> tuple[Head, nn.Module | None]:
    """The head of words, and that of pairs where there is one."""
    if isinstance(head, PretrainingHeads):
        return head.words, head.pairs
    if isinstance(head, Head):
        return head, None
    raise TypeError(f"{type(head).__name__} restores no words; give the network a language head")


def handed(network: Any, batch: MaskedBatch) -> tuple[Tensor, Tensor]:
    """The states of hidden tokens (M, D), and of each row's first token (n, D)."""
    first = torch.tensor(batch.rows.starts[:-1], device=batch.read.device)
    both = network.packed_states(batch.rows, torch.cat((batch.read, first)))
    return both[: len(batch.read)], both[len(batch.read) :]


class MaskedScores(NamedTuple):
    """Sums over batches: losses in nats, counts, and how many were told right."""

    word_loss: float = 0.0
    words: int = 0
    words_right: int = 0
    pair_loss: float = 0.0
    pairs: int = 0
    pairs_right: int = 0

    def plus(self, *more: float) -> "MaskedScores":
        return MaskedScores(*(a + b for a, b in zip(self, more, strict=True)))  # type: ignore


def masked_scores(
    network: Any,
    batches: Iterable[MaskedBatch],
    precision: Precision,
    *,
    most_batches: int | None = None,
) -> MaskedScores:
    """How well a network restores words and tells pairs; the network is left in evaluation."""
    total = MaskedScores()
    words, pairs = heads(network.head)
    network.eval()
    with torch.inference_mode(), precision.autocast():
        for batch in islice(batches, most_batches):
            batch = batch.to(precision.device)
            hidden, first = handed(network, batch)
            for states, targets in zip(
                words.prepare(hidden).split(CHUNK), batch.targets.split(CHUNK), strict=True
            ):
                loss, right = _report(words.out(states), targets)
                total = total.plus(loss, len(targets), right, 0.0, 0, 0)
            if pairs is not None and batch.pairs is not None:
                real = batch.pairs != IGNORED
                loss, right = _report(pairs(first)[real], batch.pairs[real])
                total = total.plus(0.0, 0, 0, loss, int(real.sum()), right)
    return total


def _report(logits: Tensor, targets: Tensor) -> tuple[float, int]:
    loss = F.cross_entropy(logits.float(), targets, reduction="sum")
    return loss.item(), int((logits.argmax(-1) == targets).sum())
