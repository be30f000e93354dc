"""Checks on resuming a run: its recipe, data and tokenizer are those of its checkpoint.

A checkpoint holds all three (in its `bedstone.json`, and as files), and its manifest is checked to
the byte. So what stands in the run's folder beside it is compared: where it is another, the run
would silently learn something else and is refused; where it is damaged or gone, it is taken from
the checkpoint.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bedstone.checkpoints.side_files import read_record
from bedstone.checkpoints.store import Checkpoint
from bedstone.data.text.marian_tokenizer import is_marian, load_tokenizer
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.files import write_json, write_text
from bedstone.reading import is_plain, read_object, shown
from bedstone.settings import flat, read_values, to_yaml

RECIPE, DATA = "recipe.yaml", "data.json"
# What may change when a run goes on: how long it learns, and what isn't learnt from.
EXTENDABLE = (
    "budget",
    "epochs",
    "patience",
    "evaluate_every",
    "save_every",
    "save_minutes",
    "keep",
    "log",
    "log_every",
    "device",
    "parallel",
)
# Where data lies may change too, since its content is compared.
FREE = {*EXTENDABLE, "out", "compile", "strict"}
FREE |= {"data.source", "data.train", "data.validation", "data.test"}
EXACTLY = "so it can't go on exactly"
ANEW = "or begin another run with init= the last checkpoint"


class DataChanged(BedstoneError):
    """What a run learns from isn't what it began with."""


def record_of(checkpoint: Checkpoint | None) -> dict[str, Any]:
    """What a checkpoint says of the run that made it; {} where there is none."""
    return {} if checkpoint is None else read_record(checkpoint.path, verify=False)


def recover_files(folder: Path, checkpoint: Checkpoint | None) -> Path:
    """The run's recipe file; what is damaged or gone of it and `data.json` is the checkpoint's.

    Raises:
        BedstoneError: the recipe can't be read, and no checkpoint holds it.
    """
    recorded = record_of(checkpoint)
    path = folder / RECIPE
    try:
        if not is_plain(path):
            raise BedstoneError(f"{folder}: holds no {RECIPE}, so it is not a run's folder.")
        read_values(path)
    except BedstoneError as error:
        if not recorded.get("recipe"):
            raise
        warnings.warn(f"{error} It is written anew from the checkpoint.", stacklevel=2)
        write_text(path, to_yaml(recorded["recipe"]))
    try:
        if is_plain(folder / DATA):
            read_object(folder / DATA, finite=False)
    except BedstoneError as error:
        warnings.warn(f"{error} It is written anew.", stacklevel=2)
        write_json(folder / DATA, recorded.get("data") or {})
    return path


def check_recipe(path: Path, recipe: Mapping[str, Any], checkpoint: Checkpoint | None) -> None:
    """Raises BedstoneError where a recipe differs from the one that a checkpoint was made by.

    Args:
        path: of the recipe's file, for the error.
        recipe: its values; fields that one of the two lacks are of another version, and let pass.
    """
    made_by = flat(record_of(checkpoint).get("recipe") or {})
    now = flat(json.loads(json.dumps(recipe)))
    for name in sorted(made_by.keys() & now.keys()):
        if made_by[name] != now[name] and name not in FREE:
            raise BedstoneError(
                f"{path}: {name} is {shown(now[name])}; the run was trained with "
                f"{shown(made_by[name])}, {EXACTLY}. Put that back, {ANEW}."
            )


def check_data(folder: Path, record: Mapping[str, Any], checkpoint: Checkpoint | None) -> None:
    """Raises DataChanged where the run in this folder began with other data.

    Args:
        record: of the data as it is now: `source` and `fingerprint` at least.
    """
    path = folder / DATA
    began = read_object(path, finite=False) if is_plain(path) else {}
    for known in (record_of(checkpoint).get("data") or {}, began):
        if known.get("fingerprint", record["fingerprint"]) != record["fingerprint"]:
            raise DataChanged(
                f"data.source: {record['source']!r} has changed since the run in {folder} began, "
                f"{EXACTLY}. Bring the data back as it was, {ANEW}."
            )


def checked_tokenizer(folder: Path, checkpoint: Checkpoint | None) -> Tokenizer | None:
    """The run's own tokenizer, which is the checkpoint's; None where the run has none yet.

    Args:
        folder: of the run's tokenizer.

    Raises:
        BedstoneError: the one in the folder is another than the checkpoint's.
    """
    own, fault = None, ""
    try:
        own = _tokenizer(folder)
    except BedstoneError as error:
        fault = str(error)
    kept = None
    if checkpoint is not None:
        homes = [checkpoint.path, checkpoint.path / "tokenizer"]
        kept = next(filter(None, map(_tokenizer, homes)), None)
    if kept is None:
        if fault:
            raise BedstoneError(fault)
        return own
    if own is None:
        if fault:
            warnings.warn(f"{fault} The checkpoint's is taken.", stacklevel=2)
        kept.save(folder)
    elif own.fingerprint() != kept.fingerprint():
        raise BedstoneError(
            f"{folder}: is another tokenizer than the run was trained with, {EXACTLY}. Put that "
            f"back (it lies in {checkpoint and checkpoint.path}), {ANEW}."
        )
    return kept


def _tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer that a run saved in a folder; None where there is none."""
    saved = is_plain(folder / "tokenizer.json") or is_marian(folder)
    return load_tokenizer(folder) if saved else None
