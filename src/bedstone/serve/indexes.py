"""`/v1/search`: indexes of images that a server was given, searched by words or by an image.

An index is known by a name that its owner gave; no request can name a folder. It is searched with
the served model that made its vectors, which is found by a hash of the weights. The tasks
similar-items and complementary-items take an index as their catalogue.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bedstone.checkpoints.model import Model
from bedstone.errors import BedstoneError, nearest
from bedstone.serve.models import Models
from bedstone.serve.wire import ApiError
from bedstone.settings import Settings, whole
from bedstone.tasks.images.engine import vectors_name
from bedstone.tasks.search.index import Index
from bedstone.tasks.search.recommend import Catalogue
from bedstone.tasks.task import embeds_both, embeds_images

WHERE = 1000  # characters of a condition
DEEPEST = 8  # brackets within each other
WORDS = ("and", "or", "not", "in", "like", "between", "is")  # that may stand before a bracket
COUNT = 1000  # rows that are given back, at most
ROWS = 500_000  # of an index that items are recommended from


@dataclass(eq=False)
class Searched:
    """An index, and the served model that made its vectors.

    Attributes:
        name: by which requests name it.
        model: the name of the model.
    """

    name: str
    index: Index
    model: str
    _catalogue: Catalogue | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def catalogue(self, model: Model) -> Catalogue:
        """All rows as items, held in memory from then on.

        Raises:
            ApiError: there are too many, or none.
        """
        async with self._lock:
            if self._catalogue is None:
                self._catalogue = await asyncio.to_thread(self._read, embeds_both(model))
            return self._catalogue

    def _read(self, with_texts: bool) -> Catalogue:
        count = len(self.index)
        if not 0 < count <= ROWS:
            raise ApiError(
                400, f"index: {self.name} has {count:,} rows; items are recommended from 1 to "
                f"{ROWS:,}.", "index",
            )  # fmt: skip
        keys, vectors, rows = self.index.rows()
        if with_texts:  # whose part of an item's vector is empty here
            vectors = np.concatenate([vectors, np.zeros_like(vectors)], axis=1)
        return Catalogue(rows, {key: place for place, key in enumerate(keys)}, vectors)


class Indexes:
    """The indexes of a server, by name; false where there are none."""

    def __init__(self, found: Sequence[Searched] = ()) -> None:
        self._by_name = {each.name: each for each in found}

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def __iter__(self) -> Any:
        return iter(self._by_name.values())

    def find(self, name: Any, model: str | None = None) -> Searched:
        """The index of a name; the only one where none is named.

        Args:
            model: that has to have made it; None takes any.

        Raises:
            ApiError: there is none such.
        """
        if name is None and len(self._by_name) == 1:
            (name,) = self._by_name
        found = self._by_name.get(name) if isinstance(name, str) else None
        if found is None:
            names = list(self._by_name)
            said = f"; there are {', '.join(names)}" if name is None else nearest(str(name), names)
            text = "index: name one" if name is None else f"There is no index {str(name)[:80]!r}"
            raise ApiError(400 if name is None else 404, f"{text}{said}.", "index")
        if model not in (None, found.model):
            raise ApiError(
                400, f"index: {found.name} was made by the model {found.model!r}; name that.",
                "model",
            )  # fmt: skip
        return found


def open_indexes(given: Sequence[str], models: Models) -> Indexes:
    """Indexes of the command line, `NAME=FOLDER` or `FOLDER`; models have been opened.

    Raises:
        BedstoneError: one can't be opened, has the name of another, or its model isn't served.
    """
    made: dict[str, str] = {}
    for name in models.entries if given else ():
        with models.use(name) as served:
            if embeds_images(served.model):
                made.setdefault(vectors_name(served.model), name)
    found: dict[str, Searched] = {}
    for each in given:
        name, equals, folder = each.partition("=")
        if not equals or "/" in name:
            name, folder = Path(each).name.removesuffix(".index"), each
        index = Index.open(folder)
        if name in found or not name:
            raise BedstoneError(f"--index {each}: give it a name of its own: NAME={folder}")
        if index.settings.name not in made:
            raise BedstoneError(
                f"--index {folder}: was made by the model {index.settings.name} "
                f"({index.settings.model}), which isn't served. Serve it, too."
            )
        found[name] = Searched(name, index, made[index.settings.name])
    return Indexes(list(found.values()))


@dataclass(frozen=True)
class SearchRequest(Settings):
    """Fields of a search: words (`query`) or an image as a data URL.

    Attributes:
        where: a condition on the columns, as SQL has it.
        approximate: whether the approximate index is taken where there is one.
    """

    model: str = ""
    index: str | None = None
    query: str | None = None
    image: Any = None
    count: int = whole(1, COUNT, default=10)
    where: str = ""
    approximate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.query is None) == (self.image is None):
            raise BedstoneError("query: expected either words, or an image with the key image.")
        if self.query is not None and not self.query.strip():
            raise BedstoneError("query: is empty. Say what to look for.")
        check_condition(self.where)


def check_condition(where: str) -> None:
    """Raises BedstoneError for a condition that could cost more than a look at each row.

    Of SQL, comparisons of columns and values are taken, joined by and, or, not, in, like, between,
    is null: no function, which may make texts of gigabytes, and no deep nesting, whose cost doubles
    with each level.
    """
    if len(where) > WHERE:
        raise BedstoneError(f"where: has {len(where):,} characters; at most {WHERE:,}.")
    plain = re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"|`[^`]*`", "x", where)
    called = [name for name in re.findall(r"([A-Za-z_]\w*)\s*\(", plain)
              if name.lower() not in WORDS]  # fmt: skip
    if called:
        raise BedstoneError(
            f"where: calls {called[0][:40]}(); expected comparisons of columns and values, such as "
            "price < 20 and colour = 'red'."
        )
    depth = most = 0
    for sign in plain:
        depth += (sign == "(") - (sign == ")")
        most = max(most, depth)
    if most > DEEPEST or len(re.findall(r"\bnot\b", plain, re.IGNORECASE)) > DEEPEST:
        raise BedstoneError(
            f"where: is nested too deeply; expected at most {DEEPEST} brackets within each other, "
            f"and {DEEPEST} times not. Write it more simply."
        )


async def found_rows(
    searched: Searched, request: SearchRequest, vector: np.ndarray
) -> dict[str, Any]:
    """The rows whose vectors are nearest to a query's.

    Raises:
        ApiError: the condition can't be understood.
    """
    try:
        found = await asyncio.to_thread(
            searched.index.search, vector, request.count, where=request.where,
            exact=not request.approximate,
        )  # fmt: skip
    except BedstoneError as error:
        raise ApiError(400, str(error), "where" if request.where else None) from None
    data = [
        {"object": "search.result", "key": each.key, "score": each.score, "columns": each.columns}
        for each in found
    ]
    return {"object": "list", "data": data, "model": searched.model, "index": searched.name}
