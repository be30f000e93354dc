"""What was understood of a run's data, said before training: columns, classes, duplicates, doubts.

A doubt is what may have been read in another way than it was meant: labels that differ by case or
spaces, equal rows in training and validation, equal texts with different labels. `--strict`
refuses data with doubts.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bedstone.data.dataset import Dataset
from bedstone.data.labels import doubtful_names
from bedstone.errors import BedstoneError

SHOWN = 12  # classes that a line names
TARGETS = ("label", "tags", "answers", "output")  # fields that are learnt, not read
SCARCE = 2  # rows of a class, from which it can't be learnt and measured


@dataclass
class Summary:
    """Lines for people, and the doubts among them.

    Attributes:
        lines: what was understood.
        doubts: what may have been misunderstood, a sentence each.
    """

    lines: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def text(self) -> list[str]:
        """All lines, the doubts marked."""
        return [*self.lines, *(f"doubtful: {doubt}" for doubt in self.doubts)]

    def check(self) -> None:
        """Raises BedstoneError where there is a doubt, naming each."""
        if self.doubts:
            raise BedstoneError(
                "strict: what is doubtful in the data: "
                f"{'; '.join(self.doubts[:SHOWN])}. Mend the data, or leave strict out."
            )


def summarise(
    splits: Mapping[str, Dataset],
    labels: Mapping[str, Sequence[Any]] | None = None,
    parts: Sequence[str] = (),
) -> Summary:
    """What was understood of the rows of a run.

    Args:
        splits: the rows by their split: train, validation, test.
        labels: of each split the labels of each row: a name, several names, or numbers.
        parts: fields of rows of text that are used; those of `TARGETS` are no input.
    """
    found = Summary()
    first = next(iter(splits.values()))
    if not first.samples:
        used = {part: name for part in parts if (name := first.column(part))}
        columns = (f"{part} from {name!r} ({_kinds(first, name)})" for part, name in used.items())
        found.lines += [f"columns: {', '.join(columns)}"] if used else []
    for rows in splits.values():
        found.lines += [note for note in rows.reading.notes if note not in found.lines]
        found.doubts += [doubt for doubt in rows.reading.doubts if doubt not in found.doubts]
    if labels:
        _classes(found, labels)
    _duplicates(found, splits, labels or {}, parts)
    return found


def _kinds(rows: Dataset, column: str) -> str:
    """The types of a column's cells, the commonest first."""
    names = {"str": "text", "int": "whole numbers", "float": "fractions", "bool": "true or false"}
    names |= {"list": "lists", "tuple": "lists", "dict": "objects", "bytes": "bytes"}
    counts = Counter(type(row.get(column)).__name__ for row in rows.rows)
    counts.pop("NoneType", None)
    return " and ".join(names.get(kind, kind) for kind, _ in counts.most_common()) or "empty"


def class_counts(labels: Sequence[Any]) -> Counter[str]:
    """How often each class occurs: one or several names a row; empty where rows have numbers."""
    counts: Counter[str] = Counter()
    for each in labels:
        if isinstance(each, str):
            counts.update([each] if each else [])  # "" is a row without a label
        elif isinstance(each, list | tuple) and all(isinstance(one, str) for one in each):
            counts.update(each)
    return counts


def _classes(found: Summary, labels: Mapping[str, Sequence[Any]]) -> None:
    counts = {split: class_counts(each) for split, each in labels.items()}
    together: Counter[str] = sum(counts.values(), Counter())
    if not together or not next(iter(counts.values())):  # nothing is learnt from labels
        return
    order = [name for name, _ in together.most_common()]
    shown = [
        f"{name!r} {' / '.join(f'{each[name]:,}' for each in counts.values())}"
        for name in order[:SHOWN]
    ]
    more = f", and {len(order) - SHOWN:,} more" if len(order) > SHOWN else ""
    found.lines.append(
        f"{len(order):,} classes, rows of {' / '.join(counts)}: {', '.join(shown)}{more}"
    )
    found.doubts += doubtful_names(together)
    train = next(iter(counts.values()))
    if absent := [name for name in order if not train[name]]:
        found.doubts.append(f"no row of training has the class {_listed(absent)}")
    if scarce := [name for name in order if 0 < train[name] < SCARCE]:
        found.doubts.append(f"one row of training has the class {_listed(scarce)}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def _duplicates(
    found: Summary,
    splits: Mapping[str, Dataset],
    labels: Mapping[str, Sequence[Any]],
    parts: Sequence[str],
) -> None:
    """Rows with equal inputs: within a split, in two splits, and with different labels."""
    seen: dict[bytes, str] = {}  # the first label of each input
    homes: dict[bytes, str] = {}
    again: Counter[str] = Counter()
    across: Counter[str] = Counter()
    against: dict[bytes, str] = {}
    for split, rows in splits.items():
        said = labels.get(split) or [""] * len(rows)
        keys = _inputs(rows, parts)
        for number, (key, label) in enumerate(zip(keys, said, strict=True)):
            if key not in homes:
                homes[key], seen[key] = split, str(label)
                continue
            again[split] += homes[key] == split
            across[split] += homes[key] != split
            if str(label) != seen[key]:
                against.setdefault(key, rows.where(number))
    for split, count in again.items():
        if count:
            found.lines.append(f"{count:,} rows of {split} repeat the input of another")
    for split, count in across.items():
        if count:
            found.doubts.append(
                f"{count:,} rows of {split} have the input of a row of another split"
            )
    if against:
        found.doubts.append(
            f"{len(against):,} inputs have several labels, the first at "
            f"{next(iter(against.values()))}"
        )


def _inputs(rows: Dataset, parts: Sequence[str]) -> list[bytes]:
    """What a model reads of each row, as a hash."""
    if rows.samples:
        return rows.keys()
    read = [rows.column(part) for part in parts if part not in TARGETS]
    names = [name for name in read if name]
    found = []
    for row in rows:
        values = [row.get(name) for name in names or sorted(row)]
        found.append(hashlib.sha256(json.dumps(values, default=str).encode()).digest())
    return found
