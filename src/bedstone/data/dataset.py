"""The dataset of a run: rows by their columns, or samples, that can be split, drawn and hashed.

Broken rows are left out, counted and named (`data.records.Faults`); too large a share of them is an
error.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bedstone.data.bytes import check_text
from bedstone.data.fields import FIELDS, ROW_FIELDS, TEMPLATES, Sample, StoredImage, name_columns
from bedstone.data.records import Faults, Reading
from bedstone.errors import BedstoneError, nearest
from bedstone.files import sha256

CONTENT = ("captions", "questions", "negatives", "label")  # of a sample, beside its image


class Dataset:
    """Rows in the source's order: dictionaries {column: value}, or `Sample`s.

    Args:
        rows: of one kind.
        name: what they are called in messages.
        columns: {part: column} of dictionaries, where the usual names (`data.fields`) aren't used.
        places: where each row is from; samples know it themselves.
        fields: of samples: which fields of `CONTENT` they are read for; they make the fingerprint.
        classes: names of all classes, in their order; () takes the labels of the samples.
        templates: what makes a text of a class's name.
        reading: what was found beside the rows when they were read: which were left out (`faults`),
            and what the numbers of a column stand for (`names`).

    Raises:
        BedstoneError: there is no row, or `columns` doesn't fit.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        name: str = "rows",
        columns: Mapping[str, str] | None = None,
        *,
        places: Sequence[str] | None = None,
        fields: Sequence[str] = CONTENT,
        classes: Sequence[str] = (),
        templates: Sequence[str] = TEMPLATES,
        reading: Reading | None = None,
    ) -> None:
        self.rows, self.name = list(rows), name
        self.columns = dict(columns or {})
        self.fields, self.templates = tuple(fields), tuple(templates)
        self.reading = reading or Reading()
        if self.reading.faults is None:
            none = Faults(name, 0.0, len(self.rows), option="")
            self.reading = replace(self.reading, faults=none)
        self._places = places
        self.samples = bool(self.rows) and isinstance(self.rows[0], Sample)
        if not self.rows:
            raise self._empty()
        self._known: set[str] = set()
        self.classes = tuple(classes)
        if self.samples:
            labels = {row.label for row in self.rows if row.label is not None}
            self.classes = self.classes or tuple(sorted(labels))
        else:
            self._known = {key for row in self.rows for key in row}
            self._check_columns()

    def _empty(self) -> BedstoneError:
        left = self.faults.left_out(" ")
        if self.fields == CONTENT:
            return BedstoneError(
                f"data {self.name!r}: holds no row. Name data with at least one.{left}"
            )
        what = "pair of a picture and a text" if "label" in self.fields else "picture"
        if "questions" in self.fields:
            what = "picture with a caption or a question"
        return BedstoneError(f"data {self.name!r}: holds no {what}.{left}")

    def _check_columns(self) -> None:
        for part, column in self.columns.items():
            if part not in ROW_FIELDS:
                raise BedstoneError(
                    f"columns: {part!r} is no part of a row{nearest(part, ROW_FIELDS)}."
                )
            if column not in self._known:
                raise BedstoneError(
                    f"columns.{part}: data {self.name!r} has no column {column!r}"
                    f"{nearest(str(column), map(str, self._known))}."
                )

    @property
    def faults(self) -> Faults:
        """Rows that were left out."""
        assert self.reading.faults is not None
        return self.reading.faults

    @property
    def names(self) -> Mapping[str, list[str]]:
        """What the numbers of columns stand for, where the data says it."""
        return self.reading.names

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return self.rows[row]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)

    def where(self, row: int) -> str:
        """Where a row is from, for a message: `train.jsonl: line 3`."""
        if self.samples:
            return self.rows[row].place
        return self._places[row] if self._places else f"{self.name}: row {row + 1:,}"

    # Splits and draws.

    def hold_out(
        self, share: float, classes: Sequence[Any] | None = None
    ) -> tuple["Dataset", "Dataset"]:
        """Rows to train on and rows held out: equal rows, or equal images, stay on one side.

        The content alone decides, so the order of the rows doesn't matter.

        Args:
            classes: of each row; the same share of each class is held out, at least one row where
                that leaves no class out, and never all.

        Raises:
            BedstoneError: a side would be empty.
        """
        if not self.samples and not 0 < share < 1:
            raise BedstoneError(f"validation_share: {share} is out of range; expected 0 to 1.")
        if classes is None:
            rows = (_image(row) if self.samples else _json(row) for row in self.rows)
            places = [_number(key) for key in rows]
            # of few rows chance may choose none, or all: one is held out, or kept, all the same
            first, last = min(places, default=0.0), max(places, default=0.0)
            held = [place == first or (place < share and place != last) for place in places]
        else:
            keys = self.keys()
            chosen = _stratified(keys, classes, share)
            held = [key in chosen for key in keys]
        sides = [[i for i, out in enumerate(held) if out is side] for side in (False, True)]
        if not all(sides):
            option = " (data.validation)" if self.samples else ""
            raise BedstoneError(
                f"data {self.name!r}: has too few rows ({len(self):,}) to hold out {share:.0%} of "
                f"them. Name more rows, or rows to validate on{option}."
            )
        return self.pick(sides[0]), self.pick(sides[1])

    def keys(self) -> list[bytes]:
        """What tells each row from others: all of it, or of a sample its image.

        Of images in files that is the name and the size, and of files with one name and size their
        content.
        """
        if not self.samples:
            return [_json(row) for row in self.rows]
        found = [_image(row) for row in self.rows]
        paths: dict[bytes, set[Path]] = {}
        for key, row in zip(found, self.rows, strict=True):
            if isinstance(row.image, Path):
                paths.setdefault(key.rpartition(b" ")[2], set()).add(row.image)
        sizes = {size for size, each in paths.items() if len(each) > 1}
        digests: dict[Path, bytes] = {}
        for number, row in enumerate(self.rows):
            if isinstance(row.image, Path) and found[number].rpartition(b" ")[2] in sizes:
                if row.image not in digests:
                    digests[row.image] = bytes.fromhex(sha256(row.image))
                found[number] = digests[row.image]
        return found

    def usable(self, check: Callable[[int], Any]) -> "Dataset":
        """The rows that a check passes; others are broken, and left out.

        Args:
            check: is given a row's number; raises BedstoneError where the row is broken.

        Raises:
            BedstoneError: too many are broken; the first are named.
        """
        good, faults = [], self.faults.copy()
        for number in range(len(self)):
            try:
                check(number)
                good.append(number)
            except BedstoneError as error:
                faults.add(error)
        faults.check()
        if len(good) == len(self):
            return self
        kept = self.pick(good)
        kept.reading = replace(self.reading, faults=faults)
        return kept

    def take(self, count: int, seed: int = 0) -> "Dataset":
        """At most `count` of the rows, drawn by `seed`, in their order; 0 takes all."""
        if not count or count >= len(self):
            return self
        drawn = np.random.default_rng(seed).permutation(len(self))[:count]
        return self.pick(sorted(drawn.tolist()))

    def pick(self, chosen: Sequence[int]) -> "Dataset":
        """Some of the rows, by their numbers; their places and the classes stay.

        Faults found later are counted of these rows alone, beside those that were left out before.
        """
        rows = [self.rows[i] for i in chosen]
        kept = set() if self.samples else {key for row in rows for key in row}
        return self._like(
            rows,
            columns={part: column for part, column in self.columns.items() if column in kept},
            places=None if self.samples else [self.where(i) for i in chosen],
        )

    def with_rows(self, rows: Sequence[dict[str, Any]]) -> "Dataset":
        """Other rows with the same columns, such as augmented ones."""
        return self._like(rows, columns=self.columns, places=None)

    def _like(
        self, rows: Sequence[Any], columns: Mapping[str, str], places: Sequence[str] | None
    ) -> "Dataset":
        return Dataset(
            rows,
            self.name,
            columns,
            places=places,
            fields=self.fields,
            classes=self.classes,
            templates=self.templates,
            reading=replace(self.reading, faults=self.faults.copy()),
        )

    def fingerprint(self) -> str:
        """A hash (hex) of all rows in their order; of images in files, their names and sizes."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(self._content(row) + _image(row) if self.samples else _json(row))
        return digest.hexdigest()

    def _content(self, row: Sample) -> bytes:
        """All that a sample says, without its image."""
        questions = [(one.question, one.answers, one.kind) for one in row.questions]
        values = {**vars(row), "questions": questions}
        return "".join(f"{values[name]!r} " for name in CONTENT if name in self.fields).encode()

    def describe(self) -> str:
        """How many rows, texts, questions and classes there are, in a line."""
        if not self.samples:
            return f"{len(self):,} rows{self.faults.left_out('; ')}"
        images = len(set(self.keys()))
        text = f"{images:,} pictures"
        text += f" in {len(self):,} rows" if images < len(self) else ""
        captions = sum(len(row.captions) for row in self.rows)
        if "questions" in self.fields:
            text += f", {captions:,} captions" if captions else ""
            if questions := sum(len(row.questions) for row in self.rows):
                text += f", {questions:,} questions, {len(self.answers):,} different answers"
        elif "captions" in self.fields:
            text += f", {captions:,} texts"
            text += f", {len(self.classes):,} classes" if self.classes else ""
        return text + self.faults.left_out("; ")

    # Samples.

    @property
    def answers(self) -> Counter[str]:
        """How often each answer is right, over the questions of all samples."""
        questions = [one for row in self.rows for one in row.questions]
        return Counter(answer for one in questions for answer in one.answers)

    def all_texts(self) -> Iterator[str]:
        """Every caption, negative, question and answer of the samples, in the rows' order."""
        for row in self.rows:
            yield from row.captions
            yield from row.negatives
            for one in row.questions:
                yield one.question
                yield from one.answers

    # Rows by column.

    def column(self, part: str) -> str | None:
        """The column that holds a part; None where there is none."""
        if part in self.columns:
            return self.columns[part]
        return next((name for name in FIELDS[part].columns if name in self._known), None)

    def need(self, part: str) -> str:
        """The column that holds a part.

        Raises:
            BedstoneError: there is none; it names the columns there are.
        """
        column = self.column(part)
        if column is None:
            have = ", ".join(sorted(repr(str(key)) for key in self._known)[:20])
            usual = " or ".join(FIELDS[part].columns)
            raise BedstoneError(
                f"data {self.name!r}: has no column for the {part} ({usual}); it has {have}. "
                f"{name_columns(part)}"
            )
        return column

    def value(self, row: int, column: str) -> Any:
        """A row's value in a column.

        Raises:
            BedstoneError: it is missing, or null.
        """
        value = self.rows[row].get(column)
        if value is None:
            missing = "null" if column in self.rows[row] else "missing"
            raise self.fault(row, column, f"is {missing}", "Fill it in, or leave the row out.")
        return value

    def texts(self, column: str, *, empty: bool = False) -> list[str]:
        """A column of texts.

        Args:
            empty: whether a text may be empty; null then is.

        Raises:
            BedstoneError: one is no text that a tokenizer can read, naming its row.
        """
        return [self.text(number, column, empty=empty) for number in range(len(self))]

    def text(self, row: int, column: str, *, empty: bool = False) -> str:
        """One text of a column; see `texts`."""
        value = self.rows[row].get(column)
        if not (empty and (value is None or value == "")):
            check_text(self.value(row, column), f"{self.where(row)}: column {column!r}")
        return value or ""

    def fault(self, row: int, column: str, what: str, advice: str) -> BedstoneError:
        """The error that a row has in a column."""
        return BedstoneError(f"{self.where(row)}: column {column!r} {what}. {advice}")


def image_numbers(rows: Dataset, chosen: Sequence[int]) -> list[int]:
    """A number for the image of each of these rows; equal images have equal numbers."""
    keys = rows.keys()
    numbers: dict[bytes, int] = {}
    return [numbers.setdefault(keys[row], len(numbers)) for row in chosen]


def _stratified(keys: Sequence[bytes], classes: Sequence[Any], share: float) -> set[bytes]:
    """The contents that are held out: of each class the share of them with the least numbers."""
    members: dict[str, list[bytes]] = {}
    known: set[bytes] = set()
    for key, name in zip(keys, classes, strict=True):
        if key not in known:
            members.setdefault(str(name), []).append(key)
            known.add(key)
    least = int(share * len(known) >= len(members))
    chosen: set[bytes] = set()
    for each in members.values():
        count = min(max(round(share * len(each)), least), len(each) - 1)
        chosen |= set(sorted(each, key=_number)[:count])
    spare = [key for each in members.values() if len(each) > 1 for key in each]
    return chosen or set(sorted(spare, key=_number)[:1])


def _json(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, sort_keys=True, default=str).encode()


def _image(row: Sample) -> bytes:
    """What tells an image from another; of a file, its name and size."""
    image: StoredImage | None = row.image
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    if isinstance(image, Path):
        return f"{image.name} {image.stat().st_size}".encode()
    if isinstance(image, np.ndarray):
        return hashlib.sha256(image.tobytes()).digest()
    return row.place.encode()  # a drawn image is drawn by its place alone


def _number(content: bytes) -> float:
    """A number from 0 to 1 that the content alone decides."""
    return int.from_bytes(hashlib.sha256(content).digest()[:6], "big") / 2**48
