"""Tokenizers in GGUF files: `tokenizer.ggml.*`, to a `tokenizers` object and back.

Two kinds are read and written: `gpt2`, byte-level byte-pair encoding whose `pre` names the rule
that splits a text first, and `llama`, byte-pair encoding of SentencePiece by scores. The rules are
those of the published tokenizers that llama.cpp gives these names.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from bedstone.data.text.convert_tokenizer import Pieces, sentencepiece_backend
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.tokenizer_limits import guarded
from bedstone.data.text.tokenizer_settings import surround
from bedstone.errors import BedstoneError
from bedstone.published_keys import Keys, keys
from bedstone.reading import check_kinds, shown

log = logging.getLogger("bedstone.published")

LONGEST_PIECE = 512  # characters: pieces are cut at every place to find what they are made of
_PADDING = re.compile(r"\[PAD\d+\]")  # what stands for an id without a token
# Kinds of tokens.
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

ROLES = {
    "bos_token_id": "bos_token",
    "eos_token_id": "eos_token",
    "unknown_token_id": "unk_token",
    "padding_token_id": "pad_token",
    "mask_token_id": "mask_token",
    "cls_token_id": "cls_token",
}
ENDS = ("eot_token_id", "eom_token_id")  # beside the one that ends a text, these end an answer
KEYS = Keys(
    honoured=keys(
        """model pre tokens token_type scores merges add_bos_token add_eos_token add_space_prefix
        seperator_token_id"""
    )
    | frozenset(ROLES)
    | frozenset(ENDS),
    # of filling in the middle, which prompts say; of tokenizers that aren't read
    harmless=keys(
        """prefix_token_id suffix_token_id middle_token_id fim_pre_token_id fim_suf_token_id
        fim_mid_token_id fim_pad_token_id fim_rep_token_id fim_sep_token_id token_type_count
        remove_extra_whitespaces add_sep_token"""
    ),
    plain={"precompiled_charsmap": ()},
)
_KINDS = {
    "model": "text",
    "pre": "text",
    "tokens": "a list of texts",
    "merges": "a list of texts",
    **dict.fromkeys(("add_bos_token", "add_eos_token", "add_space_prefix"), "true or false"),
    **dict.fromkeys((*ROLES, *ENDS), "a whole number"),
}

# How texts are split before pairs are joined, by the name in `pre`. A rule is patterns, each of
# which cuts what the one before left.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def _by_letters(digits: str, signs: str = r"[\r\n]*") -> str:
    return (
        rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+{signs}|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def _by_case(digits: str, short: str) -> str:
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    return (
        rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{short}|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*"
        rf"{short}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_DIGITS = (r"\p{N}", _WORDS)
_CJK = "[一-龥ࠀ-一가-퟿]+"
_LLAMA3 = (_by_letters(r"\p{N}{1,3}"),)
_QWEN2 = (_by_letters(r"\p{N}"),)
RULES: dict[str, tuple[str, ...]] = {
    "gpt-2": (_WORDS,),
    "qwen2": _QWEN2,
    "llama-bpe": _LLAMA3,
    "smollm": _DIGITS,
    "tekken": (_by_case(r"\p{N}", ""),),
    "gpt-4o": (_by_case(r"\p{N}{1,3}", f"{_SHORT}?"),),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"),
    "deepseek-v3": (
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _WORDS, "[0-9][0-9][0-9]"),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _WORDS, r"\p{N}+", "[0-9][0-9][0-9]"),
}
_SAME = {
    "gpt-2": """phi-2 mpt olmo jais jina-es jina-de jina-v2-es jina-v2-de jina-v2-code gigachat
        roberta-bpe""",
    "qwen2": "stablelm2 deepseek-r1-qwen megrez kormo",
    "llama-bpe": """llama3 llama-v3 falcon3 falcon-h1 pixtral lfm2 dbrx smaug-bpe chatglm-bpe glm4
        bailingmoe""",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b",
    "gpt-4o": "llama4 kanana2",
}
RULES |= {other: RULES[name] for name, others in _SAME.items() for other in others.split()}
# A word that is a token is taken whole, whatever pairs would make of it.
_WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "tekken")
_BEGINS = (*_WHOLE_WORDS, "chameleon")  # texts begin with `bos` where no key says otherwise
_PROBE = (
    "I'll say: The cat's 12345 mats,  isn't it?!\n\n  def f(x_1):\n\treturn x**2 -- don't DO\r\n"
    " Ünïcode, 東京タワー, привет мир, 3.14159 + 2 = HelloWorld camelCase I'LL ... (a)/b;\n   end  "
)


@dataclass(frozen=True)
class _Vocabulary:
    """The metadata under `tokenizer.ggml`, its tokens and their kinds by id."""

    values: Mapping[str, Any]
    tokens: Sequence[str]
    kinds: Sequence[int]
    path: Path
    architecture: str


def read_gguf_tokenizer(
    values: Mapping[str, Any], template: str | None, path: Path, *, architecture: str
) -> Tokenizer | None:
    """The tokenizer of a file; None where it has none.

    Args:
        values: the metadata under `tokenizer.ggml`.
        template: `tokenizer.chat_template`.
        architecture: `general.architecture`.

    Raises:
        BedstoneError: a value is damaged, or it is of a kind that isn't built.
    """
    kind = values.get("model")
    if kind in (None, "none", "no_vocab"):
        return None
    KEYS.check(values, path)
    check_kinds(values, _KINDS, path)
    tokens = values.get("tokens")
    if not tokens:
        raise BedstoneError(f"{path}: tokenizer.ggml.tokens is missing; expected a vocabulary.")
    kinds = _numbers(values, "token_type", len(tokens), NORMAL, path)
    settings = _settings(values, tokens, path)
    if len(set(tokens)) != len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise BedstoneError(f"{path}: tokenizer.ggml.tokens has {shown(twice)} twice.")
    build = {"gpt2": _bytes, "llama": _scored}
    if kind not in build:
        raise BedstoneError(
            f"{path}: tokenizer.ggml.model = {shown(kind)}; expected one of {', '.join(build)}. "
            "Take the model with its tokenizer.json."
        )
    try:
        with guarded(path):
            backend = build[kind](_Vocabulary(values, tokens, kinds, path, architecture))
    except BedstoneError as error:
        if error.__cause__ is None:
            raise
        raise BedstoneError(
            f"{path}: tokenizer.ggml: its vocabulary and its merges don't fit each other "
            f"({str(error.__cause__)[:200]}). Fetch the file again."
        ) from error
    _surround(backend, values, settings, kind)
    if template:
        settings["chat_template"] = template
    return Tokenizer(backend, settings, path=path)


def _numbers(
    values: Mapping[str, Any], key: str, count: int, usual: float, path: Path
) -> Sequence[Any]:
    found = values.get(key)
    if found is None:
        return [usual] * count
    found = list(found) if isinstance(found, list) else found.tolist()
    if len(found) != count or any(isinstance(each, str) for each in found):
        raise BedstoneError(
            f"{path}: tokenizer.ggml.{key} has {len(found):,} values for {count:,} tokens; "
            "expected a number for each."
        )
    return found


def _settings(values: Mapping[str, Any], tokens: Sequence[str], path: Path) -> dict[str, Any]:
    found = {}
    for key, role in ROLES.items():
        number = values.get(key)
        if number is None:
            continue
        if not 0 <= number < len(tokens):
            raise BedstoneError(
                f"{path}: tokenizer.ggml.{key} = {number:,}; expected an id below {len(tokens):,}."
            )
        found[role] = tokens[number]
    return found


def _bytes(given: _Vocabulary) -> tokenizers.Tokenizer:
    values, tokens, path, architecture = given.values, given.tokens, given.path, given.architecture
    name = values.get("pre") or ("gpt-2" if architecture == "gpt2" else "default")
    if name not in RULES:
        raise BedstoneError(
            f"{path}: tokenizer.ggml.pre = {shown(name)} splits text by a rule that isn't built; "
            f"{', '.join(sorted(RULES))} are. Take the model with its tokenizer.json."
        )
    if "pre" not in values and architecture != "gpt2":
        log.warning(
            "%s: tokenizer.ggml.pre is missing, so text is split by llama.cpp's default rule, "
            "which the model may not have learnt from. Convert the model again.", path
        )  # fmt: skip
    merges = []
    for number, line in enumerate(values.get("merges") or ()):
        pair = line.split(" ")
        if len(pair) != 2:
            raise BedstoneError(
                f"{path}: tokenizer.ggml.merges[{number}] = {shown(line)}; expected two tokens "
                "with a space between."
            )
        merges.append((pair[0], pair[1]))
    ids = {
        token: number
        for number, token in enumerate(tokens)
        if given.kinds[number] != UNUSED or not _PADDING.fullmatch(token)
    }
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=ids, merges=merges, ignore_merges=name in _WHOLE_WORDS)
    )
    backend.pre_tokenizer = splitter(name)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    _add(backend, given)
    return backend


def splitter(name: str) -> pre_tokenizers.PreTokenizer:
    """The splitting rule of that name, for a byte-level tokenizer."""
    parts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in RULES[name]]
    return pre_tokenizers.Sequence(
        [*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _scored(given: _Vocabulary) -> tokenizers.Tokenizer:
    values, tokens, kinds, path = given.values, given.tokens, given.kinds, given.path
    for number, token in enumerate(tokens):
        if len(token) > LONGEST_PIECE:
            raise BedstoneError(
                f"{path}: tokenizer.ggml.tokens[{number}] has {len(token):,} characters; expected "
                f"at most {LONGEST_PIECE}. Fetch the file again."
            )
    scores = _numbers(values, "scores", len(tokens), 0.0, path)
    of = {kind: frozenset(n for n, each in enumerate(kinds) if each == kind) for kind in set(kinds)}
    none: frozenset[int] = frozenset()
    unknown = values.get("unknown_token_id", next(iter(sorted(of.get(UNKNOWN, none))), 0))
    single = of.get(BYTE, none)
    special = of.get(CONTROL, none) | of.get(UNKNOWN, none)
    whole = single | of.get(USER, none)
    backend = sentencepiece_backend(
        Pieces(tokens, scores, special, whole, unknown, bool(single)),
        prefix=values.get("add_space_prefix", True),
    )
    _add(backend, given)
    return backend


def _add(backend: tokenizers.Tokenizer, given: _Vocabulary) -> None:
    """Tokens that are found in a text before it is split; control tokens stand for no text."""
    added = [
        AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, kind in zip(given.tokens, given.kinds, strict=True)
        if kind in (CONTROL, USER) and token
    ]
    backend.add_tokens(added)


def _surround(
    backend: tokenizers.Tokenizer, values: Mapping[str, Any], settings: Mapping[str, Any], kind: str
) -> None:
    """Sets the tokens that begin and end a text, where they are asked for."""
    begins = values.get("add_bos_token", kind == "llama" or values.get("pre") in _BEGINS)
    bos = settings.get("bos_token") if begins else None
    eos = settings.get("eos_token") if values.get("add_eos_token", False) else None
    if bos or eos:
        surround(backend, bos, eos)


# Writing.


def write_gguf_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The metadata of a tokenizer, by full keys.

    Args:
        vocab_size: rows of the embedding; ids without a token become unused ones.

    Raises:
        BedstoneError: llama.cpp has no tokenizer of that kind, or no such rule of splitting.
    """
    rules = json.loads(tokenizer.backend.to_str())
    model = rules["model"]
    if model.get("type") != "BPE":
        raise BedstoneError(
            f"tokenizer: is of kind {model.get('type')}; GGUF files of GPTs hold byte-level BPE or "
            "SentencePiece. Save the model as a folder."
        )
    added = {each["id"]: each for each in rules.get("added_tokens", ())}
    texts = {number: token for token, number in model["vocab"].items()}
    texts |= {number: each["content"] for number, each in added.items()}
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(vocab_size)]
    scored = bool(model.get("byte_fallback"))
    kinds = [_kind(number, texts, added, tokenizer, scored) for number in range(vocab_size)]
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    begins, ends = _around(tokenizer)
    found: dict[str, Any] = {
        "model": "llama" if scored else "gpt2",
        "tokens": tokens,
        "token_type": kinds,
        "add_bos_token": begins,
        "add_eos_token": ends,
    }
    if scored:
        ranks: dict[str, int] = {}
        for left, right in merges:
            ranks.setdefault(left + right, len(ranks))
        found["scores"] = [float(-ranks.get(token, len(ranks))) for token in tokens]
        found["add_space_prefix"] = '"Prepend"' in json.dumps(rules.get("normalizer"))
    else:
        found["pre"] = rule_of(tokenizer)
        found["merges"] = [f"{left} {right}" for left, right in merges]
        found["add_space_prefix"] = False
    for key, role in ROLES.items():
        number = tokenizer.id_of(tokenizer.settings.get(role) or "")
        if number is not None:
            found[key] = number
    values = {f"tokenizer.ggml.{key}": value for key, value in found.items()}
    if template := tokenizer.chat_template:
        values["tokenizer.chat_template"] = template
    return values


def _kind(
    number: int,
    texts: Mapping[int, str],
    added: Mapping[int, Mapping[str, Any]],
    tokenizer: Tokenizer,
    scored: bool,
) -> int:
    text = texts.get(number)
    if text is None:
        return UNUSED
    if scored and text == tokenizer.settings.get("unk_token"):
        return UNKNOWN
    if number in added:
        return CONTROL if added[number].get("special") else USER
    byte = scored and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
    return BYTE if byte else NORMAL


def _around(tokenizer: Tokenizer) -> tuple[bool, bool]:
    """Whether texts begin with `bos`, and end with `eos`."""
    inner, outer = tokenizer.encode("a"), tokenizer.encode("a", special=True)
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    allowed = [
        (False, False, inner),
        (True, False, [bos, *inner]),
        (False, True, [*inner, eos]),
        (True, True, [bos, *inner, eos]),
    ]
    for begins, ends, ids in allowed:
        if ids == outer:
            return begins, ends
    raise BedstoneError(
        "tokenizer: surrounds a text by other tokens than its bos and eos, for which GGUF has no "
        "place. Save the model as a folder."
    )


def rule_of(tokenizer: Tokenizer) -> str:
    """The name in llama.cpp of the rule that a byte-level tokenizer splits text by.

    Raises:
        BedstoneError: it has none there.
    """
    before = tokenizer.backend.pre_tokenizer
    normalizer = tokenizer.backend.normalizer
    plain = normalizer is None or normalizer.normalize_str(_PROBE) == _PROBE
    if before is not None and plain:
        whole = bool(getattr(tokenizer.backend.model, "ignore_merges", False))
        pieces = [piece for piece, _ in before.pre_tokenize_str(_PROBE)]
        named = [
            name
            for name in RULES
            if (name in _WHOLE_WORDS) == whole
            and [piece for piece, _ in splitter(name).pre_tokenize_str(_PROBE)] == pieces
        ]
        if named:
            return named[0]
    raise BedstoneError(
        "tokenizer: splits text by a rule that llama.cpp doesn't have, so a GGUF file would give "
        "other tokens. Save the model as a folder, which other programs open."
    )
