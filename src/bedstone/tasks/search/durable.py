"""Durability of an index: its LanceDB table is synced before a call returns, checked on opening.

LanceDB commits by a rename, leaves the rest to the system, and checks no content: a table without
its newest commit is an older one to it, and a changed byte of a vector is another vector. So a seal
beside the table, `rows.json`, holds the number of the last commit and the size and CRC-32 of every
file. A kill between a commit and its seal leaves a table newer than its seal, which is sound.
"""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from bedstone.errors import BedstoneError
from bedstone.files import write_json
from bedstone.reading import is_plain, read_object

SEAL = "rows.json"
KINDS = (".lance", ".manifest", ".idx", ".arrow")  # files of a table, which are written once
AGAIN = "Take a copy of the index, or make it again."


class Durable:
    """Brings to the disk what another library wrote below a folder, and seals it.

    A power cut could take back what LanceDB said was written. A kill can't: those bytes are the
    system's already.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[int, int]] = {}  # files on the disk, as they were
        self._sums: dict[str, list[int]] | None = None  # [size, CRC-32] of sealed files

    def settle(self, version: int) -> None:
        """Returns when every file below, every list of names and the seal are on the disk.

        Args:
            version: of the table's last commit.
        """
        seen: dict[str, tuple[int, int]] = {}
        changed = set()
        for root, _, names in os.walk(self.folder):
            for name in names:
                path = Path(root, name)
                try:
                    state = path.stat()
                    seen[str(path)] = mark = (state.st_size, state.st_mtime_ns)
                    if self._known.get(str(path)) != mark:
                        _fsync(path)
                        changed.add(Path(root))
                except FileNotFoundError:  # a rewrite took it away meanwhile
                    continue
        for folder in {one for each in changed for one in (each, each.parent)}:
            _fsync(folder)
        self._known = seen
        self._seal(version)

    def _seal(self, version: int) -> None:
        sealed = _read(self.folder)[1] if self._sums is None else self._sums
        sums: dict[str, list[int]] = {}
        for name, path in _files(self.folder):
            try:  # files of a table are never changed, so what is sealed stays
                sums[name] = sealed[name] if name in sealed else _sum(path)
            except FileNotFoundError:
                continue
        self._sums = sums
        write_json(self.folder / SEAL, {"version": version, "files": sums})


def check(folder: Path, version: int) -> None:
    """Checks the table of an index against its seal; an index that has none is an older one's.

    Args:
        version: of the table's last commit; 0 where there is no table.

    Raises:
        BedstoneError: commits are missing, or a file isn't what it was.
    """
    least, sealed = _read(folder)
    if version < least:
        raise BedstoneError(
            f"{folder}: is damaged: commit {least:,} of its rows was written, and "
            f"{f'{version:,} is the last' if version else 'none'} is there. {AGAIN}"
        )
    for name, path in _files(folder):
        if name in sealed and _sum(path) != sealed[name]:
            raise BedstoneError(f"{path}: its content was changed since it was written. {AGAIN}")


def _read(folder: Path) -> tuple[int, dict[str, list[int]]]:
    """The last sealed commit, and [size, CRC-32] of files by their names."""
    path = folder / SEAL
    if not is_plain(path):
        return 0, {}
    seal = read_object(path)
    version, files = seal.get("version"), seal.get("files")
    if type(version) is not int or not isinstance(files, dict):
        raise BedstoneError(f"{path}: holds no version and files; it is damaged. {AGAIN}")
    return version, files


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.glob("*.lance/**/*")):
        if path.suffix in KINDS:
            yield path.relative_to(folder).as_posix(), path


def _sum(path: Path) -> list[int]:
    size = total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            size, total = size + len(block), zlib.crc32(block, total)
    return [size, total]


def _fsync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # folders can't be opened there
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
