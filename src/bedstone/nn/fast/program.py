"""A decoder's blocks as a list of the engine's operations.

What the engine computes is what the modules say, read from them once: norms, joined projections,
attention over the cache, MLPs, each added to the residual stream.
"""

import ctypes
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.nn.attention import SelfAttention
from bedstone.nn.blocks import PreNorm
from bedstone.nn.fast import kernels
from bedstone.nn.fast.panels import (
    DEPTH,
    SIDE,
    Panels,
    address,
    interleaved,
    joined,
    panels,
    up,
)  # fmt: skip
from bedstone.nn.gptq import codes_for_inference
from bedstone.nn.layers import MLP, GatedMLP, LayerNorm, RMSNorm, gelu_tanh, quick_gelu
from bedstone.nn.lora import LoRALinear
from bedstone.nn.quantize import Codes, Quantized

EMBED, NORM, PRODUCT, GATED, SELF = range(5)
X, QKV, MIXED, HIDDEN, OUT, LOGITS = range(6)  # buffers
ACTIVATIONS = {
    F.silu: 1, F.gelu: 2, gelu_tanh: 3, quick_gelu: 4, F.relu: 5, torch.tanh: 6,
}  # fmt: skip

PAGE = 4096
# Inputs of codes are rounded to 8 bits, and to 16 in groups whose squared scale is above so many
# times the mean: a sixth of them in SmolLM2. None is rounded to 8 where fp32 is asked for.
COARSE = 2.0


class NotPossible(Exception):
    """The engine has no form of a module; its message names it."""


class Layers:
    """A network's linear layers in panels, each in the precision that it is to have.

    Args:
        kind: of what isn't quantised, FP32 or BF16.
        bits: 8 or 4 quantises as `for_inference` does; codes that are there stay as they are.
    """

    def __init__(self, network: nn.Module, kind: int, bits: int | None) -> None:
        self.kind = kind
        codes = codes_for_inference(network, bits) if bits else {}
        self._codes = {id(network.get_submodule(path)): each for path, each in codes.items()}

    def weight(self, layer: Any) -> Tensor | Codes:
        """A layer's weight or codes; an adapter in use is merged.

        Raises:
            NotPossible: it is neither linear nor a table.
        """
        if isinstance(layer, Quantized):
            return layer.held
        if id(layer) in self._codes:
            return self._codes[id(layer)]
        if isinstance(layer, LoRALinear):
            layer = layer.plain()
        elif type(layer) not in (nn.Linear, nn.Embedding):
            raise NotPossible(f"a layer of {type(layer).__name__}")
        weight: Tensor = layer.weight
        return weight

    def panels(self, layer: Any, **spreads: tuple[int, int]) -> Panels:
        """A layer in panels, with its bias; `spreads` as `panels` takes them."""
        bias = getattr(layer, "bias", None)
        return panels(self.weight(layer), self.kind, bias=bias, **spreads)


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

    def then(self, code: int, source: int, target: int, weights: Panels) -> "Program":
        """These operations and one more, in a program of its own."""
        longer = Program()
        longer.ops, longer.weights = list(self.ops), list(self.weights)
        longer.widths, longer.deepest = list(self.widths), self.deepest
        longer._kept = [self]
        longer.add(code, source, target, weights)
        return longer

    def settle(self) -> None:
        """Moves the weights side by side into large pages, in the order in which they are read."""
        own = {id(part): part for part in self.weights}.values()
        spot, places = 0, []
        for part in own:
            places.append(spot)
            spot = up(spot + part.data.nbytes, PAGE)
        arena = kernels.large_pages(spot)
        for part, start in zip(own, places, strict=True):
            room = arena[start : start + part.data.nbytes].view(part.data.dtype)
            part.data = room.view(part.data.shape).copy_(part.data)
            part.struct.data = part.data.data_ptr()

    def products(self) -> "Program":
        """Its products alone, to see what they take."""
        part = Program()
        part.ops = [op for op in self.ops if op.code in (PRODUCT, GATED)]
        part.widths, part.deepest, part._kept = self.widths, self.deepest, [self]
        return part

    def add(
        self,
        code: int,
        source: int,
        target: int,
        weights: Panels | None = None,
        *,
        norm: nn.Module | None = None,
        attention: kernels.Attention | None = None,
        adds: bool = False,
        activation: int = 0,
        layer: int = 0,
        offset: int = 0,
    ) -> None:
        """One more operation.

        Args:
            adds: whether a product is added to what the target holds, or takes its place.
            offset: where in the target's rows a product begins.
        """
        op = kernels.Op(code, source, target, offset, adds, activation, layer)
        op.norm = self.norm(norm)
        if weights is not None:
            op.weights = ctypes.pointer(weights.struct)
            self.weights.append(weights)
            self.deepest = max(self.deepest, weights.ins)
            if code != EMBED:
                self._widen(source, weights.ins)
                outs = weights.outs // 2 if code == GATED else weights.outs
                self._widen(target, offset + outs)
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
        given: Any = module
        weight, bias = (
            None if part is None else part.detach().float().contiguous()
            for part in (given.weight, getattr(given, "bias", None))
        )
        self._kept += [weight, bias]
        assert weight is not None
        kind = 1 if type(module) is RMSNorm else 2
        return kernels.Norm(kind, len(weight), given.eps, address(weight), address(bias))

    def blocks(self, stack: nn.Module, layers: Layers) -> None:
        """All blocks' operations on the residual stream X."""
        for number, block in enumerate(stack.children()):
            for wrapper in block.children():
                self._sublayer(wrapper, number, layers)

    def _sublayer(self, wrapper: Any, number: int, layers: Layers) -> None:
        if type(wrapper) is not PreNorm:
            raise NotPossible(f"a sublayer in {type(wrapper).__name__}")
        before, sublayer = wrapper.norm, wrapper.sublayer
        if type(sublayer) is SelfAttention:
            self._self_attention(sublayer, before, number, layers)
        elif type(sublayer) is MLP:
            self.add(
                PRODUCT, X, HIDDEN, layers.panels(sublayer.up), norm=before,
                activation=_activation(sublayer.activation),
            )  # fmt: skip
            self.add(PRODUCT, HIDDEN, X, layers.panels(sublayer.down), adds=True)
        elif type(sublayer) is GatedMLP:
            gate, opened = layers.panels(sublayer.gate), layers.panels(sublayer.up)
            if (gate.kind, gate.group) != (opened.kind, opened.group):
                raise NotPossible("a gate in another precision than what it opens")
            both = interleaved(gate, opened)
            self.add(
                GATED, X, HIDDEN, both, norm=before, activation=_activation(sublayer.activation)
            )
            self.add(PRODUCT, HIDDEN, X, layers.panels(sublayer.down), adds=True)
        else:
            raise NotPossible(f"a sublayer of {type(sublayer).__name__}")

    def _self_attention(
        self, source: SelfAttention, norm: nn.Module, number: int, layers: Layers
    ) -> None:
        width = source.head_width
        padded = up(width, SIDE)
        heads, groups = source.q.out_features // width, source.k.out_features // width
        parts = [
            layers.panels(part, row_spread=(width, padded))
            for part in (source.q, source.k, source.v)
        ]
        offset = 0
        for _, some in groupby(parts, lambda part: (part.kind, part.group)):
            both = joined(list(some))
            self.add(PRODUCT, X, QKV, both, norm=norm, offset=offset)
            offset += both.outs
        attention = kernels.Attention(
            heads, groups, width, padded, source.window or 0,
            width**-0.5 if source.scale is None else source.scale,
            self.norm(source.q_norm), self.norm(source.k_norm),
        )  # fmt: skip
        self.add(SELF, QKV, MIXED, attention=attention, layer=number)
        out = layers.panels(source.out, column_spread=(width, padded))
        self.add(PRODUCT, MIXED, X, out, adds=True)


def _activation(function: Any) -> int:
    if function not in ACTIVATIONS:
        raise NotPossible(f"the activation {getattr(function, '__name__', function)}")
    return ACTIVATIONS[function]
