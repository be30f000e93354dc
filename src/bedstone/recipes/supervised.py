"""Supervised training on labelled rows: classification, tagging, answers, completions."""

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.checkpoints.store import Checkpoint
from bedstone.data.dataset import Dataset
from bedstone.data.fields import PAIRS
from bedstone.data.images.augment import ImageAugment
from bedstone.data.images.processor import plain_processor
from bedstone.data.images.supervised import (
    FeatureExamples,
    ImageExamples,
    in_batches,
    labelled_image_stream,
)
from bedstone.data.open import open_dataset
from bedstone.data.records import MOST_BROKEN
from bedstone.data.summary import summarise
from bedstone.data.text.augment import AugmentConfig, augment
from bedstone.data.text.conversations import TURNS
from bedstone.data.text.examples import Examples, example_stream
from bedstone.data.text.supervised import PARTS, examples_of, make_examples, usable_rows
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.runner import Evaluation
from bedstone.evaluate.supervised import MAIN, SupervisedEvaluation
from bedstone.models.clip import network as image_classifiers
from bedstone.models.clip.network import CLIP, ImageClassifierConfig
from bedstone.models.families import FAMILIES
from bedstone.models.heads import HeadConfig
from bedstone.models.published import layout as layout_of
from bedstone.models.resnet.network import ResNetConfig
from bedstone.nn.attention import SelfAttention
from bedstone.nn.quantize import quantize
from bedstone.objectives.supervised import objective_of
from bedstone.recipes.base import Method
from bedstone.runtime import Precision
from bedstone.settings import Settings, check_shares, from_mapping, number, one_of, share, whole
from bedstone.tasks.images.engine import processor_of
from bedstone.tasks.text.augment import augmenting_models
from bedstone.train.data import ENDS_KEPT, HELD_BY_CLASS, OWN_TEMPLATE, VERSION, Splits, version_of
from bedstone.train.logs import ProgressBar
from bedstone.train.loop import Batches, Objective
from bedstone.train.optim import OptimConfig
from bedstone.train.run import RunPlan, RunRecipe, Stopping
from bedstone.train.schedule import ScheduleConfig
from bedstone.train.start import Start, adapt

IMAGE_TASKS = "image-classification"
WITHOUT_CLASSES = ("question-answering", "text-generation")
TASKS = (
    "text-classification",
    "token-classification",
    "question-answering",
    "text-generation",
    IMAGE_TASKS,
)


@dataclass
class LabelledConfig(Settings):
    """What to learn from: labelled rows.

    Attributes:
        train: a file, a folder, a glob or a hub id of rows.
        validation: rows to validate on; empty holds out a share of `train`.
        test: rows to measure the finished model on.
        split: of a hub id or a folder with splits.
        columns: which column holds what, where the usual names aren't used, as
            `{text: review, label: stars}`.
        labels: the labels in their order; empty takes those of the training rows.
        validation_share: the share of rows held out.
        most_rows: take this many training rows at most, drawn by the seed; 0 takes all.
        most_broken: share of rows that may be broken; such rows are left out and named.
    """

    section = "data."
    train: str = ""
    validation: str = ""
    test: str = ""
    split: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    validation_share: float = number(0, 1, open_least=True, open_most=True, default=0.1)
    most_rows: int = whole(0, default=0)
    most_broken: float = share(below_one=True, default=MOST_BROKEN)


@dataclass
class TuneOptim(OptimConfig):
    """`OptimConfig` with defaults for weights that know much already."""

    kind: str = "adamw"
    lr: float = 5e-5
    adamw_lr: float = 5e-5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass
class TuneSchedule(ScheduleConfig):
    """`ScheduleConfig` that falls to zero from the start on."""

    warmup: float = 0.06
    decay: float = 1.0


@dataclass
class FinetuneRecipe(RunRecipe):
    """Fine-tuning a model on labelled rows, or on prompts and their completions.

    Attributes, besides those of every run:
        model: the model to start from: a folder, a name that `bedstone models` lists, or a hub
            id; of image-classification also sizes of one with fresh weights, as
            `{layout: vit, width: 192}`.
        tokenizer: a folder or file of a tokenizer, where the model's folder has none.
        task: text-classification, token-classification, question-answering, text-generation or
            image-classification.
        data: what to learn from.
        epochs: passes over the training rows.
        budget: `5m`, `1000 steps`: takes the place of `epochs` where it is given.
        problem: of text-classification: single, multi, regression; auto takes it from the labels.
        limit: tokens a row at most; longer rows become windows. 0 takes the model's context.
        stride: tokens that a window shares with the one before.
        turns: of conversations, `all` answers are learnt, or the `last` one of each.
        batch_size: rows in a micro-batch.
        dropout: in training; null is as the model has it.
        train: whole, or, of image-classification, head: a linear probe on the features of the
            frozen network, which are computed once for each image.
        lora: train only a LoRA adapter: the fields of `nn.lora.LoraConfig`, as `{rank: 16}`.
        quantize: bits of the frozen weights under an adapter: 0 (as they are), 8 or 4.
        augment: new rows from old: the fields of `data.text.augment.AugmentConfig`; of images,
            how each is changed when it is read: those of `data.images.augment.ImageAugment`.
        class_weights: `balanced`, or a weight for each label; empty weighs all alike.
        best: the metric that selects the best checkpoint; empty takes the task's main metric,
            `last` keeps the last weights.
        patience: stop after this many evaluations without a better one; 0 goes on to the end.
        evaluate_every: steps between evaluations; 0 evaluates once an epoch.
    """

    model: Any = ""
    tokenizer: str = ""
    task: str = one_of(*TASKS, default="text-classification")
    out: str = "runs/finetune"
    data: LabelledConfig = field(default_factory=LabelledConfig)
    epochs: float = 3.0
    budget: str = ""
    problem: str = "auto"
    limit: int = whole(0, default=0)
    stride: int = whole(0, default=0)
    turns: str = one_of(*TURNS, default="all")
    batch_size: int = whole(1, default=32)
    dropout: float | None = None
    train: str = one_of("whole", "head", default="whole")
    lora: dict[str, Any] = field(default_factory=dict)
    quantize: int = one_of(0, 4, 8, default=0)
    augment: dict[str, Any] = field(default_factory=dict)
    class_weights: Any = ""
    best: str = ""
    patience: int = whole(0, default=0)
    optim: TuneOptim = field(default_factory=TuneOptim)
    schedule: TuneSchedule = field(default_factory=TuneSchedule)
    keep: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model:
            raise BedstoneError("model: none was given; name a folder or a hub id.")
        if not isinstance(self.model, str | dict):
            raise BedstoneError(f"model: {self.model!r} was given; name a folder or a hub id.")
        if self.train == "head" and (self.lora or self.augment):
            raise BedstoneError(
                f"train: a head alone learns from what a frozen network saw once; "
                f"{'lora' if self.lora else 'augment'} needs train: whole. Leave one out."
            )
        if self.task != IMAGE_TASKS and (self.train == "head" or isinstance(self.model, dict)):
            name = "train: head" if self.train == "head" else "model: a mapping of sizes"
            raise BedstoneError(f"{name} is for image-classification; {self.task} takes none.")
        if not self.data.train:
            raise BedstoneError("data.train: none was given; name a file or folder of rows.")
        if self.epochs <= 0 and not self.budget:
            raise BedstoneError(f"epochs: {self.epochs} was given; it must be above 0.")
        if self.quantize and not self.lora:
            raise BedstoneError(
                "quantize: quantised weights can't learn; train an adapter over them, by lora.rank."
            )


class Supervised(Method[FinetuneRecipe]):
    """A model, whole, its head or an adapter, that learns a task from labelled rows."""

    name = "supervised"
    Recipe = FinetuneRecipe
    tasks: ClassVar[tuple[str, ...]] = TASKS
    epochs = True

    def begin(self, recipe: FinetuneRecipe, checkpoint: Checkpoint | None) -> Model:
        model = open_start(recipe, None if recipe.lora else checkpoint)
        model.record = {}
        return model

    def open(self, recipe: FinetuneRecipe, start: Start) -> Splits:
        opened = open_images if recipe.task == IMAGE_TASKS else open_texts
        version = version_of(start.folder)
        train, validation, test = opened(recipe, start.model, start.quiet, version=version)
        record = {
            "source": recipe.data.train,
            "fingerprint": train.fingerprint(),
            "rows": len(train),
        }
        if version > 1:
            record["split"] = version
        found = {"train": train, "validation": validation, "test": test}
        examples = {split: each for split, each in found.items() if each is not None}
        labels = {split: each.actual for split, each in examples.items()}
        understood = summarise(
            {split: each.rows for split, each in examples.items()},
            {} if recipe.task in WITHOUT_CLASSES else labels,
            PARTS.get(recipe.task, ()),
        )
        notes = [
            f"{recipe.data.train}: {train.describe()}",
            f"validation: {validation.describe()}",
        ]
        context = getattr(start.model.config, "context", 0)
        if 0 < context < recipe.limit:
            notes.append(f"limit: {recipe.limit:,} is more than the model's context, {context:,}")
        shown = train if recipe.task == "text-generation" else None
        return Splits(train, validation, test, record, notes, understood, shown)

    def model(
        self,
        recipe: FinetuneRecipe,
        splits: Splits,
        tokenizer: Tokenizer | None,
        start: Start,
    ) -> Model:
        model: Model = start.model
        prepare(model, recipe, splits.train)
        if recipe.lora:
            adapt(model, recipe.lora, start, recipe.seed)
        return model

    def batches(
        self, recipe: FinetuneRecipe, model: Model, splits: Splits, start: Start
    ) -> Batches:
        if recipe.train == "head":
            with ProgressBar("looking at the pictures", quiet=start.quiet) as bar:

                def seen(examples: Any) -> Any:
                    return examples and see(model, examples, start.precision, bar.update)

                splits.train, splits.validation = seen(splits.train), seen(splits.validation)
                splits.test = seen(splits.test)
            model.network.requires_grad_(False)
            model.network.head.requires_grad_(True)
        weights = recipe.class_weights or None
        if isinstance(splits.train, ImageExamples):
            return labelled_image_stream(
                splits.train,
                recipe.batch_size,
                seed=recipe.seed,
                weights=weights,
                augment=augmenter(recipe),
            )
        reads = getattr(model.network.head, "reads", "all")
        return example_stream(
            splits.train, recipe.batch_size, reads=reads, seed=recipe.seed, weights=weights
        )

    def objective(self, recipe: FinetuneRecipe, model: Model, start: Start) -> Objective:
        return objective_of(model.config.head)

    def evaluations(self, recipe: FinetuneRecipe, plan: RunPlan) -> Sequence[Evaluation]:
        found = {"validation": plan.splits.validation, "test": plan.splits.test}
        return [
            SupervisedEvaluation(name, plan.model, examples, plan.start.precision)
            for name, examples in found.items()
            if examples
        ]

    def budget(self, recipe: FinetuneRecipe, splits: Splits) -> str:
        steps = round(recipe.epochs * self._epoch(recipe, splits))
        return recipe.budget or f"{max(steps, 1)} steps"

    def evaluate_every(self, recipe: FinetuneRecipe, splits: Splits) -> int:
        return recipe.evaluate_every or self._epoch(recipe, splits)

    def stopping(self, recipe: FinetuneRecipe, model: Model) -> Stopping:
        return Stopping(best_by(recipe, model), recipe.patience, recipe.best != "last")

    def _epoch(self, recipe: FinetuneRecipe, splits: Splits) -> int:
        """Steps of a pass over the training rows."""
        return math.ceil(len(splits.train) / (recipe.batch_size * recipe.accumulate))


TOGETHER = 64  # images that a frozen network reads at a time


def open_start(recipe: FinetuneRecipe, checkpoint: Checkpoint | None) -> Model:
    """The model to start from, in fp32: a run's checkpoint, or the recipe's model."""
    if checkpoint is not None:
        return open_model(checkpoint.path, dtype=torch.float32)
    if recipe.task == IMAGE_TASKS:
        return open_image_model(recipe)
    # four bits of a file that are asked for are held as they stand there
    model = open_model(recipe.model, dtype=None if recipe.quantize == 4 else torch.float32)
    model.network.float()
    if recipe.task == "text-generation" and not model.network.causal:
        raise BedstoneError(
            f"task: text-generation needs a decoder, and {recipe.model} is a "
            f"{model.config.layout}, which reads in both directions; name a GPT."
        )
    if recipe.tokenizer:
        model.tokenizer = Tokenizer.load(recipe.tokenizer)
    return model


def open_image_model(recipe: FinetuneRecipe) -> Model:
    """The network that a recipe starts from, and its processor: of a CLIP, the image tower; of a
    mapping of sizes, one with fresh weights.

    Raises:
        BedstoneError: it can't be opened, or reads no pictures.
    """
    if isinstance(recipe.model, dict):
        return fresh_model(recipe.model, recipe.seed)
    model = open_model(recipe.model, dtype=torch.float32)
    network = model.network
    if isinstance(network, CLIP):
        network = image_classifiers.image_classifier(network)
    if not hasattr(network, "features"):
        raise BedstoneError(
            f"model: {recipe.model} is a {model.config.layout}, which reads no pictures; "
            "image-classification needs a ViT, a ResNet or a CLIP."
        )
    processor = processor_of(model)
    return Model(network, record=model.record, path=model.path, processor=processor)


def fresh_model(values: dict[str, Any], seed: int) -> Model:
    """A network with fresh weights by its sizes.

    Raises:
        BedstoneError: a size doesn't fit, or the layout isn't one that can be trained so.
    """
    layout = values.get("layout", "vit")
    sizes = {name: value for name, value in values.items() if name != "layout"}
    if layout == "resnet":  # the image tower of `clip_resnet`
        tower = from_mapping(ResNetConfig, sizes, "recipe", "model.")
        network: Any = image_classifiers.build_classifier(
            ImageClassifierConfig("clip_resnet", tower), seed=seed
        )
    elif layout in FAMILIES and (fresh := layout_of(layout).fresh) is not None:
        network = fresh(sizes, seed)
    else:
        able = ["resnet", *(name for name in FAMILIES if layout_of(name).fresh is not None)]
        raise BedstoneError(
            f"model.layout: {layout!r} can't be trained from scratch on labels"
            f"{nearest(str(layout), able)}."
        )
    return Model(network, processor=plain_processor(network.config.size))


def open_images(
    recipe: FinetuneRecipe, model: Model, quiet: bool, *, version: int = VERSION
) -> tuple[ImageExamples, ImageExamples, ImageExamples | None]:
    """The labelled images of a recipe: training, validation and test.

    Raises:
        BedstoneError: naming the row that can't be used, or the data that can't be read.
    """
    data = recipe.data
    learnt = open_image_rows(recipe, data.train)
    if data.validation:
        held = open_image_rows(recipe, data.validation)
    else:
        classes = [row.label for row in learnt] if version >= HELD_BY_CLASS else None
        learnt, held = learnt.hold_out(data.validation_share, classes)
    learnt = learnt.take(data.most_rows, recipe.seed)
    tested = open_image_rows(recipe, data.test) if data.test else None
    processor = processor_of(model)
    with ProgressBar("decoding the pictures", quiet=quiet) as bar:

        def examples(rows: Dataset, known: ImageExamples | None = None) -> ImageExamples:
            labels = known.labels if known else data.labels or None
            return ImageExamples(
                rows, processor, labels=labels, known=known is not None, progress=bar.update
            )

        train = examples(learnt)
        return train, examples(held, train), examples(tested, train) if tested else None


def open_image_rows(recipe: FinetuneRecipe, name: str) -> Dataset:
    """The rows of a source of labelled images."""
    data = recipe.data
    return open_dataset(
        name, PAIRS, columns=data.columns, split=data.split, most_broken=data.most_broken
    )


def open_texts(
    recipe: FinetuneRecipe, model: Model, quiet: bool, *, version: int = VERSION
) -> tuple[Examples, Examples, Examples | None]:
    """The labelled texts of a recipe, augmented and tokenised: training, validation and test.

    Raises:
        BedstoneError: naming the file, row and column that can't be used.
    """
    data = recipe.data

    def opened(name: str) -> Dataset:
        return open_dataset(
            name, columns=data.columns, split=data.split, most_broken=data.most_broken
        )

    learnt = usable_rows(recipe.task, opened(data.train), data.labels or None, recipe.problem)
    if data.validation:
        held = opened(data.validation)
    else:
        classes = classes_of(learnt) if version >= HELD_BY_CLASS else None
        learnt, held = learnt.hold_out(data.validation_share, classes)
    if data.most_rows:
        learnt = learnt.take(data.most_rows, recipe.seed)
    if recipe.augment:
        config = augment_config(recipe)
        new = augment(learnt.rows, config, **augment_parts(config, learnt))
        learnt = learnt.with_rows(list(new))
    tokenizer = tokenizer_of(model)
    limit = min(recipe.limit or model.config.context, model.config.context)

    def examples(rows: Dataset, known: Examples | None = None) -> Examples:
        made = make_examples if known else examples_of  # those to learn from are checked
        return made(
            recipe.task,
            rows,
            tokenizer,
            labels=known.head[1] if known else data.labels or None,
            problem=known.head[2] if known else recipe.problem,
            limit=limit,
            stride=recipe.stride,
            known=known is not None,
            turns=recipe.turns,
            keep_ends=version >= ENDS_KEPT,
            own_template=version >= OWN_TEMPLATE,
        )

    with ProgressBar("reading the rows", quiet=quiet):
        train = examples(learnt)
        test = opened(data.test) if data.test else None
        return train, examples(held, train), None if test is None else examples(test, train)


def classes_of(rows: Dataset) -> list[Any] | None:
    """The class of each row; None where rows have numbers, several labels or none."""
    column = rows.column("label")
    cells = [row.get(column) for row in rows.rows] if column else []
    return cells if cells and all(isinstance(cell, str | int) for cell in cells) else None


def augmenter(recipe: FinetuneRecipe) -> ImageAugment | None:
    """How a recipe changes its pictures; None where it doesn't."""
    if not recipe.augment:
        return None
    return from_mapping(ImageAugment, recipe.augment, "recipe", "augment.")


def see(
    model: Model,
    examples: ImageExamples,
    precision: Precision,
    progress: Callable[[float], None] = lambda share: None,
) -> FeatureExamples:
    """The features of a frozen network, computed once for each image."""
    network = model.network.eval()
    found = []
    with torch.inference_mode(), precision.autocast():
        for batch in in_batches(examples, TOGETHER):
            found.append(network.features(batch.shown.to(precision.device)).float().cpu())
            progress(len(found) * TOGETHER / len(examples))
    return FeatureExamples(examples, torch.cat(found).clone())


def prepare(model: Model, recipe: FinetuneRecipe, examples: Examples) -> None:
    """Gives the network the head and the dropout that the task asks for; quantises its body."""
    kind, labels, problem = examples.head
    head = HeadConfig(kind, tuple(labels), problem)
    if model.config.head != head:
        model.network.set_head(head, seed=recipe.seed)
    if recipe.dropout is not None:
        set_dropout(model.network, recipe.dropout)
    if recipe.quantize:
        sizes = (model.config.width, model.config.hidden)
        group = next(size for size in (64, 32) if not any(n % size for n in sizes) or size == 32)
        quantize(model.network, bits=recipe.quantize, group=group)
    model.pooling = None  # it makes labels now, not vectors
    if template := getattr(examples, "chat_template", ""):
        tokenizer_of(model).settings["chat_template"] = template
    if ends := getattr(examples, "end_ids", ()):
        end_with(model, ends)


def end_with(model: Model, ends: Collection[int]) -> None:
    """Makes tokens that answers were learnt with end what the model writes."""
    known = model.generation.get("eos_token_id")
    old = [] if known is None else known if isinstance(known, list) else [known]
    if new := sorted(set(ends) - set(old)):
        model.generation["eos_token_id"] = [*old, *new]


def set_dropout(network: Any, share: float) -> None:
    """Dropout everywhere at that share, and in the configuration."""
    check_shares({"dropout": share})
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        elif isinstance(module, SelfAttention):
            module.dropout = share
    names = {item.name for item in dataclasses.fields(network.config)}
    kinds = ("dropout", "attention_dropout", "embedding_dropout")
    shares = {name: share for name in kinds if name in names}
    network.config = dataclasses.replace(network.config, **shares)


def best_by(recipe: FinetuneRecipe, model: Model) -> str:
    """The figure that picks the best checkpoint; `-` where higher is better."""
    if recipe.best in ("", "last"):
        return MAIN[(model.config.head.kind, model.config.head.problem)]
    name = f"validation_{recipe.best.removeprefix('validation_')}"
    return name if name.endswith(("loss", "rmse", "mae")) else f"-{name}"


def augment_config(recipe: FinetuneRecipe) -> AugmentConfig:
    """How a recipe asks for new rows."""
    return from_mapping(AugmentConfig, recipe.augment, "recipe", "augment.")


def augment_parts(config: AugmentConfig, rows: Dataset) -> dict[str, Any]:
    """The columns of text, and the models that the recipe names, as functions.

    Raises:
        BedstoneError: a model can't be opened, or can't do what it is named for.
    """
    return {"columns": list(rows.columns.values()) or None, **augmenting_models(config)}
