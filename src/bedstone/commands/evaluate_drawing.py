"""`bedstone evaluate` for a model that draws: what judges see in it, and a CLIP beside its texts.

Shapes: N drawings and M real signals, (N, C, *S).
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.rule import Rule
from torch import Tensor

from bedstone.checkpoints.drawing import DrawingModel
from bedstone.checks import check_whole
from bedstone.commands.diffusion_data import texts_of
from bedstone.commands.drawing_judge import judge_labels, judge_of
from bedstone.commands.drawings import TOGETHER, drawings
from bedstone.commands.evaluate_clip import clip_figures, clip_report, open_clip
from bedstone.commands.evaluate_prompts import draw_prompts, prompt_figures
from bedstone.data.conditions import class_condition
from bedstone.data.scenes import NAME as SCENES
from bedstone.data.signal_pictures import held_out_prompts
from bedstone.data.signal_sources import open_signals, signals_to_measure
from bedstone.data.signals import Signals
from bedstone.errors import BedstoneError
from bedstone.inspect.drawn import beside_real, beside_training
from bedstone.inspect.figures import Figures
from bedstone.inspect.neighbours import Neighbours
from bedstone.inspect.samples import neighbours_sheet, samples_sheet
from bedstone.inspect.scene_judge import open_scene_judge
from bedstone.inspect.shown import as_pictures
from bedstone.mapping import from_mapping
from bedstone.recipes_diffusion import TASKS, DiffusionRecipe, SignalsConfig
from bedstone.runtime import Precision
from bedstone.train.progress import ProgressBar

SHOWN = 100  # drawings on the sheet
BESIDE = 12  # of them, beside their nearest training signals


def evaluate_drawing(
    model: DrawingModel,
    data: str,
    precision: Precision,
    *,
    judge: str = "",
    clip: str = "",
    samples: int = 1000,
    out: str = "",
    as_json: bool = False,
) -> dict[str, Any]:
    """Prints and returns the figures of `samples` drawings.

    Classes are asked for in turn; of scenes, prompts whose combinations of shape and colour no
    training picture had. Seeds are 0, 1, 2, ...

    Args:
        data: real signals to compare with, read as the model's own recipe reads them; or
            `scenes`, whose prompts are then asked.
        judge: the network that judges, as `inspect.judges.open_judge` reads it; of scenes, the
            folder of a judge of scenes.
        clip: a CLIP that compares drawings with the texts they were drawn from, as
            `evaluate_clip.open_clip` reads it.
        out: a folder for sheets of what was drawn and of its nearest training pictures.

    Raises:
        BedstoneError: there is neither a judge nor a CLIP, one of them doesn't fit the model, or
            the data can't be read.
    """
    if not judge and not clip:
        raise BedstoneError(
            "judge: nothing can be said of drawings without one; name the weights of a network "
            "that tells such pictures apart, as --judge mnist-lenet.safetensors, or the folder of "
            "one trained here; or, of pictures from words, a CLIP, as --clip runs/clip-scenes."
        )
    check_whole("samples", samples, 2)
    recipe = _recipe_of(model)
    compares = open_clip(clip, model, precision) if clip else None
    figures = Figures("drawings", "clip_score", {}, {}, rows=samples)  # where nobody judges
    neighbours = None
    with ProgressBar("drawing", quiet=as_json) as bar:
        if data == SCENES and model.signal.condition == "text":
            titles = [one.text for one in held_out_prompts(samples, objects=recipe.data.things)]
            scenes = open_scene_judge(judge) if judge else None
            drawn = draw_prompts(model, precision, titles, bar.update)
            if scenes is not None:
                figures = prompt_figures(scenes, drawn, titles)
        else:
            sees = judge_of(judge, model) if judge else None
            real = signals_to_measure(recipe, data, samples)
            drawn, classes, titles = _like(model, precision, real, samples, bar.update)
            held = real.read(np.arange(len(real)))
            if sees is not None:
                if classes is not None:
                    classes = judge_labels(classes, model.signal.names, sees)
                figures = beside_real(drawn, held, sees, classes=classes)
            if "recipe" in model.record:
                neighbours = _training(recipe, drawn, held)
    if neighbours is not None:
        figures.values.update(neighbours[0])
    compared = clip_figures(clip, compares, drawn, titles) if compares is not None else {}
    judged = {"judge": str(judge)} if judge else {}
    record = {**figures.record(), **judged, **compared, "sampling": asdict(model.sampling)}
    if out:
        _show(model, drawn, titles, neighbours, Path(out))
    if as_json:
        print(json.dumps(record))
        return record
    by = f", judged by {judge}" if judge else ""
    say = Console().print
    say(Rule(f"{model.path} beside {data}{by}", align="left"))
    if figures.values:
        say(figures)
    if compared:
        say(clip_report(compared))
    return record


def _show(
    model: DrawingModel,
    drawn: Tensor,
    titles: list[str],
    neighbours: tuple[dict[str, float], Neighbours, Tensor] | None,
    folder: Path,
) -> None:
    """Sheets of what was drawn, and of the nearest training signals, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    kind, recipe = model.signal.kind, {"model": str(model.path), **asdict(model.sampling)}
    pictures = as_pictures(drawn[:SHOWN], kind)
    told = titles[:SHOWN]
    samples_sheet(pictures, folder / "drawn.png", titles=told, recipe=recipe, columns=10)
    if neighbours is not None:
        _, found, training = neighbours
        first = Neighbours(found.places[:BESIDE], found.distances[:BESIDE])
        shown, places = torch.unique(first.places, return_inverse=True)
        near = as_pictures(training[shown], kind)
        beside = Neighbours(places, first.distances)
        neighbours_sheet(pictures[:BESIDE], near, beside, folder / "neighbours.png", recipe=recipe)


def _recipe_of(model: DrawingModel) -> DiffusionRecipe:
    """How the model's signals were read; of one published elsewhere, as it draws them."""
    if said := model.record.get("recipe"):
        return from_mapping(DiffusionRecipe, said, "the model's recipe")
    form = model.signal
    task = next(name for name, what in TASKS.items() if what == (form.condition, form.kind))
    channels = form.shape[0] if form.kind == "image" else 3  # a field of pictures alone
    data = SignalsConfig(size=tuple(form.shape[1:]), channels=channels, sound=dict(form.sound))
    return DiffusionRecipe(task=task, data=data)


def _like(
    model: DrawingModel, precision: Precision, real: Signals, samples: int, told: Any
) -> tuple[Tensor, Tensor | None, list[str]]:
    """Drawings of each class in turn, of the real ones' words, or of nothing; the classes; and
    what was asked."""
    names, parts = model.signal.names, []
    every = np.arange(samples)
    condition, null, titles = None, None, [""] * samples
    if model.signal.condition == "text":
        texts = texts_of(real, model.prompts)
        assert texts is not None and real.captions is not None
        every %= len(real)
        condition, null = texts.draw(every, None)[0], texts.null
        titles = [real.captions[row][0] for row in every]
    elif names:
        every %= len(names)
        condition = class_condition(torch.from_numpy(every), len(names))
        null = class_condition([len(names)], len(names))
        titles = [names[number] for number in every]
    for first in range(0, samples, TOGETHER):
        rows = slice(first, min(first + TOGETHER, samples))
        part = condition and condition.pick(rows)
        parts.append(drawings(model, precision, part, null, rows.stop - first, first=first))
        told(rows.stop / samples)
    classes = None if condition is None else condition.classes
    return torch.cat(parts), classes, titles


def _training(
    recipe: DiffusionRecipe, drawn: Tensor, held: Tensor
) -> tuple[dict[str, float], Any, Tensor] | None:
    """How near drawings are to the training signals; None where these can't be read any more."""
    try:
        learnt: Signals = open_signals(recipe)[0]
    except BedstoneError:
        return None
    training = learnt.read(np.arange(len(learnt)))
    most = 1000
    figures, found = beside_training(drawn[:most], held[:most], training)
    return figures, found, training
