"""How GPTs are published: gpt2, llama, mistral, qwen2, qwen3.

Configuration keys and tensor names are those that `transformers` writes.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from bedstone.models.gpt.network import LAYOUTS as NETWORKS
from bedstone.models.gpt.network import GPTConfig
from bedstone.models.published import (
    GENERATION,
    TRANSFORMERS,
    Layout,
    Name,
    architecture,
    need,
    read_head,
    refuse,
    write_head,
)
from bedstone.published_keys import Keys, keys
from bedstone.settings import from_mapping


def read_gpt2(config: dict[str, Any]) -> GPTConfig:
    shape = {
        "layout": "gpt2",
        "vocab_size": need(config, "vocab_size"),
        "width": need(config, "n_embd"),
        "layers": need(config, "n_layer"),
        "heads": need(config, "n_head"),
        "hidden": config.get("n_inner") or 0,
        "context": config.get("n_positions", 1024),
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "activation": config.get("activation_function", "gelu_new"),
        "tied": config.get("tie_word_embeddings", True),
        "dropout": config.get("resid_pdrop", 0.1),
        "attention_dropout": config.get("attn_pdrop", 0.1),
        "embedding_dropout": config.get("embd_pdrop", 0.1),
        "head": read_head(config, bare="states"),
    }
    return from_mapping(GPTConfig, shape, "config.json")


def write_gpt2(config: GPTConfig) -> dict[str, Any]:
    return {
        "architectures": [architecture("GPT2", "LMHeadModel", config.head)],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.hidden,
        "n_positions": config.context,
        "n_ctx": config.context,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": config.activation,
        "tie_word_embeddings": config.tied,
        "attn_pdrop": config.attention_dropout,
        "embd_pdrop": config.embedding_dropout,
        "resid_pdrop": config.dropout,
        **write_head(config.head),
    }


def names_gpt2(config: GPTConfig) -> Iterator[Name]:
    body = "" if config.head.kind == "states" else "transformer."
    yield Name(f"{body}wte.weight", ("embed.weight",))
    yield Name(f"{body}wpe.weight", ("positions.weight",))
    for i in range(config.layers):
        theirs, ours = f"{body}h.{i}", f"stack.{i}"
        for leaf in ("weight", "bias"):
            transposed = leaf == "weight"  # Conv1D keeps (inputs, outputs)
            attn, mlp = f"{ours}.attn.sublayer", f"{ours}.mlp.sublayer"
            qkv = tuple(f"{attn}.{part}.{leaf}" for part in "qkv")
            yield Name(f"{theirs}.ln_1.{leaf}", (f"{ours}.attn.norm.{leaf}",))
            yield Name(f"{theirs}.attn.c_attn.{leaf}", qkv, transposed)
            yield Name(f"{theirs}.attn.c_proj.{leaf}", (f"{attn}.out.{leaf}",), transposed)
            yield Name(f"{theirs}.ln_2.{leaf}", (f"{ours}.mlp.norm.{leaf}",))
            yield Name(f"{theirs}.mlp.c_fc.{leaf}", (f"{mlp}.up.{leaf}",), transposed)
            yield Name(f"{theirs}.mlp.c_proj.{leaf}", (f"{mlp}.down.{leaf}",), transposed)
    yield Name(f"{body}ln_f.weight", ("norm.weight",))
    yield Name(f"{body}ln_f.bias", ("norm.bias",))
    yield from _head(config, tokens="classifier")


def _head(config: GPTConfig, *, tokens: str) -> Iterator[Name]:
    """`tokens` is what the layout calls a label for each token."""
    kind = config.head.kind
    if kind == "language":
        yield Name("lm_head.weight", ("head.weight",))
    elif kind == "sequence":
        yield Name("score.weight", ("head.out.weight",))
    elif kind in ("tokens", "spans"):
        theirs = tokens if kind == "tokens" else "qa_outputs"
        for leaf in ("weight", "bias"):
            yield Name(f"{theirs}.{leaf}", (f"head.out.{leaf}",))


def read_llama(config: dict[str, Any], *, layout: str) -> GPTConfig:
    """Also mistral, qwen2 and qwen3: one set of keys, some of them not in every layout."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    base = rope.pop("rope_theta", None) or config.get("rope_theta", 10_000.0)
    refuse(rope, {"partial_rotary_factor": 1.0})
    if rope.get("rope_type", rope.get("type")) in (None, "default"):
        rope = {}
    elif original := config.get("original_max_position_embeddings"):
        rope.setdefault("original_max_position_embeddings", original)
    heads = need(config, "num_attention_heads")
    # A null key means that every head has its own keys and values, a missing one the default.
    kv_heads = config.get("num_key_value_heads") or heads
    attention_bias = bool(config.get("attention_bias", False))
    layers = need(config, "num_hidden_layers")
    window, window_layers = _read_window(config, layout, layers)
    shape = {
        "layout": layout,
        "vocab_size": need(config, "vocab_size"),
        "width": need(config, "hidden_size"),
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_width": config.get("head_dim") or 0,
        "hidden": need(config, "intermediate_size"),
        "context": config.get("max_position_embeddings", 2048),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "activation": config.get("hidden_act", "silu"),
        "tied": config.get("tie_word_embeddings", False),
        "qkv_bias": layout == "qwen2" or attention_bias,
        "out_bias": layout != "qwen2" and attention_bias,
        "mlp_bias": bool(config.get("mlp_bias", False)),
        "rope_base": base,
        "rope_scaling": rope,
        "window": window,
        "window_layers": window_layers,
        "dropout": config.get("resid_pdrop")
        or 0.0,  # published networks have it on attention alone
        "attention_dropout": config.get("attention_dropout") or 0.0,
        "head": read_head(config, bare="states"),
    }
    return from_mapping(GPTConfig, shape, "config.json")


def _read_window(
    config: dict[str, Any], layout: str, layers: int
) -> tuple[int | None, tuple[int, ...] | None]:
    window = config.get("sliding_window")
    if layout == "mistral":
        return window, None
    if window is None or not config.get("use_sliding_window", False):
        return None, None
    kinds = config.get("layer_types")
    if kinds is None:  # older files: every layer from max_window_layers on
        first = config.get("max_window_layers", 28)
        return window, tuple(range(first, layers))
    return window, tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")


def write_llama(config: GPTConfig, *, layout: str) -> dict[str, Any]:
    rope = {"rope_type": "default", **config.rope_scaling, "rope_theta": config.rope_base}
    published: dict[str, Any] = {
        "architectures": [architecture(_STEMS[layout], "ForCausalLM", config.head)],
        "model_type": layout,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.hidden,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": config.activation,
        "tie_word_embeddings": config.tied,
        "attention_dropout": config.attention_dropout,
        "rope_parameters": rope,
        "rope_theta": config.rope_base,  # where versions before 5 look for it
        **write_head(config.head),
    }
    if config.dropout:
        published["resid_pdrop"] = config.dropout
    if config.rope_scaling:
        published["rope_scaling"] = rope
    if layout in ("llama", "qwen3"):
        published["attention_bias"] = config.qkv_bias
    if layout == "llama":
        published["mlp_bias"] = config.mlp_bias
    if layout == "mistral":
        published["sliding_window"] = config.window
    if layout in ("qwen2", "qwen3"):
        windowed = [config.window_of(i) is not None for i in range(config.layers)]
        published["use_sliding_window"] = any(windowed)
        published["sliding_window"] = config.window
        published["max_window_layers"] = windowed.index(True) if any(windowed) else config.layers
        published["layer_types"] = [
            "sliding_attention" if is_windowed else "full_attention" for is_windowed in windowed
        ]
    return published


def names_llama(config: GPTConfig) -> Iterator[Name]:
    # Their body has another name under questions than under all else, but for mistral.
    prefix = "model." if config.layout == "mistral" else "transformer."
    body = {"states": "", "spans": prefix}.get(config.head.kind, "model.")
    yield Name(f"{body}embed_tokens.weight", ("embed.weight",))
    for i in range(config.layers):
        theirs, ours = f"{body}layers.{i}", f"stack.{i}"
        attn, mlp = f"{ours}.attn.sublayer", f"{ours}.mlp.sublayer"
        yield Name(f"{theirs}.input_layernorm.weight", (f"{ours}.attn.norm.weight",))
        yield Name(f"{theirs}.post_attention_layernorm.weight", (f"{ours}.mlp.norm.weight",))
        for part in "qkv":
            yield Name(f"{theirs}.self_attn.{part}_proj.weight", (f"{attn}.{part}.weight",))
            if config.qkv_bias:
                yield Name(f"{theirs}.self_attn.{part}_proj.bias", (f"{attn}.{part}.bias",))
        yield Name(f"{theirs}.self_attn.o_proj.weight", (f"{attn}.out.weight",))
        if config.out_bias:
            yield Name(f"{theirs}.self_attn.o_proj.bias", (f"{attn}.out.bias",))
        if config.layout == "qwen3":
            yield Name(f"{theirs}.self_attn.q_norm.weight", (f"{attn}.q_norm.weight",))
            yield Name(f"{theirs}.self_attn.k_norm.weight", (f"{attn}.k_norm.weight",))
        for part in ("gate", "up", "down"):
            yield Name(f"{theirs}.mlp.{part}_proj.weight", (f"{mlp}.{part}.weight",))
            if config.mlp_bias:
                yield Name(f"{theirs}.mlp.{part}_proj.bias", (f"{mlp}.{part}.bias",))
    yield Name(f"{body}norm.weight", ("norm.weight",))
    yield from _head(config, tokens="score")


_STEMS = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
_WINDOWED = keys("use_sliding_window max_window_layers layer_types")
_ROPE = Keys(
    honoured=keys(
        """rope_theta rope_type type factor original_max_position_embeddings low_freq_factor
        high_freq_factor beta_fast beta_slow mscale mscale_all_dim attention_factor truncate
        short_factor long_factor"""
    ),
    plain={"partial_rotary_factor": (1.0,)},
)
_LLAMA = TRANSFORMERS | Keys(
    honoured=GENERATION
    | keys(
        """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
        num_key_value_heads head_dim hidden_act max_position_embeddings
        original_max_position_embeddings rms_norm_eps rope_theta attention_bias attention_dropout
        mlp_bias sliding_window resid_pdrop"""
    ),
    harmless=keys("pretraining_tp"),
    plain={"attention_multiplier": (), "partial_rotary_factor": (1.0,)},
    sections={"rope_parameters": _ROPE, "rope_scaling": _ROPE},
    reported=keys("task_specific_params") | _WINDOWED,
)
_KEYS = {
    "llama": _LLAMA | Keys(reported=keys("sliding_window")),
    "mistral": _LLAMA | Keys(plain={"attention_bias": (False,), "mlp_bias": (False,)}),
    "qwen2": _LLAMA | Keys(honoured=_WINDOWED, plain={"mlp_bias": (False,)}),
    "qwen3": _LLAMA | Keys(honoured=_WINDOWED, plain={"mlp_bias": (False,)}),
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048},
    "mistral": {
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768},
}
_DEFAULTS["qwen2"] |= {"num_key_value_heads": 32, "sliding_window": 4096}
_DEFAULTS["qwen3"] = {**_DEFAULTS["qwen2"], "head_dim": 128}
_SIZES = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
_CLASSES = (  # in this order the tensors of one are not those of a later one too
    "ForTokenClassification",
    "ForSequenceClassification",
    "ForQuestionAnswering",
    "ForCausalLM",
)
_GPT2 = TRANSFORMERS | Keys(
    honoured=GENERATION
    | keys(
        """vocab_size n_embd n_layer n_head n_inner n_positions layer_norm_epsilon
        activation_function resid_pdrop embd_pdrop attn_pdrop"""
    ),
    # the summary is of a class with two heads; upcasting rounds less and changes nothing in fp32
    harmless=keys(
        """n_ctx reorder_and_upcast_attn summary_activation summary_first_dropout
        summary_proj_to_labels summary_type summary_use_proj"""
    ),
    plain={
        "add_cross_attention": (False,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "scale_attn_weights": (True,),
    },
    reported=keys("task_specific_params"),
)
_GPT2_SIZES = {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12}


def _llama_like(layout: str) -> Layout:
    return Layout(
        model_type=layout,
        architecture=lambda config: architecture(_STEMS[layout], "ForCausalLM", config.head),
        read_config=partial(read_llama, layout=layout),
        write_config=partial(write_llama, layout=layout),
        build=NETWORKS[layout],
        names=names_llama,
        prefix="model.",
        ignored=("rotary_emb.inv_freq",),
        keys=_KEYS[layout],
        defaults={**_SIZES, **_DEFAULTS[layout]},
        classes=tuple(_STEMS[layout] + ending for ending in _CLASSES),
    )


LAYOUTS = {
    "gpt2": Layout(
        model_type="gpt2",
        architecture=lambda config: architecture("GPT2", "LMHeadModel", config.head),
        read_config=read_gpt2,
        write_config=write_gpt2,
        build=NETWORKS["gpt2"],
        names=names_gpt2,
        prefix="transformer.",
        ignored=(".attn.bias", ".attn.masked_bias"),
        keys=_GPT2,
        defaults=_GPT2_SIZES,
        classes=(*(f"GPT2{ending}" for ending in _CLASSES[:-1]), "GPT2LMHeadModel"),
    ),
    **{layout: _llama_like(layout) for layout in _STEMS},
}
