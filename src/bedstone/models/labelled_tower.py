"""The image tower of a CLIP under a head for labels.

What the head is handed is what published classifiers on such towers are handed: of CLIP the mean
of the patches' last states before the norm, of SigLIP the mean of all normed states
(`CLIPForImageClassification`, `SiglipForImageClassification`); of a ResNet what it gives.

Shapes: B pictures, D width, L labels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError, nearest
from bedstone.models import resnet, vit
from bedstone.models.clip import TOWERS
from bedstone.models.heads import Head, HeadConfig, Headed
from bedstone.models.resnet import ResNetConfig
from bedstone.models.vit import ViTConfig
from bedstone.nn.context import Context
from bedstone.nn.masks import Full


@dataclass(frozen=True)
class LabelledTowerConfig:
    """The shape of an image tower with labels.

    Attributes:
        layout: of the CLIP that it is the tower of: clip, siglip or clip_resnet.
        image: the tower's own.
        head: sequence, or states where it has none yet.
        dropout: before the labels, in training.
    """

    layout: str = "clip"
    image: ViTConfig | ResNetConfig = field(default_factory=ViTConfig)
    head: HeadConfig = field(default_factory=partial(HeadConfig, "states"))
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.layout not in TOWERS:
            raise BedstoneError(
                f"model.layout: {self.layout!r} is unknown{nearest(self.layout, TOWERS)}."
            )
        if self.head.kind not in ("sequence", "states"):
            raise BedstoneError(f"model.head.kind: {self.head.kind!r} isn't one for pictures.")

    @property
    def width(self) -> int:
        """Of what the head is handed, D."""
        return self.image.features

    @property
    def hidden(self) -> int:
        """Width inside the MLPs, where there are any."""
        return getattr(self.image, "hidden", self.width)

    @property
    def layers(self) -> int:
        return self.image.layers

    @property
    def heads(self) -> int:
        return self.image.heads

    @property
    def size(self) -> tuple[int, int]:
        """Of the pictures, (H, W)."""
        return self.image.size


class LabelledTower(Headed):
    """Pictures (B, C, H, W) to logits of labels (B, L), or to (B, D) where it has no head."""

    def __init__(self, config: LabelledTowerConfig, image: Any) -> None:
        super().__init__()
        self.config, self.image = config, image
        # What such a classifier has on disk and never reads: no gradient would reach it.
        for unread in (image.norm if config.layout == "clip" else None, image_pool(image, config)):
            if unread is not None:
                unread.requires_grad_(False)
        self.head = make_head(config)

    make_head = staticmethod(lambda config: make_head(config))

    def states(self, pixels: Tensor) -> Tensor:
        """The tower's last states, (B, T, D); of a ResNet its last map, (B, D, H, W)."""
        return states_of(self.image)(pixels)

    def features(self, pixels: Tensor) -> Tensor:
        """(B, D): what the head is handed."""
        image = self.image
        if self.config.layout == "clip":
            x = image.before(image.embedded(pixels))
            return image.stack(x, Context(mask=Full()))[:, 1:].mean(1)
        if self.config.layout == "siglip":
            return image.states(pixels).mean(1)
        return image.features(pixels)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.features(pixels))


def states_of(tower: Any) -> Callable[[Tensor], Tensor]:
    """What gives a tower's last states, or of a ResNet its last map."""
    return getattr(tower, "maps", None) or tower.states


def image_pool(image: Any, config: LabelledTowerConfig) -> nn.Module | None:
    """SigLIP's attention over the states, which labels don't use."""
    return image.pool if config.layout == "siglip" else None


def make_head(config: LabelledTowerConfig) -> nn.Module:
    """A linear map to the labels, or none."""
    if config.head.kind == "states":
        return nn.Identity()
    out = nn.Linear(config.width, config.head.outputs)
    return Head(out, reads="first", dropout=config.dropout)


def labelled_tower(clip: Any) -> LabelledTower:
    """A CLIP's own image tower, without a head yet."""
    return LabelledTower(LabelledTowerConfig(clip.config.layout, clip.image.config), clip.image)


def make(config: LabelledTowerConfig) -> LabelledTower:
    """One whose weights are still to be filled."""
    made: Any = resnet.make if isinstance(config.image, ResNetConfig) else vit.make
    return LabelledTower(config, made(config.image))


def build(config: LabelledTowerConfig, *, seed: int | None = None) -> LabelledTower:
    """One with fresh weights, drawn from `seed` if one is given."""
    if seed is not None:
        torch.manual_seed(seed)
    built: Any = resnet.build if isinstance(config.image, ResNetConfig) else vit.build
    return LabelledTower(config, built(config.image))
