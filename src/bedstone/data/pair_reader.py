"""What a row's columns mean: rows as files have them to pairs of a picture and its texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bedstone.data import scene_pairs
from bedstone.data.pair_rows import Raw, raw_rows
from bedstone.data.pairs import TEMPLATES, Pair, PairRows
from bedstone.data.picture_columns import picture_in, texts_in
from bedstone.data.pictured import Faults, Picture
from bedstone.errors import BedstoneError, nearest

# A part of a row, and the columns that may hold it.
PARTS = {
    "image": ("image", "img", "picture", "file_name", "image_path", "path", "jpg", "png"),
    "text": ("text", "caption", "captions", "texts", "sentences"),
    "label": ("label", "labels", "class"),
    "negatives": ("negatives", "negative", "hard_negatives"),
}


@dataclass(frozen=True)
class Reader:
    """What a row's columns mean.

    Attributes:
        columns: {part: column}, where the usual names aren't used.
        templates: what makes a text of a class's name.
        classes: names of classes by what stands in the column of labels; empty takes the set's
            own names, or what stands there.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    templates: Sequence[str] = ()
    classes: Mapping[Any, str] | Sequence[str] = ()

    def __post_init__(self) -> None:
        for part in self.columns:
            if part not in PARTS:
                raise BedstoneError(
                    f"data.columns: {part!r} is no part of a row{nearest(part, PARTS)}."
                )
        for template in self.templates:
            if "{label}" not in template:
                raise BedstoneError(
                    f"data.templates: {template!r} has no place for a label; expected such as "
                    f"{TEMPLATES[0]!r}."
                )

    def column(self, part: str, values: Mapping[str, Any]) -> str | None:
        """The column of a row that holds a part; None where it has none."""
        if part in self.columns:
            return self.columns[part]
        return next((name for name in PARTS[part] if name in values), None)

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
            have = ", ".join(sorted(repr(str(key)) for key in raw.values)[:20])
            raise BedstoneError(
                f"{raw.place}: has no text ({', '.join(PARTS['text'])}) and no label; it has "
                f"{have}. Name the column: data.columns: {{text: ...}} or {{label: ...}}"
            )
        negative = self.column("negatives", raw.values)
        wrong = texts_in(raw, negative) if negative and raw.values.get(negative) else ()
        return Pair(self._picture(raw), captions, wrong, label, made, raw.place)

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

    def _picture(self, raw: Raw) -> Picture:
        return picture_in(raw, self.column("image", raw.values), PARTS["image"])


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
    if str(name) == scene_pairs.NAME:
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
