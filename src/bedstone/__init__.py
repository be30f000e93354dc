"""Bedstone: the whole life of foundation models on one Transformer core.

    model = bedstone.load("runs/demo/gpt/model")      # or a hub id, or any published folder
    model.network(ids)                                # token ids (B, T) to logits (B, T, V)
    model.save("copy")                                # opens in transformers unchanged

Names are loaded when they are first used, so importing the package is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bedstone.checkpoints.load import load
    from bedstone.checkpoints.model import Model
    from bedstone.commands.train import finetune, pretrain, resume
    from bedstone.errors import BedstoneError
    from bedstone.tasks.pipeline import pipeline

_HOMES = {
    "BedstoneError": "bedstone.errors",
    "Model": "bedstone.checkpoints.model",
    "load": "bedstone.checkpoints.load",
    "pretrain": "bedstone.commands.train",
    "finetune": "bedstone.commands.train",
    "resume": "bedstone.commands.train",
    "pipeline": "bedstone.tasks.pipeline",
}
__all__ = ["BedstoneError", "Model", "finetune", "load", "pipeline", "pretrain", "resume"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bedstone' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
