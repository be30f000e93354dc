"""A block is named sublayers in order; a stack is blocks in order."""

from collections.abc import Iterable

from torch import Tensor, nn

from bedstone.nn.context import Context


class Block(nn.ModuleDict):
    """Sublayers by name (`attn`, `cross`, `mlp`), applied in the order given.

    Named, not numbered: weights of a GPT load into a vision-language stack with only the
    keys of `cross` new.
    """

    def __init__(self, **sublayers: nn.Module) -> None:
        super().__init__(sublayers)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        for sublayer in self.values():
            x = sublayer(x, context)
        return x


class Stack(nn.ModuleList):
    """Blocks in order, each with its own layer of the cache. (B, T, D) to (B, T, D)."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__(blocks)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        for index, block in enumerate(self):
            x = block(x, context.for_layer(index))
        return x
