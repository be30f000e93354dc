"""A network made ready for inference: cast once, packed, products of one input joined.

Autocast would cast every weight again at each step; here that is done beforehand, on a copy
that is edited from outside. As under autocast, the residual stream and the norms stay fp32
and matrix products are in the precision asked for.
"""

import copy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.nn.attention import CrossAttention, SelfAttention
from bedstone.nn.blocks import AdaZero, Context, PostNorm, PreNorm, Stack
from bedstone.nn.conditioning import PlainNorm
from bedstone.nn.convolution import ConvNorm
from bedstone.nn.fast.decoder import LazyDecoder
from bedstone.nn.fast.frozen import PackedLinear
from bedstone.nn.fast.products import EngineLinear, fits
from bedstone.nn.fast.program import ACTIVATIONS
from bedstone.nn.gptq import codes_for_inference
from bedstone.nn.layers import MLP, GatedMLP, LayerNorm, RMSNorm, gelu_tanh, quick_gelu
from bedstone.nn.lora import LoRALinear
from bedstone.nn.masks import Documents
from bedstone.nn.patches import PatchEmbed, chosen, patchify
from bedstone.nn.positions import Frequencies, Grid, GridRotary, Rotary
from bedstone.nn.quantize import Quantized, QuantizedLinear, stand_in

MANY = 64  # rows of a product, where not one token is read at a time


class FusedAdaZero(nn.Module):
    """x + gate * sublayer(norm(x) * (1 + scale) + shift), and no dropout.

    What the norm and the sublayer give is their own, so that results take its place: a step's time
    goes to passes over memory as much as to products.
    """

    def __init__(self, source: AdaZero, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.sublayer, self.dtype = source.norm, source.sublayer, dtype
        self.modulation = source.modulation

    def forward(self, x: Tensor, context: Context) -> Tensor:
        modulation = self.modulation(context.condition).to(x.dtype)
        shift, scale, gate = modulation[:, None].chunk(3, dim=-1)  # (B, 1, D)
        normed = self.norm(x)
        modulated = torch.addcmul(shift, normed, 1 + scale, out=normed).to(self.dtype)
        given = self.sublayer(modulated, context).to(x.dtype)
        return torch.addcmul(x, gate, given, out=given)


def can_be_fused(module: nn.Module) -> bool:
    """Whether `FusedAdaZero` does the same: a norm that gave x itself would be written over."""
    return type(module) is AdaZero and isinstance(module.norm, PlainNorm)


class CastGridRotary(nn.Module):
    """Places in a grid in the precision of queries and keys; those of the usual grid once for all.

    In fp32 they would make fp32 of these, and of attention.
    """

    cos: Tensor  # (1, 1, T, W)
    sin: Tensor

    def __init__(self, source: GridRotary, dtype: torch.dtype) -> None:
        super().__init__()
        self.source, self.dtype = source, dtype
        cos, sin = source(source.usual)
        self.register_buffer("cos", cos.to(dtype), persistent=False)
        self.register_buffer("sin", sin.to(dtype), persistent=False)

    def forward(self, grid: Grid) -> tuple[Tensor, Tensor]:
        if grid == self.source.usual:
            return self.cos, self.sin
        cos, sin = self.source(grid)
        return cos.to(self.dtype), sin.to(self.dtype)


Network = TypeVar("Network", bound=nn.Module)
_MARK = "_ready_for"  # the dtype of products, and the bits of weights that were quantised for it
FUSED = {
    F.gelu: ("gelu", "none"),
    gelu_tanh: ("gelu", "tanh"),
    F.relu: ("relu", ""),
    F.silu: ("swish", ""),
}
QUICK = 1.702  # of quick_gelu


def for_inference(network: Network, dtype: torch.dtype, bits: int | None = None) -> Network:
    """A copy of `network` that computes its matrix products in `dtype` (fp32 or bf16).

    The original stays as it is; the copy can be neither trained nor saved. Norms share the
    original's weights. The copy holds its matrices once, and a head that is tied to the
    embedding a second time in packed form, where the processor packs. An adapter in use is
    merged into the copy; over quantised layers it stays beside them.

    Args:
        bits: 8 or 4 quantises what `kinds_for_inference` names, unless it is quantised already;
            codes that the network holds are the copy's too. On other devices than the CPU such
            weights save memory, and are made whole for each product.

    Raises:
        BedstoneError: weights that can't be quantised, as `nn.quantize.encode`.
    """
    norms = {
        id(weight)
        for module in network.modules()
        if isinstance(module, LayerNorm | RMSNorm)
        for weight in module.parameters()
    }
    memo: dict[int, object] = {}  # what deepcopy takes instead of a parameter or a module
    for module in network.modules():
        if isinstance(module, Quantized):
            memo |= {id(codes): codes for codes in module.buffers(recurse=False)}
    if bits:
        memo |= _quantised(network, dtype, bits)
    for module in network.modules():
        if id(module) in memo:
            continue
        if isinstance(module, LoRALinear):  # the adapter in use goes into the copy's weights
            memo[id(module)] = _cast(module.plain(), dtype)
        elif isinstance(module, ConvNorm):
            memo[id(module)] = module.folded(dtype)
        for weight in module.parameters(recurse=False):
            cast = weight.detach()
            if id(weight) not in norms and weight.is_floating_point():
                cast = cast.to(dtype)
            memo[id(weight)] = nn.Parameter(cast, requires_grad=False)
    for module in network.modules():
        if isinstance(module, MLP) and id(module.up) not in memo and _is_quick(module):
            memo[id(module)] = _as_swish(module, dtype)
    ready = copy.deepcopy(network, memo)
    _edit(ready, dtype, bits is not None)
    rows = 1 if getattr(network, "causal", False) else MANY  # of the products that cost the most
    for module in ready.modules():
        if isinstance(module, PackedLinear):
            module.lay_out(rows)
        elif isinstance(module, EngineLinear):
            module.dtype = dtype
    ready.eval()  # the new parts too: some drop out in training
    setattr(ready, _MARK, (dtype, bits))
    if hasattr(network, "decoder_parts") and hasattr(network, "writer"):
        ready.engine = LazyDecoder(network, dtype, bits)  # type: ignore[assignment]
    return ready


def _quantised(network: nn.Module, dtype: torch.dtype, bits: int) -> dict[int, object]:
    """Quantised layers by the ids of those whose places they take."""
    found: dict[int, object] = {}
    for path, codes in codes_for_inference(network, bits).items():
        module: Any = network.get_submodule(path)
        plain = module.plain() if isinstance(module, LoRALinear) else module
        found[id(module)] = _cast(stand_in(plain, codes), dtype)
    return found


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A new module, its weights in a precision and frozen."""
    for name, weight in list(module.named_parameters()):
        setattr(module, name, nn.Parameter(weight.detach().to(dtype), requires_grad=False))
    return module


def _is_quick(mlp: MLP) -> bool:
    """Whether it is a plain MLP of CLIP's activation."""
    plain = type(mlp) is MLP and _all_linear(mlp.up, mlp.down)
    return plain and mlp.activation is quick_gelu


def _as_swish(mlp: MLP, dtype: torch.dtype) -> MLP:
    """The same MLP with an activation that fuses: x sigmoid(s x) is swish(s x) / s.

    The factors go into the weights before those are rounded.
    """
    twin = MLP(1, 1, F.silu, bias=False)
    for own, source, factor in ((twin.up, mlp.up, QUICK), (twin.down, mlp.down, 1 / QUICK)):
        own.weight = nn.Parameter((source.weight.detach() * factor).to(dtype), False)
        if source.bias is not None:
            bias = source.bias.detach() * (QUICK if source is mlp.up else 1.0)
            own.bias = nn.Parameter(bias.to(dtype), False)
    return twin


def inference_dtype(network: object) -> torch.dtype | None:
    """The precision that `for_inference` made a network ready for; None for any other."""
    return getattr(network, _MARK, (None, None))[0]


def inference_bits(network: object) -> int | None:
    """The bits of weights that `for_inference` was to quantise; None where it was not."""
    return getattr(network, _MARK, (None, None))[1]


def _edit(module: nn.Module, dtype: torch.dtype, coded: bool) -> None:
    """Puts a faster module in the place of each one that has one, children of children too.

    Args:
        coded: whether inputs of quantised layers may be rounded to 8 bits.
    """
    for name, child in module.named_children():
        if isinstance(child, SelfAttention) and _can_join(coded, child.q, child.k, child.v):
            child = JoinedAttention(child)
        elif type(child) is CrossAttention and _can_join(coded, child.k, child.v):
            child = JoinedCross(child)
        elif isinstance(child, GatedMLP) and _can_join(coded, child.gate, child.up):
            child = JoinedGatedMLP(child)
        elif type(child) is MLP and _can_fuse(coded, child):
            child = FusedMLP(child)
        elif type(child) is PreNorm:
            child = FusedPreNorm(child)
        elif type(child) is PostNorm:
            child = FusedPostNorm(child, dtype)
        elif can_be_fused(child):
            child = FusedAdaZero(child, dtype)  # type: ignore[arg-type]
        elif type(child) is RMSNorm:
            child = FusedRMSNorm(child)
        elif type(child) is nn.Linear:
            child = PackedLinear(child.weight, child.bias)
        elif coded and fits(child):
            child = EngineLinear(child)  # type: ignore[arg-type]
        elif isinstance(child, Quantized):
            child.dtype = dtype
        elif type(child) is PatchEmbed:
            child = FusedPatchEmbed(child)
        elif type(child) is nn.Embedding:
            child = WideEmbedding(child)
        elif type(child) is Rotary:
            setattr(module, name, CastRotary(child, dtype))
            continue
        elif type(child) is GridRotary:
            setattr(module, name, CastGridRotary(child, dtype))
            continue
        setattr(module, name, child)
        _edit(child, dtype, coded)


def _all_linear(*modules: nn.Module) -> bool:
    """Whether all are plain linear layers; what an adapter has replaced isn't."""
    return all(type(module) is nn.Linear for module in modules)


def _can_join(coded: bool, *modules: nn.Module) -> bool:
    """Whether one product can take the place of these."""
    return _all_linear(*modules) or (coded and fits(*modules))


def _can_fuse(coded: bool, mlp: MLP) -> bool:
    """Whether an MLP's activation can be part of its first product."""
    if coded and fits(mlp.up):
        return mlp.activation in ACTIVATIONS
    return mlp.activation in FUSED and _all_linear(mlp.up)


def _join(*linears: Any, after: Any = None) -> nn.Module:
    """One layer that gives the outputs of all, side by side, `after` an activation."""
    if isinstance(linears[0], QuantizedLinear):
        return EngineLinear(*linears, activation=after)
    if after is not None:
        return PackedLinear(linears[0].weight, linears[0].bias, FUSED[after])
    biases = [linear.bias for linear in linears if linear.bias is not None]
    weight = torch.cat([linear.weight.detach() for linear in linears])
    return PackedLinear(weight, torch.cat([b.detach() for b in biases]) if biases else None)


class JoinedAttention(SelfAttention):
    """Self-attention whose queries, keys and values come from one product."""

    def __init__(self, source: SelfAttention) -> None:
        nn.Module.__init__(self)
        self.head_width = source.head_width
        self.qkv = _join(source.q, source.k, source.v)
        self.kv_heads = source.k.out_features // source.head_width
        self.out = source.out
        self.q_norm, self.k_norm = source.q_norm, source.k_norm
        self.window, self.scale, self.dropout = source.window, source.scale, source.dropout

    def project(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = x.shape
        joined = self.qkv(x).view(batch, length, -1, self.head_width)  # (B, T, H + 2 G, W)
        heads = joined.shape[2] - 2 * self.kv_heads
        if isinstance(self.q_norm, nn.Identity) and isinstance(self.k_norm, nn.Identity):
            qk, v = joined.transpose(1, 2).split((heads + self.kv_heads, self.kv_heads), 1)
        else:
            q, k, v = joined.split((heads, self.kv_heads, self.kv_heads), 2)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), 2).transpose(1, 2)
            v = v.transpose(1, 2)
        if context.rotation is not None:
            qk = _turn(qk, *context.rotation)
        q, k = qk.split((heads, self.kv_heads), 1)
        return q, k, v


class JoinedCross(CrossAttention):
    """Cross-attention whose keys and values come from one product."""

    def __init__(self, source: CrossAttention) -> None:
        nn.Module.__init__(self)
        self.head_width = source.head_width
        self.q, self.out = source.q, source.out
        self.kv = _join(source.k, source.v)
        self.scale, self.dropout = source.scale, source.dropout

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        joined = self.kv(memory).unflatten(-1, (-1, self.head_width))  # (P, S, 2 G, W)
        k, v = joined.chunk(2, 2)
        return k, v


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`positions.rotate` in as few operations as there are without a gradient to keep."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second.neg(), first), -1), sin)


class FusedPreNorm(nn.Module):
    """x + sublayer(norm(x)), and no dropout to pass through."""

    def __init__(self, source: PreNorm) -> None:
        super().__init__()
        self.norm, self.sublayer = source.norm, source.sublayer

    def forward(self, x: Tensor, context: Context) -> Tensor:
        # what the sublayer gives is its own, so the sum may take its place
        return self.sublayer(self.norm(x), context).to(x.dtype).add_(x)

    def at(self, x: Tensor, context: Context, read: Tensor) -> Tensor:
        """The same for the tokens `read` alone."""
        sublayer: Any = self.sublayer
        mixed = sublayer.mix(self.norm(x), context).index_select(1, read)
        return x.index_select(1, read) + sublayer.out(mixed).to(x.dtype)


class FusedPostNorm(nn.Module):
    """norm(x + sublayer(x)), and no dropout; what the sublayer reads is cast once."""

    def __init__(self, source: PostNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.sublayer, self.dtype = source.norm, source.sublayer, dtype

    def forward(self, x: Tensor, context: Context) -> Tensor:
        # Tensors of two dtypes add many times slower than one cast and a sum.
        return self.norm(self.sublayer(x.to(self.dtype), context).to(x.dtype).add_(x))


class FusedRMSNorm(nn.Module):
    """x / rms(x) * weight, in fp32, in as few operations as there are without a gradient."""

    def __init__(self, source: RMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = source.weight, source.eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        rate = wide.square().mean(-1, keepdim=True).add_(self.eps).rsqrt_()
        return (wide * rate).mul_(self.weight).to(x.dtype)


class FusedMLP(nn.Module):
    """down(activation(up(x))), the activation inside the first product."""

    def __init__(self, source: MLP) -> None:
        super().__init__()
        self.up = _join(source.up, after=source.activation)
        self.down = source.down

    def forward(self, x: Tensor, context: object = None) -> Tensor:
        return self.down(self.up(x))


class JoinedGatedMLP(nn.Module):
    """A gated MLP whose gate and hidden values come from one product."""

    def __init__(self, source: GatedMLP) -> None:
        super().__init__()
        self.gate_up = _join(source.gate, source.up)
        self.down = source.down
        self.activation = source.activation

    def forward(self, x: Tensor, context: object = None) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.activation(gate).mul_(up))


class FusedPatchEmbed(nn.Module):
    """Patches through one packed product, to begin an fp32 residual stream."""

    def __init__(self, source: PatchEmbed) -> None:
        super().__init__()
        self.patch = source.patch
        self.map = PackedLinear(source.weight.flatten(1), source.bias)

    def forward(self, signal: Tensor, kept: Tensor | None = None) -> Tensor:
        tokens = patchify(signal.to(self.map.dtype), self.patch)
        return self.map(chosen(tokens, kept)).float()


class WideEmbedding(nn.Module):
    """An embedding of any precision that begins an fp32 residual stream."""

    def __init__(self, source: nn.Embedding) -> None:
        super().__init__()
        self.weight = source.weight

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight).float()


class CastRotary(nn.Module):
    """Rotary positions cast once a pass, not once a layer."""

    def __init__(self, source: Rotary, dtype: torch.dtype) -> None:
        super().__init__()
        self.rotary = source
        self.dtype = dtype

    @property
    def frequencies(self) -> Frequencies:
        """Those of its source."""
        return self.rotary.frequencies

    def forward(self, positions: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        cos, sin = self.rotary(positions, lengths)
        return cos.to(self.dtype), sin.to(self.dtype)


# Embeddings that stay the same to five digits of the cosine, with a part of the work in bf16.
#
# What bf16 rounds off in the MLPs of the last blocks passes through few layers, and a mean over
# many tokens takes most of it away. So these are computed in bf16, and all else, and whatever rows
# are short, in fp32. Of the real MiniLM's embeddings of 1,500 sentences that costs at most 7e-6 of
# the cosine, where bf16 everywhere costs up to 6e-5 (`bench/embed.py`).

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
                _join_precisions(part, its_twin, least)
    return ready


def _stacks(network: nn.Module) -> list[list[nn.Module]]:
    return [list(module) for module in network.modules() if isinstance(module, Stack)]


def _join_precisions(part: nn.Module, coarse: nn.Module, least: int) -> None:
    """Puts an MLP in both precisions in the place of a sublayer that is one."""
    mlp, rough = getattr(part, "sublayer", None), getattr(coarse, "sublayer", None)
    if isinstance(mlp, FusedMLP | JoinedGatedMLP) and isinstance(rough, nn.Module):
        part.sublayer = LateMLP(mlp, rough, least)


def _shortest(context: Context) -> int:
    """Tokens of the shortest of packed rows; 0 where rows aren't packed."""
    mask = context.mask
    if not isinstance(mask, Documents):
        return 0
    return min(end - start for start, end in mask.segments)
