"""`bedstone finetune`: a model learns a task from labelled rows, whole or by an adapter."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.rule import Rule
from torch import nn

from bedstone.checkpoints.adapters import adapt, load_adapter, save_adapter, write_adapter_files
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, load, tokenizer_of
from bedstone.checkpoints.store import Checkpoint, CheckpointStore
from bedstone.data.dataset import Dataset
from bedstone.data.fields import PAIRS
from bedstone.data.images.augment import ImageAugment
from bedstone.data.images.pixels import decoded
from bedstone.data.images.processor import plain_processor
from bedstone.data.images.supervised import (
    FeatureExamples,
    ImageExamples,
    LabelledImageBatch,
    in_batches,
    labelled_image_stream,
)
from bedstone.data.open import open_dataset
from bedstone.data.stream import Stream
from bedstone.data.text.augment import AugmentConfig, augment, sample
from bedstone.data.text.supervised import Examples, example_stream, make_examples
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.image_text import IMAGE_TEXT_TASKS as TELLING
from bedstone.evaluate.supervised import MAIN, score
from bedstone.files import write_json
from bedstone.generation.sampling import Sampling
from bedstone.generation.text import write
from bedstone.models.clip import network as labelled_tower
from bedstone.models.clip.network import CLIP, ImageClassifierConfig
from bedstone.models.heads import HeadConfig
from bedstone.models.resnet.network import ResNetConfig
from bedstone.models.vit import network as vit
from bedstone.models.vit.network import ViTConfig
from bedstone.nn.attention import SelfAttention
from bedstone.nn.lora import LoraConfig, fold, remove_adapter
from bedstone.nn.quantize import quantize
from bedstone.objectives.supervised import objective_of
from bedstone.recipes.image_text import ImageTextRecipe, run_image_text
from bedstone.report.plots import draw_confusion
from bedstone.report.sheets import augmentation_sheet
from bedstone.runtime import Precision, pick_device, pick_precision, seed_everything
from bedstone.settings import at_least, check_shares, from_mapping, read_recipe, read_values
from bedstone.tasks.images.engine import processor_of
from bedstone.tasks.pipeline import pipeline
from bedstone.train.logs import ProgressBar
from bedstone.train.loop import Batches, Done
from bedstone.train.lr_finder import find_rate
from bedstone.train.optim import OptimConfig
from bedstone.train.run import RunPlan, RunRecipe, RunResult, begin, train
from bedstone.train.schedule import ScheduleConfig, build_schedule, parse_budget

IMAGE_TASKS = "image-classification"
TASKS = (
    "text-classification",
    "token-classification",
    "question-answering",
    "text-generation",
    IMAGE_TASKS,
)
TRAINED = ("whole", "head")


@dataclass
class LabelledConfig:
    """What to learn from: rows with what is to be said of them.

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
    """

    train: str = ""
    validation: str = ""
    test: str = ""
    split: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    validation_share: float = 0.1
    most_rows: int = 0


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
        model: the model to start from: a folder or a hub id; of image-classification also
            sizes of one with fresh weights, as `{layout: vit, width: 192}`.
        tokenizer: a folder or file of a tokenizer, where the model's folder has none.
        task: text-classification, token-classification, question-answering, text-generation or
            image-classification.
        data: what to learn from.
        epochs: passes over the training rows.
        budget: `5m`, `1000 steps`: takes the place of `epochs` where it is given.
        problem: of text-classification: single, multi, regression; auto takes it from the labels.
        limit: tokens a row at most; longer rows become windows. 0 takes the model's context.
        stride: tokens that a window shares with the one before.
        batch_size: rows in a micro-batch.
        dropout: in training; null is as the model has it.
        train: whole, or of image-classification head: what the frozen network sees of each
            picture is computed once, and a head learns on it (a linear probe).
        lora: train an adapter alone: the fields of `nn.lora.LoraConfig`, as `{rank: 16}`.
        quantize: bits of the frozen weights under an adapter: 0 (as they are), 8 or 4.
        augment: new rows from old: the fields of `data.text.augment.AugmentConfig`; of pictures,
            how each is changed when it is seen: those of `data.images.augment.ImageAugment`.
        class_weights: `balanced`, or a weight for each label; empty weighs all alike.
        best: the figure that picks the best checkpoint; empty takes the task's own, `last` keeps
            the last weights.
        patience: stop after this many evaluations without a better one; 0 goes on to the end.
        evaluate_every: steps between evaluations; 0 evaluates once an epoch.
    """

    model: Any = ""
    tokenizer: str = ""
    task: str = "text-classification"
    out: str = "runs/finetune"
    data: LabelledConfig = field(default_factory=LabelledConfig)
    epochs: float = 3.0
    budget: str = ""
    problem: str = "auto"
    limit: int = 0
    stride: int = 0
    batch_size: int = 32
    dropout: float | None = None
    train: str = "whole"
    lora: dict[str, Any] = field(default_factory=dict)
    quantize: int = 0
    augment: dict[str, Any] = field(default_factory=dict)
    class_weights: Any = ""
    best: str = ""
    patience: int = 0
    optim: TuneOptim = field(default_factory=TuneOptim)
    schedule: TuneSchedule = field(default_factory=TuneSchedule)
    keep: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in TASKS:
            raise BedstoneError(f"task: {self.task!r} is unknown{nearest(self.task, TASKS)}.")
        if not self.model:
            raise BedstoneError("model: none was given; name a folder or a hub id.")
        if not isinstance(self.model, str | dict):
            raise BedstoneError(f"model: {self.model!r} was given; name a folder or a hub id.")
        if self.train not in TRAINED:
            raise BedstoneError(f"train: {self.train!r} is unknown{nearest(self.train, TRAINED)}.")
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
        at_least(self, 1, "batch_size")
        at_least(self, 0, "patience", "limit", "stride")
        if self.epochs <= 0 and not self.budget:
            raise BedstoneError(f"epochs: {self.epochs} was given; it must be above 0.")
        if self.quantize not in (0, 4, 8):
            raise BedstoneError(f"quantize: {self.quantize} was given; expected 0, 4 or 8 bits.")
        if self.quantize and not self.lora:
            raise BedstoneError(
                "quantize: quantised weights can't learn; train an adapter over them, by lora.rank."
            )
        if not 0 < self.data.validation_share < 1:
            raise BedstoneError(
                f"data.validation_share: {self.data.validation_share} was given; "
                "it is a share, above 0 and below 1."
            )


# What fine-tuning on pictures begins with: the network that sees, and labelled pictures.

FRESH = ("vit", "resnet")
TOGETHER = 64  # pictures that a frozen network sees at a time


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
        network = labelled_tower.image_classifier(network)
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
    if layout not in FRESH:
        raise BedstoneError(
            f"model.layout: {layout!r} can't be trained from scratch on labels"
            f"{nearest(str(layout), FRESH)}."
        )
    sizes = {name: value for name, value in values.items() if name != "layout"}
    network: Any
    if layout == "vit":
        shape = from_mapping(ViTConfig, {**sizes, "layout": layout}, "recipe", "model.")
        network = vit.build(shape, seed=seed)
    else:
        tower = from_mapping(ResNetConfig, sizes, "recipe", "model.")
        network = labelled_tower.build_classifier(
            ImageClassifierConfig("clip_resnet", tower), seed=seed
        )
    return Model(network, processor=plain_processor(network.config.size))


def open_examples(
    recipe: FinetuneRecipe, model: Model, quiet: bool
) -> tuple[ImageExamples, ImageExamples, ImageExamples | None]:
    """The pictures of a recipe: to learn from, to choose by, to measure on.

    Raises:
        BedstoneError: naming the row that can't be used, or the data that can't be read.
    """
    data = recipe.data
    learnt = _opened(recipe, data.train)
    if data.validation:
        held = _opened(recipe, data.validation)
    else:
        learnt, held = learnt.hold_out(data.validation_share)
    learnt = learnt.take(data.most_rows, recipe.seed)
    tested = _opened(recipe, data.test) if data.test else None
    processor = processor_of(model)
    with ProgressBar("decoding the pictures", quiet=quiet) as bar:

        def examples(rows: Dataset, known: ImageExamples | None = None) -> ImageExamples:
            labels = known.labels if known else data.labels or None
            return ImageExamples(
                rows, processor, labels=labels, known=known is not None, progress=bar.update
            )

        train = examples(learnt)
        return train, examples(held, train), examples(tested, train) if tested else None


def _opened(recipe: FinetuneRecipe, name: str) -> Dataset:
    return open_dataset(name, PAIRS, columns=recipe.data.columns, split=recipe.data.split)


def image_batches(examples: ImageExamples, recipe: FinetuneRecipe) -> Stream[LabelledImageBatch]:
    """The endless stream that a recipe learns from, augmented as it asks."""
    return labelled_image_stream(
        examples,
        recipe.batch_size,
        seed=recipe.seed,
        weights=recipe.class_weights or None,
        augment=augmenter(recipe),
    )


def augmenter(recipe: FinetuneRecipe) -> ImageAugment | None:
    """How a recipe changes its pictures; None where it doesn't."""
    if not recipe.augment:
        return None
    return from_mapping(ImageAugment, recipe.augment, "recipe", "augment.")


def augmented_sheet(recipe: FinetuneRecipe, count: int) -> Path:
    """A sheet of some training pictures beside what augmentation makes of them.

    Raises:
        BedstoneError: the model or the pictures can't be read.
    """
    augment = augmenter(recipe)
    assert augment is not None
    processor = processor_of(open_image_model(recipe))
    rows = _opened(recipe, recipe.data.train).take(count, recipe.seed)
    shown = [processor.fit(decoded(pair)).copy() for pair in rows]
    sheet = Path(recipe.out) / "augmented.png"
    return augmentation_sheet(augment, shown, sheet, seed=recipe.seed)


def freeze_body(network: Any) -> None:
    """Leaves the head alone to be trained."""
    network.requires_grad_(False)
    network.head.requires_grad_(True)


def see(
    model: Model,
    examples: ImageExamples,
    precision: Precision,
    told: Callable[[float], None] = lambda share: None,
) -> FeatureExamples:
    """What the network's head reads of each picture, made once."""
    network = model.network.eval()
    found = []
    with torch.inference_mode(), precision.autocast():
        for batch in in_batches(examples, TOGETHER):
            found.append(network.features(batch.shown.to(precision.device)).float().cpu())
            told(len(found) * TOGETHER / len(examples))
    return FeatureExamples(examples, torch.cat(found).clone())


# The rows of a fine-tuning recipe: read, checked, augmented, tokenised.

PARAPHRASE = "Say the sentence in other words.\nSentence: {text}\nIn other words:"
PROPOSALS = 8  # words that a masked model proposes for a place


def preview_augmented(recipe: FinetuneRecipe | ImageTextRecipe, count: int) -> None:
    """Prints some rows beside what augmentation makes of them; of pictures, draws a sheet.

    Raises:
        BedstoneError: the recipe asks for none, or the rows can't be read.
    """
    if isinstance(recipe, ImageTextRecipe):
        raise BedstoneError("sample: pictures are drawn by bedstone pretrain RECIPE --sample PNG.")
    if not recipe.augment:
        example = "flip: 0.5" if recipe.task == IMAGE_TASKS else "copies: 1"
        raise BedstoneError(f"augment: the recipe asks for none; give it, as {{{example}}}.")
    if recipe.task == IMAGE_TASKS:
        print(f"Augmented pictures: {augmented_sheet(recipe, count)}")
        return
    rows = open_dataset(recipe.data.train, columns=recipe.data.columns, split=recipe.data.split)
    config = augment_config(recipe)
    print(sample(rows.rows, config, count, **augment_parts(config, rows)))


@dataclass
class TaskRows:
    """The examples of a recipe: to learn from, to choose by, to measure on."""

    train: Any  # `Examples`, `ImageExamples` or `FeatureExamples`, as for the others
    validation: Any
    test: Any = None

    @classmethod
    def open(cls, recipe: FinetuneRecipe, model: Model, *, quiet: bool = False) -> "TaskRows":
        """Reads, checks, augments and tokenises all rows.

        Raises:
            BedstoneError: naming the file, row and column that can't be used.
        """
        if recipe.task == IMAGE_TASKS:
            return cls(*open_examples(recipe, model, quiet))
        data = recipe.data

        def opened(name: str) -> Dataset:
            return open_dataset(name, columns=data.columns, split=data.split)

        learnt = opened(data.train)
        if data.validation:
            held = opened(data.validation)
        else:
            learnt, held = learnt.hold_out(data.validation_share)
        if data.most_rows:
            learnt = learnt.take(data.most_rows, recipe.seed)
        if recipe.augment:
            learnt = augmented(learnt, recipe)
        tokenizer = tokenizer_of(model)
        limit = min(recipe.limit or model.config.context, model.config.context)

        def examples(rows: Dataset, known: Examples | None = None) -> Examples:
            return make_examples(
                recipe.task,
                rows,
                tokenizer,
                labels=known.head[1] if known else data.labels or None,
                problem=known.head[2] if known else recipe.problem,
                limit=limit,
                stride=recipe.stride,
                known=known is not None,
            )

        with ProgressBar("reading the rows", quiet=quiet):
            train_rows = examples(learnt)
            validation = examples(held, train_rows)
            test = examples(opened(data.test), train_rows) if data.test else None
        return cls(train_rows, validation, test)

    def batches(self, recipe: FinetuneRecipe, reads: str) -> Batches:
        """The endless stream that the recipe learns from; `reads` is which token the head does."""
        if isinstance(self.train, ImageExamples):
            return image_batches(self.train, recipe)
        return example_stream(
            self.train,
            recipe.batch_size,
            reads=reads,
            seed=recipe.seed,
            weights=recipe.class_weights or None,
        )

    def seen(self, model: Model, precision: Precision, *, quiet: bool = False) -> "TaskRows":
        """Of pictures what the frozen network sees, computed once."""
        with ProgressBar("looking at the pictures", quiet=quiet) as bar:
            parts = (self.train, self.validation, self.test)
            return TaskRows(*(part and see(model, part, precision, bar.update) for part in parts))


def augment_config(recipe: FinetuneRecipe) -> AugmentConfig:
    """How a recipe asks for new rows."""
    return from_mapping(AugmentConfig, recipe.augment, "recipe", "augment.")


def augmented(rows: Dataset, recipe: FinetuneRecipe) -> Dataset:
    """The rows, and new ones made from them as the recipe asks."""
    config = augment_config(recipe)
    return rows.with_rows(list(augment(rows.rows, config, **augment_parts(config, rows))))


def augment_parts(config: AugmentConfig, rows: Dataset) -> dict[str, Any]:
    """The models that the recipe names for new words and paraphrases, as functions.

    Raises:
        BedstoneError: a model can't be opened, or can't do what it is named for.
    """
    parts: dict[str, Any] = {"columns": list(rows.columns.values()) or None}
    if config.fill:
        parts["propose"] = proposer(open_model(config.fill))
    if config.paraphrase:
        parts["paraphrase"] = paraphraser(open_model(config.paraphrase))
    return parts


def proposer(model: Model) -> Callable[[list[str], int], list[str]]:
    """Words that fit a place, by a masked language model."""
    fill = pipeline("fill-mask", model)
    mask = tokenizer_of(model).settings["mask_token"]

    def propose(words: list[str], place: int) -> list[str]:
        hidden = [*words[:place], mask, *words[place + 1 :]]
        found = fill(" ".join(hidden), top_k=PROPOSALS)
        return [each["token_str"].strip() for each in found]

    return propose


def paraphraser(model: Model) -> Callable[[list[str]], list[str]]:
    """One paraphrase of each text, by a model that writes."""
    if model.config.head.kind != "language" or not getattr(model.network, "causal", False):
        raise BedstoneError(
            f"augment.paraphrase: {model.path} doesn't write text; name a GPT that follows "
            "instructions."
        )
    tokenizer = tokenizer_of(model)

    def paraphrase(texts: list[str]) -> list[str]:
        prompts = [PARAPHRASE.format(text=text) for text in texts]
        longest = 2 * max(len(tokenizer.encode(text)) for text in texts) + 16
        how = Sampling(max_tokens=longest, temperature=0.8, top_p=0.95, stop=("\n",))
        written = write(model.network, tokenizer, prompts, how, eos=model.end_ids)
        return [one.text.strip() for one in written]

    return paraphrase


def read_finetuning(
    path: str | Path, overrides: Sequence[str] = ()
) -> FinetuneRecipe | ImageTextRecipe:
    """The recipe in a file: of pictures that are put into words where its task is that.

    Raises:
        BedstoneError: as `mapping.read_recipe`.
    """
    if read_values(path, overrides).get("task") in TELLING:
        return read_recipe(ImageTextRecipe, path, overrides)
    return read_recipe(FinetuneRecipe, path, overrides)


def finetune(recipe: FinetuneRecipe | ImageTextRecipe, *, quiet: bool = False) -> RunResult:
    """Fine-tunes as the recipe says, into the folder `recipe.out`.

    The folder holds what every run's does; `model/` is the best checkpoint, and of an adapter
    there is also `adapter/`, as peft has it, while `model/` has it merged.

    Raises:
        BedstoneError: the recipe, the model or the data can't do it, said before training
            starts; or a loss that isn't finite.
    """
    run = Path(recipe.out)
    begin(run)
    if isinstance(recipe, ImageTextRecipe):
        return run_image_text(recipe, run, None, quiet)
    return run_finetuning(recipe, run, None, quiet)


def run_finetuning(
    recipe: FinetuneRecipe, run: Path, checkpoint: Checkpoint | None, quiet: bool
) -> RunResult:
    """A new run, or one that goes on from a checkpoint."""
    course, rows, precision = set_up(recipe, checkpoint, quiet)
    finished = train(recipe, run, course, precision, checkpoint, quiet=quiet)
    if finished.model is not None:
        _report(run, course.model, rows, precision, quiet)
    return finished


def propose_rate(recipe: FinetuneRecipe | ImageTextRecipe, *, quiet: bool = False) -> float:
    """Tries learning rates out and tells which one to take; trains nothing.

    Raises:
        BedstoneError: as `finetune`, or no rate makes the loss fall.
    """
    if isinstance(recipe, ImageTextRecipe):
        raise BedstoneError(f"find_rate: isn't there for {recipe.task}; leave it out.")
    course, _, precision = set_up(recipe, None, quiet)
    folder = Path(recipe.out) / "find-rate"
    found = find_rate(course, recipe.optim, precision, folder, quiet=quiet)
    if not quiet:
        Console().print(
            f"optim.adamw_lr: {found:.1e} is proposed, {recipe.optim.adamw_lr:.1e} is in the "
            f"recipe. The curve: {folder / 'rates.png'}",
            highlight=False,
        )
    return found


def set_up(
    recipe: FinetuneRecipe, checkpoint: Checkpoint | None, quiet: bool
) -> tuple[RunPlan, TaskRows, Precision]:
    """What is learnt and how, from the recipe's seed on, and the rows it is measured on."""
    precision = pick_precision(recipe.precision, pick_device(recipe.device))
    build_schedule(recipe.schedule)
    seed_everything(recipe.seed)
    model, rows = open_all(recipe, checkpoint, precision, quiet)
    return course_of(recipe, model, rows, precision), rows, precision


def open_all(
    recipe: FinetuneRecipe, checkpoint: Checkpoint | None, precision: Precision, quiet: bool
) -> tuple[Model, TaskRows]:
    """The model on its device, with the head and the adapter that will learn, and its rows."""
    adapted = bool(recipe.lora)
    model = open_start(recipe, None if adapted else checkpoint)
    rows = TaskRows.open(recipe, model, quiet=quiet)
    prepare(model, recipe, rows.train)
    if adapted and checkpoint is not None:
        load_adapter(model, checkpoint.path)
    elif adapted:
        adapt(model.network, lora_config(recipe), seed=recipe.seed)
    model.network.to(precision.device)
    if recipe.train == "head":
        rows = rows.seen(model, precision, quiet=quiet)
        freeze_body(model.network)
    return model, rows


def open_start(recipe: FinetuneRecipe, checkpoint: Checkpoint | None) -> Model:
    """The model to start from, in fp32: a run's checkpoint, or the recipe's model."""
    if checkpoint is not None:
        return load(checkpoint.path, dtype=torch.float32)
    if recipe.task == IMAGE_TASKS:
        return open_image_model(recipe)
    model = open_model(recipe.model, dtype=torch.float32)
    if recipe.task == "text-generation" and not model.network.causal:
        raise BedstoneError(
            f"task: text-generation needs a decoder, and {recipe.model} is a "
            f"{model.config.layout}, which reads in both directions; name a GPT."
        )
    if recipe.tokenizer:
        model.tokenizer = Tokenizer.load(recipe.tokenizer)
    return model


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


def set_dropout(network: Any, share: float) -> None:
    """Dropout everywhere at that share, and in the configuration."""
    check_shares({"dropout": share})
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        elif isinstance(module, SelfAttention):
            module.dropout = share
    names = {item.name for item in dataclasses.fields(network.config)}
    shares = {name: share for name in ("dropout", "attention_dropout") if name in names}
    network.config = dataclasses.replace(network.config, **shares)


def lora_config(recipe: FinetuneRecipe) -> LoraConfig:
    """The adapter that a recipe asks for."""
    return from_mapping(LoraConfig, recipe.lora, "recipe", "lora.")


def best_by(recipe: FinetuneRecipe, model: Model) -> str:
    """The figure that picks the best checkpoint; `-` where higher is better."""
    if recipe.best in ("", "last"):
        return MAIN[(model.config.head.kind, model.config.head.problem)]
    name = f"validation_{recipe.best.removeprefix('validation_')}"
    return name if name.endswith(("loss", "rmse", "mae")) else f"-{name}"


def course_of(
    recipe: FinetuneRecipe, model: Model, rows: TaskRows, precision: Precision
) -> RunPlan:
    """What is learnt, and how: ready for `training.train`."""
    network = model.network
    batches = rows.batches(recipe, getattr(network.head, "reads", "all"))
    steps = math.ceil(len(rows.train) / (recipe.batch_size * recipe.accumulate))
    if recipe.budget:
        parse_budget(recipe.budget)

    def evaluate(network: nn.Module) -> dict[str, float]:
        found = score(model, rows.validation, precision, resamples=0)
        figures = found.figures.values if found.figures else {}
        named = {name: value for name, value in figures.items() if "/" not in name}
        return {f"validation_{name}": v for name, v in {"loss": found.loss, **named}.items()}

    def write_model(folder: Path) -> None:
        if recipe.lora:
            write_adapter_files(model, folder)
        else:
            model.write_files(folder)

    def finish(run: Path, done: Done, store: CheckpointStore) -> Path:
        return _finish(recipe, model, run, done, store)

    return RunPlan(
        model=model,
        batches=batches,
        objective=objective_of(model.config.head),
        evaluate=evaluate,
        data={
            "source": recipe.data.train,
            "fingerprint": rows.train.fingerprint(),
            "rows": len(rows.train),
        },
        plan=_plan(recipe, model, rows, precision),
        budget=recipe.budget or f"{max(round(recipe.epochs * steps), 1)} steps",
        write_model=write_model,
        finish=finish,
        best_by=best_by(recipe, model),
        patience=recipe.patience,
        save_best=recipe.best != "last",
        evaluate_every=recipe.evaluate_every or steps,
    )


def _finish(
    recipe: FinetuneRecipe, model: Model, run: Path, done: Done, store: CheckpointStore
) -> Path:
    """The best checkpoint's weights as the run's model; of an adapter, also its own folder."""
    best = None if recipe.best == "last" else store.best()
    if best is not None and best.step != done.step:
        if recipe.lora:
            remove_adapter(model.network, "default")
            load_adapter(model, best.path)
        else:
            weights = load(best.path, dtype=torch.float32).network.state_dict()
            model.network.load_state_dict(weights)
        model.record["metrics"] = done.metrics = best.metrics
    if recipe.lora:
        save_adapter(model, run / "adapter")
        fold(model.network)
    return model.save(run / "model")


def _report(run: Path, model: Model, rows: TaskRows, precision: Precision, quiet: bool) -> None:
    """Figures of the finished model with their intervals: `evaluation.json`, `confusion.png`."""
    found = {"validation": rows.validation, **({"test": rows.test} if rows.test else {})}
    record = {}
    for name, examples in found.items():
        scored = score(model, examples, precision)
        if scored.figures is None:
            continue
        record[name] = {"loss": scored.loss, **scored.figures.record()}
        if scored.figures.confusion is not None:
            figures = scored.figures
            draw_confusion(
                figures.confusion or [],
                figures.labels,
                run / f"confusion-{name}.png",
                f"{run.name}: {name}",
            )
        if not quiet:
            Console().print(Rule(f"{name}: {examples.rows.name}", align="left"), scored.figures)
    if record:
        write_json(run / "evaluation.json", record)


def _plan(recipe: FinetuneRecipe, model: Model, rows: TaskRows, precision: Precision) -> str:
    """What is about to be spent, said before it is."""
    weights = list(model.network.parameters())
    start = "fresh weights" if isinstance(recipe.model, dict) else recipe.model
    whole, moved = (sum(w.numel() for w in ws) for ws in (weights, _moved(weights)))
    return (
        f"{recipe.data.train}: {rows.train.describe()}\n"
        f"validation: {rows.validation.describe()}\n"
        f"{model.config.layout} from {start}: {whole / 1e6:.2f}M parameters, "
        f"{moved / 1e6:.2f}M of them trained, {precision.name} on {precision.device}\n"
        f"{recipe.batch_size * recipe.accumulate} rows a step, "
        f"{recipe.budget or f'{recipe.epochs:g} epochs'}, into {recipe.out}"
    )


def _moved(weights: list[nn.Parameter]) -> list[nn.Parameter]:
    return [weight for weight in weights if weight.requires_grad]
