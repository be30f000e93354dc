"""How accuracy grew with the minutes of a run, drawn from its log: one line a kind of question."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from bedstone.files import atomic_file
from bedstone.inspect.curve import curve_points

MAIN = "validation_accuracy"
_COLOURS = ["#1f77b4", "#e07b00", "#2f8f3a", "#8a5cc7", "#8c564b", "#d0559a", "#6f7780", "#a59a12"]
_COLOURS += ["#12a2b4", "#3c4a8a"]
_DASHES = ("-", "--", ":")


def minute_lines(
    records: Sequence[dict[str, Any]], main: str = MAIN
) -> dict[str, tuple[list[float], list[float]]]:
    """Minutes and accuracy of `main` ("") and of each kind, logged as `MAIN/KIND` or `MAIN_KIND`.

    Args:
        records: of `train.logs.read_log`.
    """
    timed = [{**r, "minutes": r["seconds"] / 60} for r in records if r.get("seconds") is not None]
    names = dict.fromkeys(name for record in timed for name in record if name.startswith(main))
    found = {}
    for name in names:
        kind = name.removeprefix(main)
        if not kind or kind[0] in "/_":
            x, y = curve_points(timed, name, "minutes")
            if y:
                found[kind[1:]] = (x, y)
    return found


def draw_minutes(
    records: Sequence[dict[str, Any]],
    path: str | Path,
    title: str,
    *,
    main: str = MAIN,
    beside: Mapping[str, float] | None = None,
) -> Path | None:
    """Accuracy against minutes of training, as a PNG.

    Names stand at the end of their lines. None where matplotlib is absent, or nothing was logged.

    Args:
        records: of `train.logs.read_log`.
        path: the PNG to write.
        title: the run's name.
        main: the figure of all kinds together.
        beside: what others reach, by name, as level lines: those who answer blind.
    """
    lines = minute_lines(records, main)
    if not lines:
        return None
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.5, 5), dpi=120, layout="constrained")
    ends = {}
    kinds = sorted(set(lines) - {""})
    for number, kind in enumerate(kinds):
        colour = _COLOURS[number % len(_COLOURS)]
        style = _DASHES[number // len(_COLOURS) % len(_DASHES)]
        axes.plot(*lines[kind], style, color=colour, linewidth=1.3, marker="o", markersize=2.5)
        ends[kind] = (lines[kind][1][-1], colour, "normal")
    if "" in lines:
        axes.plot(*lines[""], color="#111111", linewidth=2.6, marker="o", markersize=4)
        ends["all"] = (lines[""][1][-1], "#111111", "bold")
    for name, value in (beside or {}).items():
        axes.axhline(value, color="#6b7078", linewidth=1, linestyle=(0, (2, 3)))
        ends[name] = (value, "#6b7078", "normal")
    last = max(x[-1] for x, _ in lines.values())
    heights = _apart([value for value, _, _ in ends.values()])
    for (name, (value, colour, weight)), height in zip(ends.items(), heights, strict=True):
        axes.annotate(
            f"{name} {value:.2f}",
            (last, height),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            weight=weight,
            fontsize=9,
            annotation_clip=False,
        )
    axes.set(xlabel="minutes of training", ylabel="accuracy", title=title)
    axes.set(xlim=(0, last or 1), ylim=(0, 1.02))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
    pyplot.close(figure)
    return Path(path)


def _apart(values: Sequence[float], least: float = 0.042) -> list[float]:
    """Heights near `values` that are at least so far from each other, in the same order.

    What is too near is pushed up from below, and back down from the top where that is passed.
    """
    order = sorted(range(len(values)), key=lambda place: values[place])
    heights = list(values)
    for low, high in pairwise(order):
        heights[high] = max(heights[high], heights[low] + least)
    ceiling = 1.0
    for place in reversed(order):
        heights[place] = min(heights[place], ceiling)
        ceiling = heights[place] - least
    return heights
