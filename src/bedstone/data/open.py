"""Image-text data by a name: a built-in one, or files, a folder or a hub id."""

from pathlib import Path

from bedstone.data.dataset import Faults
from bedstone.data.fields import (
    TEMPLATES,
    ImageTextDataset,
    ImageTextPair,
    ImageTextReader,
    PairDataset,
    Reader,
)
from bedstone.data.scenes import datasets as scene_pairs
from bedstone.data.scenes import datasets as scenes
from bedstone.data.scenes import datasets as told_scenes
from bedstone.data.sources import raw_rows
from bedstone.errors import BedstoneError


def open_pairs(
    name: str | Path,
    reader: Reader | None = None,
    *,
    split: str | None = None,
    most_broken: float = 0.05,
) -> PairDataset:
    """All pairs of a source; see `pair_rows` for what it may be. `scenes` is built in.

    Raises:
        BedstoneError: there is no such data, it can't be read, or too much of it is broken.
    """
    if str(name) == scenes.NAME:
        return scene_pairs.heldout_scene_pairs(split or "test")
    reader = reader or Reader()
    own: dict[str, list[str]] = {}
    faults = Faults(str(name), most_broken)
    pairs: list[ImageTextPair] = []
    named: dict[str, str] = {}
    for raw in raw_rows(str(name), split, own):
        if not faults.rows:
            named = reader.names(own.get(reader.column("label", raw.values) or "", ()))
        faults.rows += 1
        try:
            pairs.append(reader.pair(raw, named))
        except BedstoneError as error:
            faults.add(error)
    faults.check()
    classes = tuple(dict.fromkeys(named.values()))
    templates = reader.templates or TEMPLATES
    return PairDataset(pairs, str(name), classes=classes, templates=templates, faults=faults)


def open_image_text(
    name: str | Path,
    reader: ImageTextReader | None = None,
    *,
    split: str | None = None,
    most_broken: float = 0.05,
) -> ImageTextDataset:
    """All rows of a source; see `pair_rows` for what it may be. `scenes` is built in.

    Raises:
        BedstoneError: there is no such data, it can't be read, or too much of it is broken.
    """
    if str(name) == scenes.NAME:
        return told_scenes.heldout_image_text_scenes(split or "test")
    reader = reader or ImageTextReader()
    faults = Faults(str(name), most_broken)
    rows = []
    for raw in raw_rows(str(name), split, {}):
        faults.rows += 1
        try:
            rows.append(reader.told(raw))
        except BedstoneError as error:
            faults.add(error)
    faults.check()
    return ImageTextDataset(rows, str(name), faults=faults)
