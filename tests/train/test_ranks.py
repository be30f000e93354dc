"""Runs on several ranks: the same as in one process, whatever becomes of a rank."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import rank_worker
from bedstone import ranks
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.store import CheckpointStore
from bedstone.errors import BedstoneError
from bedstone.recipes.base import method_of, read, train
from bedstone.train.logs import read_log
from bedstone.train.run import check_spread, prepare
from method_recipes import RECIPES
from runs import weights_hash

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


@pytest.mark.slow
def test_what_is_not_a_number_on_one_rank_stops_all_at_the_same_step(tmp_path):
    path = write(tmp_path / "run.yaml", gpt(tmp_path))
    found = torchrun(2, "--fault", "nan:1:3", "--command", "pretrain", path)
    assert found.returncode != 0
    assert found.stderr.count("rank 1: step 3: the loss is nan") == 1, found.stderr[-3000:]
    assert max(figures(tmp_path / "run")) == 2
    latest = CheckpointStore(tmp_path / "run" / "checkpoints").latest()
    assert latest is not None and latest.step == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stop", "hang"])
def test_a_rank_that_hangs_is_named_with_all_stacks(kind, tmp_path):
    path = write(tmp_path / "run.yaml", gpt(tmp_path))
    begun = time.monotonic()
    found = torchrun(2, "--fault", f"{kind}:1:3", "--command", "pretrain", path)
    assert found.returncode != 0 and time.monotonic() - begun < 120
    said = "rank 1 (process" if kind == "stop" else "rank 1 has been computing step 3"
    assert said in found.stderr, found.stderr[-3000:]
    assert "All ranks stop; their stacks" in found.stderr
    assert "rank_worker.py" in found.stderr and "in one_step" in found.stderr


@pytest.mark.slow
def test_a_killed_rank_is_started_again_from_the_last_checkpoint(tmp_path):
    recipe = {**gpt(tmp_path), "budget": "8 steps"}
    paths = [write(tmp_path / f"{name}.yaml", recipe, parallel="fsdp") for name in ("a", "b")]
    (whole,) = worked(torchrun(2, paths[0]))
    found = torchrun(2, "--fault", "kill:1:6", paths[1], max_restarts=1)
    (again,) = worked(found)
    assert again["ledger"] == whole["ledger"] and again["step"] == 8
    assert weights_hash(tmp_path / "b" / "model") == weights_hash(tmp_path / "a" / "model")


@pytest.mark.slow
@pytest.mark.parametrize("rank, operations", [(0, (3, 9, 20, 31)), (1, (1, 2, 3))])
def test_a_save_that_is_cut_leaves_the_old_checkpoint_or_the_new(rank, operations, tmp_path):
    recipe = {**gpt(tmp_path), "budget": "5 steps"}
    (whole,) = worked(torchrun(2, write(tmp_path / "whole.yaml", recipe)))
    for count in operations:
        path = write(tmp_path / f"cut{count}.yaml", recipe)
        found = torchrun(2, "--fault", f"cut:{rank}:{count}", path, max_restarts=1)
        (again,) = worked(found)
        assert again == {**whole, "run": str(path)}
        run = path.with_suffix("")
        assert weights_hash(run / "model") == weights_hash(tmp_path / "whole" / "model")
        CheckpointStore(run / "checkpoints").latest()


@pytest.mark.slow
def test_a_full_disk_of_one_rank_is_named_and_nothing_changes(tmp_path):
    path = write(tmp_path / "run.yaml", gpt(tmp_path))
    found = torchrun(2, "--fault", "full:1:1", "--command", "pretrain", path)
    assert found.returncode != 0
    assert "rank 1: " in found.stderr and "No space left on device" in found.stderr
    assert CheckpointStore(tmp_path / "run" / "checkpoints").latest() is None


@pytest.mark.parametrize(
    "method, change, said",
    [
        ("autoencoder", {}, "autoencoder learns in one process"),
        ("grpo", {}, "grpo learns in one process"),
        ("kto", {}, "kto learns in one process"),
        ("dpo", {"sft": 0.1}, "sft: "),
        ("image_text", {"task": "joint"}, "weights: "),
        ("contrastive", {"batch_size": 3}, "batch_size: "),
        ("contrastive", {"parallel": "fsdp", "chunk": 3}, "chunk: "),
        ("causal_lm", {"parallel": "fsdp", "compile": True}, "compile: "),
    ],
)
def test_what_ranks_cannot_share_is_refused_by_name(method, change, said, tmp_path):
    made = {"device": "cpu", **RECIPES[method](tmp_path), **change, "method": method}
    recipe = read(made)
    with pytest.raises(BedstoneError, match=said):
        check_spread(method_of(recipe), recipe, 4)


@pytest.mark.parametrize("environment", [{"RANK": "2"}, {"WORLD_SIZE": "x"}, {"MASTER_PORT": "0"}])
def test_an_environment_that_cannot_be_is_refused(environment, monkeypatch):
    sound = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in (sound | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BedstoneError, match="expected a rank from 0"):
        ranks.launched()


@pytest.mark.parametrize("name", ["causal_lm", "masked_lm", "supervised", "seq2seq", "dpo"])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_parts_of_a_batch_are_the_batch(name, count, tmp_path):
    """Losses of parts add up to the batch's, and no row is left out."""
    recipe = {"device": "cpu", "precision": "fp32", **RECIPES[name](tmp_path), "method": name}
    if name == "dpo":
        recipe["sft"] = 0.0
    made = read({**recipe, "out": str(tmp_path / "run")})
    plan = prepare(method_of(made), made, None, quiet=True)
    network, batch = plan.model.network.eval(), next(plan.batches)
    parts = [batch.part(rank, count) for rank in range(min(count, batch.row_count))]
    assert sum(part.row_count for part in parts) == batch.row_count
    assert sum(part.target_count for part in parts) == pytest.approx(batch.target_count)
    with torch.no_grad():
        whole = float(plan.objective(network, batch)[0])
        assert sum(float(plan.objective(network, part)[0]) for part in parts) == pytest.approx(
            whole, rel=1e-5
        )


def test_rows_are_split_as_fsdp_splits_them():
    for rows in (1, 5, 8):
        for count in (1, 2, 3, 4):
            parts = torch.arange(rows).chunk(count)
            sizes = [len(part) for part in parts] + [0] * (count - len(parts))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ranks, "count", lambda count=count: count)
                for rank, size in enumerate(sizes):
                    patch.setattr(ranks, "rank", lambda rank=rank: rank)
                    assert len(range(rows)[ranks.own_rows(rows)]) == size
