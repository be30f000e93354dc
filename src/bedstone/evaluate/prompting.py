"""Evaluation of prompting: figures by the number of examples, with their spread.

Accuracy varies with the draw of examples, and with their order alone (Lu et al., 2022,
https://arxiv.org/abs/2104.08786), often by more than models differ. So each number of examples is
measured over several draws and several orders of each, with and without calibration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

from bedstone.data.dataset import Dataset
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.runner import Progress
from bedstone.evaluate.tasks import BATCH, METRICS, TaskEvaluation
from bedstone.metrics.figures import Figures
from bedstone.tasks.text.prompting import CALIBRATIONS, Choosing, Prompted

SHOTS = (0, 1, 2, 4, 8)


@dataclass(frozen=True)
class Point:
    """Figures of one prompt over all rows.

    Attributes:
        shots: number of examples.
        calibration: none, content-free or domain.
        seed: of the draw of examples.
        order: of the examples.
        figures: of the results.
    """

    shots: int
    calibration: str
    seed: int
    order: int
    figures: Figures


@dataclass(frozen=True)
class Spread:
    """The main figure of one number of examples over draws and orders.

    Attributes:
        count: draws times orders.
        deviation: standard deviation of all; 0 of one.
        orders: best minus worst order of the same examples, in the mean over draws; None where
            one order was measured.
    """

    count: int
    mean: float
    deviation: float
    worst: float
    best: float
    orders: float | None = None


@dataclass(frozen=True)
class ShotCurve:
    """Figures of a task by the number of examples.

    Attributes:
        task: its name.
        metric: the main figure, such as accuracy.
        rows: number of held-out rows.
        baselines: the main figure of predictors that ignore the input.
        notes: what happened to prompts, a sentence each.
    """

    task: str
    metric: str
    rows: int
    points: Sequence[Point]
    baselines: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def shots(self) -> list[int]:
        """Numbers of examples, ascending."""
        return sorted({point.shots for point in self.points})

    @property
    def calibrations(self) -> list[str]:
        """Those measured, in order."""
        return list(dict.fromkeys(point.calibration for point in self.points))

    def spread(self, shots: int, calibration: str = "none") -> Spread:
        """Of one number of examples."""
        own = [
            point
            for point in self.points
            if point.shots == shots and point.calibration == calibration
        ]
        scores = np.array([point.figures.score for point in own])
        by_draw: dict[int, list[float]] = {}
        for point, score in zip(own, scores.tolist(), strict=True):
            by_draw.setdefault(point.seed, []).append(score)
        several = [max(each) - min(each) for each in by_draw.values() if len(each) > 1]
        return Spread(
            len(own),
            float(scores.mean()),
            float(scores.std(ddof=1)) if len(own) > 1 else 0.0,
            float(scores.min()),
            float(scores.max()),
            float(np.mean(several)) if several else None,
        )

    def series(self, calibration: str = "none") -> list[tuple[int, Spread]]:
        """The spread by the number of examples."""
        return [(shots, self.spread(shots, calibration)) for shots in self.shots]

    def table(self, title: str = "") -> Table:
        """A line a number of examples."""
        table = Table(title=title or None, title_justify="left")
        table.add_column("examples", justify="right")
        table.add_column("calibration")
        for name in (self.metric, "deviation", "worst - best", "orders"):
            table.add_column(name, justify="right")
        for shots in self.shots:
            for calibration in self.calibrations:
                one = self.spread(shots, calibration)
                many = one.count > 1
                table.add_row(
                    str(shots),
                    calibration,
                    f"{one.mean:.3f}",
                    f"{one.deviation:.3f}" if many else "",
                    f"{one.worst:.3f} - {one.best:.3f}" if many else "",
                    "" if one.orders is None else f"{one.orders:.3f}",
                )
        most = max(
            self.spread(each, name).count for each in self.shots for name in self.calibrations
        )
        beside = [f"{name} {value:.3f}" for name, value in self.baselines.items()]
        table.caption = "\n".join(
            [
                f"{self.rows:,} rows; means over up to {most} prompts; orders: best minus worst",
                *([", ".join(beside)] if beside else []),
            ]
        )
        return table

    def record(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {
            "task": self.task,
            "metric": self.metric,
            "rows": self.rows,
            "baselines": dict(self.baselines),
            "notes": list(self.notes),
            "curve": [
                {"shots": shots, "calibration": name, **vars(self.spread(shots, name))}
                for name in self.calibrations
                for shots in self.shots
            ],
            "points": [
                {
                    "shots": point.shots,
                    "calibration": point.calibration,
                    "seed": point.seed,
                    "order": point.order,
                    **point.figures.values,
                }
                for point in self.points
            ],
        }


class PromptEvaluation(TaskEvaluation):
    """A task by prompting on labelled rows; templates may name any of their columns."""

    def inputs(self) -> list[dict[str, Any]]:
        """Rows as inputs of the task, with the columns that templates may name."""
        task: Any = self.task
        template = task.setup(task.options).template
        return [dict(each.fields) for each in task.labelled(self.rows, template, task.options)]


def shot_curve(
    task: Prompted,
    rows: Dataset,
    *,
    shots: Sequence[int] = SHOTS,
    draws: int = 1,
    orders: int = 1,
    calibrations: Sequence[str] = ("none",),
    resamples: int = 0,
    progress: Progress = None,
) -> ShotCurve:
    """Measures a task by prompting on held-out rows, by the number of examples.

    Without examples there is one prompt; else `draws * orders` of each number. Draw s of k examples
    is part of draw s of more. Several calibrations of a prompt cost little more than one.

    Args:
        task: made by `pipeline(name, decoder, examples=..., ...)`; its seed is that of the first
            draw, its order the first one.
        rows: with the labels or texts that are right.
        shots: numbers of examples.
        draws: of examples, a seed each.
        orders: of each draw.
        calibrations: none, content-free and domain; others than none need labels.
        resamples: of the bootstrap of each point's figures; 0 leaves intervals out.

    Raises:
        BedstoneError: a number of examples is more than there are, a calibration isn't known or
            the task has none; or as the task.
    """
    _check(task, shots, calibrations)
    evaluation = PromptEvaluation(task, rows)
    options = task.options
    plan = [
        (count, seed, order)
        for count in dict.fromkeys(shots)
        for seed in range(draws if count else 1)
        for order in range(orders if count > 1 else 1)
    ]
    inputs, points = evaluation.inputs(), []
    task.dropped, task.unread = (0, 0), 0
    for done, (count, seed, order) in enumerate(plan):
        for number, calibration in enumerate(calibrations):
            chosen = {"shots": count, "seed": options.seed + seed, "order": options.order + order}
            if isinstance(task, Choosing):
                chosen["calibration"] = calibration
            results = []
            for start in range(0, len(inputs), BATCH):
                part = inputs[start : start + BATCH]
                results += task(part, **{**evaluation.metric.options, **chosen})
                if progress is not None:
                    share = (number + (start + len(part)) / len(inputs)) / len(calibrations)
                    progress((done + share) / len(plan))
            figures = evaluation.metric.score(results, resamples)
            points.append(Point(count, calibration, seed, order, figures))
    first = points[0].figures
    notes = [*notes_of(task), *_shared_rows(task, rows)]
    return ShotCurve(task.name, first.main, first.rows, points, first.baselines, notes)


def _check(task: Prompted, shots: Sequence[int], calibrations: Sequence[str]) -> None:
    if not isinstance(task, Prompted) or task.metric not in METRICS:
        raise BedstoneError(
            f"task: {task.name} isn't done by prompting. Make it of a decoder, by "
            "pipeline(name, decoder, examples=...)."
        )
    for name in calibrations:
        if name not in CALIBRATIONS:
            raise BedstoneError(f"calibration: {name!r} is unknown{nearest(name, CALIBRATIONS)}.")
        if name != "none" and not isinstance(task, Choosing):
            raise BedstoneError(
                f"calibration: {name} was given, and {task.name} has no labels to calibrate. "
                "Leave it out."
            )
    examples = task.setup(task.options).examples
    most, have = max(shots, default=0), 0 if examples is None else len(examples)
    if most > have:
        where = "no examples were given" if examples is None else f"{examples.name} has {have} rows"
        raise BedstoneError(
            f"shots: {most} were wanted, and {where}. Lower shots, or give more examples."
        )


def notes_of(task: Prompted) -> list[str]:
    """What happened to prompts and answers of a task, a sentence each."""
    notes = []
    prompts, dropped = task.dropped
    if prompts:
        notes.append(
            f"{prompts:,} prompts were too long for the model's context: {dropped:,} examples were "
            "dropped from them."
        )
    if task.unread:
        notes.append(f"{task.unread:,} generated answers couldn't be read; they count as wrong.")
    return notes


def _shared_rows(task: Prompted, rows: Dataset) -> list[str]:
    """A note where held-out rows are among the examples."""
    setup = task.setup(task.options)
    if setup.examples is None:
        return []
    known = set(setup.examples.inputs)
    shared: dict[str, Any] = task.general(setup.template, task.options)
    held = task.labelled(rows, setup.template, task.options)
    both = sum(setup.template.write("input", {**shared, **each.fields}) in known for each in held)
    return [f"{both:,} held-out rows are among the examples too: leave them out."] if both else []
