"""BERT with cross-attention: the text half of BLIP, an encoder and a decoder in one.

Li et al., 2022, section 3.1: between self-attention and MLP of each block stands attention over a
memory: the states of a picture, or of a question that has read one. Without a memory it is passed
over, and what is left is a BERT without segments. Whether a token sees what comes after it is the
caller's word, so the same network reads and writes.

Shapes: P memories, n = m * P rows of text (row i reads memory i // m), T tokens, S states of a
memory, D width.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.checks import at_least
from bedstone.errors import BedstoneError, nearest
from bedstone.models.heads import Head
from bedstone.nn.attention import CrossAttention, SelfAttention
from bedstone.nn.cache import Cache, LayerCache
from bedstone.nn.context import Context
from bedstone.nn.dropout import Dropout
from bedstone.nn.layers import ACTIVATIONS, MLP, LayerNorm
from bedstone.nn.masks import Causal, Full, Mask, Padding
from bedstone.nn.positions import LearnedPositions
from bedstone.nn.residual import PostNorm
from bedstone.nn.stack import Block, Stack


@dataclass(frozen=True)
class FusedTextConfig:
    """The shape of a text network that reads a memory.

    Attributes:
        vocab_size: tokens in the vocabulary, V.
        width: of the states, D.
        layers: blocks.
        heads: of attention; they divide `width`.
        hidden: width inside the MLP; 0 takes 4 * width.
        context: the longest row, in tokens.
        norm_eps: added to the variance inside norms.
        activation: by its published name.
        dropout: on embeddings and the residual stream, in training.
        attention_dropout: on attention weights, in training.
        memory_width: of the states that cross-attention reads; 0 takes what gives them.
        bos_id: the token that a text to be written begins with; BLIP's [DEC].
        eos_id: the one it ends with; BLIP's [SEP].
        pad_id: the one that pads.
        tied: whether the word head shares the embedding's weights.
    """

    vocab_size: int = 8192
    width: int = 256
    layers: int = 4
    heads: int = 4
    hidden: int = 0
    context: int = 512
    norm_eps: float = 1e-12
    activation: str = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    memory_width: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = 0
    tied: bool = True

    def __post_init__(self) -> None:
        if not self.hidden:
            object.__setattr__(self, "hidden", 4 * self.width)
        sizes = ("vocab_size", "width", "layers", "heads", "hidden", "context")
        at_least(self, 1, *sizes, prefix="model.text.")
        at_least(self, 0, "memory_width", "bos_id", "eos_id", "pad_id", prefix="model.text.")
        if self.width % self.heads:
            raise BedstoneError(
                f"model.text.heads: {self.heads} doesn't divide the width {self.width}; choose a "
                "divisor."
            )
        if self.activation not in ACTIVATIONS:
            raise BedstoneError(
                f"model.text.activation: {self.activation!r} is unknown"
                f"{nearest(self.activation, ACTIVATIONS)}."
            )
        for name in ("bos_id", "eos_id", "pad_id"):
            if getattr(self, name) >= self.vocab_size:
                raise BedstoneError(
                    f"model.text.{name}: {getattr(self, name)} was given; the vocabulary has "
                    f"{self.vocab_size} tokens. Raise vocab_size, or name another token."
                )


class FusedBlock(Block):
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


class FusedText(nn.Module):
    """Token ids (n, T) to states (n, T, D), with a memory or without."""

    def __init__(self, config: FusedTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.positions = LearnedPositions(config.context, config.width)
        self.norm = LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)
        self.stack = Stack(_block(config) for _ in range(config.layers))

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
        self._check(ids, memory, 0 if cache is None else cache.length)
        if cache is not None:
            cache.require(length)
            if memory_keep is not None and cache.memory_keep is None:
                cache.memory_keep = memory_keep
            memory_keep = cache.memory_keep
        if positions is None:
            known = torch.arange(length, device=ids.device)[None]
            positions = known if cache is None else cache.slots(length)
        x = self.dropout(self.norm(self.embed(ids) + self.positions(positions)))
        if mask is None:
            mask = Causal() if causal else Full() if keep is None else Padding(keep)
        seen = Full() if memory_keep is None else Padding(memory_keep)
        x = self.stack(x, Context(mask=mask, memory=memory, memory_mask=seen, cache=cache))
        if cache is not None:
            cache.advance(length)
        return x

    def _check(self, ids: Tensor, memory: Tensor | None, before: int) -> None:
        """Raises BedstoneError for rows and a memory that don't fit."""
        rows, length = ids.shape
        if before + length > self.config.context:
            raise BedstoneError(
                f"text: has {before + length} tokens; the network's context is "
                f"{self.config.context}. Shorten it."
            )
        if memory is None:
            return
        if memory.shape[-1] != self.config.memory_width:
            raise BedstoneError(
                f"memory: its states are {memory.shape[-1]} wide; the network's cross-attention "
                f"reads {self.config.memory_width}. Take states of the network's own."
            )
        if not len(memory) or rows % len(memory):
            raise BedstoneError(
                f"memory: {len(memory)} were given for {rows} rows of text; expected as many, or "
                "a number that divides it: neighbouring rows share one."
            )

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty key/value cache for `batch` rows of up to `capacity` tokens."""
        shape, weight = self.config, self.embed.weight
        return Cache(
            shape.layers,
            batch,
            shape.heads,
            capacity,
            shape.width // shape.heads,
            dtype=weight.dtype,
            device=weight.device,
        )


def _block(config: FusedTextConfig) -> FusedBlock:
    """PostNorm(self), PostNorm(cross), PostNorm(MLP), with biases."""
    shared: dict[str, Any] = {"bias": True, "out_bias": True, "dropout": config.attention_dropout}
    attention = partial(SelfAttention, config.width, config.heads, **shared)
    cross = partial(CrossAttention, config.width, config.heads, **shared)
    mlp = MLP(config.width, config.hidden, ACTIVATIONS[config.activation])

    def joined(sublayer: nn.Module) -> PostNorm:
        return PostNorm(LayerNorm(config.width, eps=config.norm_eps), sublayer, config.dropout)

    return FusedBlock(
        attn=joined(attention()),
        cross=joined(cross(memory_width=config.memory_width or config.width)),
        mlp=joined(mlp),
    )


def word_head(config: FusedTextConfig) -> Head:
    """BERT's word head: states (..., D) to logits of words (..., V)."""
    return Head(
        nn.Linear(config.width, config.vocab_size),
        dense=nn.Linear(config.width, config.width),
        activation=ACTIVATIONS[config.activation],
        norm=LayerNorm(config.width, eps=config.norm_eps),
    )
