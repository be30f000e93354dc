"""A decoder's blocks as a list of the engine's operations.

What the engine computes is what the modules say, read from them once: norms, joined projections,
attention over the cache, MLPs, each added to the residual stream as its wrapper does.
"""

import ctypes
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.nn.attention import CrossAttention, SelfAttention
from bedstone.nn.blocks import Gated, PostNorm, PreNorm
from bedstone.nn.fast import kernels
from bedstone.nn.fast.panels import (
    DEPTH, INT4, SIDE, Panels, address, interleaved, joined, linear_kind, panels, up,
)  # fmt: skip
from bedstone.nn.layers import MLP, GatedMLP, LayerNorm, RMSNorm, gelu_tanh, quick_gelu
from bedstone.nn.lora import LoRALinear
from bedstone.nn.quantize import QuantizedLinear

EMBED, NORM, PRODUCT, GATED, SELF, CROSS = range(6)
X, QKV, MIXED, HIDDEN, OUT, LOGITS = range(6)  # buffers
ACTIVATIONS = {
    F.silu: 1, F.gelu: 2, gelu_tanh: 3, quick_gelu: 4, F.relu: 5, torch.tanh: 6,
}  # fmt: skip


class NotPossible(Exception):
    """The engine has no form of a module; its message names it."""


class Program:
    """Operations, and the weights that they read.

    Attributes:
        ops: in order.
        widths: of the buffers' rows, in numbers.
        deepest: the most inputs of a product, padded.
    """

    def __init__(self) -> None:
        self.ops: list[kernels.Op] = []
        self.widths = [0] * 6
        self.deepest = DEPTH
        self.weights: list[Panels] = []
        self._kept: list[Any] = []  # what structures point to
        self._array: ctypes.Array[kernels.Op] | None = None

    @property
    def array(self) -> ctypes.Array[kernels.Op]:
        """The operations as the engine takes them."""
        if self._array is None:
            self._array = (kernels.Op * len(self.ops))(*self.ops)
        return self._array

    @property
    def nbytes(self) -> int:
        """Of all weights that one step reads."""
        return sum(part.nbytes for part in self.weights)

    def add(
        self,
        code: int,
        source: int,
        target: int,
        weights: Panels | None = None,
        *,
        norm: nn.Module | None = None,
        attention: kernels.Attention | None = None,
        adds: float | None = None,
        activation: int = 0,
        layer: int = 0,
    ) -> None:
        """One more operation; `adds` is the factor of what is added to the target."""
        op = kernels.Op(code, source, target, adds is not None, activation, layer, adds or 0.0)
        op.norm = self.norm(norm)
        if weights is not None:
            op.weights = ctypes.pointer(weights.struct)
            self.weights.append(weights)
            self.deepest = max(self.deepest, weights.ins)
            if code != EMBED:
                self._widen(source, weights.ins)
                self._widen(target, weights.outs // 2 if code == GATED else weights.outs)
        if attention is not None:
            op.attention = ctypes.pointer(attention)
            self._kept.append(attention)
        self.ops.append(op)

    def _widen(self, buffer: int, width: int) -> None:
        self.widths[buffer] = max(self.widths[buffer], up(width, DEPTH))

    def norm(self, module: nn.Module | None) -> kernels.Norm:
        """A norm's numbers, in fp32."""
        if module is None or isinstance(module, nn.Identity):
            return kernels.Norm()
        if type(module) not in (RMSNorm, LayerNorm):
            raise NotPossible(f"a norm of {type(module).__name__}")
        weight, bias = (
            None if part is None else part.detach().float().contiguous()
            for part in (module.weight, getattr(module, "bias", None))
        )
        self._kept += [weight, bias]
        assert weight is not None
        kind = 1 if type(module) is RMSNorm else 2
        return kernels.Norm(kind, len(weight), module.eps, address(weight), address(bias))

    def blocks(self, stack: nn.Module, kind: int) -> None:
        """All blocks' operations on the residual stream X."""
        for layer, block in enumerate(stack.children()):
            for wrapper in block.children():
                self._sublayer(wrapper, layer, kind)

    def _sublayer(self, wrapper: Any, layer: int, kind: int) -> None:
        if type(wrapper) not in (PreNorm, PostNorm, Gated):
            raise NotPossible(f"a sublayer in {type(wrapper).__name__}")
        before = None if type(wrapper) is PostNorm else wrapper.norm
        factor = math.tanh(float(wrapper.gate)) if type(wrapper) is Gated else 1.0
        sublayer = wrapper.sublayer
        if type(sublayer) is SelfAttention:
            self._self_attention(sublayer, before, factor, layer, kind)
        elif type(sublayer) is MLP:
            self.add(
                PRODUCT, X, HIDDEN, product(sublayer.up, kind), norm=before,
                activation=_activation(sublayer.activation),
            )  # fmt: skip
            self.add(PRODUCT, HIDDEN, X, product(sublayer.down, kind), adds=factor)
        elif type(sublayer) is GatedMLP:
            both = interleaved(product(sublayer.gate, kind), product(sublayer.up, kind))
            self.add(
                GATED, X, HIDDEN, both, norm=before, activation=_activation(sublayer.activation)
            )
            self.add(PRODUCT, HIDDEN, X, product(sublayer.down, kind), adds=factor)
        else:
            raise NotPossible(f"a sublayer of {type(sublayer).__name__}")
        if type(wrapper) is PostNorm:
            self.add(NORM, X, X, norm=wrapper.norm)

    def _self_attention(
        self, source: SelfAttention, norm: nn.Module | None, factor: float, layer: int, kind: int
    ) -> None:
        width = source.head_width
        padded = up(width, SIDE)
        heads = source.q.out_features // width
        rows = {"row_spread": (width, padded)}
        parts = [product(part, kind, **rows) for part in (source.q, source.k, source.v)]
        if len({part.kind for part in parts}) > 1:
            raise NotPossible("projections of queries, keys and values in different precisions")
        self.add(PRODUCT, X, QKV, joined(parts), norm=norm)
        attention = kernels.Attention(
            heads, source.k.out_features // width, width, padded, source.window or 0,
            width**-0.5 if source.scale is None else source.scale,
            self.norm(source.q_norm), self.norm(source.k_norm),
        )  # fmt: skip
        self.add(SELF, QKV, MIXED, attention=attention, layer=layer)
        out = product(source.out, kind, column_spread=(width, padded))
        self.add(PRODUCT, MIXED, X, out, adds=factor)


def product(
    layer: nn.Module,
    kind: int,
    *,
    row_spread: tuple[int, int] = (1, 1),
    column_spread: tuple[int, int] = (1, 1),
) -> Panels:
    """A linear layer's weight in panels; an adapter in use is merged.

    Raises:
        NotPossible: it is no plain linear layer, or its codes don't fit the engine's groups.
    """
    if isinstance(layer, LoRALinear):
        layer = layer.plain()
    own = linear_kind(layer, kind)
    if own is None or (own == INT4 and column_spread[0] != column_spread[1]):
        raise NotPossible(f"a layer of {type(layer).__name__}")
    weight: Tensor | QuantizedLinear = (
        layer if isinstance(layer, QuantizedLinear) else layer.weight  # type: ignore[assignment]
    )
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    return panels(weight, own, bias=bias, row_spread=row_spread, column_spread=column_spread)


def _activation(function: Any) -> int:
    if function not in ACTIVATIONS:
        raise NotPossible(f"the activation {getattr(function, '__name__', function)}")
    return ACTIVATIONS[function]


def is_cross(module: nn.Module) -> bool:
    """Whether it attends to a memory."""
    return isinstance(module, CrossAttention)
