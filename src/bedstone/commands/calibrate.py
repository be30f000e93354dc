"""`bedstone calibrate`: calibrates the scores of a moderation policy and proposes thresholds.

One share of a labelled sample is fitted to, the other is held out for evaluation.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bedstone.checkpoints.load import open_model
from bedstone.data.bytes import check_text
from bedstone.data.dataset import Dataset
from bedstone.data.open import with_images
from bedstone.errors import BedstoneError, nearest
from bedstone.metrics.calibration import FIGURES, detection
from bedstone.metrics.figures import Figures
from bedstone.outputs import new_file
from bedstone.report.plots import draw_calibration
from bedstone.runtime import pick_device
from bedstone.tasks.moderation.fit import Parts, fit_policy
from bedstone.tasks.moderation.moderation import Item, Moderation, probabilities
from bedstone.tasks.moderation.policy import Policy, read_policy
from bedstone.tasks.pipeline import check_head
from bedstone.train.logs import ProgressBar


@dataclass(frozen=True)
class CalibrationOptions:
    """Calibration settings.

    Attributes:
        method: platt, isotonic, or direction, which fits a new linear classifier to the sample.
        wished_precision: the precision that thresholds must reach, 0 to 1; without this or a
            recall, thresholds maximise F1.
        wished_recall: the recall that thresholds must reach, 0 to 1.
        clean: a label of rows that belong to no category; may be given several times.
        held_out: share of the sample held out for evaluation, 0 to 1.
        most: maximum number of rows to take from the sample; 0 takes all.
        seed: random seed of the choice of rows and of the held-out share.
    """

    method: str = "platt"
    wished_precision: float | None = None
    wished_recall: float | None = None
    clean: list[str] = field(default_factory=list)
    held_out: float = 0.5
    most: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Calibrated:
    """The result of a calibration.

    Attributes:
        policy: as written into the file `out`.
        before, after: metrics on the held-out rows, of the policy as given and as calibrated.
        thresholds: of the categories, before and after.
        notes: warnings about categories, for the user.
    """

    policy: Policy
    before: Figures
    after: Figures
    thresholds: tuple[list[float], list[float]]
    notes: list[str]
    out: Path


def calibrate(
    policy: str,
    model: str,
    sample: str,
    calibration: CalibrationOptions,
    *,
    column: str | None = None,
    label: str | None = None,
    out: str | None = None,
    picture: str | None = None,
    overwrite: bool = False,
    measure: bool = False,
    as_json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> Calibrated | Figures:
    """Calibrate a moderation policy on a labelled sample: probabilities and thresholds.

    Writes the calibrated policy and prints its metrics beside those of the policy as given.

    Args:
        policy: a YAML file; `bedstone recipes moderation-policy` prints an example.
        model: a folder, a name that `bedstone models` lists, or a hub id.
        sample: rows with `text`, `image` (or `file_name`) or both, and `label`: a category of the
            policy, a list of them, or one of `clean`.
        column: the column of the text (default: text).
        label: the column of the label (default: label).
        out: the policy file to write (default: NAME.calibrated.yaml beside the policy).
        picture: a PNG file to draw precision and recall by threshold into.
        overwrite: replace files of the same names.
        measure: measure the policy as it is, on all rows of the sample, and write nothing; for a
            second set, after a calibration.
        as_json: print one JSON object.
        precision: of computation: auto, bf16, fp32, int8 or int4.
        device: auto, cpu, cuda or mps.

    Example:
        bedstone calibrate policy.yaml runs/clip-scenes labelled.jsonl

    Raises:
        BedstoneError: the policy, the model or a row can't be used, or there are too few of one
            category.
    """
    named = {"text": column, "label": label}
    columns = {part: name for part, name in named.items() if name}
    if measure:
        task = open_task(model, precision, device)
        given = task.policy(task.chosen(policy=policy))
        rows = with_images(sample, columns=columns)
        items, truth = read_items(rows, given, calibration.clean)
        return measured(given, task, items, truth, as_json=as_json)
    bare = _uncalibrated(read_policy(policy))
    source = Path(policy)
    path = Path(out) if out else source.with_name(f"{source.stem}.calibrated.yaml")
    new_file(path, "--out", overwrite=overwrite)
    if picture is not None:
        new_file(picture, "--picture", overwrite=overwrite)
    rows = with_images(sample, columns=columns)
    if calibration.most:
        rows = rows.take(calibration.most, calibration.seed)
    sides = [
        read_items(side, bare, calibration.clean) for side in rows.hold_out(calibration.held_out)
    ]
    (learnt, known), (held, truth) = sides
    if not truth.any(0).all():
        lacking = list(bare.categories)[int(truth.any(0).argmin())]
        raise BedstoneError(
            f"sample: none of the {len(held):,} rows held out is labelled {lacking!r}, so it can't "
            "be measured. Give more labelled rows of it."
        )
    task = open_task(model, precision, device)
    with ProgressBar("reading posts", quiet=as_json) as bar:
        found = [task.scored(items, bare) for items in _with_progress(bar, learnt, held)]
    fitted = fit_policy(
        bare,
        found[0],
        known,
        method=calibration.method,
        precision=calibration.wished_precision,
        recall=calibration.wished_recall,
        seed=calibration.seed,
    )
    scores = [_probabilities(each, found[1], len(held)) for each in (bare, fitted.policy)]
    before, after = (
        detection(each, truth, _thresholds(used), list(bare.categories), seed=calibration.seed)
        for each, used in zip(scores, (bare, fitted.policy), strict=True)
    )
    fingerprint, weights = task.made_for(bare)
    kept = {
        "policy": fingerprint,
        "model": weights,
        "method": calibration.method,
        "learnt_from": len(learnt),
        "held_out": {name: float(f"{value:.4g}") for name, value in after.flat().items()},
    }
    calibrated = dataclasses.replace(fitted.policy, calibrated=kept)
    command = f"bedstone calibrate {source.name} {model} {Path(sample).name}"
    calibrated.write(path, f"Written by {command}: mend {source.name} and run it again.")
    if picture is not None and not draw_calibration(
        scores[1], truth, _thresholds(calibrated), list(calibrated.categories), picture, source.name
    ):
        raise BedstoneError(
            f"{picture}: was not drawn, as matplotlib is not installed. Run: pip install "
            f"'bedstone[train]'. {path} is written."
        )
    thresholds = (_thresholds(bare), _thresholds(calibrated))
    done = Calibrated(calibrated, before, after, thresholds, fitted.notes, path)
    _show(done, len(learnt), as_json)
    return done


def open_task(model: str, precision: str, device: str) -> Moderation:
    """The task of moderation over a model.

    Raises:
        BedstoneError: the model can't be opened, or can't do it.
    """
    opened = open_model(model, device=pick_device(device))
    check_head(Moderation, opened)
    return Moderation(opened, precision=precision)


def measured(
    policy: Policy,
    task: Moderation,
    items: Sequence[Item],
    truth: np.ndarray,
    *,
    as_json: bool = False,
) -> Figures:
    """Prints and returns the metrics of a policy as it is, on (n, C) labelled items."""
    if not truth.any(0).all():
        lacking = list(policy.categories)[int(truth.any(0).argmin())]
        raise BedstoneError(
            f"sample: none of the {len(items):,} rows is labelled {lacking!r}, so it can't be "
            "measured. Give more labelled rows of it."
        )
    scores = _probabilities(policy, task.scored(items, policy), len(items))
    figures = detection(scores, truth, _thresholds(policy), list(policy.categories))
    if as_json:
        print(json.dumps(figures.record(), ensure_ascii=False))
    else:
        Console(highlight=False).print(figures)
    return figures


def read_items(
    rows: Dataset, policy: Policy, clean: Sequence[str] = ()
) -> tuple[list[Item], np.ndarray]:
    """The items of labelled rows, and (n, C) whether an item belongs to a category.

    Raises:
        BedstoneError: a row has neither text nor picture, no label, or one that is unknown.
    """
    text, column = rows.column("text"), rows.need("label")
    names = list(policy.categories)
    items, truth = [], np.zeros((len(rows), len(names)), dtype=bool)
    labels = rows.names.get(column)
    for number, row in enumerate(rows.rows):
        words = row.get(text) if text else None
        if words is not None:
            check_text(words, f"{rows.where(number)}: column {text!r}")
        if words is None and row["image"] is None:
            raise BedstoneError(
                f"{rows.where(number)}: has neither a text nor a picture. Fill one in, or leave "
                "the row out."
            )
        items.append(Item(words, row["image"]))
        value = rows.value(number, column)
        for label in value if isinstance(value, list | tuple) else [value]:
            if labels and isinstance(label, int) and 0 <= label < len(labels):
                label = labels[label]
            if label in names:
                truth[number, names.index(label)] = True
            elif label not in clean:
                guess = nearest(str(label), [*names, *clean])
                raise rows.fault(
                    number,
                    column,
                    f"is {str(label)[:60]!r}, which is no category of the policy{guess}".rstrip(
                        "."
                    ),
                    f"If such posts are of no category, say --clean {label}.",
                )
    return items, truth


def _uncalibrated(policy: Policy) -> Policy:
    bare = {
        name: dataclasses.replace(each, calibration={}) for name, each in policy.categories.items()
    }
    return dataclasses.replace(policy, categories=bare, calibrated={})


def _with_progress(bar: ProgressBar, *sides: Sequence[Item]) -> Iterator[Sequence[Item]]:
    total, done = sum(map(len, sides)), 0
    for items in sides:
        yield items
        done += len(items)
        bar.update(done / total)


def _probabilities(policy: Policy, parts: Parts, count: int) -> np.ndarray:
    """(n, C) scores of items: the highest over their parts."""
    scores = np.zeros((count, len(policy.categories)))
    for part, (numbers, scored) in parts.items():
        own = np.array(list(numbers))
        scores[own] = np.maximum(scores[own], probabilities(policy, part, scored))
    return scores


def _thresholds(policy: Policy) -> list[float]:
    return [each.threshold for each in policy.categories.values()]


def _show(done: Calibrated, learnt: int, as_json: bool) -> None:
    """Prints the metrics before and after calibration."""
    sides = {"as given": done.before, "calibrated": done.after}
    if as_json:
        records = {name: figures.record() for name, figures in sides.items()}
        thresholds = dict(zip(done.policy.categories, done.thresholds[1], strict=True))
        line = {**records, "thresholds": thresholds, "notes": done.notes, "policy": str(done.out)}
        print(json.dumps(line, ensure_ascii=False))
        return
    console = Console(highlight=False)
    for number, name in enumerate(done.policy.categories):
        title = f"{name}: {done.after.support[name]:,} of {done.after.rows:,} rows held out"
        table = Table(title=Text(title), title_justify="left")
        table.add_column()
        for side in sides:
            table.add_column(side, justify="right")
        table.add_row("threshold", *(f"{each[number]:.3f}" for each in done.thresholds))
        for figure in FIGURES:
            table.add_row(figure, *(_cell(each, f"{figure}/{name}") for each in sides.values()))
        console.print(table)
    for note in done.notes:
        console.print(Text(note, style="yellow"), soft_wrap=True)
    note = f"learnt from {learnt:,} rows; in brackets 95 % of resamples; written: {done.out}"
    console.print(Text(note), soft_wrap=True)


def _cell(figures: Figures, name: str) -> str:
    low, high = figures.intervals.get(name, (figures[name], figures[name]))
    return f"{figures[name]:.3f} ({low:.3f}-{high:.3f})"
