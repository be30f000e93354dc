"""Batches and endless streams of them: shuffled by a seed, exactly resumable, made ahead.

A stream is a position in epochs of rows; a collate function makes the batch of some rows. What a
batch holds is decided by the seed and its place in the stream alone, so a run that is resumed
trains on the batches that it would have had.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.runtime import lone_threads
from bedstone.settings import check_whole

IGNORED = -100  # a target that is none; what torch's cross-entropy ignores


class Tensors:
    """Base of dataclasses that hold tensors.

    Attributes:
        on_cpu: fields that stay where they are.
    """

    on_cpu: ClassVar[tuple[str, ...]] = ()

    def to(self, device: torch.device | str) -> Self:
        """The same with its tensors there; itself where they are there already."""
        mine: Any = self
        held = {
            each.name: getattr(self, each.name)
            for each in dataclasses.fields(mine)
            if each.name not in self.on_cpu
        }
        moved: dict[str, Any] = {}
        for name, value in held.items():
            if isinstance(value, Tensor):
                moved[name] = value.to(device, non_blocking=True)
            elif isinstance(value, Tensors):
                moved[name] = value.to(device)
        if all(value is held[name] for name, value in moved.items()):
            return self
        return dataclasses.replace(mine, **moved)


class Batch(Tensors):
    """Base of batches: what one training step reads.

    Each has a `target_count`: how many targets there are, over which losses are averaged.

    Attributes:
        number: which batch of the stream this is, from 0.
        places: where each item is from.
        unit: what `items` counts, for logs.
        by_row: fields with an entry for each row.
    """

    unit: ClassVar[str] = "images"
    by_row: ClassVar[tuple[str, ...]] = ()

    number: int
    places: list[str]

    @property
    def items(self) -> int:
        """How much of the data the batch is: tokens, images or signals."""
        raise NotImplementedError

    def holds(self) -> str:
        """What there is how much of, such as `4 pictures`."""
        return f"{self.items} {self.unit}"

    def describe(self) -> str:
        """Which rows are in it."""
        return f"batch {self.number}: {self.holds()}: {', '.join(self.places)}"

    def identify(self) -> bytes:
        """What no other batch of an epoch has: which rows are in it."""
        return self.describe().encode("utf-8", "surrogatepass")

    @property
    def row_count(self) -> int:
        """Rows that can be picked."""
        return len(getattr(self, self.by_row[0]))

    def part(self, rank: int, count: int) -> Self:
        """The rows of one of `count` processes: every `count`th from number `rank` on."""
        return self.pick(np.arange(rank, self.row_count, count))

    def pick(self, rows: np.ndarray) -> Self:
        """Some of the rows, (k,) ascending numbers, as a batch of their own.

        Sums of losses over parts that are picked are that of the batch.
        """
        mine: Any = self
        return dataclasses.replace(
            mine, **{name: entries(getattr(self, name), rows) for name in self.by_row}
        )


def entries(values: Any, rows: np.ndarray) -> Any:
    """Some entries of a tensor, an array or a list; None of None."""
    if isinstance(values, list):
        return [values[row] for row in rows]
    if isinstance(values, Tensor):
        return values[torch.from_numpy(rows)]
    return None if values is None else values[rows]


B = TypeVar("B")


class Batches(Generic[B]):
    """Base of endless streams of batches: a position that is written to a state and read back."""

    def identity(self) -> dict[str, Any]:
        """The data and settings that a state must have been taken with."""
        raise NotImplementedError

    def position(self) -> dict[str, Any]:
        """Where the stream is; plain numbers, for JSON."""
        raise NotImplementedError

    def go(self, position: Mapping[str, Any]) -> None:
        """Goes to a position."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[B]:
        return self

    def __next__(self) -> B:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The position and the identity; plain numbers and strings, for JSON."""
        return {**self.position(), "identity": self.identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes where `state` was taken: the next batch is the one that would have come then.

        Raises:
            BedstoneError: it was taken with other data or settings; the first that differs is
                named.
        """
        theirs = state.get("identity", {})
        for name, value in self.identity().items():
            if theirs.get(name) != value:
                raise BedstoneError(
                    f"data position: was taken with {name}={theirs.get(name)!r}, and now {name} is "
                    f"{value!r}. Resume with the first run's data and settings, or start a new run."
                )
        self.go(state)


Collate = Callable[[np.ndarray, np.random.Generator, int], B]


class Stream(Batches[B]):
    """An endless stream of batches: each row at most once an epoch, in an order drawn anew.

    Rows that don't fill a batch at an epoch's end are left to the next one's order, unless `whole`.

    Args:
        count: rows that there are.
        collate: (numbers of rows, random generator, number of the batch) to the batch; all its
            randomness is drawn from the generator.
        workers: threads that make batches; 0 makes each when it is asked for.
        ahead: batches that are made before they are asked for.
        whole: an epoch has every row; its last batch may be smaller.
        shuffle: whether the order is drawn; else rows come in theirs.
        identity: what a state must have been taken with, beside the seed; None is the count.
    """

    def __init__(
        self,
        count: int,
        collate: Collate[B],
        batch_size: int,
        *,
        seed: int = 0,
        workers: int = 1,
        ahead: int = 4,
        whole: bool = False,
        shuffle: bool = True,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        check_whole("batch_size", batch_size, 1)
        self.count, self.seed = count, seed
        self.collate: Any = collate
        self.batch_size = batch_size if whole else min(batch_size, count)
        self.workers, self.ahead, self.whole, self.shuffle = workers, max(ahead, 1), whole, shuffle
        self._identity = {"seed": seed, **(identity or {"rows": count})}
        self._at = (0, 0, 0)  # of the next batch: epoch, rows of it before, number
        self._next = self._at  # of the next to be made
        self._made: deque[Future[B]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._order: tuple[int, np.ndarray] | None = None
        self._waited, self._since = 0.0, time.monotonic()

    def identity(self) -> dict[str, Any]:
        return self._identity

    def position(self) -> dict[str, Any]:
        epoch, window, number = self._at
        return {"epoch": epoch, "window": window, "batch": number}

    def go(self, position: Mapping[str, Any]) -> None:
        for future in self._made:
            future.cancel()
        self._made.clear()
        self._at = self._next = (position["epoch"], position["window"], position["batch"])

    @property
    def epoch(self) -> float:
        """Passes over the rows so far, such as 1.25."""
        return self._at[0] + self._at[1] / self.count

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        full = self.count // self.batch_size
        return -(-self.count // self.batch_size) if self.whole else full

    @property
    def ends_epoch(self) -> bool:
        """Whether the last batch was the last of an epoch that has every row."""
        return self.whole and self._at[1] >= self.count

    def __next__(self) -> B:
        began = time.monotonic()
        if self.workers:
            self._fill()
            batch = self._made.popleft().result()
        else:
            batch = self.collate(*self._draw(self._at))
        self._at = self._after(self._at)
        self._waited += time.monotonic() - began
        if self.workers:
            self._fill()
        return batch

    def figures(self) -> dict[str, float]:
        """For the log: the epoch, and the share of time spent waiting since the last call.

        Whole epochs that no thread makes are of what is in memory: there is nothing to report.
        """
        if self.whole and not self.workers:
            return {}
        now = time.monotonic()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return {"waited": share, "epoch": self.epoch}

    def _fill(self) -> None:
        if self._pool is None:
            self._pool = lone_threads(self.workers)
        while len(self._made) < self.ahead:
            rows, random, number = self._draw(self._next)
            self._made.append(self._pool.submit(self.collate, rows, random, number))
            self._next = self._after(self._next)

    def _begun(self, at: tuple[int, int, int]) -> tuple[int, int, int]:
        """The same place, in the next epoch where its own is over."""
        epoch, window, number = at
        return (epoch + 1, 0, number) if window >= self.count else at

    def _after(self, at: tuple[int, int, int]) -> tuple[int, int, int]:
        epoch, window, number = self._begun(at)
        window = min(window + self.batch_size, self.count)
        if not self.whole and window + self.batch_size > self.count:
            epoch, window = epoch + 1, 0
        return epoch, window, number + 1

    def _draw(self, at: tuple[int, int, int]) -> tuple[np.ndarray, np.random.Generator, int]:
        """The rows of a batch, its random generator and its number."""
        epoch, window, number = self._begun(at)
        if self._order is None or self._order[0] != epoch:
            order = np.arange(self.count)
            if self.shuffle:
                np.random.default_rng((self.seed, epoch)).shuffle(order)
            self._order = (epoch, order)
        random = np.random.default_rng((self.seed, epoch, window, 1))
        return self._order[1][window : window + self.batch_size], random, number
