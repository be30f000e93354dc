"""Precision and recall by threshold beside what scores said and what was so, as one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.files import atomic_file
from bedstone.inspect.calibration import reliability, sweep

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
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

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
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
    pyplot.close(figure)
    return Path(path)


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
    _plain(axes)
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
    _plain(axes)
    axes.legend(frameon=False, fontsize=8, loc="best")


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
