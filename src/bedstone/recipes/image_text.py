"""Image-text training: captions, answers to questions, matching, or all of them (BLIP)."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from bedstone.checkpoints.model import Model
from bedstone.data.dataset import Dataset
from bedstone.data.images.image_text import (
    BlipWords,
    ImageTexts,
    as_image_text,
    image_text_stream,
    train_image_text,
)
from bedstone.data.open import ImageTextConfig
from bedstone.data.scenes.datasets import NAME as SCENES
from bedstone.data.scenes.datasets import heldout_image_text_scenes, image_text_scenes
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import TokenizerConfig
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.image_text import (
    IMAGE_TEXT_TASKS,
    MOST_MEASURED,
    BlipScorer,
    answer_vocabulary,
    majority_caption,
    opened,
    question_only_baseline,
    with_parts,
)
from bedstone.evaluate.runner import Evaluation
from bedstone.generation.settings import BeamSearch, published_beams
from bedstone.models.blip.config import blip_config
from bedstone.models.blip.network import Blip, build_blip
from bedstone.models.heads import HeadConfig
from bedstone.models.published import fresh_processor
from bedstone.models.vit.network import ViTConfig
from bedstone.objectives.image_text import ImageTextLoss
from bedstone.recipes.base import ImagesOptim, ImagesSchedule, Method, Trainer
from bedstone.settings import Settings, at_least, number, one_of, share, whole
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
from bedstone.train.start import (
    Start,
    adapt,
    freeze,
    image_tower,
    open_parts,
    take_image,
    take_over,
    take_text,
)

LAYOUTS = ("blip", "blip_resnet")
FROZEN = ("image", "text")
# What a text's shape takes from a BERT whose weights it begins with.
SIZES = ("width", "layers", "heads", "hidden", "context", "norm_eps", "activation")


@dataclass
class ImageTextTokenizer(TokenizerConfig):
    """`TokenizerConfig` of BERT's kind, as BLIP has it."""

    kind: str = "wordpiece"
    vocab_size: int = 2048


@dataclass
class LossWeights(Settings):
    """How much each objective counts in a joint training; 0 leaves it out.

    Attributes:
        caption: each token of a caption.
        answer: each token of an answer.
        contrast: telling each picture's text from the batch's others, beside all tokens together.
        match: saying whether a text belongs to a picture, beside all tokens together.
    """

    section = "weights."
    caption: float = number(0, default=1.0)
    answer: float = number(0, default=1.0)
    contrast: float = number(0, default=1.0)
    match: float = number(0, default=1.0)


@dataclass
class ImageTextRecipe(RunRecipe):
    """Image-text training: one network reads an image and writes, or judges, a text.

    Attributes, besides those of every run:
        task: image-to-text, visual-question-answering, image-text-matching, or joint: all that
            the data has texts for.
        budget: how long to train: `10m`, `2000 steps`.
        init: a model to go on from, instead of fresh weights; of another task, what both have is
            taken over.
        model: the shape: `layout` (blip, blip_resnet), `image`, `text` and `embed`, in the fields
            of `models.blip.network.VLMConfig`.
        image_init: a model whose picture tower to begin with: a ViT, a CLIP, or another VLM.
        text_init: a BERT, or another VLM, whose text weights and tokenizer to begin with.
        freeze: image or text: what keeps its weights; of text, all but its view of the picture.
        lora: train an adapter alone: the fields of `nn.lora.LoraConfig`, as `{rank: 16}`.
        data: what to learn from.
        texts: how many captions, and how many questions, of each picture a step has: the picture
            is seen once for all of them.
        augment: how pictures are changed, where it leaves what is said of them true: the fields
            of `data.images.augment.ImageAugment`.
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

    task: str = one_of(*IMAGE_TEXT_TASKS, default="image-to-text")
    out: str = "runs/told"
    budget: str = "2000 steps"
    init: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    image_init: str = ""
    text_init: str = ""
    freeze: str = one_of("", *FROZEN, default="")
    lora: dict[str, Any] = field(default_factory=dict)
    data: ImageTextConfig = field(default_factory=ImageTextConfig)
    texts: int = whole(1, default=4)
    augment: dict[str, Any] = field(default_factory=dict)
    tokenizer: ImageTextTokenizer = field(default_factory=ImageTextTokenizer)
    batch_size: int = whole(1, default=64)
    weights: LossWeights = field(default_factory=LossWeights)
    smoothing: float = share(below_one=True, default=0.0)
    evaluate_rows: int = whole(1, default=200)
    beams: int = whole(1, default=1)
    length_penalty: float = number(-10, 10, default=1.0)
    rank: bool = False
    optim: ImagesOptim = field(default_factory=ImagesOptim)
    schedule: ImagesSchedule = field(default_factory=ImagesSchedule)

    def __post_init__(self) -> None:
        super().__post_init__()
        layout = self.model.get("layout", "blip")
        if layout not in LAYOUTS:
            raise BedstoneError(f"model.layout: {layout!r} is unknown{nearest(layout, LAYOUTS)}.")
        if self.head in ("matching", "joint"):
            at_least(self, 2, "batch_size")
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

    @property
    def head(self) -> str:
        """The head that the task needs: captions, answers, matching or joint."""
        return IMAGE_TEXT_TASKS[self.task]


class ImageText(Method[Any]):
    """One network that reads an image and writes, or judges, a text.

    Attributes:
        scorer: what measures the model on rows.
    """

    name = "image_text"
    Recipe = ImageTextRecipe
    layouts = LAYOUTS
    tasks = tuple(IMAGE_TEXT_TASKS)
    unit = "images"
    fault = "puts no pictures into words"
    hint = "A picture tower alone is named by image_init, a BERT by text_init."
    scorer: ClassVar[Callable[..., BlipScorer]] = BlipScorer

    def lone(self, recipe: Any, count: int) -> str:
        if type(self) is ImageText:
            loss = objective_of(recipe)
            if loss.contrast or loss.match:
                return (
                    "weights: contrast and matching draw wrong pairs from the whole batch, which "
                    "ranks don't exchange; train on captions or answers"
                )
        return super().lone(recipe, count)

    def check(self, recipe: Any) -> None:
        augment_of(recipe.augment, recipe.data)

    def parts(self, recipe: Any) -> dict[str, Model]:
        return open_parts(recipe, "image", "text")

    def open(self, recipe: Any, start: Start) -> Splits:
        return open_rows(recipe, quiet=start.quiet)

    def texts(self, recipe: Any, splits: Splits, start: Start) -> Iterable[str] | None:
        texts: Iterable[str] = splits.train.all_texts()
        return texts

    def trainers(self, recipe: Any) -> Mapping[str, Trainer]:
        return {"wordpiece": lambda texts, section: train_image_text(texts, section.vocab_size)}

    def adopt(self, tokenizer: Tokenizer) -> Tokenizer:
        return as_image_text(tokenizer)

    def model(
        self, recipe: Any, splits: Splits, tokenizer: Tokenizer | None, start: Start
    ) -> Model:
        assert tokenizer is not None
        model: Model = start.model or _fresh(recipe, tokenizer, start.parts)
        if (kind := model.config.head.kind) != recipe.head:
            if recipe.lora:
                raise BedstoneError(
                    f"lora: {recipe.init} was made for {kind}, and {recipe.task} needs parts that "
                    "it lacks, which an adapter can't hold. Train it whole."
                )
            model.network = with_head(model.network, recipe.head, seed=recipe.seed)
        model.tokenizer = tokenizer
        keep_beams(model, recipe)
        if model.processor is None:
            model.processor = fresh_processor(model.config)
        if recipe.lora:
            freeze(model.network.image)  # its norms' statistics are the base's too
            adapt(model, recipe.lora, start, recipe.seed)
        elif recipe.freeze == "image":
            freeze(model.network.image)
        elif recipe.freeze == "text":
            freeze_text(model.network)
        return model

    def image_texts(self, rows: Dataset, model: Model) -> ImageTexts:
        """The texts of rows by their tokens, as the network reads and writes them."""
        assert model.tokenizer is not None
        return ImageTexts(rows, BlipWords.of(model.tokenizer, model.config.context))

    def batches(self, recipe: Any, model: Model, splits: Splits, start: Start) -> Batches:
        processor = model.processor
        assert processor is not None
        texts = self.image_texts(splits.train, model)
        answers = recipe.head == "answers" or (
            recipe.head == "joint" and bool(splits.train.answers)
        )
        images = cached_training_images(splits.train, processor, recipe.data, start.quiet)
        batches = image_text_stream(
            images,
            texts,
            recipe.batch_size,
            processor.normalise,
            captions=0 if recipe.head == "answers" else recipe.texts,
            answers=recipe.texts if answers else 0,
            augment=augment_of(recipe.augment, recipe.data, processor.size),
            blank=recipe.data.blank,
            seed=recipe.seed,
            workers=recipe.data.workers,
        )
        kept = "in memory" if images.kept else "decoded as they are read"
        splits.notes[0] += f", {kept}; {recipe.texts} texts an image"
        splits.cut = texts.cut
        if texts.cut:
            long = f"{texts.cut:,} texts are longer than the network reads, and are cut"
            splits.notes.insert(1, long)
        return batches

    def objective(self, recipe: Any, model: Model, start: Start) -> Objective:
        return objective_of(recipe)

    def evaluations(self, recipe: Any, plan: RunPlan) -> Sequence[Evaluation]:
        processor, train = plan.model.processor, plan.splits.train
        assert processor is not None
        measured = {"validation": plan.splits.validation, "test": plan.splits.test}
        return [
            type(self).scorer(
                plan.model,
                cached_images(
                    rows, processor, recipe.data, f"reading {name} pictures", plan.start.quiet
                ),
                plan.start.precision,
                question_only_baseline(train),
                answer_vocabulary(train) if recipe.rank else (),
                recipe.data.blank,
                majority_caption(train),
                name=name,
                kind=recipe.head,
            )
            for name, rows in measured.items()
            if rows is not None
        ]


def open_rows(recipe: Any, *, quiet: bool = False) -> Splits:
    """Images with captions and questions to learn from, and such held out, read or drawn.

    Raises:
        BedstoneError: they can't be read, or lack what the task needs.
    """
    data = recipe.data
    if data.source == SCENES:
        train, held = _scenes(recipe, quiet)
    else:
        train, held = held_out(data, partial(opened, data, split=data.split), recipe.seed)
    train = with_parts(recipe.head, train, f"data {train.name!r}")
    held = with_parts(recipe.head, held, f"validation {held.name!r}")
    held, test = held.take(recipe.evaluate_rows, recipe.seed), None
    if data.test:
        test = opened(data, data.test, size=image_side(recipe.model))
        test = with_parts(recipe.head, test, f"test {test.name!r}")
    record = record_of(data, train)
    if recipe.head in ("answers", "joint") and train.answers:
        record["answers"] = list(answer_vocabulary(train))  # what its task chooses among
    notes = [f"{data.source}: {train.describe()}", f"held out: {held.describe()}"]
    return Splits(train, held, test, record, notes)


def _scenes(recipe: ImageTextRecipe, quiet: bool) -> tuple[Dataset, Dataset]:
    """Scenes to learn from, and those of held-out combinations."""
    data, size = recipe.data, image_side(recipe.model)
    with ProgressBar("drawing scenes", quiet=quiet) as bar:
        train = image_text_scenes(
            data.most_rows or MAX_SCENES,
            seed=recipe.seed,
            size=size,
            objects=data.things,
            captions="none" if recipe.head == "answers" else data.captions,
            questions=recipe.head in ("answers", "joint"),
            progress=bar.update,
        )
    return train, heldout_image_text_scenes("validation", MOST_MEASURED, size=size)


def objective_of(recipe: ImageTextRecipe) -> ImageTextLoss:
    """What a recipe learns by: one objective, matching with contrast, or all by their weights."""
    weights, kind = recipe.weights, recipe.head
    joint, matching = kind == "joint", kind in ("matching", "joint")
    return ImageTextLoss(
        caption=weights.caption if joint else float(kind == "captions"),
        answer=weights.answer if joint else float(kind == "answers"),
        contrast=weights.contrast if matching else 0.0,
        match=weights.match if matching else 0.0,
        smoothing=recipe.smoothing,
    )


def keep_beams(model: Model, recipe: ImageTextRecipe) -> None:
    """Writes the recipe's beam search into a model's generation settings.

    Raises:
        BedstoneError: there is no such search.
    """
    if recipe.beams > 1:
        beams = {"num_beams": recipe.beams, "length_penalty": recipe.length_penalty}
        BeamSearch(**published_beams(beams))  # refused now, not at the first evaluation
        model.generation = {**model.generation, **beams}


def freeze_text(network: Blip) -> None:
    """All of the text networks but their cross-attention keeps its weights."""
    for part in (network.encoder, network.decoder, network.head):
        if part is not None:
            part.requires_grad_(False)
            for name, block in part.named_modules():
                if name.rpartition(".")[2] == "cross":
                    block.requires_grad_(True)


def with_head(network: Blip, kind: str, *, seed: int) -> Blip:
    """The same network for another head: what both have is taken over, the rest is fresh.

    An encoder that isn't there begins as the decoder, and a decoder as the encoder, as BLIP begins
    its network for questions (Li et al., 2022, section 4.4).
    """
    made = build_blip(dataclasses.replace(network.config, head=HeadConfig(kind)), seed=seed)
    known = network.state_dict()
    twins = {"encoder": "decoder", "decoder": "encoder"}
    given = dict(known)
    for name in made.state_dict().keys() - known.keys():
        part, _, rest = name.partition(".")
        if (twin := f"{twins.get(part, part)}.{rest}") in known:
            given[name] = known[twin]
    take_over(made, given)
    return made


def _fresh(recipe: ImageTextRecipe, tokenizer: Tokenizer, parts: Mapping[str, Model]) -> Model:
    """New weights, those of parts that the recipe names taken over, their shapes too."""
    shape = {**recipe.model, "head": {"kind": recipe.head}}
    if "image" in parts and not shape.get("image"):
        shape["image"] = _tower_shape(image_tower(parts["image"].network, recipe.image_init))
    text = shape.get("text") or (_text_shape(parts["text"]) if "text" in parts else {})
    shape["text"] = {**_ends(tokenizer, text), **text}
    network = build_blip(blip_config(shape), seed=recipe.seed)
    if "image" in parts:
        take_image(network, parts["image"].network)
    if "text" in parts:
        take_text(network, parts["text"].network)
    processor = parts["image"].processor if "image" in parts else None
    return Model(network, tokenizer, processor=processor)


def _tower_shape(tower: Any) -> Any:
    """The shape of a picture tower, as one that gives states."""
    config = tower.config
    if not isinstance(config, ViTConfig):
        return config
    return dataclasses.replace(config, layout="", head=HeadConfig("states"))


def _text_shape(model: Model) -> dict[str, Any]:
    """The sizes of a BERT's or another VLM's text."""
    config = getattr(model.config, "text", model.config)
    return {name: getattr(config, name) for name in SIZES if hasattr(config, name)}


def _ends(tokenizer: Tokenizer, text: Mapping[str, Any]) -> dict[str, Any]:
    """What the tokenizer decides of the text's shape."""
    # Products of matrices are fastest at multiples of 64.
    vocabulary = max(-(-tokenizer.vocab_size // 64) * 64, text.get("vocab_size", 0))
    ends = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.sep_id, "pad_id": tokenizer.pad_id}
    return {"vocab_size": vocabulary, **ends}
