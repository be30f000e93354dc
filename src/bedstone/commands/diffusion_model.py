"""The network that a run which draws begins with: fresh, or gone on from."""

import dataclasses
from typing import Any

import torch

from bedstone.checkpoints.artefact import Model
from bedstone.checkpoints.drawing import DrawingModel, SignalForm, load_drawing, text_part
from bedstone.checkpoints.opening import open_model
from bedstone.checkpoints.store import Checkpoint
from bedstone.data.signals import Signals
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.mapping import from_mapping
from bedstone.models import bert
from bedstone.models.bert import BertConfig
from bedstone.models.conditioned import Conditioned
from bedstone.models.dit import build
from bedstone.models.dit_config import DiTConfig
from bedstone.models.heads import HeadConfig
from bedstone.nn.noise_targets import Target, target
from bedstone.nn.noising import EDM, Discrete, Flow, Process
from bedstone.recipes_diffusion import DiffusionRecipe

PROCESSES: dict[str, type[Any]] = {"discrete": Discrete, "flow": Flow, "edm": EDM}
TARGETS = {
    "discrete": "v_prediction",
    "flow": "flow_prediction",
    "edm": "edm",
}  # where none is said
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


def drawing_model(
    recipe: DiffusionRecipe,
    learnt: Signals,
    tokenizer: Tokenizer | None,
    reader: Model | None,
    autoencoder: Model | None,
    checkpoint: Checkpoint | None,
) -> DrawingModel:
    """The checkpoint's, the initial one or a new one, in fp32.

    Args:
        learnt: the signals as they are, before an autoencoder.
        reader: another's network that reads words.

    Raises:
        BedstoneError: a shape that can't be, or a model that draws something else.
    """
    if checkpoint is not None or recipe.init:
        path = checkpoint.path if checkpoint is not None else recipe.init
        model = load_drawing(path, dtype=torch.float32)
        _check_fits(recipe, model, learnt)
        model.record = {}
        model.sampling = recipe.sampling
        return model
    process, wanted = process_of(recipe)
    signal = SignalForm(
        kind=recipe.kind,
        shape=learnt.shape,
        condition=recipe.condition,
        names=learnt.names if recipe.condition == "class" else (),
        context=recipe.text.context if recipe.condition == "text" else 0,
        frozen=reader is not None and recipe.text.frozen,
    )
    torch.manual_seed(recipe.seed)
    if recipe.condition == "text" and reader is None:
        assert tokenizer is not None
        reader = _fresh_reader(recipe, tokenizer)
    if reader is not None:
        signal.context = min(signal.context, text_config(reader).context)
    config = _config(recipe, signal, reader, autoencoder)
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
        autoencoder=autoencoder,
    )


def named_reader(recipe: DiffusionRecipe) -> Model | None:
    """The model that a recipe names to read words.

    Raises:
        BedstoneError: it can't be opened, or reads none.
    """
    if recipe.condition != "text" or not recipe.text.encoder:
        return None
    model = open_model(recipe.text.encoder, dtype=torch.float32)
    text_part(model.network)
    return model


def named_autoencoder(recipe: DiffusionRecipe) -> Model | None:
    """The autoencoder that a recipe names.

    Raises:
        BedstoneError: it can't be opened, is none, or reads other channels than the data's.
    """
    if not recipe.autoencoder:
        return None
    model = open_model(recipe.autoencoder, dtype=torch.float32)
    if model.config.layout != "autoencoder_kl":
        raise BedstoneError(
            f"autoencoder: {recipe.autoencoder} is a {model.config.layout}; expected an "
            "autoencoder_kl, such as recipes/autoencoder-scenes.yaml makes."
        )
    if recipe.kind != "image" or model.config.channels != recipe.data.channels:
        raise BedstoneError(
            f"autoencoder: {recipe.autoencoder} reads pictures of {model.config.channels} "
            f"channels; {recipe.task} has data.channels = {recipe.data.channels}. Use another "
            "autoencoder, or none."
        )
    if recipe.augment.flip:
        raise BedstoneError(
            "augment.flip: latents are made once, before training, and can't be mirrored. Leave "
            "it out, or the autoencoder."
        )
    return model


def text_config(reader: Model) -> Any:
    """The configuration of what reads words in a model."""
    return text_part(reader.network).config


def _fresh_reader(recipe: DiffusionRecipe, tokenizer: Tokenizer) -> Model:
    """A small encoder that learns with the network."""
    shape = recipe.text
    config = BertConfig(
        layout="distilbert",
        vocab_size=tokenizer.vocab_size,
        width=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        context=shape.context,
        dropout=0.0,
        attention_dropout=0.0,
        head=HeadConfig("states"),
    )
    return Model(bert.build(config))


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
        size = [side // coder.shrink for side in size]
    values: dict[str, Any] = {"size": tuple(size), "channels": channels, **recipe.model}
    if recipe.condition == "class":
        values["classes"] = len(signal.names)
    if reader is not None:
        values["memory_width"] = text_config(reader).width
    return from_mapping(DiTConfig, values, "recipe", "model.")


def _check_fits(recipe: DiffusionRecipe, model: DrawingModel, learnt: Signals) -> None:
    signal = model.signal
    names = learnt.names if recipe.condition == "class" else ()
    pairs = {
        "task": ((signal.kind, signal.condition), (recipe.kind, recipe.condition)),
        "data.size": (tuple(signal.shape), learnt.shape),
        "data.classes": (tuple(signal.names), tuple(names)),
    }
    for name, (has, wanted) in pairs.items():
        if has != wanted:
            raise BedstoneError(
                f"{name}: the model {model.path} has {has}, the recipe {wanted}. Choose data and "
                "task as the model has them, or begin without init."
            )
    fields = dataclasses.asdict(signal)
    model.signal = SignalForm(**fields)
