"""How a network learns from labelled rows: classes, numbers, tags, spans, completions.

Each takes rows laid end to end and the states that the head reads, (M, D) of them, and gives a sum
of losses beside a count, so that a row weighs the same whatever stands beside it, however a step is
split, and whichever side padding would have been on: there is none.

Shapes: N tokens of the batch, M read states, n rows, D width, L labels.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bedstone.models.heads import Head, PackedRows
from bedstone.objectives.tokens import token_loss


class Rows(PackedRows, Protocol):
    @property
    def lengths(self) -> tuple[int, ...]: ...


class LabelledBatch(Protocol):
    """What these objectives read of a batch.

    Attributes:
        rows: n rows laid end to end.
        read: (M,) places in them whose states the head reads.
        targets: (M,) or (M, L), as the problem has them; spans (n, 2).
        weights: (M,) what each target counts for; None says 1 each.
        target_count: the sum of weights, or how many targets there are.
    """

    @property
    def rows(self) -> Rows: ...
    @property
    def read(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def weights(self) -> Tensor | None: ...
    @property
    def target_count(self) -> float: ...


def scores(network: Any, batch: LabelledBatch) -> Tensor:
    """What the head gives for each state it reads, (M, L), in fp32."""
    states = network.packed_states(batch.rows)
    return network.head(states[batch.read]).float()


def class_loss(network: Any, batch: LabelledBatch) -> tuple[Tensor, float]:
    """Cross-entropy of one label of several, for rows or for tokens."""
    losses = F.cross_entropy(scores(network, batch), batch.targets, reduction="none")  # (M,)
    return _sum(losses, batch), batch.target_count


def multi_label_loss(network: Any, batch: LabelledBatch) -> tuple[Tensor, float]:
    """Binary cross-entropy of each label by itself, averaged over a row's labels."""
    logits = scores(network, batch)
    losses = F.binary_cross_entropy_with_logits(logits, batch.targets.float(), reduction="none")
    return _sum(losses.mean(-1), batch), batch.target_count


def regression_loss(network: Any, batch: LabelledBatch) -> tuple[Tensor, float]:
    """Squared error, averaged over a row's figures."""
    losses = (scores(network, batch) - batch.targets.float()).square()  # (M, L)
    return _sum(losses.mean(-1), batch), batch.target_count


def span_loss(network: Any, batch: LabelledBatch) -> tuple[Tensor, float]:
    """Mean of two cross-entropies over a row's tokens: where the answer starts, where it ends.

    `targets` are places within the row, (n, 2); the first token stands for "no answer" (BERT,
    Devlin et al., 2019, section 4.3).
    """
    parts = scores(network, batch).split(batch.rows.lengths)  # (T, 2) each
    padded = pad_sequence(list(parts), batch_first=True, padding_value=float("-inf"))  # (n, T, 2)
    losses = F.cross_entropy(padded, batch.targets, reduction="none")  # (n, 2)
    return _sum(losses.mean(-1), batch), batch.target_count


def completion_loss(network: Any, batch: LabelledBatch) -> tuple[Tensor, float]:
    """Cross-entropy of the words at the places that are read: completions, masked words."""
    states = network.packed_states(batch.rows)[batch.read]
    head = network.head
    if isinstance(head, Head):
        states, head = head.prepare(states), head.out
    loss, count = token_loss(states, head, batch.targets)
    return loss, count


def _sum(losses: Tensor, batch: LabelledBatch) -> Tensor:
    return losses.sum() if batch.weights is None else torch.dot(losses, batch.weights.to(losses))


# By the problem that a head has: see `models.heads.HeadConfig`.
BY_PROBLEM = {"single": class_loss, "multi": multi_label_loss, "regression": regression_loss}
BY_KIND = {"tokens": class_loss, "spans": span_loss, "language": completion_loss}


def objective_of(head: Any) -> Any:
    """The objective of a head by its `HeadConfig`."""
    return BY_PROBLEM[head.problem] if head.kind == "sequence" else BY_KIND[head.kind]
