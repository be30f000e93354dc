"""Trains the judge of drawn scenes, and measures how often it is right of real drawings.

It learns from endless fresh scenes of all 80 combinations of shape and colour, those too that are
held out from others' training: a judge must know what it judges.

Shapes: B pictures, S pixels of a side, G cells of a side, Z sizes, P shapes, K colours.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.data.scenes.render import draw
from bedstone.data.scenes.world import COLOURS, PAIRS, SHAPES, SIZES, Scene, make_scene
from bedstone.evaluate.scene_judge import SceneGridConfig, SceneJudge, Things, build, judge_scenes
from bedstone.runtime import Precision, pick_device, pick_precision
from bedstone.settings import check_whole

FIRST = 2 * 10**9  # seeds of scenes that it learns from
HELD = 3 * 10**9  # and of those that its accuracy is of
NOISE = 0.06  # deviation, at most, of what is added to drawings, so that grain is no thing

_NAMES, _SIZES = tuple(COLOURS), tuple(SIZES)


@dataclass(frozen=True)
class SceneLearning:
    """How a judge learns.

    Attributes:
        network: its shape.
        steps: optimizer steps.
        batch: pictures of a step, each of which is seen once.
        rate: the largest, of AdamW; it rises over 5 % of the steps and falls to zero.
        objects: the fewest and the most things of a picture.
        seed: of weights and scenes.
    """

    network: SceneGridConfig = field(default_factory=SceneGridConfig)
    steps: int = 2000
    batch: int = 64
    rate: float = 4e-3
    objects: tuple[int, int] = (1, 3)
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 1)
        check_whole("batch", self.batch, 1)


def train_scene_judge(
    learning: SceneLearning | None = None,
    *,
    precision: Precision | None = None,
    told: Callable[[int, float], None] | None = None,
    measured: int = 2000,
) -> SceneJudge:
    """A judge, trained on fresh drawings, with its accuracy in its record.

    Args:
        precision: of matrix products; None takes bf16 where the processor has it.
        told: is handed the step and the loss of a picture, every 50 steps.
        measured: drawings of each kind that its accuracy is of.
    """
    learning = learning or SceneLearning()
    precision = precision or pick_precision("auto", pick_device("cpu"))
    network = build(learning.network, seed=learning.seed)
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kept = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim == 1]
    optim = torch.optim.AdamW(
        [{"params": kept, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=learning.rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optim, learning.rate, total_steps=learning.steps, pct_start=0.05, cycle_momentum=False
    )
    for step, (pictures, target) in enumerate(_batches(learning), 1):
        with precision.autocast():
            cells = network(pictures)
        loss = grid_loss(cells, target, learning.network)
        optim.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optim.step()
        schedule.step()
        if told is not None and step % 50 == 0:
            told(step, float(loss.detach()))
    judge = SceneJudge(network)
    judge.record = {"recipe": asdict(learning), "metrics": accuracy(judge, measured)}
    return judge


def grid_loss(cells: Tensor, target: Tensor, config: SceneGridConfig) -> Tensor:
    """The loss of a picture: of shares by the logistic, of shape and colour where a thing is.

    Args:
        cells: logits, (B, Z, 1 + P + K, G, G).
        target: `grid_target`'s, of the same shape.
    """
    parts = [1, config.shapes, config.colours]
    (share, shape, colour), (there, is_shape, is_colour) = (
        grid.float().split(parts, 2) for grid in (cells, target)
    )
    loss = F.binary_cross_entropy_with_logits(share, there, reduction="sum")
    loss = loss - (is_shape * shape.log_softmax(2)).sum()
    return (loss - (is_colour * colour.log_softmax(2)).sum()) / len(cells)


def grid_target(scene: Scene, side: int) -> np.ndarray:
    """(Z, 1 + P + K, G, G): each thing shared among the four cells round its middle."""
    grid = np.zeros((len(_SIZES), 1 + len(SHAPES) + len(_NAMES), side, side), np.float32)
    for thing in scene.objects:
        x, y = (min(max(at * side - 0.5, 0), side - 1) for at in (thing.x, thing.y))
        left, top = min(int(x), side - 2), min(int(y), side - 2)
        kinds = [1 + SHAPES.index(thing.shape), 1 + len(SHAPES) + _NAMES.index(thing.colour)]
        for row, high in ((top, 1 - (y - top)), (top + 1, y - top)):
            for column, wide in ((left, 1 - (x - left)), (left + 1, x - left)):
                grid[_SIZES.index(thing.size), [0, *kinds], row, column] += high * wide
    grid[:, 0] = grid[:, 0].clip(0, 1)  # where two things share a cell
    return grid


def drawn(scenes: Sequence[Scene], size: int) -> Tensor:
    """Pictures of scenes, (B, 3, S, S) in [-1, 1]."""
    pixels = np.stack([draw(scene, size) for scene in scenes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def in_scene(scene: Scene) -> Things:
    """The things of a drawn scene."""
    return Counter(thing.pair for thing in scene.objects)


def accuracy(judge: SceneJudge, count: int = 2000) -> dict[str, float]:
    """How often the judge is right of real drawings that it has never seen, as shares.

    `one` and `two`: of drawings of one and two things, each of which it sees; `one_exact` and
    `two_exact`: where it sees no others either; `two_held_out`: of drawings with a combination
    that others' training never shows; `pair_least`: of things of that one of the 80 combinations
    that it sees least often; `others`: of drawings judged by what another drawing shows, which
    should be few.

    Args:
        count: drawings of each kind.

    Raises:
        BedstoneError: less than two drawings.
    """
    check_whole("count", count, 2)
    found: dict[str, float] = {}
    hits: Counter[tuple[str, str]] = Counter()
    shown: Counter[tuple[str, str]] = Counter()
    for name, split, objects in (("one", "all", 1), ("two", "all", 2), ("two_held_out", "test", 2)):
        scenes = [
            make_scene(HELD + n, split=split, objects=(objects, objects)) for n in range(count)
        ]
        seen, there = judge.things(drawn(scenes, judge.size)), [in_scene(s) for s in scenes]
        figures = judge_scenes(seen, there)
        found[name] = figures.right
        found[f"{name}_exact"] = figures.exact
        for said, true in zip(seen, there, strict=True):
            hits += said & true
            shown += true
        if name == "two":
            found["others"] = judge_scenes(seen, there[1:] + there[:1]).right
    found["pair_least"] = min(hits[pair] / shown[pair] for pair in PAIRS if shown[pair])
    return found


def _batches(learning: SceneLearning) -> Iterator[tuple[Tensor, Tensor]]:
    """Fresh scenes of all combinations, with a little noise, and what each cell should say."""
    random = torch.Generator().manual_seed(learning.seed)
    size, side = learning.network.size, learning.network.side
    for step in range(learning.steps):
        first = FIRST + (learning.seed * learning.steps + step) * learning.batch
        numbers = range(first, first + learning.batch)
        scenes = [make_scene(n, split="all", objects=learning.objects) for n in numbers]
        pictures = drawn(scenes, size)
        spread = NOISE * torch.rand(len(scenes), 1, 1, 1, generator=random)
        pictures += spread * torch.randn(pictures.shape, generator=random)
        target = np.stack([grid_target(scene, side) for scene in scenes])
        yield pictures, torch.from_numpy(target)
