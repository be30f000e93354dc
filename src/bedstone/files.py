"""Files and folders written whole or not at all.

Whatever moment a process is killed, a disk fills up or the power goes, the target holds either
what it held before or all that was meant to be written. What makes it so, in order: write beside
the target under a hidden name, fsync every file and folder of it, take the target's place in one
step of the file system, fsync the parent folder, and only then remove what was there.

Every step that can fail goes through one of the small functions named `_write`, `_fsync`,
`_rename`, `_exchange` and `_remove`, so that tests can cut a save at each of them.
"""

import contextlib
import ctypes
import errno
import fnmatch
import glob
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.reading import kind_of, shown, to_path

OLD_SECONDS = 24 * 3600  # a temporary this old belongs to nobody, whatever its process number says

_HOST = f"{zlib.crc32(platform.node().encode()):08x}"  # process numbers mean nothing elsewhere
_active: set[Path] = set()  # temporaries that this process is writing now

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
# EPERM too: sandboxes answer so to calls they don't know; a true denial shows at the rename.
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)


def _fsync(path: Path) -> None:
    """Returns when the file, or the folder's list of names, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # folders can't be opened there
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        if sys.platform == "darwin":
            import fcntl

            with contextlib.suppress(OSError):
                fcntl.fcntl(handle, fcntl.F_FULLFSYNC)  # fsync stops at the drive's cache there
                return
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in {errno.EINVAL, errno.ENOTSUP}):
            raise
    finally:
        os.close(handle)


def _rename(source: Path, target: Path) -> None:
    source.replace(target)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step; False where the system or the file system has no such step."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        first, second = os.fsencode(one), os.fsencode(other)
        if sys.platform.startswith("linux"):
            failed = libc.renameat2(-100, first, -100, second, 2)  # AT_FDCWD, RENAME_EXCHANGE
        elif sys.platform == "darwin":
            failed = libc.renamex_np(first, second, 2)  # RENAME_SWAP
        else:
            return False
    except (AttributeError, TypeError, OSError):  # a C library without the call, or none
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_file(path: str | Path, *, needed: int | None = None) -> Iterator[Path]:
    """Yields a temporary path to write; on leaving, that file takes `path`'s place.

    After an exception, in the block or here, the temporary is gone and `path` is as it was.
    A symlink stays a link: the file it points to is replaced. Only a plain file is ever replaced:
    a device or a pipe is written into. `needed` bytes are only told to the user when the disk is
    full.

    Raises:
        BedstoneError: the disk is full, read-only or forbidden, or `path` is a folder, a socket, a
            disk, or a pipe that nobody reads.
    """
    path = to_path(path)
    kind = kind_of(path)
    if kind in ("a pipe", "a device"):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder, "written")
            yield temporary
            _write_through(temporary, path)
        return
    if kind not in ("", "a plain file", "a folder"):
        raise BedstoneError(f"{path}: is {kind}, which can't be written. Choose another name.")
    path = path.resolve()
    with _replacing(path, needed) as temporary:
        if path.is_dir():
            raise BedstoneError(f"{path}: is a folder, where a file was to be written.")
        yield temporary
        if path.exists():
            shutil.copymode(path, temporary)
        _fsync(temporary)
        _rename(temporary, path)
        _settle(path)


def _write_through(source: Path, target: Path) -> None:
    """Copies a file into a device or a pipe, which stays what it is."""
    until = time.monotonic() + 1
    while True:
        try:
            handle = os.open(target, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError as error:
            if error.errno == errno.ENXIO and time.monotonic() < until:
                time.sleep(0.02)  # whoever reads the pipe may be about to open it
                continue
            why = "nobody reads this pipe" if error.errno == errno.ENXIO else error.strerror
            raise BedstoneError(f"{target}: can't be written: {why}.") from error
    os.set_blocking(handle, True)
    with source.open("rb") as file, os.fdopen(handle, "wb") as pipe:
        try:
            shutil.copyfileobj(file, pipe)
            pipe.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise BedstoneError(f"{target}: can't be written: {error.strerror}.") from error


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, needed: int | None = None) -> Iterator[Path]:
    """Yields a new empty folder to fill; on leaving, that folder takes `path`'s place.

    After an exception, in the block or here, the temporary is gone and `path` is as it was.

    Raises:
        BedstoneError: the disk is full, read-only or forbidden, or `path` is a file.
    """
    path = Path(path).resolve()
    previous = _previous(path)
    with _replacing(path, needed) as temporary:
        if path.exists() and not path.is_dir():
            raise BedstoneError(f"{path}: is a file, where a folder was to be written.")
        recover_folder(path)
        temporary.mkdir()
        yield temporary
        for root, _, names in os.walk(temporary, topdown=False):
            for name in names:
                if not Path(root, name).is_symlink():
                    _fsync(Path(root, name))
            _fsync(Path(root))
        taken = path.exists()
        if not taken:
            try:
                _rename(temporary, path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                taken = True  # another process has just made it
        if taken and not _exchange(temporary, path):
            with contextlib.suppress(FileNotFoundError):
                _remove(previous)
            try:
                _rename(path, previous)
                _rename(temporary, path)
            except BaseException:
                recover_folder(path)
                raise
        _settle(path)
        for old in (temporary, previous):  # after an exchange, the old one bears the hidden name
            if old.exists():
                with contextlib.suppress(OSError):
                    _remove(old)  # what can't be removed now is swept by a later write


def make_folder(path: str | Path) -> Path:
    """Makes a folder, and those above it, where there is none.

    Raises:
        BedstoneError: the name can't be, a file is there, or the system refuses.
    """
    path = to_path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BedstoneError(_refusal(path, error, None)) from error
    return path


@contextlib.contextmanager
def lock(folder: Path, refusal: str = "", *, wait: bool = False) -> Iterator[None]:
    """Holds a folder for one process; the system lets go when that ends, however it does.

    Args:
        refusal: what to say where another process, or another part of this one, holds it.
        wait: until it is let go, instead of refusing.

    Raises:
        BedstoneError: it is held, or nothing can be written there.
    """
    path = folder / ".lock"
    try:
        import fcntl
    except ImportError:  # Windows, which has no such locks
        yield
        return
    while True:
        try:
            file = path.open("a")
        except OSError as error:
            raise BedstoneError(_refusal(folder, error, None)) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                raise BedstoneError(f"{folder}: {refusal}") from error
            try:
                if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    continue  # whoever held it has just removed it
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def remove_folder(path: str | Path) -> None:
    """Removes a folder so that a crash leaves all of it, or a leftover that `sweep` knows.

    Raises:
        OSError: it can't be removed.
    """
    path = Path(path).resolve()
    hidden = _hidden_name(path)
    _rename(path, hidden)
    _remove(hidden)


def recover_folder(path: str | Path) -> Path:
    """Brings back the folder that a crash left under its `.previous` name; readers call this.

    That name exists only between the two renames of a file system that can't exchange.
    """
    path = Path(path)
    if not os.path.lexists(path) and _previous(path).is_dir():
        _rename(_previous(path), path)
        _fsync(path.parent)
    return path


def cache_folder(name: str) -> Path:
    """`$BEDSTONE_CACHE/NAME`, else `bedstone/NAME` in the user's cache folder."""
    root = os.environ.get("BEDSTONE_CACHE")
    if root:
        return Path(root).expanduser() / name
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "bedstone" / name


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all. Raises BedstoneError as `atomic_file` does."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file, whole or not at all. Raises BedstoneError as `atomic_file` does."""
    with atomic_file(path, needed=len(data)) as temporary:
        _write(temporary, data)


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented JSON, whole or not at all. Raises BedstoneError as `atomic_file` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sweep(folder: Path, pattern: str) -> None:
    """Removes what dead processes left in `folder` of targets whose names match `pattern`."""
    for found in list(folder.iterdir()):
        if match := re.fullmatch(r"\.(.+)\.(?:previous|tmp-(\d+)-(\w{8})-\w{8})", found.name):
            name, process, host = match.groups()
            # A `.previous` beside no folder is the only copy: `recover_folder` wants it.
            stale = _is_stale(found, process, host) if process else (folder / name).exists()
            if stale and fnmatch.fnmatchcase(name, pattern):
                with contextlib.suppress(OSError):
                    _remove(found)


def process_folder(name: str) -> Path:
    """A new folder of this process among the system's temporary ones, for it alone to enter.

    Whoever makes one removes it. Those of the same name that dead processes of this machine left
    are removed here.
    """
    home = Path(tempfile.gettempdir())
    for found in home.glob(f"{glob.escape(name)}-*"):
        match = re.fullmatch(r".+-(\d+)-(\w{8})-\w{4}", found.name)
        if match and match[2] == _HOST and _is_dead(int(match[1])):
            shutil.rmtree(found, ignore_errors=True)
    while True:
        path = home / f"{name}-{os.getpid()}-{_HOST}-{secrets.token_hex(2)}"
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            return path


def _is_dead(process: int) -> bool:
    if os.name == "nt":  # asking would end the process there
        return False
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False


def _is_stale(found: Path, number: str, host: str) -> bool:
    """Whether nobody writes this temporary any more: its process is dead, or it is old."""
    process = int(number)
    if process == os.getpid() and host == _HOST:  # in a container every run may be number 7
        return found not in _active
    try:
        old = time.time() - found.stat().st_mtime > OLD_SECONDS
    except OSError:
        return False
    return old or (host == _HOST and _is_dead(process))


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")


def _hidden_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{_HOST}-{secrets.token_hex(4)}")


def _settle(path: Path) -> None:
    try:
        _fsync(path.parent)
    except OSError as error:
        raise BedstoneError(
            f"{path}: the new one is in place, but the disk can't promise to keep it through a "
            f"power cut ({error.strerror}). Save again, on another disk if that fails too."
        ) from error


@contextlib.contextmanager
def _replacing(path: Path, needed: int | None) -> Iterator[Path]:
    """A free hidden name beside `path`, gone again after an exception, which is explained."""
    temporary = _hidden_name(path)
    inner = any(path.is_relative_to(other) for other in tuple(_active))
    _active.add(temporary)
    try:
        missing = [folder for folder in path.parents if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            _fsync(folder.parent)
        sweep(path.parent, glob.escape(path.name))
        yield temporary
    except BaseException as error:
        refusal = None
        if isinstance(error, OSError) and _concerns(error, path.parent):
            if inner:  # the folder being written around it has the name that the user knows
                error.needed = needed  # type: ignore[attr-defined]
            else:
                refusal = _refusal(path, error, needed or getattr(error, "needed", None))
        with contextlib.suppress(OSError):
            _remove(temporary)
        if refusal:
            raise BedstoneError(refusal) from error
        raise
    finally:
        _active.discard(temporary)


def _concerns(error: OSError, folder: Path) -> bool:
    """Whether it is about a file below `folder`; others are the caller's own to explain."""
    if error.errno not in _FULL | _DENIED | {errno.EIO}:
        return False
    if not isinstance(error.filename, str):
        return True
    named = Path(error.filename).absolute()
    return named.is_relative_to(folder) or folder.is_relative_to(named)


def _refusal(path: Path, error: OSError, needed: int | None) -> str:
    """Why `path` can't be written and what to do, in the user's words."""
    there = os.access(path, os.F_OK)
    kept = f"The {path.name} that was there is whole." if there else "Nothing was changed."
    if error.errno in _FULL:
        free = shutil.disk_usage(next(p for p in path.parents if os.access(p, os.F_OK))).free
        wanted = "more" if needed is None else f"{needed:,} bytes"
        return (
            f"{path}: can't be written: {error.strerror} ({wanted} needed, {free:,} bytes free). "
            f"{kept} Free some space or choose a folder on another disk, then run it again."
        )
    if error.errno in _DENIED:
        advice = "Choose another folder, or mend what stands in the way there."
    else:
        advice = "The disk may be failing: use another."
    return f"{path}: can't be written: {error.strerror}. {kept} {advice}"


# What a folder is meant to hold: every file's size and hash, written once and checked later.


def manifest(
    folder: str | Path,
    known: Mapping[str, dict[str, Any]] | None = None,
    leave_out: str = "",
) -> dict[str, dict[str, Any]]:
    """`{relative name: {"size": bytes, "sha256": hex}}` of every file below `folder`.

    Args:
        known: entries of files that other processes wrote, which aren't read again.
        leave_out: a folder in it that isn't looked into.

    Raises:
        BedstoneError: a symlink is among them; what it points to would not travel along. Or a file
            of another process isn't there as it says.
    """
    folder = Path(folder)
    entries: dict[str, dict[str, Any]] = {}
    for name, entry in (known or {}).items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != entry["size"]:
            raise BedstoneError(
                f"{path}: {found} bytes are here, {entry['size']:,} were written by another "
                "process. Put the run's folder on a disk that all of them see."
            )
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if leave_out and name.startswith(f"{leave_out}/"):
            continue
        if path.is_symlink():
            raise BedstoneError(f"{path}: is a symlink; put the file itself there.")
        if path.is_file():
            entries[name] = (known or {}).get(name) or {
                "size": path.stat().st_size,
                "sha256": sha256(path),
            }
    return entries


def verify_manifest(
    folder: str | Path,
    expected: dict[str, dict[str, Any]],
    name: str = "the manifest",
    mend: str = "",
) -> None:
    """Checks every file that the manifest names, cheapest test first.

    Args:
        name: of the manifest itself.
        mend: what to do about a file that was changed on purpose; by default to delete it.

    Raises:
        BedstoneError: a file is missing, of another size or of other content; or the manifest
            names something outside the folder.
    """
    folder = Path(folder)
    mend = mend or f"delete its {name}"
    remedy = f"Use another copy of this folder; if you changed it on purpose, {mend}."
    for file, entry in expected.items():
        path = inside(folder, file)
        try:
            size, digest = int(entry["size"]), str(entry["sha256"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BedstoneError(
                f"{folder}: the entry of {name} for {shown(file)} is damaged: "
                f"{shown(entry)}; expected size and sha256. {remedy}"
            ) from error
        if not path.is_file():
            raise BedstoneError(f"{path}: is missing; expected {size:,} bytes. {remedy}")
        if path.stat().st_size != size:
            raise BedstoneError(
                f"{path}: is truncated or overgrown: "
                f"{path.stat().st_size:,} bytes found, {size:,} expected. {remedy}"
            )
        if (found := sha256(path)) != digest:
            raise BedstoneError(
                f"{path}: its content was changed: "
                f"sha256 {found[:16]}… found, {digest[:16]}… expected. {remedy}"
            )


def inside(folder: str | Path, name: str, linked_to: Iterable[Path] = ()) -> Path:
    """`folder/name`, where `name` is a plain relative path that no link leads elsewhere.

    Links into one of the folders `linked_to` are let pass.

    Raises:
        BedstoneError: the name is absolute, climbs out, passes a symlink or is beyond any limit.
    """
    path = Path(folder)
    text = name.replace("\\", "/") if isinstance(name, str) else ""
    for part in text.split("/") if len(text) < 1024 else [""]:
        size = len(part.encode("utf-8", "surrogatepass"))
        odd = part in {"", ".", ".."} or {":", "\0"} & set(part) or size > 255
        path = path / part
        if odd or (path.is_symlink() and not _leads_into(path.resolve(), linked_to)):
            raise BedstoneError(
                f"{folder}: the file name {shown(name)} leads out of this folder; expected a plain "
                "relative name. Don't use this copy: fetch it again from where you trust."
            )
    return path


def _leads_into(target: Path, folders: Iterable[Path]) -> bool:
    return any(target.is_relative_to(folder) for folder in folders)


def sha256(path: str | Path) -> str:
    """The file's SHA-256 as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
