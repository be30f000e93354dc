"""What a row's columns mean: rows as files have them to pictures with captions and questions.

A row may have one caption or several; a question with one right answer or several; lists of
questions with as many answers; or a conversation (`messages`) with its picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedstone.data import scenes, told_scenes
from bedstone.data.pair_rows import Raw, raw_rows
from bedstone.data.picture_columns import (
    IMAGE,
    TEXT,
    ColumnReader,
    columns_of,
    read_picture,
    texts_in,
)
from bedstone.data.pictured import Faults, Picture
from bedstone.data.reading import check_text
from bedstone.data.told import Asked, Told, ToldRows
from bedstone.data.told_messages import conversation
from bedstone.errors import BedstoneError, nearest

PARTS = {
    "image": IMAGE,
    "images": ("images", "pictures"),
    "text": TEXT,
    "question": ("question", "questions"),
    "answer": ("answer", "answers"),
    "kind": ("kind", "kinds", "question_type", "answer_type"),
    "messages": ("messages", "conversations", "conversation"),
}
MOST_WORDS = 500  # of a question, an answer or a caption


@dataclass(frozen=True)
class ToldReader(ColumnReader):
    """What a row's columns mean.

    Attributes, besides the columns:
        apart: what stands between several answers in one text, each of them right alone, such as
            a comma; empty takes a text as one answer.
    """

    apart: str = ""
    parts = PARTS

    def told(self, raw: Raw) -> Told:
        """A row as what is told of its picture.

        Raises:
            BedstoneError: it has no picture, nothing is told of it, or a text of it is missing,
                broken or far too long; naming the row and the column.
        """
        if (column := self._held(raw, "messages")) is not None:
            return self._conversation(raw, column)
        picture = self.picture(raw)
        captions: tuple[str, ...] = ()
        if (column := self._held(raw, "text")) is not None:
            captions = texts_in(raw, column)
        asked = self._asked(raw)
        if not captions and not asked:
            raise BedstoneError(
                f"{raw.place}: says nothing of its picture: it has no caption "
                f"({', '.join(TEXT)}) and no question with an answer; it has "
                f"{columns_of(raw)}. Name the columns: data.columns: {{text: ...}} or {{question: "
                "..., answer: ...}"
            )
        _check_lengths(raw, captions, asked)
        return Told(picture, captions, asked, raw.place)

    def _held(self, raw: Raw, part: str) -> str | None:
        """The column of a part, where the row has something in it."""
        column = self.column(part, raw.values)
        if column is not None and part in self.columns and column not in raw.values:
            raise BedstoneError(
                f"{raw.place}: has no column {column!r}, which data.columns names for "
                f"{part}{nearest(column, raw.values)}."
            )
        return column if column is not None and raw.values.get(column) is not None else None

    def _asked(self, raw: Raw) -> tuple[Asked, ...]:
        question, answer = self._held(raw, "question"), self._held(raw, "answer")
        if question is None and answer is None:
            return ()
        if question is None or answer is None:
            has, lacks = ("an answer", "question") if question is None else ("a question", "answer")
            raise BedstoneError(
                f"{raw.place}: has {has} and no {lacks} ({', '.join(PARTS[lacks])}). Mend it, or "
                "leave it out."
            )
        asked, answers = raw.values[question], raw.values[answer]
        kinds = raw.values.get(self.column("kind", raw.values) or "")
        if not isinstance(asked, list | tuple):
            asked, answers, kinds = [asked], [answers], [kinds]
        elif not isinstance(answers, list | tuple) or len(answers) != len(asked):
            have = len(answers) if isinstance(answers, list | tuple) else 1
            raise BedstoneError(
                f"{raw.place}: has {len(asked):,} questions (column {question!r}) and {have:,} "
                f"answers ({answer!r}); expected as many. Mend it, or leave it out."
            )
        if not isinstance(kinds, list | tuple) or len(kinds) != len(asked):
            kinds = [kinds] * len(asked)
        found = []
        for number, (one, right, kind) in enumerate(zip(asked, answers, kinds, strict=True), 1):
            which = f" {number:,}" if len(asked) > 1 else ""
            check_text(one, f"{raw.place}: column {question!r}{which}")
            rights = self._answers(right, f"{raw.place}: column {answer!r}{which}")
            found.append(Asked(one.strip(), rights, str(kind or "") or answer_kind(rights[0])))
        return tuple(found)

    def _answers(self, value: Any, what: str) -> tuple[str, ...]:
        """All right answers to a question: one, several, or as VQA lists those of many people."""
        several = value if isinstance(value, list | tuple) else [value]
        found: list[str] = []
        for one in several:
            one = one.get("answer") if isinstance(one, Mapping) else one
            if isinstance(one, int | float) and not isinstance(one, bool):
                one = f"{one:g}" if isinstance(one, float) else str(one)
            check_text(one, what)
            found += one.split(self.apart) if self.apart else [one]
        answers = tuple(text.strip() for text in found if text.strip())
        if not answers:
            raise BedstoneError(f"{what}: holds no answer. Mend it, or leave the row out.")
        return answers

    def _conversation(self, raw: Raw, column: str) -> Told:
        turns = conversation(raw.values[column], f"{raw.place}: column {column!r}")
        pictures = [*turns.sources, *self._pictures(raw)]
        if len(pictures) != turns.places:
            raise BedstoneError(
                f"{raw.place}: column {column!r} has {turns.places:,} places for a picture "
                f"(<image>, or parts of type image), and the row has {len(pictures):,} pictures. "
                "Their number must match."
            )
        if len(pictures) != 1:
            raise BedstoneError(
                f"{raw.place}: has {len(pictures):,} pictures; expected one. Split it, or leave "
                "it out."
            )
        picture = _read(raw, pictures[0], column)
        asked = tuple(
            Asked(question, (answer,), answer_kind(answer)) for question, answer in turns.asked
        )
        _check_lengths(raw, turns.captions, asked)
        return Told(picture, turns.captions, asked, raw.place)

    def _pictures(self, raw: Raw) -> list[Any]:
        """What stands for pictures beside a conversation."""
        column = self._held(raw, "images") or self._held(raw, "image")
        value = raw.values[column] if column is not None else []
        return list(value) if isinstance(value, list | tuple) else [value]


def open_told(
    name: str | Path,
    reader: ToldReader | None = None,
    *,
    split: str | None = None,
    most_broken: float = 0.05,
) -> ToldRows:
    """All rows of a source; see `pair_rows` for what it may be. `scenes` is built in.

    Raises:
        BedstoneError: there is no such data, it can't be read, or too much of it is broken.
    """
    if str(name) == scenes.NAME:
        return told_scenes.measured_told_scenes(split or "test")
    reader = reader or ToldReader()
    faults = Faults(str(name), most_broken)
    rows = []
    for raw in raw_rows(str(name), split, {}):
        faults.rows += 1
        try:
            rows.append(reader.told(raw))
        except BedstoneError as error:
            faults.add(error)
    faults.check()
    return ToldRows(rows, str(name), faults=faults)


def answer_kind(answer: str) -> str:
    """The kind of a question by its answer, where its row doesn't say: as VQA tells them apart."""
    told = answer.strip().lower()
    if told in ("yes", "no"):
        return "yes/no"
    return "number" if told.replace(",", "").replace(".", "", 1).isdigit() else "other"


def _read(raw: Raw, value: Any, column: str) -> Picture:
    if isinstance(value, str) and value.startswith(("http:", "https:", "data:")):
        raise BedstoneError(
            f"{raw.place}: column {column!r} names a picture by an address ({value[:40]!r}); "
            "expected encoded bytes or a file. Fetch it first, and name its file."
        )
    return read_picture(raw, value, f"column {column!r}")


def _check_lengths(raw: Raw, captions: Sequence[str], asked: Sequence[Asked]) -> None:
    """Raises BedstoneError where a text is longer than any network of this kind reads."""
    texts = [("caption", text) for text in captions]
    for one in asked:
        texts += [("question", one.question), *(("answer", answer) for answer in one.answers)]
    for what, text in texts:
        # Words are counted only where there may be so many.
        if len(text) > 2 * MOST_WORDS and (count := len(text.split())) > MOST_WORDS:
            raise BedstoneError(
                f"{raw.place}: its {what} {text[:40]!r}... has {count:,} words; expected at most "
                f"{MOST_WORDS}. Shorten it, or leave the row out."
            )
