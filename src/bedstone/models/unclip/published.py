"""How priors of unCLIP are kept.

The diffusion prior is diffusers' `PriorTransformer`, with its keys and tensors; of the
autoregressive one nothing was published, so it has our own names.
"""

from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.models.published import DIFFUSERS, TRANSFORMERS, Layout, Name, need
from bedstone.models.unclip import autoregressive
from bedstone.models.unclip.autoregressive import CodePriorConfig
from bedstone.models.unclip.network import PriorConfig, make
from bedstone.models.vit.published import both
from bedstone.published_keys import Keys
from bedstone.runtime import without_weights
from bedstone.settings import from_mapping

CLASS = "PriorTransformer"
SIZES = {
    "heads": "num_attention_heads",
    "head_width": "attention_head_dim",
    "layers": "num_layers",
    "embed": "embedding_dim",
    "text_tokens": "num_embeddings",
    "additional": "additional_embeddings",
}
USUAL = {"time_width": "time_embed_dim", "words_embed": "embedding_proj_dim"}
USUAL |= {"out_embed": "clip_embed_dim"}  # what they are where no file says them
# What is there or not: our field, the key, and its value where it is there.
PARTS = {
    "norm_in": ("norm_in_type", "layer"),
    "norm_words": ("embedding_proj_norm_type", "layer"),
    "projects_words": ("encoder_hid_proj_type", "linear"),
    "query": ("added_emb_type", "prd"),
}
DEFAULTS = {
    "num_attention_heads": 32,
    "attention_head_dim": 64,
    "num_layers": 20,
    "embedding_dim": 768,
    "num_embeddings": 77,
    "additional_embeddings": 4,
    "dropout": 0.0,
    "time_embed_act_fn": "silu",
    "encoder_hid_proj_type": "linear",
    "added_emb_type": "prd",
}
STATISTICS = {"clip_mean", "clip_std"}


def read_prior(config: dict[str, Any]) -> PriorConfig:
    """Raises BedstoneError where the configuration has parts that aren't built."""
    found: dict[str, Any] = {own: need(config, key) for own, key in SIZES.items()}
    found |= {own: config.get(key) or 0 for own, key in USUAL.items()}
    for own, (key, value) in PARTS.items():
        if config.get(key) not in (None, value):
            raise BedstoneError(
                f"config.json: {key} = {config[key]!r} is not supported; expected {value!r} or "
                "null."
            )
        found[own] = config.get(key) == value
    found |= {"dropout": config.get("dropout") or 0.0, "layout": "prior_transformer"}
    activation = config.get("time_embed_act_fn")
    found["time_activation"] = "silu" if activation == "swish" else activation
    found["width"] = found["heads"] * found["head_width"]
    return from_mapping(PriorConfig, found, "config.json")


def write_prior(config: PriorConfig) -> dict[str, Any]:
    """The `config.json` of a prior."""
    sizes = {key: getattr(config, own) for own, key in {**SIZES, **USUAL}.items()}
    parts = {key: value if getattr(config, own) else None for own, (key, value) in PARTS.items()}
    more = {"dropout": config.dropout, "time_embed_act_fn": config.time_activation}
    return {"_class_name": CLASS, **sizes, **parts, **more}


def with_statistics(config: PriorConfig, tensors: set[str]) -> PriorConfig:
    """Raises BedstoneError where a file has no statistics of the CLIP's embeddings."""
    for name in sorted(STATISTICS - tensors if tensors else ()):
        raise BedstoneError(
            f"prior: the weights have no {name}, so that its embeddings can't be brought back to "
            "the CLIP's. Take weights with clip_mean and clip_std."
        )
    return config


def names_prior(config: PriorConfig) -> Iterator[Name]:
    """Every tensor."""
    yield Name("positional_embedding", ("positions.weight",), leading=1)
    if config.query:
        yield Name("prd_embedding", ("query",), leading=2)
    yield Name("clip_mean", ("mean",), leading=1)
    yield Name("clip_std", ("std",), leading=1)
    yield from both("time_embedding.linear_1", "time.mlp.up")
    yield from both("time_embedding.linear_2", "time.mlp.down")
    yield from both("proj_in", "noisy")
    if config.norm_words:
        yield from both("embedding_proj_norm", "words_norm")
    yield from both("embedding_proj", "words")
    if config.projects_words:
        yield from both("encoder_hidden_states_proj", "text")
    if config.norm_in:
        yield from both("norm_in", "norm_in")
    for i in range(config.layers):
        theirs, ours = f"transformer_blocks.{i}", f"stack.{i}"
        yield from both(f"{theirs}.norm1", f"{ours}.attn.norm")
        for part in ("q", "k", "v"):
            yield from both(f"{theirs}.attn1.to_{part}", f"{ours}.attn.sublayer.{part}")
        yield from both(f"{theirs}.attn1.to_out.0", f"{ours}.attn.sublayer.out")
        yield from both(f"{theirs}.norm3", f"{ours}.mlp.norm")
        yield from both(f"{theirs}.ff.net.0.proj", f"{ours}.mlp.sublayer.up")
        yield from both(f"{theirs}.ff.net.2", f"{ours}.mlp.sublayer.down")
    yield from both("norm_out", "norm")
    yield from both("proj_to_clip_embeddings", "out")


CODE_FIELDS = tuple(item.name for item in fields(CodePriorConfig))


def read_codes(config: dict[str, Any]) -> CodePriorConfig:
    """Our configuration; what a file leaves out has our default."""
    known = {name: config[name] for name in CODE_FIELDS if config.get(name) is not None}
    return from_mapping(CodePriorConfig, known, "config.json")


def write_codes(config: CodePriorConfig) -> dict[str, Any]:
    """The `config.json` of an autoregressive prior."""
    return {"model_type": config.layout, **asdict(config)}


def names_codes(config: CodePriorConfig) -> Iterator[Name]:
    """Every tensor, by the name that it has here."""
    with without_weights():
        network = autoregressive.make(config)
    yield from (Name(name, (name,)) for name in network.state_dict())


_KEYS = {*SIZES.values(), *USUAL.values(), *(key for key, _ in PARTS.values())}
LAYOUTS = {
    "prior_transformer": Layout(
        model_type="prior_transformer",
        architecture=lambda config: CLASS,
        read_config=read_prior,
        write_config=write_prior,
        build=make,
        names=names_prior,
        fit=with_statistics,
        library="diffusers",
        keys=DIFFUSERS | Keys(honoured=frozenset({*_KEYS, "dropout", "time_embed_act_fn"})),
        defaults=DEFAULTS,
    ),
    "autoregressive_prior": Layout(
        model_type="autoregressive_prior",
        architecture=lambda config: None,
        read_config=read_codes,
        write_config=write_codes,
        build=autoregressive.make,
        names=names_codes,
        keys=TRANSFORMERS | Keys(honoured=frozenset(CODE_FIELDS)),
    ),
}
