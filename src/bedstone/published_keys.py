"""Allowlists of the keys of published JSON files: every key is honoured, harmless or refused.

Each kind of file has one `Keys` beside the code that reads it. A key that is in none of its lists
is reported on standard error, once for each file: it may come from a newer version of the library
that wrote the file, so it isn't refused, and it may change results, so it isn't silent. A key whose
value is null says nothing and is accepted everywhere.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.reading import shown

REMEDY = "Bedstone doesn't build what it asks for: choose another model."
log = logging.getLogger("bedstone.published")  # without a handler, Python writes it to stderr

_reported: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Keys:
    """The keys of one kind of published file, in three lists.

    Attributes:
        honoured: keys whose value is read.
        harmless: keys that change nothing here, whatever their value.
        plain: keys that are refused, unless they have one of the values given, which ask for
            nothing that isn't built.
        reported: keys that are known to be of no effect here though they have one elsewhere; they
            are reported as unknown ones are.
        sections: keys whose value is an object with keys of its own; they are honoured.
        remedy: what the user can do about a refused key.
    """

    honoured: frozenset[str] = frozenset()
    harmless: frozenset[str] = frozenset()
    plain: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    reported: frozenset[str] = frozenset()
    sections: Mapping[str, "Keys"] = field(default_factory=dict)
    remedy: str = ""

    def __or__(self, other: "Keys") -> "Keys":
        """Both lists in one; a key that `other` lists is taken out of this one's other lists."""
        theirs = other.names
        return Keys(
            honoured=(self.honoured - theirs) | other.honoured,
            harmless=(self.harmless - theirs) | other.harmless,
            plain={k: v for k, v in self.plain.items() if k not in theirs} | dict(other.plain),
            reported=(self.reported - theirs) | other.reported,
            sections={**self.sections, **other.sections},
            remedy=other.remedy or self.remedy,
        )

    @property
    def names(self) -> frozenset[str]:
        """Every key that is in one of the lists."""
        lists: tuple[Iterable[str], ...] = (self.honoured, self.harmless, self.plain)
        return frozenset().union(*lists, self.reported, self.sections)

    def counts(self) -> dict[str, int]:
        """The number of keys in each of the three lists, those of sections included."""
        found = {
            "honoured": len(self.honoured | set(self.sections)),
            "harmless": len(self.harmless),
            "refused or reported": len({*self.plain, *self.reported}),
        }
        own = {id(section): section for section in self.sections.values()}  # each counts once
        for section in own.values():
            found = {name: count + section.counts()[name] for name, count in found.items()}
        return found

    def unknown(self, values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
        """Keys that are in none of the lists, those of sections included."""
        for key, value in values.items():
            if key not in self.names:
                yield prefix + str(key)
            elif key in self.sections and isinstance(value, Mapping):
                yield from self.sections[key].unknown(value, f"{prefix}{key}.")

    def report(self, values: Mapping[str, Any], where: str | Path) -> None:
        """Reports unknown keys alone: what is refused is refused where the settings are used."""
        names = {*self.honoured, *self.harmless, *self.plain, *self.sections}
        self.check({k: v for k, v in values.items() if k not in names}, where)

    def check(self, values: Mapping[str, Any], where: str | Path, prefix: str = "") -> None:
        """Refuses or reports keys that are neither honoured nor harmless.

        Args:
            where: the file, for messages.
            prefix: what stands before a key of a section.

        Raises:
            BedstoneError: a key has a value that asks for something that isn't built.
        """
        for key, value in values.items():
            name = prefix + str(key)
            if value is None:
                continue
            if key in self.plain:
                if not any(_same(value, plain) for plain in self.plain[key]):
                    expected = " or ".join(repr(plain) for plain in self.plain[key]) or "no value"
                    raise BedstoneError(
                        f"{where}: {name} = {shown(value)} is not supported; expected {expected}. "
                        f"{self.remedy or REMEDY}"
                    )
            elif key in self.sections:
                if isinstance(value, Mapping):
                    self.sections[key].check(value, where, f"{name}.")
            elif key not in self.honoured | self.harmless and value not in ({}, [], ""):
                _report(name, value, where, known=key in self.reported)


def keys(words: str) -> frozenset[str]:
    """The keys in a text, separated by white space."""
    return frozenset(words.split())


def _same(value: Any, plain: Any) -> bool:
    if isinstance(plain, bool) or isinstance(value, bool):
        return value is plain or (isinstance(plain, bool) and value == plain)
    return bool(value == plain)


def _report(name: str, value: Any, where: str | Path, *, known: bool) -> None:
    """Writes a warning about a key, the first time that a file has it."""
    if (str(where), name) in _reported:
        return
    _reported.add((str(where), name))
    what = "has no effect in Bedstone" if known else "isn't known to Bedstone and has no effect"
    log.warning(
        "%s: %s = %s %s; results may differ from other libraries. Take the key out of the file "
        "if the model doesn't need it.",
        where,
        name,
        shown(value),
        what,
    )
