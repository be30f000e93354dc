"""How BLIPs are published: blip; and blip_resnet, which has OpenAI's names for its CNN.

Configuration keys and tensor names are those that `transformers` writes. Three classes open
`blip`: `BlipForConditionalGeneration` (captions), `BlipForQuestionAnswering` (answers) and
`BlipForImageTextRetrieval` (matching). A joint network holds the tensors of all three, so each
class finds its own in it; on disk it is told from the others by what it holds. The scale of
contrast, which no published class has, stands beside them as `logit_scale`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.data.images.image_text import BlipWords, padded
from bedstone.data.images.processor import blip_processor
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.models.blip.config import TOWERS, BlipConfig, BlipTextConfig
from bedstone.models.blip.network import START, make
from bedstone.models.heads import HeadConfig
from bedstone.models.interfaces import Reading
from bedstone.models.published import TRANSFORMERS, Layout, Name
from bedstone.models.resnet.network import ResNetConfig
from bedstone.models.resnet.published import names_resnet
from bedstone.models.vit.network import ViTConfig
from bedstone.models.vit.published import both, square
from bedstone.published_keys import Keys, keys
from bedstone.settings import from_mapping

_SIZES = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "activation": "hidden_act",
    "norm_eps": "layer_norm_eps",
}
_IMAGE = {
    **_SIZES,
    "image_size": "image_size",
    "patch": "patch_size",
    "attention_dropout": "attention_dropout",
}
_TEXT = {
    **_SIZES,
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "bos_id": "bos_token_id",
    "eos_id": "sep_token_id",  # what a published text ends with; its eos_token_id is not read
    "pad_id": "pad_token_id",
}
# What a published file means by leaving a value out.
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072}
_USUAL_IMAGE = {**_BASE, "num_attention_heads": 12, "image_size": 384, "patch_size": 16}
_USUAL_TEXT = {
    **_BASE,
    "num_attention_heads": 8,
    "vocab_size": 30524,
    "max_position_embeddings": 512,
    "bos_token_id": 30522,
    "sep_token_id": 102,
    "pad_token_id": 0,
}
_RESNET = {
    "image_size": "image_size",
    "channels": "num_channels",
    "width": "width",
    "blocks": "layers",
    "block": "block",
    "shrink": "stem_stride",
}
_CLASSES = {
    "captions": "BlipForConditionalGeneration",
    "answers": "BlipForQuestionAnswering",
    "matching": "BlipForImageTextRetrieval",
    "joint": "BlipForConditionalGeneration",
}
_IMAGE_BLOCK = {
    "attn.norm": "layer_norm1",
    "attn.sublayer.out": "self_attn.projection",
    "mlp.norm": "layer_norm2",
    "mlp.sublayer.up": "mlp.fc1",
    "mlp.sublayer.down": "mlp.fc2",
}
_TEXT_BLOCK = {
    f"{ours}.{mine}": f"{theirs}.{published}"
    for ours, theirs in {"attn": "attention", "cross": "crossattention"}.items()
    for mine, published in {
        "sublayer.q": "self.query",
        "sublayer.k": "self.key",
        "sublayer.v": "self.value",
        "sublayer.out": "output.dense",
        "norm": "output.LayerNorm",
    }.items()
}
_TEXT_BLOCK |= {
    "mlp.sublayer.up": "intermediate.dense",
    "mlp.sublayer.down": "output.dense",
    "mlp.norm": "output.LayerNorm",
}
_SECTIONS = {
    "text_config": TRANSFORMERS
    | Keys(
        honoured=frozenset(_TEXT.values()),
        # what it reads is as wide as the image tower's states, whatever stands here
        harmless=keys("encoder_hidden_size eos_token_id label_smoothing projection_dim"),
        plain={"is_decoder": (True,)},
    ),
    "vision_config": TRANSFORMERS
    | Keys(
        honoured=frozenset(_IMAGE.values()),
        harmless=keys("dropout projection_dim"),
        plain={"num_channels": (3,)},
    ),
}
_OWN_SECTIONS = {
    "text_config": _SECTIONS["text_config"] | Keys(honoured=keys("encoder_hidden_size")),
    "vision_config": TRANSFORMERS | Keys(honoured=frozenset(_RESNET.values())),
}
_KEYS = {
    layout: TRANSFORMERS
    | Keys(
        honoured=keys("image_text_hidden_size decoder_layers"),
        harmless=keys("label_smoothing logit_scale_init_value projection_dim"),
        sections=sections,
    )
    for layout, sections in (("blip", _SECTIONS), ("blip_resnet", _OWN_SECTIONS))
}


def read_blip(config: dict[str, Any], *, layout: str) -> BlipConfig:
    vision, words = _section(config, "vision_config"), _section(config, "text_config")
    where = "config.json"
    tower: ViTConfig | ResNetConfig
    if layout == "blip_resnet":
        known = {ours: vision[key] for ours, key in _RESNET.items() if key in vision}
        tower = from_mapping(ResNetConfig, known, where, "vision_config.")
    else:
        values = _read({**_USUAL_IMAGE, **vision}, _IMAGE)
        tower = from_mapping(ViTConfig, values, where, "vision_config.")
    shape = _read({**_USUAL_TEXT, **words}, _TEXT)
    if layout == "blip_resnet":
        shape["memory_width"] = words.get("encoder_hidden_size", 0)
    # the published classes tie them where either says so
    tied = any(section.get("tie_word_embeddings", True) for section in (config, words))
    text = from_mapping(BlipTextConfig, {**shape, "tied": tied}, where, "text_config.")
    embed = config.get("image_text_hidden_size") or 256
    blocks = config.get("decoder_layers", 0)
    return BlipConfig(layout, tower, text, blocks, embed, HeadConfig(_kind(config)))


def _read(section: dict[str, Any], words: dict[str, str]) -> dict[str, Any]:
    return {ours: section[key] for ours, key in words.items() if key in section}


def _section(config: dict[str, Any], key: str) -> dict[str, Any]:
    values = config.get(key) or {}
    if not isinstance(values, dict):
        raise BedstoneError(f"config.json: {key} = {values!r}; expected a JSON object.")
    return {name: value for name, value in values.items() if value is not None}


def _kind(config: dict[str, Any]) -> str:
    """The head of the class that is named; the tensors say whether it is joint."""
    name = (config.get("architectures") or ["BlipForConditionalGeneration"])[0]
    for kind, known in _CLASSES.items():
        if name.replace("BlipResNet", "Blip") == known:
            return kind
    raise BedstoneError(
        f"config.json: architectures names {name!r}, a class that Bedstone doesn't have; "
        f"{', '.join(sorted(set(_CLASSES.values())))} open."
    )


def write_blip(config: BlipConfig, *, layout: str) -> dict[str, Any]:
    text, image, name = config.text, config.image, _CLASSES[config.head.kind]
    words = {theirs: getattr(text, ours) for ours, theirs in _TEXT.items()}
    vision: dict[str, Any]
    more: dict[str, Any] = {}
    if isinstance(image, ResNetConfig):
        vision = {theirs: getattr(image, ours) for ours, theirs in _RESNET.items()}
        vision = {"model_type": "resnet", **vision, "layers": list(vision["layers"])}
        name = name.replace("Blip", "BlipResNet")
        more = {"decoder_layers": config.decoder_layers}
    else:
        vision = square({theirs: getattr(image, ours) for ours, theirs in _IMAGE.items()})
        vision = {"model_type": image.layout, **vision}
    return {
        "architectures": [name],
        "model_type": layout,
        "image_text_hidden_size": config.embed,
        "projection_dim": config.embed,
        "logit_scale_init_value": START,
        "tie_word_embeddings": text.tied,
        "text_config": {
            "model_type": "blip_text_model",
            "is_decoder": True,
            "encoder_hidden_size": text.memory_width,
            "eos_token_id": text.eos_id,
            "tie_word_embeddings": text.tied,
            **words,
        },
        "vision_config": vision,
        **more,
    }


def _names_image(config: ViTConfig) -> Iterator[Name]:
    table = "vision_model.embeddings"
    yield Name(f"{table}.class_embedding", ("image.first",), leading=2)
    yield from both(f"{table}.patch_embedding", "image.patches")
    yield Name(f"{table}.position_embedding", ("image.positions.weight",), leading=1)
    for i in range(config.layers):
        theirs, ours = f"vision_model.encoder.layers.{i}", f"image.stack.{i}"
        for leaf in ("weight", "bias"):
            parts = tuple(f"{ours}.attn.sublayer.{part}.{leaf}" for part in "qkv")
            yield Name(f"{theirs}.self_attn.qkv.{leaf}", parts)
        for part, name in _IMAGE_BLOCK.items():
            yield from both(f"{theirs}.{name}", f"{ours}.{part}")
    yield from both("vision_model.post_layernorm", "image.norm")


def _names_map(config: BlipConfig, image: ResNetConfig) -> Iterator[Name]:
    for name in names_resnet(image, "visual", "image.resnet"):
        if ".attnpool." not in name.theirs:
            yield name
    yield Name("visual.positional_embedding", ("image.positions.weight",))
    if config.text.memory_width != image.states:
        yield from both("visual.projection", "image.project")
    yield from both("visual.post_layernorm", "image.norm")


def _names_text(config: BlipTextConfig, theirs: str, ours: str) -> Iterator[Name]:
    table = f"{theirs}.embeddings"
    yield Name(f"{table}.word_embeddings.weight", (f"{ours}.embed.weight",))
    yield Name(f"{table}.position_embeddings.weight", (f"{ours}.positions.weight",))
    yield from both(f"{table}.LayerNorm", f"{ours}.norm")
    for i in range(config.layers):
        for part, name in _TEXT_BLOCK.items():
            yield from both(f"{theirs}.encoder.layer.{i}.{name}", f"{ours}.stack.{i}.{part}")


def _names_words(config: BlipTextConfig) -> Iterator[Name]:
    """The word head's; its bias stands twice where it is not tied, as published."""
    theirs = "text_decoder.cls.predictions"
    yield from both(f"{theirs}.transform.dense", "head.dense")
    yield from both(f"{theirs}.transform.LayerNorm", "head.norm")
    yield Name(f"{theirs}.decoder.weight", ("head.out.weight",))
    yield Name(f"{theirs}.bias", ("head.out.bias",))
    if not config.tied:
        yield Name(f"{theirs}.decoder.bias", ("head.out.bias",))


def names_blip(config: BlipConfig) -> Iterator[Name]:
    if isinstance(config.image, ResNetConfig):
        yield from _names_map(config, config.image)
    else:
        yield from _names_image(config.image)
    if config.reads:
        yield from _names_text(config.text, "text_encoder", "encoder")
    if config.writes:
        yield from _names_text(config.decoder, "text_decoder.bert", "decoder")
        yield from _names_words(config.text)
    if config.matches:
        yield from both("vision_proj", "image_projection")
        yield from both("text_proj", "text_projection")
        yield from both("itm_head", "matching")
        yield Name("logit_scale", ("logit_scale",))


def _fit(config: BlipConfig, tensors: set[str]) -> BlipConfig:
    """What holds the tensors of all heads is joint."""
    parts = ("text_decoder.", "text_encoder.", "itm_head.")
    if all(any(name.startswith(part) for name in tensors) for part in parts):
        return replace(config, head=HeadConfig("joint"))
    return config


def _usual(config: BlipConfig) -> dict[str, torch.Tensor]:
    """Published networks for matching come without the scale; contrast starts anew then."""
    return {"logit_scale": torch.tensor(START)} if config.matches else {}


class BlipFormat:
    """[CLS] question [SEP] for the encoder; [DEC] text [SEP] for the decoder."""

    def __init__(self, tokenizer: Tokenizer, config: BlipConfig) -> None:
        text = config.text
        known = BlipWords.of(tokenizer, text.context)
        # the network knows its ends: published tokenizers lack the name of the first
        self.words = replace(known, begin=(text.bos_id,), end=text.eos_id, pad=text.pad_id)
        self.room = self.words.room
        self.kept = slice(self.room)

    def output(self, texts: Sequence[str]) -> list[np.ndarray]:
        return self.words.plain(texts)

    def question(self, text: str) -> list[int]:
        ids: list[int] = self.words.plain([text])[0].tolist()
        return ids

    def framed(self, ids: Sequence[int]) -> list[int]:
        return [*self.words.before, *ids, *self.words.after]

    def prompt(self, ids: Sequence[int]) -> Sequence[int]:
        return self.words.begin

    def read(self, network: Any, questions: Sequence[Sequence[int]], memory: Tensor) -> Reading:
        ids, keep = (each.to(memory.device) for each in padded(questions, self.words.pad))
        states = network.read(ids, keep, memory)
        return Reading(network, states, keep, [self.prompt(ids) for ids in questions])


def _layout(layout: str) -> Layout:
    return Layout(
        model_type=layout,
        architecture=lambda config: _CLASSES[config.head.kind] if layout == "blip" else None,
        read_config=partial(read_blip, layout=layout),
        write_config=partial(write_blip, layout=layout),
        build=make,
        names=names_blip,
        ignored=("embeddings.position_ids",),
        fit=_fit,
        # the network knows them: tokenizers of published folders name neither [DEC] nor its end
        write_ends=lambda config, tokenizer: None,
        usual=_usual,
        processor=lambda config: blip_processor(max(config.image.size)),
        text_format=BlipFormat,
        keys=_KEYS[layout],
        classes=tuple(_CLASSES[kind] for kind in ("answers", "matching", "captions")),
    )


LAYOUTS = {layout: _layout(layout) for layout in TOWERS}
