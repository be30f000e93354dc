"""Pictures with their texts: rows checked, counted, and named where they can't be learnt.

A text is what a row says of its picture, one or several; or it is made from the row's label by
templates ("a photo of a {label}"), which are also what zero-shot accuracy is asked with. A row
that is broken is left out, counted and named; too large a share of broken rows is an error.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bedstone.errors import BedstoneError

TEMPLATES = ("a photo of a {label}",)
TOLD = 5  # broken rows that a message names

Picture = bytes | Path | np.ndarray | Callable[[], np.ndarray]


@dataclass(frozen=True)
class Pair:
    """A picture and what is said of it.

    Attributes:
        picture: encoded bytes, a file, pixels, or what draws them.
        captions: one or more texts, all of them right.
        negatives: texts that are wrong of this picture, and nearly right.
        label: its class, where it has one.
        made: whether the captions are made from the label, so that all pictures of a class have
            the same ones, and finding one picture by them means nothing.
        place: where it is from, for messages.
    """

    picture: Picture
    captions: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    label: str | None = None
    made: bool = False
    place: str = ""


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


class PairRows:
    """Pairs, the classes that their labels are of, and what was left out.

    Attributes:
        pairs: in the source's order.
        name: what they are called in messages.
        classes: names of all classes, in their order; of rows without labels there are none.
        templates: what makes a text of a class's name.
        faults: rows that were left out.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        name: str = "pairs",
        *,
        classes: Sequence[str] = (),
        templates: Sequence[str] = TEMPLATES,
        faults: Faults | None = None,
    ) -> None:
        self.pairs, self.name = list(pairs), name
        self.templates = tuple(templates)
        self.faults = faults or Faults(name, 0.0, len(self.pairs))
        seen = sorted({pair.label for pair in self.pairs if pair.label is not None})
        self.classes = tuple(classes) or tuple(seen)
        if not self.pairs:
            left = f" Left out: {self.faults.told()}" if self.faults.broken else ""
            raise BedstoneError(f"data {name!r}: holds no pair of a picture and a text.{left}")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> Pair:
        return self.pairs[row]

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def texts(self) -> Iterator[str]:
        """Every caption and every negative, in the rows' order."""
        for pair in self.pairs:
            yield from pair.captions
            yield from pair.negatives

    def fingerprint(self) -> str:
        """A hash (hex) of all rows in their order: texts, labels, and pictures or their sizes."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            digest.update(_content(pair))
        return digest.hexdigest()

    def hold_out(self, share: float) -> tuple["PairRows", "PairRows"]:
        """Rows to learn from and rows held out; equal pictures stay on one side.

        Raises:
            BedstoneError: a side would be empty.
        """
        held = [_place(pair) < share for pair in self.pairs]
        sides = [[i for i, out in enumerate(held) if out is side] for side in (False, True)]
        if not all(sides):
            raise BedstoneError(
                f"data {self.name!r}: has too few rows ({len(self):,}) to hold out {share:.0%} of "
                "them. Name more rows, or rows to validate on (data.validation)."
            )
        return self.pick(sides[0]), self.pick(sides[1])

    def take(self, count: int, seed: int = 0) -> "PairRows":
        """At most `count` of the rows, drawn by `seed`, in their order."""
        if not count or count >= len(self):
            return self
        drawn = np.random.default_rng(seed).permutation(len(self))[:count]
        return self.pick(sorted(drawn.tolist()))

    def pick(self, chosen: Sequence[int]) -> "PairRows":
        """Some of the rows; the classes stay."""
        return PairRows(
            [self.pairs[i] for i in chosen],
            self.name,
            classes=self.classes,
            templates=self.templates,
            faults=self.faults,
        )

    def describe(self) -> str:
        """How many of what, in a line."""
        texts = sum(len(pair.captions) for pair in self.pairs)
        told = f"{len(self):,} pictures, {texts:,} texts"
        if self.classes:
            told += f", {len(self.classes):,} classes"
        if self.faults.broken:
            told += f"; {len(self.faults.broken):,} rows left out: {self.faults.told()}"
        return told


def _content(pair: Pair) -> bytes:
    return f"{pair.captions!r} {pair.negatives!r} {pair.label!r} ".encode() + _pixels(pair)


def _pixels(pair: Pair) -> bytes:
    """What tells a picture from another; of a file, its name and size."""
    picture = pair.picture
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).digest()
    if isinstance(picture, Path):
        return f"{picture.name} {picture.stat().st_size}".encode()
    if isinstance(picture, np.ndarray):
        return hashlib.sha256(picture.tobytes()).digest()
    return pair.place.encode()  # what is drawn is drawn by its place alone


def _place(pair: Pair) -> float:
    """A number from 0 to 1 that a picture's content alone decides."""
    return int.from_bytes(hashlib.sha256(_pixels(pair)).digest()[:6], "big") / 2**48
