"""How GPTs stand in GGUF files: architectures llama (mistral too), qwen2, qwen3 and gpt2.

Metadata keys and tensor names are llama.cpp's, keys without the architecture before them. In
`llama`, the rows of a head's queries and keys stand so that the two numbers that rotate together
are neighbours; everywhere else, as in transformers, half a head lies between them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.models.gpt.network import GPTConfig
from bedstone.models.gpt.published import LAYOUTS as PUBLISHED
from bedstone.models.published import Layout, Name, need
from bedstone.nn.positions import scaled_frequencies
from bedstone.published_keys import Keys, keys
from bedstone.reading import shown
from bedstone.settings import from_mapping

ROPE_FACTORS = "rope_freqs.weight"  # divisors of the rotary frequencies, one for each pair
_YARN = {
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
    "original_context_length": "original_max_position_embeddings",
}


def read_gpt2(values: dict[str, Any]) -> GPTConfig:
    shape = {
        "layout": "gpt2",
        "vocab_size": need(values, "vocab_size"),
        "width": need(values, "embedding_length"),
        "layers": need(values, "block_count"),
        "heads": need(values, "attention.head_count"),
        "hidden": need(values, "feed_forward_length"),
        "context": need(values, "context_length"),
        "norm_eps": values.get("attention.layer_norm_epsilon", 1e-5),
    }
    return from_mapping(GPTConfig, shape, "metadata")


def write_gpt2(config: GPTConfig) -> dict[str, Any]:
    if config.activation not in ("gelu_new", "gelu_pytorch_tanh"):
        raise _not_there(f"activation {config.activation!r} in gpt2, whose one is gelu_new")
    return {
        "vocab_size": config.vocab_size,
        "context_length": config.context,
        "embedding_length": config.width,
        "feed_forward_length": config.hidden,
        "block_count": config.layers,
        "attention.head_count": config.heads,
        "attention.layer_norm_epsilon": float(config.norm_eps),
    }


def names_gpt2(config: GPTConfig) -> Iterator[Name]:
    yield Name("token_embd.weight", ("embed.weight",))
    yield Name("position_embd.weight", ("positions.weight",))
    for i in range(config.layers):
        theirs, attn, mlp = f"blk.{i}", f"stack.{i}.attn", f"stack.{i}.mlp"
        for leaf in ("weight", "bias"):
            qkv = tuple(f"{attn}.sublayer.{part}.{leaf}" for part in "qkv")
            yield Name(f"{theirs}.attn_norm.{leaf}", (f"{attn}.norm.{leaf}",))
            yield Name(f"{theirs}.attn_qkv.{leaf}", qkv)
            yield Name(f"{theirs}.attn_output.{leaf}", (f"{attn}.sublayer.out.{leaf}",))
            yield Name(f"{theirs}.ffn_norm.{leaf}", (f"{mlp}.norm.{leaf}",))
            yield Name(f"{theirs}.ffn_up.{leaf}", (f"{mlp}.sublayer.up.{leaf}",))
            yield Name(f"{theirs}.ffn_down.{leaf}", (f"{mlp}.sublayer.down.{leaf}",))
    yield Name("output_norm.weight", ("norm.weight",))
    yield Name("output_norm.bias", ("norm.bias",))
    yield Name("output.weight", ("head.weight",))


def read_llama(values: dict[str, Any], *, architecture: str) -> GPTConfig:
    heads = need(values, "attention.head_count")
    window = values.get("attention.sliding_window") if architecture == "llama" else None
    head_width = values.get("attention.key_length") or 0
    for key in ("attention.value_length", "rope.dimension_count"):
        width = head_width or need(values, "embedding_length") // max(heads, 1)
        if values.get(key, width) != width:
            raise BedstoneError(
                f"metadata: {key} = {shown(values[key])}, where a head's keys have {width}; "
                "other widths aren't built."
            )
    shape = {
        "layout": "mistral" if window else architecture,
        "vocab_size": need(values, "vocab_size"),
        "width": need(values, "embedding_length"),
        "layers": need(values, "block_count"),
        "heads": heads,
        "kv_heads": values.get("attention.head_count_kv") or heads,
        "head_width": head_width,
        "hidden": need(values, "feed_forward_length"),
        "context": need(values, "context_length"),
        "norm_eps": values.get("attention.layer_norm_rms_epsilon", 1e-5),
        "rope_base": values.get("rope.freq_base", 10_000.0),
        "rope_scaling": _read_scaling(values),
        "window": window or None,
    }
    return from_mapping(GPTConfig, shape, "metadata")


def _read_scaling(values: Mapping[str, Any]) -> dict[str, Any]:
    kind = values.get("rope.scaling.type", "none")
    factor = values.get("rope.scaling.factor") or values.get("rope.scale_linear") or 1.0
    divisors = values.get(ROPE_FACTORS)  # set by `with_divisors`, from the tensor of that name
    if kind in ("none", "linear") and divisors is not None:
        shape = {"rope_type": "longrope", "attention_factor": 1.0, "factor": 1.0}
        shape["original_max_position_embeddings"] = need(dict(values), "context_length")
        return {**shape, "short_factor": list(divisors), "long_factor": list(divisors)}
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        more = {ours: values.get(f"rope.scaling.{theirs}") for theirs, ours in _YARN.items()}
        if (weight := values.get("rope.scaling.attn_factor")) not in (None, 1.0):
            raise BedstoneError(
                f"metadata: rope.scaling.attn_factor = {shown(weight)}; only 1 is built."
            )
        return {"rope_type": "yarn", "factor": factor} | {k: v for k, v in more.items() if v}
    raise BedstoneError(
        f"metadata: rope.scaling.type = {shown(kind)} isn't built; none, linear and yarn are."
    )


def write_llama(config: GPTConfig, *, architecture: str) -> dict[str, Any]:
    if config.activation != "silu":
        raise _not_there(f"activation {config.activation!r} in {architecture}, whose one is silu")
    if config.window is not None and config.layout != "mistral":
        raise _not_there(f"a sliding window in {architecture}")
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.context,
        "embedding_length": config.width,
        "block_count": config.layers,
        "feed_forward_length": config.hidden,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_width,
        "attention.value_length": config.head_width,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.dimension_count": config.head_width,
        "rope.freq_base": float(config.rope_base),
    }
    if config.window is not None:
        values["attention.sliding_window"] = config.window
    scaling = config.rope_scaling
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    elif kind == "yarn":
        if set(scaling) & {"attention_factor", "mscale", "mscale_all_dim", "truncate"}:
            raise _not_there("yarn with a factor of attention or without whole borders")
        values |= {"rope.scaling.type": "yarn", "rope.scaling.factor": float(scaling["factor"])}
        for theirs, ours in _YARN.items():
            if scaling.get(ours):
                whole = ours.startswith("original")
                values[f"rope.scaling.{theirs}"] = (int if whole else float)(scaling[ours])
    return values


def rope_divisors(config: GPTConfig) -> Tensor | None:
    """What the rotary frequencies are divided by, (W / 2,); None where nothing or one number is.

    Raises:
        BedstoneError: it depends on a text's length, for which GGUF has no place.
    """
    kind = config.rope_scaling.get("rope_type", config.rope_scaling.get("type", "default"))
    if config.layout == "gpt2" or kind in ("default", "linear", "yarn"):
        return None
    given = config.rope_scaling
    if kind == "longrope":
        if given["short_factor"] != given["long_factor"] or given.get("attention_factor") != 1.0:
            raise _not_there("longrope with divisors that depend on a text's length")
        return torch.tensor(given["long_factor"], dtype=torch.float32)
    if kind != "llama3":
        raise _not_there(f"rope_type {kind!r}")
    found, plain = (
        scaled_frequencies(config.head_width, config.rope_base, each, config.context)
        for each in (given, None)
    )
    position = torch.ones(1)
    return plain.at(position, position)[0] / found.at(position, position)[0]


def names_llama(config: GPTConfig) -> Iterator[Name]:
    paired = config.layout in ("llama", "mistral")
    turns = {"q": config.heads, "k": config.kv_heads} if paired else {}
    yield Name("token_embd.weight", ("embed.weight",))
    for i in range(config.layers):
        theirs = f"blk.{i}"
        attn, mlp = f"stack.{i}.attn.sublayer", f"stack.{i}.mlp.sublayer"
        yield Name(f"{theirs}.attn_norm.weight", (f"stack.{i}.attn.norm.weight",))
        yield Name(f"{theirs}.ffn_norm.weight", (f"stack.{i}.mlp.norm.weight",))
        for part in "qkv":
            biased = ("weight", "bias") if config.qkv_bias else ("weight",)
            for leaf in biased:
                ours = f"{attn}.{part}.{leaf}"
                yield Name(f"{theirs}.attn_{part}.{leaf}", (ours,), paired=turns.get(part, 0))
        for leaf in ("weight", "bias") if config.out_bias else ("weight",):
            yield Name(f"{theirs}.attn_output.{leaf}", (f"{attn}.out.{leaf}",))
        if config.layout == "qwen3":
            yield Name(f"{theirs}.attn_q_norm.weight", (f"{attn}.q_norm.weight",))
            yield Name(f"{theirs}.attn_k_norm.weight", (f"{attn}.k_norm.weight",))
        for part in ("gate", "up", "down"):
            for leaf in ("weight", "bias") if config.mlp_bias else ("weight",):
                yield Name(f"{theirs}.ffn_{part}.{leaf}", (f"{mlp}.{part}.{leaf}",))
    yield Name("output_norm.weight", ("norm.weight",))
    yield Name("output.weight", ("head.weight",))


def _fit(config: GPTConfig, tensors: set[str]) -> GPTConfig:
    """What the tensors that are there say, and no key does."""
    changes: dict[str, Any] = {"tied": "output.weight" not in tensors}
    if config.layout != "gpt2":
        where = {"qkv_bias": "attn_q", "out_bias": "attn_output", "mlp_bias": "ffn_up"}
        changes |= {name: f"blk.0.{part}.bias" in tensors for name, part in where.items()}
    return replace(config, **changes)


def _not_there(what: str) -> BedstoneError:
    return BedstoneError(
        f"GGUF has no place for {what}. Save the model as a folder, which other programs open."
    )


_SHARED = keys("vocab_size context_length embedding_length block_count feed_forward_length")
_ROTARY = Keys(
    honoured=_SHARED
    | keys(
        f"""attention.head_count attention.head_count_kv attention.key_length
        attention.value_length attention.layer_norm_rms_epsilon rope.dimension_count
        rope.freq_base rope.scaling.type rope.scaling.factor rope.scale_linear
        rope.scaling.original_context_length rope.scaling.yarn_beta_fast
        rope.scaling.yarn_beta_slow rope.scaling.attn_factor {ROPE_FACTORS}"""
    ),
    harmless=keys("rope.scaling.finetuned tensor_data_layout"),
    plain={
        "attention.causal": (True,),
        "attention.scale": (),
        "expert_count": (0,),
        "expert_used_count": (0,),
        "logit_scale": (1.0,),
        "residual_scale": (1.0,),
        "embedding_scale": (1.0,),
        "pooling_type": (0,),
        "use_parallel_residual": (False,),
    },
)
KEYS = {
    "gpt2": Keys(
        honoured=_SHARED | keys("attention.head_count attention.layer_norm_epsilon"),
        harmless=keys("tensor_data_layout attention.head_count_kv"),
        plain={"attention.causal": (True,), "use_parallel_residual": (False,)},
    ),
    "llama": _ROTARY | Keys(honoured=keys("attention.sliding_window")),
    "qwen2": _ROTARY | Keys(plain={"attention.sliding_window": (0,)}),
    "qwen3": _ROTARY | Keys(plain={"attention.sliding_window": (0,)}),
}


def _layout(architecture: str) -> Layout:
    rotary = architecture != "gpt2"
    read = partial(read_llama, architecture=architecture) if rotary else read_gpt2
    write = partial(write_llama, architecture=architecture) if rotary else write_gpt2
    return replace(
        PUBLISHED[architecture],
        read_config=read,
        write_config=write,
        names=names_llama if rotary else names_gpt2,
        prefix="",
        ignored=(ROPE_FACTORS,),
        fit=_fit,
        keys=KEYS[architecture],
        defaults={},
        classes=(),
    )


LAYOUTS = {architecture: _layout(architecture) for architecture in KEYS}
