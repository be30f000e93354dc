"""Where a run's figures go besides `log.jsonl`: TensorBoard, Weights & Biases, MLflow.

A recipe names them, as `log: [tensorboard, wandb]`. All of them write into the run's folder, with
nothing sent anywhere, unless the tracker's own settings of the environment say otherwise:
`WANDB_MODE=online`, `MLFLOW_TRACKING_URI=...`. A run that goes on keeps its name there.
"""

import importlib.util
import math
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bedstone.errors import BedstoneError, nearest
from bedstone.files import make_folder, write_text
from bedstone.reading import is_plain, read_text
from bedstone.settings import flat

USUAL = ("tensorboard",)  # of a recipe that says nothing
ID = "run-id"  # the file of a run's name in its tracker


class Tracker(Protocol):
    """What is handed the figures of each line of the log."""

    def write(self, step: int, figures: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """TensorBoard's files in `tensorboard/`; what was logged after the step is taken back."""

    def __init__(self, run: Path, step: int, recipe: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases in `wandb/`; `wandb sync FOLDER` sends it, where that is wanted."""

    def __init__(self, run: Path, step: int, recipe: Mapping[str, Any]) -> None:
        import wandb

        folder = make_folder(run / "wandb")
        name = _id(folder, step) or _new_id(folder, secrets.token_hex(4))
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "bedstone"),
            id=name,
            name=run.resolve().name,
            dir=str(run),
            config=dict(recipe),
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow" if os.environ.get("WANDB_MODE") == "online" else None,
            settings=wandb.Settings(silent=True, console="off"),
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of MLflow in `mlflow/`, which `mlflow ui --backend-store-uri` shows."""

    def __init__(self, run: Path, step: int, recipe: Mapping[str, Any]) -> None:
        from mlflow.tracking import MlflowClient

        folder = make_folder(run / "mlflow")
        # MLflow 3 refuses folders as stores unless they are allowed.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        here = (folder / "store").resolve().as_uri()
        self.client: Any = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", here))
        self.name = _id(folder, step)
        if not self.name:
            experiment = self.client.get_experiment_by_name("bedstone")
            number = experiment and experiment.experiment_id
            number = number or self.client.create_experiment("bedstone")
            made = self.client.create_run(number, run_name=run.resolve().name)
            self.name = _new_id(folder, made.info.run_id)
            for key, value in flat(recipe).items():
                self.client.log_param(self.name, key, str(value)[:500])

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            if math.isfinite(value):
                plain = re.sub(r"[^\w\-. /]", "_", name)
                self.client.log_metric(self.name, plain, value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.name)


# By the word of a recipe: what is made, the package that it needs, and its extra.
TRACKERS: dict[str, tuple[Callable[[Path, int, Mapping[str, Any]], Tracker], str, str]] = {
    "tensorboard": (TensorBoard, "tensorboard", "train"),
    "wandb": (WandB, "wandb", "wandb"),
    "mlflow": (MLflow, "mlflow", "mlflow"),
}


def check_trackers(names: Sequence[str]) -> None:
    """Refuses a tracker that is unknown or not installed; TensorBoard, the default, may be missing.

    Raises:
        BedstoneError: with the extra that installs it.
    """
    for name in names:
        if name not in TRACKERS:
            raise BedstoneError(f"log: {name!r} is unknown{nearest(name, TRACKERS)}.")
        _, package, extra = TRACKERS[name]
        if name != "tensorboard" and not _is_installed(package):
            raise BedstoneError(
                f"log: {name} needs the library {package}, which isn't installed. Run: pip install "
                f"'bedstone[{extra}]', or leave {name} out."
            )


def open_trackers(
    names: Sequence[str], run: Path, step: int, recipe: Mapping[str, Any]
) -> list[Tracker]:
    """The trackers of a run, which goes on behind a step."""
    made = (TRACKERS[name] for name in names)
    return [kind(run, step, recipe) for kind, package, _ in made if _is_installed(package)]


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module that was put there by hand, without a spec
        return True


def _id(folder: Path, step: int) -> str:
    """The name that the run has in its tracker already; "" of a new run."""
    path = folder / ID
    return read_text(path, 1000).strip() if step and is_plain(path) else ""


def _new_id(folder: Path, name: str) -> str:
    write_text(folder / ID, name)
    return name
