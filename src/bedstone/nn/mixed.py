"""Embeddings that stay the same to five digits of the cosine, with a part of the work in bf16.

What bf16 rounds off in the MLPs of the last blocks passes through few layers, and a mean over many
tokens takes most of it away. So these are computed in bf16, and all else, and whatever rows are
short, in fp32. Of the real MiniLM's embeddings of 1,500 sentences that costs at most 7e-6 of the
cosine, where bf16 everywhere costs up to 6e-5 (`bench/embed.py`).
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

from bedstone.nn.context import Context
from bedstone.nn.inference import JoinedGatedMLP, LeanMLP, for_inference
from bedstone.nn.masks import Documents
from bedstone.nn.stack import Stack

Network = TypeVar("Network", bound=nn.Module)
# Rows of so many tokens are computed in bf16 by the MLPs of the last third of the blocks, and of
# the last half; what is shorter, in fp32.
SHORT, LONG = 8, 24


class LateMLP(nn.Module):
    """An MLP in two precisions: `rough` where each row has `least` tokens, else `exact`."""

    def __init__(self, exact: nn.Module, rough: nn.Module, least: int) -> None:
        super().__init__()
        self.exact, self.rough, self.least = exact, rough, least

    def forward(self, x: Tensor, context: Context) -> Tensor:
        mlp = self.rough if _shortest(context) >= self.least else self.exact
        return mlp(x, context).to(x.dtype)


def for_mixed_inference(network: Network, rough: torch.dtype) -> Network:
    """`for_inference` in fp32, but for the MLPs of the last blocks.

    Args:
        rough: their precision, on packed rows of which none is short.
    """
    ready, coarse = for_inference(network, torch.float32), for_inference(network, rough)
    for stack, twin in zip(_stacks(ready), _stacks(coarse), strict=True):
        third, half = len(stack) - len(stack) // 3, len(stack) - len(stack) // 2
        for number in range(half, len(stack)):
            least = SHORT if number >= third else LONG
            parts = zip(stack[number].children(), twin[number].children(), strict=True)
            for part, its_twin in parts:
                _join(part, its_twin, least)
    return ready


def _stacks(network: nn.Module) -> list[list[nn.Module]]:
    return [list(module) for module in network.modules() if isinstance(module, Stack)]


def _join(part: nn.Module, coarse: nn.Module, least: int) -> None:
    """Puts an MLP in both precisions in the place of a sublayer that is one."""
    mlp, rough = getattr(part, "sublayer", None), getattr(coarse, "sublayer", None)
    if isinstance(mlp, LeanMLP | JoinedGatedMLP) and isinstance(rough, nn.Module):
        part.sublayer = LateMLP(mlp, rough, least)


def _shortest(context: Context) -> int:
    """Tokens of the shortest of packed rows; 0 where rows aren't packed."""
    mask = context.mask
    if not isinstance(mask, Documents):
        return 0
    return min(end - start for start, end in mask.segments)
