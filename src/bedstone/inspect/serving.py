"""The plan of a server: how many continuations fit side by side, and how fast they are written.

Memory is what `bedstone serve` itself counts, of the same rows (`serve.models.open_decoder`). Speed
is timed on the server's own scheduler and engine, with prompts by chance, without HTTP.
"""

import itertools
import math
import shlex
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bedstone.checkpoints.load import open_model
from bedstone.errors import BedstoneError
from bedstone.generation.sampling import Sampling
from bedstone.inspect.plan import student
from bedstone.runtime import pick_device, pick_precision, resident
from bedstone.serve.metrics import ModelMetrics
from bedstone.serve.models import GIB, ServeSettings, open_decoder, writes_alone
from bedstone.serve.rows import Room
from bedstone.serve.scheduler import Scheduler, Turn
from bedstone.serve.work import Begun, Event, Generation
from bedstone.settings import bound_of, from_mapping, read_values
from bedstone.train.logs import ProgressBar

PROMPT = 128  # tokens that rows hold when decoding is timed
READ = 256  # tokens of a prompt whose reading is timed
SIDE = 8  # rows that are timed beside one
WARM = 3  # passes that are slower than the rest, and not counted
GROUPS = 10  # of passes, whose means scatter: passes themselves follow one another
LEAST = 3  # values of an interval
HALVINGS = 3  # shorter rows whose number is said too


@dataclass(frozen=True)
class Speed:
    """Tokens a second, as they were timed.

    Attributes:
        rows: that are generated side by side; 0 of reading prompts.
        rate: tokens a second, of all rows.
        low, high: ends of its interval of 95 %, by the scatter of groups of passes; equal to the
            rate where too few were timed for one.
        timed: passes, or prompts, that were timed.
        before: tokens that each row held; of prompts, their length.
    """

    rows: int
    rate: float
    low: float
    high: float
    timed: int
    before: int

    @property
    def name(self) -> str:
        """What was timed."""
        if not self.rows:
            return "reading prompts"
        return f"writing, {self.rows} row{'s' if self.rows > 1 else ''} at once"

    def text(self) -> str:
        """It in a line."""
        text = f"{self.name}: {_figure(self.rate)} tokens a second"
        if self.low < self.high:
            text += f" ({_figure(self.low)} to {_figure(self.high)})"
        each = f", {_figure(self.rate / self.rows)} a row" if self.rows > 1 else ""
        what = "passes" if self.rows else "prompts"
        held = "from" if self.rows else "of"
        return f"{text}{each}; {self.timed} {what} {held} {self.before:,} tokens"


@dataclass(frozen=True)
class ServePlan:
    """What a served decoder takes, and how fast it is.

    Attributes:
        model: as it was named.
        precision: in which it computes.
        settings: of the server, by name, that aren't the usual ones.
        room: its memory by the server's own count, with the rows that these settings open.
        process: bytes that the process held before the model was opened.
        limit: bytes that the model may take; 0 is not known.
        speeds: that were timed.
        missing: what wasn't timed, and why.
        threads: that computed.
        price_hour: of the machine; 0 is not known.
    """

    model: str
    precision: str
    settings: Mapping[str, Any]
    room: Room
    process: int
    limit: int = 0
    speeds: Sequence[Speed] = ()
    missing: Sequence[str] = ()
    threads: int = 1
    price_hour: float = 0.0

    @property
    def slots(self) -> int:
        """Rows of the full length: those that fit into the limit, or those that are opened."""
        return self.fitting(self.room.capacity) if self.limit else self.room.count

    def fitting(self, capacity: int) -> int:
        """Rows of so many tokens that fit into the limit, as many as a server may be given."""
        each = self.room.row * capacity // self.room.capacity
        room = Room(self.room.weights, self.room.prefixes, each, capacity, 0)
        bound: Any = bound_of(ServeSettings.__dataclass_fields__["max_num_seqs"])
        return min(room.within(self.limit), int(bound.most))

    def options(self) -> dict[str, Any]:
        """The server's options by which it opens `slots` rows within the limit."""
        wanted = self.slots * self.room.row / GIB
        found = {**self.settings, "max_num_seqs": self.slots}
        found["kv_memory"] = math.ceil(wanted * 1e4) / 1e4
        if self.limit:
            found["memory"] = math.floor(self.limit / GIB * 1e4) / 1e4
            # of so round a limit a little is missing
            if self.room.weights + self.room.prefixes + self.slots * self.room.row > int(
                found["memory"] * GIB
            ):
                found["memory"] = self.limit / GIB
        return found

    @property
    def command(self) -> str:
        """That starts it so."""
        words = ["bedstone", "serve", self.model, "--precision", self.precision]
        for name, value in self.options().items():
            words += [f"--{name.replace('_', '-')}", f"{value}"]
        return shlex.join(words)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {
            "model": self.model,
            "precision": self.precision,
            "weights_bytes": self.room.weights,
            "prefix_bytes": self.room.prefixes,
            "row_bytes": self.room.row,
            "row_tokens": self.room.capacity,
            "opened_rows": self.room.count,
            "bytes": self.room.nbytes,
            "process_bytes": self.process,
            "threads": self.threads,
            "speeds": [vars(each) for each in self.speeds],
            "not_timed": list(self.missing),
        }
        if self.limit:
            found["limit_bytes"] = self.limit
            found["slots"] = {str(each): self.fitting(each) for each in self._lengths()}
            if self.slots:
                found["options"] = self.options()
        if (cost := self._cost()) is not None:
            found["cost_a_million_tokens"] = cost
        return found

    def _lengths(self) -> list[int]:
        """The rows' length, and halves of it."""
        found = [self.room.capacity >> number for number in range(HALVINGS + 1)]
        return [each for each in found if each >= 16]

    def _cost(self) -> float | None:
        """Of a million tokens at the highest speed that was timed."""
        rates = [each.rate for each in self.speeds if each.rows]
        return self.price_hour / 3600 / max(rates) * 1e6 if rates and self.price_hour else None

    def lines(self) -> Iterator[str]:
        """For people."""
        room = self.room
        yield f"{self.model} in {self.precision}, rows of {room.capacity:,} tokens"
        yield (
            f"weights {room.weights / 1e9:.3f} GB, prompts kept {room.prefixes / 1e9:.3f} GB, "
            f"keys and values {room.row / 1e9:.4f} GB a row"
        )
        usual = "with these settings" if self.settings else "as it is"
        yield (
            f"bedstone serve opens {room.count:,} rows {usual}: {room.nbytes / 1e9:.3f} GB by its "
            f"own count; the process holds {self.process / 1e9:.2f} GB beside"
        )
        if self.limit:
            yield from self._fit()
        yield from (each.text() for each in self.speeds)
        if self.speeds:
            yield (
                f"measured on {self.threads} thread{'s' if self.threads > 1 else ''} of this "
                "machine as busy as it is, without HTTP; in brackets intervals of 95 %"
            )
        yield from self.missing
        if (cost := self._cost()) is not None:
            yield f"a million tokens cost {cost:.2f} where all these rows are always busy"

    def _fit(self) -> Iterator[str]:
        limit, lengths = self.limit / 1e9, self._lengths()
        if not self.slots:
            least = (self.room.weights + self.room.prefixes + self.room.row) / 1e9
            yield (
                f"doesn't fit: one row takes {least:.3f} GB of {limit:.3f} GB with all else; set a "
                "smaller max_model_len, prefix_memory=0 or another precision"
            )
            return
        more = ", ".join(f"{self.fitting(each):,} of {each:,}" for each in lengths[1:])
        yield (
            f"fits: {self.slots:,} rows of {lengths[0]:,} tokens in {limit:.3f} GB"
            f"{f' ({more})' if more else ''}: {self.command}"
        )


def plan_serving(
    model: str,
    overrides: Sequence[str] = (),
    *,
    seconds: float = 20.0,
    price_hour: float = 0.0,
    memory_gb: float = 0.0,
    quiet: bool = False,
) -> ServePlan:
    """The plan of serving a decoder.

    Args:
        model: what `bedstone.load` opens.
        overrides: fields of `ServeSettings`, precision and device, as key=value.
        seconds: for timing; 0 times nothing.
        price_hour: of the machine.
        memory_gb: that the model may take, in 1e9 bytes; 0 says nothing of what fits.

    Raises:
        BedstoneError: the model can't be opened or writes no text, a setting is unknown, or not
            even one row fits into `kv_memory`.
    """
    values = read_values(None, overrides)
    precision, device = str(values.pop("precision", "auto")), str(values.pop("device", "auto"))
    settings = from_mapping(ServeSettings, values, "--serve")
    process = resident()
    opened = open_model(model, device=pick_device(device))
    if not writes_alone(opened):
        raise BedstoneError(
            f"--serve: {model} writes no text a token at a time, so it has no rows to plan; its "
            "inputs are read in batches as they come. Leave --serve out, or name a decoder."
        )
    rows, room = open_decoder(opened, precision, settings)
    speeds: list[Speed] = []
    missing: list[str] = []
    if seconds > 0:
        scheduler = Scheduler(
            "plan", rows, opened.tokenizer, _no_task, Turn(), ModelMetrics()
        )  # no prompts are kept: each is read
        try:
            timer = _Timer(scheduler, room, int(opened.config.vocab_size))
            speeds, missing = timer.all(seconds, quiet)
        finally:
            scheduler.close()
    return ServePlan(
        model,
        pick_precision(precision, opened.device).name,
        values,
        room,
        process,
        int(memory_gb * 1e9),
        speeds,
        missing,
        torch.get_num_threads(),
        price_hour,
    )


def _no_task(task: str, inputs: list[Any], options: dict[str, Any]) -> list[Any]:
    raise AssertionError(task)


@dataclass
class _Stamps:
    """When each token of a row came."""

    begun: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    times: list[float] = field(default_factory=list)
    error: Exception | None = None

    def __call__(self, event: Event) -> None:
        now = time.perf_counter()
        if isinstance(event, Exception):
            self.error = event
        elif isinstance(event, Begun):
            self.begun.set()
            return
        elif hasattr(event, "step"):
            self.times.append(now)
            if event.step.finish is None:
                return
        self.begun.set()
        self.ended.set()


class _Timer:
    """Times a scheduler's rows."""

    def __init__(self, scheduler: Scheduler, room: Room, vocabulary: int) -> None:
        self._scheduler, self._room, self._vocabulary = scheduler, room, vocabulary
        self._random = np.random.default_rng(0)
        self._seeds = itertools.count()

    def all(self, seconds: float, quiet: bool) -> tuple[list[Speed], list[str]]:
        """Reading, and writing of one row, of `SIDE` and of all that are opened."""
        counts = sorted({1, min(SIDE, self._room.count), self._room.count})
        each = seconds / (len(counts) + 1)
        speeds: list[Speed] = []
        missing: list[str] = []
        with ProgressBar("timing the engine", quiet=quiet) as bar:
            for number, count in enumerate([0, *counts]):
                found = self.writing(count, each) if count else self.reading(each)
                if isinstance(found, str):
                    missing.append(found)
                else:
                    speeds.append(found)
                bar.update((number + 1) / (len(counts) + 1))
        return speeds, missing

    def _work(self, size: int, room: int) -> tuple[Generation, _Stamps]:
        ids = self._random.integers(0, self._vocabulary, size).tolist()
        stamps = _Stamps()
        # drawn, not the likeliest: a row that repeats itself would be read several tokens a pass
        work = Generation(ids, Sampling(temperature=1.0), stamps, room, next(self._seeds))
        return work, stamps

    def reading(self, seconds: float) -> Speed | str:
        """Prompts, one after another."""
        size = min(READ, self._room.capacity - 1)
        taken: list[float] = []
        began = time.perf_counter()
        while len(taken) <= LEAST or time.perf_counter() - began < seconds:
            work, stamps = self._work(size, 0)
            start = time.perf_counter()
            self._scheduler.submit(work)
            stamps.ended.wait()
            if stamps.error is not None:
                raise stamps.error
            taken.append(time.perf_counter() - start)
            if time.perf_counter() - began > seconds and len(taken) > 1:
                break
        return _speed(0, [size / each for each in taken[1:]], len(taken) - 1, size)

    def writing(self, count: int, seconds: float) -> Speed | str:
        """Rows that are written side by side, while all of them write."""
        size = max(min(PROMPT, self._room.capacity // 2), 1)
        until = time.perf_counter() + seconds
        gaps: list[float] = []
        while not gaps or time.perf_counter() < until:
            found = self._round(count, size, until)
            if not found:  # it ends before it has begun, or there was no time
                break
            gaps += found
        if len(gaps) < LEAST:
            return (
                f"writing, {count} rows at once: not timed, as it takes longer than "
                f"{seconds:.1f} seconds; raise --seconds"
            )
        groups = np.array_split(np.array(gaps), min(GROUPS, len(gaps)))
        return _speed(count, [count / float(part.mean()) for part in groups], len(gaps), size)

    def _round(self, count: int, size: int, until: float) -> list[float]:
        """Seconds between tokens of one row while all write, until some time or a row's end."""
        works = [self._work(size, self._room.capacity - size) for _ in range(count)]
        self._scheduler.submit(*(work for work, _ in works))
        left = until - time.perf_counter()
        try:
            for _, stamps in works:
                stamps.begun.wait(max(until + left - time.perf_counter(), 0))
            writes = time.perf_counter()
            if ready := all(stamps.begun.is_set() for _, stamps in works):
                works[0][1].ended.wait(max(until - writes, left / 2))
        finally:
            for work, _ in works:
                work.cancel()
            self._scheduler.wake()
            while not self._scheduler.idle:
                time.sleep(0.002)
        for _, stamps in works:
            if stamps.error is not None:
                raise stamps.error
        times = [stamps.times for _, stamps in works]
        if not ready or not all(times):
            return []
        start, end = max(each[0] for each in times), min(each[-1] for each in times)
        passes = [at for at in times[0] if start <= at <= end]
        return list(np.diff(passes[WARM:]))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _speed(rows: int, rates: Sequence[float], timed: int, before: int) -> Speed:
    """A speed by the times of groups of as many tokens each."""
    seconds = [1 / each for each in rates]
    mean = statistics.fmean(seconds)
    low = high = mean
    if len(seconds) >= LEAST:
        apart = student(len(seconds)) * statistics.stdev(seconds) / math.sqrt(len(seconds))
        low, high = max(mean - apart, min(seconds)), mean + apart
    return Speed(rows, 1 / mean, 1 / high, 1 / low, timed, before)
