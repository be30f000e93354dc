"""Trackers: what TensorBoard, Weights & Biases and MLflow are handed, also after a resume.

The fakes record the calls that the real packages (wandb 0.31.0, mlflow-skinny 3.17.2) were seen to
take; where those are installed, they are run too.
"""

import importlib.util
import math
import sys
import types

import pytest

import bedstone
from bedstone.errors import BedstoneError
from bedstone.train.logs import RunLog, read_log
from bedstone.train.run import RunRecipe, said
from bedstone.train.trackers import TRACKERS, check_trackers, open_trackers
from runs import recipe_values

RECIPE = {"optim": {"lr": 1e-3}, "out": "runs/x"}


class Recorded(types.ModuleType):
    """A module whose functions record their calls."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[object, ...]] = []


@pytest.fixture
def wandb(monkeypatch):
    module = Recorded("wandb")

    class Run:
        def log(self, figures, step):
            module.calls.append(("log", step, figures))

        def finish(self):
            module.calls.append(("finish",))

    def init(**options):
        module.calls.append(("init", options))
        return Run()

    module.init, module.Settings = init, dict
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return module.calls


@pytest.fixture
def mlflow(monkeypatch):
    module, tracking = Recorded("mlflow"), types.ModuleType("mlflow.tracking")
    calls = module.calls

    class MlflowClient:
        def __init__(self, uri):
            calls.append(("client", uri))

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return "7"

        def create_run(self, experiment, run_name):
            calls.append(("run", experiment, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))

        def log_param(self, run, key, value):
            calls.append(("param", run, key, value))

        def log_metric(self, run, key, value, step):
            calls.append(("metric", run, key, value, step))

        def set_terminated(self, run):
            calls.append(("end", run))

    tracking.MlflowClient = MlflowClient
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", tracking)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return calls


def logged(folder, names, steps, step=0):
    log = RunLog(folder, step=step, trackers=open_trackers(names, folder, step, RECIPE))
    for number in steps:
        log.write(number, loss=1.0 / number)
    log.close()


def test_wandb_is_offline_and_a_resumed_run_keeps_its_name(tmp_path, wandb):
    logged(tmp_path, ["wandb"], [1, 2])
    logged(tmp_path, ["wandb"], [2, 3], step=1)
    first, second = (call[1] for call in wandb if call[0] == "init")
    assert first["mode"] == "offline" and first["dir"] == str(tmp_path)
    assert first["config"] == RECIPE and first["name"] == tmp_path.name
    assert first["id"] == second["id"]
    assert [call[1] for call in wandb if call[0] == "log"] == [1, 2, 2, 3]
    assert wandb[-1] == ("finish",)
    logged(tmp_path, ["wandb"], [1])  # another run in the same folder
    assert wandb[-3][1]["id"] != first["id"]


def test_mlflow_gets_parameters_once_and_finite_figures(tmp_path, mlflow):
    logged(tmp_path, ["mlflow"], [1])
    assert mlflow[0][1].startswith("file:") and mlflow[0][1].endswith("mlflow/store")
    assert ("param", "abc", "optim.lr", "0.001") in mlflow
    assert ("metric", "abc", "loss", 1.0, 1) in mlflow
    del mlflow[:]
    tracker = open_trackers(["mlflow"], tmp_path, 1, RECIPE)[0]
    tracker.write(2, {"a/b (c)": 2.0, "nan": math.nan})
    tracker.close()
    assert mlflow[1:] == [("metric", "abc", "a/b _c_", 2.0, 2), ("end", "abc")]


def test_a_missing_package_is_refused_before_the_run_begins(tmp_path, monkeypatch):
    usual = importlib.util.find_spec
    gone = {"wandb", "mlflow", "tensorboard"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in gone else usual(name)
    )
    for name in ("wandb", "mlflow"):
        with pytest.raises(BedstoneError, match=rf"pip install 'bedstone\[{name}\]'"):
            bedstone.pretrain(recipe_values(tmp_path), log=[name], quiet=True)
    assert not (tmp_path / "run" / "log.jsonl").exists()
    check_trackers(["tensorboard"])
    assert open_trackers(["tensorboard"], tmp_path, 0, RECIPE) == []
    with pytest.raises(BedstoneError, match="perhaps 'wandb' is meant"):
        check_trackers(["wandbb"])


def test_the_field_is_recorded_where_it_says_more():
    assert "log" not in said(RunRecipe())
    assert said(RunRecipe(log=["wandb"]))["log"] == ["wandb"]
    assert said(RunRecipe(log=[]))["log"] == []


def test_a_run_writes_to_those_that_it_names(tmp_path, wandb):
    values = recipe_values(tmp_path, budget="3 steps")
    run = bedstone.pretrain(values, log=["wandb"], quiet=True).run
    assert not (run / "tensorboard").exists()
    steps = [call[1] for call in wandb if call[0] == "log"]
    assert steps == [line["step"] for line in read_log(run / "log.jsonl")]
    assert bedstone.resume(run, "budget=4 steps", "log=[]", quiet=True).done.step == 4
    assert steps == [call[1] for call in wandb if call[0] == "log"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_real_packages_take_it(tmp_path, name, monkeypatch):
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged(tmp_path, [name], [1, 2])
    logged(tmp_path, [name], [2, 3], step=1)
    if name == "wandb":
        assert len([*tmp_path.glob("wandb/offline-run-*/run-*.wandb")]) >= 1
    else:
        client = TRACKERS[name][0](tmp_path, 1, RECIPE)
        found = client.client.get_metric_history(client.name, "loss")
        assert [(each.step, each.value) for each in found][-1] == (3, pytest.approx(1 / 3))
        assert client.client.get_run(client.name).data.params["optim.lr"] == "0.001"
