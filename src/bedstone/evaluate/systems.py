"""The same prompts through several systems: time, CLIP score, a judge's verdict, images.

A system is whatever draws images from words: diffusion, a DALL-E, an unCLIP. All draw the same
seeds, are scored by the same CLIP and judged by the same judge, so that figures can be compared.

Shapes: P prompts, n images of each, C channels, H x W pixels.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.generative import at_size, open_clip
from bedstone.evaluate.scene_judge import Things, judge_scenes, open_scene_judge, stated
from bedstone.metrics.figures import wilson
from bedstone.metrics.generative import clip_score
from bedstone.outputs import new_file
from bedstone.report.sheets import as_pixels
from bedstone.report.system_page import DrawnBy, Shot, write_system_page
from bedstone.runtime import pick_precision
from bedstone.settings import check_whole
from bedstone.tasks.images.engine import ImageEngine
from bedstone.tasks.media.generator import rows_of
from bedstone.tasks.media.unclip import open_generator
from bedstone.train.logs import ProgressBar

Report = Callable[[float], None]


@dataclass(frozen=True)
class CompareOptions:
    """The same prompts through several models.

    Attributes:
        beside: another model that draws the same prompts by the same seeds, measured beside the
            first; may be given several times.
        page: an HTML file with all images, times, CLIP scores and verdicts.
        judge: the folder of a judge of scenes, which says what images are right.
        clip: a CLIP that scores how well images fit their prompts (default: that of the first
            model that has one).
    """

    beside: list[str] = field(default_factory=list)
    page: str | None = None
    judge: str = ""
    clip: str = ""

    @property
    def given(self) -> bool:
        """Whether any is.

        Raises:
            BedstoneError: only what measures is.
        """
        if self.beside or self.page is not None:
            return True
        for name in ("judge", "clip"):
            if getattr(self, name):
                raise BedstoneError(
                    f"--{name}: measures models that are compared; give --beside or --page too, or "
                    "take `bedstone evaluate`."
                )
        return False


ALONE = CompareOptions()


@dataclass(frozen=True)
class SystemFigures:
    """What a system drew, and what is measured of it.

    Attributes:
        model: its path or name.
        how: it draws.
        seconds: an image, of all that were drawn, on the clock.
        score: of the CLIP, in the mean; None without one.
        right: share of images that the judge finds right; None without one.
        shots: images by prompt, n of each.
    """

    model: str
    how: str
    seconds: float
    score: float | None
    right: float | None
    shots: Sequence[Sequence[Shot]]

    def record(self) -> dict[str, Any]:
        """The figures, as JSON has them."""
        found: dict[str, Any] = {"model": self.model, "how": self.how, "images": self.count}
        found["seconds"] = self.seconds
        if self.score is not None:
            found["clip_score"] = self.score
        if self.right is not None:
            found["right"] = self.right
            found["right_low"], found["right_high"] = self.interval
        return found

    @property
    def count(self) -> int:
        return sum(map(len, self.shots))

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, of 95 %, of what is right."""
        return wilson(round((self.right or 0.0) * self.count), self.count)


class Systems:
    """Several systems with what measures them, opened and checked before anything is drawn.

    Args:
        models: folders, names that `bedstone models` lists, or hub ids.
        prompts: words.
        given: settings of sampling that are to be otherwise, each for the systems that have it.
        judge: the folder of a judge of scenes; empty has none.
        clip: a CLIP that scores images; empty takes that of the first system that has one.

    Raises:
        BedstoneError: a model can't be opened or draws no images from words; no system has a
            setting; a prompt states nothing that a judge could look for.
    """

    def __init__(
        self,
        models: Sequence[str],
        prompts: Sequence[str],
        given: dict[str, Any],
        *,
        judge: str = "",
        clip: str = "",
        precision: str = "auto",
        device: torch.device | str = "cpu",
    ) -> None:
        if not prompts:
            raise BedstoneError("text: no prompt was given; systems are compared on some. Say one.")
        self.models, self.prompts = list(models), list(prompts)
        self.wanted: list[Things] = [stated(text) for text in prompts] if judge else []
        self.judge = open_scene_judge(judge) if judge else None
        opened: list[Any] = [open_model(each, device=device) for each in models]
        self.drawers = [open_generator(each, precision) for each in opened]
        self.clip: ImageEngine | None = None
        how = pick_precision(precision, torch.device(device))
        for name, model in zip(models, opened, strict=True):
            if (model.signal.condition, model.signal.kind) != ("text", "image"):
                raise BedstoneError(
                    f"beside: {name} draws no images from words, but {model.signal.kind}, "
                    f"{model.inputs()}. Name text-to-image models."
                )
            own: Model | None = getattr(model, "clip", None)
            if self.clip is None and own is not None and not clip:
                self.clip = ImageEngine(own)
        if clip:
            self.clip = open_clip(clip, opened[0], how)
        has = [{each.name for each in fields(model.sampling)} for model in opened]
        for name in given:
            if not any(name in names for names in has):
                known = sorted(set().union(*has))
                raise BedstoneError(
                    f"{name}: none of the systems has such a setting{nearest(name, known)}. Leave "
                    "it out."
                )
        self.given = [{k: v for k, v in given.items() if k in names} for names in has]

    def draw(self, count: int, seed: int = 0, report: Report = lambda share: None) -> list[Any]:
        """`SystemFigures` of each system, of `count` images a prompt from the same seeds.

        Args:
            report: is handed the share that is done.
        """
        check_whole("count", count, 1)
        rows, seeds = rows_of(list(self.prompts), count, seed)
        found = []
        for place, (drawer, given) in enumerate(zip(self.drawers, self.given, strict=True)):
            start = time.perf_counter()
            drawn = drawer.draw(rows, seeds, **given).signals
            taken = time.perf_counter() - start
            found.append(self._measured(place, drawn, [str(row) for row in rows], taken))
            report((place + 1) / len(self.drawers))
        return found

    def _measured(
        self, place: int, drawn: torch.Tensor, rows: Sequence[str], taken: float
    ) -> SystemFigures:
        pixels = as_pixels(drawn)
        scores = None if self.clip is None else clip_score(self.clip, pixels, rows).scores
        right: list[bool] | None = None
        if self.judge is not None:
            each = len(rows) // len(self.prompts)
            wanted = [one for one in self.wanted for _ in range(each)]
            seen = self.judge.things(at_size(drawn, self.judge.size))
            right = [
                judge_scenes([there], [own]).right == 1
                for there, own in zip(seen, wanted, strict=True)
            ]
        shots = [
            Shot(
                pixels[row],
                None if right is None else right[row],
                None if scores is None else float(scores[row]),
            )
            for row in range(len(rows))
        ]
        each = len(rows) // len(self.prompts)
        return SystemFigures(
            self.models[place],
            self.drawers[place].model.how,
            taken / len(rows),
            None if scores is None else float(scores.mean()),
            None if right is None else sum(right) / len(right),
            [shots[first : first + each] for first in range(0, len(rows), each)],
        )


def compare_systems(
    models: Sequence[str],
    prompts: Sequence[str],
    compare: CompareOptions,
    given: dict[str, Any],
    *,
    count: int,
    seed: int = 0,
    overwrite: bool = False,
    as_json: bool = False,
    precision: str = "auto",
    device: torch.device | str = "cpu",
) -> Path | None:
    """Draws by several models, prints what is measured, and writes the page if one is named.

    Args:
        models, prompts, given, precision, device: as of `Systems`.
        count, seed: as of `Systems.draw`.
        overwrite: replace a page of the same name.

    Raises:
        BedstoneError: as `Systems`; or the page can't be written.
    """
    if compare.page is not None:
        new_file(compare.page, "--page", overwrite=overwrite)
        if not (folder := Path(compare.page).resolve().parent).is_dir():
            raise BedstoneError(f"--page: {folder} isn't there. Make it, or choose another name.")
    systems = Systems(
        models,
        prompts,
        given,
        judge=compare.judge,
        clip=compare.clip,
        precision=precision,
        device=device,
    )
    with ProgressBar("drawing", quiet=as_json) as bar:
        figures = systems.draw(count, seed, bar.update)
    rows, heads = _shown(figures), _headings(figures[0])
    if as_json:
        print(*(json.dumps(each.record()) for each in figures), sep="\n")
    else:
        table = Table("model", *heads)
        for row in rows:
            table.add_row(row.name, *row.figures)
        Console().print(table)
    if compare.page is None:
        return None
    lead = f"{len(prompts)} prompts, {figures[0].count} images by each system, from the same seeds."
    lead += f" Judged by {compare.judge}." if compare.judge else ""
    title = "The same prompts, drawn by several systems"
    page = write_system_page(compare.page, title, lead, prompts, heads, rows)
    if not as_json:
        print(f"page: {page}")
    return page


def _headings(figures: SystemFigures) -> list[str]:
    """Of the figures that there are."""
    found = ["seconds an image"]
    found += ["CLIP score"] if figures.score is not None else []
    return found + (["right", "95 %"] if figures.right is not None else [])


def _shown(figures: Sequence[SystemFigures]) -> list[DrawnBy]:
    """The systems as a page shows them, by names that differ."""
    names = [Path(each.model).name for each in figures]
    if len(set(names)) < len(names):
        names = [each.model for each in figures]
    found = []
    for name, each in zip(names, figures, strict=True):
        cells = [f"{each.seconds:.3f}"]
        cells += [] if each.score is None else [f"{each.score:.2f}"]
        if each.right is not None:
            low, high = each.interval
            cells += [f"{each.right:.3f}", f"{low:.3f} to {high:.3f}"]
        found.append(DrawnBy(name, each.how, cells, each.shots))
    return found
