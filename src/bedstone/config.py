"""The old place of `PretrainRecipe`, kept for code that imports it from here."""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "PretrainRecipe":
        raise AttributeError(f"module 'bedstone.config' has no attribute {name!r}")
    return importlib.import_module("bedstone.recipes.base").PretrainRecipe
