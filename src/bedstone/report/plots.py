"""Plots as PNG files: training curves, calibration, confusion, accuracy over time."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.files import atomic_file
from bedstone.metrics.calibration import reliability, sweep

UNITS = ("tokens", "pairs", "images", "signals")  # what a log counts


def curve_points(
    records: Sequence[dict[str, Any]], name: str, by: str = "step"
) -> tuple[list[float], list[float]]:
    """x and y of a figure wherever the log has both and they are finite."""
    pairs = [(r[by], r[name]) for r in records if r.get(name) is not None and r.get(by) is not None]
    return [x for x, _ in pairs], [y for _, y in pairs]


def load_pyplot() -> Any:
    """matplotlib's pyplot, drawing to files; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plain(axes: Any) -> None:
    """A pale grid behind what is drawn, and no frame above and to the right."""
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Any, path: str | Path) -> Path:
    """Writes a figure as a PNG, whole or not at all, and frees it."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
    load_pyplot().close(figure)
    return Path(path)


def draw_curve(records: Sequence[dict[str, Any]], path: str | Path, title: str) -> Path | None:
    """Training and validation loss against what is counted, as a PNG; None without matplotlib.

    Args:
        records: of `train.logs.read_log`.
        path: the PNG to write.
        title: the run's name.
    """
    if (pyplot := load_pyplot()) is None:
        return None
    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    unit = next((name for name in UNITS if any(name in each for each in records)), UNITS[0])
    x, y = curve_points(records, "loss", unit)
    if y:  # a single point would draw no line
        marker = "o" if len(y) == 1 else None
        axes.plot(x, y, color="#8fb3d9", linewidth=1.2, marker=marker, label="training")
    x, y = curve_points(records, "validation_loss", unit)
    axes.plot(x, y, color="#c0392b", marker="o", markersize=4, linewidth=1.6, label="validation")
    if y:
        axes.annotate(
            f"{y[-1]:.3f}", (x[-1], y[-1]), xytext=(0, 8), textcoords="offset points", ha="right"
        )
    axes.xaxis.set_major_formatter(lambda value, _: _short_tokens(value))
    axes.set(xlabel=unit, ylabel="mean loss of a target", title=title)
    plain(axes)
    axes.legend(frameon=False)
    return save_figure(figure, path)


def draw_curves(
    runs: Mapping[str, Sequence[dict[str, Any]]],
    path: str | Path,
    title: str,
    *,
    figure: str = "validation_loss",
    by: str = "minutes",
) -> Path | None:
    """A figure of several runs as a PNG; None without matplotlib, or where no log has it.

    Args:
        runs: records of `train.logs.read_log` by the run's name.
        figure: by its name in the logs.
        by: what it is drawn against: `minutes`, or a name in the logs, as `step`.
    """
    lines = {name: curve_points(_timed(records), figure, by) for name, records in runs.items()}
    if not any(y for _, y in lines.values()) or (pyplot := load_pyplot()) is None:
        return None
    drawn, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    for number, (name, (x, y)) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        marker = "o" if len(y) < 60 else None
        axes.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=1.6, label=name)
    axes.set(xlabel=by, ylabel=figure.replace("_", " "), title=title)
    plain(axes)
    axes.legend(frameon=False)
    return save_figure(drawn, path)


def _timed(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records with their minutes, where they have seconds."""
    return [{**r, "minutes": r["seconds"] / 60} for r in records if r.get("seconds") is not None]


def _short_tokens(count: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:g}{letter}"
    return f"{count:g}"


MAIN = "validation_accuracy"
_COLOURS = ["#1f77b4", "#e07b00", "#2f8f3a", "#8a5cc7", "#8c564b", "#d0559a", "#6f7780", "#a59a12"]
_COLOURS += ["#12a2b4", "#3c4a8a"]
_DASHES = ("-", "--", ":")


def learning_curves(
    records: Sequence[dict[str, Any]], main: str = MAIN
) -> dict[str, tuple[list[float], list[float]]]:
    """Minutes and accuracy of `main` ("") and of each kind, logged as `MAIN/KIND` or `MAIN_KIND`.

    Args:
        records: of `train.logs.read_log`.
    """
    timed = _timed(records)
    names = dict.fromkeys(name for record in timed for name in record if name.startswith(main))
    found = {}
    for name in names:
        kind = name.removeprefix(main)
        if not kind or kind[0] in "/_":
            x, y = curve_points(timed, name, "minutes")
            if y:
                found[kind[1:]] = (x, y)
    return found


def draw_learning_curve(
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
    lines = learning_curves(records, main)
    if not lines:
        return None
    if (pyplot := load_pyplot()) is None:
        return None
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
    plain(axes)
    return save_figure(figure, path)


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


def draw_shot_curve(
    series: Mapping[str, Sequence[tuple[int, Any]]],
    path: str | Path,
    title: str,
    metric: str,
    baselines: Mapping[str, float] | None = None,
) -> Path | None:
    """A figure against the number of examples in a prompt, as a PNG; None without matplotlib.

    A band goes from the worst to the best prompt, bars are the standard deviation.

    Args:
        series: (examples, spread) by the calibration's name; a spread has `mean`, `deviation`,
            `worst` and `best` (`evaluate.prompting.Spread`).
        path: the PNG to write.
        metric: the figure's name.
        baselines: what others reach, by name, as level lines.
    """
    if (pyplot := load_pyplot()) is None:
        return None
    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), dpi=120, layout="constrained")
    counts = [count for count, _ in next(iter(series.values()))]
    places = range(len(counts))  # 0, 1, 2, 4, 8 stand equally far apart
    for number, (name, points) in enumerate(series.items()):
        colour, shift = _COLOURS[number % len(_COLOURS)], 0.04 * number
        spreads = [spread for _, spread in points]
        x = [place + shift for place in places]
        axes.fill_between(
            x,
            [each.worst for each in spreads],
            [each.best for each in spreads],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
        label = "as it is" if name == "none" else name
        means, bars = ([getattr(each, part) for each in spreads] for part in ("mean", "deviation"))
        axes.errorbar(x, means, bars, color=colour, marker="o", markersize=4, lw=1.6, label=label)
    for name, value in (baselines or {}).items():
        axes.axhline(value, color="#6b7078", linewidth=1, linestyle=(0, (2, 3)))
        axes.annotate(name, (0, value), xytext=(0, 3), textcoords="offset points", fontsize=8)
    axes.set_xticks(list(places), [str(count) for count in counts])
    axes.set(xlabel="examples in the prompt", ylabel=metric)
    axes.set_title(title, parse_math=False, fontsize=10)
    plain(axes)
    axes.legend(frameon=False)
    return save_figure(figure, path)


# Precision and recall by threshold beside what scores said and what was so, as one picture.

MOST_CATEGORIES = 30  # more make no legible picture
BLUE, RED, GREY = "#2f6fab", "#c0392b", "#8a8a8a"


def draw_calibration(
    scores: np.ndarray,
    truth: np.ndarray,
    thresholds: Sequence[float],
    labels: Sequence[str],
    path: str | Path,
    title: str = "",
) -> Path | None:
    """A PNG with a line of two panels a category; None where matplotlib is absent.

    Args:
        scores, truth: (n, C), as of `detection`.
        thresholds: marked in the panels.
        labels: names of the C categories.
        path: the PNG to write.

    Raises:
        BedstoneError: a category never holds, or there are too many to draw.
    """
    if not 0 < len(labels) <= MOST_CATEGORIES:
        raise BedstoneError(
            f"picture: {len(labels)} categories can't be drawn legibly; expected 1 to "
            f"{MOST_CATEGORIES}."
        )
    if (pyplot := load_pyplot()) is None:
        return None
    size = (9, 0.5 + 3.1 * len(labels))
    figure, grid = pyplot.subplots(
        len(labels), 2, figsize=size, dpi=120, layout="constrained", squeeze=False
    )
    for number, label in enumerate(labels):
        own = scores[:, number], truth[:, number]
        _rates_panel(grid[number][0], *own, thresholds[number])
        _reliability_panel(grid[number][1], *own)
        held = int(truth[:, number].sum())
        text = f"{label}: {held:,} of {len(truth):,} rows"
        grid[number][0].set_title(text, loc="left", fontsize=11, parse_math=False)
    if title:
        figure.suptitle(title, parse_math=False, fontsize=12)
    return save_figure(figure, path)


def _rates_panel(axes: Any, scores: np.ndarray, truth: np.ndarray, threshold: float) -> None:
    found = sweep(scores, truth)
    for name, colour in (("precision", BLUE), ("recall", RED), ("f1", GREY)):
        label = "F1" if name == "f1" else name
        # a score between two thresholds takes what the upper one takes
        axes.step(
            found.thresholds, getattr(found, name), where="pre", color=colour, label=label, lw=1.5
        )
    axes.axvline(threshold, color="#222222", lw=1, ls="--", label=f"threshold {threshold:.2f}")
    axes.set(xlabel="threshold", xlim=(0, 1), ylim=(0, 1.03))
    plain(axes)
    axes.legend(frameon=False, fontsize=8, loc="best")


def _reliability_panel(axes: Any, scores: np.ndarray, truth: np.ndarray) -> None:
    found = reliability(scores, truth)
    width = np.diff(found.edges)
    axes.bar(
        found.edges[:-1],
        found.counts / found.counts.sum(),
        width,
        align="edge",
        color="#d8e4f0",
        edgecolor="white",
        label="share of rows",
    )
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":", label="as said")
    axes.plot(found.said, found.found, color=BLUE, marker="o", markersize=4, lw=1.5, label="found")
    axes.set(xlabel="score", ylabel="share that holds", xlim=(0, 1), ylim=(0, 1.03))
    plain(axes)
    axes.legend(frameon=False, fontsize=8, loc="best")


# The confusion matrix as a picture: rows are what is, columns what was predicted.

MOST_CLASSES = 100  # more are no picture any more
LONGEST_NAME = 24


def draw_intervals(
    rows: Sequence[tuple[str, float, float, float, float, bool]], path: str | Path
) -> Path | None:
    """Figures with their intervals below one another, beside what each is compared with.

    None without matplotlib.

    Args:
        rows: of each its name, value, lower and upper end, aim, and whether it stands out.
    """
    if (pyplot := load_pyplot()) is None:
        return None
    figure, axes = pyplot.subplots(figsize=(6.4, 1.0 + 0.3 * len(rows)), layout="constrained")
    for place, (_, value, low, high, aim, apart) in enumerate(rows):
        colour = "#a8271d" if apart else "#1a5fb4"
        axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(value, place, "D" if apart else "o", color=colour, markersize=5)
        axes.plot([aim, aim], [place - 0.35, place + 0.35], color="#5b616a", linewidth=1)
    axes.set_yticks(range(len(rows)), [name[:48] for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    plain(axes)
    axes.tick_params(axis="y", length=0)
    return save_figure(figure, path)


def draw_confusion(
    confusion: Sequence[Sequence[int]] | np.ndarray,
    labels: Sequence[str],
    path: str | Path,
    title: str = "",
) -> Path | None:
    """A PNG whose cells hold counts, coloured by their share of the row; None without matplotlib.

    Args:
        confusion: (C, C) counts, of `Figures.confusion`.
        labels: names of the C classes.
        path: the PNG to write.

    Raises:
        BedstoneError: the matrix isn't as large as the labels are many, or too large to draw.
    """
    counts = np.asarray(confusion)
    size = len(labels)
    if counts.shape != (size, size) or not size:
        raise BedstoneError(f"confusion: is {counts.shape}, where there are {size} labels.")
    if size > MOST_CLASSES:
        raise BedstoneError(
            f"confusion: {size} classes can't be drawn legibly; the most are {MOST_CLASSES}. "
            "Draw some of them, or read the figures a class."
        )
    if (pyplot := load_pyplot()) is None:
        return None
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = max(0.36, 0.95 - 0.05 * size)  # inches
    names = [
        name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in labels
    ]
    margin = 0.9 + 0.085 * max(map(len, names))
    side = cell * size + margin
    figure, axes = pyplot.subplots(figsize=(side + 0.9, side + 0.3), dpi=120, layout="constrained")
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(counts):
        axes.text(
            column,
            row,
            _short_count(counts[row, column]),
            ha="center",
            va="center",
            fontsize=11 if size <= 8 else 9 if size <= 16 else 7,
            color="white" if shares[row, column] > 0.55 else "#222222",
            parse_math=False,
        )
    for axis, turn in ((axes.xaxis, 45 if size > 3 else 0), (axes.yaxis, 0)):
        axis.set_ticks(range(size))
        texts = axis.set_ticklabels(names, rotation=turn, fontsize=10 if size <= 16 else 8)
        for text in texts:
            text.set_parse_math(False)
            if turn:
                text.set(ha="right", rotation_mode="anchor")
    axes.set(xlabel="predicted", ylabel="actual")
    axes.set_title(title, parse_math=False)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(
        shown,
        ax=axes,
        shrink=0.7,
        pad=0.02,
        aspect=25 + size,
        format=lambda share, _: f"{share:.0%}",
    )
    bar.set_label("share of the actual class")
    bar.outline.set_visible(False)
    return save_figure(figure, path)


def _short_count(count: int) -> str:
    """At most four characters, so that it fits a cell."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= size:
            scaled = count / (size if size > 1e4 else 1e3)
            return f"{scaled:.1f}{letter}" if scaled < 10 else f"{scaled:.0f}{letter}"
    return str(count)
