"""Text <-> token ids: train, load and save a tokenizer, encode fast, decode as a stream.

A thin wrapper of the `tokenizers` library. What is written, `transformers.AutoTokenizer` opens,
with the same ids. Byte-level BPE is Sennrich et al. 2016 (https://arxiv.org/abs/1508.07909) over
bytes as in GPT-2 (Radford et al. 2019).
"""

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from bedstone.data import encoder_tokenizers
from bedstone.data.cut import LONGEST, cuts
from bedstone.data.streamer import Streamer
from bedstone.data.tokenizer_files import ROLES, read_tokenizer
from bedstone.errors import BedstoneError
from bedstone.files import atomic_file, write_json

END = "<|endoftext|>"
UNKNOWN = "<|unknown|>"

# Words with their leading space, single digits, runs of signs, line ends: the pattern of Qwen 2 and
# 3, so that a folder of that layout is opened by its own class with the same ids. Single digits
# also let a small vocabulary count.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PROBE = "The cat (no dog) sat on 12 mats; x = y - 3 and so, é 漢字 was read twice . The end"


class Tokenizer:
    """Text to ids and back.

    `settings` is what `tokenizer_config.json` holds; its roles (`eos_token`, ...) name tokens of
    the vocabulary. Make one with `Tokenizer.load`, `train_bpe` or `train_characters`.
    """

    def __init__(self, backend: tokenizers.Tokenizer, settings: dict[str, Any] | None = None):
        self.backend = backend
        self.settings = dict(settings or {})
        backend.no_truncation()
        backend.no_padding()
        for role in ROLES:
            token = self.settings.get(role)
            if token is not None and backend.token_to_id(token) is None:
                raise BedstoneError(f"tokenizer: {role} {token!r} is not in the vocabulary.")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer of a folder, of a `tokenizer.json` or of a `tokenizer.model`.

        Raises:
            BedstoneError: there is none, a file is damaged, or an extra is needed.
        """
        return cls(*read_tokenizer(Path(path)))

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / "tokenizer.json") as temporary:
            self.backend.save(str(temporary))
        # tokenizer.json says all about ids; this class makes transformers take it as it is.
        settings = {
            **self.settings,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        for key in ("auto_map", "add_prefix_space", "legacy", "sp_model_kwargs", "vocab_file"):
            settings.pop(key, None)
        # transformers leaves segments out otherwise; a GPT-2 would take them for words
        if self.cls_id is not None and 1 in self.backend.encode("a", "b").type_ids:
            names = ["input_ids", "token_type_ids", "attention_mask"]
            settings.setdefault("model_input_names", names)
        write_json(folder / "tokenizer_config.json", settings)
        # transformers would prefer a stale one to what was just written
        (folder / "chat_template.jinja").unlink(missing_ok=True)

    @property
    def vocab_size(self) -> int:
        """Ids are below this: the vocabulary and what was added to it, gaps included."""
        return self._vocab_size

    @functools.cached_property
    def _vocab_size(self) -> int:
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def id_of(self, token: str) -> int | None:
        """The id of a token by its exact name; None if the vocabulary lacks it."""
        return self.backend.token_to_id(token)

    def _role(self, role: str) -> int | None:
        token = self.settings.get(role)
        return None if token is None else self.backend.token_to_id(token)

    @property
    def bos_id(self) -> int | None:
        return self._role("bos_token")

    @property
    def eos_id(self) -> int | None:
        return self._role("eos_token")

    @property
    def pad_id(self) -> int | None:
        return self._role("pad_token")

    @property
    def cls_id(self) -> int | None:
        return self._role("cls_token")

    @property
    def sep_id(self) -> int | None:
        return self._role("sep_token")

    @property
    def mask_id(self) -> int | None:
        return self._role("mask_token")

    @property
    def special_ids(self) -> list[int]:
        """Ids of tokens that stand for no text, ascending; the unknown token is one."""
        added = self.backend.get_added_tokens_decoder()
        ids = {number for number, token in added.items() if token.special}
        return sorted(ids | {i for role in ROLES if (i := self._role(role)) is not None})

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of a conversation; where there are several, the default one."""
        template = self.settings.get("chat_template")
        if isinstance(template, list):
            named = {each.get("name"): each.get("template") for each in template}
            template = named.get("default")
        return template

    def fingerprint(self) -> str:
        """A hash (hex) of all that decides the ids of a text and where it ends."""
        text = f"{self.backend.to_str()}\n{self.eos_id}"
        return hashlib.sha256(text.encode()).hexdigest()

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The ids of `text`; `special` adds what the tokenizer sets around a text, such as <s>.

        The name of a special token inside `text` becomes that token, as chat templates need.
        """
        if len(text) <= LONGEST:
            return self.backend.encode(text, add_special_tokens=special).ids
        ids = [
            number
            for encoding in self.backend.encode_batch_fast(
                self.pieces(text), add_special_tokens=False
            )
            for number in encoding.ids
        ]
        before, after = self._around if special else ([], [])
        return [*before, *ids, *after]

    def encode_batch(
        self, texts: Sequence[str], continued: Sequence[bool] | None = None
    ) -> list[np.ndarray]:
        """The ids of each text, (T,) uint32, on all processors; the GIL is free meanwhile.

        For training data: the name of a special token inside a text is only text. `continued[i]`
        says that text i goes on where a cut by `data.cut` ended another.
        """
        pieces: list[str] = []
        counts = []
        for number, text in enumerate(texts):
            new = self.pieces(text, continued is not None and continued[number])
            pieces += new
            counts.append(len(new))
        encodings = self.plain.encode_batch_fast(pieces, add_special_tokens=False)
        parts = [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]
        result, at = [], 0
        for count in counts:
            result.append(parts[at] if count == 1 else np.concatenate(parts[at : at + count]))
            at += count
        return result

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return self.backend.decode(
            [int(number) for number in ids], skip_special_tokens=skip_special
        )

    def streamer(self, skip_special: bool = True) -> Streamer:
        """Decodes ids one by one, as they are generated."""
        return Streamer(lambda ids: self.decode(ids, skip_special))

    def pieces(self, text: str, continued: bool = False) -> list[str]:
        pieces = list(cuts(text))
        if self._drops_space and (len(pieces) > 1 or continued):
            first = 0 if continued else 1
            pieces[first:] = [piece.removeprefix(" ") for piece in pieces[first:]]
        return pieces

    @functools.cached_property
    def plain(self) -> tokenizers.Tokenizer:
        """A twin that reads the names of special tokens as text; the switch is one per object."""
        twin = tokenizers.Tokenizer.from_str(self.backend.to_str())
        twin.encode_special_tokens = True
        return twin

    @functools.cached_property
    def _drops_space(self) -> bool:
        """Whether a piece after a cut goes without its space, as the tokenizer sets one itself."""

        def pieced(strip: bool) -> list[int]:
            parts = re.split(r"(?<=\w)(?= \w)", _PROBE)
            parts = [
                part.removeprefix(" ") if strip and i else part for i, part in enumerate(parts)
            ]
            return [number for part in parts for number in encode(part)]

        def encode(text: str) -> list[int]:
            return self.backend.encode(text, add_special_tokens=False).ids

        return pieced(strip=False) != encode(_PROBE) and pieced(strip=True) == encode(_PROBE)

    @functools.cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        inner = self.backend.encode("a", add_special_tokens=False).ids
        outer = self.backend.encode("a", add_special_tokens=True).ids
        for at in range(len(outer) - len(inner) + 1):
            if outer[at : at + len(inner)] == inner:
                return outer[:at], outer[at + len(inner) :]
        return [], []


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
