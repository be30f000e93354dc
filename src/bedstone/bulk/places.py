"""Places to work on rows: this process, or the actors of a Ray cluster.

A `Job` names a function that opens the work in any process, and the settings it is given; what it
opens takes a list of rows and gives a result for each, or an `Aside` for a row that it can't do. A
place yields the results of blocks of rows as they are done. Every row gets one result, whatever
dies on the way: a block whose work raises, or ends its process `TRIES` times, is worked on row by
row, and the rows that do so alone are set aside with the reason.
"""

import contextlib
import importlib
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from bedstone import measured
from bedstone.bulk.shares import WHOLE, Shard
from bedstone.errors import BedstoneError

log = logging.getLogger("bedstone.bulk")
TRIES = 3  # deaths of a process over the same rows, after which they are the reason
FIRST = 64  # rows set aside before the first result, after which no other is tried

Rows = list[Any]
Worker = Callable[[Rows], list[Any]]  # rows to as many results or `Aside`
Block = tuple[int, Rows]  # with its number
Choices = dict[str, dict[str, float]]  # what processes measured, as `measured.known` has it


@dataclass(frozen=True)
class Aside:
    """In the place of a row's result: why there is none."""

    reason: str


@dataclass(frozen=True)
class Job:
    """Work on rows that any process can open.

    Attributes:
        opener: the function that opens it, as module:name.
        settings: its arguments by name, plain values.
    """

    opener: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def open(self) -> Worker:
        """The work, ready for rows. Raises what its function raises."""
        module, _, name = self.opener.partition(":")
        found: Worker = getattr(importlib.import_module(module), name)(**self.settings)
        return found


@dataclass(frozen=True)
class Spread:
    """Where rows are worked on.

    Attributes:
        shard: do one share of the rows, such as 2/5; bedstone join makes one output of all.
        on: here; ray, a cluster of this machine alone; or ray:HOST:PORT, one that is there.
        actors: processes on Ray (default: as many as its processors have room for).
    """

    shard: str | None = None
    on: str = "here"
    actors: int | None = None

    @property
    def share(self) -> Shard:
        """Raises BedstoneError where there is none such."""
        return WHOLE if self.shard is None else Shard.read(self.shard)

    @property
    def is_usual(self) -> bool:
        """Whether all is done here, in one go."""
        return self == Spread()

    def check(self) -> None:
        """Raises BedstoneError for a place or a number that can't be."""
        _ = self.share
        kind, colon, address = self.on.partition(":")
        there = kind == "ray" and re.fullmatch(r".+:\d{1,5}", address)
        if kind not in ("here", "ray") or (colon and not there):
            raise BedstoneError(
                f"--on: {self.on!r} was given; expected here, ray, or ray:HOST:PORT."
            )
        if self.actors is not None and (kind == "here" or self.actors < 1):
            want = "expected 1 or more" if kind == "ray" else "it is of --on ray. Leave it out"
            raise BedstoneError(f"--actors: {self.actors} was given; {want}.")


class Place(Protocol):
    """Where blocks of rows are worked on.

    Attributes:
        choices: what the first process measured to choose how it computes; the others compute
            in the same way, also those of a later run that is given them.
    """

    choices: Choices | None

    def run(self, job: Job, blocks: Iterable[Block]) -> Iterator[tuple[int, list[Any]]]:
        """The number of each block and a result or an `Aside` for each of its rows, as they come.

        Raises:
            BedstoneError: the work can't be opened.
        """


class Here:
    """This process."""

    def __init__(self) -> None:
        self.choices: Choices | None = None

    def run(self, job: Job, blocks: Iterable[Block]) -> Iterator[tuple[int, list[Any]]]:
        measured.adopt(self.choices or {})
        work = job.open()
        for number, rows in blocks:
            results = attempt(work, rows)
            self.choices = measured.known() if self.choices is None else self.choices
            yield number, results


def attempt(work: Worker, rows: Rows) -> list[Any]:
    """A result for each row: of all together, or of each alone where that raises."""
    try:
        results = work(rows)
        if len(results) != len(rows):
            raise ValueError(f"{len(results)} results of {len(rows)} rows")
        return results
    except Exception as error:
        if len(rows) > 1:
            return [each for row in rows for each in attempt(work, [row])]
        log.debug("a row is set aside", exc_info=error)
        named = "" if isinstance(error, BedstoneError) else f"{type(error).__name__}: "
        return [Aside(f"{named}{error}")]


class Watch:
    """Stops work of which nothing but faults comes.

    Attributes:
        done, aside: rows with a result, and those without.
        first: the reason of the first of these.
    """

    def __init__(self) -> None:
        self.done, self.aside, self.first = 0, 0, ""

    def see(self, results: list[Any]) -> list[Any]:
        """Counts results; the same. Raises BedstoneError where none came of the first rows."""
        faults = [each for each in results if isinstance(each, Aside)]
        self.first = self.first or (faults[0].reason if faults else "")
        self.aside += len(faults)
        self.done += len(results) - len(faults)
        if not self.done and self.aside >= FIRST:
            self.check()
        return results

    def check(self) -> None:
        """Raises BedstoneError if there were rows, and none had a result."""
        if self.aside and not self.done:
            every = "the one row" if self.aside == 1 else f"each of the first {self.aside:,} rows"
            raise BedstoneError(f"nothing was done: {every} had a fault: {self.first}")


def in_order(
    found: Iterable[tuple[int, Any]], numbers: Sequence[int] | None = None
) -> Iterator[Any]:
    """Values by their numbers, in order, as soon as those before are there.

    Args:
        numbers: that come, in order; 0, 1, 2, ... if None.
    """
    waiting: dict[int, Any] = {}
    wanted = itertools.count() if numbers is None else iter(numbers)
    now = next(wanted, None)
    for number, value in found:
        waiting[number] = value
        while now in waiting:
            yield waiting.pop(now)
            now = next(wanted, None)


def at_home(folder: str, threads: int) -> None:
    """Makes another process compute as this one: in its folder, with as many threads."""
    with contextlib.suppress(OSError):  # another machine may not have it
        os.chdir(folder)
    torch.set_num_threads(threads)
