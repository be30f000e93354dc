"""A run's checkpoints: whole wherever a save is cut, verified, pruned, and never all gone."""

import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from bedstone import files
from bedstone.checkpoints.state import load_state, save_state
from bedstone.checkpoints.store import Checkpoint, CheckpointStore
from bedstone.checkpoints.tensors import load_tensors, save_tensors
from bedstone.errors import BedstoneError
from faults import disk_calls, every_cut, killed, needs_fork, raised, syncs_by_fsync


def writer(value: int):
    """What training writes: an artefact of two shards, a config, and its state."""

    def write(folder: Path) -> None:
        weights = {"a": torch.full((4,), float(value)), "b": torch.full((4,), float(value))}
        save_tensors(folder, weights, shard_bytes=16)
        files.write_json(folder / "config.json", {"value": value})
        save_state(folder / "state", {"value": value, "moment": torch.full((2,), value)})

    return write


def value_of(checkpoint: Checkpoint) -> int:
    """What was written, if all of it agrees."""
    checkpoint.verify()
    weights = load_tensors(checkpoint.path)
    state = load_state(checkpoint.state)
    values = {json.loads((checkpoint.path / "config.json").read_text())["value"], state["value"]}
    values |= {*weights["a"].tolist(), *weights["b"].tolist(), *state["moment"].tolist()}
    assert len(values) == 1
    return int(values.pop())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def loss(value: float) -> dict[str, float]:
    return {"validation_loss": value}


# Each cut in a process of its own takes half a minute a case.
@pytest.mark.parametrize(
    "run", [raised, pytest.param(killed, marks=[needs_fork, pytest.mark.slow])]
)
@pytest.mark.parametrize(
    ("step", "exchange"),
    [
        pytest.param(200, True, id="new"),
        pytest.param(100, True, id="overwriting"),
        pytest.param(100, False, id="overwriting without exchange"),
    ],
)
def test_a_cut_save_leaves_the_old_or_the_new(tmp_path, monkeypatch, run, step, exchange):
    first, store = tmp_path / "first", CheckpointStore(tmp_path / "run", keep_last=1)
    CheckpointStore(first).save(100, writer(1))

    def prepare():
        shutil.rmtree(store.folder, ignore_errors=True)
        shutil.copytree(first, store.folder)

    def check():
        latest = store.latest()
        assert latest is not None
        assert (latest.step, value_of(latest)) in ((100, 1), (step, 2))
        store.save(300, writer(3))
        assert names(store.folder) == ["step-00000300"]
        assert value_of(store.latest()) == 3

    cuts = every_cut(run, prepare, lambda: store.save(step, writer(2)), check, exchange)
    assert cuts > 100


@pytest.mark.slow
@needs_fork
def test_a_first_save_cut_leaves_nothing_or_all(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path / "run")

    def check():
        latest = store.latest()
        assert latest is None or value_of(latest) == 1
        store.save(2, writer(2))
        assert {*names(store.folder)} <= {"step-00000001", "step-00000002"}

    def prepare():
        shutil.rmtree(store.folder, ignore_errors=True)

    assert every_cut(killed, prepare, lambda: store.save(1, writer(1)), check) > 100


@syncs_by_fsync
@pytest.mark.parametrize("again", [False, True])
def test_all_of_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, again):
    def write(folder: Path) -> None:
        (folder / "state").mkdir()
        (folder / "state" / "moment").write_text("x")

    store = CheckpointStore(tmp_path / "run", keep_last=1)
    if again:
        store.save(7, write)
    else:
        store.save(6, write)
    with disk_calls() as log:
        store.save(7, write)
    name, old = "step-00000007", "step-00000006"
    placed = [f"exchange ~{name} {name}"] if again else [f"rename ~{name} {name}"]
    removed = [f"remove ~{name}"] if again else [f"rename {old} ~{old}", f"remove ~{old}"]
    assert log == [
        "fsync ~manifest.json",  # its own, as soon as it is written
        "rename ~manifest.json manifest.json",
        f"fsync ~{name}",
        "fsync moment",  # and all that is there, each before its folder
        "fsync state",
        "fsync manifest.json",
        f"fsync ~{name}",
        *placed,
        "fsync run",
        *removed,  # nothing of old before the new one is safe
    ]


def test_the_last_and_the_best_stay(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    assert store.latest() is None and store.best() is None and store.list() == []
    for step, value in enumerate([3.0, 1.0, 2.0, math.nan, 2.5], start=1):
        saved = store.save(step, writer(step), loss(value))
        assert saved.path.name == f"step-{step:08d}"
    assert [c.step for c in store.list()] == [2, 4, 5]
    assert store.best().step == 2
    assert store.latest().step == 5
    assert math.isnan(store.list()[1].metrics["validation_loss"])
    assert "NaN" not in (tmp_path / "step-00000004" / "manifest.json").read_text()
    store.save(6, writer(6), {"accuracy_loss": 0.5}, best_by="accuracy_loss")
    assert store.best().step == 6
    assert [c.step for c in store.list()] == [5, 6]


def test_what_is_better_is_said_by_the_metrics_name(tmp_path):
    """Lower is better, of `-name` higher; the earlier of equals; only of the newest's metric."""
    store = CheckpointStore(tmp_path, keep_last=10)
    for step, value in enumerate([2.0, 1.0, 3.0, 1.0, 3.0], start=1):
        store.save(step, writer(step), {"loss": value}, best_by="loss")
    assert store.best().step == 2
    for step, value in enumerate([0.2, 0.7, 0.7, 0.1], start=6):
        store.save(step, writer(step), {"accuracy": value}, best_by="-accuracy")
    assert store.best().step == 7 and store.best().score == -0.7
    store.save(10, writer(10), {"loss": 5.0}, best_by="loss")
    assert store.best().step == 2
    store.save(11, writer(11), {"loss": 5.0}, best_by="other")
    assert store.best() is None


def test_a_save_of_an_earlier_step_is_not_pruned_at_once(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1)
    store.save(500, writer(5))
    assert store.save(100, writer(1)).path.is_dir()
    store.save(500, writer(6))  # the same step again
    assert value_of(store.latest()) == 6


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_any_flipped_byte_is_found(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, writer(1), loss(1.0))
    checkpoint = store.save(2, writer(2), loss(2.0))
    for path in [p for p in checkpoint.path.rglob("*") if p.is_file()]:
        original = path.read_bytes()
        places = range(0, len(original), 1 if path.name == "manifest.json" else 7)
        for place in {*places, len(original) - 1}:
            flip(path, place)
            with pytest.raises(BedstoneError):
                checkpoint.verify()
            path.write_bytes(original)
    checkpoint.verify()


def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=3)
    for step in (1, 2, 3):
        store.save(step, writer(step), loss(1 / step))
    flip(tmp_path / "step-00000003" / "model-00001-of-00002.safetensors", -1)
    (tmp_path / "step-00000002" / "manifest.json").unlink()
    with pytest.warns(UserWarning) as told:
        assert value_of(store.latest()) == 1
    assert any("step-00000003" in str(w.message) and "changed" in str(w.message) for w in told)
    assert any("step-00000002" in str(w.message) and "missing" in str(w.message) for w in told)
    with pytest.warns(UserWarning) as told:
        assert store.best().step == 1
    assert any("damaged best" in str(w.message) for w in told)
    # A damaged one doesn't push a sound one out.
    (tmp_path / "step-00000003" / "config.json").unlink()
    CheckpointStore(tmp_path, keep_last=2).save(4, writer(4))
    with pytest.warns(UserWarning, match="damaged"):
        assert [c.step for c in store.list()] == [1, 4]


def test_all_damaged_says_what_is_wrong_with_each(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save(step, writer(step))
    flip(tmp_path / "step-00000001" / "config.json", 0)
    (tmp_path / "step-00000002" / "config.json").write_text("")
    with pytest.raises(BedstoneError, match=r"none of its 2.*00000002.*0 bytes.*00000001.*changed"):
        store.latest()


def test_manifests_of_another_kind(tmp_path):
    store = CheckpointStore(tmp_path)
    path = store.save(1, writer(1)).path
    shutil.copytree(path, tmp_path / "step-00000007")
    with pytest.raises(BedstoneError, match="is of step 1"):
        Checkpoint.open(tmp_path / "step-00000007")
    shutil.move(path, tmp_path / "elsewhere")  # a copy under a name of one's own is fine
    assert Checkpoint.open(tmp_path / "elsewhere").step == 1
    for text in (b"", b"{", b"[]", b"\xff", b"[" * 100_000):
        (tmp_path / "elsewhere" / "manifest.json").write_bytes(text)
        with pytest.raises(BedstoneError, match=r"manifest\.json: is damaged"):
            Checkpoint.open(tmp_path / "elsewhere")


def test_wrong_arguments(tmp_path):
    with pytest.raises(BedstoneError, match="keep_last: 0"):
        CheckpointStore(tmp_path, keep_last=0)
    with pytest.raises(BedstoneError, match="step: -1"):
        CheckpointStore(tmp_path).save(-1, writer(1))


def test_a_failing_writer_leaves_everything(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, writer(1))

    def fail(folder: Path) -> None:
        writer(2)(folder)
        raise ZeroDivisionError

    for step in (1, 2):
        with pytest.raises(ZeroDivisionError):
            store.save(step, fail)
    assert names(tmp_path) == ["step-00000001"]
    assert value_of(store.latest()) == 1


@needs_fork
def test_a_file_size_limit(tmp_path):
    """What a quota does: the write itself is refused, in a process of its own."""
    resource = pytest.importorskip("resource")
    store = CheckpointStore(tmp_path / "run")
    store.save(1, writer(1))
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            store.save(2, lambda folder: save_tensors(folder, {"x": torch.zeros(5000)}))
        except BedstoneError as error:
            (tmp_path / "told").write_text(str(error))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    told = (tmp_path / "told").read_text()
    assert "step-00000002: can't be written: File too large (20," in told
    assert names(store.folder) == ["step-00000001"]
    assert value_of(store.latest()) == 1


def test_a_really_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        store = CheckpointStore(disk / "run")
        store.save(1, writer(1))
        for step in (1, 2):
            with pytest.raises(BedstoneError, match=r"No space left.*bytes needed.*bytes free"):
                store.save(step, lambda f: save_tensors(f, {"x": torch.zeros(500_000)}))
        assert names(store.folder) == ["step-00000001"]
        assert value_of(store.latest()) == 1
        store.save(2, writer(2))
        assert value_of(store.latest()) == 2
    finally:
        subprocess.run(["umount", str(disk)], check=True)
