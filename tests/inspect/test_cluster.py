"""The plan on paper: measured points of others, failures and checkpoints, what can't be planned."""

import json
import math

import pytest

from bedstone.cli import main
from bedstone.errors import BedstoneError
from bedstone.inspect.cluster import (
    BANDWIDTH,
    GIB,
    GPUS,
    KERNELS,
    LAUNCH,
    Gpu,
    How,
    Mesh,
    estimate,
    plan_cluster,
    reliability,
    sizes,
)
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.runtime import without_weights

# Of the machines of torchtitan's benchmarks: 96 GB at 2.4 TB/s, 500 W.
TITAN = Gpu(989e12, 1979e12, 96e9, 2.4e12, 450e9, 50e9, 500)


def llama(width: int, layers: int, heads: int, hidden: int, **more) -> GPTConfig:
    shape = {"vocab_size": 128_256, "kv_heads": 8, "tied": False, **more}
    return GPTConfig("llama", width=width, layers=layers, heads=heads, hidden=hidden, **shape)


B8 = llama(4096, 32, 32, 14336)
B70 = llama(8192, 80, 64, 28672)
B405 = llama(16384, 126, 128, 53248)
EAGER, COMPILED, FP8 = (How(2, 8192, compiled=c, fp8=f) for c, f in ((0, 0), (1, 0), (1, 1)))
TWO, THREE = (How(rows, 8192, fp8=True, again="all", overlapped=True) for rows in (16, 32))
# Tokens a second and GPU, and GiB: benchmarks/llama3_h100_202412_torchtitan.md, tables 1, 3, 4, 5.
POINTS = [
    (B8, Mesh(8), EAGER, 5762, 82.4),
    (B8, Mesh(8), COMPILED, 6667, 77.0),
    (B8, Mesh(8), FP8, 8532, 76.8),
    (B8, Mesh(128), EAGER, 5605, 67.0),
    (B8, Mesh(128), COMPILED, 6514, 62.0),
    (B8, Mesh(128), FP8, 8380, 61.8),
    (B70, Mesh(32, 8), How(16, 8192, fp8=True, again="all"), 829, 71.9),
    (B70, Mesh(32, 8), TWO, 876, 67.6),
    (B405, Mesh(8, 8, 8), THREE, 100, 82.5),
    (B405, Mesh(8, 8, 8, 2), THREE, 128, 72.7),
]


@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"{point[1].text()} {point[3]}")
def test_measured_points_are_met(point):
    config, mesh, how, speed, memory = point
    found = estimate(config, mesh, how, TITAN)
    assert found.speed == pytest.approx(speed, rel=0.15)
    assert found.bytes / GIB == pytest.approx(memory, rel=0.10)


@pytest.mark.parametrize("layout, tied", [("llama", False), ("qwen3", True), ("gpt2", True)])
def test_weights_are_counted(layout, tied):
    config = GPTConfig(layout, vocab_size=500, width=256, layers=3, heads=4, tied=tied)
    with without_weights():
        network = build(config)
    counted = sum(weight.numel() for weight in network.parameters() if weight.dim() > 1)
    places = config.context * config.width if layout == "gpt2" else 0  # learnt positions
    assert sizes(config).all == counted - places


def test_failures_and_checkpoints():
    found = reliability(B405, 1024, writing=60)
    assert found.hours == pytest.approx(49.5, abs=0.1)
    assert found.interval == pytest.approx(4620, rel=0.01)
    assert found.lost == pytest.approx(0.026 + 0.0017, abs=0.001)
    assert reliability(B405, 1024).bytes == 16 * sizes(B405).all


def test_the_bubble_is_that_of_its_schedule():
    one, two = Mesh(8, 8, 8), Mesh(8, 8, 8, 2)
    assert (one.bubble, two.bubble) == (7 / 15, 7 / 23) and one.gpus == 512
    times = estimate(B405, one, THREE, TITAN).times
    busy = sum(value for name, value in times.items() if name not in ("bubble", "fsdp"))
    assert times["bubble"] / (busy + times["bubble"]) == pytest.approx(7 / 15)


def test_a_larger_mesh_holds_less_a_rank_and_the_fastest_that_fits_comes_first():
    memory = [estimate(B8, Mesh(n), COMPILED, TITAN).bytes for n in (8, 16, 128)]
    assert memory == sorted(memory, reverse=True)
    plan = plan_cluster(B70, gpus=1024, gpu="h100", rows=1024, length=8192, tokens=2e12, price=2.5)
    speeds = [each.speed for each in plan.found]
    assert speeds == sorted(speeds, reverse=True)
    assert all(each.bytes <= GPUS["h100"].memory for each in plan.found)
    per_second = plan.found[0].speed * 1024 * (1 - plan.safety.lost)
    assert plan.hours == pytest.approx(2e12 / per_second / 3600)
    assert any("Young" in line for line in plan.lines())


def test_batches_of_one_step_take_their_time_and_no_more_memory():
    given = {"gpus": 8, "gpu": "h100", "length": 8192, "tokens": 1e9}
    one = plan_cluster(B8, rows=8, **given).found[0]
    four = plan_cluster(B8, rows=8, batches=4, **given).found[0]
    assert (four.memory, four.tokens) == (one.memory, 4 * one.tokens)
    assert four.sent["fsdp"] == pytest.approx(4 * one.sent["fsdp"])
    optimizer = 28 * sizes(B8).all / 8 / (BANDWIDTH * GPUS["h100"].bandwidth)  # once a step
    assert four.seconds == pytest.approx(4 * one.seconds - 3 * optimizer)
    assert one.times["launching"] == 0


def test_a_small_model_is_held_up_by_the_launches_of_its_kernels():
    small = llama(64, 2, 4, 192, vocab_size=300, kv_heads=4)
    found = plan_cluster(small, gpus=1, gpu="h100", rows=8, length=64, tokens=1e6).found[0]
    assert found.times["launching"] > 0.9 * found.seconds
    assert found.seconds == pytest.approx(3 * KERNELS["compile"] * LAUNCH, rel=0.1)
    assert found.speed < 1.5e6


def test_what_cannot_be_planned():
    with pytest.raises(BedstoneError, match="--gpu: 'h1000' is unknown; perhaps 'h100'"):
        plan_cluster(B8, gpus=8, gpu="h1000", rows=8, length=512, tokens=1e9)
    with pytest.raises(BedstoneError, match="can't be split"):
        plan_cluster(B8, gpus=1024, gpu="h100", rows=3, length=512, tokens=1e9)
    with pytest.raises(BedstoneError, match="the least needs"):
        plan_cluster(B405, gpus=8, gpu="h100", rows=8, length=8192, tokens=1e9)


def test_the_command(capsys):
    shape = "model={layout: llama, width: 1024, layers: 8, heads: 8}"
    words = ["plan", "tinyshakespeare", shape, "context=1024", "batch_size=64", "accumulate=1"]
    assert main([*words, "budget=1B tokens", "--gpus", "64", "--json", "--price-hour", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["gpu"] == "h100" and found["meshes"][0]["mesh"] == "FSDP 64"
    assert math.isclose(found["cost"], found["hours"] * 64 * 2)
    assert main([*words, "budget=2h", "--gpus", "64"]) == 2
    assert "says nothing of another machine" in capsys.readouterr().err
    assert main(["plan", "clip-scenes", "--gpus", "8"]) == 2
    assert "this is of contrastive" in capsys.readouterr().err
