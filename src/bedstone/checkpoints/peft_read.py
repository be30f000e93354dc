"""peft's configuration and tensors as one of our adapters, checked before anything is changed."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bedstone.checkpoints.convert import Layout, Name
from bedstone.checkpoints.peft_files import PREFIX, A, B, check_plain, published_linears
from bedstone.errors import BedstoneError
from bedstone.nn.lora import LoraConfig
from bedstone.nn.lora_config import parent_of, shared_names


@dataclass
class ReadAdapter:
    """An adapter as it was read: what to build, and the values of our parameters."""

    config: LoraConfig
    values: dict[str, dict[str, Tensor]]  # full name of a layer -> its `a` and `b`
    whole: dict[str, Tensor]  # our parameters that were trained whole


def read_peft(
    layout: Layout, network: Any, published: dict[str, Any], tensors: dict[str, Tensor], where: str
) -> ReadAdapter:
    """What peft's configuration and tensors mean for a network; nothing is changed yet.

    Args:
        where: the folder, for error messages.

    Raises:
        BedstoneError: it is no plain LoRA, is of another base, or is not whole.
    """
    check_plain(published, where)
    config = network.config  # adapters of other versions name modules as files do
    names = {n.theirs: n for n in (*layout.names(config), *layout.module_names(config))}
    modules = published_linears(names.values(), network)
    rank, rslora = _count(published, "r", where), bool(published.get("use_rslora"))
    alpha = _number(published, "lora_alpha", where)
    values: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    shared: list[str] = []
    found = set()
    for key in sorted(tensors):
        bare = key.removeprefix(PREFIX)
        if bare.endswith(B) and key.removesuffix(B) + A in tensors:
            continue  # read with its A
        if not bare.endswith((A, B)):
            name = _find(bare, names, layout)
            if name is None:
                raise BedstoneError(
                    f"{where}: the tensor {key!r} is of no module of this {layout.model_type} "
                    f"base with a head for {network.config.head.kind}. Take the base it was "
                    "trained on; adapters of embeddings are not supported."
                )
            whole.update(_whole(network, names[name], tensors[key], where))
            continue
        theirs = _find(bare.removesuffix(A), modules, layout)
        other = key.removesuffix(A) + B
        if theirs is None or other not in tensors:
            lack = f"{other!r} is missing" if theirs else f"its base has no linear layer {bare!r}"
            raise BedstoneError(
                f"{where}: {lack} beside {key!r}. The adapter belongs to another base than this "
                f"{layout.model_type}, or the file is not whole: fetch it again."
            )
        found.add(theirs)
        a, b = tensors[key], tensors[other]
        told = int(_pattern(published, "rank_pattern", theirs, rank, where))
        factor = float(_pattern(published, "alpha_pattern", theirs, alpha, where))
        ours = [parent_of(name) for name in modules[theirs].ours]
        shapes = _expected(network, ours, told)
        if (tuple(a.shape), tuple(b.shape)) != shapes:
            raise BedstoneError(
                f"{where}: the adapter of {theirs} has shapes {tuple(a.shape)} and "
                f"{tuple(b.shape)}; this base and rank {told} ask for {shapes[0]} and "
                f"{shapes[1]}. Take the base that it was trained on."
            )
        for path, part in zip(ours, b.chunk(len(ours)), strict=True):
            values[path] = {"a": a, "b": part}
            if told != rank:
                ranks[path] = told
            if factor != alpha:
                alphas[path] = factor
        if len(ours) > 1:
            shared += ours
    _check_whole(layout, published, modules, found, where)
    config = LoraConfig(
        rank=rank,
        alpha=alpha,
        dropout=_number(published, "lora_dropout", where, 0.0),
        targets=tuple(values),
        rslora=rslora,
        ranks=ranks,
        alphas=alphas,
        shared=shared_names(network, shared),
        train=tuple(dict.fromkeys(parent_of(name) for name in whole)),
    )
    return ReadAdapter(config, values, whole)


def _expected(
    network: nn.Module, ours: list[str], rank: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of A and B of the matrix that these layers are published as."""
    layers: list[Any] = [network.get_submodule(path) for path in ours]
    outputs = sum(layer.out_features for layer in layers)
    return (rank, layers[0].in_features), (outputs, rank)


def _find(bare: str, known: Iterable[str], layout: Layout) -> str | None:
    """A published name as the table has it; adapters of a bare body lack its prefix."""
    tried = (bare, layout.prefix + bare, bare.removeprefix(layout.prefix))
    return next((name for name in tried if name in known), None)


def _whole(network: nn.Module, name: Name, tensor: Tensor, where: str) -> dict[str, Tensor]:
    """Our parameters of a published tensor that was trained whole."""
    parts = name.read(tensor)
    for ours, part in parts.items():
        wanted = network.get_parameter(ours)
        if part.shape != wanted.shape:
            raise BedstoneError(
                f"{where}: {name.theirs} has shape {tuple(part.shape)}, its base "
                f"{tuple(wanted.shape)}: another number of labels, or of tokens. Give the base "
                "the head that the adapter was trained with."
            )
    return parts


def _check_whole(
    layout: Layout,
    published: dict[str, Any],
    modules: dict[str, Name],
    found: set[str],
    where: str,
) -> None:
    """Raises BedstoneError if modules that the configuration targets have no tensors."""
    targets = published.get("target_modules")
    if not found:
        raise BedstoneError(f"{where}: holds no lora_A and lora_B at all. Fetch it again.")
    if isinstance(targets, str) and targets.lower() == "all-linear":
        wanted = {name for name, one in modules.items() if one.ours[0].startswith("stack.")}
    elif isinstance(targets, str):
        matches = _regex(targets, "target_modules", where)
        wanted = {name for name in modules if matches.fullmatch(name)}
    elif isinstance(targets, list) and all(isinstance(one, str) for one in targets):
        wanted = {
            name for name in modules if any(f".{name}".endswith(f".{one}") for one in targets)
        }
    else:
        raise BedstoneError(
            f"{where}/adapter_config.json: target_modules = {targets!r}; expected a list of names "
            "or a pattern."
        )
    if any(published.get(key) for key in ("exclude_modules", "layers_to_transform")):
        return  # which of them are left out is told by the tensors
    saved = published.get("modules_to_save") or []
    wanted = {name for name in wanted if not any(f".{one}." in f".{name}." for one in saved)}
    if missing := sorted(wanted - found):
        raise BedstoneError(
            f"{where}: {len(missing)} modules that adapter_config.json targets have no tensors, "
            f"{missing[0]!r} first. The download is not whole: fetch the folder again."
        )


def _pattern(published: dict[str, Any], key: str, module: str, default: float, where: str) -> float:
    """The value of the first pattern that fits a module, as peft looks it up."""
    table = published.get(key) or {}
    if not isinstance(table, dict):
        raise BedstoneError(f"{where}/adapter_config.json: {key} = {table!r} is no mapping.")
    for pattern, value in table.items():
        if _regex(rf"(.*\.)?({pattern})$", key, where).match(module):
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise BedstoneError(
                    f"{where}/adapter_config.json: {key} gives {value!r} for {pattern!r}; "
                    "expected a number above 0."
                )
            return value
    return default


def _regex(pattern: str, key: str, where: str) -> re.Pattern[str]:
    """A pattern from a file, compiled; repeated groups can take for ever and are refused."""
    own = pattern.removeprefix(r"(.*\.)?(")
    try:
        if len(own) > 1000 or re.search(r"\)[*+{]|[*+}][*+{]", own):
            raise re.error("it is too long, or repeats what is repeated")
        return re.compile(pattern)
    except re.error as error:
        raise BedstoneError(
            f"{where}/adapter_config.json: the pattern {pattern[:80]!r} in {key} can't be used "
            f"({error}). Name the modules in a list."
        ) from error


def _number(published: dict[str, Any], key: str, where: str, default: float | None = None) -> float:
    value = published.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BedstoneError(f"{where}/adapter_config.json: {key} = {value!r}; expected a number.")
    return float(value)


def _count(published: dict[str, Any], key: str, where: str) -> int:
    value = published.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BedstoneError(
            f"{where}/adapter_config.json: {key} = {value!r}; expected a whole number above 0."
        )
    return value
