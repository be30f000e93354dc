"""A ResNet's last map as states, as a ViT gives them: what stands for the whole comes first.

As in the pool of CLIP's ResNets (Radford et al., 2021, section 2.4) the mean of the map stands
before its places, and each has a learnt position. Nothing is pooled then: who attends sees every
place. Positions are added behind the norm, and are as large as half of what it gives from the
start: a map's own size would drown them, and where a thing is would be learnt twice as slowly
(measured on questions about scenes).

Shapes: P pictures, H and W of a picture, S = 1 + places of the map, D width of the states.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bedstone.models import resnet, vit
from bedstone.models.resnet import ResNet, ResNetConfig
from bedstone.models.towers import initialise
from bedstone.models.vit import ViTConfig
from bedstone.nn.layers import LayerNorm
from bedstone.nn.positions import LearnedPositions


class MapTower(nn.Module):
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


def make(config: ViTConfig | ResNetConfig, width: int = 0) -> Any:
    """A tower with `states(pixels)` whose weights are still to be filled."""
    return MapTower(config, width) if isinstance(config, ResNetConfig) else vit.make(config)


def start(tower: Any) -> None:
    """Fills a tower of `make` with first weights."""
    if not isinstance(tower, MapTower):
        initialise(tower, tower.config.layers)
        return
    resnet.initialise_maps(tower.resnet)
    nn.init.normal_(tower.positions.weight, std=0.5)
    if isinstance(tower.project, nn.Linear):
        nn.init.normal_(tower.project.weight, std=tower.config.states**-0.5)
        nn.init.zeros_(tower.project.bias)
