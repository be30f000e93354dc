"""Files of rows with a fault: cells that may be given another meaning, and files that one reader knows.

`cases` gives every fault in every format where it makes sense, with what is right: the values that
were written, or a refusal. Values are drawn by the fault's name and a number, so that a case is
always the same.
"""

import base64
import bz2
import csv
import datetime
import decimal
import gzip
import io
import json
import lzma
import random
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import ipc, parquet

Rows = list[dict[str, Any]]
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
HEIC = b"\0\0\0\x18ftypheic" + bytes(40)
WORDS = ["the cat sees", "a dog runs", "nobody came", "it is far too long", "go", "Zoë, said", "x"]


@dataclass(frozen=True)
class Case:
    """A file or folder of rows, and what is right of it.

    Attributes:
        kind: the fault.
        format: the ending, or the form, of the file.
        path: what is opened, of the files.
        files: {path: bytes}.
        rows: what was written; None: it must be refused.
        broken: how many rows are, which must be counted; no other row may be missing.
        free: whether a refusal is right too.
        place: a pattern that a refusal must have, beside the file's name.
        doubt: a pattern of a doubt that the labels must raise.
        readers: what reads it; () is everything that reads rows.
    """

    kind: str
    format: str
    path: str
    files: Mapping[str, bytes]
    rows: Rows | None
    broken: int = 0
    free: bool = False
    place: str = ""
    doubt: str = ""
    readers: tuple[str, ...] = ()


# Writers of rows, none of them the package's own.


def _csv(mark: str) -> Callable[[Rows], bytes]:
    def write(rows: Rows) -> bytes:
        lines = []
        for row in (dict(zip(rows[0], rows[0], strict=True)), *rows):
            file = io.StringIO()
            cells = ["" if cell is None else cell for cell in row.values()]
            csv.writer(file, delimiter=mark, lineterminator="\r\n").writerow(cells)
            lines.append(file.getvalue().removesuffix("\r\n") + "\n")
        return "".join(lines).encode()

    return write


def _lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=len(row) % 2 == 0) + "\n" for row in rows).encode()


def _array(rows: Rows) -> bytes:
    return json.dumps(rows, indent=1).encode()


def _table(rows: Rows) -> pa.Table:
    return pa.table({key: [row[key] for row in rows] for key in rows[0]})


def parquet_of(table: pa.Table) -> bytes:
    file = io.BytesIO()
    parquet.write_table(table, file, row_group_size=4)
    return file.getvalue()


def arrow_of(table: pa.Table, stream: bool = False) -> bytes:
    file = io.BytesIO()
    with (ipc.new_stream if stream else ipc.new_file)(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def _packed(write: Callable[[Rows], bytes]) -> Callable[[Rows], bytes]:
    return lambda rows: gzip.compress(write(rows), mtime=0)


CELLS: dict[str, Callable[[Rows], bytes]] = {  # formats whose cells are texts
    "a.csv": _csv(","),
    "a.tsv": _csv("\t"),
    "semicolons.csv": _csv(";"),
    "tabs.csv": _csv("\t"),
    "a.csv.gz": _packed(_csv(",")),
}
JSON: dict[str, Callable[[Rows], bytes]] = {
    "a.jsonl": _lines,
    "a.json": _array,
    "lines.json": _lines,
    "a.jsonl.gz": _packed(_lines),
}
TABLES: dict[str, Callable[[Rows], bytes]] = {
    "a.parquet": lambda rows: parquet_of(_table(rows)),
    "a.arrow": lambda rows: arrow_of(_table(rows)),
    "stream.arrow": lambda rows: arrow_of(_table(rows), stream=True),
}
TYPED = JSON | TABLES
ALL = CELLS | TYPED
PLAIN = {name: write for name, write in (CELLS | JSON).items() if not name.endswith(".gz")}
COMMAS = {"a.csv": CELLS["a.csv"]}


def seed(draw: random.Random, count: int = 9) -> Rows:
    """Sound rows; their texts and identifiers are different."""
    return [
        {
            "id": f"n{number}",
            "text": f"{draw.choice(WORDS)} {number}",
            "label": ("good", "bad")[number % 2],
            "image": "a.png",
        }
        for number in range(count)
    ]


# Kind 3: cells that may be given another meaning. Texts are parted by `|`; `{n}` is the row's number.

STRINGS: dict[str, tuple[str, str, str]] = {  # kind: column, cells, a pattern of a doubt
    "identifiers with zeros": ("id", "007|0|00|0010|-01", ""),
    "identifiers of 19 digits": ("id", "1234567890123456789|9007199254740993|12345678901234567890", ""),
    "identifiers of 60 digits": ("id", f"{'1' * 60}|{'2' * 60}.5", ""),
    "identifiers with a fraction": ("id", "1.50|1.5|01.5|1.|.5|0.12345678901234567890", ""),
    "identifiers with exponents": ("id", "1e5|1E5|2e-3|1e400|1e-400|12e34", ""),
    "identifiers in other bases": ("id", "0x1F|0b11|0o17|1_000|#12", ""),
    "identifiers that are dates": ("id", "2024-01-02|01/02/03|1-2|MAR1|SEPT2", ""),
    "identifiers that are times": ("id", "12:30|2024-01-02T03:04:05Z|1:2:3.5", ""),
    "identifiers that are amounts": ("id", "1,5|1.000,50|1,000|12%|$5|(3)", ""),
    "identifiers that are formulas": ("id", "=1+1|'007|+49 30|@x|-x", ""),
    "identifiers with control characters": ("id", "\x1b[31m|a\x0bb|a\x1cb|\u200eab|a\u2028b|a\x85b", ""),
    "identifiers with line breaks": ("id", 'a\nb|a\r\nb|a "q" b|a,b;c\td| a |"', ""),
    "identifiers of odd Unicode": ("id", "caf\u00e9|cafe\u0301|\u0663|\uff11|x\ufeffx|\u00a0|\U0001f469\u200d\U0001f4bb", ""),
    "identifiers that are NaN words": ("id", "nan|NaN|NA|N/A|null|None|inf|-inf|Infinity|#N/A|<NA>", ""),
    "identifiers that are truths": ("id", "true|True|FALSE|yes|no|on|off|y|t", ""),
    "identifiers that are JSON": ("id", '[1, 2]|{"a": 1}|[]|"a"|\\n|\\u0041', ""),
    "labels with zeros": ("label", "01|1|001", "written"),
    "labels of whole numbers": ("label", "0|1|2", ""),
    "labels with signs": ("label", "+1|1|2", "written"),
    "labels of fractions with zeros": ("label", "1.0|01.0|1", "written"),
    "labels with exponents": ("label", "1e3|1000|01", ""),
    "labels with underscores": ("label", "1_000|1000", "written"),
    "labels of Arabic digits": ("label", "\u0661|1|\uff11", "written"),
    "labels by case": ("label", "Good|good|GOOD", "written"),
    "labels by spaces": ("label", "very good|very  good|very good |very\u00a0good", "written"),
    "labels by invisible characters": ("label", "good|go\u200bod|\u200egood|good\ufeff", "written"),
    "labels by Unicode form": ("label", "caf\u00e9|cafe\u0301", "written"),
    "labels by hyphens": ("label", "co-op|co\u2010op|co\u2011op", "written"),
    "labels -1": ("label", "-1|0|1", "-1"),
    "labels -100": ("label", "-100|0|1", ""),
    "labels that are truths": ("label", "true|false|True", "written"),
    "labels yes and no": ("label", "yes|no|on|off", ""),
    "labels that are NaN words": ("label", "nan|NA|null|None|good", "where there is none"),
    "labels that are dates": ("label", "2024-01-02|2024-1-2|02.01.2024", ""),
    "labels with decimal commas": ("label", "1,5|2,5|3", "comma"),
    "labels of amounts": ("label", "1.50|1.5|2.00|-0.25|7", ""),
    "labels of fractions with exponents": ("label", "1e3|2.5|1E-3", ""),
    "labels of other bases": ("label", "0x1F|0b1|31", ""),
    "labels of large numbers": ("label", "9007199254740993|9007199254740992|1", ""),
    "labels of large numbers and fractions": ("label", "9007199254740993|9007199254740992|0.5", ""),
    "labels of long fractions": ("label", "0.12345678901234567890|0.12345678901234567891|0.5", ""),
    "labels of negative zero": ("label", "-0|0|1", "written"),
    "labels that are lists": ("label", "[0, 1]|[1, 0]|[1, 1]", ""),
    "labels with separators": ("label", 'a;b|a,b|a "b"|a\nb', ""),
    "labels empty": ("label", "good||bad", ""),
    "labels blank": ("label", "good|  |bad", ""),
    "texts empty": ("text", "|the cat {n}", ""),
    "texts blank": ("text", " |\u00a0|the cat {n}", ""),
    "texts that are numbers": ("text", "{n}|0{n}|{n}.0|1e{n}", ""),
    "texts that are NaN words": ("text", "nan {n}|NA|null|None|true", ""),
    "texts with spaces around": ("text", "  the cat {n}  |\tthe cat {n}\t", ""),
    "texts of odd Unicode": ("text", "cafe\u0301 {n}|\u202eabc {n}|\u0663 {n}|a\u2029b {n}", ""),
    "texts with separators": ("text", "a;b,c\td \"q\" {n}|'{n}'|\\{n}\\|#{n}", ""),
    "texts with line breaks": ("text", "one\ntwo {n}|one\r\ntwo {n}|one\rtwo {n}|\n{n}\n", ""),
}  # fmt: skip
DAY, NAN, FAR = datetime.date(2024, 1, 2), float("nan"), float("inf")
MOMENT = datetime.datetime(2024, 1, 2, 3, 4, 5, 678901)
VALUES: dict[str, tuple[str, Sequence[Any], Mapping[str, Any]]] = {  # kind: column, values, formats
    "multi-hot of whole numbers": ("label", [[0, 1, 1], [1, 0, 0], [0, 0, 0]], TYPED),
    "multi-hot of truths": ("label", [[True, False], [False, False]], TYPED),
    "multi-hot of fractions": ("label", [[0.0, 1.0], [1.0, 1.0]], TYPED),
    "lists of class numbers": ("label", [[0], [1], [2, 0]], TYPED),
    "lists of names": ("label", [["a", "b"], ["b"], []], TYPED),
    "lists with one name twice": ("label", [["a", "a"], ["b"]], TYPED),
    "lists with null": ("label", [["a", None], ["b"]], TYPED),
    "lists and names": ("label", [["a"], "a", ["b"]], JSON),
    "labels of truths": ("label", [True, False], TYPED),
    "labels of truths and numbers": ("label", [True, 0, 1, False], JSON),
    "labels of numbers and texts": ("label", [1, "1", 0, "0"], JSON),
    "labels of numbers and fractions": ("label", [1, 1.0, 0], JSON),
    "labels of fractions": ("label", [0.5, 1.0, 2.25], TYPED),
    "labels of whole fractions": ("label", [0.0, 1.0, 2.0], TYPED),
    "labels -1 of numbers": ("label", [-1, 0, 1], TYPED),
    "labels -100 of numbers": ("label", [-100, 0, 1], TYPED),
    "labels null": ("label", [None, "good", "bad"], TYPED),
    "labels of NaN": ("label", [NAN, 0.5, 1.5], TYPED),
    "labels infinite": ("label", [FAR, 0.5, 1.5], TYPED),
    "labels objects": ("label", [{"a": 1}, "a"], JSON),
    "labels of 19 digits": ("label", [1234567890123456789, 1234567890123456788], TYPED),
    "identifiers of large numbers": ("id", [10**18 + 1, 2**53 + 1, -(2**63)], TYPED),
    "identifiers beyond 64 bits": ("id", [10**30, -(10**25), 5], JSON),
    "identifiers of many types": ("id", [1, "1", 1.0, True, None, [1], {"a": 1}], JSON),
    "identifiers of fractions": ("id", [0.1 + 0.2, 1e300, -0.0, 5e-324], TYPED),
    "identifiers of NaN": ("id", [NAN, FAR, 1.5], TYPED),
    "identifiers that are huge": ("id", ["n" * (5 << 20), "m"], TYPED),
    "texts that are huge": ("text", ["the cat {n} " * 2_000, "m"], TYPED),
    "identifiers nested": ("id", [{"a": [{"b": None}]}, {"a": []}], TYPED),
    "identifiers of empty lists": ("id", [{}, []], JSON),
    "texts of many types": ("text", [1, None, ["the cat"], {"a": "b"}, True, "the cat {n}"], JSON),
    "texts of half characters": ("text", ["\ud800 {n}", "the cat {n}"], JSON),
    "texts of bytes": ("text", [b"the cat", b"\xff\xfe"], TABLES),
    "decimals": ("id", [decimal.Decimal("1.50"), decimal.Decimal("0.00")], TABLES),
    "decimals of 38 digits": ("id", [decimal.Decimal("1" * 38), decimal.Decimal(5)], TABLES),
    "labels of decimals": ("label", [decimal.Decimal("1.5"), decimal.Decimal("2.0")], TABLES),
    "dates": ("id", [DAY, None], TABLES),
    "labels of dates": ("label", [DAY, DAY + datetime.timedelta(1)], TABLES),
    "times": ("id", [datetime.time(1, 2, 3, 4), None], TABLES),
    "timestamps": ("id", [MOMENT, None], TABLES),
    "timestamps with a zone": ("id", [MOMENT.replace(tzinfo=datetime.UTC)], TABLES),
    "durations": ("id", [datetime.timedelta(days=1, microseconds=5), None], TABLES),
    "bytes": ("id", [b"\0\xff", b"", None], TABLES),
    "truths": ("id", [True, False, None], TYPED),
}  # fmt: skip


def _drawn(kind: str, column: str, values: Sequence[Any], name: str, number: int) -> Rows:
    """Sound rows with the values in a column, every one of them once at least."""
    draw = random.Random(f"{kind} {name} {number}")
    rows = seed(draw, len(values) + draw.randint(3, 6))
    chosen = [*values, *draw.choices(values, k=len(rows) - len(values))]
    draw.shuffle(chosen)
    for place, (row, value) in enumerate(zip(rows, chosen, strict=True)):
        row[column] = value.replace("{n}", str(place)) if isinstance(value, str) else value
    return rows


def other_meanings(number: int) -> Iterator[Case]:
    """Kind 3, cells of a file."""
    for kind, (column, cells, doubt) in STRINGS.items():
        for name, write in ALL.items():
            rows = _drawn(kind, column, cells.split("|"), name, number)
            yield Case(kind, name, name, _files({name: write(rows)}), rows, doubt=doubt)
    for kind, (column, values, formats) in VALUES.items():
        for name, write in formats.items():
            rows = _drawn(kind, column, values, name, number)
            yield Case(kind, name, name, _files({name: write(rows)}), rows)


def _files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """With the image that rows name, where the first file lies."""
    folder = next(iter(files)).rpartition("/")[0]
    return {**files, f"{folder}/a.png" if folder else "a.png": PNG}


# Kind 4: files that one reader knows and its twin doesn't.

USERS = ("samples", "pieces", "corpus", "labels", "predict")  # readers that need a text
Change = Callable[[bytes, random.Random], bytes]
BOM = "\ufeff".encode()


def _encoded(encoding: str, mark: bytes = b"") -> Change:
    return lambda data, _: mark + data.decode().encode(encoding)


def _at(edit: Callable[[bytes, random.Random], bytes], header: bool = False) -> Change:
    """Changes one line, of the header or of a row."""

    def change(data: bytes, draw: random.Random) -> bytes:
        lines = data.split(b"\n")
        for place in [0] if header else draw.sample(range(1, len(lines) - 1), len(lines) - 2):
            edited = edit(lines[place], draw)
            if edited != lines[place]:
                return b"\n".join([*lines[:place], edited, *lines[place + 1 :]])
        raise AssertionError("the change changes nothing")

    return change


def _each(edit: Callable[[bytes], bytes]) -> Change:
    """Changes every line."""
    return lambda data, _: b"".join(edit(line) + b"\n" for line in data.split(b"\n")[:-1])


def _put(inserted: bytes, at: int | None = None) -> Change:
    """A line of its own before a row; at the end of a file where `at` is -1."""

    def change(data: bytes, draw: random.Random) -> bytes:
        lines = data.split(b"\n")
        place = draw.randrange(1, len(lines) - 1) if at is None else at % len(lines)
        return b"\n".join([*lines[:place], inserted, *lines[place:]])

    return change


def _with(value: bytes) -> Change:
    return lambda data, _: value


TEXT = {name: CELLS[name] for name in ("a.csv", "a.tsv", "semicolons.csv", "a.csv.gz")}
LINES = {name: JSON[name] for name in ("a.jsonl", "lines.json", "a.jsonl.gz")}
ARRAY = {"a.json": JSON["a.json"]}
WRITTEN = TEXT | LINES | ARRAY
PLACE = r"line|row|byte|column|header"
# What is right: the same rows; a refusal; either; one broken row; the rows twice and one that is
# broken; or a refusal by all that needs a text or a label.
SAME, REFUSED, EITHER, BROKEN = "same", "refused", "either", "broken"
AGAIN, UNUSABLE = "again", "unusable"
Right = str | Callable[[Rows], Rows]


def _renamed(name: str) -> Callable[[Rows], Rows]:
    """Rows whose identifiers are under another name."""
    return lambda rows: [{name if k == "id" else k: v for k, v in row.items()} for row in rows]


BYTES: dict[str, tuple[Mapping[str, Any], Change, Right]] = {  # kind: formats, change, right
    "byte order mark": (WRITTEN, lambda data, _: BOM + data, SAME),
    "byte order mark twice": (WRITTEN, lambda data, _: BOM + BOM + data, SAME),
    "byte order mark of a second file": (TEXT | LINES, _at(lambda line, _: BOM + line), SAME),
    "UTF-16 little": (WRITTEN, _encoded("utf-16-le", b"\xff\xfe"), REFUSED),
    "UTF-16 big": (WRITTEN, _encoded("utf-16-be", b"\xfe\xff"), REFUSED),
    "UTF-16 little without a mark": (WRITTEN, _encoded("utf-16-le"), REFUSED),
    "UTF-16 big without a mark": (WRITTEN, _encoded("utf-16-be"), REFUSED),
    "UTF-32": (WRITTEN, _encoded("utf-32"), REFUSED),
    "UTF-32 big without a mark": (WRITTEN, _encoded("utf-32-be"), REFUSED),
    "UTF-7": (ARRAY, lambda data, _: data.replace(b'"text"', b"+ACI-text+ACI-"), REFUSED),
    "Latin-1": (WRITTEN, _at(lambda line, _: line.replace(b"n", b"\xe9", 1)), REFUSED),
    "overlong UTF-8": (WRITTEN, _at(lambda line, _: line.replace(b"n", b"\xc0\xae", 1)), REFUSED),
    "surrogates in UTF-8": (WRITTEN, _at(lambda line, _: line.replace(b"n", b"\xed\xa0\x80", 1)), REFUSED),
    "line ends CRLF": (WRITTEN, lambda data, _: data.replace(b"\n", b"\r\n"), SAME),
    "line ends CR": (WRITTEN, lambda data, _: data.replace(b"\n", b"\r"), EITHER),
    "line ends mixed": (WRITTEN, _at(lambda line, _: line + b"\r"), SAME),
    "line ends CR CRLF": (LINES | ARRAY, lambda data, _: data.replace(b"\n", b"\r\r\n"), SAME),
    "line ends CR CRLF of cells": (TEXT, lambda data, _: data.replace(b"\n", b"\r\r\n"), EITHER),
    "no end of the last line": (WRITTEN, lambda data, _: data.rstrip(b"\n"), SAME),
    "blank lines": (WRITTEN, _put(b""), SAME),
    "blank lines first": (WRITTEN, lambda data, _: b"\n\n" + data, SAME),
    "blank lines last": (WRITTEN, lambda data, _: data + b"\n\n\n", SAME),
    "lines of spaces": (LINES | ARRAY, _put(b"  \t "), SAME),
    "lines of spaces between cells": (TEXT, _put(b"   "), BROKEN),
    "rows of separators": (COMMAS, _put(b",,,"), SAME),
    "rows of empty quotes": (COMMAS, _put(b'"","","",""'), SAME),
    "end of file mark": (TEXT | LINES, lambda data, _: data + b"\x1a", BROKEN),
    "quote never closed": (TEXT, lambda data, _: data + b'"never,closed\n', REFUSED),
    "quote before a row": (TEXT, _at(lambda line, _: b'"' + line), EITHER),
    "carriage return in a cell": (TEXT, _at(lambda line, _: line.replace(b"n", b"n\r", 1)), BROKEN),
    "quote never closed in the header": (TEXT, _at(lambda line, _: b'"' + line, True), REFUSED),
    "quote closed early": (COMMAS, _at(lambda line, _: b'"a"b' + line), BROKEN),
    "quotes by backslash": (COMMAS, _at(lambda line, _: b'"a\\"b"' + line), BROKEN),
    "row too short": (TEXT, _at(lambda line, _: b"x"), BROKEN),
    "row too long": (COMMAS, _at(lambda line, _: line + b",x"), BROKEN),
    "separator behind every row": (COMMAS, _each(lambda line: line + b","), EITHER),
    "separator behind the rows alone": (COMMAS, lambda data, _: data.replace(b"\n", b",\n").replace(b",\n", b"\n", 1), REFUSED),
    "separator named in the first line": ({"semicolons.csv": CELLS["semicolons.csv"]}, lambda data, _: b"sep=;\n" + data, EITHER),
    "commas in .tsv": ({"a.tsv": CELLS["a.csv"]}, lambda data, _: data, SAME),
    "semicolons in .tsv": ({"a.tsv": CELLS["semicolons.csv"]}, lambda data, _: data, SAME),
    "bars": ({"a.csv": _csv("|")}, lambda data, _: data, SAME),
    "comment first": (COMMAS, lambda data, _: b"# from a table\n" + data, EITHER),
    "no header": (COMMAS, lambda data, _: data.partition(b"\n")[2], UNUSABLE),
    "header again": (TEXT, lambda data, _: data + data.partition(b"\n")[0] + b"\n", BROKEN),
    "header of a second file": (TEXT, lambda data, _: data + BOM + data, AGAIN),
    "header with a name twice": (TEXT, _at(lambda line, _: line.replace(b"id", b"text"), True), REFUSED),
    "header with a name empty": (TEXT, _at(lambda line, _: line.replace(b"id", b""), True), _renamed("")),
    "header with spaces": (COMMAS, _at(lambda line, _: line.replace(b",", b", "), True), UNUSABLE),
    "header by case": (COMMAS, _at(lambda line, _: line.replace(b"id", b"Text"), True), _renamed("Text")),
    "header alone": (TEXT, lambda data, _: data.partition(b"\n")[0] + b"\n", REFUSED),
    "header of quotes": (COMMAS, _at(lambda line, _: b'"' + line.replace(b",", b'","') + b'"', True), SAME),
    "NUL bytes": (WRITTEN, _at(lambda line, _: line.replace(b"n", b"n\0", 1)), REFUSED),
    "NUL bytes last": (WRITTEN, lambda data, _: data + bytes(64), REFUSED),
    "many columns": (COMMAS, lambda data, _: b"x" + b",x" * 150_000 + b"\n" + data, REFUSED),
    "many cells": (COMMAS, _at(lambda line, _: line + b",x" * 300_000), BROKEN),
    "empty file": (WRITTEN, _with(b""), REFUSED),
    "byte order mark alone": (WRITTEN, _with(BOM), REFUSED),
    "line ends alone": (WRITTEN, _with(b"\n\n\n"), REFUSED),
    "spaces alone": (WRITTEN, _with(b"   "), REFUSED),
    "bzip2": (WRITTEN, lambda data, _: bz2.compress(data), REFUSED),
    "xz": (WRITTEN, lambda data, _: lzma.compress(data), REFUSED),
    "gzip without its ending": (WRITTEN, lambda data, _: gzip.compress(data), REFUSED),
    "zip": (WRITTEN, lambda data, _: zipped(data), REFUSED),
    "Parquet of another ending": (WRITTEN, _with(parquet_of(pa.table({"text": ["a"]}))), REFUSED),
    "Arrow of another ending": (WRITTEN, _with(arrow_of(pa.table({"text": ["a"]}))), REFUSED),
    "a web page": (WRITTEN, _with(b"<!DOCTYPE html>\n<html><body>404</body></html>\n"), REFUSED),
    "a pointer of Git LFS": (WRITTEN, _with(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n"), REFUSED),
    "cells of JSON's ending": ({**LINES, **ARRAY}, lambda data, draw: CELLS["a.csv"](seed(draw)), REFUSED),
    "lines of CSV's ending": (TEXT, lambda data, draw: _lines(seed(draw)), REFUSED),
    "array of CSV's ending": (TEXT, lambda data, draw: _array(seed(draw)), REFUSED),
    "JSON with a key twice": (LINES, _at(lambda line, _: line.replace(b'"id"', b'"text"')), BROKEN),
    "JSON array with a key twice": (ARRAY, lambda data, _: data.replace(b'"id"', b'"text"', 1), REFUSED),
    "JSON with a key by case": (LINES, _each(lambda line: line.replace(b'"id"', b'"Text"')), _renamed("Text")),
    "JSON cut": (LINES, _at(lambda line, draw: line[: draw.randrange(1, len(line))]), BROKEN),
    "JSON array cut": (ARRAY, lambda data, draw: data[: draw.randrange(2, len(data) - 1)], REFUSED),
    "JSON with a comma at the end": (LINES, _each(lambda line: line + b","), REFUSED),
    "JSON array with a comma at the end": (ARRAY, lambda data, _: data[:-1].rstrip() + b",]", REFUSED),
    "JSON array and more": (ARRAY, lambda data, _: data + data, REFUSED),
    "JSON array and words": (ARRAY, lambda data, _: data + b"\nend\n", REFUSED),
    "JSON array behind spaces": (ARRAY, lambda data, _: b" \n" * 200 + data, EITHER),
    "JSON array of CR lines": (ARRAY, lambda data, _: data.replace(b"\n", b"\r"), SAME),
    "JSON in single quotes": (LINES, _at(lambda line, _: line.replace(b'"', b"'")), BROKEN),
    "JSON with a comment": (LINES, _put(b"// a comment"), BROKEN),
    "JSON objects on one line": (LINES, lambda data, _: data.replace(b"\n", b""), REFUSED),
    "JSON object over lines": (LINES, _with(b'{\n"text": "a",\n"label": "b"\n}\n'), REFUSED),
    "JSON object of rows": (LINES | ARRAY, lambda data, draw: b'{"data": ' + _array(seed(draw)).replace(b"\n", b"") + b"}\n", UNUSABLE),
    "JSON object of columns": (ARRAY, _with(b'{"text": ["a", "b"], "label": ["x", "y"]}'), UNUSABLE),
    "JSON lists for rows": (LINES, _with(b'["text", "label"]\n["a", "b"]\n'), REFUSED),
    "JSON array of lists": (ARRAY, _with(b'[["text", "label"], ["a", "b"]]'), REFUSED),
    "JSON row that is null": (LINES, _put(b"null"), BROKEN),
    "JSON row that is a text": (LINES, _put(b'"the cat"'), BROKEN),
    "JSON row that is a number": (LINES, _put(b"1e400"), BROKEN),
    "JSON row that is empty": (LINES, _put(b"{}"), BROKEN),
    "JSON array with a null": (ARRAY, lambda data, _: data.replace(b"[", b"[null,", 1), BROKEN),
    "JSON array with a number": (ARRAY, lambda data, _: data.replace(b"[", b"[1,", 1), BROKEN),
    "JSON array empty": (LINES | ARRAY, _with(b"[]"), REFUSED),
    "JSON object empty": (LINES | ARRAY, _with(b"{}"), REFUSED),
    "JSON deep": (LINES, _at(lambda line, _: b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), BROKEN),
    "JSON array deep": (ARRAY, _with(b"[" * 100_000 + b"]" * 100_000), REFUSED),
    "JSON of long numbers": (LINES, _at(lambda line, _: b'{"id": ' + b"1" * 5000 + b"}"), BROKEN),
    "JSON with bad escapes": (LINES, _at(lambda line, _: line.replace(b"n", b"\\x", 1)), BROKEN),
    "JSON with tabs in texts": (LINES, _at(lambda line, _: line.replace(b" ", b"\t\tx", 9)), EITHER),
    "JSON with record separators": (LINES, _each(lambda line: b"\x1e" + line), REFUSED),
}  # fmt: skip


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("rows.csv", data)
    return file.getvalue()


def odd_files(number: int) -> Iterator[Case]:
    """Kind 4, bytes of a file."""
    for kind, (formats, change, right) in BYTES.items():
        for name, write in formats.items():
            draw = random.Random(f"{kind} {name} {number}")
            rows = seed(draw, draw.randint(6, 12))
            data = write(rows)
            packed = name.endswith(".gz")
            data = change(gzip.decompress(data) if packed else data, draw)
            data = gzip.compress(data, mtime=0) if packed else data
            broken = 1 if right in (BROKEN, AGAIN) else 0
            known = right(rows) if callable(right) else 2 * rows if right == AGAIN else rows
            yield Case(
                kind,
                name,
                name,
                _files({name: data}),
                None if right in (REFUSED, UNUSABLE) else known,
                broken,
                free=right in (EITHER, BROKEN, AGAIN),
                place=PLACE if broken else "",
                readers=USERS if right == UNUSABLE else (),
            )


# Kind 4: files whose content isn't what their name says, and columns of odd types.


def _columns(**columns: Any) -> pa.Table:
    """A table of sound rows with other columns."""
    rows = seed(random.Random(0), len(next(iter(columns.values()))))
    known = {name: pa.array([row[name] for row in rows]) for name in rows[0]}
    return pa.table({**known, **columns})


def _tables() -> dict[str, pa.Table]:
    words = ["good", "bad", "good", None]
    moments = pa.array([1704164645678901234, None, 0, -1], pa.timestamp("ns"))
    return {
        "dictionary of texts": _columns(label=pa.array(words).dictionary_encode()),
        "dictionary of numbers": _columns(id=pa.array([7, 7, 8, None]).dictionary_encode()),
        "timestamps of nanoseconds": _columns(id=moments),
        "timestamps beyond Python": _columns(id=pa.array([2**45, 0, 1, 2], pa.timestamp("s"))),
        "half floats": _columns(id=pa.array([0.5, 1.5, None, 65504.0], pa.float16())),
        "unsigned numbers": _columns(id=pa.array([2**64 - 1, 0, None, 1], pa.uint64())),
        "large texts": _columns(text=pa.array(["a", "b", "c", "d"], pa.large_string())),
        "views of texts": _columns(text=pa.array(["a", "b", "c", "d"], pa.string_view())),
        "maps": _columns(id=pa.array([[("a", 1)], [], None, [("b", 2)]], pa.map_(pa.string(), pa.int64()))),
        "structs": _columns(id=pa.array([{"a": {"b": 1}}, None, {"a": None}, {"a": {"b": 2}}])),
        "fixed lists": _columns(label=pa.array([[0, 1], [1, 0], [1, 1], [0, 0]], pa.list_(pa.int8(), 2))),
        "nothing": _columns(id=pa.nulls(4)),
        "unique identifiers": _columns(id=pa.array([bytes(16)] * 4, pa.uuid())),
        "no rows": _columns(id=pa.array(["a"] * 4))[:0],
        "no columns": pa.table({}),
        "a column twice": pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"]),
        "names that are empty": _columns(**{"": pa.array([1, 2, 3, 4])}),
        "images in structs": _columns(image=pa.array([{"bytes": PNG, "path": None}] * 4)),
    }  # fmt: skip


def odd_tables(number: int) -> Iterator[Case]:
    """Kind 4, columns of tables; files under another name."""
    refused = ("no rows", "no columns", "a column twice")
    for kind, table in _tables().items():
        stored = {"a.arrow": arrow_of(table), "stream.arrow": arrow_of(table, stream=True)}
        if kind != "unique identifiers":
            stored["a.parquet"] = parquet_of(table)
        for name, data in stored.items() if not number else ():
            odd = "timestamps" in kind or kind == "maps"
            rows = None if kind in refused or kind == "timestamps beyond Python" else table.to_pylist()
            yield Case(kind, name, name, _files({name: data}), rows, free=odd)
    draw = random.Random(f"tables {number}")
    rows = seed(draw, draw.randint(6, 12))
    cells, lines, table = CELLS["a.csv"](rows), _lines(rows), TABLES["a.parquet"](rows)
    packed, arrow = gzip.compress(cells, mtime=0), TABLES["a.arrow"](rows)
    middle = draw.randrange(8, len(packed) - 8)
    flipped = bytearray(table)
    flipped[draw.randrange(4, len(table) - 8)] ^= 1 << draw.randrange(8)
    for kind, name, data, known in (
        ("plain cells packed by name", "a.csv.gz", cells, None),
        ("plain lines packed by name", "a.jsonl.gz", lines, None),
        ("gzip cut", "a.csv.gz", packed[:middle], None),
        ("gzip without its sum", "a.csv.gz", packed[:-8], None),
        ("gzip with another sum", "a.csv.gz", packed[:-8] + bytes(8), None),
        ("gzip and more", "a.csv.gz", packed + b"more", rows),
        ("gzip and zeros", "a.csv.gz", packed + bytes(512), rows),
        ("gzip in two members", "a.csv.gz", _members(cells), rows),
        ("gzip in capitals", "a.csv.GZ", packed, rows),
        ("gzip twice", "a.csv.gz", gzip.compress(packed, mtime=0), None),
        ("endings in capitals", "a.CSV", cells, rows),
        ("endings in capitals", "a.JSONL", lines, rows),
        ("endings in capitals", "a.PARQUET", table, rows),
        ("cells of a table's ending", "a.parquet", cells, None),
        ("cells of a table's ending", "a.arrow", cells, None),
        ("lines of a table's ending", "a.parquet", lines, None),
        ("Arrow of Parquet's ending", "a.parquet", arrow, None),
        ("Parquet of Arrow's ending", "a.arrow", table, None),
        ("table cut", "a.parquet", table[: draw.randrange(4, len(table) - 1)], None),
        ("table cut", "a.arrow", arrow[: draw.randrange(9, len(arrow) - 12)], None),
        ("table empty", "a.parquet", b"", None),
        ("table empty", "a.arrow", b"", None),
        ("table packed", "a.parquet.gz", gzip.compress(table, mtime=0), None),
        ("table and more", "a.parquet", table + b"more", None),
        ("table of nothing", "a.parquet", bytes(4096), None),
        ("table in a mark", "a.parquet", BOM + table, None),
    ):
        yield Case(kind, name, name, _files({name: data}), known, free=known is not None
                   and kind.startswith("gzip"))  # fmt: skip


def _members(data: bytes) -> bytes:
    half = len(data) // 2
    return gzip.compress(data[:half], mtime=0) + gzip.compress(data[half:], mtime=0)


# Folders of images, with metadata or by class, and of texts by class.

IMAGES, TEXTS = ("samples", "images", "index", "predict images"), ("rows", "labels")
IMAGE_TABLES = ("samples", "images", "predict images")


def _described(draw: random.Random) -> Rows:
    names = ["a.png", "b b.png", "caf\u00e9.png", "d/e.png", "#1%20.png", "f.PNG"]
    return [{"file_name": name, "text": f"{draw.choice(WORDS)} {place}", "id": f"0{place}"}
            for place, name in enumerate(draw.sample(names, 5))]  # fmt: skip


METADATA: dict[str, Callable[[Rows], bytes]] = {
    "metadata.csv": CELLS["a.csv"],
    "metadata.jsonl": _lines,
    "metadata.parquet": TABLES["a.parquet"],
}


def folders(number: int) -> Iterator[Case]:
    """Kinds 3 and 4: folders of images and of texts."""
    for name, write in METADATA.items():
        draw = random.Random(f"{name} {number}")
        rows = _described(draw)
        data, binary = write(rows), name.endswith(".parquet")
        images = {row["file_name"]: PNG for row in rows}
        semicolons, tabs = CELLS["semicolons.csv"](rows), CELLS["a.tsv"](rows)
        cells = name.endswith(".csv")
        changes: dict[str, tuple[bytes, Rows | None]] = {
            "metadata": (data, rows),
            "metadata empty": (b"", None),
            **({} if binary else {
                "metadata with a byte order mark": (BOM + data, rows),
                "metadata of UTF-16": (data.decode().encode("utf-16"), None),
                "metadata of UTF-16 big": (data.decode().encode("utf-16-be"), None),
                "metadata with CRLF": (data.replace(b"\n", b"\r\n"), rows),
                "metadata packed": (gzip.compress(data), None),
                "metadata of xz": (lzma.compress(data), None),
                "metadata with NUL": (data + bytes(4), None),
            }),
            **({"metadata with semicolons": (semicolons, rows),
                "metadata with tabs": (tabs, rows)} if cells else {}),
        }  # fmt: skip
        for kind, (changed, known) in changes.items():
            for home in ("", "sub/", "sub/deeper/"):
                files = {f"data/{home}{file}": each for file, each in images.items()}
                files[f"data/{home}{name}"] = changed
                place = [{**row, "file_name": row["file_name"]} for row in rows]
                yield Case(f"{kind}", f"{home}{name}", "data", files,
                           None if known is None else place, readers=IMAGES)  # fmt: skip
        gone = {f"data/{file}": each for file, each in list(images.items())[1:]}
        missing = {**gone, f"data/{name}": data}
        yield Case("metadata of an image that is gone", name, "data", missing, rows, 1, True,
                   readers=("samples",))  # fmt: skip
        twice = {f"data/{file}": each for file, each in images.items()}
        yield Case("metadata that leads out", name, "data", {
            "a.png": PNG, **twice, f"data/{name}": write([{**rows[0], "file_name": "../a.png"}, *rows]),
        }, rows, 1, True, readers=("samples",))  # fmt: skip
    yield from _classes(number)


CLASSES = {  # kind: folders of a file, and the class of each
    "classes of folders": {"cat": "cat", "dog": "dog"},
    "classes of nested folders": {"cat/2019": "cat", "cat/2020": "cat", "dog/2019": "dog"},
    "classes with zeros": {"01": "01", "1": "1", "001": "001"},
    "classes by case": {"Cat": "Cat", "cat": "cat", "dog": "dog"},
    "classes by spaces": {"big cat": "big cat", "big  cat": "big  cat", "dog": "dog"},
    "classes by Unicode form": {"caf\u00e9": "caf\u00e9", "cafe\u0301": "cafe\u0301"},
    "classes of numbers": {"-1": "-1", "0": "0", "1": "1"},
    "classes of NaN words": {"nan": "nan", "null": "null", "None": "None"},
    "classes of truths": {"true": "true", "True": "True", "false": "false"},
    "classes below one folder": {"all/cat": "cat", "all/dog": "dog"},
}
DOUBTFUL = {"classes with zeros", "classes by case", "classes by spaces", "classes by Unicode form",
            "classes of truths"}  # fmt: skip


def _classes(number: int) -> Iterator[Case]:
    for kind, homes in CLASSES.items():
        doubt = "written" if kind in DOUBTFUL else "-1" if kind == "classes of numbers" else ""
        doubt = "nested" if "nested" in kind else doubt
        doubt = "where there is none" if "NaN" in kind else doubt
        count = 3 + number
        rows = [{"file_name": f"{home}/{each}.png", "label": label}
                for home, label in sorted(homes.items()) for each in range(count)]  # fmt: skip
        files = {f"data/{row['file_name']}": PNG for row in rows}
        yield Case(kind, "images", "data", files, rows, doubt=doubt, readers=IMAGE_TABLES)
        unread = {**files, f"data/{next(iter(homes))}/z.HEIC": HEIC}
        yield Case(f"{kind} and HEIC", "images", "data", unread, rows, 1, doubt=doubt,
                   readers=IMAGE_TABLES)  # fmt: skip
        for ending, write in {"txt": str.encode, "md": lambda text: BOM + text.encode()}.items():
            texts = [{"text": f"the cat {home} {each}\r\nand", "label": label}
                     for home, label in sorted(homes.items()) for each in range(count)]  # fmt: skip
            names = [f"data/{home}/{each}.{ending}" for home in sorted(homes) for each in range(count)]
            held = {name: write(row["text"]) for name, row in zip(names, texts, strict=True)}
            yield Case(f"{kind} of texts", ending, "data", held, texts, doubt=doubt, readers=TEXTS)
            for fault, data in {
                "UTF-16": "abc".encode("utf-16"),
                "NUL": b"a\0b",
                "xz": lzma.compress(b"a"),
                "Latin-1": b"caf\xe9",
            }.items():
                odd = {**held, f"data/{next(iter(homes))}/z.{ending}": data}
                yield Case(f"{kind}, one text of {fault}", ending, "data", odd, texts, 1, True,
                           doubt=doubt, readers=TEXTS)  # fmt: skip


def cases(number: int) -> Iterator[Case]:
    """All cases with the values of one number."""
    yield from other_meanings(number)
    yield from odd_files(number)
    yield from odd_tables(number)
    yield from folders(number)
