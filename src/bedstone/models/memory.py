"""Texts that read a memory through cross-attention: what BLIP and encoder-decoders share.

A memory is the states of an image, or of a source text. Its keys and values are computed once a
request and kept in the cache, and neighbouring rows share them.

Shapes: P memories, n = m * P rows of text (row i reads memory i // m), T tokens, S states of a
memory, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.nn.attention import check_memory, cross_attention
from bedstone.nn.blocks import Block, Context
from bedstone.nn.cache import Cache, LayerCache
from bedstone.nn.fast.decoder import NEVER, LazyDecoder, MemoryDecoder
from bedstone.nn.masks import Causal, Documents, Full, Mask, Padding, Sources
from bedstone.nn.positions import RelativeBias
from bedstone.nn.quantize import held_in


class MemoryBlock(Block):
    """A block whose `cross` is passed over where there is nothing to read."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        for name, sublayer in self.items():
            if name != "cross" or _has_memory(context):
                x = sublayer(x, context)
        return x


def _has_memory(context: Context) -> bool:
    cache = context.cache
    known = isinstance(cache, LayerCache) and cache.memory is not None
    return known or context.memory is not None


class MemoryReader(nn.Module):
    """Token ids (n, T) to states (n, T, D), with a memory or without.

    A family says what comes before its blocks (`begin`) and after them (`finish`).

    Attributes:
        config: `context`, `layers`, `heads`, `head_width` and `memory_width`.
        relative: a bias on the scores of self-attention by the distance of two tokens.
    """

    config: Any
    embed: nn.Embedding
    stack: nn.Module
    relative: RelativeBias | None

    def __init__(self) -> None:
        super().__init__()
        self.relative = None

    def begin(self, ids: Tensor, positions: Tensor) -> Tensor:
        """What the first block reads, (n, T, D)."""
        raise NotImplementedError

    def finish(self, x: Tensor) -> Tensor:
        """The last states from what the last block gives."""
        return x

    def states(
        self,
        ids: Tensor,
        *,
        keep: Tensor | None = None,
        memory: Tensor | None = None,
        memory_keep: Tensor | None = None,
        causal: bool,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        mask: Mask | None = None,
    ) -> Tensor:
        """The last hidden states, (n, T, D).

        Args:
            ids: token ids, (n, T), padded on the right.
            keep: (n, T) bool, True where a token is real; None says all are. Not read where it
                is causal: nobody sees the padding then.
            memory: (P, S, memory width), what cross-attention reads; P divides n. None reads
                none. With a cache it counts in the first pass alone, which keeps its keys and
                values.
            memory_keep: (P, S) bool, which of its states are real.
            causal: whether a token sees only what is before it.
            cache: keys and values of earlier tokens; new ones are added to it.
            positions: (n or 1, T); None counts on from what the cache holds.
            mask: which tokens are seen, in the place of `keep` and `causal`.

        Raises:
            BedstoneError: the rows are longer than the context, or the memory doesn't fit them.
        """
        length = ids.shape[1]
        before = 0 if cache is None else cache.length
        self._check(ids, memory, before)
        if cache is not None:
            cache.require(length)
            if memory_keep is not None and cache.memory_keep is None:
                cache.memory_keep = memory_keep
            memory_keep = cache.memory_keep
        if positions is None:
            known = torch.arange(length, device=ids.device)[None]
            positions = known if cache is None else cache.slots(length)
        if mask is None:
            mask = Causal() if causal else Full() if keep is None else Padding(keep)
        seen: Mask = Full() if memory_keep is None else Padding(memory_keep)
        context = Context(
            mask=mask,
            bias=self._bias(positions, None if cache is None else before + length),
            memory=memory,
            memory_mask=seen,
            cache=cache,
        )
        x = self.stack(self.begin(ids, positions), context)
        if cache is not None:
            cache.advance(length)
        return self.finish(x)

    def packed_states(
        self,
        ids: Tensor,
        positions: Tensor,
        documents: Documents,
        memory: Tensor | None = None,
        sources: Sources | None = None,
    ) -> Tensor:
        """The last hidden states of rows laid end to end, (N, D).

        Args:
            ids, positions: (1, N), positions from 0 in each row.
            documents: which row a token is of, and whether it sees what follows it there.
            memory: what the rows read, laid end to end in their order, (M, memory width).
            sources: which of it each row reads.

        Raises:
            BedstoneError: a row is longer than the context.
        """
        self._check_length(documents.layout.longest)
        bias = relative = None
        if self.relative is not None and torch.compiler.is_compiling():
            bias = self.relative(positions, positions)
        elif self.relative is not None:
            places = torch.arange(documents.layout.widest, device=ids.device)
            relative = self.relative(places, places)[0]
        context = Context(
            mask=documents,
            bias=bias,
            relative=relative,
            memory=None if memory is None else memory[None],
            memory_mask=sources or Full(),
        )
        states: Tensor = self.finish(self.stack(self.begin(ids, positions), context))[0]
        return states

    def _bias(self, positions: Tensor, cached: int | None) -> Tensor | None:
        """The relative bias of queries at `positions`; with a cache, on that many keys."""
        if self.relative is None:
            return None
        keys = positions if cached is None else torch.arange(cached, device=positions.device)
        found: Tensor = self.relative(positions, keys)
        return found

    def _check(self, ids: Tensor, memory: Tensor | None, before: int) -> None:
        """Raises BedstoneError for rows and a memory that don't fit."""
        rows, length = ids.shape
        self._check_length(before + length)
        if memory is None:
            return
        if memory.shape[-1] != self.config.memory_width:
            raise BedstoneError(
                f"memory: its states are {memory.shape[-1]} wide; the network's cross-attention "
                f"reads {self.config.memory_width}. Take states of the network's own."
            )
        check_memory(len(memory), rows)

    def _check_length(self, length: int) -> None:
        if length > self.config.context:
            raise BedstoneError(
                f"text: has {length} tokens; the network's context is {self.config.context}. "
                "Shorten it."
            )

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty key/value cache for `batch` rows of up to `capacity` tokens."""
        shape, (dtype, device) = self.config, held_in(self.embed)
        return Cache(
            shape.layers,
            batch,
            shape.heads,
            capacity,
            shape.head_width,
            dtype=dtype,
            device=device,
        )


class MemoryWriter:
    """A decoder over one memory, with all that `generation.autoregress` needs of a network.

    Args:
        engine: of a network that is ready for inference: the decoder over the engine.
    """

    def __init__(
        self,
        decoder: MemoryReader,
        head: Any,
        memory: Tensor,
        memory_keep: Tensor | None,
        engine: LazyDecoder | None = None,
    ) -> None:
        self.config = decoder.config
        self.head = head
        self.memory, self.memory_keep = memory, memory_keep
        self._decoder, self._engine = decoder, engine

    def over_engine(self) -> MemoryDecoder | None:
        """The same over the engine, where that is possible."""
        if self._engine is None:
            return None
        keep = self.memory_keep
        first = None if keep is None else torch.where(keep, 0, NEVER)
        return self._engine.over(self.memory, first)

    def states(
        self,
        ids: Tensor,
        *,
        cache: Cache | None = None,
        mask: Mask | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """(n, T, D) of tokens (n, T) that see what is before them and the memory."""
        return self._decoder.states(
            ids,
            # once the cache knows it, rows may leave and memories with them
            memory=None if cache is not None and cache.length else self.memory,
            memory_keep=self.memory_keep,
            causal=True,
            cache=cache,
            positions=positions,
            mask=mask,
        )

    def attention(self, ids: Tensor) -> Tensor:
        """How tokens (n, T) read the states of their memories, (n, T, S).

        The mean over the heads of all blocks: which block reads what differs between networks.
        """
        weights = cross_attention(self._decoder, lambda: self.states(ids))  # (L, n, H, T, S)
        return weights.mean((0, 2))

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty key/value cache."""
        return self._decoder.new_cache(batch, capacity)
