"""From a name to a folder: local, from the hub's cache, or one clear paragraph. No network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bedstone.checkpoints.hub import PATTERNS, resolve
from bedstone.errors import BedstoneError
from conftest import COMMIT


def test_a_local_folder_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "runs" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("runs/model") == Path("runs/model")
    assert resolve(tmp_path / "runs") == tmp_path / "runs"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/runs") == tmp_path / "runs"
    (tmp_path / "runs" / "model").rename(tmp_path / "runs" / ".model.previous")
    assert resolve("runs/model").is_dir()  # a crash had come between two renames


def test_an_id_from_the_cache(hub):
    for revision in (None, "main", COMMIT):
        found = resolve("acme/tiny", revision)
        assert json.loads((found / "config.json").read_text()) == {"model_type": "gpt2"}


def test_environment_is_honoured(hub):
    """HF_HOME and HF_HUB_OFFLINE, set as users set them."""
    home = hub.parent.parent
    code = "from bedstone.checkpoints.hub import resolve; print(resolve('acme/tiny'))"
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(hub / "snapshots" / COMMIT)


def test_no_pickle_and_no_code_is_asked_for(hub, monkeypatch):
    import huggingface_hub

    asked = {}

    def download(name, **options):
        asked.update(options)
        return str(hub / "snapshots" / COMMIT)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    resolve("acme/tiny", revision="v1")
    assert asked == {"revision": "v1", "allow_patterns": PATTERNS}
    assert not [p for p in PATTERNS if p.endswith((".bin", ".py", ".pt", ".pkl", "*"))]


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("acme/other", r"hasn't got it.*HF_HUB_OFFLINE.*Unset it"),
        ("acme/tiny@", "no hub id"),
        ("two words", "no hub id"),
        ("./modle", r"no such folder \(perhaps 'model' is meant\)"),
        ("runs/a/modle", r"perhaps 'runs/a/model'"),
        ("modle", r"perhaps 'model'.*or write hub:modle"),
        ("rnus/a/model", r"perhaps 'runs'"),
        ("model/config.json", "is a plain file; expected the folder"),
        ("", "no name was given"),
    ],
)
def test_failures_say_what_to_do(hub, tmp_path, named, told):
    for folder in ("model", "runs/a/model"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "model" / "config.json").touch()
    with pytest.raises(BedstoneError, match=told) as caught:
        resolve(named)
    assert "\n" not in str(caught.value)


def test_a_missing_revision_and_an_unfit_entry(hub):
    with pytest.raises(BedstoneError, match="at revision 'v9'"):
        resolve("acme/tiny", "v9")
    (hub / "snapshots" / COMMIT / "config.json").unlink()
    (hub / "snapshots" / COMMIT / "pytorch_model.bin").touch()
    with pytest.raises(BedstoneError, match="read safely"):
        resolve("acme/tiny")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("GatedRepoError", "accept its terms"),
        ("RepositoryNotFoundError", "check the spelling"),
        ("RevisionNotFoundError", "no revision 'v1'"),
        ("HfHubHTTPError", "Check the network"),
        ("ConnectError", "Check the network"),
    ],
)
def test_what_the_hub_answers(hub, monkeypatch, name, told):
    import huggingface_hub
    from huggingface_hub import constants, errors

    def download(*_, **__):
        if kind := getattr(errors, name, None):
            raise kind.__new__(kind)
        from huggingface_hub import _snapshot_download as module

        library = next(v for k, v in vars(module).items() if k.startswith("httpx"))
        raise library.ConnectError("Name or service not known\nsecond line")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(BedstoneError, match=told) as caught:
        resolve("acme/tiny", "v1")
    assert "\n" not in str(caught.value)
