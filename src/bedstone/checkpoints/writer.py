"""Checkpoints written while the training goes on: a copy at the step, a thread for the rest.

What a save is to write is made at its step, in the training's own thread: small files at once, of
tensors a copy in the memory of the host. What takes long (writing, syncing, hashing, renaming) is
put off as jobs, in their order, and done by a thread. So the files are those of a save that stops
the run, and until all of them are on the disk the checkpoint has no name.
"""

import contextlib
import copy
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Job = Callable[[], None]

MEMORY = Path("/proc/meminfo")
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"))
SPARE = 1.5  # times the copy's size that have to be free for one to be made


class _PutOff(threading.local):
    """The jobs that this thread has put off; None where it does each at once."""

    jobs: list[Job] | None = None


_put_off = _PutOff()


@contextlib.contextmanager
def postponed() -> Iterator[list[Job]]:
    """Within it `later` keeps what this thread hands it, in a list that is yielded."""
    before, _put_off.jobs = _put_off.jobs, []
    try:
        yield _put_off.jobs
    finally:
        _put_off.jobs = before


def later(job: Job) -> None:
    """Does something now, or within `postponed` after all that was put off before it.

    What the job reads must not change until then: hand it `frozen` tensors and copies.
    """
    if _put_off.jobs is None:
        job()
    else:
        _put_off.jobs.append(job)


def frozen(values: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Tensors that stay as they are now: within `postponed` copies on the CPU, else themselves."""
    if _put_off.jobs is None:
        return values
    return {key: each.detach().to("cpu", copy=True).contiguous() for key, each in values.items()}


def unchanging(values: Any) -> Any:
    """Plain values that stay as they are now: within `postponed` a copy, else themselves."""
    return values if _put_off.jobs is None else copy.deepcopy(values)


def has_room(size: int) -> bool:
    """Whether the host has memory for a copy of so many bytes; yes, where it doesn't say."""
    free = []
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        lines = MEMORY.read_text().splitlines()
        line = next(each for each in lines if each.startswith("MemAvailable:"))
        free.append(1024 * int(line.split()[1]))
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        most, used = (int(path.read_text()) for path in LIMITS)
        free.append(most - used)
    return all(SPARE * size <= each for each in free)


class Writer:
    """The thread that finishes saves, one at a time.

    On several ranks each has one, and theirs exchange over a group of their own. All ranks make it,
    `start` it and `wait` together.

    Attributes:
        fault: what the last save failed of; None where it went well or hasn't ended.
        seconds: how long the last one took that has ended.
    """

    def __init__(self) -> None:
        from bedstone import ranks  # here, as lists of models read stores without torch

        self.fault: BaseException | None = None
        self.seconds = 0.0
        self._thread: threading.Thread | None = None
        self._group = ranks.new_group()

    def start(self, work: Job) -> None:
        """Does the work in a thread, after the one before."""
        self.wait()
        self._thread = threading.Thread(target=self._do, args=(work,), name="save", daemon=True)
        self._thread.start()

    def _do(self, work: Job) -> None:
        from bedstone import ranks

        began = time.monotonic()
        try:
            with ranks.within(self._group):
                work()
        except BaseException as error:  # the training's thread raises it
            self.fault = error
        self.seconds = time.monotonic() - began

    def close(self) -> None:
        """Returns when nothing is being written any more, whether or not it went well."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Returns when the last save is on the disk.

        Raises:
            BedstoneError: it failed, on this rank or another; what the disk held stays as it was.
        """
        from bedstone import ranks

        self.close()

        def raise_fault() -> None:
            fault, self.fault = self.fault, None
            if fault is not None:
                raise fault

        ranks.together(raise_fault)
