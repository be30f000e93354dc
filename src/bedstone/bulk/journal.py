"""Work on rows whose results go into a file, which goes on where it was stopped.

Beside the output stands the folder NAME.part until it is whole: `manifest.json` says what the work
is, and each line of `blocks.jsonl` holds a block's results behind their hash. A block is synced
before it counts, and a line that a kill or a power cut left unfinished is dropped. Then the output
is written whole or not at all, in the order of the rows, each once.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bedstone.bulk.on_ray import place_of
from bedstone.bulk.places import Aside, Choices, Job, Spread, Watch
from bedstone.bulk.shares import BLOCK, Written, last_line, numbered
from bedstone.errors import BedstoneError
from bedstone.files import atomic_file, lock, make_folder, remove_folder, write_json, write_text
from bedstone.outputs import new_file
from bedstone.reading import read_object

LINES, MANIFEST = "blocks.jsonl", "manifest.json"
ASIDE = 3  # the exit code where rows were set aside
REPORTED = 5  # of them that are named
BUSY = "another process works on it. Wait for it, or name another output."


@dataclass
class _Entry:
    """Where the results of a block are, and how many of its rows have none."""

    start: int
    size: int
    aside: int


class Journal:
    """The results of blocks that are done, on the disk beside an output.

    Args:
        path: the output.
        work: what the work is; a journal of other work is refused.
        afresh: whether one of other work is thrown away instead.

    Raises:
        BedstoneError: it is of other work, or another process has it.
    """

    def __init__(self, path: Path, work: dict[str, Any], *, afresh: bool = False) -> None:
        self.folder = path.with_name(f"{path.name}.part")
        self._work, self._entries = work, dict[int, _Entry]()
        self.choices: Choices | None = None
        self._held = contextlib.ExitStack()
        make_folder(self.folder)
        self._held.enter_context(lock(self.folder, BUSY))
        try:
            self._open(afresh)
        except BaseException:
            self._held.close()
            raise

    def _open(self, afresh: bool) -> None:
        manifest = self.folder / MANIFEST
        if manifest.is_file():
            held = read_object(manifest)
            self.choices = held.pop("choices", None)
            if held != self._work and not afresh:
                raise BedstoneError(
                    f"{self.folder}: is of other rows, another model or other options, and isn't "
                    "finished. Go on with those, name another output, or give --overwrite to throw "
                    "it away."
                )
            if held != self._work:
                self.choices = None
                manifest.unlink()
        if not manifest.is_file():
            (self.folder / LINES).unlink(missing_ok=True)
            write_json(manifest, self._work)
        self._file: BinaryIO = self._held.enter_context((self.folder / LINES).open("a+b"))
        self._read()

    def _read(self) -> None:
        """Finds the blocks that are whole, and drops what is behind them."""
        self._file.seek(0)
        end = 0
        for line in self._file:
            digest, _, text = line.partition(b" ")
            if not line.endswith(b"\n") or _digest(text) != digest:
                break
            self._note(end, line)
            end += len(line)
        self._file.truncate(end)

    def _note(self, start: int, line: bytes) -> None:
        held = json.loads(line.partition(b" ")[2])
        aside = sum(isinstance(each, dict) for each in held["rows"])
        self._entries[held["block"]] = _Entry(start, len(line), aside)

    def keep_choices(self, choices: Choices) -> None:
        """Notes what a process chose by, before its first block."""
        self.choices = choices
        write_json(self.folder / MANIFEST, {**self._work, "choices": choices})

    def __contains__(self, block: int) -> bool:
        return block in self._entries

    @property
    def aside(self) -> int:
        """Rows without a result."""
        return sum(each.aside for each in self._entries.values())

    def add(self, block: int, results: Sequence[Any]) -> None:
        """Keeps a block's results, texts or `Aside`; it is on the disk when this returns."""
        held = [{"reason": e.reason} if isinstance(e, Aside) else e for e in results]
        text = json.dumps({"block": block, "rows": held}, ensure_ascii=False).encode() + b"\n"
        line = _digest(text) + b" " + text
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._note(start, line)

    def results(self) -> Iterator[tuple[int, list[Any]]]:
        """The blocks in order with their results, texts or `Aside`."""
        for block in sorted(self._entries):
            entry = self._entries[block]
            self._file.seek(entry.start)
            held = json.loads(self._file.read(entry.size).partition(b" ")[2])
            rows = [Aside(e["reason"]) if isinstance(e, dict) else e for e in held["rows"]]
            yield block, rows

    def close(self) -> None:
        """Lets another process go on with it."""
        self._held.close()

    def remove(self) -> None:
        """Ends it: the output is whole."""
        self.close()
        remove_folder(self.folder)


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode()


@dataclass(frozen=True)
class Worked:
    """What came of some work.

    Attributes:
        path: of the lines.
        rows: of the share, or all.
        aside: the rows without a result, by number, with the reason.
        aside_path: the file of these.
    """

    path: Path
    rows: int
    aside: dict[int, str]
    aside_path: Path

    @property
    def code(self) -> int:
        """The exit code."""
        return ASIDE if self.aside else 0

    def summary(self) -> str:
        """A line for people, and more where rows were set aside."""
        if not self.aside:
            return f"{self.path}: {self.rows:,} rows"
        named = [f"  row {row}: {self.aside[row]}" for row in sorted(self.aside)[:REPORTED]]
        more = len(self.aside) - REPORTED
        named += [f"  and {more:,} more"] if more > 0 else []
        first = (
            f"{self.path}: {self.rows - len(self.aside):,} of {self.rows:,} rows; "
            f"{len(self.aside):,} set aside in {self.aside_path}"
        )
        return "\n".join([first, *named])


def work_on(
    path: str | Path,
    job: Job,
    rows: Sequence[Any],
    spread: Spread,
    *,
    work: str,
    as_line: Callable[[int, str], str],
    option: str = "--out",
    block: int = BLOCK,
    kind: str = "lines",
    overwrite: bool = False,
    progress: Callable[[float], object] = lambda share: None,
) -> Worked:
    """Works on rows, or a share of them, and writes a line for each that has a result.

    Args:
        path: of the lines; while it isn't whole, what is done stands in PATH.part.
        job: opens the work; its results are texts.
        work: the fingerprint of the work.
        as_line: the line of a row, an object of JSON, of its number and result.
        block: rows that are worked on together.
        kind: lines, which have no number unless they are a share's; or results, which always have.
        progress: is given the share that is done, 0 to 1.

    Raises:
        BedstoneError: the output is there, a journal of other work is, or no row had a result.
    """
    path = new_file(path, option, overwrite=overwrite)
    share = spread.share
    mine = share.rows(len(rows), block)
    blocks: dict[int, list[int]] = {}
    for row in mine:
        blocks.setdefault(row // block, []).append(row)
    manifest = {"of": work, "inputs": len(rows), "block": block, "shard": share.text()}
    journal = Journal(path, manifest, afresh=overwrite)
    try:
        watch = Watch()
        for _, results in journal.results():
            watch.see(results)
        left = [number for number in blocks if number not in journal]
        if left:
            with place_of(spread) as place:
                place.choices = journal.choices
                given = ((number, [rows[row] for row in blocks[number]]) for number in left)
                for done, (number, results) in enumerate(place.run(job, given), 1):
                    if journal.choices is None and place.choices is not None:
                        journal.keep_choices(place.choices)
                    journal.add(number, results)
                    watch.see(results)
                    progress(1 - (len(left) - done) / len(blocks))
        watch.check()
        aside: dict[int, str] = {}
        aside_path = path.with_name(f"{path.stem}.aside.jsonl")
        written, plain = Written(), spread.shard is None and kind == "lines"
        with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for number, results in journal.results():
                for row, result in zip(blocks[number], results, strict=True):
                    if isinstance(result, Aside):
                        aside[row] = result.reason
                        continue
                    line = as_line(row, result)
                    line = line if plain else numbered(line, row)
                    file.write(f"{written.add(line)}\n")
            if not plain:
                end = last_line(share, len(rows), written, work, block=block, kind=kind)
                file.write(f"{end}\n")
            _write_aside(aside_path, aside)
    except BaseException:
        journal.close()
        raise
    journal.remove()
    return Worked(path, len(mine), aside, aside_path)


def _write_aside(path: Path, aside: dict[int, str]) -> None:
    """Writes why rows have no result; without such, what an earlier run wrote is removed."""
    lines = [
        json.dumps({"row": row, "reason": aside[row]}, ensure_ascii=False) for row in sorted(aside)
    ]
    if lines:
        write_text(path, "\n".join(lines) + "\n")
    else:
        path.unlink(missing_ok=True)
