"""Glossaries: terms of a source text and their translations; found in sources, counted in outputs.

A glossary is a CSV or TSV of source and target terms. A term is found where its words stand whole,
in any case; where terms overlap, the longest counts. Chinese characters and kana are words of one
character each, as nothing separates them.
"""

import csv
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.reading import read_text, shown, to_path

LIMIT = 64 << 20  # bytes of a file
# Names of the columns in a header, in any case.
SOURCES = ("source", "source term", "source_term", "src", "term")
TARGETS = ("target", "target term", "target_term", "tgt", "translation")
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # kana and Chinese characters
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+|[^\w\s]")
Words = tuple[str, ...]


def is_alone(character: str) -> bool:
    """Whether a character is a word of its own, of a script without spaces."""
    return re.match(f"[{_ALONE}]", character) is not None


def words_of_text(text: str) -> Words:
    """Words and marks of a text, in small letters: what terms are compared by."""
    return tuple(_WORD.findall(unicodedata.normalize("NFC", text).casefold()))


@dataclass(frozen=True)
class Term:
    """A source term and its target terms, of which one is enough."""

    source: str
    targets: tuple[str, ...]


@dataclass
class Honoured:
    """Terms of sources that stand in the outputs.

    Attributes:
        terms: how many a glossary asks for.
        found: how many of them are there.
        missing: of each output that lacks some, its number and the terms.
    """

    terms: int = 0
    found: int = 0
    missing: list[tuple[int, Term]] = field(default_factory=list)

    @property
    def share(self) -> float | None:
        return self.found / self.terms if self.terms else None


class Glossary:
    """Terms by the words they begin with.

    Args:
        pairs: source and target terms; several targets of a source are alternatives, and so are
            those in one text with bars between them: `sea|ocean`.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        names: dict[Words, str] = {}
        targets: dict[Words, dict[str, None]] = {}
        for source, target in pairs:
            words = words_of_text(source)
            names.setdefault(words, source.strip())
            parts = (part.strip() for part in target.split("|"))
            targets.setdefault(words, {}).update(dict.fromkeys(parts))
        self.terms = [Term(name, tuple(targets[words])) for words, name in names.items()]
        self._starts: dict[str, list[tuple[Words, Term]]] = {}
        for words, term in zip(names, self.terms, strict=True):
            self._starts.setdefault(words[0], []).append((words, term))

    def __len__(self) -> int:
        return len(self.terms)

    def __repr__(self) -> str:
        return f"<{len(self):,} terms>"

    def find(self, source: str) -> list[Term]:
        """The terms in a source, each once, in their order there."""
        words = words_of_text(source)
        places = [
            (len(own), start, term)
            for start, word in enumerate(words)
            for own, term in self._starts.get(word, ())
            if words[start : start + len(own)] == own
        ]
        taken: set[int] = set()
        found: list[tuple[int, Term]] = []
        for size, start, term in sorted(places, key=lambda place: (-place[0], place[1])):
            span = range(start, start + size)
            if taken.isdisjoint(span):
                taken.update(span)
                found.append((start, term))
        return list(dict.fromkeys(term for _, term in sorted(found, key=lambda one: one[0])))

    def honoured(self, sources: Sequence[str], outputs: Sequence[str]) -> Honoured:
        """How many terms of each source have a target in its output, as whole words."""
        result = Honoured()
        for number, (source, output) in enumerate(zip(sources, outputs, strict=True)):
            words = words_of_text(output)
            for term in self.find(source):
                result.terms += 1
                if any(_holds(words, words_of_text(target)) for target in term.targets):
                    result.found += 1
                else:
                    result.missing.append((number, term))
        return result


def _holds(words: Words, part: Words) -> bool:
    return any(words[at : at + len(part)] == part for at in range(len(words) - len(part) + 1))


def glossary_of(given: Any) -> Glossary:
    """A glossary of a file's name, or of a mapping {source term: target term, or several}.

    Raises:
        BedstoneError: it is something else, or `read_glossary` can't read it.
    """
    if isinstance(given, Glossary):
        return given
    if isinstance(given, str | Path) and str(given):
        return read_glossary(given)
    if not isinstance(given, Mapping) or not given:
        raise BedstoneError(
            f"glossary: {shown(given)} was given; expected the name of a CSV file of source and "
            "target terms, or a mapping of them."
        )
    pairs = []
    for source, targets in given.items():
        several = [targets] if isinstance(targets, str) else targets
        fits = isinstance(several, list | tuple) and bool(several)
        if not fits or not all(map(_is_term, [source, *several])):
            raise BedstoneError(
                f"glossary: {shown(source)} stands for {shown(targets)}; expected a source term "
                "and a target term, or a list of target terms of which one is enough."
            )
        pairs += [(source, target) for target in several]
    return Glossary(pairs)


def _is_term(text: Any) -> bool:
    return isinstance(text, str) and all(words_of_text(part) for part in text.split("|"))


def read_glossary(file: str | Path) -> Glossary:
    """A glossary of a CSV, or a TSV by its ending or its tabs.

    The first row may name the columns, such as `source` and `target`: they may then stand in any
    order, beside others. Without names there are two columns, source and target.

    Raises:
        BedstoneError: the file can't be read, has no such columns, or lacks a term in a row.
    """
    path = to_path(file, "glossary")
    text = read_text(path, LIMIT).removeprefix("\ufeff")
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = "\t" if path.suffix.lower() == ".tsv" or "\t" in first else ","
    if separator == "," and ";" in first and "," not in first:  # spreadsheets of some countries
        separator = ";"
    rows = csv.reader(text.splitlines(keepends=True), strict=True, delimiter=separator)
    columns: tuple[int, int] | None = None
    cells = 2  # of each row, where no header says otherwise
    pairs = []
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if columns is None:
                columns = _columns(path, row)
                if columns is not None:
                    cells = len(row)
                    continue
                columns = (0, 1)
            if len(row) != cells:
                raise BedstoneError(
                    f"{path}: line {rows.line_num:,} has {len(row)} cells; expected {cells}: a "
                    "source and a target term, or those of a header with `source` and `target`. "
                    "Mend the line; a cell with a comma stands between double quotes."
                )
            pairs.append(_pair(path, rows.line_num, row, columns))
    except csv.Error as error:
        raise BedstoneError(
            f"{path}: line {rows.line_num:,} is not valid CSV ({error}). Mend that line."
        ) from error
    if not pairs:
        raise BedstoneError(f"{path}: has no terms; expected rows of a source and a target term.")
    return Glossary(pairs)


def _columns(path: Path, row: Sequence[str]) -> tuple[int, int] | None:
    """Where the source and the target are by a header; None where the row is none."""
    names = [cell.strip().casefold() for cell in row]
    sources = [place for place, name in enumerate(names) if name in SOURCES]
    targets = [place for place, name in enumerate(names) if name in TARGETS]
    if len(sources) == len(targets) == 1:
        return sources[0], targets[0]
    if (sources or targets) and len(row) > 2:
        raise BedstoneError(
            f"{path}: its header, {shown(row)}, has {len(sources)} columns of source terms and "
            f"{len(targets)} of target terms; expected one of each, named source and target."
        )
    return None


def _pair(path: Path, line: int, row: Sequence[str], columns: tuple[int, int]) -> tuple[str, str]:
    cells = [row[column].strip() for column in columns]
    for name, cell in zip(("source", "target"), cells, strict=True):
        parts = cell.split("|") if name == "target" else [cell]
        if not all(words_of_text(part) for part in parts):
            raise BedstoneError(
                f"{path}: line {line:,}: the {name} term is {shown(cell)}; expected one word or "
                "more. Fill it in, or remove the row."
            )
    return cells[0], cells[1]
