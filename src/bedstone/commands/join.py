"""Work in shares, without a scheduler: `--shard i/n` does a part, `bedstone join` joins them.

Inputs are cut into blocks of `BLOCK`, which a task reads together anyway, and block b is of share
b mod n: so each result is computed with the same neighbours as in one run, and the joined output is
that of one run, byte for byte. A share's lines bear the number of their input, and its last line
says what the share is of: joining refuses shares of other inputs, and a share that is cut short or
given twice.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.files import write_text
from bedstone.outputs import new_file
from bedstone.reading import to_path

BLOCK = 64  # inputs that are read together

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
        """The numbers of its inputs among `count`."""
        return [row for row in range(count) if row // block % self.count == self.number - 1]

    def text(self) -> str:
        return f"{self.number}/{self.count}"


def fingerprint(*what: Any) -> str:
    """A hash of what a share is of: the inputs, and how they are worked on."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def numbered(line: str, row: int) -> str:
    """An output line, a JSON object, with its input's number."""
    return f'{{"row": {row}, {line[1:]}'


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


def last_line(shard: Shard, inputs: int, written: Written, work: str) -> str:
    """What a share ends with.

    Args:
        inputs: of all shares.
        written: the lines of this one.
        work: the fingerprint of the work.
    """
    end = {"shard": shard.text(), "inputs": inputs, "lines": written.lines}
    return json.dumps({**end, "sha256": written.digest, "of": work})


def join(out: str, shares: list[str], overwrite: bool = False) -> None:
    """Join the outputs of all shares that `--shard` made into the output of one run.

    Args:
        out: the file to write.
        shares: the output of each share, in any order.
        overwrite: replace a file of the same name.

    Example:
        bedstone run ner MODEL --file rows.csv --json --shard 1/2 > one.jsonl
        bedstone run ner MODEL --file rows.csv --json --shard 2/2 > two.jsonl
        bedstone join all.jsonl one.jsonl two.jsonl

    Raises:
        BedstoneError: a share is missing, given twice, cut short, or of other work.
    """
    path = new_file(out, "OUT", overwrite=overwrite)
    if any(Path(share).resolve() == path.resolve() for share in shares):
        raise BedstoneError(f"OUT: {out} is one of the shares. Name another file to write.")
    parts = [_read(to_path(share)) for share in shares]
    ends = [end for end, _ in parts]
    first = ends[0]
    for place, end in zip(shares, ends, strict=True):
        if (end["of"], end["inputs"]) != (first["of"], first["inputs"]):
            raise BedstoneError(
                f"{place}: is a share of other inputs, or of another model or options, than "
                f"{shares[0]}. Give the shares of one run."
            )
    found = sorted(Shard.read(end["shard"]).number for end in ends)
    count = Shard.read(first["shard"]).count
    if found != list(range(1, count + 1)):
        missing = sorted(set(range(1, count + 1)) - set(found))
        what = (
            f"{', '.join(map(str, missing))} of {count} missing" if missing else "one given twice"
        )
        raise BedstoneError(f"{path}: shares: {what}. Give the output of each share once.")
    lines = dict(line for _, part in parts for line in part)
    write_text(path, "".join(lines[row] for row in sorted(lines)))
    print(f"{path}: {len(lines):,} lines of {first['inputs']:,} inputs, from {count} shares")


def _read(path: Path) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    """What a share's output says of itself, and its lines by their inputs' numbers."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BedstoneError(f"{path}: can't be read ({error}). Name a share's output.") from error
    *body, last = text.split("\n")[:-1] or [""]
    try:
        end = json.loads(last)
        shard, _ = Shard.read(end["shard"]), (end["inputs"], end["of"])
        written = Written()
        for line in body:
            written.add(line)
        whole = (end["lines"], end["sha256"]) == (written.lines, written.digest)
    except (ValueError, KeyError, TypeError, AttributeError, BedstoneError):
        whole = False
    if not whole:
        raise BedstoneError(
            f"{path}: isn't the whole output of a share: its last line doesn't say that it is, or "
            "a line was changed. Run that share again, with --shard and --json."
        )
    lines = list(_lines(path, body, set(shard.rows(int(end["inputs"])))))
    return end, lines


def _lines(path: Path, body: Sequence[str], own: set[int]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(body, 1):
        match = _ROW.match(line)
        if not match or int(match[1]) not in own:
            raise BedstoneError(f"{path}: line {number}: isn't a line of this share. Run it again.")
        own.discard(int(match[1]))
        yield int(match[1]), f"{{{line[match.end() :]}\n"
