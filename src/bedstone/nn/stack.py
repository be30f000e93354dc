"""A block is named sublayers in order; a stack is blocks in order."""

from collections.abc import Iterable
from typing import Any

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


def stack_at(stack: nn.Module, x: Tensor, context: Context, read: Tensor | None) -> Tensor:
    """A stack's states at the tokens `read`, (M,), of every row: (B, M, D). All where None.

    Its last block does the part of the others not at all, but for what attention reads of them.
    """
    if read is None:
        return stack(x, context)
    *blocks, last = list(stack.children())
    for index, block in enumerate(blocks):
        x = block(x, context.for_layer(index))
    return _block_at(last, x, context.for_layer(len(blocks)), read)


def _block_at(block: nn.Module, x: Tensor, context: Context, read: Tensor) -> Tensor:
    """A block that is attention and what goes token by token after it; any other whole."""
    parts: list[Any] = list(block.children())
    if not isinstance(block, Block) or not hasattr(parts[0], "at"):
        return block(x, context).index_select(1, read)
    x = parts[0].at(x, context, read)
    for part in parts[1:]:
        x = part(x, context)
    return x
