"""What an agent did, kept as it happens, a line of JSON each: to read, to show, to run again.

The lines: `start` (goal, tools, rules, limits, model), `turn` (what the model said and called),
`decision`, `result`, and `end` (why, and the answer). A run that was killed has all lines up to
there.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.reading import read_text, shown

KINDS = ("start", "turn", "decision", "result", "end")
LONGEST = 256 << 20  # bytes of a file


class Transcript:
    """The events of a run.

    Args:
        path: a new file that each event is written to when it happens; None keeps them here alone.

    Raises:
        BedstoneError: the file is there already.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.events: list[dict[str, Any]] = []
        if self.path is not None:
            try:
                self.path.touch(exist_ok=False)
            except FileExistsError as error:
                raise BedstoneError(
                    f"{self.path}: is there already. Choose another name, or remove it."
                ) from error

    def add(self, kind: str, **values: Any) -> None:
        """Keeps an event; in a file, it is on the disk when this returns."""
        event = {"kind": kind, **values}
        self.events.append(event)
        if self.path is None:
            return
        with self.path.open("ab") as file:
            line = json.dumps(event, ensure_ascii=False, default=str)
            file.write(line.encode("utf-8", "replace") + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def of(self, kind: str) -> Iterator[dict[str, Any]]:
        """The events of a kind, in order."""
        return (event for event in self.events if event["kind"] == kind)

    @property
    def start(self) -> Mapping[str, Any]:
        """The first event. Raises BedstoneError where there is none."""
        found = next(self.of("start"), None)
        if found is None:
            raise BedstoneError("transcript: has no event of kind 'start'.")
        return found

    @property
    def end(self) -> Mapping[str, Any] | None:
        """None where the run was killed."""
        return next(self.of("end"), None)

    @property
    def effects(self) -> list[tuple[str, Any, str]]:
        """The calls that were made: name, arguments, result."""
        return [(each["name"], each["arguments"], each["text"]) for each in self.of("result")]


def read_transcript(path: str | Path) -> Transcript:
    """The transcript in a file; a last line that a kill cut is left out.

    Raises:
        BedstoneError: it can't be read, or holds something else.
    """
    lines = read_text(Path(path), LONGEST).split("\n")
    made = Transcript()
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            event = json.loads(line)
            good = isinstance(event, dict) and event.get("kind") in KINDS
        except ValueError:
            good = False
        if good:
            made.events.append(event)
        elif number < len(lines):
            raise BedstoneError(
                f"{path}: line {number} is {shown(line[:80])}; expected an event of an agent."
            )
    if next(made.of("start"), None) is None:
        raise BedstoneError(f"{path}: holds no run of an agent: it has no line of kind 'start'.")
    return made
