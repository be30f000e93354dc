"""Conversations as prompts: chat templates, in which only the template writes control tokens.

The text of a message stays text: `<|im_end|>` that somebody types is encoded as its characters. For
that, what a special token is made of is written in stand-ins, private characters of Unicode, in all
messages; a control token that is rendered without a stand-in is the template's own. A conversation
that holds no name of a special token has the ids of `transformers`' `apply_chat_template`.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bedstone.data.text.chat_template import RENDERER, TemplateFault
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.tokenizer_limits import guarded
from bedstone.errors import BedstoneError
from bedstone.reading import shown

ROLES = ("system", "user", "assistant", "tool")
CONTINUED = "CONTINUED "  # stands after a last message that goes on; its end may be trimmed


class Rendered(str):
    """A conversation as its template writes it.

    Attributes:
        ids: its tokens.
        warning: what the template leaves out; "" where it takes all.
    """

    ids: list[int]
    warning: str


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages with a role and content each."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, Mapping) and "role" in each for each in value)
    )


def check_messages(messages: Sequence[Any], what: str = "messages") -> None:
    """Raises BedstoneError where one of them is no message, by its number."""
    for number, message in enumerate(messages):
        known = isinstance(message, Mapping) and message.get("role") in ROLES
        if not known or not isinstance(message.get("content"), str):
            raise BedstoneError(
                f"{what}[{number}]: is {shown(message)}; expected a role "
                f"({', '.join(ROLES)}) and a text as content."
            )


def check_template(tokenizer: Tokenizer, instead: str = "Give the prompt as a text.") -> None:
    """Raises BedstoneError where a tokenizer has no chat template, with what to do instead."""
    if not tokenizer.chat_template:
        raise BedstoneError(
            "messages: the tokenizer has no chat_template, so the model wasn't taught any form of "
            f"a conversation. {instead}"
        )


def render(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], *, continued: bool = False
) -> Rendered:
    """A conversation as a prompt for the assistant's next message.

    Args:
        continued: the last message goes on, instead of a next one.

    Raises:
        BedstoneError: the tokenizer has no template, a message is none, or the template fails.
    """
    check_template(tokenizer)
    check_messages(messages)
    form = _Form(tokenizer, continued)
    plain = [dict(message) for message in messages]
    try:
        text = form.text(plain)
    except TemplateFault as fault:
        raise BedstoneError(_refusal(form, plain, fault)) from fault
    found = Rendered(text)
    found.ids = _ids(form, plain, text)
    found.warning = _left_out(form, plain, text)
    return found


@dataclass(frozen=True)
class _Form:
    """How a tokenizer's template writes messages."""

    tokenizer: Tokenizer
    continued: bool

    @property
    def named(self) -> dict[str, str]:
        """The special tokens that a template may name."""
        own = self.tokenizer.settings.items()
        found = {k: v for k, v in own if k.endswith("_token") and isinstance(v, str)}
        return {"bos_token": "", "eos_token": "", **found}

    def text(self, messages: Sequence[dict[str, Any]]) -> str:
        """Raises TemplateFault."""
        template = str(self.tokenizer.chat_template)
        if self.continued:
            last = messages[-1]
            messages = [*messages[:-1], {**last, "content": last["content"] + CONTINUED}]
        variables = {
            "messages": [{k: v for k, v in each.items() if v is not None} for each in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": not self.continued,
        }
        try:
            text = RENDERER.render(template, {**self.named, **variables})
        except (TypeError, ValueError, RecursionError) as error:
            raise TemplateFault(f"a message holds what JSON can't write: {error}") from error
        if not self.continued:
            return text
        before, mark, _ = text.rpartition(CONTINUED.strip())
        if not mark:
            raise TemplateFault("it leaves out the message that goes on")
        spaced = text.startswith(CONTINUED, len(before))
        return before if spaced else before.rstrip()


def _refusal(form: _Form, messages: Sequence[dict[str, Any]], fault: TemplateFault) -> str:
    advice = "Mend them, or the template in tokenizer_config.json or chat_template.jinja."
    others = [each for each in messages if each["role"] != "system"]
    if 0 < len(others) < len(messages):
        try:
            form.text(others)
            advice = (
                "It takes these messages without the system message: leave that out, or put its "
                "text before the first user's message."
            )
        except TemplateFault:
            pass
    return f"chat_template: can't write these messages ({fault}). {advice}"


def _left_out(form: _Form, messages: Sequence[dict[str, Any]], text: str) -> str:
    """A warning where the system message changes nothing in the rendered text."""
    said = [each["content"].strip() for each in messages if each["role"] == "system"]
    lost = [one for one in said if one and one.casefold() not in text.casefold()]
    if not lost:
        return ""
    other = [{**m, "content": "x"} if m["role"] == "system" else m for m in messages]
    try:
        if form.text(other) != text:
            return ""
    except TemplateFault:
        return ""
    return (
        f"the chat template leaves out the system message ({shown(lost[0], 40)}): the model "
        "doesn't read it. Put its text before the first user's message."
    )


# Control tokens of the template and names of control tokens in messages.


def _ids(form: _Form, messages: Sequence[dict[str, Any]], text: str) -> list[int]:
    """Ids of a rendered conversation; the names of special tokens in messages are text."""
    tokenizer = form.tokenizer
    with guarded(tokenizer.path, text):
        names = tokenizer.hidden_names
        signs = _StandIns(names, text + json.dumps(messages, ensure_ascii=False))
        marked = _marked(form, messages, text, signs)
        if _is_harmless(tokenizer, messages, text, marked, signs):
            return tokenizer.backend.encode(text, add_special_tokens=False).ids
        hidden = signs.exact.sub(lambda found: names[found[0]], marked)
        return tokenizer.plain.encode(signs.restore(hidden), add_special_tokens=False).ids


class _StandIns:
    """Private characters in the place of those that names of special tokens are made of.

    Args:
        names: of the special tokens.
        taken: a text whose characters stand for themselves.
    """

    def __init__(self, names: Iterable[str], taken: str) -> None:
        longest_first = sorted(names, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first)) or "(?!)"  # which is found nowhere
        self.exact, self.loose = re.compile(pattern), re.compile(pattern, re.IGNORECASE)
        used = set(taken)
        self._free = (c for c in map(chr, range(0x10FFFD, 0x100000, -1)) if c not in used)
        self._of: dict[str, str] = {}
        self._signs = {ord(c): self._for(c) for name in names for c in name if _is_sign(c)}

    def _for(self, character: str) -> str:
        if character not in self._of:
            self._of[character] = next(self._free)
        return self._of[character]

    def in_names(self, text: str) -> str:
        """A text with one stand-in in each name of a special token, in any case of letters."""

        def marked(found: re.Match[str]) -> str:
            name = found[0]
            at = next((place for place, c in enumerate(name) if _is_sign(c)), 0)
            return name[:at] + self._for(name[at]) + name[at + 1 :]

        return self.loose.sub(marked, text)

    def everywhere(self, text: str) -> str:
        """A text with stand-ins for all signs of names, wherever they are: `<`, `|` and so on."""
        return self.in_names(text.translate(self._signs))

    def restore(self, text: str) -> str:
        return text.translate({ord(mark): character for character, mark in self._of.items()})


def _is_sign(character: str) -> bool:
    return not character.isalnum() and not character.isspace()


def _marked(form: _Form, messages: Sequence[dict[str, Any]], text: str, signs: _StandIns) -> str:
    """The rendered text with stand-ins where characters come from messages.

    Signs are replaced wherever they are, so that nothing a template cuts or joins becomes a name.
    A template that looks at signs, as for `</think>`, would write another text: names alone are
    then replaced.
    """
    for change in (signs.everywhere, signs.in_names):
        changed = [_changed(message, change) for message in messages]
        if changed == messages:
            return text
        try:
            marked = form.text(changed)
        except TemplateFault as fault:
            if change == signs.in_names:
                raise BedstoneError(_refusal(form, changed, fault)) from fault
            continue
        if signs.restore(marked) == text:
            break
    return marked


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """A message with all texts changed; its role is no text."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {k: v if k == "role" else _changed(v, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(each, change) for each in value]
    return value


def _is_harmless(
    tokenizer: Tokenizer,
    messages: Sequence[dict[str, Any]],
    text: str,
    marked: str,
    signs: _StandIns,
) -> bool:
    """Whether no message holds what the tokenizer could take for a special token."""
    if len(signs.loose.findall(text)) != len(signs.loose.findall(marked)):
        return False
    normalizer = tokenizer.backend.normalizer
    added = tokenizer.backend.get_added_tokens_decoder().values()
    if normalizer is None or not any(each.special and each.normalized for each in added):
        return True
    contents = (normalizer.normalize_str(message["content"]) for message in messages)
    return not any(signs.loose.search(content) for content in contents)


def instruction_template(form: str, before: str = "") -> str:
    """The template of a model that learnt from instructions.

    Args:
        form: the prompt, with `{instruction}` in the place of a user's message.
        before: special tokens that stand before a text.
    """
    start, end = form.split("{instruction}")
    user = f"{{{{ {json.dumps(start)} + message['content'] + {json.dumps(end)} }}}}"
    return (
        f"{{{{ {json.dumps(before)} }}}}{{% for message in messages %}}"
        f"{{% if message['role'] == 'user' %}}{user}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
        "{% else %}{{ raise_exception('only messages of user and assistant were learnt') }}"
        "{% endif %}{% endfor %}"
    )
