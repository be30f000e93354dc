"""Tokenizers: loaded, saved, fast encoding of texts, streaming decoding of ids.

A thin wrapper of the `tokenizers` library. What is written, `transformers.AutoTokenizer` opens,
with the same ids.
"""

import functools
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from bedstone.data.bytes import LONGEST, cuts
from bedstone.data.text import tokenizer_settings
from bedstone.data.text.convert_tokenizer import (
    BERT,
    ROBERTA,
    as_clip,
    as_roberta,
    clip_backend,
    convert_sentencepiece,
    convert_t5,
    is_clip,
    read_openai,
    read_vocabulary,
    wordpiece,
)
from bedstone.data.text.glossary import is_alone
from bedstone.data.text.tokenizer_limits import LARGEST, check_growth, guarded
from bedstone.data.text.tokenizer_settings import (
    ADDED,
    CONFIG,
    CONFIG_KEYS,
    MAP,
    MAP_KEYS,
    PLAIN,
    ROLES,
)
from bedstone.errors import BedstoneError
from bedstone.files import make_folder, write_json, write_text
from bedstone.published_keys import Keys
from bedstone.reading import is_plain, read_object, read_text, shown, to_path

_LANGUAGE = re.compile(r">>([^<>\s]+)<<")
# Names that published tokenizers give the token that ends a text, where no file says it.
_ENDS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>")


def read_tokenizer(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer in a folder, or the one of `path`'s folder in that file.

    The settings are those of `tokenizer_config.json`, with every role in `ROLES` a plain string
    that the vocabulary holds.

    Raises:
        BedstoneError: there is none, or a file of it is damaged.
    """
    folder = path if path.is_dir() else path.parent
    backend, settings = _backend(path)
    settings |= _settings_of(folder)
    template = folder / "chat_template.jinja"
    if is_plain(template):
        settings["chat_template"] = _read(template)
    tokenizer_settings.apply(backend, settings, _object(folder / ADDED), folder)
    for role in ROLES:
        if role in settings:
            settings[role] = _content(settings[role], folder / "tokenizer_config.json", role)
    if is_clip(backend.get_vocab()):
        as_clip(backend, settings)
    _guess_encoder(backend, settings)
    if "eos_token" not in settings:
        settings |= _guess_end(backend, _object(folder / "generation_config.json"))
    return backend, settings


def _settings_of(folder: Path) -> dict[str, Any]:
    """What the files beside a vocabulary say; null says nothing."""
    given, named = _object(folder / CONFIG), _object(folder / MAP)
    own = {name for name in {*given, *named} if name.endswith("_token")}  # named by the model
    allowed = Keys(honoured=frozenset(own))
    (CONFIG_KEYS | allowed).check(given, folder / CONFIG)
    (MAP_KEYS | allowed).check(named, folder / MAP)
    # as in transformers: newer files list all tokens in tokenizer_config.json, which then counts
    first, second = (named, given) if "added_tokens_decoder" in given else (given, named)
    return {key: value for key, value in {**first, **second}.items() if value is not None}


def _backend(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    if path.is_dir():
        if is_plain(path / "tokenizer.json"):
            return _from_json(path / "tokenizer.json"), {}
        given = _settings_of(path)
        if is_plain(path / "vocab.json") and is_plain(path / "merges.txt"):
            tokenizer_settings.check_class(given, path / "vocab.json")
            return _from_merges(path / "vocab.json", path / "merges.txt", given)
        if is_plain(path / "tokenizer.model"):
            tokenizer_settings.check_class(given, path / "tokenizer.model")
            return convert_sentencepiece(path / "tokenizer.model")
        if is_plain(path / "spiece.model"):
            tokenizer_settings.check_class(given, path / "spiece.model")
            return convert_t5(path / "spiece.model", tokenizer_settings.sentinels(given, path))
        if is_plain(path / "vocab.txt"):
            tokenizer_settings.check_class(given, path / "vocab.txt")
            return wordpiece(read_vocabulary(path / "vocab.txt"), named=given)
        raise BedstoneError(
            f"{path}: holds no tokenizer. Expected tokenizer.json, vocab.json with merges.txt, "
            "tokenizer.model, spiece.model or vocab.txt in that folder."
        )
    if not is_plain(path):
        raise BedstoneError(f"tokenizer {str(path)!r}: no such file or folder.")
    if path.suffix == ".model":
        return convert_sentencepiece(path)
    if path.suffix == ".gz":
        return read_openai(path)
    if path.suffix == ".txt":
        words = read_vocabulary(path)
        cased = any(token.isascii() and token.isalpha() and token.isupper() for token in words)
        return wordpiece(words, lowercase=not cased)
    return _from_json(path), {}


def _from_json(path: Path) -> tokenizers.Tokenizer:
    text = _read(path)
    try:
        with guarded(path):
            backend = tokenizers.Tokenizer.from_str(text)
    except BedstoneError as error:
        raise BedstoneError(
            f"{path}: can't be read as a tokenizer ({str(error.__cause__)[:200]}). Expected a "
            "tokenizer.json as the tokenizers library writes it; fetch or write it again."
        ) from error
    check_growth(text, path)
    return backend


def _from_merges(
    vocabulary: Path, merges: Path, given: dict[str, Any]
) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    ids = read_object(vocabulary)
    for token, number in ids.items():
        if type(number) is not int or not 0 <= number < 2**32:
            raise BedstoneError(f"{vocabulary}: {token} = {shown(number)}; expected an id.")
    pairs = []
    for number, line in enumerate(_read(merges).split("\n"), 1):
        if line.startswith("#version") or not line:
            continue
        pair = line.removesuffix("\r").split(" ")
        if len(pair) != 2:
            raise BedstoneError(
                f"{merges}: line {number:,} is {line!r}; expected two tokens with a space between."
            )
        pairs.append((pair[0], pair[1]))
    kind = tokenizer_settings.class_of(given)
    if is_clip(ids) and kind in ("CLIP", *PLAIN):
        return clip_backend(ids, pairs)
    if kind == "CLIP":
        raise BedstoneError(
            f"{vocabulary}: isn't CLIP's vocabulary, which {CONFIG} says it is (tokenizer_class "
            f"{given['tokenizer_class']!r}). Take all files of the tokenizer from the same model."
        )
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=pairs))
    except Exception as error:
        raise BedstoneError(
            f"{merges}: does not fit {vocabulary} ({error}). Fetch both files again."
        ) from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    settings: dict[str, Any] = {}
    if kind == "Qwen2":
        tokenizer_settings.split_as_qwen2(backend)
        backend.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
        return backend, {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    if set(ROBERTA.values()) <= set(ids) and kind != "GPT2":
        return backend, as_roberta(backend)
    if "<|endoftext|>" in ids:
        backend.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
        settings = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return backend, settings


def _guess_encoder(backend: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
    """The roles of an encoder's tokens by their published names, where no file says them."""
    for names in (BERT, ROBERTA):
        if all(backend.token_to_id(token) is not None for token in names.values()):
            ends = {"bos_token": "<s>", "eos_token": "</s>"} if names is ROBERTA else {}
            for role, token in {**names, **ends}.items():
                settings.setdefault(role, token)
            return


def _guess_end(backend: tokenizers.Tokenizer, generation: dict[str, Any]) -> dict[str, str]:
    number = generation.get("eos_token_id")
    number = number[0] if isinstance(number, list) and number else number
    named = backend.id_to_token(number) if isinstance(number, int) and number >= 0 else None
    for token in (named, *_ENDS):
        if token and backend.token_to_id(token) is not None:
            return {"eos_token": token}
    return {}


def _content(token: Any, path: Path, role: str) -> str:
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise BedstoneError(f"{path}: {role} is {token!r}; expected a string.")
    return content


def _object(path: Path) -> dict[str, Any]:
    return read_object(path) if is_plain(path) else {}


def _read(path: Path) -> str:
    return read_text(path, LARGEST)


def language_token(language: str) -> str:
    """The token before a source that says the language to translate to."""
    return f">>{language}<<"


def token_languages(tokens: Iterable[str]) -> list[str]:
    """The languages that have such a token."""
    return sorted(found[1] for token in tokens if (found := _LANGUAGE.fullmatch(token)))


# Text out of token ids as they are generated, one by one.


class Streamer:
    """Streaming decoder: text from ids, piece by piece, never half a character.

    The pieces and the `flush` at the end, joined, are what `decode` adds to the text of `before`
    when the ids follow it.
    """

    def __init__(self, decode: Callable[[list[int]], str], before: Sequence[int] = ()):
        self._decode = decode
        self._ids = [int(number) for number in before]  # from the last piece that was given out on
        self._given = len(self._ids)  # how many of those that piece had

    def push(self, number: int) -> str:
        """The text that is certain now that this id follows; often empty."""
        self._ids.append(int(number))
        return self._step(final=False)

    def flush(self) -> str:
        """The rest of the text; an unfinished character is U+FFFD."""
        return self._step(final=True)

    def _step(self, final: bool) -> str:
        # Decoders treat the start of a text differently (Llama drops a space there), so new ids are
        # decoded after those of the last piece and what was given out is cut off.
        text = self._decode(self._ids)
        if text.endswith("�") and not final:
            return ""
        before = self._decode(self._ids[: self._given])
        new = text[len(before) :]
        if new:
            self._ids = self._ids[self._given :]
            self._given = len(self._ids)
        return new


CONTEXT = 64  # ids of a prompt that are decoded beside its continuation
_PROBE = "The cat (no dog) sat on 12 mats; x = y - 3 and so, é 漢字 was read twice . The end"


class Tokenizer:
    """A tokenizer: text to ids and back.

    `settings` is what `tokenizer_config.json` holds; its roles (`eos_token`, ...) name tokens of
    the vocabulary. Make one with `Tokenizer.load`, or by `data/text/train_tokenizer.py`.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        settings: dict[str, Any] | None = None,
        path: str | Path = "tokenizer",
    ):
        self.backend = backend
        self.settings = dict(settings or {})
        self.path = path  # for errors
        backend.no_truncation()
        backend.no_padding()
        for role in ROLES:
            token = self.settings.get(role)
            if token is not None and backend.token_to_id(token) is None:
                raise BedstoneError(f"{self.path}: {role} {shown(token)} is not in the vocabulary.")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer of a folder, of a `tokenizer.json` or of a `tokenizer.model`.

        Raises:
            BedstoneError: there is none, a file is damaged, or an extra is needed.
        """
        path = to_path(path, "tokenizer")
        file = path / "tokenizer.json"
        return cls(*read_tokenizer(path), path=file if is_plain(file) else path)

    @property
    def target(self) -> "Tokenizer":
        """The tokenizer of what is generated from a source: another where there are two."""
        return self

    @property
    def separate(self) -> bool:
        """Whether targets have ids of their own."""
        return False

    @functools.cached_property
    def languages(self) -> list[str]:
        """The languages that a source may ask for, as >>code<<."""
        added = self.backend.get_added_tokens_decoder().values()
        return token_languages(token.content for token in added if token.special)

    def save(self, folder: str | Path, *, segments: bool = True) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, each whole or not at all.

        Args:
            segments: whether the network reads which of two texts a token is of.
        """
        folder = make_folder(folder)
        # the library's own way to write hides the error number of a full disk
        write_text(folder / "tokenizer.json", self.backend.to_str(pretty=True))
        # tokenizer.json says all about ids; this class makes transformers take it as it is.
        settings = {
            **self.settings,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        for key in ("auto_map", "add_prefix_space", "legacy", "sp_model_kwargs", "vocab_file"):
            settings.pop(key, None)
        # transformers leaves segments out otherwise; a GPT-2 would take them for words
        if not segments:
            settings["model_input_names"] = ["input_ids", "attention_mask"]
        elif self.cls_id is not None and 1 in self.backend.encode("a", "b").type_ids:
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
    def begins(self) -> list[int]:
        """Ids that it sets before a text, such as <s>."""
        return list(self._around[0])

    @property
    def keeps_end(self) -> bool:
        """Whether a text that is cut keeps its last tokens, not its first."""
        return self.settings.get("truncation_side") == "left"

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
        """The ids of `text`; `special` adds the special tokens around a text, such as <s>.

        The name of a special token inside `text` becomes that token, as chat templates need.
        """
        with guarded(self.path, text):
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
        says that text i goes on where a cut by `data.records` ended another.
        """
        pieces: list[str] = []
        counts = []
        for number, text in enumerate(texts):
            new = self.pieces(text, continued is not None and continued[number])
            pieces += new
            counts.append(len(new))
        with guarded(self.path, pieces[0] if pieces else ""):
            encodings = self.plain.encode_batch_fast(pieces, add_special_tokens=False)
        parts = [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]
        result, at = [], 0
        for count in counts:
            result.append(parts[at] if count == 1 else np.concatenate(parts[at : at + count]))
            at += count
        return result

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        with guarded(self.path):
            return self.backend.decode(
                [int(number) for number in ids], skip_special_tokens=skip_special
            )

    def streamer(self, before: Sequence[int] = (), skip_special: bool = True) -> Streamer:
        """Decodes ids one by one, as they are generated after those of a prompt.

        Args:
            before: ids of the prompt. SentencePiece writes the space between two words at the
                start of the second and drops it at the start of a text: a continuation that is
                decoded alone loses it.
        """
        return Streamer(lambda ids: self.decode(ids, skip_special), before[-CONTEXT:])

    def continuation(self, before: Sequence[int], ids: Iterable[int]) -> str:
        """The text that `ids` add to the text of `before`."""
        return "".join(self.parts(before, ids, skip_special=True))

    def parts(
        self, before: Sequence[int], ids: Iterable[int], skip_special: bool = False
    ) -> list[str]:
        """The text that each id adds after `before`; joined, the text of all.

        An id in the middle of a character adds nothing, the one that completes it the character.
        """
        stream = self.streamer(before, skip_special)
        found = [stream.push(number) for number in ids]
        if found:
            found[-1] += stream.flush()
        return found

    def pieces(self, text: str, continued: bool = False) -> list[str]:
        pieces = list(cuts(text))
        if self._drops_space and (len(pieces) > 1 or continued):
            first = 0 if continued else 1
            pieces[first:] = [piece.removeprefix(" ") for piece in pieces[first:]]
        return pieces

    @functools.cached_property
    def hidden_names(self) -> dict[str, str]:
        """Of each special token the name that it has in `plain`, which no text can hold."""
        nonce, rules = secrets.token_hex(12), json.loads(self.backend.to_str())["model"]
        added = self.backend.get_added_tokens_decoder()
        names = {each.content for each in added.values() if each.special and each.content}
        # a letter, or what merges make, is in texts too: "!" pads CLIP's
        merges = (m.split(" ") if isinstance(m, str) else m for m in rules.get("merges") or ())
        made = {name for name in map("".join, merges) if name in names}
        own = (name for name in names if len(name) > 1 and name not in made)
        return {name: f"<|{nonce}-{number}|>" for number, name in enumerate(sorted(own))}

    @functools.cached_property
    def plain(self) -> tokenizers.Tokenizer:
        """A twin that reads the names of special tokens as text.

        A model of words or word pieces has these names in its vocabulary and would find them there:
        in the twin they have others, `hidden_names`, with the same ids.
        """
        rules, names = json.loads(self.backend.to_str()), self.hidden_names
        model, added = rules["model"], rules["added_tokens"]
        rules["added_tokens"] = [
            {**each, "content": names[each["content"]], "normalized": False}
            if each["content"] in names
            else each
            for each in added
            if not each["special"] or each["content"] in names
        ]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(name, name): n for name, n in model["vocab"].items()}
        else:
            model["vocab"] = [[names.get(name, name), score] for name, score in model["vocab"]]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        return tokenizers.Tokenizer.from_str(json.dumps(rules))

    @functools.cached_property
    def joining_ids(self) -> frozenset[int]:
        """Ids whose text goes on with the word before it: a letter or digit, without a space."""
        lead = self.encode("a")
        size = len(self.decode(lead))
        texts = (self.decode([*lead, number]) for number in range(self.vocab_size))
        firsts = [text[size : size + 1] for text in texts]
        return frozenset(
            number
            for number, first in enumerate(firsts)
            if (first.isalnum() and not is_alone(first)) or first == "\ufffd"  # half a character
        )

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
            with guarded(self.path, text):
                return self.backend.encode(text, add_special_tokens=False).ids

        return pieced(strip=False) != encode(_PROBE) and pieced(strip=True) == encode(_PROBE)

    @functools.cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        with guarded(self.path, "a"):
            inner = self.backend.encode("a", add_special_tokens=False).ids
            outer = self.backend.encode("a", add_special_tokens=True).ids
        for at in range(len(outer) - len(inner) + 1):
            if outer[at : at + len(inner)] == inner:
                return outer[:at], outer[at + len(inner) :]
        return [], []
