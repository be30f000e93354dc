"""Pictures with what is told of them: captions, and questions with their answers.

A row that is broken is left out, counted and named; too large a share of broken rows is an error.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bedstone.data.pictured import Faults, Picture, PicturedRows
from bedstone.data.scene_world import Scene


@dataclass(frozen=True)
class Asked:
    """A question about a picture.

    Attributes:
        answers: one or more, each of them right.
        kind: what kind of question it is, by which accuracy is told.
    """

    question: str
    answers: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class Told:
    """A picture, what is said of it and what is asked; one of the two may be empty.

    Attributes:
        picture: encoded bytes, a file, pixels, or what draws them.
        captions: texts, all of them right.
        place: where it is from, for messages.
        scene: what a drawn picture shows.
    """

    picture: Picture
    captions: tuple[str, ...] = ()
    asked: tuple[Asked, ...] = ()
    place: str = ""
    scene: Scene | None = None


class ToldRows(PicturedRows[Told]):
    """Rows of pictures with captions, questions or both; see `PicturedRows`."""

    what = "picture with a caption or a question"

    def __init__(
        self, rows: Sequence[Told], name: str = "told", *, faults: Faults | None = None
    ) -> None:
        super().__init__(rows, name, faults)

    @property
    def answers(self) -> Counter[str]:
        """How often each answer is right."""
        return Counter(answer for row in self.rows for one in row.asked for answer in one.answers)

    def texts(self) -> Iterator[str]:
        """Every caption, question and answer, in the rows' order."""
        for row in self.rows:
            yield from row.captions
            for asked in row.asked:
                yield asked.question
                yield from asked.answers

    def content(self, row: Told) -> bytes:
        asked = [(one.question, one.answers, one.kind) for one in row.asked]
        return f"{row.captions!r} {asked!r} ".encode()

    def pick(self, chosen: Sequence[int]) -> "ToldRows":
        """Some of the rows, by their numbers."""
        return ToldRows([self.rows[i] for i in chosen], self.name, faults=self.faults)

    def describe(self) -> str:
        """How many of what, in a line."""
        captions = sum(len(row.captions) for row in self.rows)
        questions = sum(len(row.asked) for row in self.rows)
        told = f"{len(self):,} pictures"
        told += f", {captions:,} captions" if captions else ""
        if questions:
            told += f", {questions:,} questions, {len(self.answers):,} different answers"
        if self.faults.broken:
            told += f"; {len(self.faults.broken):,} rows left out: {self.faults.told()}"
        return told
