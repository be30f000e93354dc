"""LoRA: low-rank terms beside the linear layers of a built network (Hu et al., 2021).

y = x W^T + b + scale (x A^T) B^T, with W frozen, A drawn as peft draws it, B zero, and scale
alpha / rank, or alpha / sqrt(rank) where ranks are stabilised (rsLoRA, Kalajdzievski, 2023). The
network is edited from outside: a linear layer keeps its place and the names of its weights in
the state dict, and gains `adapters.NAME.a` and `adapters.NAME.b`.

By default every linear layer of the blocks is adapted, MLPs too: attention alone falls short of
full fine-tuning at any rank (QLoRA, Dettmers et al., 2023, section 4; "LoRA Without Regret",
Schulman et al., 2025).

Shapes: D inputs, E outputs, R rank.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.errors import BedstoneError, nearest
from bedstone.nn.blocks import Stack
from bedstone.nn.fast.frozen import CastOnce, adapted, working_dtype
from bedstone.nn.quantize import TARGETS, QuantizedLinear, check_trainable
from bedstone.nn.ties import Untied, retie, ties, untie
from bedstone.settings import Settings, check_whole, number, share, whole


@dataclass(frozen=True)
class LoraConfig(Settings):
    """What an adapter is made of.

    Attributes:
        rank: R, of every adapter that `ranks` doesn't name.
        alpha: numerator of the scale.
        dropout: share of the adapter's input that is dropped in training.
        targets: layers of the blocks by name (q, k, v, out, gate, up, down), or any linear
            layer of the network by its full name. A name that no block has is passed over.
        rslora: whether the scale is alpha / sqrt(rank) in place of alpha / rank.
        ranks, alphas: others than `rank` and `alpha`, by name or full name of the layer.
        shared: layers of one sublayer that read with one A, by name or full name, such as q, k
            and v where the published layout keeps them as one matrix.
        train: modules trained whole and kept with the adapter, by full name: new heads.
    """

    section: ClassVar[str] = "lora."

    rank: int = whole(1, default=16)
    alpha: float = number(0.0, default=32.0)
    dropout: float = share(below_one=True, default=0.0)
    targets: tuple[str, ...] = TARGETS
    rslora: bool = False
    ranks: dict[str, int] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    train: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, rank in self.ranks.items():
            check_whole(f"lora.{name}", rank, 1)
        if not self.targets:
            raise BedstoneError(f"lora.targets: is empty; name some of {', '.join(TARGETS)}.")

    def shares(self, path: str) -> bool:
        """Whether the layer with that full name reads with its neighbours' A."""
        return path in self.shared or leaf_of(path) in self.shared

    def rank_of(self, path: str) -> int:
        """The rank of the layer with that full name."""
        return self.ranks.get(path, self.ranks.get(leaf_of(path), self.rank))

    def alpha_of(self, path: str) -> float:
        """The alpha of the layer with that full name."""
        return self.alphas.get(path, self.alphas.get(leaf_of(path), self.alpha))

    def scale_of(self, path: str) -> float:
        """What the low-rank term of that layer is multiplied by."""
        rank = self.rank_of(path)
        return self.alpha_of(path) / (math.sqrt(rank) if self.rslora else rank)


def linears(network: nn.Module) -> dict[str, tuple[nn.Module, bool]]:
    """Linear layers by full name, and whether they stand in a block."""
    inside = {
        id(module)
        for stack in network.modules()
        if isinstance(stack, Stack)
        for module in stack.modules()
    }
    return {
        path: (module, id(module) in inside)
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear | QuantizedLinear)
    }


def find_targets(network: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    """The layers that a configuration means, by full name.

    Raises:
        BedstoneError: there are none, or some that can't have an adapter of their own.
    """
    known = linears(network)
    for path in config.train:
        check_trainable(network, path)
    for target in config.targets:
        if target not in TARGETS and target not in known:
            raise BedstoneError(
                f"lora.targets: {target!r} is no linear layer{nearest(target, TARGETS)}, or the "
                "full name of one."
            )
    found = {
        path: module
        for path, (module, inside) in known.items()
        if path in config.targets or (inside and leaf_of(path) in config.targets)
    }
    for path in found:
        if any(f"{path}.".startswith(f"{whole}.") for whole in config.train):
            raise BedstoneError(
                f"lora.targets: {path} is trained whole (lora.train = {', '.join(config.train)}); "
                "it can't have an adapter too. Choose one."
            )
    if not found:
        raise BedstoneError(
            f"lora.targets: no block has any of {', '.join(config.targets)}; it has "
            f"{', '.join(sorted({leaf_of(p) for p, (_, inside) in known.items() if inside}))}."
        )
    ranks: dict[str, int] = {}
    for path in found:
        rank = config.rank_of(path)
        if config.shares(path) and ranks.setdefault(parent_of(path), rank) != rank:
            raise BedstoneError(
                f"lora.ranks: {path} has rank {rank}, but it reads with the same A as "
                f"others of {parent_of(path)}; give them one rank."
            )
    return found


def shared_names(network: nn.Module, paths: Iterable[str]) -> tuple[str, ...]:
    """Layers that share, as `LoraConfig.shared` names them: by name where all of that name do."""
    given = dict.fromkeys(paths)
    known = linears(network).items()
    apart = {leaf_of(path) for path, (_, inside) in known if inside and path not in given}
    named = (path if leaf_of(path) in apart else leaf_of(path) for path in given)
    return tuple(dict.fromkeys(named))


def leaf_of(path: str) -> str:
    """`q` of `stack.0.attn.sublayer.q`."""
    return path.rpartition(".")[2]


def parent_of(path: str) -> str:
    """`stack.0.attn.sublayer` of `stack.0.attn.sublayer.q`."""
    return path.rpartition(".")[0]


# Linear layers with low-rank terms beside them, of which one at a time is in use.
#
# Shapes: D inputs, E outputs, R rank.


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


@dataclass
class _Record:
    """What a network knows of its adapters."""

    was_trained: list[str]  # parameters that asked for a gradient before
    configs: dict[str, LoraConfig] = field(default_factory=dict)
    active: str | None = None
    merged: bool = False
    # Modules trained whole by some adapter: the base's weights, and those of adapters not in use.
    base: dict[str, Tensor] = field(default_factory=dict)
    whole: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    untied: Untied = field(default_factory=Untied)


def add_adapter(
    network: nn.Module,
    config: LoraConfig | None = None,
    name: str = "default",
    *,
    seed: int | None = None,
) -> None:
    """Adds a fresh adapter, puts it in use and freezes everything but it and `config.train`.

    The network computes what it did before, since B is zero. Linear layers of the blocks that
    are no target are edited too: frozen weights are cast once for all.

    Args:
        network: with its blocks in a `Stack`; it may have other adapters already.
        name: without dots.
        seed: of the draw of A; None draws from torch's global generator.

    Raises:
        BedstoneError: a name that is taken, a target that is none, an adapter that is merged.
    """
    config = config or LoraConfig()
    record = _record(network) or _Record(
        [n for n, p in network.named_parameters() if p.requires_grad]
    )
    if not name or "." in name:
        raise BedstoneError(f"lora: {name!r} is no name for an adapter; take one without dots.")
    if name in record.configs:
        raise BedstoneError(f"lora: there is an adapter {name!r} already; remove it, or rename.")
    if record.merged:
        raise BedstoneError(f"lora: {record.active!r} is merged; unmerge it before adding another.")
    targets = find_targets(network, config)
    _give_own_weights(network, [*targets, *config.train], record)
    for path, (module, inside) in linears(network).items():
        if path in targets or (inside and type(module) is nn.Linear):
            make_adapted(module)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    shared: dict[str, nn.Parameter] = {}
    for path in targets:
        layer = network.get_submodule(path)
        assert isinstance(layer, Adapted)
        group = parent_of(path) if config.shares(path) else path
        if group not in shared:
            shared[group] = layer.draw(config.rank_of(path), generator)
        a = shared[group]
        b = nn.Parameter(a.new_zeros(layer.out_features, len(a)))
        layer.adapters[name] = Adapter(a, b, config.scale_of(path), config.dropout)
    for key, parameter in _under(network, set(config.train)).items():
        record.base.setdefault(key, parameter.detach().clone())
    network._adapters_record = record  # type: ignore[assignment]
    record.configs[name] = config
    use_adapter(network, name)


def _give_own_weights(network: nn.Module, paths: list[str], record: _Record) -> None:
    """Unties what an adapter changes from what it doesn't, as peft trains a tied head by itself."""
    for pair in ties(network).items():
        if any(f"{key}.".startswith(f"{path}.") for path in paths for key in pair):
            record.was_trained += [pair[0]] if pair[1] in record.was_trained else []
            record.untied = untie(network)
            return


def use_adapter(network: nn.Module, name: str | None) -> None:
    """Puts an adapter in use, or none: then the network is the base to the last bit.

    What is merged is unmerged first. Only the adapter in use asks for gradients.

    Raises:
        BedstoneError: the network has no such adapter.
    """
    record = _need(network, name)
    unmerge(network)
    parts = {part for config in record.configs.values() for part in config.train}
    live = _under(network, parts)
    own = record.configs[record.active].train if record.active else parts
    left = {key: p.detach().clone() for key, p in _under(network, set(own)).items()}
    if record.active is None:
        record.base |= left
    else:
        record.whole[record.active] = left
    with torch.no_grad():
        for key, weight in {**record.base, **record.whole.get(name or "", {})}.items():
            live[key].copy_(weight)
    record.active = name
    for layer in adapted_layers(network).values():
        layer.active = name
    network.requires_grad_(False)
    if name is not None:
        for parameter in adapter_parameters(network, name).values():
            parameter.requires_grad_(True)


def adapter_parameters(network: nn.Module, name: str | None = None) -> dict[str, nn.Parameter]:
    """An adapter's own parameters and those of modules trained with it, by full name.

    Args:
        name: None says the one in use.

    Raises:
        BedstoneError: the network has no such adapter, or none is in use.
    """
    record = _need(network, name)
    name = name or _in_use(record)
    whole = _under(network, set(record.configs[name].train))
    return {
        key: parameter
        for key, parameter in network.named_parameters()
        if key in whole or f".adapters.{name}." in key
    }


@torch.no_grad()
def merge(network: nn.Module, name: str | None = None) -> None:
    """Adds an adapter to the weights, in fp32, rounding once; `unmerge` is exact.

    While it is merged, the base's weights are kept beside: the blocks take twice the memory.

    Args:
        name: None says the one in use.

    Raises:
        BedstoneError: there is none such, or the base is quantised (`fold` it then).
    """
    record = _need(network, name)
    name = name or _in_use(record)
    use_adapter(network, name)
    layers = adapted_layers(network, name)
    for path, layer in layers.items():
        if isinstance(layer, LoRAQuantizedLinear):
            raise BedstoneError(
                f"lora: {path} is quantised; what is merged would have to be rounded to its few "
                "bits. Use it unmerged, or fold it, which makes the weights whole."
            )
    for layer in layers.values():
        assert isinstance(layer, LoRALinear)
        merged = layer.merged()
        layer.base, layer.weight.data = layer.weight.data, merged
        layer.copies.clear()
    record.merged = True


def unmerge(network: nn.Module) -> None:
    """Takes a merged adapter out of the weights, which are as before to the last bit."""
    record = _record(network)
    if record is None or not record.merged:
        return
    for layer in adapted_layers(network).values():
        if isinstance(layer, LoRALinear) and layer.base is not None:
            layer.weight.data, layer.base = layer.base, None
            layer.copies.clear()
    record.merged = False


def remove_adapter(network: nn.Module, name: str) -> None:
    """Removes an adapter; where it was in use, the base is. With the last one all traces go.

    Raises:
        BedstoneError: the network has no such adapter.
    """
    record = _need(network, name)
    if record.active == name:
        use_adapter(network, None)
    for layer in adapted_layers(network, name).values():
        del layer.adapters[name]
    del record.configs[name]
    record.whole.pop(name, None)
    if not record.configs:
        _restore(network, record)


@torch.no_grad()
def fold(network: nn.Module, name: str | None = None) -> None:
    """Merges an adapter for good: the network is plain again, and saves as any other does.

    All other adapters are removed. Quantised layers that it adapts are made whole.

    Args:
        name: None says the one in use.

    Raises:
        BedstoneError: there is none such.
    """
    record = _need(network, name)
    name = name or _in_use(record)
    use_adapter(network, name)
    for path, layer in adapted_layers(network, name).items():
        if isinstance(layer, LoRALinear):
            layer.weight.data = layer.merged()
        else:
            record.was_trained.append(f"{path}.weight")
            setattr(network.get_submodule(parent_of(path)), leaf_of(path), layer.plain())
    _restore(network, record)


def _restore(network: nn.Module, record: _Record) -> None:
    """Plain layers in the place of adapted ones; gradients for what asked for them before."""
    for layer in adapted_layers(network).values():
        make_plain(layer)
    retie(network, record.untied)
    parameters = dict(network.named_parameters())
    for key in record.was_trained:
        if key in parameters:
            parameters[key].requires_grad_(True)
    del network._adapters_record


def adapters(network: nn.Module) -> dict[str, LoraConfig]:
    """The adapters of a network by name, in the order they were added."""
    record = _record(network)
    return {} if record is None else dict(record.configs)


def active_adapter(network: nn.Module) -> str | None:
    """The adapter in use; None where the base is, or where there are none."""
    record = _record(network)
    return None if record is None else record.active


def adapted_layers(network: nn.Module, name: str | None = None) -> dict[str, Adapted]:
    """Layers by full name: those that have the adapter `name`, or that may have any."""
    return {
        path: module
        for path, module in network.named_modules()
        if isinstance(module, Adapted) and (name is None or name in module.adapters)
    }


def _record(network: nn.Module) -> _Record | None:
    return getattr(network, "_adapters_record", None)


def _need(network: nn.Module, name: str | None) -> _Record:
    """The record, which has that adapter.

    Raises:
        BedstoneError: it hasn't, or there is none, or its layers were folded for inference.
    """
    record = _record(network)
    if record is None or not adapted_layers(network):
        raise BedstoneError("lora: this network has no adapters to change; add one first.")
    if name is not None and name not in record.configs:
        raise BedstoneError(f"lora: there is no adapter {name!r}{nearest(name, record.configs)}.")
    return record


def _in_use(record: _Record) -> str:
    if record.active is None:
        raise BedstoneError(f"lora: no adapter is in use; name one of {', '.join(record.configs)}.")
    return record.active


def _under(network: nn.Module, parts: set[str]) -> dict[str, nn.Parameter]:
    """Parameters of some modules, by full name."""
    return {
        key: parameter
        for key, parameter in network.named_parameters()
        if any(f"{key}.".startswith(f"{part}.") for part in parts)
    }
