"""peft's configuration and tensors as one of our adapters, checked before anything is changed."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.models.published import Layout, Name, check_weights
from bedstone.nn.lora import (
    Adapted,
    Adapter,
    LoraConfig,
    adapted_layers,
    adapter_parameters,
    adapters,
    leaf_of,
    linears,
    parent_of,
    shared_names,
)
from bedstone.reading import check_kinds, shown
from bedstone.settings import is_number

PREFIX = "base_model.model."
A, B = ".lora_A.weight", ".lora_B.weight"
TASKS = {
    "sequence": "SEQ_CLS",
    "tokens": "TOKEN_CLS",
    "spans": "QUESTION_ANS",
    "states": "FEATURE_EXTRACTION",
    "pooled": "FEATURE_EXTRACTION",
}
# Every key that peft 0.21 writes, with the only values under which it is plain LoRA.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    **dict.fromkeys(("lora_bias", "use_dora", "use_qalora", "ensure_weight_tying"), (False,)),
    **dict.fromkeys(
        (
            "alora_invocation_tokens",
            "arrow_config",
            "kasa_config",
            "layer_replication",
            "megatron_config",
            "monteclora_config",
            "target_parameters",
            "trainable_token_indices",
            "use_bdlora",
            "velora_config",
        ),
        (None,),
    ),
}
DEFAULTS: dict[str, Any] = {
    **{key: values[0] for key, values in PLAIN.items()},
    "auto_mapping": None,
    "corda_config": None,
    "eva_config": None,
    "exclude_modules": None,
    "inference_mode": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_ga_config": None,
    "megatron_core": "megatron.core",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "revision": None,
}
READ = {"r", "lora_alpha", "lora_dropout", "target_modules", "rank_pattern", "alpha_pattern"}
READ |= {"use_rslora", "modules_to_save", "fan_in_fan_out", "task_type"}
READ |= {"base_model_name_or_path", "runtime_config"}

KINDS = {
    "peft_type": "text",
    "task_type": "text",
    "bias": "text",
    "base_model_name_or_path": "text",
    "modules_to_save": "a list of texts",
    "use_rslora": "true or false",
    "fan_in_fan_out": "true or false",
}


def published_linears(names: Iterable[Name], network: Any) -> dict[str, Name]:
    """Published modules that are linear layers of ours, by their names; several may be one."""
    ours = linears(network)
    return {
        parent_of(name.theirs): name
        for name in names
        if leaf_of(name.theirs) == "weight" and all(parent_of(o) in ours for o in name.ours)
    }


def check_plain(published: dict[str, Any], where: str) -> None:
    """Raises BedstoneError if a configuration asks for more than LoRA as Bedstone builds it."""
    for key, value in published.items():
        if key in PLAIN:
            if not any(value is plain or value == plain for plain in (*PLAIN[key], None)):
                raise BedstoneError(
                    f"{where}/adapter_config.json: {key} = {value!r} is not supported; only "
                    f"{PLAIN[key][0]!r} is. Merge that adapter with peft "
                    "(merge_and_unload), save the model and open that."
                )
        elif key not in READ and key not in DEFAULTS and value:
            raise BedstoneError(
                f"{where}/adapter_config.json: {key} = {value!r} is unknown, so what it changes "
                "can't be built. Merge that adapter with peft (merge_and_unload), save the model "
                "and open that."
            )


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
    check_kinds(published, KINDS, f"{where}/adapter_config.json")
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
        check_weights(key, tensors[key], where)
        bare = key.removeprefix(PREFIX)
        if bare.endswith(B) and key.removesuffix(B) + A in tensors:
            continue  # read with its A
        if ".base_layer." in bare:
            _check_base(
                network, bare.replace(".base_layer.", "."), names, layout, tensors[key], where
            )
            continue
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
        found_rank = int(_pattern(published, "rank_pattern", theirs, rank, where))
        factor = float(_pattern(published, "alpha_pattern", theirs, alpha, where))
        ours = [parent_of(name) for name in modules[theirs].ours]
        shapes = _expected(network, ours, found_rank)
        if (tuple(a.shape), tuple(b.shape)) != shapes:
            raise BedstoneError(
                f"{where}: the adapter of {theirs} has shapes {tuple(a.shape)} and "
                f"{tuple(b.shape)}; this base and rank {found_rank} ask for {shapes[0]} and "
                f"{shapes[1]}. Take the base that it was trained on."
            )
        for path, part in zip(ours, b.chunk(len(ours)), strict=True):
            values[path] = {"a": a, "b": part}
            if found_rank != rank:
                ranks[path] = found_rank
            if factor != alpha:
                alphas[path] = factor
        if len(ours) > 1:
            shared += ours
    _check_whole(layout, published, modules, found, where)
    dropout = _number(published, "lora_dropout", where, 0.0)
    if dropout >= 1:
        raise BedstoneError(
            f"{where}/adapter_config.json: lora_dropout = {dropout}; expected a share below 1."
        )
    config = LoraConfig(
        rank=rank,
        alpha=alpha,
        dropout=dropout,
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


def _check_base(
    network: nn.Module,
    bare: str,
    names: dict[str, Name],
    layout: Layout,
    tensor: Tensor,
    where: str,
) -> None:
    """Raises BedstoneError if weights of the base, stored beside the adapter, aren't this base's.

    peft stores those of an adapted head or embedding.
    """
    found = _find(bare, names, layout)
    if found is not None:
        same = names[found].write(dict(network.state_dict())).to(tensor.dtype)
        if same.shape == tensor.shape and torch.equal(same.cpu(), tensor):
            return
    raise BedstoneError(
        f"{where}: holds the weights {bare!r} of its base, which this {layout.model_type} base "
        "doesn't have. Take the base that the adapter was trained on."
    )


def _whole(network: nn.Module, name: Name, tensor: Tensor, where: str) -> dict[str, Tensor]:
    """Our parameters of a published tensor that was trained whole."""
    try:
        parts = name.read(tensor)
    except BedstoneError as error:
        raise BedstoneError(f"{where}: {error}") from None
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
            if not is_number(value) or value <= 0:
                raise BedstoneError(
                    f"{where}/adapter_config.json: {key} gives {shown(value)} for {pattern!r}; "
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
    if value is None or not is_number(value) or value < 0:
        raise BedstoneError(
            f"{where}/adapter_config.json: {key} = {shown(value)}; expected a finite number, 0 or "
            "more."
        )
    return float(value)


def _count(published: dict[str, Any], key: str, where: str) -> int:
    value = published.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BedstoneError(
            f"{where}/adapter_config.json: {key} = {shown(value)}; expected a whole number above 0."
        )
    return value


# One of our adapters as peft's configuration and tensors.


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
        distinct = {config.alpha, *(config.alpha_of(parent_of(ours)) for ours in whole.ours)}
        # The number that was asked for, where it gives this scale to the last bit but one.
        alpha = next((one for one in distinct if math.isclose(one, alpha, rel_tol=1e-12)), alpha)
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
