"""The configuration of BLIP: its text encoder and decoder, its image tower, its head."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from bedstone.models.resnet import network as map_tower
from bedstone.models.resnet.network import ResNetConfig
from bedstone.models.vit.network import ViTConfig
from bedstone.nn.layers import ACTIVATIONS
from bedstone.settings import Settings, from_mapping, number, one_of, share, whole


@dataclass(frozen=True)
class BlipTextConfig(Settings):
    """The shape of a text network that reads a memory.

    Attributes:
        vocab_size: tokens in the vocabulary, V.
        width: of the states, D.
        layers: blocks.
        heads: of attention; they divide `width`.
        hidden: width inside the MLP; 0 takes 4 * width.
        context: the longest row, in tokens.
        norm_eps: added to the variance inside norms.
        activation: by its published name.
        dropout: on embeddings and the residual stream, in training.
        attention_dropout: on attention weights, in training.
        memory_width: of the states that cross-attention reads; 0 takes what gives them.
        bos_id: the token that a text to be written begins with; BLIP's [DEC].
        eos_id: the one it ends with; BLIP's [SEP].
        pad_id: the one that pads.
        tied: whether the word head shares the embedding's weights.
    """

    section: ClassVar[str] = "model.text."

    vocab_size: int = whole(1, default=8192)
    width: int = whole(1, default=256)
    layers: int = whole(1, default=4)
    heads: int = whole(1, default=4)
    hidden: int = whole(0, default=0)
    context: int = whole(1, default=512)
    norm_eps: float = number(0.0, open_least=True, default=1e-12)
    activation: str = one_of(*ACTIVATIONS, default="gelu")
    dropout: float = share(below_one=True, default=0.0)
    attention_dropout: float = share(below_one=True, default=0.0)
    memory_width: int = whole(0, default=0)
    bos_id: int = whole(0, default=1)
    eos_id: int = whole(0, default=2)
    pad_id: int = whole(0, default=0)
    tied: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hidden:
            object.__setattr__(self, "hidden", 4 * self.width)
        if self.width % self.heads:
            raise BedstoneError(
                f"model.text.heads: {self.heads} doesn't divide the width {self.width}; choose a "
                "divisor."
            )
        for name in ("bos_id", "eos_id", "pad_id"):
            if getattr(self, name) >= self.vocab_size:
                raise BedstoneError(
                    f"model.text.{name}: {getattr(self, name)} was given; the vocabulary has "
                    f"{self.vocab_size} tokens. Raise vocab_size, or name another token."
                )

    @property
    def head_width(self) -> int:
        """Width of a head of attention."""
        return self.width // self.heads


# The shape of a BLIP: which tower it has for pictures, its text, and what it is for.

TOWERS: dict[str, type[ViTConfig] | type[ResNetConfig]] = {
    "blip": ViTConfig,
    "blip_resnet": ResNetConfig,
}
# Which heads have an encoder, which a decoder.
READS = ("answers", "matching", "joint")
WRITES = ("captions", "answers", "joint")
HEADS = ("captions", "answers", "matching", "joint")


@dataclass(frozen=True)
class BlipConfig(Settings):
    """The shape of a BLIP.

    Attributes:
        layout: blip (a ViT for pictures) or blip_resnet (a CNN).
        image: the tower for pictures.
        text: of the encoder and of the decoder, which are alike in the published layout.
        decoder_layers: blocks of the decoder; 0 takes as many as `text` has. Answers need few.
        embed: width of the vectors that contrast compares, E.
        head: what it is for: captions, answers, matching (and contrast), joint (all).
    """

    section: ClassVar[str] = "model."

    layout: str = one_of(*TOWERS, default="blip")
    image: ViTConfig | ResNetConfig = field(default_factory=ViTConfig)
    text: BlipTextConfig = field(default_factory=BlipTextConfig)
    decoder_layers: int = whole(0, default=0)
    embed: int = whole(1, default=256)
    head: HeadConfig = field(default_factory=partial(HeadConfig, "captions"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.image, TOWERS[self.layout]):
            raise BedstoneError(
                f"model.image: the {self.layout} layout has a {TOWERS[self.layout].__name__} for "
                f"pictures, not a {type(self.image).__name__}."
            )
        if self.head.kind not in HEADS:
            raise BedstoneError(
                f"model.head.kind: {self.head.kind!r} isn't a {self.layout}'s; it has "
                f"{', '.join(HEADS)}."
            )
        if isinstance(self.image, ViTConfig):
            object.__setattr__(self, "image", _published_tower(self.image))
        self._fill_decoder()
        self._fill_memory()

    def _fill_decoder(self) -> None:
        """Says how many blocks the decoder has."""
        if self.layout == "blip" and self.decoder_layers not in (0, self.text.layers):
            raise BedstoneError(
                f"model.decoder_layers: {self.decoder_layers} was given; in the blip layout the "
                f"decoder has as many blocks as model.text.layers, {self.text.layers}. Leave it "
                "out, or take blip_resnet."
            )
        object.__setattr__(self, "decoder_layers", self.decoder_layers or self.text.layers)

    def _fill_memory(self) -> None:
        """Says how wide the states are that cross-attention reads."""
        wide, text = map_tower.states_width(self.image), self.text
        if isinstance(self.image, ResNetConfig):  # a linear map brings them to any width
            wide = text.memory_width or text.width
        if text.memory_width not in (0, wide):
            raise BedstoneError(
                f"model.text.memory_width: {text.memory_width} was given; the image tower's states "
                f"are {wide} wide. Leave it out."
            )
        if self.head.kind in ("answers", "joint") and wide != text.width:
            raise BedstoneError(
                f"model.image.width: {wide} was given and model.text.width {text.width}; where "
                "questions are answered both must be equal: the decoder reads the encoder's "
                "states as it reads pictures."
            )
        object.__setattr__(self, "text", replace(text, memory_width=wide))

    @property
    def decoder(self) -> BlipTextConfig:
        """The shape of the decoder."""
        return replace(self.text, layers=self.decoder_layers)

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size

    @property
    def context(self) -> int:
        """The longest text, in tokens."""
        return self.text.context

    @property
    def reads(self) -> bool:
        """Whether it has an encoder."""
        return self.head.kind in READS

    @property
    def writes(self) -> bool:
        """Whether it has a decoder."""
        return self.head.kind in WRITES

    @property
    def matches(self) -> bool:
        """Whether it compares pictures with texts."""
        return self.head.kind in ("matching", "joint")


def _published_tower(image: ViTConfig) -> ViTConfig:
    """BLIP's image tower, with its layout said; refuses what that layout can't hold."""
    layout = "blip_vision_model"
    if image.layout not in ("", layout):
        raise BedstoneError(
            f"model.image.layout: {image.layout!r} was given, where {layout!r} is needed. Leave it "
            "out."
        )
    image = image if image.layout else replace(image, layout=layout)
    for name in ("size", "patch"):
        pair: Any = getattr(image, name)
        if pair[0] != pair[1]:
            raise BedstoneError(
                f"model.image: {name} is {pair[0]} by {pair[1]}; BLIP's pictures and patches are "
                "square. Give one number."
            )
    if image.head_width * image.heads != image.width or not image.qkv_bias:
        raise BedstoneError(
            "model.image: BLIP's attention has biases, and heads that share the width evenly; "
            "leave head_width and qkv_bias out."
        )
    if image.head.kind != "states" or image.channels != 3:
        raise BedstoneError(
            "model.image: BLIP's image tower has no head of its own, and reads 3 channels; leave "
            "head and channels out."
        )
    return image


def blip_config(
    values: Mapping[str, Any], where: str = "recipe", prefix: str = "model."
) -> BlipConfig:
    """A VLM's configuration from plain values; `image`, `text` and `head` are mappings.

    Raises:
        BedstoneError: a key is unknown, or a value doesn't fit.
    """
    chosen = dict(values)
    tower: Any = TOWERS.get(str(chosen.get("layout", "blip")), ViTConfig)
    parts: dict[str, Any] = {}
    for name, kind in (("image", tower), ("text", BlipTextConfig), ("head", HeadConfig)):
        given = chosen.pop(name, {"kind": "captions"} if name == "head" else {})
        if isinstance(given, Mapping):
            given = from_mapping(kind, given, where, f"{prefix}{name}.")
        elif not isinstance(given, ViTConfig | ResNetConfig | BlipTextConfig | HeadConfig):
            raise BedstoneError(f"{where}: {prefix}{name} = {given!r}; expected a section of keys.")
        parts[name] = given
    plain = from_mapping(_Plain, chosen, where, prefix)
    return BlipConfig(**vars(plain), **parts)


@dataclass
class _Plain:
    layout: str = "blip"
    decoder_layers: int = 0
    embed: int = 256
