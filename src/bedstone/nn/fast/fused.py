"""Training on a CPU: small chains of operations as one, each with its gradient by hand.

Where tensors are small, a step's time goes to the number of passes over memory, not to the
arithmetic. Autograd keeps an operation a link of the chain and makes a pass for each; written
as one, the norm and the rotation take half the time, and attention in bf16 a third (torch's
fused kernel has a slow backward pass in bf16 on processors without AMX; measured on AVX-512).

`usable` says where: a GPU has kernels of its own, and a compiler fuses the plain forms better.
Shapes: N rows, D width; B batch, H heads, G key/value heads, T tokens, W head width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 512  # tokens: attention keeps its (T x T) weights for the backward pass
CACHED = 2**20  # scores at a time where nothing is kept: they stay in the processor's cache


def usable(x: Tensor) -> bool:
    """Whether the functions here are the faster form for `x`."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, computed in fp32 at least, in x's dtype."""
    return _RMSNorm.apply(x, weight, eps)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Pairs (i, i + W/2) of x, (..., T, W), turned by angles of cosines and sines (..., T, W)."""
    return _Turn.apply(x, cos, sin)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    causal: bool,
    keep: Tensor | None = None,
) -> Tensor:
    """softmax(q k^T * scale) v; q is (B, H, T, W), k and v (B, G, K, W) with G dividing H.

    Args:
        keep: (B, K) bool, True where a key is real; all where None.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if causal or keep is not None or _learns(q, k, v):
        return _Attention.apply(q, k, v, scale, causal, keep)
    return _look(q, k, v, scale)


def attention_pays(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> bool:
    """Whether `attention` is faster than torch's own for these queries, keys and values.

    Without a gradient to keep it is where all keys are seen: by a fifth with the 50 tokens of a
    picture, by two fifths with 197 to 2,048, many times with one query and 577 keys (measured).
    """
    if q.dtype is not torch.bfloat16 or not usable(q):
        return False
    if _learns(q, k, v):
        return max(q.shape[2], k.shape[2]) <= LONGEST
    return not causal


def _learns(*parts: Tensor) -> bool:
    return torch.is_grad_enabled() and any(part.requires_grad for part in parts)


def _look(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention that keeps nothing, as many groups of heads at a time as the cache holds."""
    groups, keys, width = k.shape[0] * k.shape[1], k.shape[2], q.shape[-1]
    flat_q = q.reshape(groups, -1, width)  # heads of a group: more rows, (BG, RT, W)
    flat_k, flat_v = (x.reshape(groups, keys, width) for x in (k, v))
    out = torch.empty_like(flat_q)
    none = q.new_zeros(())
    some = max(1, CACHED // (flat_q.shape[1] * keys))
    for start in range(0, groups, some):
        part = slice(start, start + some)
        scores = torch.baddbmm(none, flat_q[part], flat_k[part].mT, beta=0, alpha=scale)
        torch.bmm(torch.softmax(scores, -1), flat_v[part], out=out[part])
    return out.view(q.shape)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rate = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # (N, 1)
        rate = rate.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rate)
        return (wide * rate).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        # y = w x r with r = (mean(x^2) + eps)^(-1/2), so for a gradient g of y
        # dx = r (g w - x r^2 mean(g w x)) and dw = sum(g x r).
        x, weight, rate = ctx.saved_tensors
        wide, gradient = x.to(rate.dtype), outputs[0].to(rate.dtype)
        for_weight = None
        if ctx.needs_input_grad[1]:
            product = (gradient * wide).mul_(rate)
            for_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
        for_x = gradient * weight
        shared = torch.linalg.vecdot(for_x, wide)[..., None] * rate.square() / x.shape[-1]
        for_x.addcmul_(wide, shared, value=-1.0).mul_(rate)
        return for_x.to(x.dtype), for_weight, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = x * cos
    out[..., :half].addcmul_(second, sin[..., :half], value=-sign)
    out[..., half:].addcmul_(first, sin[..., half:], value=sign)
    return out


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(outputs[0], cos, sin, -1.0), None, None  # the turn undone


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        causal: bool,
        keep: Tensor | None,
    ) -> Tensor:
        batch, heads, length, width = q.shape
        groups, keys = k.shape[1], k.shape[2]
        flat_q = q.reshape(batch * groups, -1, width)  # heads of a group: more rows, (BG, RT, W)
        flat_k, flat_v = (x.reshape(batch * groups, keys, width) for x in (k, v))
        bias = q.new_zeros(length, keys)
        if causal:
            bias.fill_(float("-inf")).triu_(1)
        bias = bias.repeat(heads // groups, 1)
        if keep is not None:
            unseen = ~keep.repeat_interleave(groups, 0)[:, None]  # (BG, 1, K)
            bias = bias.expand(len(unseen), -1, -1).masked_fill(unseen, float("-inf"))
        scores = torch.baddbmm(bias, flat_q, flat_k.mT, alpha=scale)  # (BG, RT, K)
        weights = torch.softmax(scores, -1)
        ctx.save_for_backward(flat_q, flat_k, flat_v, weights)
        ctx.scale, ctx.shapes = scale, (q.shape, k.shape)
        return torch.bmm(weights, flat_v).view(q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        gradient = outputs[0].reshape(q.shape)
        for_v = torch.bmm(weights.mT, gradient)
        for_weights = torch.bmm(gradient, v.mT)
        for_scores = torch._softmax_backward_data(for_weights, weights, -1, weights.dtype)
        for_q = torch.bmm(for_scores, k).mul_(ctx.scale)
        for_k = torch.bmm(for_scores.mT, q).mul_(ctx.scale)
        shape, small = ctx.shapes
        return for_q.view(shape), for_k.view(small), for_v.view(small), None, None, None
