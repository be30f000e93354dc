"""The recipe of fine-tuning."""

from dataclasses import dataclass, field
from typing import Any

from bedstone.checks import at_least
from bedstone.config import OptimConfig, RunRecipe, ScheduleConfig
from bedstone.errors import BedstoneError, nearest

PICTURES = "image-classification"
TASKS = (
    "text-classification",
    "token-classification",
    "question-answering",
    "text-generation",
    PICTURES,
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
        augment: new rows from old: the fields of `data.augment_text.AugmentConfig`; of pictures,
            how each is changed when it is seen: those of `data.image_augment.ImageAugment`.
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
        if self.task != PICTURES and (self.train == "head" or isinstance(self.model, dict)):
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
