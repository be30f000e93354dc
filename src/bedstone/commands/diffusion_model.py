"""The network that a run which draws begins with: fresh, or gone on from."""

import dataclasses
from typing import Any

import torch

from bedstone.checkpoints.artefact import Model
from bedstone.checkpoints.drawing import DrawingModel, text_part
from bedstone.checkpoints.drawing_form import SignalForm
from bedstone.checkpoints.opening import open_model
from bedstone.checkpoints.store import Checkpoint
from bedstone.commands.diffusion_parts import (
    check_flip,
    fresh_reader,
    named_autoencoder,
    named_reader,
    text_config,
)
from bedstone.data.signal_sounds import spectrogram_of
from bedstone.data.signals import Signals
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError, nearest
from bedstone.generation.denoise_multistep import METHODS
from bedstone.generation.denoise_times import times
from bedstone.mapping import from_mapping
from bedstone.models.conditioned import Conditioned
from bedstone.models.dit import build
from bedstone.models.dit_config import DiTConfig
from bedstone.nn.noise_targets import Target, target
from bedstone.nn.noising import EDM, Discrete, Flow, Process
from bedstone.recipes_diffusion import DiffusionRecipe, SamplingConfig

PROCESSES: dict[str, type[Any]] = {"discrete": Discrete, "flow": Flow, "edm": EDM}
# Targets where none is said.
TARGETS = {"discrete": "v_prediction", "flow": "flow_prediction", "edm": "edm"}
DECIDED = ("size", "channels", "out_channels", "classes", "memory_width")


def process_of(recipe: DiffusionRecipe) -> tuple[Process, Target]:
    """How noise is added, and what is predicted.

    Raises:
        BedstoneError: a field that the process doesn't have, or a number that it can't.
    """
    values = dict(recipe.process)
    kind = values.pop("kind", "flow")
    made = from_mapping(PROCESSES[kind], values, "recipe", "process.")
    return made, target(recipe.target or TARGETS[kind])


@dataclasses.dataclass(frozen=True)
class Begun:
    """The models that a run begins with.

    Attributes:
        model: that it goes on from; None where it begins afresh.
        reader: another's network that reads words.
        autoencoder: whose latents are drawn.
    """

    model: DrawingModel | None = None
    reader: Model | None = None
    autoencoder: Model | None = None


def begun_with(recipe: DiffusionRecipe, checkpoint: Checkpoint | None) -> Begun:
    """Opens what a run begins with: its checkpoint, `init`, or the parts that the recipe names.

    Raises:
        BedstoneError: it can't be opened, or isn't what the recipe says.
    """
    if checkpoint is None and not recipe.init:
        _check_guided(recipe)
        return Begun(None, named_reader(recipe), named_autoencoder(recipe))
    path = checkpoint.path if checkpoint is not None else recipe.init
    model = open_model(path, dtype=torch.float32)
    if not isinstance(model, DrawingModel):
        raise BedstoneError(
            f"init: {path} is a {model.config.layout}, which draws nothing. Name a run that draws, "
            "or a published DiT pipeline."
        )
    said = process_of(recipe)
    if checkpoint is None:
        _check_init(recipe, model)
    _check_process(model, *said, "the run" if checkpoint is not None else f"init = {path}")
    # As the recipe says them, to the last bit; a file rounds, or says the steps of a schedule.
    model.process, model.target = said
    model.record, model.scheduler, model.sampling = {}, {}, recipe.sampling
    return Begun(model, model.reader, model.autoencoder)


def drawing_model(
    recipe: DiffusionRecipe, learnt: Signals, tokenizer: Tokenizer | None, begun: Begun
) -> DrawingModel:
    """The model that a run begins with, or a new one; in fp32.

    Args:
        learnt: the signals as they are, before an autoencoder.

    Raises:
        BedstoneError: a shape that can't be, or a model that draws something else.
    """
    sound = _sound(recipe)
    if begun.model is not None:
        _check_fits(recipe, begun.model, learnt, sound)
        return begun.model
    process, wanted = process_of(recipe)
    reader = begun.reader
    signal = SignalForm(
        kind=recipe.kind,
        shape=learnt.shape,
        condition=recipe.condition,
        names=learnt.names if recipe.condition == "class" else (),
        context=recipe.text.context if recipe.condition == "text" else 0,
        sound=sound,
        frozen=reader is not None and recipe.text.frozen,
    )
    torch.manual_seed(recipe.seed)
    if recipe.condition == "text" and reader is None:
        assert tokenizer is not None
        reader = fresh_reader(recipe, tokenizer)
    if reader is not None:
        signal.context = min(signal.context, text_config(reader).context)
    config = _config(recipe, signal, reader, begun.autoencoder)
    text = None if reader is None else text_part(reader.network)
    network = Conditioned(build(config), text, frozen=signal.frozen)
    return DrawingModel(
        network,
        tokenizer,
        process=process,
        target=wanted,
        signal=signal,
        sampling=recipe.sampling,
        reader=reader,
        autoencoder=begun.autoencoder,
    )


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


def _check_init(recipe: DiffusionRecipe, model: DrawingModel) -> None:
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


def _check_process(model: DrawingModel, process: Process, aim: Target, name: str) -> None:
    """Raises BedstoneError where a recipe says other noise than the model has learnt of."""
    if not _alike(process, model.process) or aim.name != model.target.name:
        raise BedstoneError(
            f"process: {name} learnt {model.target.name} of {model.process}; the recipe says "
            f"{aim.name} of {process}. Say process and target as the model has them."
        )


def _alike(one: Process, other: Process) -> bool:
    """Whether noise is added alike, and a network told of it alike."""
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    pairs = ((one.log_snr(t), other.log_snr(t)), (one.told(t), other.told(t)))
    return type(one) is type(other) and all(torch.allclose(*pair, atol=1e-3) for pair in pairs)


def _sound(recipe: DiffusionRecipe) -> dict[str, Any]:
    """How sounds became signals, so that signals become sounds; nothing of other kinds."""
    if recipe.kind != "audio":
        return {}
    form = dataclasses.asdict(spectrogram_of(recipe.data))
    return {name: value for name, value in form.items() if name != "frames"}


def _config(
    recipe: DiffusionRecipe, signal: SignalForm, reader: Model | None, autoencoder: Model | None
) -> DiTConfig:
    """The denoiser's shape: what the recipe says, and what the data decides."""
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
    return from_mapping(DiTConfig, values, "recipe", "model.")


def _check_fits(
    recipe: DiffusionRecipe, model: DrawingModel, learnt: Signals, sound: dict[str, Any]
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
