"""Linear layers with low-rank terms beside them, of which one at a time is in use.

Shapes: D inputs, E outputs, R rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.nn.frozen import CastOnce, adapted, working_dtype
from bedstone.nn.quantize import QuantizedLinear


class Adapter(nn.Module):
    """A and B of one layer, in fp32 at least, and their scale."""

    def __init__(self, a: nn.Parameter, b: nn.Parameter, scale: float, dropout: float) -> None:
        super().__init__()
        self.a, self.b = a, b  # (R, D), (E, R)
        self.scale, self.dropout = scale, dropout

    def delta(self) -> Tensor:
        """What it adds to the weight, (E, D), in fp32 at least."""
        return (self.b @ self.a) * self.scale


class Adapted(nn.Module):
    """A layer with any number of adapters, one of them in use, or none."""

    adapters: nn.ModuleDict
    active: str | None
    in_features: int
    out_features: int
    device: torch.device
    kept: torch.dtype  # what the weight is held in, or made whole in

    def adapter(self) -> Adapter | None:
        """The one in use, if this layer has it."""
        has = self.active is not None and self.active in self.adapters
        return self.adapters[self.active] if has else None  # type: ignore[index,return-value]

    def dtype_for(self, x: Tensor) -> torch.dtype:
        """What the products with `x` are computed in."""
        raise NotImplementedError

    def whole(self, dtype: torch.dtype) -> Tensor:
        """The weight in `dtype`, (E, D)."""
        raise NotImplementedError

    def trained_too(self) -> bool:
        """Whether the layer's own weights ask for gradients all the same."""
        return False

    def merged(self) -> Tensor:
        """The weight with the adapter in use added, in fp32 at least, in the weight's dtype."""
        raise NotImplementedError

    def plain(self) -> nn.Linear:
        """A new linear layer that computes the same as this one now."""
        linear = nn.Linear(self.in_features, self.out_features, False, device="meta")
        linear.weight, linear.bias = nn.Parameter(self.merged(), False), self.bias  # type: ignore[assignment]
        return linear

    def draw(self, rank: int, generator: torch.Generator | None) -> nn.Parameter:
        """A fresh A, (R, D), uniform within 1 / sqrt(D), as peft draws it."""
        bound = self.in_features**-0.5
        a = torch.empty(rank, self.in_features).uniform_(-bound, bound, generator=generator)
        return nn.Parameter(a.to(self.device, torch.promote_types(self.kept, torch.float32)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype_for(x))
        adapter = self.adapter()
        if self.trained_too() or torch.compiler.is_compiling():
            return self.plainly(x, adapter)
        if adapter is None:
            return adapted(x, self)  # type: ignore[arg-type]
        dropped = F.dropout(x, adapter.dropout) if self.training and adapter.dropout else None
        return adapted(x, self, adapter.a, adapter.b, adapter.scale, dropped)  # type: ignore[arg-type]

    def plainly(self, x: Tensor, adapter: Adapter | None) -> Tensor:
        """The same in operations that a compiler can fuse, and that reach every weight."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = F.linear(x, self.whole(x.dtype), bias)  # type: ignore[arg-type]
        if adapter is None:
            return y
        x = F.dropout(x, adapter.dropout, self.training)
        return y + adapter.scale * F.linear(
            F.linear(x, adapter.a.to(x.dtype)), adapter.b.to(x.dtype)
        )


class LoRALinear(Adapted, nn.Linear):
    """A frozen linear layer with adapters. `weight` and `bias` stay under their names."""

    copies: CastOnce
    base: Tensor | None  # the base weight while an adapter is merged into `weight`

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.weight.device

    @property
    def kept(self) -> torch.dtype:  # type: ignore[override]
        return self.weight.dtype

    def adapter(self) -> Adapter | None:
        return None if self.base is not None else super().adapter()

    def dtype_for(self, x: Tensor) -> torch.dtype:
        return working_dtype(x, self.weight)

    def product(self, x: Tensor) -> Tensor:
        return self.copies.forward(x, self.weight, self.bias)

    def back(self, gradient: Tensor) -> Tensor:
        return self.copies.backward(gradient, self.weight)

    def whole(self, dtype: torch.dtype) -> Tensor:
        return self.weight.to(dtype)

    def trained_too(self) -> bool:
        return self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)

    @torch.no_grad()
    def merged(self) -> Tensor:
        adapter = self.adapter()
        if adapter is None:
            return self.weight.detach()
        delta = adapter.delta()
        return (self.weight.to(delta.dtype) + delta).to(self.weight.dtype)


class LoRAQuantizedLinear(Adapted, QuantizedLinear):
    """A quantised linear layer with adapters in full precision (QLoRA)."""

    def whole(self, dtype: torch.dtype) -> Tensor:
        return QuantizedLinear.whole(self, dtype)

    def dtype_for(self, x: Tensor) -> torch.dtype:
        return self.dtype or working_dtype(x)

    @torch.no_grad()
    def merged(self) -> Tensor:
        weight = self.whole(torch.promote_types(self.kept, torch.float32))
        adapter = self.adapter()
        return (weight if adapter is None else weight + adapter.delta()).to(self.kept)


def make_adapted(module: nn.Module) -> None:
    """Turns a linear layer, plain or quantised, into one that can have adapters.

    The class is exchanged, as torch's parametrisations do it: whoever holds the module, its
    parameters or their ties goes on holding them.
    """
    if isinstance(module, Adapted):
        return
    if isinstance(module, QuantizedLinear):
        module.__class__ = LoRAQuantizedLinear
    elif type(module) is nn.Linear:
        module.__class__ = LoRALinear
        module.copies, module.base = CastOnce(), None  # type: ignore[assignment]
    else:
        raise BedstoneError(f"lora: a {type(module).__name__} can't have adapters.")
    module.adapters, module.active = nn.ModuleDict(), None  # type: ignore[assignment]


def make_plain(layer: Adapted) -> None:
    """Turns it back, without its adapters."""
    quantised = isinstance(layer, QuantizedLinear)
    for name in ("adapters", "active") if quantised else ("adapters", "active", "copies", "base"):
        delattr(layer, name)
    layer.__class__ = QuantizedLinear if quantised else nn.Linear  # type: ignore[assignment]
