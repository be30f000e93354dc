"""DiT: a transformer that maps a noisy signal and its time to what is predicted of it.

One network, three layouts: `dit` (Peebles and Xie, 2023), told a class; `pixart` (Chen et al.,
2024), told a text that it reads by cross-attention; `bedstone_dit`, for training from scratch on
small machines: signals of 1 to 3 dimensions, class and text, rotary places, QK-norm, long skips
(U-ViT, Bao et al., 2023), patches that overlap, convolutions around them (UViT, Hoogeboom et al.,
2023).

Shapes: B batch, C channels, S the sizes of a signal, T patches, M tokens of a text, D width.
"""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.models.dit_config import DiTConfig
from bedstone.models.dit_inputs import check_inputs
from bedstone.models.dit_parts import Conditions, Final, Text, block
from bedstone.nn.conditioning import CentredMemory
from bedstone.nn.context import Context
from bedstone.nn.fine import FineIn, FineOut
from bedstone.nn.grids import GridRotary, GridSinusoids, LearntGrid
from bedstone.nn.masks import Full, Mask, Padding
from bedstone.nn.patches import OverlapEmbed, PatchEmbed, grid_of, unpatchify
from bedstone.nn.residual import zeroed
from bedstone.nn.stack import Stack

# Pixels of a picture for each of a latent, where the size is told and nobody says it: those of
# every published PixArt's autoencoder.
LATENT = 8


class DiT(nn.Module):
    """Signals (B, C, *S) at times (B,) to what is predicted of them, (B, out_channels, *S)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patches
        sides, seen = len(config.size), config.fine or config.channels
        self.fine_in = FineIn(sides, config.channels, config.fine) if config.fine else None
        self.patches = (
            OverlapEmbed(patch, seen, width, config.conv_in)
            if config.conv_in
            else PatchEmbed(patch, seen, width)
        )
        self.positions: nn.Module | None = None
        if config.positions == "sincos":
            self.positions = GridSinusoids(config.grid, width, config.interpolation)
        elif config.positions == "learnt":
            self.positions = LearntGrid(config.tokens, width)
        self.rotary = (
            GridRotary(config.grid, config.head_width, config.rotary_base)
            if config.rotary
            else None
        )
        # diffusers' DiT embeds time and class anew in each block
        count = config.layers if config.layout == "dit" else 1
        self.conditions = nn.ModuleList([Conditions(config) for _ in range(count)])
        shared = config.modulation == "shared"
        self.modulation = nn.Linear(width, 6 * width) if shared else None
        centred = config.memory_width and config.layout == "bedstone_dit"
        self.centred = CentredMemory(config.memory_width) if centred else None
        self.text = Text(config) if config.memory_width else None
        self.stack = Stack([block(config) for _ in range(config.layers)])
        skips = config.layers // 2 if config.skips else 0
        self.skips = nn.ModuleList([nn.Linear(width, width) for _ in range(skips)])
        outputs = config.out_channels
        self.final = Final(config, (config.fine or outputs) * math.prod(patch))
        self.fine_out = FineOut(sides, config.fine, outputs) if config.fine else None

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        classes: Tensor | None = None,
        memory: Tensor | None = None,
        memory_keep: Tensor | None = None,
        told_size: Tensor | None = None,
    ) -> Tensor:
        """What is predicted of `x`, (B, out_channels, *S), in its dtype.

        Args:
            x: noisy signals, (B, C, *S). Other sizes than the configured are read too, unless
                positions are learnt.
            t: the numbers that times are told by, (B,) or one for all.
            classes: (B,) int64; the number `config.classes`, or None, is no class.
            memory: states of a text, (B, M, memory width), or None where there is none.
            memory_keep: (B, M) bool, True where a state is real. A row that keeps none has no
                text.
            told_size: (B, 3) height, width and height / width of the pictures in pixels, where
                the layout tells it; None takes that of `x`, a latent.

        Raises:
            BedstoneError: shapes that don't fit, a class out of range.
        """
        check_inputs(self.config, x, classes, memory, memory_keep)
        rows, grid = len(x), grid_of(x.shape[2:], self.config.patches)
        t = t.expand(rows)
        if self.config.told_size and told_size is None:
            high, wide = (LATENT * side for side in x.shape[2:])
            told_size = torch.tensor([[high, wide, high / wide]], device=x.device).expand(rows, -1)
        if self.centred is not None and memory is not None:
            memory = self.centred(memory, memory_keep)
        told = (t, classes, memory, memory_keep, told_size)
        vectors = [conditions(*told) for conditions in self.conditions]
        context = self._context(grid, rows, memory, memory_keep)
        seen = x if self.fine_in is None else self.fine_in(x)
        tokens = self.patches(seen).to(x.dtype)
        if self.positions is not None:
            tokens = tokens + self.positions(grid).to(x.dtype)
        tokens = self._blocks(tokens, context, [self._condition(vector) for vector in vectors])
        out = self.final(tokens, vectors[0])
        out = unpatchify(out, self.config.patches, grid, channels_last=True)
        if self.fine_out is not None:
            out = self.fine_out(out, seen)
        return out.to(x.dtype)

    def _condition(self, vector: Tensor) -> Tensor:
        """What blocks are modulated by: the vector (B, D), or six of them for all blocks."""
        active = F.silu(vector)
        return active if self.modulation is None else self.modulation(active)

    def _context(
        self, grid: tuple[int, ...], rows: int, memory: Tensor | None, keep: Tensor | None
    ) -> Context:
        rotation = None if self.rotary is None else self.rotary(grid)
        if self.text is None:
            # both said: a compiler can't follow the default's factory
            return Context(mask=Full(), rotation=rotation, memory_mask=Full())
        memory, keep = self.text(memory, keep, rows)
        seen: Mask = Full() if keep is None else Padding(keep)
        return Context(mask=Full(), rotation=rotation, memory=memory, memory_mask=seen)

    def _blocks(self, x: Tensor, context: Context, conditions: list[Tensor]) -> Tensor:
        """All blocks, each with its condition; early states reach late blocks by the skips."""
        kept: list[Tensor] = []
        count, late = len(self.skips), len(self.stack) - len(self.skips)
        for index, each in enumerate(self.stack):
            if index >= late:
                # U-ViT maps both side by side; here `x` stays whole, in fp32 under autocast too
                x = x + self.skips[index - late](kept.pop()).to(x.dtype)
            own = conditions[index] if len(conditions) > 1 else conditions[0]
            x = each(x, replace(context, condition=own))
            if index < count:
                kept.append(x)
        return x


def make(config: DiTConfig) -> DiT:
    """A DiT whose weights are still to be filled."""
    return DiT(config)


def build(config: DiTConfig, *, seed: int | None = None) -> DiT:
    """A DiT with fresh weights, drawn from `seed` if one is given.

    As DiT has them: every block starts as the identity, and what is predicted at first is zero.
    """
    if seed is not None:
        torch.manual_seed(seed)
    network = make(config)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(network.patches.weight.flatten(1))  # a view: as the product it is
    for conditions in network.conditions:
        for module in conditions.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
    _shut(network)
    return network


def _shut(network: Any) -> None:
    """Zeros wherever something joins the residual stream, and in what comes out."""
    linears = [network.final.out, network.final.modulation, network.modulation, *network.skips]
    if network.fine_out is not None:
        zeroed(network.fine_out.out)
    for each in network.stack:
        parts = dict(each.named_children())
        linears += [parts[name].modulation for name in ("attn", "mlp")]
        if "cross" in parts:
            linears.append(parts["cross"].sublayer.out)
    for linear in linears:
        if isinstance(linear, nn.Linear):
            zeroed(linear)
