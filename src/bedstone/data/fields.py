"""Fields of a row: the columns that usually hold them, and how each is read.

`FIELDS` is the one table of them. Rows of text keep their columns (`data.dataset`); rows with an
image or a sound become a `Sample`: a row has one caption or several, a question with one right
answer or several, lists of questions with as many answers, or a conversation (`messages`).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bedstone.data.bytes import check_text
from bedstone.data.messages import conversation
from bedstone.data.records import Record
from bedstone.data.scenes.world import Scene
from bedstone.errors import BedstoneError, nearest

StoredImage = bytes | Path | np.ndarray | Callable[[], np.ndarray]
TEMPLATES = ("a photo of a {label}",)
MAX_WORDS = 500  # of a question, an answer or a caption


@dataclass(frozen=True)
class Question:
    """A question about an image.

    Attributes:
        answers: one or more, each of them right.
        kind: the kind of question, by which accuracy is reported.
    """

    question: str
    answers: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class Sample:
    """An image or a sound with its captions, questions or label; each of them may be empty.

    Attributes:
        image: encoded bytes, a file, pixels, or what draws them.
        captions: texts, all of them right.
        questions: with their answers.
        place: where it is from, for messages.
        scene: what a drawn image shows.
        negatives: hard negatives: texts that are wrong of this image, and nearly right.
        label: its class.
        made: whether the captions are made from the label by templates, so that all images of a
            class have the same ones.
        audio: encoded bytes or a file.
    """

    image: StoredImage | None = None
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    place: str = ""
    scene: Scene | None = None
    negatives: tuple[str, ...] = ()
    label: str | None = None
    made: bool = False
    audio: bytes | Path | None = None


# What a training method needs of a row.


@dataclass(frozen=True)
class AnyOf:
    """Fields of which a row must have one."""

    fields: tuple[str, ...]


@dataclass(frozen=True)
class Maybe:
    """A field that a row may have."""

    field: str


Need = str | AnyOf | Maybe


def any_of(*fields: str) -> AnyOf:
    """Fields of which a row must have one."""
    return AnyOf(fields)


def maybe(field: str) -> Maybe:
    """A field that a row may have."""
    return Maybe(field)


# They are read in this order, so a row with several faults is reported by the first.
IMAGES = ("image",)
IMAGE_TEXT = ("image", any_of("captions", "questions"))
PAIRS = (any_of("class", "captions"), maybe("negatives"), "image")


def needed(need: Sequence[Need]) -> Iterator[str]:
    """The names of all fields that are needed or read."""
    for each in need:
        if isinstance(each, AnyOf):
            yield from each.fields
        else:
            yield each.field if isinstance(each, Maybe) else each


@dataclass(frozen=True)
class SampleReader:
    """Reads records into samples.

    Attributes:
        need: fields that a row must or may have.
        columns: {part: column}, where the usual names aren't used. A text may be a sentence made
            of columns, such as `"{title}, a {colour} {kind}"`, or a list of columns and sentences.
        templates: make texts of a class's name, for rows that have no caption.
        classes: names of classes by the values of the label's column; empty takes the data set's
            own names, or the values.
        separator: separates several right answers in one text, such as a comma; empty takes a
            text as one answer.
        names: of the classes by the values in a row; see `class_names`.
        strict: whether a row without a column that `columns` names is a fault.
        spare: fields that `columns` may name though they aren't read.

    Raises:
        BedstoneError: `columns` names an unknown part, or a template has no place for a label.
    """

    need: Sequence[Need]
    columns: Mapping[str, Any] = field(default_factory=dict)
    templates: Sequence[str] = ()
    classes: Mapping[Any, str] | Sequence[str] = ()
    separator: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False
    spare: Sequence[str] = ()

    def __post_init__(self) -> None:
        names = [*needed(self.need), *self.spare]
        if "questions" in names:
            names += ["images", "answer", "kind", "messages"]
        parts = [FIELDS[name].part or name for name in names]
        for part in self.columns:
            if part not in parts:
                raise BedstoneError(
                    f"data.columns: {part!r} is no part of a row{nearest(part, parts)}."
                )
        for template in self.templates:
            if "{label}" not in template:
                raise BedstoneError(
                    f"data.templates: {template!r} has no place for a label; expected such as "
                    f"{TEMPLATES[0]!r}."
                )

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that are read."""
        return tuple(needed(self.need))

    def class_names(self, own: Sequence[str]) -> dict[str, str]:
        """Names of the classes by the values in a row, as text; `own` are the data set's."""
        given: Any = self.classes or own
        pairs = given.items() if isinstance(given, Mapping) else enumerate(given)
        return {str(key): str(name) for key, name in pairs}

    def read(self, record: Record) -> Sample:
        """A record as a sample.

        Raises:
            BedstoneError: a field is missing, broken or far too long, naming the row and column.
        """
        if self.strict:
            self._check_named(record)
        if "questions" in self.fields and (column := self.held(record, "messages")) is not None:
            return _conversation_sample(self, record, column)
        found: dict[str, Any] = {}
        for each in self.need:
            for name in needed([each]):
                parse = FIELDS[name].parse
                assert parse is not None
                found[name] = parse(self, record)
            if isinstance(each, AnyOf) and not any(found[name] for name in each.fields):
                raise self._nothing(record, each.fields)
            if each == "class" and found["class"] is None:
                raise BedstoneError(
                    f"{record.place}: has no class ({', '.join(CLASS)}); it has "
                    f"{columns_of(record)}. {name_columns('label')}"
                )
        label = found.pop("class", None)
        made = "captions" in found and not found["captions"] and label is not None
        if made:
            forms = self.templates or TEMPLATES
            found["captions"] = tuple(form.replace("{label}", str(label)) for form in forms)
        if "questions" in found:
            _check_lengths(record, found["captions"], found["questions"])
        return Sample(**found, label=label, made=made, place=record.place)

    def column(self, name: str, values: Mapping[str, Any]) -> Any:
        """The column of a row that holds a field; None where it has none."""
        known = FIELDS[name]
        if (part := known.part or name) in self.columns:
            return self.columns[part]
        return next((column for column in known.columns if column in values), None)

    def held(self, record: Record, name: str) -> Any:
        """The column of a field, where the row has a value in it.

        Raises:
            BedstoneError: `columns` names the column, and the row doesn't have it.
        """
        column = self.column(name, record.values)
        if isinstance(column, str) and "{" not in column:
            part = FIELDS[name].part or name
            if part in self.columns and column not in record.values:
                raise BedstoneError(
                    f"{record.place}: has no column {column!r}, which data.columns names for "
                    f"{part}{nearest(column, record.values)}."
                )
            return column if record.values.get(column) is not None else None
        return column

    def _check_named(self, record: Record) -> None:
        for part, column in self.columns.items():
            if column not in record.values and "{" not in str(column):
                raise BedstoneError(
                    f"{record.place}: has no column {column!r}, which data.columns.{part} names"
                    f"{nearest(str(column), map(str, record.values))}."
                )

    def _nothing(self, record: Record, fields: Sequence[str]) -> BedstoneError:
        """The error that a row has none of some fields."""
        if "questions" in fields:
            return BedstoneError(
                f"{record.place}: says nothing of its picture: it has no caption "
                f"({', '.join(TEXT)}) and no question with an answer; it has "
                f"{columns_of(record)}. {name_columns('text', 'question', 'answer')}"
            )
        return BedstoneError(
            f"{record.place}: has no text ({', '.join(TEXT)}) and no label; it has "
            f"{columns_of(record)}. {name_columns('text', 'label')}"
        )


# Options of commands that name the column of a part, for messages.
_OPTIONS = {
    "text": "--column of a command",
    "label": "--label-column of bedstone evaluate",
    "source": "--column of a command",
    "target": "--label-column of bedstone evaluate",
}


def name_columns(*parts: str) -> str:
    """How the columns of parts are named, in a recipe and in commands, for a message."""
    keys = " and ".join(f"data.columns.{part}=NAME" for part in parts)
    options = "".join(f", or by {_OPTIONS[part]}" for part in parts if part in _OPTIONS)
    return f"Name {'the column' if len(parts) == 1 else 'columns'} by {keys} of a recipe{options}."


def columns_of(record: Record) -> str:
    """The names of a row's columns, for a message."""
    return ", ".join(sorted(repr(str(key)) for key in record.values)[:20])


# How each field is read.


def _image(reader: SampleReader, record: Record) -> StoredImage:
    """A row's image, not decoded."""
    column = reader.column("image", record.values)
    if column is None or column not in record.values:
        raise BedstoneError(
            f"{record.place}: has no column for the picture ({', '.join(IMAGE)}); it has "
            f"{columns_of(record)}. {name_columns('image')}"
        )
    return read_file(record, record.values[column], f"column {column!r}")


def _audio(reader: SampleReader, record: Record) -> bytes | Path:
    """A row's sound, not decoded."""
    column = reader.column("audio", record.values)
    if column is None:
        raise BedstoneError(
            f"{record.place}: has no column for the sound ({', '.join(AUDIO)}); it has "
            f"{columns_of(record)}. {name_columns('audio')}"
        )
    return read_file(record, record.values[column], f"column {column!r}", "sound")


def read_file(record: Record, value: Any, what: str, kind: str = "picture") -> bytes | Path:
    """The bytes that a value of a row holds, or the file that it names.

    Raises:
        BedstoneError: it is none, or its file isn't there.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray) and value:
        return bytes(value)
    if isinstance(value, str) and value:
        return named_file(record, value)
    raise BedstoneError(
        f"{record.place}: {what} holds no {kind} (it is {str(value)[:40]!r}); expected encoded "
        "bytes or a path."
    )


def named_file(record: Record, value: str) -> Path:
    """The file that a row names, relative to the record's folder.

    Raises:
        BedstoneError: there is none, it leads out of that folder, or no file can be named so.
    """
    path = record.folder / value
    try:
        if record.inside and not path.resolve().is_relative_to(record.folder.resolve()):
            raise BedstoneError(
                f"{record.place}: {value[:200]!r} leads out of {record.folder}; expected a file of "
                "that folder."
            )
        there = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, half a character, a loop
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise BedstoneError(
            f"{record.place}: {value[:60]!r} can't be a file's name ({reason}). Mend it, or leave "
            "the row out."
        ) from error
    if not there:
        raise BedstoneError(f"{record.place}: there is no file {str(path)[:300]}.")
    return path


def _captions(reader: SampleReader, record: Record) -> tuple[str, ...]:
    if "questions" in reader.fields:  # a row may have questions alone
        column = reader.held(record, "captions")
    else:
        column = reader.column("captions", record.values)
    return () if column is None else texts_in(record, column)


def _negatives(reader: SampleReader, record: Record) -> tuple[str, ...]:
    column = reader.column("negatives", record.values)
    return texts_in(record, column) if column and record.values.get(column) else ()


def texts_in(record: Record, column: str | Sequence[str]) -> tuple[str, ...]:
    """The texts of a column, one or several; empty ones of several are passed over.

    A column with braces is a sentence made of columns, as `a {colour} {kind}: {title}`; of several
    columns or sentences each gives its texts.

    Raises:
        BedstoneError: there is none, or one is broken.
    """
    if not isinstance(column, str):
        return tuple(text for one in column for text in texts_in(record, one))
    if "{" in column:
        return (_filled(record, column),)
    value = record.values.get(column)
    found: list[Any] = [value]
    if isinstance(value, list | tuple):
        found = [text for text in value if text]
    if not found or found == [None]:
        raise BedstoneError(f"{record.place}: column {column!r} holds no text.")
    for text in found:
        check_text(text, f"{record.place}: column {column!r}")
    return tuple(text.strip() for text in found)


def _filled(record: Record, sentence: str) -> str:
    """A sentence with the values of the row's columns in the place of their names."""

    def value(name: re.Match[str]) -> str:
        held = record.values.get(name[1])
        if held is None or isinstance(held, list | dict | bytes) or not str(held).strip():
            raise BedstoneError(
                f"{record.place}: column {name[1]!r}, which the text {sentence!r} is made of, "
                f"holds no word (it is {str(held)[:40]!r}); the row has {columns_of(record)}."
            )
        return str(held).strip()

    text = re.sub(r"\{(\w+)\}", value, sentence)
    check_text(text, f"{record.place}: text {sentence!r}")
    return text


def _label(reader: SampleReader, record: Record) -> str | None:
    names = reader.names
    column = reader.column("class", record.values)
    value = record.values.get(column) if column is not None else None
    if value is None or isinstance(value, list | dict) or not str(value).strip():
        return None
    label = str(value).strip()
    if names and label not in names and label not in names.values():
        raise BedstoneError(
            f"{record.place}: column {column!r} holds {label!r}, which is none of the "
            f"{len(names)} classes{nearest(label, names)}."
        )
    return names.get(label, label)


def _questions(reader: SampleReader, record: Record) -> tuple[Question, ...]:
    question, answer = reader.held(record, "questions"), reader.held(record, "answer")
    if question is None and answer is None:
        return ()
    if question is None or answer is None:
        has, lacks = ("an answer", "question") if question is None else ("a question", "answer")
        usual = QUESTION if lacks == "question" else ANSWER
        raise BedstoneError(
            f"{record.place}: has {has} and no {lacks} ({', '.join(usual)}). "
            "Mend it, or leave it out."
        )
    questions, answers = record.values[question], record.values[answer]
    kinds = record.values.get(reader.column("kind", record.values) or "")
    if not isinstance(questions, list | tuple):
        questions, answers, kinds = [questions], [answers], [kinds]
    elif not isinstance(answers, list | tuple) or len(answers) != len(questions):
        have = len(answers) if isinstance(answers, list | tuple) else 1
        raise BedstoneError(
            f"{record.place}: has {len(questions):,} questions (column {question!r}) and {have:,} "
            f"answers ({answer!r}); expected as many. Mend it, or leave it out."
        )
    if not isinstance(kinds, list | tuple) or len(kinds) != len(questions):
        kinds = [kinds] * len(questions)
    found = []
    for number, (text, right, kind) in enumerate(zip(questions, answers, kinds, strict=True), 1):
        which = f" {number:,}" if len(questions) > 1 else ""
        check_text(text, f"{record.place}: column {question!r}{which}")
        rights = _answers(reader, right, f"{record.place}: column {answer!r}{which}")
        found.append(Question(text.strip(), rights, str(kind or "") or answer_kind(rights[0])))
    return tuple(found)


def _answers(reader: SampleReader, value: Any, what: str) -> tuple[str, ...]:
    """All right answers to a question: one, several, or as VQA lists those of many people."""
    several = value if isinstance(value, list | tuple) else [value]
    found: list[str] = []
    for one in several:
        one = one.get("answer") if isinstance(one, Mapping) else one
        if isinstance(one, int | float) and not isinstance(one, bool):
            one = f"{one:g}" if isinstance(one, float) else str(one)
        check_text(one, what)
        found += one.split(reader.separator) if reader.separator else [one]
    answers = tuple(text.strip() for text in found if text.strip())
    if not answers:
        raise BedstoneError(f"{what}: holds no answer. Mend it, or leave the row out.")
    return answers


def answer_kind(answer: str) -> str:
    """The kind of a question by its answer, as VQA has it: yes/no, number or other."""
    text = answer.strip().lower()
    if text in ("yes", "no"):
        return "yes/no"
    return "number" if text.replace(",", "").replace(".", "", 1).isdigit() else "other"


def _check_lengths(record: Record, captions: Sequence[str], questions: Sequence[Question]) -> None:
    """Raises BedstoneError where a text is longer than any network of this kind reads."""
    texts = [("caption", text) for text in captions]
    for one in questions:
        texts += [("question", one.question), *(("answer", answer) for answer in one.answers)]
    for what, text in texts:
        # Words are counted only where there may be so many.
        if len(text) > 2 * MAX_WORDS and (count := len(text.split())) > MAX_WORDS:
            raise BedstoneError(
                f"{record.place}: its {what} {text[:40]!r}... has {count:,} words; expected at "
                f"most {MAX_WORDS}. Shorten it, or leave the row out."
            )


def _conversation_sample(reader: SampleReader, record: Record, column: str) -> Sample:
    turns = conversation(record.values[column], f"{record.place}: column {column!r}")
    images = [*turns.sources, *_images(reader, record)]
    if len(images) != turns.places:
        raise BedstoneError(
            f"{record.place}: column {column!r} has {turns.places:,} places for a picture "
            f"(<image>, or parts of type image), and the row has {len(images):,} pictures. "
            "Their number must match."
        )
    if len(images) != 1:
        raise BedstoneError(
            f"{record.place}: has {len(images):,} pictures; expected one. Split it, or leave "
            "it out."
        )
    (value,) = images
    if isinstance(value, str) and value.startswith(("http:", "https:", "data:")):
        raise BedstoneError(
            f"{record.place}: column {column!r} names a picture by an address ({value[:40]!r}); "
            "expected encoded bytes or a file. Fetch it first, and name its file."
        )
    image = read_file(record, value, f"column {column!r}")
    questions = tuple(
        Question(question, (answer,), answer_kind(answer)) for question, answer in turns.questions
    )
    _check_lengths(record, turns.captions, questions)
    return Sample(image, turns.captions, questions, record.place)


def _images(reader: SampleReader, record: Record) -> list[Any]:
    """The images of a row beside its conversation."""
    column = reader.held(record, "images") or reader.held(record, "image")
    value = record.values[column] if column is not None else []
    return list(value) if isinstance(value, list | tuple) else [value]


# The table of fields.

IMAGE = ("image", "img", "picture", "file_name", "image_path", "path", "jpg", "png")
AUDIO = ("audio", "sound", "wav", "file_name", "audio_path", "path", "bytes")
TEXT = ("text", "caption", "captions", "texts", "sentences")
CLASS = ("label", "labels", "class")
QUESTION, ANSWER = ("question", "questions"), ("answer", "answers")


@dataclass(frozen=True)
class Field:
    """A field of a row.

    Attributes:
        columns: the names that its column usually has.
        parse: reads it from a record; None where `labels`, `text.supervised` or another field do.
        part: its name in `columns`, where that is another.
    """

    columns: Sequence[str]
    parse: Callable[[SampleReader, Record], Any] | None = None
    part: str = ""


MESSAGES = ("messages", "conversations", "conversation")
# Rows of text by their columns.
ROW_FIELDS = {
    "text": Field(("text", "sentence", "sentence1", "premise", "question1")),
    "pair": Field(("text_pair", "sentence2", "hypothesis", "question2")),
    "label": Field(("label", "labels", "score", "stars")),
    "tokens": Field(("tokens", "words")),
    "tags": Field(("ner_tags", "tags", "labels")),
    "question": Field(("question",)),
    "context": Field(("context",)),
    "answers": Field(("answers",)),
    "choices": Field(("choices", "options", "endings")),
    "prompt": Field(("prompt",)),
    "system": Field(("system", "system_prompt")),
    "completion": Field(("completion",)),
    "instruction": Field(("instruction",)),
    "input": Field(("input",)),
    "output": Field(("output",)),
    "history": Field(("history",)),
    "messages": Field(MESSAGES),
    "tools": Field(("tools",)),
    "chosen": Field(("chosen",)),
    "rejected": Field(("rejected",)),
    "margin": Field(("margin",)),
    "source": Field(("source", "src", "document", "article", "text")),
    "target": Field(("target", "tgt", "summary", "highlights", "reference")),
}
# Rows with an image or a sound.
SAMPLE_FIELDS = {
    "image": Field(IMAGE, _image),
    "images": Field(("images", "pictures")),
    "audio": Field(AUDIO, _audio),
    "captions": Field(TEXT, _captions, part="text"),
    "class": Field(CLASS, _label, part="label"),
    "negatives": Field(("negatives", "negative", "hard_negatives"), _negatives),
    "questions": Field(QUESTION, _questions, part="question"),
    "answer": Field(ANSWER),
    "kind": Field(("kind", "kinds", "question_type", "answer_type")),
    "messages": Field(MESSAGES),
}
FIELDS = ROW_FIELDS | SAMPLE_FIELDS
