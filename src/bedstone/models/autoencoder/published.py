"""How autoencoders are published: diffusers' `AutoencoderKL` and `VQModel`, DALLE-pytorch's
`DiscreteVAE`; finite scalar quantization by our own names.

Configuration keys and tensor names are those that diffusers writes. Files of its first versions
name the attention's parts `query`, `key`, `value` and `proj_attn`, and hold them as 1 by 1
convolutions at times.

DALLE-pytorch keeps its weights in pickle, which is never read: `docs/dalle.md` says how they become
safetensors beside a `config.json` of its constructor's arguments.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.models.autoencoder import discrete
from bedstone.models.autoencoder import network as autoencoder
from bedstone.models.autoencoder.config import (
    AutoencoderConfig,
    DiscreteConfig,
    DiscreteVAEConfig,
    VQConfig,
)
from bedstone.models.published import DIFFUSERS, TRANSFORMERS, Layout, Name
from bedstone.published_keys import Keys, keys
from bedstone.reading import shown
from bedstone.runtime import without_weights
from bedstone.settings import from_mapping

CLASS, VQ_CLASS = "AutoencoderKL", "VQModel"
_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
_KEYS = {
    "image_size": "sample_size",
    "channels": "in_channels",
    "out_channels": "out_channels",
    "widths": "block_out_channels",
    "layers": "layers_per_block",
    "latent_channels": "latent_channels",
    "groups": "norm_num_groups",
    "activation": "act_fn",
    "scaling_factor": "scaling_factor",
    "shift_factor": "shift_factor",
    "latents_mean": "latents_mean",
    "latents_std": "latents_std",
    "quant_conv": "use_quant_conv",
    "post_quant_conv": "use_post_quant_conv",
    "attention": "mid_block_add_attention",
    "force_upcast": "force_upcast",
}
_SHARED = (
    *("image_size", "channels", "out_channels", "widths", "layers", "groups", "activation"),
    *("latent_channels", "scaling_factor", "attention", "force_upcast"),
)
_VQ_KEYS = {name: _KEYS[name] for name in _SHARED} | {
    "codes": "num_vq_embeddings",
    "code_width": "vq_embed_dim",
    "lookup": "lookup_from_codebook",
}
_VQ = DIFFUSERS | Keys(
    honoured=frozenset(_VQ_KEYS.values()) | keys("down_block_types up_block_types"),
    plain={"norm_type": ("group",)},  # a decoder with spatial norms reads the codes at each norm
)
_KL = DIFFUSERS | Keys(honoured=frozenset(_KEYS.values()) | keys("down_block_types up_block_types"))
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class _Flat(Name):
    """A linear map that older files hold as a 1 by 1 convolution."""

    def read(self, whole: Tensor) -> dict[str, Tensor]:
        return super().read(whole.flatten(1) if whole.dim() == 4 else whole)


def read_kl(config: dict[str, Any]) -> AutoencoderConfig:
    """Raises BedstoneError where a stage is of a kind that isn't built."""
    found: AutoencoderConfig = _read(AutoencoderConfig, _KEYS, config)
    return found


def read_vq(config: dict[str, Any]) -> VQConfig:
    """Raises BedstoneError where a stage is of a kind that isn't built."""
    found: VQConfig = _read(VQConfig, _VQ_KEYS, config)
    return found


def _read(config_class: type[Any], keys: Mapping[str, str], config: dict[str, Any]) -> Any:
    shape = {ours: config[key] for ours, key in keys.items() if config.get(key) is not None}
    # diffusers' own defaults stand in a dataclass whose 0 says "as `channels`"
    shape.setdefault("out_channels", 3)
    found = from_mapping(config_class, shape, "config.json")
    for key, kind in {"down_block_types": _DOWN, "up_block_types": _UP}.items():
        stages = config.get(key) or [kind]
        odd = [each for each in stages if each != kind]
        if odd or len(stages) != len(found.widths):
            raise BedstoneError(
                f"config.json: {key} is {stages}; expected {kind} for each of the "
                f"{len(found.widths)} stages of block_out_channels. Other stages aren't built."
            )
    return found


def write_kl(config: AutoencoderConfig) -> dict[str, Any]:
    return _write(CLASS, _KEYS, config)


def write_vq(config: VQConfig) -> dict[str, Any]:
    return {**_write(VQ_CLASS, _VQ_KEYS, config), "norm_type": "group"}


def _write(name: str, keys: Mapping[str, str], config: Any) -> dict[str, Any]:
    stages = len(config.widths)
    values = {theirs: getattr(config, ours) for ours, theirs in keys.items()}
    return {
        "_class_name": name,
        "down_block_types": [_DOWN] * stages,
        "up_block_types": [_UP] * stages,
        **{key: list(v) if isinstance(v, tuple) else v for key, v in values.items()},
    }


def _both(theirs: str, ours: str, kind: type[Name] = Name) -> Iterator[Name]:
    yield kind(f"{theirs}.weight", (f"{ours}.weight",))
    yield Name(f"{theirs}.bias", (f"{ours}.bias",))


def _block(theirs: str, ours: str, *, skips: bool = False) -> Iterator[Name]:
    for part in ("norm1", "conv1", "norm2", "conv2"):
        yield from _both(f"{theirs}.{part}", f"{ours}.{part}")
    if skips:
        yield from _both(f"{theirs}.conv_shortcut", f"{ours}.skip")


def _middle(config: Any, theirs: str, ours: str) -> Iterator[Name]:
    for i, part in enumerate(("first", "last")):
        yield from _block(f"{theirs}.resnets.{i}", f"{ours}.{part}")
    if config.attention:
        table, mine = f"{theirs}.attentions.0", f"{ours}.attention"
        yield from _both(f"{table}.group_norm", f"{mine}.norm")
        for theirs_part, part in {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "out"}.items():
            yield from _both(f"{table}.{theirs_part}", f"{mine}.attn.{part}", _Flat)


def _side(config: Any, side: str) -> Iterator[Name]:
    """Every tensor of the encoder or the decoder."""
    encodes = side == "encoder"
    blocks, sampler = ("down_blocks", "down") if encodes else ("up_blocks", "up")
    widths = config.widths if encodes else config.widths[::-1]
    layers = config.layers if encodes else config.layers + 1
    yield from _both(f"{side}.conv_in", f"{side}.into")
    before = widths[0]
    for stage, width in enumerate(widths):
        theirs, ours = f"{side}.{blocks}.{stage}", f"{side}.stages.{stage}"
        for i in range(layers):
            yield from _block(f"{theirs}.resnets.{i}", f"{ours}.{i}", skips=before != width)
            before = width
        if stage < len(widths) - 1:
            yield from _both(f"{theirs}.{sampler}samplers.0.conv", f"{ours}.{layers}.conv")
    yield from _middle(config, f"{side}.mid_block", f"{side}.middle")
    yield from _both(f"{side}.conv_norm_out", f"{side}.norm")
    yield from _both(f"{side}.conv_out", f"{side}.out")


def names_kl(config: AutoencoderConfig) -> Iterator[Name]:
    yield from _side(config, "encoder")
    yield from _side(config, "decoder")
    if config.quant_conv:
        yield from _both("quant_conv", "moments")
    if config.post_quant_conv:
        yield from _both("post_quant_conv", "prepare")


def names_vq(config: VQConfig) -> Iterator[Name]:
    yield from _side(config, "encoder")
    yield from _side(config, "decoder")
    yield from _both("quant_conv", "moments")
    yield Name("quantize.embedding.weight", ("codebook.weight",))
    yield from _both("post_quant_conv", "prepare")


_DVAE_KEYS = {
    "image_size": "image_size",
    "channels": "channels",
    "codes": "num_tokens",
    "code_width": "codebook_dim",
    "layers": "num_layers",
    "blocks": "num_resnet_blocks",
    "width": "hidden_dim",
    "temperature": "temperature",
    "straight_through": "straight_through",
    "reinmax": "reinmax",
    "logit_laplace": "logit_laplace",  # our own
}
_DVAE = TRANSFORMERS | Keys(
    honoured=frozenset(_DVAE_KEYS.values()) | keys("normalization"),
    harmless=keys("smooth_l1_loss kl_div_loss_weight"),  # of training
)


def read_dvae(config: dict[str, Any]) -> DiscreteVAEConfig:
    """Raises BedstoneError where `normalization` isn't means and deviations of channels."""
    shape = {ours: config[key] for ours, key in _DVAE_KEYS.items() if config.get(key) is not None}
    said = config.get("normalization", USUAL)
    if said is None:  # pixels from 0 to 1 are read as they are
        said = ((0.0,), (1.0,))
    pair = said if isinstance(said, list | tuple) and len(said) == 2 else ((), ())
    if not all(isinstance(each, list | tuple) and each for each in pair):
        raise BedstoneError(
            f"config.json: normalization is {shown(said)}; expected the means and the deviations "
            "of the channels, as [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]], or null."
        )
    channels = shape.get("channels", 3)
    mean, std = (tuple(each)[:channels] if type(channels) is int else each for each in pair)
    return from_mapping(DiscreteVAEConfig, {**shape, "mean": mean, "std": std}, "config.json")


USUAL = ((0.5,), (0.5,))  # of every channel


def write_dvae(config: DiscreteVAEConfig) -> dict[str, Any]:
    values = {theirs: getattr(config, ours) for ours, theirs in _DVAE_KEYS.items()}
    if isinstance(config.image_size, tuple):
        values["image_size"] = list(config.image_size)
    return {
        "model_type": config.layout,
        **values,
        "normalization": [list(config.mean), list(config.std)],
    }


def names_dvae(config: DiscreteVAEConfig) -> Iterator[Name]:
    """As DALLE-pytorch names them, which are our names too."""
    with without_weights():
        network = discrete.make_dvae(config)
    yield from (Name(name, (name,)) for name in network.state_dict())


def read_discrete(config: dict[str, Any]) -> DiscreteConfig:
    known = {item.name for item in fields(DiscreteConfig)} & config.keys()
    return from_mapping(DiscreteConfig, {name: config[name] for name in known}, "config.json")


def write_discrete(config: DiscreteConfig) -> dict[str, Any]:
    values = {"model_type": config.layout, **asdict(config)}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def names_discrete(config: DiscreteConfig) -> Iterator[Name]:
    """By our own names: nobody else has published such a network."""
    with without_weights():
        network = discrete.make_discrete(config)
    yield from (Name(name, (name,)) for name in network.state_dict())


LAYOUTS = {
    "autoencoder_kl": Layout(
        model_type="autoencoder_kl",
        architecture=lambda config: CLASS,
        read_config=read_kl,
        write_config=write_kl,
        build=autoencoder.make,
        names=names_kl,
        renamed={
            f".{old}.{leaf}": f".{new}.{leaf}"
            for old, new in _OLD.items()
            for leaf in ("weight", "bias")
        },
        library="diffusers",
        keys=_KL,
    ),
    "vq_model": Layout(
        model_type="vq_model",
        architecture=lambda config: VQ_CLASS,
        read_config=read_vq,
        write_config=write_vq,
        build=discrete.make_vq,
        names=names_vq,
        library="diffusers",
        keys=_VQ,
    ),
    "discrete_vae": Layout(
        model_type="discrete_vae",
        architecture=lambda config: None,
        read_config=read_dvae,
        write_config=write_dvae,
        build=discrete.make_dvae,
        names=names_dvae,
        keys=_DVAE,
    ),
    "fsq_autoencoder": Layout(
        model_type="fsq_autoencoder",
        architecture=lambda config: None,
        read_config=read_discrete,
        write_config=write_discrete,
        build=discrete.make_discrete,
        names=names_discrete,
        keys=TRANSFORMERS | Keys(honoured=frozenset(item.name for item in fields(DiscreteConfig))),
    ),
}
