"""Rows of tar files as WebDataset writes them: files of one name, but for their ending, are a row.

`0001.jpg`, `0001.txt` and `0001.json` side by side are a row with the columns `image` (bytes),
`text`, and those of the object. They stand one after another, as such tars are written in order.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "tif", "tiff")
TEXTS = {"txt": "text", "text": "text", "caption": "text", "cls": "label", "cap": "text"}
LARGEST = 1 << 28  # bytes of one file
ROW_FILES = 64  # of one name

Row = tuple[str, Any]


def tar_rows(path: Path) -> Iterator[Row | BedstoneError]:
    """The rows of a tar, each with its place; one that can't be read stands as its error.

    Raises:
        BedstoneError: the file is no tar, or ends early.
    """
    row: dict[str, Any] = {}
    key, fault, files = "", "", 0
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                name, _, ending = _parts(member.name)
                if name != key:
                    if row or fault:
                        yield _finished(path, key, row, fault)
                    key, row, fault, files = name, {}, "", 0
                files += 1
                if member.size > LARGEST or files > ROW_FILES:
                    what = f"has {member.size:,} bytes" if files <= ROW_FILES else "is one of many"
                    fault = fault or f"{member.name} {what}; expected {LARGEST:,} at most"
                    continue
                file = archive.extractfile(member)
                data = b"" if file is None else file.read()
                try:
                    row |= _columns(ending, data)
                except ValueError as error:
                    fault = fault or f"{member.name}: {error}"
            if archive.fileobj.tell() <= archive.offset:  # no block of zeros ended it
                raise tarfile.ReadError("it is cut short: no end stands behind its last file")
        if row or fault:
            yield _finished(path, key, row, fault)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BedstoneError(
            f"{path}: can't be read as a tar ({error}). Make it anew, or fetch it again."
        ) from error


def _parts(name: str) -> tuple[str, str, str]:
    """`a/0001.seg.png` as `a/0001`, `.`, `seg.png`."""
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    return folder + slash + stem, dot, ending.lower()


def _columns(ending: str, data: bytes) -> dict[str, Any]:
    """What a file adds to its row. Raises ValueError where it can't be read."""
    last = ending.rpartition(".")[2]
    if ending in IMAGES:
        return {"image": data}
    if last == "json":
        found = json.loads(data.decode("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("holds no object")
        return found
    if ending in TEXTS:
        return {TEXTS[ending]: data.decode("utf-8").strip()}
    return {ending or "data": data}


def _finished(path: Path, key: str, row: dict[str, Any], fault: str) -> Row | BedstoneError:
    if fault:
        return BedstoneError(f"{path}: {key}: {fault}. Mend or remove that row.")
    return f"row {key}", row
