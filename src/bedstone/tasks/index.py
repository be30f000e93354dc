"""An index on disk: rows of a key, a vector and columns of metadata, found by the nearest vectors.

The rows are a table of LanceDB (the extra `search`); `index.json` beside it says which model made
the vectors, since those of another mean nothing here. What `add` and `remove` have returned from is
on the disk, through a kill and a power cut: a batch is one commit of the table, and its files are
fsynced before the call returns. A key is there once, since rows are merged by it, and only one
process writes at a time.

Shapes: n rows, E numbers of a vector.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.tasks.index_disk import Durable, lock
from bedstone.tasks.index_nearest import Approximate, approximate_query, build, exact_query
from bedstone.tasks.index_rows import Found, Row, among, refusal, short, table_of, units
from bedstone.tasks.index_settings import NAME, Settings
from bedstone.tasks.index_values import OWN, Kind, arrow_type, kind_of, kinds_of

TABLE = "rows"
COMMITS = 64  # small writes after which the table's many files are made few
OLD = timedelta(minutes=10)  # how long another process may still read what a rewrite replaced
AT_ONCE = 1000  # keys named in one filter


class Index:
    """An index that is open. `Index.open` and `Index.create` make one; `with` closes it.

    Writing waits for nobody: a second process that writes is refused.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
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
        if (path / NAME).is_file():
            return cls.open(path, name=name)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise BedstoneError(
                f"{path}: is there, and is no index. Name another place for the index."
            )
        _lancedb()
        settings = Settings(name, width, model, source)
        path.mkdir(parents=True, exist_ok=True)
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
        path = Path(path)
        settings = Settings.read(path)
        if name is not None and name != settings.name:
            raise BedstoneError(
                f"{path}: was made by the model {settings.name}"
                f"{f' ({settings.model})' if settings.model else ''}, and {name} was given. "
                "Vectors of two models can't be compared: take that model, or make a new index."
            )
        try:
            return cls(path, settings)
        except (ValueError, RuntimeError, OSError) as error:
            raise BedstoneError(
                f"{path}: can't be opened ({short(error)}). It may be damaged: make it again."
            ) from error

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Lets another process write."""
        self._writes = False
        self._held.close()

    def __len__(self) -> int:
        return 0 if self._table is None else self._table.count_rows()

    @property
    def columns(self) -> dict[str, Kind]:
        """The columns of metadata, and what each holds."""
        if self._columns is None:  # asking the table takes a good part of a quick search
            schema = () if self._table is None else self._table.schema
            self._columns = {e.name: kind_of(e.type) for e in schema if e.name not in OWN}
        return self._columns

    def stamps(self) -> dict[str, str]:
        """The stamp of every row, by its key."""
        rows = self._rows(["key", "stamp"])
        return {key: stamp for part in rows for key, stamp in zip(*part, strict=True)}

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
            fields = [pa.field(k, arrow_type(v)) for k, v in kinds.items() if k not in self.columns]
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
        if count < 1:
            raise BedstoneError(f"count: {count}; expected 1 or more.")
        vector = units([vector], ["the query"], self.settings.width)[0]
        if self._table is None:
            return []
        how = None if exact else self.settings.approximate
        names = ["key", *self.columns]
        with self._told(where):
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
        with self._told(where):
            return 0 if self._table is None else self._table.count_rows(where or None)

    def tidy(self) -> None:
        """Makes the table's files few, and brings new rows into the approximate index."""
        if self._table is not None:
            with self._writing():
                self._table.optimize(cleanup_older_than=OLD)
                self._settle(commits=-self._commits)

    def approximate(self, **options: Any) -> Approximate:
        """Builds the approximate index, measures what it finds, and keeps both.

        Args:
            options: as `index_nearest.build` has them.

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
        """Notes another place of the `model` or the `source`."""
        with self._writing():
            self._keep(**where)

    def _keep(self, **changes: Any) -> None:
        self.settings = replace(self.settings, **changes)
        self.settings.write(self.path)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._guard:
            if not self._writes:
                self._held.enter_context(lock(self.path))
                self._writes = True
                self.settings = Settings.read(self.path)
                self._open_table()
            yield

    def _open_table(self) -> None:
        """The table as it is now; it is not there until the first row is."""
        if any(self.path.glob(f"{TABLE}.lance/_versions/*.manifest")):
            self._table, self._columns = self._database.open_table(TABLE), None

    def _settle(self, commits: int = 1) -> None:
        self._disk.settle()
        self._commits += commits
        if self._commits >= COMMITS:
            self.tidy()

    def _rows(self, names: list[str], where: str = "") -> Iterator[tuple[list[Any], ...]]:
        if self._table is None:
            return
        query = self._table.search().select(names)
        for part in (query.where(where) if where else query).to_batches():
            yield tuple(part.column(name).to_pylist() for name in names)

    @contextlib.contextmanager
    def _told(self, where: str) -> Iterator[None]:
        """LanceDB's complaints about a condition, in our words."""
        try:
            yield
        except (ValueError, RuntimeError) as error:
            if not where:
                raise
            raise BedstoneError(refusal(where, str(error), self.columns)) from error


def _lancedb() -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise BedstoneError(
            "an index needs LanceDB, which isn't installed: pip install 'bedstone[search]'"
        ) from error
    return lancedb
