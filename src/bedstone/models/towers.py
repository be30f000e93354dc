"""What the Transformers of ViT and CLIP share: blocks, shape and first weights."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from bedstone.checks import at_least
from bedstone.errors import BedstoneError, nearest
from bedstone.nn.attention import CrossAttention, SelfAttention
from bedstone.nn.layers import ACTIVATIONS, MLP, LayerNorm
from bedstone.nn.patches import PatchEmbed
from bedstone.nn.positions import LearnedPositions
from bedstone.nn.residual import PreNorm
from bedstone.nn.stack import Block

# Activation and what norms add, by the family that a layout is of.
_USUAL = {
    "vit": ("gelu", 1e-12),
    "clip": ("quick_gelu", 1e-5),
    "siglip": ("gelu_pytorch_tanh", 1e-6),
    "blip": ("gelu", 1e-5),
}


def fill_shape(config: Any) -> None:
    """Fills what a tower's configuration leaves to its layout."""
    activation, eps = _USUAL[config.layout.partition("_")[0]]
    usual = {"hidden": 4 * config.width, "activation": activation, "norm_eps": eps}
    for name, value in usual.items():
        if not getattr(config, name):
            object.__setattr__(config, name, value)


def check_shape(config: Any, where: str, sizes: Sequence[str] = ()) -> None:
    """Raises BedstoneError for a shape that can't be built."""
    at_least(config, 1, "width", "layers", "heads", "hidden", *sizes, prefix=f"{where}.")
    if config.width % config.heads and not getattr(config, "head_width", 0):
        raise BedstoneError(
            f"{where}.heads: {config.heads} doesn't divide the width {config.width}; choose a "
            "divisor."
        )
    if config.activation not in ACTIVATIONS:
        raise BedstoneError(
            f"{where}.activation: {config.activation!r} is unknown"
            f"{nearest(config.activation, ACTIVATIONS)}."
        )


def blocks_of(config: Any) -> Iterator[Block]:
    """PreNorm(self), PreNorm(MLP), with biases (ViT, Dosovitskiy et al., 2021, section 3.1)."""
    dropout = getattr(config, "dropout", 0.0)
    for _ in range(config.layers):
        attention = SelfAttention(
            config.width,
            config.heads,
            head_width=getattr(config, "head_width", 0) or None,
            bias=getattr(config, "qkv_bias", True),
            out_bias=True,
            dropout=config.attention_dropout,
        )
        mlp = MLP(config.width, config.hidden, ACTIVATIONS[config.activation])
        yield Block(
            attn=PreNorm(LayerNorm(config.width, eps=config.norm_eps), attention, dropout),
            mlp=PreNorm(LayerNorm(config.width, eps=config.norm_eps), mlp, dropout),
        )


@torch.no_grad()
def initialise(tower: nn.Module, layers: int) -> None:
    """CLIP's first weights (Radford et al., 2021, section 2.4, and its published code).

    What reads the residual stream has standard deviation D^-1/2, (2 D)^-1/2 in MLPs; what writes
    to it (2 L D)^-1/2, so that its variance doesn't grow with depth. Biases are zero.
    """
    deep = (2 * layers) ** -0.5
    for part in tower.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)
        elif isinstance(part, LearnedPositions):
            nn.init.normal_(part.weight, std=0.01)
        elif isinstance(part, PatchEmbed):
            nn.init.normal_(part.weight, std=part.weight[0].numel() ** -0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for part in tower.modules():
        if isinstance(part, SelfAttention | CrossAttention):
            nn.init.normal_(part.out.weight, std=part.q.in_features**-0.5 * deep)
        elif isinstance(part, MLP):
            nn.init.normal_(part.up.weight, std=(2 * part.up.in_features) ** -0.5)
            nn.init.normal_(part.down.weight, std=part.up.in_features**-0.5 * deep)
