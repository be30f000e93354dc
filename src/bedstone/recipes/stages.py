"""Stages: runs of other methods that a run trains first, in order, within its one budget.

Each is a run of its own in the folder `parts/NAME` of the run, so it resumes where it was stopped,
and its model is the part of that name. A part that the recipe names (`parts: {NAME: runs/...}`) is
taken as it is; its share of the budget is then the others'.

What a part makes of all images, such as codes or embeddings, is kept in the run's folder with the
part's fingerprint.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.store import Checkpoint, CheckpointStore
from bedstone.checkpoints.tensors import load_tensors, save_tensors
from bedstone.data.signals.open import open_signals
from bedstone.data.signals.signals import Signals, SignalsConfig
from bedstone.errors import BedstoneError, nearest
from bedstone.files import write_json, write_text
from bedstone.reading import is_plain, read_object
from bedstone.recipes.base import load_method, read
from bedstone.settings import read_values, to_yaml
from bedstone.train.data import Splits
from bedstone.train.logs import ProgressBar, counted
from bedstone.train.resume import DATA, RECIPE
from bedstone.train.run import RunResult, held_folder, run, said
from bedstone.train.schedule import Budget, parse_budget
from bedstone.train.start import Start

TASK = "text-to-image"  # whose images and captions are read
FOLDER = "parts"  # of a run, with its stages
# Of the section `data`: what every method's has, and of scenes.
IMAGES = ("source", "validation", "split", "validation_share", "most_rows", "most_broken")
DRAWN = ("objects", "sizes", "textures", "signs")
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


def same_images(data: SignalsConfig, *more: str) -> dict[str, Any]:
    """The same images, as the `data` sections of other methods say it.

    Args:
        more: further fields that they have too.
    """
    return {name: getattr(data, name) for name in (*IMAGES, *DRAWN, *more)}


def clip_stage(data: SignalsConfig, size: Sequence[int]) -> dict[str, Any]:
    """What a CLIP's recipe has where its section doesn't say it, of images of a size (H, W)."""
    images = same_images(data, "columns", "templates", "classes")
    return {"model": {"layout": "clip", "image": {"image_size": max(size)}}, "data": images}


class Staged:
    """What methods share whose run trains parts first; the recipe names them in `to_train`."""

    def stages(
        self, recipe: Any, checkpoint: Checkpoint | None, *, quiet: bool
    ) -> Iterable[RunResult]:
        if checkpoint is not None or recipe.init:
            return ()
        method: Any = self  # a `Method` beside this class
        method.check(recipe)
        return train_stages(recipe, recipe.to_train, quiet=quiet)

    def lone(self, recipe: Any, count: int) -> str:
        """Why ranks can't train together: parts are trained first, each by a run of its own."""
        if recipe.to_train and not recipe.init:
            names = ", ".join(stage.name for stage in recipe.to_train)
            return f"{names}: is trained first, in one process; name a finished one"
        return ""

    def budget(self, recipe: Any, splits: Splits) -> str:
        if recipe.init:
            return str(recipe.budget)
        return part_of(recipe.budget, 1 - sum(stage.share for stage in recipe.to_train))


def captioned_images(recipe: Any, size: Sequence[int], start: Start) -> Splits:
    """Images of a size with their captions, none of which is empty.

    Raises:
        BedstoneError: they can't be read, or a caption says nothing.
    """
    with ProgressBar(f"reading {recipe.data.source}", quiet=start.quiet) as bar:
        train, held = open_signals(
            replace(recipe.data, size=tuple(size)),
            TASK,
            seed=recipe.seed,
            held=recipe.evaluate_rows,
            progress=bar.update,
        )
    for signals in (train, held):
        check_captions(signals)
    record = {"source": recipe.data.source, **train.record()}
    notes = [f"{recipe.data.source}: {train.describe()}", f"held out: {held.describe()}"]
    return Splits(train, held, record=record, notes=notes)


def check_captions(signals: Signals) -> None:
    """Raises BedstoneError where a caption says nothing."""
    for row, texts in enumerate(signals.captions or ()):
        if not all(text.strip() for text in texts):
            raise BedstoneError(
                f"{signals.places[row]}: has an empty caption; the null prompt is learnt by drop. "
                "Mend or remove that row."
            )


def check_parts_and_shares(parts: Mapping[str, Any], shares: Mapping[str, Any]) -> None:
    """Raises BedstoneError where a part is no path, or a share none."""
    for part, value in parts.items():
        if not isinstance(value, str):
            raise BedstoneError(f"parts.{part}: {value!r} was given; expected a model's path.")
    for part, value in shares.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < 1:
            raise BedstoneError(f"shares.{part}: {value!r} was given; expected a share.")


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
        with named_stage(stage):
            load_method(stage.method).check(stage.recipe(recipe))


@contextmanager
def named_stage(stage: Stage) -> Iterator[None]:
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
            with named_stage(stage):
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


def cached_rows(
    folder: Path | None,
    name: str,
    kind: str,
    made_of: Mapping[str, str],
    make: Callable[[], np.ndarray],
    *,
    beside: Path | None = None,
) -> np.ndarray:
    """What a part makes of all rows: that which a run's folder holds, or else made and kept.

    Args:
        folder: of the run; None keeps nothing.
        name: of the files there.
        kind: what they are, in words: codes, embeddings.
        made_of: fingerprints of the part and of the rows, by what they are of.
        make: makes the rows (N, ...).
        beside: the folder of another run, whose rows are taken if they are made of the same.

    Raises:
        BedstoneError: those in the folder are of another part or other rows.
    """
    if folder is not None and is_plain(folder / f"{name}.json"):
        known = read_object(folder / f"{name}.json")
        for what, value in made_of.items():
            if known.get(what) != value:
                raise BedstoneError(
                    f"{folder / name}.json: the {what} changed since {kind} were made of them: "
                    f"{str(known.get(what))[:12]} became {value[:12]}. Put the old {what} back, or "
                    f"remove {name}.json to encode anew, and the checkpoints with it."
                )
        return _kept_rows(folder, name, kind)
    there = beside and beside / f"{name}.json"
    if beside and there and is_plain(there) and read_object(there) == made_of:
        return _kept_rows(beside, name, kind)
    rows = make()
    if folder is not None:
        save_tensors(folder, {kind: torch.from_numpy(rows)}, name=f"{name}.safetensors")
        write_json(folder / f"{name}.json", dict(made_of))
    return rows


def _kept_rows(folder: Path, name: str, kind: str) -> np.ndarray:
    rows: np.ndarray = load_tensors(folder, name=f"{name}.safetensors")[kind].numpy()
    return rows
