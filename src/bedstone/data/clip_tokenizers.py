"""CLIP's published tokenizer: byte-level BPE of lower-case words, each ended by `</w>`.

Radford et al., 2021, section 2.4; the ids are those of the published vocabulary. Spaces are only
what parts words, so text comes back with one space between them.
"""

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from bedstone.errors import BedstoneError

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
ENDING = "</w>"  # of a word
CONTEXT = 77  # tokens of a text, as published

ROLES = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
_DECODER = decoders.Sequence(
    [decoders.BPEDecoder(ENDING), decoders.Replace(" ", "Ġ"), decoders.ByteLevel()]
)
_OPENAI_MERGES = 49152 - 256 - 2  # of the file's 262,144 lines
_MOST_BYTES = 1 << 24

_PATTERN = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def is_clip(vocabulary: Iterable[str]) -> bool:
    """Whether a vocabulary is CLIP's by its special tokens."""
    return {BEGIN, END} <= set(vocabulary)


def clip_backend(
    vocabulary: dict[str, int] | None = None, merges: list[tuple[str, str]] | None = None
) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """CLIP's tokenizer over a vocabulary that holds its special tokens, and its settings.

    Raises:
        BedstoneError: vocabulary and merges don't fit each other.
    """
    try:
        model = models.BPE(
            vocab=vocabulary or {},
            merges=merges or [],
            unk_token=END,
            end_of_word_suffix=ENDING,
            continuing_subword_prefix="",
        )
    except Exception as error:  # that library raises plain Exception
        raise BedstoneError(
            f"vocabulary: doesn't fit its merges ({error}). Fetch both files again."
        ) from error
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = _DECODER
    if vocabulary is not None:
        _surround(backend)
    return backend, {**ROLES, "model_max_length": CONTEXT}


def as_clip(backend: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
    """Completes a published CLIP tokenizer: its roles, and words parted when it decodes."""
    backend.decoder = _DECODER
    for role, token in ROLES.items():
        settings.setdefault(role, token)


def read_openai(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer of OpenAI's `bpe_simple_vocab_16e6.txt.gz`: merges alone, ids by their order.

    Raises:
        BedstoneError: it can't be read.
    """
    try:
        with gzip.open(path) as file:
            lines = file.read(_MOST_BYTES).decode().split("\n")
        pairs = [
            (one, two) for one, two in (line.split() for line in lines[1 : _OPENAI_MERGES + 1])
        ]
    except (OSError, EOFError, ValueError) as error:
        raise BedstoneError(
            f"{path}: can't be read as OpenAI's vocabulary ({error}): lines of two tokens, "
            "compressed by gzip. Fetch it again."
        ) from error
    return from_merges(pairs)


def from_merges(pairs: list[tuple[str, str]]) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer of merges in their order, which says the ids: bytes, merges, special tokens."""
    letters = _letters()
    names = [*letters, *(letter + ENDING for letter in letters)]
    names += [one + two for one, two in pairs] + [BEGIN, END]
    return clip_backend({name: number for number, name in enumerate(names)}, pairs)


def _letters() -> list[str]:
    """What stands for each byte, in the order of the published ids: those one can see, then the
    others as they come."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sum(byte not in seen for byte in range(256))
    return [*map(chr, seen), *(chr(256 + number) for number in range(hidden))]


def _surround(backend: tokenizers.Tokenizer) -> None:
    """Its special tokens, one set before a text and one after it."""
    backend.add_special_tokens([AddedToken(name, special=True) for name in (BEGIN, END)])
    ids = backend.get_vocab()
    last, first = ((name, ids[name]) for name in (END, BEGIN))
    backend.post_processor = processors.RobertaProcessing(
        last, first, trim_offsets=False, add_prefix_space=False
    )
