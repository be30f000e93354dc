"""Training an unCLIP (DALL-E 2): a CLIP, a prior over its embeddings, and what draws from these."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bedstone.checkpoints.enlarging import check_enlarges
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, part_fingerprint
from bedstone.checkpoints.pipeline import SignalSpec, text_part
from bedstone.checkpoints.store import Checkpoint
from bedstone.checkpoints.unclip import (
    UnclipPipeline,
    UnclipSampling,
    check_clip,
    check_prior,
    check_unclip,
)
from bedstone.data.signals.batches import signal_stream, texts_of
from bedstone.data.signals.enlarging import Enlarging
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.models.dit.config import DiTConfig
from bedstone.models.dit.network import Conditioned, build
from bedstone.recipes.contrastive import stated_config
from bedstone.recipes.diffusion import (
    DiffusionMethod,
    DiffusionRecipe,
    denoiser_config,
    fresh_reader,
    latents_of,
    named_autoencoder,
    process_of,
    text_config,
)
from bedstone.recipes.prior import cached_embeddings, config_of, places
from bedstone.recipes.stages import (
    FOLDER,
    TASK,
    Stage,
    Staged,
    check_captions,
    check_parts_and_shares,
    check_stages,
    clip_stage,
    named_stage,
    open_part,
)
from bedstone.runtime import without_weights
from bedstone.settings import one_of, share
from bedstone.train.data import Splits
from bedstone.train.loop import Batches
from bedstone.train.start import Start

PARTS = ("clip", "prior", "upsampler")
METHODS = {"clip": "contrastive", "prior": "prior", "upsampler": "upsample"}
MADE_WITH = ("clip", "prior")  # whose fingerprints are kept
LAYOUT = "bedstone_dit"  # published denoisers read no embeddings


@dataclass
class UnclipRecipe(DiffusionRecipe):
    """Training an unCLIP, with all stages in order: CLIP, prior, and what draws from embeddings.

    Attributes, besides those of a `DiffusionRecipe`, of which `text.encoder` and `tokenizer` are
    left out, as words are read by the CLIP's tokenizer:
        task: text-to-image.
        budget: how long all stages take together: `60m`, `4000 steps`.
        init: an unCLIP to go on from, with its parts, instead of fresh weights.
        parts: models that exist already, by the part's name: clip, prior, upsampler.
        clip: the recipe of the stage that trains a CLIP, in the fields of
            `recipes.contrastive.ContrastiveRecipe`.
        prior: likewise of a prior, in those of `recipes.prior.PriorRecipe`; with neither this nor
            parts.prior there is none, and the words' own embeddings are taken (sampling.prior:
            none).
        upsampler: likewise of what enlarges the images, in those of
            `recipes.upsample.UpsampleRecipe`; with neither this nor parts.upsampler they stay as
            they are.
        shares: of the budget, those of the stages; the rest trains what draws.
        drop: share of rows that are learnt without the image's embedding.
        drop_text: share of rows that are learnt without words.
        sampling: how images are drawn, and how their embeddings are made.
    """

    task: str = one_of(TASK, default=TASK)
    out: str = "runs/unclip"
    parts: dict[str, str] = field(default_factory=dict)
    clip: dict[str, Any] = field(default_factory=dict)
    prior: dict[str, Any] = field(default_factory=dict)
    upsampler: dict[str, Any] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=lambda: {"clip": 0.17, "prior": 0.13})
    drop_text: float = share(below_one=True, default=0.5)
    sampling: UnclipSampling = field(default_factory=UnclipSampling)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parts_and_shares(self.parts, self.shares)

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W) of the images."""
        return tuple(self.data.size) or (32, 32)

    @property
    def to_train(self) -> list[Stage]:
        """The stages whose parts aren't named; a CLIP is needed, others where they are said."""
        data = dataclasses.asdict(dataclasses.replace(self.data, size=self.size))
        factor = (self.upsampler.get("enlarging") or {}).get("factor", Enlarging.factor)
        whole = isinstance(factor, int) and factor > 0  # else its recipe is refused
        large = [side * (factor if whole else 1) for side in self.size]
        usual: dict[str, dict[str, Any]] = {
            "clip": clip_stage(self.data, self.size),
            "prior": {"data": data, "tokens": self.text.context},
            "upsampler": {"data": {**data, "size": large}},
        }
        if "clip" in self.parts:
            usual["prior"]["clip"] = self.parts["clip"]
        wanted = [
            name
            for name in PARTS
            if name not in self.parts and (name == "clip" or getattr(self, name))
        ]
        return [
            Stage(name, METHODS[name], float(self.shares.get(name, 0.1)), usual[name])
            for name in wanted
        ]


class Unclip(Staged, DiffusionMethod[UnclipRecipe]):
    """A denoiser that reads a CLIP's embedding of the image, and words."""

    name = "unclip"
    Recipe = UnclipRecipe
    layouts = (LAYOUT,)
    tasks = (TASK,)
    unit = "images"
    fault = "is no unCLIP"

    def check(self, recipe: UnclipRecipe) -> None:
        super().check(recipe)
        if recipe.model.get("layout", LAYOUT) != LAYOUT:
            raise BedstoneError(
                f"model.layout: {recipe.model['layout']!r} was given; {LAYOUT} alone reads "
                "embeddings."
            )
        for name, given in (
            ("text.encoder", recipe.text.encoder),
            ("tokenizer.path", recipe.tokenizer.path),
        ):
            if given:
                raise BedstoneError(
                    f"{name}: {given} was given; an unCLIP reads words by its CLIP's tokenizer. "
                    "Leave it out."
                )
        if recipe.augment.flip:
            raise BedstoneError(
                "augment.flip: embeddings are made once, before training, of images as they are. "
                "Leave it out."
            )
        if recipe.init:
            given_parts = {name: getattr(recipe, name) for name in ("parts", *PARTS)}
            for name in (name for name, value in given_parts.items() if value):
                raise BedstoneError(
                    f"{name}: init = {recipe.init} has its own; leave {name} out, or init."
                )
            return
        if recipe.sampling.guidance != 1 and not (recipe.drop and recipe.drop_text):
            name = "drop_text" if recipe.drop else "drop"
            raise BedstoneError(
                f"{name}: 0 was given, so that images of no words and no embedding are never "
                f"learnt, which guidance ({recipe.sampling.guidance:g}) leads away from. Take 0.1, "
                "or sampling.guidance: 1, which is none."
            )
        has_prior = bool(recipe.prior or "prior" in recipe.parts)
        if recipe.sampling.prior != "none" and not has_prior:
            raise BedstoneError(
                f"sampling.prior: {recipe.sampling.prior} was given, and there is no prior. Name "
                "one (parts.prior), train one (prior), or take none: the words' own embeddings."
            )
        if "prior" in recipe.parts and "clip" not in recipe.parts:
            raise BedstoneError(
                f"parts.prior: {recipe.parts['prior']} was given without the CLIP that it was "
                "trained with; name it too (parts.clip)."
            )
        check_stages(recipe, recipe.to_train, PARTS)
        kind = config_of(recipe.prior.get("model") or {}).kind
        if recipe.prior and recipe.sampling.prior not in ("none", kind):
            raise BedstoneError(
                f"sampling.prior: {recipe.sampling.prior} was given, and prior.model is of the "
                f"kind {kind}. Say sampling.prior: {kind}, or none."
            )
        # shapes are made now, so that a wrong field is said before the stages are trained
        stages = {stage.name: stage for stage in recipe.to_train}
        if {"clip", "prior"} <= stages.keys():
            clip = stated_config(stages["clip"].recipe(recipe))
            with named_stage(stages["prior"]):
                if clip is not None:
                    places(stages["prior"].recipe(recipe), clip)
        signal = SignalSpec("image", (recipe.data.channels, *recipe.size), "text")
        with without_weights():
            reader = fresh_reader(recipe, 1)
        _denoiser_config(recipe, signal, reader, named_autoencoder(recipe), 1)

    def begin(self, recipe: UnclipRecipe, checkpoint: Checkpoint | None) -> Model | None:
        if checkpoint is None and not recipe.init:
            return None
        path = checkpoint.path if checkpoint is not None else recipe.init
        if not isinstance(opened := open_model(path, dtype=torch.float32), UnclipPipeline):
            raise BedstoneError(
                f"init: {path} is a {opened.config.layout}, which {self.fault}. Name a run of "
                "`bedstone pretrain unclip-scenes`, or the like."
            )
        return super().begin(recipe, checkpoint)

    def parts(self, recipe: UnclipRecipe) -> dict[str, Model]:
        found = {name: open_part(recipe, name) for name in PARTS}
        found["autoencoder"] = named_autoencoder(recipe)
        parts = {name: model for name, model in found.items() if model is not None}
        if "clip" not in parts:
            raise BedstoneError(
                f"parts.clip: {recipe.out} has none yet, and none is named. Train all by "
                "`bedstone pretrain`, or name one."
            )
        named = {name: recipe.parts.get(name, f"the {name} of this run") for name in PARTS}
        check_clip(parts["clip"], f"parts.clip: {named['clip']}")
        if "upsampler" in parts:
            small = (recipe.data.channels, *recipe.size)
            check_enlarges(parts["upsampler"], small, f"parts.upsampler: {named['upsampler']}")
        if "prior" in parts:
            where = f"parts.prior: {named['prior']}"
            check_prior(parts["prior"], parts["clip"], where)
            if "clip" not in (parts["prior"].record.get("data") or {}):
                raise BedstoneError(
                    f"{where} doesn't say which CLIP it was trained with. Take a prior that "
                    "`bedstone pretrain` made by method: prior."
                )
        return parts

    def open(self, recipe: UnclipRecipe, start: Start) -> Splits:
        data = dataclasses.replace(recipe.data, size=recipe.size)
        splits = super().open(dataclasses.replace(recipe, data=data), start)
        for signals in (splits.train, splits.validation):
            check_captions(signals)
        return splits

    def texts(self, recipe: UnclipRecipe, splits: Splits, start: Start) -> None:
        """None: the CLIP's tokenizer is taken."""

    def model(
        self,
        recipe: UnclipRecipe,
        splits: Splits,
        tokenizer: Tokenizer | None,
        start: Start,
    ) -> Model:
        if start.model is not None:
            return super().model(recipe, splits, tokenizer, start)
        clip, prior = start.parts["clip"], start.parts.get("prior")
        autoencoder = start.parts.get("autoencoder")
        process, aim = process_of(recipe)
        reader = fresh_reader(recipe, clip.tokenizer.vocab_size)
        contexts = [recipe.text.context, clip.config.context, text_config(reader).context]
        contexts += [] if prior is None else [prior.config.text_tokens]
        shape = splits.train.shape
        signal = SignalSpec("image", shape, "text", context=min(contexts))
        config = _denoiser_config(recipe, signal, reader, autoencoder, clip.config.embed)
        model = UnclipPipeline(
            Conditioned(build(config), text_part(reader.network)),
            clip.tokenizer,
            process=process,
            target=aim,
            signal=signal,
            sampling=recipe.sampling,
            reader=reader,
            autoencoder=autoencoder,
            clip=clip,
            prior=prior,
            upsampler=start.parts.get("upsampler"),
            drops=recipe.drop > 0 and recipe.drop_text > 0,
            made_with={
                name: part_fingerprint(start.parts[name])
                for name in MADE_WITH
                if name in start.parts
            },
        )
        check_unclip(model)
        return model

    def batches(self, recipe: UnclipRecipe, model: Model, splits: Splits, start: Start) -> Batches:
        assert isinstance(model, UnclipPipeline)
        beside = Path(recipe.out) / FOLDER / "prior"
        for name, signals in (("train", splits.train), ("validation", splits.validation)):
            signals.embeddings = cached_embeddings(signals, model.clip, start, name, beside)
        whitening = model.network.denoiser.whitening
        if start.model is None and whitening is not None:
            whitening.fit(torch.from_numpy(splits.train.embeddings))
        if model.autoencoder is not None:
            coder, precision, quiet = model.autoencoder, start.precision, start.quiet
            splits.train = latents_of(splits.train, coder, precision, quiet)
            splits.validation = latents_of(splits.validation, coder, precision, quiet)
        texts = texts_of(splits.train, model.prompts)
        assert texts is not None
        if texts.cut:
            long = f"{texts.cut:,} texts are longer than the network reads, and are cut"
            splits.notes.insert(1, long)
        return signal_stream(
            splits.train,
            recipe.batch_size,
            texts=texts,
            drop=recipe.drop,
            drop_text=recipe.drop_text,
            seed=recipe.seed,
            workers=recipe.data.workers,
        )


def _denoiser_config(
    recipe: UnclipRecipe, signal: SignalSpec, reader: Model, autoencoder: Model | None, embed: int
) -> DiTConfig:
    """The shape of what draws from embeddings of that width, which it reads whitened."""
    whitened = recipe.model.get("embedding_whitened", True)
    decided = {"embedding_width": embed, "embedding_whitened": whitened}
    return denoiser_config(recipe, signal, reader, autoencoder, decided)
