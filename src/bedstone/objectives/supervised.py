"""Losses of labelled rows: classes, numbers, tags, spans, completions.

Each takes rows laid end to end and the states that the head reads, (M, D) of them, and gives a sum
of losses beside a count, so that a row weighs the same whatever stands beside it, however a step is
split, and whichever side padding would have been on: there is none.

Shapes: N tokens of the batch, M read states, n rows, D width, L labels.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bedstone.models.heads import Head, HeadConfig, PackedRows
from bedstone.objectives.tokens import token_loss


class Rows(PackedRows, Protocol):
    @property
    def lengths(self) -> tuple[int, ...]: ...


class LabelledBatch(Protocol):
    """What these objectives read of a batch.

    Attributes:
        rows: n rows laid end to end.
        targets: (M,) or (M, L), as the problem has them; spans (n, 2).
        weights: (M,) what each target counts for; None says 1 each.
        target_count: how many targets there are, whatever they weigh.
    """

    @property
    def rows(self) -> Rows: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def weights(self) -> Tensor | None: ...
    @property
    def target_count(self) -> float: ...
    def states(self, network: Any) -> Tensor:
        """(M, D): what the network's head is handed."""
        ...


def scores(network: Any, batch: LabelledBatch) -> Tensor:
    """What the head gives for each state it reads, (M, L), in fp32."""
    return network.head(batch.states(network)).float()


def class_loss(logits: Tensor, batch: LabelledBatch) -> Tensor:
    """Cross-entropy of one label of several, for rows or for tokens, (M,)."""
    return F.cross_entropy(logits, batch.targets, reduction="none")


def multi_label_loss(logits: Tensor, batch: LabelledBatch) -> Tensor:
    """Binary cross-entropy of each label by itself, averaged over a row's labels, (M,)."""
    targets = batch.targets.float()
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1)


def regression_loss(logits: Tensor, batch: LabelledBatch) -> Tensor:
    """Squared error, averaged over a row's figures, (M,)."""
    return (logits - batch.targets.float()).square().mean(-1)


def span_loss(logits: Tensor, batch: LabelledBatch) -> Tensor:
    """Mean of two cross-entropies over a row's tokens: where the answer starts and ends, (n,).

    `targets` are places within the row, (n, 2); the first token stands for "no answer" (BERT,
    Devlin et al., 2019, section 4.3).
    """
    parts = list(logits.split(batch.rows.lengths))  # (T, 2) each
    padded = pad_sequence(parts, batch_first=True, padding_value=float("-inf"))  # (n, T, 2)
    return F.cross_entropy(padded, batch.targets, reduction="none").mean(-1)


def completion_loss(network: Any, batch: LabelledBatch) -> tuple[Tensor, float]:
    """Cross-entropy of the words at the places that are read: completions, masked words."""
    states = batch.states(network)
    head = network.head
    if isinstance(head, Head):
        states, head = head.prepare(states), head.out
    loss, count = token_loss(states, head, batch.targets)
    return loss, count


# By the problem of a sequence head, else by the kind of head: see `models.heads.HeadConfig`.
LOSSES: dict[str, Callable[[Tensor, LabelledBatch], Tensor]] = {
    "single": class_loss,
    "multi": multi_label_loss,
    "regression": regression_loss,
    "tokens": class_loss,
    "spans": span_loss,
}


def loss_of_scores(head: HeadConfig, logits: Tensor, batch: LabelledBatch) -> tuple[Tensor, float]:
    """The sum of a head's losses, each times its weight, and how many there are."""
    losses = LOSSES[head.measured_as if head.kind == "sequence" else head.kind](logits, batch)
    if batch.weights is None:
        return losses.sum(), batch.target_count
    return torch.dot(losses, batch.weights.to(losses)), batch.target_count


def label_loss(network: Any, batch: LabelledBatch) -> tuple[Tensor, float]:
    """The objective of rows with labels, tags, numbers or answers."""
    return loss_of_scores(network.config.head, scores(network, batch), batch)


def objective_of(head: HeadConfig) -> Callable[[Any, Any], tuple[Tensor, float]]:
    """The objective that a head learns by."""
    return completion_loss if head.kind == "language" else label_loss
