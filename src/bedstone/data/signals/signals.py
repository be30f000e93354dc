"""Signals for diffusion models: images, sounds, videos or volumes, with a class or captions each.

All are arrays of one shape in memory: channels first, then one to three sides. Built-in signals
are drawn when they are first asked for.

Shapes: N signals, B of a batch, C channels, S sides.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bedstone.data.open import check_classes, check_objects
from bedstone.data.records import MOST_BROKEN, Faults
from bedstone.data.stream import Tensors
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.settings import Settings, one_of, share, whole

MB = 1 << 20
# Of signals (B, C, *S) and what draws by chance, or None for what is always the same:
# (B, channels, *S) that a network reads beside them.
Beside = Callable[[Tensor, np.random.Generator | None], Tensor]


class Signals:
    """Rows of signals.

    Args:
        values: (N, C, *S) uint8, of which 0 to 255 are -1 to 1, or float32 as they are; or what
            draws one of them by its number, with `shape`.
        kind: image, audio, video or volume.
        name: what they are called in messages.
        classes: the class of each, by its number in `names`.
        names: of the classes.
        captions: one or more true texts of each.
        embeddings: of each by a CLIP, (N, E) float32, for what draws from them.
        places: where each is from, for messages.
        shape: (N, C, *S) of what is drawn.
        faults: rows that were left out.

    Raises:
        BedstoneError: there is none; or a class is out of range, a text missing, a value not
            finite, naming its row.
    """

    def __init__(
        self,
        values: np.ndarray | Callable[[int], np.ndarray],
        *,
        kind: str,
        name: str,
        classes: Sequence[int] | np.ndarray | None = None,
        names: Sequence[str] = (),
        captions: Sequence[Sequence[str]] | None = None,
        embeddings: np.ndarray | None = None,
        places: Sequence[str] | None = None,
        shape: tuple[int, ...] = (),
        faults: Faults | None = None,
    ) -> None:
        self._draw = values if callable(values) else None
        # Memory that nothing was written to yet takes none.
        self.values = np.empty(shape, np.uint8) if callable(values) else values
        self._drawn = np.zeros(len(self.values), bool)
        self.kind, self.name, self.names = kind, name, tuple(names)
        self.classes = None if classes is None else np.asarray(classes, np.int64)
        self.captions = None if captions is None else [tuple(texts) for texts in captions]
        self.embeddings = embeddings
        self.beside: Beside | None = None  # makes what is read beside signals, of them
        count = len(self.values)
        self.places = list(places) if places else [f"{name} {row}" for row in range(count)]
        self.faults = faults or Faults(name, 0.0, count)
        self._check()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *S) of a signal."""
        return self.values.shape[1:]

    def read(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """Signals by their rows' numbers, (B, C, *S) float32, of about -1 to 1."""
        rows = np.asarray(rows, np.int64)
        if self._draw is not None:
            for row in rows[~self._drawn[rows]]:  # two threads may draw the same
                self.values[row] = self._draw(int(row))
                self._drawn[row] = True
        found = torch.from_numpy(self.values[rows])
        return found.float().div_(127.5).sub_(1) if found.dtype == torch.uint8 else found

    def texts(self) -> Iterator[str]:
        """Every distinct caption, in the rows' order."""
        yield from dict.fromkeys(text for texts in self.captions or () for text in texts)

    def pick(self, chosen: Sequence[int] | np.ndarray) -> "Signals":
        """Some of the rows, by their numbers; the names of classes stay."""
        rows = np.asarray(chosen, np.int64)
        draw = self._draw
        found = Signals(
            self.values[rows] if draw is None else lambda row: draw(int(rows[row])),
            kind=self.kind,
            name=self.name,
            classes=None if self.classes is None else self.classes[rows],
            names=self.names,
            captions=None if self.captions is None else [self.captions[row] for row in rows],
            embeddings=None if self.embeddings is None else self.embeddings[rows],
            places=[self.places[row] for row in rows],
            shape=(len(rows), *self.shape),
            faults=self.faults,
        )
        found.beside = self.beside
        return found

    def take(self, count: int, seed: int = 0) -> "Signals":
        """At most `count` of the rows, drawn by `seed`, in their order; 0 takes all."""
        if not count or count >= len(self):
            return self
        return self.pick(np.sort(np.random.default_rng(seed).permutation(len(self))[:count]))

    def hold_out(self, share: float) -> tuple["Signals", "Signals"]:
        """Rows to train on and rows held out; equal signals stay on one side.

        Raises:
            BedstoneError: a side would be empty.
        """
        held = np.array([int.from_bytes(self._hash(row)[:6], "big") for row in range(len(self))])
        out = held < share * 2**48
        if out.all() or not out.any():
            raise BedstoneError(
                f"data {self.name!r}: has too few rows ({len(self):,}) to hold out {share:.0%} of "
                "them. Name more rows, or rows to validate on (data.validation)."
            )
        return self.pick(np.flatnonzero(~out)), self.pick(np.flatnonzero(out))

    def fingerprint(self) -> str:
        """A hash (hex) of all rows in their order, with their classes and captions."""
        digest = hashlib.sha256(f"{self.kind} {self.shape} {self.names}".encode())
        for row in range(len(self)):
            label = None if self.classes is None else int(self.classes[row])
            texts = None if self.captions is None else self.captions[row]
            digest.update(self._hash(row) + f"{label} {texts!r}".encode())
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """The record of the signals in an artefact."""
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "classes": list(self.names),
            "fingerprint": self.fingerprint(),
            "rows": len(self),
            "left_out": len(self.faults.broken),
        }

    def describe(self) -> str:
        """How many signals, classes and texts there are, in a line."""
        text = f"{len(self):,} signals ({self.kind}) of {' x '.join(map(str, self.shape))}"
        if self.classes is not None:
            text += f", {len(self.names):,} classes"
        if self.captions is not None:
            text += f", {sum(map(len, self.captions)):,} texts"
        return text + self.faults.left_out("; ")

    def _hash(self, row: int) -> bytes:
        """A hash of a signal's values; of a drawn one, of its place."""
        content = self.values[row].tobytes() if self._draw is None else self.places[row].encode()
        return hashlib.sha256(content).digest()

    def _check(self) -> None:
        count = len(self)
        if not count:
            left = self.faults.left_out(" ")
            raise BedstoneError(f"data {self.name!r}: holds no signal to learn from.{left}")
        of_rows = {"classes": self.classes, "texts": self.captions, "embeddings": self.embeddings}
        for what, given in of_rows.items():
            if given is not None and len(given) != count:
                raise BedstoneError(
                    f"data {self.name!r}: {count:,} signals have {len(given):,} {what}; expected "
                    "one for each."
                )
        if self.classes is not None:
            wrong = np.flatnonzero((self.classes < 0) | (self.classes >= len(self.names)))
            for row in wrong[:1]:
                raise BedstoneError(
                    f"{self.places[row]}: is of class {self.classes[row]}; expected 0 to "
                    f"{len(self.names) - 1}. Mend or remove that row."
                )
        for row, texts in enumerate(self.captions or ()):
            if not texts:
                raise BedstoneError(f"{self.places[row]}: has no text. Mend or remove that row.")
        if self.values.dtype not in (np.uint8, np.float32):
            raise BedstoneError(
                f"data {self.name!r}: holds {self.values.dtype} values; expected uint8 or float32."
            )
        if self.values.dtype == np.float32:
            for row, value in enumerate(self.values):
                if not np.isfinite(value).all():
                    raise BedstoneError(
                        f"{self.places[row]}: holds values that aren't finite. Mend or remove it."
                    )


def check_memory(shape: tuple[int, ...], item: int, memory_mb: float, name: str) -> None:
    """Raises BedstoneError where signals (N, C, *S), of `item` bytes a value, need more memory."""
    needed = float(np.prod([float(side) for side in shape])) * item / MB
    if needed > memory_mb:
        raise BedstoneError(
            f"data {name!r}: {shape[0]:,} signals of {' x '.join(map(str, shape[1:]))} take "
            f"{needed:,.0f} MB, more than data.memory_mb = {memory_mb:,.0f}. Take fewer "
            "(data.most_rows) or smaller ones (data.size), or raise it."
        )


# The condition of a signal: a class, a text, or none.
#
# Shapes: B rows, T tokens.


@dataclass(frozen=True)
class Condition(Tensors):
    """The conditions of a batch's rows: classes, or texts, with texts embeddings of images; or what
    is read beside the signals.

    Attributes:
        classes: (B,) int64; the number of classes is no class.
        ids: (B, T) int64 tokens of texts.
        keep: (B, T) bool, which of them are words and no filling.
        embedding: (B, E) float32 of images by a CLIP; zeros are none.
        beside: (B, channels, *S) float32, read beside the noisy signals.
    """

    classes: Tensor | None = None
    ids: Tensor | None = None
    keep: Tensor | None = None
    embedding: Tensor | None = None
    beside: Tensor | None = None

    def __len__(self) -> int:
        return len(next(iter(self.arguments().values()), ()))

    def arguments(self) -> dict[str, Tensor]:
        """The network's conditioning arguments by their names."""
        fields = {"classes": self.classes, "ids": self.ids, "keep": self.keep}
        fields |= {"embedding": self.embedding, "beside": self.beside}
        return {name: value for name, value in fields.items() if value is not None}

    def pick(self, rows: Tensor | Sequence[int] | slice) -> "Condition":
        """Some of the rows, by their numbers or a mask."""
        chosen = rows if isinstance(rows, slice | Tensor) else torch.tensor(rows)
        return Condition(**{name: value[chosen] for name, value in self.arguments().items()})

    def spread(self, rows: int) -> "Condition":
        """A condition of one row as one of many equal ones."""
        found = {k: v.expand(rows, *v.shape[1:]) for k, v in self.arguments().items()}
        return Condition(**found)

    def but(self, drop: Tensor, null: "Condition") -> "Condition":
        """The same with `null`, of one row, in the rows (B,) where `drop` is true."""
        both = joined((self, null.spread(len(self))))
        here = torch.arange(len(self), device=drop.device)
        return both.pick(torch.where(drop, here + len(self), here))


def joined(conditions: Sequence[Condition]) -> Condition:
    """The rows of several conditions of one kind, texts filled up to the longest."""
    found: dict[str, Tensor] = {}
    for name in conditions[0].arguments():
        parts = [each.arguments()[name] for each in conditions]
        if name in ("ids", "keep"):
            longest = max(part.shape[1] for part in parts)
            parts = [torch.nn.functional.pad(part, (0, longest - part.shape[1])) for part in parts]
        found[name] = torch.cat(parts)
    return Condition(**found)


def class_condition(classes: Sequence[int] | Tensor, count: int) -> Condition:
    """Classes by their numbers, of `count` there are; `count` itself is no class.

    Raises:
        BedstoneError: a class is out of range.
    """
    numbers = torch.as_tensor(classes, dtype=torch.int64).flatten()
    for number in numbers.tolist():
        if not 0 <= number <= count:
            raise BedstoneError(
                f"class {number} is out of range; the model knows {count} classes, 0 to "
                f"{count - 1}."
            )
    return Condition(classes=numbers)


def text_condition(rows: Sequence[Sequence[int]], length: int = 0, pad: int = 0) -> Condition:
    """Texts by their tokens, filled with `pad` up to the longest, or to `length`.

    Raises:
        BedstoneError: a text has no token, which a network couldn't attend to.
    """
    if not all(len(row) for row in rows):
        raise BedstoneError("a text has no tokens; the tokenizer must set one around each text.")
    length = max(length, max(map(len, rows)))
    ids = torch.full((len(rows), length), pad, dtype=torch.int64)
    keep = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
        keep[number, : len(row)] = True
    return Condition(ids=ids, keep=keep)


@dataclass(frozen=True)
class Prompts:
    """Encodes prompts as conditions.

    Attributes:
        tokenizer: with a token around each text, so that no text is empty.
        context: tokens of a text at most; longer ones are cut.
    """

    tokenizer: Tokenizer
    context: int

    def __post_init__(self) -> None:
        if not self.nothing:
            raise BedstoneError(
                "tokenizer: sets no token around a text, so that a text which says nothing has "
                "none. Use a CLIP's or a BERT's, or train one (tokenizer.kind: wordpiece)."
            )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, not cut."""
        return [self.tokenizer.encode(text, special=True) for text in texts]

    @property
    def nothing(self) -> list[int]:
        """The tokens of the empty text."""
        return self.encode([""])[0]

    @property
    def pad(self) -> int:
        """The id that fills shorter texts up."""
        return self.tokenizer.pad_id or 0

    def condition(self, texts: Sequence[str]) -> Condition:
        """The condition of each text.

        Raises:
            BedstoneError: a text is none, or longer than the network reads.
        """
        rows = self.encode(texts)
        for text, row in zip(texts, rows, strict=True):
            if len(row) > self.context:
                raise BedstoneError(
                    f"prompt: {text[:60]!r}... has {len(row)} tokens; the model reads "
                    f"{self.context} at most. Say it in fewer words."
                )
        return text_condition(rows, pad=self.pad)


KINDS = {"image": 2, "audio": 1, "video": 3, "volume": 3}  # of signals, and how many sides each has
# Tasks of generation: (condition, kind of signal).
TASKS = {
    f"{condition}-to-{kind}" if condition != "none" else f"unconditional-{kind}-generation": (
        condition,
        kind,
    )
    for kind in KINDS
    for condition in ("none", "class", "text")
}
CAPTIONS = ("whole", "all")


@dataclass
class SignalsConfig(Settings):
    """The signals that a run is trained on.

    Attributes:
        source: built in: scenes, moving-scenes (video) or solids (volumes); else a Parquet, Arrow,
            JSONL or CSV file, a folder, a glob or a hub id of rows with pictures or sounds; of
            videos and volumes, a .npz file (`data.signals.open`).
        validation: another source to validate on; empty holds out a share of `source`.
        split: of a hub id or a folder with splits.
        validation_share: share of the rows held out.
        columns: which column holds what, where the usual names aren't used, as `{label: digit}`;
            parts: image or audio, label, text.
        templates: texts made of a label, as `the digit {label}`, where rows have no text.
        classes: names of the classes by what stands in the rows: a list or a mapping.
        size: of a signal: [height, width], [frames] of sounds, [frames, height, width] of videos,
            [depth, height, width] of volumes.
        channels: of pictures: 3, or 1 for grey ones.
        sound: how sounds become signals: the fields of `data.signals.audio.Spectrogram` but
            `frames`.
        most_rows: maximum number of rows, chosen by the seed; 0 takes all. Of built-in data, how
            many are made; 0 takes the default of each.
        most_broken: share of rows that may be broken; such rows are left out and named.
        objects: things in a picture of scenes, the fewest and the most.
        captions: of scenes: whole, sentences that name every thing with its colour, or all kinds.
        signs: whether scenes may have signs with words.
        sizes: of things in scenes, moving or not: small, medium, large; empty is all of them. A
            small one in a picture of 32 pixels has 6 from side to side.
        textures: whether things in scenes, moving ones too, may be striped or dotted.
        memory_mb: megabytes that the signals may take, all of them.
        workers: threads that make batches ready.
    """

    source: str = "scenes"
    validation: str = ""
    split: str | None = None
    validation_share: float = share(below_one=True, default=0.05)
    columns: dict[str, Any] = field(default_factory=dict)
    templates: list[str] = field(default_factory=list)
    classes: Any = field(default_factory=list)
    size: tuple[int, ...] = ()
    channels: int = one_of(3, 1, default=3)
    sound: dict[str, Any] = field(default_factory=dict)
    most_rows: int = whole(0, default=0)
    most_broken: float = share(below_one=True, default=MOST_BROKEN)
    objects: tuple[int, ...] = (1, 2)
    captions: str = one_of(*CAPTIONS, default="whole")
    signs: bool = False
    sizes: list[str] = field(default_factory=list)
    textures: bool = True
    memory_mb: float = 4096.0
    workers: int = whole(0, default=1)

    section: ClassVar[str] = "data."

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(side < 1 for side in self.size):
            raise BedstoneError(f"data.size: {list(self.size)} was given; expected 1 or more each.")
        check_objects(self.objects)
        check_classes(self.classes)

    @property
    def things(self) -> tuple[int, int]:
        """The fewest and the most objects of a scene."""
        return self.objects[0], self.objects[1]
