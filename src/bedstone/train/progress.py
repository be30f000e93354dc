"""What a person sees of a long run: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

SECONDS_BETWEEN_LINES = 10.0


def clock(seconds: float) -> str:
    """`7s`, `3:07`, `1:02:09`."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


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

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
