"""The image cache: a dataset's images as pixels of one size, in memory where they fit.

Larger sets are decoded each time they are read. Images that can't be decoded are left out, counted
and named.

Shapes: B images, H x W pixels.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bedstone.data.dataset import Dataset
from bedstone.data.fields import Sample
from bedstone.data.images.decode import decode
from bedstone.errors import BedstoneError

MB = 1 << 20
BATCH = 64  # images decoded by one call of a thread


class ImageCache:
    """The images of a dataset as pixels, by the numbers of their rows.

    Args:
        rows: samples with images.
        fit: pixels (h, w, 3) of any size to (H, W, 3) uint8.
        size: (H, W).
        memory_mb: megabytes that all images may take; where they take more, they are decoded each
            time they are read.
        workers: threads that decode.
        progress: is called with the share done while all are decoded.

    Attributes:
        readable: numbers of the rows whose images can be decoded; all, where they aren't kept.

    Raises:
        BedstoneError: too large a share can't be decoded.
    """

    def __init__(
        self,
        rows: Dataset,
        fit: Callable[[np.ndarray], np.ndarray],
        size: tuple[int, int],
        *,
        memory_mb: float = 1024.0,
        workers: int = 2,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self.rows, self.fit, self.size = rows, fit, size
        self.bad: set[int] = set()
        self.pixels: np.ndarray | None = None  # (rows, H, W, 3)
        self._drawn: np.ndarray | None = None  # (rows,) bool: which are in memory, of drawn ones
        if 3 * size[0] * size[1] * len(rows) <= memory_mb * MB:
            self.pixels = np.zeros((len(rows), *size, 3), dtype=np.uint8)
            if all(callable(row.image) for row in rows):
                # Nothing can be wrong with what is drawn, so it is when it is first asked for.
                self._drawn = np.zeros(len(rows), dtype=bool)
            else:
                self._decode_all(workers, progress)
        self.readable = np.array([i for i in range(len(rows)) if i not in self.bad], dtype=np.int64)
        if not len(self.readable):
            raise BedstoneError(
                f"data {rows.name!r}: no picture can be read: {rows.faults.summary()}"
            )

    @property
    def kept(self) -> bool:
        """Whether the images are in memory."""
        return self.pixels is not None

    def read(self, numbers: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The images of rows that can be decoded, and the numbers of those rows.

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
                f"{self.rows.faults.summary()}"
            )
        return np.array([number for number, _ in good]), np.stack([pixels for _, pixels in good])

    def _decode_all(self, workers: int, progress: Callable[[float], None] | None) -> None:
        assert self.pixels is not None
        blocks = range(0, len(self.rows), BATCH)
        with ThreadPoolExecutor(workers) as pool:
            for done in pool.map(partial(self._block, self.pixels), blocks):
                if progress is not None:
                    progress(done / len(self.rows))
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
        """An image's pixels; None, and counted once, where it can't be decoded."""
        try:
            return self.fit(decoded(self.rows[number], min(self.size)))
        except BedstoneError as error:
            if number not in self.bad:
                self.bad.add(number)
                self.rows.faults.add(error)
                if not self.kept:
                    self.rows.faults.check()
            return None


def decoded(row: Sample, size: int = 0) -> np.ndarray:
    """A sample's image as pixels, (h, w, 3) uint8; `size` is a hint of the short side needed.

    Raises:
        BedstoneError: it can't be decoded; it is named by its place.
    """
    image = row.image
    assert image is not None
    if callable(image):
        return image()
    where = row.place
    if isinstance(image, Path):
        where = f"{row.place}: {image}" if row.place != str(image) else row.place
    return decode(image, where=where, size=size)


Augment = Callable[..., Tensor]  # images (B, H, W, 3) uint8, a generator, and facts of their texts


def augmented(
    augment: Augment | None, pixels: np.ndarray, random: np.random.Generator, *facts: np.ndarray
) -> Tensor:
    """Images (B, H, W, 3) uint8 as they are augmented.

    Args:
        augment: None leaves them as they are.
        facts: what the texts of each image state, which augmentation must keep true.
    """
    shown = torch.from_numpy(pixels)
    if augment is None:
        return shown
    chance = torch.Generator().manual_seed(int(random.integers(2**62)))
    return augment(shown, chance, *facts)
