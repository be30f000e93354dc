"""Conversations as prompts: chat templates, in which only the template writes control tokens.

The text of a message stays text: `<|im_end|>` that somebody types is encoded as its characters. For
that, what a special token is made of is written in stand-ins, private characters of Unicode, in all
messages; a control token that is rendered without a stand-in is the template's own. A conversation
that holds no name of a special token has the ids of `transformers`' `apply_chat_template`.
"""

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bedstone.data.text.chat_template import RENDERER, TemplateFault, Written
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.tokenizer_limits import guarded
from bedstone.errors import BedstoneError
from bedstone.reading import shown

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of an assistant's own thoughts
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
        if not known or not _is_content(message):
            raise BedstoneError(
                f"{what}[{number}]: is {shown(message)}; expected a role "
                f"({', '.join(ROLES)}) and a text as content; an assistant's may be null where it "
                "has tool_calls."
            )


def _is_content(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    if content is None:
        return message["role"] == "assistant" and bool(message.get("tool_calls"))
    return isinstance(content, str)


def read_messages(messages: Any, what: str = "messages") -> list[dict[str, Any]]:
    """Messages as templates take them, of OpenAI's or ShareGPT's form.

    Parts of a content become one text. `tool_calls` may be nested below `function`; arguments that
    are JSON in a text become what they say, since templates write them as JSON again. Values that
    are null are left out, but for the content.

    Raises:
        BedstoneError: it is no list of messages; naming the message.
    """
    if isinstance(messages, str):  # a column of CSV or Parquet that holds JSON
        try:
            messages = json.loads(messages)
        except ValueError:
            messages = None
    if not isinstance(messages, list | tuple) or not messages:
        raise BedstoneError(f"{what}: is {shown(messages)}; expected a list of messages.")
    found = [_message(each) for each in messages]
    check_messages(found, what)
    return found


def system_of(rows: Any, row: int) -> str:
    """What the column `system` of a row says; "" where there is none.

    Args:
        rows: a `data.dataset.Dataset`.

    Raises:
        BedstoneError: it is no text.
    """
    column = rows.column("system")
    value = rows.rows[row].get(column) if column else None
    if value is None or value != value:  # a gap of a table is nan
        return ""
    if not isinstance(value, str):
        raise rows.fault(row, column, f"is {shown(value)}; expected a text", "Mend it.")
    return value if value.strip() else ""


def with_system(messages: Sequence[dict[str, Any]], system: str) -> list[dict[str, Any]]:
    """Messages behind a system message, where they begin with none."""
    if not system or (messages and messages[0].get("role") == "system"):
        return list(messages)
    return [{"role": "system", "content": system}, *messages]


SHAREGPT = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
SHAREGPT |= {"function_call": "assistant", "observation": "tool", "function": "tool"}


def _message(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    message = {k: v for k, v in value.items() if v is not None or k == "content"}
    if "role" not in message and isinstance(message.get("from"), str):
        role, content = message.pop("from"), message.pop("value", None)
        message = {"role": SHAREGPT.get(role, role), "content": content, **message}
    content = message.get("content")
    if isinstance(content, list | tuple) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content
    ):
        message["content"] = "".join(part["text"] for part in content)
    if isinstance(calls := message.get("tool_calls"), list | tuple):
        message["tool_calls"] = [_call(each) for each in calls]
    thoughts = [message[name] for name in REASONING if name in message]
    if thoughts:
        message = {"thinking": thoughts[0], **message, "reasoning_content": thoughts[0]}
    return message


def _call(value: Any) -> Any:
    """A tool call whose arguments are an object."""
    if not isinstance(value, Mapping):
        return value
    if isinstance(value.get("function"), Mapping):
        return {**value, "function": _call(value["function"])}
    given = value.get("arguments")
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return value
    if isinstance(given, Mapping):  # columns of Arrow have every key of all rows
        given = {k: v for k, v in given.items() if v is not None}
    return {**value, "arguments": given} if "arguments" in value else value


def check_template(tokenizer: Tokenizer, instead: str = "Give the prompt as a text.") -> None:
    """Raises BedstoneError where a tokenizer has no chat template, with what to do instead."""
    if not tokenizer.chat_template:
        raise BedstoneError(
            "messages: the tokenizer has no chat_template, so the model wasn't taught any form of "
            f"a conversation. {instead}"
        )


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    continued: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Rendered:
    """A conversation as a prompt for the assistant's next message.

    Args:
        continued: the last message goes on, instead of a next one.
        tools: JSON schemas of the functions that the assistant may call.

    Raises:
        BedstoneError: the tokenizer has no template, a message is none, or the template fails.
    """
    check_template(tokenizer)
    plain = read_messages(messages)
    form = _Form(tokenizer, continued, tools=tools)
    try:
        text = form.text(plain)
    except TemplateFault as fault:
        raise BedstoneError(_refusal(form, plain, fault)) from fault
    found = Rendered(text)
    found.ids = _encoded(form, plain, text)[0]
    found.warning = _left_out(form, plain, text)
    return found


def form_text(
    tokenizer: Tokenizer,
    messages: Sequence[dict[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    cue: bool = True,
) -> str:
    """What a tokenizer's template writes of messages in its own form.

    Args:
        cue: whether what the assistant's next message begins after is written too.

    Raises:
        BedstoneError: it has none, or it fails.
    """
    check_template(tokenizer)
    form = _Form(tokenizer, cue=cue, tools=tools)
    try:
        return form.text(list(messages))
    except TemplateFault as fault:
        raise BedstoneError(_refusal(form, list(messages), fault)) from fault


def form_ids(
    tokenizer: Tokenizer,
    messages: Sequence[dict[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> "tuple[str, list[int], list[tuple[int, int]]]":
    """The same with the cue: the text, its tokens, and the characters that each is from."""
    text = form_text(tokenizer, messages, tools=tools)
    return text, *_encoded(_Form(tokenizer, tools=tools), list(messages), text)


@dataclass(frozen=True)
class _Form:
    """How a tokenizer's template writes messages."""

    tokenizer: Tokenizer
    continued: bool = False
    cue: bool = True  # that the assistant's next message begins after
    tools: Sequence[Mapping[str, Any]] | None = None

    @property
    def named(self) -> dict[str, str]:
        """The special tokens that a template may name."""
        own = self.tokenizer.settings.items()
        found = {k: v for k, v in own if k.endswith("_token") and isinstance(v, str)}
        return {"bos_token": "", "eos_token": "", **found}

    def text(self, messages: Sequence[dict[str, Any]]) -> str:
        """Raises TemplateFault."""
        return self.written(messages).text

    def written(self, messages: Sequence[dict[str, Any]]) -> Written:
        """Raises TemplateFault."""
        template = str(self.tokenizer.chat_template)
        if self.continued:
            last = messages[-1]
            content = (last["content"] or "") + CONTINUED
            messages = [*messages[:-1], {**last, "content": content}]
        variables = {
            "messages": messages,
            "tools": list(self.tools) if self.tools else None,
            "documents": None,
            "add_generation_prompt": self.cue and not self.continued,
        }
        try:
            written = RENDERER.render(template, {**self.named, **variables})
        except (TypeError, ValueError, RecursionError) as error:
            raise TemplateFault(f"a message holds what JSON can't write: {error}") from error
        if not self.continued:
            return written
        before, mark, _ = written.text.rpartition(CONTINUED.strip())
        if not mark:
            raise TemplateFault("it leaves out the message that goes on")
        spaced = written.text.startswith(CONTINUED, len(before))
        return Written(before if spaced else before.rstrip(), [])


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


# Conversations to learn from.


@dataclass(frozen=True)
class LearntChat:
    """A conversation to learn from. T tokens.

    Attributes:
        text: as the template writes it.
        ids: (T,) tokens.
        offsets: (T,) (start, end) characters of the text that a token is from.
        trained: (T,) whether a token is learnt: what the assistant writes, its end token included.
        open_ended: an answer that is learnt ends with no special token, so nothing teaches an end.
    """

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]
    trained: list[bool]
    open_ended: bool


def learnt_chats(
    tokenizer: Tokenizer,
    messages: Any,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    last: bool = False,
    first: int = 0,
) -> list[LearntChat]:
    """A conversation's tokens, and which of them are learnt: those that the assistant writes.

    A template with `{% generation %}` says it itself; the mask is then that of `transformers`. For
    any other, what stands before each answer is rendered by itself, as it is for a reply: an answer
    is learnt from the end of that cue to its end token. A template may write earlier turns
    otherwise once others follow, as some leave out thoughts; such an answer becomes a conversation
    of its own that ends with it, so that the model learns from what it will read.

    Args:
        tools: JSON schemas of the functions that the assistant may call.
        last: only the last answer is learnt.
        first: messages before this number are read alone.

    Returns:
        One in most cases. A message with `weight: 0` or `train: false` is read alone.

    Raises:
        BedstoneError: the tokenizer has no template, a message is none, nothing is to be learnt,
            or the template fails.
    """
    check_template(tokenizer)
    plain = read_messages(messages)
    turns = [n for n, each in enumerate(plain) if each["role"] == "assistant"]
    wanted = [n for n in turns if n >= first and is_learnt(plain[n])]
    wanted = wanted[-1:] if last else wanted
    if not wanted:
        raise BedstoneError(
            "messages: hold no answer of the assistant that is to be learnt. Leave the row out."
        )
    form = _Form(tokenizer, cue=False, tools=tools)
    try:
        whole = form.written(plain)
        if whole.spans and (len(wanted) == len(turns) or len(whole.spans) == len(turns)):
            spans = whole.spans
            if len(wanted) < len(turns):
                spans = [spans[turns.index(n)] for n in wanted]
            return [_learnt_chat(form, plain, whole.text, spans)]
        return _by_prefixes(form, plain, whole.text, wanted)
    except TemplateFault as fault:
        raise BedstoneError(_refusal(form, plain, fault)) from fault


def is_learnt(message: Mapping[str, Any]) -> bool:
    """Whether an answer is learnt where answers are: `weight: 0` and `train: false` say no."""
    return not any(_is_no(message[name]) for name in ("weight", "train") if name in message)


def _is_no(value: Any) -> bool:
    """Whether a value says no: 0, false, or these as a text, as columns of CSV have them."""
    if isinstance(value, str):
        return value.strip().lower() in ("0", "0.0", "false", "no", "")
    return not value


def _by_prefixes(
    form: _Form, messages: list[dict[str, Any]], whole: str, wanted: Sequence[int]
) -> list[LearntChat]:
    together: list[tuple[int, int]] = []
    apart: list[LearntChat] = []
    for number in wanted:
        upto = messages[: number + 1]
        text = whole if number + 1 == len(messages) else form.text(upto)
        cue = replace(form, cue=True).text(messages[:number])
        span = _answer(form.tokenizer, text, _shared(cue, text))
        if whole.startswith(text):
            together.append(span)
        else:
            apart.append(_learnt_chat(form, upto, text, [span]))
    if together:
        apart.append(_learnt_chat(form, messages, whole, together))
    return apart


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    if other.startswith(one):
        return len(one)
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def _answer(tokenizer: Tokenizer, text: str, start: int) -> tuple[int, int]:
    """The span of an answer that begins at `start`: up to the end token, without space after it."""
    answer = text[start:].rstrip()
    ended = any(answer.endswith(name) for name in tokenizer.hidden_names)
    return start, start + len(answer) if ended else len(text)


def _learnt_chat(
    form: _Form, messages: Sequence[dict[str, Any]], text: str, spans: Sequence[tuple[int, int]]
) -> LearntChat:
    ids, offsets = _encoded(form, messages, text)
    trained = [False] * len(ids)
    starts, names = [start for start, _ in offsets], form.tokenizer.hidden_names
    open_ended = False
    for start, end in spans:
        first = max(bisect_right(starts, start) - 1, 0)
        while first > 0 and starts[first - 1] == starts[first]:
            first -= 1  # a character of several bytes
        while first < len(ids) and offsets[first][1] <= start:
            first += 1
        last = bisect_left(starts, end)
        trained[first:last] = [True] * (last - first)
        answer = text[start:end].rstrip()
        open_ended |= not any(answer.endswith(name) for name in names)
    return LearntChat(text, ids, offsets, trained, open_ended)


# Control tokens of the template and names of control tokens in messages.


Encoded = tuple[list[int], list[tuple[int, int]]]  # ids, and characters that each is from


def _encoded(form: _Form, messages: Sequence[dict[str, Any]], text: str) -> Encoded:
    """A rendered conversation's tokens; the names of special tokens in messages are text."""
    tokenizer = form.tokenizer
    with guarded(tokenizer.path, text):
        names = tokenizer.hidden_names
        taken = json.dumps([messages, form.tools], ensure_ascii=False, default=str)
        signs = _StandIns(names, text + taken)
        marked = _marked(form, messages, text, signs)
        if _is_harmless(tokenizer, messages, text, marked, signs):
            found = tokenizer.backend.encode(text, add_special_tokens=False)
            return found.ids, found.offsets
        parts, grown, ends, at = [], [0], [0], 0  # the text with hidden names, and where it grows
        for name in signs.exact.finditer(marked):
            parts += [marked[at : name.start()], names[name[0]]]
            at = name.end()
            ends.append(at + grown[-1] + len(names[name[0]]) - len(name[0]))
            grown.append(ends[-1] - at)
        hidden = signs.restore("".join([*parts, marked[at:]]))
        found = tokenizer.plain.encode(hidden, add_special_tokens=False)

    def back(place: int) -> int:
        number = bisect_right(ends, place) - 1
        own = place - grown[number]
        if number + 1 < len(ends):  # within the next name, all of it is meant
            own = min(own, ends[number + 1] - grown[number + 1])
        return own

    return found.ids, [(back(start), back(end)) for start, end in found.offsets]


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
        tools = _changed(form.tools, change)
        if changed == messages and tools == form.tools:
            return text
        try:
            marked = replace(form, tools=tools).text(changed)
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
    contents = (normalizer.normalize_str(message.get("content") or "") for message in messages)
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
