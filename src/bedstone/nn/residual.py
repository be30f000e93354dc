"""How a sublayer joins the residual stream. Every family is one of these four around its parts.

A sublayer is `(x, context) -> x`; so is what wraps it. Shapes: B batch, T tokens, D width.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bedstone.nn.context import Context
from bedstone.nn.dropout import Dropout

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
        told = self.sublayer(lowered(self.norm(x)), context).to(x.dtype)
        return x + torch.tanh(self.gate).to(x.dtype) * told


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
        told = self.modulation(context.condition).to(x.dtype)
        shift, scale, gate = told[:, None].chunk(3, dim=-1)  # (B, 1, D)
        modulated = lowered(torch.addcmul(shift, self.norm(x), 1 + scale))
        given = self.dropout(self.sublayer(modulated, context)).to(x.dtype)
        return torch.addcmul(x, gate, given)


def zeroed(layer: Layer) -> Layer:
    """The same linear layer or convolution, giving zeros."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer
