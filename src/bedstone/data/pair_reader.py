"""What a row's columns mean: rows as files have them to pairs of a picture and its texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedstone.data import scene_pairs, scenes
from bedstone.data.pair_rows import Raw, raw_rows
from bedstone.data.pairs import TEMPLATES, Pair, PairRows
from bedstone.data.picture_columns import IMAGE, TEXT, ColumnReader, columns_of, texts_in
from bedstone.data.pictured import Faults
from bedstone.errors import BedstoneError, nearest

PARTS = {
    "image": IMAGE,
    "text": TEXT,
    "label": ("label", "labels", "class"),
    "negatives": ("negatives", "negative", "hard_negatives"),
}


@dataclass(frozen=True)
class Reader(ColumnReader):
    """What a row's columns mean.

    Attributes, besides the columns:
        templates: what makes a text of a class's name.
        classes: names of classes by what stands in the column of labels; empty takes the set's
            own names, or what stands there.
    """

    templates: Sequence[str] = ()
    classes: Mapping[Any, str] | Sequence[str] = ()
    parts = PARTS

    def __post_init__(self) -> None:
        super().__post_init__()
        for template in self.templates:
            if "{label}" not in template:
                raise BedstoneError(
                    f"data.templates: {template!r} has no place for a label; expected such as "
                    f"{TEMPLATES[0]!r}."
                )

    def names(self, own: Sequence[str]) -> dict[str, str]:
        """Names of the classes by what stands in a row, as text."""
        given: Any = self.classes or own
        pairs = given.items() if isinstance(given, Mapping) else enumerate(given)
        return {str(key): str(name) for key, name in pairs}

    def pair(self, raw: Raw, names: Mapping[str, str]) -> Pair:
        """A row as a pair.

        Raises:
            BedstoneError: it has no picture or no text, naming the row and the column.
        """
        label = self._label(raw, names)
        column = self.column("text", raw.values)
        if column is not None and (column in self.columns.values() or column in raw.values):
            captions, made = texts_in(raw, column), False
        elif label is not None:
            forms = self.templates or TEMPLATES
            captions, made = tuple(form.replace("{label}", label) for form in forms), True
        else:
            raise BedstoneError(
                f"{raw.place}: has no text ({', '.join(TEXT)}) and no label; it has "
                f"{columns_of(raw)}. Name the column: data.columns: {{text: ...}} or {{label: ...}}"
            )
        negative = self.column("negatives", raw.values)
        wrong = texts_in(raw, negative) if negative and raw.values.get(negative) else ()
        return Pair(self.picture(raw), captions, wrong, label, made, raw.place)

    def _label(self, raw: Raw, names: Mapping[str, str]) -> str | None:
        column = self.column("label", raw.values)
        value = raw.values.get(column) if column is not None else None
        if value is None or isinstance(value, list | dict) or not str(value).strip():
            return None
        told = str(value).strip()
        if names and told not in names and told not in names.values():
            raise BedstoneError(
                f"{raw.place}: column {column!r} holds {told!r}, which is none of the "
                f"{len(names)} classes{nearest(told, names)}."
            )
        return names.get(told, told)


def open_pairs(
    name: str | Path,
    reader: Reader | None = None,
    *,
    split: str | None = None,
    most_broken: float = 0.05,
) -> PairRows:
    """All pairs of a source; see `pair_rows` for what it may be. `scenes` is built in.

    Raises:
        BedstoneError: there is no such data, it can't be read, or too much of it is broken.
    """
    if str(name) == scenes.NAME:
        return scene_pairs.measured_scenes(split or "test")
    reader = reader or Reader()
    own: dict[str, list[str]] = {}
    faults = Faults(str(name), most_broken)
    pairs: list[Pair] = []
    named: dict[str, str] = {}
    for raw in raw_rows(str(name), split, own):
        if not faults.rows:
            named = reader.names(own.get(reader.column("label", raw.values) or "", ()))
        faults.rows += 1
        try:
            pairs.append(reader.pair(raw, named))
        except BedstoneError as error:
            faults.add(error)
    faults.check()
    classes = tuple(dict.fromkeys(named.values()))
    templates = reader.templates or TEMPLATES
    return PairRows(pairs, str(name), classes=classes, templates=templates, faults=faults)
