"""A search for hyperparameters as a page: parallel coordinates, importance, curves, trials."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bedstone.report.pages import Section, write_report
from bedstone.report.plots import load_pyplot, plain, save_figure

BEST, OTHER, STOPPED = "#c0392b", "#1f77b4", "#b9c0c8"


@dataclass(frozen=True)
class Result:
    """What became of a trial.

    Attributes:
        state: finished, pruned, diverged, failed, running or waiting.
        values: of the fields that are varied.
        value: the figure that trials are compared by, at the end of the budget.
        curve: share of the budget and the figure there.
        steps, items, seconds: what it took; items are what its log counts, such as tokens.
        fault: why it failed or diverged.
    """

    number: int
    state: str
    values: Mapping[str, Any]
    value: float | None = None
    curve: Sequence[tuple[float, float]] = ()
    steps: int = 0
    items: int = 0
    seconds: float = 0.0
    fault: str = ""

    @property
    def share(self) -> float:
        """How much of its budget it has spent, by its last evaluation."""
        return 1.0 if self.state == "finished" else max((at for at, _ in self.curve), default=0.0)

    @property
    def last(self) -> float | None:
        """The figure where it was measured last."""
        return self.value if self.value is not None or not self.curve else self.curve[-1][1]

    @property
    def ended(self) -> bool:
        return self.state not in ("running", "waiting")


def spoken(value: Any) -> str:
    """A value as tables show it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(results: Sequence[Result], by: str) -> list[list[str]]:
    """Rows of trials with a head: those that finished by their figure, then those that came far."""
    names = list(dict.fromkeys(name for each in results for name in each.values))
    rows = [["trial", by, "share", "state", *names]]
    for each in results:
        figure = "" if each.last is None else f"{each.last:.4f}"
        values = [spoken(each.values.get(name, "")) for name in names]
        rows.append([str(each.number), figure, f"{each.share:.0%}", each.state, *values])
    return rows


def ranked(results: Sequence[Result], *, highest: bool) -> list[Result]:
    """The best first: by share of the budget, then by the figure there."""

    def place(each: Result) -> tuple[bool, float, float]:
        last = math.inf if each.last is None else -each.last if highest else each.last
        return each.value is None, -each.share, last

    return sorted(results, key=place)


def write_tuning_page(
    path: Path,
    title: str,
    lead: str,
    results: Sequence[Result],
    *,
    by: str,
    logarithmic: Sequence[str],
    importance: tuple[Mapping[str, float], float],
    recipe: str,
) -> Path:
    """Writes the page, whole or not at all.

    Args:
        results: of all trials, the best first.
        by: the figure that they are compared by.
        logarithmic: fields that are drawn on such a scale.
        importance: of each field, and the share of the budget that it was measured at.
        recipe: the best recipe as YAML; "" where there is none yet.
    """
    shares, at = importance
    measured = Section("Trials", tables={"": table(results, by)})
    with TemporaryDirectory() as folder:
        drawn = {
            draw_parallel(results, Path(folder) / "parallel.png", by, logarithmic): (
                "A line is a trial: its values and its last figure. Red: the best. Grey: stopped."
            ),
            draw_trials(results, Path(folder) / "curves.png", by): (
                f"{by} by the share of the budget."
            ),
        }
        pictures = {picture: said for picture, said in drawn.items() if picture is not None}
        sections = [Section("Which values are good", pictures=pictures)]
        if shares:
            sections.append(
                Section(
                    "What matters",
                    "How much each field decides who is among the best, by PED-ANOVA at "
                    f"{at:.0%} of the budget, where all trials that came so far compare. Of few "
                    "trials it is unsure.",
                    {name: f"{share:.0%}" for name, share in shares.items()},
                )
            )
        if recipe:
            made = Section("The best recipe", commands={recipe: "best.yaml"})
            sections.insert(0, made)
        return write_report(path, title, lead, [*sections, measured])


def draw_parallel(
    results: Sequence[Result], path: Path, by: str, logarithmic: Sequence[str]
) -> Path | None:
    """Parallel coordinates of the trials as a PNG; None without matplotlib, or trials to draw.

    Args:
        results: the best first.
    """
    drawn = [each for each in results if each.last is not None and each.values]
    if not drawn or (pyplot := load_pyplot()) is None:
        return None
    names = [*drawn[0].values, by]
    columns = [_axis([_cell(each, name) for each in drawn], name in logarithmic) for name in names]
    size = (max(6.0, 1.7 * len(names)), 4.5)
    figure, axes = pyplot.subplots(figsize=size, dpi=120, layout="constrained")
    for place in reversed(range(len(drawn))):
        finished = drawn[place].value is not None
        colour = BEST if place == 0 and finished else OTHER if finished else STOPPED
        heights = [heights[place] for heights, _ in columns]
        axes.plot(heights, color=colour, linewidth=2.4 if place == 0 else 1.0, alpha=0.9)
    for place, (_, ticks) in enumerate(columns):
        axes.axvline(place, color="#5b616a", linewidth=0.8)
        for height, text in ticks:
            axes.annotate(text, (place, height), xytext=(3, 0), textcoords="offset points",
                          fontsize=7, va="center")  # fmt: skip
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=12)
    axes.set(yticks=[], ylim=(-0.05, 1.05))
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    return save_figure(figure, path)


def _cell(each: Result, name: str) -> Any:
    return each.values.get(name, each.last)


def _axis(values: Sequence[Any], logarithmic: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights from 0 to 1 of the values of one axis, and where its ticks stand."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        names = sorted({str(each) for each in values})
        at = {name: place / max(len(names) - 1, 1) for place, name in enumerate(names)}
        return [at[str(each)] for each in values], [(at[name], name) for name in names]
    scale = math.log if logarithmic and min(numbers) > 0 else float
    low, high = scale(min(numbers)), scale(max(numbers))
    heights = [(scale(each) - low) / (high - low) if high > low else 0.5 for each in numbers]
    ends = {min(numbers), max(numbers)}
    return heights, [(heights[numbers.index(each)], spoken(each)) for each in ends]


def draw_trials(results: Sequence[Result], path: Path, by: str) -> Path | None:
    """The trials' figures by the share of the budget, as a PNG; None without matplotlib.

    Args:
        results: the best first.
    """
    drawn = [each for each in results if each.curve]
    if not drawn or (pyplot := load_pyplot()) is None:
        return None
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    for place, each in reversed(list(enumerate(drawn))):
        finished = each.value is not None
        colour = BEST if place == 0 and finished else OTHER if finished else STOPPED
        x, y = zip(*each.curve, strict=True)
        axes.plot(x, y, color=colour, linewidth=2.2 if place == 0 else 0.9, marker=".")
    firsts = sorted(each.curve[-1][1] for each in drawn)
    middle = firsts[len(firsts) // 2]
    spread = max(abs(firsts[len(firsts) // 4] - middle), abs(middle) * 0.05)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, middle - 8 * spread), min(high, middle + 8 * spread))
    axes.set(xlabel="share of the budget", ylabel=by)
    plain(axes)
    return save_figure(figure, path)
