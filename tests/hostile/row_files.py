"""Files and folders of rows that one reader knows and its twin doesn't: bytes, types, places.

`cases` gives all faults, these and those of `row_cells`, with what is right: the values that were
written, broken rows that must be counted, or a refusal.
"""

import bz2
import gzip
import io
import lzma
import random
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
from row_cells import (
    CELLS,
    COMMAS,
    JSON,
    PNG,
    TABLES,
    WORDS,
    Case,
    Rows,
    array_of,
    arrow_of,
    lines_of,
    other_meanings,
    parquet_of,
    seed,
    separated,
    with_image,
)

HEIC = b"\0\0\0\x18ftypheic" + bytes(40)

USERS = ("samples", "pieces", "corpus", "labels", "predict")  # readers that need a text
Change = Callable[[bytes, random.Random], bytes]
BOM = "\ufeff".encode()
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n"


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
    "surrogates in UTF-8": (
        WRITTEN,
        _at(lambda line, _: line.replace(b"n", b"\xed\xa0\x80", 1)),
        REFUSED,
    ),
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
    "separator behind the rows alone": (
        COMMAS,
        lambda data, _: data.replace(b"\n", b",\n").replace(b",\n", b"\n", 1),
        REFUSED,
    ),
    "separator named in the first line": (
        {"semicolons.csv": CELLS["semicolons.csv"]},
        lambda data, _: b"sep=;\n" + data,
        EITHER,
    ),
    "commas in .tsv": ({"a.tsv": CELLS["a.csv"]}, lambda data, _: data, SAME),
    "semicolons in .tsv": ({"a.tsv": CELLS["semicolons.csv"]}, lambda data, _: data, SAME),
    "bars": ({"a.csv": separated("|")}, lambda data, _: data, SAME),
    "comment first": (COMMAS, lambda data, _: b"# from a table\n" + data, EITHER),
    "no header": (COMMAS, lambda data, _: data.partition(b"\n")[2], UNUSABLE),
    "header again": (TEXT, lambda data, _: data + data.partition(b"\n")[0] + b"\n", BROKEN),
    "header of a second file": (TEXT, lambda data, _: data + BOM + data, AGAIN),
    "header with a name twice": (
        TEXT,
        _at(lambda line, _: line.replace(b"id", b"text"), True),
        REFUSED,
    ),
    "header with a name empty": (
        TEXT,
        _at(lambda line, _: line.replace(b"id", b""), True),
        _renamed(""),
    ),
    "header with spaces": (COMMAS, _at(lambda line, _: line.replace(b",", b", "), True), UNUSABLE),
    "header by case": (
        COMMAS,
        _at(lambda line, _: line.replace(b"id", b"Text"), True),
        _renamed("Text"),
    ),
    "header alone": (TEXT, lambda data, _: data.partition(b"\n")[0] + b"\n", REFUSED),
    "header of quotes": (
        COMMAS,
        _at(lambda line, _: b'"' + line.replace(b",", b'","') + b'"', True),
        SAME,
    ),
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
    "a pointer of Git LFS": (WRITTEN, _with(LFS), REFUSED),
    "cells of JSON's ending": (
        {**LINES, **ARRAY},
        lambda data, draw: CELLS["a.csv"](seed(draw)),
        REFUSED,
    ),
    "lines of CSV's ending": (TEXT, lambda data, draw: lines_of(seed(draw)), REFUSED),
    "array of CSV's ending": (TEXT, lambda data, draw: array_of(seed(draw)), REFUSED),
    "JSON with a key twice": (LINES, _at(lambda line, _: line.replace(b'"id"', b'"text"')), BROKEN),
    "JSON array with a key twice": (
        ARRAY,
        lambda data, _: data.replace(b'"id"', b'"text"', 1),
        REFUSED,
    ),
    "JSON with a key by case": (
        LINES,
        _each(lambda line: line.replace(b'"id"', b'"Text"')),
        _renamed("Text"),
    ),
    "JSON cut": (LINES, _at(lambda line, draw: line[: draw.randrange(1, len(line))]), BROKEN),
    "JSON array cut": (ARRAY, lambda data, draw: data[: draw.randrange(2, len(data) - 1)], REFUSED),
    "JSON with a comma at the end": (LINES, _each(lambda line: line + b","), REFUSED),
    "JSON array with a comma at the end": (
        ARRAY,
        lambda data, _: data[:-1].rstrip() + b",]",
        REFUSED,
    ),
    "JSON array and more": (ARRAY, lambda data, _: data + data, REFUSED),
    "JSON array and words": (ARRAY, lambda data, _: data + b"\nend\n", REFUSED),
    "JSON array behind spaces": (ARRAY, lambda data, _: b" \n" * 200 + data, EITHER),
    "JSON array of CR lines": (ARRAY, lambda data, _: data.replace(b"\n", b"\r"), SAME),
    "JSON in single quotes": (LINES, _at(lambda line, _: line.replace(b'"', b"'")), BROKEN),
    "JSON with a comment": (LINES, _put(b"// a comment"), BROKEN),
    "JSON objects on one line": (LINES, lambda data, _: data.replace(b"\n", b""), REFUSED),
    "JSON object over lines": (LINES, _with(b'{\n"text": "a",\n"label": "b"\n}\n'), REFUSED),
    "JSON object of rows": (
        LINES | ARRAY,
        lambda data, draw: b'{"data": ' + array_of(seed(draw)).replace(b"\n", b"") + b"}\n",
        UNUSABLE,
    ),
    "JSON object of columns": (
        ARRAY,
        _with(b'{"text": ["a", "b"], "label": ["x", "y"]}'),
        UNUSABLE,
    ),
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
    "JSON deep": (
        LINES,
        _at(lambda line, _: b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        BROKEN,
    ),
    "JSON array deep": (ARRAY, _with(b"[" * 100_000 + b"]" * 100_000), REFUSED),
    "JSON of long numbers": (LINES, _at(lambda line, _: b'{"id": ' + b"1" * 5000 + b"}"), BROKEN),
    "JSON with bad escapes": (LINES, _at(lambda line, _: line.replace(b"n", b"\\x", 1)), BROKEN),
    "JSON with tabs in texts": (
        LINES,
        _at(lambda line, _: line.replace(b" ", b"\t\tx", 9)),
        EITHER,
    ),
    "JSON with record separators": (LINES, _each(lambda line: b"\x1e" + line), REFUSED),
}


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
                with_image({name: data}),
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
        "maps": _columns(
            id=pa.array([[("a", 1)], [], None, [("b", 2)]], pa.map_(pa.string(), pa.int64()))
        ),
        "structs": _columns(id=pa.array([{"a": {"b": 1}}, None, {"a": None}, {"a": {"b": 2}}])),
        "fixed lists": _columns(
            label=pa.array([[0, 1], [1, 0], [1, 1], [0, 0]], pa.list_(pa.int8(), 2))
        ),
        "nothing": _columns(id=pa.nulls(4)),
        "unique identifiers": _columns(id=pa.array([bytes(16)] * 4, pa.uuid())),
        "no rows": _columns(id=pa.array(["a"] * 4))[:0],
        "no columns": pa.table({}),
        "a column twice": pa.Table.from_arrays(
            [pa.array(["a"]), pa.array(["b"])], ["text", "text"]
        ),
        "names that are empty": _columns(**{"": pa.array([1, 2, 3, 4])}),
        "images in structs": _columns(image=pa.array([{"bytes": PNG, "path": None}] * 4)),
    }


def odd_tables(number: int) -> Iterator[Case]:
    """Kind 4, columns of tables; files under another name."""
    refused = ("no rows", "no columns", "a column twice")
    for kind, table in _tables().items():
        stored = {"a.arrow": arrow_of(table), "stream.arrow": arrow_of(table, stream=True)}
        if kind != "unique identifiers":
            stored["a.parquet"] = parquet_of(table)
        for name, data in stored.items() if not number else ():
            odd = "timestamps" in kind or kind == "maps"
            rows = (
                None if kind in refused or kind == "timestamps beyond Python" else table.to_pylist()
            )
            yield Case(kind, name, name, with_image({name: data}), rows, free=odd)
    draw = random.Random(f"tables {number}")
    rows = seed(draw, draw.randint(6, 12))
    cells, lines, table = CELLS["a.csv"](rows), lines_of(rows), TABLES["a.parquet"](rows)
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
        yield Case(kind, name, name, with_image({name: data}), known, free=known is not None
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
    "metadata.jsonl": lines_of,
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
            **(
                {}
                if binary
                else {
                    "metadata with a byte order mark": (BOM + data, rows),
                    "metadata of UTF-16": (data.decode().encode("utf-16"), None),
                    "metadata of UTF-16 big": (data.decode().encode("utf-16-be"), None),
                    "metadata with CRLF": (data.replace(b"\n", b"\r\n"), rows),
                    "metadata packed": (gzip.compress(data), None),
                    "metadata of xz": (lzma.compress(data), None),
                    "metadata with NUL": (data + bytes(4), None),
                }
            ),
            **(
                {"metadata with semicolons": (semicolons, rows), "metadata with tabs": (tabs, rows)}
                if cells
                else {}
            ),
        }
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
        outside = {**rows[0], "file_name": "../a.png"}
        yield Case("metadata that leads out", name, "data", {
            "a.png": PNG, **twice, f"data/{name}": write([outside, *rows]),
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
DOUBTFUL = {
    "classes with zeros",
    "classes by case",
    "classes by spaces",
    "classes by Unicode form",
    "classes of truths",
}


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
            names = [
                f"data/{home}/{each}.{ending}" for home in sorted(homes) for each in range(count)
            ]
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
