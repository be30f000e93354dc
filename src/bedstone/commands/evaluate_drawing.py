"""`bedstone evaluate` for a model that draws: a judge sees what it draws beside real ones."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
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
from bedstone.data.conditions import Condition, class_condition
from bedstone.data.scenes import NAME as SCENES
from bedstone.data.signal_pictures import held_out_prompts
from bedstone.data.signal_sources import open_signals, signals_to_measure
from bedstone.data.signals import Signals
from bedstone.data.sounds import Spectrogram
from bedstone.errors import BedstoneError
from bedstone.files import read_json
from bedstone.generation.denoiser import clip
from bedstone.generation.drawing import Asked, draw, generators_of
from bedstone.inspect.drawn import beside_real, beside_training
from bedstone.inspect.figures import Figures
from bedstone.inspect.judges import Judge, open_judge
from bedstone.inspect.neighbours import Neighbours
from bedstone.inspect.samples import neighbours_sheet, samples_sheet
from bedstone.inspect.scene_judge import judge_scenes, open_scene_judge, stated
from bedstone.inspect.shown import as_pictures
from bedstone.inspect.signal_judge import KIND, SignalJudge, open_signal_judge
from bedstone.mapping import from_mapping
from bedstone.nn.inference import for_inference
from bedstone.recipes_diffusion import TASKS, DiffusionRecipe, SignalsConfig
from bedstone.runtime import Precision
from bedstone.tasks.draw_results import sound_form
from bedstone.train.progress import ProgressBar

TOGETHER = 250  # drawn at a time
SHOWN = 100  # of them, on the sheet
BESIDE = 12  # of them, beside their nearest training signals


def evaluate_drawing(
    model: DrawingModel,
    data: str,
    precision: Precision,
    *,
    judge: str = "",
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
        out: a folder for sheets of what was drawn and of its nearest training pictures.

    Raises:
        BedstoneError: there is no judge, or the data can't be read.
    """
    if not judge:
        raise BedstoneError(
            "judge: nothing can be said of drawings without one; name the weights of a network "
            "that tells such pictures apart, as --judge mnist-lenet.safetensors, or the folder of "
            "one trained here."
        )
    check_whole("samples", samples, 2)
    recipe = _recipe_of(model)
    say = Console().print
    with ProgressBar("drawing", quiet=as_json) as bar:
        if data == SCENES and model.signal.condition == "text":
            figures, drawn, titles = _scenes(model, precision, recipe, judge, samples, bar.update)
            neighbours = None
        else:
            sees = _judge(judge, model)
            real = signals_to_measure(recipe, data, samples)
            drawn, classes, titles = _like(model, precision, real, samples, bar.update)
            held = real.read(np.arange(len(real)))
            if classes is not None:
                classes = _labels(classes, model.signal.names, sees)
            figures = beside_real(drawn, held, sees, classes=classes)
            known = "recipe" in model.record
            neighbours = _training(recipe, drawn, held) if known else None
    record = {**figures.record(), "judge": str(judge), "sampling": asdict(model.sampling)}
    if neighbours is not None:
        record |= neighbours[0]
        figures.values.update(neighbours[0])
    if out:
        _show(model, drawn, titles, neighbours, Path(out))
    if as_json:
        print(json.dumps(record))
        return record
    say(Rule(f"{model.path} beside {data}, judged by {judge}", align="left"), figures)
    return record


@dataclass(frozen=True)
class Shown:
    """A judge of pictures that sees other signals as pictures of them.

    Attributes:
        judge: of pictures.
        kind: of the signals.
    """

    judge: Judge
    kind: str

    @property
    def name(self) -> str:
        return self.judge.name

    @property
    def labels(self) -> tuple[str, ...]:
        return self.judge.labels

    def read(self, signals: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, F) and logits (B, L) of signals (B, C, *S)."""
        return self.judge.read(as_pictures(signals, self.kind))


def _judge(path: str, model: DrawingModel) -> Shown | SignalJudge:
    """A judge of pictures; or one of signals, who hears sounds as they are made of signals."""
    config, form = Path(path) / "config.json", model.signal
    if not config.is_file() or read_json(config).get("model_type") != KIND:
        return Shown(open_judge(path), form.kind)
    judge = open_signal_judge(path)
    if form.kind == "audio":
        judge.made = partial(_heard, sound_form(form))
    return judge


def _heard(form: Spectrogram, signals: Tensor) -> Tensor:
    """Signals (B, C, S) of the sounds that are made of signals; a quite silent one says nothing."""
    silent = torch.full(signals.shape[1:], -1.0)
    sounds = form.sound(signals).numpy()
    return torch.stack([form.of(one) if abs(one).max() > 1e-5 else silent for one in sounds])


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


def drawings(
    model: DrawingModel,
    precision: Precision,
    condition: Condition | None,
    null: Condition | None,
    count: int,
    *,
    first: int = 0,
) -> Tensor:
    """`count` drawings, (B, C, *S), of the seeds from `first` on."""
    shape = latent_shape(model)
    drawn = draw(
        for_inference(model.network, precision.dtype),
        model.process,
        model.target,
        shape,
        model.sampling,
        generators_of(range(first, first + count)),
        condition=condition,
        null=null,
        asked=Asked(limit=clip() if model.autoencoder is None else None),
        autocast=precision.autocast,
    )
    if model.autoencoder is not None:
        with torch.no_grad():
            drawn = model.autoencoder.network.pictures(drawn)
    return drawn.cpu()


def latent_shape(model: DrawingModel) -> tuple[int, ...]:
    """(C, *S) of what the network draws."""
    return (model.config.channels, *model.config.size)


def _recipe_of(model: DrawingModel) -> DiffusionRecipe:
    """How the model's signals were read; of one published elsewhere, as it draws them."""
    if said := model.record.get("recipe"):
        return from_mapping(DiffusionRecipe, said, "the model's recipe")
    form = model.signal
    task = next(name for name, what in TASKS.items() if what == (form.condition, form.kind))
    data = SignalsConfig(size=tuple(form.shape[1:]), channels=form.shape[0])
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


def _labels(
    classes: Tensor, names: Sequence[str], judge: Judge | Shown | SignalJudge
) -> Tensor | None:
    """The judge's numbers of the model's classes: by their names, else as they are counted; None
    of a judge that tells no classes."""
    labels = judge.labels
    if not labels:
        return None
    if set(names) <= set(labels):
        return torch.tensor([labels.index(name) for name in names])[classes]
    if len(names) != len(labels):
        raise BedstoneError(
            f"judge: {judge.name} knows {len(labels)} classes ({', '.join(labels[:6])}, ...); the "
            f"model draws {len(names)} ({', '.join(names[:6])}, ...). Take a judge of the same."
        )
    return classes


def _scenes(
    model: DrawingModel,
    precision: Precision,
    recipe: DiffusionRecipe,
    judge: str,
    samples: int,
    told: Any,
) -> tuple[Figures, Tensor, list[str]]:
    """Drawings of prompts with held-out combinations, and whether all that they state is seen."""
    asked = held_out_prompts(samples, objects=recipe.data.things)
    texts = [prompt.text for prompt in asked]
    sees, parts = open_scene_judge(judge), []
    null = model.prompts.condition([""])
    for first in range(0, samples, TOGETHER):
        part = texts[first : first + TOGETHER]
        condition = model.prompts.condition(part)
        parts.append(drawings(model, precision, condition, null, len(part), first=first))
        told((first + len(part)) / samples)
    drawn = torch.cat(parts)
    seen = sees.things(_at_size(drawn, sees.size))
    wanted = [stated(text) for text in texts]
    found = judge_scenes(seen, wanted)
    values = {name: value for name, value in asdict(found).items() if name != "count"}
    for count in sorted({things.total() for things in wanted}):
        rows = [row for row, things in enumerate(wanted) if things.total() == count]
        own = judge_scenes([seen[row] for row in rows], [wanted[row] for row in rows])
        values[f"right/{count} thing{'s' * (count > 1)}"] = own.right
    return Figures("drawings", "right", values, {}, rows=samples), drawn, texts


def _at_size(pictures: Tensor, size: int) -> Tensor:
    if pictures.shape[-1] == size:
        return pictures
    return torch.nn.functional.interpolate(pictures, size=(size, size), mode="area")


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
