"""Training a DALL-E: an autoencoder of codes, a CLIP, and what writes codes after words."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from bedstone.checkpoints.dalle import DallePipeline, check_coder
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, part_fingerprint
from bedstone.checkpoints.pipeline import SignalSpec
from bedstone.checkpoints.store import Checkpoint
from bedstone.data.images.codes import CodeRows, Hides, hidden_codes, hidden_scales
from bedstone.data.signals.batches import texts_of
from bedstone.data.signals.signals import Signals, SignalsConfig
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_wordpiece
from bedstone.errors import BedstoneError
from bedstone.evaluate.dalle import DalleScorer
from bedstone.evaluate.runner import Evaluation
from bedstone.generation.codes import CodeSampling
from bedstone.models.dalle.network import LAYOUTS, DalleConfig, build
from bedstone.models.interfaces import DualEncoder
from bedstone.objectives.dalle import DalleLoss
from bedstone.recipes.base import Method, Trainer
from bedstone.recipes.diffusion import CaptionTokenizer, DiffusionOptim
from bedstone.recipes.stages import (
    TASK,
    Stage,
    Staged,
    cached_rows,
    captioned_images,
    check_parts_and_shares,
    check_stages,
    clip_stage,
    open_part,
    same_images,
)
from bedstone.runtime import Precision
from bedstone.settings import Settings, from_mapping, number, one_of, share, whole
from bedstone.train.averaging import Decay, steady
from bedstone.train.data import Splits
from bedstone.train.logs import ProgressBar
from bedstone.train.loop import Batches, Objective
from bedstone.train.run import RunPlan, RunRecipe, trainer_of
from bedstone.train.schedule import ScheduleConfig
from bedstone.train.start import Start

PARTS = ("autoencoder", "clip")
DECIDED = ("codes", "grid", "vocab_size", "text_tokens")
CODES = "codes"  # files of a run: its images as codes, and what made them
ENCODED = 256  # images that are read at a time


@dataclass
class WordsConfig(Settings):
    """The share of a sequence that words have.

    Attributes:
        tokens: places of a text, each with a padding token of its own.
        cut: whether longer captions are cut; else they are an error.
    """

    section = "text."
    tokens: int = whole(2, default=24)
    cut: bool = False


@dataclass
class DalleRecipe(RunRecipe):
    """Training a DALL-E, with all stages in order: autoencoder, CLIP, and what writes codes.

    Attributes, besides those of every run:
        task: text-to-image.
        budget: how long all stages take together: `60m`, `4000 steps`.
        init: a DALL-E to go on from, with its parts, instead of fresh weights.
        model: the shape of what writes codes, in the fields of
            `models.dalle.network.DalleConfig`; what the parts decide is left out.
        parts: models that exist already, by the part's name: autoencoder, clip.
        autoencoder: the recipe of the stage that trains one, in the fields of
            `recipes.autoencoder.AutoencoderRecipe`.
        clip: likewise of a CLIP, in those of `recipes.contrastive.ContrastiveRecipe`; with neither
            this nor parts.clip there is none, and nothing to choose among candidates by.
        shares: of the budget, those of the stages; the rest trains what writes codes.
        text: the places of words.
        tokenizer: how words become tokens; trained on the captions where none is named.
        image_share: of the loss, that of the codes; the rest is the words'.
        drop: share of rows that are learnt with the null prompt, for guidance.
        average: decay of the weights' moving average, which is evaluated and kept; 0 has none.
        data: what to learn from.
        batch_size: images in a micro-batch.
        sampling: how codes are drawn.
        evaluate_rows: held-out rows that an evaluation in training reads at most.
        samples: how many are drawn and shown when the network is evaluated.
    """

    task: str = one_of(TASK, default=TASK)
    out: str = "runs/dalle"
    budget: str = "2000 steps"
    init: str = ""
    model: dict[str, Any] = field(default_factory=lambda: {"layout": LAYOUTS[0]})
    parts: dict[str, str] = field(default_factory=dict)
    autoencoder: dict[str, Any] = field(default_factory=dict)
    clip: dict[str, Any] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=lambda: {"autoencoder": 0.1, "clip": 0.2})
    text: WordsConfig = field(default_factory=WordsConfig)
    tokenizer: CaptionTokenizer = field(default_factory=CaptionTokenizer)
    image_share: float = number(0.0, 1.0, open_least=True, default=7 / 8)
    drop: float = share(below_one=True, default=0.1)
    average: float = share(below_one=True, default=0.999)
    data: SignalsConfig = field(default_factory=SignalsConfig)
    batch_size: int = whole(1, default=64)
    sampling: CodeSampling = field(default_factory=CodeSampling)
    evaluate_rows: int = whole(1, default=1000)
    samples: int = whole(0, default=64)
    optim: DiffusionOptim = field(default_factory=DiffusionOptim)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.get("layout", LAYOUTS[0]) not in LAYOUTS:
            raise BedstoneError(f"model.layout: {self.model['layout']!r} isn't {LAYOUTS[0]}.")
        check_parts_and_shares(self.parts, self.shares)
        if self.compile:
            raise BedstoneError("compile: isn't there for a DALL-E; leave it out.")

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W) of the images."""
        return tuple(self.data.size) or (32, 32)

    @property
    def compares(self) -> bool:
        """Whether there is a CLIP."""
        return bool(self.clip or "clip" in self.parts)

    @property
    def to_train(self) -> list[Stage]:
        """The stages whose parts aren't named."""
        made = {
            "autoencoder": ("autoencoder", _autoencoder(self)),
            "clip": ("contrastive", clip_stage(self.data, self.size)),
        }
        wanted = [
            name for name in PARTS if name not in self.parts and (name != "clip" or self.clip)
        ]
        return [
            Stage(name, made[name][0], float(self.shares.get(name, 0.1)), made[name][1])
            for name in wanted
        ]


def _autoencoder(recipe: DalleRecipe) -> dict[str, Any]:
    column = recipe.data.columns.get("image")
    columns = {"columns": {"image": column}} if column else {}
    size = recipe.size[0] if len(set(recipe.size)) == 1 else recipe.size
    return {
        "model": {"layout": "fsq_autoencoder", "image_size": size},
        "data": {**same_images(recipe.data), **columns},
    }


class DallE(Staged, Method[DalleRecipe]):
    """What writes codes after words; its parts are trained first, or taken as they are."""

    name = "dalle"
    Recipe = DalleRecipe
    layouts = LAYOUTS
    tasks = (TASK,)
    unit = "images"
    fault = "is no DALL-E"
    records_tokenizer = False

    def check(self, recipe: DalleRecipe) -> None:
        sampling = recipe.sampling
        if sampling.guidance != 1 and not recipe.drop and not recipe.init:
            raise BedstoneError(
                f"drop: 0 was given, so that the null prompt is never learnt, which guidance "
                f"({sampling.guidance:g}) leads away from. Take 0.1, or sampling.guidance: 1, "
                "which is none."
            )
        if sampling.candidates > 1 and not recipe.compares and not recipe.init:
            raise BedstoneError(
                f"sampling.candidates: {sampling.candidates} were given, and there is no CLIP to "
                "choose among them. Name one (parts.clip) or train one (clip), or take 1."
            )
        for name in DECIDED:
            if name in recipe.model:
                raise BedstoneError(
                    f"model.{name}: is decided by the autoencoder, the tokenizer and text.tokens. "
                    "Leave it out."
                )
        # makes the shape now, so that a wrong field is said before the stages are trained
        if _config(recipe).order != "raster" and sampling.temperature == 0:
            raise BedstoneError(
                "sampling.temperature: 0 was given; where several codes are drawn at once, that "
                "draws empty images. Take 0.5 to 1."
            )
        if recipe.init:
            given: dict[str, Any] = {name: getattr(recipe, name) for name in ("parts", *PARTS)}
            given |= {"model": recipe.model.keys() - {"layout"}, "tokenizer": recipe.tokenizer.path}
            for name in (name for name, value in given.items() if value):
                raise BedstoneError(
                    f"{name}: init = {recipe.init} has its own; leave {name} out, or init."
                )
            return
        check_stages(recipe, recipe.to_train, PARTS)
        if not recipe.tokenizer.path:
            trainer_of(self, recipe)

    def begin(self, recipe: DalleRecipe, checkpoint: Checkpoint | None) -> Model | None:
        if checkpoint is None and not recipe.init:
            return None
        path = checkpoint.path if checkpoint is not None else recipe.init
        model = open_model(path, dtype=torch.float32)
        if not isinstance(model, DallePipeline):
            raise BedstoneError(
                f"init: {path} is a {model.config.layout}, which {self.fault}. Name a run of "
                "`bedstone pretrain dalle-scenes`, or the like."
            )
        if recipe.sampling.candidates > 1 and model.clip is None:
            raise BedstoneError(f"sampling.candidates: {path} has no CLIP to choose by. Take 1.")
        model.record, model.sampling = {}, recipe.sampling
        return model

    def parts(self, recipe: DalleRecipe) -> dict[str, Model]:
        found = {name: open_part(recipe, name) for name in PARTS}
        parts = {name: model for name, model in found.items() if model is not None}
        if "autoencoder" not in parts:
            raise BedstoneError(
                f"parts.autoencoder: {recipe.out} has none yet, and none is named. Train all by "
                "`bedstone pretrain`, or name one."
            )
        where = recipe.parts.get("autoencoder", "the autoencoder of this run")
        check_coder(parts["autoencoder"], f"parts.autoencoder: {where}")
        clip = parts.get("clip")
        if clip is not None and not isinstance(clip.network, DualEncoder):
            raise BedstoneError(
                f"parts.clip: {recipe.parts.get('clip')} is a {clip.config.layout}, which doesn't "
                "compare images with words; expected a CLIP."
            )
        return parts

    def open(self, recipe: DalleRecipe, start: Start) -> Splits:
        return captioned_images(recipe, recipe.size, start)

    def texts(self, recipe: DalleRecipe, splits: Splits, start: Start) -> Iterable[str]:
        texts: Iterable[str] = splits.train.texts()
        return texts

    def trainers(self, recipe: DalleRecipe) -> Mapping[str, Trainer]:
        return {
            "wordpiece": lambda texts, section: train_wordpiece(
                texts, section.vocab_size, lowercase=section.lowercase
            )
        }

    def model(
        self,
        recipe: DalleRecipe,
        splits: Splits,
        tokenizer: Tokenizer | None,
        start: Start,
    ) -> Model:
        model: Model | None = start.model
        shape = splits.train.shape
        if model is not None:
            assert isinstance(model, DallePipeline)
            if tuple(model.signal.shape) != shape:
                raise BedstoneError(
                    f"data.size: init = {recipe.init} draws {list(model.signal.shape)}, the data "
                    f"has {list(shape)} (channels first). Say data.size and data.channels so."
                )
            return model
        assert tokenizer is not None
        coder, clip = start.parts["autoencoder"], start.parts.get("clip")
        words = recipe.text.tokens
        config = _config(
            recipe,
            codes=coder.network.codebook_size,
            grid=grid_of(coder, shape),
            vocab_size=tokenizer.vocab_size,
            text_tokens=words,
        )
        made_with = {"autoencoder": part_fingerprint(coder)}
        return DallePipeline(
            build(config, seed=recipe.seed),
            tokenizer,
            signal=SignalSpec("image", shape, "text", context=words),
            sampling=recipe.sampling,
            autoencoder=coder,
            clip=clip,
            drops=recipe.drop > 0,
            made_with=made_with if clip is None else {**made_with, "clip": part_fingerprint(clip)},
        )

    def batches(self, recipe: DalleRecipe, model: Model, splits: Splits, start: Start) -> Batches:
        assert isinstance(model, DallePipeline)
        hides = hides_of(model.config)
        for name, signals in (("train", splits.train), ("validation", splits.validation)):
            texts = texts_of(signals, model.prompts)
            assert texts is not None
            if texts.cut and not recipe.text.cut:
                raise BedstoneError(
                    f"text.tokens: {texts.cut:,} of {len(texts.known):,} captions to "
                    f"{'learn from' if name == 'train' else 'validate on'} are longer than "
                    f"{recipe.text.tokens} tokens. Raise it, or let them be cut (text.cut: true)."
                )
            if texts.cut:
                splits.notes.append(f"{name}: {texts.cut:,} captions are cut")
            codes = cached_codes(signals, model.autoencoder, start, f"{CODES}-{name}")
            setattr(splits, name, CodeRows(codes, texts, signals.places, hides))
        found: CodeRows = splits.train
        return found.stream(
            recipe.batch_size, drop=recipe.drop, seed=recipe.seed, workers=recipe.data.workers
        )

    def objective(self, recipe: DalleRecipe, model: Model, start: Start) -> Objective:
        return DalleLoss(recipe.image_share)

    def evaluations(self, recipe: DalleRecipe, plan: RunPlan) -> Sequence[Evaluation]:
        assert isinstance(plan.model, DallePipeline) and isinstance(plan.objective, DalleLoss)
        assert plan.start.folder is not None
        return [
            DalleScorer(
                plan.model,
                plan.objective,
                plan.splits.validation,
                plan.start.precision,
                rows=recipe.evaluate_rows,
                samples=recipe.samples,
                sheet=plan.start.folder / "samples.png",
            )
        ]

    def average(self, recipe: DalleRecipe) -> Decay | None:
        return steady(recipe.average) if recipe.average else None


def hides_of(config: DalleConfig) -> Hides | None:
    """Which codes a network of that order is shown, and which it learns."""
    ways: dict[str, Hides] = {
        "masked": hidden_codes,
        "scale": partial(hidden_scales, config.scales),
    }
    return ways.get(config.order)


def grid_of(coder: Model, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Rows and columns of the codes of images (C, H, W).

    Raises:
        BedstoneError: the autoencoder doesn't divide them, or reads other channels.
    """
    channels, *sides = shape
    config = coder.config
    if channels != config.channels:
        raise BedstoneError(
            f"data.channels: {channels} was given; the autoencoder reads {config.channels}."
        )
    if any(side % config.shrink for side in sides):
        raise BedstoneError(
            f"data.size: {sides} was given; the autoencoder makes a code of {config.shrink} by "
            f"{config.shrink} pixels, so expected multiples of that."
        )
    return tuple(side // config.shrink for side in sides)


def cached_codes(signals: Signals, coder: Model, start: Start, name: str) -> np.ndarray:
    """Images as codes, (rows, h, w) uint16: those that the run's folder holds, or else encoded.

    Raises:
        BedstoneError: those in the folder are of another autoencoder or other images.
    """
    made_of = {"autoencoder": part_fingerprint(coder), "images": signals.fingerprint()}
    return cached_rows(
        start.folder,
        name,
        CODES,
        made_of,
        lambda: encoded(signals, coder, start.precision, start.quiet),
    )


def encoded(signals: Signals, coder: Model, precision: Precision, quiet: bool) -> np.ndarray:
    """Images as codes, (rows, h, w) uint16.

    Raises:
        BedstoneError: all are the same, so that there is nothing to learn.
    """
    network: Any = coder.network.to(precision.device).eval()
    if network.codebook_size > 2**16:
        raise BedstoneError(
            f"autoencoder: has {network.codebook_size:,} codes; a DALL-E writes at most {2**16:,}. "
            "Take fewer (model.levels, model.codes)."
        )
    parts = []
    with ProgressBar("making codes", quiet=quiet) as bar:
        for first in range(0, len(signals), ENCODED):
            rows = np.arange(first, min(first + ENCODED, len(signals)))
            pixels = signals.read(rows)
            flat = pixels.flatten(1)
            for row in (flat.amax(1) == flat.amin(1)).nonzero()[:1, 0].tolist():
                raise BedstoneError(
                    f"{signals.places[first + row]}: is of one value all over. Mend or remove it."
                )
            ids = network.encode(pixels.to(precision.device))
            parts.append(ids.cpu().numpy().astype(np.uint16))
            bar.update((first + len(rows)) / len(signals))
    codes = np.concatenate(parts)
    if len(codes) > 1 and (codes == codes[:1]).all():
        raise BedstoneError(
            "autoencoder: makes the same codes of all images: it has learnt nothing, or reads them "
            "otherwise than in its training. Train it longer, or name another."
        )
    return codes


def _config(recipe: DalleRecipe, **decided: Any) -> DalleConfig:
    """The shape of what writes codes, `recipe.model` and what parts and data decide of it."""
    return from_mapping(DalleConfig, {**recipe.model, **decided}, "recipe", "model.")
