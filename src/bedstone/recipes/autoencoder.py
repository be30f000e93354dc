"""Learning to give pictures back: from latents (KL), or from codes (FSQ)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, load
from bedstone.checkpoints.store import Checkpoint, CheckpointStore
from bedstone.checkpoints.tensors import load_tensors, save_tensors
from bedstone.data.dataset import Dataset
from bedstone.data.images.plain import pixel_stream
from bedstone.data.images.processor import ImageProcessor, plain_processor
from bedstone.data.open import ImagesConfig
from bedstone.data.scenes.datasets import NAME as SCENES
from bedstone.data.scenes.datasets import plain_scenes
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.autoencoder import AutoencoderScorer
from bedstone.files import write_json
from bedstone.models.autoencoder import network as autoencoder
from bedstone.models.autoencoder import network as discrete_autoencoder
from bedstone.models.autoencoder import network as patchgan
from bedstone.models.autoencoder.network import AutoencoderConfig, DiscreteConfig
from bedstone.objectives.reconstruction import Adversary, Perceptual, Reconstruction
from bedstone.recipes.base import ImagesSchedule
from bedstone.runtime import Precision, pick_device, pick_precision, seed_everything
from bedstone.settings import at_least, from_mapping
from bedstone.train.data import (
    MAX_SCENES,
    augment_of,
    held_out,
    learnt_pictures,
    pictures_of,
    record_of,
)
from bedstone.train.loop import Done
from bedstone.train.optim import OptimConfig
from bedstone.train.run import RunPlan, RunRecipe, RunResult, train
from bedstone.train.schedule import build_schedule, parse_budget
from bedstone.train.start import initial_model, weight_counts

TASK = "autoencoding"
LAYOUTS = ("autoencoder_kl", "fsq_autoencoder")
PIXELS = ("l1", "l2")


@dataclass
class PerceptualConfig:
    """A term by what a frozen network sees.

    Attributes:
        model: a picture model of ours: a ViT, a ResNet, with labels, or of pairs; empty is none.
        weight: of the term.
    """

    model: str = ""
    weight: float = 0.1


@dataclass
class AdversarialConfig:
    """A judge of patches that is trained beside.

    Attributes:
        weight: how much it pulls beside all other terms; 0 is none.
        after: batches before it begins.
        width: channels of its first map, a multiple of 4.
        layers: how often it halves its map.
    """

    weight: float = 0.0
    after: int = 0
    width: int = 32
    layers: int = 2


@dataclass
class AutoencoderOptim(OptimConfig):
    """`OptimConfig` without decay: latents are held by their own term."""

    weight_decay: float = 0.0


@dataclass
class AutoencoderRecipe(RunRecipe):
    """Learning to give pictures back from latents, or from codes.

    Attributes, besides those of every run:
        task: autoencoding.
        budget: how long to train: `5m`, `2000 steps`.
        init: an autoencoder to go on from, instead of fresh weights.
        model: the shape: `layout: autoencoder_kl` in the fields of
            `models.autoencoder.network.AutoencoderConfig`, or `fsq_autoencoder` in those of
            `DiscreteConfig`. Pictures are made `image_size` large.
        data: what to learn from; texts and labels of rows are passed over.
        augment: how pictures are changed: the fields of `data.images.augment.ImageAugment`.
        pixel: the distance of pixels: l1 or l2.
        kl: weight of the latents' nats, of autoencoder_kl.
        perceptual: a term by what a frozen network sees.
        adversarial: a judge of patches that is trained beside.
        batch_size: pictures in a micro-batch.
        evaluate_pictures: held-out pictures that an evaluation reads at most; 0 reads them all.
    """

    task: str = TASK
    out: str = "runs/autoencoder"
    budget: str = "2000 steps"
    init: str = ""
    model: dict[str, Any] = field(default_factory=lambda: {"layout": "autoencoder_kl"})
    data: ImagesConfig = field(default_factory=ImagesConfig)
    augment: dict[str, Any] = field(default_factory=dict)
    pixel: str = "l1"
    kl: float = 1e-6
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    batch_size: int = 32
    evaluate_pictures: int = 128
    optim: AutoencoderOptim = field(default_factory=AutoencoderOptim)
    schedule: ImagesSchedule = field(default_factory=ImagesSchedule)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "batch_size")
        at_least(self, 0, "evaluate_pictures")
        if self.task != TASK:
            raise BedstoneError(f"task: {self.task!r} was given; an autoencoder's is {TASK}.")
        layout = self.model.get("layout", LAYOUTS[0])
        if layout not in LAYOUTS:
            raise BedstoneError(f"model.layout: {layout!r} is unknown{nearest(layout, LAYOUTS)}.")
        if self.pixel not in PIXELS:
            raise BedstoneError(f"pixel: {self.pixel!r} is unknown{nearest(self.pixel, PIXELS)}.")
        weights = {
            "kl": self.kl,
            "perceptual.weight": self.perceptual.weight,
            "adversarial.weight": self.adversarial.weight,
        }
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise BedstoneError(f"{name}: {weight} was given; expected a weight from 0 on.")
        at_least(self.adversarial, 0, "after", prefix="adversarial.")
        at_least(self.adversarial, 1, "width", "layers", prefix="adversarial.")
        if self.adversarial.width % 4:
            raise BedstoneError(
                f"adversarial.width: {self.adversarial.width} was given; expected a multiple of 4."
            )
        if self.compile:
            raise BedstoneError("compile: isn't there for autoencoders; leave it out.")


# The network that an autoencoder's run begins with, its judge, and its files.

JUDGE = "discriminator.safetensors"  # in a checkpoint
KINDS: dict[str, tuple[type[Any], Any]] = {
    "autoencoder_kl": (AutoencoderConfig, autoencoder.build),
    "fsq_autoencoder": (DiscreteConfig, discrete_autoencoder.build_discrete),
}


def autoencoder_model(recipe: AutoencoderRecipe, checkpoint: Checkpoint | None) -> Model:
    """The checkpoint's, the initial one, or a new one, in fp32; with its judge where there is one.

    Raises:
        BedstoneError: a shape or a folder that doesn't fit.
    """
    if checkpoint is not None:
        model = load(checkpoint.path, dtype=torch.float32)
    elif recipe.init:
        model = initial_model(recipe, LAYOUTS, "is no autoencoder")
    else:
        shape = {"layout": LAYOUTS[0], **recipe.model}
        kind, build = KINDS[shape["layout"]]
        model = Model(build(from_mapping(kind, shape, "recipe", "model."), seed=recipe.seed))
    model.record = {}
    _check(model.config)
    model.processor = plain_processor(model.config.image_size)
    if recipe.adversarial.weight:
        shown, judged = recipe.adversarial, model.config.channels
        least = patchgan.least_side(shown.layers)
        if min(model.processor.size) < least:
            raise BedstoneError(
                f"adversarial.layers: a judge that halves its map {shown.layers} times needs "
                f"pictures of {least} pixels or more; lower it, or raise model.image_size."
            )
        judge = patchgan.build_patchgan(judged, shown.width, shown.layers, seed=recipe.seed)
        if checkpoint is not None:
            judge.load_state_dict(load_tensors(checkpoint.path, name=JUDGE))
        model.network.discriminator = judge
    return model


def _check(config: Any) -> None:
    """Raises BedstoneError where pictures of its own size can't be learnt."""
    if config.channels != 3 or getattr(config, "out_channels", 3) != 3:
        raise BedstoneError(
            f"model.channels: {config.channels} was given; pictures of rows have 3. Grey ones are "
            "read with all three alike."
        )
    size = config.image_size
    for side in size if isinstance(size, tuple) else (size,):
        if side % config.shrink:
            raise BedstoneError(
                f"model.image_size: {side} pixels aren't a multiple of {config.shrink}, which the "
                "stages make one place of; choose another size, or fewer stages (model.widths)."
            )


@contextmanager
def without_judge(network: nn.Module) -> Iterator[nn.Module | None]:
    """Takes the judge out of the network for as long: it is no part of an artefact."""
    judge = network._modules.pop("discriminator", None)
    try:
        yield judge
    finally:
        if judge is not None:
            network.discriminator = judge


def write_with_judge(model: Model, folder: Path) -> None:
    """A checkpoint's files: the artefact, and beside it the judge."""
    with without_judge(model.network) as judge:
        model.write_files(folder)
    if judge is not None:
        save_tensors(folder, judge.state_dict(), name=JUDGE)


def objective_of(recipe: AutoencoderRecipe, device: torch.device) -> Reconstruction:
    """What a recipe learns by.

    Args:
        device: where pictures are, and what sees them.

    Raises:
        BedstoneError: the model of the perceptual term can't be opened, or sees no pictures.
    """
    perceptual = None
    if recipe.perceptual.model and recipe.perceptual.weight:
        seen = open_model(recipe.perceptual.model, dtype=torch.float32, device=device)
        used = seen.processor or plain_processor(32)
        perceptual = Perceptual(seen.network, used.mean, used.std)
    judge = recipe.adversarial
    return Reconstruction(
        recipe.pixel,
        recipe.kl,
        perceptual=perceptual,
        perceptual_weight=recipe.perceptual.weight,
        adversary=Adversary(judge.weight, judge.after) if judge.weight else None,
    )


HELD = 1000  # scenes with held-out combinations


def run_autoencoder(
    recipe: AutoencoderRecipe, run: Path, checkpoint: Checkpoint | None, quiet: bool
) -> RunResult:
    """A new run, or one that goes on from a checkpoint."""
    precision = pick_precision(recipe.precision, pick_device(recipe.device))
    parse_budget(recipe.budget), build_schedule(recipe.schedule)  # before the data is read
    augment_of(recipe, (1, 1))
    course, scorer = autoencoder_method(recipe, run, precision, checkpoint, quiet)
    finished = train(recipe, run, course, precision, checkpoint, quiet=quiet)
    if finished.model is not None:
        write_json(run / "evaluation.json", finished.done.metrics)
        scorer.draw_sheet(run / "pictures.png")
    return finished


def autoencoder_method(
    recipe: AutoencoderRecipe,
    run: Path,
    precision: Precision,
    checkpoint: Checkpoint | None,
    quiet: bool,
) -> tuple[RunPlan, AutoencoderScorer]:
    """What is learnt, and what it is measured by.

    Raises:
        BedstoneError: the recipe, the data or a model it begins with can't do it.
    """
    seed_everything(recipe.seed)
    model = autoencoder_model(recipe, checkpoint)
    objective = objective_of(recipe, precision.device)
    processor = model.processor
    assert processor is not None
    rows, held = _rows(recipe, processor)
    record = record_of(recipe, rows, run)
    seed_everything(recipe.seed)
    model.network.to(precision.device)
    pictures = learnt_pictures(recipe, rows, processor, quiet)
    augment = augment_of(recipe, processor.size)
    batches = pixel_stream(
        pictures,
        recipe.batch_size,
        processor.normalise,
        augment=None if augment is None else augment.allowed(0),
        seed=recipe.seed,
        workers=recipe.data.workers,
    )
    shown = pictures_of(held, processor, recipe.data, "reading held-out pictures", quiet)
    scorer = AutoencoderScorer(model, shown, precision, objective, recipe.batch_size)
    count, _ = weight_counts(model)
    high, wide = processor.size
    shrink = model.config.shrink

    def finish(run: Path, done: Done, store: CheckpointStore) -> Path:
        with without_judge(model.network):
            return model.save(run / "model")

    course = RunPlan(
        model=model,
        batches=batches,
        objective=objective,
        evaluate=scorer.flat,
        data=record,
        plan=(
            f"{recipe.data.source}: {rows.describe()}, "
            f"{'in memory' if pictures.kept else 'decoded as they are read'}\n"
            f"held out: {held.describe()}\n"
            f"{model.config.layout}: {count / 1e6:.2f}M parameters, {high} by {wide} pixels "
            f"to {high // shrink} by {wide // shrink} places, {precision.name} on "
            f"{precision.device}\n{batches.batch_size * recipe.accumulate:,} pictures a step, "
            f"budget {recipe.budget}, into {recipe.out}"
        ),
        budget=recipe.budget,
        write_model=lambda folder: write_with_judge(model, folder),
        finish=finish,
    )
    return course, scorer


def _rows(recipe: AutoencoderRecipe, processor: ImageProcessor) -> tuple[Dataset, Dataset]:
    """Pictures to learn from, and pictures held out."""
    data, seed = recipe.data, recipe.seed
    if data.source == SCENES:
        size = max(processor.size)
        count = data.most_rows or MAX_SCENES
        train = plain_scenes(count, seed=seed, size=size, objects=data.things)
        held = plain_scenes(
            recipe.evaluate_pictures or HELD, split="validation", size=size, objects=data.things
        )
        return train, held

    train, held = held_out(recipe, partial(data.open, split=data.split))
    return train, held.take(recipe.evaluate_pictures, seed)
