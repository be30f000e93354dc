"""Batches of pictures with what is told of them: endless, shuffled, exactly resumable, made ahead.

Which captions and questions of a picture a batch has, and how it is augmented, is decided by the
seed and the batch's place in the stream alone. A picture is there once for all its m texts.

Shapes: P pictures, n = m P texts (row i belongs to picture i // m), T and U tokens, H x W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.data.batches import IGNORED
from bedstone.data.fact_augment import FactAugment
from bedstone.data.known_texts import KnownTexts
from bedstone.data.picture_stream import PictureStream
from bedstone.data.pictures import Pictures
from bedstone.data.told import ToldRows
from bedstone.data.told_text import Words, padded, taught
from bedstone.errors import BedstoneError

NOTHING = -1  # the text of a picture that has none


@dataclass(frozen=True)
class Part:
    """Texts of a batch's pictures: captions, or questions with answers.

    Attributes:
        ids: (n, T) int64, captions or questions as the encoder reads them.
        keep: (n, T) bool, where they hold a token.
        ids_in: (n, U) int64, captions or answers as the decoder is fed them.
        targets: (n, U) int64, what it is to say next; -100 where nothing.
        groups: (n,) int64, which caption or question each is: equal numbers are equal texts; -1
            where the picture has none, which teaches nothing.
        each: m, texts of a picture.
    """

    ids: Tensor
    keep: Tensor
    ids_in: Tensor
    targets: Tensor
    groups: Tensor
    each: int

    def to(self, device: torch.device | str) -> "Part":
        """The same with its tensors there."""
        names = ("ids", "keep", "ids_in", "targets", "groups")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return replace(self, **moved)


@dataclass(frozen=True)
class ToldBatch:
    """What one training step sees.

    Attributes:
        pixels: (P, 3, H, W) fp32, normalised.
        captions, answers: what is said and what is asked of the pictures; None where a run learns
            only the other.
        places: where each picture is from.
        number: which batch of the stream this is, from 0.
    """

    pixels: Tensor
    captions: Part | None
    answers: Part | None
    places: list[str]
    number: int

    @property
    def parts(self) -> list[Part]:
        return [part for part in (self.captions, self.answers) if part is not None]

    @property
    def ids(self) -> Tensor:
        """(N,) all ids that are fed to a decoder, padding included, for counting."""
        return torch.cat([part.ids_in.flatten() for part in self.parts])

    @property
    def target_count(self) -> int:
        """Tokens to be said."""
        return sum(int((part.targets != IGNORED).sum()) for part in self.parts)

    def to(self, device: torch.device | str) -> "ToldBatch":
        """The same batch with its tensors there."""
        return replace(
            self,
            pixels=self.pixels.to(device, non_blocking=True),
            captions=None if self.captions is None else self.captions.to(device),
            answers=None if self.answers is None else self.answers.to(device),
        )

    def describe(self) -> str:
        """Which pictures are in it."""
        places = ", ".join(self.places)
        texts = sum(len(part.ids) for part in self.parts)
        return f"batch {self.number}: {len(self.pixels)} pictures, {texts} texts: {places}"


class ToldTexts:
    """The texts of rows, tokenised once, each distinct one once.

    Attributes:
        cut: texts that are longer than the network reads; they end there.
    """

    def __init__(self, rows: ToldRows, words: Words) -> None:
        self.words, self.known = words, KnownTexts()
        self.captions = [self._said(row.captions) for row in rows]
        self.asked = [
            [(self._question(one.question), self._said(one.answers)) for one in row.asked]
            for row in rows
        ]
        self.cut = self.known.finish(words.plain, words.room)

    def __len__(self) -> int:
        return len(self.known)

    def draw_captions(
        self, rows: np.ndarray, random: np.random.Generator, each: int
    ) -> tuple[Part, np.ndarray]:
        """`each` captions of each row, and (P,) what facts they tell."""
        said = []
        for row in rows:
            own = self.captions[row]
            said += [own[i] for i in _some(len(own), each, random)] or [NOTHING] * each
        return self._part(said, said, each, self.words.begin)

    def draw_answers(
        self, rows: np.ndarray, random: np.random.Generator, each: int
    ) -> tuple[Part, np.ndarray]:
        """`each` questions of each row, an answer of each, and (P,) what facts they tell."""
        read, said = [], []
        for row in rows:
            own = self.asked[row]
            for i in _some(len(own), each, random) or [NOTHING] * each:
                question, answers = own[i] if i != NOTHING else (NOTHING, [NOTHING])
                read.append(question)
                said.append(answers[random.integers(len(answers))])
        return self._part(read, said, each, self.words.begin[:1])

    def _part(
        self, read: Sequence[int], said: Sequence[int], each: int, begin: Sequence[int]
    ) -> tuple[Part, np.ndarray]:
        words, none = self.words, np.zeros(0, np.int32)
        ids, keep = padded(
            [
                [*words.before, *(self.known[i] if i != NOTHING else none), *words.after]
                for i in read
            ],
            words.pad,
        )
        rest = [[*self.known[i], words.end] if i != NOTHING else [] for i in said]
        ids_in, targets = taught([begin] * len(rest), rest, words.pad)
        part = Part(ids, keep, ids_in, targets, torch.tensor(read), each)
        return part, self._facts(read, said, each)

    def _question(self, text: str) -> int:
        """The number of a question, in the form in which it is read."""
        return self.known.add([text])[0]

    def _said(self, texts: Sequence[str]) -> list[int]:
        """The numbers of captions or answers, in the form in which they are written."""
        return self.known.add(texts)

    def _facts(self, read: Sequence[int], said: Sequence[int], each: int) -> np.ndarray:
        """(P,) the facts that are told of each picture."""
        told = [(self.known.facts[i] if i != NOTHING else 0) for i in (*read, *said)]
        return np.bitwise_or.reduce(np.array(told).reshape(2, -1, each), axis=(0, 2))


class ToldBatches(PictureStream[ToldBatch]):
    """An endless stream of `ToldBatch`; see `PictureStream`.

    Args:
        pictures: of the rows.
        texts: of the same rows.
        normalise: (P, H, W, 3) uint8 to (P, 3, H, W) fp32.
        captions: captions of a picture in each batch; 0 has none.
        answers: questions of a picture in each batch; 0 has none.
        augment: how pictures are changed, where what is told of them allows it.
        blank: hide all pictures: what can be said without looking.

    Raises:
        BedstoneError: a batch would hold no text.
    """

    def __init__(
        self,
        pictures: Pictures,
        texts: ToldTexts,
        batch_size: int,
        normalise: Callable[[Tensor], Tensor],
        *,
        captions: int = 0,
        answers: int = 0,
        augment: FactAugment | None = None,
        blank: bool = False,
        seed: int = 0,
        workers: int = 1,
        ahead: int = 4,
    ) -> None:
        super().__init__(
            pictures, batch_size, augment=augment, seed=seed, workers=workers, ahead=ahead
        )
        if captions < 0 or answers < 0 or captions + answers == 0:
            raise BedstoneError(
                f"texts: {captions} captions and {answers} questions of a picture were asked for; "
                "expected 1 or more of one of them."
            )
        self.texts, self.normalise = texts, normalise
        self.captions, self.answers, self.blank = captions, answers, blank

    def identity(self) -> dict[str, Any]:
        rows, tokens = len(self.pictures.readable), len(self.texts.known.ids)
        each = {"captions": self.captions, "answers": self.answers}
        return {"seed": self.seed, "rows": rows, "texts": len(self.texts), "tokens": tokens} | each

    def make(self, rows: np.ndarray, random: np.random.Generator, number: int) -> ToldBatch:
        rows, pixels = self.pictures.read(rows)
        captions = answers = None
        facts = np.zeros(len(rows), np.int64)
        if self.captions:
            captions, told = self.texts.draw_captions(rows, random, self.captions)
            facts |= told
        if self.answers:
            answers, told = self.texts.draw_answers(rows, random, self.answers)
            facts |= told
        seen = self.normalise(self.augmented(pixels, random, facts))
        places = [self.pictures.rows[int(i)].place for i in rows]
        return ToldBatch(
            torch.zeros_like(seen) if self.blank else seen, captions, answers, places, number
        )


def _some(count: int, each: int, random: np.random.Generator) -> list[int]:
    """`each` numbers below `count`: none twice before all were; [] of none."""
    found: list[int] = []
    while count and len(found) < each:
        found += random.permutation(count).tolist()
    return found[:each]
