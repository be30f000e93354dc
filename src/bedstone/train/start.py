"""How a run starts: from a checkpoint, from `init`, or from parts of other models.

BLIP begins with a ViT trained on labels and a BERT (Li et al., 2022, section 4.1). What doesn't fit
is named: a part that silently stays fresh would cost a whole run.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.checkpoints import adapters
from bedstone.checkpoints.adapters import load_adapter
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.store import Checkpoint
from bedstone.errors import BedstoneError
from bedstone.models.bert.network import Bert
from bedstone.models.blip.network import Blip, BlipText
from bedstone.models.resnet.network import ResNet, ResNetTokens
from bedstone.models.vit.network import ViT
from bedstone.nn.lora import LoraConfig
from bedstone.nn.quantize import weights_of
from bedstone.runtime import Precision
from bedstone.settings import from_mapping


@dataclass
class Start:
    """What a run begins with, and how it computes.

    Attributes:
        precision: device and dtype.
        folder: of the run; None where nothing is to be written.
        checkpoint: that it goes on from; None of a new run.
        model: the checkpoint's, or that of `init`; None of a run with fresh weights. Of a run that
            trains an adapter it is the base, and the checkpoint holds the adapter.
        parts: other models that the recipe names, by the part that begins with theirs.
        quiet: whether no progress is shown.
    """

    precision: Precision
    folder: Path | None = None
    checkpoint: Checkpoint | None = None
    model: Any = None
    parts: dict[str, Any] = field(default_factory=dict)
    quiet: bool = False


def begin(
    recipe: Any,
    checkpoint: Checkpoint | None,
    layouts: Sequence[str],
    *,
    fault: str = "isn't trained so",
    hint: str = "",
) -> Any:
    """The model that a run goes on from: the checkpoint's, that of `init`, or None; in fp32.

    Args:
        recipe: its `init` and `model` are read, and `lora`: an adapter's checkpoint has no base.
        layouts: those that the method trains.
        fault: what one of another layout doesn't do, for the error.
        hint: a sentence after it.

    Raises:
        BedstoneError: the model can't be opened or has another layout, or the recipe says its
            shape too.
    """
    if checkpoint is not None and not getattr(recipe, "lora", None):
        model = open_model(checkpoint.path, dtype=torch.float32)
    elif not recipe.init:
        return None
    else:
        if checkpoint is None and recipe.model.keys() - {"layout"}:
            raise BedstoneError(
                f"model: the shape of init = {recipe.init} is what it is; leave model out, or init."
            )
        model = open_model(recipe.init, dtype=torch.float32)
        if model.config.layout not in layouts:
            raise BedstoneError(
                f"init: {recipe.init} is a {model.config.layout}, which {fault}; expected one of "
                f"{', '.join(layouts)}.{' ' if hint else ''}{hint}"
            )
        model.forget_tasks()
    model.record = {}
    return model


def open_parts(recipe: Any, *names: str) -> dict[str, Model]:
    """The models that a recipe names by `NAME_init`, by NAME, in fp32."""
    paths = {name: getattr(recipe, f"{name}_init") for name in names}
    return {name: open_model(path, dtype=torch.float32) for name, path in paths.items() if path}


def adapt(model: Model, lora: Mapping[str, Any], start: Start, seed: int) -> None:
    """Adds an adapter to a model, fresh or the checkpoint's (LoRA).

    Args:
        lora: the fields of `nn.lora.LoraConfig`.
    """
    if start.checkpoint is not None:
        load_adapter(model, start.checkpoint.path)
    else:
        config = from_mapping(LoraConfig, lora, "recipe", "lora.")
        adapters.adapt(model.network, config, seed=seed)


def freeze(part: nn.Module) -> None:
    """Keeps a part as it is: no gradient, and never in training mode, for its statistics."""
    part.requires_grad_(False)
    part.eval()
    part.train = lambda mode=True: part  # type: ignore[method-assign]


@contextmanager
def without_part(network: nn.Module, name: str) -> Iterator[nn.Module | None]:
    """Takes a part out of a network for as long: what is trained beside it is in no artefact."""
    part = network._modules.pop(name, None)
    try:
        yield part
    finally:
        if part is not None:
            setattr(network, name, part)


def weight_counts(model: Model) -> tuple[int, int]:
    """How many weights there are, and how many of them learn."""
    count, _ = weights_of(model.network)
    return count, sum(w.numel() for w in model.network.parameters() if w.requires_grad)


# Weights that one network takes over from another.


@torch.no_grad()
def take_over(
    part: nn.Module, source: Mapping[str, Tensor], what: str = "init", where: str = "model"
) -> list[str]:
    """Copies the tensors of `source` that the part has too; all are checked before one is copied.

    Args:
        source: tensors by the part's names.
        what: the recipe's field that names the source, for errors.
        where: the recipe's field of the part's shape.

    Returns:
        The part's tensors that stay fresh.

    Raises:
        BedstoneError: a shape or the number of blocks differs; nothing was copied.
    """
    own = part.state_dict()
    found = {name: weight for name, weight in source.items() if name in own}
    for name, weight in found.items():
        if weight.shape != own[name].shape:
            raise BedstoneError(
                f"{what}: its {name} has the shape {tuple(weight.shape)}, {where} asks for "
                f"{tuple(own[name].shape)}. Give {where} the shape of what it begins with."
            )
    deep, here = _blocks(source), _blocks(own)
    if deep and deep != here:
        raise BedstoneError(
            f"{what}: has {len(deep)} blocks, {where}.layers is {len(here)}. Set it to {len(deep)}."
        )
    for name, weight in found.items():
        own[name].copy_(weight)
    return sorted(set(own) - set(found))


def _blocks(weights: Mapping[str, Tensor]) -> set[str]:
    return {name.split(".")[1] for name in weights if name.startswith("stack.")}


def image_tower(network: Any, what: str) -> Any:
    """The image tower of a network, or the network itself where it is one.

    Args:
        what: the network's path, for the error.

    Raises:
        BedstoneError: it has none.
    """
    while not isinstance(network, ViT | ResNet | ResNetTokens):
        network = getattr(network, "image", None)
        if network is None:
            raise BedstoneError(
                f"image_init: {what} reads no pictures; name a VLM, a CLIP or a ViT."
            )
    return network


def take_image(network: Any, source: nn.Module) -> list[str]:
    """Fills a network's image tower from a ViT, a ResNet, or a network that has one as `image`.

    A CLIP's tower has a norm before its blocks that BLIP's lacks: what both have is taken. A
    ResNet's pool stays behind.

    Returns:
        The tower's tensors that stay fresh.

    Raises:
        BedstoneError: the source is of another kind, or a shape differs; nothing was copied.
    """
    own: Any = network.image
    tower: Any = source
    while not isinstance(tower, ViT | ResNet | ResNetTokens) and hasattr(tower, "image"):
        tower = tower.image
    given = dict(tower.state_dict())
    if isinstance(own, ResNetTokens) and isinstance(tower, ResNet):
        given = {f"resnet.{name}": weight for name, weight in given.items()}
    elif type(own) is not type(tower):
        raise BedstoneError(
            f"image_init: its image tower is a {type(tower).__name__}, where a "
            f"{'ResNet' if isinstance(own, ResNetTokens) else 'ViT'} is needed. Choose the layout "
            "that has such a tower: blip for a ViT, blip_resnet for a ResNet."
        )
    same = () if isinstance(own, ResNetTokens) else ("heads", "activation")  # heads are the pool's
    _check_same(own.config, tower.config, "image_init", "model.image", same)
    return take_over(own, given, "image_init", "model.image")


def take_text(network: Blip, source: nn.Module) -> list[str]:
    """Fills encoder, decoder and the decoder's word head from a BERT or another BLIP.

    A BERT's first segment, which each of its tokens is of, is added to the positions. The words
    must be the same tokens: the caller sees to it that the tokenizer is the BERT's own; tokens that
    were added behind its vocabulary stay fresh.

    Returns:
        Tensors of encoder, decoder and head that stay fresh.

    Raises:
        BedstoneError: the source is of another kind, or a shape differs; nothing was copied.
    """
    found = _text_weights(source)
    if found is None:
        raise BedstoneError(
            f"text_init: a {type(source).__name__} has no text that reads as BLIP's does; take a "
            "bert or another BLIP."
        )
    config, body, head = found
    _check_same(network.config.text, config, "text_init", "model.text", ("heads", "activation"))
    fresh = []
    for name, given in (("encoder", body), ("decoder", body), ("head", head)):
        if (part := getattr(network, name)) is not None:
            left = take_over(part, _grown(part, given), "text_init", "model.text")
            fresh += [f"{name}.{each}" for each in left]
    network.tie()
    return [name for name in fresh if name not in network.ties]


def _text_weights(source: nn.Module) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]] | None:
    """Shape, weights of the body and of the word head, by BlipText's names."""
    if isinstance(source, Blip):
        body = source.decoder or source.encoder
        assert isinstance(body, BlipText)
        head = {} if source.head is None else dict(source.head.state_dict())
        return body.config, dict(body.state_dict()), head
    if not isinstance(source, Bert) or source.config.layout != "bert":
        return None
    given = dict(source.state_dict())
    if source.segments is not None:
        given["positions.weight"] = given["positions.weight"] + given["segments.weight"][0]
    kind = {"language": "head.", "pretraining": "head.words."}.get(source.config.head.kind, "\0")
    words = {n.removeprefix(kind): w for n, w in given.items() if n.startswith(kind)}
    return source.config, given, words


def _grown(own: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """`given` with fresh rows behind tables that are longer here: words and positions added."""
    grown = dict(given)
    for name, weight in own.state_dict().items():
        found = given.get(name)
        table = name in ("embed.weight", "positions.weight", "out.weight", "out.bias")
        if table and found is not None and len(found) < len(weight):
            grown[name] = torch.cat((found.to(weight.dtype), weight[len(found) :]))
        elif name == "positions.weight" and found is not None:
            grown[name] = found[: len(weight)]
    return grown


def _check_same(own: Any, given: Any, what: str, where: str, names: Sequence[str]) -> None:
    """Raises BedstoneError where what no weight's shape shows differs."""
    for name in names:
        mine, theirs = getattr(own, name, None), getattr(given, name, None)
        if None not in (mine, theirs) and mine != theirs:
            raise BedstoneError(
                f"{what}: has {name} {theirs!r}, {where}.{name} is {mine!r}. Set it to {theirs!r}."
            )
