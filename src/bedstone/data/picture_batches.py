"""Batches of labelled pictures: endless, shuffled by a seed, exactly resumable, made ahead."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bedstone.data.picture_examples import PictureBatch, PictureExamples
from bedstone.data.picture_stream import Augment, PictureStream


class PictureBatches(PictureStream[PictureBatch]):
    """An endless stream of `PictureBatch`; see `PictureStream`.

    Args:
        weights: `balanced`, or a weight for each label.
    """

    def __init__(
        self,
        examples: PictureExamples,
        batch_size: int,
        *,
        seed: int = 0,
        weights: str | Mapping[str, float] | None = None,
        augment: Augment | None = None,
        workers: int = 1,
    ) -> None:
        super().__init__(examples.pictures, batch_size, augment=augment, seed=seed, workers=workers)
        self.examples = examples
        self.weights = examples.label_weights(weights)

    def identity(self) -> dict[str, Any]:
        examples = self.examples
        return {"seed": self.seed, "rows": len(examples), "labels": len(examples.labels)}

    def make(self, rows: np.ndarray, random: np.random.Generator, number: int) -> PictureBatch:
        found, pixels = self.pictures.read(rows)
        shown = self.examples.processor.normalise(self.augmented(pixels, random))
        numbers = np.searchsorted(self.examples.readable, found)
        return self.examples.made(numbers, shown, number, self.weights)
