"""The network that a run gives eyes to: a GPT, a picture tower, fresh cross-attention."""

import torch

from bedstone.checkpoints.artefact import Model, load
from bedstone.checkpoints.opening import open_model
from bedstone.checkpoints.store import Checkpoint
from bedstone.commands.told_model import keep_beams, tower_of, usual_processor
from bedstone.errors import BedstoneError
from bedstone.models.gpt import GPT
from bedstone.models.map_tower import MapTower
from bedstone.models.sighted_config import SightedConfig
from bedstone.models.sighted_gpt import SightedGPT, build
from bedstone.models.vlm_begin import take_image
from bedstone.recipes_sighted import LARGEST, SightedRecipe


def sighted_model(recipe: SightedRecipe, checkpoint: Checkpoint | None) -> Model:
    """The checkpoint's, or the recipe's GPT with the recipe's tower; in fp32, frozen but for what
    learns.

    Raises:
        BedstoneError: a folder holds another kind of model, or too much would learn.
    """
    if checkpoint is not None:
        model = load(checkpoint.path, dtype=torch.float32)
        model.record = {}
    else:
        model = _begun(recipe)
    keep_beams(model, recipe)
    model.network.learning()
    check_share(model.network)
    return model


def _begun(recipe: SightedRecipe) -> Model:
    words = open_model(recipe.init, dtype=torch.float32)
    if not isinstance(words.network, GPT):
        raise BedstoneError(
            f"init: {recipe.init} is a {words.config.layout}; only a GPT can be given eyes. Train "
            "one with recipes/gpt-scenes.yaml, or name another."
        )
    seen = open_model(recipe.image_init, dtype=torch.float32)
    tower = tower_of(seen.network, recipe.image_init)
    wide = tower.norm.normalized_shape[0] if isinstance(tower, MapTower) else 0
    shape = {name: value for name, value in recipe.model.items() if name != "layout"}
    config = SightedConfig(gpt=words.config, image=tower.config, memory_width=wide, **shape)
    network = build(config, seed=recipe.seed)
    network.gpt.load_state_dict(words.network.state_dict(), strict=False)
    take_image(network, seen.network)  # type: ignore[arg-type]  # it has such a tower
    processor = seen.processor or usual_processor(config)  # type: ignore[arg-type]
    return Model(network, words.tokenizer, dict(words.generation), processor=processor)


def check_share(network: SightedGPT) -> float:
    """The share of the parameters that learns.

    Raises:
        BedstoneError: it is more than may.
    """
    sizes = [(weight.numel(), weight.requires_grad) for weight in network.parameters()]
    share = sum(size for size, learns in sizes if learns) / sum(size for size, _ in sizes)
    if share > LARGEST:
        raise BedstoneError(
            f"model.every: {share:.0%} of the parameters would learn, at most {LARGEST:.0%} may; "
            f"raise it above {network.config.every}, lower cross_heads, or take a larger GPT."
        )
    return share
