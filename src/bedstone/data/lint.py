"""What is wrong with the rows of a run, looked for before weights learn from them.

Rows come once, split by split, as `Item`s; of each some hashes are kept, of 8 bytes, and 256 bytes
where near-duplicates are looked for. What is found is a `Finding`: an error stops a pipeline, a
warning is to be looked at, a note is good to know. Personal data are counted and never shown.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bedstone.data.near import NearImages, NearTexts
from bedstone.errors import BedstoneError

LEVELS = ("error", "warning", "note")
SHOWN = 3  # places that a finding names
SERIOUS = 0.01  # share of the rows from which a leak, a broken row or a conflict is an error
SHORT = 30  # characters of a text that may recur by chance, such as a greeting
MANY = 0.05  # share of rows that repeat others from which it is a warning
RARE = 20  # times that the commonest class outnumbers the rarest, from which it is noted
SHIFT = 0.1  # total variation of the classes' shares between two splits, beyond chance
NEAR_ROWS = 1_000_000  # rows of which near-duplicates are looked for
NEAR_IMAGES = 20_000  # pictures that are decoded for it


class Item(NamedTuple):
    """A row, as a model learns it.

    Attributes:
        text: what is read: a text, a prompt, a source, a question; "" where nothing is.
        target: what is learnt to be written; None where the label alone is learnt.
        label: a class, several, or a number; None where there is none.
        image: a key that equal pictures share; None where there is no picture.
        pixels: decodes the picture, (h, w, 3) uint8.
    """

    text: str = ""
    target: str | None = None
    label: Any = None
    image: int | None = None
    pixels: Callable[[], np.ndarray] | None = None


@dataclass
class Rows:
    """The rows of a split.

    Attributes:
        items: in their order.
        where: the place of a row by its number, such as `train.jsonl: line 3`.
        broken: rows that were left out, by what is wrong with each.
        near: whether near-duplicates are looked for.
    """

    items: Iterable[Item]
    where: Callable[[int], str]
    broken: Sequence[str] = ()
    near: bool = True


@dataclass
class Finding:
    """Something found.

    Attributes:
        check: its kind, such as `leak`.
        level: error, warning or note.
        what: a sentence with the figures.
        count: how many rows, texts or pictures.
        places: up to three.
        advice: what to do.
    """

    check: str
    level: str
    what: str
    count: int
    places: list[str] = field(default_factory=list)
    advice: str = ""

    def text(self) -> str:
        """A line with the places, and one with the advice."""
        places = f" ({'; '.join(self.places)})" if self.places else ""
        advice = f"\n    {self.advice}" if self.advice else ""
        return f"{self.level}: {self.what}{places}{advice}"

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def by_level(findings: Iterable[Finding]) -> list[Finding]:
    """The gravest first."""
    return sorted(findings, key=lambda each: LEVELS.index(each.level))


def lint(
    splits: Mapping[str, Rows], *, near: bool = True, images: int = NEAR_IMAGES
) -> list[Finding]:
    """Everything that is found in the splits of a run, the gravest first.

    Args:
        splits: `train` first, then what is held out.
        near: whether near-duplicates are looked for.
        images: pictures of each split that are decoded, spread over it.
    """
    seen = _Seen(near=near, images=images)
    for split, rows in splits.items():
        seen.read(split, rows)
    found = [*seen.repeats(), *seen.near_repeats(), *seen.labels(), *seen.single_rows()]
    return by_level(found)


# Texts: what no text should hold, and what one may not want to learn.

_ENCODING = {
    "replacement characters (U+FFFD)": re.compile("\ufffd"),
    "control characters": re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f]"),
    "UTF-8 that was read as Latin-1 (such as Ã©)": re.compile(
        "Ã[\x80-\xbf\u0192\u201a\u2014\u00bc]|â€[\u2122\u0153\u009d\u201c\u201d\u02dc]|Â[\xa0-\xbf]"
    ),
}
_EMAIL = re.compile(r"[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,24}\b")
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(0?\d{1,4}\)|\d{1,4})(?:[ .-]?\d{2,4}){2,4}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}([.-])\d{3}\1\d{4})(?![\w-]|\.\d)"
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(
    r"(?<![\w.,-])(?:4\d{3}|5[1-5]\d{2}|2[2-7]\d{2}|6011|65\d{2})(?:([ -]?)\d{4}\1\d{4}\1\d{4})"
    r"(?![\w-])|(?<![\w.,-])3[47]\d{2}([ -]?)\d{6}\2\d{5}(?![\w-])"
)


def _is_iban(text: str) -> bool:
    """Whether the checksum is right (ISO 13616: 1 modulo 97)."""
    plain = text.replace(" ", "")
    digits = "".join(str(int(letter, 36)) for letter in plain[4:] + plain[:4])
    return 15 <= len(plain) <= 34 and int(digits) % 97 == 1


def _is_card(text: str) -> bool:
    """Whether the checksum is right (ISO 7812: Luhn's)."""
    digits = [int(letter) for letter in text if letter.isdigit()][::-1]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1


_PERSONAL: dict[str, tuple[re.Pattern[str], Callable[[str], bool], str]] = {
    "e-mail addresses": (_EMAIL, lambda text: True, "note"),
    "phone numbers": (_PHONE, lambda text: 8 <= sum(map(str.isdigit, text)) <= 15, "note"),
    "bank accounts (IBAN)": (_IBAN, _is_iban, "warning"),
    "card numbers": (_CARD, _is_card, "warning"),
}
_DIGITS = re.compile(r"(?:\d[ ().-]{0,2}){7}")  # in every kind but e-mail


def personal(text: str) -> list[str]:
    """The kinds of personal data that a text holds, one for each that is found."""
    found: list[str] = []
    mail, digits = "@" in text, bool(_DIGITS.search(text))
    for kind, (pattern, check, _) in _PERSONAL.items():
        if mail if pattern is _EMAIL else digits:
            found += [kind for match in pattern.finditer(text) if check(match[0])]
    return found


class _Tally:
    """How often something was found, and the first places."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()
        self.places: dict[str, list[str]] = {}

    def add(self, kind: str, place: Callable[[], str], count: int = 1) -> None:
        self.counts[kind] += count
        self.rows[kind] += 1
        known = self.places.setdefault(kind, [])
        if len(known) < SHOWN and (where := place()) not in known:
            known.append(where)


_NOTHING = 0  # the hash of no label and of no picture


class _Seen:
    """What is kept of the rows of all splits."""

    def __init__(self, *, near: bool, images: int) -> None:
        self.near, self.most_images = near, images
        self.splits: list[str] = []
        self.wheres: list[Callable[[int], str]] = []
        self.sizes: list[int] = []
        # of each row: its input, its target with its label, its picture
        self.hashes: list[list[int]] = [[], [], []]
        self.short: list[bool] = []  # texts that recur by chance
        self.counts: dict[str, Counter[str]] = {}
        self.first: dict[str, dict[str, str]] = {}  # of each split the first place of each class
        self.labelled = self.written = self.figures = False
        self.tally = _Tally()
        self.texts, self.images = NearTexts(), NearImages()
        self.broken: dict[str, Sequence[str]] = {}

    def read(self, split: str, rows: Rows) -> None:
        """One pass over the rows of a split."""
        before, number = len(self.hashes[0]), 0
        counts = self.counts.setdefault(split, Counter())
        first = self.first.setdefault(split, {})
        near = self.near and rows.near
        inputs, targets, pictures = self.hashes
        held = getattr(rows.items, "__len__", lambda: 0)()
        stride = max(-(-held // self.most_images), 1) if self.most_images else 0
        for number, item in enumerate(rows.items, 1):
            place = lambda at=number - 1: rows.where(at)  # noqa: E731
            target = item.target if item.target is not None else ""
            self.written |= item.target is not None
            inputs.append(
                hash((item.text, item.image)) if item.text or item.image else hash(target)
            )
            targets.append(hash((target, _hashable(item.label))))
            pictures.append(item.image or _NOTHING)
            self.short.append(not item.image and len(item.text or target) < SHORT)
            self._label(item.label, counts, first, place)
            self._text(item, target, place)
            if near and before + number <= NEAR_ROWS and item.image is None:
                self.texts.add(
                    before + number - 1, f"{item.text}\n{target}" if target else item.text
                )
            if stride and item.pixels is not None and (number - 1) % stride == 0:
                self._picture(before + number - 1, item.pixels, place)
        self.splits.append(split)
        self.wheres.append(rows.where)
        self.sizes.append(number)
        if rows.broken:
            self.broken[split] = rows.broken

    def _label(
        self, label: Any, counts: Counter[str], first: dict[str, str], place: Callable[[], str]
    ) -> None:
        if label is None:
            return
        self.labelled = True
        for name in label if isinstance(label, list | tuple) else (label,):
            if not isinstance(name, str):
                self.figures = True
                return
            counts[name] += 1
            if name not in first:
                first[name] = place()

    def _text(self, item: Item, target: str, place: Callable[[], str]) -> None:
        if item.target is not None and not target.strip():
            self.tally.add("empty", place)
        for text in (item.text, target):
            if not text:
                continue
            if not text.isascii() or not text.isprintable():
                for kind, pattern in _ENCODING.items():
                    if pattern.search(text):
                        self.tally.add(kind, place)
            for kind in personal(text):
                self.tally.add(kind, place)

    def _picture(
        self, number: int, pixels: Callable[[], np.ndarray], place: Callable[[], str]
    ) -> None:
        try:
            self.images.add(number, pixels())
        except BedstoneError:
            self.tally.add("broken", place)

    # What follows from it.

    def _place(self, row: int) -> tuple[int, str]:
        """The number of a row's split, and its place."""
        at, before = 0, 0
        while row >= before + self.sizes[at]:
            before += self.sizes[at]
            at += 1
        return at, self.wheres[at](row - before)

    def _of(self) -> np.ndarray:
        """(N,) the number of each row's split."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def repeats(self) -> list[Finding]:
        """Equal rows within a split and in two, equal pictures, and inputs with several labels."""
        inputs, targets, pictures = (np.array(each, dtype=np.int64) for each in self.hashes)
        # of what is written the whole row counts: a question may have several answers
        keys = inputs if self.labelled and not self.written else inputs * 31 + targets
        found = self._repeated(keys)
        if pictures.any():
            found += self._shared_pictures(keys, pictures)
        elif self.written:
            found += self._same_inputs(inputs, keys)
        if self.labelled and not self.figures and not self.written:
            found += self._conflicts(inputs, targets)
        return found

    def _repeated(self, keys: np.ndarray) -> list[Finding]:
        first = _first_equal(keys)
        split, again = self._of(), np.flatnonzero(first >= 0)
        inside = again[split[first[again]] == split[again]]
        across = again[split[first[again]] != split[again]]
        found = []
        for at, name in enumerate(self.splits):
            rows = inside[split[inside] == at]
            if len(rows):
                share = len(rows) / self.sizes[at]
                found.append(
                    Finding(
                        "duplicates",
                        "warning" if share >= MANY else "note",
                        f"{len(rows):,} rows of {name} ({share:.1%}) repeat another of it",
                        len(rows),
                        self._pairs(rows, first),
                        "Leave repeated rows out, unless they are meant to count more.",
                    )
                )
            rows = across[split[across] == at]
            if len(rows):
                found.append(self._leak(name, at, rows, first, "leak", "are in another split"))
        return found

    def _same_inputs(self, inputs: np.ndarray, keys: np.ndarray) -> list[Finding]:
        """Held-out rows that have the input of a training row, with another target."""
        train = self._of() == 0
        shared = np.isin(inputs, inputs[train]) & ~np.isin(keys, keys[train]) & ~train
        rows = np.flatnonzero(shared)
        if not len(rows):
            return []
        what = f"{len(rows):,} held-out rows have the input of a training row, with another target"
        advice = "Split by input, if the answer to an input is to be learnt and not looked up."
        places = [self._place(int(row))[1] for row in rows[:SHOWN]]
        return [Finding("same-input", "note", what, len(rows), places, advice)]

    def _leak(
        self, name: str, at: int, rows: np.ndarray, first: Any, check: str, what: str
    ) -> Finding:
        share = len(rows) / self.sizes[at]
        grave = (~np.array(self.short)[rows]).sum() >= SERIOUS * self.sizes[at]
        return Finding(
            check,
            "error" if grave and check == "leak" else "warning",
            f"{len(rows):,} rows of {name} ({share:.1%}) {what}, so figures on {name} are too good",
            len(rows),
            self._pairs(rows, first),
            "Leave them out of one of the two splits.",
        )

    def _pairs(self, rows: np.ndarray, first: Any) -> list[str]:
        """The places of some rows, each with that of the row that it repeats."""
        return [
            f"{self._place(int(row))[1]} = {self._place(int(first[row]))[1]}"
            for row in rows[:SHOWN]
        ]

    def _shared_pictures(self, keys: np.ndarray, pictures: np.ndarray) -> list[Finding]:
        """Pictures that several rows have which aren't equal otherwise."""
        first = _first_equal(pictures)
        first[pictures == _NOTHING] = -1
        split, again = self._of(), np.flatnonzero(first >= 0)
        again = again[_first_equal(keys)[again] < 0]  # equal rows are counted as such
        found = []
        for at, name in enumerate(self.splits):
            rows = again[split[again] == at]
            across = rows[split[first[rows]] != at]
            inside = rows[split[first[rows]] == at]
            if len(across):
                found.append(
                    Finding(
                        "shared-pictures",
                        "warning",
                        f"{len(across):,} rows of {name} have a picture of another split, "
                        "with other texts",
                        len(across),
                        self._pairs(across, first),
                        "Split by picture, so that figures tell how new pictures are read.",
                    )
                )
            if len(inside):
                what = f"{len(inside):,} rows of {name} share a picture with another row"
                places = self._pairs(inside, first)
                found.append(Finding("shared-pictures", "note", what, len(inside), places))
        return found

    def _conflicts(self, inputs: np.ndarray, targets: np.ndarray) -> list[Finding]:
        first = _first_equal(inputs)
        rows = np.flatnonzero(first >= 0)
        rows = rows[targets[rows] != targets[first[rows]]]
        if not len(rows):
            return []
        share = len(rows) / len(inputs)
        return [
            Finding(
                "conflicts",
                "error" if share >= SERIOUS else "warning",
                f"{len(rows):,} rows ({share:.1%}) have another label than a row with equal input",
                len(rows),
                self._pairs(rows, first),
                "Keep the right label; a model can't learn both.",
            )
        ]

    def near_repeats(self) -> list[Finding]:
        """Near-duplicates within a split and in two, of texts and of pictures."""
        found = []
        kinds = (
            ("near-duplicates", "rows", self.texts),
            ("near-pictures", "pictures", self.images),
        )
        keys = np.array(self.hashes[0], dtype=np.int64)
        pictures = np.array(self.hashes[2], dtype=np.int64)
        for check, noun, near in kinds:
            first: dict[int, int] = {}
            for one, two in near.pairs():
                exact = pictures if near is self.images else keys
                if exact[one] != exact[two] or exact[one] == _NOTHING:  # equal ones are known
                    first[two] = one
            homes = {row: (self._place(row)[0], self._place(first[row])[0]) for row in first}
            for at, name in enumerate(self.splits):
                inside = [row for row, home in homes.items() if home == (at, at)]
                across = [row for row, (own, other) in homes.items() if own == at != other]
                if across:
                    rows = np.array(across)
                    what = f"are nearly equal to {noun} of another split"
                    found.append(self._leak(name, at, rows, first, f"near-leak-{noun}", what))
                if inside:
                    share = len(inside) / self.sizes[at]
                    found.append(
                        Finding(
                            check,
                            "warning" if share >= MANY else "note",
                            f"{len(inside):,} {noun} of {name} ({share:.1%}) are nearly equal to "
                            "another of it",
                            len(inside),
                            self._pairs(np.array(inside), first),
                            "Keep one of each, unless they are meant to count more.",
                        )
                    )
        return found

    def labels(self) -> list[Finding]:
        """The balance of classes, and how it differs between splits."""
        if self.figures or not any(self.counts.values()):
            return []
        train, *held = self.splits
        own = self.counts[train]
        found = []
        if own:
            most, least = max(own, key=own.__getitem__), min(own, key=own.__getitem__)
            if own[most] >= RARE * own[least]:
                what = f"{most!r} is {own[most]:,} times the class in {train}, and {least!r} "
                what += f"{own[least]:,} times"
                advice = (
                    "Look at the figures of each class; class_weights may help, where there are."
                )
                places = [self.first[train][least]]
                found.append(Finding("balance", "note", what, own[least], places, advice))
        for name in held:
            found += self._shift(train, name)
        return found

    def _shift(self, train: str, name: str) -> list[Finding]:
        own, other = self.counts[train], self.counts[name]
        if not own or not other:
            return []
        found = []
        if new := sorted(set(other) - set(own)):
            count = sum(other[each] for each in new)
            what = f"{count:,} labels of {name} are of a class that {train} lacks: "
            what += ", ".join(map(repr, new[:SHOWN]))
            places = [self.first[name][each] for each in new[:SHOWN]]
            advice = f"Add rows of it to {train}, or mend its spelling: it can't be learnt."
            found.append(Finding("unknown-class", "error", what, count, places, advice))
        size = sum(other.values())
        share = {each: own[each] / sum(own.values()) for each in own}
        # three rows or more are expected, so that none is no chance
        if lost := sorted(each for each in set(own) - set(other) if share[each] * size >= 3):
            what = f"{name} lacks the class {', '.join(map(repr, lost[:SHOWN]))}, which "
            what += f"{sum(own[each] for each in lost):,} labels of {train} are of"
            advice = f"Figures on {name} don't say how well it is learnt; draw rows by class."
            places = [self.first[train][each] for each in lost[:SHOWN]]
            found.append(Finding("missing-class", "warning", what, len(lost), places, advice))
        every = set(own) | set(other)
        moved = {each: other[each] / size - share.get(each, 0.0) for each in every}
        chance = sum((part * (1 - part) / size) ** 0.5 for part in share.values())
        apart = sum(map(abs, moved.values())) / 2
        if apart > SHIFT + chance:
            most = max(moved, key=lambda each: abs(moved[each]))
            what = f"the classes of {name} are others than those of {train}: {most!r} has "
            what += f"{share.get(most, 0.0):.0%} of {train} and {other[most] / size:.0%} of {name}"
            advice = "Draw both splits from the same rows, unless the shift is meant."
            found.append(Finding("shift", "warning", what, round(apart * size), [], advice))
        return found

    def single_rows(self) -> list[Finding]:
        """What is wrong with a row by itself."""
        found, tally = [], self.tally
        total = max(len(self.hashes[0]), 1)
        for split, broken in self.broken.items():
            share = len(broken) / (self.sizes[self.splits.index(split)] + len(broken))
            level = "error" if share >= SERIOUS else "warning"
            what = f"{len(broken):,} rows of {split} ({share:.1%}) are broken and left out"
            places = [each[:200] for each in broken[:SHOWN]]
            found.append(Finding("broken", level, what, len(broken), places, "Mend them."))
        for kind, count in tally.counts.items():
            rows, places = tally.rows[kind], tally.places[kind]
            if kind == "empty":
                what, advice = (
                    f"{count:,} rows have an empty target",
                    "Fill it in, or leave it out.",
                )
                found.append(Finding("empty", "error", what, count, places, advice))
            elif kind == "broken":
                level = "error" if rows >= SERIOUS * total else "warning"
                what, advice = f"{count:,} pictures can't be decoded", "Save them again."
                found.append(Finding("broken-pictures", level, what, count, places, advice))
            elif kind in _ENCODING:
                what, advice = f"{count:,} texts hold {kind}", "Read the file in its own encoding."
                found.append(Finding("encoding", "warning", what, count, places, advice))
            else:
                level = _PERSONAL[kind][2]
                what = f"{count:,} {kind} in {rows:,} texts"
                advice = "A model may repeat them. Take them out, unless you may publish them."
                found.append(Finding("personal", level, what, count, places, advice))
        return found


def _first_equal(keys: np.ndarray) -> np.ndarray:
    """(N,) of each key the place of the first equal one; -1 where it is itself the first."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    found: np.ndarray = first[inverse]
    found[found == np.arange(len(keys))] = -1
    return found


def _hashable(label: Any) -> Any:
    return tuple(label) if isinstance(label, list) else label
