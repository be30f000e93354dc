"""Masks as small symbolic values.

A mask says which keys each query may see. It stays a value, not a matrix, until `attend()`
decides: plain causal attention takes the fused path, packed documents are attended by
themselves, and only what has no better path is made dense.

Queries and keys are named by their *slot*: the index in the sequence, which with a key/value
cache is the index in the cache. Shapes: B batch, Q queries, K keys.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from bedstone.nn.fast.ragged import Layout


class Mask(Protocol):
    """What `attend()` needs of a mask."""

    def dense(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        """True where a query may see a key; None where it may see all.

        Args:
            queries: slots of the queries, (B or 1, Q).
            keys: slots of the keys, (K,).

        Returns:
            bool, (B or 1, Q, K), or None.
        """


@dataclass(frozen=True)
class Full:
    """Every query sees every key."""

    def dense(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Causal:
    """A query sees itself and what came before, at most `window` keys back, itself included."""

    window: int | None = None

    def dense(self, queries: Tensor, keys: Tensor) -> Tensor:
        distance = queries[..., :, None] - keys  # (B, Q, K)
        seen = distance >= 0
        return seen if self.window is None else seen & (distance < self.window)

    def narrow(self, window: int | None) -> "Causal":
        """The same mask with a sliding window, if that is narrower."""
        if window is None or (self.window is not None and self.window <= window):
            return self
        return Causal(window)


@dataclass(frozen=True)
class Prefix:
    """Everyone sees the first `lengths` slots of its row, (B,); after them it is causal."""

    lengths: Tensor

    def dense(self, queries: Tensor, keys: Tensor) -> Tensor:
        causal = queries[..., :, None] >= keys
        return causal | (keys < self.lengths[:, None, None])


@dataclass(frozen=True)
class Padding:
    """Only real keys are seen: `keep` is (B, K) bool, True where the key is real."""

    keep: Tensor

    def dense(self, queries: Tensor, keys: Tensor) -> Tensor:
        return self.keep[:, None, keys]


@dataclass(frozen=True)
class Documents:
    """Packed documents: a token sees its own document only. `numbers` is (B, T) int.

    A document is a run of equal numbers; two runs of a row never share one. A window makes it
    causal.
    """

    numbers: Tensor
    causal: bool = True
    window: int | None = None

    def dense(self, queries: Tensor, keys: Tensor) -> Tensor:
        rows = torch.arange(len(self.numbers), device=self.numbers.device)[:, None]
        own = self.numbers[rows, queries]  # (B, Q)
        same = own[:, :, None] == self.numbers[:, None, keys]  # (B, Q, K)
        if not self.causal and self.window is None:
            return same
        return same & Causal(self.window).dense(queries, keys)

    def lengths(self, positions: Tensor) -> Tensor:
        """The tokens of each token's document, (B, T), of positions that begin at 0 in each."""
        positions = positions.expand_as(self.numbers)
        rows = torch.arange(len(self.numbers), device=self.numbers.device)[:, None]
        own = self.numbers - self.numbers.min()
        which = (own + rows * (own.max() + 1)).flatten().long()
        found = positions.new_zeros(int(which.max()) + 1)
        found = found.scatter_reduce(0, which, positions.flatten() + 1, "amax")
        return found[which].view_as(self.numbers)

    def narrow(self, window: int | None) -> "Documents":
        """The same mask with a sliding window, if that is narrower."""
        if window is None or (self.window is not None and self.window <= window):
            return self
        narrower = Documents(self.numbers, self.causal, window)
        if not torch.compiler.is_compiling():  # found out once, not once a layer
            narrower.__dict__.update(segments=self.segments, layout=self.layout)
        return narrower

    @cached_property
    def layout(self) -> Layout:
        """How the documents stand in grids of similar lengths."""
        return Layout(self.segments, self.numbers.device)

    @cached_property
    def segments(self) -> list[tuple[int, int]]:
        """(start, end) of each document in the flattened (B * T) sequence of tokens."""
        flat = self.numbers.flatten()
        new = torch.ones_like(flat, dtype=torch.bool)
        new[1:] = flat[1:] != flat[:-1]
        new[:: self.numbers.shape[1]] = True  # a row's first token starts a document
        starts = [*new.nonzero().flatten().tolist(), len(flat)]
        return list(pairwise(starts))


@dataclass(frozen=True)
class Branches:
    """Sequences that share what they begin with, each shared token read once: a tree of tokens.

    A token sees all that the cache holds, and those tokens of the pass that it follows. Slots of
    the cache are positions; the N slots after them are the tokens of the pass, in any positions.

    Attributes:
        seen: (N, N) bool, [i, j] is True where token i follows token j or is it.
        positions: (N,) of each token in its own sequence.
        window: how far back a token sees, itself included.
    """

    seen: Tensor
    positions: Tensor
    window: int | None = None

    def dense(self, queries: Tensor, keys: Tensor) -> Tensor:
        held = len(keys) - len(self.seen)
        whole = torch.cat((self.seen.new_ones(len(self.seen), held), self.seen), 1)
        if self.window is not None:
            places = torch.cat((keys[:held], self.positions))
            whole &= self.positions[:, None] - places < self.window
        return whole[queries[0] - held][None]

    def narrow(self, window: int | None) -> "Branches":
        """The same mask with a sliding window, if that is narrower."""
        if window is None or (self.window is not None and self.window <= window):
            return self
        return Branches(self.seen, self.positions, window)


@dataclass(frozen=True)
class Sources:
    """Packed documents that read packed memories: a token sees those of its own document's number.

    `numbers` is (1, N) int, of tokens; `memories` (1, M), of what they read, in the same order.
    """

    numbers: Tensor
    memories: Tensor

    def dense(self, queries: Tensor, keys: Tensor) -> Tensor:
        return self.numbers[0, queries][..., None] == self.memories[0, keys]

    @cached_property
    def layout(self) -> Layout:
        """How the documents stand in grids of which both lengths are similar."""
        own, read = Documents(self.numbers), Documents(self.memories)
        return Layout(own.segments, self.numbers.device, read.segments)


@dataclass(frozen=True)
class Both:
    """What both masks allow."""

    first: Mask
    second: Mask

    def dense(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        first, second = self.first.dense(queries, keys), self.second.dense(queries, keys)
        if first is None or second is None:
            return second if first is None else first
        return first & second

    def narrow(self, window: int | None) -> Mask:
        """Both masks, with a sliding window if one is asked for."""
        return self if window is None else Both(self, Causal(window))


def with_window(mask: Mask, window: int | None) -> Mask:
    """`mask` narrowed to a sliding `window`; masks that aren't causal are combined with one."""
    if window is None:
        return mask
    narrow = getattr(mask, "narrow", None)
    return narrow(window) if narrow else Both(mask, Causal(window))
