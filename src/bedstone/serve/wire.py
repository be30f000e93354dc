"""What goes over the wire: errors in OpenAI's shape, JSON that is read with care, and events.

A request's JSON may hold no key twice, no nan or infinity, nothing nested deeply and no half
characters. What an error says never names a folder of the server.
"""

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import math
import re
import types
import typing
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from bedstone.data.images.decode import decode
from bedstone.errors import BedstoneError
from bedstone.reading import shown
from bedstone.serve.scheduler import Scheduler
from bedstone.serve.work import Busy, Ended, Event, Leaving, Result, Work
from bedstone.settings import Settings, from_mapping

log = logging.getLogger("bedstone.serve")
PING = 15.0  # seconds without an event, after which a stream says that it lives
DEEP = 64  # lists and objects within one another, at most
KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 405: "invalid_request_error", 408: "timeout_error",
    413: "invalid_request_error", 415: "invalid_request_error", 421: "invalid_request_error",
    429: "rate_limit_error", 500: "server_error", 503: "service_unavailable_error",
}  # fmt: skip
CODES = {401: "invalid_api_key", 404: "not_found", 413: "request_too_large",
         415: "unsupported_media_type", 429: "rate_limit_exceeded"}  # fmt: skip
_PATHS = re.compile(r"(?<![\w.:/<])~?(?:/[\w.@+-]+){2,}/?")
T = TypeVar("T", bound=Settings)


class ApiError(Exception):
    """An answer with a status other than 200.

    Attributes:
        status: of HTTP.
        param: the field of the request that is wrong; None where it is none.
        code: as OpenAI names it.
        seconds: after which to come again, of 429 and 503.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code = code or CODES.get(status)
        self.seconds = seconds

    @property
    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "invalid_request_error")
        fields = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": fields}

    @property
    def headers(self) -> dict[str, str]:
        """Headers by which the official clients know whether and when to come again."""
        if self.seconds is None:
            return {}
        return {"retry-after": str(math.ceil(self.seconds)), "x-should-retry": "true"}


def as_error(error: BaseException) -> ApiError:
    """What a client is told of an error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Leaving):
        return ApiError(503, str(error), code="unavailable", seconds=error.seconds)
    if isinstance(error, Busy):
        return ApiError(429, str(error), seconds=error.seconds)
    if isinstance(error, BedstoneError):
        return ApiError(400, without_paths(str(error)))
    return ApiError(500, "The server failed at this request; its log says more.")


def without_paths(text: str) -> str:
    """A message without what stands on the server's disk."""
    return _PATHS.sub("…", text)


def read_json(data: bytes) -> dict[str, Any]:
    """The object that a request's body holds.

    Raises:
        ApiError: it is none, or holds what is refused.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_distinct,
            parse_constant=_refused_number,
            parse_float=_finite,
        )
        _check_depth(value)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError(400, "The body holds half a character (a lone surrogate).") from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.") from None
    except ValueError as error:  # of JSON and of UTF-8 alike
        raise ApiError(400, f"The body is no JSON that can be read: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"The body is {shown(value)}; expected a JSON object.")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _refused_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is larger than any number")
    return value


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEP:
            raise RecursionError
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += each.values()
            elif isinstance(each, list):
                inner += each
        level = inner


def parse(kind: type[T], body: Mapping[str, Any]) -> T:
    """A request's fields, checked; null stands for what isn't given.

    Raises:
        ApiError: a field is unknown or has a wrong value; it names the field.
    """
    given = {name: value for name, value in body.items() if value is not None}
    if "model" not in given:
        raise ApiError(400, "you must provide a model parameter", "model")
    hints = typing.get_type_hints(kind)
    for key, value in given.items():
        _check_kind(hints.get(key), value, key)
    try:
        return from_mapping(kind, given, "body")
    except BedstoneError as error:
        text = str(error)
        found = re.search(r"unknown key '([^']+)'", text)
        found = found or re.match(r"(?:body: )?([A-Za-z_]\w*)", text)
        name = found[1] if found else None
        known = name if name in body else None
        raise ApiError(400, without_paths(text), known) from error


def _check_kind(hint: Any, value: Any, name: str) -> None:
    """Raises ApiError where a value is text in place of a number, or the like: JSON has kinds."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    wanted = {str: "a text", float: "a number", int: "a whole number", bool: "true or false"}
    plain = [each for each in kinds if each in wanted]
    known = type(value) in plain or (type(value) is int and float in plain)
    if plain and not known:
        said = " or ".join(wanted[each] for each in plain)
        raise ApiError(400, f"{name}: {shown(value)} was given; expected {said}.", name)


def image_of(url: Any, param: str, most_pixels: int) -> np.ndarray:
    """The pixels of a data URL, or of a file that came with the request, (H, W, 3) uint8.

    Nothing is fetched and no file is read: any other URL or name is refused.

    Raises:
        ApiError: it is none such, or no picture, or larger than `most_pixels`.
    """
    data = bytes_of(url, param)
    try:
        return decode(data, where="the image", most_pixels=most_pixels)
    except BedstoneError as error:
        raise ApiError(400, str(error), param) from None


def bytes_of(url: Any, param: str) -> bytes:
    """What a data URL holds; bytes that came with the request as they are.

    Raises:
        ApiError: it is no data URL.
    """
    if isinstance(url, bytes):  # which no JSON holds
        return url
    if not isinstance(url, str) or not url.startswith("data:"):
        raise ApiError(
            400, "An image is given as a data URL (data:image/png;base64,...); no address is "
            "fetched, and no file read.", param,
        )  # fmt: skip
    head, comma, text = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ApiError(400, "The data URL is none of base64.", param)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "The data URL holds no base64 that can be read.", param) from None


def event_of(value: Any) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


DONE = "data: [DONE]\n\n"


@dataclass
class Context:
    """A request: who sent it, and what is done when it is over, however it ends.

    Attributes:
        identity: of the key; "" where the server has none.
        number: of the request, for answers and the log.
    """

    identity: str
    number: str
    cleanup: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)


class Inbox:
    """Events of several pieces of work, handed over from the threads that do it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def deliver(self, number: int, event: Event) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

    def of(self, number: int) -> Any:
        """What hands over the events of one of them."""
        return partial(self.deliver, number)

    async def next(self, seconds: float | None = None) -> tuple[int, Event] | None:
        """The next event and its work's number; None where none comes in time."""
        try:
            return await asyncio.wait_for(self._events.get(), seconds)
        except TimeoutError:
            return None


def submit(scheduler: Scheduler, works: Sequence[Work], context: Context) -> None:
    """Hands in work that is called off when the request is over.

    Raises:
        ApiError: there is no room.
    """

    def leave() -> None:
        for work in works:
            work.cancel()
        scheduler.wake()

    try:
        scheduler.submit(*works)
    except Busy as error:
        raise as_error(error) from None
    context.cleanup.callback(leave)


async def events_of(inbox: Inbox, count: int) -> AsyncIterator[tuple[int, Event] | None]:
    """The events of so many pieces of work until all have ended; None where a stream should ping.

    Raises:
        ApiError: one failed.
    """
    while count:
        found = await inbox.next(PING)
        if found is None:
            yield None
            continue
        _, event = found
        if isinstance(event, Exception):
            raise _failed(event)
        count -= isinstance(event, Ended | Result) or getattr(event, "finish", None) is not None
        yield found


class Failure(Exception):
    """Something of ours failed on another thread; the log has its traceback."""


def _failed(error: Exception) -> Exception:
    return as_error(error) if isinstance(error, BedstoneError) else Failure(error)


def logged_error(error: Exception, number: str) -> ApiError:
    """What a client is told of an error; one of ours goes to the log with its traceback."""
    found = as_error(error)
    if found.status == 500:
        cause = error.args[0] if isinstance(error, Failure) else error
        log.error("%s: failed", number, exc_info=cause)
    return found


def listed(value: Any, kinds: type | tuple[type, ...]) -> bool:
    """Whether a value is a list of such values, and not empty."""
    return (
        isinstance(value, list) and bool(value) and all(type(one) in _kinds(kinds) for one in value)
    )


def _kinds(kinds: type | tuple[type, ...]) -> Iterable[type]:
    return kinds if isinstance(kinds, tuple) else (kinds,)
