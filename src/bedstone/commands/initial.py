"""The model that a run goes on from, where its recipe names one in `init`."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from bedstone.checkpoints.artefact import Model
from bedstone.checkpoints.opening import open_model
from bedstone.errors import BedstoneError


class Begins(Protocol):
    """What is read of a recipe."""

    @property
    def init(self) -> str: ...
    @property
    def model(self) -> dict[str, Any]: ...


def initial_model(recipe: Begins, layouts: Sequence[str], fault: str, hint: str = "") -> Model:
    """The model of `init`, in fp32.

    Args:
        layouts: those that the recipe's task learns with.
        fault: what one of another layout is or does, for the message.
        hint: a sentence after it.

    Raises:
        BedstoneError: it can't be opened or has another layout, or the recipe says its shape too.
    """
    if recipe.model.keys() - {"layout"}:
        raise BedstoneError(
            f"model: the shape of init = {recipe.init} is what it is; leave model out, or init."
        )
    model = open_model(recipe.init, dtype=torch.float32)
    if model.config.layout not in layouts:
        raise BedstoneError(
            f"init: {recipe.init} is a {model.config.layout}, which {fault}; expected one of "
            f"{', '.join(layouts)}.{' ' if hint else ''}{hint}"
        )
    return model
