"""Training from a recipe: `bedstone.pretrain`, `finetune`, `resume`, and their commands.

Everything heavy is loaded when a recipe has been found, so that a wrong name is an error at once.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bedstone.outputs import new_file
from bedstone.reading import to_path
from bedstone.recipes import library

if TYPE_CHECKING:
    from bedstone.train.run import RunRecipe, RunResult

    Recipe = RunRecipe | Mapping[str, Any] | str | Path


def pretrain(
    recipe: "Recipe", *overrides: str, data: Any = None, quiet: bool = False, **fields: Any
) -> "RunResult":
    """Trains a model by a recipe, into the folder `recipe.out`.

    The folder holds `recipe.yaml`, `data.json`, `tokenizer/`, `log.jsonl`, `tensorboard/`,
    `checkpoints/`, `curve.png` and, at the end, the artefact in `model/`.

        bedstone.pretrain("tinyshakespeare", budget="5m", out="runs/mine")
        bedstone.pretrain("own-text", data=["a text", "another"], optim={"lr": 1e-3})

    Args:
        recipe: the name of one of `bedstone recipes`, a YAML file, its values as a mapping, or a
            recipe object.
        overrides: fields to set, as `"optim.lr=1e-3"`.
        data: rows to learn from, instead of a source: a list of texts or of dictionaries, a
            mapping of columns, a DataFrame or a `datasets.Dataset`; or a mapping of fields of the
            section `data`. Rows are kept in the run's folder, so that the run can be resumed.
        quiet: print nothing.
        fields: fields to set; those of a section as a mapping.

    Raises:
        BedstoneError: the recipe, the data or the disk can't do it, said before training
            starts; or a loss that isn't finite.
    """
    from bedstone.recipes.base import train

    return train(*_recipe(recipe, overrides, data, fields), quiet=quiet)


def finetune(
    recipe: "Recipe", *overrides: str, data: Any = None, quiet: bool = False, **fields: Any
) -> "RunResult":
    """Fine-tunes a model by a recipe, into the folder `recipe.out`.

    The folder holds the files of every run. `model/` is the best checkpoint. A LoRA run also has
    `adapter/`, in the format of peft; `model/` then has the adapter merged.

        rows = [{"text": "too dull", "label": "bad"}, {"text": "lovely", "label": "good"}]
        bedstone.finetune("finetune-own", model="runs/bert", data=rows, epochs=3)

    Args:
        recipe, overrides, quiet, fields: as of `pretrain`.
        data: as of `pretrain`; the training rows.

    Raises:
        BedstoneError: the recipe, the model or the data can't do it, said before training
            starts; or a loss that isn't finite.
    """
    from bedstone.recipes.base import train

    return train(*_recipe(recipe, overrides, data, fields, finetunes=True), quiet=quiet)


def resume(folder: str | Path, *overrides: str, quiet: bool = False) -> "RunResult":
    """Resumes a run from its last complete checkpoint, with the same results as without a stop.

    Args:
        folder: the run's folder.
        overrides: of a finished run, how much longer it is to learn, such as `"budget=2h"` or
            `"epochs=6"`; also how it is evaluated, logged and saved.
        quiet: print nothing.

    Raises:
        BedstoneError: there is no run there, its data has changed since it began, or an override
            would change what it has learnt from.
    """
    from bedstone.recipes.base import go_on

    return go_on(to_path(folder, "resume"), overrides, quiet=quiet)


def _recipe(
    recipe: Any, overrides: Any, data: Any, fields: Mapping[str, Any], finetunes: bool = False
) -> tuple[Any, dict[str, Any]]:
    """A recipe object and rows, of what `pretrain` and `finetune` are given."""
    if isinstance(recipe, str | Path):
        recipe = library.find(recipe)
    from bedstone.recipes import given

    return given.recipe(recipe, overrides, data, fields, finetunes=finetunes)


# The commands.


def pretrain_(
    recipe: str, overrides: list[str], sample: str | None = None, strict: bool = False
) -> None:
    """Pretrain a model by a recipe: on text, images, images with texts, audio, video or volumes.

    Any field of the recipe can be overridden: `budget=5m optim.lr=1e-3 model.layers=6`.

    Args:
        recipe: the name of one of `bedstone recipes`, or a YAML file.
        overrides: fields of the recipe to set, as key=value.
        sample: a PNG file; write a sheet of augmented training images into it, without training.
        strict: refuse data of which something may have been misunderstood.

    Example:
        bedstone pretrain python-docs budget=20m
    """
    read, _ = _recipe(recipe, [*overrides, *_strict(strict)], None, {})
    if sample is not None:
        from bedstone.commands.preview import show_sample

        new_file(sample, "--sample")

        show_sample(read, sample)
    else:
        leave(pretrain(read).done.reason)


def finetune_(
    recipe: str,
    overrides: list[str],
    find_rate: bool = False,
    sample: int = 0,
    strict: bool = False,
) -> None:
    """Fine-tune a model on labelled rows by a recipe, fully or by a LoRA adapter.

    Any field of the recipe can be overridden: `epochs=2 lora.rank=16 data.train=rows.jsonl`.

    Args:
        recipe: the name of one of `bedstone recipes`, or a YAML file.
        overrides: fields of the recipe to set, as key=value.
        find_rate: run a learning-rate range test and propose a rate, without training.
        sample: show this many rows, without training: augmented ones beside the originals; of
            text-generation, which of their tokens are trained.
        strict: refuse data of which something may have been misunderstood.

    Example:
        bedstone finetune finetune-own model=runs/bert-python-docs data.train=rows.csv
    """
    read, _ = _recipe(recipe, [*overrides, *_strict(strict)], None, {}, finetunes=True)
    if sample or find_rate:
        from bedstone.commands.preview import preview_augmented, propose_rate

        preview_augmented(read, sample) if sample else propose_rate(read)
    else:
        leave(finetune(read).done.reason)


def _strict(given: bool) -> list[str]:
    return ["strict=true"] if given else []


def resume_(run: str, overrides: list[str]) -> None:
    """Resume a stopped run from its last checkpoint, or extend a finished one.

    Args:
        run: the run's folder.
        overrides: fields to set, as key=value: budget or epochs, to learn longer than the recipe
            said; also evaluate_every, save_every, save_minutes, keep, log_every, patience.

    Example:
        bedstone resume runs/python-docs
        bedstone resume runs/python-docs budget=2h
    """
    leave(resume(run, *overrides).done.reason)


def leave(reason: str) -> None:
    """The exit code that shells expect of a process that a signal stopped."""
    if reason != "finished":
        sys.exit({"SIGINT": 130, "SIGTERM": 143}.get(reason, 1))
