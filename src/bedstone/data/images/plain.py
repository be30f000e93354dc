"""Pictures of which nothing is said: what autoencoders learn from.

Shapes: B pictures, H x W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bedstone.data.dataset import Faults, ImageDataset, ImageRow
from bedstone.data.fields import IMAGE, ColumnReader
from bedstone.data.images.pixels import Augment, ImageCache, ImageStream
from bedstone.data.scenes import datasets as scenes
from bedstone.data.scenes.render import draw
from bedstone.data.scenes.world import make_scene
from bedstone.data.sources import raw_rows
from bedstone.errors import BedstoneError


@dataclass(frozen=True)
class Plain:
    """A picture: encoded bytes, a file, pixels, or what draws them; and where it is from."""

    picture: ImageRow
    place: str = ""


class PlainRows(ImageDataset[Plain]):
    """Pictures, and what was left out."""

    what = "picture"

    def content(self, row: Plain) -> bytes:
        return b""

    def pick(self, chosen: Sequence[int]) -> "PlainRows":
        return PlainRows([self.rows[i] for i in chosen], self.name, self.faults)

    def describe(self) -> str:
        """How many, in a line."""
        told = f"{len(self):,} pictures"
        if self.faults.broken:
            told += f"; {len(self.faults.broken):,} left out: {self.faults.told()}"
        return told


@dataclass(frozen=True)
class PlainReader(ColumnReader):
    """Which column holds the picture; others are passed over."""

    parts: ClassVar[Mapping[str, Sequence[str]]] = {"image": IMAGE}


def open_plain_images(
    name: str,
    reader: PlainReader | None = None,
    *,
    split: str | None = None,
    most_broken: float = 0.05,
) -> PlainRows:
    """All pictures of a source; see `pair_rows` for what it may be.

    Raises:
        BedstoneError: there is no such data, it can't be read, or too much of it is broken.
    """
    reader = reader or PlainReader()
    faults = Faults(name, most_broken)
    found = []
    for raw in raw_rows(name, split, {}):
        faults.rows += 1
        try:
            found.append(Plain(reader.picture(raw), raw.place))
        except BedstoneError as error:
            faults.add(error)
    faults.check()
    return PlainRows(found, name, faults)


def plain_scenes(
    count: int,
    *,
    split: str = "train",
    seed: int = 0,
    size: int = 64,
    objects: tuple[int, int] = (1, 5),
) -> PlainRows:
    """`count` scenes of a split, drawn when they are asked for.

    Raises:
        BedstoneError: a number of things outside 1 to 5, or no such split.
    """
    rows = []
    for number in range(count):
        scene = make_scene(seed * scenes.APART + number, split=split, objects=objects)
        rows.append(Plain(partial(draw, scene, size), f"{split} scene {number}"))
    return PlainRows(rows, scenes.NAME)


@dataclass(frozen=True)
class PixelBatch:
    """What one training step sees of pictures.

    Attributes:
        pixels: (B, 3, H, W) fp32, from -1 to 1.
        number: which batch of the stream this is, from 0.
        places: where each picture is from.
    """

    pixels: Tensor
    number: int
    places: list[str]

    @property
    def ids(self) -> Tensor:
        """(B,): a picture counts as one of what a run reads."""
        return self.pixels[:, 0, 0, 0]

    @property
    def target_count(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device | str) -> "PixelBatch":
        """The same batch with its tensors there."""
        return replace(self, pixels=self.pixels.to(device, non_blocking=True))

    def describe(self) -> str:
        """Which pictures are in it."""
        return f"batch {self.number}: {len(self.pixels)} pictures: {', '.join(self.places)}"


class PixelBatches(ImageStream[PixelBatch]):
    """An endless stream of `PixelBatch`; see `ImageStream`.

    Args:
        normalise: (B, H, W, 3) uint8 to (B, 3, H, W) fp32.
    """

    def __init__(
        self,
        pictures: ImageCache,
        batch_size: int,
        normalise: Callable[[Tensor], Tensor],
        *,
        augment: Augment | None = None,
        seed: int = 0,
        workers: int = 1,
    ) -> None:
        super().__init__(pictures, batch_size, augment=augment, seed=seed, workers=workers)
        self.normalise = normalise

    def identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "rows": len(self.pictures.readable)}

    def make(self, rows: np.ndarray, random: np.random.Generator, number: int) -> PixelBatch:
        found, pixels = self.pictures.read(rows)
        places = [self.pictures.rows[int(i)].place for i in found]
        return PixelBatch(self.normalise(self.augmented(pixels, random)), number, places)
