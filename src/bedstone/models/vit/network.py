"""ViT: an encoder that maps pixels to states, and its heads; the towers of CLIP, SigLIP and BLIP.

One network, four published layouts: `vit` (Dosovitskiy et al., 2021) begins with a class token,
whose last state stands for the picture, and so does `blip_vision_model` (Li et al., 2022), by
other names; `clip_vision_model` (Radford et al., 2021) has a norm before the blocks too;
`siglip_vision_model` (Zhai et al., 2023) has no class token: a learnt query attends to all states
in its place.

Shapes: B batch, C channels, H and W of a picture in pixels, T tokens, K patches that are read, D
width.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError, nearest
from bedstone.models.heads import Head, HeadConfig, Headed
from bedstone.nn.attention import CrossAttention, SelfAttention
from bedstone.nn.blocks import Block, Context, PreNorm, Stack, stack_at
from bedstone.nn.dropout import Dropout
from bedstone.nn.layers import ACTIVATIONS, MLP, LayerNorm
from bedstone.nn.masks import Full
from bedstone.nn.patches import PatchEmbed, chosen, grid_of
from bedstone.nn.positions import LearnedPositions
from bedstone.settings import at_least

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


LAYOUTS = ("vit", "clip_vision_model", "siglip_vision_model", "blip_vision_model")
HEADS = ("states", "pooled", "sequence")


@dataclass(frozen=True)
class ViTConfig:
    """The shape of a ViT.

    Attributes:
        layout: vit, clip_vision_model, siglip_vision_model or blip_vision_model; empty is that of
            what it is part of, and vit where it stands alone.
        image_size: of the pictures, in pixels: (height, width), or one number for both.
        patch: of a patch, likewise.
        channels: of the pictures, C.
        width: of the states, D.
        layers: blocks.
        heads: of attention.
        head_width: width of a head; 0 takes width / heads.
        hidden: width inside the MLP; 0 takes 4 * width.
        activation: by its published name; empty is as the layout has it.
        norm_eps: added to the variance inside norms; 0 is as the layout has it.
        qkv_bias: whether queries, keys and values have biases.
        dropout: on embeddings, the residual stream and before labels, in training.
        attention_dropout: on attention weights, in training.
        head: what stands on it: states, pooled (the class token through a tanh layer) or
            sequence (a label for each picture).
    """

    layout: str = ""
    image_size: int | tuple[int, int] = 224
    patch: int | tuple[int, int] = 16
    channels: int = 3
    width: int = 768
    layers: int = 12
    heads: int = 12
    head_width: int = 0
    hidden: int = 0
    activation: str = ""
    norm_eps: float = 0.0
    qkv_bias: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    head: HeadConfig = field(default_factory=partial(HeadConfig, "states"))

    def __post_init__(self) -> None:
        if self.layout and self.layout not in LAYOUTS:
            raise BedstoneError(
                f"model.layout: {self.layout!r} is unknown{nearest(self.layout, LAYOUTS)}."
            )
        for name in ("image_size", "patch"):
            object.__setattr__(self, name, _pair(getattr(self, name), name))
        if not self.layout:
            return  # what it is part of will say
        fill_shape(self)
        if not self.head_width and not self.width % max(self.heads, 1):
            object.__setattr__(self, "head_width", self.width // max(self.heads, 1))
        check_shape(self, "model", ("channels",))
        if math.prod(self.grid) < 1:
            raise BedstoneError(
                f"model.patch: {self.patch} is larger than the pictures, {self.image_size}; choose "
                "a smaller one."
            )
        if self.head.kind not in HEADS:
            raise BedstoneError(
                f"model.head.kind: {self.head.kind!r} isn't a ViT's; it has {', '.join(HEADS)}."
            )

    @property
    def size(self) -> tuple[int, int]:
        """Of the pictures, (H, W)."""
        return self.image_size  # type: ignore[return-value]  # made a pair above

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches down and across."""
        return grid_of(self.image_size, self.patch)  # type: ignore[arg-type]

    @property
    def patches(self) -> int:
        return math.prod(self.grid)

    @property
    def features(self) -> int:
        """Width of what the tower gives for a picture."""
        return self.width


def _pair(value: Any, name: str) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(each, int) and each > 0 for each in pair):
        raise BedstoneError(
            f"model.{name}: {value!r} was given; expected pixels: a number, or height and width."
        )
    return pair


class ViT(Headed):
    """Pictures (B, C, H, W) to what the head gives: states (B, T, D) where it has none."""

    def __init__(
        self,
        config: ViTConfig,
        *,
        first: bool = True,
        patch_bias: bool = True,
        before: nn.Module | None = None,
        pool: nn.Module | None = None,
    ) -> None:
        """Made of parts; `build` makes it from a config.

        Args:
            first: whether a class token stands before the patches.
            patch_bias: whether the patches' embedding has a bias.
            before: a norm before the blocks.
            pool: all states (B, T, D) to one vector (B, D); the class token's where None.
        """
        super().__init__()
        self.config = config
        width = config.width
        patch: Any = config.patch
        self.patches = PatchEmbed(patch, config.channels, width, bias=patch_bias)
        self.first = (
            nn.Parameter(nn.init.normal_(torch.empty(width), std=width**-0.5)) if first else None
        )
        self.positions = LearnedPositions(config.patches + first, width)
        self.before = before or nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.stack = Stack(blocks_of(config))
        self.norm = LayerNorm(width, eps=config.norm_eps)
        self.pool = pool
        self.head = make_head(config)

    make_head = staticmethod(lambda config: make_head(config))

    def embedded(self, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
        """Patches and class token in their places, before the blocks, (B, T, D)."""
        expected = (self.config.channels, *self.config.size)
        if tuple(pixels.shape[1:]) != expected:
            raise BedstoneError(
                f"pixels: have the shape {tuple(pixels.shape[1:])}; this network reads pictures "
                f"of {expected} (channels, height, width). Use the processor of its folder."
            )
        places = self.positions.weight
        if self.first is None:
            return self.dropout(self.patches(pixels, kept) + chosen(places[None], kept))
        x = self.patches(pixels, kept) + chosen(places[None, 1:], kept)
        first = (self.first + places[0]).to(x.dtype).expand(len(x), 1, -1)
        return self.dropout(torch.cat((first, x), 1))

    def states(
        self, pixels: Tensor, *, kept: Tensor | None = None, read: Tensor | None = None
    ) -> Tensor:
        """The last hidden states, normed, (B, T, D): the class token's before the patches'.

        Args:
            pixels: (B, C, H, W), as the processor gives them.
            kept: (B, K) numbers of the patches that are read (patch dropout, Li et al., 2023);
                all where None.
            read: (M,) the tokens whose states are asked for; all where None.
        """
        x = self.before(self.embedded(pixels, kept))
        return self.norm(stack_at(self.stack, x, Context(mask=Full()), read))

    def features(self, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
        """One vector a picture, (B, D), not normalised: what a CLIP projects."""
        if self.pool is not None:
            return self.pool(self.states(pixels, kept=kept))
        only = torch.zeros(1, dtype=torch.long, device=pixels.device)
        return self.states(pixels, kept=kept, read=only)[:, 0]

    def forward(self, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
        """States (B, T, D), pooled states (B, D) or logits of labels (B, L), by the head."""
        if getattr(self.head, "reads", "all") == "first":
            return self.head(self.features(pixels, kept))
        return self.head(self.states(pixels, kept=kept))


class AttentionPool(nn.Module):
    """A learnt query attends to all states, (B, T, D) to (B, D) (Zhai et al., 2022)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.width
        self.query = nn.Parameter(nn.init.normal_(torch.empty(width), std=width**-0.5))
        self.attn = CrossAttention(width, config.heads, bias=True, out_bias=True)
        self.norm = LayerNorm(width, eps=config.norm_eps)
        self.mlp = MLP(width, config.hidden, ACTIVATIONS[config.activation])

    def forward(self, states: Tensor) -> Tensor:
        query = self.query.to(states.dtype).expand(len(states), 1, -1)
        x = self.attn(query, Context(mask=Full(), memory=states)).to(states.dtype)
        return (x + self.mlp(self.norm(x)).to(x.dtype))[:, 0]


def make_head(config: ViTConfig) -> nn.Module:
    """The head that a configuration asks for; labels are read at the class token."""
    width, kind = config.width, config.head.kind
    if kind == "sequence":
        out = nn.Linear(width, config.head.outputs)
        return Head(out, reads="first", dropout=config.dropout)
    if kind == "pooled":
        return Head(nn.Identity(), reads="first", dense=nn.Linear(width, width))
    return nn.Identity()


def vit(config: ViTConfig) -> ViT:
    """A class token, and a norm after the blocks alone."""
    return ViT(config)


def clip_tower(config: ViTConfig) -> ViT:
    """A class token, norms before and after the blocks, no bias on the patches."""
    norm = LayerNorm(config.width, eps=config.norm_eps)
    return ViT(config, patch_bias=False, before=norm)


def siglip_tower(config: ViTConfig) -> ViT:
    """No class token: pooled by attention."""
    return ViT(config, first=False, pool=AttentionPool(config))


_MADE = dict(zip(LAYOUTS, (vit, clip_tower, siglip_tower, vit), strict=True))


def make(config: ViTConfig) -> ViT:
    """A ViT whose weights are still to be filled."""
    if not config.layout:
        config = replace(config, layout="vit")
    return _MADE[config.layout](config)


def build(config: ViTConfig, *, seed: int | None = None) -> ViT:
    """A ViT with fresh weights, drawn from `seed` if one is given."""
    if seed is not None:
        torch.manual_seed(seed)
    network = make(config)
    initialise(network, config.layers)
    for part in (network.head, *network.head.children()):
        if isinstance(part, nn.Linear):  # no opinion at the start
            nn.init.normal_(part.weight, std=0.02)
    return network
