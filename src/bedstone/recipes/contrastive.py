"""Contrastive learning from images with texts: CLIP, SigLIP, CLIP with a CNN."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bedstone.checkpoints.model import Model
from bedstone.data.images.contrastive import ContrastiveTexts, contrastive_stream, encoder_of
from bedstone.data.open import PairsConfig
from bedstone.data.scenes.datasets import NAME as SCENES
from bedstone.data.scenes.datasets import heldout_scene_pairs, scene_pairs
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import TokenizerConfig, train_clip
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.contrastive import ContrastiveScorer
from bedstone.evaluate.runner import Evaluation
from bedstone.models.clip.network import CLIPConfig, build, clip_config
from bedstone.models.published import fresh_processor
from bedstone.objectives.contrastive import KINDS, ContrastiveLoss, patches_of, refuse_batch_norm
from bedstone.recipes.base import ImagesOptim, ImagesSchedule, Method, Trainer
from bedstone.settings import one_of, share, whole
from bedstone.train.data import (
    MAX_SCENES,
    Splits,
    augment_of,
    cached_images,
    cached_training_images,
    held_out,
    image_side,
    record_of,
)
from bedstone.train.logs import ProgressBar
from bedstone.train.loop import Batches, Objective
from bedstone.train.run import RunPlan, RunRecipe
from bedstone.train.start import Start, freeze, open_parts, take_over

LAYOUTS = ("clip", "siglip", "clip_resnet")
TOWERS = ("image", "text")


@dataclass
class ContrastiveRecipe(RunRecipe):
    """Contrastive learning from images with texts: each image is to be nearest to its own text.

    Attributes, besides those of every run:
        budget: how long to train: `10m`, `2000 steps`.
        init: a model to go on from, instead of fresh weights.
        model: the shape: `layout` (clip, siglip, clip_resnet), `image`, `text` and `embed`, in the
            fields of `models.clip.network.CLIPConfig`.
        image_init: a model whose picture tower to begin with: a ViT, or a model of pairs.
        text_init: a model of pairs whose text tower and tokenizer to begin with.
        freeze: image or text: a tower that keeps its weights (LiT); its projection learns.
        data: what to learn from.
        augment: how pictures are changed: the fields of `data.images.augment.ImageAugment`. What a
            caption says stays true: where it names left or right nothing is flipped, where it
            names a colour none changes (`data.images.augment`).
        tokenizer: how text becomes tokens; trained on the captions where none is named.
        objective: softmax (CLIP) or sigmoid (SigLIP); empty is the layout's own.
        batch_size: pairs that are told from each other.
        chunk: pairs that go through the towers at a time, for batches that memory can't hold; 0 is
            all. The gradient is the same.
        patch_dropout: share of a picture's patches that are not read in training.
        hard_negatives: wrong texts of a picture, at most, that it is told from too.
        evaluate_pairs: held-out pairs that an evaluation reads at most; 0 reads them all.
    """

    out: str = "runs/pairs"
    budget: str = "2000 steps"
    init: str = ""
    model: dict[str, Any] = field(default_factory=lambda: {"layout": "clip"})
    image_init: str = ""
    text_init: str = ""
    freeze: str = one_of("", *TOWERS, default="")
    data: PairsConfig = field(default_factory=PairsConfig)
    augment: dict[str, Any] = field(default_factory=dict)
    tokenizer: TokenizerConfig = field(default_factory=lambda: TokenizerConfig(vocab_size=2048))
    objective: str = one_of("", *KINDS, default="")
    batch_size: int = whole(2, default=256)
    chunk: int = whole(0, default=0)
    patch_dropout: float = share(below_one=True, default=0.0)
    hard_negatives: int = whole(0, default=0)
    evaluate_pairs: int = whole(0, default=2000)
    optim: ImagesOptim = field(default_factory=ImagesOptim)
    schedule: ImagesSchedule = field(default_factory=ImagesSchedule)

    def __post_init__(self) -> None:
        super().__post_init__()
        layout = self.model.get("layout", "clip")
        if layout not in LAYOUTS:
            raise BedstoneError(f"model.layout: {layout!r} is unknown{nearest(layout, LAYOUTS)}.")
        if self.freeze and not (self.init or getattr(self, f"{self.freeze}_init")):
            raise BedstoneError(
                f"freeze: the {self.freeze} tower would keep random weights; name those to begin "
                f"with, by {self.freeze}_init or init."
            )
        if self.init and (self.image_init or self.text_init):
            raise BedstoneError("init: is a whole model; leave image_init and text_init out.")


class Contrastive(Method[ContrastiveRecipe]):
    """Image and text towers that learn from images with texts."""

    name = "contrastive"
    Recipe = ContrastiveRecipe
    layouts = LAYOUTS
    unit = "pairs"
    fault = "learns no pairs"
    hint = "A picture tower alone is named by image_init."

    def check(self, recipe: ContrastiveRecipe) -> None:
        augment_of(recipe.augment, recipe.data)
        stated_config(recipe)

    def parts(self, recipe: ContrastiveRecipe) -> dict[str, Model]:
        return open_parts(recipe, "image", "text")

    def lone(self, recipe: ContrastiveRecipe, count: int) -> str:
        if recipe.batch_size < count:
            return f"batch_size: {recipe.batch_size} pairs are fewer than the {count} ranks"
        if recipe.chunk and recipe.parallel == "fsdp":
            return "chunk: runs towers again in the backward pass, which parallel=fsdp can't follow"
        return super().lone(recipe, count)

    def open(self, recipe: ContrastiveRecipe, start: Start) -> Splits:
        return open_rows(recipe, quiet=start.quiet)

    def texts(self, recipe: ContrastiveRecipe, splits: Splits, start: Start) -> Iterable[str]:
        texts: Iterable[str] = splits.train.all_texts()
        return texts

    def trainers(self, recipe: ContrastiveRecipe) -> Mapping[str, Trainer]:
        return {"bpe": lambda texts, section: train_clip(texts, section.vocab_size)}

    def model(
        self,
        recipe: ContrastiveRecipe,
        splits: Splits,
        tokenizer: Tokenizer | None,
        start: Start,
    ) -> Model:
        assert tokenizer is not None
        model: Model = start.model or _fresh(recipe, tokenizer, start.parts)
        model.tokenizer = tokenizer
        if model.processor is None:
            model.processor = fresh_processor(model.config)
        if recipe.freeze:
            freeze(getattr(model.network, recipe.freeze))
        if recipe.patch_dropout:
            patches_of(model.network)
        if recipe.chunk and recipe.chunk < recipe.batch_size and recipe.freeze != "image":
            refuse_batch_norm(model.network.image.train())
        return model

    def batches(
        self, recipe: ContrastiveRecipe, model: Model, splits: Splits, start: Start
    ) -> Batches:
        processor, tokenizer = model.processor, model.tokenizer
        assert processor is not None and tokenizer is not None
        images = cached_training_images(splits.train, processor, recipe.data, start.quiet)
        batches = contrastive_stream(
            images,
            ContrastiveTexts(splits.train, encoder_of(tokenizer, model.config)),
            recipe.batch_size,
            processor.normalise,
            augment=augment_of(recipe.augment, recipe.data, processor.size),
            negatives=recipe.hard_negatives,
            seed=recipe.seed,
            workers=recipe.data.workers,
        )
        kept = "in memory" if images.kept else "decoded as they are read"
        splits.notes[0] += f", {kept}"
        return batches

    def objective(self, recipe: ContrastiveRecipe, model: Model, start: Start) -> Objective:
        return objective_of(recipe, model.config)

    def evaluations(self, recipe: ContrastiveRecipe, plan: RunPlan) -> Sequence[Evaluation]:
        assert isinstance(plan.objective, ContrastiveLoss)
        processor, tokenizer, held = (
            plan.model.processor,
            plan.model.tokenizer,
            plan.splits.validation,
        )
        assert processor is not None and tokenizer is not None
        images = cached_images(
            held, processor, recipe.data, "reading held-out pictures", plan.start.quiet
        )
        texts = ContrastiveTexts(held, encoder_of(tokenizer, plan.model.config))
        size = min(recipe.batch_size, len(images.readable))
        return [
            ContrastiveScorer(
                plan.model, images, texts, plan.start.precision, plan.objective.kind, size
            )
        ]


def stated_config(recipe: ContrastiveRecipe) -> CLIPConfig | None:
    """The shape that the recipe alone says, of any vocabulary; None where it names weights."""
    text = recipe.model.get("text", {})
    if recipe.init or recipe.image_init or recipe.text_init or not isinstance(text, Mapping):
        return None
    return clip_config({**recipe.model, "text": {"vocab_size": 2**20, **text}})


def open_rows(recipe: ContrastiveRecipe, *, quiet: bool = False) -> Splits:
    """Images with texts to learn from, and such held out, read or drawn.

    Raises:
        BedstoneError: they can't be read.
    """
    data, side = recipe.data, image_side(recipe.model)
    if data.source == SCENES:
        with ProgressBar("drawing scenes", quiet=quiet) as bar:
            train = scene_pairs(
                data.most_rows or MAX_SCENES,
                seed=recipe.seed,
                size=side,
                **data.drawn,
                wrong=recipe.hard_negatives > 0,
                progress=bar.update,
            )
        held = heldout_scene_pairs("validation", size=side, **data.drawn)
    else:
        train, held = held_out(data, partial(data.open, split=data.split), recipe.seed)
    # What zero-shot accuracy is asked of are the classes of both.
    classes = tuple(dict.fromkeys((*train.classes, *held.classes)))
    train.classes = held.classes = classes
    held = held.take(recipe.evaluate_pairs, recipe.seed)
    notes = [f"{data.source}: {train.describe()}", f"held out: {held.describe()}"]
    return Splits(train, held, record=record_of(data, train), notes=notes)


def objective_of(recipe: ContrastiveRecipe, config: CLIPConfig) -> ContrastiveLoss:
    """The recipe's loss: a sigmoid for SigLIP, else a softmax, where it doesn't say.

    Raises:
        BedstoneError: the layout has no bias, which a sigmoid needs.
    """
    kind = recipe.objective or ("sigmoid" if config.layout == "siglip" else "softmax")
    if kind == "sigmoid" and config.layout != "siglip":
        raise BedstoneError(
            f"objective: the {config.layout} layout has no bias, which sigmoid needs; take "
            "model.layout: siglip, or softmax."
        )
    return ContrastiveLoss(kind, recipe.chunk, recipe.patch_dropout)


def _fresh(recipe: ContrastiveRecipe, tokenizer: Tokenizer, parts: Mapping[str, Model]) -> Model:
    """New weights, those of towers that the recipe names taken over."""
    shape = dict(recipe.model)
    for name, model in parts.items():
        if shape.get(name):
            raise BedstoneError(
                f"model.{name}: the shape of {name}_init = {getattr(recipe, f'{name}_init')} is "
                f"what it is; leave model.{name} out, or {name}_init."
            )
        shape[name] = _tower(model, name).config
    if "text" not in parts:
        tokens = tokenizer.vocab_size
        ends = {key: getattr(tokenizer, key) for key in ("bos_id", "eos_id", "pad_id")}
        # Products of matrices are fastest at multiples of 64.
        shape["text"] = {"vocab_size": -(-tokens // 64) * 64, **ends, **(shape.get("text") or {})}
    network = build(clip_config(shape), seed=recipe.seed)
    processor = None
    for name, model in parts.items():
        tower, own = _tower(model, name).state_dict(), getattr(network, name)
        odd = {key for key in own.state_dict().keys() ^ tower.keys() if "head." not in key[:5]}
        if odd:
            raise BedstoneError(
                f"{name}_init: {getattr(recipe, f'{name}_init')} holds another kind of {name} "
                f"tower than this layout has (they differ in {min(odd)!r}). Name a model of pairs "
                "of the same model.layout."
            )
        take_over(own, tower, f"{name}_init", f"model.{name}")
        processor = model.processor if name == "image" else processor
    return Model(network, tokenizer, processor=processor)


def _tower(model: Model, name: str) -> Any:
    """A model's tower, or the model itself where it is one."""
    return getattr(model.network, name, model.network)
