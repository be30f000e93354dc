"""A CNN for pictures in CLIP's form: the image tower of `clip_resnet`.

OpenAI's ResNet (Radford et al., 2021, section 2.4): a stem of three convolutions, strides that
average (He et al., 2019; Zhang, 2019), and attention in the place of the last average: the mean
state asks all states. The same with few channels and a stem without strides is small and fast on
pictures of 28 to 64 pixels.

Shapes: B batch, C channels, H and W of a picture, T places of the last map, D its channels, F
features.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.models.vit import network as vit
from bedstone.models.vit.network import ViTConfig, initialise
from bedstone.nn.attention import CrossAttention
from bedstone.nn.blocks import Context
from bedstone.nn.convolution import Basic, Bottleneck, ConvNorm, Shrink
from bedstone.nn.layers import LayerNorm
from bedstone.nn.masks import Full
from bedstone.nn.positions import LearnedPositions
from bedstone.settings import Settings, one_of, whole

BLOCKS: dict[str, type[Bottleneck] | type[Basic]] = {"bottleneck": Bottleneck, "basic": Basic}


@dataclass(frozen=True)
class ResNetConfig(Settings):
    """The shape of a ResNet in CLIP's form; the defaults are those of CLIP's RN50.

    Attributes:
        image_size: of the pictures, which are square, in pixels.
        channels: of the pictures.
        width: channels of the first stage; each further one has twice as many.
        blocks: residual blocks of each stage; from the second on, a stage halves the map.
        block: bottleneck (as published) or basic (two convolutions, for small networks).
        shrink: by what the stem makes the map smaller: 4 (as published), 2 or 1.
        heads: of the pooling attention; 0 takes one for each 64 channels.
        features: what it gives for a picture, F.
    """

    section: ClassVar[str] = "model.image."

    image_size: int = whole(1, default=224)
    channels: int = whole(1, default=3)
    width: int = whole(1, default=64)
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    block: str = one_of(*BLOCKS, default="bottleneck")
    shrink: int = one_of(1, 2, 4, default=4)
    heads: int = whole(0, default=0)
    features: int = whole(1, default=1024)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.blocks or min(self.blocks) < 1:
            raise BedstoneError(
                f"model.image.blocks: {self.blocks} was given; expected at least one block for "
                "each stage."
            )
        if self.width % 2:
            raise BedstoneError(
                f"model.image.width: {self.width} was given; the stem needs an even one."
            )
        if not self.heads:
            object.__setattr__(self, "heads", max(self.states // 64, 1))
        if self.states % self.heads:
            raise BedstoneError(
                f"model.image.heads: {self.heads} doesn't divide the {self.states} channels of the "
                "last map; choose a divisor."
            )
        if self.side < 1:
            raise BedstoneError(
                f"model.image.image_size: {self.image_size} pixels are too few for "
                f"{len(self.blocks)} stages; lower shrink, or take fewer stages."
            )

    @property
    def size(self) -> tuple[int, int]:
        """Of the pictures, (H, W)."""
        return self.image_size, self.image_size

    @property
    def states(self) -> int:
        """Channels of the last map, D."""
        return self.width * 2 ** (len(self.blocks) - 1) * BLOCKS[self.block].expansion

    @property
    def side(self) -> int:
        """Height and width of the last map."""
        side = self.image_size
        if self.shrink > 1:  # a convolution of 3 by 3 rounds up, averages round down
            side = -(-side // 2) // (self.shrink // 2)
        for _ in self.blocks[1:]:
            side //= 2
        return side

    @property
    def layers(self) -> int:
        """Blocks in all."""
        return sum(self.blocks)


class ResNet(nn.Module):
    """Pictures (B, C, H, W) to one vector each, (B, F), not normalised."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        half, block = config.width // 2, BLOCKS[config.block]
        self.stem = nn.Sequential(
            ConvNorm(config.channels, half, 3, stride=min(config.shrink, 2)),
            ConvNorm(half, half, 3),
            ConvNorm(half, config.width, 3),
            Shrink(2 if config.shrink == 4 else 1),
        )
        stages, inputs, width = [], config.width, config.width
        for number, count in enumerate(config.blocks):
            blocks = []
            for index in range(count):
                blocks.append(block(inputs, width, 2 if number and not index else 1))
                inputs = width * block.expansion
            stages.append(nn.Sequential(*blocks))
            width *= 2
        self.stages = nn.Sequential(*stages)
        self.pool = AttentionPool(config)

    def maps(self, pixels: Tensor) -> Tensor:
        """The last map, (B, D, side, side)."""
        size = (self.config.channels, *self.config.size)
        if tuple(pixels.shape[1:]) != size:
            raise BedstoneError(
                f"pixels: have the shape {tuple(pixels.shape[1:])}; this network reads pictures "
                f"of {size} (channels, height, width). Use the processor of its folder."
            )
        # convolutions are fastest with a pixel's channels side by side
        x = pixels.contiguous(memory_format=torch.channels_last)
        return self.stages(self.stem(x))

    def features(self, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
        """(B, F). Raises BedstoneError where some patches alone are to be read: it has none."""
        if kept is not None:
            raise BedstoneError(
                "patch_dropout: a ResNet reads whole pictures; set it to 0, or take a ViT."
            )
        return self.pool(self.maps(pixels))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.features(pixels)


class AttentionPool(nn.Module):
    """The mean of a map attends to it and to itself, (B, D, H, W) to (B, F)."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        width = config.states
        self.positions = LearnedPositions(config.side**2 + 1, width)
        self.attn = CrossAttention(width, config.heads, bias=True, out_bias=True)
        self.attn.out = nn.Linear(width, config.features)

    def forward(self, maps: Tensor) -> Tensor:
        states = maps.flatten(2).transpose(1, 2)  # (B, T, D)
        states = torch.cat((states.mean(1, keepdim=True), states), 1)
        states = states + self.positions.weight.to(states.dtype)
        return self.attn(states[:, :1], Context(mask=Full(), memory=states))[:, 0]


def make(config: ResNetConfig) -> ResNet:
    """A ResNet whose weights are still to be filled."""
    return ResNet(config)


@torch.no_grad()
def initialise_convolutions(network: nn.Module) -> None:
    """He et al.'s weights; a block's last norm starts at zero, so that it starts as its shortcut
    (Goyal et al., 2017, section 5.1)."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
    for part in network.modules():
        if isinstance(part, Bottleneck):
            nn.init.zeros_(part.conv3.norm.weight)
        elif isinstance(part, Basic):
            nn.init.zeros_(part.conv2.norm.weight)


@torch.no_grad()
def initialise_resnet(network: Any) -> None:
    """As `initialise_maps` does; the pool's weights as CLIP has them."""
    initialise_convolutions(network)
    std = math.sqrt(1 / network.config.states)
    for linear in (network.pool.attn.q, network.pool.attn.k, network.pool.attn.v):
        nn.init.normal_(linear.weight, std=std)
        nn.init.zeros_(linear.bias)
    nn.init.normal_(network.pool.attn.out.weight, std=std)
    nn.init.zeros_(network.pool.attn.out.bias)
    nn.init.normal_(network.pool.positions.weight, std=std)


def build(config: ResNetConfig, *, seed: int | None = None) -> ResNet:
    """A ResNet with fresh weights, drawn from `seed` if one is given."""
    if seed is not None:
        torch.manual_seed(seed)
    network = make(config)
    initialise_resnet(network)
    return network


# A ResNet's last map as states, as a ViT gives them: what stands for the whole comes first.
#
# As in the pool of CLIP's ResNets (Radford et al., 2021, section 2.4) the mean of the map stands
# before its places, and each has a learnt position. Nothing is pooled then: who attends sees every
# place. Positions are added behind the norm, and are as large as half of what it gives from the
# start: a map's own size would drown them, and where a thing is would be learnt twice as slowly
# (measured on questions about scenes).
#
# Shapes: P pictures, H and W of a picture, S = 1 + places of the map, D width of the states.


class ResNetTokens(nn.Module):
    """Pictures (P, 3, H, W) to states (P, S, D).

    Args:
        config: the ResNet's shape.
        width: D; 0 takes the map's channels. Where it is another, a linear map brings them to it.
    """

    def __init__(self, config: ResNetConfig, width: int = 0) -> None:
        super().__init__()
        self.config = config
        self.resnet = ResNet(config)
        self.resnet.pool = nn.Identity()  # type: ignore[assignment]  # its map is what is read
        self.positions = LearnedPositions(config.side**2 + 1, width or config.states)
        bare = width in (0, config.states)
        self.project = nn.Identity() if bare else nn.Linear(config.states, width)
        self.norm = LayerNorm(width or config.states)

    def states(self, pixels: Tensor) -> Tensor:
        """(P, S, D); the first stands for the whole."""
        places = self.resnet.maps(pixels).flatten(2).transpose(1, 2)  # (P, places, channels)
        x = torch.cat((places.mean(1, keepdim=True), places), 1)
        x = self.norm(self.project(x))
        return x + self.positions.weight.to(x.dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.states(pixels)


def states_width(config: ViTConfig | ResNetConfig) -> int:
    """Width of a tower's states as they come."""
    return config.states if isinstance(config, ResNetConfig) else config.width


def make_tower(config: ViTConfig | ResNetConfig, width: int = 0) -> Any:
    """A tower with `states(pixels)` whose weights are still to be filled."""
    return ResNetTokens(config, width) if isinstance(config, ResNetConfig) else vit.make(config)


def start_tower(tower: Any) -> None:
    """Fills a tower of `make` with first weights."""
    if not isinstance(tower, ResNetTokens):
        initialise(tower, tower.config.layers)
        return
    initialise_convolutions(tower.resnet)
    nn.init.normal_(tower.positions.weight, std=0.5)
    if isinstance(tower.project, nn.Linear):
        nn.init.normal_(tower.project.weight, std=tower.config.states**-0.5)
        nn.init.zeros_(tower.project.bias)
