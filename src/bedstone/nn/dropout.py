"""Dropout as bits: cheap to draw on a CPU, cheap to apply, exact to resume.

Drawing a number for each value and comparing it is slower than the layers around it. Here one
64-bit draw of torch's own generator serves four values: 15 bits each are compared with the
share to drop by a subtraction and a shift, which leaves all ones or all zeros, and `and` does
the rest. The share is rounded to 1/32768; the scale is that of the rounded share.

Where there is an engine, one seed is drawn of torch's generator, from which the engine draws 16
bits a value, twice: for the values and for their gradient.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bedstone.nn.fast import passes

_STEPS = 1 << 15
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a float


def keep_bits(like: Tensor, dropout: float) -> tuple[Tensor, float]:
    """For each value of `like` all ones (kept) or zeros, and what to multiply the kept ones by."""
    count = like.numel()
    drawn = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device)
    bits = drawn.random_(-(2**63), None).view(torch.int16)[:count]
    kept = min(round((1.0 - dropout) * _STEPS), _STEPS - 1)
    bits.bitwise_and_(_STEPS - 1).sub_(kept).bitwise_right_shift_(15)  # the sign, in all bits
    integer = _INTEGERS[like.element_size()]
    return bits.view(like.shape).to(integer), _STEPS / kept if kept else 0.0


def apply_bits(x: Tensor, bits: Tensor) -> Tensor:
    """`x` where the bits are ones, else zero. Not differentiable."""
    return x.contiguous().view(bits.dtype).bitwise_and(bits).view(x.dtype)


class Dropout(nn.Dropout):
    """torch's dropout, in a fraction of its time on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        return _Dropout.apply(x, self.p)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropout: float) -> Tensor:
        if passes.usable(x):  # the bits are drawn again for the gradient, not kept
            share = min(round((1.0 - dropout) * passes.SHARES), passes.SHARES - 1)
            ctx.scale = passes.SHARES / share if share else 0.0
            ctx.drawn = passes.draw_seed(), share, ctx.scale
            return passes.dropped(x, *ctx.drawn)
        ctx.drawn = None
        bits, ctx.scale = keep_bits(x, dropout)
        ctx.save_for_backward(bits)
        return apply_bits(x, bits).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = outputs
        if ctx.drawn is not None:
            return passes.dropped(gradient, *ctx.drawn), None
        (bits,) = ctx.saved_tensors
        return apply_bits(gradient, bits).mul_(ctx.scale), None
