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

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError, nearest
from bedstone.nn.lora_config import LoraConfig, find_targets, leaf_of, linears, parent_of
from bedstone.nn.lora_layers import (
    Adapted,
    Adapter,
    LoRALinear,
    LoRAQuantizedLinear,
    make_adapted,
    make_plain,
)


@dataclass
class _Record:
    """What a network knows of its adapters."""

    was_trained: list[str]  # parameters that asked for a gradient before
    configs: dict[str, LoraConfig] = field(default_factory=dict)
    active: str | None = None
    merged: bool = False
    # Modules trained whole: their weights as each adapter not in use has them; None is the base.
    whole: dict[str | None, dict[str, Tensor]] = field(default_factory=dict)


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
    network._adapters_record = record  # type: ignore[assignment]
    record.configs[name] = config
    use_adapter(network, name)


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
    with torch.no_grad():
        record.whole[record.active] = {key: p.detach().clone() for key, p in live.items()}
        base = record.whole.get(None, {})
        for key, weight in {**base, **record.whole.get(name, {})}.items():
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
