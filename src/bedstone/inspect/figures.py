"""What an evaluation found: named figures with their intervals, to print, log and keep."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bedstone.errors import BedstoneError


@dataclass(frozen=True)
class Figures:
    """Figures of one evaluation.

    Attributes:
        kind: classification, multi-label, regression, entities or answers.
        main: the name of the figure that models are compared by.
        values: figures by name; those of one class are named `f1/CLASS`.
        intervals: lower and upper end by name, of those that have one.
        rows: how many rows (of entities: sentences) were scored.
        labels: classes, in the order of `confusion`.
        support: how often each class truly occurs.
        confusion: how often the class of the row was taken for that of the column, or None.
    """

    kind: str
    main: str
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    rows: int
    labels: tuple[str, ...] = ()
    support: dict[str, int] = field(default_factory=dict)
    confusion: list[list[int]] | None = None

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    @property
    def score(self) -> float:
        """The main figure."""
        return self.values[self.main]

    def flat(self) -> dict[str, float]:
        """Figures in one level, for logs: each as itself, `NAME_low` and `NAME_high`."""
        found: dict[str, float] = {}
        for name, value in self.values.items():
            found[name] = value
            if name in self.intervals:
                found[f"{name}_low"], found[f"{name}_high"] = self.intervals[name]
        return {**found, "rows": self.rows}

    def record(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        more: dict[str, Any] = {"kind": self.kind, "main": self.main, **self.flat()}
        if self.labels:
            more["labels"] = list(self.labels)
        if self.support:
            more["support"] = dict(self.support)
        if self.confusion is not None:
            more["confusion"] = self.confusion
        return more

    def table(self, title: str = "") -> Table:
        """Figures over all rows; the main one stands out."""
        table = Table(title=Text(title) if title else None, title_justify="left")
        table.add_column()
        table.add_column("figure", justify="right")
        table.add_column("95 % of resamples", justify="right")
        for name, value in self.values.items():
            if "/" not in name:
                style = "bold" if name == self.main else None
                table.add_row(Text(name), f"{value:.4f}", self._between(name), style=style)
        table.caption = f"{self.rows:,} rows"
        return table

    def classes(self) -> Table | None:
        """A line a class; the interval is of the last figure. None where there are no classes."""
        pairs = [name.partition("/")[::2] for name in self.values if "/" in name]
        if not pairs:
            return None
        figures = list(dict.fromkeys(figure for figure, _ in pairs))
        table = Table()
        table.add_column("")
        for name in [*figures, "95 % of resamples", *(["support"] if self.support else [])]:
            table.add_column(name, justify="right")
        for label in dict.fromkeys(label for _, label in pairs):
            cells = [f"{self.values[f'{figure}/{label}']:.4f}" for figure in figures]
            cells.append(self._between(f"{figures[-1]}/{label}"))
            if self.support:
                cells.append(f"{self.support[label]:,}")
            table.add_row(Text(label), *cells)
        return table

    def __rich__(self) -> Group:
        classes = self.classes()
        return Group(self.table(), *([classes] if classes else []))

    def _between(self, name: str) -> str:
        if name not in self.intervals:
            return ""
        low, high = self.intervals[name]
        return f"{low:.4f} to {high:.4f}"


def named(names: Sequence[str], values: Sequence[Any]) -> dict[str, float]:
    """Figures by name, as plain numbers."""
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def with_ends(names: Sequence[str], ends: np.ndarray) -> dict[str, tuple[float, float]]:
    """The (F, 2) of `bootstrap` by name, without those that no resample could tell."""
    pairs = zip(names, ends.tolist(), strict=True)
    return {name: (low, high) for name, (low, high) in pairs if low == low}


def library(module: str) -> Any:
    """A module of the extra `evaluate`. Raises BedstoneError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BedstoneError(
            f"{error.name or module}: is not installed, and evaluating needs it. "
            "Run: pip install 'bedstone[evaluate]'"
        ) from error


def check_lengths(predicted: Sequence[Any], actual: Sequence[Any], what: str = "rows") -> int:
    """How many there are. Raises BedstoneError where there are none, or not as many of both."""
    if len(predicted) != len(actual):
        raise BedstoneError(
            f"evaluate: {len(predicted):,} predictions for {len(actual):,} {what}; "
            "expected one for each, in the same order."
        )
    if not len(actual):
        raise BedstoneError(f"evaluate: there are no {what} to score; give at least one.")
    return len(actual)
