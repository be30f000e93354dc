"""CLIP: a tower for pictures and a tower for text, brought to vectors that are compared.

`clip` (Radford et al., 2021) is trained by softmax, `siglip` (Zhai et al., 2023) by a sigmoid with
a bias; `clip_resnet` is CLIP with a CNN for pictures. What joins the towers knows of each only
that it has `features`: any other with that may stand in its place.

Shapes: B pictures, n texts, T tokens of a padded row, E what both towers come to.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.errors import BedstoneError, nearest
from bedstone.mapping import from_mapping
from bedstone.models import resnet, vit
from bedstone.models.clip_text import TextConfig, TextTower
from bedstone.models.heads import HeadConfig
from bedstone.models.resnet import ResNetConfig
from bedstone.models.towers import initialise
from bedstone.models.vit import ViTConfig

# The layouts of the two towers, by CLIP's own.
TOWERS = {
    "clip": ("clip_vision_model", "clip_text_model"),
    "siglip": ("siglip_vision_model", "siglip_text_model"),
    "clip_resnet": ("resnet", "clip_text_model"),
}
# Logarithms of the first scale, and the first bias (CLIP, section 2.5; SigLIP, section 3.2).
_START = {"clip": (math.log(1 / 0.07), None), "siglip": (math.log(10), -10.0)}
_START["clip_resnet"] = _START["clip"]


@dataclass(frozen=True)
class CLIPConfig:
    """The shape of a CLIP.

    Attributes:
        layout: clip, siglip or clip_resnet.
        image: the tower for pictures: a `ResNetConfig` in clip_resnet, else a `ViTConfig`.
        text: the tower for text.
        embed: width of what both come to, E; 0 takes the image tower's. SigLIP's is the image
            tower's width.
        head: `towers`: it has no other.
    """

    layout: str = "clip"
    image: ViTConfig | ResNetConfig = field(default_factory=ViTConfig)
    text: TextConfig = field(default_factory=TextConfig)
    embed: int = 0
    head: HeadConfig = field(default_factory=partial(HeadConfig, "towers"))

    def __post_init__(self) -> None:
        if self.layout not in TOWERS:
            raise BedstoneError(
                f"model.layout: {self.layout!r} is unknown{nearest(self.layout, TOWERS)}."
            )
        fill = partial(object.__setattr__, self)
        image, text = TOWERS[self.layout]
        kind = ResNetConfig if self.layout == "clip_resnet" else ViTConfig
        if not isinstance(self.image, kind):
            raise BedstoneError(
                f"model.image: the {self.layout} layout has a {kind.__name__} for pictures, not a "
                f"{type(self.image).__name__}."
            )
        if not self.embed:
            fill("embed", self.image.features)
        if isinstance(self.image, ViTConfig):
            fill("image", _part(self.image, image))
        elif self.image.features != self.embed:
            fill("image", replace(self.image, features=self.embed))
        given = self.text
        if self.layout == "siglip":
            given = replace(given, features=self.embed)
        fill("text", _part(given, text))
        if self.layout == "siglip" and self.embed != self.image.features:
            raise BedstoneError(
                f"model.embed: {self.embed} was given; SigLIP compares vectors as wide as its "
                f"image tower, {self.image.features}. Leave it out."
            )
        if self.head.kind != "towers":
            raise BedstoneError(
                f"model.head.kind: {self.head.kind!r} isn't a CLIP's; for labels, take its image "
                "tower."
            )

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size

    @property
    def context(self) -> int:
        """The longest text, in tokens."""
        return self.text.context


def _part(config: Any, layout: str) -> Any:
    """A tower's configuration, its layout said."""
    if config.layout not in ("", layout):
        raise BedstoneError(
            f"model: a tower has the layout {config.layout!r}, where {layout!r} is needed. Leave "
            "the layouts of towers out."
        )
    return config if config.layout else replace(config, layout=layout)


def clip_config(
    values: Mapping[str, Any], where: str = "recipe", prefix: str = "model."
) -> CLIPConfig:
    """A CLIP's configuration from plain values, `image` and `text` mappings of their own.

    Raises:
        BedstoneError: a key is unknown, or a value doesn't fit.
    """
    chosen = dict(values)
    kind: Any = ResNetConfig if chosen.get("layout") == "clip_resnet" else ViTConfig
    for name, part in (("image", kind), ("text", TextConfig)):
        if isinstance(chosen.get(name, {}), Mapping):
            given = chosen.pop(name, {})
            chosen[name] = from_mapping(part, given, where, f"{prefix}{name}.")
    towers = {name: chosen.pop(name) for name in ("image", "text")}
    plain = from_mapping(_Plain, chosen, where, prefix)
    return CLIPConfig(plain.layout, embed=plain.embed, **towers)


@dataclass
class _Plain:
    layout: str = "clip"
    embed: int = 0


class CLIP(nn.Module):
    """Pictures and texts to vectors (B, E) and (n, E); called, to logits of each pair (B, n)."""

    causal = False  # it writes no text

    def __init__(self, config: CLIPConfig, image: nn.Module, text: nn.Module) -> None:
        """`image` has `features(pixels, kept)` and `text` `features(rows)`; the rest is theirs."""
        super().__init__()
        self.config = config
        self.image = image
        self.text = text
        projected = config.layout == "clip"
        width: Any = config.image.features
        self.image_projection: nn.Module = nn.Identity()
        self.text_projection: nn.Module = nn.Identity()
        if projected:
            self.image_projection = nn.Linear(width, config.embed, bias=False)
        if config.layout != "siglip":
            self.text_projection = nn.Linear(config.text.features, config.embed, bias=False)
        scale, bias = _START[config.layout]
        self.logit_scale = nn.Parameter(torch.tensor(scale))
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(bias))

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by, ()."""
        return self.logit_scale.exp()

    @property
    def bias(self) -> Tensor | None:
        """What is added then, (); None in a CLIP by softmax."""
        return self.logit_bias

    def image_features(self, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
        """(B, E) of pictures (B, C, H, W), not normalised.

        Args:
            kept: (B, K) numbers of the patches that are read; all where None.
        """
        tower: Any = self.image
        return self.image_projection(tower.features(pixels, kept))

    def text_features(self, rows: Any) -> Tensor:
        """(n, E) of packed rows (`data.tower_text` and `data.packing`), not normalised."""
        tower: Any = self.text
        return self.text_projection(tower.features(rows))

    def forward(self, pixels: Tensor, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits of each picture with each text, (B, n), as published.

        Args:
            pixels: (B, C, H, W).
            ids: (n, T), padded.
            keep: (n, T) bool, True where a token is real; None says all are.
        """
        image = F.normalize(self.image_features(pixels), dim=-1)
        text = F.normalize(self.text_projection(self.text(ids, keep)), dim=-1)
        logits = image @ text.to(image.dtype).T * self.scale
        return logits if self.bias is None else logits + self.bias


def make(config: CLIPConfig) -> CLIP:
    """A CLIP whose weights are still to be filled."""
    made = resnet.make if isinstance(config.image, ResNetConfig) else vit.make
    towers: Any = made
    return CLIP(config, towers(config.image), TextTower(config.text))


def build(config: CLIPConfig, *, seed: int | None = None) -> CLIP:
    """A CLIP with fresh weights, drawn from `seed` if one is given."""
    if seed is not None:
        torch.manual_seed(seed)
    network = make(config)
    if isinstance(config.image, ViTConfig):
        initialise(network.image, config.image.layers)
    else:
        resnet.initialise(network.image)
    initialise(network.text, config.text.layers)
    for part in (network.image_projection, network.text_projection):
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
    return network
