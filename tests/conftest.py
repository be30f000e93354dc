"""What several tests share."""

import importlib.machinery
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from bedstone.checkpoints.names import PACKAGED

# The same examples in every run: a failure is a change's, not chance's. Time is no property here.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")


def pytest_configure() -> None:
    """No test waits for the disk, a third of their time: the order of syncs is tested by itself."""
    os.fsync = lambda handle: None


# Files of over half a minute: begun first, so that no process is left alone with one at the end.
LONG = (
    "test_demo.py",
    "test_readme.py",
    "test_supervised_text.py",
    "test_lookup.py",
    "test_methods.py",
    "test_dalle_run.py",
    "test_every_task.py",
    "test_engine.py",
    "test_tokenizer.py",
    "test_image_text_blip.py",
    "test_seq2seq_run.py",
    "test_chat_template.py",
    "test_text2text_generation.py",
    "test_reinforcement_run.py",
    "test_campaign.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared data folder: `$BEDSTONE_SHARED`, else `../shared/data` beside the checkout."""
    named = os.environ.get("BEDSTONE_SHARED")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data in {folder}; set BEDSTONE_SHARED")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """A cache of the module's own; the patch that sets it, for what else a module sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDSTONE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield patch


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache as its client lays it out, holding one entry, with the network off."""
    from huggingface_hub import constants

    entry = tmp_path / "hub" / "models--acme--tiny"
    snapshot = entry / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (entry / "blobs").mkdir()
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text(COMMIT)
    (entry / "blobs" / "abc").write_text(json.dumps({"model_type": "gpt2"}))
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return entry


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Where the packages that hold models of short names are; none is there at first."""
    place = tmp_path / "site"
    place.mkdir()
    known = {each.package for each in PACKAGED.values()}
    usual = importlib.util.find_spec

    def find(name, *more):
        if name in known:
            return importlib.machinery.PathFinder.find_spec(name, [str(place)])
        return usual(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.chdir(tmp_path)
    return place
