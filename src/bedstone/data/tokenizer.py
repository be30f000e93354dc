"""Text <-> token ids: load and save a tokenizer, encode fast, decode as a stream.

A thin wrapper of the `tokenizers` library. What is written, `transformers.AutoTokenizer` opens,
with the same ids.
"""

import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from bedstone.data.cut import LONGEST, cuts
from bedstone.data.streamer import Streamer
from bedstone.data.tokenizer_files import ROLES, read_tokenizer
from bedstone.errors import BedstoneError
from bedstone.files import atomic_file, write_json

_PROBE = "The cat (no dog) sat on 12 mats; x = y - 3 and so, é 漢字 was read twice . The end"


class Tokenizer:
    """Text to ids and back.

    `settings` is what `tokenizer_config.json` holds; its roles (`eos_token`, ...) name tokens of
    the vocabulary. Make one with `Tokenizer.load`, or by `data/tokenizer_training.py`.
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
