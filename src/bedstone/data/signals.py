"""Signals to learn from: pictures, sounds, videos or volumes, with a class or words each.

All are arrays of one shape in memory: a channel first, then one to three sides. What is built in is
drawn when it is first asked for.

Shapes: N signals, B of a batch, C channels, S sides.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.data.pictured import Faults
from bedstone.errors import BedstoneError

MB = 1 << 20


class Signals:
    """Rows of signals.

    Args:
        values: (N, C, *S) uint8, of which 0 to 255 are -1 to 1, or float32 as they are; or what
            draws one of them by its number, with `shape`.
        kind: image, audio, video or volume.
        name: what they are called in messages.
        classes: the class of each, by its number in `names`.
        names: of the classes.
        captions: one or more true texts of each.
        places: where each is from, for messages.
        shape: (N, C, *S) of what is drawn.
        faults: rows that were left out.

    Raises:
        BedstoneError: there is none; or a class is out of range, a text missing, a value not
            finite, naming its row.
    """

    def __init__(
        self,
        values: np.ndarray | Callable[[int], np.ndarray],
        *,
        kind: str,
        name: str,
        classes: Sequence[int] | np.ndarray | None = None,
        names: Sequence[str] = (),
        captions: Sequence[Sequence[str]] | None = None,
        places: Sequence[str] | None = None,
        shape: tuple[int, ...] = (),
        faults: Faults | None = None,
    ) -> None:
        self._draw = values if callable(values) else None
        # Memory that nothing was written to yet takes none.
        self.values = np.empty(shape, np.uint8) if callable(values) else values
        self._drawn = np.zeros(len(self.values), bool)
        self.kind, self.name, self.names = kind, name, tuple(names)
        self.classes = None if classes is None else np.asarray(classes, np.int64)
        self.captions = None if captions is None else [tuple(texts) for texts in captions]
        count = len(self.values)
        self.places = list(places) if places else [f"{name} {row}" for row in range(count)]
        self.faults = faults or Faults(name, 0.0, count)
        self._check()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *S) of a signal."""
        return self.values.shape[1:]

    def read(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """Signals by their rows' numbers, (B, C, *S) float32, of about -1 to 1."""
        rows = np.asarray(rows, np.int64)
        if self._draw is not None:
            for row in rows[~self._drawn[rows]]:  # two threads may draw the same
                self.values[row] = self._draw(int(row))
                self._drawn[row] = True
        found = torch.from_numpy(self.values[rows])
        return found.float().div_(127.5).sub_(1) if found.dtype == torch.uint8 else found

    def texts(self) -> Iterator[str]:
        """Every distinct caption, in the rows' order."""
        yield from dict.fromkeys(text for texts in self.captions or () for text in texts)

    def pick(self, chosen: Sequence[int] | np.ndarray) -> "Signals":
        """Some of the rows, by their numbers; the names of classes stay."""
        rows = np.asarray(chosen, np.int64)
        draw = self._draw
        return Signals(
            self.values[rows] if draw is None else lambda row: draw(int(rows[row])),
            kind=self.kind,
            name=self.name,
            classes=None if self.classes is None else self.classes[rows],
            names=self.names,
            captions=None if self.captions is None else [self.captions[row] for row in rows],
            places=[self.places[row] for row in rows],
            shape=(len(rows), *self.shape),
            faults=self.faults,
        )

    def take(self, count: int, seed: int = 0) -> "Signals":
        """At most `count` of the rows, drawn by `seed`, in their order; 0 takes all."""
        if not count or count >= len(self):
            return self
        return self.pick(np.sort(np.random.default_rng(seed).permutation(len(self))[:count]))

    def hold_out(self, share: float) -> tuple["Signals", "Signals"]:
        """Rows to learn from and rows held out; equal signals stay on one side.

        Raises:
            BedstoneError: a side would be empty.
        """
        held = np.array([int.from_bytes(self._hash(row)[:6], "big") for row in range(len(self))])
        out = held < share * 2**48
        if out.all() or not out.any():
            raise BedstoneError(
                f"data {self.name!r}: has too few rows ({len(self):,}) to hold out {share:.0%} of "
                "them. Name more rows, or rows to validate on (data.validation)."
            )
        return self.pick(np.flatnonzero(~out)), self.pick(np.flatnonzero(out))

    def fingerprint(self) -> str:
        """A hash (hex) of all rows in their order, and what is said of each."""
        digest = hashlib.sha256(f"{self.kind} {self.shape} {self.names}".encode())
        for row in range(len(self)):
            told = None if self.classes is None else int(self.classes[row])
            texts = None if self.captions is None else self.captions[row]
            digest.update(self._hash(row) + f"{told} {texts!r}".encode())
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """What an artefact says of them."""
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "classes": list(self.names),
            "fingerprint": self.fingerprint(),
            "rows": len(self),
            "left_out": len(self.faults.broken),
        }

    def describe(self) -> str:
        """How many of what, in a line."""
        told = f"{len(self):,} signals ({self.kind}) of {' x '.join(map(str, self.shape))}"
        if self.classes is not None:
            told += f", {len(self.names):,} classes"
        if self.captions is not None:
            told += f", {sum(map(len, self.captions)):,} texts"
        if self.faults.broken:
            told += f"; {len(self.faults.broken):,} rows left out: {self.faults.told()}"
        return told

    def _hash(self, row: int) -> bytes:
        """What tells a signal from another; of a drawn one, what it is drawn by."""
        content = self.values[row].tobytes() if self._draw is None else self.places[row].encode()
        return hashlib.sha256(content).digest()

    def _check(self) -> None:
        count = len(self)
        if not count:
            left = f" Left out: {self.faults.told()}" if self.faults.broken else ""
            raise BedstoneError(f"data {self.name!r}: holds no signal to learn from.{left}")
        for what, given in (("classes", self.classes), ("texts", self.captions)):
            if given is not None and len(given) != count:
                raise BedstoneError(
                    f"data {self.name!r}: {count:,} signals have {len(given):,} {what}; expected "
                    "one for each."
                )
        if self.classes is not None:
            wrong = np.flatnonzero((self.classes < 0) | (self.classes >= len(self.names)))
            for row in wrong[:1]:
                raise BedstoneError(
                    f"{self.places[row]}: is of class {self.classes[row]}; expected 0 to "
                    f"{len(self.names) - 1}. Mend or remove that row."
                )
        for row, texts in enumerate(self.captions or ()):
            if not texts:
                raise BedstoneError(f"{self.places[row]}: has no text. Mend or remove that row.")
        if self.values.dtype not in (np.uint8, np.float32):
            raise BedstoneError(
                f"data {self.name!r}: holds {self.values.dtype} values; expected uint8 or float32."
            )
        if self.values.dtype == np.float32:
            for row, value in enumerate(self.values):
                if not np.isfinite(value).all():
                    raise BedstoneError(
                        f"{self.places[row]}: holds values that aren't finite. Mend or remove it."
                    )


def check_memory(shape: tuple[int, ...], item: int, memory_mb: float, name: str) -> None:
    """Raises BedstoneError where signals (N, C, *S), of `item` bytes a value, need more memory."""
    needed = float(np.prod([float(side) for side in shape])) * item / MB
    if needed > memory_mb:
        raise BedstoneError(
            f"data {name!r}: {shape[0]:,} signals of {' x '.join(map(str, shape[1:]))} take "
            f"{needed:,.0f} MB, more than data.memory_mb = {memory_mb:,.0f}. Take fewer "
            "(data.most_rows) or smaller ones (data.size), or raise it."
        )
