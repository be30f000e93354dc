"""What a run that goes on depends on: another is refused, a damaged one is the checkpoint's."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import yaml

from bedstone.checkpoints.store import CheckpointStore
from bedstone.commands.train import pretrain, resume
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError
from bedstone.files import lock
from bedstone.recipes.base import PretrainRecipe
from bedstone.settings import from_mapping
from bedstone.train.logs import read_log
from bedstone.train.run import held_folder
from runs import recipe_values, write_recipe

pytestmark = pytest.mark.usefixtures("cache")
TINY = {
    "budget": "4 steps",
    "model": {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "hidden": 32},
    "save_every": 2,
    "evaluate_every": 0,
    "accumulate": 1,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    pretrain(from_mapping(PretrainRecipe, recipe_values(folder, **TINY), "test"), quiet=True)
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy, as it was when it had come to step 2."""
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    for checkpoint in CheckpointStore(copy / "checkpoints").list():
        if checkpoint.step > 2:
            shutil.rmtree(checkpoint.path)
    return copy


def weights(folder):
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def edit(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("log.jsonl", lambda data: data[:5] + b"\xff" + data[6:]),
        ("log.jsonl", lambda data: data + b"[1]\n"),
        ("log.jsonl", lambda data: data + b'{"loss": 1}\n' + b'{"step": "x"}\n' + b"[" * 99_999),
        ("recipe.yaml", lambda data: data[:5] + b"\xff" + data[6:]),
        ("recipe.yaml", lambda data: data + b"\n]: [\n"),
        ("recipe.yaml", lambda data: b"[1]\n"),
        ("data.json", lambda data: b"[]"),
        ("data.json", lambda data: b"{"),
        ("tokenizer/tokenizer.json", lambda data: data[:100]),
    ],
)
def test_damaged_files_beside_sound_checkpoints_are_made_anew(finished, run, name, change):
    edit(run / name, change)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert resume(run, quiet=True).done.step == 4
    assert weights(run) == weights(finished)
    assert {record["step"] for record in read_log(run / "log.jsonl")} >= {2, 3, 4}


@pytest.mark.parametrize("name", ["recipe.yaml", "data.json", "tokenizer/tokenizer.json"])
def test_files_that_are_gone_are_the_checkpoints(finished, run, name):
    (run / name).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resume(run, quiet=True)
    assert (run / name).is_file() and weights(run) == weights(finished)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("optim", "lr", 1.0), (None, "seed", 7), ("model", "width", 32), (None, "context", 16)],
)
def test_another_recipe_is_refused_by_its_key(run, section, key, value):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (recipe[section] if section else recipe)[key] = value
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    named = f"{section}.{key}" if section else key
    with pytest.raises(BedstoneError, match=rf"recipe\.yaml: {named} is {value}.*go on exactly"):
        resume(run, quiet=True)


def test_what_is_not_learnt_from_may_change(run):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe |= {"log_every": 2, "keep": 3, "budget": "5 steps"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert resume(run, quiet=True).done.step == 5


def test_another_tokenizer_is_refused(run):
    train_bpe(["other words are here"] * 9, 290).save(run / "tokenizer")
    with pytest.raises(BedstoneError, match="another tokenizer than the run was trained with"):
        resume(run, quiet=True)


def test_another_fingerprint_of_the_data_is_refused(run):
    record = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps({**record, "fingerprint": "x"}))
    with pytest.raises(BedstoneError, match="has changed since"):
        resume(run, quiet=True)


def test_a_folder_is_of_one_run_at_a_time(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with held_folder(run):
        with pytest.raises(BedstoneError, match="another run is training there"):
            resume(run, quiet=True)
        with pytest.raises(BedstoneError, match="another run is training there"):
            pretrain(from_mapping(PretrainRecipe, {"out": str(run)}, "test"), quiet=True)
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert {p: t for p, t in after.items() if p.name not in (".lock", run.name)} == {
        p: t for p, t in before.items() if p.name not in (".lock", run.name)
    }


def test_a_run_that_is_killed_lets_go_of_its_folder(tmp_path):
    recipe = write_recipe(tmp_path, **{**TINY, "budget": "1000000 steps"})
    words = [sys.executable, "-m", "bedstone.cli", "pretrain", str(recipe)]
    first = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while len(read_log(tmp_path / "run" / "log.jsonl")) < 3:
            assert time.monotonic() < until and first.poll() is None
            time.sleep(0.1)
        with pytest.raises(BedstoneError, match="another run"), held_folder(tmp_path / "run"):
            pass
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    with held_folder(tmp_path / "run"):
        pass


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    for place, fault in ((tmp_path / "file" / "x", "Not a directory"), ("o" * 5000, "characters")):
        with pytest.raises(BedstoneError, match=fault), held_folder(place):
            pass
    if os.getuid():
        (tmp_path / "closed").mkdir(mode=0o555)
        with pytest.raises(BedstoneError, match="denied"), lock(tmp_path / "closed", ""):
            pass
