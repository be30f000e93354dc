"""token-classification, also called ner: entities of a text, or a label for each of its tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from bedstone.checkpoints.model import Model
from bedstone.data.text.encode import Input, word_windows
from bedstone.data.text.packing import Packed
from bedstone.errors import BedstoneError, nearest
from bedstone.tasks.task import Options, Prepared, Reader, shown, text_of
from bedstone.tasks.text.question_answering import best_places

STRATEGIES = ("none", "simple", "first", "average", "max")
Joined = Callable[[Sequence[str]], str]  # names of tokens to their text


@dataclass(frozen=True)
class Piece:
    """A token, or a word that several were joined to.

    Attributes:
        names: its tokens as the vocabulary has them; they are decoded once, all together.
        scores: (L,) probabilities of the labels.
        score: of `label`.
        start, end: characters in the text.
        index: the token's place in the row.
        word: which word it is of; None where that isn't known.
    """

    names: tuple[str, ...]
    scores: np.ndarray
    label: str
    score: float
    start: int
    end: int
    index: int
    word: int | None


def words_of(pieces: Sequence[Piece], strategy: str, labels: Sequence[str]) -> list[Piece]:
    """Each word as one piece: labelled by its first token, its surest, or the mean of all.

    Fine-tuning teaches a word's label at its first token, so `first` is as it was learnt.
    """
    parted: list[list[Piece]] = []
    for piece in pieces:
        if parted and piece.word is not None and piece.word == parted[-1][0].word:
            parted[-1].append(piece)
        else:
            parted.append([piece])
    return [_word(parts, strategy, labels) for parts in parted]


def _word(parts: list[Piece], strategy: str, labels: Sequence[str]) -> Piece:
    if strategy == "average":
        scores = np.mean([part.scores for part in parts], axis=0)
    elif strategy == "max":
        scores = max(parts, key=lambda part: part.score).scores
    else:
        scores = parts[0].scores
    best, first = int(scores.argmax()), parts[0]
    names = tuple(name for part in parts for name in part.names)
    score = float(scores[best])
    return Piece(
        names, scores, labels[best], score, first.start, parts[-1].end, first.index, first.word
    )


def entities_of(pieces: Sequence[Piece], bioes: bool, joined: Joined) -> list[dict[str, Any]]:
    """Neighbours of one type as one entity, their scores averaged.

    Args:
        bioes: whether labels may begin with S-, U-, E- and L- too.
    """
    groups: list[list[Piece]] = []
    kind, closed = "", True
    for piece in pieces:
        prefix, name = _parts(piece.label, bioes)
        if closed or prefix in ("B", "S", "U") or name != kind:
            groups.append([])
        groups[-1].append(piece)
        kind, closed = name, prefix in ("E", "L", "S", "U")
    return [
        {
            "entity_group": group[0].label.split("-", 1)[-1],
            "score": float(np.mean([piece.score for piece in group])),
            "word": joined([name for piece in group for name in piece.names]),
            "start": group[0].start,
            "end": group[-1].end,
        }
        for group in groups
    ]


def _parts(label: str, bioes: bool) -> tuple[str, str]:
    prefix, dash, name = label.partition("-")
    known = ("B", "I", "S", "U", "E", "L") if bioes else ("B", "I")
    return (prefix, name) if dash and prefix in known else ("I", label)


@dataclass(frozen=True)
class EntityOptions(Options):
    """Options of token-classification.

    Attributes:
        aggregation_strategy: none gives each token's label; simple joins neighbours of one type;
            first, average and max give each word one label before that.
        ignore_labels: labels that are left out of the results; None is as if not given.
        is_split_into_words: whether an input is a list of words.
        delimiter: what is thought between such words; `start` and `end` count it.
        grouped_entities, ignore_subwords: older names: simple, and with both, first.
    """

    aggregation_strategy: str = "none"
    ignore_labels: Sequence[str] | None = ("O",)
    is_split_into_words: bool = False
    delimiter: str | None = None
    grouped_entities: bool | None = None
    ignore_subwords: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        strategy = str(getattr(self.aggregation_strategy, "value", self.aggregation_strategy))
        if self.grouped_entities:
            strategy = "first" if self.ignore_subwords else "simple"
        if strategy.lower() not in STRATEGIES:
            raise BedstoneError(
                f"aggregation_strategy: {strategy!r} is unknown{nearest(strategy, STRATEGIES)}."
            )
        object.__setattr__(self, "aggregation_strategy", strategy.lower())
        if self.ignore_labels is None:
            object.__setattr__(self, "ignore_labels", ("O",))
        if not isinstance(self.ignore_labels, list | tuple | set):
            raise BedstoneError(
                f"ignore_labels: {shown(self.ignore_labels)} was given; expected a list of labels."
            )
        if not isinstance(self.delimiter, str | None):
            raise BedstoneError(f"delimiter: {shown(self.delimiter)} was given; expected a string.")


@dataclass(frozen=True)
class Words:
    """A text, and of words given in a list where each begins in it."""

    text: str
    begins: list[int] | None = None


class TokenClassification(Reader):
    """Entities: `entity_group` (`entity` of a single token), `score`, `word`, `start`, `end`.

    What is longer than a row is read in windows that overlap, each token where it has most text
    around it. Tokens have an `index` too: their place in the row of the whole text.
    """

    name = "token-classification"
    fields = ("tokens", "tags")
    metric = "entities"
    asks = "a head for labels of tokens (ForTokenClassification)"
    settings = EntityOptions

    @classmethod
    def fits(cls, model: Model) -> bool:
        return bool(model.config.head.kind == "tokens")

    def __call__(self, inputs: Any, **options: Any) -> Any:
        split = options.get("is_split_into_words", self.options.is_split_into_words)
        lists = isinstance(inputs, list | tuple)
        if split and lists and not any(isinstance(each, list | tuple) for each in inputs):
            inputs = [inputs]  # one list of words; as in transformers, its result is in a list
        return super().__call__(inputs, **options)

    def is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str)

    def prepare(self, value: Any, options: EntityOptions) -> Prepared:
        usual = self.limit(options) // 4
        if not options.is_split_into_words:
            text = text_of(value)
            return Prepared(Words(text), self.text_windows(text, None, options, usual))
        if not isinstance(value, list | tuple):
            raise BedstoneError(
                f"{shown(value)} was given; with is_split_into_words, expected a list of words."
            )
        limit = self.limit(options)
        windows = word_windows(
            self.tokenizer, value, limit=limit, stride=self.stride(options, usual)
        )
        between = " " if options.delimiter is None else options.delimiter
        begins = [0, *accumulate(len(word) + len(between) for word in value)]
        text = between.join(value)
        if options.cuts and self.tokenizer.keeps_end:
            windows = windows[::-1]
        return Prepared(Words(text, begins), self.fitted(windows, options, limit))

    def read(
        self, states: Tensor, packed: Packed, rows: Sequence[Input], options: EntityOptions
    ) -> Sequence[np.ndarray]:
        """(T, L) probabilities of each row."""
        scores = self.engine.head(states).softmax(-1)
        return [part.numpy() for part in torch.split(scores, list(packed.lengths))]

    def finish(
        self, row: Words, windows: list[Input], outputs: list[Any], options: EntityOptions
    ) -> list[dict[str, Any]]:
        labels = self.model.config.head.labels
        strategy, ignored = options.aggregation_strategy, set(options.ignore_labels or ())
        pieces = self._pieces(row, windows, outputs, strategy)
        if strategy == "none":
            return [
                {
                    "entity": piece.label,
                    "score": piece.score,
                    "index": piece.index,
                    "word": piece.names[0],
                    "start": piece.start,
                    "end": piece.end,
                }
                for piece in pieces
                if piece.label not in ignored
            ]
        if strategy != "simple":
            pieces = words_of(pieces, strategy, labels)
        bioes = any(label.startswith(("S-", "U-")) for label in labels)
        found = entities_of(pieces, bioes, self._joined)
        return [each for each in found if each["entity_group"] not in ignored]

    def _pieces(
        self, row: Words, windows: list[Input], outputs: list[np.ndarray], strategy: str
    ) -> list[Piece]:
        """Each token of the text, once."""
        labels = self.model.config.head.labels
        unknown = self.tokenizer.settings.get("unk_token")
        before = next(at for at, source in enumerate(windows[0].sources) if source is not None)
        pieces = []
        for number, (which, place) in enumerate(best_places(windows)):
            window, scores = windows[which], outputs[which][place]
            start, end = window.offsets[place]
            word = window.words[place]
            if row.begins is not None and word is not None:
                start, end = start + row.begins[word], end + row.begins[word]
            name = self.tokenizer.backend.id_to_token(window.ids[place]) or ""
            if name == unknown:
                name = self._as_token(row.text[start:end], strategy)
            best = int(scores.argmax())
            score = float(scores[best])
            pieces.append(
                Piece((name,), scores, labels[best], score, start, end, number + before, word)
            )
        return pieces

    def _as_token(self, text: str, strategy: str) -> str:
        """Text that the vocabulary lacks, so that decoding gives it back."""
        decoder = self.tokenizer.backend.decoder
        if strategy == "none" or decoder is None or decoder.decode(["Ã©"]) != "é":
            return text
        pieces = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
        return "".join(name for name, _ in pieces)

    def _joined(self, names: Sequence[str]) -> str:
        decoder = self.tokenizer.backend.decoder
        return " ".join(names) if decoder is None else str(decoder.decode(list(names)))
