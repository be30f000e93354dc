"""The recipe of learning from pairs of pictures and texts."""

from dataclasses import dataclass, field
from typing import Any

from bedstone.checks import at_least, check_shares
from bedstone.config import RunRecipe, TokenizerConfig
from bedstone.errors import BedstoneError, nearest
from bedstone.recipes_pictures import PicturesConfig, PicturesOptim, PicturesSchedule

LAYOUTS = ("clip", "siglip", "clip_resnet")
TOWERS = ("image", "text")


@dataclass
class PairsConfig(PicturesConfig):
    """Pictures with texts.

    Attributes, besides those of all rows with pictures (columns: image, text, label, negatives):
        templates: texts made of a label, as `a photo of a {label}`: captions where rows have none,
            and what zero-shot accuracy is asked with.
        classes: names of the labels' classes by what stands in the rows: a list or a mapping.
    """

    templates: list[str] = field(default_factory=list)
    classes: Any = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.classes, list | dict):
            raise BedstoneError(
                f"data.classes: {self.classes!r} was given; expected a list of names, or a "
                "mapping from what stands in the rows to names."
            )


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
    optim: PicturesOptim = field(default_factory=PicturesOptim)
    schedule: PicturesSchedule = field(default_factory=PicturesSchedule)

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
