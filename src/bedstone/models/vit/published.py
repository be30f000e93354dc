"""How image encoders are published: vit.

Configuration keys and tensor names are those that `transformers` writes. The body's tensors
stand under `vit.` beside a head, and under no prefix alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from bedstone.models.published import (
    TRANSFORMERS,
    Layout,
    Name,
    need,
    read_head,
    refuse,
    write_head,
)
from bedstone.models.vit.network import ViT, ViTConfig, build, make
from bedstone.published_keys import Keys, keys
from bedstone.settings import from_mapping

_SIZES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
}
_OTHERS = {
    "image_size": "image_size",
    "patch": "patch_size",
    "channels": "num_channels",
    "norm_eps": "layer_norm_eps",
    "activation": "hidden_act",
    "qkv_bias": "qkv_bias",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "head_width": "head_dim",
}
_BLOCK = {
    "attn.norm": "layernorm_before",
    "attn.sublayer.q": "attention.attention.query",
    "attn.sublayer.k": "attention.attention.key",
    "attn.sublayer.v": "attention.attention.value",
    "attn.sublayer.out": "attention.output.dense",
    "mlp.norm": "layernorm_after",
    "mlp.sublayer.up": "intermediate.dense",
    "mlp.sublayer.down": "output.dense",
}
# In memory, as transformers 5 has it: its files keep the older names.
_MODULES = {
    **_BLOCK,
    "attn.sublayer.q": "attention.q_proj",
    "attn.sublayer.k": "attention.k_proj",
    "attn.sublayer.v": "attention.v_proj",
    "attn.sublayer.out": "attention.o_proj",
    "mlp.sublayer.up": "mlp.fc1",
    "mlp.sublayer.down": "mlp.fc2",
}
KEYS = TRANSFORMERS | Keys(
    honoured=keys("pooler_output_size") | {*_SIZES.values(), *_OTHERS.values()},
    harmless=keys("encoder_stride"),  # of pixels that are hidden in pretraining
    plain={"pooler_act": ("tanh",)},
)
DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_CLASSES = {"sequence": "ViTForImageClassification", "pooled": "ViTModel", "states": "ViTModel"}


def architecture(head: HeadConfig) -> str:
    """The published class that opens a ViT with that head."""
    return _CLASSES[head.kind]


def read_vit(config: dict[str, Any]) -> ViTConfig:
    width = need(config, "hidden_size")
    refuse(config, {"pooler_output_size": width})
    shape = {
        "layout": "vit",
        "head": _read_head(config),
        **{ours: need(config, theirs) for ours, theirs in _SIZES.items()},
        **{ours: config[key] for ours, key in _OTHERS.items() if config.get(key) is not None},
    }
    return from_mapping(ViTConfig, shape, "config.json")


def _read_head(config: dict[str, Any]) -> HeadConfig:
    name = (config.get("architectures") or ["ViTModel"])[0]
    if name == "ViTForImageClassification":  # as sequence classification is, by another name
        return read_head({**config, "architectures": ["ViTForSequenceClassification"]}, bare="")
    if name != "ViTModel":
        raise BedstoneError(
            f"config.json: architectures names {name!r}, a head that Bedstone doesn't have; "
            f"{' and '.join(sorted(set(_CLASSES.values())))} open."
        )
    return HeadConfig("pooled")


def write_vit(config: ViTConfig) -> dict[str, Any]:
    published = {
        "architectures": [architecture(config.head)],
        "model_type": "vit",
        **{theirs: getattr(config, ours) for ours, theirs in {**_SIZES, **_OTHERS}.items()},
        **write_head(config.head),
    }
    if config.head_width * config.heads == config.width:
        del published["head_dim"]
    return square(published)


def square(published: dict[str, Any]) -> dict[str, Any]:
    """Sizes as published: one number where both are equal."""
    for key in ("image_size", "patch_size"):
        high, wide = published[key]
        published[key] = high if high == wide else [high, wide]
    return published


def both(theirs: str, ours: str, *, bias: bool = True) -> Iterator[Name]:
    for leaf in ("weight", "bias") if bias else ("weight",):
        yield Name(f"{theirs}.{leaf}", (f"{ours}.{leaf}",))


def names_vit(
    config: ViTConfig, blocks: str = "encoder.layer", block: dict[str, str] = _BLOCK
) -> Iterator[Name]:
    body = "vit." if config.head.kind == "sequence" else ""
    table = f"{body}embeddings"
    yield Name(f"{table}.cls_token", ("first",), leading=2)
    yield Name(f"{table}.position_embeddings", ("positions.weight",), leading=1)
    yield from both(f"{table}.patch_embeddings.projection", "patches")
    for i in range(config.layers):
        for ours, theirs in block.items():
            biased = config.qkv_bias or ours[-2:] not in (".q", ".k", ".v")
            yield from both(f"{body}{blocks}.{i}.{theirs}", f"stack.{i}.{ours}", bias=biased)
    yield from both(f"{body}layernorm", "norm")
    if config.head.kind == "sequence":
        yield from both("classifier", "head.out")
    elif config.head.kind == "pooled":
        yield from both("pooler.dense", "head.dense")


def _without_pooler(config: ViTConfig, tensors: set[str]) -> ViTConfig:
    """A body alone that was saved without its pooler."""
    if config.head.kind == "pooled" and not any("pooler.dense" in name for name in tensors):
        return replace(config, head=replace(config.head, kind="states"))
    return config


def _fresh(sizes: Mapping[str, Any], seed: int) -> ViT:
    shape = from_mapping(ViTConfig, {**sizes, "layout": "vit"}, "recipe", "model.")
    return build(shape, seed=seed)


LAYOUTS = {
    "vit": Layout(
        model_type="vit",
        architecture=lambda config: architecture(config.head),
        read_config=read_vit,
        write_config=write_vit,
        build=make,
        names=names_vit,
        modules=partial(names_vit, blocks="layers", block=_MODULES),
        prefix="vit.",
        ignored=("embeddings.mask_token",),
        fit=_without_pooler,
        fresh=_fresh,
        keys=KEYS,
        defaults=DEFAULTS,
        classes=("ViTForImageClassification",),
    )
}
