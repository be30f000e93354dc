"""The network that an autoencoder's run begins with, its judge, and its files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bedstone.checkpoints.artefact import Model, load
from bedstone.checkpoints.opening import open_model
from bedstone.checkpoints.store import Checkpoint
from bedstone.checkpoints.tensors import load_tensors, save_tensors
from bedstone.commands.initial import initial_model
from bedstone.data.image_processor import plain_processor
from bedstone.errors import BedstoneError
from bedstone.mapping import from_mapping
from bedstone.models import autoencoder, discrete_autoencoder, patchgan
from bedstone.models.autoencoder_config import AutoencoderConfig, DiscreteConfig
from bedstone.objectives.reconstruction import Adversary, Perceptual, Reconstruction
from bedstone.recipes_autoencoder import LAYOUTS, AutoencoderRecipe

JUDGE = "discriminator.safetensors"  # in a checkpoint
KINDS: dict[str, tuple[type[Any], Any]] = {
    "autoencoder_kl": (AutoencoderConfig, autoencoder.build),
    "fsq_autoencoder": (DiscreteConfig, discrete_autoencoder.build),
}


def autoencoder_model(recipe: AutoencoderRecipe, checkpoint: Checkpoint | None) -> Model:
    """The checkpoint's, the initial one, or a new one, in fp32; with its judge where there is one.

    Raises:
        BedstoneError: a shape or a folder that doesn't fit.
    """
    if checkpoint is not None:
        model = load(checkpoint.path, dtype=torch.float32)
    elif recipe.init:
        model = initial_model(recipe, LAYOUTS, "is no autoencoder")
    else:
        shape = {"layout": LAYOUTS[0], **recipe.model}
        kind, build = KINDS[shape["layout"]]
        model = Model(build(from_mapping(kind, shape, "recipe", "model."), seed=recipe.seed))
    model.record = {}
    _check(model.config)
    model.processor = plain_processor(model.config.image_size)
    if recipe.adversarial.weight:
        shown, judged = recipe.adversarial, model.config.channels
        least = patchgan.least_side(shown.layers)
        if min(model.processor.size) < least:
            raise BedstoneError(
                f"adversarial.layers: a judge that halves its map {shown.layers} times needs "
                f"pictures of {least} pixels or more; lower it, or raise model.image_size."
            )
        judge = patchgan.build(judged, shown.width, shown.layers, seed=recipe.seed)
        if checkpoint is not None:
            judge.load_state_dict(load_tensors(checkpoint.path, name=JUDGE))
        model.network.discriminator = judge
    return model


def _check(config: Any) -> None:
    """Raises BedstoneError where pictures of its own size can't be learnt."""
    if config.channels != 3 or getattr(config, "out_channels", 3) != 3:
        raise BedstoneError(
            f"model.channels: {config.channels} was given; pictures of rows have 3. Grey ones are "
            "read with all three alike."
        )
    size = config.image_size
    for side in size if isinstance(size, tuple) else (size,):
        if side % config.shrink:
            raise BedstoneError(
                f"model.image_size: {side} pixels aren't a multiple of {config.shrink}, which the "
                "stages make one place of; choose another size, or fewer stages (model.widths)."
            )


@contextmanager
def without_judge(network: nn.Module) -> Iterator[nn.Module | None]:
    """Takes the judge out of the network for as long: it is no part of an artefact."""
    judge = network._modules.pop("discriminator", None)
    try:
        yield judge
    finally:
        if judge is not None:
            network.discriminator = judge


def write_with_judge(model: Model, folder: Path) -> None:
    """A checkpoint's files: the artefact, and beside it the judge."""
    with without_judge(model.network) as judge:
        model.write_files(folder)
    if judge is not None:
        save_tensors(folder, judge.state_dict(), name=JUDGE)


def objective_of(recipe: AutoencoderRecipe, device: torch.device) -> Reconstruction:
    """What a recipe learns by.

    Args:
        device: where pictures are, and what sees them.

    Raises:
        BedstoneError: the model of the perceptual term can't be opened, or sees no pictures.
    """
    perceptual = None
    if recipe.perceptual.model and recipe.perceptual.weight:
        seen = open_model(recipe.perceptual.model, dtype=torch.float32, device=device)
        used = seen.processor or plain_processor(32)
        perceptual = Perceptual(seen.network, used.mean, used.std)
    judge = recipe.adversarial
    return Reconstruction(
        recipe.pixel,
        recipe.kl,
        perceptual=perceptual,
        perceptual_weight=recipe.perceptual.weight,
        adversary=Adversary(judge.weight, judge.after) if judge.weight else None,
    )
