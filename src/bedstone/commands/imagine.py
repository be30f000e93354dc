"""`bedstone imagine`: draw with a model, and write what was drawn."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedstone.checkpoints.opening import open_model
from bedstone.commands.imagine_files import Frames, planned, write_all
from bedstone.errors import BedstoneError
from bedstone.runtime import pick_device, pick_precision
from bedstone.tasks.draw import Drawer, Drawn, rows_of
from bedstone.tasks.draw_asked import Prompt
from bedstone.tasks.draw_engine import Moment, Watch
from bedstone.tasks.draw_files import check_enlarged
from bedstone.train.progress import ProgressBar

COUNTS = {"draw": 4, "variations": 4, "between": 7, "story": 1}


@dataclass(frozen=True)
class Wanted:
    """What is to be drawn, as the command line says it; see `bedstone imagine --help`."""

    prompts: tuple[str, ...] = ()
    count: int | None = None
    seed: int = 0
    negative: str | None = None
    size: str | None = None
    image: str | None = None
    strength: float | None = None
    mask: str | None = None
    variations: str | None = None
    between: str | None = None
    story: str | None = None
    style: str = ""

    @property
    def way(self) -> str:
        """draw, variations, between or story.

        Raises:
            BedstoneError: two of them are asked for at once, or what one doesn't take.
        """
        said = {"variations": self.variations, "between": self.between}
        said["story"] = self.story or self.style
        found = [name for name, value in said.items() if value]
        if len(found) > 1:
            raise BedstoneError(f"--{found[0]} and --{found[1]}: expected one of them at a time.")
        way = found[0] if found else "draw"
        takes = {"variations": ("strength",), "between": ("negative", "size")}.get(way)
        for name in ("negative", "size", "image", "strength", "mask"):
            if takes is not None and name not in takes and getattr(self, name) is not None:
                raise BedstoneError(f"--{name}: --{way} takes none. Leave it out.")
        return way


def imagine(
    path: str,
    wanted: Wanted,
    sampling: Mapping[str, Any],
    *,
    out: str | None = None,
    enlarge: int = 1,
    strip: str | None = None,
    show_steps: bool = False,
    as_json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> list[Path]:
    """Draws, writes the files and prints their names.

    Args:
        path: a folder or a hub id.
        sampling: fields of `SamplingConfig`; None is as the model has it.
        out: a file, or a folder where it has no suffix.
        enlarge: pixels a side of each pixel in the files.
        strip: a PNG of the drawing, step by step.
        show_steps: the same beside the result.

    Raises:
        BedstoneError: the model draws nothing, or what is asked can't be.
    """
    way = wanted.way
    prompts = _prompts(wanted)
    check_enlarged(enlarge)
    given = {name: value for name, value in sampling.items() if value is not None}
    if "interval" in given:
        given["interval"] = _interval(given["interval"])
    where = pick_device(device)
    pick_precision(precision, where)
    drawer = Drawer(open_model(path, device=where), precision)
    kind = drawer.model.signal.kind
    asked = max(len(prompts), 1)  # where nothing is told, nothing is drawn from once
    several = way != "draw" or asked * (wanted.count or COUNTS[way]) > 1
    place = planned(out, kind, several=several)
    frames = None
    if strip is not None or show_steps:
        frames = Frames(drawer, Path(strip) if strip is not None else place.beside("steps"))
    began = time.monotonic()
    with ProgressBar("drawing") as bar:

        def watch(now: Moment) -> None:
            bar.update(now.share, step=f"{now.step}/{now.steps}")
            if frames is not None:
                frames.see(now)

        drawn = _drawn(drawer, wanted, way, prompts, given, watch)
    taken = time.monotonic() - began
    columns = len(prompts) if way == "story" else 0
    files = write_all(drawn, drawer.model.signal, place, enlarge=enlarge, columns=columns)
    if frames is not None:
        files.append(frames.write(drawn.recipes))
    if as_json:
        _print_rows(files, drawn)
        return files
    number = len(drawn.recipes)
    shown = [place.sheet] if number > 1 else files[: len(files) - (frames is not None)]
    print(f"{number} drawn in {taken:.1f} s: {', '.join(map(str, shown))}")
    if number > 1:
        print(f"each in {place.folder}")
    if frames is not None:
        print(f"step by step: {files[-1]}")
    return files


def _print_rows(files: Sequence[Path], drawn: Drawn) -> None:
    """An object for each file, with the recipe of what is drawn in it alone."""
    rows = [{"file": str(file)} for file in files]
    for row, recipe in zip(rows, drawn.recipes, strict=False):
        row |= recipe
    print(*(json.dumps(row, ensure_ascii=False) for row in rows), sep="\n")


def _drawn(
    drawer: Drawer,
    wanted: Wanted,
    way: str,
    prompts: list[Prompt],
    given: dict[str, Any],
    watch: Watch,
) -> Drawn:
    count = COUNTS[way] if wanted.count is None else wanted.count
    if not prompts and drawer.model.signal.condition == "none":
        prompts = [None]
    more: dict[str, Any] = {"watch": watch, **given}
    if way == "variations":
        if len(prompts) > 1:
            raise BedstoneError("--variations: expected one prompt at most, of what it shows.")
        _, seeds = rows_of([None], count, wanted.seed)
        told = prompts[0] if prompts else None
        more |= {} if wanted.strength is None else {"change": wanted.strength}
        return drawer.variations(wanted.variations, seeds, prompt=told, **more)
    more |= {"negative": wanted.negative, "size": _size(wanted.size)}
    if way == "between":
        if len(prompts) != 1:
            raise BedstoneError("--between: expected one prompt to begin with, before it.")
        if drawer.model.signal.condition == "none":
            ends = wanted.seed, _seed(str(wanted.between))
            return drawer.between(prompts[0], None, count, ends, **more)
        ends = wanted.seed, wanted.seed + 1
        return drawer.between(prompts[0], wanted.between, count, ends, **more)
    more |= {"image": wanted.image, "strength": wanted.strength, "mask": wanted.mask}
    if way == "story":
        if count != 1:
            raise BedstoneError(f"--count: {count} was given; a series has one of each. Leave it.")
        return drawer.story(list(map(str, prompts)), wanted.seed, style=wanted.style, **more)
    rows, seeds = rows_of(prompts, count, wanted.seed)
    return drawer.draw(rows, seeds, **more)


def _prompts(wanted: Wanted) -> list[Prompt]:
    if wanted.story is None:
        return list(wanted.prompts)
    if wanted.prompts:
        raise BedstoneError("--story: its file has the prompts; leave those before it out.")
    try:
        lines = Path(wanted.story).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        told = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise BedstoneError(f"{wanted.story}: can't be read ({told}).") from error
    found: list[Prompt] = [line.strip() for line in lines if line.strip()]
    if not found:
        raise BedstoneError(f"{wanted.story}: has no line; expected a prompt on each.")
    return found


def _size(said: str | None) -> tuple[int, ...]:
    """64x48 as (64, 48)."""
    if said is None:
        return ()
    parts = said.lower().split("x")
    if not all(part.strip().isdecimal() for part in parts):
        raise BedstoneError(f"--size: {said!r} was given; expected numbers, as 64x48.")
    return tuple(int(part) for part in parts)


def _seed(said: str) -> int:
    if not said.isdecimal():
        raise BedstoneError(
            f"--between: {said!r} was given; the model is told nothing, so expected a seed to end "
            "with."
        )
    return int(said)


def _interval(said: str) -> list[float]:
    """0.1,0.8 as two numbers."""
    try:
        return [float(part) for part in said.split(",")]
    except ValueError:
        raise BedstoneError(
            f"--interval: {said!r} was given; expected two numbers, as 0.1,0.8."
        ) from None
