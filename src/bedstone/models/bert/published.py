"""How encoders are published: bert, roberta, distilbert.

Configuration keys and tensor names are those that `transformers` writes. The body's tensors
stand under `bert.`, `roberta.` or `distilbert.` beside a head, and under no prefix alone.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from bedstone.models.bert.network import Bert, BertConfig
from bedstone.models.published import (
    TRANSFORMERS,
    Layout,
    Name,
    architecture,
    need,
    read_head,
    write_head,
)
from bedstone.published_keys import Keys, keys
from bedstone.settings import from_mapping

# The published word for each of ours, by layout.
_SHAPE = {
    "bert": {
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "hidden": "intermediate_size",
        "activation": "hidden_act",
        "dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
    },
    "distilbert": {
        "width": "dim",
        "layers": "n_layers",
        "heads": "n_heads",
        "hidden": "hidden_dim",
        "activation": "activation",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
    },
}
_SHAPE["roberta"] = _SHAPE["bert"]
_BLOCK = {
    "bert": {
        "attn.sublayer.q": "attention.self.query",
        "attn.sublayer.k": "attention.self.key",
        "attn.sublayer.v": "attention.self.value",
        "attn.sublayer.out": "attention.output.dense",
        "attn.norm": "attention.output.LayerNorm",
        "mlp.sublayer.up": "intermediate.dense",
        "mlp.sublayer.down": "output.dense",
        "mlp.norm": "output.LayerNorm",
    },
    "distilbert": {
        "attn.sublayer.q": "attention.q_lin",
        "attn.sublayer.k": "attention.k_lin",
        "attn.sublayer.v": "attention.v_lin",
        "attn.sublayer.out": "attention.out_lin",
        "attn.norm": "sa_layer_norm",
        "mlp.sublayer.up": "ffn.lin1",
        "mlp.sublayer.down": "ffn.lin2",
        "mlp.norm": "output_layer_norm",
    },
}
_BLOCK["roberta"] = _BLOCK["bert"]
_STEMS = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
_PLAIN = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "position_embedding_type": ("absolute",),
}
_KEYS = {
    "bert": TRANSFORMERS
    | Keys(
        honoured=keys("vocab_size max_position_embeddings type_vocab_size layer_norm_eps")
        | frozenset(_SHAPE["bert"].values()),
        # dropout of heads is a fine-tuning recipe's; the poolers' sizes are read by nobody
        harmless=keys(
            """classifier_dropout directionality pooler_fc_size pooler_num_attention_heads
            pooler_num_fc_layers pooler_size_per_head pooler_type layer_norm_type"""
        ),
        plain=_PLAIN,
    ),
    "distilbert": TRANSFORMERS
    | Keys(
        honoured=keys("vocab_size max_position_embeddings")
        | frozenset(_SHAPE["distilbert"].values()),
        # positions are read from the weights, whatever they were made from
        harmless=keys("qa_dropout seq_classif_dropout sinusoidal_pos_embds tie_weights_"),
        plain=_PLAIN,
    ),
}
_KEYS["roberta"] = _KEYS["bert"]
_BERT_DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": _BERT_DEFAULTS,
    "roberta": {**_BERT_DEFAULTS, "vocab_size": 50265},
    "distilbert": {
        "vocab_size": 30522,
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
        "max_position_embeddings": 512,
    },
}
# In this order the tensors of one are not those of a later one too.
_CLASSES = (
    "ForPreTraining",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
)


def read_bert(config: dict[str, Any], *, layout: str) -> BertConfig:
    sizes = ("width", "layers", "heads", "hidden")
    words = _SHAPE[layout]
    pad = config.get("pad_token_id")
    shape: dict[str, Any] = {
        "layout": layout,
        "vocab_size": need(config, "vocab_size"),
        "context": need(config, "max_position_embeddings"),
        "pad_id": (1 if layout == "roberta" else 0) if pad is None else pad,
        "tied": config.get("tie_word_embeddings", True),
        "head": read_head(config, bare="states" if layout == "distilbert" else "pooled"),
        **{ours: need(config, words[ours]) for ours in sizes},
        **{
            ours: config[theirs] for ours, theirs in words.items() if config.get(theirs) is not None
        },
    }
    if layout != "distilbert":
        shape["segments"] = config.get("type_vocab_size", 2)
        shape["norm_eps"] = config.get("layer_norm_eps", 1e-12)
    if layout == "roberta":
        shape["context"] -= shape["pad_id"] + 1
    return from_mapping(BertConfig, shape, "config.json")


def write_bert(config: BertConfig, *, layout: str) -> dict[str, Any]:
    published = {
        "architectures": [architecture(_STEMS[layout], "ForMaskedLM", config.head)],
        "model_type": layout,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context + config.first_position,
        "pad_token_id": config.pad_id,
        "tie_word_embeddings": config.tied,
        **{theirs: getattr(config, ours) for ours, theirs in _SHAPE[layout].items()},
        **write_head(config.head),
    }
    if layout == "distilbert":
        dropouts = {"qa_dropout": config.dropout, "seq_classif_dropout": config.dropout}
        return {**published, **dropouts, "sinusoidal_pos_embds": False}
    norms = {"layer_norm_eps": config.norm_eps, "type_vocab_size": config.segments}
    return {**published, **norms, "classifier_dropout": config.dropout}


def _both(theirs: str, ours: str) -> Iterator[Name]:
    for leaf in ("weight", "bias"):
        yield Name(f"{theirs}.{leaf}", (f"{ours}.{leaf}",))


def names_bert(config: BertConfig) -> Iterator[Name]:
    layout, bare = config.layout, config.head.kind in ("pooled", "states")
    body = "" if bare else f"{layout}."
    table = f"{body}embeddings"
    yield Name(f"{table}.word_embeddings.weight", ("embed.weight",))
    yield Name(f"{table}.position_embeddings.weight", ("positions.weight",))
    if config.segments:
        yield Name(f"{table}.token_type_embeddings.weight", ("segments.weight",))
    yield from _both(f"{table}.LayerNorm", "norm")
    blocks = "transformer.layer" if layout == "distilbert" else "encoder.layer"
    for i in range(config.layers):
        for ours, theirs in _BLOCK[layout].items():
            yield from _both(f"{body}{blocks}.{i}.{theirs}", f"stack.{i}.{ours}")
    yield from _HEADS[layout](config, body)


def _bert_head(config: BertConfig, body: str) -> Iterator[Name]:
    kind = config.head.kind
    if kind in ("language", "pretraining"):
        words = "head" if kind == "language" else "head.words"
        yield from _both("cls.predictions.transform.dense", f"{words}.dense")
        yield from _both("cls.predictions.transform.LayerNorm", f"{words}.norm")
        yield from _word_output("cls.predictions.decoder", "cls.predictions.bias", words, config)
    if kind == "pretraining":
        yield from _both("cls.seq_relationship", "head.pairs.out")
        yield from _both(f"{body}pooler.dense", "head.pairs.dense")
    if kind in ("sequence", "pooled"):
        yield from _both(f"{body}pooler.dense", "head.dense")
    yield from _labels(kind)


def _roberta_head(config: BertConfig, body: str) -> Iterator[Name]:
    kind = config.head.kind
    if kind == "language":
        yield from _both("lm_head.dense", "head.dense")
        yield from _both("lm_head.layer_norm", "head.norm")
        yield from _word_output("lm_head.decoder", "lm_head.bias", "head", config)
    if kind == "pooled":
        yield from _both(f"{body}pooler.dense", "head.dense")
    if kind == "sequence":
        yield from _both("classifier.dense", "head.dense")
        yield from _both("classifier.out_proj", "head.out")
    else:
        yield from _labels(kind)


def _distilbert_head(config: BertConfig, body: str) -> Iterator[Name]:
    kind = config.head.kind
    if kind == "language":
        yield from _both("vocab_transform", "head.dense")
        yield from _both("vocab_layer_norm", "head.norm")
        yield from _both("vocab_projector", "head.out")
    if kind == "sequence":
        yield from _both("pre_classifier", "head.dense")
    yield from _labels(kind)


_HEADS = {"bert": _bert_head, "roberta": _roberta_head, "distilbert": _distilbert_head}


def _word_output(decoder: str, bias: str, ours: str, config: BertConfig) -> Iterator[Name]:
    """The bias stands under a name of its own, which untied networks don't read."""
    yield Name(f"{decoder}.weight", (f"{ours}.out.weight",))
    yield Name(bias, (f"{ours}.out.bias",))
    if not config.tied:
        yield Name(f"{decoder}.bias", (f"{ours}.out.bias",))


def _labels(kind: str) -> Iterator[Name]:
    if kind in ("sequence", "tokens"):
        yield from _both("classifier", "head.out")
    if kind == "spans":
        yield from _both("qa_outputs", "head.out")


def _without_pooler(config: BertConfig, tensors: set[str]) -> BertConfig:
    """A body alone that was saved without its pooler, as sentence embeddings often are."""
    if config.head.kind == "pooled" and not any("pooler.dense" in name for name in tensors):
        return replace(config, head=replace(config.head, kind="states"))
    return config


def _layout(layout: str) -> Layout:
    return Layout(
        model_type=layout,
        architecture=lambda config: architecture(_STEMS[layout], "ForMaskedLM", config.head),
        read_config=partial(read_bert, layout=layout),
        write_config=partial(write_bert, layout=layout),
        build=Bert,
        names=names_bert,
        prefix=f"{layout}.",
        ignored=("embeddings.position_ids", "embeddings.token_type_ids"),
        renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
        fit=_without_pooler,
        keys=_KEYS[layout],
        defaults=_DEFAULTS[layout],
        classes=tuple(
            _STEMS[layout] + ending
            for ending in _CLASSES
            if layout == "bert" or ending != "ForPreTraining"
        ),
    )


LAYOUTS = {layout: _layout(layout) for layout in _STEMS}
