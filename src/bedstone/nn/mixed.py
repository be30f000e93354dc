"""Embeddings that stay the same to five digits of the cosine, with a part of the work in bf16.

What bf16 rounds off in the MLPs of the last blocks passes through few layers, and a mean over many
tokens takes most of it away. So these are computed in bf16, and all else, and whatever rows are
short, in fp32. Of the real MiniLM's embeddings of 1,500 sentences that costs at most 6e-6 of the
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
SHORT = 8  # tokens; shorter rows are computed in fp32


class LateMLP(nn.Module):
    """An MLP in two precisions: `rough` where all rows have tokens enough, else `exact`."""

    def __init__(self, exact: nn.Module, rough: nn.Module) -> None:
        super().__init__()
        self.exact, self.rough = exact, rough

    def forward(self, x: Tensor, context: Context) -> Tensor:
        mlp = self.rough if _are_long(context) else self.exact
        return mlp(x, context).to(x.dtype)


def for_mixed_inference(network: Network, rough: torch.dtype) -> Network:
    """`for_inference` in fp32, but for the MLPs of the last third of the blocks.

    Args:
        rough: their precision, on packed rows of which none is short.
    """
    ready, coarse = for_inference(network, torch.float32), for_inference(network, rough)
    for stack, twin in zip(_stacks(ready), _stacks(coarse), strict=True):
        first = len(stack) - len(stack) // 3
        for block, other in zip(stack[first:], twin[first:], strict=True):
            for part, its_twin in zip(block.children(), other.children(), strict=True):
                _join(part, its_twin)
    return ready


def _stacks(network: nn.Module) -> list[list[nn.Module]]:
    return [list(module) for module in network.modules() if isinstance(module, Stack)]


def _join(part: nn.Module, coarse: nn.Module) -> None:
    """Puts an MLP in both precisions in the place of a sublayer that is one."""
    mlp, rough = getattr(part, "sublayer", None), getattr(coarse, "sublayer", None)
    if isinstance(mlp, LeanMLP | JoinedGatedMLP) and isinstance(rough, nn.Module):
        part.sublayer = LateMLP(mlp, rough)


def _are_long(context: Context) -> bool:
    mask = context.mask
    if not isinstance(mask, Documents):
        return False
    return min(end - start for start, end in mask.segments) >= SHORT
