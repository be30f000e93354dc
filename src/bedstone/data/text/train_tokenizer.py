"""Training a tokenizer on texts: byte-level BPE, characters, and those of encoders.

Byte-level BPE is Sennrich et al. 2016 (https://arxiv.org/abs/1508.07909) over bytes as in GPT-2
(Radford et al. 2019).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from bedstone.data.bytes import cuts
from bedstone.data.text import convert_tokenizer as encoder_tokenizers
from bedstone.data.text.tokenizer import Tokenizer, language_token
from bedstone.errors import BedstoneError
from bedstone.settings import Settings, whole

END = "<|endoftext|>"
UNKNOWN = "<|unknown|>"

# Words with their leading space, single digits, runs of signs, line ends: the pattern of Qwen 2 and
# 3, so that a folder of that layout is opened by its own class with the same ids. Single digits
# also let a small vocabulary count.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_bpe(
    texts: Iterable[str], vocab_size: int, *, special_tokens: Sequence[str] = (END,)
) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `vocab_size` ids; no text is unknown to it.

    The first of `special_tokens` ends a document and pads. Special tokens have the last ids that
    training gives.

    Raises:
        BedstoneError: `vocab_size` leaves no room for the 256 bytes and the special tokens.
    """
    least = 256 + len(special_tokens)
    if vocab_size < least:
        raise BedstoneError(
            f"vocab_size: {vocab_size:,} is too small; expected {least:,} or more (256 bytes and "
            f"{len(special_tokens)} special tokens)."
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=32,  # no token for a ruler of 80 dashes
        show_progress=False,
    )
    backend.train_from_iterator(_all_cuts(texts), trainer)
    return Tokenizer(backend, _add_special(backend, special_tokens))


def train_characters(
    texts: Iterable[str], *, special_tokens: Sequence[str] = (END, UNKNOWN)
) -> Tokenizer:
    """A tokenizer with an id for every character of `texts`, in the order of their code points.

    Characters that `texts` lack become `<|unknown|>`, which must be among `special_tokens`.

    Raises:
        BedstoneError: `texts` hold no character.
    """
    characters = sorted({character for text in texts for character in text})
    if not characters:
        raise BedstoneError("train_characters: the texts are empty; name data that holds text.")
    names = [*characters, UNKNOWN]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={name: number for number, name in enumerate(names)}, merges=[], unk_token=UNKNOWN
        )
    )
    backend.decoder = decoders.Fuse()
    ordered = [UNKNOWN, *(token for token in special_tokens if token != UNKNOWN)]
    settings = _add_special(backend, ordered, end=ordered[1] if len(ordered) > 1 else None)
    return Tokenizer(backend, {**settings, "unk_token": UNKNOWN})


def train_wordpiece(texts: Iterable[str], vocab_size: int, *, lowercase: bool = True) -> Tokenizer:
    """A WordPiece tokenizer as BERT has it, of at most `vocab_size` ids."""
    trained = encoder_tokenizers.train_wordpiece(_all_cuts(texts), vocab_size, lowercase=lowercase)
    return Tokenizer(*trained)


def train_roberta(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer with RoBERTa's special tokens, of at most `vocab_size` ids."""
    return Tokenizer(*encoder_tokenizers.train_roberta(_all_cuts(texts), vocab_size))


def _add_special(
    backend: tokenizers.Tokenizer, names: Sequence[str], end: str | None = None
) -> dict[str, Any]:
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    end = end or (names[0] if names and names[0] != UNKNOWN else None)
    return {"eos_token": end, "pad_token": end} if end else {}


def _all_cuts(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from cuts(text)


# A small tokenizer of CLIP's kind: lower-case byte-level BPE, each text between two tokens.
#
# As in Radford et al. (2021, section 2.4), a text is read in lower case and stands between
# `<|startoftext|>` and `<|endoftext|>`, which have the last ids. The space before the
# next word marks a word's end, not a suffix; so nothing is unknown.

START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
SETTINGS = {"bos_token": START, "eos_token": CLIP_END, "pad_token": CLIP_END, "unk_token": CLIP_END}


def train_clip(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` ids.

    Raises:
        BedstoneError: there is no room for the 256 bytes and the two special tokens.
    """
    if vocab_size < 258:
        raise BedstoneError(
            f"tokenizer.vocab_size: {vocab_size:,} is too small; expected 258 or more (256 bytes, "
            "start and end)."
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=32,
        show_progress=False,
    )
    backend.train_from_iterator((piece for text in texts for piece in cuts(text)), trainer)
    special = [
        tokenizers.AddedToken(name, normalized=False, special=True) for name in (START, CLIP_END)
    ]
    backend.add_special_tokens(special)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {CLIP_END}",
        special_tokens=[(name, backend.token_to_id(name)) for name in (START, CLIP_END)],
    )
    return Tokenizer(backend, dict(SETTINGS))


# A tokenizer of an encoder-decoder: byte-level BPE, each text before an end token.

PAD, PAIR_END = "<pad>", "</s>"


def train_pairs(
    texts: Iterable[str],
    vocab_size: int,
    *,
    lowercase: bool = False,
    languages: Sequence[str] = (),
) -> Tokenizer:
    """A tokenizer of at most `vocab_size` ids; padding is 0 and the end token 1, as T5 has them.

    Args:
        languages: that get a token each, which goes before a source.

    Raises:
        BedstoneError: there is no room for the 256 bytes and the special tokens.
    """
    least = 258 + len(languages)
    if vocab_size < least:
        beside = ", a token of each language" if languages else ""
        raise BedstoneError(
            f"tokenizer.vocab_size: {vocab_size:,} is too small; expected {least:,} or more (256 "
            f"bytes, padding and end{beside})."
        )
    backend = tokenizers.Tokenizer(models.BPE())
    # a word is the same at the beginning of a text as after a space
    parts: list[Any] = [normalizers.NFC(), normalizers.Prepend(" ")]
    backend.normalizer = normalizers.Sequence(parts + [normalizers.Lowercase()] * lowercase)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[
            *(AddedToken(name, normalized=False, special=True) for name in (PAD, PAIR_END)),
            # the space after it is no part of the source
            *(
                AddedToken(language_token(each), normalized=False, special=True, rstrip=True)
                for each in languages
            ),
        ],
        max_token_length=32,
        show_progress=False,
    )
    backend.train_from_iterator(_all_cuts(texts), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {PAIR_END}", special_tokens=[(PAIR_END, backend.token_to_id(PAIR_END))]
    )
    return Tokenizer(backend, {"eos_token": PAIR_END, "pad_token": PAD})


@dataclass
class TokenizerConfig(Settings):
    """The tokenizer of a run: one that is loaded, or one that is trained.

    Attributes:
        path: a folder or file of a tokenizer to load; empty trains one on the data.
        kind: what to train: bpe (byte-level), wordpiece (as BERT has it) or characters.
        vocab_size: tokens to train, for bpe and wordpiece.
        lowercase: whether wordpiece reads everything as lower case, without accents.
        sample_mb: megabytes of text it is trained on, at most.
    """

    path: str = ""
    kind: str = "bpe"
    vocab_size: int = whole(1, default=8192)
    lowercase: bool = True
    sample_mb: float = 50.0

    section: ClassVar[str] = "tokenizer."
