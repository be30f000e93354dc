"""`bedstone index`: pictures embedded by a model and kept to be searched."""

import json
import sys
from pathlib import Path
from typing import Any

from bedstone.checkpoints.opening import open_model
from bedstone.errors import BedstoneError
from bedstone.tasks.index import Index
from bedstone.tasks.index_fill import Embeds, Filled, fill
from bedstone.tasks.index_nearest import FEWEST
from bedstone.tasks.index_settings import NAME, Settings
from bedstone.tasks.index_sources import Source, open_source

SHOWN = 20  # broken items that are named
GROWN = 1.2  # of the rows measured: from here on the approximate index is built again


def index(
    folder: str,
    model: str | None = None,
    out: str | None = None,
    metadata: str | None = None,
    *,
    as_json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> Filled:
    """Makes the index of a folder hold what the folder does, and prints what was done.

    Raises:
        BedstoneError: there is no picture, no model, or the index is of something else.
    """
    path = Path(out) if out else default_place(folder)
    source = open_source(folder, metadata)
    place = model or _remembered(path)
    embedder = open_embedder(place, precision, device)
    with open_for(path, embedder, source, place) as held:
        done = fill_index(held, embedder, source, as_json=as_json)
    if as_json:
        print(json.dumps({"done": vars(done), "rows": len(held), "index": str(path)}))
        return done
    for told in list(done.broken.values())[:SHOWN]:
        print(f"skipped {told}", file=sys.stderr)
    if len(done.broken) > SHOWN:
        print(f"skipped {len(done.broken) - SHOWN:,} more; --json names all", file=sys.stderr)
    print(f"{path}: {len(held):,} pictures; {done.told()}")
    return done


def open_for(path: Path, embedder: Embeds, source: Source, model: str) -> Index:
    """The index at `path`, new or of this source and model.

    Raises:
        BedstoneError: it holds another source that is still there, or is another model's.
    """
    held = Index.create(path, embedder.width, embedder.name, model=_whole(model))
    before = held.settings.source
    if before and before != source.place and Path(before).exists():
        raise BedstoneError(
            f"{path}: is the index of {before}. Name another with --out, or pictures that it "
            "doesn't have would leave it."
        )
    if (before, held.settings.model) != (source.place, _whole(model)):
        held.moved(source=source.place, model=_whole(model))
    return held


def fill_index(held: Index, embedder: Embeds, source: Source, *, as_json: bool = False) -> Filled:
    """Fills an index, saying what is stored as it is, and makes it quick where it is large."""
    stored = 0

    def tell(keys: list[str]) -> None:
        nonlocal stored
        stored += len(keys)
        told = json.dumps({"stored": keys}) if as_json else f"stored {stored:,}"
        print(told, flush=True)

    done = fill(held, embedder, source, stored=tell)
    rows, how = len(held), held.settings.approximate
    if rows >= FEWEST and (how is None or not how.rows / GROWN < rows < how.rows * GROWN):
        how = held.approximate()
        if not as_json:
            print(how.told())
    return done


def default_place(folder: str) -> Path:
    """Where an index is kept unless it is said: beside what it is of."""
    path = Path(folder).resolve()
    return path.with_name(f"{path.name}.index")


def open_embedder(place: str, precision: str = "auto", device: str = "auto") -> Any:
    """What makes vectors of pictures and words by a model.

    Raises:
        BedstoneError: the model can't be opened, or sees no pictures.
    """
    from bedstone.runtime import pick_device
    from bedstone.tasks.picture_engine import PictureEngine
    from bedstone.tasks.task import sees

    model = open_model(place, device=pick_device(device))
    if not sees(model):
        raise BedstoneError(
            f"{place}: is of layout {model.config.layout!r}, and sees no pictures. Name a CLIP."
        )
    return PictureEngine(model, precision)


def _remembered(path: Path) -> str:
    """The model that an index was made by."""
    if not (path / NAME).is_file():
        raise BedstoneError(f"{path}: a new index needs a model that sees: --model MODEL")
    return Settings.read(path).model


def _whole(model: str) -> str:
    """A model's folder from anywhere; a hub id as it is."""
    return str(Path(model).resolve()) if Path(model).exists() else model
