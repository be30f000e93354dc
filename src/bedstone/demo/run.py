"""A demo: a recipe, and what is shown of its model, trained or built in.

Training, reopening and timing are written once, here.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bedstone.checkpoints.load import open_model
from bedstone.nn.quantize import weights_of
from bedstone.recipes.base import load_method, train
from bedstone.report.pages import Section
from bedstone.runtime import Precision, pick_device, pick_precision
from bedstone.settings import from_mapping
from bedstone.train.logs import clock, counted
from bedstone.train.run import RunResult


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
        recipe: its values, but for `out`; a `budget` of its own is kept, whatever the minutes.
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
        values = {"budget": budget, **self.recipe, "out": str(folder)}
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
        model = open_model(name, dtype=torch.float32)
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
