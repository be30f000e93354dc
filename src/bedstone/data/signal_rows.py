"""Rows of pictures or sounds in a source, each with the class or words it is to be made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bedstone.data.pair_reader import PARTS, Reader, open_pairs
from bedstone.data.pair_rows import Raw
from bedstone.data.pairs import Pair, PairRows
from bedstone.data.picture_columns import columns_of, read_picture
from bedstone.data.pictured import Picture
from bedstone.errors import BedstoneError, nearest
from bedstone.recipes_diffusion import SignalsConfig

AUDIO = ("audio", "sound", "wav", "file_name", "audio_path", "path", "bytes")
NAMED = {"text": PARTS["text"], "label": PARTS["label"], "negatives": ()}  # no wrong texts here


@dataclass(frozen=True)
class SignalReader(Reader):
    """What a row's columns mean, where its picture is made from nothing, a class or words.

    Attributes, besides those of pairs:
        condition: none, class or text.
    """

    condition: str = "none"
    parts: ClassVar = {"image": PARTS["image"], **NAMED}

    def pair(self, raw: Raw, names: Mapping[str, str]) -> Pair:
        for part, column in self.columns.items():
            if column not in raw.values and "{" not in str(column):
                raise BedstoneError(
                    f"{raw.place}: has no column {column!r}, which data.columns.{part} names"
                    f"{nearest(str(column), map(str, raw.values))}."
                )
        if self.condition == "text":
            return super().pair(raw, names)
        label = self._label(raw, names) if self.condition == "class" else None
        if self.condition == "class" and label is None:
            raise BedstoneError(
                f"{raw.place}: has no class ({', '.join(PARTS['label'])}); it has "
                f"{columns_of(raw)}. Name the column: data.columns: {{label: ...}}"
            )
        return Pair(self.picture(raw), (), label=label, place=raw.place)


@dataclass(frozen=True)
class SoundReader(SignalReader):
    """The same of sounds: encoded bytes or files."""

    parts: ClassVar = {"audio": AUDIO, **NAMED}

    def picture(self, raw: Raw) -> Picture:
        """A row's sound, not decoded."""
        column = self.column("audio", raw.values)
        if column is None:
            raise BedstoneError(
                f"{raw.place}: has no column for the sound ({', '.join(AUDIO)}); it has "
                f"{columns_of(raw)}. Name it: data.columns: {{audio: ...}}"
            )
        try:
            return read_picture(raw, raw.values[column], f"column {column!r}")
        except BedstoneError as error:
            raise BedstoneError(str(error).replace("no picture", "no sound")) from None


def open_rows(
    kind: type[SignalReader], name: str, data: SignalsConfig, condition: str, seed: int
) -> PairRows:
    """The rows of a source, at most `data.most_rows` of them.

    Raises:
        BedstoneError: there is no such data, or too much of it is broken.
    """
    reader = kind(data.columns, data.templates, data.classes, condition)
    rows = open_pairs(name, reader, split=data.split, most_broken=data.most_broken)
    return rows.take(data.most_rows, seed)


def labels_of(rows: PairRows, condition: str, names: Sequence[str] = ()) -> dict[str, Any]:
    """The classes or captions of rows, as `Signals` takes them.

    Args:
        names: of the classes, where they are known; else those of the rows, numbers by their size.

    Raises:
        BedstoneError: a row is of another class than those known, or all are of one.
    """
    if condition == "text":
        return {"captions": [pair.captions for pair in rows]}
    if condition != "class":
        return {}
    if not names:
        whole = all(name.removeprefix("-").isdecimal() for name in rows.classes)
        names = sorted(rows.classes, key=int) if whole else rows.classes
    numbers = {name: number for number, name in enumerate(names)}
    for pair in rows:
        if pair.label not in numbers:
            raise BedstoneError(
                f"{pair.place}: is of class {pair.label!r}, which is none of the {len(names)} "
                f"learnt{nearest(str(pair.label), names)}."
            )
    return {"classes": [numbers[str(pair.label)] for pair in rows], "names": names}
