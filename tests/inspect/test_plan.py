"""Plans: work and memory beside other ways of counting them, time, energy, and the command."""

import json
import time
from datetime import datetime

import pytest
import torch
from torch import nn

from bedstone.cli import main
from bedstone.inspect.plan import (
    Plan,
    Timing,
    _evaluated,
    count_flops,
    energy_counters,
    joules_between,
)
from bedstone.recipes.base import method_of, read
from bedstone.runtime import Precision
from bedstone.train.memory import (
    HOLES,
    Foretelling,
    Memory,
    counted_saves,
    optimizer_bytes,
    predict_memory,
)
from bedstone.train.optim import OptimConfig, build_optimizer
from bedstone.train.run import prepare
from runs import make_text, recipe_values, write_recipe

FP32 = Precision(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A run made ready, with a micro-batch of it."""
    folder = tmp_path_factory.mktemp("plan")
    recipe = read(recipe_values(folder, precision="fp32"))
    plan = prepare(method_of(recipe), recipe, None, quiet=True)
    return plan, next(plan.batches)


def test_flops_are_those_that_hooks_count(ready):
    plan, batch = ready
    network = plan.model.network
    counted = 0

    def hook(module: nn.Linear, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        nonlocal counted
        rows = inputs[0].numel() // module.in_features
        learns = inputs[0].requires_grad + module.weight.requires_grad
        counted += 2 * rows * module.weight.numel() * (1 + learns)

    handles = [
        each.register_forward_hook(hook)
        for each in network.modules()
        if isinstance(each, nn.Linear)
    ]
    found = count_flops(network, plan.objective, batch, FP32)
    for handle in handles:
        handle.remove()
    network.zero_grad()
    config, tokens = network.config, batch.ids.numel()
    # scores and sums of every query with every key; backward 2.5 times as many
    square = 4 * tokens * batch.ids.shape[1] * config.heads * config.head_width * config.layers
    assert found == counted + square * 7 // 2


def test_work_of_a_network_without_attention_is_exact():
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(5, 8)
    found = count_flops(network, lambda net, batch: (net(batch).sum(), 1), x, FP32)
    # forward; backward for weights of both, and for the input of the second
    assert found == 2 * 5 * (2 * 8 * 16 + 3 * 16 * 4)


def test_what_autograd_keeps_is_counted_once():
    weight = nn.Linear(32, 32, bias=False)
    x = torch.randn(16, 32)
    with counted_saves(weight) as saved:
        hidden = weight(x)  # keeps x; the weight is the network's
        (hidden.sigmoid() * hidden).sum()  # keeps the sigmoid, and the product's two sides
    assert saved.bytes == 3 * x.nbytes
    assert saved.largest == x.nbytes


def test_optimizer_states_are_foretold_to_the_byte(ready):
    plan, batch = ready
    for kind in ("adamw", "muon"):
        optimizer = build_optimizer(plan.model.network, OptimConfig(kind=kind))
        foretold = optimizer_bytes(optimizer)
        loss, _ = plan.objective(plan.model.network, batch)
        loss.backward()
        optimizer.step(0.0)
        optimizer.zero_grad()
        states = optimizer.state_dict()
        held = [each.values() for each in states.get("adamw", {}).values()]
        bytes_held = sum(one.nbytes for each in held for one in each)
        bytes_held += sum(each.nbytes for each in states.get("muon", {}).values())
        # a step's number is shared by some, and written for each
        assert foretold == pytest.approx(bytes_held, rel=0.001)


def test_a_prediction_changes_nothing_and_the_run_says_the_same(ready):
    plan, batch = ready
    network = plan.model.network
    optimizer = build_optimizer(network, OptimConfig())
    before = torch.get_rng_state()
    memory = predict_memory(network, plan.objective, batch, optimizer, FP32)
    assert torch.equal(torch.get_rng_state(), before)
    assert memory.peak > memory.ready > memory.weights > 0
    assert memory.activations > 0 and memory.gradients == memory.weights
    plain, _ = plan.objective(network, batch)
    plain.backward()
    wanted = [each.grad.clone() for each in network.parameters()]
    network.zero_grad()
    said: list[str] = []
    watched = Foretelling(plan.objective, optimizer, said.append)
    loss, _ = watched(network, batch)
    loss.backward()
    got = [each.grad.clone() for each in network.parameters()]
    network.zero_grad()
    assert torch.equal(loss, plain) and all(map(torch.equal, wanted, got))
    watched(network, batch)
    assert len(said) == 1 and "peak memory about" in said[0]


def test_time_and_its_interval():
    timing = Timing(1000, [0.1, 0.11, 0.09, 0.1])
    low, high = timing.interval
    assert timing.seconds == pytest.approx(100)
    assert 80 < low < 100 < high < 120
    steady = Timing(1000, [0.1] * 4)
    assert steady.interval == pytest.approx((100, 100))
    now = datetime(2026, 3, 1, 23, 50)
    assert "ends at 23:51" in steady.text(now)
    assert "2026-03-02 01:30" in Timing(60_000, [0.1] * 4).text(now)
    fits = Timing(50, [0.1] * 4, budget=5.0)
    assert fits.seconds == 5 and "fit into 5s" in fits.text(now)


def test_an_evaluation_that_takes_too_long_leaves_gradients_on():
    class Slow:
        def log(self, network):
            with torch.no_grad():
                for _ in range(10**6):
                    torch.ones(8) + torch.ones(8)

    assert _evaluated(Slow(), None, 0.02) is None
    assert torch.is_grad_enabled()

    class Quick:
        def log(self, network):
            with torch.no_grad():
                time.sleep(0.05)  # its time is over where the mode is put back

    assert _evaluated(Quick(), None, 0.02) is not None
    assert torch.is_grad_enabled()


def test_energy_is_labelled(tmp_path):
    plan = Plan("run", "", [], 1, 1, timing=Timing(3600, [1.0] * 3), watts=20.0, price_hour=0.5)
    assert plan.energy == (pytest.approx(0.02), "estimated: 20 W x time; nothing was measured")
    assert plan.record()["cost"]["cost"] == pytest.approx(0.5)
    assert energy_counters(tmp_path) == {}
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "energy_uj").write_text("5000000\n")
    before = energy_counters(tmp_path)
    (package / "energy_uj").write_text("9000000\n")
    assert joules_between(before, energy_counters(tmp_path), 2) == 2.0
    assert joules_between(energy_counters(tmp_path), before, 2) is None  # it began anew
    plan.joules = 2.0
    assert plan.energy is not None and plan.energy[1].startswith("measured")


def test_the_command(tmp_path, capsys):
    path = write_recipe(tmp_path, budget="30 steps")
    assert main(["plan", str(path), "--seconds", "0.2", "--price-hour", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == found["trained_parameters"] > 0
    assert found["time"]["steps"] == 30 and found["time"]["from_seconds"] > 0
    assert found["memory_bytes"]["peak"] > found["memory_bytes"]["weights"]
    assert found["flops_a_step"] > 0 and "energy" in found and "cost" in found
    assert not (tmp_path / "run").exists()
    leaked = tmp_path / "text" / "copy.txt"
    make_text(tmp_path / "held", documents=3, seed=5)
    leaked.write_text((tmp_path / "held" / "001.txt").read_text())
    words = ["plan", str(path), "--seconds", "0", f"data.validation={tmp_path / 'held'}"]
    assert main(words) == 1
    out = capsys.readouterr().out
    assert "error: 1 rows of validation" in out and "steps of" not in out


def test_the_largest_batch_that_fits_is_said(tmp_path, capsys):
    recipe = str(write_recipe(tmp_path, precision="fp32"))
    assert main(["plan", recipe, "--seconds", "1", "--memory-gb", "100", "--json"]) == 0
    roomy = json.loads(capsys.readouterr().out)
    assert roomy["fits"] is True
    memory = Memory(**{k: v for k, v in roomy["memory_bytes"].items() if k != "peak"})
    grows = memory.activations + memory.passing
    assert memory.growth(memory.peak) == pytest.approx(1.0)
    assert memory.growth(memory.peak + HOLES * grows) == pytest.approx(2.0)
    assert memory.growth(memory.peak - grows / 2) == pytest.approx(0.5)
    assert memory.growth(memory.ready / 2) == 0
    tight = f"{0.9 * memory.ready / 1e9:.4f}"
    assert main(["plan", recipe, "--seconds", "1", "--memory-gb", tight]) == 1
    assert "doesn't fit" in capsys.readouterr().out
    for given in (["--gpus", "8", "--memory-gb", "8"], ["--seconds", "0", "--memory-gb", "8"]):
        assert main(["plan", recipe, *given]) == 2
        assert "--memory-gb: " in capsys.readouterr().err


def test_bad_input_gets_one_error(tmp_path):
    path = write_recipe(tmp_path)
    assert main(["plan", str(path), "--seconds", "-1"]) == 2
    assert main(["plan", str(tmp_path / "none.yaml")]) == 2
