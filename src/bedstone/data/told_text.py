"""Text as vision-language networks read and write it, in training and in use alike.

As BLIP (Li et al., 2022) has it: the encoder reads [CLS] words [SEP], the decoder begins with [DEC]
(and a prompt), and ends with [SEP]. The tokenizer is BERT's, lower case, with [DEC] and
[ENC] after its vocabulary; published folders lack the two, which stand there by number alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken
from torch import Tensor

from bedstone.data.batches import IGNORED
from bedstone.data.reading import check_text
from bedstone.data.tokenizer import Tokenizer
from bedstone.data.tokenizer_training import train_wordpiece
from bedstone.errors import BedstoneError

BEGIN, ENCODE = "[DEC]", "[ENC]"  # what a decoder's text begins with; a name BLIP has beside it
LEAST = 102  # ids of a vocabulary: room for letters, and for the two
ENOUGH = 50_000  # texts to train a vocabulary on; of more, so many are drawn
SHOWN = 40  # characters of a text that a message shows


def train_told(texts: Iterable[str], vocab_size: int) -> Tokenizer:
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
    return as_told(train_wordpiece(kept, vocab_size - 2))


def as_told(tokenizer: Tokenizer) -> Tokenizer:
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
class Words:
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
    def of(cls, tokenizer: Tokenizer, context: int, prompt: str = "") -> "Words":
        """As BLIP reads and writes.

        Args:
            prompt: words that all texts which are written begin with, such as `a picture of`.

        Raises:
            BedstoneError: the tokenizer isn't of BERT's kind, or the prompt is too long.
        """
        tokenizer = as_told(tokenizer)
        bos, cls_id = tokenizer.bos_id, tokenizer.cls_id
        sep, pad = tokenizer.sep_id, tokenizer.pad_id
        assert bos is not None and cls_id is not None and sep is not None and pad is not None
        begin = (bos, *tokenizer.encode_batch([prompt])[0].tolist()) if prompt.strip() else (bos,)
        if len(begin) + 1 > context:
            raise BedstoneError(
                f"prompt: {prompt[:SHOWN]!r} has {len(begin) - 1:,} tokens and leaves no room in "
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
                    f"{name}: {text[:SHOWN]!r}... has {len(text.split()):,} words, {len(ids):,} "
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


def taught(
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
