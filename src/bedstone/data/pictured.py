"""Rows that have a picture each: picked, held out by their pictures, and counted where broken."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

import numpy as np

from bedstone.errors import BedstoneError

TOLD = 5  # broken rows that a message names

Picture = bytes | Path | np.ndarray | Callable[[], np.ndarray]


class Pictured(Protocol):
    """A row with a picture: encoded bytes, a file, pixels, or what draws them."""

    @property
    def picture(self) -> Picture: ...

    @property
    def place(self) -> str:
        """Where it is from, for messages."""


Row = TypeVar("Row", bound=Pictured)


@dataclass
class Faults:
    """Rows that were left out, and why."""

    name: str
    most: float
    rows: int = 0
    broken: list[str] = field(default_factory=list)

    def add(self, error: BedstoneError | str) -> None:
        self.broken.append(str(error))

    def check(self) -> None:
        """Raises BedstoneError where more than the share `most` of the rows is broken."""
        if len(self.broken) > self.most * self.rows:
            raise BedstoneError(
                f"data {self.name!r}: {len(self.broken):,} of {self.rows:,} rows are broken, more "
                f"than data.most_broken = {self.most:g} of them: {self.told()} Mend or remove "
                "them, or raise data.most_broken."
            )

    def told(self) -> str:
        """The first broken rows, and how many more there are."""
        more = len(self.broken) - TOLD
        return "; ".join(self.broken[:TOLD]) + (f"; and {more:,} more." if more > 0 else ".")


class PicturedRows(Generic[Row]):
    """Rows in the source's order, and what was left out.

    Attributes:
        rows: what there is to learn.
        name: what they are called in messages.
        faults: rows that were left out.

    Raises:
        BedstoneError: there is no row.
    """

    what = "row with a picture"  # of which there is none, in a message

    def __init__(self, rows: Sequence[Row], name: str, faults: Faults | None = None) -> None:
        self.rows, self.name = list(rows), name
        self.faults = faults or Faults(name, 0.0, len(self.rows))
        if not self.rows:
            left = f" Left out: {self.faults.told()}" if self.faults.broken else ""
            raise BedstoneError(f"data {name!r}: holds no {self.what}.{left}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Row:
        return self.rows[row]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def pick(self, chosen: Sequence[int]) -> Self:
        """Some of the rows, by their numbers."""
        raise NotImplementedError

    def content(self, row: Row) -> bytes:
        """All that a row says, without its picture."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A hash (hex) of all rows in their order: what they say, and pictures or their sizes."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(self.content(row) + _pixels(row))
        return digest.hexdigest()

    def hold_out(self, share: float) -> tuple[Self, Self]:
        """Rows to learn from and rows held out; equal pictures stay on one side.

        Raises:
            BedstoneError: a side would be empty.
        """
        held = [_place(row) < share for row in self.rows]
        sides = [[i for i, out in enumerate(held) if out is side] for side in (False, True)]
        if not all(sides):
            raise BedstoneError(
                f"data {self.name!r}: has too few rows ({len(self):,}) to hold out {share:.0%} of "
                "them. Name more rows, or rows to validate on (data.validation)."
            )
        return self.pick(sides[0]), self.pick(sides[1])

    def take(self, count: int, seed: int = 0) -> Self:
        """At most `count` of the rows, drawn by `seed`, in their order."""
        if not count or count >= len(self):
            return self
        drawn = np.random.default_rng(seed).permutation(len(self))[:count]
        return self.pick(sorted(drawn.tolist()))


def _pixels(row: Pictured) -> bytes:
    """What tells a picture from another; of a file, its name and size."""
    picture = row.picture
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).digest()
    if isinstance(picture, Path):
        return f"{picture.name} {picture.stat().st_size}".encode()
    if isinstance(picture, np.ndarray):
        return hashlib.sha256(picture.tobytes()).digest()
    return row.place.encode()  # what is drawn is drawn by its place alone


def _place(row: Pictured) -> float:
    """A number from 0 to 1 that a picture's content alone decides."""
    return int.from_bytes(hashlib.sha256(_pixels(row)).digest()[:6], "big") / 2**48
