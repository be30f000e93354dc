"""A vector index on disk: rows of a key, a vector and metadata, searched by cosine similarity.

The rows are a table of LanceDB (the extra `search`); `index.json` beside it says which model made
the vectors, since those of another mean nothing here. What `add` and `remove` have returned from is
on the disk, through a kill and a power cut: a batch is one commit of the table, and its files are
fsynced before the call returns. A key is there once, since rows are merged by it, and only one
process writes at a time.

Shapes: n rows, E numbers of a vector.
"""

import contextlib
import json
import math
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.files import lock, make_folder, write_json
from bedstone.reading import check_kinds, is_plain, near_path, read_object, to_path
from bedstone.tasks.search.durable import Durable, check
from bedstone.tasks.search.nearest import (
    Approximate,
    approximate_query,
    build,
    exact_query,
    refusal,
    short,
)

# Metadata as an index keeps it: text, numbers, true or false; anything else as JSON text.

Kind = Literal["text", "numbers", "true or false"]

OWN = ("key", "stamp", "vector")  # columns that an index has for itself
_LARGEST = 2**53  # whole numbers that fp64 holds


def kinds_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Kind]:
    """What each column holds over all rows; columns of nothing but None are left out."""
    found: dict[str, Kind] = {}
    for row in rows:
        for name, value in row.items():
            if (kind := _kind(value)) is not None:
                found[name] = kind if found.get(name, kind) == kind else "text"
    return found


def plain(value: Any, kind: Kind) -> Any:
    """A value as its column keeps it; None where it has none."""
    if _kind(value) is None:
        return None
    if kind == "true or false":
        return bool(value)
    if kind == "numbers":
        return float(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # lone surrogates can't be stored
    return json.dumps(_item(value), ensure_ascii=False, default=str).strip('"')


def shown(value: Any) -> str:
    """A value for people: whole numbers without a point, of a list of texts the first."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and value.startswith('["'):
        with contextlib.suppress(ValueError):
            first, *more = json.loads(value)
            return f"{first} (+{len(more)})" if more else str(first)
    return "" if value is None else str(value)


def arrow_types() -> dict[Kind, Any]:
    """The type of a table's column of each kind."""
    import pyarrow as pa

    return {"text": pa.string(), "numbers": pa.float64(), "true or false": pa.bool_()}


def _kind(value: Any) -> Kind | None:
    value = _item(value)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, float) or (isinstance(value, int) and abs(value) <= _LARGEST):
        return "numbers"
    return "text"


def _item(value: Any) -> Any:
    """numpy's scalars as Python's."""
    return value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value


@dataclass(frozen=True)
class Row:
    """What is indexed.

    Attributes:
        key: its name, once in an index.
        vector: (E,), of any length but 0; it is kept at length 1.
        columns: metadata: numbers, text, true or false, None; a list or dictionary becomes JSON.
        stamp: what tells the row's maker whether it is still of today; never shown.
    """

    key: str
    vector: np.ndarray
    columns: Mapping[str, Any] = field(default_factory=dict)
    stamp: str = ""


@dataclass(frozen=True)
class Found:
    """A row that was found: its key, its cosine with the query, and its metadata."""

    key: str
    score: float
    columns: dict[str, Any]


def table_of(rows: Sequence[Row], schema: Any, columns: Mapping[str, Kind], width: int) -> Any:
    """Rows as an Arrow table.

    Raises:
        BedstoneError: a vector has another width or no direction, or a key is no text.
    """
    import pyarrow as pa

    vectors = units([row.vector for row in rows], [f"row {row.key!r}" for row in rows], width)
    values: dict[str, Any] = {"key": [_text(r.key) for r in rows], "stamp": [r.stamp for r in rows]}
    for name, kind in columns.items():
        values[name] = [plain(row.columns.get(name), kind) for row in rows]
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width)
    arrays = [flat if f.name == "vector" else pa.array(values[f.name], f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def units(vectors: Sequence[Any], names: Sequence[str], width: int) -> np.ndarray:
    """Vectors at length 1, (n, E) fp32; `names` stand in errors.

    Raises:
        BedstoneError: one has another width, isn't finite, or is zero.
    """
    given = [np.asarray(vector, dtype=np.float32) for vector in vectors]
    for vector, name in zip(given, names, strict=True):
        if vector.shape != (width,) or not np.isfinite(vector).all() or not vector.any():
            raise BedstoneError(
                f"{name}: its vector has the shape {vector.shape}, or isn't finite, or is zero; "
                f"expected {width} numbers."
            )
    whole = np.stack(given)
    return whole / np.linalg.norm(whole, axis=1, keepdims=True)


def among(keys: Sequence[str]) -> str:
    """The condition that a row has one of these keys."""
    return "key in ({})".format(", ".join("'" + key.replace("'", "''") + "'" for key in keys))


def _text(key: str) -> str:
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise BedstoneError(f"{key!r}: its name is not Unicode. Rename it.") from error
    return key


# What an index says of itself in `index.json`: whose vectors it has, of what, how searched.

FORMAT = 1
NAME = "index.json"
KINDS = {
    **dict.fromkeys(("name", "model", "source"), "text"),
    **dict.fromkeys(("format", "width"), "a whole number"),
    "approximate": "an object",
}


@dataclass(frozen=True)
class IndexSettings:
    """What `index.json` holds.

    Attributes:
        name: of the model that made the vectors, unlike any other's: a hash of its weights is in.
        width: numbers of a vector.
        model: where that model was, so that a query may open it.
        source: where the rows came from.
        approximate: how the approximate search is done, and what it was measured to find.
    """

    name: str
    width: int
    model: str = ""
    source: str = ""
    approximate: Approximate | None = None

    def write(self, folder: Path) -> None:
        """Writes them into an index's folder, whole or not at all."""
        write_json(folder / NAME, {"format": FORMAT, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> "IndexSettings":
        """Those of an index's folder.

        Raises:
            BedstoneError: it is no index, its settings are damaged, or it is newer.
        """
        if not is_plain(folder / NAME):
            raise _no_index(folder)
        held = read_object(folder / NAME)
        check_kinds(held, KINDS, folder / NAME)
        try:
            if held.pop("format") > FORMAT:
                raise BedstoneError(
                    f"{folder}: was made by a newer Bedstone. Update Bedstone, or make it again."
                )
            how = held.pop("approximate")
            if held["width"] < 1:
                raise KeyError("width")
            return cls(**held, approximate=Approximate(**how) if how else None)
        except (KeyError, TypeError, AttributeError) as error:
            raise BedstoneError(
                f"{folder / NAME}: doesn't hold what an index does ({error}). Make the index again."
            ) from error


TABLE = "rows"
COMMITS = 64  # small writes after which the table's many files are made few
OLD = timedelta(minutes=10)  # how long another process may still read what a rewrite replaced
AT_ONCE = 1000  # keys named in one filter
BUSY = "another process is writing to this index. Wait until it has finished."


class Index:
    """An index that is open. `Index.open` and `Index.create` make one; `with` closes it.

    Writing waits for nobody: a second process that writes is refused.
    """

    def __init__(self, path: Path, settings: IndexSettings) -> None:
        self.path, self.settings = path, settings
        self._database = _lancedb().connect(path)
        self._table: Any = None
        self._columns: dict[str, Kind] | None = None
        self._disk = Durable(path)
        self._held = contextlib.ExitStack()
        self._writes = False
        self._commits = 0
        self._guard = threading.RLock()
        self._open_table()

    @classmethod
    def create(
        cls, path: str | Path, width: int, name: str, *, model: str = "", source: str = ""
    ) -> "Index":
        """A new index, or the one that is there where it is of the same model.

        Raises:
            BedstoneError: something else is there, or it is another model's.
        """
        path = Path(path)
        if is_plain(path / NAME):
            return cls.open(path, name=name)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise BedstoneError(
                f"{path}: is there, and is no index. Name another place for the index."
            )
        _lancedb()
        settings = IndexSettings(name, width, model, source)
        make_folder(path)
        settings.write(path)
        return cls(path, settings)

    @classmethod
    def open(cls, path: str | Path, *, name: str | None = None) -> "Index":
        """The index at `path`.

        Args:
            name: of the model that will be asked for vectors.

        Raises:
            BedstoneError: there is none, it is damaged or newer, or made by another model.
        """
        path = to_path(path, "index")
        settings = IndexSettings.read(path)
        if name is not None and name != settings.name:
            raise BedstoneError(
                f"{path}: was made by the model {settings.name}"
                f"{f' ({settings.model})' if settings.model else ''}, and {name} was given. "
                "Vectors of two models can't be compared: take that model, or make a new index."
            )
        with explained(path):
            index = cls(path, settings)
        check(path, 0 if index._table is None else index._table.version)
        if index._table is not None:
            kind = index._table.schema.field("vector").type
            if (width := getattr(kind, "list_size", None)) != settings.width:
                raise BedstoneError(
                    f"{path / NAME}: width = {settings.width}; the vectors of its table have "
                    f"{width} numbers. Put that back, or make the index again."
                )
        return index

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Lets another process write."""
        self._writes = False
        self._held.close()

    def __len__(self) -> int:
        with explained(self.path):
            return 0 if self._table is None else self._table.count_rows()

    @property
    def columns(self) -> dict[str, Kind]:
        """The columns of metadata, and what each holds."""
        if self._columns is None:  # asking the table takes a good part of a quick search
            schema = () if self._table is None else self._table.schema
            kinds = {type_: kind for kind, type_ in arrow_types().items()}
            self._columns = {e.name: kinds.get(e.type, "text") for e in schema if e.name not in OWN}
        return self._columns

    def stamps(self) -> dict[str, str]:
        """The stamp of every row, by its key."""
        return {k: s for part in self._rows(["key", "stamp"]) for k, s in zip(*part, strict=True)}

    def rows(self) -> tuple[list[str], np.ndarray, list[dict[str, Any]]]:
        """All keys, their vectors (n, E) of length 1, and their metadata."""
        parts = self._rows(["key", "vector", *self.columns])
        each = [row for part in parts for row in zip(*part, strict=True)]
        said = [dict(zip(self.columns, row[2:], strict=True)) for row in each]
        return [row[0] for row in each], np.array([row[1] for row in each], "f4"), said

    def get(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Vectors (E,) of length 1 by their keys, of those that are there."""
        found: dict[str, np.ndarray] = {}
        for at in range(0, len(keys), AT_ONCE):
            for names, vectors in self._rows(["key", "vector"], among(keys[at : at + AT_ONCE])):
                found |= {k: np.asarray(v, "f4") for k, v in zip(names, vectors, strict=True)}
        return found

    def add(self, rows: Iterable[Row]) -> list[str]:
        """Stores rows as one commit; of a key that is there, the row is replaced.

        Returns: their keys; all of them are on the disk.

        Raises:
            BedstoneError: a vector has another width or no direction, a column's name or value
                doesn't fit, or another process writes.
        """
        given = {row.key: row for row in rows}  # of equal keys the last
        if not given:
            return []
        with self._writing():
            self.prepare(kinds_of(row.columns for row in given.values()))
            merge = self._table.merge_insert("key").when_matched_update_all()
            merge.when_not_matched_insert_all().execute(
                table_of(
                    list(given.values()), self._table.schema, self.columns, self.settings.width
                )
            )
            self._settle()
        return list(given)

    def take_over(self, other: "Index") -> None:
        """Adds all rows of another index of the same model, bit for bit."""
        with self._writing():
            self.prepare(other.columns)
            given = other._table.search().select([*OWN, *self.columns]) if len(other) else None
            for part in given.to_batches() if given else ():
                merge = self._table.merge_insert("key").when_matched_update_all()
                merge.when_not_matched_insert_all().execute(part)
                self._settle()

    def remove(self, keys: Iterable[str]) -> int:
        """Removes rows by their keys; returns how many were there."""
        named = list(dict.fromkeys(keys))
        with self._writing():
            before = len(self)
            for at in range(0, len(named), AT_ONCE) if before else ():
                self._table.delete(among(named[at : at + AT_ONCE]))
                self._settle()
            return before - len(self)

    def prepare(self, kinds: Mapping[str, Kind]) -> None:
        """Makes columns of metadata, so that the first values don't decide what they hold.

        Raises:
            BedstoneError: a name can't be a column's, or the column holds something else.
        """
        import pyarrow as pa

        with self._writing():
            for name, kind in kinds.items():
                if name in OWN or "." in name or not name.strip():
                    raise BedstoneError(
                        f"column {name!r}: can't be the name of a column ({', '.join(OWN)} are the "
                        "index's own, and none has a point). Rename it."
                    )
                have = self.columns.get(name, kind)
                if have != kind and have != "text":  # text takes anything
                    raise BedstoneError(
                        f"column {name!r}: holds {have} in {self.path}, and {kind} was given. Mend "
                        "the values, or make a new index."
                    )
            types, new = arrow_types(), [name for name in kinds if name not in self.columns]
            fields = [pa.field(name, types[kinds[name]]) for name in new]
            if self._table is None:
                own = [pa.field("key", pa.string()), pa.field("stamp", pa.string())]
                own += [pa.field("vector", pa.list_(pa.float32(), self.settings.width))]
                schema = pa.schema([*own, *fields])
                self._table = self._database.create_table(TABLE, schema=schema)
            elif fields:
                self._table.add_columns(fields)
            self._columns = None

    def search(
        self, vector: np.ndarray, count: int = 10, *, where: str = "", exact: bool = True
    ) -> list[Found]:
        """The rows whose vectors are nearest by cosine, nearest first.

        Args:
            vector: (E,).
            where: a condition on the columns, as SQL has it: `price < 20 and colour = 'red'`.
            exact: False takes the approximate index where there is one (`settings.approximate`).

        Raises:
            BedstoneError: the width, the condition or one of its columns is wrong.
        """
        if not 1 <= count < 2**31:
            raise BedstoneError(f"count: {count}; expected 1 or more, below {2**31:,}.")
        vector = units([vector], ["the query"], self.settings.width)[0]
        if self._table is None:
            return []
        how = None if exact else self.settings.approximate
        names = ["key", *self.columns]
        with explained(self.path, where, self.columns):
            count = min(count, self._table.count_rows())
            if not count:
                return []
            if how is None:
                query = exact_query(self._table, vector, count, names, where)
            else:
                query = approximate_query(self._table, vector, count, names, where, how)
            table = query.to_arrow()
        scores = (1 - table.column("_distance").to_numpy() / 2).tolist()
        rows = table.select(names).to_pylist()
        found = [Found(row.pop("key"), score, row) for score, row in zip(scores, rows, strict=True)]
        return sorted(found, key=lambda one: (-one.score, one.key))[:count]

    def count(self, where: str = "") -> int:
        """How many rows meet a condition. Raises BedstoneError as `search` does."""
        with explained(self.path, where, self.columns):
            return 0 if self._table is None else self._table.count_rows(where or None)

    def tidy(self) -> None:
        """Compacts the table's files and adds new rows to the approximate index."""
        if self._table is not None:
            with self._writing():
                self._table.optimize(cleanup_older_than=OLD)
                self._settle(commits=-self._commits)

    def approximate(self, **options: Any) -> Approximate:
        """Builds the approximate index, measures what it finds, and keeps both.

        Args:
            options: as `nearest.build` has them.

        Raises:
            BedstoneError: there are no rows, or another process writes.
        """
        if not len(self):
            raise BedstoneError(f"{self.path}: holds nothing yet. Add rows first.")
        with self._writing():
            self._keep(approximate=None)  # a kill from here on leaves the exact search
            how = build(self._table, self.settings.width, **options)
            self._settle()
            self._keep(approximate=how)
        return how

    def moved(self, **where: str) -> None:
        """Records another path of the `model` or the `source`."""
        with self._writing():
            self._keep(**where)

    def _keep(self, **changes: Any) -> None:
        self.settings = replace(self.settings, **changes)
        self.settings.write(self.path)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._guard:
            if not self._writes:
                self._held.enter_context(lock(self.path, BUSY))
                self._writes = True
                self.settings = IndexSettings.read(self.path)
                with explained(self.path):
                    self._open_table()
            with explained(self.path):
                yield

    def _open_table(self) -> None:
        """The table as it is now; it is not there until the first row is."""
        if any(self.path.glob(f"{TABLE}.lance/_versions/*.manifest")):
            self._table, self._columns = self._database.open_table(TABLE), None

    def _settle(self, commits: int = 1) -> None:
        self._disk.settle(self._table.version)
        self._commits += commits
        if self._commits >= COMMITS:
            self.tidy()

    def _rows(self, names: list[str], where: str = "") -> Iterator[tuple[list[Any], ...]]:
        if self._table is None:
            return
        with explained(self.path):
            query = self._table.search().select(names)
            for part in (query.where(where) if where else query).to_batches():
                yield tuple(part.column(name).to_pylist() for name in names)


def default_place(folder: str | Path) -> Path:
    """The default path of an index: beside the folder or the rows that it is of."""
    path = Path(folder).resolve()
    return path.with_name(f"{path.name}.index")


def _no_index(folder: Path) -> BedstoneError:
    """The error that there is none, with where it may be or how it is made."""
    own = default_place(folder)
    if (own / NAME).is_file():
        return BedstoneError(
            f"{folder}: is no index ({NAME} is missing); the index of it is {own}. Name that."
        )
    if folder.exists():
        return BedstoneError(
            f"{folder}: is no index ({NAME} is missing). Make one: bedstone index {folder} "
            f"--model MODEL; it is written to {own}, which bedstone search takes."
        )
    return BedstoneError(
        f"{folder}: there is no such index{near_path(folder)}. Make one: bedstone index FOLDER "
        f"--model MODEL --out {folder}"
    )


@contextlib.contextmanager
def explained(
    path: Path, where: str = "", columns: Mapping[str, Kind] | None = None
) -> Iterator[None]:
    """LanceDB's complaints about a table, a full disk or a condition, in our words.

    Raises:
        BedstoneError: in their place; or the condition has more than one part.
    """
    bare = re.sub(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`", "", where)
    for mark in (";", "--", "/*"):
        if mark in bare:  # LanceDB reads what is before it and drops the rest
            raise BedstoneError(
                f"where {where!r}: holds {mark!r} outside of quotes; expected one condition."
            )
    try:
        yield
    except (ValueError, RuntimeError, OSError, OverflowError) as error:
        if where and not isinstance(error, OSError):
            raise BedstoneError(refusal(where, str(error), columns or {})) from error
        if re.search(r"No space left|os error (?:28|122)", str(error)):
            raise BedstoneError(
                f"{path}: the disk is full. What was added before is kept. Free some space, then "
                "run it again."
            ) from error
        if isinstance(error, OSError) or "ermission denied" in str(error):
            raise BedstoneError(f"{path}: can't be read or written ({short(error)}).") from error
        raise BedstoneError(
            f"{path}: its table can't be read ({short(error)}). It may be damaged: take a copy of "
            "the index, or make it again."
        ) from error


def _lancedb() -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise BedstoneError(
            "an index needs LanceDB, which isn't installed: pip install 'bedstone[search]'"
        ) from error
    return lancedb
