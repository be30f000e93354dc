"""The thread of a served model: rows that are generated side by side, and batches of tasks.

Continuous batching (Yu et al., 2022, "Orca"): each pass reads the next token of every row that
generates, and of prompts that have come since as much as is left of the pass (chunked prefill;
Agrawal et al., 2023, "Sarathi"). A row that has ended makes room at once. What a row generates
depends on its prompt, its settings and its seed alone, to the last bit.

A row that takes the likeliest tokens is read with a draft of what may follow, looked up in its own
text and in the request's prediction (`generation.lookup`), where a pass has room for it and gives
the same bits with it: its text is the same, in fewer passes.

Models take turns pass by pass, since each uses all processors.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bedstone.data.text.tokenizer import Tokenizer
from bedstone.generation.autoregress import Step
from bedstone.generation.lookup import Lookup
from bedstone.generation.rows import Part, Rows
from bedstone.generation.sampling import likeliest, log_probabilities, unconstrained
from bedstone.generation.text import Piece, TextRow
from bedstone.serve.metrics import ModelMetrics
from bedstone.serve.prefix import PrefixCache, restore
from bedstone.serve.work import (
    ENDING,
    Begun,
    Busy,
    Call,
    Ended,
    Event,
    Generation,
    Leaving,
    Result,
    Scored,
    Work,
)

JOINING = 32  # tokens of prompts in a pass, at most, while other rows generate
DRAFTED = 16  # tokens of a pass, up to which drafts are read with rows that generate
SCORED = 64  # tokens of a prompt whose logits are all held at a time
INPUTS = 256  # of tasks that are read together, at most
TASK_TOKENS = 4096  # of a task's inputs that are done at a time, about: others wait meanwhile
LATEST = 64  # requests by which the pace is known
LONGEST = 120.0  # seconds: clients that are told to come back later don't come at all
Runs = Callable[[str, list[Any], dict[str, Any]], list[Any]]


class Turn:
    """Lets threads in one after another, in the order in which they came."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._last = self._now = 0

    def __enter__(self) -> None:
        with self._changed:
            mine, self._last = self._last, self._last + 1
            while self._now != mine:
                self._changed.wait()

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._now += 1
            self._changed.notify_all()


class Pace:
    """How fast work is done: of the time that was spent on it, not of that between."""

    def __init__(self) -> None:
        self._spent = 0.0
        self._ends: deque[float] = deque(maxlen=LATEST)

    def spent(self, seconds: float) -> None:
        self._spent += seconds

    def finished(self) -> None:
        self._ends.append(self._spent)

    def seconds(self, waiting: int) -> float:
        """After which so many more are done; a second each where nothing is known."""
        each = 1.0
        if len(self._ends) > 1:
            each = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return min(max(waiting * each, 1.0), LONGEST)


@dataclass(eq=False)
class _Row:
    """A continuation that has a place.

    Attributes:
        ids: the prompt's, then those that were made.
        read: how many of them the place holds.
        draft: what may follow, read in the same pass.
    """

    work: Generation
    place: int
    ids: list[int]
    text: TextRow
    generator: torch.Generator
    arrived: float
    read: int = 0
    looked: bool = False
    cached: int = 0
    began: float = 0.0
    latest: float = 0.0
    scored: Scored = field(default_factory=lambda: Scored([None], [()]))
    draft: list[int] = field(default_factory=list)
    lookup: Lookup | None = None

    @property
    def size(self) -> int:
        return len(self.work.prompt)

    @property
    def reads_prompt(self) -> bool:
        return self.read < self.size

    @property
    def plain(self) -> bool:
        """Whether its next token is the likeliest, whatever came before."""
        work = self.work
        how = work.sampling
        changed = work.bias or work.presence or work.frequency or work.guide is not None
        return how.temperature == 0 and unconstrained(how) and not changed


class Scheduler:
    """Does the work of one model on a thread of its own.

    Args:
        name: the model's, for the thread and for messages.
        rows: places for its continuations; None of a model that writes no text so.
        tokenizer: of these.
        runs: does a task's inputs: (task, inputs, options) -> results.
        turn: is shared by the models of a server.
        prefixes: what prompts begin with.
        waiting: how many requests may wait.
        waiting_tokens: how many tokens these may have.
    """

    def __init__(
        self,
        name: str,
        rows: Rows | None,
        tokenizer: Tokenizer | None,
        runs: Runs,
        turn: Turn,
        metrics: ModelMetrics,
        *,
        prefixes: PrefixCache | None = None,
        waiting: int = 256,
        waiting_tokens: int = 1 << 20,
    ) -> None:
        self.name, self.metrics = name, metrics
        self._rows, self._tokenizer, self._runs, self._turn = rows, tokenizer, runs, turn
        self._prefixes = prefixes or PrefixCache(0)
        self._most, self._most_tokens = waiting, waiting_tokens
        self._pace = Pace()
        self._changed = threading.Condition()
        self._queue: deque[tuple[Work, float]] = deque()
        self._live: list[_Row] = []
        self._free = list(range(rows.count if rows else 0))[::-1]
        self._calls: list[Call] = []  # under way
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=f"serve-{name}", daemon=True)
        self._thread.start()

    # Any thread.

    def submit(self, *works: Work) -> None:
        """Hands in work; of several all or none.

        Raises:
            Busy: as much waits as may.
            Leaving: the model is being closed.
        """
        with self._changed:
            if self._closing:
                raise Leaving("The model is being closed; try again later.")
            count = len(self._queue)
            tokens = sum(work.tokens for work, _ in self._queue)
            more = sum(work.tokens for work in works)
            most = self._most + len(self._free)
            if count + len(works) > most or (count and tokens + more > self._most_tokens):
                self.metrics.refused += 1
                raise Busy(
                    f"{count:,} requests with {tokens:,} tokens wait already; try again later.",
                    self._pace.seconds(count),
                )
            now = time.perf_counter()
            self._queue += [(work, now) for work in works]
            self.metrics.waiting = len(self._queue)
            self._changed.notify()

    def check_room(self) -> None:
        """Raises Busy where nothing more may wait, so that no work goes into what is refused."""
        if self.full:
            self.metrics.refused += 1
            seconds = self._pace.seconds(len(self._queue))
            raise Busy("As many requests as may wait do already; try again later.", seconds)

    @property
    def full(self) -> bool:
        """Whether nothing more may wait: seen without the lock, as `submit` looks once more."""
        return len(self._queue) >= self._most + len(self._free)

    @property
    def most(self) -> int:
        """Continuations that one request may ask for: more could never wait."""
        return self._most + (self._rows.count if self._rows else 0)

    def wake(self) -> None:
        """Lets the thread see that work was called off."""
        with self._changed:
            self._changed.notify()

    @property
    def idle(self) -> bool:
        """Whether nothing is done or waits."""
        with self._changed:
            return not (self._queue or self._live or self._calls)

    @property
    def lives(self) -> bool:
        return self._thread.is_alive()

    def close(self, seconds: float = 0.0) -> None:
        """Takes no more work, lets what is there end within the time, and calls off the rest, of
        which those who wait are told."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        if self._thread.is_alive():
            with self._changed:
                works = [work for work, _ in self._queue] + [row.work for row in self._live]
                for work in [*works, *self._calls]:
                    _deliver(work, Leaving(ENDING))
                    work.cancel()
                self._changed.notify()
            self._thread.join(10.0)

    # The model's own thread.

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._queue or self._live):
                    if self._closing:
                        return
                    self._changed.wait()
                calls = self._calls = self._take()
            try:
                self._leave_cancelled()
                if calls:
                    self._timed(partial(self._call, calls))
                if self._live:
                    self._timed(self._pass)
            except Exception as error:  # of ours: those who wait are told, and the thread goes on
                for row in list(self._live):
                    self._end(row, error)
                for call in calls:
                    _deliver(call, error)
            finally:
                with self._changed:
                    self._calls = []
                    self.metrics.running = len(self._live)

    def _timed(self, does: Callable[[], None]) -> None:
        with self._turn:
            began = time.perf_counter()
            does()
            self._pace.spent(time.perf_counter() - began)

    def _take(self) -> list[Call]:
        """Gives places to waiting continuations, and takes calls that are done together."""
        calls: list[Call] = []
        staying: deque[tuple[Work, float]] = deque()
        count = 0
        for work, arrived in self._queue:
            if work.cancelled:
                self.metrics.finished("abort")
            elif isinstance(work, Generation) and self._free and not _waits(staying):
                try:
                    self._begin(work, arrived)
                except Exception as error:  # such as a tokenizer that can't go on from a prompt
                    _deliver(work, error)
            elif (
                isinstance(work, Call)
                and (not calls or calls[0].key == work.key)
                and (not calls or count + work.cost <= TASK_TOKENS)
            ):
                calls.append(work)
                count += work.cost
                self.metrics.queued.observe(time.perf_counter() - arrived)
            else:
                staying.append((work, arrived))
        self._queue = staying
        self.metrics.waiting = len(staying)
        self.metrics.running = len(self._live) + len(calls)
        return calls

    def _begin(self, work: Generation, arrived: float) -> None:
        known = work.tokenizer or self._tokenizer
        assert known is not None
        text = TextRow(known, work.prompt, work.sampling)
        generator = torch.Generator().manual_seed(work.seed)
        row = _Row(work, self._free.pop(), list(work.prompt), text, generator, arrived)
        row.began = time.perf_counter()
        self.metrics.queued.observe(row.began - arrived)
        self._live.append(row)

    def _leave_cancelled(self) -> None:
        for row in [row for row in self._live if row.work.cancelled]:
            self.metrics.finished("abort")
            self._leave(row)

    def _leave(self, row: _Row) -> None:
        """Takes a row's place from it; what it read stays known where that is exact."""
        assert self._rows is not None
        if not row.work.scores:
            whole = row.ids[: row.read] if self._rows.exact else row.ids[: min(row.read, row.size)]
            self._prefixes.keep(row.work.scope, whole, *self._rows.place(row.place))
        self._live.remove(row)
        self._free.append(row.place)
        self.metrics.running = len(self._live)
        self.metrics.kept = self._held()

    def _held(self) -> float:
        """The share of the places' memory that is in use."""
        room = self._rows.count * self._rows.capacity if self._rows else 1
        return sum(row.read for row in self._live) / room

    def _end(self, row: _Row, event: Event | None = None) -> None:
        self._leave(row)
        if event is not None:
            _deliver(row.work, event)
        self._pace.finished()
        self.metrics.ended.observe(time.perf_counter() - row.arrived)

    # Tasks.

    def _call(self, calls: Sequence[Call]) -> None:
        """Reads the inputs of all calls together; where one is bad, each by itself."""
        live = [call for call in calls if not call.cancelled]
        if not live:
            return
        options = dict(live[0].options)
        parts = [call.part(TASK_TOKENS, INPUTS) for call in live]
        try:
            found = self._runs(live[0].task, [one for part in parts for one in part], options)
        except Exception as error:
            if len(live) > 1:
                for call in live:
                    self._call([call])
                return
            self.metrics.finished("error")
            _deliver(live[0], error)
            return
        start = 0
        for call, part in zip(live, parts, strict=True):
            call.found += found[start : start + len(part)]
            start += len(part)
            if len(call.found) < len(call.inputs):
                with self._changed:  # behind what came meanwhile
                    self._queue.append((call, time.perf_counter()))
                continue
            _deliver(call, Result(call.found))
            self._pace.finished()
            self.metrics.finished("stop")

    # Continuations.

    def _pass(self) -> None:
        """Reads one pass of tokens, and chooses the next of each row that has come to it."""
        assert self._rows is not None
        given = list(self._parts())
        logits = self._rows.read([part for _, part in given])
        ready: list[tuple[_Row, Tensor]] = []
        start = 0
        for row, part in given:
            count = {"none": 0, "last": 1, "all": len(part.tokens)}[part.wanted]
            own = logits[start : start + count]
            start += count
            row.read += len(part.tokens) - len(row.draft)
            if row.work.scores and part.start < row.size:
                self._score(row, part, own)
            if row.read == len(row.ids):
                ready.append((row, own[-1 - len(row.draft) :]))
        self.metrics.kept = self._held()
        self._choose(ready)

    def _parts(self) -> Iterator[tuple[_Row, Part]]:
        """What is read in this pass: a token of each row that generates, then prompts."""
        rows = self._rows
        assert rows is not None
        writing = [row for row in self._live if not row.reads_prompt]
        drafts = max(DRAFTED - len(writing), 0)
        left = rows.most - len(writing)
        for row in writing:
            row.draft = self._draft(row, drafts)
            drafts, left = drafts - len(row.draft), left - len(row.draft)
            wanted = "all" if row.draft else "last"
            yield row, Part(row.place, row.read, [*row.ids[row.read :], *row.draft], wanted)
        left = min(left, JOINING) if writing else left
        begun = bool(writing)
        for row in self._live:
            if not row.reads_prompt:
                continue
            if not row.looked:
                self._look(row)
            end = row.size
            if rows.cut is not None:
                end = min(end, (row.read // rows.cut + 1) * rows.cut)
            else:
                end = min(end, row.read + left)
            if row.work.scores:
                end = min(end, row.read + SCORED)
            if left <= 0 or (begun and end - row.read > max(left, rows.cut or 0)):
                return
            wanted = "all" if row.work.scores else "last" if end == row.size else "none"
            yield row, Part(row.place, row.read, row.ids[row.read : end], wanted)
            left -= end - row.read
            begun = True

    def _draft(self, row: _Row, most: int) -> list[int]:
        """Tokens that may follow a row's last one, at most so many; often none."""
        assert self._rows is not None
        room = min(most, row.work.room - (len(row.ids) - row.size) - 1)
        if room <= 0 or not row.plain or not self._rows.exact:
            return []
        if row.lookup is None:
            row.lookup = Lookup(row.size, row.work.prediction, measured=False)
        return row.lookup.draft(row.ids, room)

    def _look(self, row: _Row) -> None:
        """Takes what is known of the prompt, as late as it can: others may just have read it."""
        assert self._rows is not None
        row.looked = True
        if not row.work.scores and self._prefixes.limit:
            found = self._prefixes.find(row.work.scope, row.work.prompt)
            row.read = row.cached = restore(found, *self._rows.place(row.place))
            self.metrics.prefix_queries = self._prefixes.queries
            self.metrics.prefix_hits = self._prefixes.hits

    def _score(self, row: _Row, part: Part, logits: Tensor) -> None:
        """The log-probabilities of the tokens that follow those of a part of the prompt."""
        following = row.ids[part.start + 1 : part.start + len(part.tokens) + 1]
        if not following:
            return
        known = log_probabilities(logits[: len(following)])
        own = known.gather(-1, torch.tensor(following)[:, None])[:, 0].tolist()
        row.scored.own.extend(own)
        top = row.work.top or 0
        best = known.topk(top) if top else None
        for place in range(len(following)):
            pairs = (
                () if best is None
                else zip(best.indices[place].tolist(), best.values[place].tolist(), strict=True)
            )  # fmt: skip
            row.scored.top.append(tuple(pairs))

    def _choose(self, ready: Sequence[tuple[_Row, Tensor]]) -> None:
        """The next token of each row, and what follows from it."""
        now = time.perf_counter()
        for row, _ in ready:
            if len(row.ids) == row.size:
                self._has_read(row, now)
        ready = [(row, logits) for row, logits in ready if row in self._live]
        plain = [(row, logits) for row, logits in ready if row.plain]
        if plain:
            chosen = iter(likeliest(torch.cat([logits for _, logits in plain])).tolist())
            for row, logits in plain:
                self._follow(row, [next(chosen) for _ in logits], logits, now)
        for row, logits in ready:
            if not row.plain:
                try:
                    token = _drawn(row, logits)
                except Exception as error:  # such as constraints that leave no token
                    self.metrics.finished("error")
                    self._end(row, error)
                    continue
                self._add(row, token, logits, now)

    def _follow(self, row: _Row, tokens: list[int], logits: Tensor, now: float) -> None:
        """Adds a row's likeliest token, and those behind it as long as its draft came true."""
        draft, row.draft = row.draft, []
        for place, token in enumerate(tokens):
            self._add(row, token, logits[place : place + 1], now)
            if row not in self._live or draft[place : place + 1] != [token]:
                break
            row.read += 1
        if draft:
            came = min(place, len(draft))
            self.metrics.drafted += len(draft)
            self.metrics.accepted += came
            if row.lookup is not None and row.lookup.source == "prediction":
                row.work.accepted += came
                row.work.rejected += len(draft) - came

    def _has_read(self, row: _Row, now: float) -> None:
        """A prompt has been read."""
        row.latest = now
        self.metrics.prompt_tokens += row.size
        self.metrics.first.observe(now - row.arrived)
        self.metrics.prefilled.observe(now - row.began)
        assert self._rows is not None
        if not row.work.scores:
            self._prefixes.keep(row.work.scope, row.ids, *self._rows.place(row.place))
        _deliver(row.work, Begun(row.cached))
        if row.work.scores:
            _deliver(row.work, row.scored)
        if not row.work.room:
            self.metrics.finished("length")
            self._end(row, Ended())

    def _add(self, row: _Row, token: int, logits: Tensor, now: float) -> None:
        """Counts a token in, hands it out, and lets the row go where it ends here."""
        work = row.work
        row.ids.append(token)
        self.metrics.generation_tokens += 1
        if len(row.ids) - row.size > 1:
            self.metrics.between.observe(now - row.latest)
        row.latest = now
        known = (0.0, ()) if work.top is None else _known(logits, token, work.top)
        step = Step(0, token, *known)
        stopped = row.text.take(step)
        if work.guide is not None:
            stopped = work.guide.take(token) or stopped
        text = "" if work.halts is None else row.text.text(last=False)
        if work.halts is not None:
            stopped = work.halts(token, text) or stopped
        finish: Any = None
        if token in work.ends or stopped:
            finish = "stop"
        elif len(row.ids) - row.size >= work.room:
            finish = "length"
        step = Step(0, token, *known, finish)
        piece = Piece(0, text + row.text.text(last=finish is not None), step)
        if finish is None:
            _deliver(work, piece)
            return
        self.metrics.decoded.observe(now - row.began)
        self.metrics.finished(finish)
        self._end(row, piece)


def _waits(staying: Sequence[tuple[Work, float]]) -> bool:
    """Whether a continuation waits that came before: none overtakes it."""
    return any(isinstance(work, Generation) for work, _ in staying)


def _deliver(work: Work, event: Event) -> None:
    """Hands an event out; where nobody is left to take it, the work is called off."""
    if work.cancelled:
        return
    try:
        work.deliver(event)
    except RuntimeError:  # the loop that waited for it has ended
        work.cancel()


def _known(logits: Tensor, token: int, top: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """A token's log-probability in the model's own distribution, and the likeliest tokens."""
    known = log_probabilities(logits)[0]
    best = known.topk(min(top, len(known)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return float(known[token]), tuple(pairs)


def _drawn(row: _Row, logits: Tensor) -> int:
    """A row's next token by its settings."""
    work = row.work
    logits = logits.float()
    if work.bias:
        ids = torch.tensor(list(work.bias))
        logits = logits.index_add(1, ids, torch.tensor([list(work.bias.values())]))
    made = row.ids[row.size :]
    if made and (work.presence or work.frequency):
        counts = torch.bincount(torch.tensor(made), minlength=logits.shape[1])[None]
        logits = logits - work.frequency * counts - work.presence * (counts > 0)
    if work.guide is not None:
        logits = work.guide.masked(logits)
    chosen = work.sampling.choose(
        logits, [row.ids], [row.generator], [row.size], work.ends, [row.ids[: row.size]]
    )
    return int(chosen[0])
