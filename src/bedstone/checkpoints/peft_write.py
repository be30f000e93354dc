"""One of our adapters as peft's configuration and tensors."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.checkpoints.convert import Layout, Name
from bedstone.checkpoints.peft_files import DEFAULTS, PREFIX, TASKS, A, B, published_linears
from bedstone.nn.lora import adapted_layers, adapter_parameters, adapters
from bedstone.nn.lora_config import parent_of
from bedstone.nn.lora_layers import Adapted, Adapter


def write_peft(layout: Layout, network: Any, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An adapter as peft's configuration and tensors, `base_model_name_or_path` left out."""
    config = adapters(network)[name]
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    transposed = False
    modules = published_linears(layout.module_names(network.config), network)
    for theirs, whole in modules.items():
        parts = [_part(network.get_submodule(parent_of(ours)), name) for ours in whole.ours]
        if not any(adapter for adapter, _ in parts):
            continue
        a, b, scale = _joined(parts)
        tensors[f"{PREFIX}{theirs}{A}"], tensors[f"{PREFIX}{theirs}{B}"] = a, b
        transposed |= whole.transposed
        rank = len(a)
        alpha = scale * (math.sqrt(rank) if config.rslora else rank)
        told = {config.alpha, *(config.alpha_of(parent_of(ours)) for ours in whole.ours)}
        # The number that was asked for, where it gives this scale to the last bit but one.
        alpha = next((one for one in told if math.isclose(one, alpha, rel_tol=1e-12)), alpha)
        if rank != config.rank:
            ranks[theirs] = rank
        if alpha != config.alpha:
            alphas[theirs] = alpha
    targeted = {key.removeprefix(PREFIX).removesuffix(A) for key in tensors if key.endswith(A)}
    names = layout.module_names(network.config)
    if lost := sorted(set(adapted_layers(network, name)) - _covered(modules, targeted)):
        raise ValueError(f"layout {layout.model_type} has no name for {', '.join(lost)}")
    whole_names = _trained_whole(names, network, name)
    state = network.state_dict()
    for one in whole_names:
        tensors[PREFIX + one.theirs] = one.write(state)
    published = {
        **DEFAULTS,
        "alpha_pattern": {key: _tidy(value) for key, value in alphas.items()},
        "base_model_name_or_path": None,
        "fan_in_fan_out": transposed,
        "lora_alpha": _tidy(config.alpha),
        "lora_dropout": config.dropout,
        "modules_to_save": _modules_to_save(whole_names, layout),
        "r": config.rank,
        "rank_pattern": ranks,
        "target_modules": _suffixes(targeted, {parent_of(one.theirs) for one in names}),
        "task_type": _task(layout, network),
        "use_rslora": config.rslora,
    }
    return dict(sorted(published.items())), tensors


def _tidy(number: float) -> float:
    """A whole number as an integer, which is what peft writes."""
    return int(number) if number == int(number) else number


def _part(layer: nn.Module, name: str) -> tuple[Adapter | None, int]:
    """A layer's adapter, if it has one, and its outputs."""
    has = isinstance(layer, Adapted) and name in layer.adapters
    return (layer.adapters[name] if has else None), int(layer.out_features)  # type: ignore[return-value,arg-type,index]


def _joined(parts: list[tuple[Adapter | None, int]]) -> tuple[Tensor, Tensor, float]:
    """A, B and scale of one matrix whose parts have adapters of their own, or none.

    Parts that don't share their A stand side by side in a larger one: B is made of blocks.
    """
    there = [adapter for adapter, _ in parts if adapter is not None]
    scale = there[0].scale
    unique = {id(adapter.a): adapter.a for adapter in there}
    starts, end = {}, 0
    for key, a in unique.items():
        starts[key], end = end, end + len(a)
    rows = sum(outputs for _, outputs in parts)
    b = there[0].b.new_zeros(rows, end)
    row = 0
    for adapter, outputs in parts:
        if adapter is not None:
            start = starts[id(adapter.a)]
            same = adapter.scale == scale
            block = adapter.b.detach() if same else adapter.b.detach() * (adapter.scale / scale)
            b[row : row + outputs, start : start + len(adapter.a)] = block
        row += outputs
    return torch.cat([a.detach() for a in unique.values()]), b, scale


def _covered(modules: dict[str, Name], targeted: set[str]) -> set[str]:
    return {parent_of(ours) for theirs in targeted for ours in modules[theirs].ours}


def _trained_whole(names: list[Name], network: nn.Module, name: str) -> list[Name]:
    """Published tensors of what was trained whole with an adapter."""
    trained = set(adapter_parameters(network, name))
    return [one for one in names if set(one.ours) & trained]


def _modules_to_save(names: list[Name], layout: Layout) -> list[str] | None:
    """Heads by their outermost name, as peft wraps them; what is in the body by its own."""
    body = layout.prefix or "\0"
    found = [
        parent_of(one.theirs) if one.theirs.startswith(body) else one.theirs.split(".")[0]
        for one in names
    ]
    return list(dict.fromkeys(found)) or None


def _suffixes(targeted: set[str], known: set[str]) -> list[str]:
    """The shortest endings that mean these modules and no others of the network."""

    def meant(ending: str) -> set[str]:
        return {name for name in known if f".{name}".endswith(f".{ending}")}

    endings = []
    for name in sorted(targeted):
        parts = name.split(".")
        tried = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        endings.append(next(ending for ending in tried if meant(ending) <= targeted))
    return sorted(set(endings))


def _task(layout: Layout, network: Any) -> str | None:
    if (layout.architecture(network.config) or "").endswith(("ForCausalLM", "LMHeadModel")):
        return "CAUSAL_LM"
    if hasattr(network.config, "size"):
        return None  # peft's tasks are of text; its SEQ_CLS would ask for a head of its own
    return TASKS.get(network.config.head.kind)
