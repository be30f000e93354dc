"""A small CNN that says which things of `scenes` are where in a picture: the judge of drawn scenes.

Each cell of a grid holds, for each size, a share of a thing, and says of what shape and colour it
would be: where things lie over each other, one is larger. A thing's shares over all cells sum to 1,
so that the sum over the cells is how many there are: no threshold, no peaks (counting by density,
Lempitsky and Zisserman, 2010). Shape and colour are told apart from each other, and trained on all
combinations equally.

Shapes: B pictures, S pixels of a side, G cells of a side, Z sizes, P shapes, K colours, D channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bedstone.checks import at_least
from bedstone.errors import BedstoneError
from bedstone.models.resnet import initialise_maps
from bedstone.nn.convolution import Basic, ConvNorm

SHRINK = 4  # pixels of a cell's side


@dataclass(frozen=True)
class SceneGridConfig:
    """The shape of a network that reads scenes.

    Attributes:
        size: of the pictures, which are square, in pixels, S.
        width: channels at half the picture's resolution; the grid has twice as many, D.
        blocks: residual blocks of the grid.
        sizes, shapes, colours: how many of each there are, Z, P and K.
    """

    size: int = 32
    width: int = 48
    blocks: int = 1
    sizes: int = 3
    shapes: int = 8
    colours: int = 10

    def __post_init__(self) -> None:
        at_least(self, 1, "size", "width", "blocks", "sizes", "shapes", "colours")
        if self.size % SHRINK:
            raise BedstoneError(
                f"size: pictures of {self.size} pixels aren't divided by cells of {SHRINK}; choose "
                "a multiple."
            )

    @property
    def side(self) -> int:
        """Cells of a side, G."""
        return self.size // SHRINK


class SceneGrid(nn.Module):
    """Pictures (B, 3, S, S) in [-1, 1] to logits of cells (B, Z, 1 + P + K, G, G): a thing's share,
    shapes, colours."""

    def __init__(self, config: SceneGridConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        # Full resolution costs most and is not needed: a cell of 2 by 2 pixels has 12 numbers.
        self.stem = nn.Sequential(ConvNorm(3, width, 3, stride=2), ConvNorm(width, width, 3))
        blocks = [Basic(2 * width, 2 * width) for _ in range(config.blocks)]
        self.blocks = nn.Sequential(Basic(width, 2 * width, 2), *blocks)
        self.parts = 1 + config.shapes + config.colours
        self.out = nn.Conv2d(2 * width, config.sizes * self.parts, 1)

    def maps(self, pictures: Tensor) -> Tensor:
        """The last map, (B, D, G, G)."""
        x = pictures
        return self.blocks(self.stem(x))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.out(self.maps(pictures)).unflatten(1, (-1, self.parts))


def counts(cells: Tensor, config: SceneGridConfig) -> Tensor:
    """How many things of each shape and colour there are by logits of cells, (B, P, K), fp32."""
    share, shape, colour = cells.float().split([1, config.shapes, config.colours], 2)
    seen = shape.softmax(2) * share.sigmoid()  # (B, Z, P, G, G)
    return torch.einsum("bzpij,bzkij->bpk", seen, colour.softmax(2))


def build(config: SceneGridConfig, *, seed: int | None = None) -> SceneGrid:
    """A network with fresh weights, drawn from `seed` if one is given."""
    if seed is not None:
        torch.manual_seed(seed)
    network = SceneGrid(config)
    initialise_maps(network)
    # Of 64 cells few hold anything: begin with that, so that the first steps teach something else.
    nn.init.normal_(network.out.weight, std=0.01)
    bias = network.out.bias
    assert bias is not None
    with torch.no_grad():
        bias.zero_()
        bias[:: network.parts] = -4.0
    return network
