"""The confusion matrix as a picture: rows are what is, columns what was predicted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.files import atomic_file

MOST_CLASSES = 100  # more are no picture any more
LONGEST_NAME = 24


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
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

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
            _short(counts[row, column]),
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
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
    pyplot.close(figure)
    return Path(path)


def _short(count: int) -> str:
    """At most four characters, so that it fits a cell."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= size:
            scaled = count / (size if size > 1e4 else 1e3)
            return f"{scaled:.1f}{letter}" if scaled < 10 else f"{scaled:.0f}{letter}"
    return str(count)
