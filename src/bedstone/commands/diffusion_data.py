"""Signals of a run that draws: opened, turned into latents where that is asked for, in batches."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from bedstone.checkpoints.artefact import Model
from bedstone.data.prompts import Prompts
from bedstone.data.signal_batches import SignalBatches, SignalTexts
from bedstone.data.signal_sources import open_signals
from bedstone.data.signals import Signals
from bedstone.data.tokenizer import Tokenizer
from bedstone.data.tokenizer_training import train_wordpiece
from bedstone.errors import BedstoneError
from bedstone.recipes_diffusion import DiffusionRecipe
from bedstone.runtime import Precision
from bedstone.train.progress import ProgressBar

TOGETHER = 64  # pictures that become latents at a time


def opened(recipe: DiffusionRecipe, quiet: bool) -> tuple[Signals, Signals]:
    """Signals to learn from and signals held out.

    Raises:
        BedstoneError: as `data.signal_sources.open_signals`.
    """
    with ProgressBar(f"reading {recipe.data.source}", quiet=quiet) as bar:
        return open_signals(recipe, bar.update)


def drawing_tokenizer(
    recipe: DiffusionRecipe, learnt: Signals, reader: Model | None, run: Path
) -> Tokenizer | None:
    """The run's own if it has one; else the reader's, the one named, or a new one.

    Args:
        reader: what reads the words, or the model that the run goes on from.

    Raises:
        BedstoneError: it can't be read, its kind can't be trained here, or there are no words.
    """
    if recipe.condition != "text":
        return None
    own = run / "tokenizer"
    if (own / "tokenizer.json").is_file():
        return Tokenizer.load(own)
    if reader is not None:
        if reader.tokenizer is None:
            raise BedstoneError(
                f"text.encoder: {reader.path} has no tokenizer, so that its words can't be read. "
                "Put the one that it was trained with into its folder."
            )
        tokenizer = reader.tokenizer
    elif recipe.tokenizer.path:
        tokenizer = Tokenizer.load(recipe.tokenizer.path)
    else:
        if recipe.tokenizer.kind != "wordpiece":
            raise BedstoneError(
                f"tokenizer.kind: {recipe.tokenizer.kind!r} was given; a small reader of captions "
                "learns wordpiece. Leave it out, or name a tokenizer (tokenizer.path)."
            )
        lower = recipe.tokenizer.lowercase
        tokenizer = train_wordpiece(learnt.texts(), recipe.tokenizer.vocab_size, lowercase=lower)
    own.mkdir(parents=True, exist_ok=True)
    tokenizer.save(own)
    return tokenizer


def texts_of(signals: Signals, prompts: Prompts | None) -> SignalTexts | None:
    """The captions of signals by their tokens; None where no words are read."""
    if prompts is None:
        return None
    return SignalTexts(
        signals, prompts.encode, prompts.nothing, context=prompts.context, pad=prompts.pad
    )


def batches_of(
    recipe: DiffusionRecipe, learnt: Signals, texts: SignalTexts | None
) -> SignalBatches:
    """The endless stream that a run learns from."""
    return SignalBatches(
        learnt,
        recipe.batch_size,
        texts=texts,
        drop=recipe.drop if recipe.condition != "none" else 0.0,
        flip=recipe.augment.flip,
        seed=recipe.seed,
        workers=recipe.data.workers,
    )


def latents_of(signals: Signals, autoencoder: Model, precision: Precision, quiet: bool) -> Signals:
    """The same rows as an autoencoder's latents, (Z, h, w) each."""
    network: Any = autoencoder.network.to(precision.device).eval()
    parts = []
    with ProgressBar("making latents", quiet=quiet) as bar, torch.no_grad():
        for first in range(0, len(signals), TOGETHER):
            rows = np.arange(first, min(first + TOGETHER, len(signals)))
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
        places=signals.places,
        faults=signals.faults,
    )
