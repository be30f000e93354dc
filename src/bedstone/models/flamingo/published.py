"""The files of a FlamingoGPT: `flamingo`, Bedstone's own layout of published parts.

The GPT's tensors have the names that they are published by, and its configuration stands whole in
`text_config`; the image tower's are those of the family that it comes from (`vision_layout`). What
joins them stands under `sight.`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.data.images.image_text import answer_text, gpt_words, question_text
from bedstone.data.images.processor import blip_processor
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError, nearest
from bedstone.models.blip.config import BlipConfig, BlipTextConfig
from bedstone.models.clip.network import CLIPConfig
from bedstone.models.flamingo.network import FLAMINGO, FlamingoConfig, make
from bedstone.models.interfaces import Reading
from bedstone.models.published import TRANSFORMERS, Layout, Name, layout, need, write_ends
from bedstone.models.resnet.network import ResNetConfig
from bedstone.models.vit.published import DEFAULTS as VIT_DEFAULTS
from bedstone.models.vit.published import KEYS as VIT_KEYS
from bedstone.models.vit.published import both, names_vit, read_vit, write_vit
from bedstone.published_keys import Keys, keys

OLD_TYPE = "sighted_gpt"  # the name of the layout in older folders
_CROSS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
# The family that publishes a tower, by the tower's own layout; a ViT alone is published as it is.
_FAMILIES = {
    "clip_vision_model": "clip",
    "siglip_vision_model": "siglip",
    "blip_vision_model": "blip",
}


def _family(config: FlamingoConfig) -> str:
    if isinstance(config.image, ResNetConfig):
        return "blip_resnet"
    return _FAMILIES.get(config.image.layout, "vit")


def _around(config: FlamingoConfig) -> Any:
    """A model of the family with that tower; its text is as usual, and not there."""
    family = _family(config)
    if family in ("clip", "siglip"):
        return CLIPConfig(family, config.image)
    wide = config.memory_width if family == "blip_resnet" else 0
    return BlipConfig(family, config.image, BlipTextConfig(memory_width=wide))


def read_flamingo(config: dict[str, Any]) -> FlamingoConfig:
    words, vision = (_section(config, key) for key in ("text_config", "vision_config"))
    family = config.get("vision_layout")
    families = ("vit", "blip_resnet", *_FAMILIES.values())
    if family not in families:
        raise BedstoneError(
            f"config.json: vision_layout {family!r} is unknown{nearest(str(family), families)}."
        )
    gpt = layout(str(words.get("model_type")))
    seen = VIT_KEYS if family == "vit" else layout(family).keys.sections["vision_config"]
    Keys(sections={"text_config": gpt.keys, "vision_config": seen}).check(
        {"text_config": words, "vision_config": vision}, "config.json"
    )
    if family == "vit":
        image: Any = read_vit({**VIT_DEFAULTS, **vision})
        image = replace(image, head=replace(image.head, kind="states"))
    else:
        # SigLIP's text tower gives as many features as its image tower
        text = {"projection_size": vision.get("hidden_size")}
        image = layout(family).read_config({"vision_config": vision, "text_config": text}).image
    return FlamingoConfig(
        gpt=gpt.read_config({**gpt.defaults, **words}),
        image=image,
        every=need(config, "cross_attention_every"),
        cross_heads=need(config, "cross_attention_heads"),
        memory_width=need(config, "memory_size"),
    )


def _section(config: dict[str, Any], key: str) -> dict[str, Any]:
    section = config.get(key)
    if not isinstance(section, dict):
        raise BedstoneError(f"config.json: {key} = {section!r}; expected a JSON object.")
    return section


def write_flamingo(config: FlamingoConfig) -> dict[str, Any]:
    family = _family(config)
    if isinstance(config.image, ResNetConfig) or family != "vit":
        vision = layout(family).write_config(_around(config))["vision_config"]
    else:
        vision = write_vit(config.image)
    return {
        "architectures": ["FlamingoGPT"],
        "model_type": FLAMINGO,
        "vocab_size": config.vocab_size,
        "text_config": layout(config.gpt.layout).write_config(config.gpt),
        "vision_layout": family,
        "vision_config": vision,
        "cross_attention_every": config.every,
        "cross_attention_heads": config.cross_heads,
        "memory_size": config.memory_width,
    }


def names_flamingo(config: FlamingoConfig) -> Iterator[Name]:
    for name in layout(config.gpt.layout).names(config.gpt):
        yield replace(name, ours=tuple(f"gpt.{ours}" for ours in name.ours))
    yield from _names_image(config)
    biased = config.gpt.layout == "gpt2"
    for index in config.seeing:
        theirs, ours = f"sight.layers.{index}", f"gpt.stack.{index}.cross"
        yield Name(f"{theirs}.gate", (f"{ours}.gate",))
        yield from both(f"{theirs}.norm", f"{ours}.norm", bias=biased)
        for part, leaf in _CROSS.items():
            yield from both(f"{theirs}.cross_attn.{leaf}", f"{ours}.sublayer.{part}", bias=False)
    yield from both("sight.norm", "image_norm")


def _names_image(config: FlamingoConfig) -> Iterator[Name]:
    if isinstance(config.image, ResNetConfig) or _family(config) != "vit":
        for name in layout(_family(config)).names(_around(config)):
            own = all(ours.startswith("image.") for ours in name.ours)
            if own and not name.ours[0].startswith("image.pool."):
                yield name
        return
    for name in names_vit(config.image):
        ours = tuple(f"image.{ours}" for ours in name.ours)
        yield replace(name, theirs=f"vit.{name.theirs}", ours=ours)


class FlamingoFormat:
    """`Question: ... Answer:` or `Caption:`, then the text and the end token."""

    def __init__(self, tokenizer: Tokenizer, config: FlamingoConfig) -> None:
        self.words = gpt_words(tokenizer, config.context)
        self.room = self.words.context // 2
        self.kept = slice(-self.room, None)  # as in training: it ends with `Answer:`

    def output(self, texts: Sequence[str]) -> list[np.ndarray]:
        return self.words.plain([answer_text(text) for text in texts])

    def question(self, text: str) -> list[int]:
        ids: list[int] = self.words.plain([question_text(text)])[0].tolist()
        return ids

    def framed(self, ids: Sequence[int]) -> list[int]:
        return list(ids)

    def prompt(self, ids: Sequence[int]) -> Sequence[int]:
        return ids

    def read(self, network: Any, questions: Sequence[Sequence[int]], memory: Tensor) -> Reading:
        each = len(questions) // len(memory)
        owners = torch.arange(len(memory), device=memory.device).repeat_interleave(each)
        return Reading(network, memory[owners], None, questions)


def _write_ends(config: dict[str, Any], tokenizer: Any) -> None:
    for section in (config, config["text_config"]):
        write_ends(section, tokenizer)


_LAYOUT = Layout(
    model_type=FLAMINGO,
    architecture=lambda config: None,
    read_config=read_flamingo,
    write_config=write_flamingo,
    build=make,
    names=names_flamingo,
    write_ends=_write_ends,
    processor=lambda config: blip_processor(max(config.image.size)),
    text_format=FlamingoFormat,
    # the keys of its sections are those of the layouts that they name: read_flamingo checks them
    keys=TRANSFORMERS
    | Keys(
        honoured=keys(
            """text_config vision_layout vision_config vocab_size cross_attention_every
            cross_attention_heads memory_size"""
        )
    ),
)
LAYOUTS = {FLAMINGO: _LAYOUT, OLD_TYPE: _LAYOUT}
