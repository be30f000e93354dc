"""Opening what a user names: a model of any kind, or a run's folder that stands for its model."""

from pathlib import Path
from typing import Any

import torch

from bedstone.checkpoints import model as artefact
from bedstone.checkpoints.dalle import is_dalle, load_dalle
from bedstone.checkpoints.hub import resolve
from bedstone.checkpoints.model import Model, model_folder
from bedstone.checkpoints.pipeline import is_pipeline, load_pipeline
from bedstone.checkpoints.unclip import is_unclip, load_unclip


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    verify: bool = True,
) -> Model:
    """Opens an artefact, a published folder, a short name, a hub id, an adapter's folder with its
    base, or a pipeline that draws; a run's folder is its finished model, or else its latest
    checkpoint.

    Args:
        path: a folder, a GGUF file, a name such as `minilm`, or an id such as
            `Qwen/Qwen3-0.6B`.
        dtype: what to hold the weights in; None keeps what is stored.
        device: where to.
        revision: branch, tag or commit of a hub id.
        verify: whether to check sizes and hashes, where the folder says what they are.

    Raises:
        BedstoneError: it isn't there, isn't whole, was tampered with, holds pickled weights, is of
            a layout that Bedstone doesn't open, or is a run that has no checkpoint yet.
    """
    folder = resolve(model_folder(path), revision=revision)
    opens: Any = load_pipeline if is_pipeline(folder) else artefact.load
    opens = load_dalle if is_dalle(folder) else load_unclip if is_unclip(folder) else opens
    model: Model = opens(folder, dtype=dtype, device=device, verify=verify)
    return model


def open_model(path: str | Path, **options: Any) -> Model:
    """`load`, as commands call it."""
    return load(path, **options)
