"""Norms and feed-forward sublayers. Shapes: B batch, T tokens, D width, H hidden width."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.errors import BedstoneError, nearest
from bedstone.nn.dropout import Dropout
from bedstone.nn.fast.fused import rms_norm, usable
from bedstone.settings import Settings, optional, whole

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
    """down(dropout(activation(up(x)))), (B, T, D) to (B, T, D)."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: Activation = F.gelu,
        *,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.activation = activation
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, context: object = None) -> Tensor:
        return self.down(self.dropout(self.activation(self.up(x))))


class GatedMLP(nn.Module):
    """down(dropout(activation(gate(x)) * up(x))): SwiGLU and its kin (Shazeer, 2020)."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: Activation = F.silu,
        *,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=bias)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.activation = activation
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, context: object = None) -> Tensor:
        return self.down(self.dropout(self.activation(self.gate(x)) * self.up(x)))


# Pooling: the states of a row's tokens to one vector, an embedding of the whole text.
#
# The modes are those of sentence-transformers (Reimers and Gurevych, 2019,
# https://arxiv.org/abs/1908.10084). Shapes: n rows, N tokens in all, D width, M modes.

# In the order in which older files, which name each by a switch of its own, join them.
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@dataclass(frozen=True)
class Pooling(Settings):
    """How a model makes one vector of a text.

    Attributes:
        modes: cls (the first state), max, mean, mean_sqrt_len_tokens (the sum divided by the root
            of the length), weightedmean (later tokens count more), lasttoken; several are joined.
        normalise: whether the vector is brought to length 1.
        max_tokens: the model embeds so many tokens of a text, special ones included; None has no
            limit but the network's.
        prompts: texts that go before what is embedded, by name (query, document).
        default_prompt: the name of the one that goes before every text.
        include_prompt: whether the prompt's own tokens are pooled too.
        similarity: how two vectors are compared: cosine, dot, euclidean or manhattan.
        width: how many of a vector's first numbers are kept, after `normalise`; None keeps all.
    """

    section: ClassVar[str] = "pooling."

    modes: tuple[str, ...] = ("mean",)
    normalise: bool = False
    max_tokens: int | None = optional(whole(1))
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    include_prompt: bool = True
    similarity: str = "cosine"
    width: int | None = optional(whole(1))

    def __post_init__(self) -> None:
        super().__post_init__()
        for mode in self.modes:
            if mode not in MODES:
                raise BedstoneError(f"pooling: mode {mode!r} is unknown{nearest(mode, MODES)}.")
        if not self.modes:
            raise BedstoneError(f"pooling: no mode was given; expected some of {', '.join(MODES)}.")


def pool(
    states: Tensor,
    lengths: Sequence[int],
    modes: Sequence[str] = ("mean",),
    *,
    skipped: Sequence[int] | None = None,
) -> Tensor:
    """One vector a row, (n, M * D) in fp32, from states (N, D) of rows laid end to end.

    Args:
        lengths: tokens of each row; they add up to N.
        skipped: how many of a row's first tokens are left out; they still count as places.
    """
    states = states.float()
    sizes = torch.tensor(lengths, device=states.device)
    starts = sizes.cumsum(0) - sizes
    owners = torch.arange(len(sizes), device=states.device).repeat_interleave(sizes)
    places = torch.arange(len(states), device=states.device) - starts[owners]
    if skipped is not None and any(skipped):
        first = torch.tensor(skipped, device=states.device)
        kept = places >= first[owners]
        states, owners, places = states[kept], owners[kept], places[kept]
        sizes = sizes - first
        starts = sizes.cumsum(0) - sizes

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(len(sizes), values.shape[-1]).index_add_(0, owners, values)

    parts = []
    for mode in modes:
        if mode == "cls":
            parts.append(states[starts])
        elif mode == "lasttoken":
            parts.append(states[starts + sizes - 1])
        elif mode == "max":
            parts.append(torch.stack([part.amax(0) for part in states.split(sizes.tolist())]))
        elif mode == "weightedmean":
            weights = (places + 1).to(states.dtype)[:, None]
            parts.append(total(states * weights) / total(weights))
        else:
            count = sizes[:, None].to(states.dtype)
            parts.append(total(states) / (count if mode == "mean" else count.sqrt()))
    return torch.cat(parts, -1)


def normalise(vectors: Tensor) -> Tensor:
    """Each vector (..., D) at length 1."""
    return F.normalize(vectors, dim=-1)
