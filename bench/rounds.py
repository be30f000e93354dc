"""Trainings that take turns: what a run tells, and medians, ranges and ratios over rounds.

Contestants follow one another within each round, and each round begins with another, so that what
else the machine does meets all. A ratio is taken within its round. A faster side whose loss is
higher than its peer's by more than the tolerance has not done the same work, and is told so.
"""

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from result import Side, write

T = TypeVar("T")


@dataclass
class Run:
    """One training: seconds of its steps, real (non-padding) tokens read, loss on held-out text."""

    side: str
    number: int  # of the round, which seeds it
    seconds: float
    tokens: int
    steps: int
    loss: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def take_turns(sides: dict[str, Callable[[int], Run]], rounds: int) -> list[Run]:
    """Every side once a round; each side's function is handed the round's number."""
    runs = []
    for number, order in enumerate(orders(list(sides), rounds)):
        for side in order:
            runs.append(sides[side](number))
            print(json.dumps(asdict(runs[-1]) | {"rate": round(runs[-1].rate)}), flush=True)
    return runs


def orders(sides: list[T], rounds: int) -> Iterator[list[T]]:
    """All sides for each round, which begins with another."""
    for number in range(rounds):
        start = number % len(sides)
        yield sides[start:] + sides[:start]


def show(runs: list[Run], tolerance: float, ours: str = "bedstone") -> None:
    """A line a side, then ours beside each peer, and every peer beside the first."""
    of = by_side(runs)
    print(f"\n{'':24}{'real tokens/s':>24}{'tokens':>10}{'steps':>7}{'loss':>26}")
    for side, mine in of.items():
        print(
            f"{side:24}{spread([run.rate for run in mine], 0):>24}{mine[0].tokens:>10,}"
            f"{mine[0].steps:>7}{spread([run.loss for run in mine], 4):>26}"
        )
    print()
    first = ours if ours in of else next(iter(of))
    for side, theirs in of.items():
        if side == first:
            continue
        pairs = list(zip(of[first], theirs, strict=True))
        ratios = [mine.rate / peer.rate for mine, peer in pairs]
        higher = statistics.median(mine.loss - peer.loss for mine, peer in pairs)
        verdict = "equal or lower" if higher <= tolerance else "HIGHER"
        print(
            f"{first} / {side}: {spread(ratios, 2)} times the tokens a second; loss {verdict} "
            f"({higher:+.4f}, tolerance {tolerance})"
        )


def spread(values: list[float], digits: int) -> str:
    """The median and the range."""
    middle = statistics.median(values)
    return f"{middle:,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def by_side(runs: list[Run]) -> dict[str, list[Run]]:
    """The runs of each side, in the order of their rounds."""
    of: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.number):
        of.setdefault(run.side, []).append(run)
    return of


def keep(folder: Path, name: str, runs: list[Run], **settings: Any) -> None:
    """The raw result, FOLDER/NAME.json."""
    sides = {
        side: Side(
            [run.seconds for run in mine],
            mine[0].tokens,
            {"loss": statistics.median(run.loss for run in mine), "steps": mine[0].steps}
            | {"losses": [run.loss for run in mine]},
        )
        for side, mine in by_side(runs).items()
    }
    write(folder, name, "tokens", sides, **settings)
