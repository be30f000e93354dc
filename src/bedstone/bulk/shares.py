"""Shares of some work, and files of their lines.

Rows are cut into blocks of `BLOCK`, which are worked on together anyway, and block b is of share
b mod n: so each result is computed with the same neighbours as in one run, and the joined output is
that of one run, byte for byte. A share's lines bear the number of their row, and its last line says
what the share is of: other rows, a cut and a changed line are noticed.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError

BLOCK = 64  # rows that are worked on together

_ROW = re.compile(r'\{"row": (\d+), ')


@dataclass(frozen=True)
class Shard:
    """One of `count` shares of some work, from 1."""

    number: int
    count: int

    @classmethod
    def read(cls, text: str) -> "Shard":
        """The share that `2/5` names.

        Raises:
            BedstoneError: there is none such.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise BedstoneError(
                f"--shard: {text!r} was given; expected number/shares, from 1/5 to 5/5, say."
            )
        return cls(int(match[1]), int(match[2]))

    def rows(self, count: int, block: int = BLOCK) -> list[int]:
        """The numbers of its rows among `count`."""
        return [row for row in range(count) if row // block % self.count == self.number - 1]

    def text(self) -> str:
        return f"{self.number}/{self.count}"


WHOLE = Shard(1, 1)


def fingerprint(*what: Any) -> str:
    """A hash of what a share is of: the rows, and how they are worked on."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def numbered(line: str, row: int) -> str:
    """An output line, a JSON object, with its row's number."""
    return f'{{"row": {row}, {line[1:]}'


def as_json(value: Any) -> str:
    """A value as lines of output hold it."""
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> float | str:
    """A number of another library as a Python number; anything else, such as a date, as text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


class Written:
    """The lines of a share so far: how many, and their hash."""

    def __init__(self) -> None:
        self.lines = 0
        self._hash = hashlib.sha256()

    def add(self, line: str) -> str:
        """Counts a line, without its end; the same line."""
        self.lines += 1
        self._hash.update(f"{line}\n".encode())
        return line

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def last_line(
    shard: Shard, rows: int, written: Written, work: str, *, block: int = BLOCK, kind: str = "lines"
) -> str:
    """What a share ends with.

    Args:
        rows: of all shares.
        written: the lines of this one.
        work: the fingerprint of the work.
        block: rows of a block.
        kind: lines, which joined are an output; or results, which joined are still to be scored.
    """
    end = {"shard": shard.text(), "inputs": rows, "lines": written.lines, "block": block}
    return json.dumps({**end, "sha256": written.digest, "of": work, "kind": kind})


@dataclass(frozen=True)
class Share:
    """The file of a share.

    Attributes:
        shard: which of how many.
        inputs: rows of all shares.
        block: rows of a block.
        of: the fingerprint of the work.
        kind: as `last_line` has it.
        lines: by their rows' numbers, each without the number and with its end.
    """

    shard: Shard
    inputs: int
    block: int
    of: str
    kind: str
    lines: dict[int, str]


def read_share(path: Path) -> Share:
    """A share's file.

    Raises:
        BedstoneError: it can't be read, isn't whole, or holds a line of another share.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise BedstoneError(f"{path}: can't be read ({reason}). Name a share's output.") from error
    *body, last = text.split("\n")[:-1] or [""]
    try:
        end = json.loads(last)
        found = Share(
            Shard.read(end["shard"]),
            int(end["inputs"]),
            int(end.get("block", BLOCK)),
            str(end["of"]),
            str(end.get("kind", "lines")),
            {},
        )
        written = Written()
        for line in body:
            written.add(line)
        whole = (end["lines"], end["sha256"]) == (written.lines, written.digest)
        whole = whole and found.block > 0
    except (ValueError, KeyError, TypeError, AttributeError, BedstoneError):
        whole = False
    if not whole:
        raise BedstoneError(
            f"{path}: isn't the whole output of a share: its last line doesn't say that it is, or "
            "a line was changed. Run that share again with the same options."
        )
    own = set(found.shard.rows(found.inputs, found.block))
    found.lines.update(_lines(path, body, own))
    return found


def _lines(path: Path, body: Sequence[str], own: set[int]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(body, 1):
        match = _ROW.match(line)
        if not match or int(match[1]) not in own:
            raise BedstoneError(f"{path}: line {number}: isn't a line of this share. Run it again.")
        own.discard(int(match[1]))
        yield int(match[1]), f"{{{line[match.end() :]}\n"
