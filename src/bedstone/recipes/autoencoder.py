"""Training autoencoders of images: with latents (KL), or with codes (FSQ, VQ, dVAE)."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.tensors import load_tensors, save_tensors
from bedstone.data.dataset import Dataset
from bedstone.data.images.plain import pixel_stream
from bedstone.data.images.processor import plain_processor
from bedstone.data.open import PlainConfig
from bedstone.data.scenes.datasets import NAME as SCENES
from bedstone.data.scenes.datasets import plain_scenes
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.autoencoder import HELD, AutoencoderScorer
from bedstone.evaluate.runner import Evaluation
from bedstone.models.autoencoder.config import (
    LAYOUTS,
    AutoencoderConfig,
    DiscreteConfig,
    DiscreteVAEConfig,
    VQConfig,
)
from bedstone.models.autoencoder.discrete import (
    CodebookAverages,
    build_discrete,
    build_dvae,
    build_vq,
)
from bedstone.models.autoencoder.network import build, build_patchgan, least_side
from bedstone.objectives.reconstruction import (
    DISTANCES,
    Adversary,
    Perceptual,
    Reconstruction,
    Relaxation,
)
from bedstone.recipes.base import ImagesSchedule, Method
from bedstone.runtime import seed_everything
from bedstone.settings import Settings, from_mapping, number, one_of, whole
from bedstone.train.data import (
    MAX_SCENES,
    Splits,
    augment_of,
    cached_images,
    cached_training_images,
    held_out,
    record_of,
)
from bedstone.train.loop import Batches, Objective
from bedstone.train.optim import OptimConfig
from bedstone.train.run import RunPlan, RunRecipe
from bedstone.train.start import Start, without_part

TASK = "autoencoding"
BESIDE = ("discriminator", "averages")  # trained beside a network; files of these in a checkpoint
KINDS: dict[str, tuple[type[Any], Any]] = {
    "autoencoder_kl": (AutoencoderConfig, build),
    "fsq_autoencoder": (DiscreteConfig, build_discrete),
    "vq_model": (VQConfig, build_vq),
    "discrete_vae": (DiscreteVAEConfig, build_dvae),
}


@dataclass
class PerceptualConfig(Settings):
    """A perceptual loss: the distance of a frozen network's features.

    Attributes:
        model: a picture model of ours: a ViT, a ResNet, with labels, or of pairs; empty is none.
        weight: of the term.
    """

    section = "perceptual."
    model: str = ""
    weight: float = number(0, default=0.1)


@dataclass
class AdversarialConfig(Settings):
    """An adversarial loss: a discriminator of patches, trained beside the autoencoder.

    Attributes:
        weight: how much it pulls beside all other terms; 0 is none.
        after: batches before it begins.
        width: channels of its first map, a multiple of 4.
        layers: how often it halves its map.
    """

    section = "adversarial."
    weight: float = number(0, default=0.0)
    after: int = whole(0, default=0)
    width: int = whole(1, default=32)
    layers: int = whole(1, default=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 4:
            raise BedstoneError(
                f"adversarial.width: {self.width} was given; expected a multiple of 4."
            )


@dataclass
class AutoencoderOptim(OptimConfig):
    """`OptimConfig` without decay: latents are held by their own term."""

    weight_decay: float = 0.0


@dataclass
class AutoencoderRecipe(RunRecipe):
    """Training an autoencoder of images, with latents (KL) or codes (FSQ, VQ, dVAE).

    Attributes, besides those of every run:
        task: autoencoding.
        budget: how long to train: `5m`, `2000 steps`.
        init: an autoencoder to go on from, instead of fresh weights.
        model: the shape, in the fields of `models.autoencoder.config`: `layout: autoencoder_kl` in
            those of `AutoencoderConfig`, `fsq_autoencoder` of `DiscreteConfig`, `vq_model` of
            `VQConfig`, `discrete_vae` of `DiscreteVAEConfig`. Pictures are made `image_size` large.
        data: what to learn from; texts and labels of rows are passed over.
        augment: how pictures are changed: the fields of `data.images.augment.ImageAugment`.
        pixel: the distance of pixels: l1 or l2; of discrete_vae also logit_laplace, the nats of
            values by their distributions.
        kl: weight of the latents' nats, of autoencoder_kl and discrete_vae. Nats and distance are
            both counted a value of the picture.
        commitment: weight of the distance of latents from their codes, of vq_model.
        relaxation: how a dVAE's tokens come to be chosen, of discrete_vae.
        perceptual: a term by what a frozen network sees.
        adversarial: a judge of patches that is trained beside.
        batch_size: pictures in a micro-batch.
        evaluate_pictures: held-out pictures that an evaluation reads at most; 0 reads them all.
    """

    task: str = one_of(TASK, default=TASK)
    out: str = "runs/autoencoder"
    budget: str = "2000 steps"
    init: str = ""
    model: dict[str, Any] = field(default_factory=lambda: {"layout": "autoencoder_kl"})
    data: PlainConfig = field(default_factory=PlainConfig)
    augment: dict[str, Any] = field(default_factory=dict)
    pixel: str = one_of(*DISTANCES, default="l1")
    kl: float = number(0, default=1e-6)
    commitment: float = number(0, default=0.25)
    relaxation: Relaxation = field(default_factory=Relaxation)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    batch_size: int = whole(1, default=32)
    evaluate_pictures: int = whole(0, default=128)
    optim: AutoencoderOptim = field(default_factory=AutoencoderOptim)
    schedule: ImagesSchedule = field(default_factory=ImagesSchedule)

    def __post_init__(self) -> None:
        super().__post_init__()
        layout = self.model.get("layout", LAYOUTS[0])
        if layout not in LAYOUTS:
            raise BedstoneError(f"model.layout: {layout!r} is unknown{nearest(layout, LAYOUTS)}.")
        if self.compile:
            raise BedstoneError("compile: isn't there for autoencoders; leave it out.")
        if self.pixel == "logit_laplace" and (self.perceptual.model or self.adversarial.weight):
            name = "perceptual.model" if self.perceptual.model else "adversarial.weight"
            raise BedstoneError(
                f"{name}: compares pictures, and pixel: logit_laplace learns distributions of "
                "their values. Leave it out, or take pixel: l1."
            )


class Autoencoder(Method[AutoencoderRecipe]):
    """An autoencoder; beside it a discriminator, where the recipe has one, and of a learnt codebook
    the averages that move it."""

    name = "autoencoder"
    alone = "its discriminator and its codebook learn from the whole batch"
    Recipe = AutoencoderRecipe
    layouts = LAYOUTS
    tasks = (TASK,)
    unit = "images"
    fault = "is no autoencoder"

    def check(self, recipe: AutoencoderRecipe) -> None:
        augment_of(recipe.augment, recipe.data)
        if not recipe.init:
            _check(recipe, _config(recipe))

    def open(self, recipe: AutoencoderRecipe, start: Start) -> Splits:
        config = _config(recipe) if start.model is None else start.model.config
        _check(recipe, config)
        train, held = _rows(recipe, max(plain_processor(config.image_size).size))
        notes = [f"{recipe.data.source}: {train.describe()}", f"held out: {held.describe()}"]
        return Splits(train, held, record=record_of(recipe.data, train), notes=notes)

    def model(
        self,
        recipe: AutoencoderRecipe,
        splits: Splits,
        tokenizer: Tokenizer | None,
        start: Start,
    ) -> Model:
        model: Model | None = start.model
        if model is None:
            config = _config(recipe)
            model = Model(KINDS[config.layout][1](config, seed=recipe.seed))
        model.processor = plain_processor(model.config.image_size)
        if (adversary := recipe.adversarial).weight:
            width, layers = adversary.width, adversary.layers
            model.network.discriminator = build_patchgan(
                model.config.channels, width, layers, seed=recipe.seed
            )
        if model.config.layout == "vq_model":
            model.network.averages = CodebookAverages(model.network.codebook)
        if start.checkpoint is not None:
            for name in BESIDE:
                if (part := getattr(model.network, name, None)) is not None:
                    part.load_state_dict(load_tensors(start.checkpoint.path, name=_file(name)))
        elif recipe.init and model.config.layout == "vq_model":
            model.network.averages.started.fill_(1.0)  # its vectors are those of `init`
        seed_everything(recipe.seed)  # what is drawn later doesn't depend on how weights were
        return model

    def batches(
        self, recipe: AutoencoderRecipe, model: Model, splits: Splits, start: Start
    ) -> Batches:
        processor = model.processor
        assert processor is not None
        images = cached_training_images(splits.train, processor, recipe.data, start.quiet)
        augment = augment_of(recipe.augment, recipe.data, processor.size)
        splits.notes[0] += ", in memory" if images.kept else ", decoded as they are read"
        return pixel_stream(
            images,
            recipe.batch_size,
            processor.normalise,
            augment=None if augment is None else augment.allowed(0),
            seed=recipe.seed,
            workers=recipe.data.workers,
        )

    def objective(self, recipe: AutoencoderRecipe, model: Model, start: Start) -> Objective:
        return objective_of(recipe, start.precision.device, model.config.layout)

    def evaluations(self, recipe: AutoencoderRecipe, plan: RunPlan) -> Sequence[Evaluation]:
        assert isinstance(plan.objective, Reconstruction) and plan.model.processor is not None
        shown = cached_images(
            plan.splits.validation,
            plan.model.processor,
            recipe.data,
            "reading held-out pictures",
            plan.start.quiet,
        )
        return [
            AutoencoderScorer(
                plan.model, shown, plan.start.precision, plan.objective, recipe.batch_size
            )
        ]

    def save(self, model: Model, folder: Path) -> None:
        with self.bare(model.network) as parts:
            model.write_files(folder)
        for name, part in parts.items():
            save_tensors(folder, part.state_dict(), name=_file(name))

    def finish(self, model: Model, folder: Path) -> Path:
        with self.bare(model.network):
            return model.save(folder)

    def bare(self, network: nn.Module) -> AbstractContextManager[dict[str, nn.Module]]:
        return _without(network)


@contextmanager
def _without(network: nn.Module) -> Iterator[dict[str, nn.Module]]:
    """Takes out of a network what is trained beside it, for as long."""
    with ExitStack() as stack:
        parts = {name: stack.enter_context(without_part(network, name)) for name in BESIDE}
        yield {name: part for name, part in parts.items() if part is not None}


def _file(part: str) -> str:
    """In a checkpoint."""
    return f"{part}.safetensors"


def _config(recipe: AutoencoderRecipe) -> Any:
    shape = {"layout": LAYOUTS[0], **recipe.model}
    if shape["layout"] == "discrete_vae":
        drawn = recipe.pixel == "logit_laplace"
        shape = {"logit_laplace": drawn, "temperature": recipe.relaxation.end, **shape}
    return from_mapping(KINDS[shape["layout"]][0], shape, "recipe", "model.")


def _check(recipe: AutoencoderRecipe, config: Any) -> None:
    """Raises BedstoneError where images of the network's own size can't be learnt."""
    if getattr(config, "logit_laplace", False) != (recipe.pixel == "logit_laplace"):
        gives = "no distributions" if recipe.pixel == "logit_laplace" else "distributions"
        raise BedstoneError(
            f"pixel: {recipe.pixel} was given; a {config.layout} of this shape gives {gives} of "
            "values. pixel: logit_laplace goes with model.layout: discrete_vae and its "
            "logit_laplace: true, the other distances with all else."
        )
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
    layers = recipe.adversarial.layers
    least = least_side(layers)
    if recipe.adversarial.weight and min(plain_processor(size).size) < least:
        raise BedstoneError(
            f"adversarial.layers: a judge that halves its map {layers} times needs pictures of "
            f"{least} pixels or more; lower it, or raise model.image_size."
        )


def objective_of(
    recipe: AutoencoderRecipe, device: torch.device, layout: str = LAYOUTS[0]
) -> Reconstruction:
    """The recipe's loss.

    Args:
        device: of the images, and of the network of the perceptual loss.
        layout: of the network that learns.

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
        recipe.commitment if layout == "vq_model" else recipe.kl,
        perceptual=perceptual,
        perceptual_weight=recipe.perceptual.weight,
        adversary=Adversary(judge.weight, judge.after) if judge.weight else None,
        relaxation=recipe.relaxation if layout == "discrete_vae" else None,
    )


def _rows(recipe: AutoencoderRecipe, side: int) -> tuple[Dataset, Dataset]:
    """Images to learn from, and images held out."""
    data, seed = recipe.data, recipe.seed
    if data.source == SCENES:
        count = data.most_rows or MAX_SCENES
        train = plain_scenes(count, seed=seed, size=side, **data.drawn)
        count = recipe.evaluate_pictures or HELD
        return train, plain_scenes(count, split="validation", size=side, **data.drawn)

    train, held = held_out(data, partial(data.open, split=data.split), seed)
    return train, held.take(recipe.evaluate_pictures, seed)
