"""The loss curve of a run, drawn from its log."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bedstone.files import atomic_file


def curve_points(
    records: Sequence[dict[str, Any]], name: str, by: str = "step"
) -> tuple[list[float], list[float]]:
    """x and y of a figure wherever the log has both and they are finite."""
    pairs = [(r[by], r[name]) for r in records if r.get(name) is not None and r.get(by) is not None]
    return [x for x, _ in pairs], [y for _, y in pairs]


def draw_curve(records: Sequence[dict[str, Any]], path: str | Path, title: str) -> Path | None:
    """Training and validation loss against tokens, as a PNG; None where matplotlib is absent.

    Args:
        records: of `train.logs.read_log`.
        path: the PNG to write.
        title: the run's name.
    """
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    x, y = curve_points(records, "loss", "tokens")
    axes.plot(x, y, color="#8fb3d9", linewidth=1.2, label="training")
    x, y = curve_points(records, "validation_loss", "tokens")
    axes.plot(x, y, color="#c0392b", marker="o", markersize=4, linewidth=1.6, label="validation")
    if y:
        axes.annotate(
            f"{y[-1]:.3f}", (x[-1], y[-1]), xytext=(0, 8), textcoords="offset points", ha="right"
        )
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.set(xlabel="tokens", ylabel="mean loss of a target", title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
    pyplot.close(figure)
    return Path(path)


def _short(count: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:g}{letter}"
    return f"{count:g}"
