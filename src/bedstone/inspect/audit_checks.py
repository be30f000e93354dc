"""What every check of an audit shares: its settings, what it measures on, what it gives."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model
from bedstone.data.open import open_dataset
from bedstone.errors import BedstoneError
from bedstone.metrics.bias import Measure
from bedstone.reading import shown
from bedstone.settings import Settings
from bedstone.tasks.pipeline import pipeline

Progress = Callable[[float], None]


@dataclass
class Audited:
    """A model under audit.

    Attributes:
        model: that is measured.
        precision: by name, that it runs in.
        seed: of what is sampled and resampled.
        progress: is handed the share of the running check that is done.
    """

    model: Model
    precision: str = "fp32"
    seed: int = 0
    progress: Progress = lambda share: None

    def task(self, name: str, **options: Any) -> Any:
        """One of its tasks, opened.

        Raises:
            BedstoneError: the model can't do it.
        """
        return pipeline(name, self.model, precision=self.precision, **options)

    @property
    def head(self) -> str:
        """The kind of its head; empty where it has none."""
        return str(getattr(getattr(self.model.config, "head", None), "kind", ""))

    @property
    def draws(self) -> bool:
        """Whether it draws images from words."""
        signal = getattr(self.model, "signal", None)
        return signal is not None and (signal.kind, signal.condition) == ("image", "text")

    @property
    def writes(self) -> bool:
        """Whether it is a decoder of text."""
        return self.head == "language" and bool(self.model.network.causal)

    @property
    def fills(self) -> bool:
        """Whether it predicts masked words."""
        return self.head in ("language", "pretraining") and not self.model.network.causal

    def beside(self, name: str) -> Model:
        """Another model that a check needs, opened."""
        return open_model(name, device=next(self.model.network.parameters()).device)


@dataclass(frozen=True)
class Part:
    """What one check gives.

    Attributes:
        name: of the check.
        kind: what it is.
        words: what was measured, and what that may not say.
        measures: with the ones corrected together.
        facts: other figures, by name.
        tables: rows of cells by caption, the first row the head.
    """

    name: str
    kind: str
    words: str
    measures: Sequence[Measure]
    facts: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, list[list[str]]] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "words": self.words,
            "measures": [each.record() for each in self.measures],
            "facts": dict(self.facts),
        }


@dataclass(frozen=True)
class Check(Settings, abc.ABC):
    """One check of an audit, as its file names it.

    Attributes:
        name: of it; empty takes its kind.
    """

    kind: ClassVar[str]
    name: str = ""

    @property
    def title(self) -> str:
        return self.name or self.kind

    @abc.abstractmethod
    def fits(self, audited: Audited) -> str:
        """Empty where the model can be measured so; else what it would have to be."""

    @abc.abstractmethod
    def measure(self, audited: Audited) -> Part:
        """Raises BedstoneError: what the check names can't be read, or doesn't fit the model."""


@dataclass(frozen=True)
class RowsCheck(Check):
    """A check on rows of a file.

    Attributes:
        data: of the rows: a file, a folder, a name of `bedstone.data`.
        columns: which column holds what, where the usual names aren't used.
        split: train, validation or test, of a folder.
        most_rows: how many are taken, drawn by the audit's seed; 0 takes all.
    """

    data: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    split: str = ""
    most_rows: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise BedstoneError(f"{self.title}: data is missing; name the file of the rows.")

    def rows(self, audited: Audited) -> list[dict[str, Any]]:
        """The rows, in the file's order."""
        found = open_dataset(self.data, split=self.split or None)
        if self.most_rows and len(found) > self.most_rows:
            found = found.take(self.most_rows, audited.seed)
        return [dict(row) for row in found]

    def cell(self, row: Mapping[str, Any], part: str, number: int) -> str:
        """The text that a row has for a part.

        Raises:
            BedstoneError: it has no such column, or no text there.
        """
        column = self.columns.get(part, part)
        if column not in row:
            raise BedstoneError(
                f"{self.data}: row {number + 1} has no column {column}; it has {', '.join(row)}. "
                f"Name the one of {part}: columns: {{{part}: ...}}."
            )
        value = row[column]
        if value is None or not str(value).strip():
            raise BedstoneError(f"{self.data}: row {number + 1}, {column}: is empty.")
        return str(value)


def named_lists(value: Any, name: str, least: int = 1, sets: int = 2) -> dict[str, list[str]]:
    """Lists of texts by name, checked.

    Raises:
        BedstoneError: it is none, has fewer than `sets` lists, or a list fewer than `least` texts.
    """
    if not isinstance(value, Mapping) or len(value) < sets:
        raise BedstoneError(
            f"{name}: {shown(value)}; expected at least {sets} lists of texts, each with its name."
        )
    found = {}
    for key, texts in value.items():
        texts = [texts] if isinstance(texts, str) else texts
        good = isinstance(texts, list) and all(isinstance(t, str) and t.strip() for t in texts)
        if not good or len(texts) < least:
            raise BedstoneError(
                f"{name}.{key}: {shown(texts)}; expected a list of at least {least} texts."
            )
        found[str(key)] = list(texts)
    every = [text for texts in found.values() for text in texts]
    if sets > 1 and (twice := [text for text in every if every.count(text) > 1]):
        raise BedstoneError(f"{name}: {twice[0]!r} is there twice; each text is of one list.")
    return found


def shares(given: Mapping[str, Any], names: Sequence[str], where: str) -> dict[str, float]:
    """The share that is expected of each name: those given, or the same of all.

    Raises:
        BedstoneError: others are given, or they don't sum to 1.
    """
    if not given:
        return {name: 1 / len(names) for name in names}
    good = set(given) == set(names) and all(
        isinstance(each, int | float) and not isinstance(each, bool) and 0 <= each <= 1
        for each in given.values()
    )
    if not good or abs(sum(given.values()) - 1) > 0.001:
        raise BedstoneError(
            f"{where}: {shown(dict(given))}; expected the share of each of {', '.join(names)}, "
            "which sum to 1."
        )
    return {name: float(given[name]) for name in names}


def settings_of(check: Check) -> dict[str, Any]:
    """The fields of a check that aren't as usual, for the record."""
    usual = {each.name: each for each in dataclasses.fields(check)}
    found: dict[str, Any] = {"kind": check.kind}
    for name in usual:
        value = getattr(check, name)
        if value not in ("", 0, None, [], {}):
            found[name] = value
    return found
