"""Batches of image-text pairs for contrastive training, and the encoding of their texts.

A batch has one caption of each image, drawn anew at each visit, and hard negatives after them.

Shapes: B images, n texts (the images' own and hard negatives), N tokens, H x W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bedstone.data.dataset import Dataset
from bedstone.data.images.augment import FactAugment, facts_in
from bedstone.data.images.pixels import ImageCache, augmented
from bedstone.data.stream import Stream, entries
from bedstone.data.text.encode import Input, text_batch
from bedstone.data.text.packing import Encode, KnownTexts, Packed, PackedBatch, lay
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError


@dataclass(frozen=True)
class ContrastiveBatch(PackedBatch):
    """A batch of image-text pairs.

    Attributes:
        pixels: (B, 3, H, W) fp32, normalised.
        rows: n texts laid end to end, N tokens; the first B are the images' own.
        groups: (n,) int64, which text each is: equal numbers are equal texts, or captions made
            from one label.
        extra: how many hard negatives stand after the B.
        places: where each image is from.
        number: which batch of the stream this is, from 0.
    """

    pixels: Tensor
    rows: Packed
    groups: Tensor
    extra: int
    places: list[str]
    number: int

    unit: ClassVar[str] = "pairs"

    @property
    def row_count(self) -> int:
        return len(self.pixels)

    def part(self, rank: int, count: int) -> "ContrastiveBatch":
        """Every `count`th pair from number `rank` on, and so of the hard negatives."""
        rows = np.arange(rank, len(self.pixels), count)
        extra = np.arange(len(self.pixels) + rank, len(self.groups), count)
        texts = np.r_[rows, extra]
        return replace(
            self,
            pixels=entries(self.pixels, rows),
            rows=self.rows.pick(texts)[0],
            groups=entries(self.groups, texts),
            extra=len(extra),
            places=entries(self.places, rows),
        )

    @property
    def items(self) -> int:
        """Images, each with its text."""
        return len(self.pixels)

    @property
    def target_count(self) -> int:
        """Images, each of which is to find its text."""
        return len(self.pixels)

    def holds(self) -> str:
        return f"{len(self.pixels)} pictures, {self.extra} more texts"


class ContrastiveTexts:
    """The texts of image-text pairs, each distinct one tokenised once.

    Args:
        encode: texts to token ids, as the network reads them.
    """

    def __init__(self, rows: Dataset, encode: Encode) -> None:
        self.known = KnownTexts()
        self.captions = [self.known.add(pair.captions) for pair in rows]
        self.negatives = [self.known.add(pair.negatives) for pair in rows]
        self.known.finish(encode)
        self.group, self.facts = np.arange(len(self.known)), facts_in(self.known.numbers)
        for pair, own in zip(rows, self.captions, strict=True):
            if pair.made:  # "a photo of a cat" is no wrong answer to "a picture of a cat"
                self.group[own] = self.group[own[0]]
                self.facts[own] = 0  # the recipe knows which augmentation keeps a class

    def __len__(self) -> int:
        return len(self.known)

    def pack(self, chosen: Sequence[int] | np.ndarray) -> Packed:
        """Texts by their numbers, laid end to end."""
        texts = [self.known[i] for i in chosen]
        ids = np.concatenate(texts).astype(np.int64)
        return lay(ids, np.zeros_like(ids), np.array([len(text) for text in texts]))

    def draw(
        self, rows: np.ndarray, random: np.random.Generator, negatives: int
    ) -> tuple[Packed, Tensor, np.ndarray]:
        """A caption of each row, and up to `negatives` hard ones of each after them.

        Returns:
            The texts, their groups (n,), and what facts the rows' own captions state (B,).
        """
        own = [self.captions[i][random.integers(len(self.captions[i]))] for i in rows]
        hard: list[int] = []
        if negatives:
            for i in rows:
                wrong = self.negatives[i]
                hard += random.permutation(wrong)[:negatives].tolist() if wrong else []
        chosen = np.array([*own, *hard])
        return self.pack(chosen), torch.from_numpy(self.group[chosen]), self.facts[own]


@dataclass(frozen=True)
class ContrastiveCollate:
    """Makes a `ContrastiveBatch` of some image-text pairs.

    Attributes:
        images, texts: of the same rows.
        normalise: (B, H, W, 3) uint8 to (B, 3, H, W) fp32.
        augment: how images are changed, where the caption drawn stays true.
        negatives: hard negatives drawn for an image, at most.
    """

    images: ImageCache
    texts: ContrastiveTexts
    normalise: Callable[[Tensor], Tensor]
    augment: FactAugment | None = None
    negatives: int = 0

    def __call__(
        self, rows: np.ndarray, random: np.random.Generator, number: int
    ) -> ContrastiveBatch:
        rows, pixels = self.images.read(self.images.readable[rows])
        packed, groups, facts = self.texts.draw(rows, random, self.negatives)
        shown = augmented(self.augment, pixels, random, facts)
        extra = len(groups) - len(rows)
        places = [self.images.rows[int(i)].place for i in rows]
        return ContrastiveBatch(self.normalise(shown), packed, groups, extra, places, number)


def contrastive_stream(
    images: ImageCache,
    texts: ContrastiveTexts,
    batch_size: int,
    normalise: Callable[[Tensor], Tensor],
    *,
    augment: FactAugment | None = None,
    negatives: int = 0,
    seed: int = 0,
    workers: int = 1,
) -> Stream[ContrastiveBatch]:
    """The endless stream of `ContrastiveBatch`; see `ContrastiveCollate`.

    All batches have the same size, on which the difficulty of the objective depends.
    """
    return Stream(
        len(images.readable),
        ContrastiveCollate(images, texts, normalise, augment, negatives),
        batch_size,
        seed=seed,
        workers=workers,
        identity={
            "rows": len(images.readable),
            "texts": len(texts),
            "tokens": len(texts.known.ids),
        },
    )


# Encoding of texts for the text towers of CLIP and SigLIP.
#
# CLIP's row is the tokenized text without padding; its last token is the end token, at which the
# tower is read. SigLIP's row is padded to the whole context, as in training: the tower attends to
# the padding, and is read at the last token.

_OLD_END = 2  # published CLIPs take this id of an end token for the mark of an old file


def text_rows(tokenizer: Tokenizer, texts: Sequence[str], config: Any) -> list[Input]:
    """A row for each text. What is longer than the context is cut before its end token.

    Args:
        config: a `CLIPConfig`, or the `TextConfig` in it.

    Raises:
        BedstoneError: a text is empty or broken, or the tokenizer isn't one for a tower.
    """
    config = getattr(config, "text", config)
    _check(tokenizer, config)
    windows = text_batch(tokenizer, texts, limit=config.context, from_end=tokenizer.keeps_end)
    rows = [own[0] for own in windows]
    if config.layout == "clip_text_model":
        return rows
    assert tokenizer.pad_id is not None
    return [_padded(row, tokenizer.pad_id, config.context) for row in rows]


def was_cut(row: Input, text: str) -> bool:
    """Whether a row lacks the end of its text."""
    read = max((end for _, end in row.offsets), default=0)
    return read < len(text.rstrip())


def _padded(row: Input, pad: int, context: int) -> Input:
    more = context - len(row)
    return Input(
        row.ids + [pad] * more,
        row.types + [0] * more,
        row.offsets + [(0, 0)] * more,
        [*row.sources, *[None] * more],
        [*row.words, *[None] * more],
    )


def _check(tokenizer: Tokenizer, config: Any) -> None:
    """Raises BedstoneError unless the tokenizer's rows are what the tower reads."""
    if tokenizer.vocab_size > config.vocab_size:
        raise BedstoneError(
            f"tokenizer: has {tokenizer.vocab_size:,} tokens, the text tower "
            f"{config.vocab_size:,}. Take both from the same model."
        )
    if config.layout != "clip_text_model":
        if tokenizer.pad_id is None:
            raise BedstoneError(
                "tokenizer: has no pad_token, and SigLIP reads padded rows. Name one in "
                "tokenizer_config.json."
            )
        return
    shown = tokenizer.encode("a", special=True)
    end = tokenizer.eos_id
    if end is None or not shown or shown[-1] != end or end == _OLD_END:
        found = "none" if end is None else f"{end}, and 'a' becomes {shown}"
        raise BedstoneError(
            "tokenizer: CLIP's text tower is read at the end token, which the tokenizer has to set "
            f"after each text, with an id other than {_OLD_END}; this one's is {found}. Take "
            "CLIP's own, or train one of its kind (train_clip)."
        )


def encoder_of(tokenizer: Tokenizer, config: Any) -> Encode:
    """Texts to ids as the text tower reads them, cut at its context."""
    return lambda texts: [row.ids for row in text_rows(tokenizer, texts, config)]
