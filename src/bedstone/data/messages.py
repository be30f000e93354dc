"""Conversations about an image, as chat data has them: questions with answers, and captions.

Two forms are read: OpenAI's, `{"role": "user", "content": [{"type": "image"}, {"type": "text",
"text": ...}]}` or plain text with `<image>` for an image; and ShareGPT's, `{"from": "human",
"value": ...}`, as LLaVA's data has it. A user's text and the assistant's reply are a question and
its answer; a reply to an image alone is a caption. Earlier turns are no part of a question.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bedstone.data.bytes import check_text
from bedstone.errors import BedstoneError, nearest

PLACEHOLDER = "<image>"
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_KNOWN = ("system", "developer", "user", "assistant")
_SOURCES = ("image", "path", "bytes", "url", "image_url")  # of the image of a part


@dataclass(frozen=True)
class Conversation:
    """The messages of a conversation about an image.

    Attributes:
        questions: each with its answer.
        captions: replies to an image without a question.
        places: how many places for an image the texts have.
        sources: the images that the messages themselves hold or name.
    """

    questions: tuple[tuple[str, str], ...]
    captions: tuple[str, ...]
    places: int
    sources: tuple[Any, ...]


def conversation(messages: Any, what: str) -> Conversation:
    """Reads messages.

    Args:
        what: the row and the column, for error messages.

    Raises:
        BedstoneError: they are no such list, a user's turn has no answer, or there is none.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise BedstoneError(f"{what}: holds {str(messages)[:40]!r}; expected a list of messages.")
    questions: list[tuple[str, str]] = []
    captions: list[str] = []
    sources: list[Any] = []
    places, question = 0, None
    for number, message in enumerate(messages, 1):
        where = f"{what}: message {number:,}"
        role, text, shown, own = turn(message, where)
        places, sources = places + shown, sources + own
        if role == "user":
            question = text if question is None else f"{question} {text}".strip()
        elif role == "assistant":
            if question is None:
                raise BedstoneError(f"{where}: answers, and nothing was asked before it.")
            check_text(text, where)
            if question:
                questions.append((question, text))
            else:
                captions.append(text)
            question = None
    if question is not None:
        raise BedstoneError(f"{what}: ends with a question ({question[:40]!r}) and no answer.")
    if not questions and not captions:
        raise BedstoneError(f"{what}: has no answer of an assistant, so there is nothing to learn.")
    return Conversation(tuple(questions), tuple(captions), places, tuple(sources))


def turn(message: Any, where: str) -> tuple[str, str, int, list[Any]]:
    """A message's role, text, number of places for images, and the images that it holds itself.

    Raises:
        BedstoneError: it is none, or holds what is neither a text nor an image.
    """
    if not isinstance(message, Mapping):
        raise BedstoneError(f"{where}: is {str(message)[:40]!r}; expected a role and content.")
    role = message.get("role") or message.get("from")
    role = _ROLES.get(str(role), role)
    if role not in _KNOWN:
        raise BedstoneError(f"{where}: role {role!r} is unknown{nearest(str(role), _KNOWN)}.")
    content = message["content"] if "content" in message else message.get("value")
    if isinstance(content, str):
        text = " ".join(content.replace(PLACEHOLDER, " ").split())
        return role, text, content.count(PLACEHOLDER), []
    if not isinstance(content, list | tuple):
        raise BedstoneError(f"{where}: has no content; expected a text or a list of parts.")
    texts, places, own = [], 0, []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            texts.append(str(part.get("text") or ""))
        elif kind in ("image", "image_url"):
            places += 1
            own += [part[key] for key in _SOURCES if part.get(key) is not None][:1]
        else:
            raise BedstoneError(f"{where}: has a part of type {kind!r}; expected text or image.")
    own = [one.get("url") if isinstance(one, Mapping) and "url" in one else one for one in own]
    return role, " ".join(" ".join(texts).split()), places, own
