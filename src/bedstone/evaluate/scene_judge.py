"""The scene judge: a network that detects which objects a generated scene shows.

A picture that was made from words is right where each thing that they state is seen, of its shape
and its colour, as often as they say. `scene_learning` trains the judge, and says how often it is
right of real drawings.

Shapes: B pictures, S pixels of a side, P shapes, K colours.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.checkpoints.tensors import load_tensors, save_tensors
from bedstone.data.scenes.captions import NUMBERS, check_caption, read_caption
from bedstone.data.scenes.world import COLOURS, SHAPES, Scene
from bedstone.errors import BedstoneError
from bedstone.files import atomic_folder, write_json
from bedstone.models.resnet.network import initialise_convolutions
from bedstone.nn.convolution import Basic, ConvNorm
from bedstone.reading import is_plain, read_object
from bedstone.settings import Settings, from_mapping, whole

SHRINK = 4  # pixels of a cell's side


@dataclass(frozen=True)
class SceneGridConfig(Settings):
    """The shape of a network that reads scenes.

    Attributes:
        size: of the pictures, which are square, in pixels, S.
        width: channels at half the picture's resolution; the grid has twice as many, D.
        blocks: residual blocks of the grid.
        sizes, shapes, colours: how many of each there are, Z, P and K.
    """

    size: int = whole(1, default=32)
    width: int = whole(1, default=48)
    blocks: int = whole(1, default=1)
    sizes: int = whole(1, default=3)
    shapes: int = whole(1, default=8)
    colours: int = whole(1, default=10)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % SHRINK:
            raise BedstoneError(
                f"size: pictures of {self.size} pixels aren't divided by cells of {SHRINK}; choose "
                "a multiple."
            )

    @property
    def side(self) -> int:
        """Cells of a side, G."""
        return self.size // SHRINK


class SceneGrid(nn.Module):
    """Pictures (B, 3, S, S) in [-1, 1] to logits of cells (B, Z, 1 + P + K, G, G): a thing's share,
    shapes, colours."""

    def __init__(self, config: SceneGridConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        # Full resolution costs most and is not needed: a cell of 2 by 2 pixels has 12 numbers.
        self.stem = nn.Sequential(ConvNorm(3, width, 3, stride=2), ConvNorm(width, width, 3))
        blocks = [Basic(2 * width, 2 * width) for _ in range(config.blocks)]
        self.blocks = nn.Sequential(Basic(width, 2 * width, 2), *blocks)
        self.parts = 1 + config.shapes + config.colours
        self.out = nn.Conv2d(2 * width, config.sizes * self.parts, 1)

    def maps(self, images: Tensor) -> Tensor:
        """The last map, (B, D, G, G)."""
        x = images
        return self.blocks(self.stem(x))

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.maps(images)).unflatten(1, (-1, self.parts))


def counts(cells: Tensor, config: SceneGridConfig) -> Tensor:
    """How many things of each shape and colour there are by logits of cells, (B, P, K), fp32."""
    share, shape, colour = cells.float().split([1, config.shapes, config.colours], 2)
    seen = shape.softmax(2) * share.sigmoid()  # (B, Z, P, G, G)
    return torch.einsum("bzpij,bzkij->bpk", seen, colour.softmax(2))


def build(config: SceneGridConfig, *, seed: int | None = None) -> SceneGrid:
    """A network with fresh weights, drawn from `seed` if one is given."""
    if seed is not None:
        torch.manual_seed(seed)
    network = SceneGrid(config)
    initialise_convolutions(network)
    # Of 64 cells few hold anything: begin with that, so that the first steps teach something else.
    nn.init.normal_(network.out.weight, std=0.01)
    bias = network.out.bias
    assert bias is not None
    with torch.no_grad():
        bias.zero_()
        bias[:: network.parts] = -4.0
    return network


SCENE_GRID = "bedstone_scene_grid"  # `model_type` of its folder

# How many of each (shape, colour); of what is stated, "" where either is left open.
Things = Counter[tuple[str, str]]

_NAMES = tuple(COLOURS)


class SceneJudge:
    """A trained network, and what it says of pictures."""

    def __init__(self, network: SceneGrid, record: dict[str, Any] | None = None) -> None:
        self.network = network.eval()
        self.record = record or {}

    @property
    def size(self) -> int:
        """Of the pictures it reads, in pixels."""
        return self.network.config.size

    @torch.inference_mode()
    def counts(self, images: Tensor, batch: int = 256) -> Tensor:
        """How many of each shape and colour are seen, (B, P, K), in fractions.

        Args:
            images: (B, 3, S, S), about [-1, 1], at the size that it reads.

        Raises:
            BedstoneError: they have another shape, or values that are not finite.
        """
        size = (3, self.size, self.size)
        if images.ndim != 4 or tuple(images.shape[1:]) != size:
            raise BedstoneError(
                f"scene judge: pictures of shape {tuple(images.shape)} were given; it reads "
                f"(B, {size[0]}, {size[1]}, {size[2]}). Train one for their size."
            )
        for row in (~images.isfinite().flatten(1).all(1)).nonzero()[:1, 0].tolist():
            raise BedstoneError(
                f"scene judge: picture {row} holds values that are not finite. Look at how it was "
                "drawn."
            )
        config, parts = self.network.config, []
        for part in images.split(batch):
            whole = ((part.float() + 1) * 127.5).round().clamp(0, 255)  # what a file holds
            parts.append(counts(self.network(whole / 127.5 - 1), config))
        return torch.cat(parts) if parts else torch.zeros(0, len(SHAPES), len(_NAMES))

    def things(self, images: Tensor) -> list[Things]:
        """What each picture shows; arguments and errors are those of `counts`."""
        found = []
        for seen in self.counts(images).round().int():
            places = seen.nonzero().tolist()
            found.append(Counter({(SHAPES[p], _NAMES[k]): int(seen[p, k]) for p, k in places}))
        return found

    def save(self, folder: str | Path) -> Path:
        """Writes `config.json`, `model.safetensors` and `bedstone.json`, whole or not at all."""
        folder = Path(folder)
        with atomic_folder(folder) as made:
            write_json(
                made / "config.json", {"model_type": SCENE_GRID, **asdict(self.network.config)}
            )
            save_tensors(made, self.network.state_dict())
            write_json(made / "bedstone.json", self.record)
        return folder


def open_scene_judge(folder: str | Path) -> SceneJudge:
    """The judge that `SceneJudge.save` wrote.

    Raises:
        BedstoneError: there is none, or its files don't fit each other.
    """
    folder = Path(folder)
    if not is_plain(folder / "config.json"):
        raise BedstoneError(
            f"{folder}: holds no judge of scenes. Train one: python bench/scene_judge.py {folder}"
        )
    values = read_object(folder / "config.json")
    kind = values.pop("model_type", None)
    if kind != SCENE_GRID:
        raise BedstoneError(
            f"{folder}: is of the kind {kind!r}; a judge of scenes is {SCENE_GRID!r}."
        )
    network = SceneGrid(from_mapping(SceneGridConfig, values, str(folder / "config.json")))
    tensors, wanted = load_tensors(folder), network.state_dict()
    wrong = [
        key for key in wanted if tensors.get(key, wanted[key][..., None]).shape != wanted[key].shape
    ]
    if wrong or len(tensors) != len(wanted):
        odd = wrong[0] if wrong else min(set(tensors) - set(wanted))
        raise BedstoneError(
            f"{folder / 'model.safetensors'}: tensor {odd!r} is not what config.json asks for. "
            "Train the judge again."
        )
    network.load_state_dict(tensors)
    record = folder / "bedstone.json"
    return SceneJudge(network, read_object(record, finite=False) if is_plain(record) else {})


@dataclass(frozen=True)
class SceneFigures:
    """How much of what was asked for pictures show, as shares.

    Attributes:
        right: of pictures in which each stated thing is seen, as often as stated.
        things: of stated things that are seen.
        shapes: of pictures in which each stated shape is seen, of whatever colour.
        colours: of pictures in which each stated colour is seen, of whatever shape.
        exact: of pictures with each stated thing and no other.
        count: pictures.
    """

    right: float
    things: float
    shapes: float
    colours: float
    exact: float
    count: int


def judge_scenes(seen: Sequence[Things], prompts: Sequence[Things]) -> SceneFigures:
    """Compares what pictures show with what was asked for.

    Args:
        seen: of `SceneJudge.things`.
        asked: of `stated`, or what is in drawn scenes.

    Raises:
        BedstoneError: there are none, or not as many of both.
    """
    if not prompts or len(seen) != len(prompts):
        raise BedstoneError(
            f"scene judge: {len(seen)} pictures and {len(prompts)} prompts were given; expected "
            "one prompt for each picture."
        )
    rows, seen_of, wanted_of = [], 0, 0
    for there, wanted in zip(seen, prompts, strict=True):
        found = [min(_matching(there, *pair), count) for pair, count in wanted.items()]
        right = sum(found) == wanted.total()
        exact = right and there.total() == wanted.total()
        rows.append((right, _holds(there, wanted, 0), _holds(there, wanted, 1), exact))
        seen_of += sum(found)
        wanted_of += wanted.total()
    right, shapes, colours, exact = (sum(each) / len(rows) for each in zip(*rows, strict=True))
    things = seen_of / wanted_of if wanted_of else math.nan
    return SceneFigures(right, things, shapes, colours, exact, len(rows))


def stated(text: str) -> Things:
    """The things that a text states: "two red hearts and a star" are 2 (heart, red), 1 (star, "").

    Sizes, places and what stands where are not judged.

    Raises:
        BedstoneError: it states no shape or colour.
    """
    found: Things = Counter()
    for piece in read_caption(text):
        if piece.kind == "thing":
            shape, count = piece.word("shape"), piece.word("count")
            kind = ("" if shape == "object" else shape, piece.word("colour"))
            found[kind] += NUMBERS.index(count) if count in NUMBERS else 1
    found = +found  # "no circles" asks for nothing to be seen
    del found["", ""]
    if not found:
        raise BedstoneError(
            f"prompt {text!r}: states no thing that could be looked for, such as 'a red circle'."
        )
    return found


def described(scene: Scene, text: str) -> float:
    """How well a text describes a scene, from 0 to 1: the share of its statements that are true,
    times the share of the scene's things that it names, by their shape or their colour.

    1 is a text of true statements alone that leaves no thing out; 0 one that states nothing.
    """
    stated_facts, true = check_caption(scene, text)
    if not true:
        return 0.0
    try:
        named = list(stated(text).elements())
    except BedstoneError:  # of a sign or a background alone
        return 0.0
    return true / stated_facts * _named(scene, named) / len(scene.objects)


def _named(scene: Scene, named: Sequence[tuple[str, str]]) -> int:
    """How many things are named, each by one of (shape, colour) at most: a matching of both."""
    owner: dict[int, int] = {}  # which of the named each thing is

    def find(number: int, tried: set[int]) -> bool:
        shape, colour = named[number]
        for place, thing in enumerate(scene.objects):
            if place in tried or shape not in ("", thing.shape) or colour not in ("", thing.colour):
                continue
            tried.add(place)
            if place not in owner or find(owner[place], tried):
                owner[place] = number
                return True
        return False

    return sum(find(number, set()) for number in range(len(named)))


def _matching(there: Things, shape: str, colour: str) -> int:
    """How many are of a shape and a colour, either of which may be open."""
    return sum(
        count
        for (one, other), count in there.items()
        if shape in ("", one) and colour in ("", other)
    )


def _holds(there: Things, wanted: Things, part: int) -> bool:
    """Whether all shapes (part 0) or all colours (part 1) are there, as often as wanted."""
    of_there, of_wanted = (Counter[str](), Counter[str]())
    for counted, things in ((of_there, there), (of_wanted, wanted)):
        for pair, count in things.items():
            counted[pair[part]] += count
    del of_wanted[""]
    return of_wanted <= of_there
