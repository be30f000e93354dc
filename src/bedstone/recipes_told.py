"""The recipe of putting pictures into words: captions, answers, which text fits a picture."""

from dataclasses import dataclass, field
from typing import Any

from bedstone.checks import at_least, check_shares
from bedstone.config import RunRecipe, TokenizerConfig
from bedstone.errors import BedstoneError, nearest
from bedstone.recipes_pictures import PicturesConfig, PicturesOptim, PicturesSchedule

LAYOUTS = ("blip", "blip_resnet")
# What a model learns, by what it is asked for; the head that its network then has.
TASKS = {
    "image-to-text": "captions",
    "visual-question-answering": "answers",
    "image-text-matching": "matching",
    "joint": "joint",
}
FROZEN = ("image", "text")


@dataclass
class ToldConfig(PicturesConfig):
    """Pictures with what is said of them.

    Attributes, besides those of all rows with pictures (columns: image, text, question, answer,
    kind, messages):
        test: a source to measure the finished model on.
        apart: what stands between several right answers in one text, such as a comma.
        captions: of scenes: all kinds, or whole: the one that names all things.
        blank: hide all pictures, in training and in measuring: what can be said without looking.
    """

    test: str = ""
    apart: str = ""
    captions: str = "all"
    blank: bool = False


@dataclass
class ToldTokenizer(TokenizerConfig):
    """`TokenizerConfig` of BERT's kind, as BLIP has it."""

    kind: str = "wordpiece"
    vocab_size: int = 2048


@dataclass
class TellingWeights:
    """How much each objective counts in a joint training; 0 leaves it out.

    Attributes:
        caption: each token of a caption.
        answer: each token of an answer.
        contrast: telling each picture's text from the batch's others, beside all tokens together.
        match: saying whether a text belongs to a picture, beside all tokens together.
    """

    caption: float = 1.0
    answer: float = 1.0
    contrast: float = 1.0
    match: float = 1.0

    def __post_init__(self) -> None:
        for name in ("caption", "answer", "contrast", "match"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise BedstoneError(
                    f"weights.{name}: {getattr(self, name)} was given; expected 0 or more."
                )


@dataclass
class ToldRecipe(RunRecipe):
    """Putting pictures into words: one network reads a picture and writes, or judges a text.

    Attributes, besides those of every run:
        task: image-to-text, visual-question-answering, image-text-matching, or joint: all that
            the data has texts for.
        budget: how long to train: `10m`, `2000 steps`.
        init: a model to go on from, instead of fresh weights; of another task, what both have is
            taken over.
        model: the shape: `layout` (blip, blip_resnet), `image`, `text` and `embed`, in the fields
            of `models.vlm.VLMConfig`.
        image_init: a model whose picture tower to begin with: a ViT, a CLIP, or another VLM.
        text_init: a BERT, or another VLM, whose text weights and tokenizer to begin with.
        freeze: image or text: what keeps its weights; of text, all but its view of the picture.
        lora: train an adapter alone: the fields of `nn.lora.LoraConfig`, as `{rank: 16}`.
        data: what to learn from.
        texts: how many captions, and how many questions, of each picture a step has: the picture
            is seen once for all of them.
        augment: how pictures are changed, where it leaves what is said of them true: the fields
            of `data.image_augment.ImageAugment`.
        tokenizer: how text becomes tokens; trained on the texts where none is named.
        batch_size: pictures in a micro-batch.
        weights: of the objectives, in a joint training.
        smoothing: share of each target's probability that is spread over all tokens.
        evaluate_rows: held-out pictures that an evaluation in training reads at most.
        beams: how many texts are followed at a time when the model writes, in measuring and in use
            (`num_beams` of its generation_config.json).
        length_penalty: of beams: 1 takes the text whose tokens are likeliest on average, 0 the one
            that is likeliest as a whole, which says less and errs less.
        rank: whether answers are measured by ranking the training answers, not by writing freely.
    """

    task: str = "image-to-text"
    out: str = "runs/told"
    budget: str = "2000 steps"
    init: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    image_init: str = ""
    text_init: str = ""
    freeze: str = ""
    lora: dict[str, Any] = field(default_factory=dict)
    data: ToldConfig = field(default_factory=ToldConfig)
    texts: int = 4
    augment: dict[str, Any] = field(default_factory=dict)
    tokenizer: ToldTokenizer = field(default_factory=ToldTokenizer)
    batch_size: int = 64
    weights: TellingWeights = field(default_factory=TellingWeights)
    smoothing: float = 0.0
    evaluate_rows: int = 200
    beams: int = 1
    length_penalty: float = 1.0
    rank: bool = False
    optim: PicturesOptim = field(default_factory=PicturesOptim)
    schedule: PicturesSchedule = field(default_factory=PicturesSchedule)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in TASKS:
            raise BedstoneError(f"task: {self.task!r} is unknown{nearest(self.task, TASKS)}.")
        layout = self.model.get("layout", "blip")
        if layout not in LAYOUTS:
            raise BedstoneError(f"model.layout: {layout!r} is unknown{nearest(layout, LAYOUTS)}.")
        at_least(self, 1, "batch_size", "texts", "evaluate_rows", "beams")
        if self.head in ("matching", "joint"):
            at_least(self, 2, "batch_size")
        if not -10 <= self.length_penalty <= 10:
            raise BedstoneError(
                f"length_penalty: {self.length_penalty} was given; expected -10 to 10."
            )
        if self.freeze and self.freeze not in FROZEN:
            raise BedstoneError(
                f"freeze: {self.freeze!r} can't be frozen{nearest(self.freeze, FROZEN)}."
            )
        if self.freeze and not (self.init or getattr(self, f"{self.freeze}_init")):
            raise BedstoneError(
                f"freeze: {self.freeze} would keep random weights; name those to begin with, by "
                f"{self.freeze}_init or init."
            )
        if self.init and (self.image_init or self.text_init):
            raise BedstoneError("init: is a whole model; leave image_init and text_init out.")
        if self.lora and not self.init:
            raise BedstoneError(
                "lora: an adapter learns on a model that knows something; name it by init."
            )
        if self.lora and self.freeze:
            raise BedstoneError("lora: freezes all but the adapter; leave freeze out.")
        if self.rank and self.head not in ("answers", "joint"):
            raise BedstoneError(f"rank: is for answers; {self.task} gives none. Leave it out.")
        check_shares({"smoothing": self.smoothing})

    @property
    def head(self) -> str:
        """The head that the task needs: captions, answers, matching or joint."""
        return TASKS[self.task]
