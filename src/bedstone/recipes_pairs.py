"""The recipe of learning from pairs of pictures and texts."""

from dataclasses import dataclass, field
from typing import Any

from bedstone.checks import at_least
from bedstone.config import OptimConfig, RunRecipe, ScheduleConfig, TokenizerConfig
from bedstone.errors import BedstoneError, nearest

LAYOUTS = ("clip", "siglip", "clip_resnet")
TOWERS = ("image", "text")


@dataclass
class PairsConfig:
    """Pictures with texts.

    Attributes:
        source: scenes (built in), a Parquet, Arrow, JSONL or CSV file, a folder of pictures with a
            metadata.jsonl, a glob or a hub id.
        validation: another source to validate on; empty holds out a share of `source`.
        split: of a hub id or a folder with splits.
        validation_share: share of the rows held out.
        columns: which column holds what (image, text, label, negatives), where the usual names
            aren't used, as `{text: title, label: kind}`. A text may be a sentence made of columns,
            `"{title}, a {colour} {kind}"`, and there may be a list of them.
        templates: texts made of a label, as `a photo of a {label}`: captions where rows have none,
            and what zero-shot accuracy is asked with.
        classes: names of the labels' classes by what stands in the rows: a list or a mapping.
        most_rows: take this many rows at most, drawn by the seed; 0 takes all. Of scenes, how many
            are drawn; 0 is 20,000.
        most_broken: share of rows that may be broken; such rows are left out and named.
        objects: things in a picture of scenes, the fewest and the most.
        enlarge: how many times larger than the network's pictures they are kept, for crops to
            choose from; 1.25 suits photos that are cropped.
        memory_mb: megabytes of decoded pictures to keep; larger sets are decoded as they are read.
        workers: threads that make batches ready.
    """

    source: str = "scenes"
    validation: str = ""
    split: str | None = None
    validation_share: float = 0.05
    columns: dict[str, Any] = field(default_factory=dict)
    templates: list[str] = field(default_factory=list)
    classes: Any = field(default_factory=list)
    most_rows: int = 0
    most_broken: float = 0.05
    objects: tuple[int, ...] = (1, 5)
    enlarge: float = 1.0
    memory_mb: float = 2048.0
    workers: int = 1


@dataclass
class PairsOptim(OptimConfig):
    """`OptimConfig` with CLIP's second beta and decay for small networks."""

    kind: str = "adamw"
    lr: float = 1e-3
    adamw_lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6


@dataclass
class PairsSchedule(ScheduleConfig):
    """`ScheduleConfig` that falls by a cosine from the warm-up on."""

    warmup: float = 0.03
    decay: float = 0.97
    shape: str = "cosine"


@dataclass
class ContrastiveRecipe(RunRecipe):
    """Learning from pairs: each picture is to be nearest to its own text.

    Attributes, besides those of every run:
        budget: how long to train: `10m`, `2000 steps`.
        init: a model to go on from, instead of fresh weights.
        model: the shape: `layout` (clip, siglip, clip_resnet), `image`, `text` and `embed`, in the
            fields of `models.clip.CLIPConfig`.
        image_init: a model whose picture tower to begin with: a ViT, or a model of pairs.
        text_init: a model of pairs whose text tower and tokenizer to begin with.
        freeze: image or text: a tower that keeps its weights (LiT); its projection learns.
        data: what to learn from.
        augment: how pictures are changed: the fields of `data.image_augment.ImageAugment`. What a
            caption says stays true: where it names left or right nothing is flipped, where it
            names a colour none changes (`data.fact_augment`).
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
    optim: PairsOptim = field(default_factory=PairsOptim)
    schedule: PairsSchedule = field(default_factory=PairsSchedule)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 2, "batch_size")
        at_least(self, 0, "chunk", "hard_negatives", "evaluate_pairs")
        at_least(self.data, 0, "most_rows", "workers", prefix="data.")
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
        shares = {"patch_dropout": self.patch_dropout, "data.most_broken": self.data.most_broken}
        shares["data.validation_share"] = self.data.validation_share
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise BedstoneError(f"{name}: {value} was given; it is a share, 0 to below 1.")
        if not 1 <= self.data.enlarge <= 4:
            raise BedstoneError(f"data.enlarge: {self.data.enlarge} was given; expected 1 to 4.")
        if not isinstance(self.data.classes, list | dict):
            raise BedstoneError(
                f"data.classes: {self.data.classes!r} was given; expected a list of names, or a "
                "mapping from what stands in the rows to names."
            )
