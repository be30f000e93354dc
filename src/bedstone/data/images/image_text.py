"""Batches of images with captions and question-answer pairs, and how their texts are encoded.

`BlipWords` is the text format of BLIP and, by `gpt_words`, of a GPT with gated cross-attention. An
image is in a batch once for all its m texts.

Shapes: P images, n = m P texts (row i belongs to image i // m), T and U tokens, H x W pixels.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken
from torch import Tensor

from bedstone.data.bytes import check_text
from bedstone.data.dataset import Dataset
from bedstone.data.images.augment import FactAugment, facts_in
from bedstone.data.images.pixels import ImageCache, augmented
from bedstone.data.stream import IGNORED, Batch, Stream, Tensors, entries
from bedstone.data.text.packing import KnownTexts
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_wordpiece
from bedstone.errors import BedstoneError

BEGIN, ENCODE = "[DEC]", "[ENC]"  # a decoder's first token, and another name that BLIP has
LEAST = 102  # ids of a vocabulary: room for letters, and for the two
ENOUGH = 50_000  # texts that a vocabulary is trained on; of more, so many are drawn
PREVIEW = 40  # characters of a text in a message


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
    """A BERT tokenizer with the tokens that BLIP adds: [DEC], its `bos_token`, and [ENC].

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
    """The text format of an image-text model: token ids of a text, and the tokens around them.

    Attributes:
        context: tokens that fit, of a text that is read and of one that is written.
        begin: tokens that a written text begins with.
        end: its last token.
        before, after: tokens around a text that is read.
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
        """The format of BLIP.

        Args:
            prompt: words that all written texts begin with, such as `a picture of`.

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
        """Tokens of a text that fit beside those around them."""
        return self.context - max(len(self.before) + len(self.after), len(self.begin))

    def plain(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text alone, (T,), none cut; a special token's name is only text."""
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
    begun: Sequence[Sequence[int]], written: Sequence[Sequence[int] | np.ndarray], pad: int
) -> tuple[Tensor, Tensor]:
    """A decoder's inputs and targets, both (n, U); -100 where there is no target.

    Args:
        begun: of each row the tokens that are given: [DEC], and a prompt.
        written: of each row the tokens that follow, its end included; an empty one has no target.
    """
    rows = [[*first, *rest] for first, rest in zip(begun, written, strict=True)]
    ids, _ = padded(
        [row[:-1] if len(rest) else row for row, rest in zip(rows, written, strict=True)], pad
    )
    targets = np.full(tuple(ids.shape), IGNORED, dtype=np.int64)
    for number, (first, rest) in enumerate(zip(begun, written, strict=True)):
        targets[number, len(first) - 1 : len(first) - 1 + len(rest)] = rest
    return ids, torch.from_numpy(targets)


NOTHING = -1  # the text of an image that has none


@dataclass(frozen=True)
class Part(Tensors):
    """Texts of a batch's images: captions, or questions with answers.

    Attributes:
        ids: (n, T) int64, captions or questions as the encoder reads them.
        keep: (n, T) bool, where they hold a token.
        ids_in: (n, U) int64, the decoder's inputs for captions or answers.
        targets: (n, U) int64, the token after each input; -100 where there is none.
        groups: (n,) int64, which caption or question each is: equal numbers are equal texts; -1
            where the image has none, and no target.
        each: m, texts of an image.
    """

    ids: Tensor
    keep: Tensor
    ids_in: Tensor
    targets: Tensor
    groups: Tensor
    each: int

    def pick(self, images: np.ndarray) -> "Part":
        """The texts of some images."""
        texts = (images[:, None] * self.each + np.arange(self.each)).ravel()
        names = ("ids", "keep", "ids_in", "targets", "groups")
        return replace(self, **{name: entries(getattr(self, name), texts) for name in names})


@dataclass(frozen=True)
class ImageTextBatch(Batch):
    """A batch of images with texts.

    Attributes:
        pixels: (P, 3, H, W) fp32, normalised.
        captions: None where a run trains on answers alone.
        answers: with their questions; None where a run trains on captions alone.
        places: where each image is from.
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

    unit: ClassVar[str] = "tokens"
    by_row = ("pixels", "places")

    def pick(self, rows: np.ndarray) -> "ImageTextBatch":
        parts = {name: getattr(self, name) for name in ("captions", "answers")}
        picked = {name: part and part.pick(rows) for name, part in parts.items()}
        return replace(super().pick(rows), **picked)

    @property
    def items(self) -> int:
        """Input tokens of the decoder, padding included."""
        return sum(part.ids_in.numel() for part in self.parts)

    @property
    def target_count(self) -> int:
        """Target tokens."""
        return sum(int((part.targets != IGNORED).sum()) for part in self.parts)

    def holds(self) -> str:
        texts = sum(len(part.ids) for part in self.parts)
        return f"{len(self.pixels)} pictures, {texts} texts"


class ImageTexts:
    """The captions, questions and answers of a dataset, each distinct text tokenised once.

    Attributes:
        cut: how many texts are longer than the network reads, and are cut.
        facts: what facts each text states.
    """

    def __init__(self, rows: Dataset, words: BlipWords) -> None:
        self.words, self.known = words, KnownTexts()
        self.captions = [self._written(row.captions) for row in rows]
        self.questions = [
            [(self._question(one.question), self._written(one.answers)) for one in row.questions]
            for row in rows
        ]
        self.cut = self.known.finish(words.plain, words.room)
        self.facts = facts_in(self.known.numbers)

    def __len__(self) -> int:
        return len(self.known)

    def draw_captions(
        self, rows: np.ndarray, random: np.random.Generator, each: int
    ) -> tuple[Part, np.ndarray]:
        """`each` captions of each row, and (P,) the facts that they state."""
        drawn = []
        for row in rows:
            own = self.captions[row]
            drawn += [own[i] for i in _some(len(own), each, random)] or [NOTHING] * each
        return self._part(drawn, drawn, each, self.words.begin)

    def draw_answers(
        self, rows: np.ndarray, random: np.random.Generator, each: int
    ) -> tuple[Part, np.ndarray]:
        """`each` questions of each row, an answer of each, and (P,) the facts that they state."""
        read, written = [], []
        for row in rows:
            own = self.questions[row]
            for i in _some(len(own), each, random) or [NOTHING] * each:
                question, answers = own[i] if i != NOTHING else (NOTHING, [NOTHING])
                read.append(question)
                written.append(answers[random.integers(len(answers))])
        return self._part(read, written, each, self.words.begin[:1])

    def _part(
        self, read: Sequence[int], written: Sequence[int], each: int, begin: Sequence[int]
    ) -> tuple[Part, np.ndarray]:
        words, none = self.words, np.zeros(0, np.int32)
        ids, keep = padded(
            [
                [*words.before, *(self.known[i] if i != NOTHING else none), *words.after]
                for i in read
            ],
            words.pad,
        )
        rest = [[*self.known[i], words.end] if i != NOTHING else [] for i in written]
        ids_in, targets = targets_of([begin] * len(rest), rest, words.pad)
        part = Part(ids, keep, ids_in, targets, torch.tensor(read), each)
        return part, self._facts(read, written, each)

    def _question(self, text: str) -> int:
        """The number of a question, in the form in which it is read."""
        return self.known.add([text])[0]

    def _written(self, texts: Sequence[str]) -> list[int]:
        """The numbers of captions or answers, in the form in which they are written."""
        return self.known.add(texts)

    def _facts(self, read: Sequence[int], written: Sequence[int], each: int) -> np.ndarray:
        """(P,) the facts that the texts of each image state."""
        found = [(self.facts[i] if i != NOTHING else 0) for i in (*read, *written)]
        return np.bitwise_or.reduce(np.array(found).reshape(2, -1, each), axis=(0, 2))


@dataclass(frozen=True)
class ImageTextCollate:
    """Makes an `ImageTextBatch` of some images.

    Attributes:
        images, texts: of the same rows.
        normalise: (P, H, W, 3) uint8 to (P, 3, H, W) fp32.
        captions: captions of an image in each batch; 0 has none.
        answers: questions of an image in each batch; 0 has none.
        augment: how images are changed, where their texts stay true.
        blank: hide all images: a baseline of texts alone.

    Raises:
        BedstoneError: a batch would hold no text.
    """

    images: ImageCache
    texts: ImageTexts
    normalise: Callable[[Tensor], Tensor]
    captions: int = 0
    answers: int = 0
    augment: FactAugment | None = None
    blank: bool = False

    def __post_init__(self) -> None:
        if self.captions < 0 or self.answers < 0 or self.captions + self.answers == 0:
            raise BedstoneError(
                f"texts: {self.captions} captions and {self.answers} questions of a picture were "
                "asked for; expected 1 or more of one of them."
            )

    def __call__(
        self, rows: np.ndarray, random: np.random.Generator, number: int
    ) -> ImageTextBatch:
        rows, pixels = self.images.read(self.images.readable[rows])
        captions = answers = None
        facts = np.zeros(len(rows), np.int64)
        if self.captions:
            captions, stated = self.texts.draw_captions(rows, random, self.captions)
            facts |= stated
        if self.answers:
            answers, stated = self.texts.draw_answers(rows, random, self.answers)
            facts |= stated
        shown = self.normalise(augmented(self.augment, pixels, random, facts))
        places = [self.images.rows[int(i)].place for i in rows]
        return ImageTextBatch(
            torch.zeros_like(shown) if self.blank else shown, captions, answers, places, number
        )


def image_text_stream(
    images: ImageCache,
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
) -> Stream[ImageTextBatch]:
    """The endless stream of `ImageTextBatch`; see `ImageTextCollate`.

    Raises:
        BedstoneError: a batch would hold no text.
    """
    return Stream(
        len(images.readable),
        ImageTextCollate(images, texts, normalise, captions, answers, augment, blank),
        batch_size,
        seed=seed,
        workers=workers,
        identity={
            "rows": len(images.readable),
            "texts": len(texts),
            "tokens": len(texts.known.ids),
            "captions": captions,
            "answers": answers,
        },
    )


def _some(count: int, each: int, random: np.random.Generator) -> list[int]:
    """`each` numbers below `count`: none twice before all were; [] of none."""
    found: list[int] = []
    while count and len(found) < each:
        found += random.permutation(count).tolist()
    return found[:each]


# The text format of a GPT with gated cross-attention: `Question: what ...? Answer: red` and
# `Caption: a red circle`, the same in pretraining on text, in training on images and in use.

QUESTION = "Question: {} Answer:"
CAPTION = "Caption:"


def question_text(question: str) -> str:
    """A question as a GPT reads it; the answer follows."""
    return QUESTION.format(question.strip())


def answer_text(text: str) -> str:
    """An answer or a caption as it follows its prompt."""
    return f" {text.strip()}"


def gpt_words(tokenizer: Tokenizer, context: int) -> BlipWords:
    """The text format of a GPT; captions begin with their prompt, the end token ends a text.

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
    """The texts of a dataset in a GPT's format; targets are the tokens after the prompt alone."""

    def _question(self, text: str) -> int:
        return super()._question(question_text(text))

    def _written(self, texts: Sequence[str]) -> list[int]:
        return super()._written([answer_text(text) for text in texts])

    def _part(
        self, read: Sequence[int], written: Sequence[int], each: int, begin: Sequence[int]
    ) -> tuple[Part, np.ndarray]:
        words, captions = self.words, read is written
        begun: list[list[int]] = []
        rest: list[list[int]] = []
        for question, text in zip(read, written, strict=True):
            ids = [*self.known[text], words.end][: words.context - 1] if text != NOTHING else []
            prompt = begin if captions or not ids else self.known[question]
            begun.append([*prompt][-(words.context - len(ids)) :])
            rest.append(ids)
        prompts, keep = padded(begun, words.pad)
        ids_in, targets = targets_of(begun, rest, words.pad)
        part = Part(prompts, keep, ids_in, targets, torch.tensor(read), each)
        return part, self._facts(read, written, each)
