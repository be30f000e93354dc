"""Files of what `bedstone imagine` drew: each one, a sheet of all, and the way there step by step.

Shapes: B rows, C channels; *S the sizes of a signal.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bedstone.checkpoints.drawing_form import SignalForm
from bedstone.errors import BedstoneError
from bedstone.inspect.samples import chosen_frames, samples_sheet, strip_sheet
from bedstone.inspect.shown import as_pictures
from bedstone.tasks.draw import Drawer, Drawn
from bedstone.tasks.draw_engine import Moment
from bedstone.tasks.draw_files import SUFFIXES, file_name, write_drawn

NAME = "imagined"  # where nothing is said
SHOWN = 4  # rows of a strip
MOST = 10  # moments of it
CELL = 128  # pixels of a cell in a sheet, at least
WIDEST = 512


@dataclass(frozen=True)
class Place:
    """Where files go.

    Attributes:
        file: the only one; None where there are several.
        folder: of several.
        sheet: of them all; of a single sound, video or volume, of what it looks like.
    """

    file: Path | None
    folder: Path
    sheet: Path

    def beside(self, word: str) -> Path:
        """A PNG beside the result."""
        if self.file is None and self.sheet.parent == self.folder:
            return self.folder / f"{word}.png"
        stem = (self.file or self.sheet).stem
        return self.sheet.parent / f"{stem}-{word}.png"


def planned(out: str | None, kind: str, *, several: bool) -> Place:
    """Where files go, before anything is drawn.

    Raises:
        BedstoneError: the name ends as no file of this kind does, or is taken by another thing;
            nothing can be written there.
    """
    place = _place(out, kind, several)
    check_folder(place.folder, "--out")
    check_folder(place.sheet.parent, "--out")
    return place


def check_folder(folder: Path, name: str) -> None:
    """Raises BedstoneError where a folder is none or is closed, before anything is drawn for it."""
    folder = folder.resolve()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        fault = "can't be written to" if there.is_dir() else "is a file, where a folder was to be"
        raise BedstoneError(f"{name}: {there} {fault}. Choose another name.")


def _place(out: str | None, kind: str, several: bool) -> Place:
    path, suffix = Path(NAME if out is None else out), SUFFIXES[kind]
    ends = path.suffix.lower()
    if out is None and not several:
        path, ends = path.with_suffix(suffix), suffix
    if ends and ends not in (suffix, ".png"):
        raise BedstoneError(
            f"--out: {out} was given; {kind} is written as {suffix}. Give such a name, or a folder."
        )
    if path.is_dir() if ends else path.is_file():
        taken = "a folder" if ends else "a file"
        raise BedstoneError(f"--out: {path} is {taken}. Choose another name.")
    if not several and ends:
        file = path.with_suffix(suffix)
        sheet = file if kind == "image" else file.with_name(f"{file.stem}-shown.png")
        return Place(file, file.parent, sheet)
    if ends:  # a sheet of that name, and the files in a folder beside it
        return Place(None, path.with_suffix(""), path.with_suffix(".png"))
    return Place(None, path, path / "sheet.png")


def write_all(
    drawn: Drawn, form: SignalForm, place: Place, *, enlarge: int = 1, columns: int = 0
) -> list[Path]:
    """Writes every file; the sheet is the last of them, where there is one.

    Raises:
        BedstoneError: the disk refuses.
    """
    files = []
    for number, (signal, recipe) in enumerate(zip(drawn.signals, drawn.recipes, strict=True)):
        path = place.file or place.folder / file_name(number, recipe, form.kind)
        files.append(write_drawn(signal, form, path, recipe, enlarge=enlarge))
    if len(files) > 1 or form.kind != "image":
        _sheet(drawn, form.kind, place.sheet, columns)
        files.append(place.sheet)
    return files


class Frames:
    """Some rows of a drawing at some of its steps, and the clean signals foreseen in them.

    Args:
        drawer: whose drawing is seen.
        path: the PNG to write.
    """

    def __init__(self, drawer: Drawer, path: Path) -> None:
        if path.suffix.lower() != ".png":
            raise BedstoneError(f"--strip: {path} was given; expected a name that ends in .png.")
        check_folder(path.parent, "--strip")
        self.drawer, self.path = drawer, path
        self.kept: list[tuple[int, Tensor]] = []  # (2B, C, *S) of each step

    def see(self, now: Moment) -> None:
        """Keeps a moment of the first rows; where one drawing follows another, that of the last."""
        if now.first:
            return
        if now.step == 1:
            self.kept = []
        rows = [torch.stack([x, clean]) for x, clean in zip(now.x, now.clean, strict=True)]
        self.kept.append((now.step, torch.cat(rows[:SHOWN]).detach().float().cpu()))

    def write(self, recipes: Sequence[Mapping[str, Any]]) -> Path:
        """Writes the strip: above what is there after each step, below what is foreseen."""
        chosen = [self.kept[place] for place in chosen_frames(len(self.kept), MOST)]
        kind = self.drawer.model.signal.kind
        frames = [as_pictures(self.drawer.engine.shown(x), kind) for _, x in chosen]
        titles = [f"step {step}" for step, _ in chosen]
        recipe = {"drawn": [dict(each) for each in recipes[:SHOWN]]}
        cell = min(max(*frames[0].shape[2:], 96), 256)
        return strip_sheet(frames, self.path, titles=titles, recipe=recipe, cell=cell)


def _sheet(drawn: Drawn, kind: str, path: Path, columns: int) -> Path:
    """All that was drawn, a cell each; of a video or a volume a row, with a cell for each frame."""
    signals, titles, recipe = drawn.signals, _titles(drawn.recipes), {"drawn": drawn.recipes}
    if kind in ("video", "volume"):
        chosen = chosen_frames(signals.shape[2])
        columns = len(chosen)
        titles = [title if n == 0 else "" for title in titles for n in range(columns)]
        signals = signals[:, :, chosen].transpose(1, 2).flatten(0, 1)
    shown = signals if kind != "audio" else as_pictures(signals, kind)
    cell = min(max(*shown.shape[2:], CELL), WIDEST)
    return samples_sheet(shown, path, titles=titles, recipe=recipe, columns=columns, cell=cell)


def _titles(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells rows from one another: their prompts, or else their seeds."""
    prompts = [recipe["prompt"] for recipe in recipes]
    if any("share" in recipe for recipe in recipes):
        return [f"{recipe['share']:.0%}" for recipe in recipes]
    if len({str(prompt) for prompt in prompts}) > 1 or len(recipes) == 1:
        return ["" if prompt is None else str(prompt) for prompt in prompts]
    return [f"seed {recipe['seed']}" for recipe in recipes]
