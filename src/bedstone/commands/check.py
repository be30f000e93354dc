"""`bedstone check`: whether a model gives the outputs that were stored when it was saved."""

import json
import math
from pathlib import Path
from typing import Any

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
LONGEST = 88  # characters of the outputs in a line


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
        _print(found)
        print(f"{len(found)} differences in {count} outputs, computed in {how.name}")
    else:
        print(f"{model}: all {count} outputs are those that were stored, computed in {how.name}")
    return int(bool(found))


def _folder(opened: Model) -> Path | None:
    """The folder that a model was opened from; None of one file."""
    return opened.path if opened.path is not None and opened.path.is_dir() else None


def _print(found: list[Difference]) -> None:
    """A paragraph for each difference, up to `SHOWN` of them."""
    for each in found[:SHOWN]:
        read = ", ".join(f"{name} {value!r}" for name, value in each.input.items())
        size = "" if math.isinf(each.size) else f" by {each.size:.2g}, {each.tolerance:.2g} allowed"
        print(f"{each.capability}, {read or 'any input'}: {each.output} differs{size}")
        print(f"    expected  {_shown(each.expected)}\n    got       {_shown(each.got)}")
    if len(found) > SHOWN:
        print(f"and {len(found) - SHOWN} more; --json has all")


def _shown(values: list[Any]) -> str:
    """The beginning of some values: numbers, numbers by their names, texts or lists of these."""
    text = " ".join(map(_short, values)) or "nothing"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{value[0]}: {value[1]:.4g}"
    if isinstance(value, list):
        return f"[{' '.join(map(_short, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
