"""The network that a run on pairs begins with: towers fresh or from other models, some frozen."""

from typing import Any

import torch
from torch import nn

from bedstone.checkpoints.artefact import Model, load
from bedstone.checkpoints.opening import open_model
from bedstone.checkpoints.store import Checkpoint
from bedstone.commands.initial import initial_model
from bedstone.data.image_processor import ImageProcessor, clip_processor, siglip_processor
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.models.clip import build, clip_config
from bedstone.recipes_pairs import LAYOUTS, ContrastiveRecipe


def pair_model(
    recipe: ContrastiveRecipe, tokenizer: Tokenizer, checkpoint: Checkpoint | None
) -> Model:
    """The checkpoint's, the initial one, or a new one, in fp32; frozen as the recipe says.

    Raises:
        BedstoneError: a shape, a folder or a tokenizer that doesn't fit.
    """
    if checkpoint is not None:
        model = load(checkpoint.path, dtype=torch.float32)
    elif recipe.init:
        hint = "A picture tower alone is named by image_init."
        model = initial_model(recipe, LAYOUTS, "learns no pairs", hint)
    else:
        model = _fresh(recipe, tokenizer)
    model.tokenizer, model.record = tokenizer, {}
    if model.processor is None:
        model.processor = usual_processor(model.config)
    if recipe.freeze:
        freeze(getattr(model.network, recipe.freeze))
    return model


def usual_processor(config: Any) -> ImageProcessor:
    """How pictures become pixels for a new model of a layout."""
    side = max(config.image.size)
    return siglip_processor(side) if config.layout == "siglip" else clip_processor(side)


def freeze(tower: nn.Module) -> None:
    """A tower that stays as it is: no gradient, and never in training mode, for its statistics."""
    tower.requires_grad_(False)
    tower.eval()
    tower.train = lambda mode=True: tower  # type: ignore[method-assign]


def _fresh(recipe: ContrastiveRecipe, tokenizer: Tokenizer) -> Model:
    """New weights, those of towers that the recipe names taken over."""
    shape = dict(recipe.model)
    begun = {
        name: open_model(path, dtype=torch.float32)
        for name in ("image", "text")
        if (path := getattr(recipe, f"{name}_init"))
    }
    for name, model in begun.items():
        if shape.get(name):
            raise BedstoneError(
                f"model.{name}: the shape of {name}_init = {getattr(recipe, f'{name}_init')} is "
                f"what it is; leave model.{name} out, or {name}_init."
            )
        shape[name] = _tower(model, name).config
    if "text" not in begun:
        tokens = tokenizer.vocab_size
        ends = {key: getattr(tokenizer, key) for key in ("bos_id", "eos_id", "pad_id")}
        # Products of matrices are fastest at multiples of 64.
        shape["text"] = {"vocab_size": -(-tokens // 64) * 64, **ends, **(shape.get("text") or {})}
    config = clip_config(shape)
    network = build(config, seed=recipe.seed)
    processor = None
    for name, model in begun.items():
        _take(network, _tower(model, name), name, getattr(recipe, f"{name}_init"))
        processor = model.processor if name == "image" else processor
    return Model(network, tokenizer, processor=processor)


def _tower(model: Model, name: str) -> Any:
    """A model's tower, or the model itself where it is one."""
    return getattr(model.network, name, model.network)


def _take(network: nn.Module, tower: nn.Module, name: str, path: str) -> None:
    """Copies a tower's weights.

    Raises:
        BedstoneError: the layout has another kind of tower.
    """
    ours: nn.Module = getattr(network, name)
    theirs, mine = tower.state_dict(), ours.state_dict()
    odd = {key for key in theirs.keys() ^ mine.keys() if not key.startswith("head.")}
    odd |= {key for key in theirs.keys() & mine.keys() if theirs[key].shape != mine[key].shape}
    if odd:
        raise BedstoneError(
            f"{name}_init: {path} holds another kind of {name} tower than this layout has (they "
            f"differ in {min(odd)!r}). Name a model of pairs of the same model.layout."
        )
    ours.load_state_dict({key: theirs.get(key, value) for key, value in mine.items()})


def weight_counts(model: Model) -> tuple[int, int]:
    """How many weights there are, and how many of them learn."""
    weights = list(model.network.parameters())
    return sum(w.numel() for w in weights), sum(w.numel() for w in weights if w.requires_grad)
