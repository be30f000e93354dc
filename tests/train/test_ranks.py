"""Runs on several ranks: the same as in one process, whatever becomes of a rank."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import rank_worker
from bedstone.checkpoints.load import open_model
from bedstone.recipes.base import read, train
from bedstone.train.logs import read_log
from method_recipes import RECIPES

pytestmark = pytest.mark.usefixtures("cache")
STEADY = {"budget": "6 steps", "evaluate_every": 3, "log_every": 1, "save_every": 2}


def torchrun(count: int, *words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """The worker on so many ranks, by torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    free = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    more = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return subprocess.run(
        [*launcher, *free, *more, rank_worker.__file__, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def worked(found: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert found.returncode == 0, found.stderr[-6000:]
    return [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]


def write(path: Path, recipe: dict[str, Any], **more: Any) -> Path:
    shared = {"device": "cpu", "precision": "fp32", "log_every": 1}
    values = {**shared, **recipe, **more, "out": str(path.with_suffix(""))}
    path.write_text(yaml.safe_dump(values))
    return path


def figures(run: Path) -> dict[int, tuple[float, float]]:
    """The loss and the gradient's norm of each step."""
    logged = read_log(run / "log.jsonl")
    return {r["step"]: (r["loss"], r["gradient_norm"]) for r in logged if r.get("loss")}


def check_same(one: Path, other: Path, within: float = 1e-5) -> None:
    first, second = figures(one), figures(other)
    assert first.keys() == second.keys() and first
    assert math.isclose(first[1][1], second[1][1], rel_tol=1e-5), "gradient's norm at step 1"
    for step, (loss, _) in first.items():
        assert math.isclose(loss, second[step][0], rel_tol=within), (step, loss, second[step][0])


def gpt(folder: Path) -> dict[str, Any]:
    made = {**RECIPES["causal_lm"](folder), **STEADY, "batch_size": 5}
    made["model"] = {**made["model"], "layers": 2}  # a block of its own, and one piece by piece
    return made


def test_two_ranks_learn_as_one_process(tmp_path):
    """GPT by Muon with rows that don't split evenly, and pairs with negatives of all ranks."""
    small = {"optim": {"kind": "adamw", "adamw_lr": 1e-4}}
    recipes = {"gpt": gpt(tmp_path)}
    (tmp_path / "c").mkdir()
    pairs = RECIPES["contrastive"](tmp_path / "c")
    recipes["pairs"] = {**pairs, **small, "chunk": 0, "budget": "3 steps", "batch_size": 6}
    paths, lone = [], {}
    for name, recipe in recipes.items():
        lone[name] = train(read(write(tmp_path / f"{name}.yaml", recipe)), quiet=True)
        for way in ("ddp", "fsdp"):
            paths.append(write(tmp_path / f"{name}-{way}.yaml", recipe, parallel=way))
    for found in worked(torchrun(2, *paths)):
        out = Path(found["run"]).with_suffix("")
        whole = lone[out.name.partition("-")[0]]
        check_same(whole.run, out)
        assert found["ledger"] == whole.done.ledger
        assert open_model(out / "model").record["metrics"] == pytest.approx(
            whole.done.metrics, rel=1e-3
        )


@pytest.mark.slow
def test_any_number_of_ranks_goes_on_in_mid_epoch(tmp_path):
    """1, 2, 4, 2 and 1 ranks, each stopped at an odd step: the same rows, the same losses."""
    steps = {**gpt(tmp_path), "budget": "11 steps", "evaluate_every": 0, "save_every": 0}
    steps["optim"] = {"lr": 1e-3, "adamw_lr": 1e-4}
    whole = train(read(write(tmp_path / "whole.yaml", steps)), quiet=True)
    path = write(tmp_path / "part.yaml", steps, parallel="fsdp")
    run = path.with_suffix("")
    (one,) = worked(torchrun(1, f"{path}@1"))
    (two,) = worked(torchrun(2, f"{run}@3"))
    (four,) = worked(torchrun(4, f"{run}@5"))
    (again,) = worked(torchrun(2, f"{run}@7"))
    (last,) = worked(torchrun(1, run))
    assert [each["step"] for each in (one, two, four, again, last)] == [1, 3, 5, 7, 11]
    assert last["ledger"] == whole.done.ledger
    assert len({each["ledger"] for each in (one, two, four, again, last)}) == 5
    check_same(whole.run, run)
