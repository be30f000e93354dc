"""`bedstone demo`: a small model of each family, trained without a network, in one report.

A demo is a recipe and what is shown of its model; training, reopening, timing and the report are
written once, here.
"""

import importlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from bedstone.checkpoints.load import open_model
from bedstone.nn.quantize import weights_of
from bedstone.recipes.base import load_method, train
from bedstone.report.pages import Section, write_report
from bedstone.runtime import Precision, pick_device, pick_precision
from bedstone.settings import from_mapping
from bedstone.train.logs import clock, counted
from bedstone.train.run import RunResult

SHORT, FULL = 4.0, 10.0  # minutes, where none are given
DEMOS = ("bert", "clip", "draw", "gpt", "vlm")  # files of this folder, each with a `DEMO`


@dataclass(frozen=True)
class Trained:
    """A demo's model and how it was trained.

    Attributes:
        folder: of the run.
        seconds: that the whole demo has, training by `Demo.recipe` included.
        run: None of a built-in model, which is shown as it is.
        model: opened again from the disk.
        precision: of matrix products, as the processor is fast with.
        built_in: the name of a built-in model.
    """

    folder: Path
    seconds: float
    run: RunResult | None
    model: Any
    precision: Precision
    console: Console
    built_in: str = ""

    @property
    def path(self) -> str:
        """What commands call the model: the artefact's folder, or the name of a built-in one."""
        if self.run is None:
            return self.built_in
        assert self.run.model is not None
        return str(self.run.model)

    @property
    def metrics(self) -> dict[str, float]:
        """Figures that training ended with, or that the card of a built-in model has."""
        found: dict[str, float] = self.model.record.get("metrics", {})
        return found if self.run is None else self.run.done.metrics


@dataclass(frozen=True)
class Demo:
    """A recipe that learns something within minutes, and what is shown of its model.

    Attributes:
        headline: printed before training.
        method: the training method.
        recipe: its values, but for `out` and `budget`.
        show: makes the report's section; parameters and training time are added to its figures.
        share: of all minutes, relative to the other demos.
        part: share of its own time that `recipe` gets; `show` uses the rest.
        begins_with: fields of the recipe that name the run of another demo, which comes before.
        step: (what a step's batch has, its unit); tokens where None.
    """

    headline: str
    method: str
    recipe: Mapping[str, Any]
    show: Callable[[Trained], Section]
    share: float = 0.75
    part: float = 1.0
    begins_with: Mapping[str, str] = field(default_factory=dict)
    step: tuple[int, str] | None = None

    def run(self, folder: Path, minutes: float, console: Console) -> Section:
        """Trains for `minutes` into `folder`, in the place of an earlier demo's run."""
        console.print(f"\n[bold]{self.headline}[/bold]\n")
        if folder.is_dir():
            shutil.rmtree(folder)
        budget = f"{max(60 * minutes * self.part, 1):.0f}s"
        values = {**self.recipe, "out": str(folder), "budget": budget}
        values |= {name: str(folder.parent / other) for name, other in self.begins_with.items()}
        finished = train(from_mapping(load_method(self.method).Recipe, values, "demo"))
        assert finished.model is not None
        precision = pick_precision("auto", pick_device("cpu"))
        model = open_model(finished.model)
        section = self.show(Trained(folder, 60 * minutes, finished, model, precision, console))
        count = sum(weight.numel() for weight in model.network.parameters())
        figures = {"parameters": f"{count / 1e6:.1f} million", "trained for": self._spent(finished)}
        section.figures = figures | section.figures
        return section

    def present(self, name: str, folder: Path, console: Console) -> Section:
        """Shows a built-in model, without training."""
        if folder.is_dir():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        precision = pick_precision("auto", pick_device("cpu"))
        model = open_model(name, dtype=precision.weights)
        section = self.show(Trained(folder, 0, None, model, precision, console, name))
        count, _ = weights_of(model.network)
        section.figures |= {"model": f"{name}, built in, {count / 1e6:.1f} million parameters"}
        return section

    def _spent(self, finished: RunResult) -> str:
        done = finished.done
        if self.step is None:
            return f"{clock(done.seconds)}, {counted(done.step, 'step')}, {done.tokens:,} tokens"
        return (
            f"{clock(done.seconds)}, {counted(done.step, 'step')} of {self.step[0]} {self.step[1]}"
        )


def demos() -> dict[str, Demo]:
    """The demos by the names of their files."""
    return {name: importlib.import_module(f"bedstone.demo.{name}").DEMO for name in DEMOS}


def run_demo(out: str = "runs/demo", minutes: float = 0.0, full: bool = False) -> Path:
    """Show what foundation models do, in minutes, offline, and write a report.

    Talk to a chat model, adapt it, find images by words, ask about them, draw from words, and watch
    a GPT learn from nothing. With --full, a small model of each family is trained from nothing.

    Args:
        out: the folder for the runs, their models and report.html.
        minutes: minutes in all; of --full, of training (default: 4, and 10 with --full).
        full: train every model anew.

    Example:
        bedstone demo
        bedstone demo --full --minutes 16
    """
    console, began = Console(), time.monotonic()
    if full:
        parts = demos()
        total, minutes = sum(demo.share for demo in parts.values()), minutes or FULL
        sections = [
            demo.run(Path(out) / name, minutes * demo.share / total, console)
            for name, demo in parts.items()
        ]
        made = "Models trained from random weights on this machine"
    else:
        from bedstone.demo.tour import tour

        sections = tour(Path(out), minutes or SHORT, console)
        made = "Made on this machine"
    for section in sections:
        section.commands = {_typed(line): remark for line, remark in section.commands.items()}
    report = write_report(
        Path(out) / "report.html",
        "Bedstone: the demo",
        f"{made}, in {clock(time.monotonic() - began)}, without a network, on data that every "
        "Python carries and on drawn scenes.",
        sections,
    )
    console.print(f"\nReport: [bold]{report}[/bold]\n")
    for section in sections:
        for command, remark in section.commands.items():
            console.print(f"  [dim]{remark}[/dim]\n  {command}", highlight=False, soft_wrap=True)
    return report


def _typed(command: str) -> str:
    """The command as it can be typed here, where the environment may not be activated."""
    if shutil.which("bedstone"):
        return command
    program = Path(sys.executable).with_name("bedstone")
    here = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    return command.replace("bedstone", str(here), 1)
