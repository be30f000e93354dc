"""Pictures with their texts: rows checked, counted, and named where they can't be learnt.

A text is what a row says of its picture, one or several; or it is made from the row's label by
templates ("a photo of a {label}"), which are also what zero-shot accuracy is asked with. A row
that is broken is left out, counted and named; too large a share of broken rows is an error.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bedstone.data.pictured import Faults, Picture, PicturedRows

TEMPLATES = ("a photo of a {label}",)


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


class PairRows(PicturedRows[Pair]):
    """Pairs, the classes that their labels are of, and what was left out.

    Attributes, besides those of all rows with pictures:
        classes: names of all classes, in their order; of rows without labels there are none.
        templates: what makes a text of a class's name.
    """

    what = "pair of a picture and a text"

    def __init__(
        self,
        pairs: Sequence[Pair],
        name: str = "pairs",
        *,
        classes: Sequence[str] = (),
        templates: Sequence[str] = TEMPLATES,
        faults: Faults | None = None,
    ) -> None:
        super().__init__(pairs, name, faults)
        self.templates = tuple(templates)
        seen = sorted({pair.label for pair in self.rows if pair.label is not None})
        self.classes = tuple(classes) or tuple(seen)

    @property
    def pairs(self) -> list[Pair]:
        """All of them, in the source's order."""
        return self.rows

    def texts(self) -> Iterator[str]:
        """Every caption and every negative, in the rows' order."""
        for pair in self.rows:
            yield from pair.captions
            yield from pair.negatives

    def content(self, row: Pair) -> bytes:
        return f"{row.captions!r} {row.negatives!r} {row.label!r} ".encode()

    def pick(self, chosen: Sequence[int]) -> "PairRows":
        """Some of the rows; the classes stay."""
        return PairRows(
            [self.rows[i] for i in chosen],
            self.name,
            classes=self.classes,
            templates=self.templates,
            faults=self.faults,
        )

    def describe(self) -> str:
        """How many of what, in a line."""
        texts = sum(len(pair.captions) for pair in self.rows)
        told = f"{len(self):,} pictures, {texts:,} texts"
        if self.classes:
            told += f", {len(self.classes):,} classes"
        if self.faults.broken:
            told += f"; {len(self.faults.broken):,} rows left out: {self.faults.told()}"
        return told
