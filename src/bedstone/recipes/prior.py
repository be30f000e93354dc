"""Training a prior of unCLIP: a CLIP's embeddings of images, given words, by noise or by codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, part_fingerprint
from bedstone.checkpoints.unclip import PRIOR_SCHEDULER, check_clip, check_prior
from bedstone.data.signals.batches import SignalTexts, signal_stream, texts_of
from bedstone.data.signals.signals import Prompts, Signals, SignalsConfig
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.diffusion.schedulers import process_from
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.runner import Evaluation
from bedstone.evaluate.unclip import PriorScorer
from bedstone.models.unclip import autoregressive, network
from bedstone.models.unclip.autoregressive import CodePrior, CodePriorConfig
from bedstone.models.unclip.network import (
    ConditionedPrior,
    PriorConfig,
    StandardisedPrior,
    joint,
    read_words,
)
from bedstone.objectives.dalle import EmbeddingCodeLoss
from bedstone.objectives.diffusion import Denoising, DenoisingThrough
from bedstone.recipes.base import Method
from bedstone.recipes.diffusion import DiffusionOptim
from bedstone.recipes.stages import cached_rows, captioned_images
from bedstone.report.sheets import as_pixels
from bedstone.settings import from_mapping, share, whole
from bedstone.tasks.images.engine import ImageEngine
from bedstone.train.averaging import Decay, steady
from bedstone.train.data import Splits
from bedstone.train.logs import ProgressBar
from bedstone.train.loop import Batches, Objective
from bedstone.train.run import RunPlan, RunRecipe
from bedstone.train.schedule import ScheduleConfig
from bedstone.train.start import Start

# Shapes by the layout's name.
KINDS: dict[str, type[Any]] = {"prior_transformer": PriorConfig}
KINDS["autoregressive_prior"] = CodePriorConfig
DECIDED = ("embed", "words_embed", "out_embed", "text_tokens")
EMBEDDINGS = "embeddings"  # files of a run, and what made them
ENCODED = 256  # images that are read at a time


@dataclass
class PriorRecipe(RunRecipe):
    """Training a prior: what makes a CLIP's embedding of an image of words.

    Attributes, besides those of every run:
        clip: a CLIP whose embeddings are made; empty is the one that stands beside the run's folder
            as `clip`, as in the stages of an unCLIP.
        init: a prior to go on from, instead of fresh weights.
        model: the prior's layout, prior_transformer (diffusion) or autoregressive_prior, and its
            shape, in the fields of `models.unclip.network.PriorConfig` or
            `models.unclip.autoregressive.CodePriorConfig`; what the CLIP decides is left out.
        tokens: places of a text; longer ones are cut. 0 takes all that the CLIP reads.
        drop: share of rows that are learnt with the empty text, for guidance.
        average: decay of the weights' moving average, which is evaluated and kept; 0 has none.
        data: what to learn from.
        batch_size: images in a micro-batch.
        evaluate_rows: held-out rows that an evaluation reads at most.
    """

    out: str = "runs/prior"
    budget: str = "2000 steps"
    clip: str = ""
    init: str = ""
    model: dict[str, Any] = field(default_factory=lambda: {"layout": network.LAYOUTS[0]})
    tokens: int = whole(0, default=0)
    drop: float = share(below_one=True, default=0.1)
    average: float = share(below_one=True, default=0.999)
    data: SignalsConfig = field(default_factory=SignalsConfig)
    batch_size: int = whole(1, default=256)
    evaluate_rows: int = whole(1, default=1000)
    optim: DiffusionOptim = field(default_factory=DiffusionOptim)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


class UnclipPrior(Method[PriorRecipe]):
    """A prior over a CLIP that is taken as it is."""

    name = "prior"
    Recipe = PriorRecipe
    layouts = tuple(KINDS)
    unit = "images"
    fault = "makes no embeddings"

    def check(self, recipe: PriorRecipe) -> None:
        for name in DECIDED:
            if name in recipe.model:
                said = "tokens" if name == "text_tokens" else "the CLIP"
                raise BedstoneError(f"model.{name}: is decided by {said}. Leave it out.")
        if recipe.model.get("projects_words", True) is not True:
            raise BedstoneError(
                "model.projects_words: false was given; the CLIP's states have another width than "
                "the prior's. Leave it out."
            )
        if recipe.compile:
            raise BedstoneError("compile: isn't there for a prior; leave it out.")
        config_of(recipe.model)

    def parts(self, recipe: PriorRecipe) -> dict[str, Model]:
        return {"clip": open_clip(recipe)}

    def open(self, recipe: PriorRecipe, start: Start) -> Splits:
        if "clip" not in start.parts:
            start.parts["clip"] = open_clip(recipe)
        splits = captioned_images(recipe, tuple(recipe.data.size) or (32, 32), start)
        splits.record["clip"] = part_fingerprint(start.parts["clip"])
        return splits

    def model(
        self,
        recipe: PriorRecipe,
        splits: Splits,
        tokenizer: Tokenizer | None,
        start: Start,
    ) -> Model:
        clip = start.parts["clip"]
        if start.model is not None:
            model: Model = start.model
            check_prior(model, clip, f"init: {recipe.init or recipe.out}")
            return model
        decided = {"embed": clip.config.embed, "text_tokens": places(recipe, clip.config)}
        config = config_of({**recipe.model, **decided})
        builds = autoregressive.build if isinstance(config, CodePriorConfig) else network.build
        return Model(builds(config, seed=recipe.seed))

    def batches(self, recipe: PriorRecipe, model: Model, splits: Splits, start: Start) -> Batches:
        clip, prior = start.parts["clip"], model.network
        assert isinstance(prior, StandardisedPrior)
        prompts = Prompts(clip.tokenizer, model.config.text_tokens)
        texts = texts_of(splits.train, prompts)
        assert texts is not None
        for name, signals in (("train", splits.train), ("validation", splits.validation)):
            found = torch.from_numpy(cached_embeddings(signals, clip, start, name)).to(prior.mean)
            if name == "train" and start.model is None:
                codes = isinstance(prior, CodePrior)
                prior.fit(found, words_of(clip, texts, len(found)) if codes else None)
            setattr(splits, name, as_signals(signals, prior.standardised(found).cpu().numpy()))
        if texts.cut:
            splits.notes.append(f"{texts.cut:,} texts are longer than the prior reads, and are cut")
        return signal_stream(
            splits.train,
            recipe.batch_size,
            texts=texts,
            drop=recipe.drop,
            seed=recipe.seed,
            workers=recipe.data.workers,
        )

    def objective(self, recipe: PriorRecipe, model: Model, start: Start) -> Objective:
        clip = start.parts["clip"].network.to(start.precision.device).eval().requires_grad_(False)
        if isinstance(model.network, CodePrior):
            return EmbeddingCodeLoss(partial(read_words, clip))
        return DenoisingThrough(Denoising(*process_from(PRIOR_SCHEDULER)), partial(read_by, clip))

    def evaluations(self, recipe: PriorRecipe, plan: RunPlan) -> Sequence[Evaluation]:
        clip = plan.start.parts["clip"]
        prompts = Prompts(clip.tokenizer, plan.model.config.text_tokens)
        texts = texts_of(plan.splits.validation, prompts)
        assert texts is not None
        return [
            PriorScorer(
                plan.model,
                clip,
                plan.objective,
                plan.splits.validation,
                texts,
                plan.start.precision,
                recipe.evaluate_rows,
            )
        ]

    def average(self, recipe: PriorRecipe) -> Decay | None:
        return steady(recipe.average) if recipe.average else None


def places(recipe: PriorRecipe, clip: Any) -> int:
    """Places of a text, of the CLIP of that configuration; raises BedstoneError above its own."""
    if recipe.tokens > clip.context:
        raise BedstoneError(
            f"tokens: {recipe.tokens} were given; the CLIP reads {clip.context} at most."
        )
    return recipe.tokens or int(clip.context)


def config_of(values: Mapping[str, Any]) -> Any:
    """The shape of a prior of the layout that is named, a `PriorConfig` or a `CodePriorConfig`.

    Raises:
        BedstoneError: there is no such layout or field, or a value can't be.
    """
    layout = str(values.get("layout", network.LAYOUTS[0]))
    if layout not in KINDS:
        raise BedstoneError(
            f"model.layout: {layout!r} was given; expected {' or '.join(KINDS)}"
            f"{nearest(layout, KINDS)}."
        )
    return from_mapping(KINDS[layout], values, "recipe", "model.")


def read_by(clip: Any, prior: Any) -> ConditionedPrior:
    """A prior with the CLIP that reads its words."""
    return ConditionedPrior(prior, clip)


def open_clip(recipe: PriorRecipe) -> Model:
    """The CLIP that is named, or that of the stage beside this run.

    Raises:
        BedstoneError: there is none, or it can't be read by an unCLIP.
    """
    beside = Path(recipe.out).parent / "clip"
    if not recipe.clip and not beside.is_dir():
        raise BedstoneError(
            f"clip: none was named, and none stands beside the run, in {beside}. Name a run of "
            "`bedstone pretrain clip-scenes`, or the like."
        )
    model = open_model(recipe.clip or beside, dtype=torch.float32)
    check_clip(model, f"clip: {recipe.clip or beside}")
    return model


@torch.no_grad()
def words_of(clip: Any, texts: SignalTexts, count: int) -> torch.Tensor:
    """A CLIP's embeddings (count, E) of the first texts of rows, at length sqrt(E)."""
    device, parts = next(clip.network.parameters()).device, []
    for first in range(0, count, ENCODED):
        condition, _ = texts.draw(np.arange(first, min(first + ENCODED, count)), None)
        moved = condition.to(device)
        assert moved.ids is not None and moved.keep is not None
        parts.append(read_words(clip.network, moved.ids, moved.keep)[0])
    return torch.cat(parts)


def as_signals(signals: Signals, values: np.ndarray) -> Signals:
    """Rows with other values, and their captions."""
    return Signals(
        values,
        kind=signals.kind,
        name=signals.name,
        captions=signals.captions,
        places=signals.places,
        faults=signals.faults,
    )


def cached_embeddings(
    signals: Signals, clip: Model, start: Start, name: str, beside: Path | None = None
) -> np.ndarray:
    """A CLIP's embeddings of images, (rows, E) float32 of length sqrt(E): those that the run's
    folder holds, or `beside` it, or else made and kept.

    Raises:
        BedstoneError: those in the folder are of another CLIP or other images.
    """
    made_of = {"CLIP": part_fingerprint(clip), "images": signals.fingerprint()}
    return cached_rows(
        start.folder,
        f"{EMBEDDINGS}-{name}",
        EMBEDDINGS,
        made_of,
        lambda: embedded(signals, clip, start),
        beside=beside,
    )


def embedded(signals: Signals, clip: Model, start: Start) -> np.ndarray:
    """A CLIP's embeddings of images, (rows, E) float32 of length sqrt(E).

    Raises:
        BedstoneError: an image is of one value all over.
    """
    clip.network.to(start.precision.device)
    engine, parts = ImageEngine(clip), []
    with ProgressBar("making embeddings", quiet=start.quiet) as bar:
        for first in range(0, len(signals), ENCODED):
            rows = np.arange(first, min(first + ENCODED, len(signals)))
            pixels = as_pixels(signals.read(rows))
            flat = pixels.reshape(len(rows), -1)
            for row in np.flatnonzero(flat.max(1) == flat.min(1))[:1]:
                raise BedstoneError(
                    f"{signals.places[first + row]}: is of one value all over. Mend or remove it."
                )
            parts.append(joint(torch.from_numpy(engine.images(pixels))).numpy())
            bar.update((first + len(rows)) / len(signals))
    return np.concatenate(parts)
