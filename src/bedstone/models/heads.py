"""What stands on a body: one small module that maps the states it is handed to a task's outputs.

A head says which tokens it reads: the first (BERT's [CLS]), the last (a decoder's), or all. It
never gathers them itself: whoever has the batch knows where its rows begin and end. So a head
costs nothing where nothing is asked of it: words are predicted at masked positions only, a class
at one position a row.

Shapes: B batch, T tokens, D width, L outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError, nearest
from bedstone.nn.layers import Activation
from bedstone.nn.masks import Documents
from bedstone.nn.ties import make_ties

_OF_TEXT = ("language", "pretraining", "sequence", "tokens", "spans", "pooled", "states", "towers")
KINDS = (*_OF_TEXT, "seq2seq", "captions", "answers", "matching", "joint")
PROBLEMS = ("single", "multi", "regression")


@dataclass(frozen=True)
class HeadConfig:
    """Which head a network has.

    Attributes:
        kind: language (the next word of a decoder, a masked word of an encoder), pretraining
            (masked words, and whether two sentences follow each other), sequence (a label for
            each row), tokens (a label for each token), spans (where an answer starts and ends),
            pooled (the first state through a tanh layer), states (the states themselves), towers
            (none: two networks whose outputs are compared), seq2seq (the next word of a decoder
            over an encoder's states). Of a picture with a text: captions
            (its words), answers (those of the answer to a question), matching (whether both
            belong together), joint (all three).
        labels: names of the outputs, in their order; of a regression, the names of its figures.
        problem: of a sequence head: single (one label of several), multi (any number of
            labels), regression (numbers). A published model with one output and no problem, such
            as a reranker, is single with one label: its score is the sigmoid of the output.
    """

    kind: str = "language"
    labels: tuple[str, ...] = ()
    problem: str = "single"

    def __post_init__(self) -> None:
        for name, choices in (("kind", KINDS), ("problem", PROBLEMS)):
            value = getattr(self, name)
            if value not in choices:
                raise BedstoneError(f"head.{name}: {value!r} is unknown{nearest(value, choices)}.")
        if self.kind in ("sequence", "tokens") and not self.labels:
            raise BedstoneError(f"head.labels: a head for {self.kind} needs at least one label.")
        if len(set(self.labels)) < len(self.labels):
            twice = next(label for label in self.labels if self.labels.count(label) > 1)
            raise BedstoneError(f"head.labels: {twice!r} is there twice; each must be another.")

    @property
    def measured_as(self) -> str:
        """The problem by which labelled rows measure it: numbers where it has one output alone."""
        lone = self.problem == "single" and len(self.labels) == 1
        return "regression" if lone else self.problem

    @property
    def outputs(self) -> int:
        """Outputs for each token that a task head reads."""
        return 2 if self.kind == "spans" else len(self.labels)


class Head(nn.Module):
    """out(dropout(norm(activation(dense(dropout(x)))))), (..., D) to (..., L), of parts that may
    be absent.

    Args:
        out: the last linear map, whose rows are the outputs.
        reads: which states it is to be handed: first, last or all.
        dense: a linear map before it; BERT's pooler, the transform of its word head.
        activation: after `dense`.
        norm: after that.
        dropout: before `out`; `early` also before `dense`.
    """

    def __init__(
        self,
        out: nn.Module,
        *,
        reads: str = "all",
        dense: nn.Linear | None = None,
        activation: Activation = torch.tanh,
        norm: nn.Module | None = None,
        dropout: float = 0.0,
        early: float = 0.0,
    ) -> None:
        super().__init__()
        self.reads = reads
        self.early = nn.Dropout(early)
        self.dense = dense
        self.activation = activation
        self.norm = norm
        self.dropout = nn.Dropout(dropout)
        self.out = out

    def prepare(self, states: Tensor) -> Tensor:
        """All before `out`: a loss that fuses the last product takes it from here."""
        if self.dense is not None:
            states = self.activation(self.dense(self.early(states)))
        if self.norm is not None:
            states = self.norm(states)
        return self.dropout(states)

    def forward(self, states: Tensor) -> Tensor:
        return self.out(self.prepare(states))


class PretrainingHeads(nn.Module):
    """BERT's two: masked words at every token, and whether the second sentence is the next."""

    reads = "all"

    def __init__(self, words: Head, pairs: Head) -> None:
        super().__init__()
        self.words = words
        self.pairs = pairs

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) to logits of words (B, T, V) and of pairs (B, 2): is next, is not."""
        return self.words(states), self.pairs(states[:, 0])


class PackedRows(Protocol):
    """n rows as one of N tokens, as `data.text.packing` lays them; each field is (1, N)."""

    @property
    def ids(self) -> Tensor: ...
    @property
    def types(self) -> Tensor: ...
    @property
    def positions(self) -> Tensor: ...
    @property
    def documents(self) -> Tensor: ...


class Headed(nn.Module):
    """A network with a `config` that has a `head`, and a head that can be exchanged."""

    causal = False  # whether a token sees only what is before it
    segmented = False  # whether `states` takes the segments of tokens, `types`
    narrows = False  # whether `states` takes which of a row's tokens are asked for, `read`
    config: Any
    head: nn.Module
    states: Callable[..., Tensor]
    make_head: Callable[[Any], nn.Module]  # config to a head with fresh weights

    def set_head(self, head: HeadConfig, seed: int | None = None) -> None:
        """Puts a fresh head in the place of the one there; the body stays.

        A dense layer that is there already (the pooler) goes on as the new head's.
        """
        if seed is not None:
            torch.manual_seed(seed)
        old = _pooler(self.head)
        weight = next(self.parameters())
        self.config = replace(self.config, head=head)
        self.head = type(self).make_head(self.config).to(weight.device, weight.dtype)
        _initialise(self.head)
        self.tie()
        new = _pooler(self.head)
        if old is not None and new is not None and old.weight.shape == new.weight.shape:
            new.load_state_dict(old.state_dict())

    def tie(self) -> None:
        """Makes the parameters that `ties` names one."""
        make_ties(self)

    @property
    def ties(self) -> dict[str, str]:
        """Parameters that are another's: {copy: original}."""
        return {}

    def packed_states(self, rows: PackedRows, read: Tensor | None = None) -> Tensor:
        """The last hidden states of rows laid end to end, each seeing itself alone.

        Args:
            rows: N tokens in all.
            read: (M,) places whose states are asked for; a network that `narrows` computes its
                last block there alone. None asks for all.

        Returns:
            (M, D), or (N, D).
        """
        known: dict[str, Any] = {"types": rows.types} if self.segmented else {}
        if self.narrows:
            known["read"] = read
        mask = Documents(rows.documents, causal=self.causal)
        states = self.states(rows.ids, mask=mask, positions=rows.positions, **known)[0]
        return states if read is None or self.narrows else states.index_select(0, read)

    def read(self, states: Tensor, keep: Tensor | None = None) -> Tensor:
        """The head's outputs from all states of a padded batch.

        Args:
            states: (B, T, D).
            keep: (B, T) bool, True where a token is real; None says all are.
        """
        reads = getattr(self.head, "reads", "all")
        if reads == "first":
            states = states[:, 0]
        elif reads == "last":
            length = states.shape[1]
            places = torch.arange(length, device=states.device)
            last = length - 1 if keep is None else (places * keep).argmax(1)
            states = states[torch.arange(len(states), device=states.device), last]
        return self.head(states)


@torch.no_grad()
def _initialise(head: nn.Module) -> None:
    """A fresh head's matrices are small and its biases zero, so it starts without an opinion."""
    for part in head.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _pooler(head: nn.Module) -> nn.Linear | None:
    """The dense layer over the first state, where a head has one."""
    head = head.pairs if isinstance(head, PretrainingHeads) else head
    return head.dense if isinstance(head, Head) and head.reads == "first" else None
