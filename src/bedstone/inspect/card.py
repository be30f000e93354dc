"""Figures of a model card: measured with intervals, and measured again.

What a run held out is measured by its own recipe, which `bedstone.json` keeps: the same rows, the
same precision, the model's weights as they are now.
"""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bedstone.checkpoints.card import Measured
from bedstone.checkpoints.side_files import saved_anew
from bedstone.checkpoints.store import Checkpoint
from bedstone.data.sources import BUILT_IN
from bedstone.errors import BedstoneError
from bedstone.evaluate.runner import batch_losses
from bedstone.files import manifest, sha256
from bedstone.metrics.figures import bootstrap
from bedstone.recipes.base import method_of, read
from bedstone.runtime import versions
from bedstone.train.run import prepare

HELD_OUT = "bedstone card . --check"  # the command that measures what a run held out
TOLERANCE = 2e-3  # how far a figure may be from what it was, as a share of it: versions, machines
BEFORE = "validation_"  # begins the names of held-out figures in a run's log
LOSS = f"{BEFORE}loss"


def held_out_figures(folder: Path, record: Mapping[str, Any]) -> list[Measured]:
    """Figures on what the run of a model held out, those that have an interval.

    Args:
        record: of its bedstone.json.

    Raises:
        BedstoneError: it doesn't say by which recipe it was made, its data is gone or has changed,
            or nothing has an interval.
    """
    if not record.get("recipe"):
        raise BedstoneError(
            f"{folder}: its bedstone.json holds no recipe, so nothing says what was held out. Name "
            "data to measure it on by --add."
        )
    values = dict(record["recipe"])
    recipe = read(values, usual="supervised")
    if getattr(recipe, "lora", None):  # the model has the adapter merged
        recipe = dataclasses.replace(recipe, lora=None)
    method = method_of(recipe)
    with _named_from(folder, values.get("data")):
        plan = prepare(method, recipe, None, Checkpoint(folder, 0), quiet=True)
    data, now = record.get("data") or {}, plan.splits.record
    for key in ("fingerprint", "split"):
        if data.get(key) != now.get(key):
            raise BedstoneError(
                f"{now.get('source')}: isn't the data that {folder} was trained on ({key} "
                f"{str(data.get(key))[:16]}, now {str(now.get(key))[:16]}). Bring it back as it "
                "was; its figures can't be measured on another."
            )
    evaluations = method.evaluations(recipe, plan)
    if not evaluations:
        raise BedstoneError(f"{folder}: its run held nothing out. Name data by --add.")
    with batch_losses() as batches:
        logged = evaluations[0].log(plan.model.network)
    found = _losses(logged, batches)
    with TemporaryDirectory() as spare:
        for each in evaluations:
            found |= with_intervals(each.report(Path(spare), logged, quiet=True))
    if not found:
        raise BedstoneError(f"{folder}: no figure of its run has an interval. Name data by --add.")
    precision, fingerprint = plan.start.precision.name, str(now.get("fingerprint"))
    return [
        Measured(name, *values, data=fingerprint, command=HELD_OUT, precision=precision)
        for name, values in found.items()
    ]


@contextlib.contextmanager
def _named_from(folder: Path, data: Any) -> Iterator[None]:
    """Errors say where relative paths of a recipe's data are of, where one isn't there."""
    try:
        yield
    except BedstoneError as error:
        given = data.values() if isinstance(data, Mapping) else []
        paths = [each for each in given if isinstance(each, str) and each in str(error)]
        if not any(each and not Path(each).exists() for each in paths):
            raise
        raise BedstoneError(
            f"{error} The recipe in {folder}/bedstone.json names its data from the folder in which "
            "the run was started; run this command there."
        ) from error


Values = tuple[float, float, float, int]  # a figure, the ends of its interval, its rows


def _losses(
    logged: Mapping[str, float], batches: Sequence[tuple[float, float]]
) -> dict[str, Values]:
    """The loss of a run's log, and what follows from it, with intervals."""
    named = {name.removeprefix(BEFORE): value for name, value in logged.items()}
    return {f"{BEFORE}{name}": values for name, values in loss_figures(named, batches).items()}


def loss_figures(
    record: Mapping[str, Any], batches: Sequence[tuple[float, float]]
) -> dict[str, Values]:
    """The loss of a record, its perplexity and bits a byte, with intervals by a bootstrap.

    Args:
        batches: sum of losses and number of targets of each batch that it is of; they are drawn.
    """
    if "loss" not in record or len(batches) < 2:
        return {}
    sums, counts = np.array(batches).T
    loss = float(record["loss"])
    if not math.isclose(sums.sum() / counts.sum(), loss, rel_tol=1e-6):
        return {}  # batches of something else were read as well
    ends = bootstrap(lambda drawn: ((drawn @ sums) / (drawn @ counts))[:, None], len(sums))
    low, high = map(float, ends[0])
    targets = int(counts.sum())
    found = {"loss": (loss, low, high, targets)}
    if "perplexity" in record:
        found["perplexity"] = (math.exp(loss), math.exp(low), math.exp(high), targets)
    if bits := record.get("bits_per_byte"):
        share = float(bits) / loss
        found["bits_per_byte"] = (loss * share, low * share, high * share, targets)
    return found


def with_intervals(record: Mapping[str, Any], prefix: str = "") -> dict[str, Values]:
    """The figures of an evaluation's record that have an interval, by their path."""
    return dict(_with_intervals(record, prefix))


def _with_intervals(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Values]]:
    rows = record.get("rows", 0)
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _with_intervals(value, f"{prefix}{name}/")
        elif f"{name}_low" in record and f"{name}_high" in record and "/" not in name:
            ends = record[f"{name}_low"], record[f"{name}_high"]
            yield f"{prefix}{name}", (float(value), *map(float, ends), int(rows or 0))  # type: ignore[misc]


def data_hash(data: str) -> str:
    """The hash of a file or a folder of data; of built-in data, its name and Bedstone's version.

    Raises:
        BedstoneError: it is neither.
    """
    path = Path(data)
    if path.is_file():
        return sha256(path)
    if path.is_dir():
        lines = [f"{name} {entry['sha256']}\n" for name, entry in manifest(path).items()]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    if data in BUILT_IN:
        return f"{data}, bedstone {versions()['bedstone']}"
    raise BedstoneError(
        f"{data}: is no file, folder or built-in data, so a card couldn't say its hash. Fetch it "
        "into a file first."
    )


def found_from(folder: Path, data: str) -> str:
    """Data that a card of a model's folder names, by its way from here.

    Cards of older versions name files from where they were measured.

    Raises:
        BedstoneError: it is neither there nor built in.
    """
    there = folder / data
    if there.exists() or Path(data).exists() or data in BUILT_IN:
        return str(there) if there.exists() else data
    raise BedstoneError(
        f"{folder}: its card is of the data {data}, named from this folder, and it isn't there "
        f"({there}). Bring it back; or drop the card's figures and measure anew: "
        f"{saved_anew(folder)}; then bedstone card {folder} --add DATA"
    )


def differs(then: Measured, now: Measured) -> bool:
    """Whether a figure isn't what it was."""
    return not math.isclose(then.value, now.value, rel_tol=TOLERANCE, abs_tol=TOLERANCE / 10)
