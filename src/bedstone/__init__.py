"""Bedstone: the whole life of foundation models on one Transformer core.

    run = bedstone.finetune("finetune-own", model="runs/bert", data=rows)  # rows: a list, DataFrame
    model = bedstone.load(run.model)                 # or a hub id, or any published folder
    classify = bedstone.pipeline(model=run.model)    # tasks by their names in transformers
    classify("too long and too dull")

Names are loaded when they are first used, so importing the package is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bedstone.checkpoints.load import load
    from bedstone.checkpoints.model import Model
    from bedstone.commands.train import finetune, pretrain, resume
    from bedstone.errors import BedstoneError
    from bedstone.inspect.explain import explain
    from bedstone.tasks.pipeline import pipeline

_HOMES = {
    "BedstoneError": "bedstone.errors",
    "Model": "bedstone.checkpoints.model",
    "load": "bedstone.checkpoints.load",
    "pretrain": "bedstone.commands.train",
    "finetune": "bedstone.commands.train",
    "resume": "bedstone.commands.train",
    "pipeline": "bedstone.tasks.pipeline",
    "explain": "bedstone.inspect.explain",
}
__all__ = [
    "BedstoneError",
    "Model",
    "explain",
    "finetune",
    "load",
    "pipeline",
    "pretrain",
    "resume",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("bedstone")
    if name not in _HOMES:
        raise AttributeError(f"module 'bedstone' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__", "__doc__", "__name__", "__file__", "__path__"]
