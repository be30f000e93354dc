"""Files of a store elsewhere: object stores, web servers, whatever fsspec opens, by an address.

`s3://bucket/part-*.parquet` names shards, which are brought to the disk one after another, the next
one while one is read, and kept there up to a bound (`$BEDSTONE_SHARDS_GB`, 16). What a store says
of a shard (its size, its mark) is part of the data's fingerprint, so that a store that changes
between two runs is noticed. Where a `SHA256SUMS` stands beside the shards, each is checked.
"""

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bedstone.errors import BedstoneError
from bedstone.files import atomic_file, cache_folder, sha256

BLOCK = 8 << 20  # bytes of a request; what fails is fetched again from there
TRIES, WAIT = 6, 0.2  # of a request, and seconds before the second; twice as long each time
KEPT_GB = 16.0
SUMS = "SHA256SUMS"
MARKS = ("ETag", "etag", "checksum", "md5", "mtime", "LastModified", "last_modified", "created")
T = TypeVar("T")


def is_address(name: str) -> bool:
    """Whether a name is that of a store: `s3://...`; a Windows path is none."""
    return re.match(r"[a-z][a-z0-9+.-]+://", name) is not None


@dataclass(frozen=True)
class Shard:
    """One file of a store.

    Attributes:
        path: in the store.
        size: in bytes; None where the store doesn't say.
        mark: what changes when the file does: an ETag, a time; empty where there is none.
        digest: its SHA-256 (hex), where a list beside it has one.
    """

    path: str
    size: int | None
    mark: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


class Shards:
    """The files that an address names, in the order of their names.

    Args:
        address: of a file, a folder, or a pattern with `*`.
        suffixes: of files that count, of a folder or a pattern.

    Raises:
        BedstoneError: the store can't be reached, or nothing is there.
    """

    def __init__(self, address: str, suffixes: tuple[str, ...]) -> None:
        self.address = address
        self.store, path = _opened(address)
        found = self._try(lambda: self._listed(path, suffixes), f"{address}: can't be listed")
        if not found:
            raise BedstoneError(
                f"data {address!r}: no file is there. Check the address; of a folder, files "
                f"{', '.join(suffixes)} are read."
            )
        sums = self._sums(found[0].path)
        self.shards = [
            Shard(each.path, each.size, each.mark, sums.get(each.name, "")) for each in found
        ]

    def _listed(self, path: str, suffixes: tuple[str, ...]) -> list[Shard]:
        if "*" in path or "?" in path or "[" in path:
            details = self.store.glob(path, detail=True)
        else:
            details = {path: self.store.info(path)} if self.store.isfile(path) else {}
            details = details or self.store.find(path, detail=True)
        entries = [
            (name, facts) for name, facts in sorted(details.items()) if facts["type"] == "file"
        ]
        if len(entries) > 1 or (entries and entries[0][0] != path):
            entries = [(name, facts) for name, facts in entries if _reads(name, suffixes)]
        return [_shard(name, facts) for name, facts in entries]

    def _sums(self, beside: str) -> dict[str, str]:
        """{name: SHA-256} of the list beside a shard; {} where there is none."""
        path = f"{beside.rpartition('/')[0]}/{SUMS}"

        def read() -> str:
            if not self.store.exists(path):
                return ""
            return bytes(self.store.cat_file(path)).decode("utf-8", "replace")

        text = self._try(read, f"{path}: can't be read")
        rows = (line.split() for line in text.splitlines())
        return {row[1].lstrip("*"): row[0].lower() for row in rows if len(row) == 2}

    def fingerprint(self) -> str:
        """A hash (hex) of what the store says of all shards: paths, sizes, marks, digests."""
        digest = hashlib.sha256(self.address.encode())
        for each in self.shards:
            digest.update(f"{each.path} {each.size} {each.mark} {each.digest}\n".encode())
        return digest.hexdigest()

    @property
    def size(self) -> int | None:
        """Bytes of all; None where the store doesn't say."""
        sizes = [each.size for each in self.shards]
        return None if None in sizes else sum(each for each in sizes if each is not None)

    def take(self, names: Callable[[str], bool]) -> None:
        """Leaves those whose names are wanted."""
        self.shards = [each for each in self.shards if names(each.name)]

    def files(self) -> Iterator[Path]:
        """Each shard on the disk, in order; the next is fetched while one is read.

        Raises:
            BedstoneError: one can't be fetched, has changed, or isn't what its list says.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="shards") as pool:
            coming: Future[Path] | None = None
            try:
                for number, shard in enumerate(self.shards):
                    path = coming.result() if coming is not None else self._local(shard)
                    coming = None
                    if number + 1 < len(self.shards):
                        coming = pool.submit(self._local, self.shards[number + 1])
                    yield path
            finally:
                if coming is not None:
                    coming.cancel()

    def _local(self, shard: Shard) -> Path:
        key = f"{self.address.split('://')[0]} {shard.path} {shard.size} {shard.mark}"
        folder = _home() / hashlib.sha256(key.encode()).hexdigest()[:32]
        path = folder / shard.name
        if path.is_file() and shard.size in (None, path.stat().st_size):
            with contextlib.suppress(OSError):
                os.utime(path)  # used now, so that it is among the last to go
            return path
        _make_room(shard.size or 0, keep=folder)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, needed=shard.size) as temporary:
            self._fetch(shard, temporary)
        return path

    def _fetch(self, shard: Shard, path: Path) -> None:
        """Writes a shard's bytes; a request that fails is made again, for its block alone."""
        where = f"{shard.path}: can't be fetched"
        with path.open("wb") as file:
            at = 0
            while shard.size is None or at < shard.size:
                end = at + BLOCK if shard.size is None else min(at + BLOCK, shard.size)
                start = at

                def block(start: int = start, end: int = end) -> bytes:
                    found = bytes(self.store.cat_file(shard.path, start=start, end=end))
                    if shard.size is not None and len(found) != end - start:
                        raise OSError(f"{len(found)} of {end - start} bytes came")
                    return found

                data = self._try(block, where)
                file.write(data)
                at += len(data)
                if shard.size is None and len(data) < BLOCK:
                    break
        if shard.digest and (found := sha256(path)) != shard.digest:
            raise BedstoneError(
                f"{shard.path}: its sha256 is {found[:16]}…; {SUMS} beside it says "
                f"{shard.digest[:16]}…. Upload it again, or mend the list."
            )

    def _try(self, call: Callable[[], T], what: str) -> T:
        """What a call gives; it is made again where the store fails.

        Raises:
            BedstoneError: it failed each time, or there is no such file, or it is forbidden.
        """
        wait = WAIT
        for number in range(TRIES):
            try:
                return call()
            except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
                raise BedstoneError(
                    f"{what}: {_reason(error)}. Check the address and the rights."
                ) from error
            except BedstoneError:
                raise
            except Exception as error:
                # a store's own classes of errors are known to its library alone
                if number + 1 == TRIES:
                    raise BedstoneError(
                        f"{what}: {_reason(error)}, {TRIES} times. Try again later."
                    ) from error
                time.sleep(wait)
                wait *= 2
        raise AssertionError("unreachable")


def _opened(address: str) -> tuple[Any, str]:
    """The store of an address, and the path in it."""
    try:
        import fsspec
    except ImportError as error:
        raise BedstoneError(
            f"data {address!r}: is the address of a store, which needs fsspec: pip install fsspec."
        ) from error
    try:
        store, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise BedstoneError(f"data {address!r}: {error}.") from error
    except ValueError as error:
        raise BedstoneError(
            f"data {address!r}: {error}. Expected an address such as s3://bucket/part-*.parquet."
        ) from error
    return store, path


def _reads(name: str, suffixes: tuple[str, ...]) -> bool:
    base = name.rsplit("/", 1)[-1].lower()
    return base.removesuffix(".gz").endswith(suffixes) and not base.startswith(".")


def _shard(name: str, facts: dict[str, Any]) -> Shard:
    size = facts.get("size")
    mark = next((str(facts[key]) for key in MARKS if facts.get(key)), "")
    return Shard(name, int(size) if isinstance(size, int) else None, mark)


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0][:200] if text else type(error).__name__).rstrip(".")


# The cache.


def _home() -> Path:
    return cache_folder("shards")


def _limit() -> int:
    """Bytes that the cache may hold."""
    given = os.environ.get("BEDSTONE_SHARDS_GB", "")
    try:
        found = float(given) if given else KEPT_GB
    except ValueError:
        found = -1.0
    if not 0 < found < float("inf"):
        raise BedstoneError(
            f"BEDSTONE_SHARDS_GB: {given!r} was given; expected gigabytes, such as 16."
        )
    return int(found * 1e9)


def _make_room(needed: int, keep: Path) -> None:
    """Removes shards that were used longest ago, until one of `needed` bytes fits.

    The latest two stay: one is being read, the other may be next.
    """
    home, limit = _home(), _limit()
    held = []
    for path in home.glob("*/*"):
        with contextlib.suppress(OSError):
            facts = path.stat()
            held.append((facts.st_mtime, facts.st_size, path))
    held.sort()
    total = sum(size for _, size, _ in held) + needed
    for _, size, path in held[:-2]:
        if total <= limit:
            return
        if path.parent == keep:
            continue
        with contextlib.suppress(OSError):
            path.unlink()
            path.parent.rmdir()
        total -= size
