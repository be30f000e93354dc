"""The run's log: one JSON object a line, and what a person sees of the run meanwhile."""

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from bedstone import ranks
from bedstone.files import write_text
from bedstone.reading import is_plain
from bedstone.train.trackers import Tracker


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The records of a `log.jsonl`, as `read_lines` gives them, that have a step."""
    return [record for record in read_lines(path) if type(record.get("step")) is int]


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The objects in a JSONL file of a run; a line that is cut short or damaged is passed over."""
    path = Path(path)
    if not is_plain(path):
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


class RunLog:
    """Appends records to `log.jsonl` in the run's folder, and hands them to trackers.

    Opening it at a step forgets what was logged after that step: a resumed run writes the
    same lines again. Of several ranks only rank 0 writes.
    """

    def __init__(self, folder: Path, *, step: int = 0, trackers: Sequence[Tracker] = ()) -> None:
        self.path = folder / "log.jsonl"
        self.file: IO[str] | None = None
        self.trackers = trackers
        if ranks.rank():
            return
        kept = [record for record in read_log(self.path) if record["step"] <= step]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self.file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, **figures: float) -> None:
        """One record; figures that aren't finite are written as null."""
        if self.file is None:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self.file.write(json.dumps({"step": step, **finite}) + "\n")
        self.file.flush()
        for tracker in self.trackers:
            tracker.write(step, figures)

    def close(self) -> None:
        """Closes the file and the trackers."""
        if self.file is None:
            return
        self.file.close()
        for tracker in self.trackers:
            tracker.close()


# What a person sees of a long run: a bar on a terminal, a line now and then elsewhere.

SECONDS_BETWEEN_LINES = 10.0


def clock(seconds: float) -> str:
    """`7s`, `3:07`, `1:02:09`."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counted(count: int, what: str) -> str:
    """`1 step`, `1,000 steps`."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


class ProgressBar:
    """Share done, time left and a few figures; `with ProgressBar("train") as bar: bar.update(...)`.

    On a terminal it redraws one line; elsewhere it prints a line every ten seconds.
    """

    def __init__(self, label: str, *, quiet: bool = False) -> None:
        self.label = label
        self.quiet = quiet
        self.console = Console(file=sys.stderr)
        self.started = time.monotonic()
        self.printed = self.started
        self.first: float | None = None  # the share done when it was first told
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task(label, total=1.0, left="", figures="")

    def __enter__(self) -> Self:
        if self.console.is_terminal and not self.quiet:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar.live.is_started:  # stopping prints a line, started or not
            self.bar.stop()

    def update(self, share: float, **figures: str) -> None:
        """Shows the share done, 0 to 1, the time left at this pace, and named figures."""
        if self.quiet:
            return
        if self.first is None:
            self.first, self.started = share, time.monotonic()
        elapsed, gained = time.monotonic() - self.started, share - self.first
        left = f"{clock(elapsed / gained * (1 - share))} left" if gained > 0 and elapsed > 1 else ""
        text = "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())
        if self.console.is_terminal:
            self.bar.update(self.task, completed=min(share, 1.0), left=left, figures=text)
        elif time.monotonic() - self.printed >= SECONDS_BETWEEN_LINES:
            self.printed = time.monotonic()
            self.console.print(
                f"{self.label} {share:4.0%}  {left}  {text}", highlight=False, soft_wrap=True
            )

    def say(self, text: str | Text) -> None:
        """A line that stays, above the bar."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


# SIGTERM and Ctrl-C ask a run to save and leave; a second one leaves at once.


class Interrupts:
    """Inside the `with` block, `received` holds the signal that came, or None."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only it may set handlers
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt(int(number))
        self.received = signal.Signals(number)
