"""Training diffusion models: images, sounds, videos and volumes out of noise."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.pipeline import DiffusionPipeline, SignalSpec, text_part
from bedstone.checkpoints.store import Checkpoint
from bedstone.data.signals.batches import signal_stream, texts_of
from bedstone.data.signals.open import open_signals, spectrogram_of
from bedstone.data.signals.signals import KINDS, TASKS, Signals, SignalsConfig
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import TokenizerConfig, train_wordpiece
from bedstone.diffusion.process import EDM, Discrete, Flow, Process
from bedstone.diffusion.sample import SamplingConfig
from bedstone.diffusion.samplers import METHODS
from bedstone.diffusion.targets import Target, target
from bedstone.diffusion.times import times
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.generative import GenerativeScorer
from bedstone.evaluate.runner import Evaluation
from bedstone.models.bert import network as bert
from bedstone.models.bert.network import BertConfig
from bedstone.models.dit.config import LAYOUTS, DiTConfig
from bedstone.models.dit.network import Conditioned, build
from bedstone.models.heads import HeadConfig
from bedstone.objectives.diffusion import Denoising
from bedstone.recipes.base import Method, Trainer
from bedstone.runtime import Precision
from bedstone.settings import Settings, from_mapping, one_of, share, whole
from bedstone.train.averaging import Decay, steady
from bedstone.train.data import Splits
from bedstone.train.logs import ProgressBar
from bedstone.train.loop import Batches, Objective
from bedstone.train.optim import OptimConfig
from bedstone.train.run import RunPlan, RunRecipe
from bedstone.train.schedule import ScheduleConfig
from bedstone.train.start import Start

PROCESSES: dict[str, type[Any]] = {"discrete": Discrete, "flow": Flow, "edm": EDM}
# Targets where none is said.
USUAL_TARGETS = {"discrete": "v_prediction", "flow": "flow_prediction", "edm": "edm"}
TARGET_NAMES = ("epsilon", "v_prediction", "sample", "flow_prediction", "edm")
WEIGHTS = ("uniform", "snr", "min_snr", "truncated")
TIMES = ("uniform", "logit_normal", "log_normal")


@dataclass
class SignalAugment(Settings):
    """How signals are changed when they are learnt from.

    Attributes:
        flip: share of pictures and videos that are mirrored, left for right; none whose text names
            a side is.
    """

    section = "augment."
    flip: float = share(below_one=True, default=0.0)


@dataclass
class TextConfig(Settings):
    """What reads the words that a signal is made from.

    Attributes:
        encoder: a CLIP or BERT of ours, a folder or a hub id; empty trains a small one with the
            network.
        frozen: whether a named encoder keeps its weights.
        layers, width, heads: of the small one.
        context: tokens of a text at most; longer ones are cut.
    """

    section = "text."
    encoder: str = ""
    frozen: bool = True
    layers: int = whole(1, default=2)
    width: int = whole(1, default=128)
    heads: int = whole(1, default=4)
    context: int = whole(4, default=32)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise BedstoneError(
                f"text.heads: {self.heads} don't divide text.width, {self.width}; choose a divisor."
            )


@dataclass
class CaptionTokenizer(TokenizerConfig):
    """`TokenizerConfig` of the small vocabulary of captions: wordpiece alone is trained."""

    kind: str = "wordpiece"
    vocab_size: int = 2048


@dataclass
class DiffusionOptim(OptimConfig):
    """`OptimConfig` without weight decay: the weights are averaged instead."""

    lr: float = 2e-3
    adamw_lr: float = 2e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass
class DiffusionRecipe(RunRecipe):
    """Training a diffusion model of images, sounds, videos or volumes.

    Attributes, besides those of every run:
        task: what is drawn from what: class-to-image, text-to-image,
            unconditional-image-generation, and the same with audio, video and volume.
        budget: how long to train: `10m`, `2000 steps`.
        init: a model to go on from, instead of fresh weights.
        model: the network's shape, in the fields of `models.dit.network.DiTConfig`; what the data
            decides (size, channels, classes) is left out.
        process: how noise is added: `kind` (discrete, flow, edm) and the fields of that kind in
            `diffusion.process`.
        target: what the network says: epsilon, v_prediction, sample, flow_prediction, edm; empty is
            the process's own.
        weight: what a time counts for: uniform, snr, min_snr, truncated.
        times: how they are drawn: uniform, logit_normal, log_normal.
        drop: share of rows that are learnt without their condition, for guidance.
        average: decay of the weights' moving average, which is what is evaluated and kept; 0 has
            none.
        text: what reads the words, of text-to tasks.
        tokenizer: how words become tokens; trained on the captions where none is named.
        autoencoder: a model whose latents are drawn, instead of pixels; empty draws pixels.
        data: what to learn from.
        augment: how signals are changed.
        batch_size: signals in a micro-batch.
        sampling: how signals are drawn.
        evaluate_rows: held-out rows that an evaluation in training reads at most.
        samples: how many are drawn and shown when the network is evaluated.
    """

    task: str = one_of(*TASKS, default="class-to-image")
    out: str = "runs/diffusion"
    budget: str = "2000 steps"
    init: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    process: dict[str, Any] = field(default_factory=lambda: {"kind": "flow"})
    target: str = one_of("", *TARGET_NAMES, default="")
    weight: str = one_of(*WEIGHTS, default="uniform")
    times: str = one_of(*TIMES, default="uniform")
    drop: float = share(below_one=True, default=0.1)
    average: float = share(below_one=True, default=0.999)
    text: TextConfig = field(default_factory=TextConfig)
    tokenizer: CaptionTokenizer = field(default_factory=CaptionTokenizer)
    autoencoder: str = ""
    data: SignalsConfig = field(default_factory=SignalsConfig)
    augment: SignalAugment = field(default_factory=SignalAugment)
    batch_size: int = whole(1, default=128)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    evaluate_rows: int = whole(1, default=1000)
    samples: int = whole(0, default=64)
    optim: DiffusionOptim = field(default_factory=DiffusionOptim)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = self.process.get("kind", "flow")
        if kind not in PROCESSES:
            near = nearest(str(kind), PROCESSES)
            raise BedstoneError(f"process.kind: {kind!r} is unknown{near}.")
        sides = KINDS[self.kind]
        if self.data.size and len(self.data.size) != sides:
            raise BedstoneError(
                f"data.size: {list(self.data.size)} was given; {self.task} has signals of {sides} "
                f"side{'s' if sides > 1 else ''}, so expected as many numbers."
            )
        if self.augment.flip and self.kind not in ("image", "video"):
            raise BedstoneError(
                f"augment.flip: mirrors pictures and videos; {self.task} makes none. Leave it out."
            )
        if self.condition == "none" and self.sampling.guidance > 1:
            self.sampling.guidance = 1.0  # there is nothing to be guided to

    @property
    def condition(self) -> str:
        """What a signal is made from: none, class or text."""
        return TASKS[self.task][0]

    @property
    def kind(self) -> str:
        """What is made: image, audio, video or volume."""
        return TASKS[self.task][1]


D = TypeVar("D", bound=DiffusionRecipe)


class DiffusionMethod(Method[D]):
    """What methods that train a denoiser share."""

    layouts: ClassVar[tuple[str, ...]] = LAYOUTS
    tasks = tuple(TASKS)
    unit = "signals"
    fault = "draws nothing"
    records_tokenizer = False

    def check(self, recipe: D) -> None:
        process, _ = process_of(recipe)
        objective_of(recipe)
        check_sampling(process, recipe.sampling)
        if not recipe.init:
            _check_guided(recipe)
        if recipe.text.encoder and recipe.tokenizer.path:
            raise BedstoneError(
                "tokenizer.path: text.encoder has its own; leave tokenizer.path out."
            )

    def begin(self, recipe: D, checkpoint: Checkpoint | None) -> Model | None:
        if checkpoint is None and not recipe.init:
            return None
        path = checkpoint.path if checkpoint is not None else recipe.init
        model = open_model(path, dtype=torch.float32)
        if not isinstance(model, DiffusionPipeline):
            raise BedstoneError(
                f"init: {path} is a {model.config.layout}, which draws nothing. Name a run that "
                "draws, or a published DiT pipeline."
            )
        process, aim = process_of(recipe)
        if checkpoint is None:
            _check_init(recipe, model)
        _check_process(
            model, process, aim, "the run" if checkpoint is not None else f"init = {path}"
        )
        # As the recipe says them, to the last bit; a file rounds, or says the steps of a schedule.
        model.process, model.target = process, aim
        model.record, model.scheduler, model.sampling = {}, {}, recipe.sampling
        return model

    def parts(self, recipe: D) -> dict[str, Model]:
        named = {"text": named_reader(recipe), "autoencoder": named_autoencoder(recipe)}
        return {name: model for name, model in named.items() if model is not None}

    def open(self, recipe: D, start: Start) -> Splits:
        with ProgressBar(f"reading {recipe.data.source}", quiet=start.quiet) as bar:
            train, held = open_signals(
                recipe.data,
                recipe.task,
                seed=recipe.seed,
                held=recipe.evaluate_rows,
                progress=bar.update,
            )
        record = {"source": recipe.data.source, **train.record()}
        notes = [f"{recipe.data.source}: {train.describe()}", f"held out: {held.describe()}"]
        return Splits(train, held, record=record, notes=notes)

    def texts(self, recipe: D, splits: Splits, start: Start) -> Iterable[str] | None:
        texts: Iterable[str] = splits.train.texts()
        return texts if recipe.condition == "text" else None

    def trainers(self, recipe: D) -> Mapping[str, Trainer]:
        return {
            "wordpiece": lambda texts, section: train_wordpiece(
                texts, section.vocab_size, lowercase=section.lowercase
            )
        }

    def model(
        self,
        recipe: D,
        splits: Splits,
        tokenizer: Tokenizer | None,
        start: Start,
    ) -> Model:
        learnt, sound = splits.train, _sound(recipe)
        if start.model is not None:
            _check_fits(recipe, start.model, learnt, sound)
            model: Model = start.model
            return model
        process, aim = process_of(recipe)
        reader, autoencoder = start.parts.get("text"), start.parts.get("autoencoder")
        signal = SignalSpec(
            kind=recipe.kind,
            shape=learnt.shape,
            condition=recipe.condition,
            names=learnt.names if recipe.condition == "class" else (),
            context=recipe.text.context if recipe.condition == "text" else 0,
            sound=sound,
            frozen=reader is not None and recipe.text.frozen,
        )
        if recipe.condition == "text" and reader is None:
            assert tokenizer is not None
            reader = fresh_reader(recipe, tokenizer.vocab_size)
        if reader is not None:
            signal.context = min(signal.context, text_config(reader).context)
        config = denoiser_config(recipe, signal, reader, autoencoder)
        text = None if reader is None else text_part(reader.network)
        return DiffusionPipeline(
            Conditioned(build(config), text, frozen=signal.frozen),
            tokenizer,
            process=process,
            target=aim,
            signal=signal,
            sampling=recipe.sampling,
            reader=reader,
            autoencoder=autoencoder,
        )

    def batches(self, recipe: D, model: Model, splits: Splits, start: Start) -> Batches:
        assert isinstance(model, DiffusionPipeline)
        if model.autoencoder is not None:
            coder, precision, quiet = model.autoencoder, start.precision, start.quiet
            splits.train = latents_of(splits.train, coder, precision, quiet)
            splits.validation = latents_of(splits.validation, coder, precision, quiet)
        texts = texts_of(splits.train, model.prompts if recipe.condition == "text" else None)
        if texts is not None and texts.cut:
            long = f"{texts.cut:,} texts are longer than the network reads, and are cut"
            splits.notes.insert(1, long)
        return signal_stream(
            splits.train,
            recipe.batch_size,
            texts=texts,
            drop=recipe.drop if recipe.condition != "none" else 0.0,
            flip=recipe.augment.flip,
            seed=recipe.seed,
            workers=recipe.data.workers,
        )

    def objective(self, recipe: D, model: Model, start: Start) -> Objective:
        return objective_of(recipe)

    def evaluations(self, recipe: D, plan: RunPlan) -> Sequence[Evaluation]:
        assert isinstance(plan.model, DiffusionPipeline) and isinstance(plan.objective, Denoising)
        assert plan.start.folder is not None
        prompts = plan.model.prompts if recipe.condition == "text" else None
        return [
            GenerativeScorer(
                plan.model,
                plan.objective,
                plan.splits.validation,
                texts_of(plan.splits.validation, prompts),
                plan.start.precision,
                rows=recipe.evaluate_rows,
                samples=recipe.samples,
                sheet=plan.start.folder / "samples.png",
            )
        ]

    def average(self, recipe: D) -> Decay | None:
        return steady(recipe.average) if recipe.average else None


class Diffusion(DiffusionMethod[DiffusionRecipe]):
    """A denoiser of signals, of an autoencoder's latents where the recipe names one."""

    name = "diffusion"
    Recipe = DiffusionRecipe


DECIDED = (
    "size", "channels", "out_channels", "classes", "memory_width", "embedding_width", "beside"
)  # fmt: skip
LATENTS = 64  # images that become latents at a time


def objective_of(recipe: DiffusionRecipe) -> Denoising:
    """The recipe's denoising loss."""
    process, aim = process_of(recipe)
    return Denoising(process, aim, weight=recipe.weight, times=recipe.times)


def latents_of(signals: Signals, autoencoder: Model, precision: Precision, quiet: bool) -> Signals:
    """The same rows as an autoencoder's latents, (Z, h, w) each."""
    network: Any = autoencoder.network.to(precision.device).eval()
    parts = []
    with ProgressBar("making latents", quiet=quiet) as bar, torch.no_grad():
        for first in range(0, len(signals), LATENTS):
            rows = np.arange(first, min(first + LATENTS, len(signals)))
            with precision.autocast():
                found = network.latents(signals.read(rows).to(precision.device))
            parts.append(found.float().cpu().numpy())
            bar.update((first + len(rows)) / len(signals))
    return Signals(
        np.concatenate(parts),
        kind=signals.kind,
        name=signals.name,
        classes=signals.classes,
        names=signals.names,
        captions=signals.captions,
        embeddings=signals.embeddings,
        places=signals.places,
        faults=signals.faults,
    )


def named_reader(recipe: DiffusionRecipe) -> Model | None:
    """The model that a recipe names to read words; None where it names none.

    Raises:
        BedstoneError: it can't be opened, or reads no words.
    """
    if recipe.condition != "text" or not recipe.text.encoder:
        return None
    model = open_model(recipe.text.encoder, dtype=torch.float32)
    text_part(model.network)
    return model


def named_autoencoder(recipe: DiffusionRecipe) -> Model | None:
    """The autoencoder that a recipe names; None where it names none.

    Raises:
        BedstoneError: it can't be opened, or doesn't fit the recipe's signals.
    """
    if not recipe.autoencoder:
        return None
    model = open_model(recipe.autoencoder, dtype=torch.float32)
    if model.config.layout != "autoencoder_kl":
        raise BedstoneError(
            f"autoencoder: {recipe.autoencoder} is a {model.config.layout}; expected an "
            "autoencoder_kl, such as `bedstone pretrain autoencoder-scenes` makes."
        )
    if recipe.kind != "image":
        raise BedstoneError(
            f"autoencoder: {recipe.autoencoder} reads pictures; {recipe.task} makes none. Leave it "
            "out."
        )
    if model.config.channels != recipe.data.channels:
        raise BedstoneError(
            f"autoencoder: {recipe.autoencoder} reads pictures of {model.config.channels} "
            f"channels; {recipe.task} has data.channels = {recipe.data.channels}. Use another "
            "autoencoder, or none."
        )
    check_flip(recipe)
    return model


def check_flip(recipe: DiffusionRecipe) -> None:
    """Raises BedstoneError where latents would have to be mirrored."""
    if recipe.augment.flip:
        raise BedstoneError(
            "augment.flip: latents are made once, before training, and can't be mirrored. Leave "
            "it out, or the autoencoder."
        )


def text_config(reader: Model) -> Any:
    """The configuration of a model's text encoder."""
    return text_part(reader.network).config


def fresh_reader(recipe: DiffusionRecipe, vocab_size: int) -> Model:
    """A small encoder that learns with the network."""
    shape = recipe.text
    config = BertConfig(
        layout="distilbert",
        vocab_size=vocab_size,
        width=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        context=shape.context,
        dropout=0.0,
        attention_dropout=0.0,
        head=HeadConfig("states"),
    )
    return Model(bert.build(config))


def process_of(recipe: DiffusionRecipe) -> tuple[Process, Target]:
    """How noise is added, and what is predicted.

    Raises:
        BedstoneError: a field that the process doesn't have, or a number that it can't.
    """
    values = dict(recipe.process)
    kind = values.pop("kind", "flow")
    made = from_mapping(PROCESSES[kind], values, "recipe", "process.")
    return made, target(recipe.target or USUAL_TARGETS[kind])


def check_sampling(process: Process, sampling: SamplingConfig) -> None:
    """Raises BedstoneError where signals can't be drawn so, by drawing nothing once."""
    try:
        if (method := METHODS.get(sampling.method)) is None:
            name = sampling.method
            raise BedstoneError(f"method: {name!r} is unknown{nearest(name, METHODS)}.")
        when = times(process, sampling.steps, sampling.spacing)
        generator = [torch.Generator().manual_seed(0)]
        method(lambda x, t: (x, x), torch.zeros(1, 1, 1), when, process, generator=generator)
    except BedstoneError as error:
        raise BedstoneError(f"sampling.{error}") from None


def _check_guided(recipe: DiffusionRecipe) -> None:
    """Raises BedstoneError where guidance would lead away from what is never learnt."""
    guidance = recipe.sampling.guidance
    if recipe.condition != "none" and not recipe.drop and guidance != 1:
        raise BedstoneError(
            f"drop: 0 was given, so that nothing is learnt without a condition, which guidance "
            f"({guidance:g}) leads away from. Take 0.1, or sampling.guidance: 1."
        )


def _check_init(recipe: DiffusionRecipe, model: DiffusionPipeline) -> None:
    """Raises BedstoneError where a recipe says something else than the model it begins with."""
    given = {
        "model": recipe.model,
        "text.encoder": recipe.text.encoder,
        "autoencoder": recipe.autoencoder,
        "tokenizer.path": recipe.tokenizer.path,
    }
    for name in (name for name, value in given.items() if value):
        raise BedstoneError(f"{name}: init = {recipe.init} has its own; leave {name} out, or init.")
    if model.autoencoder is not None:
        check_flip(recipe)


def _check_process(model: DiffusionPipeline, process: Process, aim: Target, name: str) -> None:
    """Raises BedstoneError where a recipe says other noise than the model has learnt of."""
    if not _same_process(process, model.process) or aim.name != model.target.name:
        raise BedstoneError(
            f"process: {name} learnt {model.target.name} of {model.process}; the recipe says "
            f"{aim.name} of {process}. Say process and target as the model has them."
        )


def _same_process(one: Process, other: Process) -> bool:
    """Whether noise is added alike, and a network told of it alike."""
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    pairs = ((one.log_snr(t), other.log_snr(t)), (one.timestep(t), other.timestep(t)))
    return type(one) is type(other) and all(torch.allclose(*pair, atol=1e-3) for pair in pairs)


def _sound(recipe: DiffusionRecipe) -> dict[str, Any]:
    """How sounds became signals, so that signals become sounds; nothing of other kinds."""
    if recipe.kind != "audio":
        return {}
    form = dataclasses.asdict(spectrogram_of(recipe.data))
    return {name: value for name, value in form.items() if name != "frames"}


def denoiser_config(
    recipe: DiffusionRecipe,
    signal: SignalSpec,
    reader: Model | None,
    autoencoder: Model | None,
    decided: Mapping[str, Any] = MappingProxyType({}),
) -> DiTConfig:
    """The denoiser's shape: what the recipe says, and what the data decides.

    Args:
        decided: further fields that the method decides, such as embedding_width.
    """
    for name in DECIDED:
        if name in recipe.model:
            raise BedstoneError(
                f"model.{name}: is decided by the data (data.size, data.channels, the classes, "
                "the text encoder). Leave it out."
            )
    channels, *size = signal.shape
    if autoencoder is not None:
        coder = autoencoder.config
        channels = coder.latent_channels
        if any(side % coder.shrink for side in size):
            raise BedstoneError(
                f"data.size: {size} was given; the autoencoder makes a place of each "
                f"{coder.shrink} pixels, so expected multiples of that."
            )
        size = [side // coder.shrink for side in size]
    values: dict[str, Any] = {"size": tuple(size), "channels": channels, **recipe.model}
    if recipe.condition == "class":
        values["classes"] = len(signal.names)
    if reader is not None:
        values["memory_width"] = text_config(reader).width
    values |= decided
    return from_mapping(DiTConfig, values, "recipe", "model.")


def _check_fits(
    recipe: DiffusionRecipe, model: DiffusionPipeline, learnt: Signals, sound: dict[str, Any]
) -> None:
    signal = model.signal
    names = learnt.names if recipe.condition == "class" else ()
    pairs = {
        "task": ((signal.kind, signal.condition), (recipe.kind, recipe.condition)),
        "data.size": (tuple(signal.shape), learnt.shape),
        "data.classes": (tuple(signal.names), tuple(names)),
        "data.sound": (signal.sound, sound),
    }
    for name, (has, wanted) in pairs.items():
        if has != wanted:
            raise BedstoneError(
                f"{name}: the model {model.path} has {has}, the recipe {wanted}. Choose data and "
                "task as the model has them, or begin without init."
            )
