"""Training a model that draws larger images of smaller ones: the last stage of an unCLIP."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bedstone.checkpoints.enlarging import check_enlarges
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.pipeline import DiffusionPipeline, SignalSpec
from bedstone.data.signals.enlarging import Enlarging
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.diffusion.sample import SamplingConfig
from bedstone.errors import BedstoneError
from bedstone.evaluate.enlarging import EnlargingScorer
from bedstone.evaluate.runner import Evaluation
from bedstone.models.dit.config import DiTConfig
from bedstone.models.dit.network import Conditioned, build
from bedstone.objectives.diffusion import Denoising
from bedstone.recipes.diffusion import (
    TARGET_NAMES,
    DiffusionMethod,
    DiffusionRecipe,
    denoiser_config,
    process_of,
)
from bedstone.settings import one_of
from bedstone.train.data import Splits
from bedstone.train.loop import Batches
from bedstone.train.run import RunPlan
from bedstone.train.start import Start

TASK = "unconditional-image-generation"  # whose images are read; the smaller ones are made of them
LAYOUT = "bedstone_dit"  # published denoisers read nothing beside the noisy signal
USUAL_SIZE = (64, 64)


@dataclass
class UpsampleRecipe(DiffusionRecipe):
    """Training a model that enlarges images: it reads a smaller, noised one beside the noisy one.

    Attributes, besides those of a `DiffusionRecipe`, of which `drop`, `text`, `tokenizer` and
    `autoencoder` have no use here:
        task: unconditional-image-generation.
        target: what the network says; sample, the clean image: noise of large patches has more
            values than the network is wide, and an image of them hasn't.
        enlarging: how the smaller images are made: factor (2) and noise, the most (0.3).
        data: what to learn from; `data.size` is that of the larger images.
    """

    task: str = one_of(TASK, default=TASK)
    out: str = "runs/upsample"
    target: str = one_of("", *TARGET_NAMES, default="sample")
    enlarging: Enlarging = field(default_factory=Enlarging)
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(steps=10, guidance=1.0))

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W) of the larger images."""
        return tuple(self.data.size) or USUAL_SIZE


class Upsample(DiffusionMethod[UpsampleRecipe]):
    """A denoiser of images that reads smaller ones."""

    name = "upsample"
    Recipe = UpsampleRecipe
    layouts = (LAYOUT,)
    tasks = (TASK,)
    unit = "images"
    fault = "enlarges no images"

    def check(self, recipe: UpsampleRecipe) -> None:
        super().check(recipe)
        if recipe.model.get("layout", LAYOUT) != LAYOUT:
            raise BedstoneError(
                f"model.layout: {recipe.model['layout']!r} was given; {LAYOUT} alone reads smaller "
                "images."
            )
        if recipe.autoencoder:
            raise BedstoneError(
                f"autoencoder: {recipe.autoencoder} was given; images are enlarged as pixels. "
                "Leave it out."
            )
        factor = recipe.enlarging.factor
        if any(side % factor for side in recipe.size):
            raise BedstoneError(
                f"data.size: {list(recipe.size)} was given; enlarging.factor = {factor} doesn't "
                "divide it. Choose a multiple of it."
            )
        if not recipe.init:  # makes the shape now, so that a wrong field is said at once
            self.config(recipe, (recipe.data.channels, *recipe.size))

    def open(self, recipe: UpsampleRecipe, start: Start) -> Splits:
        data = replace(recipe.data, size=recipe.size)
        return super().open(replace(recipe, data=data), start)

    def model(
        self,
        recipe: UpsampleRecipe,
        splits: Splits,
        tokenizer: Tokenizer | None,
        start: Start,
    ) -> Model:
        channels, *size = splits.train.shape
        small = (channels, *(side // recipe.enlarging.factor for side in size))
        if start.model is not None:
            check_enlarges(start.model, small, f"init: {recipe.init or recipe.out}")
            return super().model(recipe, splits, tokenizer, start)
        signal = SignalSpec("image", splits.train.shape, "none", small=small)
        process, aim = process_of(recipe)
        return DiffusionPipeline(
            Conditioned(build(self.config(recipe, splits.train.shape))),
            None,
            process=process,
            target=aim,
            signal=signal,
            sampling=recipe.sampling,
        )

    def config(self, recipe: UpsampleRecipe, shape: tuple[int, ...]) -> DiTConfig:
        """The shape of a denoiser of images (C, H, W), which reads a smaller one beside."""
        signal = SignalSpec("image", shape, "none")
        return denoiser_config(recipe, signal, None, None, {"beside": shape[0] + 1})

    def batches(
        self, recipe: UpsampleRecipe, model: Model, splits: Splits, start: Start
    ) -> Batches:
        splits.train.beside = splits.validation.beside = recipe.enlarging
        return super().batches(recipe, model, splits, start)

    def evaluations(self, recipe: UpsampleRecipe, plan: RunPlan) -> Sequence[Evaluation]:
        assert isinstance(plan.model, DiffusionPipeline) and isinstance(plan.objective, Denoising)
        assert plan.start.folder is not None
        return [
            EnlargingScorer(
                plan.model,
                plan.objective,
                plan.splits.validation,
                plan.start.precision,
                rows=recipe.evaluate_rows,
                samples=recipe.samples,
                sheet=plan.start.folder / "samples.png",
            )
        ]
