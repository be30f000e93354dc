"""The one way in: every request passes this layer before any route is looked for.

It asks for a key, reads the body within bounds of size and time, refuses what a browser sends for
another site, and ends what a request began when its client leaves. It is plain ASGI: what Starlette
calls middleware for HTTP never sees a websocket.

Without a key a server answers on the loopback interface alone, and only by its names: a site whose
name is made to point there (DNS rebinding) has another Host header.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.serve.wire import ApiError, Context, as_error, logged_error
from bedstone.serve.work import ENDING, Leaving

log = logging.getLogger("bedstone.serve")
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
OPEN = ("/health", "/ready")  # for whoever watches over the server; they tell nothing
NAMES = ("localhost", "127.0.0.1", "[::1]")
FORM = "multipart/form-data"
FORMS = ("/v1/images/edits", "/v1/images/variations")  # that take one beside JSON
LEAST_KEY = 16  # characters
HEADERS = 64 << 10  # bytes


@dataclass(frozen=True)
class Entrance:
    """Who may come in, and with how much.

    Attributes:
        keys: by the name of who has it; none lets in everybody who reaches the server.
        hosts: names that the Host header may have, without a port; none lets in all.
        body: bytes of a request.
        seconds: that reading it may take.
        requests: that are inside at a time.
    """

    keys: Mapping[str, str]
    hosts: tuple[str, ...]
    body: int
    seconds: float
    requests: int


class Gate:
    """Wraps an application so that nothing reaches it unseen.

    Args:
        public: paths that need no key to GET, beside those of `OPEN`: what is the same for all.
        check_room: raises Busy where no request with a body could be answered now.
    """

    def __init__(
        self,
        app: App,
        entrance: Entrance,
        public: Sequence[str] = (),
        check_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._check_room = check_room
        self._app, self._entrance = app, entrance
        self._open = frozenset(("GET", path) for path in (*OPEN, *public))
        # digests have one length, so that comparing takes as long whatever was sent
        self._digests = {name: _digest(key) for name, key in entrance.keys.items()}
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, number = time.perf_counter(), f"req-{uuid.uuid4().hex}"
        answer = _Answer(send, number)
        self.inside += 1
        context = None
        try:
            identity = self._enter(scope)
            context = Context(identity, number)
            body = await self._read(scope, receive)
            if scope["method"] == "POST":
                self._check_room()
            scope["bedstone.context"] = context
            await self._watched(scope, body, receive, answer)
        except ConnectionError:
            answer.status = answer.status or 499
        except asyncio.CancelledError:  # the server has waited long enough for its requests
            await answer.fail(as_error(Leaving(ENDING)))
            raise
        except Exception as error:
            await answer.fail(logged_error(error, number))
        finally:
            self.inside -= 1
            if context is not None:
                await context.cleanup.aclose()
            took = time.perf_counter() - began
            path = str(scope["path"])[:80] if answer.status != 404 else "(unknown)"
            log.info(
                "%s %s %s %s %.3f s", number, scope["method"], ascii(path), answer.status, took
            )

    def _enter(self, scope: Scope) -> str:
        """Who it is. Raises ApiError where they may not come in."""
        headers = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) > HEADERS:
            raise ApiError(413, "The headers are too long.")
        host = _only(headers, b"host")
        if self._entrance.hosts and _without_port(host) not in self._entrance.hosts:
            raise ApiError(421, "The Host header names no host of this server.")
        identity = self._identity(headers)
        if identity is None and (scope["method"], scope["path"]) not in self._open:
            raise ApiError(401, "Incorrect or missing API key: Authorization: Bearer KEY.")
        origin = "" if self._digests else _only(headers, b"origin")
        if origin and origin.partition("://")[2] != host:
            raise ApiError(403, "Requests of other sites are refused by a server without keys.")
        if self.inside > self._entrance.requests:
            raise ApiError(429, "Too many requests at once; try again later.", seconds=1.0)
        return identity or ""

    def _identity(self, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
        """The name of the key that was sent; "" where none is needed."""
        if not self._digests:
            return ""
        scheme, _, given = _only(headers, b"authorization").partition(" ")
        sent, found = _digest(given.strip()), None
        for name, digest in self._digests.items():  # all of them, whichever fits
            if hmac.compare_digest(sent, digest):
                found = name
        return found if scheme.lower() == "bearer" else None

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body."""
        headers, most = scope["headers"], self._entrance.body
        length = _only(headers, b"content-length")
        if length and (not length.isdecimal() or int(length[:19]) > most):
            raise ApiError(413, f"The body has {length[:19]} bytes; {most:,} are read.")
        if scope["method"] == "POST":
            kind = _only(headers, b"content-type").partition(";")[0].strip().lower()
            if kind != "application/json" and (kind != FORM or scope["path"] not in FORMS):
                raise ApiError(415, "The content type must be application/json.")
            if _only(headers, b"content-encoding").lower() not in ("", "identity"):
                raise ApiError(415, "The body must not be compressed.")
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._entrance.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise ApiError(
                            413, f"The body has more than the {most:,} bytes that are read."
                        )
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(408, f"The body took more than {self._entrance.seconds:g} s.") from None

    async def _watched(
        self, scope: Scope, body: bytes, receive: Receive, answer: "_Answer"
    ) -> None:
        """Runs the application; where the client leaves, it is cancelled."""
        sent = False
        left = asyncio.Event()

        async def replay() -> Message:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": body, "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        app = asyncio.ensure_future(self._app(scope, replay, answer))
        client = asyncio.ensure_future(watch())
        try:
            await asyncio.wait({app, client}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.set()
            client.cancel()
            if not app.done():
                app.cancel()
                await asyncio.wait({app})
        if app.cancelled():
            raise ConnectionError
        app.result()


class _Answer:
    """Sends an answer with the headers that each has."""

    def __init__(self, send: Send, number: str) -> None:
        self._send, self._number = send, number
        self.status = 0
        self._streams = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [
                (b"x-request-id", self._number.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"cache-control", b"no-store"),
            ]
            given = [pair for pair in message.get("headers", ()) if pair[0] != b"server"]
            self._streams = any(value.startswith(b"text/event-stream") for _, value in given)
            message = {**message, "headers": [*given, *own]}
        await self._send(message)

    async def fail(self, error: ApiError) -> None:
        """Says what is wrong: with its status, or as an event where an answer has begun."""
        body = json.dumps(error.body, ensure_ascii=False).encode()
        if self.status:
            if self._streams:
                await self._send({"type": "http.response.body", "body": b"data: " + body + b"\n\n"})
            return
        headers = {"content-type": "application/json", **error.headers}
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        if error.status in (408, 413):  # what is left of the body is not read
            headers["connection"] = "close"
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        pairs.append((b"content-length", str(len(body)).encode()))
        await self({"type": "http.response.start", "status": error.status, "headers": pairs})
        await self._send({"type": "http.response.body", "body": body})


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _only(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> str:
    """A header's value; "" where there is none. Raises ApiError where it is there twice."""
    found = [value for key, value in headers if key == name]
    if len(found) > 1:
        raise ApiError(400, f"The header {name.decode()} is there twice.")
    return found[0].decode("latin-1").strip() if found else ""


def _without_port(host: str) -> str:
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdecimal() else host.lower()


def entrance_of(
    host: str, keys: Mapping[str, str], allowed: Sequence[str], **limits: Any
) -> Entrance:
    """Who may come in to a server that listens on `host`.

    Raises:
        BedstoneError: it would be open to others without a key, or a key is too short.
    """
    for name, key in keys.items():
        if len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise BedstoneError(
                f"key {name!r}: expected at least {LEAST_KEY} printable characters without spaces. "
                "Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
    if not is_loopback(host) and not keys:
        raise BedstoneError(
            f"--host: {host} can be reached from other machines, and no key is set. Give a file of "
            "keys with --keys, or leave --host out."
        )
    hosts = tuple(each.lower() for each in allowed)
    if not keys:
        own = f"[{host}]" if ":" in host else host.lower()
        hosts = tuple(dict.fromkeys((*NAMES, own, *hosts)))
    return Entrance(dict(keys), hosts, **limits)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
