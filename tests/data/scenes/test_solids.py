"""Volumes of solids."""

import numpy as np
import pytest

from bedstone.data.scenes.solids import (
    DISTANCES,
    REACH,
    SOLIDS,
    draw_solid,
    solid_of,
    solid_signals,
)
from bedstone.data.signals.signals import SignalsConfig
from bedstone.errors import BedstoneError
from bedstone.recipes.diffusion import DiffusionRecipe
from diffusion_runs import signals_of

PI = np.pi
VOLUMES = {  # by geometry, of a radius of 1
    "sphere": 4 / 3 * PI * 0.95**3,
    "cube": 1.28**3,
    "cylinder": PI * 0.62**2 * 1.84,
    "cone": PI * 0.88**2 * 1.8 / 3,
    "torus": 2 * PI**2 * 0.78 * 0.3**2,
    "octahedron": 4 / 3 * 1.15**3,
    "cross": 3 * 2.1 * 0.62**2 - 2 * 0.62**3,
    "plate": 1.56**2 * 0.5,
}


def test_no_point_of_a_solid_is_farther_than_its_reach():
    line = np.linspace(-1.3, 1.3, 53, dtype=np.float32)
    points = np.stack(np.meshgrid(line, line, line, indexing="ij")).reshape(3, -1)
    for name in SOLIDS:
        inside = DISTANCES[name](points) < 0
        assert 0.9 < np.sqrt((points[:, inside] ** 2).sum(0)).max() <= REACH + 0.01


def test_a_volume_holds_its_solid_whole_and_as_large_as_geometry_says():
    seen = set()
    for row in range(60):
        name, radius, _ = solid_of(row)
        volume = draw_solid(row, 24)
        assert volume.shape == (1, 24, 24, 24) and volume.dtype == np.uint8
        share = (volume / 255).mean() * 8 / radius**3
        assert share == pytest.approx(VOLUMES[name], rel=0.04), name
        walls = [volume[0].take(side, axis) for axis in range(3) for side in (0, -1)]
        assert max(wall.max() for wall in walls) < 255
        seen.add(name)
    assert seen == set(VOLUMES) == set(SOLIDS)


def test_turns_and_places_differ():
    found = [n for n in range(200) if solid_of(n)[0] == "plate"][:3]
    volumes = [draw_solid(row, 16) for row in found]
    assert len({volume.tobytes() for volume in volumes}) == 3
    again = draw_solid(found[0], 16)
    assert np.array_equal(again, volumes[0])
    assert not np.array_equal(draw_solid(found[0], 16, "test"), again)


def test_volumes_as_signals():
    data = SignalsConfig(source="solids", most_rows=200)
    learnt, held = signals_of(DiffusionRecipe(task="class-to-volume", data=data, evaluate_rows=9))
    assert learnt.shape == (1, 16, 16, 16) and learnt.names == SOLIDS and len(held) == 9
    assert SOLIDS[learnt.classes[7]] == solid_of(7)[0] and set(learnt.classes) == set(range(8))
    captioned = solid_signals(data, "text", count=30)
    for row, (said, short) in enumerate(captioned.captions):
        name, radius, _ = solid_of(row)
        assert short.endswith(f" {name}") and said.endswith(name)
        assert ("large" in said) == (radius >= 0.675) and "a octa" not in short
    with pytest.raises(BedstoneError, match="cubes of 8 voxels"):
        solid_signals(SignalsConfig(size=(16, 16, 8)))
    with pytest.raises(BedstoneError, match="split 'tests' is unknown; perhaps 'test'"):
        solid_signals(SignalsConfig(), split="tests")
    with pytest.raises(BedstoneError, match=r"'x.npy' is no \.npz file"):
        signals_of(DiffusionRecipe(task="class-to-volume", data=SignalsConfig(source="x.npy")))
