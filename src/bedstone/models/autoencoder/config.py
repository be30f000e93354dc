"""Configurations of autoencoders: continuous latents (KL) and discrete codes (FSQ, VQ, dVAE)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from bedstone.errors import BedstoneError
from bedstone.nn.layers import ACTIVATIONS
from bedstone.settings import Settings, number, one_of, whole

LAYOUTS = ("autoencoder_kl", "fsq_autoencoder", "vq_model", "discrete_vae")
MOST_CODES = 2**24
Sides = int | tuple[int, ...]  # of a picture, in pixels: one number, or height and width


@dataclass(frozen=True)
class AutoencoderConfig(Settings):
    """The shape of an `AutoencoderKL`; defaults are diffusers'.

    Attributes:
        layout: autoencoder_kl.
        image_size: of the pictures it is meant for, in pixels: one number, or height and width. It
            reads any size that its stages divide.
        channels: of the pictures.
        out_channels: of what it gives back; 0 takes `channels`.
        widths: channels of each stage; from the second on, a stage has half the side.
        layers: residual blocks of a stage; the decoder has one more.
        latent_channels: of the latents.
        groups: of the norms; must divide every width.
        activation: by its published name.
        scaling_factor: what latents are multiplied by, to have a deviation of about 1.
        shift_factor: what is subtracted from latents before; None is nothing.
        latents_mean, latents_std: the same for each latent channel, where a model has them.
        quant_conv: whether a 1 by 1 convolution follows the encoder.
        post_quant_conv: whether one precedes the decoder.
        attention: whether the middle of encoder and decoder attends.
        force_upcast: kept for the file: whether half precision (fp16) is too coarse for it.
    """

    section: ClassVar[str] = "model."

    layout: str = one_of(*LAYOUTS, default="autoencoder_kl")
    image_size: Sides = 32
    channels: int = whole(1, default=3)
    out_channels: int = whole(0, default=0)
    widths: tuple[int, ...] = (64,)
    layers: int = whole(1, default=1)
    latent_channels: int = whole(1, default=4)
    groups: int = whole(1, default=32)
    activation: str = one_of(*ACTIVATIONS, default="silu")
    scaling_factor: float = number(0.0, open_least=True, default=0.18215)
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    quant_conv: bool = True
    post_quant_conv: bool = True
    attention: bool = True
    force_upcast: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_maps(self)
        if not self.out_channels:
            object.__setattr__(self, "out_channels", self.channels)
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.latent_channels:
                raise BedstoneError(
                    f"model.{name}: has {len(values)} numbers; expected one for each of the "
                    f"{self.latent_channels} latent channels."
                )
        if not all(0 < each < math.inf for each in self.latents_std or ()):
            raise BedstoneError(
                f"model.latents_std: {list(self.latents_std or ())} was given; expected numbers "
                "above 0."
            )

    @property
    def shrink(self) -> int:
        """Pixels of a picture's side to one place of the latents'."""
        return 2 ** (len(self.widths) - 1)


@dataclass(frozen=True)
class DiscreteConfig(Settings):
    """The shape of a `DiscreteAutoencoder`.

    Attributes:
        layout: fsq_autoencoder.
        image_size, channels, widths, layers, groups, activation, attention: as in
            `AutoencoderConfig`.
        patch: pixels of a side that the first convolution reads as one place, which is what makes
            it fast.
        levels: values of each number of a code; their product is how many codes there are. Mentzer
            et al. (2023, table 1) take (8, 6, 5) for 240, (8, 5, 5, 5) for 1,000 and
            (7, 5, 5, 5, 5) for 4,375.
    """

    section: ClassVar[str] = "model."

    layout: str = one_of(*LAYOUTS, default="fsq_autoencoder")
    image_size: Sides = 32
    channels: int = whole(1, default=3)
    widths: tuple[int, ...] = (64, 128)
    layers: int = whole(1, default=1)
    groups: int = whole(1, default=8)
    activation: str = one_of(*ACTIVATIONS, default="silu")
    attention: bool = False
    patch: int = whole(1, default=2)
    levels: tuple[int, ...] = (8, 5, 5, 5)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_maps(self)
        if not self.levels or not all(type(n) is int and n >= 2 for n in self.levels):
            raise BedstoneError(
                f"model.levels: {list(self.levels)} was given; expected whole numbers, each at "
                "least 2, as [8, 5, 5, 5]."
            )
        if self.codes > MOST_CODES:
            raise BedstoneError(
                f"model.levels: {list(self.levels)} make {self.codes:,} codes; expected at most "
                f"{MOST_CODES:,}, which can be counted."
            )

    @property
    def codes(self) -> int:
        """How many codes there are."""
        return math.prod(self.levels)

    @property
    def shrink(self) -> int:
        """Pixels of a picture's side to one code."""
        return self.patch * 2 ** (len(self.widths) - 1)


@dataclass(frozen=True)
class VQConfig(Settings):
    """The shape of a `VQModel`; defaults are diffusers'.

    Attributes:
        layout: vq_model.
        image_size, channels, out_channels, widths, layers, latent_channels, groups, activation,
            attention, scaling_factor, force_upcast: as in `AutoencoderConfig`.
        codes: vectors of the codebook.
        code_width: numbers of a vector; 0 takes `latent_channels`.
        lookup: kept for the file: whether diffusers' `decode` may be given ids.
    """

    section: ClassVar[str] = "model."

    layout: str = one_of(*LAYOUTS, default="vq_model")
    image_size: Sides = 32
    channels: int = whole(1, default=3)
    out_channels: int = whole(0, default=0)
    widths: tuple[int, ...] = (64,)
    layers: int = whole(1, default=1)
    latent_channels: int = whole(1, default=3)
    groups: int = whole(1, default=32)
    activation: str = one_of(*ACTIVATIONS, default="silu")
    attention: bool = True
    codes: int = whole(2, MOST_CODES, default=256)
    code_width: int = whole(0, default=0)
    scaling_factor: float = number(0.0, open_least=True, default=0.18215)
    lookup: bool = False
    force_upcast: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_maps(self)
        if not self.out_channels:
            object.__setattr__(self, "out_channels", self.channels)
        if not self.code_width:
            object.__setattr__(self, "code_width", self.latent_channels)

    @property
    def shrink(self) -> int:
        """Pixels of a picture's side to one code."""
        return 2 ** (len(self.widths) - 1)


@dataclass(frozen=True)
class DiscreteVAEConfig(Settings):
    """The shape of a `DiscreteVAE`; defaults are DALLE-pytorch's.

    Attributes:
        layout: discrete_vae.
        image_size, channels: as in `AutoencoderConfig`.
        codes: tokens that a place may have.
        code_width: numbers of a token's vector.
        layers: convolutions of stride 2, each of which halves the sides.
        blocks: residual blocks at the codes' size, of encoder and decoder each.
        width: channels inside.
        temperature: of the Gumbel softmax at the end of training.
        straight_through: whether the decoder sees one code in training, not a mixture.
        reinmax: whether gradients are then those of ReinMax (Liu et al., 2023, algorithm 2).
        mean, std: of each channel, or one of all, from 0 to 1, by which pixels are normalised.
        logit_laplace: whether the decoder gives a distribution of each value, not the value.
    """

    section: ClassVar[str] = "model."

    layout: str = one_of(*LAYOUTS, default="discrete_vae")
    image_size: Sides = 256
    channels: int = whole(1, default=3)
    codes: int = whole(2, MOST_CODES, default=512)
    code_width: int = whole(1, default=512)
    layers: int = whole(1, default=3)
    blocks: int = whole(0, default=0)
    width: int = whole(1, default=64)
    temperature: float = number(0.0, open_least=True, default=0.9)
    straight_through: bool = False
    reinmax: bool = False
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    logit_laplace: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sides(self.image_size)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) == 1:
                object.__setattr__(self, name, values * self.channels)
            elif len(values) != self.channels:
                raise BedstoneError(
                    f"model.{name}: has {len(values)} numbers; expected one for each of the "
                    f"{self.channels} channels."
                )
        if not self.std or not all(0 < each < math.inf for each in self.std):
            raise BedstoneError(f"model.std: {list(self.std)} was given; expected numbers above 0.")
        if self.reinmax and not self.straight_through:
            raise BedstoneError(
                "model.reinmax: needs model.straight_through, whose gradients it makes better. Set "
                "both, or neither."
            )

    @property
    def shrink(self) -> int:
        """Pixels of a picture's side to one code."""
        return 2**self.layers


def check_maps(config: Any) -> None:
    """Checks what both shapes have in common.

    Raises:
        BedstoneError: a size that can't be, naming the field.
    """
    if not config.widths or min(config.widths) < 1:
        raise BedstoneError(
            f"model.widths: {list(config.widths)} was given; expected the channels of each stage."
        )
    for width in config.widths:
        if width % config.groups:
            raise BedstoneError(
                f"model.groups: {config.groups} groups don't divide a stage of {width} channels; "
                f"choose a divisor of all of {list(config.widths)}."
            )
    check_sides(config.image_size)


def check_sides(size: Sides) -> None:
    """Raises BedstoneError unless `model.image_size` is one number of pixels, or two."""
    sides = size if isinstance(size, tuple) else (size, size)
    if len(sides) != 2 or min(sides) < 1:
        raise BedstoneError(
            f"model.image_size: {size} was given; expected pixels: a number, or height and width."
        )


def check_pixels(config: Any, shape: tuple[int, ...]) -> None:
    """Checks pictures (B, C, H, W) against what an autoencoder reads.

    Raises:
        BedstoneError: other channels, or sides that its stages don't divide.
    """
    if len(shape) != 4 or shape[1] != config.channels:
        raise BedstoneError(
            f"pixels: have the shape {tuple(shape)}; this autoencoder reads (pictures, "
            f"{config.channels}, height, width). Give pictures of {config.channels} channels, or "
            "another autoencoder."
        )
    if not all(side and side % config.shrink == 0 for side in shape[2:]):
        raise BedstoneError(
            f"pixels: are {shape[2]} by {shape[3]}; this autoencoder makes one place of "
            f"{config.shrink} by {config.shrink} pixels, so both sides must be multiples of "
            f"{config.shrink}. Resize or crop the pictures."
        )
