"""Structured output: text that a JSON schema, a regular expression, choices or a grammar allows.

Before each token, the tokens that could go on with a text of that form are computed by llguidance
(https://github.com/guidance-ai/llguidance; extra `structured`); the others are left out. A text is
complete where the form may end and the model ended it, or nothing more could follow.

What isn't understood of a schema is refused before a token is generated, never passed over.
"""

import functools
import importlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bedstone.errors import BedstoneError
from bedstone.reading import read_text, shown, to_path

if TYPE_CHECKING:
    from torch import Tensor

    from bedstone.data.text.tokenizer import Tokenizer

KINDS = ("json_schema", "regex", "choices", "grammar")  # settings that ask for a form
LIMIT = 1 << 20  # characters of a form
EXTRA = "structured"
GAP = r"( |\n {0,16})?"  # between parts of JSON; without a limit small models write gaps for ever
_CHECKED = 512  # ids whose text is compared with the tokenizer's own


@dataclass(frozen=True)
class Form:
    """What a text may be: a kind of `KINDS`, and its text.

    Attributes:
        kind: the setting that it was given by.
        text: the schema as JSON, the expression, the choices as a JSON list, or the grammar.
        tokenizer: whose tokens it is written in.
    """

    kind: str
    text: str
    tokenizer: "Tokenizer"

    def start(self) -> "Guide":
        """The way of one row through the form.

        Raises:
            BedstoneError: the form isn't valid, or isn't understood whole.
        """
        return _Spelled(self) if _is_pieced(self.tokenizer) else _Followed(self)

    @property
    def choices(self) -> list[str]:
        found: list[str] = json.loads(self.text)
        return found

    def check(self) -> None:
        """Raises BedstoneError where the form isn't valid, or can't be followed."""
        way = self.start()
        if not way.complete and not bool(way.allowed().any()):
            raise BedstoneError(f"{self.kind}: {shown(self.text)} allows no text at all. Mend it.")

    @functools.cached_property
    def compiled(self) -> str:
        """The form as llguidance reads it.

        Raises:
            BedstoneError: as `start`.
        """
        matcher, known = _library().LLMatcher, _known_tokens(self.tokenizer)
        made: str
        if self.kind == "json_schema":
            try:
                made = matcher.grammar_from_json_schema(
                    self.text, overrides={"whitespace_pattern": GAP}
                )
            except (ValueError, RecursionError) as error:
                raise BedstoneError(f"json_schema: can't be followed: {error}.") from error
        elif self.kind == "regex":
            made = matcher.grammar_from_regex(self.text)
        elif self.kind == "choices":
            made = matcher.grammar_from_regex("|".join(map(_escaped, self.choices)))
        else:
            made = matcher.grammar_from_lark(self.text)
        wrong, messages = matcher.validate_grammar_with_warnings(made, known)
        if wrong or messages:
            raise BedstoneError(
                f"{self.kind}: {shown(self.text)} can't be followed: {_first_line(messages)}"
            )
        return made


def read_form(given: Mapping[str, Any], tokenizer: "Tokenizer | None") -> Form | None:
    """The form that one of the settings asks for; None where none does.

    Args:
        given: settings by name. `json_schema` is a dictionary, its JSON, or True for any JSON
            object; `regex` an expression that the whole text matches; `choices` texts; `grammar` a
            grammar in Lark's notation.

    Raises:
        BedstoneError: several are given, or a value isn't of its kind.
    """
    named = [name for name in KINDS if given.get(name) not in (None, (), [])]
    if not named:
        return None
    if len(named) > 1:
        raise BedstoneError(
            f"{named[0]}: was given beside {named[1]}; a text has one form. Leave one of them out."
        )
    (kind,) = named
    text = _TEXTS[kind](given[kind])
    if len(text) > LIMIT:
        raise BedstoneError(f"{kind}: has {len(text):,} characters; expected at most {LIMIT:,}.")
    if tokenizer is None:
        raise BedstoneError(f"{kind}: was given where no tokenizer writes the text. Leave it out.")
    form = Form(kind, text, tokenizer)
    form.check()
    return form


class Guide(Protocol):
    """One row's way through a form: which tokens may come next, and whether it may end.

    Attributes:
        complete: whether the text so far may end here.
        ended: whether nothing more can follow.
    """

    @property
    def complete(self) -> bool: ...
    @property
    def ended(self) -> bool: ...

    def allowed(self) -> "Tensor":
        """Which tokens may come next, (V,) bool, V of the tokenizer, but for those that end."""

    def take(self, token: int) -> None:
        """Reads the token that was chosen, which doesn't end the text.

        Raises:
            BedstoneError: the form has no such token here, or grows too large to follow.
        """


class _Followed(Guide):
    """By llguidance, byte by byte."""

    def __init__(self, form: Form) -> None:
        known = _known_tokens(form.tokenizer)
        self._matcher = _library().LLMatcher(known, form.compiled, log_level=0)
        self._kind, self._size = form.kind, form.tokenizer.vocab_size
        self._check()

    @property
    def complete(self) -> bool:
        return bool(self._matcher.is_accepting())

    @property
    def ended(self) -> bool:
        return bool(self._matcher.is_stopped())

    def allowed(self) -> "Tensor":
        import torch

        if self.ended:
            return torch.zeros(self._size, dtype=torch.bool)
        found = bytearray(self._matcher.compute_logit_bias())
        self._check()
        return torch.frombuffer(found, dtype=torch.uint8)[: self._size] > 0

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise BedstoneError(
                f"{self._kind}: can't be followed: {_first_line([self._matcher.get_error()])}"
            )


class _Spelled(Guide):
    """Choices as the tokenizer spells them: of words, between which decoding sets spaces.

    Raises:
        BedstoneError: another form is asked for, or a choice can't be spelled.
    """

    def __init__(self, form: Form) -> None:
        known = form.tokenizer
        if form.kind != "choices":
            raise BedstoneError(
                f"{form.kind}: the model's tokens are words with spaces between them, which can't "
                "follow it character by character. Give choices."
            )
        self._left = {text: known.encode(text) for text in form.choices}
        for text, ids in self._left.items():
            if not ids or known.backend.token_to_id("[UNK]") in ids:
                raise BedstoneError(f"choices: {shown(text)} has no tokens in {known.path}.")
            if (said := known.decode(ids).strip()) != text:
                raise BedstoneError(
                    f"choices: {shown(text)} is written {shown(said)} by the model. Give it so."
                )
        self._size = known.vocab_size

    @property
    def complete(self) -> bool:
        return any(not ids for ids in self._left.values())

    @property
    def ended(self) -> bool:
        return not any(self._left.values())

    def allowed(self) -> "Tensor":
        import torch

        found = torch.zeros(self._size, dtype=torch.bool)
        found[[ids[0] for ids in self._left.values() if ids]] = True
        return found

    def take(self, token: int) -> None:
        self._left = {t: ids[1:] for t, ids in self._left.items() if ids and ids[0] == token}


def guided(logits: "Tensor", guides: Sequence[Guide], ends: Iterable[int]) -> "Tensor":
    """Logits (B, V) with -inf where a row's form doesn't allow a token; `ends` end a whole text.

    Raises:
        BedstoneError: a row has no token to go on with.
    """
    import torch

    allowed = torch.zeros(logits.shape, dtype=torch.bool)
    for row, guide in zip(allowed, guides, strict=True):
        bits = guide.allowed()
        row[: len(bits)] = bits[: len(row)]
        row[list(ends)] = guide.complete
        if not row.any():
            raise BedstoneError("a form was asked for that the model's tokens can't go on with.")
    return logits.float().masked_fill(~allowed.to(logits.device), -torch.inf)


def schema_text(value: Any) -> str:
    """A schema as JSON. Raises BedstoneError where it is none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BedstoneError(
                f"json_schema: {shown(value)} is no JSON: {error}. Expected a schema, such as "
                '{"type": "object", "properties": {"name": {"type": "string"}}}.'
            ) from error
    if value is True:
        value = {"type": "object"}
    if not isinstance(value, Mapping):
        raise BedstoneError(
            f"json_schema: {shown(value)} was given; expected an object, such as "
            '{"type": "object"}, or its JSON.'
        )
    if "x-guidance" in value:  # options of the library, by which a request could loosen it
        raise BedstoneError("json_schema: has a key x-guidance. Leave it out.")
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BedstoneError(f"json_schema: can't be written as JSON: {error}.") from error


def _expression(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BedstoneError(f"regex: {shown(value)} was given; expected an expression.")
    return value


def _choices(value: Any) -> str:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(t, str) and t for t in texts):
        raise BedstoneError(
            f"choices: {shown(value)} was given; expected texts of at least one character."
        )
    return json.dumps(list(texts))


def _grammar(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BedstoneError(
            f"grammar: {shown(value)} was given; expected a grammar in Lark's notation, such as "
            'start: "yes" | "no".'
        )
    return value


_TEXTS = {
    "json_schema": schema_text,
    "regex": _expression,
    "choices": _choices,
    "grammar": _grammar,
}


def read_held(value: str | None, name: str) -> str | None:
    """The text of a file that a command names by @FILE, or the value itself.

    Settings never name files: a server takes them from anybody.

    Raises:
        BedstoneError: the file can't be read.
    """
    if value is None or not value.startswith("@"):
        return value
    return read_text(to_path(value[1:], name), LIMIT)


def _escaped(text: str) -> str:
    """An expression that matches a text alone."""
    return re.sub(r"[^\w ]", lambda found: f"\\x{{{ord(found[0]):x}}}", text)


def _first_line(messages: Sequence[str]) -> str:
    text = " ".join(messages).strip()
    line = text.splitlines()[0] if text else "it isn't valid"
    return f"{line.removeprefix('ERROR: ')[:300].rstrip('.')}."


def _library() -> Any:
    try:
        return importlib.import_module("llguidance")
    except ImportError as error:
        raise BedstoneError(
            "structured output needs llguidance. Install it: pip install 'bedstone[structured]'."
        ) from error


def _known_tokens(tokenizer: "Tokenizer") -> Any:
    """The tokenizer as llguidance knows it, made once.

    Raises:
        BedstoneError: its tokens have no texts of their own.
    """
    held = getattr(tokenizer, "_guided", None)
    if held is not None:
        return held
    end = tokenizer.eos_id
    eos = _unused(tokenizer) if end is None else end
    text = tokenizer.backend.to_str()
    try:
        known = _library().LLTokenizer(text, n_vocab=tokenizer.vocab_size, eos_token=eos)
    except (ValueError, RuntimeError) as error:
        raise _unfit(tokenizer, str(error).splitlines()[0]) from error
    special, lead = set(tokenizer.special_ids), tokenizer.encode("a")
    size = len(tokenizer.decode(lead))
    for number in range(0, tokenizer.vocab_size, max(1, tokenizer.vocab_size // _CHECKED)):
        text = tokenizer.decode([*lead, number])[size:]
        if number in special or "\ufffd" in text:
            continue
        if (theirs := known.decode_bytes([number])) != text.encode():
            raise _unfit(tokenizer, f"token {number} is {text!r}, read as {theirs!r}")
    tokenizer._guided = known  # type: ignore[attr-defined]
    return known


def _is_pieced(tokenizer: "Tokenizer") -> bool:
    """Whether tokens are words and word pieces, which decoding puts spaces between."""
    return type(tokenizer.backend.decoder).__name__ == "WordPiece"


def _unused(tokenizer: "Tokenizer") -> int:
    """A special token that stands for an end where the vocabulary has none: `guided` bans it."""
    return next(iter(tokenizer.special_ids), 0)


def _unfit(tokenizer: "Tokenizer", why: str) -> BedstoneError:
    return BedstoneError(
        f"{tokenizer.path}: structured output needs a tokenizer whose tokens have texts of their "
        f"own (byte-level BPE, SentencePiece); {why}."
    )
