"""`bedstone plan`: what a recipe's run will meet and take, before it is begun."""

import json
from datetime import datetime
from typing import TYPE_CHECKING

from bedstone.errors import BedstoneError
from bedstone.recipes import library

if TYPE_CHECKING:
    from bedstone.inspect.plan import Plan


def plan(
    recipe: str,
    overrides: list[str],
    strict: bool = False,
    seconds: float = 20.0,
    watts: float = 0.0,
    price_hour: float = 0.0,
    as_json: bool = False,
) -> int:
    """Look through a recipe's rows, and say what its run takes: memory, time, energy, cost.

    Rows are searched for duplicates, leaks between splits, labels that conflict or shift, targets
    that are empty or cut, broken pictures, wrong encodings and personal data. Parameters and work
    are counted, the peak of memory is predicted, and some steps are timed on the recipe's own
    batches. Nothing is kept of it. The exit code is 1 where a finding is an error.

    Args:
        recipe: the name of one of `bedstone recipes`, or a YAML file.
        overrides: fields of the recipe to set, as key=value.
        strict: exit with 1 for warnings, too.
        seconds: for timing steps; 0 looks through the rows alone.
        watts: of the machine at work, where its energy can't be measured; 0 takes 10 a thread.
        price_hour: of the machine, for the cost.
        as_json: print one JSON object.

    Example:
        bedstone plan tinyshakespeare budget=2h --price-hour 0.40
        bedstone plan finetune-own data.train=rows.jsonl --strict --seconds 0

    Raises:
        BedstoneError: the recipe, its data or a model can't be read.
    """
    for name, value in (("seconds", seconds), ("watts", watts), ("price-hour", price_hour)):
        if not 0 <= value < float("inf"):
            raise BedstoneError(f"--{name}: {value} was given; expected a number from 0 on.")
    path = library.find(recipe)
    from bedstone.inspect.plan import make_plan
    from bedstone.recipes.given import read_any

    method, read = read_any(path, overrides)
    made = make_plan(
        method, read, seconds=seconds, watts=watts, price_hour=price_hour, quiet=as_json
    )
    _print(made, as_json=as_json)
    return int(made.failed(strict=strict))


def _print(made: "Plan", *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(made.record()))
    else:
        print("\n".join(made.lines(datetime.now())))
