"""What a diffusion transformer asks at each step, made ready for inference: nothing in it is
computed twice or written where it needn't be. `nn.inference` puts these in their places.

Shapes: B batch, T tokens, D width, W head width.
"""

import torch
from torch import Tensor, nn

from bedstone.nn.conditioning import PlainNorm
from bedstone.nn.context import Context
from bedstone.nn.grids import Grid, GridRotary
from bedstone.nn.residual import AdaZero


class LeanAdaZero(nn.Module):
    """x + gate * sublayer(norm(x) * (1 + scale) + shift), and no dropout.

    What the norm and the sublayer give is their own, so that results take its place: a step's time
    goes to passes over memory as much as to products.
    """

    def __init__(self, source: AdaZero, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.sublayer, self.dtype = source.norm, source.sublayer, dtype
        self.modulation = source.modulation

    def forward(self, x: Tensor, context: Context) -> Tensor:
        told = self.modulation(context.condition).to(x.dtype)
        shift, scale, gate = told[:, None].chunk(3, dim=-1)  # (B, 1, D)
        normed = self.norm(x)
        modulated = torch.addcmul(shift, normed, 1 + scale, out=normed).to(self.dtype)
        given = self.sublayer(modulated, context).to(x.dtype)
        return torch.addcmul(x, gate, given, out=given)


def can_be_lean(module: nn.Module) -> bool:
    """Whether `LeanAdaZero` does the same: a norm that gave x itself would be written over."""
    return type(module) is AdaZero and isinstance(module.norm, PlainNorm)


class CastGridRotary(nn.Module):
    """Places in a grid in the precision of queries and keys; those of the usual grid once for all.

    In fp32 they would make fp32 of these, and of attention.
    """

    cos: Tensor  # (1, 1, T, W)
    sin: Tensor

    def __init__(self, source: GridRotary, dtype: torch.dtype) -> None:
        super().__init__()
        self.source, self.dtype = source, dtype
        cos, sin = source(source.usual)
        self.register_buffer("cos", cos.to(dtype), persistent=False)
        self.register_buffer("sin", sin.to(dtype), persistent=False)

    def forward(self, grid: Grid) -> tuple[Tensor, Tensor]:
        if grid == self.source.usual:
            return self.cos, self.sin
        cos, sin = self.source(grid)
        return cos.to(self.dtype), sin.to(self.dtype)
