"""From a recipe to the signals it learns from and those it is measured by."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bedstone.data import moving_scenes, scenes, solids
from bedstone.data.signal_arrays import array_signals
from bedstone.data.signal_pictures import picture_signals, scene_signals
from bedstone.data.signal_sounds import sound_signals
from bedstone.data.signals import Signals
from bedstone.errors import BedstoneError
from bedstone.recipes_diffusion import DiffusionRecipe

Told = Callable[[float], None]
# What is built in, by its name: the kind of signal, and what draws it.
BUILT_IN: dict[str, tuple[str, Callable[..., Signals]]] = {
    scenes.NAME: ("image", scene_signals),
    moving_scenes.NAME: ("video", moving_scenes.moving_signals),
    solids.NAME: ("volume", solids.solid_signals),
}
# What reads the rows of a source, by the kind of signal.
READERS: dict[str, Callable[..., Signals]] = {
    "image": picture_signals,
    "audio": sound_signals,
    "video": partial(array_signals, kind="video"),
    "volume": partial(array_signals, kind="volume"),
}


def open_signals(recipe: DiffusionRecipe, told: Told | None = None) -> tuple[Signals, Signals]:
    """Signals to learn from and signals held out, as a recipe says.

    Args:
        told: is handed the share done.

    Raises:
        BedstoneError: there is no such data, it is of another kind than the task's, or it can't
            be read.
    """
    data, kind = recipe.data, recipe.kind
    options: dict[str, Any] = {"seed": recipe.seed, "told": told}
    if data.source in BUILT_IN:
        drawn, draw = BUILT_IN[data.source]
        if drawn != kind:
            raise BedstoneError(
                f"data.source: {data.source!r} is {drawn}, and {recipe.task} makes {kind}. Choose "
                "another of both."
            )
        learnt = draw(data, recipe.condition, **options)
        return learnt, draw(data, recipe.condition, split="validation", count=recipe.evaluate_rows)
    read = READERS[kind]
    learnt = read(data.source, data, recipe.condition, **options)
    if not data.validation:
        return learnt.hold_out(data.validation_share or 0.05)
    options["names"] = learnt.names
    return learnt, read(data.validation, data, recipe.condition, **options)


def signals_to_measure(
    recipe: DiffusionRecipe, source: str, count: int, names: Sequence[str] = ()
) -> Signals:
    """Signals of a source that a recipe's network wasn't trained on, read as the recipe reads its
    own: of what is built in, `count` of its test part.

    Args:
        names: of the classes that were learnt, by whose places they are numbered; else those of
            the source, which may have fewer.

    Raises:
        BedstoneError: as `open_signals`.
    """
    data, kind = recipe.data, recipe.kind
    if source in BUILT_IN:
        return BUILT_IN[source][1](data, recipe.condition, split="test", count=count)
    options: dict[str, Any] = {"names": names, "seed": recipe.seed}
    return READERS[kind](source, data, recipe.condition, **options).take(count)
