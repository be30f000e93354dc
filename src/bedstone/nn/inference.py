"""A network made ready for inference: its matrices in one precision, held once.

Autocast would cast every weight again at each step; here that is done beforehand, on a copy.
Norms keep fp32 weights: they compute in fp32 whatever comes in.
"""

import copy
from typing import TypeVar

import torch
from torch import nn

from bedstone.nn.layers import LayerNorm, RMSNorm

Network = TypeVar("Network", bound=nn.Module)


def for_inference(network: Network, dtype: torch.dtype) -> Network:
    """A copy of `network` whose weights are `dtype`, norms aside; the original stays as it is.

    Weights that need no cast are shared, not copied.
    """
    norms = {
        id(weight)
        for module in network.modules()
        if isinstance(module, LayerNorm | RMSNorm)
        for weight in module.parameters()
    }
    memo: dict[int, object] = {}  # what deepcopy takes instead of a parameter
    for weight in network.parameters():
        cast = weight.data
        if id(weight) not in norms and weight.is_floating_point():
            cast = cast.to(dtype)
        memo[id(weight)] = nn.Parameter(cast, requires_grad=False)
    return copy.deepcopy(network, memo).eval()
