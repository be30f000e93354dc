"""Marian's tokenizers, read or trained: two SentencePiece models, and ids in `vocab.json`.

Published folders (OPUS-MT) hold `source.spm`, `target.spm` and `vocab.json`, and no
`tokenizer.json`. Sources are cut into pieces by the one, targets by the other, and what is
generated is put together by the target's; the ids are those of `vocab.json`, not SentencePiece's
own. Where `separate_vocabs` says so, targets have ids of their own, in `target_vocab.json`. A
source may begin with the language to translate to, `>>de<<`, which is one token.

Trained ones are of unigrams (Kudo, 2018, https://arxiv.org/abs/1804.10959), as OPUS-MT's are.
"""

import functools
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, models

from bedstone.data.text.convert_tokenizer import sentencepiece_library, sentencepiece_processor
from bedstone.data.text.tokenizer import Tokenizer, language_token, token_languages
from bedstone.data.text.tokenizer_limits import LARGEST
from bedstone.data.text.tokenizer_settings import CONFIG, CONFIG_KEYS, content_of
from bedstone.errors import BedstoneError, nearest
from bedstone.files import make_folder, write_bytes, write_json
from bedstone.published_keys import Keys, keys
from bedstone.reading import is_plain, read_bytes, read_object, shown, to_path

SOURCE, TARGET, VOCABULARY, OTHER = "source.spm", "target.spm", "vocab.json", "target_vocab.json"
SPACE = "▁"
KEYS = CONFIG_KEYS | Keys(
    honoured=keys("separate_vocabs"),
    harmless=keys("source_spm target_spm target_vocab_file vocab"),
    remedy="Take the key out of the file.",
)
ROLES = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
SHARED = 0.5  # of a SentencePiece model's pieces, at least, are in its vocabulary


def is_marian(folder: Path) -> bool:
    """Whether a folder holds Marian's tokenizers and no other."""
    return is_plain(folder / SOURCE) and not is_plain(folder / "tokenizer.json")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a folder or a file, Marian's or any other.

    Raises:
        BedstoneError: there is none, a file is damaged, or an extra is needed.
    """
    folder = to_path(path, "tokenizer")
    return read_marian(folder) if is_marian(folder) else Tokenizer.load(folder)


def read_marian(folder: Path) -> "MarianTokenizer":
    """The tokenizer of sources; `target` is that of targets.

    Raises:
        BedstoneError: a file is missing or damaged, or they are of different models.
    """
    given = read_object(folder / CONFIG) if is_plain(folder / CONFIG) else {}
    KEYS.check(given, folder / CONFIG)
    for name in (SOURCE, TARGET, VOCABULARY):
        if not is_plain(folder / name):
            raise BedstoneError(
                f"{folder}: holds no {name}, which a Marian model needs beside {SOURCE}. Fetch the "
                "folder again."
            )
    separate = given.get("separate_vocabs") or False
    if type(separate) is not bool:
        raise BedstoneError(
            f"{folder / CONFIG}: separate_vocabs = {shown(separate)}; expected true or false."
        )
    settings = {**ROLES, **{name: value for name, value in given.items() if value is not None}}
    for role in ROLES:
        settings[role] = content_of(settings[role]) or ROLES[role]
    vocabulary = _vocabulary(folder / VOCABULARY, settings)
    other = _vocabulary(folder / OTHER, settings) if separate else vocabulary
    models = [read_bytes(folder / name, LARGEST) for name in (SOURCE, TARGET)]
    made = MarianTokenizer(models[0], vocabulary, settings, folder / SOURCE)
    made.pair_with(MarianTokenizer(models[1], other, settings, folder / TARGET))
    return made


def _vocabulary(path: Path, settings: Mapping[str, Any]) -> dict[str, int]:
    """Ids by pieces, checked: 0, 1, 2, ... and the special tokens among them."""
    if not is_plain(path):
        raise BedstoneError(f"{path.parent}: holds no {path.name}. Fetch the folder again.")
    ids = read_object(path)
    if sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
        raise BedstoneError(
            f"{path}: its {len(ids):,} ids aren't 0 to {len(ids) - 1:,}, each once. Fetch the file "
            "again."
        )
    for role in ROLES:
        if settings[role] not in ids:
            raise BedstoneError(
                f"{path}: lacks {shown(settings[role])}, the {role}. Take all files of the "
                "tokenizer from the same model."
            )
    return ids


class MarianTokenizer(Tokenizer):
    """One of a Marian model's two tokenizers.

    Attributes:
        model: the SentencePiece model, as its file has it.
        vocabulary: ids by pieces.
        sources: the one of the two that reads sources.
    """

    def __init__(
        self, model: bytes, vocabulary: dict[str, int], settings: dict[str, Any], path: Path
    ) -> None:
        backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, settings["unk_token"]))
        backend.add_special_tokens([AddedToken(settings[role], special=True) for role in ROLES])
        super().__init__(backend, settings, path)
        self.model, self.vocabulary = model, vocabulary
        self.sources = self._target = self
        self._processor = sentencepiece_processor(model, path)
        self._texts = {number: piece for piece, number in vocabulary.items()}
        self._unknown = vocabulary[settings["unk_token"]]
        self._special = {vocabulary[settings[role]] for role in ROLES}
        pieces = _pieces(self._processor)
        count, known = len(pieces), sum(piece in vocabulary for piece in pieces)
        if known < SHARED * count:
            raise BedstoneError(
                f"{path}: {count - known:,} of its {count:,} pieces, {pieces[-1]!r} among them, "
                f"aren't in {VOCABULARY}; the two are of different models. Take all files of the "
                "tokenizer from the same one."
            )

    def pair_with(self, target: "MarianTokenizer") -> None:
        """Makes this the tokenizer of sources beside one of targets."""
        self._target, target.sources = target, self

    @property
    def target(self) -> "MarianTokenizer":
        return self._target

    @property
    def separate(self) -> bool:
        return self.target.vocabulary is not self.sources.vocabulary

    @functools.cached_property
    def languages(self) -> list[str]:
        return token_languages(self.vocabulary)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(super().fingerprint().encode())
        for each in (self, self.sources, self.target):
            digest.update(each.model)
            digest.update(repr(sorted(each.vocabulary.items())).encode())
        return digest.hexdigest()

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The ids of `text`; `special` adds the end token.

        Raises:
            BedstoneError: it begins with the code of a language that the vocabulary lacks.
        """
        ids = []
        end = text.find("<<") if text.startswith(">>") else -1
        if end > 0 and self.sources is self:
            code, text = text[: end + 2], text[end + 2 :]
            ids.append(self.language(code[2:-2]))
        get, unknown = self.vocabulary.get, self._unknown
        ids += [get(piece, unknown) for piece in self._processor.EncodeAsPieces(text)]
        return [*ids, self.vocabulary[self.settings["eos_token"]]] if special else ids

    def language(self, code: str) -> int:
        """The id of a language's token.

        Raises:
            BedstoneError: there is none.
        """
        found = self.vocabulary.get(language_token(code))
        if found is None:
            known = nearest(code, self.languages) if self.languages else "; the model has no codes"
            raise BedstoneError(f"language code {code!r} is unknown{known}.")
        return found

    def encode_batch(
        self, texts: Sequence[str], continued: Sequence[bool] | None = None
    ) -> list[np.ndarray]:
        return [np.array(self.encode(text), np.uint32) for text in texts]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`, put together by this side's SentencePiece."""
        parts: list[str] = []
        held: list[str] = []
        for number in map(int, ids):
            piece = self._texts.get(number, self.settings["unk_token"])
            if number not in self._special:
                held.append(piece)
            elif not skip_special:
                parts += [self._processor.DecodePieces(held), piece, " "]
                held = []
        parts.append(self._processor.DecodePieces(held))
        return "".join(parts).replace(SPACE, " ").strip()

    def save(self, folder: str | Path, *, segments: bool = True) -> None:
        """Writes both sides' files, as they are published."""
        folder = make_folder(folder)
        write_bytes(folder / TARGET, self.target.model)
        write_json(folder / VOCABULARY, self.sources.vocabulary)
        if self.separate:
            write_json(folder / OTHER, self.target.vocabulary)
        settings = {"tokenizer_class": "MarianTokenizer", "separate_vocabs": self.separate}
        write_json(folder / CONFIG, {**self.settings, **settings})
        write_bytes(folder / SOURCE, self.sources.model)  # the last: what `is_marian` looks for


def train_marian(
    sources: Iterable[str],
    targets: Iterable[str],
    vocab_size: int,
    *,
    separate: bool = False,
    lowercase: bool = False,
    languages: Sequence[str] = (),
) -> MarianTokenizer:
    """The tokenizer of sources, trained with that of targets, which is its `target`.

    Ids depend on the texts alone. The end token is 0 and the unknown one 1; padding is the last id,
    or 2 where vocabularies are separate, as it must be the same in both.

    Args:
        vocab_size: tokens of each side, special ones included; a side whose texts have fewer pieces
            than the other's may have fewer.
        separate: whether targets have ids of their own; else pieces of both sides share a
            vocabulary, of fewer than twice as many tokens.
        lowercase: whether models fold letter case (nmt_nfkc_cf) before they cut texts.
        languages: that get a token among those of sources.

    Raises:
        BedstoneError: the extra is not installed, or `vocab_size` is too large for the texts of
            both sides, or too small for the characters of one.
    """
    end, unknown, pad = ROLES.values()
    codes = [language_token(language) for language in languages]
    beside = len(codes) + 1, 1  # tokens of each side that are no pieces of its model
    source = _train_side(sources, vocab_size, beside[0], "sources", lowercase)
    target = _train_side(targets, vocab_size, beside[1], "targets", lowercase)
    read, written = (_pieces(sentencepiece_processor(m, Path(SOURCE))) for m in (source, target))
    most = max(len(each) + more for each, more in zip((read, written), beside, strict=True))
    if most < vocab_size:
        raise BedstoneError(
            f"tokenizer.vocab_size: {vocab_size:,} is too large: the texts of these pairs have "
            f"{most:,} tokens a side. Set it to {most:,} or less, or take more pairs."
        )
    if separate:
        vocabulary = _numbered(end, unknown, pad, *codes, *read)
        other = _numbered(end, unknown, pad, *written)
    else:
        vocabulary = other = _numbered(end, unknown, *codes, *read, *written, pad)
    made = MarianTokenizer(source, vocabulary, ROLES, Path(SOURCE))
    made.pair_with(MarianTokenizer(target, other, ROLES, Path(TARGET)))
    return made


def _numbered(*tokens: str) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def _pieces(processor: Any) -> list[str]:
    """All pieces of a SentencePiece model, in its order."""
    return [processor.IdToPiece(number) for number in range(processor.GetPieceSize())]


def _train_side(
    texts: Iterable[str], vocab_size: int, beside: int, side: str, lowercase: bool
) -> bytes:
    """A SentencePiece model of a side, which `beside` of its tokens don't stand in."""
    library, made = sentencepiece_library("tokenizer.kind: marian"), io.BytesIO()
    try:
        library.SentencePieceTrainer.Train(
            sentence_iterator=iter(texts),
            model_writer=made,
            vocab_size=max(vocab_size - beside, 2),  # it says more of 2 than of fewer
            model_type="unigram",
            normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
            character_coverage=1.0,  # what a text has must be writable
            hard_vocab_limit=False,
            max_sentence_length=LARGEST,  # it would pass over longer ones and say nothing
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            num_threads=4,  # sums depend on it
            minloglevel=2,
        )
    except RuntimeError as error:
        if found := re.search(r"smaller than required_chars\. -?\d+ vs (\d+)", str(error)):
            raise BedstoneError(
                f"tokenizer.vocab_size: {vocab_size:,} is too small for the characters of the "
                f"{side}; expected {int(found[1]) + beside:,} or more."
            ) from error
        raise BedstoneError(
            f"tokenizer.kind: SentencePiece can't be trained on the {side} of these pairs "
            f"({error}). Name other pairs, or take kind: bpe."
        ) from error
    return made.getvalue()
