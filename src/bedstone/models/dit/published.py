"""How denoisers are published: diffusers' DiTTransformer2DModel and PixArtTransformer2DModel.

Configuration keys and tensor names are those that diffusers writes. Older folders name the class
`Transformer2DModel` for both; the kind of their norms says which. `bedstone_dit` is written by our
own names: nobody else has published such a network.
"""

from collections.abc import Iterator
from dataclasses import asdict, fields
from functools import partial
from typing import Any

from bedstone.errors import BedstoneError, nearest
from bedstone.models.dit.config import GATED, DiTConfig
from bedstone.models.dit.network import make
from bedstone.models.published import DIFFUSERS, Layout, Name, need, refuse
from bedstone.models.vit.published import both
from bedstone.published_keys import Keys, keys
from bedstone.runtime import without_weights
from bedstone.settings import from_mapping

CLASSES = {
    "dit": "DiTTransformer2DModel",
    "pixart": "PixArtTransformer2DModel",
    "bedstone_dit": "BedstoneDiT",
}
_NORMS = {"dit": "ada_norm_zero", "pixart": "ada_norm_single"}
_SIZES = {
    "channels": "in_channels",
    "layers": "num_layers",
    "heads": "num_attention_heads",
    "head_width": "attention_head_dim",
    "patch": "patch_size",
}
_OTHERS = {"dropout": "dropout", "norm_eps": "norm_eps", "qkv_bias": "attention_bias"}
_ACTIVATIONS = {
    "gelu_pytorch_tanh": "gelu-approximate",
    "gelu": "gelu",
    "geglu": "geglu",
    "quick_gelu": "geglu-approximate",
    "swiglu": "swiglu",
    "silu": "linear-silu",
}
_DIT = DIFFUSERS | Keys(
    honoured=keys("activation_fn num_embeds_ada_norm out_channels sample_size")
    | {*_SIZES.values(), *_OTHERS.values()},
    harmless=keys("norm_num_groups"),  # of networks that read no patches
    plain={
        "upcast_attention": (False,),
        "norm_elementwise_affine": (False,),
        "attention_type": ("default",),
        "num_vector_embeds": (),
        "only_cross_attention": (False,),
        "double_self_attention": (False,),
        "use_linear_projection": (False,),
    },
)
_TEXT = keys("caption_channels cross_attention_dim interpolation_scale use_additional_conditions")
_KEYS = {
    "dit": _DIT
    | Keys(
        # a DiT of an older class lists what only others have
        harmless=keys("caption_channels interpolation_scale use_additional_conditions"),
        plain={"norm_type": (_NORMS["dit"],), "cross_attention_dim": ()},
    ),
    "pixart": _DIT
    | Keys(
        honoured=_TEXT,
        harmless=keys("num_embeds_ada_norm"),  # it reads no classes
        plain={"norm_type": (_NORMS["pixart"],)},
    ),
}
_COMMON = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "num_layers": 28,
    "patch_size": 2,
    "attention_bias": True,
}
_DEFAULTS = {
    "dit": {**_COMMON, "sample_size": 32, "norm_eps": 1e-5},
    "pixart": {**_COMMON, "sample_size": 128, "norm_eps": 1e-6},
}
_WIDE = 128  # of a latent: a published PixArt of that size is told its size


def read_published(layout: str, config: dict[str, Any]) -> DiTConfig:
    """Raises BedstoneError where the configuration has parts that aren't built."""
    name = config.get("activation_fn", "gelu-approximate")
    ours = {theirs: own for own, theirs in _ACTIVATIONS.items()}
    if name not in ours:
        raise BedstoneError(f"config.json: activation_fn {name!r} is unknown{nearest(name, ours)}.")
    side = need(config, "sample_size")
    shape: dict[str, Any] = {
        "layout": layout,
        "activation": ours[name],
        "size": (side, side),
        **{own: need(config, theirs) for own, theirs in _SIZES.items()},
        **{own: config[key] for own, key in _OTHERS.items() if config.get(key) is not None},
    }
    shape["width"] = shape["heads"] * shape["head_width"]
    # what a configuration leaves out is as diffusers has it
    shape["out_channels"] = config.get("out_channels", 8 if layout == "pixart" else None) or 0
    if layout == "dit":
        shape["classes"] = need({"num_embeds_ada_norm": 1000, **config}, "num_embeds_ada_norm")
    else:
        shape |= _read_text(config, shape["width"])
        spread, sized = config.get("interpolation_scale"), config.get("use_additional_conditions")
        shape["told_size"] = side == _WIDE if sized is None else sized
        shape["interpolation"] = max(side // 64, 1) if spread is None else spread
    return from_mapping(DiTConfig, shape, "config.json")


def _read_text(config: dict[str, Any], width: int) -> dict[str, Any]:
    """What reads the text: straight, through a projection, or nothing."""
    read, captions = config.get("cross_attention_dim", 1152), config.get("caption_channels")
    if read is None:
        refuse(config, {"caption_channels": None})
        return {"memory_width": 0}
    if captions is None:
        return {"memory_width": need({"cross_attention_dim": read}, "cross_attention_dim")}
    if read != width:
        raise BedstoneError(
            f"config.json: cross_attention_dim is {read!r}; expected {width}, the width of the "
            "states, to which captions are projected. The configuration fits no weights."
        )
    return {"memory_width": need(config, "caption_channels"), "projected": True}


def write_published(config: DiTConfig) -> dict[str, Any]:
    sizes = {theirs: getattr(config, own) for own, theirs in {**_SIZES, **_OTHERS}.items()}
    published = {
        "_class_name": CLASSES[config.layout],
        **sizes,
        "patch_size": config.patches[0],
        "sample_size": config.size[0],
        "out_channels": config.out_channels,
        "activation_fn": _ACTIVATIONS[config.activation],
        "norm_type": _NORMS[config.layout],
        "norm_elementwise_affine": False,
        "upcast_attention": False,
    }
    if config.layout == "dit":
        return {**published, "num_embeds_ada_norm": config.classes}
    spread = config.interpolation
    return {
        **published,
        "caption_channels": config.memory_width if config.projected else None,
        "cross_attention_dim": (config.width if config.projected else config.memory_width) or None,
        "interpolation_scale": int(spread) if spread == int(spread) else spread,
        "use_additional_conditions": config.told_size,
    }


def _number(theirs: str, ours: str) -> Iterator[Name]:
    """An embedding of a number."""
    yield from both(f"{theirs}.linear_1", f"{ours}.mlp.up")
    yield from both(f"{theirs}.linear_2", f"{ours}.mlp.down")


def _attention(theirs: str, ours: str, *, bias: bool) -> Iterator[Name]:
    for part in ("q", "k", "v"):
        yield from both(f"{theirs}.to_{part}", f"{ours}.{part}", bias=bias)
    yield from both(f"{theirs}.to_out.0", f"{ours}.out")


def _block(config: DiTConfig, theirs: str, ours: str) -> Iterator[Name]:
    yield from _attention(f"{theirs}.attn1", f"{ours}.attn.sublayer", bias=config.qkv_bias)
    if config.memory_width:
        yield from _attention(f"{theirs}.attn2", f"{ours}.cross.sublayer", bias=config.qkv_bias)
    parts = ("up", "gate") if config.activation in GATED else ("up",)
    for leaf in ("weight", "bias"):
        stacked = tuple(f"{ours}.mlp.sublayer.{part}.{leaf}" for part in parts)
        yield Name(f"{theirs}.ff.net.0.proj.{leaf}", stacked)
    yield from both(f"{theirs}.ff.net.2", f"{ours}.mlp.sublayer.down")


def _modulations(ours: str, leaf: str) -> tuple[str, str]:
    """Of a block's two sublayers, which are published as one."""
    return (f"{ours}.attn.modulation.{leaf}", f"{ours}.mlp.modulation.{leaf}")


def names_dit(config: DiTConfig) -> Iterator[Name]:
    yield from both("pos_embed.proj", "patches")
    for i in range(config.layers):
        theirs, ours = f"transformer_blocks.{i}", f"stack.{i}"
        yield from _number(f"{theirs}.norm1.emb.timestep_embedder", f"conditions.{i}.time")
        table = f"{theirs}.norm1.emb.class_embedder.embedding_table.weight"
        yield Name(table, (f"conditions.{i}.classes.weight",))
        for leaf in ("weight", "bias"):
            yield Name(f"{theirs}.norm1.linear.{leaf}", _modulations(ours, leaf))
        yield from _block(config, theirs, ours)
    yield from both("proj_out_1", "final.modulation")
    yield from both("proj_out_2", "final.out")


def names_pixart(config: DiTConfig) -> Iterator[Name]:
    yield from both("pos_embed.proj", "patches")
    for i in range(config.layers):
        theirs, ours = f"transformer_blocks.{i}", f"stack.{i}"
        yield Name(f"{theirs}.scale_shift_table", _modulations(ours, "table"))
        yield from _block(config, theirs, ours)
    embedder, size = "adaln_single.emb", "conditions.0.told_size"
    yield from _number(f"{embedder}.timestep_embedder", "conditions.0.time")
    if config.told_size:
        yield from _number(f"{embedder}.resolution_embedder", f"{size}.resolution")
        yield from _number(f"{embedder}.aspect_ratio_embedder", f"{size}.aspect")
    yield from both("adaln_single.linear", "modulation")
    if config.projected:
        yield from both("caption_projection.linear_1", "text.project.up")
        yield from both("caption_projection.linear_2", "text.project.down")
    yield Name("scale_shift_table", ("final.modulation.table",))
    yield from both("proj_out", "final.out")


def read_own(config: dict[str, Any]) -> DiTConfig:
    known = {item.name for item in fields(DiTConfig)} & config.keys()
    return from_mapping(DiTConfig, {name: config[name] for name in known}, "config.json")


def write_own(config: DiTConfig) -> dict[str, Any]:
    values = {"_class_name": CLASSES[config.layout], **asdict(config)}
    if not config.embedding_width:
        values = {key: each for key, each in values.items() if not key.startswith("embedding_")}
    if not config.beside:
        del values["beside"]
    return {key: list(each) if isinstance(each, tuple) else each for key, each in values.items()}


def names_own(config: DiTConfig) -> Iterator[Name]:
    with without_weights():
        ours = list(make(config).state_dict())
    for name in ours:
        yield Name(name, (name,))


def _published(layout: str, names: Any) -> Layout:
    return Layout(
        model_type=layout,
        architecture=lambda config: CLASSES[layout],
        read_config=partial(read_published, layout),
        write_config=write_published,
        build=make,
        names=names,
        ignored=("pos_embed.pos_embed",),
        library="diffusers",
        keys=_KEYS[layout],
        defaults=_DEFAULTS[layout],
    )


LAYOUTS = {
    "dit": _published("dit", names_dit),
    "pixart": _published("pixart", names_pixart),
    "bedstone_dit": Layout(
        model_type="bedstone_dit",
        architecture=lambda config: None,
        read_config=read_own,
        write_config=write_own,
        build=make,
        names=names_own,
        library="diffusers",
        keys=DIFFUSERS | Keys(honoured=frozenset(item.name for item in fields(DiTConfig))),
    ),
}
