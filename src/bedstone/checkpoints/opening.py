"""Opening what a user names: a model, or a run's folder that stands for its model."""

from pathlib import Path
from typing import Any

from bedstone.checkpoints.artefact import Model, load
from bedstone.checkpoints.store import CheckpointStore
from bedstone.errors import BedstoneError


def open_model(path: str | Path, **options: Any) -> Model:
    """`load`, where a run's folder is its finished model, or else its latest checkpoint.

    Raises:
        BedstoneError: as `load` does, or the run has no checkpoint yet.
    """
    run = Path(path)
    if not (run / "recipe.yaml").is_file():
        return load(path, **options)
    if (run / "model" / "config.json").is_file():
        return load(run / "model", **options)
    latest = CheckpointStore(run / "checkpoints").latest()
    if latest is None:
        raise BedstoneError(f"{run}: is a run that has no checkpoint yet.")
    return load(latest.path, **options)
