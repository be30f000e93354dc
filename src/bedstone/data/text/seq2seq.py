"""Pairs of a source text and a target text: rows read and checked, and batches without padding.

A row has two columns, or one with both, as translations are published:
`{"translation": {"en": ..., "de": ...}}`. Where several languages are written, a row gives a pair
for each that it has a text in, and the token of the language, `>>de<<`, goes before the source
(Johnson et al., 2017, https://arxiv.org/abs/1611.04558).

Shapes: n pairs of a batch, N tokens of all sources or targets, laid end to end.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bedstone.data.bytes import check_text
from bedstone.data.dataset import Dataset
from bedstone.data.open import open_dataset
from bedstone.data.stream import Batch, Stream, entries
from bedstone.data.text.encode import source_ids, target_ids
from bedstone.data.text.packing import Packed, lay
from bedstone.data.text.tokenizer import Tokenizer, language_token, token_languages
from bedstone.errors import BedstoneError, nearest
from bedstone.settings import Settings, number, one_of, share, whole

TRANSLATION = "translation"  # the column of rows with a text in each of some languages
PAIRED = (("prompt", "completion"), ("instruction", "output"))  # beside source and target
MOST_EQUAL = 0.2  # of the pairs may have a source that is the target
LONG = ("leave_out", "cut")


@dataclass
class PairsConfig(Settings):
    """Which pairs of texts a run learns from.

    Attributes:
        source: their data: a file, folder, glob or hub id (`data.sources`).
        validation: other pairs to measure on; empty holds some of the source out.
        test: pairs that the finished model is measured on.
        split: of a folder or hub id, such as train.
        columns: {source: column, target: column}, where the usual names aren't used: source and
            target, document or article and summary or highlights, prompt and completion,
            instruction and output, or `translation` with both.
        source_lang, target_lang: the languages of a column `translation`, in its names. A list of
            target languages, as `[de, fr]`, gives each a token, which goes before sources.
        validation_share: of the rows that are held out.
        most_rows: rows to learn from at most, drawn at random; 0 takes all.
        most_broken: the share of rows that may be broken, and are left out.
        long_sources: what happens to a source of more tokens than the network reads: leave_out
            leaves the pair out, cut keeps the beginning; the plan says how many. A pair with a
            longer target is always left out.
    """

    section: ClassVar[str] = "data."

    source: str = ""
    validation: str = ""
    test: str = ""
    split: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    source_lang: str = ""
    target_lang: list[str] | str = ""
    validation_share: float = share(default=0.02)
    most_rows: int = whole(0, default=0)
    most_broken: float = number(0, 1, default=0.05)
    long_sources: str = one_of(*LONG, default="leave_out")

    def __post_init__(self) -> None:
        super().__post_init__()
        targets = self.target_languages
        if isinstance(self.target_lang, list) and not targets:
            raise BedstoneError("data.target_lang: the list is empty; name a language or more.")
        for language, times in Counter(targets).items():
            if times > 1:
                raise BedstoneError(
                    f"data.target_lang: {language!r} is there twice; name each language once."
                )
            if token_languages([language_token(language)]) != [language]:
                raise BedstoneError(
                    f"data.target_lang: {language!r} can't stand in a token "
                    f"{language_token(language)}; expected a name without spaces, < and >, such as "
                    "de."
                )

    @property
    def target_languages(self) -> list[str]:
        """The languages that have a token: none where there is one language or none is named."""
        return self.target_lang if isinstance(self.target_lang, list) else []


@dataclass
class TextPairs:
    """Sources and targets of rows that can be used.

    Attributes:
        rows: where they are from.
        codes: what goes before each source: the token of the target's language, or nothing.
        numbers: the row of each pair, ascending; a row of several languages has several pairs.
    """

    rows: Dataset
    sources: list[str]
    targets: list[Any]
    codes: list[str]
    numbers: list[int]

    def __len__(self) -> int:
        return len(self.sources)

    def texts(self) -> Iterator[str]:
        """All sources, each before its target, in the rows' order."""
        for pair in zip(self.sources, self.targets, strict=True):
            yield from pair

    def inputs(self) -> list[str]:
        """Sources as a model reads them."""
        return [code + source for code, source in zip(self.codes, self.sources, strict=True)]

    def where(self, pair: int) -> str:
        """Where a pair is from, for a message."""
        return self.rows.where(self.numbers[pair])

    def of(self, rows: Dataset) -> "TextPairs":
        """The pairs of some of the rows."""
        own: dict[int, list[int]] = {}
        for pair, row in enumerate(self.numbers):
            own.setdefault(id(self.rows.rows[row]), []).append(pair)
        chosen = [(pair, row) for row, each in enumerate(rows.rows) for pair in own[id(each)]]
        return TextPairs(
            rows,
            [self.sources[pair] for pair, _ in chosen],
            [self.targets[pair] for pair, _ in chosen],
            [self.codes[pair] for pair, _ in chosen],
            [row for _, row in chosen],
        )


def open_pairs(data: PairsConfig, name: str, split: str | None = None) -> TextPairs:
    """The pairs of a source of data.

    Raises:
        BedstoneError: it can't be read, has no two texts a row, or too many rows are broken: a
            text is missing, empty or no text; or in many pairs both texts are the same.
    """
    rows = open_dataset(name, split=split, most_broken=data.most_broken)
    targets = data.target_languages or str(data.target_lang)
    return pairs_of(rows, data.columns, data.source_lang, targets)


def pairs_of(
    rows: Dataset,
    columns: Mapping[str, str],
    source_lang: str = "",
    target_lang: str | Sequence[str] = "",
    *,
    several: bool = False,
) -> TextPairs:
    """The sources and targets of rows; arguments and errors as of `PairsConfig`, `open_pairs`.

    Args:
        several: whether a target may be a list of texts: references, as many in each row.
    """
    read, written = _readers(rows, columns, source_lang, target_lang)
    found: list[list[tuple[str, Any, str]]] = []

    def take(row: int) -> None:
        source = _text(rows, row, read)
        own = [code for code, names in written.items() if not code or _has(rows, row, names)]
        if not own:
            raise rows.fault(
                row,
                next(iter(written.values()))[0],
                f"has no text in {', '.join(target_lang)}",
                "Expected one in a target language at least.",
            )
        found.append([(source, _text(rows, row, written[code], several), code) for code in own])

    good = rows.usable(take)
    pairs = [pair for own in found for pair in own]
    numbers = [row for row, own in enumerate(found) for _ in own]
    _check_counts(good, next(iter(written.values()))[0], [pair[1] for pair in pairs], numbers)
    equal = sum(type(other) is str and one.strip() == other.strip() for one, other, _ in pairs)
    if equal > MOST_EQUAL * len(pairs):
        raise BedstoneError(
            f"data {rows.name!r}: in {equal:,} of {len(pairs):,} pairs the source is the target. "
            "Are both columns the same, or the languages? Name them by data.columns."
        )
    sources, targets, codes = (list(side) for side in zip(*pairs, strict=True))
    return TextPairs(good, sources, targets, codes, numbers)


def _check_counts(
    rows: Dataset, column: str, targets: Sequence[Any], numbers: Sequence[int]
) -> None:
    """Raises BedstoneError where rows have unequal numbers of references."""
    counts = [1 if isinstance(each, str) else len(each) for each in targets]
    for row, count in zip(numbers, counts, strict=True):
        if count != counts[0]:
            raise rows.fault(
                row,
                column,
                f"has {count} references, and {rows.where(0)} has {counts[0]}",
                "Figures with more references are higher: give each row as many.",
            )


Names = tuple[str, ...]  # of a column, and of a language in it


def _readers(
    rows: Dataset, columns: Mapping[str, str], source_lang: str, target_lang: str | Sequence[str]
) -> tuple[Names, dict[str, Names]]:
    """Where sources stand, and where targets stand by what goes before their sources."""
    for part in columns:
        if part not in ("source", "target"):
            raise BedstoneError(
                f"data.columns: {part!r} is no part of a pair{nearest(part, ('source', 'target'))}."
            )
    have = {key for row in rows.rows for key in row}
    for part, column in columns.items():
        if column not in have:
            raise BedstoneError(
                f"data.columns.{part}: data {rows.name!r} has no column {column!r}"
                f"{nearest(str(column), map(str, have))}."
            )
    languages = source_lang or target_lang
    if (TRANSLATION in have and not columns) or languages:
        return _languages(rows, have, source_lang, target_lang)
    if not columns:
        for pair in PAIRED:
            if have.issuperset(pair):
                return (pair[0],), {"": (pair[1],)}
    sides = [columns.get(part) or rows.need(part) for part in ("source", "target")]
    if sides[0] == sides[1]:
        raise BedstoneError(
            f"data.columns: source and target are both {sides[0]!r}; name another column for one."
        )
    return (sides[0],), {"": (sides[1],)}


def _languages(
    rows: Dataset, have: set[str], source_lang: str, target_lang: str | Sequence[str]
) -> tuple[Names, dict[str, Names]]:
    if isinstance(target_lang, str):
        targets = {"": target_lang}
    else:
        targets = {f"{language_token(each)} ": each for each in target_lang}
    names = [("source_lang", source_lang), *(("target_lang", each) for each in targets.values())]
    if TRANSLATION in have:
        cells = [row.get(TRANSLATION) for row in rows.rows]
        known = sorted({key for cell in cells if isinstance(cell, Mapping) for key in cell})
    else:
        known = sorted(have)
    for name, value in names:
        if not value:
            raise BedstoneError(
                f"data.{name}: isn't given, and data {rows.name!r} has texts in "
                f"{', '.join(known[:10])}. Say which is read and which is written by "
                "data.source_lang and data.target_lang of a recipe, or by --source-lang and "
                "--target-lang of bedstone evaluate."
            )
        if value not in known:
            raise BedstoneError(
                f"data.{name}: data {rows.name!r} has no text in {value!r}{nearest(value, known)}."
            )
    if source_lang in targets.values():
        raise BedstoneError(f"data.target_lang: {source_lang!r} is the source's too. Name another.")
    column = (TRANSLATION,) if TRANSLATION in have else ()
    return (*column, source_lang), {code: (*column, each) for code, each in targets.items()}


def _has(rows: Dataset, row: int, names: Names) -> bool:
    """Whether a row has something in a language."""
    value: Any = rows[row]
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value is not None


def _text(rows: Dataset, row: int, names: Names, several: bool = False) -> Any:
    """One side of a row: a text, or `several`."""
    value: Any = rows.value(row, names[0])
    where = f"column {names[0]!r}"
    if len(names) > 1:
        if not isinstance(value, Mapping):
            advice = 'Expected {"en": ..., "de": ...}, say.'
            raise rows.fault(row, names[0], f"is {value!r:.60}", advice)
        value, where = value.get(names[1]), f"{where}, {names[1]!r}"
    texts = list(value) if several and isinstance(value, list | tuple) and value else [value]
    for text in texts:
        check_text(text, f"{rows.where(row)}: {where}")
    return texts if texts[0] is not value else texts[0]


# Batches.


@dataclass(frozen=True)
class PairBatch(Batch):
    """Pairs of a step: as many sources as targets, each laid end to end.

    Attributes, besides those of all batches:
        sources: as the encoder reads them.
        rows: targets as the decoder reads them, after the start token.
        targets: (1, N), the token that follows each of `rows`.
    """

    unit: ClassVar[str] = "tokens"

    sources: Packed
    rows: Packed
    targets: Tensor
    number: int
    places: list[str]

    @property
    def items(self) -> int:
        """Tokens, of both sides."""
        return self.sources.ids.numel() + self.rows.ids.numel()

    @property
    def target_count(self) -> int:
        return self.targets.numel()

    @property
    def row_count(self) -> int:
        return len(self.rows.lengths)

    def pick(self, rows: np.ndarray) -> "PairBatch":
        picked, places = self.rows.pick(rows)
        return replace(
            self,
            sources=self.sources.pick(rows)[0],
            rows=picked,
            targets=self.targets[:, torch.from_numpy(places)],
            places=entries(self.places, rows),
        )


class Ragged:
    """Rows of ids of any lengths, laid end to end."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        self.starts = np.concatenate(([0], np.cumsum(lengths)))
        self.ids = np.concatenate([np.asarray(row, np.int32) for row in rows])

    def __getitem__(self, row: int) -> np.ndarray:
        return self.ids[self.starts[row] : self.starts[row + 1]]


class PairExamples:
    """Pairs by their tokens.

    Args:
        pairs: what they are of.
        start: the token that a target is generated after.
        most: tokens of a source, and of a target, that the network reads.
        cut: whether longer sources are cut, keeping their end token, not left out.

    Raises:
        BedstoneError: no pair is left, the tokenizer has no end token, or a source begins with the
            token of a language that it lacks.

    Attributes:
        kept: numbers of the pairs that are used.
        left_out, cut: how many were left out as too long, and how many sources were cut.
    """

    def __init__(
        self,
        pairs: TextPairs,
        tokenizer: Tokenizer,
        start: int,
        most: tuple[int, int],
        *,
        cut: bool = False,
    ) -> None:
        self.pairs, self.start, self.cut = pairs, start, 0
        sources, targets = [], []
        self.kept: list[int] = []
        for row, (source, target) in enumerate(zip(pairs.inputs(), pairs.targets, strict=True)):
            try:
                read, written = source_ids(tokenizer, source), target_ids(tokenizer, target)
            except BedstoneError as error:
                raise BedstoneError(f"{pairs.where(row)}: {error}") from error
            if len(written) > most[1] or (len(read) > most[0] and not cut):
                continue
            if len(read) > most[0]:
                read = [*read[: most[0] - 1], read[-1]]
                self.cut += 1
            self.kept.append(row)
            sources.append(read)
            targets.append(written)
        self.left_out = len(pairs) - len(self.kept)
        if not self.kept:
            raise BedstoneError(
                f"data {pairs.rows.name!r}: all {len(pairs):,} pairs are longer than the network "
                f"reads ({most[0]:,} tokens of a source, {most[1]:,} of a target). Raise "
                "model.context, or say data.long_sources=cut."
            )
        self.sources, self.targets = Ragged(sources), Ragged(targets)

    def __len__(self) -> int:
        return len(self.kept)

    def note(self) -> str:
        """What became of long pairs; empty where none is long."""
        said = []
        if self.left_out:
            said.append(f"{self.left_out:,} pairs are longer than the network reads and left out")
        if self.cut:
            said.append(f"{self.cut:,} sources are longer than it reads and cut")
        return "; ".join(said)

    def batch(self, rows: np.ndarray, number: int = 0) -> PairBatch:
        """Pairs by their numbers."""
        order = [int(row) for row in rows]
        return pair_batch(
            [self.sources[row] for row in order],
            [self.targets[row] for row in order],
            self.start,
            number,
            [self.pairs.where(self.kept[row]) for row in order],
        )

    def collate(self, rows: np.ndarray, random: np.random.Generator, number: int) -> PairBatch:
        """For `data.stream.Stream`."""
        return self.batch(rows, number)


def pair_batch(
    sources: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    start: int,
    number: int,
    places: list[str],
) -> PairBatch:
    """A batch of pairs by their tokens, end tokens included."""
    reads = [np.concatenate(([start], target[:-1])) for target in targets]
    return PairBatch(
        _laid(sources),
        _laid(reads),
        torch.from_numpy(np.concatenate(targets).astype(np.int64))[None],
        number,
        places,
    )


def _laid(rows: Sequence[np.ndarray]) -> Packed:
    ids = np.concatenate(rows)
    return lay(ids, np.zeros(len(ids), np.int64), np.array([len(row) for row in rows]))


def pair_stream(
    examples: Any, batch_size: int, *, seed: int, workers: int = 1
) -> Stream[PairBatch]:
    """An endless stream of batches of `batch_size` pairs."""
    identity = {"rows": len(examples), "batch_size": batch_size}
    return Stream(
        len(examples), examples.collate, batch_size, seed=seed, workers=workers, identity=identity
    )


def evaluation_batches(examples: PairExamples, batch_size: int) -> Iterator[PairBatch]:
    """Each pair once, in order."""
    for at in range(0, len(examples), batch_size):
        yield examples.batch(np.arange(at, min(at + batch_size, len(examples))))
