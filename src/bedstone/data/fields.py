"""What a row's columns mean: rows as files have them to pictures with captions and questions.

A row may have one caption or several; a question with one right answer or several; lists of
questions with as many answers; or a conversation (`messages`) with its picture.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from bedstone.data.dataset import Dataset, Faults, ImageDataset, ImageRow, ImagesConfig
from bedstone.data.records import check_text
from bedstone.data.scenes.world import Scene
from bedstone.data.sources import Raw
from bedstone.errors import BedstoneError, nearest
from bedstone.settings import is_number

# Columns that may hold a row's picture, and its texts.
IMAGE = ("image", "img", "picture", "file_name", "image_path", "path", "jpg", "png")
TEXT = ("text", "caption", "captions", "texts", "sentences")


@dataclass(frozen=True)
class ColumnReader:
    """Which columns hold the parts of a row.

    Attributes:
        columns: {part: column}, where the usual names aren't used.
        parts: the parts of a row, and the names that their columns usually have.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    parts: ClassVar[Mapping[str, Sequence[str]]] = {}

    def __post_init__(self) -> None:
        for part in self.columns:
            if part not in self.parts:
                raise BedstoneError(
                    f"data.columns: {part!r} is no part of a row{nearest(part, self.parts)}."
                )

    def column(self, part: str, values: Mapping[str, Any]) -> str | None:
        """The column of a row that holds a part; None where it has none."""
        if part in self.columns:
            return self.columns[part]
        return next((name for name in self.parts[part] if name in values), None)

    def picture(self, raw: Raw) -> ImageRow:
        """A row's picture, not decoded.

        Raises:
            BedstoneError: there is no such column, or no picture in it.
        """
        column = self.column("image", raw.values)
        if column is None or column not in raw.values:
            raise BedstoneError(
                f"{raw.place}: has no column for the picture ({', '.join(IMAGE)}); it has "
                f"{columns_of(raw)}. Name it: data.columns: {{image: ...}}"
            )
        return read_image(raw, raw.values[column], f"column {column!r}")


def read_image(raw: Raw, value: Any, what: str) -> ImageRow:
    """The picture that a value of a row is or names: its bytes or its file.

    Raises:
        BedstoneError: it is none, or its file isn't there.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray) and value:
        return bytes(value)
    if isinstance(value, str) and value:
        path = raw.folder / value
        if raw.inside and not path.resolve().is_relative_to(raw.folder.resolve()):
            raise BedstoneError(f"{raw.place}: {value!r} leads out of {raw.folder}.")
        if not path.is_file():
            raise BedstoneError(f"{raw.place}: there is no file {path}.")
        return path
    raise BedstoneError(
        f"{raw.place}: {what} holds no picture (it is {str(value)[:40]!r}); expected encoded "
        "bytes or a path."
    )


def texts_in(raw: Raw, column: str | Sequence[str]) -> tuple[str, ...]:
    """The texts of a column, one or several; empty ones of several are passed over.

    A column with braces is a sentence made of columns, as `a {colour} {kind}: {title}`; of several
    columns or sentences each gives its texts.

    Raises:
        BedstoneError: there is none, or one is broken.
    """
    if not isinstance(column, str):
        return tuple(text for one in column for text in texts_in(raw, one))
    if "{" in column:
        return (_filled(raw, column),)
    value = raw.values.get(column)
    found: list[Any] = [value]
    if isinstance(value, list | tuple):
        found = [text for text in value if text]
    if not found or found == [None]:
        raise BedstoneError(f"{raw.place}: column {column!r} holds no text.")
    for text in found:
        check_text(text, f"{raw.place}: column {column!r}")
    return tuple(text.strip() for text in found)


def _filled(raw: Raw, sentence: str) -> str:
    """A sentence with what the row's columns hold in the place of their names."""

    def value(name: re.Match[str]) -> str:
        held = raw.values.get(name[1])
        if held is None or isinstance(held, list | dict | bytes) or not str(held).strip():
            raise BedstoneError(
                f"{raw.place}: column {name[1]!r}, which the text {sentence!r} is made of, holds "
                f"no word (it is {str(held)[:40]!r}); the row has {columns_of(raw)}."
            )
        return str(held).strip()

    text = re.sub(r"\{(\w+)\}", value, sentence)
    check_text(text, f"{raw.place}: text {sentence!r}")
    return text


def columns_of(raw: Raw) -> str:
    """The names of a row's columns, for a message."""
    return ", ".join(sorted(repr(str(key)) for key in raw.values)[:20])


# Pictures with what is told of them: captions, and questions with their answers.
#
# A row that is broken is left out, counted and named; too large a share of broken rows is an error.


@dataclass(frozen=True)
class Question:
    """A question about a picture.

    Attributes:
        answers: one or more, each of them right.
        kind: what kind of question it is, by which accuracy is told.
    """

    question: str
    answers: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class Sample:
    """A picture, what is said of it and what is asked; one of the two may be empty.

    Attributes:
        picture: encoded bytes, a file, pixels, or what draws them.
        captions: texts, all of them right.
        place: where it is from, for messages.
        scene: what a drawn picture shows.
    """

    picture: ImageRow
    captions: tuple[str, ...] = ()
    asked: tuple[Question, ...] = ()
    place: str = ""
    scene: Scene | None = None


class ImageTextDataset(ImageDataset[Sample]):
    """Rows of pictures with captions, questions or both; see `ImageDataset`."""

    what = "picture with a caption or a question"

    def __init__(
        self, rows: Sequence[Sample], name: str = "told", *, faults: Faults | None = None
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

    def content(self, row: Sample) -> bytes:
        asked = [(one.question, one.answers, one.kind) for one in row.asked]
        return f"{row.captions!r} {asked!r} ".encode()

    def pick(self, chosen: Sequence[int]) -> "ImageTextDataset":
        """Some of the rows, by their numbers."""
        return ImageTextDataset([self.rows[i] for i in chosen], self.name, faults=self.faults)

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


# A conversation about a picture, as chat data has it, to questions with answers and captions.
#
# Two ways of writing are read: OpenAI's, `{"role": "user", "content": [{"type": "image"}, {"type":
# "text", "text": ...}]}` or plain text with `<image>` for a picture; and ShareGPT's, `{"from":
# "human", "value": ...}`, as LLaVA's data has it. What a user says and what is answered to it are a
# question and its answer; an answer to a picture alone is a caption. Each question stands for
# itself: what was said before isn't told to the network.

PLACEHOLDER = "<image>"
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_KNOWN = ("system", "developer", "user", "assistant")
_SOURCES = ("image", "path", "bytes", "url", "image_url")  # of a part's picture


@dataclass(frozen=True)
class Conversation:
    """What is asked and said of a picture.

    Attributes:
        asked: questions, each with its answer.
        captions: what is said of the picture where nothing is asked.
        places: how many pictures the texts stand about.
        sources: the pictures that the messages themselves hold or name.
    """

    asked: tuple[tuple[str, str], ...]
    captions: tuple[str, ...]
    places: int
    sources: tuple[Any, ...]


def conversation(messages: Any, what: str) -> Conversation:
    """Reads messages.

    Args:
        what: the row and the column, for messages.

    Raises:
        BedstoneError: they are no such list, a user's turn has no answer, or there is none.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise BedstoneError(f"{what}: holds {str(messages)[:40]!r}; expected a list of messages.")
    asked: list[tuple[str, str]] = []
    captions: list[str] = []
    sources: list[Any] = []
    places, question = 0, None
    for number, message in enumerate(messages, 1):
        where = f"{what}: message {number:,}"
        role, text, shown, own = turn(message, where)
        places, sources = places + shown, sources + own
        if role == "user":
            question = text if question is None else f"{question} {text}".strip()
        elif role == "assistant":
            if question is None:
                raise BedstoneError(f"{where}: answers, and nothing was asked before it.")
            check_text(text, where)
            if question:
                asked.append((question, text))
            else:
                captions.append(text)
            question = None
    if question is not None:
        raise BedstoneError(f"{what}: ends with a question ({question[:40]!r}) and no answer.")
    if not asked and not captions:
        raise BedstoneError(f"{what}: has no answer of an assistant, so there is nothing to learn.")
    return Conversation(tuple(asked), tuple(captions), places, tuple(sources))


def turn(message: Any, where: str) -> tuple[str, str, int, list[Any]]:
    """A message's role, text, places for pictures, and the pictures that it holds itself.

    Raises:
        BedstoneError: it is none, or holds what is neither a text nor a picture.
    """
    if not isinstance(message, Mapping):
        raise BedstoneError(f"{where}: is {str(message)[:40]!r}; expected a role and content.")
    role = message.get("role") or message.get("from")
    role = _ROLES.get(str(role), role)
    if role not in _KNOWN:
        raise BedstoneError(f"{where}: role {role!r} is unknown{nearest(str(role), _KNOWN)}.")
    content = message["content"] if "content" in message else message.get("value")
    if isinstance(content, str):
        text = " ".join(content.replace(PLACEHOLDER, " ").split())
        return role, text, content.count(PLACEHOLDER), []
    if not isinstance(content, list | tuple):
        raise BedstoneError(f"{where}: has no content; expected a text or a list of parts.")
    texts, places, own = [], 0, []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            texts.append(str(part.get("text") or ""))
        elif kind in ("image", "image_url"):
            places += 1
            own += [part[key] for key in _SOURCES if part.get(key) is not None][:1]
        else:
            raise BedstoneError(f"{where}: has a part of type {kind!r}; expected text or image.")
    own = [one.get("url") if isinstance(one, Mapping) and "url" in one else one for one in own]
    return role, " ".join(" ".join(texts).split()), places, own


IMAGE_TEXT_COLUMNS = {
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
class ImageTextReader(ColumnReader):
    """What a row's columns mean.

    Attributes, besides the columns:
        apart: what stands between several answers in one text, each of them right alone, such as
            a comma; empty takes a text as one answer.
    """

    apart: str = ""
    parts = IMAGE_TEXT_COLUMNS

    def told(self, raw: Raw) -> Sample:
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
        return Sample(picture, captions, asked, raw.place)

    def _held(self, raw: Raw, part: str) -> str | None:
        """The column of a part, where the row has something in it."""
        column = self.column(part, raw.values)
        if column is not None and part in self.columns and column not in raw.values:
            raise BedstoneError(
                f"{raw.place}: has no column {column!r}, which data.columns names for "
                f"{part}{nearest(column, raw.values)}."
            )
        return column if column is not None and raw.values.get(column) is not None else None

    def _asked(self, raw: Raw) -> tuple[Question, ...]:
        question, answer = self._held(raw, "question"), self._held(raw, "answer")
        if question is None and answer is None:
            return ()
        if question is None or answer is None:
            has, lacks = ("an answer", "question") if question is None else ("a question", "answer")
            raise BedstoneError(
                f"{raw.place}: has {has} and no {lacks} ({', '.join(IMAGE_TEXT_COLUMNS[lacks])}). "
                "Mend it, or leave it out."
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
            found.append(Question(one.strip(), rights, str(kind or "") or answer_kind(rights[0])))
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

    def _conversation(self, raw: Raw, column: str) -> Sample:
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
            Question(question, (answer,), answer_kind(answer)) for question, answer in turns.asked
        )
        _check_lengths(raw, turns.captions, asked)
        return Sample(picture, turns.captions, asked, raw.place)

    def _pictures(self, raw: Raw) -> list[Any]:
        """What stands for pictures beside a conversation."""
        column = self._held(raw, "images") or self._held(raw, "image")
        value = raw.values[column] if column is not None else []
        return list(value) if isinstance(value, list | tuple) else [value]


def answer_kind(answer: str) -> str:
    """The kind of a question by its answer, where its row doesn't say: as VQA tells them apart."""
    told = answer.strip().lower()
    if told in ("yes", "no"):
        return "yes/no"
    return "number" if told.replace(",", "").replace(".", "", 1).isdigit() else "other"


def _read(raw: Raw, value: Any, column: str) -> ImageRow:
    if isinstance(value, str) and value.startswith(("http:", "https:", "data:")):
        raise BedstoneError(
            f"{raw.place}: column {column!r} names a picture by an address ({value[:40]!r}); "
            "expected encoded bytes or a file. Fetch it first, and name its file."
        )
    return read_image(raw, value, f"column {column!r}")


def _check_lengths(raw: Raw, captions: Sequence[str], asked: Sequence[Question]) -> None:
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


# Pictures with their texts: rows checked, counted, and named where they can't be learnt.
#
# A text is what a row says of its picture, one or several; or it is made from the row's label by
# templates ("a photo of a {label}"), which are also what zero-shot accuracy is asked with. A row
# that is broken is left out, counted and named; too large a share of broken rows is an error.

TEMPLATES = ("a photo of a {label}",)


@dataclass(frozen=True)
class ImageTextPair:
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

    picture: ImageRow
    captions: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    label: str | None = None
    made: bool = False
    place: str = ""


class PairDataset(ImageDataset[ImageTextPair]):
    """Pairs, the classes that their labels are of, and what was left out.

    Attributes, besides those of all rows with pictures:
        classes: names of all classes, in their order; of rows without labels there are none.
        templates: what makes a text of a class's name.
    """

    what = "pair of a picture and a text"

    def __init__(
        self,
        pairs: Sequence[ImageTextPair],
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
    def pairs(self) -> list[ImageTextPair]:
        """All of them, in the source's order."""
        return self.rows

    def texts(self) -> Iterator[str]:
        """Every caption and every negative, in the rows' order."""
        for pair in self.rows:
            yield from pair.captions
            yield from pair.negatives

    def content(self, row: ImageTextPair) -> bytes:
        return f"{row.captions!r} {row.negatives!r} {row.label!r} ".encode()

    def pick(self, chosen: Sequence[int]) -> "PairDataset":
        """Some of the rows; the classes stay."""
        return PairDataset(
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


# What a row's columns mean: rows as files have them to pairs of a picture and its texts.

PAIR_COLUMNS = {
    "image": IMAGE,
    "text": TEXT,
    "label": ("label", "labels", "class"),
    "negatives": ("negatives", "negative", "hard_negatives"),
}


@dataclass(frozen=True)
class Reader(ColumnReader):
    """What a row's columns mean.

    Attributes, besides the columns:
        templates: what makes a text of a class's name.
        classes: names of classes by what stands in the column of labels; empty takes the set's
            own names, or what stands there.
    """

    templates: Sequence[str] = ()
    classes: Mapping[Any, str] | Sequence[str] = ()
    parts = PAIR_COLUMNS

    def __post_init__(self) -> None:
        super().__post_init__()
        for template in self.templates:
            if "{label}" not in template:
                raise BedstoneError(
                    f"data.templates: {template!r} has no place for a label; expected such as "
                    f"{TEMPLATES[0]!r}."
                )

    def names(self, own: Sequence[str]) -> dict[str, str]:
        """Names of the classes by what stands in a row, as text."""
        given: Any = self.classes or own
        pairs = given.items() if isinstance(given, Mapping) else enumerate(given)
        return {str(key): str(name) for key, name in pairs}

    def pair(self, raw: Raw, names: Mapping[str, str]) -> ImageTextPair:
        """A row as a pair.

        Raises:
            BedstoneError: it has no picture or no text, naming the row and the column.
        """
        label = self._label(raw, names)
        column = self.column("text", raw.values)
        if column is not None and (column in self.columns.values() or column in raw.values):
            captions, made = texts_in(raw, column), False
        elif label is not None:
            forms = self.templates or TEMPLATES
            captions, made = tuple(form.replace("{label}", label) for form in forms), True
        else:
            raise BedstoneError(
                f"{raw.place}: has no text ({', '.join(TEXT)}) and no label; it has "
                f"{columns_of(raw)}. Name the column: data.columns: {{text: ...}} or {{label: ...}}"
            )
        negative = self.column("negatives", raw.values)
        wrong = texts_in(raw, negative) if negative and raw.values.get(negative) else ()
        return ImageTextPair(self.picture(raw), captions, wrong, label, made, raw.place)

    def _label(self, raw: Raw, names: Mapping[str, str]) -> str | None:
        column = self.column("label", raw.values)
        value = raw.values.get(column) if column is not None else None
        if value is None or isinstance(value, list | dict) or not str(value).strip():
            return None
        told = str(value).strip()
        if names and told not in names and told not in names.values():
            raise BedstoneError(
                f"{raw.place}: column {column!r} holds {told!r}, which is none of the "
                f"{len(names)} classes{nearest(told, names)}."
            )
        return names.get(told, told)


# What labelled rows say, for a network to learn: classes, several of them, figures, tags.
#
# Every fault of a row is told before training begins, with its file, row, column and value.

FIGURES = ("score", "stars")  # columns whose fractions are figures, not classes


def find_problem(rows: Dataset, column: str) -> str:
    """single, multi or regression: what the values of a column are."""
    values = [rows.value(i, column) for i in range(len(rows))]
    if any(isinstance(value, Sequence) and not isinstance(value, str) for value in values):
        return "multi"
    floats = [type(value) is float for value in values]
    if all(floats) or (any(floats) and column in FIGURES):
        return "regression"
    return "single"


def figures(rows: Dataset, column: str, count: int | None = None) -> np.ndarray:
    """The numbers of each row, (rows, L) float32; `count` is the L that is expected.

    Raises:
        BedstoneError: a row has none, or one that isn't finite, or more or fewer than others.
    """
    found: list[list[float]] = []
    for number in range(len(rows)):
        value = rows.value(number, column)
        given = list(value) if isinstance(value, list | tuple) else [value]
        if not given or not all(is_number(each) for each in given):
            raise rows.fault(
                number,
                column,
                f"is {str(value)[:60]!r}; expected a finite number, for regression",
                "Mend it, or leave the row out.",
            )
        count = count or len(given)
        if len(given) != count:
            raise rows.fault(
                number, column, f"has {len(given)} numbers; expected {count}", "Mend that row."
            )
        found.append([float(each) for each in given])
    return np.array(found, dtype=np.float32)


class Namer:
    """Labels as rows have them -> their names, of one type throughout.

    Args:
        labels: the names, where they are known. Whole numbers count them, unless these are names
            of numbers themselves.
    """

    def __init__(
        self, rows: Dataset, column: str, labels: Sequence[str] | None, what: str = "label"
    ) -> None:
        self.rows, self.column, self.what = rows, column, what
        self.known = None if labels is None else set(labels)
        self._names = rows.names.get(column)
        if self._names is None and labels and not any(_whole(label) for label in labels):
            self._names = list(labels)
        self._first: tuple[int, type] | None = None

    def name(self, row: int, value: Any) -> str:
        """The name of a value.

        Raises:
            BedstoneError: it is no label, of another type than the first, or none of those known.
        """
        kind = type(value)
        if kind not in (str, int, bool) or value == "":
            hint = " (for figures, say problem: regression)" if kind is float else ""
            raise self._fault(row, value, f"expected a string or a whole number{hint}")
        if self._first is None:
            self._first = row, kind
        if kind is not self._first[1]:
            raise self._fault(
                row,
                value,
                f"expected {self._first[1].__name__}, as in {self.rows.where(self._first[0])}",
            )
        if kind is int and self._names is not None:
            if not 0 <= value < len(self._names):
                raise self._fault(row, value, f"expected 0 to {len(self._names) - 1}")
            name = self._names[value]
        else:
            name = str(value)
        if self.known is not None and name not in self.known:
            raise self._fault(row, value, f"which is none of the labels{_guess(name, self.known)}")
        return name

    def _fault(self, row: int, value: Any, expected: str) -> BedstoneError:
        return self.rows.fault(
            row,
            self.column,
            f"has the {self.what} {str(value)[:60]!r} of type {type(value).__name__}; {expected}",
            "Mend it, or leave the row out.",
        )


def single(rows: Dataset, column: str, labels: Sequence[str] | None) -> list[str]:
    """The label of each row."""
    namer = Namer(rows, column, labels)
    return [namer.name(i, rows.value(i, column)) for i in range(len(rows))]


def several(rows: Dataset, column: str, labels: Sequence[str] | None) -> list[list[str]]:
    """The labels of each row, which may be none."""
    namer = Namer(rows, column, labels)
    found = []
    for number in range(len(rows)):
        value = rows.value(number, column)
        if not isinstance(value, list | tuple):
            raise rows.fault(
                number,
                column,
                f"is {str(value)[:60]!r} of type {type(value).__name__}; expected a list of labels",
                "Mend that row: every row needs a list, if one has it.",
            )
        names = [namer.name(number, each) for each in value]
        found.append(list(dict.fromkeys(names)))
    return found


def tags(rows: Dataset, tokens: str, column: str, labels: Sequence[str] | None) -> list[list[str]]:
    """The tag of each word of each row.

    Raises:
        BedstoneError: a row has other than one tag a word, or one that is none of `labels`.
    """
    namer = Namer(rows, column, labels, "tag")
    found = []
    for number in range(len(rows)):
        words, value = rows.value(number, tokens), rows.value(number, column)
        for name, each in ((tokens, words), (column, value)):
            if not isinstance(each, list | tuple):
                raise rows.fault(
                    number, name, f"is {str(each)[:60]!r}; expected a list", "Mend that row."
                )
        if len(words) != len(value):
            raise rows.fault(
                number,
                column,
                f"has {len(value):,} tags for {len(words):,} words in {tokens!r}",
                "Give each word one.",
            )
        found.append([namer.name(number, each) for each in value])
    return found


def ordered(names: set[str]) -> tuple[str, ...]:
    """Labels in their order: numbers by size, `O` first, others by the alphabet."""
    if all(_whole(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names, key=lambda name: (name != "O", name)))


def label_weights(
    weights: str | Mapping[str, float], labels: Sequence[str], counts: np.ndarray
) -> np.ndarray:
    """What a target of each label counts for, (L,) float32.

    Args:
        weights: `balanced`: as much for a label with few targets as for one with many, n / (L c);
            or a weight for each label; one that isn't named has 1.
        counts: (L,) targets of each label.

    Raises:
        BedstoneError: a label is unknown, or a weight is no positive number.
    """
    if weights == "balanced":
        found = counts.sum() / (len(labels) * np.maximum(counts, 1))
        return found.astype(np.float32)
    if not isinstance(weights, Mapping):
        raise BedstoneError(
            f"class_weights: is {weights!r}; expected 'balanced', or a weight for each label."
        )
    result = np.ones(len(labels), dtype=np.float32)
    for label, weight in weights.items():
        if str(label) not in labels:
            raise BedstoneError(
                f"class_weights: {label!r} is no label{nearest(str(label), labels)}."
            )
        if not is_number(weight) or weight <= 0 or not math.isfinite(weight):
            raise BedstoneError(f"class_weights.{label}: is {weight!r}; expected a number above 0.")
        result[list(labels).index(str(label))] = weight
    return result


def _whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _guess(name: str, known: set[str]) -> str:
    return nearest(name, known) if len(known) <= 100 else f" ({len(known)} of them)"


@dataclass
class PairsConfig(ImagesConfig):
    """Pictures with texts.

    Attributes, besides those of all rows with pictures (columns: image, text, label, negatives):
        templates: texts made of a label, as `a photo of a {label}`: captions where rows have none,
            and what zero-shot accuracy is asked with.
        classes: names of the labels' classes by what stands in the rows: a list or a mapping.
    """

    templates: list[str] = field(default_factory=list)
    classes: Any = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.classes, list | dict):
            raise BedstoneError(
                f"data.classes: {self.classes!r} was given; expected a list of names, or a "
                "mapping from what stands in the rows to names."
            )


def reader_of(data: PairsConfig) -> Reader:
    """What a recipe says of the columns."""
    return Reader(data.columns, data.templates, data.classes)


@dataclass
class ImageTextConfig(ImagesConfig):
    """Pictures with what is said of them.

    Attributes, besides those of all rows with pictures (columns: image, text, question, answer,
    kind, messages):
        test: a source to measure the finished model on.
        apart: what stands between several right answers in one text, such as a comma.
        captions: of scenes: all kinds, or whole: the one that names all things.
        blank: hide all pictures, in training and in measuring: what can be said without looking.
    """

    test: str = ""
    apart: str = ""
    captions: str = "all"
    blank: bool = False
