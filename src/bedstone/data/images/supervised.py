"""Labelled images for image classification: checked, decoded, augmented, in batches.

Shapes: n images of a batch, H x W pixels, D width of a head's input, L labels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.data import labels as labelling
from bedstone.data.dataset import Dataset
from bedstone.data.fields import name_columns
from bedstone.data.images.pixels import Augment, ImageCache, augmented
from bedstone.data.images.processor import ImageProcessor
from bedstone.data.stream import Batch, Stream
from bedstone.errors import BedstoneError, nearest


@dataclass(frozen=True)
class LabelledImageBatch(Batch):
    """A batch of labelled images.

    Attributes:
        shown: pixels (n, 3, H, W) fp32, normalised; or a frozen network's features, (n, D).
        targets: (n,) int64, the label of each.
        weights: (n,) float32, the weight of each; None is 1 each.
        number: which batch of the stream this is, from 0.
        origins: the row of each.
        places: where each is from.
    """

    shown: Tensor
    targets: Tensor
    weights: Tensor | None
    number: int
    origins: list[int]
    places: list[str]

    by_row = ("targets", "shown", "weights", "origins", "places")

    @property
    def items(self) -> int:
        return len(self.targets)

    @property
    def target_count(self) -> int:
        return self.items

    def states(self, network: Any) -> Tensor:
        """The head's input, (n, D)."""
        return self.shown if self.shown.dim() == 2 else network.features(self.shown)


class ImageExamples:
    """Labelled images, decoded.

    Images that can't be decoded, and rows without a known label, are left out, counted and named;
    see `data.dataset.Faults`.

    Args:
        rows: samples with a label each.
        processor: of the network that reads them.
        labels: names of the outputs; None takes those of the rows.
        known: whether `labels` are those of a model, all of which need not occur.
        progress: is called with the share done while images are decoded.

    Attributes:
        rows: those whose images can be decoded.
        actual: the label of each.

    Raises:
        BedstoneError: too many rows are left out, naming the first.
    """

    kind = "sequence"
    problem = "single"

    def __init__(
        self,
        rows: Dataset,
        processor: ImageProcessor,
        *,
        labels: Sequence[str] | None = None,
        known: bool = False,
        memory_mb: float = 1024.0,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self.processor = processor
        self.labels = tuple(labels) if labels else _in_order(rows.classes)
        rows = _labelled(rows, self.labels, 1 if known else 2)
        self.images = ImageCache(
            rows, processor.fit, processor.size, memory_mb=memory_mb, progress=progress
        )
        self.readable = self.images.readable
        self.rows = rows.pick(self.readable.tolist())
        self.actual = [str(row.label) for row in self.rows]
        numbers = {name: number for number, name in enumerate(self.labels)}
        self.targets = np.array([numbers[label] for label in self.actual], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def head(self) -> tuple[str, tuple[str, ...], str]:
        """kind, labels and problem of the head that learns them."""
        return self.kind, self.labels, self.problem

    def describe(self) -> str:
        """How many pictures and labels, and how many were left out, in a line."""
        text = f"{len(self):,} pictures, {len(self.labels):,} labels"
        return text + self.rows.faults.left_out("; ")

    def fingerprint(self) -> str:
        """A hash (hex) of the rows."""
        return self.rows.fingerprint()

    def label_weights(self, weights: str | Mapping[str, float] | None) -> np.ndarray | None:
        """The weight of a target of each label, (L,)."""
        if not weights:
            return None
        counts = np.bincount(self.targets, minlength=len(self.labels))
        return labelling.label_weights(weights, self.labels, counts)

    def batch(
        self,
        numbers: np.ndarray,
        number: int = 0,
        *,
        reads: str = "first",
        weights: np.ndarray | None = None,
    ) -> LabelledImageBatch:
        """The images of those numbers, not augmented.

        Args:
            reads: unused: a head reads one vector for each image.
            weights: (L,) the weight of a target of each label.

        Raises:
            BedstoneError: one can't be read, of a set too large to have been read before.
        """
        rows = self.readable[numbers]
        found, pixels = self.images.read(rows)
        if len(found) < len(rows):
            raise BedstoneError(
                f"data {self.rows.name!r}: {self.rows.faults.summary()} Remove what is broken."
            )
        shown = self.processor.normalise(torch.from_numpy(pixels))
        return self.made(numbers, shown, number, weights)

    def made(
        self, numbers: np.ndarray, shown: Tensor, number: int, weights: np.ndarray | None
    ) -> LabelledImageBatch:
        """A batch of those rows, `shown` being their pixels or features."""
        targets = self.targets[numbers]
        each = None if weights is None else torch.from_numpy(weights[targets])
        places = [self.rows[int(one)].place for one in numbers]
        return LabelledImageBatch(
            shown, torch.from_numpy(targets), each, number, numbers.tolist(), places
        )


class FeatureExamples:
    """Features of images, computed once by a frozen network.

    Args:
        examples: the images.
        features: (n, D) fp32, the head's input for each.
    """

    def __init__(self, examples: ImageExamples, features: Tensor) -> None:
        self.examples, self.features = examples, features
        self.rows, self.actual, self.head = examples.rows, examples.actual, examples.head

    def __len__(self) -> int:
        return len(self.features)

    @property
    def token_count(self) -> int:
        """How many inputs there are; each is one."""
        return len(self.examples.targets)

    def describe(self) -> str:
        return f"{self.examples.describe()}; {self.features.shape[1]:,} numbers of each, made once"

    def fingerprint(self) -> str:
        return self.examples.fingerprint()

    def label_weights(self, weights: str | Mapping[str, float] | None) -> np.ndarray | None:
        return self.examples.label_weights(weights)

    def batch(
        self,
        numbers: np.ndarray,
        number: int = 0,
        *,
        reads: str = "first",
        weights: np.ndarray | None = None,
    ) -> LabelledImageBatch:
        """The features of those images."""
        return self.examples.made(numbers, self.features[numbers], number, weights)


def in_batches(examples: ImageExamples, batch_size: int) -> Iterator[LabelledImageBatch]:
    """All images in their order."""
    for first in range(0, len(examples), batch_size):
        yield examples.batch(np.arange(first, min(first + batch_size, len(examples))))


def _in_order(classes: Sequence[str]) -> tuple[str, ...]:
    """Names of classes: numbers by their size, others in the order of the set."""
    whole = all(name.removeprefix("-").isdecimal() for name in classes)
    return tuple(sorted(classes, key=int)) if whole else tuple(classes)


def _labelled(rows: Dataset, labels: tuple[str, ...], least: int) -> Dataset:
    """The rows that have one of the labels; others count as broken.

    Raises:
        BedstoneError: too many are, or there are fewer than `least` labels.
    """

    def check(number: int) -> None:
        row = rows[number]
        if row.label is None:
            raise BedstoneError(f"{row.place}: has no label. {name_columns('label')}")
        if row.label not in labels:
            raise BedstoneError(
                f"{row.place}: has the label {row.label!r}, which is none of the "
                f"{len(labels)} known{nearest(row.label, labels)}"
            )

    rows = rows.usable(check)
    held = sorted({str(row.label) for row in rows})
    if len(held) < least:
        raise BedstoneError(
            f"data {rows.name!r}: holds {len(held)} label in {len(rows):,} rows "
            f"({', '.join(held)}); expected 2 or more to tell apart. Name data with more rows."
        )
    return rows


@dataclass(frozen=True)
class LabelledImageCollate:
    """Makes a `LabelledImageBatch` of some images.

    Attributes:
        weights: (L,) the weight of a target of each label; None is 1 each.
        augment: how images are changed.
    """

    examples: ImageExamples
    weights: np.ndarray | None = None
    augment: Augment | None = None

    def __call__(
        self, rows: np.ndarray, random: np.random.Generator, number: int
    ) -> LabelledImageBatch:
        examples = self.examples
        found, pixels = examples.images.read(examples.readable[rows])
        shown = examples.processor.normalise(augmented(self.augment, pixels, random))
        numbers = np.searchsorted(examples.readable, found)
        return examples.made(numbers, shown, number, self.weights)


def labelled_image_stream(
    examples: ImageExamples,
    batch_size: int,
    *,
    seed: int = 0,
    weights: str | Mapping[str, float] | None = None,
    augment: Augment | None = None,
    workers: int = 1,
) -> Stream[LabelledImageBatch]:
    """The endless stream of `LabelledImageBatch`.

    Args:
        weights: `balanced`, or a weight for each label.
        augment: how images are changed.
    """
    return Stream(
        len(examples),
        LabelledImageCollate(examples, examples.label_weights(weights), augment),
        batch_size,
        seed=seed,
        workers=workers,
        whole=True,
        identity={"rows": len(examples), "labels": len(examples.labels)},
    )
