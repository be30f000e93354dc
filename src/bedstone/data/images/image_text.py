"""Batches of pictures with what is told of them: endless, shuffled, exactly resumable, made ahead.

Which captions and questions of a picture a batch has, and how it is augmented, is decided by the
seed and the batch's place in the stream alone. A picture is there once for all its m texts.

Shapes: P pictures, n = m P texts (row i belongs to picture i // m), T and U tokens, H x W pixels.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken
from torch import Tensor

from bedstone.data.fields import ImageTextDataset
from bedstone.data.images.augment import FactAugment
from bedstone.data.images.pixels import ImageCache, ImageStream
from bedstone.data.records import check_text
from bedstone.data.stream import IGNORED
from bedstone.data.text.packing import KnownTexts
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_wordpiece
from bedstone.errors import BedstoneError

BEGIN, ENCODE = "[DEC]", "[ENC]"  # what a decoder's text begins with; a name BLIP has beside it
LEAST = 102  # ids of a vocabulary: room for letters, and for the two
ENOUGH = 50_000  # texts to train a vocabulary on; of more, so many are drawn
PREVIEW = 40  # characters of a text that a message shows


def train_image_text(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` ids, [DEC] and [ENC] the last two.

    Raises:
        BedstoneError: there is no room for letters.
    """
    if vocab_size < LEAST:
        raise BedstoneError(
            f"tokenizer.vocab_size: {vocab_size:,} is too small; expected {LEAST} or more."
        )
    kept = list(texts)
    letters = set().union(*kept)  # all of them, whatever texts are left out
    if len(kept) > ENOUGH:
        drawn = np.random.default_rng(0).permutation(len(kept))[:ENOUGH]
        kept = [kept[i] for i in sorted(drawn.tolist())]
    kept += sorted(letters)
    return as_image_text(train_wordpiece(kept, vocab_size - 2))


def as_image_text(tokenizer: Tokenizer) -> Tokenizer:
    """A BERT tokenizer with what BLIP adds to it: [DEC], its `bos_token`, and [ENC].

    Raises:
        BedstoneError: it isn't BERT's: it has no [CLS], [SEP] or [PAD].
    """
    missing = [role for role in ("cls", "sep", "pad") if getattr(tokenizer, f"{role}_id") is None]
    if missing:
        raise BedstoneError(
            f"tokenizer: has no {', '.join(f'{role}_token' for role in missing)}; expected BERT's "
            "kind, as BLIP has it. Take the one of a BERT or BLIP folder, or let one be trained."
        )
    if tokenizer.bos_id is not None:
        return tokenizer
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())  # others may read by it
    for name in (BEGIN, ENCODE):
        if backend.token_to_id(name) is None:
            backend.add_special_tokens([AddedToken(name, normalized=False, special=True)])
    settings = {**tokenizer.settings, "bos_token": BEGIN, "additional_special_tokens": [ENCODE]}
    return Tokenizer(backend, settings)


@dataclass(frozen=True)
class BlipWords:
    """Texts as ids: the words of a text alone, and what stands around them.

    Attributes:
        context: tokens that fit, of what is read and of what is written.
        begin: what a text that is written begins with.
        end: its last token.
        before, after: what stands around a text that is read.
    """

    tokenizer: Tokenizer
    context: int
    pad: int
    begin: tuple[int, ...]
    end: int
    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, context: int, prompt: str = "") -> "BlipWords":
        """As BLIP reads and writes.

        Args:
            prompt: words that all texts which are written begin with, such as `a picture of`.

        Raises:
            BedstoneError: the tokenizer isn't of BERT's kind, or the prompt is too long.
        """
        tokenizer = as_image_text(tokenizer)
        bos, cls_id = tokenizer.bos_id, tokenizer.cls_id
        sep, pad = tokenizer.sep_id, tokenizer.pad_id
        assert bos is not None and cls_id is not None and sep is not None and pad is not None
        begin = (bos, *tokenizer.encode_batch([prompt])[0].tolist()) if prompt.strip() else (bos,)
        if len(begin) + 1 > context:
            raise BedstoneError(
                f"prompt: {prompt[:PREVIEW]!r} has {len(begin) - 1:,} tokens and leaves no room in "
                f"the network's {context:,}. Shorten it."
            )
        return cls(tokenizer, context, pad, begin, sep, (cls_id,), (sep,))

    @property
    def room(self) -> int:
        """Tokens of a text that fit beside what stands around them."""
        return self.context - max(len(self.before) + len(self.after), len(self.begin))

    def plain(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The words' ids of each text, (T,), none cut; a special token's name is only text."""
        return self.tokenizer.encode_batch(texts)

    def read(self, texts: Sequence[str], *, what: str = "text") -> list[list[int]]:
        """The ids of each text as it is read.

        Raises:
            BedstoneError: a text is empty or broken, or doesn't fit; it is named by its number.
        """
        return [[*self.before, *ids, *self.after] for ids in self._fitting(texts, what)]

    def write(self, texts: Sequence[str], *, what: str = "text") -> list[list[int]]:
        """The ids of each text as it is written after `begin`, its end included.

        Raises:
            BedstoneError: as `read`.
        """
        return [[*ids, self.end] for ids in self._fitting(texts, what)]

    def _fitting(self, texts: Sequence[str], what: str) -> list[list[int]]:
        for number, text in enumerate(texts, 1):
            check_text(text, what if len(texts) == 1 else f"{what} {number:,}")
        rows = [ids.tolist() for ids in self.plain(texts)]
        for number, (text, ids) in enumerate(zip(texts, rows, strict=True), 1):
            if len(ids) > self.room:
                name = what if len(texts) == 1 else f"{what} {number:,}"
                raise BedstoneError(
                    f"{name}: {text[:PREVIEW]!r}... has {len(text.split()):,} words, {len(ids):,} "
                    f"tokens; the network reads {self.room:,} at most. Shorten it."
                )
        return rows


def padded(rows: Sequence[Sequence[int] | np.ndarray], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of ids as (n, T) int64, and where they hold a token, (n, T) bool."""
    longest = max((len(row) for row in rows), default=0)
    ids = np.full((len(rows), longest), pad, dtype=np.int64)
    keep = np.zeros((len(rows), longest), dtype=bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        keep[number, : len(row)] = True
    return torch.from_numpy(ids), torch.from_numpy(keep)


def targets_of(
    begun: Sequence[Sequence[int]], said: Sequence[Sequence[int] | np.ndarray], pad: int
) -> tuple[Tensor, Tensor]:
    """What a decoder is fed and what it is to say next, both (n, U); -100 where nothing is.

    Args:
        begun: of each row what is given: [DEC], and a prompt.
        said: of each row what follows, its end included; an empty one teaches nothing.
    """
    rows = [[*first, *rest] for first, rest in zip(begun, said, strict=True)]
    ids, _ = padded(
        [row[:-1] if len(rest) else row for row, rest in zip(rows, said, strict=True)], pad
    )
    targets = np.full(tuple(ids.shape), IGNORED, dtype=np.int64)
    for number, (first, rest) in enumerate(zip(begun, said, strict=True)):
        targets[number, len(first) - 1 : len(first) - 1 + len(rest)] = rest
    return ids, torch.from_numpy(targets)


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
class ImageTextBatch:
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

    def to(self, device: torch.device | str) -> "ImageTextBatch":
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


class ImageTexts:
    """The texts of rows, tokenised once, each distinct one once.

    Attributes:
        cut: texts that are longer than the network reads; they end there.
    """

    def __init__(self, rows: ImageTextDataset, words: BlipWords) -> None:
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
        ids_in, targets = targets_of([begin] * len(rest), rest, words.pad)
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


class ImageTextBatches(ImageStream[ImageTextBatch]):
    """An endless stream of `ImageTextBatch`; see `ImageStream`.

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
        pictures: ImageCache,
        texts: ImageTexts,
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

    def make(self, rows: np.ndarray, random: np.random.Generator, number: int) -> ImageTextBatch:
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
        return ImageTextBatch(
            torch.zeros_like(seen) if self.blank else seen, captions, answers, places, number
        )


def _some(count: int, each: int, random: np.random.Generator) -> list[int]:
    """`each` numbers below `count`: none twice before all were; [] of none."""
    found: list[int] = []
    while count and len(found) < each:
        found += random.permutation(count).tolist()
    return found[:each]


# The form in which a GPT reads and writes of pictures.
#
# One form in pretraining on text, in learning to see and in use: `Question: what ...? Answer: red`
# and `Caption: a red circle`.

QUESTION = "Question: {} Answer:"
CAPTION = "Caption:"


def question_text(question: str) -> str:
    """What a GPT reads of a question; the answer follows."""
    return QUESTION.format(question.strip())


def answer_text(text: str) -> str:
    """An answer or a caption as it stands behind its prompt."""
    return f" {text.strip()}"


# What a GPT reads and writes of pictures: a question or the word for a caption, then the text.
#
# A text is ended by the tokenizer's end token, and loss is on what follows the prompt alone.


def gpt_words(tokenizer: Tokenizer, context: int) -> BlipWords:
    """How a GPT's tokenizer reads and writes; captions begin with their prompt.

    Raises:
        BedstoneError: no token ends a text.
    """
    end = tokenizer.eos_id
    if end is None:
        raise BedstoneError(
            "tokenizer: has no eos_token, by which a GPT would end an answer; name one in its "
            "tokenizer_config.json."
        )
    begin = tuple(tokenizer.encode_batch([CAPTION])[0].tolist())
    return BlipWords(tokenizer, context, tokenizer.pad_id or end, begin, end, (), ())


def prompt_ids(words: BlipWords, questions: Sequence[str]) -> list[list[int]]:
    """Each question's prompt, its end kept where it is too long to leave room for an answer."""
    rows = words.plain([question_text(each) for each in questions])
    return [row[-(words.context // 2) :].tolist() for row in rows]


class FlamingoTexts(ImageTexts):
    """The texts of rows as a GPT has them, tokenised once, each distinct one once."""

    def _question(self, text: str) -> int:
        return super()._question(question_text(text))

    def _said(self, texts: Sequence[str]) -> list[int]:
        return super()._said([answer_text(text) for text in texts])

    def _part(
        self, read: Sequence[int], said: Sequence[int], each: int, begin: Sequence[int]
    ) -> tuple[Part, np.ndarray]:
        words, captions = self.words, read is said
        begun: list[list[int]] = []
        rest: list[list[int]] = []
        for question, text in zip(read, said, strict=True):
            told = [*self.known[text], words.end][: words.context - 1] if text != NOTHING else []
            prompt = begin if captions or not told else self.known[question]
            begun.append([*prompt][-(words.context - len(told)) :])
            rest.append(told)
        ids, keep = padded(begun, words.pad)
        ids_in, targets = targets_of(begun, rest, words.pad)
        part = Part(ids, keep, ids_in, targets, torch.tensor(read), each)
        return part, self._facts(read, said, each)
