"""`bedstone resume`: a run goes on, whatever recipe it began with."""

import dataclasses
from pathlib import Path

import yaml

from bedstone.checkpoints.store import CheckpointStore
from bedstone.commands.finetune import run_finetuning
from bedstone.commands.pretrain import TASKS, read_pretraining, run_pretraining
from bedstone.commands.training import Finished
from bedstone.errors import BedstoneError
from bedstone.mapping import read_recipe
from bedstone.recipes import FinetuneRecipe


def resume(run: str | Path, *, quiet: bool = False) -> Finished:
    """Goes on with a run from its last whole checkpoint, exactly as if it had never stopped.

    Raises:
        BedstoneError: there is no run there, or its data has changed since it began.
    """
    run = Path(run)
    path = run / "recipe.yaml"
    if not path.is_file():
        raise BedstoneError(f"{run}: holds no recipe.yaml, so it is not a run's folder.")
    checkpoint = CheckpointStore(run / "checkpoints").latest()
    # The folder may have been moved since: `out` is where it is now.
    task = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("task")
    if task is not None and task not in TASKS:
        tuned = dataclasses.replace(read_recipe(FinetuneRecipe, path), out=str(run))
        return run_finetuning(tuned, run, checkpoint, quiet)
    recipe = dataclasses.replace(read_pretraining(path), out=str(run))
    return run_pretraining(recipe, run, checkpoint, quiet)
