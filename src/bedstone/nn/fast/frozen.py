"""Products with weights that don't change, and low-rank terms beside them.

Autocast casts a weight that needs no gradient again at every use, and torch's own backward pass
of y = x W^T + s (x A^T) B^T makes and adds whole (N x E) and (N x D) matrices for the low-rank
term. Here a frozen weight is cast once, and on a CPU laid out once as its kernels read it, for
both directions; the low-rank term is added in place; x and x A^T alone are kept.

Shapes: N rows, D inputs, E outputs, R rank.
"""

from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bedstone.measured import fastest

# Rows a product is packed for. The layout for one row costs up to twice the time with eight in
# fp32, and a twentieth more with a thousand; this one is as fast with one (measured, AVX-512).
_ROWS = 64


class PackedLinear(nn.Module):
    """x W^T + b in the precision of the weight, (..., D) to (..., E), for inference alone.

    Args:
        weight: (E, D), fp32 or bf16.
        bias: (E,) or None.
        after: an activation that comes after, by its name here and its variant: ("gelu", "none"),
            ("gelu", "tanh"), ("relu", "") or ("swish", "").
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, after: tuple[str, str] | None = None
    ) -> None:
        super().__init__()
        self.after = after
        self.dtype = weight.dtype
        self.packed: Tensor | None = None  # neither a parameter nor a buffer: it can't be saved
        self.weight: nn.Parameter | None = nn.Parameter(weight, False)
        self.bias = None if bias is None else nn.Parameter(bias.to(weight.dtype), False)

    def lay_out(self, rows: int) -> None:
        """Packs the weight where products of so many rows are faster so, on this processor."""
        if self.weight is not None and pays(self.dtype, rows):
            self.packed = pack(self.weight)
            self.weight = self.weight if self.packed is None else None

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.packed is None:
            assert self.weight is not None
            out = F.linear(x, self.weight, self.bias)
            if self.after is None:
                return out
            name, variant = self.after
            plain = {"relu": F.relu, "swish": F.silu}.get(name)
            return plain(out) if plain else F.gelu(out, approximate=variant)
        name, variant = self.after or ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, name, [], variant)


def pack(weight: Tensor) -> Tensor | None:
    """An opaque copy of a weight, (E, D), in oneDNN's layout; None where there is no gain."""
    if weight.device.type != "cpu" or not _packs(weight.dtype):
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)


@cache
def _packs(dtype: torch.dtype) -> bool:
    """Whether packed products work here, in `dtype`, and are right: tried out once."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    weight = (torch.arange(32 * 64).view(32, 64) % 7 - 3).to(dtype)  # exact in bf16 too
    x = (torch.arange(3 * 64).view(3, 64) % 5 - 2).to(dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        found = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        return torch.equal(found, F.linear(x, weight))
    except (AttributeError, RuntimeError, TypeError):
        return False


@cache
def pays(dtype: torch.dtype, rows: int) -> bool:
    """Whether packed products of so many rows work here and aren't slower: measured once.

    On processors with AVX2 alone, and for one row in fp32, the plain product is the faster one.
    """
    if not _packs(dtype):
        return False
    weight, x = torch.ones(1536, 768, dtype=dtype), torch.ones(rows, 768, dtype=dtype)
    packed = cache(lambda: torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS))
    by_pack = torch.ops.mkldnn._linear_pointwise
    ways = {
        "plain": lambda: F.linear(x, weight),
        "packed": lambda: by_pack(x, packed(), None, "none", [], ""),
    }
    with torch.inference_mode():
        found = fastest(f"packed products of {rows} rows in {dtype}", ways, better=1.0)
    return found.best == "packed"


def working_dtype(x: Tensor, weight: Tensor | None = None) -> torch.dtype:
    """What a product of `x` is computed in: autocast's dtype, else the weight's, else its own."""
    kind = x.device.type
    dtype = x.dtype if weight is None else weight.dtype
    if torch.is_autocast_enabled(kind) and dtype is not torch.float64:
        return torch.get_autocast_dtype(kind)
    return dtype


class Frozen(Protocol):
    """What stands for a weight without a gradient: its product and the way back."""

    def product(self, x: Tensor) -> Tensor:
        """x W^T + b, (N, D) to (N, E), in the dtype of x; a new tensor each time."""

    def back(self, gradient: Tensor) -> Tensor:
        """g W, (N, E) to (N, D), in the dtype of the gradient; a new tensor each time."""


class CastOnce:
    """A weight's copies in the dtype of the products, made at first use and kept.

    They cost two bytes a weight and direction in bf16. A copy of this object starts empty.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets all copies: the weight was changed behind autograd's back."""
        self._source: tuple[Any, ...] = ()
        self._made: dict[str, tuple[Tensor | None, Tensor | None]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "CastOnce":
        return CastOnce()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return CastOnce, ()

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T + b, (N, E)."""
        plain, packed = self._get("forward", weight, x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
        return _times(x, plain, packed, bias)

    def backward(self, gradient: Tensor, weight: Tensor) -> Tensor:
        """g W, (N, D)."""
        plain, packed = self._get("backward", weight, gradient.dtype)
        return _times(gradient, plain, packed, None)

    def _get(
        self, way: str, weight: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor | None, Tensor | None]:
        version = 0 if weight.is_inference() else weight._version
        source = (weight, weight.data_ptr(), version, dtype)
        # By identity: comparing tensors would compare their values.
        if len(self._source) != 4 or any(
            a is not b and (a is weight or b is weight or isinstance(a, Tensor) or a != b)
            for a, b in zip(source, self._source, strict=True)
        ):
            self.clear()
            self._source = source
        if way not in self._made:
            low = weight.detach().to(dtype)
            low = low if way == "forward" else low.t()
            packed = pack(low)
            self._made[way] = (low if packed is None else None, packed)
        return self._made[way]


def _times(x: Tensor, plain: Tensor | None, packed: Tensor | None, bias: Tensor | None) -> Tensor:
    if packed is not None:
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), packed, bias, "none", [], "")
    assert plain is not None
    return F.linear(x, plain, bias)


def adapted(
    x: Tensor,
    base: Frozen,
    a: Tensor | None = None,
    b: Tensor | None = None,
    scale: float = 1.0,
    dropped: Tensor | None = None,
) -> Tensor:
    """x W^T + bias + scale (x A^T) B^T with gradients to x, A and B (LoRA, Hu et al., 2021).

    Args:
        x: (..., D), in the dtype of the products.
        base: the frozen weight and bias.
        a: A, (R, D); None leaves the low-rank term out.
        b: B, (E, R).
        dropped: what A reads in place of x, after dropout, (..., D).

    Returns:
        (..., E).
    """
    rows = x.flatten(0, -2)
    other = None if dropped is None else dropped.flatten(0, -2)
    out = _Adapted.apply(rows, other, a, b, scale, base)
    return out.view(*x.shape[:-1], -1)


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        a: Tensor | None,
        b: Tensor | None,
        scale: float,
        base: Frozen,
    ) -> Tensor:
        ctx.base, ctx.scale, ctx.separate = base, scale, dropped is not None
        y = base.product(x)  # (N, E)
        if a is None or b is None:
            return y
        reads = x if dropped is None else dropped
        low_a, low_b = a.to(x.dtype), b.to(x.dtype)
        inner = reads @ low_a.t()  # (N, R)
        ctx.save_for_backward(reads, inner, low_a, low_b)
        return y.addmm_(inner, low_b.t(), alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        # With u = x A^T and v = s g B: dx = g W + v A, dA = v^T x, dB = s g^T u.
        gradient = outputs[0].contiguous()
        needs = ctx.needs_input_grad
        for_x = ctx.base.back(gradient) if needs[0] else None
        if not ctx.saved_tensors:
            return for_x, None, None, None, None, None
        x, inner, a, b = ctx.saved_tensors
        outer = (gradient @ b).mul_(ctx.scale)  # (N, R)
        for_dropped = None
        if ctx.separate:
            for_dropped = outer @ a if needs[1] else None
        elif for_x is not None:
            for_x.addmm_(outer, a)
        for_a = outer.t() @ x if needs[2] else None
        # The thin side first: the product runs along rows of the gradient.
        for_b = (inner.t() @ gradient).t().mul(ctx.scale) if needs[3] else None
        return for_x, for_dropped, for_a, for_b, None, None
