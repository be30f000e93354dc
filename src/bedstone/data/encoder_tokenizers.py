"""Tokenizers for encoders: WordPiece as BERT has it, byte-level BPE with RoBERTa's special tokens.

WordPiece: Schuster and Nakajima, 2012; BERT: Devlin et al., 2019 (https://arxiv.org/abs/1810.04805);
RoBERTa: Liu et al., 2019 (https://arxiv.org/abs/1907.11692). Both set a token before a text, one
after it and one after a second text; what is hidden from the network has a token of its own.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from bedstone.errors import BedstoneError

# The ids they get are those of the published vocabularies' order: padding is 0, and 1 in RoBERTa.
BERT = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ROBERTA = {
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
LONGEST_WORD = 100  # characters; longer ones are unknown to WordPiece, as published


def wordpiece(
    vocabulary: dict[str, int] | None = None, *, lowercase: bool = True
) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """A WordPiece tokenizer with BERT's normaliser, as an object and its settings.

    Raises:
        BedstoneError: the vocabulary lacks a special token.
    """
    known = BERT if vocabulary is None else vocabulary
    missing = [token for token in BERT.values() if vocabulary is not None and token not in known]
    if missing:
        raise BedstoneError(
            f"vocabulary: lacks {', '.join(missing)}, which BERT needs; name its vocab.txt."
        )
    backend = tokenizers.Tokenizer(
        models.WordPiece(
            vocab=vocabulary or {token: number for number, token in enumerate(BERT.values())},
            unk_token=BERT["unk_token"],
            max_input_chars_per_word=LONGEST_WORD,
        )
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(list(BERT.values()))
    if vocabulary is not None:
        _surround(backend, BERT, between="[SEP]")
    return backend, {**BERT, "do_lower_case": lowercase}


def train_wordpiece(
    texts: Iterable[str], vocab_size: int, *, lowercase: bool = True
) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """A WordPiece tokenizer of at most `vocab_size` ids, trained on `texts`.

    Raises:
        BedstoneError: there is no room for letters beside the special tokens.
    """
    _check_size(vocab_size, 100)
    backend, _ = wordpiece(lowercase=lowercase)
    kept = list(texts)
    counts: Counter[str] = Counter()
    for text in kept:
        counts.update(backend.normalizer.normalize_str(text))
    letters = [letter for letter in counts if not letter.isspace()]
    letters.sort(key=lambda letter: (-counts[letter], letter))
    alphabet = sorted(letters[: max(vocab_size // 8, 64)])
    # The trainer numbers inner letters as it happens to meet them, and breaks ties by number;
    # named before, they make equal texts give equal vocabularies.
    inner = [f"##{letter}" for letter in alphabet]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*BERT.values(), *inner],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(kept, trainer)
    ids = backend.get_vocab(with_added_tokens=False)
    return wordpiece(ids, lowercase=lowercase)


def train_roberta(
    texts: Iterable[str], vocab_size: int
) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """A byte-level BPE tokenizer of at most `vocab_size` ids with RoBERTa's special tokens.

    Raises:
        BedstoneError: there is no room for the 256 bytes and the special tokens.
    """
    _check_size(vocab_size, 256 + len(ROBERTA))
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(ROBERTA.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=32,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    _surround(backend, ROBERTA, between="</s> </s>", segments=False)
    return backend, {**ROBERTA, "bos_token": "<s>", "eos_token": "</s>"}


def as_roberta(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """Gives a byte-level BPE of RoBERTa's vocabulary its special tokens; returns the settings."""
    mask = ROBERTA["mask_token"]
    others = [token for token in ROBERTA.values() if token != mask]
    # as published, a mask takes the space before it
    backend.add_special_tokens([*others, tokenizers.AddedToken(mask, lstrip=True, special=True)])
    _surround(backend, ROBERTA, between="</s> </s>", segments=False)
    return {**ROBERTA, "bos_token": "<s>", "eos_token": "</s>"}


def read_vocabulary(path: Path) -> dict[str, int]:
    """A published `vocab.txt`: a token a line, its id the line's number."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BedstoneError(f"{path}: can't be read as a vocabulary ({error}).") from error
    if lines and not lines[-1]:
        lines.pop()
    return {token.removesuffix("\r"): number for number, token in enumerate(lines)}


def _check_size(vocab_size: int, least: int) -> None:
    if vocab_size < least:
        raise BedstoneError(
            f"vocab_size: {vocab_size:,} is too small; expected {least:,} or more for this kind."
        )


def _surround(
    backend: tokenizers.Tokenizer, names: dict[str, str], *, between: str, segments: bool = True
) -> None:
    """Sets tokens around one text and two; `segments` numbers the second text's tokens 1."""
    first, last = names["cls_token"], names["sep_token"]
    one = ":1" if segments else ""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {between} $B{one} {last}{one}",
        special_tokens=[(token, backend.token_to_id(token)) for token in (first, last)],
    )
