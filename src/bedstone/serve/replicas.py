"""Several processes behind one address, each with models of its own; one that dies is replaced.

They take connections from one listening socket. Each writes once a second into a folder of theirs
whether it is ready, and its figures: so any of them answers for all. A process above them opens no
model: it starts them, starts one that has died again, and ends them by a signal.

What one process keeps the others don't know, so nothing is kept for a later request
(`NoConversations`), and limits of memory and of queues count for each of them.
"""

import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.files import process_folder
from bedstone.serve.app import BACKLOG, GRACE, run
from bedstone.serve.gate import Entrance
from bedstone.serve.indexes import open_indexes
from bedstone.serve.kept import Conversations
from bedstone.serve.metrics import merged, text_of
from bedstone.serve.models import Models, ServeSettings
from bedstone.serve.routes import Alone, Service
from bedstone.serve.wire import ApiError
from bedstone.tasks.moderation.policy import Policy

log = logging.getLogger("bedstone.serve")
FORMAT = "%(asctime)s %(message)s"
EVERY = 1.0  # seconds between two reports of a replica
STALE = 15.0  # seconds after which what it reported counts no more
LATER = (0.0, 1.0, 2.0, 5.0, 15.0, 30.0)  # seconds before it is started again, by failures


@dataclass(frozen=True)
class Plan:
    """All that a process needs to serve.

    Attributes:
        sources: what `bedstone.load` opens, by name.
        indexes: as `--index` names them.
        policy: of moderation, where a request gives none.
    """

    sources: dict[str, str]
    settings: ServeSettings
    entrance: Entrance
    indexes: Sequence[str]
    policy: Policy | None
    precision: str
    device: str


def serve_here(
    plan: Plan, listener: socket.socket, others: Callable[[Models], Alone] | None = None
) -> None:
    """Opens all models and serves them in this process until a signal asks to leave.

    Args:
        others: of these models, where this process is one of several.

    Raises:
        BedstoneError: a model or an index can't be opened, or there is no room for it.
    """
    opened = Models(plan.sources, plan.settings, plan.precision, plan.device)
    before = signal.signal(signal.SIGTERM, _stop)  # until the server has its own
    try:
        opened.open_all()
        # uvicorn ends by a signal, and raises it once more when all is done
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _pass_over)
        service = Service(opened, open_indexes(plan.indexes, opened), plan.policy)
        if others is not None:
            service.conversations, service.replicas = NoConversations(), others(opened)
        run(service, plan.entrance, listener)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _pass_over(number: int, frame: FrameType | None) -> None:
    """Takes a signal that has done its work."""


class NoConversations(Conversations):
    """Keeps no response: the next request may come to another replica."""

    keeps = False

    def find(self, identity: str, name: str) -> list[dict[str, Any]]:
        raise ApiError(
            400, "previous_response_id: this server has several replicas, which keep no responses. "
            "Give the whole conversation as input, or serve without --replicas.",
            "previous_response_id", "previous_response_not_found",
        )  # fmt: skip

    def get(self, identity: str, name: str) -> Any:
        raise ApiError(404, "This server has several replicas, which keep no responses.",
                       code="response_not_found")  # fmt: skip


class Reports(Alone):
    """What all replicas report of themselves, in a folder of theirs.

    Args:
        number: of this one, from 1.
        count: of all.
    """

    def __init__(self, folder: Path, number: int, count: int, models: Models) -> None:
        self.folder, self.number, self.count, self.models = folder, number, count, models

    def begin(self) -> None:
        """Reports from now on, as long as the process lives."""
        threading.Thread(target=self._report, name="report", daemon=True).start()

    def _report(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                self.say()
            time.sleep(EVERY)

    def _figures(self) -> str:
        own = {name: each.metrics for name, each in self.models.entries.items()}
        return text_of(own, f',replica="{self.number}"')

    def say(self) -> None:
        """Writes what is to be known of this one: seen whole or not at all, and no longer than it
        lives."""
        said = {"ready": self.models.ready, "figures": self._figures()}
        path = reported(self.folder, self.number)
        path.with_suffix(".new").write_text(json.dumps(said))
        path.with_suffix(".new").replace(path)

    def _others(self) -> Iterator[dict[str, Any]]:
        """What the others said lately."""
        for number in range(1, self.count + 1):
            if number != self.number:
                with contextlib.suppress(OSError, ValueError):
                    path = reported(self.folder, number)
                    if time.time() - path.stat().st_mtime < STALE:
                        yield json.loads(path.read_text())

    def ready(self, own: bool) -> bool:
        others = list(self._others())
        return own and len(others) == self.count - 1 and all(each["ready"] for each in others)

    def figures(self, own: str) -> str:
        texts = [self._figures(), *(each["figures"] for each in self._others())]
        lives = f"bedstone_replicas {len(texts)}"
        head = ["# HELP bedstone_replicas Processes that serve.", "# TYPE bedstone_replicas gauge"]
        return merged(texts) + "\n".join([*head, lives]) + "\n"


def reported(folder: Path, number: int) -> Path:
    """The file of what a replica reports."""
    return folder / f"replica-{number}.json"


class _OneByOne(socket.socket):
    """A listening socket that gives one connection at a time, so that the others get some.

    asyncio takes all that wait, up to the length of the queue.
    """

    _taken = False

    def accept(self) -> tuple[socket.socket, Any]:
        self._taken = not self._taken
        if not self._taken:
            raise BlockingIOError
        try:
            return super().accept()
        except BaseException:
            self._taken = False
            raise


def _replica(plan: Plan, listener: socket.socket, folder: str, number: int, count: int) -> None:
    """Serves as one replica, in a process of its own."""
    said = f"replica {number}: {FORMAT.rpartition(' ')[2]}"
    said = f"{FORMAT.partition(' ')[0]} {said}"
    logging.basicConfig(stream=sys.stderr, format=said, level=logging.WARNING)
    logging.getLogger("bedstone").setLevel(logging.INFO)
    threading.Thread(target=_leave_with_parent, name="parent", daemon=True).start()
    shared = _OneByOne(listener.family, listener.type, fileno=listener.detach())

    def report(models: Models) -> Reports:
        shared.listen(BACKLOG)  # who reports can be reached
        reports = Reports(Path(folder), number, count, models)
        reports.begin()
        return reports

    try:
        serve_here(plan, shared, report)
    except BedstoneError as error:
        log.error("%s", error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(0)


def _leave_with_parent() -> None:
    """Asks this process to leave when the one above it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    while True:  # a signal is passed over just before the server begins to listen to it
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


class Replicas:
    """The process above the replicas.

    Args:
        threads: that each computes with.
    """

    def __init__(self, plan: Plan, listener: socket.socket, count: int, threads: int) -> None:
        self.plan, self.listener, self.count, self.threads = plan, listener, count, threads
        self._context = multiprocessing.get_context("spawn")
        self._living: dict[int, Any] = {}  # processes by their numbers
        self._failures = dict.fromkeys(range(1, count + 1), 0)  # in a row, before it was ready
        self._due: dict[int, float] = {}  # when to start one again, by the monotonic clock
        self._leaving = False
        self._said = False  # that all are ready
        self._folder = process_folder("bedstone-replicas")

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT; all replicas then end within the settings' time.

        Raises:
            BedstoneError: one can't begin; what it said of that stands in the log.
        """
        before = {n: signal.signal(n, self._leave) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            for number in range(1, self.count + 1):
                self._start(number)
            while not self._leaving:
                self._look()
        finally:
            self._end()
            shutil.rmtree(self._folder, ignore_errors=True)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        self._leaving = True

    def _start(self, number: int) -> None:
        reported(self._folder, number).unlink(missing_ok=True)
        given = (self.plan, self.listener, str(self._folder), number, self.count)
        process = self._context.Process(target=_replica, args=given, name=f"replica {number}")
        with _environment("OMP_NUM_THREADS", str(self.threads)):
            process.start()
        self._living[number] = process

    def _look(self) -> None:
        """Waits for a moment, and starts again what has died."""
        wait([each.sentinel for each in self._living.values()], timeout=0.2)
        now = time.monotonic()
        for number, process in list(self._living.items()):
            was_open = reported(self._folder, number).exists()
            if process.is_alive():
                self._failures[number] = 0 if was_open else self._failures[number]
            elif not self._leaving:
                del self._living[number]
                self._died(number, process, was_open)
        for number, due in list(self._due.items()):
            if now >= due and not self._leaving:
                del self._due[number]
                self._start(number)
        if not self._said and all(
            reported(self._folder, each).exists() for each in range(1, self.count + 1)
        ):
            self._said = True
            host, port = self.listener.getsockname()[:2]
            at = f"[{host}]" if ":" in host else host
            log.info("%d replicas are open, serving on http://%s:%d", self.count, at, port)

    def _died(self, number: int, process: Any, was_open: bool) -> None:
        code = process.exitcode
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        reported(self._folder, number).unlink(missing_ok=True)
        if not self._said:
            raise BedstoneError(
                f"replica {number} ended {how} before all were open; why stands above, unless the "
                "system killed it for want of memory: then give fewer --replicas, or lower "
                "--kv-memory."
            )
        if not was_open:
            self._failures[number] += 1
        pause = LATER[min(self._failures[number], len(LATER) - 1)]
        when = f"in {pause:.0f} s" if pause else "now"
        log.error(
            "replica %d (process %d) ended %s; it is started again %s",
            number, process.pid, how, when,
        )  # fmt: skip
        self._due[number] = time.monotonic() + pause

    def _end(self) -> None:
        """Ends all; what isn't gone in time is killed."""
        until = time.monotonic() + self.plan.settings.drain_seconds + 2 * GRACE
        while time.monotonic() < until and any(each.is_alive() for each in self._living.values()):
            for process in self._living.values():  # again: as in `_leave_with_parent`
                process.terminate()
            wait([each.sentinel for each in self._living.values() if each.is_alive()], timeout=1)
        for number, process in self._living.items():
            if process.is_alive():
                log.error("replica %d (process %d) doesn't end; it is killed", number, process.pid)
                process.kill()
                process.join()


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Within it a variable of the environment has a value."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
