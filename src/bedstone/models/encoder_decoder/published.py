"""How encoder-decoders are published: marian, bart, t5 and mt5.

Configuration keys and tensor names are those that `transformers` writes. Which tensors are one is
what its files are least sure of: a tied table may stand as `shared.weight`, under the encoder's or
the decoder's name, or as `lm_head.weight`. All of these are read where the configuration ties them,
and only there: of an untied network a missing table is named, and no other stands in for it.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from bedstone.errors import BedstoneError
from bedstone.models.encoder_decoder.config import (
    LAYOUTS as NAMES,
)
from bedstone.models.encoder_decoder.config import (
    RELATIVE,
    EncoderDecoderConfig,
)
from bedstone.models.encoder_decoder.network import EncoderDecoder
from bedstone.models.published import TRANSFORMERS, Layout, Name, need
from bedstone.models.vit.published import both
from bedstone.published_keys import Keys, keys
from bedstone.reading import shown
from bedstone.settings import from_mapping

MOST = 512  # tokens that a model trained here writes at most, unless its network reads fewer
_CLASSES = {
    "marian": ("MarianMTModel", "MarianModel"),
    "bart": ("BartForConditionalGeneration", "BartModel"),
    "t5": ("T5ForConditionalGeneration", "T5WithLMHeadModel", "T5Model"),
    "mt5": ("MT5ForConditionalGeneration", "MT5Model"),
}
_MARIAN = {
    "width": "d_model",
    "layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "heads": "encoder_attention_heads",
    "decoder_heads": "decoder_attention_heads",
    "hidden": "encoder_ffn_dim",
    "decoder_hidden": "decoder_ffn_dim",
    "context": "max_position_embeddings",
    "activation": "activation_function",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "scaled_embedding": "scale_embedding",
}
_T5 = {
    "width": "d_model",
    "head_width": "d_kv",
    "hidden": "d_ff",
    "layers": "num_layers",
    "decoder_layers": "num_decoder_layers",
    "heads": "num_heads",
    "buckets": "relative_attention_num_buckets",
    "distance": "relative_attention_max_distance",
    "norm_eps": "layer_norm_epsilon",
    "dropout": "dropout_rate",
    "context": "n_positions",
}
_WORDS = {"marian": _MARIAN, "bart": _MARIAN, "t5": _T5, "mt5": _T5}
_IDS = {"bos_id": "bos_token_id", "eos_id": "eos_token_id", "pad_id": "pad_token_id"}
_IDS |= {"start_id": "decoder_start_token_id"}
# Sizes that every file says, or means by leaving them out.
_BIG = {
    **{f"{side}_layers": 12 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 16 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 4096 for side in ("encoder", "decoder")},
    "d_model": 1024,
    "max_position_embeddings": 1024,
    "activation_function": "gelu",
    "dropout": 0.1,
    "scale_embedding": False,
}
_SMALL = {
    "d_model": 512,
    "d_kv": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "marian": {
        **_BIG,
        "vocab_size": 58101,
        "pad_token_id": 58100,
        "eos_token_id": 0,
        "decoder_start_token_id": 58100,
        "forced_eos_token_id": 0,
    },
    "bart": {
        **_BIG,
        "vocab_size": 50265,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    },
    "t5": {
        **_SMALL,
        "vocab_size": 32128,
        "d_ff": 2048,
        "num_layers": 6,
        "num_heads": 8,
        "feed_forward_proj": "relu",
    },
    "mt5": {
        **_SMALL,
        "vocab_size": 250112,
        "d_ff": 1024,
        "num_layers": 8,
        "num_heads": 6,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,
    },
}
_COMMON = TRANSFORMERS | Keys(
    honoured=keys("decoder_start_token_id prefix task_specific_params vocab_size"),
    # dropout of heads that aren't built, and of whole layers, which only their training does
    harmless=keys(
        """classif_dropout classifier_dropout decoder_layerdrop encoder_layerdrop
        force_bos_token_to_be_generated init_std num_hidden_layers save_step"""
    ),
    plain={"is_encoder_decoder": (True,), "is_decoder": (False,)},
)
_POST_NORM = {
    "normalize_before": (False,),
    "add_final_layer_norm": (False,),
    "add_bias_logits": (False,),
    "extra_pos_embeddings": (2,),
}
_KEYS = {
    "marian": _COMMON
    | Keys(
        honoured=keys("decoder_vocab_size share_encoder_decoder_embeddings")
        | frozenset(_MARIAN.values()),
        plain={
            **_POST_NORM,
            "static_position_embeddings": (True,),
            "normalize_embedding": (False,),
        },
    ),
    "bart": _COMMON
    | Keys(
        honoured=frozenset(_MARIAN.values()),
        plain={
            **_POST_NORM,
            "static_position_embeddings": (False,),
            "normalize_embedding": (True,),
        },
    ),
    "t5": _COMMON
    | Keys(
        honoured=keys("feed_forward_proj dense_act_fn is_gated_act scale_decoder_outputs")
        | frozenset(_T5.values())
    ),
}
_KEYS["mt5"] = _KEYS["t5"]


def read(config: dict[str, Any], *, layout: str) -> EncoderDecoderConfig:
    words = _WORDS[layout]
    name = (config.get("architectures") or _CLASSES[layout])[0]
    if name not in _CLASSES[layout]:
        raise BedstoneError(
            f"config.json: architectures names {name!r}, a class that Bedstone doesn't have; "
            f"{', '.join(_CLASSES[layout])} open."
        )
    shape: dict[str, Any] = {"layout": layout, "vocab_size": need(config, "vocab_size")}
    shape |= {ours: config[key] for ours, key in words.items() if config.get(key) is not None}
    shape["tied"] = config.get("tie_word_embeddings") is not False
    if layout in RELATIVE:
        shape |= _feed_forward(config)
        if layout == "t5":  # as in transformers: what says nothing of it is tied as v1.0 is
            scaled = config.get("scale_decoder_outputs")
            shape["scaled_output"] = shape["tied"] if scaled is None else scaled
    if layout == "marian":
        shared = config.get("share_encoder_decoder_embeddings")
        shape["shared"] = shared is None or shared
        if shape["shared"] is False and config.get("decoder_vocab_size") is not None:
            shape["target_vocab_size"] = need(config, "decoder_vocab_size")
    shape |= _ids(config, layout, shape)
    if config.get("prefix") is not None:
        shape["prefix"] = config["prefix"]
    shape["prefixes"] = _prefixes(config.get("task_specific_params"))
    return from_mapping(EncoderDecoderConfig, shape, "config.json")


def _feed_forward(config: Mapping[str, Any]) -> dict[str, Any]:
    """The MLPs that `feed_forward_proj` names, such as relu or gated-gelu."""
    given = config.get("feed_forward_proj")
    parts = given.split("-") if isinstance(given, str) else []
    if not parts or len(parts) > 2 or (len(parts) == 2 and parts[0] != "gated"):
        raise BedstoneError(
            f"config.json: feed_forward_proj = {shown(given)}; expected an activation such as "
            '"relu", or one after "gated-".'
        )
    gated = len(parts) == 2
    activation = "gelu_new" if given == "gated-gelu" else parts[-1]
    for key, value in (("dense_act_fn", activation), ("is_gated_act", gated)):
        if config.get(key) not in (None, value):
            raise BedstoneError(
                f"config.json: {key} = {shown(config[key])}, where feed_forward_proj = "
                f"{shown(given)} asks for {value!r}. Take the key out of the file."
            )
    return {"gated": gated, "activation": activation}


def _ids(config: Mapping[str, Any], layout: str, shape: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens; a default that the vocabulary doesn't have says nothing."""
    found: dict[str, Any] = {}
    size = min(shape["vocab_size"], shape.get("target_vocab_size") or shape["vocab_size"])
    for ours, key in _IDS.items():
        value = config.get(key)
        value = value[0] if isinstance(value, list) and value else value
        usual = _DEFAULTS[layout].get(key)
        if value is None or (value == usual and isinstance(value, int) and value >= size):
            continue
        found[ours] = value
    return found


def _prefixes(given: Any) -> dict[str, str]:
    """What the model expects before a source, by the names of tasks; other settings stay behind.

    They would lengthen and cut what a model gives that is trained for something else.
    """
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(one, dict) for one in given.values()):
        raise BedstoneError(
            f"config.json: task_specific_params = {shown(given)}; expected an object of objects."
        )
    found = {name: one.get("prefix") for name, one in given.items()}
    return {name: prefix for name, prefix in found.items() if isinstance(prefix, str) and prefix}


def write(config: EncoderDecoderConfig, *, layout: str) -> dict[str, Any]:
    published = {
        "architectures": [_CLASSES[layout][0]],
        "model_type": layout,
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        **{theirs: getattr(config, ours) for ours, theirs in _WORDS[layout].items()},
        **{theirs: getattr(config, ours) for ours, theirs in _IDS.items()},
    }
    if layout in RELATIVE:
        activation = "gelu" if config.gated and config.activation == "gelu_new" else None
        activation = activation or config.activation
        published["feed_forward_proj"] = f"gated-{activation}" if config.gated else activation
        if layout == "t5":
            published["scale_decoder_outputs"] = config.scaled_output
    if layout == "marian":
        published["share_encoder_decoder_embeddings"] = config.shared
        published["decoder_vocab_size"] = config.target_vocab_size
    if config.prefix:
        published["prefix"] = config.prefix
    if config.prefixes:
        tasks = {name: {"prefix": prefix} for name, prefix in config.prefixes.items()}
        published["task_specific_params"] = tasks
    return {name: value for name, value in published.items() if value is not None}


_ATTENTION = {
    "attn.sublayer": "self_attn",
    "attn.norm": "self_attn_layer_norm",
    "cross.sublayer": "encoder_attn",
    "cross.norm": "encoder_attn_layer_norm",
    "mlp.sublayer.up": "fc1",
    "mlp.sublayer.down": "fc2",
    "mlp.norm": "final_layer_norm",
}


def _names_marian(config: EncoderDecoderConfig) -> Iterator[Name]:
    """Of marian and bart, which has positions and norms of embeddings beside."""
    bart = config.layout == "bart"
    if config.shared or bart:  # an untied bart holds it too, and reads it nowhere
        yield Name("model.shared.weight", ("encoder.embed.weight",))
    for side in (config.encoder, config.decoder):
        ours = "decoder" if side.causal else "encoder"
        theirs = f"model.{ours}"
        if not config.shared:
            yield Name(f"{theirs}.embed_tokens.weight", (f"{ours}.embed.weight",))
        if bart:
            yield Name(f"{theirs}.embed_positions.weight", (f"{ours}.positions.weight",))
            yield from both(f"{theirs}.layernorm_embedding", f"{ours}.norm")
        for i in range(side.layers):
            for part, name in _ATTENTION.items():
                block, own = f"{theirs}.layers.{i}.{name}", f"{ours}.stack.{i}.{part}"
                if part.startswith("cross") and not side.causal:
                    continue
                if name.endswith("_attn"):
                    for leaf in ("q", "k", "v", "out"):
                        yield from both(f"{block}.{leaf}_proj", f"{own}.{leaf}")
                else:
                    yield from both(block, own)
    yield Name("lm_head.weight", ("head.out.weight",))
    yield Name("final_logits_bias", ("head.out.bias",), leading=1)


def _names_t5(config: EncoderDecoderConfig) -> Iterator[Name]:
    yield Name("shared.weight", ("encoder.embed.weight",))
    mlp = {"gate": "wi_0", "up": "wi_1"} if config.gated else {"up": "wi"}
    attention = {"q": "q", "k": "k", "v": "v", "out": "o"}
    for side in (config.encoder, config.decoder):
        ours = "decoder" if side.causal else "encoder"
        parts = {"attn": ("SelfAttention", attention), "cross": ("EncDecAttention", attention)}
        if not side.causal:
            del parts["cross"]
        parts["mlp"] = ("DenseReluDense", {**mlp, "down": "wo"})
        table = f"{ours}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield Name(table, (f"{ours}.relative.weight",))
        for i in range(side.layers):
            for number, (part, (kind, leaves)) in enumerate(parts.items()):
                theirs, own = f"{ours}.block.{i}.layer.{number}", f"{ours}.stack.{i}.{part}"
                for leaf, name in leaves.items():
                    yield Name(f"{theirs}.{kind}.{name}.weight", (f"{own}.sublayer.{leaf}.weight",))
                yield Name(f"{theirs}.layer_norm.weight", (f"{own}.norm.weight",))
        yield Name(f"{ours}.final_layer_norm.weight", (f"{ours}.last.weight",))
    yield Name("lm_head.weight", ("head.out.weight",))


def _same(config: EncoderDecoderConfig, tensors: set[str]) -> dict[str, list[str]]:
    """Other names of embeddings, as the configuration ties them."""
    body = "" if config.layout in RELATIVE else "model."
    shared = f"{body}shared.weight"
    sides = [f"{body}{side}.embed_tokens.weight" for side in ("encoder", "decoder")]
    head = ["lm_head.weight"] if config.tied else []
    if config.shared:
        # what T5 v1.1 has in lm_head is another table, whatever newer files say of ties
        known = config.layout not in RELATIVE or config.scaled_output
        return {shared: [*sides, *(head if known else [])]}
    found = {side: [shared] for side in sides if side not in tensors}
    if config.tied:
        found[sides[1]] = [*found.get(sides[1], []), *head]
    return found


def _usual(config: EncoderDecoderConfig) -> dict[str, torch.Tensor]:
    """Logits have no bias where a file says nothing of it."""
    if config.layout in RELATIVE:
        return {}
    return {"final_logits_bias": torch.zeros(1, config.target_vocab_size)}


def fresh_generation(config: EncoderDecoderConfig) -> dict[str, Any]:
    """The generation_config.json of a model that is trained from scratch: padding isn't generated.

    `config` says the start token.
    """
    found: dict[str, Any] = {"decoder_start_token_id": config.start_id}
    found |= {"eos_token_id": config.eos_id, "pad_token_id": config.pad_id}
    if config.pad_id != config.eos_id:
        found["bad_words_ids"] = [[config.pad_id]]
    if config.layout not in RELATIVE:
        found["forced_eos_token_id"] = config.eos_id
    # without one, `transformers` cuts texts after 20 tokens
    found["max_length"] = MOST if config.layout in RELATIVE else min(config.context, MOST)
    return found


def _layout(layout: str) -> Layout:
    relative = layout in RELATIVE
    ignored = (
        "EncDecAttention.relative_attention_bias.weight"  # which older T5s hold and don't read
    )
    return Layout(
        model_type=layout,
        architecture=lambda config: _CLASSES[layout][0],
        read_config=partial(read, layout=layout),
        write_config=partial(write, layout=layout),
        build=EncoderDecoder,
        names=_names_t5 if relative else _names_marian,
        prefix="" if relative else "model.",
        ignored=(ignored,) if relative else ("embed_positions.weight",) * (layout == "marian"),
        # the network knows them: the tokenizer of a translation may be two
        write_ends=lambda config, tokenizer: None,
        usual=_usual,
        same=_same,
        keys=_KEYS[layout],
        defaults=_DEFAULTS[layout],
    )


LAYOUTS = {layout: _layout(layout) for layout in NAMES}
