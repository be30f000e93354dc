"""Settings beside a published vocabulary, with the effect that they have in transformers.

They stand in tokenizer_config.json, special_tokens_map.json and added_tokens.json; those that can't
be honoured are refused or reported by their names. The tokenizer's class says how text is split
where there is no tokenizer.json, so a class with a rule of its own is refused there.
"""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors

from bedstone.errors import BedstoneError
from bedstone.published_keys import Keys, keys
from bedstone.reading import shown

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_EXTRA = keys("additional_special_tokens extra_special_tokens")
_OF_BERT = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")

CONFIG_KEYS = Keys(
    honoured=frozenset(ROLES)
    | _EXTRA
    | frozenset(_OF_BERT)
    | keys(
        """add_bos_token add_eos_token add_prefix_space added_tokens_decoder chat_template max_len
        extra_ids fim_style model_max_length source_lang split_special_tokens target_lang
        tokenizer_class truncation_side"""
    ),
    # names of files, what is padded (nothing is here), and settings of classes written in Python,
    # which transformers doesn't use beside these files either
    harmless=keys(
        """_commit_hash _from_auto added_tokens_file backend bos_token_id cache_dir
        clean_up_tokenization_spaces cls_token_id cls_token_segment_id device_map do_basic_tokenize
        eos_token_id errors
        from_slow is_local is_fast legacy local_files_only mask_token_id
        max_length merges_file model_input_names model_specific_special_tokens name_or_path
        pad_to_multiple_of pad_token_id pad_token_type_id padding padding_side processor_class
        response_schema sep_token_id spaces_between_special_tokens special_tokens_map_file stride
        tokenizer_file tokenizer_type torch_dtype transformers_version trim_offsets truncation
        truncation_strategy unk_token_id use_default_system_prompt use_fast verbose vocab_file"""
    ),
    plain={"wordpieces_prefix": ("##",), "sp_model_kwargs": ({},)},
    reported=keys("auto_map fix_mistral_regex init_inputs keep_accents never_split remove_space"),
    remedy="Put the model's tokenizer.json beside it and take the key out.",
)
MAP_KEYS = Keys(honoured=frozenset(ROLES) | _EXTRA)

# The classes whose splitting is built here, by the file of their vocabulary, without `Tokenizer`
# and `Fast`. The empty name is that of a class that says nothing.
PLAIN = ("", "PreTrained", "PreTrainedTokenizer", "Tokenizers", "TokenizersBackend")
_WORDPIECE = (
    *("Bert", "ConvBert", "DistilBert", "Electra", "LayoutLM", "MobileBert", "RetriBert"),
    *("DPRContextEncoder", "DPRQuestionEncoder", "DPRReader", "SqueezeBert"),
)
CLASSES: dict[str, Sequence[str]] = {
    "vocab.txt": _WORDPIECE,
    "vocab.json": ("GPT2", "Roberta", "CLIP", "Qwen2", "Bart", "LED", "Longformer"),
    "tokenizer.model": ("Llama", "CodeLlama", "Mistral"),
    "spiece.model": ("T5", "MT5"),
}
_BYTES = CLASSES["vocab.json"]
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def class_of(settings: Mapping[str, Any]) -> str:
    """The tokenizer's class, without the endings that say how it is written."""
    name = str(settings.get("tokenizer_class") or "")
    return name.removesuffix("Fast").removesuffix("Tokenizer")


def check_class(settings: Mapping[str, Any], vocabulary: Path) -> None:
    """Raises BedstoneError for a class whose splitting isn't built, without a tokenizer.json."""
    known = CLASSES[vocabulary.name]
    if class_of(settings) not in (*known, *PLAIN):
        raise BedstoneError(
            f"{vocabulary.parent / CONFIG}: tokenizer_class = "
            f"{shown(settings['tokenizer_class'])} splits text by a rule of its own, which isn't "
            f"built; beside {vocabulary.name}, {', '.join(known)} are. Save the tokenizer as "
            "tokenizer.json (save_pretrained of its fast class) and put that beside it."
        )


def sentinels(settings: Mapping[str, Any], folder: Path) -> int:
    """How many sentinels a T5 has behind its SentencePiece model: 100, or as `extra_ids` says.

    Raises:
        BedstoneError: it is no number of tokens.
    """
    count = settings.get("extra_ids", 100)
    if type(count) is not int or not 0 <= count <= 1000:
        raise BedstoneError(
            f"{folder / CONFIG}: extra_ids = {shown(count)}; expected a number of tokens, 0 to "
            "1,000."
        )
    return count


def apply(
    backend: tokenizers.Tokenizer,
    settings: dict[str, Any],
    added: Mapping[str, Any],
    folder: Path,
) -> None:
    """Gives a tokenizer what its settings ask for, and takes out those that it then holds itself.

    Args:
        settings: of all files of the folder.
        added: `added_tokens.json`: ids by tokens.

    Raises:
        BedstoneError: a token would get another id than a file says.
    """
    if (most := settings.pop("max_len", None)) is not None:
        settings.setdefault("model_max_length", most)
    _normalise(backend, settings)
    _set_prefix_space(backend, settings)
    _add_tokens(backend, settings, added, folder)
    if settings.get("split_special_tokens"):
        backend.encode_special_tokens = True
    _set_start_and_end(backend, settings)


def split_as_qwen2(backend: tokenizers.Tokenizer) -> None:
    """The splitting rule of Qwen2's tokenizer, for a byte-level one."""
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _normalise(backend: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> None:
    """BERT's normaliser as its class is given it, also where tokenizer.json says otherwise."""
    given = {name: settings[name] for name in _OF_BERT if settings.get(name) is not None}
    names = (*_WORDPIECE, "")
    if not given or class_of(settings) not in names:
        return
    if not isinstance(backend.normalizer, normalizers.BertNormalizer):
        return
    made = backend.normalizer
    made.lowercase = bool(given.get("do_lower_case", made.lowercase))
    if "strip_accents" in given:
        made.strip_accents = bool(given["strip_accents"])
    made.handle_chinese_chars = bool(given.get("tokenize_chinese_chars", made.handle_chinese_chars))
    backend.normalizer = made


def _set_prefix_space(backend: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
    """`add_prefix_space` of byte-level classes, also where tokenizer.json says otherwise."""
    wanted, before = settings.get("add_prefix_space"), backend.pre_tokenizer
    if wanted is None or class_of(settings) not in (*_BYTES, ""):
        return
    parts = _parts(before)
    for part in parts:
        if isinstance(part, pre_tokenizers.ByteLevel):
            part.add_prefix_space = bool(wanted)
    whole = isinstance(before, pre_tokenizers.Sequence)
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts) if whole else before


def _parts(before: Any) -> list[Any]:
    """The steps of a pre-tokenizer; a sequence of them has an index, and no length."""
    if not isinstance(before, pre_tokenizers.Sequence):
        return [before]
    parts = []
    with contextlib.suppress(IndexError):
        for number in itertools.count():
            parts.append(before[number])
    return parts


def _add_tokens(
    backend: tokenizers.Tokenizer,
    settings: dict[str, Any],
    added: Mapping[str, Any],
    folder: Path,
) -> None:
    """Tokens that the settings list, with the ids they give; then those that are named alone."""
    listed = settings.pop("added_tokens_decoder", None)
    named = list(_named(settings))
    if listed is None:
        special = {content_of(token) for token in named}
        tokens = {
            number: AddedToken(token, special=token in special, normalized=token not in special)
            for token, number in _numbered(added, folder / ADDED)
        }
        source = folder / ADDED
    else:
        source = folder / CONFIG
        pairs = _numbered({number: number for number in listed}, source)
        tokens = {number: _token(listed[name]) for name, number in pairs}
    for number in sorted(tokens):
        backend.add_tokens([tokens[number]])
        text = tokens[number].content
        if (found := backend.token_to_id(text)) != number:
            raise BedstoneError(
                f"{source}: the token {shown(text)} has id {number:,} there, and {found:,} in "
                "the vocabulary beside it. Take all files of the tokenizer from the same model."
            )
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token in named:
        if (content := content_of(token)) is not None and content not in known:
            backend.add_special_tokens([_token(token, special=True)])
            known.add(content)


def _numbered(ids: Mapping[str, Any], source: Path) -> Iterator[tuple[str, int]]:
    """Names with their ids, which files hold as numbers or as their digits."""
    for name, number in ids.items():
        text = str(number)
        if isinstance(number, bool) or not (text.isascii() and text.isdigit() and len(text) < 10):
            raise BedstoneError(
                f"{source}: {shown(name)} has the id {shown(number)}; expected a whole number, 0 "
                "or more. Fetch the file again."
            )
        yield name, int(text)


def _named(settings: Mapping[str, Any]) -> Iterator[Any]:
    """Special tokens that settings name: roles, tokens with a name of their own, and others."""
    yield from (settings[role] for role in ROLES if settings.get(role))
    for name, value in settings.items():
        if name.endswith("_token") and name not in ROLES and not isinstance(value, bool):
            yield value
    for name in sorted(_EXTRA):
        extra = settings.get(name) or []
        extra = list(extra.values()) if isinstance(extra, dict) else extra
        yield from extra if isinstance(extra, list) else [extra]


def content_of(token: Any) -> str | None:
    """A token's text, which files hold alone or with how it is found in a text."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _token(token: Any, *, special: bool = False) -> AddedToken:
    fields = dict(token) if isinstance(token, dict) else {"content": token}
    known = ("single_word", "lstrip", "rstrip", "normalized")
    flags = {name: bool(fields[name]) for name in known if name in fields}
    return AddedToken(
        str(fields.get("content")), special=special or bool(fields.get("special")), **flags
    )


def surround(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> None:
    """Sets what begins and what ends every text; None leaves it out."""
    single = " ".join(part for part in (bos, "$A", eos) if part)
    pair = " ".join(part for part in (bos, "$A", eos, bos, "$B:1", eos) if part)
    backend.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, backend.token_to_id(token)) for token in {bos, eos} if token],
    )


def _set_start_and_end(backend: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
    """`add_bos_token` and `add_eos_token`, where given, decide what surrounds a text.

    Encoders surround it by other tokens, whatever these say.
    """
    given = {"add_bos_token", "add_eos_token"} & set(settings)
    begins, ends = settings.pop("add_bos_token", False), settings.pop("add_eos_token", False)
    encodes = isinstance(backend.model, tokenizers.models.WordPiece)
    encodes |= class_of(settings) in ("Roberta", "CLIP", "Bart", "LED", "Longformer")
    if not given or encodes:
        return
    bos = settings.get("bos_token") if begins else None
    eos = settings.get("eos_token") if ends else None
    bos, eos = (content_of(token) for token in (bos, eos))
    surround(backend, bos, eos)
