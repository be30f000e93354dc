"""complementary-items: what of a catalogue goes with an item. `tasks.companions` says how.

Shapes: n items, J of an item's vector.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bedstone.checks import at_least
from bedstone.errors import BedstoneError, nearest
from bedstone.tasks.catalogue import Catalogue, CatalogueOptions, SimilarItems, rows_of, same
from bedstone.tasks.companions import learn_map, styles
from bedstone.tasks.embed import unit
from bedstone.tasks.posts import Post


@dataclass(frozen=True)
class CompanionOptions(CatalogueOptions):
    """Options of complementary-items.

    Attributes:
        pairs: a file of rows, or a list of dictionaries, each {"items": [id, id, ...]} that were
            bought or worn together; None goes by category and style.
        category: the column that says what kind of thing an item is; needed without pairs.
        per_category: found of one category, at most, so that an outfit isn't five belts; None is
            any number.
    """

    pairs: Any = None
    category: str | None = None
    per_category: int | None = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "per_category", optional=True)


class ComplementaryItems(SimilarItems):
    """An item -> those that go with it, each {"id", "score", "row"}, best first.

    With `pairs`, by a map learnt from them (see `tasks.companions`); without, by a like style among
    items of other categories, which needs an item of the catalogue.
    """

    name = "complementary-items"
    settings: ClassVar[type[Any]] = CompanionOptions

    def open(self, precision: str) -> None:
        super().open(precision)
        self._learnt_map: tuple[Catalogue, Any, np.ndarray] | None = None

    def results(self, rows: Sequence[int | Post], options: Any) -> Iterator[list[dict[str, Any]]]:
        catalogue = self.catalogue(options)
        kinds = self._kinds(catalogue, options)
        if options.pairs is not None:
            own = self.queries(rows, catalogue, options) - catalogue.vectors.mean(0)
            asked = unit(own @ self._map(catalogue, options))
            known = unit(catalogue.vectors - catalogue.vectors.mean(0))
        else:
            if not kinds:
                raise BedstoneError(
                    "complementary-items: neither pairs nor category was given; name a file of "
                    "items that went together, or the column of what kind of thing an item is."
                )
            known = styles(catalogue.vectors, kinds)
            for row in rows:
                if isinstance(row, Post):
                    raise BedstoneError(
                        "complementary-items: of a new item the category isn't known; give the id "
                        "of one in the catalogue, or pairs to learn from."
                    )
            asked = known[[int(row) for row in rows if isinstance(row, int)]]
        for row, query in zip(rows, asked, strict=True):
            scores = known @ query
            kind = kinds[row] if kinds and isinstance(row, int) else None
            ranked = self.best(scores, row, catalogue, len(catalogue.rows))
            yield list(_varied(ranked, catalogue, kinds, kind, options))

    def _kinds(self, catalogue: Catalogue, options: CompanionOptions) -> list[str]:
        if options.category is None:
            return []
        known = {key for row in catalogue.rows for key in row}
        if options.category not in known:
            raise BedstoneError(
                f"category: the catalogue has no column {options.category!r}"
                f"{nearest(options.category, known)}."
            )
        return [str(row.get(options.category)) for row in catalogue.rows]

    def _map(self, catalogue: Catalogue, options: CompanionOptions) -> np.ndarray:
        known = self._learnt_map
        if known is None or known[0] is not catalogue or not same(known[1], options.pairs):
            found = learn_map(catalogue.vectors, read_pairs(options.pairs, catalogue))
            self._learnt_map = known = catalogue, options.pairs, found
        return known[2]


def _varied(
    ranked: Iterator[dict[str, Any]],
    catalogue: Catalogue,
    kinds: Sequence[str],
    own: str | None,
    options: CompanionOptions,
) -> Iterator[dict[str, Any]]:
    """The first of each category, without the item's own where nothing was learnt of pairs."""
    seen: dict[str, int] = {}
    left = options.top_k
    for each in ranked:
        if not left:
            return
        if kinds:
            kind = kinds[catalogue.ids[each["id"]]]
            if kind == own and options.pairs is None:
                continue
            seen[kind] = seen.get(kind, 0) + 1
            if options.per_category is not None and seen[kind] > options.per_category:
                continue
        left -= 1
        yield each


def read_pairs(given: Any, catalogue: Catalogue) -> list[tuple[int, int]]:
    """Numbers of two items that went together; of more than two, each pair of them.

    Raises:
        BedstoneError: a row has no `items`, fewer than two, or one that the catalogue lacks.
    """
    rows = rows_of(given, "pairs")
    found = []
    for number, row in enumerate(rows.rows):
        names = row.get("items")
        if not isinstance(names, list | tuple) or len(names) < 2:
            raise BedstoneError(
                f"{rows.where(number)}: items is {str(names)[:60]!r}; expected a list of at least "
                "two ids of the catalogue."
            )
        places = [catalogue.place(name) for name in names]
        for name, place in zip(names, places, strict=True):
            if place is None:
                raise BedstoneError(
                    f"{rows.where(number)}: items names {str(name)[:60]!r}, which the catalogue "
                    f"doesn't have{nearest(str(name), list(catalogue.ids)[:2000])}. Mend it, or "
                    "leave the row out."
                )
        known = [place for place in places if place is not None]
        found += [(a, b) for n, a in enumerate(known) for b in known[n + 1 :] if a != b]
    return found
