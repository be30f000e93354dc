"""How CLIPs are published: clip, siglip; and clip_resnet, with OpenAI's names for its CNN.

Configuration keys and tensor names are those that `transformers` writes; a tower's stand in a
section of their own, which published files leave out where they are as usual.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from bedstone.data.images.processor import clip_processor, siglip_processor
from bedstone.errors import BedstoneError
from bedstone.models.clip.network import (
    OLD_END,
    TOWERS,
    CLIPConfig,
    ImageClassifierConfig,
    TextConfig,
    make,
    make_classifier,
)
from bedstone.models.heads import HeadConfig
from bedstone.models.published import (
    TRANSFORMERS,
    Layout,
    Name,
    read_head,
    write_ends,
    write_head,
)
from bedstone.models.resnet.network import ResNetConfig
from bedstone.models.resnet.published import names_resnet
from bedstone.models.vit.network import ViTConfig
from bedstone.models.vit.published import both, square
from bedstone.published_keys import Keys, keys
from bedstone.settings import from_mapping

_BOTH = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "activation": "hidden_act",
    "norm_eps": "layer_norm_eps",
    "attention_dropout": "attention_dropout",
}
_IMAGE = {**_BOTH, "image_size": "image_size", "patch": "patch_size", "channels": "num_channels"}
_TEXT = {
    **_BOTH,
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
    "bos_id": "bos_token_id",
    "eos_id": "eos_token_id",
    "pad_id": "pad_token_id",
}
_ENDS = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
# What a published file means by leaving a value out.
_USUAL: dict[str, dict[str, Any]] = {
    "clip_vision_model": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "image_size": 224,
        "patch_size": 32,
    },
    "clip_text_model": {
        "vocab_size": 49408,
        "hidden_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "intermediate_size": 2048,
        "max_position_embeddings": 77,
        **_ENDS,
    },
}
_USUAL["siglip_vision_model"] = {**_USUAL["clip_vision_model"], "patch_size": 16}
_USUAL["siglip_text_model"] = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 64,
    **_ENDS,
}
_BLOCK = {
    "attn.norm": "layer_norm1",
    "attn.sublayer.q": "self_attn.q_proj",
    "attn.sublayer.k": "self_attn.k_proj",
    "attn.sublayer.v": "self_attn.v_proj",
    "attn.sublayer.out": "self_attn.out_proj",
    "mlp.norm": "layer_norm2",
    "mlp.sublayer.up": "mlp.fc1",
    "mlp.sublayer.down": "mlp.fc2",
}
_RESNET = {
    "image_size": "image_size",
    "channels": "num_channels",
    "width": "width",
    "blocks": "layers",
    "block": "block",
    "shrink": "stem_stride",
    "heads": "num_attention_heads",
    "features": "output_dim",
}
_SECTIONS = {
    "text_config": TRANSFORMERS
    | Keys(
        honoured=frozenset(_TEXT.values()) | keys("projection_size"),
        harmless=keys("projection_dim dropout"),  # the first stands outside; none reads the other
    ),
    "vision_config": TRANSFORMERS
    | Keys(
        honoured=frozenset({*_IMAGE.values(), *_RESNET.values()}),
        harmless=keys("projection_dim dropout"),
        plain={"vision_use_head": (True,)},
    ),
}
KEYS = TRANSFORMERS | Keys(
    honoured=keys("projection_dim"),
    harmless=keys("logit_scale_init_value"),  # its value is in the weights
    sections={**_SECTIONS, **{f"{name}_dict": section for name, section in _SECTIONS.items()}},
)


def read_clip(config: dict[str, Any], *, layout: str) -> CLIPConfig:
    image, text = TOWERS[layout]
    vision = _section(config, "vision_config")
    words = _section(config, "text_config")
    where = "config.json"
    read: dict[str, Any] = (
        {} if layout == "siglip" else {"embed": config.get("projection_dim") or 512}
    )
    tower: ViTConfig | ResNetConfig
    if layout == "clip_resnet":
        known = {ours: vision[key] for ours, key in _RESNET.items() if key in vision}
        tower = from_mapping(ResNetConfig, known, where, "vision_config.")
    else:
        tower = from_mapping(ViTConfig, _read(vision, _IMAGE, image), where, "vision_config.")
    if layout == "siglip":
        given = words.get("projection_size") or words.get("hidden_size", 768)
        if given != tower.features:
            raise BedstoneError(
                f"config.json: the text tower gives {given} features, the image tower "
                f"{tower.features}; they can't be compared."
            )
    written = from_mapping(TextConfig, _read(words, _TEXT, text), where, "text_config.")
    return CLIPConfig(layout, tower, written, **read)


def _section(config: dict[str, Any], key: str) -> dict[str, Any]:
    """A tower's values; old files have them in a second section too, which then counts."""
    section: dict[str, Any] = {}
    for name in (key, f"{key}_dict"):
        values = config.get(name) or {}
        if not isinstance(values, dict):
            raise BedstoneError(f"config.json: {name} = {values!r}; expected a JSON object.")
        section |= {each: value for each, value in values.items() if value is not None}
    return section


def _read(section: dict[str, Any], words: dict[str, str], layout: str) -> dict[str, Any]:
    values = {**_USUAL[layout], **section}
    shape = {ours: values[key] for ours, key in words.items() if key in values}
    if isinstance(shape.get("eos_id"), list):
        shape["eos_id"] = shape["eos_id"][0]
    if layout == "clip_text_model" and shape["eos_id"] == OLD_END:
        shape["eos_id"] = None
    return {"layout": layout, **shape}


def write_clip(config: CLIPConfig, *, layout: str) -> dict[str, Any]:
    image, text = TOWERS[layout]
    words = {theirs: getattr(config.text, ours) for ours, theirs in _TEXT.items()}
    words = {
        "model_type": text,
        **{key: value for key, value in words.items() if value is not None},
    }
    if layout != "siglip":
        words.setdefault("eos_token_id", OLD_END)
    published: dict[str, Any] = {
        "architectures": [_CLASSES[layout]],
        "model_type": layout,
        "text_config": words,
    }
    if isinstance(config.image, ResNetConfig):
        vision = {theirs: getattr(config.image, ours) for ours, theirs in _RESNET.items()}
        vision["layers"] = list(vision["layers"])
    else:
        vision = square({theirs: getattr(config.image, ours) for ours, theirs in _IMAGE.items()})
    published["vision_config"] = {"model_type": image, **vision}
    if layout == "siglip":
        words["projection_size"] = config.embed
    else:
        published["projection_dim"] = config.embed
        words["projection_dim"] = published["vision_config"]["projection_dim"] = config.embed
    return published


_CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel", "clip_resnet": "CLIPResNet"}
_STEMS = {"clip": "CLIP", "siglip": "Siglip", "clip_resnet": "CLIPResNet"}
ENDING = "ForImageClassification"


def _blocks(theirs: str, ours: str, count: int) -> Iterator[Name]:
    for i in range(count):
        for part, name in _BLOCK.items():
            yield from both(f"{theirs}.encoder.layers.{i}.{name}", f"{ours}.stack.{i}.{part}")


def names_text(config: CLIPConfig) -> Iterator[Name]:
    body = "text_model"
    yield Name(f"{body}.embeddings.token_embedding.weight", ("text.embed.weight",))
    yield Name(f"{body}.embeddings.position_embedding.weight", ("text.positions.weight",))
    yield from _blocks(body, "text", config.text.layers)
    yield from both(f"{body}.final_layer_norm", "text.norm")


def names_image(config: ViTConfig) -> Iterator[Name]:
    body, clip = "vision_model", config.layout == "clip_vision_model"
    table = f"{body}.embeddings"
    if clip:
        yield Name(f"{table}.class_embedding", ("image.first",))
        yield from both(f"{body}.pre_layrnorm", "image.before")
    yield from both(f"{table}.patch_embedding", "image.patches", bias=not clip)
    yield Name(f"{table}.position_embedding.weight", ("image.positions.weight",))
    yield from _blocks(body, "image", config.layers)
    yield from both(f"{body}.post_layernorm", "image.norm")


def _pool_names() -> Iterator[Name]:
    theirs, ours = "vision_model.head", "image.pool"
    yield Name(f"{theirs}.probe", (f"{ours}.query",), leading=2)
    for leaf in ("weight", "bias"):
        parts = tuple(f"{ours}.attn.{part}.{leaf}" for part in "qkv")
        yield Name(f"{theirs}.attention.in_proj_{leaf}", parts)
    yield from both(f"{theirs}.attention.out_proj", f"{ours}.attn.out")
    yield from both(f"{theirs}.layernorm", f"{ours}.norm")
    yield from both(f"{theirs}.mlp.fc1", f"{ours}.mlp.up")
    yield from both(f"{theirs}.mlp.fc2", f"{ours}.mlp.down")


def names_clip(config: CLIPConfig) -> Iterator[Name]:
    siglip = config.layout == "siglip"
    # one value stands as it is in clip, as a list of one in siglip
    yield Name("logit_scale", ("logit_scale",), leading=int(siglip))
    if siglip:
        yield Name("logit_bias", ("logit_bias",), leading=1)
    yield from names_text(config)
    if isinstance(config.image, ResNetConfig):
        yield from names_resnet(config.image, "visual", "image")
    else:
        yield from names_image(config.image)
    if siglip:
        yield from _pool_names()
        yield from both("text_model.head", "text.head")
    else:
        yield from both("text_projection", "text_projection", bias=False)
    if config.layout == "clip":
        yield from both("visual_projection", "image_projection", bias=False)


def _layout(layout: str) -> Layout:
    return Layout(
        model_type=layout,
        architecture=lambda config: None if layout == "clip_resnet" else _CLASSES[layout],
        read_config=partial(read_clip, layout=layout),
        write_config=partial(write_clip, layout=layout),
        build=make,
        names=names_clip,
        ignored=("embeddings.position_ids",),
        write_ends=lambda config, tokenizer: write_ends(config["text_config"], tokenizer),
        processor=lambda config: (siglip_processor if layout == "siglip" else clip_processor)(
            max(config.image.size)
        ),
        keys=KEYS,
        classes=(_CLASSES[layout], _STEMS[layout] + ENDING),
    )


PLAIN = {layout: _layout(layout) for layout in TOWERS}


# CLIPs, and their image towers with labels, which are published under the same `model_type`.
#
# The class in `architectures` tells them apart: `CLIPModel` or `CLIPForImageClassification`.


def _architecture(config: Any, *, plain: Layout) -> Any:
    if isinstance(config, ImageClassifierConfig):
        return None if config.layout == "clip_resnet" else _STEMS[config.layout] + ENDING
    return plain.architecture(config)


def _read_with_labels(config: dict[str, Any], *, plain: Layout) -> Any:
    whole: CLIPConfig = plain.read_config(config)
    if not (config.get("architectures") or [""])[0].endswith(ENDING):
        return whole
    # labels are published as those of text are, by another class
    head: HeadConfig = read_head(
        {**config, "architectures": ["ForSequenceClassification"]}, bare=""
    )
    return ImageClassifierConfig(whole.layout, whole.image, head)


def _write(config: Any, *, plain: Layout) -> dict[str, Any]:
    if not isinstance(config, ImageClassifierConfig):
        return plain.write_config(config)
    published = plain.write_config(_around(config))
    named = [_STEMS[config.layout] + ENDING]
    return {**published, "architectures": named, **write_head(config.head)}


def _build(config: Any) -> nn.Module:
    labelled = isinstance(config, ImageClassifierConfig)
    return make_classifier(config) if labelled else make(config)


def _names(config: Any, *, plain: Layout) -> Iterator[Name]:
    if not isinstance(config, ImageClassifierConfig):
        yield from plain.names(config)
        return
    for name in plain.names(_around(config)):
        if all(ours.startswith("image.") for ours in name.ours):
            yield name
    if config.head.kind == "sequence":
        for leaf in ("weight", "bias"):
            yield Name(f"classifier.{leaf}", (f"head.out.{leaf}",))


def _around(config: ImageClassifierConfig) -> CLIPConfig:
    """A CLIP with that tower; its text tower is as usual, and not there."""
    return CLIPConfig(config.layout, config.image)


def _with_labels(plain: Layout) -> Layout:
    return replace(
        plain,
        architecture=partial(_architecture, plain=plain),
        read_config=partial(_read_with_labels, plain=plain),
        write_config=partial(_write, plain=plain),
        build=_build,
        names=partial(_names, plain=plain),
    )


LAYOUTS = {name: _with_labels(plain) for name, plain in PLAIN.items()}
