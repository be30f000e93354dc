"""Reading what callers pass as a recipe: a file, a mapping or an object, overrides, and rows.

Rows of the caller's own, such as a DataFrame, are written into the run's folder as Parquet, so
that the run is read, fingerprinted and resumed as one of files.
"""

import dataclasses
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.evaluate.image_text import IMAGE_TEXT_TASKS
from bedstone.recipes.base import METHODS, ROWS, load_method, method_of, read, read_start
from bedstone.recipes.supervised import TASKS, FinetuneRecipe
from bedstone.settings import Overrides, read_recipe
from bedstone.train.run import RunRecipe

PLACES = ("train", "source", "validation", "test")  # fields of `data` that name rows


def read_pretraining(
    path: str | Path | Mapping[str, Any], overrides: Sequence[str | Mapping[str, Any]] = ()
) -> Any:
    """Reads a recipe; its method, task or layout decides its class.

    Raises:
        BedstoneError: as `recipes.base.read`.
    """
    return read(path, overrides)


def read_finetuning(
    path: str | Path | Mapping[str, Any], overrides: Sequence[str | Mapping[str, Any]] = ()
) -> Any:
    """Reads a fine-tuning recipe: of labelled rows, or of an image-text task.

    Raises:
        BedstoneError: as `recipes.base.read`.
    """
    if _is_supervised(read_start(path, overrides)):
        return read_recipe(FinetuneRecipe, path, overrides)
    return read(path, overrides)


def read_any(path: str | Path, overrides: Sequence[str]) -> tuple[Any, Any]:
    """The method of a recipe, of whichever command, and the recipe.

    Raises:
        BedstoneError: as `recipes.base.read`.
    """
    values = read_start(path, overrides)
    named = isinstance(values.get("model"), str) or values.get("task") in TASKS
    found, _ = recipe(path, overrides, None, {}, finetunes=named and not values.get("method"))
    return method_of(found), found


def _is_supervised(values: Mapping[str, Any]) -> bool:
    """Whether a recipe of `finetune` is of labelled rows, and of no image-text task."""
    return not (values.get("method") or str(values.get("task")) in IMAGE_TEXT_TASKS)


def _main_place(values: Mapping[str, Any], finetunes: bool) -> str:
    """The field of `data` that names the rows to learn from."""
    if finetunes and _is_supervised(values):
        return "train"
    method = values.get("method")
    if method not in METHODS:
        return "source"
    data = typing.get_type_hints(load_method(str(method)).Recipe)["data"]
    return "train" if "train" in {each.name for each in dataclasses.fields(data)} else "source"


def recipe(
    given: RunRecipe | str | Path | Mapping[str, Any],
    overrides: Sequence[str],
    data: Any,
    fields: Mapping[str, Any],
    *,
    finetunes: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """A recipe object, and rows by the field of `data` that is to name their file.

    Args:
        given: a recipe object, a YAML file, or values by name.
        overrides: `key=value`, set after it.
        data: rows, fields of the section `data` by name (which may be rows themselves), or None.
        fields: fields to set, those of a section as a mapping.
        finetunes: whether it is of labelled rows where nothing else is said.

    Raises:
        BedstoneError: as `recipes.base.read`.
    """
    if isinstance(given, RunRecipe):
        if overrides or fields or data is not None:
            raise BedstoneError(
                "recipe: fields were given beside a recipe object. Set them on the object "
                "(dataclasses.replace), or give the recipe's name or file."
            )
        return given, {}
    if data is None and isinstance(given, Mapping):
        data, given = given.get("data"), {key: given[key] for key in given if key != "data"}
    main = _main_place(read_start(given, [*overrides, fields]), finetunes)
    is_section = isinstance(data, Mapping) and all(
        key in PLACES or is_plain(value) for key, value in data.items()
    )
    section = data if is_section else {} if data is None else {main: data}
    rows = {
        key: value
        for key, value in section.items()
        if key in PLACES and not isinstance(value, str | Path)
    }
    said = {key: str(value) if isinstance(value, Path) else value for key, value in section.items()}
    said |= dict.fromkeys(rows, ROWS)  # until `recipes.base.train` has written them
    changes: Overrides = [{"data": said}, *overrides, fields]
    made = (read_finetuning if finetunes else read_pretraining)(given, changes)
    return made, {name: _listed(value) for name, value in rows.items()}


def is_plain(value: Any) -> bool:
    """Whether a value is one that a recipe's field may hold, and no column of rows."""
    if isinstance(value, Mapping):
        return all(isinstance(each, str | list) for each in value.values())
    return value is None or isinstance(value, str | int | float | bool | Path)


def _listed(value: Any) -> Any:
    """Rows as `write_rows` takes them: texts become rows with the column `text`."""
    if isinstance(value, Iterable) and not isinstance(value, Mapping) and not _is_table(value):
        value = list(value)
        if value and all(isinstance(each, str) for each in value):
            return [{"text": each} for each in value]
    return value


def _is_table(value: Any) -> bool:
    return hasattr(value, "to_parquet")  # pandas, datasets
