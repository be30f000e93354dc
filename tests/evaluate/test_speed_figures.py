"""`bedstone info --speed`: figures of each precision, by the engine and by torch."""

import json
import math

import pytest

from bedstone.cli import main
from bedstone.evaluate.speed import PICKED, PRECISIONS, read_rate, speed
from bedstone.measured import FILE
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.nn.fast import kernels

SHAPE = GPTConfig(layout="llama", vocab_size=300, width=64, layers=2, heads=4, context=64)


@pytest.fixture
def network():
    return build(SHAPE, seed=0).eval()


def test_each_precision_has_its_figures(network):
    found = speed(network)
    assert [row["precision"] for row in found["precisions"]] == list(PRECISIONS)
    for row in found["precisions"]:
        assert row["tokens"] > 0 and row["batch"] > 0 and row["prompt"] > 0
    if kernels.library() is None:
        return
    assert found["engine"] == "on" and found["roof_gb_s"] > 0.1
    assert all(row["threads"] >= 1 for row in found["precisions"])
    sizes = [row["megabytes"] for row in found["precisions"]]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 3.5 * sizes[2]
    for row in found["precisions"]:
        assert row["products"] > 0 and row["head"] > 0 and row["rest"] >= 0
        share = row["megabytes"] * row["tokens"] / 1e3 / found["roof_gb_s"]
        assert math.isclose(row["roof_share"], share, rel_tol=1e-6)


def test_without_the_engine_torch_is_measured(network, monkeypatch):
    monkeypatch.setenv("BEDSTONE_ENGINE", "off")
    found = speed(network)
    assert "BEDSTONE_ENGINE" in found["engine"] and math.isnan(read_rate())
    assert {row["backend"] for row in found["precisions"]} == {"torch"}
    assert all(row["roof_share"] is None for row in found["precisions"])


def test_the_command_prints_them(capsys):
    assert main(["info", "python-gpt", "--speed", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["speed"]
    assert len(found["precisions"]) == len(PRECISIONS)
    assert [pick["name"] for pick in found["picked"]] == list(PICKED)
    assert {pick["precision"] for pick in found["picked"][1:]} == {"int8", "int4"}
    assert main(["info", "python-gpt", "--speed"]) == 0
    out = capsys.readouterr().out
    assert "tokens/s" in out and FILE in out


def test_of_a_model_that_writes_no_text_what_was_picked_is_printed(capsys):
    assert main(["info", "python-bert", "--speed"]) == 0
    out = capsys.readouterr().out
    assert "auto: " in out and "tokens/s" not in out
