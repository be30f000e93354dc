"""The actors of a Ray cluster as a place to work on rows.

Plain actors, a block at a time each: what an actor was at when it died is known, is done again by
the one that replaces it, and no result is taken twice. The first actor does its first block alone;
what it measured to choose how it computes is handed to all others, so that they compute the same
bits. `ray.data` isn't used: it resumes reading from files alone, and an actor that dies of one
row ends the whole job.

A cluster of one's own listens on the loopback alone, with a password, and has no dashboard.
"""

import contextlib
import logging
import os
import secrets
import shutil
import socket
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bedstone import measured
from bedstone.bulk.places import (
    TRIES,
    Aside,
    Block,
    Choices,
    Here,
    Job,
    Place,
    Rows,
    Spread,
    Worker,
    at_home,
    attempt,
)
from bedstone.errors import BedstoneError
from bedstone.files import process_folder

log = logging.getLogger("bedstone.bulk")
DEATHS = 4 * TRIES  # of actors in a row, without one result, after which no other is started
STORE = 256 << 20  # bytes of a cluster's own object store; what is beyond goes to the disk
REACHED = 10.0  # seconds in which a cluster's address has to answer
WAIT = 30.0  # seconds after which what is waited for is said
# Read by Ray as it is imported or started.
LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}


class _Warnings(logging.Handler):
    """Keeps warnings until they are sent to the driver: nobody reads what an actor prints."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record.getMessage())

    def take(self) -> list[str]:
        taken, self.kept = self.kept, []
        return taken


class _Actor:
    """What runs in a process of the cluster."""

    def open(self, job: Job, folder: str, threads: int, choices: Choices) -> str:
        """Opens the work; why it can't be, or ""."""
        at_home(folder, threads)
        self._warnings = _Warnings()
        logging.getLogger("bedstone").addHandler(self._warnings)
        measured.adopt(choices)
        try:
            self._work: Worker = job.open()
        except BedstoneError as error:
            return str(error)
        return ""

    def do(self, rows: Rows) -> tuple[list[Any], Choices, list[str]]:
        """Results or `Aside`, what was measured so far, and warnings."""
        return attempt(self._work, rows), measured.known(), self._warnings.take()


@dataclass
class _Task:
    """Rows that an actor is given: a block, or one row of it.

    Attributes:
        alone: the row's place in its block; None of a whole block.
        deaths: of actors that were at it.
    """

    block: int
    rows: Rows
    alone: int | None = None
    deaths: int = 0


@dataclass
class _Seat:
    """An actor, and what it is at."""

    actor: Any
    task: _Task | None = None
    is_open: bool = False


@dataclass
class _Blocks:
    """Tasks that are still to be done, those that are done again first."""

    source: Iterator[Block]
    again: deque[_Task] = field(default_factory=deque)
    parts: dict[int, list[Any]] = field(default_factory=dict)  # of blocks done row by row

    def more(self) -> bool:
        """Whether there is a task."""
        if not self.again and (block := next(self.source, None)) is not None:
            self.again.append(_Task(*block))
        return bool(self.again)

    def next(self) -> _Task | None:
        return self.again.popleft() if self.more() else None

    def died(self, task: _Task) -> tuple[int, list[Any]] | None:
        """Has a task done again, in parts or not at all; the block, where that finishes it."""
        task.deaths += 1
        if task.deaths < TRIES:
            self.again.appendleft(task)
        elif task.alone is None and len(task.rows) > 1:
            self.parts[task.block] = [None] * len(task.rows)
            self.again.extend(
                _Task(task.block, [row], place) for place, row in enumerate(task.rows)
            )
        else:
            return self.done(task, [Aside(f"ended its process {task.deaths} times")])
        return None

    def done(self, task: _Task, results: list[Any]) -> tuple[int, list[Any]] | None:
        """The block with all its results, if these are the last."""
        if task.alone is None:
            return task.block, results
        parts = self.parts[task.block]
        parts[task.alone] = results[0]
        if any(each is None for each in parts):
            return None
        return task.block, self.parts.pop(task.block)


class OnRay:
    """Actors of a Ray cluster.

    Args:
        address: of a cluster that is there, HOST:PORT; "" starts one on this machine.
        actors: how many; None takes as many as have room.
        threads: that an actor computes with, as this process does.

    Raises:
        BedstoneError: Ray isn't installed, or there is no such cluster.
    """

    def __init__(self, address: str, actors: int | None, threads: int) -> None:
        self.choices: Choices | None = None
        self._threads = threads
        self._folder: Path | None = None
        self._ray = _import_ray(own=not address)
        self._seats: dict[Any, _Seat] = {}  # by what is waited for
        self._deaths, self._said = 0, set[str]()
        if address:
            self._join(address)
        else:
            self._start(actors)
        held = self._ray.cluster_resources()
        cores, gpus = int(held.get("CPU", 0)), int(held.get("GPU", 0))
        self._uses = {"num_cpus": threads} if not gpus else {"num_cpus": 1, "num_gpus": 1}
        room = gpus or cores // threads
        if room < 1:
            self.close()
            raise BedstoneError(
                f"--on ray:{address}: the cluster has {cores} processors, and an actor computes "
                f"with {threads} threads, as this process does. Set OMP_NUM_THREADS to fewer."
            )
        self.count = min(actors or room, room)
        if actors and actors > room:
            log.warning("--actors %d: the cluster has room for %d", actors, room)

    def _start(self, actors: int | None) -> None:
        self._folder = process_folder("bedstone-ray")
        cores = (actors or max(1, (os.cpu_count() or 1) // self._threads)) * self._threads
        try:
            self._ray.init(
                address="local",
                num_cpus=cores,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=STORE,
                _temp_dir=str(self._folder),
            )
        except (ConnectionError, RuntimeError, OSError, ValueError) as error:
            self.close()
            raise BedstoneError(f"--on ray: Ray can't be started here: {error}") from error
        at = self._ray.util.get_node_ip_address()
        if at not in ("127.0.0.1", "::1"):
            self.close()
            raise BedstoneError(
                f"--on ray: the cluster would listen on {at}, not on the loopback alone. Start one "
                "by yourself, and give its address."
            )

    def _join(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), REACHED).close()  # Ray tries for minutes
            self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise BedstoneError(
                f"--on ray:{address}: no Ray cluster can be joined there ({reason}). Start one by "
                "ray start; this machine has to be of it."
            ) from error

    def close(self) -> None:
        """Ends the actors, and the cluster where it is one's own."""
        for seat in self._seats.values():
            with contextlib.suppress(Exception):
                self._ray.kill(seat.actor)
        self._seats = {}
        self._ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, job: Job, blocks: Iterable[Block]) -> Iterator[tuple[int, list[Any]]]:
        """As `bulk.places.Place` has it."""
        todo, spare = _Blocks(iter(blocks)), list[_Seat]()
        self._deaths = 0
        while True:
            while spare and (task := todo.next()) is not None:
                self._give(spare.pop(), task)
            room = 1 if self.choices is None else self.count
            if len(self._seats) < room and todo.more():
                for _ in range(room - len(self._seats)):
                    self._hire(job)
            if not self._seats:
                break
            ready, _ = self._ray.wait(list(self._seats), num_returns=1, timeout=WAIT)
            if not ready:
                if not any(seat.is_open for seat in self._seats.values()):
                    log.warning("waiting for room on the cluster, or for a model to open")
                continue
            seat = self._seats.pop(ready[0])
            finished = self._take(ready[0], seat, todo)
            if seat.is_open:
                spare.append(seat)
            if finished is not None:
                yield finished
        for seat in spare:
            self._ray.kill(seat.actor)

    def _hire(self, job: Job) -> None:
        """Starts an actor, which opens the work."""
        options = {**self._uses, "max_restarts": 0, "max_task_retries": 0}
        actor = self._ray.remote(_Actor).options(**options).remote()
        opened = actor.open.remote(job, str(Path.cwd()), self._threads, self.choices or {})
        self._seats[opened] = _Seat(actor)

    def _give(self, seat: _Seat, task: _Task) -> None:
        seat.task = task
        self._seats[seat.actor.do.remote(task.rows)] = seat

    def _take(self, reference: Any, seat: _Seat, todo: _Blocks) -> tuple[int, list[Any]] | None:
        """What came of an actor's task; the block, where it is done."""
        task, seat.task = seat.task, None
        errors = self._ray.exceptions
        try:
            found = self._ray.get(reference)
        except errors.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from error
        except errors.RayError as error:
            seat.is_open = False
            with contextlib.suppress(Exception):
                self._ray.kill(seat.actor)  # one that is only out of reach works on no further
            self._deaths += 1
            log.warning("an actor died and is replaced (%s)", str(error).splitlines()[0])
            if self._deaths >= DEATHS:
                raise BedstoneError(
                    f"--on ray: {self._deaths} actors died one after another without a result: "
                    f"{_reason(error)}. What was done is kept: run it again to go on."
                ) from error
            return None if task is None else todo.died(task)
        if task is None:
            if found:
                raise BedstoneError(found)
            seat.is_open = True
            return None
        results, known, warnings = found
        for message in warnings:
            if message not in self._said:
                self._said.add(message)
                log.warning("%s", message)
        self._deaths = 0
        self.choices = known if self.choices is None else self.choices
        return todo.done(task, results)


def _reason(error: Exception) -> str:
    """The line of Ray's message that says of what an actor died."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "died" in line or "dead" in line), lines[0])[:300]


def _import_ray(*, own: bool) -> Any:
    """Ray, with what it reads from the environment as it is imported.

    Args:
        own: whether a cluster of this machine is to be started.

    Raises:
        BedstoneError: it isn't installed, or this process has imported it or has a cluster
            already.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    set_before = all(os.environ.get(name) == value for name, value in LOCAL.items())
    if own and sys.modules.get("ray") is not None and not set_before:
        raise BedstoneError(
            "--on ray: this process imported Ray before it could be kept to the loopback. Take a "
            "process of its own, such as bedstone run, or start a cluster and give its address."
        )
    if own:
        os.environ.update(LOCAL)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
        from ray._private import worker
    except ImportError as error:
        raise BedstoneError(
            "--on ray: Ray isn't installed: pip install 'bedstone[ray]'. Without it, --shard does "
            "shares of the rows."
        ) from error
    if ray.is_initialized():
        raise BedstoneError(
            "--on ray: this process is connected to a Ray cluster already. End that first: "
            "ray.shutdown()"
        )
    if hasattr(worker, "print_to_stdstream"):  # it prints deaths among our lines of output
        worker.print_to_stdstream = lambda data, **_: log.debug("%s", data.get("lines"))
    return ray


@contextlib.contextmanager
def place_of(spread: Spread) -> Iterator[Place]:
    """The place that is named; its processes end with the block.

    Raises:
        BedstoneError: there is none such, Ray isn't installed, or its cluster can't be reached.
    """
    spread.check()
    kind, _, address = spread.on.partition(":")
    if kind == "here":
        yield Here()
        return
    with contextlib.closing(OnRay(address, spread.actors, torch.get_num_threads())) as place:
        yield place
