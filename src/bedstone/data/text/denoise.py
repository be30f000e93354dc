"""Denoising objectives of encoder-decoders: texts with noise, and what is to be written over them.

Span corruption (T5: Raffel et al., 2020, section 3.1.4), text infilling and sentence permutation
(BART: Lewis et al., 2020, section 2.2), and gap sentences (PEGASUS: Zhang et al., 2020, section
3.1). All work on token ids. Nothing here has a state: the noise of a window is drawn from a
generator made of seed, epoch and window alone, so it is the same in whatever batch, and a run that
is resumed learns from the noise that it would have had.

Shapes: T tokens of a window, W windows, P sentences of a split, K spans.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import tokenizers
from tokenizers import AddedToken

from bedstone.data.text.encode import special_ids
from bedstone.data.text.sentences import Documents
from bedstone.data.text.seq2seq import PairBatch, pair_batch
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.settings import Settings, number, one_of, optional, share, whole

KINDS = ("spans", "infilling", "gap_sentences")
MASK = "<mask>"  # as BART has it; a tokenizer with a mask token of another name keeps that
SENTINELS = 100  # that a T5 has
SHARES = {"spans": 0.15, "infilling": 0.3, "gap_sentences": 0.3}  # as published


@dataclass
class DenoiseConfig(Settings):
    """Which noise a model learns to remove from plain text.

    Attributes:
        kind: spans (T5), infilling (BART) or gap_sentences (PEGASUS); empty learns from pairs.
        share: of tokens, or of sentences, that are left out; null is as published: 0.15 of spans,
            0.3 of the others.
        mean: tokens of a span on average.
        permute: of infilling, whether sentences come in a random order too.
        window: tokens of a window, at most; 0 takes as many as the network reads. Of short ones a
            network learns sooner which part of the source it is at.
    """

    kind: str = one_of("", *KINDS, default="")
    share: float | None = optional(share(below_one=True))
    mean: float = number(0, open_least=True, default=3.0)
    permute: bool = False
    window: int = whole(0, default=0)

    section: ClassVar[str] = "denoise."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.permute and self.kind != "infilling":
            raise BedstoneError(
                f"denoise.permute: goes with denoise.kind: infilling, and kind is {self.kind!r}. "
                "Leave permute out, or set kind to infilling."
            )
        if self.share == 0 and not self.permute:
            raise BedstoneError(
                "denoise.share: 0 leaves nothing out, so there is nothing to learn. Raise it, or "
                "leave it out."
            )

    def most(self, context: int) -> int:
        """Tokens of a window, at most, for a network that reads so many."""
        return min(self.window or context, context)

    @property
    def left_out(self) -> float:
        """The share of tokens, or of sentences, that are left out."""
        return SHARES.get(self.kind, 0.0) if self.share is None else self.share

    @property
    def least_sentences(self) -> int:
        """How many sentences a window needs."""
        return 2 if self.kind == "gap_sentences" else 1


class Noise(Protocol):
    """An objective: (ids (T,), starts of sentences in them, generator) to source and target ids.

    Neither has the special tokens that go around a text.
    """

    def __call__(
        self, ids: np.ndarray, starts: np.ndarray, draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]: ...


# Span corruption.


def span_counts(length: int, share: float, mean: float) -> tuple[int, int]:
    """How many of `length` tokens are noise, and in how many spans, as T5 computes them.

    T5 multiplies in fp32 and rounds halves to even.
    """
    length = max(length, 2)
    noise = int(np.round(np.float32(length) * np.float32(share)))
    noise = min(max(noise, 1), length - 1)
    spans = max(int(np.round(np.float32(noise) / np.float32(mean))), 1)
    return noise, min(spans, noise, length - noise)


def span_mask(length: int, share: float, mean: float, draw: np.random.Generator) -> np.ndarray:
    """(length,) bool, True on noise, as T5 draws it: all spans equally likely, the last at the end.

    A single span, which would then always be the end of its text (T5's own rows are long), may be
    anywhere but at the beginning.
    """
    noise, spans = span_counts(length, share, mean)
    if spans == 1:
        places = np.arange(length) - draw.integers(1, max(length, 2) - noise + 1)
        return (places >= 0) & (places < noise)
    sizes = np.empty(2 * spans, np.int64)
    sizes[1::2] = _segments(noise, spans, draw)
    sizes[::2] = _segments(max(length, 2) - noise, spans, draw)
    return np.repeat(np.arange(2 * spans) % 2 == 1, sizes)[:length]


def _segments(items: int, segments: int, draw: np.random.Generator) -> np.ndarray:
    """(segments,) sizes, none of them 0, that add up to `items`."""
    begins = np.arange(items - 1) < segments - 1
    draw.shuffle(begins)
    return np.diff(np.flatnonzero(begins) + 1, prepend=0, append=items)


@dataclass(frozen=True)
class SpanCorruption:
    """Spans become a sentinel each; the target is each sentinel with its span, and a last one.

    The last sentinel is that of the paper's section 3.1.4; T5's own code leaves it out.

    Attributes:
        sentinels: ids of <extra_id_0>, <extra_id_1>, ...
        share: of tokens in spans.
        mean: tokens of a span on average.
    """

    sentinels: np.ndarray
    share: float = SHARES["spans"]
    mean: float = 3.0

    def __call__(
        self, ids: np.ndarray, starts: np.ndarray, draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        mask = span_mask(len(ids), self.share, self.mean, draw)
        count = int((np.diff(mask, prepend=False) & mask).sum())
        target = self._collapsed(ids, ~mask)
        if mask[-1]:  # else the text that follows is collapsed to the last one
            target = np.append(target, self.sentinels[count])
        return self._collapsed(ids, mask), target

    def _collapsed(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """`ids` with each run of `mask` as one sentinel."""
        first = np.diff(mask, prepend=False) & mask
        found = ids.copy()
        found[first] = self.sentinels[: int(first.sum())]
        return found[first | ~mask]


# Text infilling and sentence permutation.


@dataclass(frozen=True)
class TextInfilling:
    """Spans of Poisson lengths, 0 among them, become one mask token each; the target is the text.

    No two masks stand side by side, unless there is no room for them elsewhere.

    Attributes:
        mask_id: of the mask token.
        share: of tokens in spans.
        mean: of the Poisson distribution.
    """

    mask_id: int
    share: float = SHARES["infilling"]
    mean: float = 3.0

    def __call__(
        self, ids: np.ndarray, starts: np.ndarray, draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        lengths = self._lengths(len(ids), draw)  # (K,)
        kept = len(ids) - int(lengths.sum())
        # of the gaps before, between and behind the tokens that stay, which hold a span
        gaps = np.sort(draw.choice(kept + 1, len(lengths), replace=len(lengths) > kept + 1))
        begins = gaps + np.cumsum(lengths) - lengths  # of spans, in the text
        steps = np.zeros(len(ids) + 1, np.int64)
        np.add.at(steps, begins, 1)
        np.add.at(steps, begins + lengths, -1)
        hidden = np.cumsum(steps)[:-1] > 0
        return np.insert(ids[~hidden], gaps, self.mask_id), ids

    def _lengths(self, length: int, draw: np.random.Generator) -> np.ndarray:
        """Lengths of spans that sum to the share of tokens; the last is cut to fit.

        Where chance has it, some of length 0 are dropped: a source isn't longer than its text.
        """
        budget = int(np.ceil(length * self.share - 1e-9))
        lengths = np.zeros(0, np.int64)
        while lengths.sum() < budget:
            lengths = np.append(lengths, draw.poisson(self.mean, budget))
        before = np.cumsum(lengths) - lengths
        lengths = lengths[before < budget]
        lengths = np.minimum(lengths, budget - before[: len(lengths)])
        surplus = max(len(lengths) - budget, 0)
        return np.delete(lengths, np.flatnonzero(lengths == 0)[:surplus])


@dataclass(frozen=True)
class SentencePermutation:
    """Sentences in a random order, with other noise in them; the target is the text as it was.

    Attributes:
        noise: what is done to the text then; its target is the text that it was given.
    """

    noise: Noise

    def __call__(
        self, ids: np.ndarray, starts: np.ndarray, draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        parts = np.split(ids, starts[1:])
        order = draw.permutation(len(parts))
        mixed = np.concatenate([parts[number] for number in order])
        ends = np.cumsum([len(parts[number]) for number in order])
        source, _ = self.noise(mixed, np.append(0, ends[:-1]), draw)
        return source, ids


# Gap sentences.


def sentence_scores(ids: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """ROUGE-1 (F1 of tokens) of each sentence against the rest of the text."""
    parts = [Counter(part.tolist()) for part in np.split(ids, starts[1:])]
    whole = Counter(ids.tolist())
    scores = []
    for part in parts:
        own = part.total()
        rest = len(ids) - own
        common = sum(min(count, whole[token] - count) for token, count in part.items())
        scores.append(2 * common / (own + rest) if own and rest else 0.0)
    return np.array(scores)


@dataclass(frozen=True)
class GapSentences:
    """The sentences that say most of the rest become a mask token each; they are the target.

    Those with the best ROUGE-1 against the rest of the text are taken, each scored by itself
    (PEGASUS: "Ind-Orig"). Nothing is drawn: a text has the same gaps in every epoch.

    Attributes:
        mask_id: of the mask token.
        share: of sentences that are left out; at least one is, and one stays.
    """

    mask_id: int
    share: float = SHARES["gap_sentences"]

    def __call__(
        self, ids: np.ndarray, starts: np.ndarray, draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        parts = np.split(ids, starts[1:])
        count = min(max(round(self.share * len(parts)), 1), len(parts) - 1)
        best = np.argsort(-sentence_scores(ids, starts), kind="stable")[:count]
        gaps = set(best.tolist())
        mask = np.array([self.mask_id])
        source = [mask if number in gaps else part for number, part in enumerate(parts)]
        target = [part for number, part in enumerate(parts) if number in gaps]
        return np.concatenate(source), np.concatenate([*target, ids[:0]])


# Special tokens that noise needs.


def sentinel_count(config: DenoiseConfig, context: int) -> int:
    """How many sentinels windows of at most `context` tokens need; 0 where the noise has none."""
    if config.kind != "spans":
        return 0
    return 1 + max(
        span_counts(length, config.left_out, config.mean)[1] for length in range(1, context + 1)
    )


def noise_tokens(tokenizer: Tokenizer | None, config: DenoiseConfig, context: int) -> list[str]:
    """Names of the special tokens that a tokenizer lacks, the last of which has the highest id.

    Args:
        tokenizer: None is one that has none of them.
        context: tokens of a window, at most.
    """
    if config.kind in ("infilling", "gap_sentences"):
        return [] if tokenizer is not None and tokenizer.mask_id is not None else [MASK]
    needed = sentinel_count(config, context)
    numbers = reversed(range(max(needed, SENTINELS) if needed else 0))
    names = [f"<extra_id_{each}>" for each in numbers]
    if tokenizer is None or tokenizer.id_of("<extra_id_0>") is None:
        return names
    return [name for name in names[-needed:] if tokenizer.id_of(name) is None]


def add_noise_tokens(tokenizer: Tokenizer, config: DenoiseConfig, context: int) -> Tokenizer:
    """A tokenizer, trained for the run, with the special tokens that it lacks, on the last ids."""
    names = noise_tokens(tokenizer, config, context)
    if not names:
        return tokenizer
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    role = {"mask_token": MASK} if names == [MASK] else {}
    return Tokenizer(backend, {**tokenizer.settings, **role}, tokenizer.path)


def noise_of(tokenizer: Tokenizer, config: DenoiseConfig, context: int) -> Noise:
    """The noise that a recipe sets.

    Raises:
        BedstoneError: the tokenizer lacks special tokens, or has another vocabulary for targets.
    """
    if tokenizer.target is not tokenizer:
        raise BedstoneError(
            f"{tokenizer.path}: has other pieces for targets than for sources, and denoising "
            "writes the language that it reads. Take a model with one tokenizer, or leave "
            "denoise.kind out."
        )
    if missing := noise_tokens(tokenizer, config, context):
        what, kin = ("mask token", "BART") if missing == [MASK] else ("sentinel", "T5")
        raise BedstoneError(
            f"{tokenizer.path}: has no {what} ({missing[-1]}), which denoise.kind: {config.kind} "
            f"needs in windows of {context:,} tokens ({len(missing)} are missing). Leave "
            f"tokenizer.path out, and one with them is trained; or name a {kin}'s tokenizer."
        )
    if config.kind == "spans":
        names = [f"<extra_id_{each}>" for each in range(sentinel_count(config, context))]
        ids = np.array([tokenizer.id_of(name) for name in names], np.int64)
        return SpanCorruption(ids, config.left_out, config.mean)
    mask_id = tokenizer.mask_id
    assert mask_id is not None
    if config.kind == "gap_sentences":
        return GapSentences(mask_id, config.left_out)
    infilling = TextInfilling(mask_id, config.left_out, config.mean)
    return SentencePermutation(infilling) if config.permute else infilling


# Windows of documents.

LEAST = 2  # tokens of a window; a shorter one has nothing to leave out and something to read


@dataclass(frozen=True)
class Windows:
    """The documents of a split, cut at ends of sentences.

    Attributes:
        documents: of the split, with their sentences.
        spans: (W, 2) int64, each window's first token in the split, and the one after its last.
        left_out: tokens in windows that are too short to be used.
    """

    documents: Documents
    spans: np.ndarray
    left_out: int = 0

    @classmethod
    def of(cls, documents: Documents, room: int, least_sentences: int = 1) -> "Windows":
        """Windows of at most `room` tokens and as many whole sentences as fit.

        A sentence that is longer is cut.

        Args:
            least_sentences: that a window needs.

        Raises:
            BedstoneError: there is no window.
        """
        spans: list[tuple[int, int]] = []
        left_out = 0
        for document in range(len(documents)):
            edges, end = documents.edges(document), int(documents.stops[document])
            at = int(documents.starts[document])
            while at < end:
                stop = min(at + room, end)
                if stop < end:
                    edge = edges[bisect_right(edges, stop) - 1]
                    stop = edge if edge > at else stop
                inner = bisect_right(edges, stop - 1) - bisect_right(edges, at)
                if stop - at < LEAST or inner + 1 < least_sentences:
                    left_out += stop - at
                else:
                    spans.append((at, stop))
                at = stop
        if not spans:
            raise BedstoneError(
                f"the {documents.split.name} split: no text of it has {LEAST} tokens"
                + (f" and {least_sentences} sentences" if least_sentences > 1 else "")
                + f" in a window of {room:,} tokens, so nothing can be left out of it. Name more "
                "data, or raise context."
            )
        return cls(documents, np.array(spans, np.int64), left_out)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a window, (T,) int64, and where in it sentences start; the first is 0."""
        start, stop = self.spans[row]
        sentences = self.documents.sentences
        first, last = np.searchsorted(sentences, (start, stop), side="left")
        inner = sentences[first:last] - start
        starts = inner if len(inner) and inner[0] == 0 else np.append(0, inner)
        return self.documents.split.tokens[start:stop].astype(np.int64), starts


@dataclass(frozen=True)
class NoisyTexts:
    """Pairs of source and target that are made of windows anew in each epoch.

    Attributes:
        windows: of the texts.
        noise: the objective.
        before, after: ids of the special tokens around every source and target.
        start: the token that a target is generated after.
        seed: of the noise.
        batch_size: windows of a batch of the stream, which says what epoch a batch is of.
    """

    windows: Windows
    noise: Noise
    before: tuple[int, ...]
    after: tuple[int, ...]
    start: int
    seed: int = 0
    batch_size: int = 1

    @classmethod
    def of(
        cls,
        documents: Documents,
        tokenizer: Tokenizer,
        config: DenoiseConfig,
        context: int,
        **parts: int,
    ) -> "NoisyTexts":
        """Those of a recipe: neither source nor target is longer than `context`.

        Args:
            parts: `start`, `seed` and `batch_size`.

        Raises:
            BedstoneError: the tokenizer or the texts don't fit, or `context` is too short.
        """
        before, after = special_ids(tokenizer)
        room = window_room(config, context - len(before) - len(after))
        noise = noise_of(tokenizer, config, room)
        windows = Windows.of(documents, room, config.least_sentences)
        return cls(windows, noise, before, after, **parts)

    def __len__(self) -> int:
        return len(self.windows)

    def pair(self, row: int, epoch: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Source and target ids of a window in an epoch; None has the same noise each time."""
        key = (self.seed, int(row), 0) if epoch is None else (self.seed, int(row), epoch, 1)
        draw = np.random.default_rng(key)
        source, target = self.noise(*self.windows[row], draw)
        return self._ended(source), self._ended(target)

    def _ended(self, ids: np.ndarray) -> np.ndarray:
        return np.concatenate((self.before, ids, self.after)).astype(np.int64)

    def batch(self, rows: np.ndarray, number: int, epoch: int | None) -> PairBatch:
        """Windows by their numbers."""
        pairs = [self.pair(row, epoch) for row in rows.tolist()]
        places = [f"window {row}" for row in rows.tolist()]
        sources, targets = zip(*pairs, strict=True)
        return pair_batch(sources, targets, self.start, number, places)

    def collate(self, rows: np.ndarray, random: np.random.Generator, number: int) -> PairBatch:
        """For `data.text.seq2seq.pair_stream`; the noise is that of the windows and the epoch."""
        steps = len(self) // min(self.batch_size, len(self))  # of an epoch
        return self.batch(rows, number, number // steps)

    def evaluation_batches(self, batch_size: int) -> Iterator[PairBatch]:
        """Each window once, in order, with the same noise each time."""
        for batch, at in enumerate(range(0, len(self), batch_size)):
            rows = np.arange(at, min(at + batch_size, len(self)))
            yield self.batch(rows, batch, None)


def window_room(config: DenoiseConfig, room: int) -> int:
    """Tokens of a window, so that neither source nor target has more than `room`.

    Where little or most of a text is noise, sentinels make a source or target longer than it.

    Raises:
        BedstoneError: there is no room.
    """
    found = room
    if config.kind == "spans":
        found = 0
        while found < room and _longest(config, found + 1) <= room:
            found += 1
    if found < LEAST:
        raise BedstoneError(
            f"context: leaves {max(room, 0)} tokens for a text beside the special tokens; noise "
            f"needs {LEAST} of the text at least. Raise it."
        )
    return found


def _longest(config: DenoiseConfig, length: int) -> int:
    """Tokens of the longer of source and target of a window."""
    noise, spans = span_counts(length, config.left_out, config.mean)
    return max(length - noise + spans, noise + spans + 1)
