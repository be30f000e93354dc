"""Rows of files: JSON, JSONL, CSV, TSV, Parquet and Arrow, and of data sets on the hub.

Each format is read by one lazy function. `file_records` gives rows as `Record`s, `file_pieces` the
text of one column. A broken row (bad syntax, another number of cells than the header, no columns)
stands among the rows as a `BedstoneError`; `Reading.sound` alone counts rows and leaves those out.
Every other fault is raised, as a `BedstoneError` that names the file, the line or row, and the
column.
"""

import csv
import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from bedstone.data.bytes import (
    LARGEST_ROW,
    Piece,
    bad_utf8,
    blocks,
    careful,
    data_suffix,
    half_character,
    lines,
    open_bytes,
    read_text,
    short,
    start_of_text,
    too_large,
)
from bedstone.data.tables import Names, Row, hub_rows, table_rows
from bedstone.data.tar import tar_rows
from bedstone.errors import BedstoneError, closest

# A number as programs write it: no zeros before it, no plus, no spaces, ASCII digits.
_NUMBER = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
EXACT_DIGITS = 17  # of a fraction; a float keeps no more
MOST_BROKEN = 0.05  # the share of rows that may be broken, where nobody says
EARLY = 1000  # broken rows, where they are most, after which the rest isn't read
REPORTED, CUT = 5, 240  # broken rows that a message names; letters of all but the first
LARGEST_ARRAY = 1 << 30  # bytes of a JSON array, which is held whole
MOST_COLUMNS = 100_000  # of a CSV file
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

log = logging.getLogger("bedstone.data")  # without a handler, Python writes it to stderr
T = TypeVar("T")
Read = Row | BedstoneError  # a row, or what is wrong with a broken one

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".tar")  # of rows; else text


@dataclass(frozen=True)
class Record:
    """A row as a file has it.

    Attributes:
        place: where it is from, for messages: the file, and the line or row.
        values: {column: value}.
        folder: what a file's path in it is relative to.
        inside: whether such a path must stay in the folder.
    """

    place: str
    values: dict[str, Any]
    folder: Path = Path()
    inside: bool = False


@dataclass
class Faults:
    """Broken rows, which are left out.

    Attributes:
        name: of the data, for messages.
        most: the share of rows that may be broken.
        rows: how many were read.
        broken: what is wrong with each broken one.
        option: the recipe's field that sets `most`, for messages; empty where there is none, as
            in commands.
    """

    name: str
    most: float
    rows: int = 0
    broken: list[str] = field(default_factory=list)
    option: str = "data.most_broken"

    def add(self, error: BedstoneError | str) -> None:
        """Counts a broken row that is among `rows`."""
        self.broken.append(str(error))

    def copy(self) -> "Faults":
        """The same faults, to which others can be added; the share stays that of all rows read."""
        return replace(self, broken=list(self.broken))

    def check(self, *, first: bool = False) -> None:
        """Raises BedstoneError where more than the share `most` of the rows is broken.

        Args:
            first: whether `rows` are only the first of the data, for the message.
        """
        if len(self.broken) <= self.most * self.rows:
            return
        if len(self.broken) == 1 and not self.option and not self.most:
            raise BedstoneError(self.broken[0])
        those = "the first " if first else ""
        count = f"{len(self.broken):,} of {those}{self.rows:,} rows are broken"
        limit = f", more than {100 * self.most:g}% of them" if self.most else ""
        advice = ""
        if self.option:
            limit = f", more than {self.option} = {self.most:g} of them"
            advice = f", or raise {self.option}"
        raise BedstoneError(
            f"data {self.name!r}: {count}{limit}: {self.summary()} Mend or remove them{advice}."
        )

    def left_out(self, before: str = "") -> str:
        """How many rows are left out and the first of them, after `before`; or nothing."""
        count = f"{before}{len(self.broken):,} rows left out: "
        return count + self.summary() if self.broken else ""

    def warn(self) -> None:
        """Reports on stderr what is left out."""
        if self.broken:
            log.warning("%s: %s", self.name, self.left_out())

    def summary(self) -> str:
        """The first broken rows, and how many more there are."""
        more = len(self.broken) - REPORTED
        whole, *rest = [each.rstrip(".") for each in self.broken[:REPORTED]]
        rest = [
            each.partition(". ")[0] for each in rest
        ]  # without the advice, which is the first's
        rest = [each if len(each) <= CUT else each[: CUT - 3] + "..." for each in rest]
        first = "; ".join([whole, *rest])
        return first + (f"; and {more:,} more." if more > 0 else ".")


@dataclass
class Reading:
    """How the rows of a source are read, and what was found beside them.

    Attributes:
        faults: counts broken rows; None raises the first.
        numbers: columns of a CSV whose cells are numbers, where all of a column's are.
        names: what the numbers of a column stand for, where the data says it.
        notes: sentences on how files were understood, such as the separator of a CSV.
        doubts: sentences on what may have been misunderstood.
    """

    faults: Faults | None = None
    numbers: Sequence[str] = ()
    names: Names = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def sound(self, rows: Iterable[T | BedstoneError]) -> Iterator[T]:
        """The rows that aren't broken; all are counted as they are read.

        Raises:
            BedstoneError: one is broken and none are counted, or most of the first are.
        """
        faults = self.faults
        for row in rows:
            if faults is not None:
                faults.rows += 1
            if not isinstance(row, BedstoneError):
                yield row
            elif faults is None:
                raise row
            else:
                faults.add(row)
                if len(faults.broken) >= EARLY and 2 * len(faults.broken) > faults.rows:
                    faults.check(first=True)  # such as a column that no row has

    def note(self, text: str) -> None:
        """Keeps a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def doubt(self, text: str) -> None:
        """Keeps a doubt, once."""
        if text not in self.doubts:
            self.doubts.append(text)


# Rows of JSON. A row may be of any type; what needs columns checks it.


def json_rows(path: Path) -> Iterator[Read]:
    """The rows of a file with one JSON value a line.

    A `.json` file may also be one array of objects; it is then held whole in memory.
    """
    with open_bytes(path) as file:
        first, _ = start_of_text(path, careful(path, lambda: file.read(64)))
    if first.lstrip().startswith(b"["):
        yield from _read_array(path)
        return
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            yield BedstoneError(
                f"{path}: line {number:,} is not valid JSON ({short(error)}); expected one "
                "object a line. Mend or remove that line."
            )
            continue
        yield f"line {number:,}", row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError where a key stands twice: one value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _read_array(path: Path) -> Iterator[Row]:
    held, size = [], 0
    for block in blocks(path):
        size += len(block)
        if size > LARGEST_ARRAY:
            raise BedstoneError(
                f"{path}: is a JSON array of more than {LARGEST_ARRAY >> 20:,} MiB, which would be "
                "held whole. Write it as JSONL, one object a line."
            )
        held.append(block)
    data = b"".join(held)
    try:
        rows = json.loads(start_of_text(path, data)[0].decode(), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise bad_utf8(path, error.start) from error
    except (ValueError, RecursionError) as error:
        raise BedstoneError(
            f"{path}: is not valid JSON ({short(error)}); expected an array of objects, or one "
            "object a line. Mend or write it again."
        ) from error
    del data, held
    for number, row in enumerate(rows, 1):
        yield f"row {number:,}", row


# Rows of CSV and TSV.


def csv_rows(path: Path, reading: Reading | None = None) -> Iterator[Read]:
    """The rows under the header; an empty cell is None, as in other formats, others are strings.

    The cells of `reading.numbers` are numbers, where all of a column's are.
    """
    reading = reading or Reading()
    rows = _csv(path, reading)
    next(rows, None)
    known: dict[str, dict[Any, int | float]] = {}
    if reading.numbers:
        held = list(rows)
        sound = [each[1] for each in held if not isinstance(each, BedstoneError)]
        known = cell_numbers(sound, reading.numbers)
        rows = iter(held)
    for each in rows:
        if isinstance(each, BedstoneError):
            yield each
            continue
        place, row = each
        yield place, {key: known.get(key, {}).get(cell, cell or None) for key, cell in row.items()}


def cell_numbers(
    rows: Sequence[dict[str, Any]], columns: Sequence[str]
) -> dict[str, dict[Any, int | float]]:
    """{column: {cell: number}} of those of the columns whose cells are all numbers.

    A column is of numbers only where each cell can be written back from its number: `007` and
    `+1` are names, and so is a fraction or a large number that a float would round.
    """
    found: dict[str, dict[Any, int | float]] = {}
    for column in columns:
        cells = {row.get(column) for row in rows} - {"", None}
        numbers = {cell: number for cell in cells if (number := number_of(cell)) is not None}
        if not cells or len(numbers) < len(cells):
            continue
        if any(type(each) is float for each in numbers.values()):
            if any(abs(each) >= 2**53 for each in numbers.values()):
                continue
            numbers = {cell: float(each) for cell, each in numbers.items()}
        found[column] = numbers
    return found


def number_of(cell: Any) -> int | float | None:
    """The number that a cell of a CSV says; None where it is a text, such as `007` or `+1`."""
    if not isinstance(cell, str) or len(cell) > 40 or not _NUMBER.fullmatch(cell):
        return None
    if cell.removeprefix("-").isdigit():
        return int(cell) if cell != "-0" else None
    digits = re.sub(r"[eE].*|\D", "", cell).lstrip("0")
    value = float(cell)
    return value if math.isfinite(value) and len(digits) <= EXACT_DIGITS else None


def _csv(path: Path, reading: Reading) -> Iterator[Read]:
    """The header, with its names as keys, then the rows."""
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_ROW))
    texts, begun = lines(path), []
    for _, text in texts:
        begun.append(text)
        if text.strip():
            break
    else:
        return
    _check_cells(path, begun[-1])
    separator = _separator(path, begun[-1], reading)
    rows = csv.reader(_again(begun, texts), strict=True, delimiter=separator)
    names: list[str] | None = None
    while True:
        begins = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            if "field limit" in str(error):
                raise too_large(path, f"the row ending in line {rows.line_num:,}") from error
            if "unexpected end" in str(error):
                raise BedstoneError(
                    f"{path}: a quote that opens in the row of line {begins:,} is never closed, so "
                    "all lines behind it would be one cell; it is not valid CSV. Close it."
                ) from error
            fault = str(error)
            if fault.startswith("new-line character"):
                fault = "a carriage return stands outside quotes; lines end with LF or CRLF"
            last = rows.line_num
            where = f"line {last:,} is" if begins >= last else f"lines {begins:,} to {last:,} are"
            message = f"{path}: {where} not valid CSV ({fault})."
            if names is None:
                raise BedstoneError(f"{message} Mend the header.") from error
            yield BedstoneError(f"{message} Mend or remove that row.")
            continue
        if row is None:
            return
        place = f"the row ending in line {rows.line_num:,}"
        if names is None:
            if not any(cell.strip() for cell in row):
                continue
            names = _header(path, row)
            yield place, dict.fromkeys(names, "")
        elif row and any(row):  # spreadsheets write rows of separators below the last one
            if len(row) != len(names):
                yield BedstoneError(
                    f"{path}: {place} has {len(row)} fields; expected {len(names)}, as in the "
                    "header. Mend or remove that row."
                )
                continue
            if row == names and len(names) > 1:  # files that were put one behind the other
                yield BedstoneError(f"{path}: {place} is the header again. Remove that row.")
                continue
            yield place, dict(zip(names, row, strict=True))


def _again(begun: Sequence[str], rest: Iterator[tuple[int, str]]) -> Iterator[str]:
    yield from begun
    for _, text in rest:
        yield text


def _check_cells(path: Path, header: str) -> None:
    """Raises BedstoneError where the first line is JSON's or a web page's."""
    start = header.lstrip()[:20].lower()
    kind = ""
    if start.startswith(('{"', "[{")) or start.strip() == "[":
        kind = "JSON; give its name the ending .jsonl, or .json of an array"
    if start.startswith(("<!doctype", "<html", "<?xml")):
        kind = "a web page; download the file itself"
    if kind:
        raise BedstoneError(f"{path}: its first line, the header, is not of cells: it is {kind}.")


def _separator(path: Path, header: str, reading: Reading) -> str:
    """What separates cells: what parts the header into most names, else what the ending says."""
    usual = "\t" if data_suffix(path) == ".tsv" else ","
    counts = {}
    for mark in (usual, *(other for other in SEPARATORS if other != usual)):
        try:
            counts[mark] = len(next(csv.reader([header], delimiter=mark), []))
        except csv.Error:
            counts[mark] = 0
    best = max(counts, key=lambda mark: counts[mark])
    if best != usual:
        reading.note(f"{path}: cells are separated by {SEPARATORS[best]}")
    return best


def _header(path: Path, names: list[str]) -> list[str]:
    """The names of a header.

    Raises:
        BedstoneError: two columns have one name, so a row could keep only one of their cells.
    """
    if len(names) > MOST_COLUMNS:
        raise BedstoneError(
            f"{path}: the header has {len(names):,} names; expected at most {MOST_COLUMNS:,}. "
            "Leave out the columns that are not needed."
        )
    seen: set[str] = set()
    for number, name in enumerate(names, 1):
        if name in seen:
            raise BedstoneError(
                f"{path}: the header names {name!r} twice (columns {names.index(name) + 1} and "
                f"{number}). Rename one of them."
            )
        seen.add(name)
    return names


# Rows of any file.


def file_rows(path: Path, reading: Reading | None = None) -> Iterator[Read] | None:
    """The rows of a file by the format that its name says; None where it is text."""
    suffix = data_suffix(path)
    if suffix in (".json", ".jsonl"):
        return json_rows(path)
    if suffix in (".csv", ".tsv"):
        return csv_rows(path, reading)
    if suffix in (".parquet", ".arrow"):
        return table_rows(path, None if reading is None else reading.names)
    if suffix == ".tar":
        return tar_rows(path)
    return None


def records(
    name: str | Path,
    rows: Iterable[Read],
    folder: Path = Path(),
    *,
    inside: bool = False,
) -> Iterator[Record | BedstoneError]:
    """Rows as records, their places named after `name`; a row without columns is broken."""
    for each in rows:
        if isinstance(each, BedstoneError):
            yield each
            continue
        place, row = each
        if not isinstance(row, dict):
            yield BedstoneError(
                f"{name}: {place} is of type {type(row).__name__}; expected an object with "
                "named columns. Mend or remove that row."
            )
            continue
        if not row:
            yield BedstoneError(f"{name}: {place} has no columns. Mend or remove that row.")
            continue
        yield Record(f"{name}: {place}", row, folder, inside)


# Text in one column of rows.


def file_pieces(path: Path, column: str, reading: Reading | None = None) -> Iterator[Piece]:
    """The text of a file: one document, or of rows a document each, the string in `column`."""
    reading = reading or Reading()
    if data_suffix(path) in (".csv", ".tsv"):
        return _csv_pieces(path, column, reading)
    rows = file_rows(path, reading)
    return read_text(path) if rows is None else reading.sound(_pieces(rows, column, path))


def hub_pieces(
    name: str, split: str, column: str, reading: Reading | None = None
) -> Iterator[Piece]:
    """The text of a data set on the hub: a document a row, the string in `column`."""
    return (reading or Reading()).sound(_pieces(hub_rows(name, split), column, name))


def _csv_pieces(path: Path, column: str, reading: Reading) -> Iterator[Piece]:
    rows = _csv(path, reading)
    for header in rows:
        assert not isinstance(header, BedstoneError)
        _check_column(header[1], column, path, "the header")
        yield from reading.sound(_pieces(rows, column, path))


def _pieces(rows: Iterable[Read], column: str, name: str | Path) -> Iterator[Piece | BedstoneError]:
    for each in rows:
        if isinstance(each, BedstoneError):
            yield each
            continue
        place, row = each
        try:
            text = _cell(row, column, name, place)
        except BedstoneError as error:
            yield error
            continue
        if len(text) > LARGEST_ROW:
            raise too_large(Path(name), place)
        yield Piece(text)


def _cell(row: Any, column: str, name: str | Path, place: str) -> str:
    if not isinstance(row, dict):
        raise BedstoneError(
            f"{name}: {place} is of type {type(row).__name__}; expected an object with the column "
            f"{column!r}. Mend or remove that row."
        )
    _check_column(row, column, name, place)
    text = row[column]
    if not isinstance(text, str):
        raise BedstoneError(
            f"{name}: column {column!r} in {place} holds {short(repr(text))} of type "
            f"{type(text).__name__}; expected a string. Remove that row, or name another column by "
            "data.column (of pairs: data.columns.text) of a recipe or --column of a command."
        )
    if half := half_character(text):
        raise BedstoneError(
            f"{name}: column {column!r} in {place} holds {half}. Mend or remove that row."
        )
    return text


def _check_column(row: dict[str, Any], column: str, name: str | Path, place: str) -> None:
    if column in row:
        return
    have = ", ".join(repr(str(key)) for key in list(row)[:20]) or "none"
    raise BedstoneError(
        f"{name}: {place} has no column {column!r}{closest(column, list(map(str, row)))}. It "
        f"has the columns {have}. Name the one that holds the text: data.column of a recipe (of "
        "pairs and denoising data.columns.text), or --column of a command."
    )
