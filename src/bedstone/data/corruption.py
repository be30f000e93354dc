"""Hiding words: what an encoder is asked to restore.

BERT (Devlin et al., 2019, section 3.1) chooses 15 % of the tokens of a row; of these 80 % become
the mask token, 10 % another token, 10 % stay. Whole words (Xu et al., 2021; BERT's own later code)
hides all pieces of a word or none. RoBERTa (Liu et al., 2019) hides others at each visit.

Nothing here has a state: what is hidden is a function of a row's key and the token's place in it,
so a stream that resumes hides what it would have hidden, whatever its batches are.

Shapes: n rows, N tokens of all rows, M hidden tokens, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
from tokenizers import decoders

from bedstone.config import MaskingConfig
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_CHOICE, _KIND, _WORD, _COUNT = range(4)  # streams of random numbers
_STREAMS = 4


def row_keys(seed: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
    """A key, uint64, for each of `rows` (n,) under a seed, such as (seed, epoch)."""
    base = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    return _mixed(base + rows.astype(np.uint64) * _STEP)


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele et al., 2014): every bit of the input moves every other."""
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))


def _draw(keys: np.ndarray, places: np.ndarray, stream: int) -> np.ndarray:
    """Uniform numbers in [0, 1), one for each key and place."""
    at = places.astype(np.uint64) * np.uint64(_STREAMS) + np.uint64(stream + 1)
    return (_mixed(keys + at * _STEP) >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Corruption:
    """Hides tokens of rows laid end to end.

    Attributes:
        mask_id: the token that hides.
        ordinary: ids that text is made of, one of which may stand in another's place.
        hides: (V,) bool, True where a token may be hidden: of text, not special or unknown.
        share: of these tokens, hidden.
        mask, other: shares of the hidden that become the mask token, or another token.
        begins, ends: (V,) bool, where words are hidden whole: a token goes on with a word if it
            doesn't begin one and the token before it doesn't end one. None hides tokens one by one.
    """

    mask_id: int
    ordinary: np.ndarray
    hides: np.ndarray
    share: float = 0.15
    mask: float = 0.8
    other: float = 0.1
    begins: np.ndarray | None = None
    ends: np.ndarray | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, config: MaskingConfig) -> "Corruption":
        """As a recipe asks for.

        Raises:
            BedstoneError: the tokenizer has no mask token.
        """
        mask_id = tokenizer.mask_id
        if mask_id is None:
            raise BedstoneError(
                "tokenizer: has no mask token, which masked pretraining needs. Train one with "
                "tokenizer.kind: wordpiece (or bpe, which gets RoBERTa's), or name an encoder's."
            )
        hides = np.zeros(tokenizer.vocab_size, bool)
        hides[list(tokenizer.backend.get_vocab(with_added_tokens=True).values())] = True
        hides[tokenizer.special_ids] = False
        begins, ends = word_edges(tokenizer) if config.whole_words else (None, None)
        return cls(
            mask_id,
            np.flatnonzero(hides),
            hides,
            config.share,
            config.mask,
            config.other,
            begins,
            ends,
        )

    def __call__(
        self, ids: np.ndarray, lengths: np.ndarray, keys: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What becomes of rows.

        Args:
            ids: (N,) int64, n rows laid end to end.
            lengths: (n,) tokens of each row.
            keys: (n,) uint64, of each row.

        Returns:
            ids (N,) with tokens hidden, and where: (M,) ascending. A row with anything to hide
            hides at least one.
        """
        owner = np.repeat(np.arange(len(lengths)), lengths)
        places = np.flatnonzero(self.hides[ids])  # (C,) what may be hidden
        read = places[self._chosen(ids, places, owner[places], lengths, keys)]
        mine, within = keys[owner[read]], read - (np.cumsum(lengths) - lengths)[owner[read]]
        kind = _draw(mine, within, _KIND)
        word = (_draw(mine, within, _WORD) * len(self.ordinary)).astype(np.int64)
        hidden = ids.copy()
        kept = np.where(kind < self.mask + self.other, self.ordinary[word], ids[read])
        hidden[read] = np.where(kind < self.mask, self.mask_id, kept)
        return hidden, read

    def _chosen(
        self,
        ids: np.ndarray,
        places: np.ndarray,
        owner: np.ndarray,
        lengths: np.ndarray,
        keys: np.ndarray,
    ) -> np.ndarray:
        """Which of `places` are hidden, (C,) bool: in each row its share of words, drawn.

        Words are taken in a random order while at least half of the next still fits.
        """
        counts = np.bincount(owner, minlength=len(lengths))
        # Rounded up or down at random, so that short rows hide their share on average too.
        spare = _draw(keys, np.zeros(len(keys)), _COUNT)
        wanted = np.maximum(np.floor(self.share * counts + spare), 1)
        new = self._new_words(ids, places, owner)
        first = np.flatnonzero(new)  # of each word, among `places`
        size = np.diff(first, append=len(places))
        row = owner[first]
        within = places[first] - (np.cumsum(lengths) - lengths)[row]
        order = np.argsort(row + _draw(keys[row], within, _CHOICE))
        row, size = row[order], size[order]
        before = np.cumsum(size) - size - (np.cumsum(counts) - counts)[row]  # tokens, in its row
        taken = np.zeros(len(first), bool)
        taken[order] = (before + size / 2 <= wanted[row]) | (before == 0)
        return taken[np.cumsum(new) - 1]

    def _new_words(self, ids: np.ndarray, places: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """(C,) bool: where a word begins; everywhere if tokens are hidden one by one."""
        new = np.ones(len(places), bool)
        if self.begins is not None and self.ends is not None and len(places):
            tokens = ids[places]
            apart = (np.diff(places) > 1) | (owner[1:] != owner[:-1])
            new[1:] = apart | self.begins[tokens[1:]] | self.ends[tokens[:-1]]
        return new


def word_edges(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens begin a word whatever is before them, and which end one: (V,) bool each.

    WordPiece marks what goes on with a word by `##`. Elsewhere a word is a run of letters, digits
    and bytes that are no ASCII; a space, or the sign that stands for one, is none of these.
    """
    begins, ends = (np.ones(tokenizer.vocab_size, bool) for _ in range(2))
    inner = getattr(tokenizer.backend.model, "continuing_subword_prefix", None)
    bytewise = isinstance(tokenizer.backend.decoder, decoders.ByteLevel)
    of_word = _is_byte_of_word if bytewise else str.isalnum
    for token, number in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        if inner:
            begins[number], ends[number] = not token.startswith(inner), False
        elif token:
            begins[number], ends[number] = not of_word(token[0]), not of_word(token[-1])
    return begins, ends


def _is_byte_of_word(letter: str) -> bool:
    """Of a letter that stands for a byte (GPT-2's table): ASCII letters and digits, or no ASCII."""
    if letter.isascii():
        return letter.isalnum()
    return ord(letter) < 256 or ord(letter) > 289  # between are blanks and controls
