"""Tied parameters: one tensor under two names, as an embedding and the head that predicts words.

A network declares its ties by a property `ties`, {copy: original}, and makes them by `tie()`. Its
configuration says `tied`, or that of a part of it does. Adapters that train one of the two names
need the other kept, so ties can be undone and made again (peft's `modules_to_save` does the same).
"""

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import nn

from bedstone.nn.quantize import Quantized


@dataclass
class Untied:
    """What `untie` changed.

    Attributes:
        pairs: {copy: original}.
        configs: configurations as they were, by the full name of their module.
    """

    pairs: dict[str, str] = field(default_factory=dict)
    configs: dict[str, Any] = field(default_factory=dict)


def make_ties(network: Any) -> None:
    """Makes the parameters that a network's `ties` names one."""
    for copy, own in ties(network).items():
        path, _, leaf = copy.rpartition(".")
        module = network.get_submodule(path)
        if not isinstance(module, Quantized):  # codes are shared as they are loaded
            setattr(module, leaf, network.get_parameter(own))


def ties(network: Any) -> dict[str, str]:
    """Parameters that are another's, {copy: original}, as the network declares them."""
    return dict(getattr(network, "ties", {}))


def without_ties(config: Any) -> Any:
    """The configuration, and those inside it, with `tied` false."""
    if not is_dataclass(config) or isinstance(config, type):
        return config
    changed: dict[str, Any] = {}
    for each in fields(config):
        value = getattr(config, each.name)
        new = False if each.name == "tied" else without_ties(value)
        if new is not value:
            changed[each.name] = new
    return replace(config, **changed) if changed else config


@torch.no_grad()
def untie(network: nn.Module) -> Untied:
    """Gives every parameter that `tied` ties a tensor of its own, equal to the one that it shared.

    Codes of quantised layers stay shared: nothing changes them.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    done = Untied({copy: own for copy, own in ties(network).items() if copy in parameters})
    if not done.pairs:
        return done
    whole: Any = network
    for path, module in network.named_modules():
        config: Any = getattr(module, "config", None)
        changed = without_ties(config)
        if changed is not config:
            done.configs[path] = config
            module.config = changed
    for copy in ties(whole):  # what its configuration still makes one
        done.pairs.pop(copy, None)
    for copy in done.pairs:
        path, _, leaf = copy.rpartition(".")
        shared = network.get_parameter(copy)
        own = nn.Parameter(shared.detach().clone(), shared.requires_grad)
        setattr(network.get_submodule(path), leaf, own)
    return done


def retie(network: Any, done: Untied) -> None:
    """Makes the ties again that `untie` undid, unless a copy differs from its original now."""
    for copy, own in done.pairs.items():
        if not torch.equal(network.get_parameter(copy), network.get_parameter(own)):
            return
    for path, config in done.configs.items():
        network.get_submodule(path).config = config
    if done.pairs:
        network.tie()
