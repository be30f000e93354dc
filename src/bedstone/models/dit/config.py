"""The configuration of DiT and PixArt, and of Bedstone's own DiT: every shape they share."""

import math
from dataclasses import dataclass
from typing import ClassVar

from bedstone.errors import BedstoneError, nearest
from bedstone.nn.patches import grid_of
from bedstone.settings import Settings, check_whole, number, one_of, share, whole

PUBLISHED = ("dit", "pixart")
LAYOUTS = (*PUBLISHED, "bedstone_dit")
PLAIN = ("gelu", "gelu_pytorch_tanh", "quick_gelu", "silu", "relu")
GATED = ("swiglu", "geglu")
POSITIONS = ("sincos", "learnt", "none")
MODULATIONS = ("own", "shared")


@dataclass(frozen=True)
class DiTConfig(Settings):
    """The shape of a DiT. Fields that are empty, zero or None are as the layout has them.

    Attributes:
        layout: dit, pixart (both as diffusers has them) or bedstone_dit.
        size: of the signals: one number each dimension, 1 to 3 of them.
        channels: of the signals, C.
        out_channels: of what is predicted; 0 takes `channels`. Twice as many where the variance
            is learnt too (Nichol and Dhariwal, 2021): the last half is for it.
        patch: samples of a patch along each dimension, or one number for all.
        width: of the states, D.
        layers: blocks.
        heads: of attention.
        head_width: width of a head; 0 takes width / heads.
        hidden: width inside the MLP; 0 takes 4 * width, and two thirds of it if gated.
        activation: gelu, gelu_pytorch_tanh, quick_gelu, silu or relu; or gated: swiglu, geglu.
        classes: how many there are; one more number, `classes`, stands for none of them.
        memory_width: of the text's states that cross-attention reads; 0 has no cross-attention.
        projected: whether an MLP maps these to `width` first (PixArt's caption projection).
        embedding_width: of an image's embedding by a CLIP, at length sqrt(E), which is added to the
            timestep's vector (unCLIP); 0 reads none. One of zeros is no embedding.
        embedding_tokens: that cross-attention reads of it, beside the text's states.
        embedding_whitened: whether it is read along the principal directions of embeddings, each
            divided by its deviation; training fits these first.
        beside: channels that are read beside the noisy signal, such as those of a smaller image
            that is to be enlarged; 0 reads none.
        pooled: whether the mean of these is added to the timestep's vector.
        positions: what is added to patches: sincos, learnt or none.
        rotary: whether queries and keys are turned by their places, dimension by dimension.
        rotary_base: the longest wave is about 6 * base patches.
        qk_norm: whether queries and keys of each head are normed (Henry et al., 2020).
        qkv_bias: whether queries, keys and values have biases.
        modulation: own: each block reads the condition by a matrix of its own (adaLN-zero);
            shared: one matrix for all, and a small table each (adaLN-single, PixArt).
        told_size: whether the size in pixels is added to the timestep's vector (PixArt-alpha).
        interpolation: places of the sincos positions are divided by it.
        conv_in: samples that a patch reads beyond each of its edges.
        fine: width of convolutions at the signal's full size, before the patches and after
            (UViT); 0 has none.
        skips: whether the first half of the blocks reach the last half (U-ViT).
        time_scale: what the told times are multiplied by before they are embedded.
        norm_eps: added to the variance inside norms.
        dropout: on what sublayers give, in training.
    """

    section: ClassVar[str] = "model."

    layout: str = one_of(*LAYOUTS, default="bedstone_dit")
    size: tuple[int, ...] = (32, 32)
    channels: int = whole(1, default=3)
    out_channels: int = whole(0, default=0)
    patch: int | tuple[int, ...] = 2
    width: int = whole(1, default=256)
    layers: int = whole(1, default=8)
    heads: int = whole(1, default=4)
    head_width: int = whole(0, default=0)
    hidden: int = whole(0, default=0)
    activation: str = ""
    classes: int = whole(0, default=0)
    memory_width: int = whole(0, default=0)
    projected: bool = False
    embedding_width: int = whole(0, default=0)
    embedding_tokens: int = whole(0, default=4)
    embedding_whitened: bool = False
    beside: int = whole(0, default=0)
    pooled: bool | None = None
    positions: str = one_of(*POSITIONS, default="sincos")
    rotary: bool | None = None
    rotary_base: float = number(0.0, open_least=True, default=100.0)
    qk_norm: bool | None = None
    qkv_bias: bool = True
    modulation: str = ""
    told_size: bool = False
    interpolation: float = number(0.0, open_least=True, default=1.0)
    conv_in: int = whole(0, default=0)
    fine: int = whole(0, default=0)
    skips: bool = False
    time_scale: float = number(0.0, open_least=True, default=1.0)
    norm_eps: float = number(0.0, default=0.0)
    dropout: float = share(below_one=True, default=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fill_sizes()
        if not self.head_width and self.width % self.heads:
            raise BedstoneError(
                f"model.heads: {self.heads} heads don't divide the width, {self.width}; choose a "
                "number that does, or say head_width."
            )
        published = self.layout in PUBLISHED
        gated = self.activation in GATED or (not published and not self.activation)
        hidden = 8 * self.width // 3 // 32 * 32 if gated and not published else 4 * self.width
        self._fill("out_channels", self.channels)
        self._fill("head_width", self.width // self.heads)
        self._fill("hidden", hidden or 4 * self.width)
        self._fill("activation", "gelu_pytorch_tanh" if published else "swiglu")
        self._fill("modulation", "shared" if self.layout == "pixart" else "own")
        self._fill("norm_eps", 1e-5 if self.layout == "dit" else 1e-6)
        for name in ("pooled", "rotary", "qk_norm"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, not published)
        _one_of("activation", self.activation, PLAIN + GATED)
        _one_of("modulation", self.modulation, MODULATIONS)
        if self.rotary and self.head_width % 2:
            raise BedstoneError(
                f"model.head_width: {self.head_width} was given; rotary places turn pairs, so it "
                "is even. Choose another, or rotary: false."
            )
        if self.told_size and (len(self.size) != 2 or self.width % 3):
            raise BedstoneError(
                f"model.told_size: height, width and their ratio are told of pictures, a third of "
                f"the width each; the size is {list(self.size)} and the width {self.width}. Choose "
                "a width that 3 divides, or told_size: false."
            )
        if published:
            self._check_published()

    def _fill(self, name: str, value: object) -> None:
        if not getattr(self, name):
            object.__setattr__(self, name, value)

    def _fill_sizes(self) -> None:
        size = tuple(self.size)
        patch = (self.patch,) * len(size) if isinstance(self.patch, int) else tuple(self.patch)
        for name, values in (("size", size), ("patch", patch)):
            object.__setattr__(self, name, values)
            if not 1 <= len(values) <= 3 or len(values) != len(size):
                raise BedstoneError(
                    f"model.{name}: {list(values)} was given; expected a number for each of 1 to 3 "
                    f"dimensions, as many as size has ({len(size)})."
                )
            for value in values:
                check_whole(f"model.{name}", value, 1)
        divided(size, patch, "model.size")

    def _check_published(self) -> None:
        """What the published layouts have no place for."""
        wanted = {
            "pooled": False,
            "positions": "sincos",
            "rotary": False,
            "qk_norm": False,
            "conv_in": 0,
            "fine": 0,
            "skips": False,
            "time_scale": 1.0,
            "embedding_width": 0,
            "beside": 0,
            "head_width": self.width // self.heads,
            "hidden": 4 * self.width,
            "modulation": "shared" if self.layout == "pixart" else "own",
        }
        if self.layout == "dit":
            wanted |= {"memory_width": 0, "projected": False, "told_size": False}
            wanted |= {"interpolation": 1.0}
        else:
            wanted |= {"classes": 0}
        for name, value in wanted.items():
            if getattr(self, name) != value:
                raise BedstoneError(
                    f"model.{name}: {getattr(self, name)!r} was given; the layout {self.layout!r} "
                    f"has {value!r} alone. Leave it, or take layout bedstone_dit."
                )
        if len(set(self.size)) > 1 or len(set(self.patches)) > 1 or len(self.size) != 2:
            raise BedstoneError(
                f"model.size: {list(self.size)} in patches of {list(self.patches)}; the layout "
                f"{self.layout!r} has squares alone. Take layout bedstone_dit for other signals."
            )
        if self.width % 4:
            raise BedstoneError(
                f"model.width: {self.width} was given; the layout {self.layout!r} needs one that 4 "
                "divides."
            )

    @property
    def patches(self) -> tuple[int, ...]:
        """Samples of a patch along each dimension."""
        return self.patch  # type: ignore[return-value]  # made a tuple above

    @property
    def channels_in(self) -> int:
        """Channels that the patches are made of."""
        return self.channels + self.beside

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each dimension of a signal of `size`."""
        return grid_of(self.size, self.patches)

    @property
    def tokens(self) -> int:
        """Patches of a signal."""
        return math.prod(self.grid)


def divided(sizes: tuple[int, ...], patch: tuple[int, ...], where: str) -> None:
    """Raises BedstoneError where the patches don't divide the sizes."""
    if any(size % one for size, one in zip(sizes, patch, strict=True)):
        raise BedstoneError(
            f"{where}: {list(sizes)} isn't divided by the patches, {list(patch)}; cut or pad the "
            "signals, or choose patches that divide them."
        )


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BedstoneError(f"model.{name}: {value!r} is unknown{nearest(value, known)}.")
