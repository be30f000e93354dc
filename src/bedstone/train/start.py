"""A VLM that begins with what others have learnt: a tower for pictures, a BERT for text.

BLIP itself begins so (Li et al., 2022, section 4.1: a ViT trained on labels, a BERT).
Cross-attention and what compares pictures with texts have nobody to begin with and stay fresh. What
doesn't fit is named: a silent part would cost a whole run.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model
from bedstone.errors import BedstoneError
from bedstone.models.bert.network import Bert
from bedstone.models.blip.network import Blip, BlipText
from bedstone.models.resnet.network import ResNet, ResNetTokens
from bedstone.models.vit.network import ViT


def take_image(network: Blip, source: nn.Module) -> list[str]:
    """Fills the image tower from another network's: a ViT, a ResNet, or what has one as `image`.

    A CLIP's tower has a norm before its blocks that BLIP's lacks: what both have is taken. A
    ResNet's pool stays behind.

    Args:
        source: a ViT, a ResNet, a CLIP, a labelled tower or a VLM.

    Returns:
        The tower's parameters that stay fresh.

    Raises:
        BedstoneError: it is of another kind, or a shape differs; nothing was taken.
    """
    tower: Any = source
    while not isinstance(tower, ViT | ResNet | ResNetTokens) and hasattr(tower, "image"):
        tower = tower.image
    own: Any = network.image
    given = dict(tower.state_dict())
    if isinstance(own, ResNetTokens) and isinstance(tower, ResNet):
        given = {f"resnet.{name}": weight for name, weight in given.items()}
    elif type(own) is not type(tower):
        raise BedstoneError(
            f"image_init: its image tower is a {type(tower).__name__}, where a "
            f"{'ResNet' if isinstance(own, ResNetTokens) else 'ViT'} is needed. Choose the layout "
            "that has such a tower: blip for a ViT, blip_resnet for a ResNet."
        )
    alike = () if isinstance(own, ResNetTokens) else ("heads", "activation")  # heads are the pool's
    _same(own.config, tower.config, "image_init", "model.image", alike)
    return _take(own, given, "image_init", "model.image")


def take_text(network: Blip, source: nn.Module) -> list[str]:
    """Fills encoder and decoder, and the decoder's word head, from a BERT or another VLM.

    A BERT's first segment, which each of its tokens is of, goes into the positions. The words must
    be the same tokens: the caller sees to it that the tokenizer is the BERT's own; words that were
    added behind its vocabulary stay fresh.

    Returns:
        Parameters of encoder, decoder and head that stay fresh.

    Raises:
        BedstoneError: it is of another kind, or a shape differs; nothing was taken.
    """
    body = _texts_of(source)
    if body is None:
        raise BedstoneError(
            f"text_init: a {type(source).__name__} has no text that reads as BLIP's does; take a "
            "bert or another BLIP."
        )
    config, given, words = body
    shape = ("heads", "activation")
    _same(network.config.text, config, "text_init", "model.text", shape)
    places: list[tuple[str, nn.Module | None, dict[str, Tensor]]] = [
        ("encoder", network.encoder, given),
        ("decoder", network.decoder, given),
        ("head", network.head, words),
    ]
    parts = [(name, own, found) for name, own, found in places if own is not None]
    for _, own, found in parts:  # all are checked before one is filled
        _fitting(own, _grown(own, found), "text_init", "model.text")
    fresh = []
    for name, own, found in parts:
        left = _take(own, _grown(own, found), "text_init", "model.text")
        fresh += [f"{name}.{each}" for each in left]
    network.tie()
    return [name for name in fresh if name not in network.ties]


def _texts_of(source: nn.Module) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]] | None:
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


def _same(own: Any, given: Any, what: str, where: str, names: tuple[str, ...]) -> None:
    """Raises BedstoneError where what no weight's shape shows differs."""
    for name in names:
        mine, theirs = getattr(own, name, None), getattr(given, name, None)
        if None not in (mine, theirs) and mine != theirs:
            raise BedstoneError(
                f"{what}: has {name} {theirs!r}, {where}.{name} is {mine!r}. Set it to {theirs!r}."
            )


def _fitting(own: nn.Module, given: dict[str, Tensor], what: str, where: str) -> dict[str, Tensor]:
    """Of `given` what this module has.

    Raises:
        BedstoneError: a shape differs, or nothing of it is there.
    """
    state = own.state_dict()
    found = {name: weight for name, weight in given.items() if name in state}
    for name, weight in found.items():
        if weight.shape != state[name].shape:
            raise BedstoneError(
                f"{what}: its {name} has the shape {tuple(weight.shape)}, {where} asks for "
                f"{tuple(state[name].shape)}. Give {where} the shape of what it begins with."
            )
    deep = {name.split(".")[1] for name in given if name.startswith("stack.")}
    here = {name.split(".")[1] for name in state if name.startswith("stack.")}
    if deep != here and deep:
        raise BedstoneError(
            f"{what}: has {len(deep)} blocks, {where}.layers is {len(here)}. Set it to {len(deep)}."
        )
    return found


@torch.no_grad()
def _take(own: nn.Module, given: dict[str, Tensor], what: str, where: str) -> list[str]:
    """Fills what is there in both; the names of what stays fresh."""
    found = _fitting(own, given, what, where)
    state = own.state_dict()
    for name, weight in found.items():
        state[name].copy_(weight)
    return sorted(set(state) - set(found))


# The model that a run goes on from, where its recipe names one in `init`.


class Start(Protocol):
    """What is read of a recipe."""

    @property
    def init(self) -> str: ...
    @property
    def model(self) -> dict[str, Any]: ...


def initial_model(recipe: Start, layouts: Sequence[str], fault: str, hint: str = "") -> Model:
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


def freeze(tower: nn.Module) -> None:
    """A tower that stays as it is: no gradient, and never in training mode, for its statistics."""
    tower.requires_grad_(False)
    tower.eval()
    tower.train = lambda mode=True: tower  # type: ignore[method-assign]


def weight_counts(model: Model) -> tuple[int, int]:
    """How many weights there are, and how many of them learn."""
    weights = list(model.network.parameters())
    return sum(w.numel() for w in weights), sum(w.numel() for w in weights if w.requires_grad)
