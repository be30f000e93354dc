"""`bedstone tune`: which values of a recipe's fields are best, found by many runs of it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bedstone.errors import BedstoneError
from bedstone.outputs import named_rows
from bedstone.recipes import library

if TYPE_CHECKING:
    from bedstone.inspect.study import Study

SHOWN = 8  # trials that are printed


def tune(
    recipe: str,
    overrides: list[str],
    over: tuple[str, ...] = (),
    space: str | None = None,
    trials: int = 40,
    workers: int = 1,
    out: str = "",
    by: str = "validation_loss",
    sampler: str = "tpe",
    pruner: str = "asha",
    first: float = 0.1,
    reduction: int = 4,
    seed: int = 0,
    as_json: bool = False,
) -> int:
    """Search for the values of a recipe's fields that give the best model.

    Each trial is an ordinary run in OUT/trials, with values that TPE chooses and ASHA stops early
    where they aren't promising. The first one is the recipe as it is, where the search space holds
    it. What is stopped or killed goes on exactly: give the same command again. OUT/best.yaml is the
    best recipe, OUT/tune.html a page of all trials.

    Args:
        recipe: the name of one of `bedstone recipes`, or a YAML file.
        overrides: fields of the recipe to set in all trials, as key=value.
        over: a field to vary, as optim.lr=log:1e-4..1e-2, model.layers=2..8 or batch_size=8,16,32;
            may be given several times.
        space: a YAML file of such fields.
        trials: how many in all.
        workers: processes that run trials at the same time; they share the processor's cores.
        out: the folder of the study (default: runs/tune-RECIPE).
        by: the figure of the log to compare by, lower is better; of -NAME (written --by=-NAME) the
            highest is best.
        sampler: tpe or random.
        pruner: asha, or none: each trial gets its whole budget.
        first: the share of its budget after which a trial may be stopped first.
        reduction: of so many trials, one goes on at each rung; rungs lie so many times apart.
        seed: of the choices.
        as_json: print one JSON object.

    Example:
        bedstone tune tinyshakespeare --over optim.lr=log:1e-4..1e-1 --over batch_size=8,16,32

    Raises:
        BedstoneError: a field is unknown or can't be varied, the recipe can't be run, or the
            folder holds something else; said before anything runs.
    """
    for name, value in (("trials", trials), ("workers", workers)):
        if value < 1:
            raise BedstoneError(f"--{name}: {value} was given; expected at least 1.")
    path = library.find(recipe)
    from bedstone.inspect.space import check_space, read_space
    from bedstone.inspect.study import StudySettings, create
    from bedstone.inspect.tune import search
    from bedstone.measured import threads_of

    dimensions = read_space(space, over)
    base = base_recipe(path, overrides)
    settings = StudySettings(by, sampler, pruner, first, reduction, seed)
    check_space(dimensions, base, by)
    folder = Path(out or f"runs/tune-{path.stem}")
    study = create(folder, base, dimensions, settings, threads_of(workers))
    reason = search(study, trials, workers, quiet=as_json)
    if as_json:
        print(json.dumps(record(study)))
    else:
        show(study, reason)
    return {"SIGINT": 130, "SIGTERM": 143}.get(reason, 0)


def base_recipe(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The values that all trials share: those of the recipe, with what a machine decides fixed."""
    from bedstone.recipes.given import read_any
    from bedstone.train.run import check_values, said

    method, read = read_any(path, overrides)
    precision = check_values(method, read).name
    named = {} if method.name == "supervised" else {"method": method.name}
    return said(dataclasses.replace(read, precision=precision, **named))


def record(study: "Study") -> Mapping[str, Any]:
    """A study as one JSON object."""
    best = study.best()
    return {
        "folder": str(study.folder),
        "settings": dataclasses.asdict(study.settings),
        "best": None if best is None else best.number,
        "recipe": None if best is None else str(study.folder / "best.yaml"),
        "importance": study.importance()[0],
        "trials": [dataclasses.asdict(each) for each in study.results()],
    }


def show(study: "Study", reason: str) -> None:
    """Prints the best trials, why others failed, and where the best recipe is."""
    from bedstone.report.trials import ranked, table

    by = study.settings.by
    results = ranked(study.results(), highest=by.startswith("-"))
    head, *rows = table(results[:SHOWN], by.removeprefix("-"))
    Console().print(named_rows(head, rows, title=f"the best of {len(results)} trials"))
    for each in results:
        if each.state == "failed":
            print(f"trial {each.number} failed: {each.fault}")
    if study.best() is not None:
        print(f"best recipe: {study.folder / 'best.yaml'}")
    print(f"page: {study.folder / 'tune.html'}")
    if reason != "finished":
        print(f"Stopped by {reason}. The same command goes on with it.")
