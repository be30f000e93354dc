"""A decoder's blocks as a list of the engine's operations.

What the engine computes is what the modules say, read from them once: norms, joined projections,
attention over the cache or a memory, MLPs, each added to the residual stream.
"""

import ctypes
import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.nn.attention import CrossAttention, SelfAttention
from bedstone.nn.blocks import Gated, PostNorm, PreNorm
from bedstone.nn.fast import kernels
from bedstone.nn.fast.panels import (
    DEPTH,
    SIDE,
    Later,
    Panels,
    address,
    interleaved,
    joined,
    panels,
    up,
)  # fmt: skip
from bedstone.nn.gptq import Coder
from bedstone.nn.layers import MLP, GatedMLP, LayerNorm, RMSNorm, gelu_tanh, quick_gelu
from bedstone.nn.lora import Adapted, LoRALinear
from bedstone.nn.positions import RelativeBias
from bedstone.nn.quantize import Codes, Quantized

EMBED, NORM, PRODUCT, GATED, SELF, KEEP, CROSS = range(7)
X, QKV, MIXED, HIDDEN, OUT, LOGITS = range(6)  # buffers
ACTIVATIONS = {
    F.silu: 1, F.gelu: 2, gelu_tanh: 3, quick_gelu: 4, F.relu: 5, torch.tanh: 6,
}  # fmt: skip

PAGE = 4096
# Inputs of codes are rounded to 8 bits, and to 16 in groups of 32 whose largest number is above so
# many times the usual group's. None is rounded to 8 where fp32 is asked for. Of SmolLM2's int8
# divergence from fp32 (KL), weights make 0.0035 and inputs 0.0012; they would make 0.0008 at 1.25
# and 0.0023 at 2, where prompts are read 0.9 and 1.1 times as fast.
COARSE = 1.5


class NotPossible(Exception):
    """The engine has no form of a module; its message names it."""


@dataclass(frozen=True)
class DecoderParts:
    """The modules of a decoder, by what they do; a network's `decoder_parts` gives them.

    Attributes:
        config: `context` and `vocab_size`.
        embed: words; its vectors are multiplied by `factor`.
        stack: the blocks.
        head: of words: linear, or `models.heads.Head`.
        tied: whether its matrix is the embedding.
        positions: what is added to words; a module of positions (1, T).
        embed_norm: of their sum.
        rotary: of queries and keys.
        bias: added to scores of self-attention.
        norm: of the last block's states.
    """

    config: Any
    embed: Any
    stack: nn.Module
    head: Any
    tied: bool
    factor: float = 1.0
    positions: nn.Module | None = None
    embed_norm: nn.Module | None = None
    rotary: Any = None
    bias: RelativeBias | None = None
    norm: nn.Module | None = None


class Layers:
    """A network's linear layers in panels, each in the precision that it is to have.

    Args:
        kind: of what isn't quantised, FP32 or BF16.
        bits: 8 or 4 quantises as `for_inference` does; codes that are there stay as they are.
    """

    def __init__(self, network: nn.Module, kind: int, bits: int | None) -> None:
        self.kind = kind
        self._coder = Coder(network, bits) if bits else None
        kinds = self._coder.kinds if self._coder is not None else {}
        self._kinds = {id(network.get_submodule(path)): path for path in kinds}

    def weight(self, layer: Any) -> Tensor | Codes | Later:
        """A layer's weight or codes; an adapter in use is merged.

        Raises:
            NotPossible: it is neither linear nor a table, or an adapter stands beside its codes.
        """
        if isinstance(layer, Quantized):
            if isinstance(layer, Adapted) and layer.adapter() is not None:
                raise NotPossible("an adapter over quantised weights")
            return layer.held
        if self._coder is not None and (path := self._kinds.get(id(layer))) is not None:
            group = self._coder.kinds[path]
            return Later(layer.weight, partial(self._coder.open, path), 4 if group else 8, group)
        if isinstance(layer, LoRALinear):
            return Later(layer.weight, lambda: layer.merged().__getitem__)
        if type(layer) not in (nn.Linear, nn.Embedding):
            raise NotPossible(f"a layer of {type(layer).__name__}")
        weight: Tensor = layer.weight
        return weight

    def panels(self, layer: Any, factor: float = 1.0, **spreads: tuple[int, int]) -> Panels:
        """A layer times a factor in panels, with its bias; `spreads` as `panels` takes them."""
        bias = getattr(layer, "bias", None)
        return panels(self.weight(layer), self.kind, bias=bias, factor=factor, **spreads)


class Program:
    """Operations, and the weights that they read.

    Attributes:
        ops: in order.
        widths: of the buffers' rows, in numbers.
        deepest: the most inputs of a product, padded.
        heads: of self-attention: query heads, key/value heads, their width.
        crosses: cross-attention, in order.
    """

    def __init__(self) -> None:
        self.ops: list[kernels.Op] = []
        self.heads: set[tuple[int, int, int]] = set()
        self.crosses: list[tuple[CrossAttention, kernels.Attention]] = []
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

    def then(self, other: "Program") -> "Program":
        """These operations and those of another, in a program of its own."""
        longer = Program()
        longer.ops, longer.weights = self.ops + other.ops, self.weights + other.weights
        longer.widths = [max(pair) for pair in zip(self.widths, other.widths, strict=True)]
        longer.deepest = max(self.deepest, other.deepest)
        longer._kept = [self, other]
        return longer

    def settle(self) -> None:
        """Writes the weights side by side into large pages, in the order in which they are read."""
        own = list({id(part): part for part in self.weights}.values())
        spots = [0, *itertools.accumulate(up(part.size, PAGE) for part in own)]
        arena = kernels.large_pages(spots[-1])
        for part, start in zip(own, spots, strict=False):
            part.settle(arena[start : start + part.size])

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
        factor: float = 1.0,
    ) -> None:
        """One more operation.

        Args:
            adds: whether a product is added to what the target holds, or takes its place.
            offset: where in the target's rows a product begins.
            factor: of what is embedded.
        """
        op = kernels.Op(code, source, target, offset, adds, 0, 0, activation, layer, factor)
        op.norm = self.norm(norm)
        if weights is not None:
            op.weights = ctypes.pointer(weights.struct)
            self.weights.append(weights)
            self.deepest = max(self.deepest, weights.ins)
            self._widen(source, weights.ins)
            if code != EMBED:
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
        if type(wrapper) not in (PreNorm, PostNorm, Gated):
            raise NotPossible(f"a sublayer in {type(wrapper).__name__}")
        sublayer = wrapper.sublayer
        before = None if type(wrapper) is PostNorm else wrapper.norm
        opened = float(wrapper.gate.detach().tanh()) if type(wrapper) is Gated else 1.0
        if type(sublayer) is SelfAttention:
            self._self_attention(sublayer, before, number, layers, opened)
        elif type(sublayer) is CrossAttention:
            self._cross_attention(sublayer, before, layers, opened)
        elif type(sublayer) is MLP:
            self.add(
                PRODUCT, X, HIDDEN, layers.panels(sublayer.up), norm=before,
                activation=activation_of(sublayer.activation),
            )  # fmt: skip
            self.add(PRODUCT, HIDDEN, X, layers.panels(sublayer.down, opened), adds=True)
        elif type(sublayer) is GatedMLP:
            gate, up_ = layers.panels(sublayer.gate), layers.panels(sublayer.up)
            if (gate.kind, gate.group) != (up_.kind, up_.group):
                raise NotPossible("a gate in another precision than what it opens")
            self.add(
                GATED, X, HIDDEN, interleaved(gate, up_), norm=before,
                activation=activation_of(sublayer.activation),
            )  # fmt: skip
            self.add(PRODUCT, HIDDEN, X, layers.panels(sublayer.down, opened), adds=True)
        else:
            raise NotPossible(f"a sublayer of {type(sublayer).__name__}")
        if type(wrapper) is PostNorm:
            self.add(NORM, X, X, norm=wrapper.norm)

    def _self_attention(
        self,
        source: SelfAttention,
        norm: nn.Module | None,
        number: int,
        layers: Layers,
        opened: float,
    ) -> None:
        self._projections([source.q, source.k, source.v], source.head_width, norm, layers)
        attention = self._attention(source)
        attention.window = source.window or 0
        attention.q_norm, attention.k_norm = self.norm(source.q_norm), self.norm(source.k_norm)
        self.heads.add((attention.heads, attention.groups, attention.padded))
        self.add(SELF, QKV, MIXED, attention=attention, layer=number)
        self._mixed(source, layers, opened)

    def _cross_attention(
        self,
        source: CrossAttention,
        norm: nn.Module | None,
        layers: Layers,
        opened: float,
    ) -> None:
        self._projections([source.q], source.head_width, norm, layers)
        attention = self._attention(source)
        self.crosses.append((source, attention))
        self.add(CROSS, QKV, MIXED, attention=attention, layer=len(self.crosses) - 1)
        self._mixed(source, layers, opened)

    def memory(self, layers: Layers) -> "Program":
        """Keys and values of a memory's states, which stand in X, for each cross-attention."""
        made = Program()
        for place, (source, attention) in enumerate(self.crosses):
            made._projections([source.k, source.v], source.head_width, None, layers)
            made.add(KEEP, QKV, QKV, attention=attention, layer=place)
        return made

    def _attention(self, source: SelfAttention | CrossAttention) -> kernels.Attention:
        width = source.head_width
        heads, groups = source.q.out_features // width, source.k.out_features // width
        scale = width**-0.5 if source.scale is None else source.scale
        return kernels.Attention(heads, groups, width, up(width, SIDE), 0, scale)

    def _projections(
        self, parts: list[nn.Module], width: int, norm: nn.Module | None, layers: Layers
    ) -> None:
        """Queries, keys, values into QKV, in as few products as their precisions let."""
        spread = (width, up(width, SIDE))
        offset = 0
        made = [layers.panels(part, row_spread=spread) for part in parts]
        for _, some in itertools.groupby(made, lambda part: (part.kind, part.group)):
            both = joined(list(some))
            self.add(PRODUCT, X, QKV, both, norm=norm, offset=offset)
            offset += both.outs

    def _mixed(self, source: SelfAttention | CrossAttention, layers: Layers, opened: float) -> None:
        """What attention mixed, through its last product, onto the residual stream."""
        spread = (source.head_width, up(source.head_width, SIDE))
        out = layers.panels(source.out, opened, column_spread=spread)
        self.add(PRODUCT, MIXED, X, out, adds=True)


def activation_of(function: Any) -> int:
    """The engine's number of an activation.

    Raises:
        NotPossible: it has none.
    """
    if function not in ACTIVATIONS:
        raise NotPossible(f"the activation {getattr(function, '__name__', function)}")
    return ACTIVATIONS[function]
