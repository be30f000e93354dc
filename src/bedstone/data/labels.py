"""Labels of rows: one label of several, several labels, numbers, a tag for each word, or which of
several choices is right.

Every fault of a row is raised before training begins, with its file, row, column and value.
"""

import difflib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bedstone.data.dataset import Dataset
from bedstone.errors import BedstoneError, nearest
from bedstone.settings import is_number

FIGURES = ("score", "stars")  # columns whose fractions are figures, not classes
NO_LABEL = "-100"  # what other libraries write where there is no label


def find_problem(rows: Dataset, column: str) -> str:
    """The kind of problem that the values of a column are: single, multi or regression."""
    values = [rows.value(i, column) for i in range(len(rows))]
    lists = sum(isinstance(value, list | tuple) for value in values)
    if lists and 2 * lists >= len(values):  # what most rows have is right
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
        found.append(figures_of(rows, number, column, count))
        count = len(found[0])
    return np.array(found, dtype=np.float32)


def figures_of(rows: Dataset, number: int, column: str, count: int | None) -> list[float]:
    """The numbers of one row; see `figures`."""
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
    return [float(each) for each in given]


class Namer:
    """Names of labels from the values of rows, which must have one type throughout.

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
        cells = [row.get(column) for row in rows.rows]
        kinds = Counter(type(cell) for cell in cells if isinstance(cell, str | int))
        if kinds:  # what most rows have is right, not what the first has
            kind = max(kinds, key=lambda each: kinds[each])
            self._first = next(i for i, cell in enumerate(cells) if type(cell) is kind), kind

    def name(self, row: int, value: Any) -> str:
        """The name of a value.

        Raises:
            BedstoneError: it is no label, of another type than the first, or none of those known.
        """
        kind = type(value)
        if str(value) == NO_LABEL:
            raise self._fault(
                row,
                value,
                f"{NO_LABEL} stands for no {self.what} in other libraries, and isn't learnt",
            )
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
    """The labels of each row, which may be none: a list of names, or a vector of 0 and 1."""
    namer, names = Namer(rows, column, labels), vector_names(rows, column, labels)
    return [several_of(namer, number, names) for number in range(len(rows))]


def several_of(namer: "Namer", number: int, names: Sequence[str] | None) -> list[str]:
    """The labels of one row.

    Args:
        names: of the places of a vector of 0 and 1; None where rows have lists of names.

    Raises:
        BedstoneError: the row has none such.
    """
    rows, column = namer.rows, namer.column
    value = rows.value(number, column)
    if not isinstance(value, list | tuple):
        raise rows.fault(
            number,
            column,
            f"is {str(value)[:60]!r} of type {type(value).__name__}; expected a list of labels",
            "Mend that row: every row needs a list, if one has it.",
        )
    if names is None:
        return list(dict.fromkeys(namer.name(number, each) for each in value))
    if len(value) != len(names) or not _vector(value):
        raise rows.fault(
            number,
            column,
            f"is {str(value)[:60]!r}; expected a vector of {len(names)} numbers, 0 or 1, as in "
            "other rows",
            "Mend it, or leave the row out.",
        )
    return [name for name, on in zip(names, value, strict=True) if on]


def vector_names(rows: Dataset, column: str, labels: Sequence[str] | None) -> list[str] | None:
    """The names of the places of vectors of 0 and 1, as `[0, 1, 1]`; None where rows hold names.

    Lists are vectors where most hold nothing but 0 and 1, and one repeats a number, as no list of
    classes does; or where all have one length of at least 2; or where they hold truth values.

    Raises:
        BedstoneError: the vectors have another length than there are labels.
    """
    lists = [row.get(column) for row in rows.rows]
    lists = [each for each in lists if isinstance(each, list | tuple) and each]
    vectors = [each for each in lists if _vector(each)]
    truths = any(type(one) is bool for each in lists for one in each)
    if not vectors or (not truths and 2 * len(vectors) <= len(lists)):
        return None
    sizes = Counter(map(len, vectors))
    (size, often), *_ = sizes.most_common(1)
    repeats = truths or any(len(set(each)) < len(each) for each in vectors)
    if not repeats and (size < 2 or often < len(lists)):
        return None  # numbers of classes: of several lengths, or with others than 0 and 1
    known = list(labels or rows.names.get(column) or map(str, range(size)))
    if len(known) == size:
        return known
    if not repeats:
        return None  # numbers of classes, none twice in a row
    raise BedstoneError(
        f"data {rows.name!r}: column {column!r} holds vectors of {size} numbers, 0 or 1, as "
        f"{vectors[0]}, and there are {len(known)} labels. Give each label a number, or rows lists "
        "of names."
    )


def _vector(value: Sequence[Any]) -> bool:
    return all(type(one) in (int, bool, float) and one in (0, 1) for one in value)


def tags(rows: Dataset, tokens: str, column: str, labels: Sequence[str] | None) -> list[list[str]]:
    """The tag of each word of each row.

    Raises:
        BedstoneError: a row has other than one tag a word, or one that is none of `labels`.
    """
    namer = Namer(rows, column, labels, "tag")
    return [tags_of(namer, number, tokens) for number in range(len(rows))]


def tags_of(namer: Namer, number: int, tokens: str) -> list[str]:
    """The tag of each word of one row."""
    rows, column = namer.rows, namer.column
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
    return [namer.name(number, each) for each in value]


def ordered(names: set[str]) -> tuple[str, ...]:
    """Labels in their order: numbers by size, `O` first, others by the alphabet."""
    if all(_whole(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names, key=lambda name: (name != "O", name)))


def label_weights(
    weights: str | Mapping[str, float], labels: Sequence[str], counts: np.ndarray
) -> np.ndarray:
    """The weight of a target of each label, (L,) float32.

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
        if not is_number(weight) or weight <= 0:
            raise BedstoneError(f"class_weights.{label}: is {weight!r}; expected a number above 0.")
        result[list(labels).index(str(label))] = weight
    return result


def checker(
    rows: Dataset, column: str, labels: Sequence[str] | None, problem: str
) -> Callable[[int], Any]:
    """What raises BedstoneError of a row whose label can't be learnt.

    Args:
        problem: single, multi or regression.
    """
    namer = Namer(rows, column, labels)
    if problem == "multi":
        names = vector_names(rows, column, labels)
        return lambda row: several_of(namer, row, names)
    if problem == "regression":
        sizes = Counter(_size(row.get(column)) for row in rows.rows)
        count = len(labels) if labels else max(sizes, key=lambda size: sizes[size], default=1)
        return lambda row: figures_of(rows, row, column, count)
    return lambda row: namer.name(row, rows.value(row, column))


def _size(value: Any) -> int:
    return len(value) if isinstance(value, list | tuple) and value else 1


# Names that may be one.

RARE = 10  # times as often as a name that may be a slip of it
NEAR = 0.85  # similarity, 0 to 1, of such names


def doubtful_names(counts: Mapping[str, int]) -> list[str]:
    """Sentences on labels that may be one: by case, spaces, Unicode form, zeros, or a slip.

    Args:
        counts: how often each label occurs.
    """
    forms: dict[Any, list[str]] = {}
    for name in counts:
        forms.setdefault(_form(name), []).append(name)
    found = []
    for names in forms.values():
        if len(names) > 1:
            each = ", ".join(f"{name!r} ({counts[name]:,})" for name in names[:8])
            found.append(f"labels {each} differ only by how they are written")
    by_count = sorted(forms.values(), key=lambda names: -sum(counts[name] for name in names))
    words = [names[0] for names in by_count if len(names[0]) > 4 and names[0].isalpha()]
    for place, name in enumerate(words[:MOST_COMPARED]):
        for other in words[place + 1 : MOST_COMPARED]:
            rare = counts[other] * RARE <= counts[name]
            if rare and _similar(name, other) and not _opposite(name, other):
                found.append(
                    f"label {other!r} ({counts[other]:,}) may be a slip of {name!r} "
                    f"({counts[name]:,})"
                )
    for name in counts:
        if len(counts) > 1 and (name == "-1" or name.strip().lower() in MISSING):
            found.append(
                f"label {name!r} ({counts[name]:,}) is what other libraries write where there is "
                "none"
            )
    if commas := [name for name in counts if _COMMA.fullmatch(name)]:
        found.append(
            f"labels {', '.join(map(repr, commas[:8]))} may be numbers with a decimal comma, which "
            "are read as names; write a point for regression"
        )
    return found


MOST_COMPARED = 200  # names
MISSING = ("nan", "na", "n/a", "<na>", "#n/a", "null", "none", "nil")  # in lower case
_COMMA = re.compile(r"-?[0-9]+,[0-9]+")


def _form(name: str) -> Any:
    """What two ways to write one name have in common."""
    kinds = {"Cf": "", "Pd": "-"}  # what can't be seen, and all kinds of dashes
    known = unicodedata.normalize("NFKC", name).casefold()
    text = " ".join("".join(kinds.get(unicodedata.category(one), one) for one in known).split())
    try:
        return float(text) if text.isascii() and len(text) < 16 else text
    except ValueError:
        return text


NEGATIONS = ("un", "in", "im", "ir", "non", "not", "dis", "mis", "anti")


def _opposite(one: str, other: str) -> bool:
    """Whether one name is the other with a prefix that negates: desirable and undesirable."""
    short, long = sorted((one.casefold(), other.casefold()), key=len)
    return long.endswith(short) and long.removesuffix(short) in NEGATIONS


def _similar(one: str, other: str) -> bool:
    return difflib.SequenceMatcher(None, one.casefold(), other.casefold()).ratio() >= NEAR


def _whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _guess(name: str, known: set[str]) -> str:
    return nearest(name, known) if len(known) <= 100 else f" ({len(known)} of them)"


# Questions with several answers to choose from.

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def choice_row(rows: Dataset, number: int) -> dict[str, Any]:
    """A row as an input of multiple-choice: other columns as they are."""
    named = {part: rows.value(number, rows.need(part)) for part in ("question", "choices")}
    return {**rows.rows[number], **named, "choices": listed_choices(named["choices"])}


def listed_choices(value: Any) -> Any:
    """Choices as a list; those of a text that is a JSON list, as a CSV has them."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def right_choice(rows: Dataset, number: int) -> int:
    """Which choice is right: a number from 0, a letter, or the choice itself.

    Raises:
        BedstoneError: it is none of the choices.
    """
    named = rows.columns.get("label")
    column = named or rows.column("answer") or rows.need("label")
    value = rows.value(number, column)
    choices = listed_choices(rows.value(number, rows.need("choices")))
    if isinstance(value, str) and value in choices:
        return list(choices).index(value)
    if isinstance(value, str) and len(value) == 1 and value.upper() in LETTERS[: len(choices)]:
        return LETTERS.index(value.upper())
    if isinstance(value, str) and value.isdecimal():  # of a CSV
        value = int(value)
    if isinstance(value, int) and 0 <= value < len(choices):
        return value
    raise rows.fault(
        number,
        column,
        f"is {value!r}, which is none of {len(choices)} choices",
        "Give its number from 0, its letter or its text.",
    )
