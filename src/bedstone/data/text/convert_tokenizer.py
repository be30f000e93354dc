"""Tokenizers for encoders: WordPiece as BERT has it, byte-level BPE with RoBERTa's special tokens.

WordPiece: Schuster and Nakajima, 2012; BERT: Devlin et al., 2019 (https://arxiv.org/abs/1810.04805);
RoBERTa: Liu et al., 2019 (https://arxiv.org/abs/1907.11692). Both set a token before a text, one
after it and one after a second text; what is hidden from the network has a token of its own.
"""

import gzip
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from bedstone.data.text.tokenizer_limits import LARGEST
from bedstone.data.text.tokenizer_settings import content_of
from bedstone.errors import BedstoneError
from bedstone.reading import read_bytes, read_text

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
    vocabulary: dict[str, int] | None = None,
    *,
    lowercase: bool = True,
    named: Mapping[str, Any] | None = None,
) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """A WordPiece tokenizer with BERT's normaliser, as an object and its settings.

    Args:
        vocabulary: ids by tokens; None has the special tokens alone.
        lowercase: whether texts are put in lower case, and their accents left out.
        named: settings that name special tokens otherwise than BERT does.

    Raises:
        BedstoneError: the vocabulary lacks a special token.
    """
    given = {role: (named or {}).get(role) for role in BERT}
    names = {role: content_of(given[role]) or token for role, token in BERT.items()}
    missing = [
        token for token in names.values() if vocabulary is not None and token not in vocabulary
    ]
    if missing:
        raise BedstoneError(
            f"vocabulary: lacks {', '.join(missing)}, which BERT needs; name its vocab.txt."
        )
    backend = tokenizers.Tokenizer(
        models.WordPiece(
            vocab=vocabulary or {token: number for number, token in enumerate(BERT.values())},
            unk_token=names["unk_token"],
            max_input_chars_per_word=LONGEST_WORD,
        )
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(list(names.values()))
    if vocabulary is not None:
        _surround(backend, names, between=names["sep_token"])
    return backend, {**names, "do_lower_case": lowercase}


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
    lines = read_text(path, LARGEST).split("\n")
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
    """Sets special tokens around one text and two; with `segments`, the second has type 1."""
    first, last = names["cls_token"], names["sep_token"]
    one = ":1" if segments else ""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {between} $B{one} {last}{one}",
        special_tokens=[(token, backend.token_to_id(token)) for token in (first, last)],
    )


# Conversion of a SentencePiece `tokenizer.model` to a `tokenizers` object.
#
# For byte-pair models with byte fallback as published with Llama 2: the model's scores give the
# order of the merges (the rule of Kudo and Richardson, 2018, https://arxiv.org/abs/1808.06226), and
# a space is set before every text. What was converted is compared with the original on probes, so a
# model of another kind is refused rather than tokenised wrongly.

SPACE = "▁"

_PROBES = (
    "Hello, world",
    "  two spaces and a\ttab\nand lines\n\n\nof 1234 numbers",
    "Grüße, 東京 και 🙂 \u200d \x07",
    "def f(x):\n        return x ** 2  # code",
    " ",
)


def convert_sentencepiece(path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and its settings as `tokenizer_config.json` would hold them.

    Raises:
        BedstoneError: the extra is not installed, the file is damaged or not of this kind.
    """
    model = sentencepiece_processor(read_bytes(path, LARGEST), path)
    found = _pieces_of(model)
    for prefix in (True, False):
        tokenizer = sentencepiece_backend(found, prefix)
        if all(
            tokenizer.encode(probe, add_special_tokens=False).ids == model.EncodeAsIds(probe)
            for probe in _PROBES
        ):
            return _with_start(tokenizer, model), _settings(model)
    raise BedstoneError(
        f"{path}: is a SentencePiece model of a kind that can't be converted exactly; expected "
        "byte-pair encoding without a normaliser, as in Llama 2. Put the model's tokenizer.json "
        "beside it: that is read first."
    )


def sentencepiece_library(use: str) -> Any:
    """The `sentencepiece` package.

    Args:
        use: what needs it, for the error.

    Raises:
        BedstoneError: the extra is not installed.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise BedstoneError(
            f"{use} needs the extra 'sentencepiece'. Install it with: pip install "
            "'bedstone[sentencepiece]'"
        ) from error
    return sentencepiece


def sentencepiece_processor(model: bytes, path: Path) -> Any:
    """The library's own reader of a model.

    Raises:
        BedstoneError: the extra is not installed, or the file is damaged.
    """
    library = sentencepiece_library(f"{path}: reading a SentencePiece model")
    processor = library.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
        processor.IdToPiece(0)
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise BedstoneError(
            f"{path}: can't be read as a SentencePiece model ({error}). Fetch the file again."
        ) from error
    return processor


def convert_t5(path: Path, sentinels: int) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of T5's `spiece.model` (Kudo, 2018: unigrams), and its settings.

    Args:
        sentinels: tokens for what span corruption leaves out, behind the vocabulary: the last is
            <extra_id_0>.

    Raises:
        BedstoneError: the extra is not installed, the file is damaged or not of this kind.
    """
    data = read_bytes(path, LARGEST)
    model = sentencepiece_processor(data, path)
    found = _pieces_of(model)
    pieces = list(zip(found.texts, found.scores, strict=True))
    tokenizer = Tokenizer(models.Unigram(pieces, found.unknown, found.bytes))
    if table := _normaliser(data):
        tokenizer.normalizer = normalizers.Precompiled(table)
    space = pre_tokenizers.Metaspace(SPACE, "always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    tokenizer.decoder = decoders.Metaspace(SPACE, "always")
    left_out = found.whole | found.special
    own = "".join(text for n, text in enumerate(found.texts[:2000]) if n not in left_out)
    if any(
        tokenizer.encode(probe, add_special_tokens=False).ids != model.EncodeAsIds(probe)
        for probe in (*_PROBES, own.replace(SPACE, " "))  # its own pieces, in other company
    ):
        raise BedstoneError(
            f"{path}: is a SentencePiece model of a kind that can't be converted exactly; expected "
            "unigrams, as in T5. Put the model's tokenizer.json beside it: that is read first."
        )
    settings = _settings(model)
    if "eos_token" not in settings:
        raise BedstoneError(f"{path}: has no end token, </s>, which every text of a T5 ends with.")
    named = [found.texts[number] for number in sorted(found.special)]
    named += [f"<extra_id_{number}>" for number in reversed(range(sentinels))]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in named])
    end = settings["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, model.eos_id())]
    )
    settings.pop("bos_token", None)
    return tokenizer, settings


def _normaliser(model: bytes) -> bytes:
    """The table by which a SentencePiece model's file normalises texts; b"" where it has none."""
    spec = next((value for number, value in _fields(model) if number == 3), b"")
    assert isinstance(spec, bytes)
    found = next((value for number, value in _fields(spec) if number == 2), b"")
    return found if isinstance(found, bytes) else b""


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Numbers and values of a protocol buffer's fields; the library has read it before."""
    at = 0

    def whole() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        key = whole()
        if key & 7 == 0:
            yield key >> 3, whole()
            continue
        size = whole() if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
        at += size
        yield key >> 3, message[at - size : at]


@dataclass(frozen=True)
class Pieces:
    """A SentencePiece vocabulary.

    Attributes:
        texts: by their ids.
        scores: the greater, the sooner a piece is made of two.
        special: ids that stand for no text, the unknown one among them.
        whole: ids of bytes and of texts that are found as they stand; no pieces make them.
        unknown: the id of what is in no piece.
        bytes: whether characters outside the vocabulary become bytes.
    """

    texts: Sequence[str]
    scores: Sequence[float]
    special: frozenset[int]
    whole: frozenset[int]
    unknown: int
    bytes: bool


def _pieces_of(model: Any) -> Pieces:
    ids = range(model.GetPieceSize())
    single = frozenset(number for number in ids if model.IsByte(number))
    return Pieces(
        [model.IdToPiece(number) for number in ids],
        [model.GetScore(number) for number in ids],
        frozenset(n for n in ids if model.IsControl(n) or model.IsUnknown(n)),
        single,
        model.unk_id(),
        bool(single),
    )


def sentencepiece_backend(pieces: Pieces, prefix: bool) -> Tokenizer:
    """The tokenizer of a byte-pair vocabulary.

    Args:
        prefix: whether a space is set before every text.
    """
    vocabulary = {piece: number for number, piece in enumerate(pieces.texts)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(pieces, vocabulary),
            unk_token=pieces.texts[pieces.unknown],
            fuse_unk=True,
            byte_fallback=pieces.bytes,
        )
    )
    space = normalizers.Replace(" ", SPACE)
    if prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), space])
    else:
        tokenizer.normalizer = space
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(
        [
            AddedToken(pieces.texts[number], normalized=False, special=True)
            for number in sorted(pieces.special)
        ]
    )
    return tokenizer


def _merges(pieces: Pieces, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two, the best-scored piece first."""
    found = []
    for number, piece in enumerate(pieces.texts):
        if number in pieces.special or number in pieces.whole:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                score = pieces.scores[number]
                found.append((-score, vocabulary[left], vocabulary[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _with_start(tokenizer: Tokenizer, model: Any) -> Tokenizer:
    if model.bos_id() >= 0:
        start = model.IdToPiece(model.bos_id())
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A",
            pair=f"{start} $A {start}:1 $B:1",
            special_tokens=[(start, model.bos_id())],
        )
    return tokenizer


def _settings(model: Any) -> dict[str, Any]:
    names = {
        "bos_token": model.bos_id(),
        "eos_token": model.eos_id(),
        "unk_token": model.unk_id(),
        "pad_token": model.pad_id(),
    }
    return {name: model.IdToPiece(number) for name, number in names.items() if number >= 0}


# CLIP's published tokenizer: byte-level BPE of lower-case words, each ended by `</w>`.
#
# Radford et al., 2021, section 2.4; the ids are those of the published vocabulary. Spaces only
# separate words, so decoded text has one space between them.

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
    """Whether a vocabulary is CLIP's: by its special tokens, and by tokens that end words."""
    tokens = set(vocabulary)
    return {BEGIN, END} <= tokens and any(token.endswith(ENDING) for token in tokens)


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
        _surround_clip(backend)
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
    """The letter of each byte in the order of the published ids: printable ones first."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sum(byte not in seen for byte in range(256))
    return [*map(chr, seen), *(chr(256 + number) for number in range(hidden))]


def _surround_clip(backend: tokenizers.Tokenizer) -> None:
    """Sets CLIP's special tokens, one before a text and one after it."""
    backend.add_special_tokens([AddedToken(name, special=True) for name in (BEGIN, END)])
    ids = backend.get_vocab()
    last, first = ((name, ids[name]) for name in (END, BEGIN))
    backend.post_processor = processors.RobertaProcessing(
        last, first, trim_offsets=False, add_prefix_space=False
    )
