"""What a run on pairs reads: rows, tokenizer and batches."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bedstone.checkpoints.hub import resolve
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, load
from bedstone.checkpoints.store import Checkpoint
from bedstone.data.dataset import Dataset
from bedstone.data.images.contrastive import (
    ContrastiveBatch,
    ContrastiveTexts,
    contrastive_stream,
    encoder_of,
)
from bedstone.data.images.processor import ImageProcessor
from bedstone.data.open import PairsConfig
from bedstone.data.scenes.datasets import NAME as SCENES
from bedstone.data.scenes.datasets import heldout_scene_pairs, scene_pairs
from bedstone.data.stream import Stream
from bedstone.data.text.packing import Encode
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import TokenizerConfig, train_clip
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.contrastive import ContrastiveScorer
from bedstone.files import write_json
from bedstone.models.clip.network import CLIPConfig, build, clip_config
from bedstone.models.published import fresh_processor
from bedstone.objectives.contrastive import Contrastive, patches_of, refuse_batch_norm
from bedstone.recipes.base import ImagesOptim, ImagesSchedule
from bedstone.runtime import Precision, pick_device, pick_precision, seed_everything
from bedstone.settings import at_least, check_shares
from bedstone.train.data import (
    MAX_SCENES,
    augment_of,
    held_out,
    image_side,
    learnt_pictures,
    pictures_of,
    record_of,
)
from bedstone.train.logs import ProgressBar
from bedstone.train.run import RunPlan, RunRecipe, RunResult, train
from bedstone.train.schedule import build_schedule, parse_budget
from bedstone.train.start import freeze, initial_model, weight_counts

LAYOUTS = ("clip", "siglip", "clip_resnet")
TOWERS = ("image", "text")


@dataclass
class ContrastiveRecipe(RunRecipe):
    """Learning from pairs: each picture is to be nearest to its own text.

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
    freeze: str = ""
    data: PairsConfig = field(default_factory=PairsConfig)
    augment: dict[str, Any] = field(default_factory=dict)
    tokenizer: TokenizerConfig = field(default_factory=lambda: TokenizerConfig(vocab_size=2048))
    objective: str = ""
    batch_size: int = 256
    chunk: int = 0
    patch_dropout: float = 0.0
    hard_negatives: int = 0
    evaluate_pairs: int = 2000
    optim: ImagesOptim = field(default_factory=ImagesOptim)
    schedule: ImagesSchedule = field(default_factory=ImagesSchedule)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 2, "batch_size")
        at_least(self, 0, "chunk", "hard_negatives", "evaluate_pairs")
        layout = self.model.get("layout", "clip")
        if layout not in LAYOUTS:
            raise BedstoneError(f"model.layout: {layout!r} is unknown{nearest(layout, LAYOUTS)}.")
        if self.freeze and self.freeze not in TOWERS:
            raise BedstoneError(
                f"freeze: {self.freeze!r} is no tower{nearest(self.freeze, TOWERS)}."
            )
        if self.freeze and not (self.init or getattr(self, f"{self.freeze}_init")):
            raise BedstoneError(
                f"freeze: the {self.freeze} tower would keep random weights; name those to begin "
                f"with, by {self.freeze}_init or init."
            )
        if self.init and (self.image_init or self.text_init):
            raise BedstoneError("init: is a whole model; leave image_init and text_init out.")
        check_shares({"patch_dropout": self.patch_dropout})


@dataclass
class ContrastiveSplits:
    """Pairs to learn from, pairs held out, and what an artefact says of them."""

    train: Dataset
    held: Dataset
    record: dict[str, Any]

    @classmethod
    def open(
        cls, recipe: ContrastiveRecipe, run: Path | None, *, quiet: bool = False
    ) -> "ContrastiveSplits":
        """Reads or draws them.

        Raises:
            BedstoneError: they can't be read, or aren't what the run in this folder began with.
        """
        data = recipe.data
        size = image_side(recipe)
        if data.source == SCENES:
            with ProgressBar("drawing scenes", quiet=quiet) as bar:
                train = scene_pairs(
                    data.most_rows or MAX_SCENES,
                    seed=recipe.seed,
                    size=size,
                    objects=data.things,
                    wrong=recipe.hard_negatives > 0,
                    progress=bar.update,
                )
            held = heldout_scene_pairs("validation", size=size)
        else:
            train, held = held_out(recipe, partial(data.open, split=data.split))
        # What zero-shot accuracy is asked of are the classes of both.
        classes = tuple(dict.fromkeys((*train.classes, *held.classes)))
        train.classes = held.classes = classes
        held = held.take(recipe.evaluate_pairs, recipe.seed)
        return cls(train, held, record_of(recipe, train, run))


def contrastive_tokenizer(recipe: ContrastiveRecipe, rows: Dataset, run: Path) -> Tokenizer:
    """The run's own if it has one; else the one named, an initial model's, or a new one.

    Raises:
        BedstoneError: it can't be read, or its kind can't be trained here.
    """
    own = run / "tokenizer"
    if (own / "tokenizer.json").is_file():
        return Tokenizer.load(own)
    tokenizer = known_tokenizer(recipe)
    if tokenizer is None:
        if recipe.tokenizer.kind != "bpe":
            raise BedstoneError(
                f"tokenizer.kind: {recipe.tokenizer.kind!r} was given; a tower for text reads bpe, "
                "or a tokenizer that tokenizer.path names."
            )
        tokenizer = train_clip(rows.all_texts(), recipe.tokenizer.vocab_size)
    own.mkdir(parents=True, exist_ok=True)
    tokenizer.save(own)
    return tokenizer


def known_tokenizer(recipe: ContrastiveRecipe) -> Tokenizer | None:
    """The tokenizer that a recipe names, or that of a model it begins with."""
    if recipe.tokenizer.path:
        return Tokenizer.load(recipe.tokenizer.path)
    begun = recipe.init or recipe.text_init
    return Tokenizer.load(resolve(begun)) if begun else None


def contrastive_batches(
    recipe: ContrastiveRecipe,
    rows: Dataset,
    processor: ImageProcessor,
    encode: Encode,
    quiet: bool,
) -> Stream[ContrastiveBatch]:
    """The endless stream that a run learns from."""
    return contrastive_stream(
        learnt_pictures(recipe, rows, processor, quiet),
        ContrastiveTexts(rows, encode),
        recipe.batch_size,
        processor.normalise,
        augment=augment_of(recipe, processor.size),
        negatives=recipe.hard_negatives,
        seed=recipe.seed,
        workers=recipe.data.workers,
    )


# The network that a run on pairs begins with: towers fresh or from other models, some frozen.


def contrastive_model(
    recipe: ContrastiveRecipe, tokenizer: Tokenizer, checkpoint: Checkpoint | None
) -> Model:
    """The checkpoint's, the initial one, or a new one, in fp32; frozen as the recipe says.

    Raises:
        BedstoneError: a shape, a folder or a tokenizer that doesn't fit.
    """
    if checkpoint is not None:
        model = load(checkpoint.path, dtype=torch.float32)
    elif recipe.init:
        hint = "A picture tower alone is named by image_init."
        model = initial_model(recipe, LAYOUTS, "learns no pairs", hint)
    else:
        model = _fresh(recipe, tokenizer)
    model.tokenizer, model.record = tokenizer, {}
    if model.processor is None:
        model.processor = fresh_processor(model.config)
    if recipe.freeze:
        freeze(getattr(model.network, recipe.freeze))
    return model


def _fresh(recipe: ContrastiveRecipe, tokenizer: Tokenizer) -> Model:
    """New weights, those of towers that the recipe names taken over."""
    shape = dict(recipe.model)
    begun = {
        name: open_model(path, dtype=torch.float32)
        for name in ("image", "text")
        if (path := getattr(recipe, f"{name}_init"))
    }
    for name, model in begun.items():
        if shape.get(name):
            raise BedstoneError(
                f"model.{name}: the shape of {name}_init = {getattr(recipe, f'{name}_init')} is "
                f"what it is; leave model.{name} out, or {name}_init."
            )
        shape[name] = _tower(model, name).config
    if "text" not in begun:
        tokens = tokenizer.vocab_size
        ends = {key: getattr(tokenizer, key) for key in ("bos_id", "eos_id", "pad_id")}
        # Products of matrices are fastest at multiples of 64.
        shape["text"] = {"vocab_size": -(-tokens // 64) * 64, **ends, **(shape.get("text") or {})}
    config = clip_config(shape)
    network = build(config, seed=recipe.seed)
    processor = None
    for name, model in begun.items():
        _take(network, _tower(model, name), name, getattr(recipe, f"{name}_init"))
        processor = model.processor if name == "image" else processor
    return Model(network, tokenizer, processor=processor)


def _tower(model: Model, name: str) -> Any:
    """A model's tower, or the model itself where it is one."""
    return getattr(model.network, name, model.network)


def _take(network: nn.Module, tower: nn.Module, name: str, path: str) -> None:
    """Copies a tower's weights.

    Raises:
        BedstoneError: the layout has another kind of tower.
    """
    ours: nn.Module = getattr(network, name)
    theirs, mine = tower.state_dict(), ours.state_dict()
    odd = {key for key in theirs.keys() ^ mine.keys() if not key.startswith("head.")}
    odd |= {key for key in theirs.keys() & mine.keys() if theirs[key].shape != mine[key].shape}
    if odd:
        raise BedstoneError(
            f"{name}_init: {path} holds another kind of {name} tower than this layout has (they "
            f"differ in {min(odd)!r}). Name a model of pairs of the same model.layout."
        )
    ours.load_state_dict({key: theirs.get(key, value) for key, value in mine.items()})


# Learning from pairs of pictures and texts: CLIP, SigLIP, CLIP with a CNN.


def run_contrastive(
    recipe: ContrastiveRecipe, run: Path, checkpoint: Checkpoint | None, quiet: bool
) -> RunResult:
    """A new run, or one that goes on from a checkpoint."""
    precision = pick_precision(recipe.precision, pick_device(recipe.device))
    parse_budget(recipe.budget), build_schedule(recipe.schedule)  # before the data is read
    augment_of(recipe, (1, 1))
    course, scorer = contrastive_course(recipe, run, precision, checkpoint, quiet)
    finished = train(recipe, run, course, precision, checkpoint, quiet=quiet)
    if finished.model is not None:
        record = {name: found.record() for name, found in scorer.figures().items()}
        for found in record.values():
            found.pop("confusion", None)
        write_json(run / "evaluation.json", record)
    return finished


def contrastive_course(
    recipe: ContrastiveRecipe,
    run: Path,
    precision: Precision,
    checkpoint: Checkpoint | None,
    quiet: bool,
) -> tuple[RunPlan, ContrastiveScorer]:
    """What is learnt, and what it is measured by.

    Raises:
        BedstoneError: the recipe, the data or a model it begins with can't do it.
    """
    splits = ContrastiveSplits.open(recipe, run, quiet=quiet)
    tokenizer = contrastive_tokenizer(recipe, splits.train, run)
    seed_everything(recipe.seed)
    model = contrastive_model(recipe, tokenizer, checkpoint)
    objective = objective_of(recipe, model.config)
    if recipe.patch_dropout:
        patches_of(model.network)
    if recipe.chunk and recipe.chunk < recipe.batch_size and recipe.freeze != "image":
        refuse_batch_norm(model.network.image.train())
    model.network.to(precision.device)
    encode = encoder_of(tokenizer, model.config)
    processor = model.processor
    assert processor is not None
    batches = contrastive_batches(recipe, splits.train, processor, encode, quiet)
    held = pictures_of(splits.held, processor, recipe.data, "reading held-out pictures", quiet)
    scorer = ContrastiveScorer(
        model,
        held,
        ContrastiveTexts(splits.held, encode),
        precision,
        objective.kind,
        min(recipe.batch_size, len(held.readable)),
    )
    count, learning = weight_counts(model)
    kept = "in memory" if batches.collate.images.kept else "decoded as they are read"
    record = {**splits.record, "tokenizer": tokenizer.fingerprint()}
    course = RunPlan(
        model=model,
        batches=batches,
        objective=objective,
        evaluate=scorer.flat,
        data=record,
        plan=(
            f"{recipe.data.source}: {splits.train.describe()}, {kept}\n"
            f"held out: {splits.held.describe()}\n"
            f"{model.config.layout}: {count / 1e6:.2f}M parameters, {learning / 1e6:.2f}M of them "
            f"trained, vocabulary {tokenizer.vocab_size:,}, {precision.name} on "
            f"{precision.device}\n{batches.batch_size * recipe.accumulate:,} pairs a step, budget "
            f"{recipe.budget}, into {recipe.out}"
        ),
        budget=recipe.budget,
    )
    return course, scorer


def objective_of(recipe: ContrastiveRecipe, config: CLIPConfig) -> Contrastive:
    """How a recipe learns: SigLIP by a sigmoid, others by a softmax, where it doesn't say."""
    kind = recipe.objective or ("sigmoid" if config.layout == "siglip" else "softmax")
    if kind == "sigmoid" and config.layout != "siglip":
        raise BedstoneError(
            f"objective: the {config.layout} layout has no bias, which sigmoid needs; take "
            "model.layout: siglip, or softmax."
        )
    return Contrastive(kind, recipe.chunk, recipe.patch_dropout)
