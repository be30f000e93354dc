"""Whole runs: from a recipe to an artefact, stopped in every way and resumed exactly."""

import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch

import bedstone
from bedstone.checkpoints.store import CheckpointStore
from bedstone.commands.train import pretrain, resume
from bedstone.errors import BedstoneError
from bedstone.recipes.base import PretrainRecipe, load_method
from bedstone.settings import from_mapping
from bedstone.train.logs import read_log
from bedstone.train.run import prepare
from runs import (
    WORDS,
    losses,
    make_text,
    recipe_values,
    start,
    stop_after,
    weights_hash,
    write_recipe,
)

pytestmark = pytest.mark.usefixtures("cache")


def make(folder: Path, **changes) -> PretrainRecipe:
    return from_mapping(PretrainRecipe, recipe_values(folder, **changes), "test")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert pretrain(make(folder), quiet=True).done.reason == "finished"
    return folder


def test_a_run_learns_and_leaves_what_it_says(whole):
    run = whole / "run"
    curve = losses(run)
    assert list(curve) == list(range(1, 41))
    assert curve[40] < 0.7 * curve[1]
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert any((run / "tensorboard").iterdir())
    steps = [checkpoint.step for checkpoint in CheckpointStore(run / "checkpoints").list()]
    assert steps == [30, 40]
    model = bedstone.load(run / "model")
    assert model.record["recipe"]["budget"] == "40 steps"
    assert model.record["metrics"]["validation_loss"] < curve[1]
    assert "bedstone generate" in (run / "model" / "README.md").read_text()


def test_the_artefact_opens_in_transformers(whole):
    import transformers

    model = bedstone.load(whole / "run" / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(whole / "run" / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(whole / "run" / "model")
    ids = tokenizer("the cat sees", return_tensors="pt").input_ids
    assert ids[0].tolist() == model.tokenizer.encode("the cat sees")
    with torch.no_grad():
        assert (theirs(ids).logits - model.network(ids)).abs().max() < 1e-4


def test_what_transformers_saves_opens_here(whole, tmp_path):
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(whole / "run" / "model")
    theirs.save_pretrained(tmp_path / "again")
    model, again = bedstone.load(whole / "run" / "model"), bedstone.load(tmp_path / "again")
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name])


def test_seeded_runs_are_equal_and_others_are_not(whole, tmp_path):
    same = pretrain(
        make(tmp_path / "a", data={"source": str(whole / "text"), "validation_share": 0.1}),
        quiet=True,
    )
    assert weights_hash(same.model) == weights_hash(whole / "run" / "model")
    other = make(tmp_path / "b", seed=1)
    assert weights_hash(pretrain(other, quiet=True).model) != weights_hash(same.model)


def kill_and_resume(folder: Path, recipe: Path, kills: int, seed: int) -> int:
    """Starts, kills -9 at random moments, resumes until the run is done; returns the kills."""
    draw = random.Random(seed)
    log, model = folder / "run" / "log.jsonl", folder / "run" / "model"
    process, landed = start("pretrain", recipe), 0
    while landed < kills:
        began = log.stat().st_size if log.exists() else 0
        while process.poll() is None and (log.stat().st_size if log.exists() else 0) == began:
            time.sleep(0.002)  # until it has come to its first step
        time.sleep(draw.random() * 0.4)
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), out
        if process.returncode == 0 or model.exists():
            return landed  # it was over before
        landed += 1
        checkpoints = CheckpointStore(folder / "run" / "checkpoints")
        again = ("resume", folder / "run") if checkpoints.latest() else ("pretrain", recipe)
        process = start(*again)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return landed


def check_killed_run(folder: Path, text: Path, kills: int, steps: int) -> None:
    data = {"source": str(text), "validation_share": 0.1}
    shape = {"data": data, "budget": f"{steps} steps", "save_every": 5}
    straight = pretrain(make(folder / "straight", **shape), quiet=True)
    recipe = write_recipe(folder / "killed", **shape)
    assert kill_and_resume(folder / "killed", recipe, kills, seed=kills) == kills
    assert losses(folder / "killed" / "run") == losses(straight.run)
    assert weights_hash(folder / "killed" / "run" / "model") == weights_hash(straight.model)


@pytest.mark.slow
def test_killed_runs_end_as_if_never_stopped(whole, tmp_path):
    check_killed_run(tmp_path, whole / "text", kills=2, steps=150)


@pytest.mark.slow
def test_twenty_kills(whole, tmp_path):
    check_killed_run(tmp_path, whole / "text", kills=20, steps=1000)


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_signals_save_and_leave(whole, tmp_path, name):
    data = {"source": str(whole / "text"), "validation_share": 0.1}
    recipe = write_recipe(tmp_path, data=data, save_every=1000)
    process = start("pretrain", recipe)
    log = tmp_path / "run" / "log.jsonl"
    while not (log.exists() and len(read_log(log)) >= 2) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(getattr(signal, name))
    out, _ = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it was over before the signal came")
    assert process.returncode == {"SIGTERM": 143, "SIGINT": 130}[name], out
    assert f"Stopped by {name}" in out
    done = resume(tmp_path / "run", quiet=True)
    assert weights_hash(done.model) == weights_hash(whole / "run" / "model")
    assert losses(tmp_path / "run") == losses(whole / "run")


def test_streaming_learns_and_resumes_exactly(tmp_path, monkeypatch):
    data = {"source": str(make_text(tmp_path / "text")), "validation_share": 0.1, "streaming": True}
    straight = pretrain(make(tmp_path / "a", data=data), quiet=True)
    assert losses(tmp_path / "a" / "run")[40] < losses(tmp_path / "a" / "run")[1]
    recipe = make(tmp_path / "b", data=data)
    stop_after(monkeypatch, 25)
    assert pretrain(recipe, quiet=True).done.reason == "SIGTERM"
    monkeypatch.undo()
    again = resume(recipe.out, quiet=True)
    assert weights_hash(again.model) == weights_hash(straight.model)


def test_accumulation_is_one_big_batch(tmp_path, whole):
    data = {"source": str(whole / "text"), "validation_share": 0.1}
    shape = {"budget": "6 steps", "precision": "fp32", "data": data}
    one = pretrain(make(tmp_path / "a", batch_size=8, accumulate=1, **shape), quiet=True)
    many = pretrain(make(tmp_path / "b", batch_size=2, accumulate=4, **shape), quiet=True)
    got, want = (read_log(done.run / "log.jsonl") for done in (many, one))
    assert len(got) == len(want) >= 6
    for ours, other in zip(got, want, strict=True):
        # Optimizers hide a factor on the gradient; its norm before they see it does not.
        for name in {"loss", "gradient_norm"} & set(other):
            assert ours[name] == pytest.approx(other[name], rel=0.01), name
    assert sum("gradient_norm" in line for line in want) == 6


@pytest.mark.slow
def test_time_budgets_end_on_time(tmp_path):
    began = time.monotonic()
    done = pretrain(make(tmp_path, budget="6s", evaluate_every=0), quiet=True).done
    assert done.reason == "finished"
    assert 4.0 < done.seconds < 7.5
    assert time.monotonic() - began < 30
    rates = [r["learning_rate"] for r in read_log(tmp_path / "run" / "log.jsonl") if "loss" in r]
    assert rates[-1] < 0.25  # the decay came to its end


def test_going_on_from_a_model(whole, tmp_path):
    first = losses(whole / "run")
    more = make(tmp_path, init=str(whole / "run" / "model"), model={}, budget="3 steps")
    more.data.source = str(whole / "text")
    more.optim.lr = more.optim.adamw_lr = 1e-5
    done = pretrain(more, quiet=True)
    assert losses(done.run)[1] < 0.7 * first[1]


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path, monkeypatch):
    from bedstone.recipes import causal_lm as command

    loss, calls = command.next_token_loss, []

    def poisoned(network, batch):
        total, count = loss(network, batch)
        calls.append(batch.number)
        if network.training and batch.number == 31:
            seen.update({k: v.clone() for k, v in network.state_dict().items()})
            nets.append(network)
            total = total * float("nan")
        return total, count

    seen, nets = {}, []
    monkeypatch.setattr(command, "next_token_loss", poisoned)
    with pytest.raises(
        BedstoneError, match=r"step 16: the loss is nan, in batch 31: .*step-00000010"
    ):
        pretrain(make(tmp_path), quiet=True)
    for name, value in nets[0].state_dict().items():
        assert torch.equal(value, seen[name])


def test_changed_data_is_refused_on_resume(tmp_path, monkeypatch):
    recipe = make(tmp_path)
    stop_after(monkeypatch, 12)
    pretrain(recipe, quiet=True)
    (tmp_path / "text" / "000.txt").write_text("other words\n")
    with pytest.raises(BedstoneError, match="has changed since the run"):
        resume(recipe.out, quiet=True)


def test_a_damaged_last_checkpoint_is_passed_over(whole, tmp_path, monkeypatch):
    data = {"source": str(whole / "text"), "validation_share": 0.1}
    recipe = make(tmp_path, data=data)
    stop_after(monkeypatch, 25)
    pretrain(recipe, quiet=True)
    monkeypatch.undo()
    file = tmp_path / "run" / "checkpoints" / "step-00000025" / "model.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-5] ^= 1
    file.write_bytes(damaged)
    with pytest.warns(UserWarning, match="damaged"):
        again = resume(recipe.out, quiet=True)
    assert weights_hash(again.model) == weights_hash(whole / "run" / "model")


def test_no_room_is_said_before_the_run(tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(BedstoneError, match="GB are free"):
        pretrain(make(tmp_path), quiet=True)


@pytest.mark.slow
def test_compiled_training_learns_the_same(tmp_path, whole):
    data = {"source": str(whole / "text"), "validation_share": 0.1}
    shape = {"budget": "4 steps", "precision": "fp32", "data": data}
    plain = pretrain(make(tmp_path / "a", **shape), quiet=True)
    compiled = pretrain(make(tmp_path / "b", compile=True, **shape), quiet=True)
    assert losses(compiled.run) == pytest.approx(losses(plain.run), rel=1e-4)
    assert json.loads((compiled.model / "config.json").read_text())["model_type"] == "qwen3"


def answers(folder: Path, **data) -> PretrainRecipe:
    """A recipe on lines ` input -> output`, of which the outputs alone are learnt."""
    text = folder / "lines"
    text.mkdir(exist_ok=True)
    for number in range(30):
        lines = [f" {WORDS[k % 11]} -> {WORDS[(k + number) % 11]}\n" for k in range(30)]
        (text / f"{number}.txt").write_text("".join(lines))
    data = {"source": str(text), "validation_share": 0.2, "answers": " ->", **data}
    return make(folder, data=data)


def test_answers_alone_are_learnt(tmp_path):
    recipe = answers(tmp_path)
    assert pretrain(recipe, quiet=True).done.reason == "finished"
    lines = read_log(tmp_path / "run" / "log.jsonl")
    logged = [each for each in lines if "validation_loss" in each]
    assert logged and all("validation_bits_per_byte" not in each for each in logged)
    plan = prepare(load_method("causal_lm"), recipe, None, quiet=True)
    splits, tokenizer = plan.splits, plan.model.tokenizer
    for split in (splits.train, splits.validation):
        kept = tokenizer.decode(split.tokens[split.targets].tolist())
        assert set(kept.replace("\n", " ").split()) <= set(WORDS)
        assert kept.count("\n") == kept.count(" ") > 100


@pytest.mark.parametrize(
    "data, message",
    [
        ({"answers": " => "}, "and none begins with it; expected one"),
        ({"answers": "x"}, "no line of the train split has this text"),
        ({"streaming": True}, "Leave data.streaming out"),
    ],
)
def test_answers_that_can_t_be_found_are_refused(data, message, tmp_path):
    recipe = answers(tmp_path, **data)
    with pytest.raises(BedstoneError, match=r"data\.answers") as error:
        pretrain(recipe, quiet=True)
    assert message in str(error.value)
