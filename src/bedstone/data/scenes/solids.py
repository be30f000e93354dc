"""The built-in data `solids`: volumes of one solid each, of random size, place and rotation.

A solid is a signed distance, as Quilez gives them ("distance functions",
iquilezles.org/articles/distfunctions); a turn is a random quaternion (Shoemake 1992, "Uniform
random rotations").

Shapes: D = H = W voxels, P points.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedstone.data.scenes.captions import articles
from bedstone.data.signals.signals import Signals, SignalsConfig, check_memory
from bedstone.errors import BedstoneError, nearest

NAME = "solids"
COUNT, HELD, SIZE = 10_000, 500, (16, 16, 16)  # drawn where a recipe doesn't say
SPLITS = ("train", "validation", "test")
REACH = 1.15  # no point of a solid is farther than this many radii from its middle
RADII = (0.55, 0.8)  # of half the volume's side
LARGE = 0.675  # from here on, a solid is called large

Points = NDArray[np.float32]


def _length(*parts: Points) -> Points:
    return np.sqrt(sum((part * part for part in parts), np.zeros_like(parts[0])))


def _box(p: Points, *halves: float) -> Points:
    away = np.abs(p) - np.array(halves, np.float32)[:, None]
    return _length(*np.maximum(away, 0)) + np.minimum(away.max(0), 0)


def sphere(p: Points) -> Points:
    return _length(*p) - 0.95


def cube(p: Points) -> Points:
    return _box(p, 0.64, 0.64, 0.64)


def cylinder(p: Points) -> Points:
    return np.maximum(_length(p[0], p[1]) - 0.62, np.abs(p[2]) - 0.92)


def cone(p: Points) -> Points:
    """Signed distance of a cone with its base at -0.7 and its tip at 1.1."""
    slope = (_length(p[0], p[1]) * 1.8 + (p[2] - 1.1) * 0.88) / np.float32(np.hypot(1.8, 0.88))
    return np.maximum(slope, -0.7 - p[2])


def torus(p: Points) -> Points:
    return _length(_length(p[0], p[1]) - 0.78, p[2]) - 0.3


def octahedron(p: Points) -> Points:
    return (np.abs(p).sum(0) - 1.15) * np.float32(0.57735)


def cross(p: Points) -> Points:
    bars = [_box(p, *np.roll((1.05, 0.31, 0.31), turn)) for turn in range(3)]
    return np.minimum.reduce(bars)


def plate(p: Points) -> Points:
    return _box(p, 0.78, 0.78, 0.25)


DISTANCES: dict[str, Callable[[Points], Points]] = {
    "sphere": sphere,
    "cube": cube,
    "cylinder": cylinder,
    "cone": cone,
    "torus": torus,
    "octahedron": octahedron,
    "cross": cross,
    "plate": plate,
}
SOLIDS = tuple(DISTANCES)


def solid_of(row: int, split: str = "train", seed: int = 0) -> tuple[str, float, Any]:
    """What a row shows: its solid, its radius in halves of the side, and the chance to draw it by.

    Raises:
        BedstoneError: no such split.
    """
    if split not in SPLITS:
        raise BedstoneError(f"solids: split {split!r} is unknown{nearest(split, SPLITS)}.")
    chance = np.random.default_rng((seed, SPLITS.index(split), row))
    name = SOLIDS[int(chance.integers(len(SOLIDS)))]
    return name, float(chance.uniform(*RADII)), chance


def draw_solid(row: int, side: int, split: str = "train", seed: int = 0) -> np.ndarray:
    """A volume, (1, D, H, W) uint8: the share of each voxel that is inside, to half a voxel."""
    name, radius, chance = solid_of(row, split, seed)
    turn = _turn(chance.uniform(size=3))
    room = 1 - radius * REACH
    middle = chance.uniform(-room, room, size=3)
    line = (np.arange(side, dtype=np.float64) + 0.5) * (2 / side) - 1
    grid = np.stack(np.meshgrid(line, line, line, indexing="ij")).reshape(3, -1)
    own = (turn @ (grid - middle[:, None]) / radius).astype(np.float32)
    inside = np.clip(0.5 - DISTANCES[name](own) * (radius * side / 2), 0, 1)
    return (inside * 255 + 0.5).astype(np.uint8).reshape(1, side, side, side)


def solid_signals(
    data: SignalsConfig,
    condition: str = "class",
    *,
    split: str = "train",
    count: int = 0,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Signals:
    """Volumes with their solid as class, or with captions that say its size too.

    Args:
        count: how many; 0 is as many as `data` says.
        progress: is called with the share done; there is nothing to wait for.

    Raises:
        BedstoneError: they can't be drawn so, or take more memory than they may.
    """
    size = data.size or SIZE
    if len(set(size)) > 1 or size[0] < 8:
        raise BedstoneError(
            f"data.size: {list(size)} was given; solids are drawn in cubes of 8 voxels or more."
        )
    count = count or data.most_rows or (COUNT if split == "train" else HELD)
    check_memory((count, 1, *size), 1, data.memory_mb, NAME)
    found = [solid_of(row, split, seed)[:2] for row in range(count)]
    labels: dict[str, Any] = {}
    if condition == "class":
        labels = {"classes": [SOLIDS.index(name) for name, _ in found], "names": SOLIDS}
    elif condition == "text":
        sized = [f"a {'large' if r >= LARGE else 'small'} {name}" for name, r in found]
        labels = {
            "captions": [
                (said, articles(f"a {name}")) for said, (name, _) in zip(sized, found, strict=True)
            ]
        }
    return Signals(
        partial(draw_solid, side=size[0], split=split, seed=seed),
        kind="volume",
        name=NAME,
        places=[f"{split} solid {row} of seed {seed}" for row in range(count)],
        shape=(count, 1, *size),
        **labels,
    )


def _turn(shares: np.ndarray) -> np.ndarray:
    """A rotation (3, 3) out of three shares, uniform over all there are."""
    low, high = np.sqrt(1 - shares[0]), np.sqrt(shares[0])
    one, other = 2 * np.pi * shares[1], 2 * np.pi * shares[2]
    x, y = low * np.sin(one), low * np.cos(one)
    z, w = high * np.sin(other), high * np.cos(other)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
