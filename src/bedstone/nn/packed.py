"""Linear layers for inference, their weights laid out as the processor's kernels read them.

A product with one row reads every weight once, so it is bound by memory; in the plain layout
it doesn't even reach that bound. oneDNN's own blocked layout does: one to eight rows take less
than half the time, in fp32 and in bf16. The operators are private to torch and stand behind
`pack` and `PackedLinear` alone; where they are missing or wrong, the plain product does the
work.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        self.packed = pack(weight)  # neither a parameter nor a buffer: it can't be saved
        self.weight = None if self.packed is not None else nn.Parameter(weight, False)
        self.bias = None if bias is None else nn.Parameter(bias.to(weight.dtype), False)

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
