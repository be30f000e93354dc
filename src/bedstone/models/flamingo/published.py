"""How GPTs that see are written: sighted_gpt, Bedstone's own layout of published parts.

The GPT's tensors have the names that they are published by, and its configuration stands whole in
`text_config`; the image tower's are those of the family that it comes from (`vision_layout`). What
joins them stands under `sight.`.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bedstone.errors import BedstoneError, nearest
from bedstone.models.blip.network import BlipConfig, BlipTextConfig
from bedstone.models.clip.network import CLIPConfig
from bedstone.models.flamingo.network import FlamingoConfig, make
from bedstone.models.published import Layout, Name, layout, need, write_ends
from bedstone.models.resnet.network import ResNetConfig
from bedstone.models.vit.published import both, names_vit, read_vit, write_vit

TYPE = "sighted_gpt"
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
    if family == "vit":
        image: Any = read_vit(vision)
        image = replace(image, head=replace(image.head, kind="states"))
    else:
        # SigLIP's text tower gives as many features as its image tower
        text = {"projection_size": vision.get("hidden_size")}
        image = layout(family).read_config({"vision_config": vision, "text_config": text}).image
    return FlamingoConfig(
        gpt=layout(str(words.get("model_type"))).read_config(words),
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
        "model_type": TYPE,
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
    yield from both("sight.norm", "look")


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


def _write_ends(config: dict[str, Any], tokenizer: Any) -> None:
    for section in (config, config["text_config"]):
        write_ends(section, tokenizer)


LAYOUTS = {
    TYPE: Layout(
        model_type=TYPE,
        architecture=lambda config: None,
        read_config=read_flamingo,
        write_config=write_flamingo,
        build=make,
        names=names_flamingo,
        write_ends=_write_ends,
    )
}
