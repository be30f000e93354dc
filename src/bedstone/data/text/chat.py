"""Conversations as text: chat templates in Jinja, as `transformers` keeps and renders them.

Templates are code of others, so they run in a sandbox without attributes of Python's own.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError

MOST = 1 << 20  # characters of a rendered conversation
ROLES = ("system", "user", "assistant", "tool")


class Rendered(str):
    """A conversation as its template writes it: names of special tokens in it are tokens."""


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages with a role and content each."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, Mapping) and "role" in each for each in value)
    )


def render(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> Rendered:
    """A conversation as a prompt for the assistant's next message.

    Raises:
        BedstoneError: the tokenizer has no template, a message is none, or the template fails.
    """
    template = tokenizer.chat_template
    if not template:
        raise BedstoneError(
            "messages: the tokenizer has no chat_template, so the model wasn't taught any form of "
            "a conversation. Give the prompt as a text."
        )
    for number, message in enumerate(messages):
        if message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            raise BedstoneError(
                f"messages[{number}]: is {str(dict(message))[:80]!r}; expected a role "
                f"({', '.join(ROLES)}) and a text as content."
            )
    named = {role: tokenizer.settings.get(role) or "" for role in ("bos_token", "eos_token")}
    try:
        text = _compiled(template).render(messages=messages, add_generation_prompt=True, **named)
    except (jinja2.TemplateError, TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BedstoneError(
            f"chat_template: can't write these messages ({reason}). Mend them, or the template in "
            "tokenizer_config.json or chat_template.jinja."
        ) from error
    if len(text) > MOST:
        raise BedstoneError(
            f"messages: become {len(text):,} characters; expected at most {MOST:,}."
        )
    return Rendered(text)


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, **more: json.dumps(
        value, ensure_ascii=False, **more
    )
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(template)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


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
