"""The parts of a DiT: what it is told, its blocks, its last layer.

Shapes: B batch, T patches, M tokens of a text, D width, P samples of a patch.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.models.dit_config import GATED, DiTConfig
from bedstone.nn.attention import CrossAttention, SelfAttention
from bedstone.nn.conditioning import (
    MemoryProjection,
    NumberEmbedding,
    PlainNorm,
    PooledMemory,
    SharedModulation,
    SizeEmbedding,
)
from bedstone.nn.layers import ACTIVATIONS, MLP, Activation, GatedMLP, RMSNorm
from bedstone.nn.residual import AdaZero, PreNorm
from bedstone.nn.stack import Block

FINAL_EPS = 1e-6
_GATES: dict[str, Activation] = {"swiglu": F.silu, "geglu": F.gelu}


class Conditions(nn.Module):
    """What a signal's denoising is told, but for the text's tokens, as one vector (B, D)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.width
        shift = 1 if config.layout == "dit" else 0
        self.time = NumberEmbedding(width, shift=shift, scale=config.time_scale)
        named = config.classes or config.layout == "dit"
        self.none = config.classes
        self.classes = nn.Embedding(config.classes + 1, width) if named else None
        pooled = config.memory_width and config.pooled
        self.pooled = PooledMemory(config.memory_width, width) if pooled else None
        self.told_size = SizeEmbedding(width) if config.told_size else None

    def forward(
        self,
        t: Tensor,
        classes: Tensor | None,
        memory: Tensor | None,
        keep: Tensor | None,
        told_size: Tensor | None,
    ) -> Tensor:
        vector = self.time(t)
        if self.classes is not None:
            if classes is None:
                classes = torch.full_like(t, self.none, dtype=torch.long)
            vector = vector + self.classes(classes)
        if self.pooled is not None and memory is not None:
            vector = vector + self.pooled(memory, keep)
        if self.told_size is not None and told_size is not None:
            vector = vector + self.told_size(told_size)
        return vector


class Text(nn.Module):
    """The states that cross-attention reads, and which of them are real."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        wide = config.width if config.projected else config.memory_width
        own = config.layout == "bedstone_dit"
        self.project = MemoryProjection(config.memory_width, wide) if config.projected else None
        # One more state, read beside any text, and alone where there is none.
        self.nothing = nn.Parameter(torch.randn(1, 1, wide) * 0.02) if own else None

    def forward(
        self, memory: Tensor | None, keep: Tensor | None, rows: int
    ) -> tuple[Tensor, Tensor | None]:
        """(B, M, width read) and (B, M) bool, None where all are real."""
        if memory is not None and self.project is not None:
            memory = self.project(memory)
        if self.nothing is None:
            assert memory is not None
            # A row that keeps nothing sees all, as a bias on all of its scores has it there.
            return memory, None if keep is None else keep | ~keep.any(1, keepdim=True)
        nothing = self.nothing.expand(rows, -1, -1)
        if memory is None:
            return nothing, None
        memory = torch.cat((nothing.to(memory.dtype), memory), 1)
        return memory, None if keep is None else F.pad(keep, (1, 0), value=True)


class Final(nn.Module):
    """The last states to what is predicted of each patch, (B, T, D) to (B, T, P)."""

    def __init__(self, config: DiTConfig, outputs: int) -> None:
        super().__init__()
        width = config.width
        self.norm = PlainNorm(width, FINAL_EPS)
        self.shared = config.modulation == "shared"
        self.modulation: nn.Module = (
            SharedModulation(width, 2, None) if self.shared else nn.Linear(width, 2 * width)
        )
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        told = self.modulation(vector if self.shared else F.silu(vector)).to(x.dtype)
        shift, scale = told[:, None].chunk(2, dim=-1)  # (B, 1, D)
        return self.out(torch.addcmul(shift, self.norm(x), 1 + scale))


def block(config: DiTConfig) -> Block:
    """Self-attention, cross-attention where there is text, MLP."""
    width, own = config.width, config.layout == "bedstone_dit"
    norm = partial(RMSNorm, config.head_width)
    attn = SelfAttention(
        width,
        config.heads,
        head_width=config.head_width,
        bias=config.qkv_bias,
        out_bias=True,
        q_norm=norm() if config.qk_norm else None,
        k_norm=norm() if config.qk_norm else None,
    )
    mlp: nn.Module
    if config.activation in GATED:
        mlp = GatedMLP(width, config.hidden, _GATES[config.activation], bias=True)
    else:
        mlp = MLP(width, config.hidden, ACTIVATIONS[config.activation])
    parts: dict[str, nn.Module] = {"attn": _modulated(config, attn, 0)}
    if config.memory_width:
        cross = CrossAttention(
            width,
            config.heads,
            memory_width=width if config.projected else config.memory_width,
            head_width=config.head_width,
            bias=config.qkv_bias,
            out_bias=True,
        )
        # PixArt reads the text by the states as they are
        before = PlainNorm(width, config.norm_eps) if own else nn.Identity()
        parts["cross"] = PreNorm(before, cross, config.dropout)
    parts["mlp"] = _modulated(config, mlp, 1)
    return Block(**parts)


def _modulated(config: DiTConfig, sublayer: nn.Module, part: int) -> AdaZero:
    width = config.width
    # diffusers' DiT has its own number inside the first norm alone
    eps = FINAL_EPS if config.layout == "dit" and part == 0 else config.norm_eps
    shared = SharedModulation(width, 3, part) if config.modulation == "shared" else None
    return AdaZero(width, PlainNorm(width, eps), sublayer, shared, config.dropout)
