"""Stages: runs of other methods that a run trains first, in order, within its one budget.

Each is a run of its own in the folder `parts/NAME` of the run, so it resumes where it was stopped,
and its model is the part of that name. A part that the recipe names (`parts: {NAME: runs/...}`) is
taken as it is; its share of the budget is then the others'.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.store import CheckpointStore
from bedstone.errors import BedstoneError, nearest
from bedstone.files import write_text
from bedstone.reading import is_plain, read_object
from bedstone.recipes.base import load_method, read
from bedstone.settings import read_values, to_yaml
from bedstone.train.logs import ProgressBar, counted
from bedstone.train.resume import DATA, RECIPE
from bedstone.train.run import RunResult, held_folder, run, said
from bedstone.train.schedule import Budget, parse_budget

FOLDER = "parts"  # of a run, with its stages
SHARED = ("seed", "precision", "device", "save_minutes", "keep", "log_every", "strict")


@dataclass(frozen=True)
class Stage:
    """A stage of a recipe.

    Attributes:
        name: of the part that it makes, and of the recipe's section that says how.
        method: the training method of its run.
        share: of the whole budget.
        usual: values of its recipe where the section doesn't say them.
    """

    name: str
    method: str
    share: float
    usual: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, whole: Any) -> Any:
        """The recipe of its run.

        Raises:
            BedstoneError: the section isn't one of that method; it is named.
        """
        section = getattr(whole, self.name)
        values = read_values({"method": self.method, **self.usual}, [section])
        if taken := {"out", "budget", *SHARED} & set(section):
            name = min(taken)
            raise BedstoneError(
                f"{name}: is that of the whole run; say {name}, or of the budget a "
                f"share: shares.{self.name}."
            )
        values |= {name: getattr(whole, name) for name in SHARED}
        values |= {"out": str(self.folder(whole)), "budget": part_of(whole.budget, self.share)}
        return read(values)

    def folder(self, whole: Any) -> Path:
        """Of its run."""
        return Path(whole.out) / FOLDER / self.name


def part_of(budget: str, share: float) -> str:
    """A share of a budget, as a recipe says it; at least one step, token or second."""
    whole = parse_budget(budget)
    return str(Budget(max(round(whole.amount * share), 1), whole.unit))


def check_stages(recipe: Any, stages: Sequence[Stage], names: Sequence[str]) -> None:
    """Checks the stages' recipes, their shares of the budget and the parts that are named.

    Args:
        stages: those that are to be trained.
        names: of all parts that there may be.

    Raises:
        BedstoneError: one of them can't be.
    """
    for name in (*recipe.parts, *recipe.shares):
        if name not in names:
            raise BedstoneError(f"parts.{name}: there is no such part{nearest(name, names)}.")
    if sum(stage.share for stage in stages) >= 1:
        shares = ", ".join(f"{stage.name} {stage.share:g}" for stage in stages)
        raise BedstoneError(f"shares: {shares} leave none of the budget to the run itself.")
    for name in recipe.parts:
        if getattr(recipe, name):
            raise BedstoneError(
                f"{name}: parts.{name} = {recipe.parts[name]} is taken as it is; leave the section "
                f"{name} out, or the part."
            )
    for stage in stages:
        with _named(stage):
            load_method(stage.method).check(stage.recipe(recipe))


@contextmanager
def _named(stage: Stage) -> Iterator[None]:
    """Errors say which stage they are of."""
    try:
        yield
    except BedstoneError as error:
        raise BedstoneError(f"{stage.name}: {error}") from error


def train_stages(recipe: Any, stages: Sequence[Stage], *, quiet: bool) -> Iterator[RunResult]:
    """Trains stages in order, or goes on with them; nothing is done for one that is finished.

    The last result has no model where a signal stopped its run.
    """
    say = ProgressBar("", quiet=quiet).say
    for stage in stages:
        own = stage.recipe(recipe)
        if finished(stage.folder(recipe)):
            continue
        # so that the whole run can be resumed from here on
        write_text(Path(recipe.out) / RECIPE, to_yaml(said(recipe)))
        say(f"{stage.name}: {own.budget} of {recipe.budget}")
        with held_folder(stage.folder(recipe)) as folder:
            latest = CheckpointStore(folder / "checkpoints").latest()
            with _named(stage):
                result = run(load_method(stage.method), own, folder, latest, quiet=quiet)
        if result.model is None:
            say(f"That was a part of {recipe.out}. Go on with all: bedstone resume {recipe.out}")
            yield result
            return
        say(seen_rows(folder, result.done.tokens, result.done.unit))
        yield result


def finished(folder: Path) -> bool:
    """Whether a stage has its model."""
    names = ("config.json", "model_index.json")
    return any(is_plain(folder / "model" / name) for name in names)


def seen_rows(folder: Path, items: int, unit: str) -> str:
    """How often a run has seen its rows; said aloud where it wasn't once."""
    rows = int(read_object(folder / DATA, finite=False).get("rows", 0))
    epochs = items / max(rows, 1)
    if epochs >= 1:
        return f"{folder.name}: {epochs:.1f} epochs of {counted(rows, 'row')}"
    return (
        f"{folder.name}: the budget was too small for one epoch: {items:,} of {rows:,} {unit} were "
        "seen. Give it more, or a larger share (shares), or less data (data.most_rows)."
    )


def open_part(recipe: Any, name: str) -> Model | None:
    """A part that is named, or that a stage has made; None where there is none.

    Raises:
        BedstoneError: it can't be opened.
    """
    folder = Path(recipe.out) / FOLDER / name
    named = recipe.parts.get(name)
    if named is None and not finished(folder):
        return None
    return open_model(named or folder / "model", dtype=torch.float32)
