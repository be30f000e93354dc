"""The pictures of rows as pixels of one size: kept in memory where they fit, else read each time.

Decoding is by `data.images.decode` alone. Pictures that can't be decoded are left out, counted
and named.

Shapes: B pictures, H x W pixels.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.data.dataset import HasImage, ImageDataset
from bedstone.data.images.decode import decode
from bedstone.data.stream import Batch, Stream
from bedstone.errors import BedstoneError

MB = 1 << 20
BATCH = 64  # pictures decoded by one call of a thread


class ImageCache:
    """Pixels by the rows' numbers.

    Args:
        rows: the rows with pictures.
        fit: pixels (h, w, 3) of any size to (H, W, 3) uint8.
        size: (H, W).
        memory_mb: megabytes that pictures may take, all of them; where they take more, they are
            decoded each time they are read.
        workers: threads that decode.
        told: is handed the share done while all are decoded.

    Attributes:
        readable: numbers of the rows that can be learnt; of pictures that aren't kept, all.

    Raises:
        BedstoneError: too large a share can't be decoded.
    """

    def __init__(
        self,
        rows: ImageDataset[Any],
        fit: Callable[[np.ndarray], np.ndarray],
        size: tuple[int, int],
        *,
        memory_mb: float = 1024.0,
        workers: int = 2,
        told: Callable[[float], None] | None = None,
    ) -> None:
        self.rows, self.fit, self.size = rows, fit, size
        self.bad: set[int] = set()
        self.pixels: np.ndarray | None = None  # (rows, H, W, 3)
        self._drawn: np.ndarray | None = None  # (rows,) bool: which are in memory, of drawn ones
        if 3 * size[0] * size[1] * len(rows) <= memory_mb * MB:
            self.pixels = np.zeros((len(rows), *size, 3), dtype=np.uint8)
            if all(callable(row.picture) for row in rows):
                # Nothing can be wrong with what is drawn, so it is when it is first asked for.
                self._drawn = np.zeros(len(rows), dtype=bool)
            else:
                self._decode_all(workers, told)
        self.readable = np.array([i for i in range(len(rows)) if i not in self.bad], dtype=np.int64)
        if not len(self.readable):
            raise BedstoneError(f"data {rows.name!r}: no picture can be read: {rows.faults.told()}")

    @property
    def kept(self) -> bool:
        """Whether the pictures are in memory."""
        return self.pixels is not None

    def read(self, numbers: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pictures of rows, and of which rows they are: those that can be decoded.

        Returns:
            (B,) numbers of rows and (B, H, W, 3) uint8 pixels.
        """
        numbers = np.asarray(numbers, dtype=np.int64)
        if self.pixels is not None:
            self._draw(numbers)
            return numbers, self.pixels[numbers]
        found = [(number, self._try(int(number))) for number in numbers]
        good = [(number, pixels) for number, pixels in found if pixels is not None]
        if not good:
            raise BedstoneError(
                f"data {self.rows.name!r}: no picture of a whole batch can be read: "
                f"{self.rows.faults.told()}"
            )
        return np.array([number for number, _ in good]), np.stack([pixels for _, pixels in good])

    def _decode_all(self, workers: int, told: Callable[[float], None] | None) -> None:
        assert self.pixels is not None
        blocks = range(0, len(self.rows), BATCH)
        with ThreadPoolExecutor(workers) as pool:
            for done in pool.map(partial(self._block, self.pixels), blocks):
                if told is not None:
                    told(done / len(self.rows))
        self.rows.faults.check()

    def _draw(self, numbers: np.ndarray) -> None:
        """Draws what is to be kept and wasn't asked for yet; two threads may draw the same."""
        if self.pixels is None or self._drawn is None:
            return
        for number in numbers[~self._drawn[numbers]]:
            self.pixels[number] = self.fit(decoded(self.rows[int(number)], min(self.size)))
            self._drawn[number] = True

    def _block(self, into: np.ndarray, first: int) -> int:
        last = min(first + BATCH, len(self.rows))
        for number in range(first, last):
            pixels = self._try(number)
            if pixels is not None:
                into[number] = pixels
        return last

    def _try(self, number: int) -> np.ndarray | None:
        """A picture's pixels; None, and counted once, where it can't be decoded."""
        try:
            return self.fit(decoded(self.rows[number], min(self.size)))
        except BedstoneError as error:
            if number not in self.bad:
                self.bad.add(number)
                self.rows.faults.add(error)
                if not self.kept:
                    self.rows.faults.check()
            return None


def decoded(row: HasImage, size: int = 0) -> np.ndarray:
    """A row's picture as pixels, (h, w, 3) uint8; `size` is a hint of the short side needed.

    Raises:
        BedstoneError: it can't be decoded; it is named by its place.
    """
    picture = row.picture
    if callable(picture):
        return picture()
    where = row.place
    if isinstance(picture, Path):
        where = f"{row.place}: {picture}" if row.place != str(picture) else row.place
    return decode(picture, where=where, size=size)


# An endless stream of batches of pictures, decoded and augmented; see `row_stream`.

Augment = Callable[..., Tensor]  # pictures, chance, and what else a stream tells of them


class ImageStream(Stream[Batch]):
    """An endless stream of batches of pictures; see `Stream`.

    Args:
        augment: (pixels, generator) to pixels, both (B, H, W, 3) uint8.
    """

    def __init__(
        self,
        pictures: ImageCache,
        batch_size: int,
        *,
        augment: Augment | None = None,
        seed: int = 0,
        workers: int = 1,
        ahead: int = 4,
    ) -> None:
        super().__init__(pictures.readable, batch_size, seed=seed, workers=workers, ahead=ahead)
        self.pictures, self.augment = pictures, augment

    def augmented(self, pixels: np.ndarray, random: np.random.Generator, *told: object) -> Tensor:
        """Pictures (B, H, W, 3) uint8, changed as is asked for; `told` is what else it reads."""
        shown = torch.from_numpy(pixels)
        if self.augment is None:
            return shown
        chance = torch.Generator().manual_seed(int(random.integers(2**62)))
        return self.augment(shown, chance, *told)
