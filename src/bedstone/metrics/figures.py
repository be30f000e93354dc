"""Figures of an evaluation: named values with bootstrap intervals, to print, log and save."""

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bedstone.errors import BedstoneError
from bedstone.settings import check_whole


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval (1927) of a share of so many, 95 % where `z` isn't said."""
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / count / 2) ** 2)
    return max(middle - half, 0.0), min(middle + half, 1.0)


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
        baselines: the main figure of predictors that ignore the input, by name: `majority` always
            gives the most frequent answer, `chance` a random one.
    """

    kind: str
    main: str
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    rows: int
    labels: tuple[str, ...] = ()
    support: dict[str, int] = field(default_factory=dict)
    confusion: list[list[int]] | None = None
    baselines: dict[str, float] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()  # why the figures may mean little, a sentence each
    signatures: dict[str, str] = field(default_factory=dict)  # settings and version, by figure

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    @property
    def score(self) -> float:
        """The main figure."""
        return self.values[self.main]

    @property
    def warning(self) -> str:
        """Why the figures may mean little: no baseline stands below the main one, or `doubts`."""
        return " ".join([*filter(None, [self._beside_baselines()]), *self.doubts])

    def _beside_baselines(self) -> str:
        if not self.baselines:
            return ""
        name, value = max(self.baselines.items(), key=lambda item: item[1])
        beside = f"{self.main} {self.score:.4f} beside {value:.4f} of the baseline {name}"
        if self.score <= value:
            return (
                f"No better than a baseline: {beside}, which doesn't look at the input. The model "
                "is of no use yet: train longer, give more rows, or look at the data."
            )
        if self.main in self.intervals and self.intervals[self.main][0] <= value:
            return (
                f"Not surely better than a baseline: {beside}, which is inside the interval. "
                f"Measure on more than {self.rows:,} rows, or train longer."
            )
        return ""

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
        if self.baselines:
            more["baselines"] = dict(self.baselines)
        if self.baselines or self.doubts:
            more["warning"] = self.warning
        if self.signatures:
            more["signatures"] = dict(self.signatures)
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
        for name, value in self.baselines.items():
            if name not in self.values:
                table.add_row(Text(f"{self.main} of {name}"), f"{value:.4f}", "", style="dim")
        signed = [f"{name}: {signature}" for name, signature in self.signatures.items()]
        table.caption = Text("\n".join([f"{self.rows:,} rows", *signed]))
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
            values = [self.values.get(f"{figure}/{label}") for figure in figures]
            cells = ["" if value is None else f"{value:.4f}" for value in values]
            cells.append(self._between(f"{figures[-1]}/{label}"))
            if self.support:
                cells.append(f"{self.support[label]:,}" if label in self.support else "")
            table.add_row(Text(label), *cells)
        return table

    def __rich__(self) -> Group:
        classes = self.classes()
        warning = [Text(self.warning, style="bold yellow")] if self.warning else []
        return Group(self.table(), *([classes] if classes else []), *warning)

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


# How sure a figure is: the percentile bootstrap over rows (Efron and Tibshirani, 1993, ch. 13).
#
# A resample draws as many rows as there are, with replacement. Only how often each row was drawn is
# kept, so that a figure made of sums over rows is one matrix product for all resamples, and rows
# that are alike need be counted once.
#
# Shapes: R resamples, U distinct rows, F figures.

AT_ONCE = 4_000_000  # draws held in memory at one time


def bootstrap(
    figures: Callable[[np.ndarray], np.ndarray],
    rows: int | np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> np.ndarray:
    """(F, 2): the lower and upper end of each figure's interval.

    Args:
        figures: maps how often each row was drawn, (R, U), to (R, F). A figure that is nan in a
            resample (a constant column, say) leaves that resample out.
        rows: how many rows there are; or, of rows that are grouped, how many are in each group.
        resamples: how many to draw.
        seed: the same seed gives the same interval.
        confidence: the share of resamples between the two ends.

    Raises:
        BedstoneError: no rows, no resamples, or a confidence outside 0 to 1.
    """
    if not np.sum(rows):
        raise BedstoneError("bootstrap: there are no rows to draw from.")
    check_whole("resamples", resamples, 1)
    if not 0 < confidence < 1:
        raise BedstoneError(f"confidence: {confidence} was given; expected a share such as 0.95.")
    drawn = _draws(rows, resamples, np.random.default_rng(seed))
    values = np.concatenate([figures(weights) for weights in drawn])  # (R, F)
    empty = np.isnan(values).all(0)
    values[:, empty] = 0.0
    tail = 50 * (1 - confidence)
    ends = np.nanpercentile(values, [tail, 100 - tail], axis=0).T
    ends[empty] = np.nan
    return ends


def sign_flip(
    differences: np.ndarray, *, two_sided: bool = False, draws: int = 20_000, seed: int = 0
) -> float:
    """p of a mean of paired differences as large or larger, if their signs were chance.

    Args:
        differences: (n,), of pairs.
        two_sided: as far from 0, on either side.
    """
    random, values = np.random.default_rng(seed), np.asarray(differences, np.float64)
    count, beyond = len(values), 0
    own = abs(values.mean()) if two_sided else values.mean()
    step = max(1, AT_ONCE // count)
    for start in range(0, draws, step):
        signs = random.choice((-1.0, 1.0), size=(min(step, draws - start), count))
        means = signs @ values / count
        beyond += int(((np.abs(means) if two_sided else means) >= own - 1e-15).sum())
    return (1 + beyond) / (draws + 1)


def grouped(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of `counts` and how many there are of each."""
    return np.unique(counts, axis=0, return_counts=True)


def _draws(
    rows: int | np.ndarray, resamples: int, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """How often each row was drawn, a few resamples at a time."""
    groups = rows if isinstance(rows, int) else len(rows)
    step = max(1, AT_ONCE // groups)
    for start in range(0, resamples, step):
        now = min(step, resamples - start)
        if isinstance(rows, int):
            places = random.integers(0, rows, (now, rows)) + rows * np.arange(now)[:, None]
            yield np.bincount(places.ravel(), minlength=now * rows).reshape(now, rows)
        else:
            yield random.multinomial(rows.sum(), rows / rows.sum(), size=now)
