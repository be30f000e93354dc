"""Pictures with a label each, as a network learns them: checked, decoded ahead, augmented.

Shapes: n pictures of a batch, H x W pixels, D width of what a head reads, L labels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.data import fields as labelling
from bedstone.data.fields import PairDataset
from bedstone.data.images.pixels import Augment, ImageCache, ImageStream
from bedstone.data.images.processor import ImageProcessor
from bedstone.errors import BedstoneError, nearest


@dataclass(frozen=True)
class LabelledImageBatch:
    """What one training step sees of labelled pictures.

    Attributes:
        shown: pixels (n, 3, H, W) fp32, normalised; or what a frozen network made of them, (n, D).
        targets: (n,) int64, the label of each.
        weights: (n,) float32, what each counts for; None says 1 each.
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

    @property
    def ids(self) -> Tensor:
        """(n,): a picture counts as one of what a run reads."""
        return self.targets

    @property
    def target_count(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> "LabelledImageBatch":
        """The same batch with its tensors there."""
        weights = self.weights
        return replace(
            self,
            shown=self.shown.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            weights=None if weights is None else weights.to(device, non_blocking=True),
        )

    def states(self, network: Any) -> Tensor:
        """What the head reads, (n, D)."""
        return self.shown if self.shown.dim() == 2 else network.features(self.shown)

    def describe(self) -> str:
        """Which pictures are in it."""
        return f"batch {self.number}: {len(self.targets)} pictures: {', '.join(self.places)}"


class ImageExamples:
    """Pictures with the label of each.

    Pictures that can't be read, and rows without a label that is known, are left out, counted and
    named; see `data.fields.Faults`.

    Args:
        rows: with a label each.
        processor: of the network that reads them.
        labels: names of the outputs; None takes those of the rows.
        known: whether `labels` are those of a model, so that none is missed.
        told: is handed the share done while pictures are decoded.

    Attributes:
        rows: those whose pictures can be read.
        actual: the label of each.

    Raises:
        BedstoneError: too many rows are left out, naming the first.
    """

    kind = "sequence"
    problem = "single"

    def __init__(
        self,
        rows: PairDataset,
        processor: ImageProcessor,
        *,
        labels: Sequence[str] | None = None,
        known: bool = False,
        memory_mb: float = 1024.0,
        told: Callable[[float], None] | None = None,
    ) -> None:
        self.processor = processor
        self.labels = tuple(labels) if labels else _in_order(rows.classes)
        rows = _labelled(rows, self.labels, 1 if known else 2)
        self.pictures = ImageCache(
            rows, processor.fit, processor.size, memory_mb=memory_mb, told=told
        )
        self.readable = self.pictures.readable
        self.rows = rows.pick(self.readable.tolist())
        self.actual = [str(pair.label) for pair in self.rows]
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
        told = f"{len(self):,} pictures, {len(self.labels):,} labels"
        faults = self.rows.faults
        if faults.broken:
            told += f"; {len(faults.broken):,} rows left out: {faults.told()}"
        return told

    def fingerprint(self) -> str:
        """A hash (hex) of the rows."""
        return self.rows.fingerprint()

    def label_weights(self, weights: str | Mapping[str, float] | None) -> np.ndarray | None:
        """What a target of each label counts for, (L,)."""
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
        """The pictures of those numbers, as they are.

        Args:
            reads: of no meaning here: a head is handed one vector a picture.
            weights: (L,) what a target of each label counts for.

        Raises:
            BedstoneError: one can't be read, of a set too large to have been read before.
        """
        rows = self.readable[numbers]
        found, pixels = self.pictures.read(rows)
        if len(found) < len(rows):
            raise BedstoneError(
                f"data {self.rows.name!r}: {self.rows.faults.told()} Remove what is broken."
            )
        shown = self.processor.normalise(torch.from_numpy(pixels))
        return self.made(numbers, shown, number, weights)

    def made(
        self, numbers: np.ndarray, shown: Tensor, number: int, weights: np.ndarray | None
    ) -> LabelledImageBatch:
        """A batch of what is shown of those rows."""
        targets = self.targets[numbers]
        each = None if weights is None else torch.from_numpy(weights[targets])
        places = [self.rows[int(one)].place for one in numbers]
        return LabelledImageBatch(
            shown, torch.from_numpy(targets), each, number, numbers.tolist(), places
        )


class FeatureExamples:
    """Pictures as a frozen network sees them: what its head reads, made once.

    Args:
        examples: the pictures.
        features: (n, D) fp32, of each what the head reads.
    """

    def __init__(self, examples: ImageExamples, features: Tensor) -> None:
        self.examples, self.features = examples, features
        self.rows, self.actual, self.head = examples.rows, examples.actual, examples.head
        self.ids = examples.targets

    def __len__(self) -> int:
        return len(self.features)

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
        """The vectors of those pictures."""
        return self.examples.made(numbers, self.features[numbers], number, weights)


def in_batches(examples: ImageExamples, batch_size: int) -> Iterator[LabelledImageBatch]:
    """All pictures in their order."""
    for first in range(0, len(examples), batch_size):
        yield examples.batch(np.arange(first, min(first + batch_size, len(examples))))


def _in_order(classes: Sequence[str]) -> tuple[str, ...]:
    """Names of classes: numbers by their size, others in the order of the set."""
    whole = all(name.removeprefix("-").isdecimal() for name in classes)
    return tuple(sorted(classes, key=int)) if whole else tuple(classes)


def _labelled(rows: PairDataset, labels: tuple[str, ...], least: int) -> PairDataset:
    """The rows that have one of the labels; others count as broken.

    Raises:
        BedstoneError: too many are, or there are fewer than `least` labels.
    """
    good = []
    for number, pair in enumerate(rows):
        if pair.label is None:
            rows.faults.add(
                f"{pair.place}: has no label (columns of labels are named by data.columns: "
                "{label: ...})"
            )
        elif pair.label not in labels:
            close = nearest(pair.label, labels)
            rows.faults.add(
                f"{pair.place}: has the label {pair.label!r}, which is none of the "
                f"{len(labels)} known{close}"
            )
        else:
            good.append(number)
    if len(good) < len(rows):
        rows.faults.check()
        rows = rows.pick(good)
    held = sorted({str(pair.label) for pair in rows})
    if len(held) < least:
        raise BedstoneError(
            f"data {rows.name!r}: holds {len(held)} label in {len(rows):,} rows "
            f"({', '.join(held)}); expected 2 or more to tell apart. Name data with more rows."
        )
    return rows


# Batches of labelled pictures: endless, shuffled by a seed, exactly resumable, made ahead.


class LabelledImageBatches(ImageStream[LabelledImageBatch]):
    """An endless stream of `LabelledImageBatch`; see `ImageStream`.

    Args:
        weights: `balanced`, or a weight for each label.
    """

    def __init__(
        self,
        examples: ImageExamples,
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

    def make(
        self, rows: np.ndarray, random: np.random.Generator, number: int
    ) -> LabelledImageBatch:
        found, pixels = self.pictures.read(rows)
        shown = self.examples.processor.normalise(self.augmented(pixels, random))
        numbers = np.searchsorted(self.examples.readable, found)
        return self.examples.made(numbers, shown, number, self.weights)
