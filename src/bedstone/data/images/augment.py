"""Augmentation of images, a batch at a time: crop, flip, rotation, scale, colour, erasing.

All that moves pixels is one affine map an image: a crop and a resizing without rotation, else one
bilinear `grid_sample`. All that changes colours is one 3 x 3 matrix and an offset an image.
Random resized crops as in Szegedy et al. (2015), random erasing as in Zhong et al. (2017).

Every image takes one row of random numbers, of the same length whatever is switched on, so the
same seed gives the same crops with and without colour.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.settings import Settings, from_mapping, number, share, whole

_LUMA = (0.299, 0.587, 0.114)
_DRAWS = 18  # random numbers a picture


@dataclass(frozen=True)
class ImageAugment(Settings):
    """How images are changed at random; by default not at all.

    Attributes:
        crop: share of the image's area that is kept and resized, from and to.
        ratio: width over height of a crop, from and to.
        flip: probability of left and right changing places.
        rotation: degrees at most, to either side; the corners mirror the image.
        scale: enlargement about the middle, from and to; below 1 it shrinks.
        colour: probability that the four below are applied.
        brightness: at most so much lighter or darker, as a share.
        contrast: at most so much more or less, as a share.
        saturation: at most so much more or less, as a share; 1 reaches grey.
        hue: turns of the colour circle at most, to either side; 0.5 reaches all hues.
        erase: probability that a rectangle is painted over with one random colour.
        erase_area: share of the image's area that is painted over, from and to.
        size: pixels of the result's sides; 0 keeps those of the input.
    """

    crop: tuple[float, ...] = (1.0, 1.0)
    ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    flip: float = share(default=0.0)
    rotation: float = number(0, 180, default=0.0)
    scale: tuple[float, ...] = (1.0, 1.0)
    colour: float = share(default=1.0)
    brightness: float = share(default=0.0)
    contrast: float = share(default=0.0)
    saturation: float = share(default=0.0)
    hue: float = number(0, 0.5, default=0.0)
    erase: float = share(default=0.0)
    erase_area: tuple[float, ...] = (0.02, 0.2)
    size: int = whole(0, 16384, default=0)

    section: ClassVar[str] = "augment."

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least, most in (
            ("crop", 0.01, 1),
            ("erase_area", 0.001, 1),
            ("ratio", 0.1, 10),
            ("scale", 0.1, 10),
        ):
            pair = getattr(self, name)
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise BedstoneError(f"augment.{name}: {pair!r}; expected two numbers, from and to.")
            for value in pair:
                _check(name, value, least, most)
            if pair[0] > pair[1]:
                raise BedstoneError(
                    f"augment.{name}: {list(pair)} runs from the larger to the smaller; write "
                    f"{list(pair)[::-1]}."
                )

    @property
    def turns(self) -> bool:
        """Whether pixels move other than by a crop and a flip."""
        return tuple(self.scale) != (1.0, 1.0) or self.rotation > 0

    @property
    def recolours(self) -> bool:
        amounts = (self.brightness, self.contrast, self.saturation, self.hue)
        return self.colour > 0 and any(amounts)

    def __call__(self, pixels: torch.Tensor, generator: torch.Generator | int = 0) -> torch.Tensor:
        """Images (B, H, W, 3) uint8 to (B, h, w, 3) uint8, h and w being `size` or H and W.

        Args:
            pixels: on any device; feed pictures at most about twice as large as what comes out.
            generator: the randomness, of the CPU; or a seed.

        Raises:
            BedstoneError: the pictures have another shape or type.
        """
        if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != torch.uint8:
            raise BedstoneError(
                f"augment: pictures of shape {tuple(pixels.shape)} and type {pixels.dtype}; "
                "expected (B, H, W, 3) of uint8."
            )
        if isinstance(generator, int):
            generator = torch.Generator().manual_seed(generator)
        draws = torch.rand(len(pixels), _DRAWS, generator=generator).to(pixels.device)
        move, paint, cover = draws[:, :7], draws[:, 7:12], draws[:, 12:]
        shape = tuple(pixels.shape[1:3])
        out = (self.size, self.size) if self.size else shape
        planes = None
        cuts = tuple(self.crop) != (1.0, 1.0) or out != shape
        if self.turns or (cuts and pixels.device.type != "cpu"):  # others resize no 8-bit values
            planes = self._moved(pixels, move, out)
        elif cuts:
            pixels = self._cut(pixels, move, out)
        elif self.flip:
            flipped = (move[:, 0] < self.flip)[:, None, None, None]
            pixels = torch.where(flipped, pixels.flip(2), pixels)
        else:
            pixels = pixels.clone()  # an erasing must not reach the caller's
        if self.recolours:
            planes = self._recoloured(_planes(pixels) if planes is None else planes, paint)
        if planes is not None:
            planes = planes.add_(0.5).clamp_(0, 255).to(torch.uint8)
            pixels = planes.permute(0, 2, 3, 1).contiguous()
        return _erased(self, pixels, cover)

    def _cut(self, pixels: torch.Tensor, draws: torch.Tensor, out: tuple[int, ...]) -> torch.Tensor:
        """Crops and flips alone, in whole pixels: 8-bit resizing, which doesn't alias."""
        height, width = pixels.shape[1:3]
        made = pixels.new_empty(len(pixels), *out, 3)
        maps = self.maps(draws, width / height).tolist()
        for old, new, ((across, _, x), (_, down, y)) in zip(pixels, made, maps, strict=True):
            left, right = _span(x, abs(across), width)
            top, bottom = _span(y, down, height)
            part = old[top:bottom, left:right].permute(2, 0, 1)[None]
            part = F.interpolate(part, out, mode="bilinear", antialias=True)[0]
            new.copy_((part.flip(2) if across < 0 else part).permute(1, 2, 0))
        return made

    def _moved(
        self, pixels: torch.Tensor, draws: torch.Tensor, out: tuple[int, ...]
    ) -> torch.Tensor:
        """(B, 3, h, w) fp32 by one affine map an image."""
        maps = self.maps(draws, pixels.shape[2] / pixels.shape[1])[..., None, None]
        y, x = (  # the middles of the new pixels, from -1 to 1
            (2 * torch.arange(side, device=pixels.device) + 1) / side - 1 for side in out
        )
        rows = [row[:, 0] * x + (row[:, 1] * y[:, None] + row[:, 2]) for row in maps.unbind(1)]
        planes = _planes(pixels)
        # Four neighbours are read: where even the least crop has pixels to spare, that would alias.
        spare = int(min(pixels.shape[1] / out[0], pixels.shape[2] / out[1]) * self.crop[0] ** 0.5)
        planes = F.avg_pool2d(planes, spare) if spare > 1 else planes
        grid = torch.stack(rows, dim=-1)  # (B, h, w, 2)
        return F.grid_sample(planes, grid, padding_mode="reflection", align_corners=False)

    def maps(self, draws: torch.Tensor, aspect: float) -> torch.Tensor:
        """(B, 2, 3): where each place of the new picture lies in the old, both from -1 to 1.

        Args:
            draws: (B, 7) from 0 to 1.
            aspect: the old picture's width over its height.
        """
        flip, area, shape, x, y, angle, zoom = draws.unbind(1)
        area = self.crop[0] + area * (self.crop[1] - self.crop[0])
        width = height = area.sqrt()
        if tuple(self.crop) != (1.0, 1.0):
            # In shares of the sides, so that width * height is the area; and neither above 1.
            low, high = (math.log(side / aspect) for side in self.ratio)
            shape = low + shape * (high - low)
            shape = torch.maximum(torch.minimum(shape, -area.log()), area.log())
            width, height = width * (shape / 2).exp(), height * (shape / 2).neg().exp()
        x, y = (2 * x - 1) * (1 - width), (2 * y - 1) * (1 - height)
        angle = (2 * angle - 1) * math.radians(self.rotation)
        zoom = self.scale[0] * (self.scale[1] / self.scale[0]) ** zoom
        side = torch.where(flip < self.flip, -1.0, 1.0)
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        # Turned in pixels, hence the aspect, about the middle of what is kept.
        rows = [
            torch.stack([cos * width * side, -sin * height / aspect, x], dim=1),
            torch.stack([sin * width * side * aspect, cos * height, y], dim=1),
        ]
        return torch.stack(rows, dim=1)

    def _recoloured(self, planes: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """(B, 3, h, w) by one matrix an image: lighter, more contrast, more colour, other hue."""
        used = (draws[:, 4] < self.colour).float()[:, None]
        most = draws.new_tensor([self.brightness, self.contrast, self.saturation, self.hue])
        light, contrast, saturation, turn = ((2 * draws[:, :4] - 1) * most * used).unbind(1)
        light, contrast, saturation = 1 + light, 1 + contrast, 1 + saturation
        luma = planes.new_tensor(_LUMA)
        grey = light * (planes.mean(dim=(2, 3)) @ luma)  # (B,)
        one = torch.eye(3, device=planes.device)
        faded = saturation[:, None, None] * one + (1 - saturation)[:, None, None] * luma
        matrix = hue_matrix(turn) @ faded * (light * contrast)[:, None, None]
        # Both keep greys, so that contrast's offset is the same in all channels.
        offset = ((1 - contrast) * grey)[:, None, None].expand(-1, 3, 1)
        return torch.baddbmm(offset, matrix, planes.flatten(2)).view_as(planes)


def hue_matrix(turns: torch.Tensor) -> torch.Tensor:
    """(B, 3, 3): rotations about the grey axis; a third of a turn takes red to green."""
    angle = 2 * math.pi * turns
    cos, sin = angle.cos(), angle.sin() / math.sqrt(3)
    third = (1 - cos) / 3
    a, b, c = cos + third, third - sin, third + sin
    rows = [torch.stack(row, dim=1) for row in ((a, b, c), (c, a, b), (b, c, a))]
    return torch.stack(rows, dim=1)


def _planes(pixels: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) fp32."""
    whole = torch.contiguous_format
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=whole)


def _span(middle: float, share: float, side: int) -> tuple[int, int]:
    """First and last-but-one pixel of a cut about a middle from -1 to 1."""
    kept = max(round(share * side), 1)
    start = round((middle + 1) / 2 * side - kept / 2)
    start = min(max(start, 0), side - kept)
    return start, start + kept


def _erased(augment: ImageAugment, pixels: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Paints a rectangle of one random colour over the images drawn for it, in place."""
    if not augment.erase:
        return pixels
    height, width = pixels.shape[1:3]
    low, high = augment.erase_area
    for image, row in zip(pixels, draws.tolist(), strict=True):
        if row[0] >= augment.erase:
            continue
        area = low + row[1] * (high - low)
        shape = math.log(0.3) * (1 - 2 * row[2])  # from 0.3 to 1 / 0.3, in shares of the sides
        shape = math.exp(max(min(shape, -math.log(area)), math.log(area)) / 2)
        wide = max(round(width * math.sqrt(area) * shape), 1)
        tall = max(round(height * math.sqrt(area) / shape), 1)
        left, top = round(row[3] * (width - wide)), round(row[4] * (height - tall))
        digits = int(row[5] * 2**24)  # as fine as the draw is: three bytes of colour
        colour = [digits >> 16, digits >> 8 & 255, digits & 255]
        image[top : top + tall, left : left + wide] = image.new_tensor(colour)
    return pixels


def _check(name: str, value: object, least: float, most: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and least <= value <= most):  # type: ignore[operator]
        raise BedstoneError(
            f"augment.{name}: {value!r} was given; expected a number from {least:g} to {most:g}."
        )


# Augmentation that keeps the texts of an image true.
#
# An image whose texts state left or right is not flipped; one with a colour keeps its colours; one
# with a place, a number or a size is not cropped, rotated, enlarged or covered. The texts are those
# of the batch: the captions, questions and answers drawn for the image.

SIDES, PLACES, COLOURS, COUNTS, SIZES = 1, 2, 4, 8, 16

# Words that state a fact of each kind, rather one too many than one too few. Written signs mirror
# too, so they count as sides; what is said to be there could be cut off, so it counts as a number.
WORDS = {
    SIDES: "left right leftmost rightmost lefthand righthand east west eastern western "
    "clockwise anticlockwise counterclockwise mirrored mirror sign signs says say said saying "
    "written writing write writes read reads reading word words letter letters text logo label "
    "spell spells spelled spelt",
    PLACES: "left right leftmost rightmost lefthand righthand top bottom topmost bottommost upper "
    "lower above below middle centre center central corner corners edge edges side sides where "
    "upright upside tilted rotated horizontal vertical diagonal horizontally vertically diagonally "
    "north south east west clockwise anticlockwise counterclockwise background foreground",
    COLOURS: "colour color colours colors coloured colored colourful colorful multicolour "
    "multicolor multicoloured red orange yellow green cyan blue purple pink brown grey "
    "gray black white teal turquoise magenta violet indigo maroon crimson scarlet navy olive lime "
    "gold golden silver bronze copper beige cream tan khaki mustard lavender lilac mauve peach "
    "salmon coral burgundy rust charcoal fuchsia aqua azure ivory mint rose nude metallic dark "
    "darker light lighter bright brighter pale dim blonde blond brunette ginger night",
    COUNTS: "no not none zero one two three four five six seven eight nine ten eleven twelve dozen "
    "several both many few number count amount total pair pairs couple triple single only more "
    "most fewer fewest less least all every each there any anything contain contains present exist "
    "exists absent without first second third last how",
    SIZES: "small medium large big little tiny huge giant smaller larger bigger smallest largest "
    "biggest size sizes sized",
}
_TABLE: dict[str, int] = {}
for _fact, _words in WORDS.items():
    for _word in _words.split():
        _TABLE[_word] = _TABLE.get(_word, 0) | _fact
_FINDS = re.compile(r"[^\W\d_]+|\d+")


def facts_of(text: str) -> int:
    """The kinds of facts in a text, added up: SIDES, PLACES, ..."""
    facts = 0
    for word in _FINDS.findall(text.lower()):
        facts |= COUNTS if word.isdigit() else _TABLE.get(word, 0)
    return facts


def facts_in(texts: Collection[str]) -> np.ndarray:
    """(n,) int64: the facts of each text, as `facts_of` gives them."""
    return np.fromiter(map(facts_of, texts), np.int64, len(texts))


@dataclass(frozen=True)
class FactAugment:
    """An `ImageAugment` that keeps the texts of each image true.

    Attributes:
        augment: for images whose texts state no fact.
    """

    augment: ImageAugment

    def __call__(
        self, pixels: Tensor, generator: torch.Generator, facts: np.ndarray | Iterable[int]
    ) -> Tensor:
        """Images (P, H, W, 3) uint8 to (P, h, w, 3) uint8.

        Args:
            facts: (P,) the facts that the texts of each image state, as `facts_of` gives them.
        """
        kept = np.fromiter(facts, np.int64, len(pixels))
        side = self.augment.size
        made = pixels.new_empty(len(pixels), side or pixels.shape[1], side or pixels.shape[2], 3)
        for sort in np.unique(kept):
            chosen = torch.from_numpy(np.flatnonzero(kept == sort))
            made[chosen] = self.allowed(int(sort))(pixels[chosen], generator)
        return made

    def allowed(self, facts: int) -> ImageAugment:
        """The augmentation of an image whose texts state such facts."""
        changed: dict[str, Any] = {}
        if facts & SIDES:
            changed["flip"] = 0.0
        if facts & COLOURS:
            changed |= {"colour": 0.0}
        if facts & (PLACES | COUNTS | SIZES):
            changed |= {"crop": (1.0, 1.0), "scale": (1.0, 1.0), "rotation": 0.0, "erase": 0.0}
        return replace(self.augment, **changed)


def fact_augment(values: Mapping[str, Any], size: int = 0) -> FactAugment | None:
    """The augmentation that a recipe sets; None where it sets none.

    Args:
        values: the fields of `ImageAugment`.
        size: pixels of the sides of what comes out; 0 keeps those of what comes in.
    """
    if not values and not size:
        return None
    return FactAugment(from_mapping(ImageAugment, {**values, "size": size}, "recipe", "augment."))
