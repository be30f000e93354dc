"""The network that a run on pictures and words begins with: fresh, taken over, or adapted."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from bedstone.checkpoints.adapters import adapt, load_adapter, save_adapter, write_adapter_files
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, load, tokenizer_of
from bedstone.checkpoints.store import Checkpoint, CheckpointStore
from bedstone.data.dataset import Dataset
from bedstone.data.images.image_text import (
    BlipWords,
    FlamingoTexts,
    ImageTextBatch,
    ImageTexts,
    as_image_text,
    gpt_words,
    image_text_stream,
    train_image_text,
)
from bedstone.data.images.processor import ImageProcessor
from bedstone.data.open import ImageTextConfig
from bedstone.data.scenes.datasets import NAME as SCENES
from bedstone.data.scenes.datasets import heldout_image_text_scenes, image_text_scenes
from bedstone.data.stream import Stream
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import TokenizerConfig
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.image_text import (
    IMAGE_TEXT_TASKS,
    MOST_MEASURED,
    BlipScorer,
    FlamingoScorer,
    answer_vocabulary,
    majority_caption,
    opened,
    question_only_baseline,
    with_parts,
)
from bedstone.files import write_json
from bedstone.generation.settings import BeamSearch, published_beams
from bedstone.models.blip.network import Blip, blip_config, build_blip
from bedstone.models.flamingo.network import FlamingoConfig, FlamingoGPT, build_flamingo
from bedstone.models.gpt.network import GPT
from bedstone.models.heads import HeadConfig
from bedstone.models.published import fresh_processor
from bedstone.models.resnet.network import ResNet, ResNetTokens
from bedstone.models.vit.network import ViT, ViTConfig
from bedstone.nn.lora import LoraConfig, fold
from bedstone.objectives.image_text import ImageTextLoss, flamingo_loss
from bedstone.recipes.base import ImagesOptim, ImagesSchedule
from bedstone.runtime import Precision, pick_device, pick_precision, seed_everything
from bedstone.settings import at_least, check_shares, from_mapping
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
from bedstone.train.loop import Done
from bedstone.train.run import RunPlan, RunRecipe, RunResult, train
from bedstone.train.schedule import build_schedule, parse_budget
from bedstone.train.start import freeze, initial_model, take_image, take_text, weight_counts

LAYOUTS = ("blip", "blip_resnet")
FROZEN = ("image", "text")


@dataclass
class ImageTextTokenizer(TokenizerConfig):
    """`TokenizerConfig` of BERT's kind, as BLIP has it."""

    kind: str = "wordpiece"
    vocab_size: int = 2048


@dataclass
class LossWeights:
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
class ImageTextRecipe(RunRecipe):
    """Putting pictures into words: one network reads a picture and writes, or judges a text.

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

    task: str = "image-to-text"
    out: str = "runs/told"
    budget: str = "2000 steps"
    init: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    image_init: str = ""
    text_init: str = ""
    freeze: str = ""
    lora: dict[str, Any] = field(default_factory=dict)
    data: ImageTextConfig = field(default_factory=ImageTextConfig)
    texts: int = 4
    augment: dict[str, Any] = field(default_factory=dict)
    tokenizer: ImageTextTokenizer = field(default_factory=ImageTextTokenizer)
    batch_size: int = 64
    weights: LossWeights = field(default_factory=LossWeights)
    smoothing: float = 0.0
    evaluate_rows: int = 200
    beams: int = 1
    length_penalty: float = 1.0
    rank: bool = False
    optim: ImagesOptim = field(default_factory=ImagesOptim)
    schedule: ImagesSchedule = field(default_factory=ImagesSchedule)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in IMAGE_TEXT_TASKS:
            raise BedstoneError(
                f"task: {self.task!r} is unknown{nearest(self.task, IMAGE_TEXT_TASKS)}."
            )
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
        return IMAGE_TEXT_TASKS[self.task]


# What a text's shape takes from a BERT whose weights it begins with.
SIZES = ("width", "layers", "heads", "hidden", "context", "norm_eps", "activation")


def image_text_model(
    recipe: ImageTextRecipe, tokenizer: Tokenizer, checkpoint: Checkpoint | None
) -> Model:
    """The checkpoint's, the initial one, or a new one, in fp32; frozen or adapted as is said.

    Raises:
        BedstoneError: a shape, a folder or a tokenizer that doesn't fit.
    """
    if checkpoint is not None and not recipe.lora:
        model = load(checkpoint.path, dtype=torch.float32)
    elif recipe.init:
        model = _initial(recipe)
    else:
        model = _fresh(recipe, tokenizer)
    model.tokenizer, model.record = tokenizer, {}
    keep_beams(model, recipe)
    if model.processor is None:
        model.processor = fresh_processor(model.config)
    network = model.network
    if recipe.lora:
        freeze(network.image)  # its norms' statistics are the base's too
        if checkpoint is not None:
            load_adapter(model, checkpoint.path)
        else:
            config = from_mapping(LoraConfig, recipe.lora, "recipe", "lora.")
            adapt(network, config, seed=recipe.seed)
    elif recipe.freeze == "image":
        freeze(network.image)
    elif recipe.freeze == "text":
        freeze_text(network)
    return model


def keep_beams(model: Model, recipe: ImageTextRecipe) -> None:
    """Writes into a model how its texts are looked for.

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


def _initial(recipe: ImageTextRecipe) -> Model:
    hint = "A picture tower alone is named by image_init, a BERT by text_init."
    model = initial_model(recipe, LAYOUTS, "puts no pictures into words", hint)
    if model.config.head.kind != recipe.head:
        if recipe.lora:
            raise BedstoneError(
                f"lora: {recipe.init} was made for {model.config.head.kind}, and {recipe.task} "
                "needs parts that it lacks, which an adapter can't hold. Train it whole."
            )
        model.network = fitted(model.network, recipe.head, seed=recipe.seed)
    return model


def fitted(network: Blip, kind: str, *, seed: int) -> Blip:
    """The same network for another head: what both have is taken over, the rest is fresh.

    An encoder that isn't there begins as the decoder, and a decoder as the encoder, as BLIP begins
    its network for questions (Li et al., 2022, section 4.4).
    """
    made = build_blip(dataclasses.replace(network.config, head=HeadConfig(kind)), seed=seed)
    known = network.state_dict()
    for name, weight in made.state_dict().items():
        part, _, rest = name.partition(".")
        twin = {"encoder": "decoder", "decoder": "encoder"}.get(part, part)
        found = known.get(name, known.get(f"{twin}.{rest}"))
        if found is not None:
            weight.copy_(found)
    return made


def _fresh(recipe: ImageTextRecipe, tokenizer: Tokenizer) -> Model:
    """New weights, those of parts that the recipe names taken over, their shapes too."""
    shape = {**recipe.model, "head": {"kind": recipe.head}}
    begun = {
        name: open_model(path, dtype=torch.float32)
        for name in ("image", "text")
        if (path := getattr(recipe, f"{name}_init"))
    }
    if "image" in begun and not shape.get("image"):
        shape["image"] = _tower_shape(tower_of(begun["image"].network, recipe.image_init))
    text = shape.get("text") or (_text_shape(begun["text"]) if "text" in begun else {})
    shape["text"] = {**_ends(tokenizer, text), **text}
    network = build_blip(blip_config(shape), seed=recipe.seed)
    if "image" in begun:
        take_image(network, begun["image"].network)
    if "text" in begun:
        take_text(network, begun["text"].network)
    processor = begun["image"].processor if "image" in begun else None
    return Model(network, tokenizer, processor=processor)


def tower_of(network: Any, where: str) -> Any:
    """The picture tower of a network, or the network itself.

    Raises:
        BedstoneError: it has none.
    """
    while not isinstance(network, ViT | ResNet | ResNetTokens):
        network = getattr(network, "image", None)
        if network is None:
            raise BedstoneError(
                f"image_init: {where} reads no pictures; name a VLM, a CLIP or a ViT."
            )
    return network


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


# What a run on pictures and what is said of them reads: rows, tokenizer and batches.


@dataclass
class ImageTextSplits:
    """Rows to learn from, rows to measure on by name, and what an artefact says of them."""

    train: Dataset
    measured: dict[str, Dataset]
    record: dict[str, Any]

    @classmethod
    def open(
        cls, recipe: ImageTextRecipe, run: Path | None, *, quiet: bool = False
    ) -> "ImageTextSplits":
        """Reads or draws them.

        Raises:
            BedstoneError: they can't be read, lack what the task needs, or aren't what the run in
                this folder began with.
        """
        data = recipe.data
        if data.source == SCENES:
            train, held = _scenes(recipe, quiet)
        else:
            train, held = held_out(recipe, partial(opened, data, split=data.split))
        train = with_parts(recipe.head, train, f"data {train.name!r}")
        held = with_parts(recipe.head, held, f"validation {held.name!r}")
        measured = {"validation": held.take(recipe.evaluate_rows, recipe.seed)}
        if data.test:
            test = opened(data, data.test, size=image_side(recipe))
            measured["test"] = with_parts(recipe.head, test, f"test {test.name!r}")
        record = record_of(recipe, train, run)
        if recipe.head in ("answers", "joint") and train.answers:
            record["answers"] = list(answer_vocabulary(train))  # what its task chooses among
        return cls(train, measured, record)


def image_text_tokenizer(recipe: ImageTextRecipe, rows: Dataset, run: Path) -> Tokenizer:
    """The run's own if it has one; else the one named, an initial model's, or a new one.

    Raises:
        BedstoneError: it can't be read, or its kind can't be trained here.
    """
    own = run / "tokenizer"
    if (own / "tokenizer.json").is_file():
        return Tokenizer.load(own)
    if recipe.tokenizer.path:
        tokenizer = as_image_text(Tokenizer.load(recipe.tokenizer.path))
    elif begun := recipe.init or recipe.text_init:
        tokenizer = as_image_text(tokenizer_of(open_model(begun)))
    elif recipe.tokenizer.kind == "wordpiece":
        tokenizer = train_image_text(rows.all_texts(), recipe.tokenizer.vocab_size)
    else:
        raise BedstoneError(
            f"tokenizer.kind: {recipe.tokenizer.kind!r} was given; a model that puts pictures into "
            "words reads wordpiece, or a tokenizer that tokenizer.path names."
        )
    own.mkdir(parents=True, exist_ok=True)
    tokenizer.save(own)
    return tokenizer


def image_text_batches(
    recipe: ImageTextRecipe,
    rows: Dataset,
    texts: ImageTexts,
    processor: ImageProcessor,
    quiet: bool,
) -> Stream[ImageTextBatch]:
    """The endless stream that a run learns from."""
    asks = recipe.head == "answers" or (recipe.head == "joint" and bool(rows.answers))
    return image_text_stream(
        learnt_pictures(recipe, rows, processor, quiet),
        texts,
        recipe.batch_size,
        processor.normalise,
        captions=0 if recipe.head == "answers" else recipe.texts,
        answers=recipe.texts if asks else 0,
        augment=augment_of(recipe, processor.size),
        blank=recipe.data.blank,
        seed=recipe.seed,
        workers=recipe.data.workers,
    )


def _scenes(recipe: ImageTextRecipe, quiet: bool) -> tuple[Dataset, Dataset]:
    """Scenes to learn from, and those of held-out combinations."""
    data, size = recipe.data, image_side(recipe)
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


# Learning to put pictures into words: captions, answers, matching, or all of them.

Scorer = TypeVar("Scorer", bound=BlipScorer)


def run_image_text(
    recipe: ImageTextRecipe, run: Path, checkpoint: Checkpoint | None, quiet: bool
) -> RunResult:
    """A new run, or one that goes on from a checkpoint."""
    precision = pick_precision(recipe.precision, pick_device(recipe.device))
    parse_budget(recipe.budget), build_schedule(recipe.schedule)  # before the data is read
    augment_of(recipe, (1, 1))
    course, scorers = image_text_course(recipe, run, precision, checkpoint, quiet)
    finished = train(recipe, run, course, precision, checkpoint, quiet=quiet)
    if finished.model is not None:
        write_json(run / "evaluation.json", evaluated(scorers))
    return finished


def image_text_course(
    recipe: ImageTextRecipe,
    run: Path,
    precision: Precision,
    checkpoint: Checkpoint | None,
    quiet: bool,
) -> tuple[RunPlan, dict[str, BlipScorer]]:
    """What is learnt, and what it is measured by: `validation`, and `test` where there is one.

    Raises:
        BedstoneError: the recipe, the data or a model it begins with can't do it.
    """
    splits = ImageTextSplits.open(recipe, run, quiet=quiet)
    tokenizer = image_text_tokenizer(recipe, splits.train, run)
    seed_everything(recipe.seed)
    model = image_text_model(recipe, tokenizer, checkpoint)
    model.network.to(precision.device)
    processor = model.processor
    assert processor is not None
    texts = ImageTexts(splits.train, BlipWords.of(tokenizer, model.config.context))
    batches = image_text_batches(recipe, splits.train, texts, processor, quiet)
    scorers = scorers_of(BlipScorer, recipe, splits, model, precision, quiet)
    count, learning = weight_counts(model)

    def write_model(folder: Path) -> None:
        write_adapter_files(model, folder) if recipe.lora else model.write_files(folder)

    def finish(run: Path, done: Done, store: CheckpointStore) -> Path:
        if recipe.lora:
            save_adapter(model, run / "adapter")
            fold(model.network)
        return model.save(run / "model")

    course = RunPlan(
        model=model,
        batches=batches,
        objective=objective_of(recipe),
        evaluate=scorers["validation"].flat,
        data={**splits.record, "tokenizer": tokenizer.fingerprint()},
        plan=image_text_plan(
            recipe,
            splits,
            batches,
            f"{model.config.layout} for {recipe.task}: {count / 1e6:.2f}M parameters, "
            f"{learning / 1e6:.2f}M of them trained, vocabulary {tokenizer.vocab_size:,}, "
            f"{precision.name} on {precision.device}",
        ),
        budget=recipe.budget,
        write_model=write_model,
        finish=finish,
    )
    return course, scorers


def scorers_of(
    kind: Callable[..., Scorer],
    recipe: ImageTextRecipe,
    splits: ImageTextSplits,
    model: Model,
    precision: Precision,
    quiet: bool,
) -> dict[str, Scorer]:
    """What measures a model, by the rows' name."""
    processor, blind = model.processor, question_only_baseline(splits.train)
    assert processor is not None
    candidates = answer_vocabulary(splits.train) if recipe.rank else ()
    usual = majority_caption(splits.train)
    return {
        name: kind(
            model,
            pictures_of(rows, processor, recipe.data, f"reading {name} pictures", quiet),
            precision,
            blind,
            candidates,
            recipe.data.blank,
            usual,
        )
        for name, rows in splits.measured.items()
    }


def image_text_plan(
    recipe: ImageTextRecipe, splits: ImageTextSplits, batches: Stream[ImageTextBatch], network: str
) -> str:
    """What a run is about to do; `network` is a line about it."""
    kept = "in memory" if batches.collate.images.kept else "decoded as they are read"
    cut = batches.collate.texts.cut
    return (
        f"{recipe.data.source}: {splits.train.describe()}, {kept}\n"
        + (f"{cut:,} texts are longer than the network reads, and are cut\n" if cut else "")
        + f"held out: {splits.measured['validation'].describe()}\n{network}\n"
        f"{batches.batch_size * recipe.accumulate:,} pictures a step, {recipe.texts} texts each, "
        f"budget {recipe.budget}, into {recipe.out}"
    )


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


def evaluated(scorers: Mapping[str, BlipScorer]) -> dict[str, Any]:
    """All figures with their intervals, by the rows' name and by kind."""
    return {
        name: {kind: found.record() for kind, found in scorer.figures().items()}
        for name, scorer in scorers.items()
    }


# The recipe of giving eyes to a GPT.
SHAPE = ("layout", "every", "cross_heads")
LARGEST = 0.3  # share of the parameters that may learn


@dataclass
class FlamingoRecipe(ImageTextRecipe):
    """Giving eyes to a GPT that stays as it is: gated cross-attention alone is trained.

    Attributes, as in `ImageTextRecipe`, but for:
        task: image-to-text, visual-question-answering or joint.
        init: the GPT.
        image_init: a model whose picture tower it is to see by: a VLM, a CLIP or a ViT.
        model: `layout` flamingo, `every` and `cross_heads` of `models.flamingo.network`.
    """

    task: str = "visual-question-answering"
    out: str = "runs/sighted"

    def __post_init__(self) -> None:
        RunRecipe.__post_init__(self)
        known = [name for name in IMAGE_TEXT_TASKS if name != "image-text-matching"]
        if self.task not in known:
            raise BedstoneError(
                f"task: {self.task!r} isn't one for a GPT that sees{nearest(self.task, known)}."
            )
        for name in self.model:
            if name not in SHAPE:
                raise BedstoneError(
                    f"model.{name}: the shape of the GPT and of the tower is what it is; give "
                    f"{', '.join(SHAPE)} alone."
                )
        for name, what in (("init", "the GPT"), ("image_init", "who has the picture tower")):
            if not getattr(self, name):
                raise BedstoneError(f"{name}: is needed: the folder of {what}.")
        for name in ("text_init", "freeze", "lora"):
            if getattr(self, name):
                raise BedstoneError(
                    f"{name}: a GPT that sees learns its cross-attention alone; leave it out."
                )
        at_least(self, 1, "batch_size", "texts", "evaluate_rows", "beams")
        plain = {"smoothing": 0.0, "weights": LossWeights(), "tokenizer": ImageTextTokenizer()}
        for name, usual in plain.items():
            if getattr(self, name) != usual:
                raise BedstoneError(
                    f"{name}: a GPT that sees learns by its own tokens, each counting alike; "
                    "leave it out."
                )


# The network that a run gives eyes to: a GPT, a picture tower, fresh cross-attention.


def flamingo_model(recipe: FlamingoRecipe, checkpoint: Checkpoint | None) -> Model:
    """The checkpoint's, or the recipe's GPT with the recipe's tower; in fp32, frozen but for what
    learns.

    Raises:
        BedstoneError: a folder holds another kind of model, or too much would learn.
    """
    if checkpoint is not None:
        model = load(checkpoint.path, dtype=torch.float32)
        model.record = {}
    else:
        model = _begun(recipe)
    keep_beams(model, recipe)
    model.network.learning()
    check_share(model.network)
    return model


def _begun(recipe: FlamingoRecipe) -> Model:
    words = open_model(recipe.init, dtype=torch.float32)
    if not isinstance(words.network, GPT):
        raise BedstoneError(
            f"init: {recipe.init} is a {words.config.layout}; only a GPT can be given eyes. Train "
            "one with recipes/gpt-scenes.yaml, or name another."
        )
    seen = open_model(recipe.image_init, dtype=torch.float32)
    tower = tower_of(seen.network, recipe.image_init)
    wide = tower.norm.normalized_shape[0] if isinstance(tower, ResNetTokens) else 0
    shape = {name: value for name, value in recipe.model.items() if name != "layout"}
    config = FlamingoConfig(gpt=words.config, image=tower.config, memory_width=wide, **shape)
    network = build_flamingo(config, seed=recipe.seed)
    network.gpt.load_state_dict(words.network.state_dict(), strict=False)
    take_image(network, seen.network)  # type: ignore[arg-type]  # it has such a tower
    processor = seen.processor or fresh_processor(config)
    return Model(network, words.tokenizer, dict(words.generation), processor=processor)


def check_share(network: FlamingoGPT) -> float:
    """The share of the parameters that learns.

    Raises:
        BedstoneError: it is more than may.
    """
    sizes = [(weight.numel(), weight.requires_grad) for weight in network.parameters()]
    share = sum(size for size, learns in sizes if learns) / sum(size for size, _ in sizes)
    if share > LARGEST:
        raise BedstoneError(
            f"model.every: {share:.0%} of the parameters would learn, at most {LARGEST:.0%} may; "
            f"raise it above {network.config.every}, lower cross_heads, or take a larger GPT."
        )
    return share


# Learning to see: a frozen GPT's gated cross-attention over a frozen tower's states.


def run_flamingo(
    recipe: FlamingoRecipe, run: Path, checkpoint: Checkpoint | None, quiet: bool
) -> RunResult:
    """A new run, or one that goes on from a checkpoint."""
    precision = pick_precision(recipe.precision, pick_device(recipe.device))
    parse_budget(recipe.budget), build_schedule(recipe.schedule)  # before the data is read
    augment_of(recipe, (1, 1))
    seed_everything(recipe.seed)
    model = flamingo_model(recipe, checkpoint)
    course, scorers = flamingo_course(recipe, run, model, precision, quiet)
    finished = train(recipe, run, course, precision, checkpoint, quiet=quiet)
    if finished.model is not None:
        write_json(run / "evaluation.json", evaluated(scorers))
    return finished


def flamingo_course(
    recipe: FlamingoRecipe, run: Path, model: Model, precision: Precision, quiet: bool
) -> tuple[RunPlan, dict[str, FlamingoScorer]]:
    """What is learnt, and what it is measured by: `validation`, and `test` where there is one.

    Raises:
        BedstoneError: the recipe, the data or a model it begins with can't do it.
    """
    splits = ImageTextSplits.open(recipe, run, quiet=quiet)
    tokenizer, network, processor = tokenizer_of(model), model.network, model.processor
    assert processor is not None
    network.to(precision.device)
    texts = FlamingoTexts(splits.train, gpt_words(tokenizer, model.config.context))
    batches = image_text_batches(recipe, splits.train, texts, processor, quiet)
    kind = partial(FlamingoScorer, kind=recipe.head)
    scorers = scorers_of(kind, recipe, splits, model, precision, quiet)
    count, learning = weight_counts(model)
    course = RunPlan(
        model=model,
        batches=batches,
        objective=flamingo_loss,
        evaluate=scorers["validation"].flat,
        data={**splits.record, "tokenizer": tokenizer.fingerprint()},
        plan=image_text_plan(
            recipe,
            splits,
            batches,
            f"{recipe.init} sees by the tower of {recipe.image_init}: {count / 1e6:.2f}M "
            f"parameters, {learning / 1e6:.2f}M of them ({learning / count:.0%}) trained, "
            f"{precision.name} on {precision.device}",
        ),
        budget=recipe.budget,
    )
    return course, scorers
