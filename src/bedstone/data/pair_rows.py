"""Rows with pictures, as their files have them: nothing is decoded here.

What a name may be: a Parquet, Arrow, JSONL, JSON or CSV file, a folder or a glob of such; a folder
of pictures with a `metadata.jsonl` or `metadata.csv` (columns `file_name` and others), or with a
folder for each class; a set on the hub.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bedstone.data.images import find_images
from bedstone.data.rows import csv_rows, data_suffix, import_datasets, json_rows
from bedstone.data.sources import SPLITS, Files, Hub, find
from bedstone.data.stored_cells import PAGES
from bedstone.errors import BedstoneError

METADATA = ("metadata.jsonl", "metadata.csv")
TOGETHER = 256  # rows of a table read at a time


@dataclass(frozen=True)
class Raw:
    """A row as it was read.

    Attributes:
        place: where it is from, for messages.
        values: its columns.
        folder: what a picture's path in it is relative to.
        inside: whether that path must stay in the folder.
    """

    place: str
    values: dict[str, Any]
    folder: Path
    inside: bool = False


def raw_rows(name: str, split: str | None, names: dict[str, list[str]]) -> Iterator[Raw]:
    """All rows of a source; `names` is given what the numbers of a column stand for, where known.

    Raises:
        BedstoneError: there is no such data, or a file can't be read.
    """
    path = Path(name).expanduser()
    if path.is_dir() and (folders := picture_folders(path, split)):
        for folder in folders:
            yield from _folder(folder)
        return
    source = find(name, "text", split)
    if isinstance(source, Hub):
        yield from _hub(source, names)
        return
    if not isinstance(source, Files) or source.tree:
        raise BedstoneError(
            f"data {name!r}: holds no pictures that can be read; expected a Parquet, Arrow, JSONL "
            "or CSV file with a column of pictures or their paths, or a folder of pictures with a "
            "metadata.jsonl."
        )
    for file in source.paths:
        for place, row in _file(file, names):
            if not isinstance(row, dict):
                raise BedstoneError(
                    f"{file}: {place} is of type {type(row).__name__}; expected an object with "
                    "named columns. Mend or remove that row."
                )
            yield Raw(f"{file}: {place}", row, file.parent)


def picture_folders(path: Path, split: str | None) -> list[Path]:
    """The folder in `path` that holds pictures: that of a split, or itself; [] where none does.

    Raises:
        BedstoneError: it has pictures, and none of the split that is asked for.
    """
    named = [path / word for word in SPLITS.get(split or "train", ()) if (path / word).is_dir()]
    found = [folder for folder in [*named, path] if _has_pictures(folder)][:1]
    if split is not None and found == [path]:
        have = ", ".join(sorted(each.name for each in path.iterdir() if each.is_dir())) or "none"
        raise BedstoneError(
            f"data {str(path)!r}: has no folder of pictures for the split {split!r}; its folders: "
            f"{have}. Leave the split out, or name the folder itself."
        )
    return found


def _has_pictures(folder: Path) -> bool:
    if any((folder / each).is_file() for each in METADATA):
        return True
    tables = any(data_suffix(each) in (".parquet", ".arrow") for each in folder.iterdir())
    return not tables and bool(find_images(folder))


def _folder(folder: Path) -> Iterator[Raw]:
    """A folder's rows: by its metadata, else a picture each, its class the folder it is in."""
    for name in METADATA:
        file = folder / name
        if file.is_file():
            rows = json_rows(file) if name.endswith("l") else csv_rows(file)
            for place, row in rows:
                if not isinstance(row, dict) or not row.get("file_name"):
                    row = {**(row if isinstance(row, dict) else {}), "file_name": None}
                yield Raw(f"{file}: {place}", row, folder, inside=True)
            return
    for picture in find_images(folder):
        values: dict[str, Any] = {"file_name": str(picture.relative_to(folder))}
        if picture.parent != folder:
            values["label"] = picture.parent.name
        yield Raw(str(picture), values, folder, inside=True)


def _file(path: Path, names: dict[str, list[str]]) -> Iterator[tuple[str, Any]]:
    suffix = data_suffix(path)
    if suffix in (".json", ".jsonl"):
        yield from json_rows(path)
    elif suffix == ".csv":
        for place, row in csv_rows(path):
            yield place, {key: value or None for key, value in row.items()}
    elif suffix in (".parquet", ".arrow"):
        yield from _table(path, names)
    else:
        raise BedstoneError(
            f"{path}: holds no rows; expected a Parquet, Arrow, JSONL, JSON or CSV file."
        )


def _table(path: Path, names: dict[str, list[str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a Parquet or Arrow file, pictures as the bytes that are stored."""
    number = itertools.count(1)
    try:
        if data_suffix(path) == ".parquet":
            table = pq.ParquetFile(path, **PAGES)
            _names(table.schema_arrow, names)
            batches = table.iter_batches(TOGETHER)
        else:
            mapped = pa.memory_map(str(path))
            try:
                stream = pa.ipc.open_stream(mapped)
            except pa.ArrowInvalid:
                stream = pa.ipc.open_file(mapped).read_all().to_reader(TOGETHER)
            _names(stream.schema, names)
            batches = stream
        for batch in batches:
            for row in batch.to_pylist():
                yield f"row {next(number):,}", row
    except (pa.ArrowException, OSError) as error:
        told = " ".join(str(error).split())[:120]
        raise BedstoneError(
            f"{path}: can't be read as a {path.suffix[1:]} file ({told}). The file may be cut "
            "short or of another format; write or fetch it again."
        ) from error


def _names(schema: Any, names: dict[str, list[str]]) -> None:
    """Names of classes, as the `datasets` library keeps them beside the columns."""
    stored = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(stored)["info"]["features"] if stored else {}
    except (ValueError, KeyError, TypeError):
        return
    for column, feature in features.items():
        if isinstance(feature, dict) and isinstance(feature.get("names"), list):
            names[column] = [str(name) for name in feature["names"]]


def _hub(source: Hub, names: dict[str, list[str]]) -> Iterator[Raw]:
    datasets = import_datasets()
    try:
        found = datasets.load_dataset(source.name, split=source.split, streaming=True)
        for column, feature in (found.features or {}).items():
            if isinstance(feature, datasets.Image):
                found = found.cast_column(column, datasets.Image(decode=False))
            if getattr(feature, "names", None):
                names[column] = list(feature.names)
        for number, row in enumerate(found, 1):
            yield Raw(f"{source.name}: row {number:,}", row, Path())
    except Exception as error:  # that library raises dozens of kinds
        told = " ".join(str(error).split())[:120]
        raise BedstoneError(
            f"data {source.name!r}: is no file or folder here, and can't be read from the hub "
            f"({told}). Without a network, download it elsewhere and name its Parquet files; or "
            "use the built-in data: scenes."
        ) from error
