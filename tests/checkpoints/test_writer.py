"""Checkpoints written while the training goes on: of the step at which they were asked for."""

import os
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

from bedstone.checkpoints import tensors, writer
from bedstone.checkpoints.state import load_state, save_state
from bedstone.checkpoints.store import Checkpoint, CheckpointStore
from bedstone.checkpoints.tensors import load_tensors, save_tensors
from bedstone.checkpoints.writer import Writer, frozen, has_room, later, postponed, unchanging
from bedstone.errors import BedstoneError
from bedstone.files import sha256
from bedstone.recipes.base import go_on, read, train
from bedstone.train.loop import Trainer
from faults import needs_fork
from method_recipes import RECIPES

pytestmark = pytest.mark.usefixtures("cache")


def test_what_is_put_off_is_done_in_order_and_reads_what_was():
    done: list[object] = []
    later(lambda: done.append("now"))
    weights, record = {"w": torch.ones(3)}, {"metrics": {"loss": 1.0}}
    assert frozen(weights) is weights and unchanging(record) is record
    with postponed() as jobs:
        kept, said = frozen(weights), unchanging(record)
        later(lambda: done.append(kept["w"].tolist()))
        with postponed() as inner:
            later(lambda: done.append("inner"))
        later(lambda: done.append(said))
    assert done == ["now"] and len(jobs) == 2 and len(inner) == 1
    weights["w"].zero_()
    record["metrics"]["loss"] = 2.0
    for job in (*jobs, *inner):
        job()
    assert done == ["now", [1.0, 1.0, 1.0], {"metrics": {"loss": 1.0}}, "inner"]


def test_another_thread_puts_nothing_off(tmp_path):
    with postponed() as jobs:
        thread = threading.Thread(target=save_tensors, args=(tmp_path, {"w": torch.ones(2)}))
        thread.start()
        thread.join()
    assert not jobs and load_tensors(tmp_path)["w"].tolist() == [1, 1]


def test_tensors_and_state_are_those_of_the_step(tmp_path):
    odd = torch.arange(6.0).view(2, 3).T  # not contiguous
    state = {"m": odd, "steps": [1, 2], "half": torch.ones(2, dtype=torch.bfloat16)}
    save_tensors(tmp_path, {"w": odd}, name="now.safetensors")
    save_state(tmp_path / "now", state)
    with postponed() as jobs:
        save_tensors(tmp_path, {"w": odd}, name="later.safetensors")
        save_state(tmp_path / "later", state)
    assert not (tmp_path / "later").exists() and not (tmp_path / "later.safetensors").exists()
    odd += 1
    state["steps"].append(3)
    for job in jobs:
        job()
    for name in ("state.safetensors", "state.json"):
        assert sha256(tmp_path / "now" / name) == sha256(tmp_path / "later" / name)
    assert sha256(tmp_path / "now.safetensors") == sha256(tmp_path / "later.safetensors")
    assert load_state(tmp_path / "later")["steps"] == [1, 2]


def test_a_save_that_fails_is_raised_by_the_next_who_waits(tmp_path):
    store, own = CheckpointStore(tmp_path), Writer()
    store.save(1, lambda folder: (folder / "a").write_text("1"), writer=own)
    own.wait()

    def fails(folder: Path) -> None:
        def job() -> None:
            raise BedstoneError("no room")

        later(job)

    store.save(2, fails, writer=own)
    own.close()
    assert str(own.fault) == "no room"
    with pytest.raises(BedstoneError, match="no room"):
        own.wait()
    own.wait()  # said once
    assert [each.name for each in tmp_path.iterdir()] == ["step-00000001"]
    with pytest.raises(ValueError, match="mistake"):  # in the training's own thread: at once
        store.save(2, lambda folder: (_ for _ in ()).throw(ValueError("mistake")), writer=own)
    assert [each.name for each in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize(
    "available, most, used, room",
    [
        (150, "max", 0, True),
        (149, "max", 0, False),
        (150, "200", 100, False),
        (150, "250", 99, True),
    ],
)
def test_a_copy_is_made_where_there_is_room(available, most, used, room, tmp_path, monkeypatch):
    size = 100 * 1024
    (tmp_path / "meminfo").write_text(f"MemTotal: 9999 kB\nMemAvailable: {available} kB\n")
    for name, value in (("max", most), ("current", used)):
        word = value if value == "max" else str(int(value) * 1024)
        (tmp_path / name).write_text(word + "\n")
    monkeypatch.setattr(writer, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(writer, "LIMITS", (tmp_path / "max", tmp_path / "current"))
    assert has_room(size) is room
    monkeypatch.setattr(writer, "MEMORY", tmp_path / "none")
    monkeypatch.setattr(writer, "LIMITS", (tmp_path / "none", tmp_path / "none"))
    assert has_room(size)


def recipe_of(method: str, folder: Path, out: str, steps: int) -> object:
    shared = {"device": "cpu", "precision": "fp32", "log": [], "evaluate_every": 10**6}
    made = {**RECIPES[method](folder), **shared, "method": method, "keep": 9}
    made.pop("epochs", None)
    made |= {"budget": f"{steps} steps", "save_every": 2, "out": str(folder / out)}
    (folder / f"{out}.yaml").write_text(yaml.safe_dump(made))
    return read(folder / f"{out}.yaml")


SLOW = ("autoencoder", "contrastive", "diffusion", "dpo", "ppo", "sft", "supervised")


@pytest.mark.parametrize(
    "method", ["causal_lm", *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)]
)
def test_the_files_are_those_of_a_save_that_stops_the_run(method, tmp_path, monkeypatch):
    found = {}
    for out, room in (("beside", True), ("stopping", False)):
        monkeypatch.setattr("bedstone.train.loop.has_room", lambda size, room=room: room)
        with monkeypatch.context() as patch:
            patch.setattr(time, "strftime", lambda *given: "now")
            run = train(recipe_of(method, tmp_path, out, 4), quiet=True).run
        checkpoint = Checkpoint.open(run / "checkpoints" / "step-00000002")
        checkpoint.verify()
        files = [each for each in checkpoint.path.rglob("*") if each.is_file()]
        # Of the run's own name and clock there is something in these.
        own = ("README.md", "bedstone.json", "manifest.json", "state.json")
        found[out] = {
            each.relative_to(checkpoint.path).as_posix(): sha256(each)
            for each in files
            if each.name not in own
        } | {"names": sorted(each.name for each in files)}
        found[f"{out} steps"] = load_state(checkpoint.state)["step"]
    assert found["beside"] == found["stopping"] and len(found["beside"]) > 3
    assert found["beside steps"] == found["stopping steps"] == 2


def test_the_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """The writer waits for a later step; what it then writes is of the step before."""
    whole = train(recipe_of("causal_lm", tmp_path, "whole", 6), quiet=True)
    reached, write, step = threading.Event(), tensors._write_file, Trainer.one_step

    def slow(path: Path, *given: object) -> None:
        if threading.current_thread().name == "save" and "step-00000002" in str(path):
            assert reached.wait(60)
        write(path, *given)

    def one_step(self: Trainer, share: float) -> object:
        found = step(self, share)
        if self.step == 3:
            names = [each.name for each in self.store.folder.iterdir()]
            assert all(name.startswith(".step-00000002.tmp") for name in names), names
            reached.set()
        return found

    monkeypatch.setattr(tensors, "_write_file", slow)
    monkeypatch.setattr(Trainer, "one_step", one_step)
    result = train(recipe_of("causal_lm", tmp_path, "beside", 6), quiet=True)
    assert reached.is_set() and result.done.ledger == whole.done.ledger
    for folder in ("checkpoints/step-00000002", "checkpoints/step-00000004", "model"):
        name = f"{folder}/model.safetensors"
        assert sha256(result.run / name) == sha256(whole.run / name), folder


def test_a_disk_that_refuses_stops_the_run_with_its_message(tmp_path, monkeypatch):
    write = tensors._write_file

    def full(path: Path, *given: object) -> None:
        if threading.current_thread().name == "save" and "step-00000004" in str(path):
            raise OSError(28, "No space left on device", str(path))
        write(path, *given)

    with monkeypatch.context() as patch:
        patch.setattr(tensors, "_write_file", full)
        with pytest.raises(BedstoneError, match="No space left on device"):
            train(recipe_of("causal_lm", tmp_path, "run", 9), quiet=True)
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    assert store.latest().step == 2
    assert [each.name for each in store.folder.iterdir()] == ["step-00000002"]
    assert go_on(tmp_path / "run", quiet=True).done.step == 9


@needs_fork
def test_a_run_that_is_killed_while_it_writes_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    whole = train(recipe_of("causal_lm", tmp_path, "whole", 6), quiet=True)
    made, write = recipe_of("causal_lm", tmp_path, "run", 6), tensors._write_file

    def killed(path: Path, *given: object) -> None:
        if threading.current_thread().name == "save" and "step-00000004" in str(path):
            os._exit(97)
        write(path, *given)

    child = os.fork()
    if not child:
        tensors._write_file = killed
        with_code = 1
        try:
            train(made, quiet=True)
        finally:
            os._exit(with_code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 97
    assert CheckpointStore(tmp_path / "run" / "checkpoints").latest().step == 2
    result = go_on(tmp_path / "run", quiet=True)
    assert result.done.ledger == whole.done.ledger
    weights = "model/model.safetensors"
    assert sha256(result.run / weights) == sha256(whole.run / weights)
