"""Rows whose cells may be given another meaning, and writers of rows in every format.

`other_meanings` gives every kind of cell in every format where it makes sense, with what is right:
the values that were written. They are drawn by the kind's name and a number, so that a case is
always the same.
"""

import base64
import csv
import datetime
import decimal
import gzip
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import ipc, parquet

Rows = list[dict[str, Any]]
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
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


def separated(mark: str) -> Callable[[Rows], bytes]:
    def write(rows: Rows) -> bytes:
        lines = []
        for row in (dict(zip(rows[0], rows[0], strict=True)), *rows):
            file = io.StringIO()
            cells = ["" if cell is None else cell for cell in row.values()]
            csv.writer(file, delimiter=mark, lineterminator="\r\n").writerow(cells)
            lines.append(file.getvalue().removesuffix("\r\n") + "\n")
        return "".join(lines).encode()

    return write


def lines_of(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=len(row) % 2 == 0) + "\n" for row in rows).encode()


def array_of(rows: Rows) -> bytes:
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
    "a.csv": separated(","),
    "a.tsv": separated("\t"),
    "semicolons.csv": separated(";"),
    "tabs.csv": separated("\t"),
    "a.csv.gz": _packed(separated(",")),
}
JSON: dict[str, Callable[[Rows], bytes]] = {
    "a.jsonl": lines_of,
    "a.json": array_of,
    "lines.json": lines_of,
    "a.jsonl.gz": _packed(lines_of),
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


# Kind 3: cells that may be given another meaning. Texts are parted by `|`; `{n}` is the row.

STRINGS: dict[str, tuple[str, str, str]] = {  # kind: column, cells, a pattern of a doubt
    "identifiers with zeros": ("id", "007|0|00|0010|-01", ""),
    "identifiers of 19 digits": (
        "id",
        "1234567890123456789|9007199254740993|-12345678901234567",
        "",
    ),
    "identifiers of 60 digits": ("id", f"{'1' * 60}|{'2' * 60}.5", ""),
    "identifiers with a fraction": ("id", "1.50|1.5|01.5|1.|.5|0.12345678901234567890", ""),
    "identifiers with exponents": ("id", "1e5|1E5|2e-3|1e400|1e-400|12e34", ""),
    "identifiers in other bases": ("id", "0x1F|0b11|0o17|1_000|#12", ""),
    "identifiers that are dates": ("id", "2024-01-02|01/02/03|1-2|MAR1|SEPT2", ""),
    "identifiers that are times": ("id", "12:30|2024-01-02T03:04:05Z|1:2:3.5", ""),
    "identifiers that are amounts": ("id", "1,5|1.000,50|1,000|12%|$5|(3)", ""),
    "identifiers that are formulas": ("id", "=1+1|'007|+49 30|@x|-x", ""),
    "identifiers with control characters": (
        "id",
        "\x1b[31m|a\x0b|a\x1cb|\u200eab|\u2028b|a\x85b",
        "",
    ),
    "identifiers with line breaks": ("id", 'a\nb|a\r\nb|a "q" b|a,b;c\td| a |"', ""),
    "identifiers of odd Unicode": (
        "id",
        "caf\u00e9|cafe\u0301|\u0663|\uff11|x\ufeffx|\u00a0|\U0001f4bb\u200d",
        "",
    ),
    "identifiers that are NaN words": (
        "id",
        "nan|NA|N/A|null|None|inf|-inf|Infinity|#N/A|<NA>",
        "",
    ),
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
}
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
}


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
            yield Case(kind, name, name, with_image({name: write(rows)}), rows, doubt=doubt)
    for kind, (column, values, formats) in VALUES.items():
        for name, write in formats.items():
            rows = _drawn(kind, column, values, name, number)
            yield Case(kind, name, name, with_image({name: write(rows)}), rows)


def with_image(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """With the image that rows name, where the first file lies."""
    folder = next(iter(files)).rpartition("/")[0]
    return {**files, f"{folder}/a.png" if folder else "a.png": PNG}
