"""An endless stream of batches of rows: shuffled by a seed, exactly resumable, made ahead.

Batches are made on threads of their own, some ahead of the network. What one holds is decided by
the seed and its place in the stream alone, so a run that is resumed sees what it would have seen.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.runtime import lone_threads

IGNORED = -100  # a target that is none; what torch's cross-entropy ignores


def check_identity(state: dict[str, Any], mine: dict[str, Any]) -> None:
    """Raises BedstoneError naming the first field in which a data position is another stream's."""
    theirs = state.get("identity", {})
    for name, value in mine.items():
        if theirs.get(name) != value:
            raise BedstoneError(
                f"data position: was taken with {name}={theirs.get(name)!r}, and now {name} is "
                f"{value!r}. Resume with the first run's data and settings, or start a new run."
            )


Batch = TypeVar("Batch")


class Stream(Generic[Batch]):
    """An endless stream of batches: each row at most once an epoch, in an order drawn anew.

    Rows that don't fill a batch at an epoch's end are left to the next one's order. The state is a
    position, so resuming costs nothing.

    Args:
        readable: (R,) numbers of the rows that there are.
        workers: threads that make batches; 0 makes each when it is asked for.
        ahead: batches that are made before they are asked for.
    """

    def __init__(
        self,
        readable: np.ndarray,
        batch_size: int,
        *,
        seed: int = 0,
        workers: int = 1,
        ahead: int = 4,
    ) -> None:
        if batch_size < 1:
            raise BedstoneError(f"batch_size: {batch_size} is out of range; expected 1 or more.")
        self.rows, self.seed = readable, seed
        self.batch_size = min(batch_size, len(readable))
        self.workers, self.ahead = workers, max(ahead, 1)
        self._at = (0, 0, 0)  # of the next batch: epoch, rows of it before, number
        self._next = self._at  # of the next to be made
        self._made: deque[Future[Batch]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._order: tuple[int, np.ndarray] | None = None
        self._waited, self._since = 0.0, time.monotonic()

    def make(self, rows: np.ndarray, random: np.random.Generator, number: int) -> Batch:
        """The batch of those rows; all its chance is drawn from `random`."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """What a state must have been taken with, to be gone back to."""
        raise NotImplementedError

    @property
    def epoch(self) -> float:
        """Passes over the rows so far, such as 1.25."""
        return self._at[0] + self._at[1] / len(self.rows)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        began = time.monotonic()
        if self.workers:
            self._fill()
            batch = self._made.popleft().result()
        else:
            batch = self.make(*self._place(self._at))
        self._at = self._after(self._at)
        self._waited += time.monotonic() - began
        if self.workers:
            self._fill()
        return batch

    def figures(self) -> dict[str, float]:
        """Since the last call: the share of time that was spent waiting for a batch."""
        now = time.monotonic()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return {"waited": share, "epoch": self.epoch}

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is; plain numbers, for JSON."""
        epoch, window, number = self._at
        position = {"epoch": epoch, "window": window, "batch": number}
        return {**position, "identity": self.identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes where `state` was taken: the next batch is the one that would have come then.

        Raises:
            BedstoneError: it was taken with other data or another seed.
        """
        check_identity(state, self.identity())
        for future in self._made:
            future.cancel()
        self._made.clear()
        self._at = self._next = (state["epoch"], state["window"], state["batch"])

    def _after(self, at: tuple[int, int, int]) -> tuple[int, int, int]:
        epoch, window, number = at
        window += self.batch_size
        if window + self.batch_size > len(self.rows):
            epoch, window = epoch + 1, 0
        return epoch, window, number + 1

    def _fill(self) -> None:
        if self._pool is None:
            self._pool = lone_threads(self.workers)
        while len(self._made) < self.ahead:
            self._made.append(self._pool.submit(self.make, *self._place(self._next)))
            self._next = self._after(self._next)

    def _place(self, at: tuple[int, int, int]) -> tuple[np.ndarray, np.random.Generator, int]:
        """The rows of a batch, its chance and its number."""
        epoch, window, number = at
        if self._order is None or self._order[0] != epoch:
            drawn = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
            self._order = (epoch, drawn)
        random = np.random.default_rng((self.seed, epoch, window, 1))
        return self._order[1][window : window + self.batch_size], random, number
