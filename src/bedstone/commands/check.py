"""`bedstone check`: whether a model gives the outputs that were stored when it was saved."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bedstone.checkpoints.golden import (
    FILE,
    Difference,
    add_golden,
    differences,
    read_golden,
)
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model
from bedstone.errors import BedstoneError
from bedstone.runtime import pick_device, pick_precision

SHOWN = 20  # differences that are printed
LONGEST = 60  # characters of a cell


def check(
    model: str,
    *,
    write: bool = False,
    overwrite: bool = False,
    precision: str = "fp32",
    device: str = "auto",
    as_json: bool = False,
) -> int:
    """Compare a model's outputs with those that were stored when it was saved.

    A saved model holds golden.json: five built-in inputs with the outputs that the model gave. They
    are computed again; each one that differs is printed, and the exit code is 1. So it is known
    whether another version, another machine or a precision changes what the model gives.

    Args:
        model: a folder, a name that `bedstone models` lists, or a hub id.
        write: store the outputs in the model's folder instead, where it has none.
        overwrite: with `write`, replace those that are stored.
        precision: of computation: fp32, bf16, auto, int8 or int4. What is still taken for equal
            follows from it.
        device: auto, cpu, cuda or mps.
        as_json: print one JSON object.

    Example:
        bedstone check runs/python-docs --precision int8

    Raises:
        BedstoneError: the model can't be opened, or has no stored outputs; with `write`, it has
            some, or isn't a folder of yours.
    """
    how = pick_precision(precision, pick_device(device))
    opened = open_model(model, dtype=how.weights, device=how.device)
    folder = _folder(opened)
    if write:
        if folder is None or not Path(model).is_dir():
            raise BedstoneError(
                f"{model}: is no folder of a model, in which outputs could be stored. Save it as "
                "one first: bedstone.load(...).save(folder)"
            )
        if (folder / FILE).exists() and not overwrite:
            raise BedstoneError(
                f"{folder / FILE}: is there already. To replace what is stored, add --overwrite."
            )
        add_golden(folder, opened)
        print(json.dumps({"written": str(folder / FILE)}) if as_json else f"wrote {folder / FILE}")
        return 0
    golden = None if folder is None else read_golden(folder)
    if golden is None:
        raise BedstoneError(
            f"{model}: has no {FILE}, so nothing says what its outputs should be. Where you trust "
            f"them as they are now, store them: bedstone check {model} --write"
        )
    found = differences(opened, golden, how)
    count = sum(len(case["outputs"]) for case in golden["cases"])
    if as_json:
        facts = {"model": model, "precision": how.name, "outputs": count}
        print(json.dumps({**facts, "differences": [each.record() for each in found]}))
    elif found:
        print(f"{model}: outputs that differ")
        Console().print(_table(found))
        print(f"{len(found)} differences in {count} outputs, computed in {how.name}")
    else:
        print(f"{model}: all {count} outputs are those that were stored, computed in {how.name}")
    return int(bool(found))


def _folder(opened: Model) -> Path | None:
    """The folder that a model was opened from; None of one file."""
    return opened.path if opened.path is not None and opened.path.is_dir() else None


def _table(found: list[Difference]) -> Table:
    table = Table()
    for name in ("input", "output", "expected", "got", "difference", "tolerance"):
        table.add_column(name, justify="right" if name in ("difference", "tolerance") else "left")
    for each in found[:SHOWN]:
        size = "" if each.size == float("inf") else f"{each.size:.2g}"
        tolerance = f"{each.tolerance:.2g}" if each.tolerance else ""
        row = [_cell(value) for value in (each.input, each.output, each.expected, each.got)]
        table.add_row(*row, size, tolerance)
    if len(found) > SHOWN:
        table.caption = f"and {len(found) - SHOWN} more; --json has all"
    return table


def _cell(value: Any) -> Text:
    if isinstance(value, dict):
        value = ", ".join(f"{name} {each!r}" for name, each in value.items())
    elif isinstance(value, list):
        value = " ".join(map(_short, value))
    return Text(value if len(value) <= LONGEST else f"{value[: LONGEST - 1]}…")


def _short(value: Any) -> str:
    """A number, or a number by its name."""
    if isinstance(value, tuple):
        return f"{value[0]}: {value[1]:.4g}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
