"""Watches over the ranks of a run: one that died, is stopped or hangs is named, with all stacks.

Each rank has a thread that says every other second, in the launcher's store, that it lives, and
listens to the next rank. What has been silent for `LOST` seconds, or computes at one step for far
longer than at the others, ends the run: every rank writes the stacks of its threads to stderr
(`faulthandler`) and leaves with an exit code of `CODE`. A process of this machine that is stopped
is continued for as long as it takes to say where it stands.

A rank may prepare data, evaluate or save for hours; then only its silence counts.
"""

import contextlib
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from bedstone import ranks

BEAT = 2.0  # seconds between two signs of life
LOST = 40.0  # seconds of silence after which a rank is given up
STUCK, TIMES = 50.0, 20.0  # a step that takes so many seconds, and so many times the slowest one
CODE = 3
SHOW = getattr(signal, "SIGUSR2", None)  # asks a process for its stacks

_watches: list["Watch"] = []


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Within it this rank is watched, and watches. Nothing, in a run of one process."""
    if ranks.world() == 1 or _watches:
        yield
        return
    watch = Watch()
    _watches.append(watch)
    watch.start()
    try:
        yield
    finally:
        watch.stop()
        _watches.clear()


def computing(step: int) -> None:
    """Says that this rank begins to compute a step."""
    for watch in _watches:
        watch.began, watch.step = time.monotonic(), step


def waiting() -> None:
    """Says that it has computed it, or does something else, which may take as long as it likes."""
    for watch in _watches:
        if watch.began:
            watch.slowest = max(watch.slowest, time.monotonic() - watch.began)
        watch.began = 0.0


class Watch:
    """The watch of one rank.

    Attributes:
        began: when this rank began to compute the step, by the monotonic clock; 0 while it doesn't.
        slowest: seconds of the slowest step.
    """

    def __init__(self) -> None:
        self.rank, self.count = ranks.rank(), ranks.world()
        self.next = (self.rank + 1) % self.count
        self.began, self.step, self.slowest = 0.0, 0, 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._heard: tuple[str, float] = ("", time.monotonic())  # of the next rank, and when
        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # A connection of its own: another thread may wait in the first one for long.
        store = dist.TCPStore(*where, timeout=timedelta(seconds=LOST / 2), wait_for_workers=False)
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store: Any = dist.PrefixStore(f"bedstone/watch/{again}", store)
        if SHOW is not None:
            faulthandler.register(SHOW, file=_stderr(), all_threads=True)

    def start(self) -> None:
        self._say("lives")
        self._thread.start()

    def stop(self) -> None:
        """Leaves in peace: nobody waits for a sign of life any more."""
        self._ended.set()
        with contextlib.suppress(RuntimeError):
            self._say("left")
        if SHOW is not None:
            faulthandler.unregister(SHOW)

    def _say(self, what: str) -> None:
        own = {"what": what, "at": time.time(), "process": os.getpid()}
        self._store.set(str(self.rank), json.dumps({**own, "host": socket.gethostname()}))

    def _watch(self) -> None:
        reached = time.monotonic()
        while not self._ended.wait(BEAT):
            try:
                self._say("lives")
                fault = self._fault()
                reached = time.monotonic()
            except RuntimeError:
                gone = time.monotonic() - reached > LOST
                fault = "the launcher of all ranks isn't there any more" if gone else ""
            if fault and not self._ended.is_set():
                self._end(fault)

    def _fault(self) -> str:
        """What has been found here or elsewhere; empty where all is well."""
        if self._store.check(["fault"]):
            return str(self._store.get("fault").decode())
        fault = self._stuck() or self._lost()
        if fault:
            self._store.set("fault", fault)
        return fault

    def _stuck(self) -> str:
        since = time.monotonic() - self.began if self.began else 0.0
        if since < max(STUCK, TIMES * self.slowest):
            return ""
        return f"rank {self.rank} has been computing step {self.step} for {since:.0f} s"

    def _lost(self) -> str:
        now, said = time.monotonic(), ""
        if self._store.check([str(self.next)]):
            said = self._store.get(str(self.next)).decode()
        if said != self._heard[0]:
            self._heard = said, now
        silent = now - self._heard[1]
        other = json.loads(said or "{}")
        if silent < LOST or other.get("what") == "left":
            return ""
        if other.get("host") == socket.gethostname():
            _show(int(other["process"]))
        return (
            f"rank {self.next} (process {other.get('process')} on {other.get('host')}) has given "
            f"no sign of life for {silent:.0f} s: it is dead, stopped, or cut off"
        )

    def _end(self, fault: str) -> None:
        """Says what happened and where each thread stands, and ends this process."""
        out = _stderr()
        print(f"bedstone: rank {self.rank}: {fault}. All ranks stop; their stacks:", file=out)
        faulthandler.dump_traceback(all_threads=True, file=out)
        print(f"bedstone: rank {self.rank}: go on by bedstone resume.", file=out, flush=True)
        time.sleep(2 * BEAT)  # until the others have read it
        os._exit(CODE)


def _stderr() -> Any:
    """The process's own, whatever is written into another."""
    return sys.__stderr__


def _show(process: int) -> None:
    """Makes a process of this machine write its stacks, one that is stopped too."""
    with contextlib.suppress(OSError):
        if SHOW is not None:
            os.kill(process, SHOW)
            os.kill(process, signal.SIGCONT)
            time.sleep(0.5)
