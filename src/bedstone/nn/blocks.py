"""How a sublayer joins the residual stream. Every family is one of these four around its parts.

A sublayer is `(x, context) -> x`; so is what wraps it. Shapes: B batch, T tokens, D width.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bedstone.nn.cache import Cache, LayerCache
from bedstone.nn.dropout import Dropout
from bedstone.nn.masks import Causal, Full, Mask


@dataclass(frozen=True)
class Context:
    """Each sublayer reads its own field and ignores the rest. B batch, T tokens, S memory.

    Attributes:
        mask: which tokens self-attention sees.
        rotation: (cos, sin), each (B or 1, 1, T, head width), turning queries and keys.
        bias: added to the scores of self-attention, (1, heads, T, keys).
        relative: of packed documents, added by the places in each, (heads, L, L) (`attend`).
        memory: states that cross-attention reads, (B, S, width of the memory).
        memory_mask: which of them it sees.
        condition: what AdaZero modulates by: timestep and class, (B, width), after its
            activation; (B, 6 width) where blocks share what they read of these.
        cache: keys and values of earlier tokens; a stack hands each block its own layer.
    """

    mask: Mask = field(default_factory=Causal)
    rotation: tuple[Tensor, Tensor] | None = None
    bias: Tensor | None = None
    relative: Tensor | None = None
    memory: Tensor | None = None
    memory_mask: Mask = field(default_factory=Full)
    condition: Tensor | None = None
    cache: Cache | LayerCache | None = None

    def for_layer(self, index: int) -> "Context":
        """The context of the block at `index`: the same, with its own part of the cache."""
        if not isinstance(self.cache, Cache):
            return self
        return replace(self, cache=self.cache.layers[index])


Layer = TypeVar("Layer", bound=nn.Module)


class PreNorm(nn.Module):
    """x + sublayer(norm(x)) (Xiong et al., 2020): GPT, ViT, CLIP, T5."""

    def __init__(self, norm: nn.Module, sublayer: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = norm
        self.sublayer = sublayer
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        normed = lowered(self.norm(x))
        return x + self.dropout(self.sublayer(normed, context)).to(x.dtype)

    def at(self, x: Tensor, context: Context, read: Tensor) -> Tensor:
        """The same for the tokens `read`, (M,), alone, (B, M, D): of attention, which sees all."""
        sublayer: Any = self.sublayer
        mixed = sublayer.mix(lowered(self.norm(x)), context).index_select(1, read)
        return x.index_select(1, read) + self.dropout(sublayer.out(mixed)).to(x.dtype)


def lowered(x: Tensor) -> Tensor:
    """`x` in autocast's dtype: once here, not once for each matrix product that reads it."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class PostNorm(nn.Module):
    """norm(x + sublayer(x)) (Vaswani et al., 2017): the Transformer, BERT, BLIP."""

    def __init__(self, norm: nn.Module, sublayer: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = norm
        self.sublayer = sublayer
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        # Tensors of two dtypes add many times slower than one cast and a sum.
        return self.norm(x + self.dropout(self.sublayer(lowered(x), context)).to(x.dtype))


class Gated(nn.Module):
    """x + tanh(gate) * sublayer(norm(x)), the gate shut at the start (Flamingo, 2022).

    With the gate at zero the block is the identity to the last bit.
    """

    def __init__(self, norm: nn.Module, sublayer: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.sublayer = sublayer
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        # in x's dtype before the sum: what a shut gate leaves is x itself, under autocast too
        output = self.sublayer(lowered(self.norm(x)), context).to(x.dtype)
        return x + torch.tanh(self.gate).to(x.dtype) * output


class AdaZero(nn.Module):
    """x + gate * sublayer(norm(x) * (1 + scale) + shift), all three read from the condition.

    The gate starts at zero, so the block starts as the identity (DiT, Peebles and Xie, 2023,
    section 3.2). `norm` should have no weights of its own.

    Args:
        modulation: the condition, after its activation, to shift, scale and gate side by side,
            (B, 3 D); a matrix of its own where None.
    """

    def __init__(
        self,
        width: int,
        norm: nn.Module,
        sublayer: nn.Module,
        modulation: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.sublayer = sublayer
        self.modulation = modulation or zeroed(nn.Linear(width, 3 * width))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if context.condition is None:
            raise ValueError("AdaZero needs context.condition, (B, D): a timestep or class vector")
        modulation = self.modulation(context.condition).to(x.dtype)
        shift, scale, gate = modulation[:, None].chunk(3, dim=-1)  # (B, 1, D)
        modulated = lowered(torch.addcmul(shift, self.norm(x), 1 + scale))
        given = self.dropout(self.sublayer(modulated, context)).to(x.dtype)
        return torch.addcmul(x, gate, given)


def zeroed(layer: Layer) -> Layer:
    """The same linear layer or convolution, giving zeros."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer


# A block is named sublayers in order; a stack is blocks in order.


class Block(nn.ModuleDict):
    """Sublayers by name (`attn`, `cross`, `mlp`), applied in the order given.

    Named, not numbered: weights of a GPT load into a vision-language stack with only the
    keys of `cross` new.
    """

    def __init__(self, **sublayers: nn.Module) -> None:
        super().__init__(sublayers)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        for sublayer in self.values():
            x = sublayer(x, context)
        return x


class Stack(nn.ModuleList):
    """Blocks in order, each with its own layer of the cache. (B, T, D) to (B, T, D)."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__(blocks)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        for index, block in enumerate(self):
            x = block(x, context.for_layer(index))
        return x


def stack_at(stack: nn.Module, x: Tensor, context: Context, read: Tensor | None) -> Tensor:
    """A stack's states at the tokens `read`, (M,), of every row: (B, M, D). All where None.

    Its last block does the part of the others not at all, but for what attention reads of them.
    """
    if read is None:
        return stack(x, context)
    *blocks, last = list(stack.children())
    for index, block in enumerate(blocks):
        x = block(x, context.for_layer(index))
    return _block_at(last, x, context.for_layer(len(blocks)), read)


def _block_at(block: nn.Module, x: Tensor, context: Context, read: Tensor) -> Tensor:
    """A block that is attention and what goes token by token after it; any other whole."""
    parts: list[Any] = list(block.children())
    if not isinstance(block, Block) or not hasattr(parts[0], "at"):
        return block(x, context).index_select(1, read)
    x = parts[0].at(x, context, read)
    for part in parts[1:]:
        x = part(x, context)
    return x
