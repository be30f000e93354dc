"""An endless stream of batches of pictures, decoded and augmented; see `row_stream`."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bedstone.data.pictures import Pictures
from bedstone.data.row_stream import Batch, RowStream

Augment = Callable[..., Tensor]  # pictures, chance, and what else a stream tells of them


class PictureStream(RowStream[Batch]):
    """An endless stream of batches of pictures; see `RowStream`.

    Args:
        augment: (pixels, generator) to pixels, both (B, H, W, 3) uint8.
    """

    def __init__(
        self,
        pictures: Pictures,
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
