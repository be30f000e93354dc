"""Filling an index from a source: only what is new or changed is embedded.

What the index says of an item is its stamp: the mark of its content (size and time), the hash of
its content and the hash of its metadata. An item with an equal mark is left alone; with another
mark and an equal hash, only its stamp is renewed; with other metadata, its vector is kept. Batches
are stored as they come, so a run that is stopped goes on where it was.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.tasks.index import Index, Row
from bedstone.tasks.index_sources import Item, Source
from bedstone.tasks.index_values import kinds_of

BATCH = 128  # pictures of a commit

Stored = Callable[[list[str]], None]


class Embeds(Protocol):
    """What makes vectors, such as `picture_engine.PictureEngine`."""

    @property
    def name(self) -> str:
        """Unlike that of any other model, and of other weights."""

    @property
    def width(self) -> int:
        """Numbers of a vector."""

    def images(
        self, pictures: Iterable[Any], *, faults: Callable[[int, BedstoneError], None] | None = None
    ) -> np.ndarray:
        """Vectors (n, E) of pictures; `faults` is told of each that can't be read, left out."""

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (n, E) of texts."""


@dataclass
class Filled:
    """What a run did: numbers of items, and the broken ones by key, with why."""

    added: int = 0
    changed: int = 0
    renewed: int = 0  # metadata or time alone
    unchanged: int = 0
    removed: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    strays: int = 0  # rows of metadata that name no picture

    def told(self) -> str:
        """One line for people."""
        parts = [f"{self.added:,} added", f"{self.changed:,} changed"]
        parts += [f"{self.renewed:,} with new metadata"] if self.renewed else []
        parts += [f"{self.unchanged:,} unchanged", f"{self.removed:,} removed"]
        parts += [f"{len(self.broken):,} broken"] if self.broken else []
        parts += [f"{self.strays:,} rows of metadata name no picture"] if self.strays else []
        return ", ".join(parts)


def fill(
    index: Index,
    embedder: Embeds,
    source: Source,
    *,
    batch: int = BATCH,
    stored: Stored = lambda keys: None,
) -> Filled:
    """Makes the index hold what the source does.

    Args:
        batch: items embedded and stored at a time.
        stored: is told the keys of each batch when it is on the disk.

    Raises:
        BedstoneError: the source is empty, metadata doesn't fit the index, or another process
            writes to it. Items that can't be read are left out, and told in the result.
    """
    items = source.items()
    known = index.stamps()
    index.prepare(kinds_of(item.columns for item in items))
    done = Filled(strays=len(source.strays), broken=dict(source.broken))
    here = {item.key for item in items}
    done.removed += index.remove(known.keys() - here)
    waiting: list[tuple[Item, str]] = []  # to be embedded, with their stamps
    renewed: list[tuple[Item, str]] = []
    for item, stamp, same in _changes(items, known, done):
        if stamp == known.get(item.key):
            done.unchanged += 1
            continue
        (renewed if same else waiting).append((item, stamp))
        if len(waiting) >= batch:
            _embed(index, embedder, waiting, known, done, stored)
            waiting = []
        if len(renewed) >= batch:
            _renew(index, renewed, done, stored)
            renewed = []
    _embed(index, embedder, waiting, known, done, stored)
    _renew(index, renewed, done, stored)
    done.removed += index.remove(known.keys() & done.broken.keys())  # what it was is no more
    index.tidy()  # where nothing was new too: it takes away what an earlier rewrite replaced
    return done


def _changes(
    items: Sequence[Item], known: dict[str, str], done: Filled
) -> Iterator[tuple[Item, str, bool]]:
    """Each item that can be read, its stamp of today, and whether its content is as known."""
    for item in items:
        mark, content, _ = known.get(item.key, "  ").split(" ")
        same = mark == item.mark
        if not same:
            try:
                now = item.digest()
            except (OSError, ValueError) as error:
                done.broken[item.key] = f"{item.key}: can't be read ({error})"
                continue
            same, content = now == content, now
        yield item, f"{item.mark} {content} {_digest(item.columns)}", same


def _embed(
    index: Index,
    embedder: Embeds,
    given: Sequence[tuple[Item, str]],
    known: dict[str, str],
    done: Filled,
    stored: Stored,
) -> None:
    if not given:
        return
    faulty: dict[int, BedstoneError] = {}
    vectors = embedder.images([item.read() for item, _ in given], faults=faulty.__setitem__)
    for number, error in faulty.items():
        key = given[number][0].key
        done.broken[key] = f"{key}: {error}" if key not in str(error) else str(error)
    read = [one for number, one in enumerate(given) if number not in faulty]
    rows = [
        Row(item.key, vector, item.columns, stamp)
        for (item, stamp), vector in zip(read, vectors, strict=True)
    ]
    keys = index.add(rows)
    fresh = sum(key not in known for key in keys)
    done.added += fresh
    done.changed += len(keys) - fresh
    if keys:
        stored(keys)


def _renew(index: Index, given: Sequence[tuple[Item, str]], done: Filled, stored: Stored) -> None:
    """Stores items again with the vectors they have."""
    vectors = index.get([item.key for item, _ in given])
    rows = [Row(item.key, vectors[item.key], item.columns, stamp) for item, stamp in given]
    keys = index.add(rows)
    done.renewed += len(keys)
    if keys:
        stored(keys)


def _digest(columns: Any) -> str:
    told = json.dumps(dict(columns), sort_keys=True, default=str)
    return hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()[:16]
