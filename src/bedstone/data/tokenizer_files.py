"""The files of a tokenizer, as the ecosystem writes them -> a `tokenizers` object and settings.

Read, in this order: `tokenizer.json`; `vocab.json` with `merges.txt` (GPT-2, RoBERTa, CLIP);
`tokenizer.model` (SentencePiece); `vocab.txt` (WordPiece, as BERT has it). Beside them:
`tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json`,
`chat_template.jinja`. No code in a folder is ever run, whatever its configuration names.
"""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from bedstone.data.clip_tokenizers import as_clip, clip_backend, is_clip, read_openai
from bedstone.data.encoder_tokenizers import (
    BERT,
    ROBERTA,
    as_roberta,
    read_vocabulary,
    wordpiece,
)
from bedstone.data.sentencepiece import convert_sentencepiece
from bedstone.errors import BedstoneError
from bedstone.files import read_json

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

# Names that published tokenizers give the token that ends a text, where no file says it.
_ENDS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>")


def read_tokenizer(path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer in a folder, or the one of `path`'s folder in that file.

    The settings are those of `tokenizer_config.json`, with every role in `ROLES` a plain string
    that the vocabulary holds.

    Raises:
        BedstoneError: there is none, or a file of it is damaged.
    """
    folder = path if path.is_dir() else path.parent
    backend, settings = _backend(path)
    given = _object(folder / "tokenizer_config.json")
    for role, token in _object(folder / "special_tokens_map.json").items():
        given.setdefault(role, token)
    settings |= {key: value for key, value in given.items() if value is not None}
    template = folder / "chat_template.jinja"
    if template.is_file():
        settings["chat_template"] = _read(template)
    _add_missing(backend, settings)
    for role in ROLES:
        if role in settings:
            settings[role] = _content(settings[role], folder / "tokenizer_config.json", role)
    _set_start_and_end(backend, settings)
    if is_clip(backend.get_vocab()):
        as_clip(backend, settings)
    _guess_encoder(backend, settings)
    if "eos_token" not in settings:
        settings |= _guess_end(backend, _object(folder / "generation_config.json"))
    return backend, settings


def _backend(path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return _from_json(path / "tokenizer.json"), {}
        if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            return _from_merges(path / "vocab.json", path / "merges.txt")
        if (path / "tokenizer.model").is_file():
            return convert_sentencepiece(path / "tokenizer.model")
        if (path / "vocab.txt").is_file():
            lower = _object(path / "tokenizer_config.json").get("do_lower_case", True)
            return wordpiece(read_vocabulary(path / "vocab.txt"), lowercase=bool(lower))
        raise BedstoneError(
            f"{path}: holds no tokenizer. Expected tokenizer.json, vocab.json with merges.txt, "
            "tokenizer.model or vocab.txt in that folder."
        )
    if not path.is_file():
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


def _from_json(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(_read(path))
    except BedstoneError:
        raise
    except Exception as error:  # that library raises plain Exception
        raise BedstoneError(
            f"{path}: can't be read as a tokenizer ({error}). Expected a tokenizer.json as the "
            "tokenizers library writes it; fetch or write it again."
        ) from error


def _from_merges(vocabulary: Path, merges: Path) -> tuple[Tokenizer, dict[str, Any]]:
    ids = read_json(vocabulary)
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
    if is_clip(ids):
        return clip_backend(ids, pairs)
    try:
        backend = Tokenizer(models.BPE(vocab=ids, merges=pairs))
    except Exception as error:
        raise BedstoneError(
            f"{merges}: does not fit {vocabulary} ({error}). Fetch both files again."
        ) from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    settings: dict[str, Any] = {}
    if set(ROBERTA.values()) <= set(ids):
        return backend, as_roberta(backend)
    if "<|endoftext|>" in ids:
        backend.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
        settings = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return backend, settings


def _add_missing(backend: Tokenizer, settings: dict[str, Any]) -> None:
    """Tokens that only the configuration knows, in the order and places it gives them."""
    listed = settings.pop("added_tokens_decoder", None) or {}
    wanted = [listed[number] for number in sorted(listed, key=int)]
    wanted += [settings[role] for role in ROLES if settings.get(role)]
    extra = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
    wanted += list(extra.values()) if isinstance(extra, dict) else extra
    for token in wanted:
        fields = dict(token) if isinstance(token, dict) else {"content": token}
        content = fields.pop("content", None)
        if not isinstance(content, str) or backend.token_to_id(content) is not None:
            continue
        known = ("single_word", "lstrip", "rstrip", "normalized")
        flags = {key: bool(fields[key]) for key in known if key in fields}
        backend.add_special_tokens([AddedToken(content, special=True, **flags)])


def _set_start_and_end(backend: Tokenizer, settings: dict[str, Any]) -> None:
    """`add_bos_token` and `add_eos_token`, where given, decide what surrounds a text."""
    if not {"add_bos_token", "add_eos_token"} & set(settings):
        return
    bos = settings.get("bos_token") if settings.pop("add_bos_token", False) else None
    eos = settings.get("eos_token") if settings.pop("add_eos_token", False) else None
    single = " ".join(part for part in (bos, "$A", eos) if part)
    pair = " ".join(part for part in (bos, "$A", eos, bos, "$B:1", eos) if part)
    backend.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, backend.token_to_id(token)) for token in {bos, eos} if token],
    )


def _guess_encoder(backend: Tokenizer, settings: dict[str, Any]) -> None:
    """The roles of an encoder's tokens by their published names, where no file says them."""
    for names in (BERT, ROBERTA):
        if all(backend.token_to_id(token) is not None for token in names.values()):
            ends = {"bos_token": "<s>", "eos_token": "</s>"} if names is ROBERTA else {}
            for role, token in {**names, **ends}.items():
                settings.setdefault(role, token)
            return


def _guess_end(backend: Tokenizer, generation: dict[str, Any]) -> dict[str, str]:
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
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise BedstoneError(f"{path}: holds {type(value).__name__}; expected a JSON object.")
    return value


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise BedstoneError(f"{path}: can't be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise BedstoneError(
            f"{path}: is not UTF-8 at byte {error.start:,}. Fetch or write the file again."
        ) from error
