"""Evaluation of diffusion models: FID and other judged figures, CLIP score, held-out loss.

Shapes: N drawings and M real signals, (N, C, *S).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import tokenizer_of
from bedstone.checkpoints.pipeline import DiffusionPipeline, MediaPipeline
from bedstone.data.scenes.datasets import NAME as SCENES
from bedstone.data.signals.audio import Spectrogram
from bedstone.data.signals.batches import SignalTexts, in_batches, texts_of
from bedstone.data.signals.open import held_out_prompts, open_signals, signals_to_measure
from bedstone.data.signals.signals import TASKS, Condition, Signals, SignalsConfig, class_condition
from bedstone.diffusion.sample import SampleControls
from bedstone.errors import BedstoneError
from bedstone.evaluate.judges import (
    SIGNAL_CLASSIFIER,
    Judge,
    SignalJudge,
    open_judge,
    open_signal_judge,
)
from bedstone.evaluate.runner import Evaluation, held_out_loss, present
from bedstone.evaluate.scene_judge import SceneJudge, judge_scenes, open_scene_judge, stated
from bedstone.metrics.figures import Figures
from bedstone.metrics.generative import NearestNeighbours, beside_real, beside_training, clip_score
from bedstone.objectives.diffusion import Denoising
from bedstone.reading import is_plain, read_object
from bedstone.report.sheets import as_pixels, neighbours_sheet, samples_sheet, to_images
from bedstone.runtime import Precision
from bedstone.settings import check_whole
from bedstone.tasks.images.engine import ImageEngine
from bedstone.tasks.media.files import sound_form
from bedstone.tasks.task import embeds_both
from bedstone.train.data import recorded_data
from bedstone.train.logs import ProgressBar


def open_clip(path: str, model: MediaPipeline, precision: Precision) -> ImageEngine:
    """The CLIP that compares what `model` draws with its texts.

    Args:
        path: a run, a published folder or a hub id.

    Raises:
        BedstoneError: it can't be opened or is no CLIP, or the model draws no pictures from words.
    """
    form = model.signal
    if (form.condition, form.kind) != ("text", "image"):
        draws = "pictures" if form.kind == "image" else f"signals of the kind {form.kind!r}"
        raise BedstoneError(
            f"clip: {path} was given to score what {model.path} draws: {draws}, {model.inputs()}. "
            "Expected pictures from words, for a CLIP to compare with the words. Leave --clip out, "
            "and let a --judge see them; or give a text-to-image model."
        )
    clip = open_model(path, device=precision.device)
    if not embeds_both(clip):
        raise BedstoneError(
            f"clip: {path} is of layout {clip.config.layout!r}, which doesn't compare pictures "
            "with texts. Expected a CLIP: a published one, or the run of a recipe such as "
            "`bedstone pretrain clip-scenes`."
        )
    tokenizer_of(clip)  # now, before anything is drawn
    return ImageEngine(clip, precision.name)


def clip_figures(
    path: str, clip: ImageEngine, drawn: Tensor, texts: Sequence[str]
) -> dict[str, Any]:
    """`clip_score`; that of the same drawings with the other texts, where there are some; and
    `clip_first`, the share nearer to their own text than to each of the others.

    Beside them `clip`, what compared; `clip_name`, its layout and the hash of its weights; and
    `clip_texts`, how many texts differ.

    Args:
        path: of the CLIP, as it was given.
        drawn: (N, 1 or 3, H, W), about -1 to 1, of any size.
        texts: N of them.
    """
    found = clip_score(clip, as_pixels(drawn), texts)
    differ = len(set(texts))
    others = {"clip_score/other texts": found.others, "clip_first": found.first}
    return {
        "clip_score": found.mean,
        **(others if differ > 1 else {}),
        "clip": path,
        "clip_name": found.clip,
        "clip_texts": differ,
    }


def clip_report(figures: dict[str, Any]) -> Group:
    """What `clip_figures` found, to print, and what it means."""
    named = f"CLIP score by {figures['clip']} ({figures['clip_name']})"
    said = "2.5 x the cosine of a drawing and its text, none below 0; compare within one CLIP."
    table = Table(show_header=False)
    for name in ("clip_score", "clip_score/other texts", "clip_first"):
        if name in figures:
            table.add_row(name, f"{figures[name]:.4f}")
    if "clip_first" in figures:
        texts = figures["clip_texts"]
        said += f" clip_first: nearest to its own of {texts:,} texts, {1 / texts:.4f} by chance."
    return Group(Text(named), table, Text(said))


# Many drawings, one of each seed, for what measures or shows them.
#
# Shapes: B drawings, C channels; *S the sizes of a signal.

SAMPLE_BATCH = 250  # drawn at a time


def samples_of(
    model: MediaPipeline,
    precision: Precision,
    condition: Condition | None,
    null: Condition | None,
    count: int,
    update: Callable[[float], None] = lambda share: None,
) -> Tensor:
    """`count` samples, (B, C, *S), of the seeds 0, 1, ...; `update` is handed the share done."""
    return model.sample(
        range(count),
        condition=condition,
        null=null,
        batch=SAMPLE_BATCH,
        progress=lambda step: update(step.share),
        **model.prepared(precision),
    )


# Scenes drawn from prompts whose combinations of shape and colour no training picture had.
#
# Shapes: N drawings, S pixels of a side.


def sample_prompts(
    model: MediaPipeline,
    precision: Precision,
    prompts: Sequence[str],
    update: Callable[[float], None],
) -> Tensor:
    """A sample of each prompt, (N, 3, S, S); `update` is handed the share done."""
    condition, null = model.prompts.condition(prompts), model.prompts.condition([""])
    return samples_of(model, precision, condition, null, len(prompts), update)


def prompt_figures(judge: SceneJudge, drawn: Tensor, prompts: Sequence[str]) -> Figures:
    """Whether a judge sees all that prompts state: over all, and by how many things they state.

    Args:
        drawn: (N, 3, S, S), of any size: brought to that of the judge.
    """
    seen = judge.things(at_size(drawn, judge.size))
    wanted = [stated(text) for text in prompts]
    found = judge_scenes(seen, wanted)
    values = {name: value for name, value in asdict(found).items() if name != "count"}
    for count in sorted({things.total() for things in wanted}):
        rows = [row for row, things in enumerate(wanted) if things.total() == count]
        own = judge_scenes([seen[row] for row in rows], [wanted[row] for row in rows])
        values[f"right/{count} thing{'s' * (count > 1)}"] = own.right
    return Figures("drawings", "right", values, {}, rows=len(prompts))


def at_size(images: Tensor, size: int) -> Tensor:
    """Images (B, C, S, S) as large as a judge of scenes reads them."""
    if images.shape[-1] == size:
        return images
    return torch.nn.functional.interpolate(images, size=(size, size), mode="area")


# Who judges drawings: a judge of pictures, who sees any signal as one, or one of signals.
#
# Shapes: B signals, C channels; *S the sizes of a signal, F features, L labels.


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
        return self.judge.read(to_images(signals, self.kind))


def judge_of(path: str, model: MediaPipeline) -> Shown | SignalJudge:
    """A judge of pictures; or one of signals, who hears sounds as they are made of signals."""
    config, form = Path(path) / "config.json", model.signal
    if not is_plain(config) or read_object(config).get("model_type") != SIGNAL_CLASSIFIER:
        return Shown(open_judge(path), form.kind)
    judge = open_signal_judge(path)
    if form.kind == "audio":
        judge.made = partial(heard, sound_form(form))
    return judge


def heard(form: Spectrogram, signals: Tensor) -> Tensor:
    """Signals (B, C, S) of the sounds that are made of signals; a quite silent one says nothing."""
    silent = torch.full(signals.shape[1:], -1.0)
    sounds = form.sound(signals).numpy()
    return torch.stack([form.of(one) if abs(one).max() > 1e-5 else silent for one in sounds])


def judge_labels(
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


SHOWN = 100  # drawings on the sheet
BESIDE = 12  # of them, beside their nearest training signals


def evaluate_generative(
    model: MediaPipeline,
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
        judge: the network that judges, as `evaluate.judges.open_judge` reads it; of scenes, the
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
            drawn = sample_prompts(model, precision, titles, bar.update)
            if scenes is not None:
                figures = prompt_figures(scenes, drawn, titles)
        else:
            sees = judge_of(judge, model) if judge else None
            real = signals_to_measure(recipe.data, recipe.task, data, samples, seed=recipe.seed)
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
    by = f", judged by {judge}" if judge else ""
    shown: list[Any] = [figures] if figures.values else []
    shown += [clip_report(compared)] if compared else []
    return present(record, {f"{model.path} beside {data}{by}": Group(*shown)}, as_json=as_json)


def _show(
    model: MediaPipeline,
    drawn: Tensor,
    titles: list[str],
    neighbours: tuple[dict[str, float], NearestNeighbours, Tensor] | None,
    folder: Path,
) -> None:
    """Sheets of what was drawn, and of the nearest training signals, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    kind, recipe = model.signal.kind, {"model": str(model.path), **asdict(model.sampling)}
    images = to_images(drawn[:SHOWN], kind)
    texts = titles[:SHOWN]
    samples_sheet(images, folder / "drawn.png", titles=texts, recipe=recipe, columns=10)
    if neighbours is not None:
        _, found, training = neighbours
        first = NearestNeighbours(found.places[:BESIDE], found.distances[:BESIDE])
        shown, places = torch.unique(first.places, return_inverse=True)
        near = to_images(training[shown], kind)
        beside = NearestNeighbours(places, first.distances)
        neighbours_sheet(images[:BESIDE], near, beside, folder / "neighbours.png", recipe=recipe)


def _recipe_of(model: MediaPipeline) -> "SignalSection":
    """How the model's signals were read; of one published elsewhere, as it draws them."""
    form = model.signal
    if said := model.record.get("recipe"):
        return SignalSection(
            recorded_data(SignalsConfig, model.record),
            said.get("task", "class-to-image"),
            int(said.get("seed", 0)),
        )
    task = next(name for name, what in TASKS.items() if what == (form.condition, form.kind))
    channels = form.shape[0] if form.kind == "image" else 3  # a field of pictures alone
    data = SignalsConfig(size=tuple(form.shape[1:]), channels=channels, sound=dict(form.sound))
    return SignalSection(data, task)


@dataclass(frozen=True)
class SignalSection:
    """The fields of a recipe that decide which signals are read, and how."""

    data: SignalsConfig
    task: str
    seed: int = 0


def _like(
    model: MediaPipeline, precision: Precision, real: Signals, samples: int, update: Any
) -> tuple[Tensor, Tensor | None, list[str]]:
    """Drawings of each class in turn, of the real ones' words, or of nothing; the classes; and
    what was asked."""
    names = model.signal.names
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
    drawn = samples_of(model, precision, condition, null, samples, update)
    return drawn, None if condition is None else condition.classes, titles


def _training(
    recipe: Any, drawn: Tensor, held: Tensor
) -> tuple[dict[str, float], Any, Tensor] | None:
    """How near drawings are to the training signals; None where these can't be read any more."""
    try:
        learnt: Signals = open_signals(recipe.data, recipe.task, seed=recipe.seed)[0]
    except BedstoneError:
        return None
    training = learnt.read(np.arange(len(learnt)))
    most = 1000
    figures, found = beside_training(drawn[:most], held[:most], training)
    return figures, found, training


# In training: the loss on held-out signals, and samples.
#
# Shapes: B rows, C channels; *S the sizes of a signal.

LOSS_BATCH = 256  # rows of a pass


def loss_of_held(
    network: nn.Module,
    objective: Any,
    held: Signals,
    texts: SignalTexts | None,
    rows: int,
    precision: Precision,
) -> float:
    """The loss of held-out signals, `rows` at most, with the same noise and times every time."""
    devices = [precision.device] if precision.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        batches = in_batches(held, LOSS_BATCH, texts, rows)
        loss, _ = held_out_loss(network, objective, batches, precision)
    return float(loss)


@dataclass
class GenerativeScorer(Evaluation):
    """Held-out loss of a diffusion model in training, and a sheet of its samples.

    Attributes:
        model: whose network it is.
        objective: what it learns by.
        held: signals held out, latents where latents are drawn.
        texts: their captions by their tokens.
        precision: in which it computes.
        rows: held-out rows that are read at most.
        samples: how many are drawn.
        sheet: where what is drawn is shown.
    """

    model: DiffusionPipeline
    objective: Denoising
    held: Signals
    texts: SignalTexts | None
    precision: Precision
    rows: int
    samples: int
    sheet: Path

    def log(self, network: nn.Module) -> dict[str, float]:
        """`validation_loss`, with the same noise and times every time; draws the sheet anew."""
        loss = loss_of_held(
            network, self.objective, self.held, self.texts, self.rows, self.precision
        )
        if self.samples:
            self.show()
        return {"validation_loss": loss}

    def report(
        self, folder: Path, metrics: dict[str, float], *, quiet: bool = False
    ) -> dict[str, Any]:
        return {}

    def show(self) -> Path:
        """Draws the first held-out rows' conditions anew, always from the same noise."""
        drawn, texts = self.drawn()
        return samples_sheet(drawn, self.sheet, titles=texts)

    def drawn(self) -> tuple[Tensor, list[str]]:
        """(B, C, H, W) pictures, and what each was to be."""
        model = self.model
        condition, null, texts = self._conditions()
        drawn = model.sample(
            range(self.samples),
            condition=condition,
            null=null,
            shape=self.held.shape,
            controls=SampleControls(most_rows=LOSS_BATCH),
            autocast=self.precision.autocast,
            batch=self.samples,
        )
        return to_images(drawn, model.signal.kind), texts

    def _conditions(self) -> tuple[Condition | None, Condition | None, list[str]]:
        names = self.model.signal.names
        if self.texts is not None and self.held.captions is not None:
            rows = np.arange(self.samples) % len(self.held)
            texts = [self.held.captions[row][0] for row in rows]
            return self.texts.draw(rows, None)[0], self.texts.null, texts  # cut, as in training
        if self.model.signal.condition != "class":
            return None, None, [""] * self.samples
        classes = [number % len(names) for number in range(self.samples)]
        count = len(names)
        found = class_condition(classes, count), class_condition([count], count)
        return *found, [names[one] for one in classes]
