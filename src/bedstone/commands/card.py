"""`bedstone card`: a model's card, its figures measured, and measured again."""

import contextlib
import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from bedstone.checkpoints.card import Measured, keep_figures, kept_figures, weight_files_hash
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.side_files import RECORD, read_record, saved_anew, seen_from
from bedstone.checkpoints.store import MANIFEST
from bedstone.commands.evaluate import evaluate
from bedstone.errors import BedstoneError
from bedstone.evaluate.runner import batch_losses
from bedstone.inspect.card import (
    HELD_OUT,
    data_hash,
    differs,
    found_from,
    held_out_figures,
    loss_figures,
    with_intervals,
)
from bedstone.outputs import named_rows
from bedstone.reading import to_path

OPTIONS = ("task", "column", "label_column", "split")


def card(
    model: str,
    *,
    measure: bool = False,
    check: bool = False,
    add: str = "",
    task: str = "",
    column: str = "",
    label_column: str = "",
    split: str = "",
    as_json: bool = False,
) -> int:
    """Print a model's card, measure its figures, or measure them again.

    A figure in a card has a 95 % interval, the hash of its data, and the command that measures it.
    With `check` the exit code is 1 where a figure isn't what the card says; a card that is of
    other weights is refused.

    Args:
        model: the folder of a model that Bedstone saved.
        measure: measure what its run held out, by its own recipe, and write it into the card.
        check: measure all figures of the card again.
        add: data to evaluate the model on, as `bedstone evaluate` takes it; figures that have an
            interval are added to the card.
        task: with `add`, as of `bedstone evaluate`.
        column: likewise.
        label_column: likewise.
        split: likewise.
        as_json: print one JSON object.

    Example:
        bedstone card runs/finetune-own/model --measure
        bedstone card runs/finetune-own/model --add test.csv
        bedstone card runs/finetune-own/model --check

    Raises:
        BedstoneError: the folder holds no such model, its weights aren't those of its card, its
            data is gone or has changed, or nothing that was measured has an interval.
    """
    folder = _folder(model)
    chosen = {"task": task, "column": column, "label_column": label_column, "split": split}
    chosen = {name: value for name, value in chosen.items() if value}
    if chosen and not add:
        raise BedstoneError(f"--{next(iter(chosen)).replace('_', '-')}: is an option of --add.")
    if check and (measure or add):
        other = "measure" if measure else "add"
        raise BedstoneError(f"--check: changes nothing; leave it out, or --{other}.")
    if check:
        return _check(folder, as_json=as_json)
    figures: list[Measured] = []
    if measure:
        figures += held_out_figures(folder, read_record(folder, verify=True))
    if add:
        figures += _evaluated(folder, add, chosen)
    if figures:
        _keep(folder, figures)
    _, kept = kept_figures(read_record(folder, verify=False), folder)
    if as_json:
        print(json.dumps({"model": str(folder), "figures": [vars(each) for each in kept]}))
    else:
        print((folder / "README.md").read_text(encoding="utf-8"), end="")
    return 0


def _folder(model: str) -> Path:
    """The folder of a model that Bedstone saved.

    Raises:
        BedstoneError: it is none, or a checkpoint, which stays as it was written.
    """
    folder = to_path(model, "card")
    if (folder / "model" / RECORD).is_file():  # a run's
        folder = folder / "model"
    if not ((folder / RECORD).is_file() and (folder / "README.md").is_file()):
        raise BedstoneError(
            f"{model}: is no folder of a model that Bedstone saved. Save it as one first: "
            "bedstone.load(...).save(folder)"
        )
    if (folder / MANIFEST).is_file():
        raise BedstoneError(f"{folder}: is a checkpoint, which stays as it was written.")
    return folder


def _keep(folder: Path, figures: list[Measured]) -> None:
    """Writes figures into the card, beside those of the same weights by other commands."""
    opened: Any = open_model(folder)
    weights, kept = kept_figures(opened.record, folder)
    fresh = {each.command for each in figures}
    if weights == weight_files_hash(folder):
        figures = [each for each in kept if each.command not in fresh] + figures
    keep_figures(folder, opened, figures)


def _evaluated(folder: Path, data: str, options: dict[str, str]) -> list[Measured]:
    """The figures of `bedstone evaluate` that have an interval."""
    fingerprint = data_hash(data)
    more: dict[str, Any] = dict(options)
    with contextlib.redirect_stdout(io.StringIO()), batch_losses() as batches:
        record = evaluate(str(folder), data, as_json=True, precision="fp32", **more)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = shlex.join(["bedstone", "evaluate", ".", seen_from(folder, data), *words])
    prefix = f"{options.get('task', Path(data).name)}/"
    losses = {f"{prefix}{name}": each for name, each in loss_figures(record, batches).items()}
    found = losses | with_intervals(record, prefix)
    if not found:
        raise BedstoneError(
            f"--add: no figure of {command} has an interval, as a card's must: one of a loss needs "
            "two batches of rows or more. Name more data, or another --task."
        )
    return [
        Measured(name, *values, data=fingerprint, command=command, precision="fp32")
        for name, values in found.items()
    ]


def _check(folder: Path, *, as_json: bool) -> int:
    record = read_record(folder, verify=False)
    weights, kept = kept_figures(record, folder)
    if not kept:
        raise BedstoneError(
            f"{folder}: its card has no figures to check. Measure them: bedstone card {folder} "
            f"--measure where its run held something out, or bedstone card {folder} --add DATA"
        )
    if (now := weight_files_hash(folder)) != weights:
        raise BedstoneError(
            f"{folder}: its weights aren't those that its card is of: hash {now[:16]}, expected "
            f"{weights[:16]}. Its figures say nothing of them. If you changed them on purpose, "
            f"{saved_anew(folder)}; then measure anew: bedstone card {folder} --measure, or "
            f"bedstone card {folder} --add DATA"
        )
    again: dict[tuple[str, str], Measured] = {}
    for command in dict.fromkeys(each.command for each in kept):
        for one in _measurer(folder, record, command, kept)():
            again[command, one.name] = one
    pairs = [(each, again.get((each.command, each.name))) for each in kept]
    wrong = [each.name for each, found in pairs if found is None or differs(each, found)]
    if as_json:
        facts = [{**vars(a), "now": b and b.value, "differs": a.name in wrong} for a, b in pairs]
        print(json.dumps({"model": str(folder), "weights": weights, "figures": facts}))
    else:
        _print(pairs, wrong)
    return int(bool(wrong))


def _measurer(
    folder: Path, record: dict[str, Any], command: str, kept: list[Measured]
) -> Callable[[], list[Measured]]:
    """What measures the figures of a command again.

    Raises:
        BedstoneError: the command is none of ours, or its data has changed.
    """
    if command == HELD_OUT:
        return lambda: held_out_figures(folder, record)
    words = shlex.split(command)
    if words[:3] != ["bedstone", "evaluate", "."] or len(words) < 4:
        raise BedstoneError(f"{folder}: its card names {command!r}, which measures no figure.")
    data = found_from(folder, words[3])
    options = dict(word[2:].partition("=")[::2] for word in words[4:])
    options = {name.replace("-", "_"): value for name, value in options.items()}
    if set(options) - set(OPTIONS):
        raise BedstoneError(f"{folder}: its card names {command!r}, with options unknown here.")
    then = next(each.data for each in kept if each.command == command)
    if (now := data_hash(data)) != then:
        raise BedstoneError(
            f"{data}: isn't the data of {command!r} in the card of {folder}: hash {now[:16]}, "
            f"expected {then[:16]}. Bring it back as it was, or measure anew with --add."
        )
    return lambda: _evaluated(folder, data, options)


def _print(pairs: list[tuple[Measured, Measured | None]], wrong: list[str]) -> None:
    rows = [
        (
            then.name,
            f"{then.value:.6g}",
            "not measured" if now is None else f"{now.value:.6g}",
            "differs" if then.name in wrong else "same",
            then.command,
        )
        for then, now in pairs
    ]
    Console().print(named_rows(("figure", "card", "now", "", "command"), rows))
    print(f"{len(wrong)} of {len(pairs)} figures differ" if wrong else "all figures are the same")
