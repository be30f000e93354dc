"""similar-items and complementary-items: recommendations from a catalogue by embeddings.

An item's vector is its image's and its text's, weighed: the cosine of two items is the weighted
mean of the cosines of their images and of their texts. Search is exact.

Shapes: n items, E numbers of an embedding, J of an item's vector (2E, or E of a text model).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bedstone.checkpoints.model import Model
from bedstone.data.dataset import Dataset
from bedstone.data.open import with_images
from bedstone.errors import BedstoneError, nearest
from bedstone.settings import optional, share, whole
from bedstone.tasks.images.engine import is_image
from bedstone.tasks.moderation.moderation import Item, is_image_item, item_of
from bedstone.tasks.task import Options, Task, embeds_both, shown
from bedstone.tasks.text.feature_extraction import Embeds, can_embed, embedder_of, unit

BATCH = 512  # items embedded between two blocks


@dataclass(frozen=True)
class CatalogueOptions(Options):
    """Options of similar-items and complementary-items.

    Attributes:
        catalogue: a file or folder of rows (see `data.sources`), or a list of dictionaries, with
            a text, an image or both, and any other columns; or a `Catalogue`, embedded already.
        text, image, id: the columns of these, where they haven't usual names; an item without an
            id is called by its number.
        text_weight: the share of the text in how alike two items are; of an item that has only one
            of the two, that one counts alone.
        top_k: how many are found.
    """

    catalogue: Any = None
    text: str | None = None
    image: str | None = None
    id: str = "id"
    text_weight: float = share(default=0.5)
    top_k: int = whole(1, default=5)


@dataclass(frozen=True)
class Catalogue:
    """The embedded items of a catalogue.

    Attributes:
        rows: n of them, as read, without their images.
        ids: of each, its name.
        vectors: (n, J) of length 1.
    """

    rows: Sequence[dict[str, Any]]
    ids: dict[str, int]
    vectors: np.ndarray

    def place(self, item: Any) -> int | None:
        """The number of the item of this id; None where there is none."""
        return self.ids.get(str(item))


class SimilarItems(Task):
    """An item -> those most like it, each {"id", "score", "row"}, best first, never itself.

    An item is the id of one in the catalogue, or a new one: `{"text": ..., "image": ...}` with
    either or both, or an image alone.
    """

    name = "similar-items"
    asks = "a model that embeds texts (and pictures: a CLIP)"
    settings: ClassVar[type[Any]] = CatalogueOptions
    reads: ClassVar[str] = "both"

    def open(self, precision: str) -> None:
        self.embedder: Embeds = embedder_of(self.model, precision)
        self._kept: tuple[Any, tuple[Any, ...], Catalogue] | None = None

    @classmethod
    def fits(cls, model: Model) -> bool:
        return can_embed(model)

    def is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str | int | dict) or is_image_item(inputs)

    def prepare(self, value: Any, options: CatalogueOptions) -> int | Item:
        """The number of an item of the catalogue, or a new one."""
        if isinstance(value, str | int):
            catalogue = self.catalogue(options)
            place = catalogue.place(value)
            if place is None:
                raise BedstoneError(
                    f"no item of the catalogue has the id {str(value)[:60]!r}"
                    f"{nearest(str(value), list(catalogue.ids)[:2000])}. A new item is given as "
                    '{"text": ...}.'
                )
            return place
        return item_of(value)

    def results(
        self, rows: Sequence[int | Item], options: CatalogueOptions
    ) -> Iterator[list[dict[str, Any]]]:
        catalogue = self.catalogue(options)
        for row, query in zip(rows, self.queries(rows, catalogue, options), strict=True):
            scores = catalogue.vectors @ query
            yield list(self.best(scores, row, catalogue, options.top_k))

    def queries(
        self, rows: Sequence[int | Item], catalogue: Catalogue, options: CatalogueOptions
    ) -> np.ndarray:
        """(len(rows), J): vectors of known items and of new ones."""
        new = [row for row in rows if isinstance(row, Item)]
        made = iter(self.vectors(new, options.text_weight))
        return np.stack(
            [next(made) if isinstance(row, Item) else catalogue.vectors[row] for row in rows]
        )

    def best(
        self, scores: np.ndarray, row: Any, catalogue: Catalogue, count: int
    ) -> Iterator[dict[str, Any]]:
        """The items of the highest scores, without the one that was asked about."""
        names = list(catalogue.ids)
        for place in np.argsort(-scores, kind="stable"):
            if count and not (isinstance(row, int) and place == row):
                count -= 1
                columns = dict(catalogue.rows[place])
                yield {"id": names[place], "score": float(scores[place]), "row": columns}

    def vectors(self, items: Sequence[Item], text_weight: float) -> np.ndarray:
        """(n, J) of length 1. Raises BedstoneError where an image or a text can't be read."""
        texts = [n for n, item in enumerate(items) if item.text is not None]
        images = [n for n, item in enumerate(items) if item.image is not None]
        parts = []
        if embeds_both(self.model):
            parts.append((images, self.embedder.images([items[n].image for n in images])))
        elif len(texts) < len(items):
            self.embedder.images([])  # raises: a text model sees none
        words = self.embedder.texts([str(items[n].text) for n in texts])
        parts.append((texts, words))
        weights = [1 - text_weight, text_weight] if len(parts) > 1 else [1.0]
        width = words.shape[1]
        found = np.zeros((len(items), width * len(parts)), dtype=np.float32)
        for number, ((own, rows), weight) in enumerate(zip(parts, weights, strict=True)):
            found[own, number * width : (number + 1) * width] = rows * max(weight, 1e-6) ** 0.5
        return unit(found)  # of an item with one part alone, that part whole

    def catalogue(self, options: CatalogueOptions) -> Catalogue:
        """The catalogue, read and embedded once.

        Raises:
            BedstoneError: there is none, it has no text and no image, or an id twice.
        """
        how = (options.text, options.image, options.id, options.text_weight)
        if isinstance(options.catalogue, Catalogue):
            return options.catalogue
        kept = self._kept
        if kept is None or not same(kept[0], options.catalogue) or kept[1] != how:
            self._kept = kept = options.catalogue, how, self._read(options)
        return kept[2]

    def _read(self, options: CatalogueOptions) -> Catalogue:
        rows = rows_of(options.catalogue, "catalogue", options.text, options.image)
        text = rows.column("text")
        ids: dict[str, int] = {}
        items = []
        for number, row in enumerate(rows.rows):
            name = str(row.get(options.id, number))
            if name in ids:
                raise rows.fault(
                    number, options.id, f"is {name!r}, as of an earlier item", "Give each its own."
                )
            ids[name] = number
            words = row.get(text) if text else None
            words = words if isinstance(words, str) and words.strip() else None
            image = row["image"] if embeds_both(self.model) or words is None else None
            if words is None and image is None:
                raise BedstoneError(
                    f"{rows.where(number)}: has neither a text nor an image. Fill one in, or leave "
                    "the row out."
                )
            items.append(Item(words, image))
        parts = [
            self.vectors(items[start : start + BATCH], options.text_weight)
            for start in range(0, len(items), BATCH)
        ]
        return Catalogue([_described(row) for row in rows.rows], ids, np.concatenate(parts))


def _described(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of an item: all but images, whatever their column is called."""
    return {
        key: each
        for key, each in row.items()
        if key != "image" and (isinstance(each, str) or not is_image(each))
    }


def same(one: Any, other: Any) -> bool:
    """Whether two sources are one: the same name, or the very same list."""
    return one is other or (isinstance(one, str | Path) and one == other)


def rows_of(given: Any, what: str, text: str | None = None, image: str | None = None) -> Dataset:
    """Rows with an image or None as `image`, from a source's name or from a list.

    Raises:
        BedstoneError: there are none, or they are no rows.
    """
    if given is None:
        raise BedstoneError(f"{what}: none was given; name its file or folder, or give its rows.")
    columns = {"text": text} if text else None
    if isinstance(given, list | tuple):
        if not all(isinstance(row, Mapping) for row in given):
            raise BedstoneError(f"{what}: holds {shown(given)}; expected a list of dictionaries.")
        rows = [{**row, "image": row.get(image or "image")} for row in given]
        return Dataset(rows, what, columns)
    return with_images(given, columns=columns, image=image)


# Which items go together: learnt from pairs that did, or by a like style in another category.
#
# From pairs: a linear map from an item's vector to its partner's, by ridge regression in closed
# form, as word vectors of two languages are mapped (Mikolov, Le and Sutskever, 2013,
# https://arxiv.org/abs/1309.4168). Both directions of a pair are learnt from.
#
# Without pairs: a style is what remains of a vector once the mean of its category is taken off:
# what a red shirt and red shoes share, beside being shirts and shoes. It is a heuristic.
#
# Shapes: n items, P pairs, E numbers of a vector.

RIDGE = 0.05  # of the mean eigenvalue of the Gram matrix: pairs are few beside E squared
FEWEST = 2  # items of a category, so that its mean isn't the item itself


def fit_co_purchase(vectors: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """(E, E): the linear map from an item's vector (a row) to those of items bought with it.

    The mean companion is left out: what goes with everything says nothing of what goes with this.

    Raises:
        BedstoneError: there are no pairs.
    """
    if not len(pairs):
        raise BedstoneError("pairs: there are none; expected at least one of two items.")
    ends = np.asarray(pairs)
    own = vectors[np.concatenate([ends[:, 0], ends[:, 1]])].astype(float)  # (2P, E)
    other = vectors[np.concatenate([ends[:, 1], ends[:, 0]])].astype(float)
    centre = vectors.mean(0)
    own, other = own - centre, other - centre
    gram = own.T @ own
    gram += RIDGE * max(np.trace(gram) / len(gram), 1e-9) * np.eye(len(gram))
    found: np.ndarray = np.linalg.solve(gram, own.T @ other)
    return found.astype(np.float32)


def styles(vectors: np.ndarray, categories: Sequence[str]) -> np.ndarray:
    """(n, E) of length 1: vectors less the mean of their category; of an only one, of all."""
    found = vectors - vectors.mean(0)
    names = np.asarray(categories)
    for name in set(categories):
        own = names == name
        if own.sum() >= FEWEST:
            found[own] = vectors[own] - vectors[own].mean(0)
    return unit(found)


# complementary-items: what of a catalogue goes with an item. `tasks.search.recommend` says how.
#
# Shapes: n items, J of an item's vector.


@dataclass(frozen=True)
class ComplementaryOptions(CatalogueOptions):
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
    per_category: int | None = optional(whole(1, default=1))


class ComplementaryItems(SimilarItems):
    """An item -> those that go with it, each {"id", "score", "row"}, best first.

    With `pairs`, by a map learnt from them (see `tasks.search.recommend`); without, by a like
    style among items of other categories, which needs an item of the catalogue.
    """

    name = "complementary-items"
    settings: ClassVar[type[Any]] = ComplementaryOptions

    def open(self, precision: str) -> None:
        super().open(precision)
        self._learnt_map: tuple[Catalogue, Any, np.ndarray] | None = None

    def results(self, rows: Sequence[int | Item], options: Any) -> Iterator[list[dict[str, Any]]]:
        catalogue = self.catalogue(options)
        kinds = self._kinds(catalogue, options)
        if options.pairs is not None:
            own = self.queries(rows, catalogue, options) - catalogue.vectors.mean(0)
            queries = unit(own @ self._map(catalogue, options))
            known = unit(catalogue.vectors - catalogue.vectors.mean(0))
        else:
            if not kinds:
                raise BedstoneError(
                    "complementary-items: neither pairs nor category was given; name a file of "
                    "items that went together, or the column of what kind of thing an item is."
                )
            known = styles(catalogue.vectors, kinds)
            for row in rows:
                if isinstance(row, Item):
                    raise BedstoneError(
                        "complementary-items: of a new item the category isn't known; give the id "
                        "of one in the catalogue, or pairs to learn from."
                    )
            queries = known[[int(row) for row in rows if isinstance(row, int)]]
        for row, query in zip(rows, queries, strict=True):
            scores = known @ query
            kind = kinds[row] if kinds and isinstance(row, int) else None
            ranked = self.best(scores, row, catalogue, len(catalogue.rows))
            yield list(_varied(ranked, catalogue, kinds, kind, options))

    def _kinds(self, catalogue: Catalogue, options: ComplementaryOptions) -> list[str]:
        if options.category is None:
            return []
        known = {key for row in catalogue.rows for key in row}
        if options.category not in known:
            raise BedstoneError(
                f"category: the catalogue has no column {options.category!r}"
                f"{nearest(options.category, known)}."
            )
        return [str(row.get(options.category)) for row in catalogue.rows]

    def _map(self, catalogue: Catalogue, options: ComplementaryOptions) -> np.ndarray:
        known = self._learnt_map
        if known is None or known[0] is not catalogue or not same(known[1], options.pairs):
            found = fit_co_purchase(catalogue.vectors, read_pairs(options.pairs, catalogue))
            self._learnt_map = known = catalogue, options.pairs, found
        return known[2]


def _varied(
    ranked: Iterator[dict[str, Any]],
    catalogue: Catalogue,
    kinds: Sequence[str],
    own: str | None,
    options: ComplementaryOptions,
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
