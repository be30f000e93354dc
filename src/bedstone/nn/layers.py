"""Norms and feed-forward sublayers. Shapes: B batch, T tokens, D width, H hidden width."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.nn.fused import rms_norm, usable

Activation = Callable[[Tensor], Tensor]


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation (Hendrycks and Gimpel, 2016), as GPT-2 has it."""
    return F.gelu(x, approximate="tanh")


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), as CLIP has it."""
    return x * torch.sigmoid(1.702 * x)


# By the names that published configurations use.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in fp32 (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if usable(x):
            return rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Mean and variance normalised, in fp32 whatever comes in (Ba et al., 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        normed = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), bias, self.eps)
        return normed.to(x.dtype)


class MLP(nn.Module):
    """down(activation(up(x))), (B, T, D) to (B, T, D)."""

    def __init__(
        self, width: int, hidden: int, activation: Activation = F.gelu, *, bias: bool = True
    ) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor, context: object = None) -> Tensor:
        return self.down(self.activation(self.up(x)))


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)): SwiGLU and its kin (Shazeer, 2020)."""

    def __init__(
        self, width: int, hidden: int, activation: Activation = F.silu, *, bias: bool = False
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=bias)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor, context: object = None) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))
