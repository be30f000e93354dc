"""CLIP: a tower for pictures and a tower for text, brought to vectors that are compared.

`clip` (Radford et al., 2021) is trained by softmax, `siglip` (Zhai et al., 2023) by a sigmoid with
a bias; `clip_resnet` is CLIP with a CNN for pictures. What joins the towers knows of each only
that it has `features`: any other with that may stand in its place.

Shapes: B pictures, n texts, T tokens of a padded row, E what both towers come to.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.errors import BedstoneError, nearest
from bedstone.models.heads import Head, HeadConfig, Headed, PackedRows
from bedstone.models.resnet import network as resnet
from bedstone.models.resnet.network import ResNetConfig
from bedstone.models.vit import network as vit
from bedstone.models.vit.network import ViTConfig, blocks_of, check_shape, fill_shape, initialise
from bedstone.nn.blocks import Context, Stack, stack_at
from bedstone.nn.layers import LayerNorm
from bedstone.nn.masks import Both, Causal, Documents, Full, Mask, Padding
from bedstone.nn.positions import LearnedPositions
from bedstone.settings import from_mapping

LAYOUTS = ("clip_text_model", "siglip_text_model")
# Old files of CLIP say this of the end token whatever its id: then a row's highest id is the end.
OLD_END = 2


@dataclass(frozen=True)
class TextConfig:
    """The shape of a text tower.

    Attributes:
        layout: clip_text_model or siglip_text_model; empty takes that of the CLIP it is part of.
        vocab_size: tokens in the vocabulary.
        context: the longest row it is made for, in tokens; SigLIP's rows all have that length.
        width: of the states, D.
        layers: blocks.
        heads: of attention; they divide `width`.
        hidden: width inside the MLP; 0 takes 4 * width.
        activation: by its published name; empty is as the layout has it.
        norm_eps: added to the variance inside norms; 0 is as the layout has it.
        attention_dropout: on attention weights, in training.
        bos_id, eos_id, pad_id: of the tokens that begin, end and pad a row. Where CLIP's `eos_id`
            is None, the highest id of a row ends it.
        features: what SigLIP's head gives, F; 0 takes `width`. CLIP's tower has no head.
    """

    layout: str = ""
    vocab_size: int = 49408
    context: int = 77
    width: int = 512
    layers: int = 12
    heads: int = 8
    hidden: int = 0
    activation: str = ""
    norm_eps: float = 0.0
    attention_dropout: float = 0.0
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    features: int = 0

    def __post_init__(self) -> None:
        if self.layout and self.layout not in LAYOUTS:
            raise BedstoneError(
                f"model.text.layout: {self.layout!r} is unknown{nearest(self.layout, LAYOUTS)}."
            )
        if not self.layout:
            return  # what it is part of will say
        fill_shape(self)
        if not self.features:
            object.__setattr__(self, "features", self.width)
        check_shape(self, "text", ("vocab_size", "context", "features"))
        if self.features != self.width and self.layout == "clip_text_model":
            raise BedstoneError(
                f"model.text.features: {self.features} was given; CLIP gives the width "
                f"{self.width}. Leave it out, and set embed for what both towers come to."
            )

    @property
    def causal(self) -> bool:
        return self.layout == "clip_text_model"


class TextTower(nn.Module):
    """Rows of token ids to one vector each, (n, F), not normalised."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.causal = config.causal
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.positions = LearnedPositions(config.context, config.width)
        self.stack = Stack(blocks_of(config))
        self.norm = LayerNorm(config.width, eps=config.norm_eps)
        self.head = nn.Identity() if config.causal else nn.Linear(config.width, config.features)

    def states(
        self,
        ids: Tensor,
        *,
        mask: Mask | None = None,
        positions: Tensor | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """The last hidden states, (n, T, D); or (n, M, D), those of the tokens `read`, (M,)."""
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        x = self.embed(ids) + self.positions(positions)
        seen = mask or (Causal() if self.causal else Full())
        return self.norm(stack_at(self.stack, x, Context(mask=seen), read))

    def packed_states(self, rows: PackedRows, read: Tensor | None = None) -> Tensor:
        """The last hidden states of rows laid end to end, (N, D); or of `read`, (M, D)."""
        mask = Documents(rows.documents, causal=self.causal)
        return self.states(rows.ids, mask=mask, positions=rows.positions, read=read)[0]

    def features(self, rows: Any) -> Tensor:
        """(n, F) of packed rows (`data.text.packing.Packed`): each read at its last token."""
        lengths = rows.lengths
        first = lengths[0]
        if all(length == first for length in lengths):  # a plain batch: no need to part them
            last = torch.tensor([first - 1], device=rows.ids.device)
            return self.head(self.states(rows.ids.view(len(lengths), first), read=last)[:, 0])
        last = torch.tensor(rows.starts[1:], device=rows.ids.device) - 1
        return self.head(self.packed_states(rows, last))

    def forward(self, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        """(n, F) of a padded batch of ids (n, T), as published.

        Args:
            keep: (n, T) bool, True where a token is real; None says all are.
        """
        mask: Mask | None = None
        if keep is not None:
            mask = Both(Causal(), Padding(keep)) if self.causal else Padding(keep)
        states = self.states(ids, mask=mask)
        return self.head(states[torch.arange(len(ids), device=ids.device), self._ends(ids)])

    def _ends(self, ids: Tensor) -> Tensor:
        """Which token of each row is read, (n,)."""
        if not self.causal:
            return ids.new_full((len(ids),), ids.shape[1] - 1)
        if self.config.eos_id is None:
            return ids.argmax(1)
        return (ids == self.config.eos_id).int().argmax(1)


# The layouts of the two towers, by CLIP's own.
TOWERS = {
    "clip": ("clip_vision_model", "clip_text_model"),
    "siglip": ("siglip_vision_model", "siglip_text_model"),
    "clip_resnet": ("resnet", "clip_text_model"),
}
# Logarithms of the first scale, and the first bias (CLIP, section 2.5; SigLIP, section 3.2).
_START = {"clip": (math.log(1 / 0.07), None), "siglip": (math.log(10), -10.0)}
_START["clip_resnet"] = _START["clip"]


@dataclass(frozen=True)
class CLIPConfig:
    """The shape of a CLIP.

    Attributes:
        layout: clip, siglip or clip_resnet.
        image: the tower for pictures: a `ResNetConfig` in clip_resnet, else a `ViTConfig`.
        text: the tower for text.
        embed: width of what both come to, E; 0 takes the image tower's. SigLIP's is the image
            tower's width.
        head: `towers`: it has no other.
    """

    layout: str = "clip"
    image: ViTConfig | ResNetConfig = field(default_factory=ViTConfig)
    text: TextConfig = field(default_factory=TextConfig)
    embed: int = 0
    head: HeadConfig = field(default_factory=partial(HeadConfig, "towers"))

    def __post_init__(self) -> None:
        if self.layout not in TOWERS:
            raise BedstoneError(
                f"model.layout: {self.layout!r} is unknown{nearest(self.layout, TOWERS)}."
            )
        fill = partial(object.__setattr__, self)
        image, text = TOWERS[self.layout]
        kind = ResNetConfig if self.layout == "clip_resnet" else ViTConfig
        if not isinstance(self.image, kind):
            raise BedstoneError(
                f"model.image: the {self.layout} layout has a {kind.__name__} for pictures, not a "
                f"{type(self.image).__name__}."
            )
        if not self.embed:
            fill("embed", self.image.features)
        if isinstance(self.image, ViTConfig):
            fill("image", _part(self.image, image))
        elif self.image.features != self.embed:
            fill("image", replace(self.image, features=self.embed))
        given = self.text
        if self.layout == "siglip":
            given = replace(given, features=self.embed)
        fill("text", _part(given, text))
        if self.layout == "siglip" and self.embed != self.image.features:
            raise BedstoneError(
                f"model.embed: {self.embed} was given; SigLIP compares vectors as wide as its "
                f"image tower, {self.image.features}. Leave it out."
            )
        if self.head.kind != "towers":
            raise BedstoneError(
                f"model.head.kind: {self.head.kind!r} isn't a CLIP's; for labels, take its image "
                "tower."
            )

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size

    @property
    def context(self) -> int:
        """The longest text, in tokens."""
        return self.text.context


def _part(config: Any, layout: str) -> Any:
    """A tower's configuration, its layout said."""
    if config.layout not in ("", layout):
        raise BedstoneError(
            f"model: a tower has the layout {config.layout!r}, where {layout!r} is needed. Leave "
            "the layouts of towers out."
        )
    return config if config.layout else replace(config, layout=layout)


def clip_config(
    values: Mapping[str, Any], where: str = "recipe", prefix: str = "model."
) -> CLIPConfig:
    """A CLIP's configuration from plain values, `image` and `text` mappings of their own.

    Raises:
        BedstoneError: a key is unknown, or a value doesn't fit.
    """
    chosen = dict(values)
    kind: Any = ResNetConfig if chosen.get("layout") == "clip_resnet" else ViTConfig
    for name, part in (("image", kind), ("text", TextConfig)):
        if isinstance(chosen.get(name, {}), Mapping):
            given = chosen.pop(name, {})
            chosen[name] = from_mapping(part, given, where, f"{prefix}{name}.")
    towers = {name: chosen.pop(name) for name in ("image", "text")}
    plain = from_mapping(_Plain, chosen, where, prefix)
    return CLIPConfig(plain.layout, embed=plain.embed, **towers)


@dataclass
class _Plain:
    layout: str = "clip"
    embed: int = 0


class CLIP(nn.Module):
    """Pictures and texts to vectors (B, E) and (n, E); called, to logits of each pair (B, n)."""

    causal = False  # it writes no text

    def __init__(self, config: CLIPConfig, image: nn.Module, text: nn.Module) -> None:
        """`image` has `features(pixels, kept)` and `text` `features(rows)`; the rest is theirs."""
        super().__init__()
        self.config = config
        self.image = image
        self.text = text
        projected = config.layout == "clip"
        width: Any = config.image.features
        self.image_projection: nn.Module = nn.Identity()
        self.text_projection: nn.Module = nn.Identity()
        if projected:
            self.image_projection = nn.Linear(width, config.embed, bias=False)
        if config.layout != "siglip":
            self.text_projection = nn.Linear(config.text.features, config.embed, bias=False)
        scale, bias = _START[config.layout]
        self.logit_scale = nn.Parameter(torch.tensor(scale))
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(bias))

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by, ()."""
        return self.logit_scale.exp()

    @property
    def bias(self) -> Tensor | None:
        """What is added then, (); None in a CLIP by softmax."""
        return self.logit_bias

    def image_features(self, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
        """(B, E) of pictures (B, C, H, W), not normalised.

        Args:
            kept: (B, K) numbers of the patches that are read; all where None.
        """
        tower: Any = self.image
        return self.image_projection(tower.features(pixels, kept))

    def text_features(self, rows: Any) -> Tensor:
        """Features (n, E) of packed rows (`data.text.packing`), not normalised."""
        tower: Any = self.text
        return self.text_projection(tower.features(rows))

    def forward(self, pixels: Tensor, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits of each picture with each text, (B, n), as published.

        Args:
            pixels: (B, C, H, W).
            ids: (n, T), padded.
            keep: (n, T) bool, True where a token is real; None says all are.
        """
        image = F.normalize(self.image_features(pixels), dim=-1)
        text = F.normalize(self.text_projection(self.text(ids, keep)), dim=-1)
        logits = image @ text.to(image.dtype).T * self.scale
        return logits if self.bias is None else logits + self.bias


def make(config: CLIPConfig) -> CLIP:
    """A CLIP whose weights are still to be filled."""
    made = resnet.make if isinstance(config.image, ResNetConfig) else vit.make
    towers: Any = made
    return CLIP(config, towers(config.image), TextTower(config.text))


def build(config: CLIPConfig, *, seed: int | None = None) -> CLIP:
    """A CLIP with fresh weights, drawn from `seed` if one is given."""
    if seed is not None:
        torch.manual_seed(seed)
    network = make(config)
    if isinstance(config.image, ViTConfig):
        initialise(network.image, config.image.layers)
    else:
        resnet.initialise_resnet(network.image)
    initialise(network.text, config.text.layers)
    for part in (network.image_projection, network.text_projection):
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
    return network


# The image tower of a CLIP under a head for labels.
#
# What the head is handed is what published classifiers on such towers are handed: of CLIP the mean
# of the patches' last states before the norm, of SigLIP the mean of all normed states
# (`CLIPForImageClassification`, `SiglipForImageClassification`); of a ResNet what it gives.
#
# Shapes: B pictures, D width, L labels.


@dataclass(frozen=True)
class ImageClassifierConfig:
    """The shape of an image tower with labels.

    Attributes:
        layout: of the CLIP that it is the tower of: clip, siglip or clip_resnet.
        image: the tower's own.
        head: sequence, or states where it has none yet.
        dropout: before the labels, in training.
    """

    layout: str = "clip"
    image: ViTConfig | ResNetConfig = field(default_factory=ViTConfig)
    head: HeadConfig = field(default_factory=partial(HeadConfig, "states"))
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.layout not in TOWERS:
            raise BedstoneError(
                f"model.layout: {self.layout!r} is unknown{nearest(self.layout, TOWERS)}."
            )
        if self.head.kind not in ("sequence", "states"):
            raise BedstoneError(f"model.head.kind: {self.head.kind!r} isn't one for pictures.")

    @property
    def width(self) -> int:
        """Of what the head is handed, D."""
        return self.image.features

    @property
    def hidden(self) -> int:
        """Width inside the MLPs, where there are any."""
        return getattr(self.image, "hidden", self.width)

    @property
    def layers(self) -> int:
        return self.image.layers

    @property
    def heads(self) -> int:
        return self.image.heads

    @property
    def size(self) -> tuple[int, int]:
        """Of the pictures, (H, W)."""
        return self.image.size


class ImageClassifier(Headed):
    """Pictures (B, C, H, W) to logits of labels (B, L), or to (B, D) where it has no head."""

    def __init__(self, config: ImageClassifierConfig, image: Any) -> None:
        super().__init__()
        self.config, self.image = config, image
        # What such a classifier has on disk and never reads: no gradient would reach it.
        for unread in (image.norm if config.layout == "clip" else None, image_pool(image, config)):
            if unread is not None:
                unread.requires_grad_(False)
        self.head = make_head(config)

    make_head = staticmethod(lambda config: make_head(config))

    def states(self, pixels: Tensor) -> Tensor:
        """The tower's last states, (B, T, D); of a ResNet its last map, (B, D, H, W)."""
        return states_of(self.image)(pixels)

    def features(self, pixels: Tensor) -> Tensor:
        """(B, D): what the head is handed."""
        image = self.image
        if self.config.layout == "clip":
            x = image.before(image.embedded(pixels))
            return image.stack(x, Context(mask=Full()))[:, 1:].mean(1)
        if self.config.layout == "siglip":
            return image.states(pixels).mean(1)
        return image.features(pixels)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.features(pixels))


def states_of(tower: Any) -> Callable[[Tensor], Tensor]:
    """What gives a tower's last states, or of a ResNet its last map."""
    return getattr(tower, "maps", None) or tower.states


def image_pool(image: Any, config: ImageClassifierConfig) -> nn.Module | None:
    """SigLIP's attention over the states, which labels don't use."""
    return image.pool if config.layout == "siglip" else None


def make_head(config: ImageClassifierConfig) -> nn.Module:
    """A linear map to the labels, or none."""
    if config.head.kind == "states":
        return nn.Identity()
    out = nn.Linear(config.width, config.head.outputs)
    return Head(out, reads="first", dropout=config.dropout)


def image_classifier(clip: Any) -> ImageClassifier:
    """A CLIP's own image tower, without a head yet."""
    return ImageClassifier(ImageClassifierConfig(clip.config.layout, clip.image.config), clip.image)


def make_classifier(config: ImageClassifierConfig) -> ImageClassifier:
    """One whose weights are still to be filled."""
    made: Any = resnet.make if isinstance(config.image, ResNetConfig) else vit.make
    return ImageClassifier(config, made(config.image))


def build_classifier(config: ImageClassifierConfig, *, seed: int | None = None) -> ImageClassifier:
    """One with fresh weights, drawn from `seed` if one is given."""
    if seed is not None:
        torch.manual_seed(seed)
    built: Any = resnet.build if isinstance(config.image, ResNetConfig) else vit.build
    return ImageClassifier(config, built(config.image))
