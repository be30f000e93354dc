"""Checks that every training method passes."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from bedstone.checkpoints.load import open_model
from bedstone.commands.train import resume
from bedstone.errors import BedstoneError
from bedstone.recipes.base import load_method, method_of, read, train
from bedstone.settings import to_yaml
from bedstone.train.logs import read_log
from bedstone.train.run import RunResult, said
from runs import losses, stop_after


def check_method(method: str, recipe: dict[str, Any], tmp_path: Path) -> RunResult:
    """What holds for a training method whatever it learns, checked on a small run.

    A recipe is read as the method's; the run starts, learns, and leaves an artefact that opens and
    says how it was made; figures of held-out data are finite; a run that was stopped goes on bit
    for bit, in another folder too; changed data and a second run into the folder are refused.

    Args:
        method: its name in `recipes.base.METHODS`.
        recipe: values of a run of a few seconds, at least six steps long.

    Returns: the whole run.
    """
    whole = train(_read(method, recipe, tmp_path / "whole"), quiet=True)
    _check_run(method, whole)
    recipe_made = _read(method, recipe, tmp_path / "part")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, whole.done.step // 2)
        stopped = train(recipe_made, quiet=True)
    assert (stopped.done.reason, stopped.model) == ("SIGTERM", None)
    _check_refusals(tmp_path / "part", recipe_made)
    moved = (tmp_path / "part").rename(tmp_path / "moved")
    again = resume(moved, quiet=True)
    assert again.model is not None and whole.model is not None
    assert losses(moved) == losses(whole.run)
    assert again.done.metrics == whole.done.metrics
    assert _weights(again.model) == _weights(whole.model)
    return whole


def _read(method: str, recipe: dict[str, Any], out: Path) -> Any:
    """The recipe as a file says it; named by `method`, or known by its task or layout."""
    path = out.with_suffix(".yaml")
    shared = {"log_every": 1, "save_every": 1, "device": "cpu", "precision": "fp32"}
    path.write_text(yaml.safe_dump({**shared, **recipe, "out": str(out)}))
    found = read(path, usual="supervised")
    named = read(path, [f"method={method}"])
    assert method_of(found).name == method_of(named).name == method
    assert type(found) is load_method(method).Recipe
    assert ("method" in said(found)) == ("method" in recipe) and said(named)["method"] == method
    again = out.with_suffix(".again.yaml")
    again.write_text(to_yaml(said(named)))
    assert read(again) == named
    return found


def _check_run(method: str, run: RunResult) -> None:
    """The folder and the artefact of a run that came to its end."""
    assert run.done.reason == "finished" and run.model is not None
    curve = list(losses(run.run).values())
    assert len(curve) == run.done.step >= 6
    assert sum(curve[-2:]) < sum(curve[:2]), curve
    assert math.isfinite(run.done.metrics["validation_loss"])
    logged = [each for each in read_log(run.run / "log.jsonl") if "validation_loss" in each]
    assert run.done.metrics["validation_loss"] in [each["validation_loss"] for each in logged]
    model = open_model(run.model)
    assert model.record["metrics"] == run.done.metrics
    assert model.record["data"] == json.loads((run.run / "data.json").read_text())
    assert model.record["data"].keys() >= {"source", "fingerprint"}
    assert model.record["recipe"]["out"] == str(run.run)
    assert (run.model / "README.md").is_file()
    if (run.run / "tokenizer").is_dir():
        assert model.tokenizer is not None
    evaluation = run.run / "evaluation.json"
    if evaluation.is_file():
        assert json.loads(evaluation.read_text())


def _check_refusals(folder: Path, recipe: Any) -> None:
    """A folder that holds a run, and data that isn't what it began with."""
    with pytest.raises(BedstoneError, match="bedstone resume"):
        train(recipe, quiet=True)
    path = folder / "data.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "fingerprint": "another"}))
    with pytest.raises(BedstoneError, match="has changed since the run"):
        resume(folder, quiet=True)
    path.write_text(before)


def _weights(model: Path) -> dict[str, str]:
    """A hash of every file of weights in a folder, by its place."""
    files = sorted(model.rglob("*.safetensors"))
    assert files
    return {
        str(file.relative_to(model)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }
