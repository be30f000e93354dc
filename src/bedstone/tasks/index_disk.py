"""What makes a table's commits last: its files on the disk, and one writer at a time."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from bedstone.errors import BedstoneError


class Durable:
    """Brings to the disk what another library wrote below a folder.

    LanceDB commits by a rename and leaves the rest to the system; a power cut could take back what
    it said was written. A kill can't: those bytes are the system's already.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[int, int]] = {}  # files on the disk, as they were

    def settle(self) -> None:
        """Returns when every file below, and every list of names, is on the disk."""
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


def _fsync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # folders can't be opened there
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds a folder for writing; the system lets go when this process ends, however it does.

    Raises:
        BedstoneError: another process, or another `Index` of this one, holds it.
    """
    with (folder / ".lock").open("a") as file:
        try:
            import fcntl
        except ImportError:  # Windows; there, the table's own commits alone keep writers apart
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BedstoneError(
                f"{folder}: another process is writing to this index. Wait until it has finished."
            ) from error
        yield
