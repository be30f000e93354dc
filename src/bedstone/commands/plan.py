"""`bedstone plan`: what a recipe's run will meet and take, before it is begun."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.recipes import library


def plan(
    recipe: str,
    overrides: list[str],
    strict: bool = False,
    seconds: float = 20.0,
    watts: float = 0.0,
    price_hour: float = 0.0,
    memory_gb: float = 0.0,
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
        memory_gb: that the run may take: whether it fits, and the largest batch that does. The
            exit code is 1 where it doesn't.
        as_json: print one JSON object.

    Example:
        bedstone plan tinyshakespeare budget=2h --price-hour 0.40
        bedstone plan finetune-own data.train=rows.jsonl --strict --seconds 0

    Raises:
        BedstoneError: the recipe, its data or a model can't be read.
    """
    given = {"seconds": seconds, "watts": watts, "price-hour": price_hour, "memory-gb": memory_gb}
    for name, value in given.items():
        if not 0 <= value < float("inf"):
            raise BedstoneError(f"--{name}: {value} was given; expected a number from 0 on.")
    method, read = _read(library.find(recipe), overrides)
    from bedstone.inspect.plan import make_plan

    made = make_plan(
        method,
        read,
        seconds=seconds,
        watts=watts,
        price_hour=price_hour,
        memory_gb=memory_gb,
        quiet=as_json,
    )
    if as_json:
        print(json.dumps(made.record()))
    else:
        print("\n".join(made.lines(datetime.now())))
    return int(made.failed(strict=strict))


def _read(path: Path, overrides: list[str]) -> tuple[Any, Any]:
    """The method of a recipe, of whichever command, and the recipe."""
    from bedstone.recipes import given
    from bedstone.recipes.base import method_of, read_start
    from bedstone.recipes.supervised import TASKS

    values = read_start(path, overrides)
    named = isinstance(values.get("model"), str) or values.get("task") in TASKS
    found, _ = given.recipe(path, overrides, None, {}, finetunes=named and not values.get("method"))
    return method_of(found), found
