"""An endpoint with OpenAI's API: addresses, requests, retries, streams; no key ever leaves by text.

Requests are retried as OpenAI's libraries do: twice, after 408, 409, 429, 5xx and broken
connections, as late as `Retry-After` asks, else after half a second, doubled each time, with
chance. Redirects are refused: they would carry the key elsewhere.
"""

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests

from bedstone.errors import BedstoneError
from bedstone.reading import shown
from bedstone.remote.ledger import Budget, Cassette, Reserved, Usage, most_of

T = TypeVar("T")
OPENAI = "https://api.openai.com/v1"
RETRIES = 2
FIRST, LONGEST = 0.5, 8.0  # seconds between tries
PATIENCE = 60.0  # seconds that Retry-After may ask for
LIMIT = 64 << 20  # bytes of an answer
NAMES = 8  # models that are listed in a message
AGAIN = (408, 409, 429)
REFUSED = "refused"  # the key of a recorded answer that was a refusal


@dataclass(frozen=True)
class Address:
    """Where a model is.

    Attributes:
        url: of the API, up to its version.
        model: its name there.
        key: the environment variable with the key; it is read when a request is sent.
    """

    url: str
    model: str
    key: str

    def __str__(self) -> str:
        return f"{self.url}#{self.model}"


def is_remote(name: object) -> bool:
    """Whether a model's name is an address: `openai:NAME`, or `http://host/v1#NAME`."""
    return isinstance(name, str) and name.startswith(("openai:", "http://", "https://"))


def parse_address(name: str) -> Address:
    """`openai:NAME` (key in OPENAI_API_KEY, host in OPENAI_BASE_URL) or `http://host/v1#NAME`
    (key in BEDSTONE_REMOTE_KEY, if the endpoint wants one).

    Raises:
        BedstoneError: it is neither.
    """
    if name.startswith("openai:"):
        url = os.environ.get("OPENAI_BASE_URL") or OPENAI
        model, key = name.removeprefix("openai:"), "OPENAI_API_KEY"
    else:
        url, _, model = name.partition("#")
        key = "BEDSTONE_REMOTE_KEY"
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query:
        raise BedstoneError(
            "model: an address holds no key, user or query. Set the key in the environment, as "
            f"{key}."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BedstoneError(f"model: {shown(url)} is no address; expected http://host/v1#NAME.")
    if not model:
        raise BedstoneError(
            f"model: {shown(name)} names no model; expected {url}#NAME, or openai:NAME."
        )
    return Address(url.rstrip("/"), model, key)


class Refused(BedstoneError):
    """The endpoint doesn't do what was asked: a status of 400, 404, 405, 422 or 501.

    Attributes:
        absent: whether there is no such model, or nothing at the address.
    """

    def __init__(self, message: str, absent: bool = False) -> None:
        super().__init__(message)
        self.absent = absent


class Endpoint:
    """Sends requests to an address.

    Args:
        seconds: that a connection, and then each part of an answer, may take.
        total: seconds that an answer may take as a whole.

    Attributes:
        budget, cassette: that requests count on, and are recorded in or replayed from.
        usage_missing: answers that told no usage.
    """

    def __init__(
        self,
        address: Address,
        *,
        budget: Budget | None = None,
        cassette: Cassette | None = None,
        retries: int = RETRIES,
        seconds: float = 120.0,
        total: float = 600.0,
    ) -> None:
        self.address, self.retries = address, retries
        self.seconds, self.total = seconds, total
        self.budget, self.cassette = budget or Budget(), cassette
        self.usage_missing = 0
        self._listed: list[str] | None = None
        self._session = requests.Session()

    def post(self, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request, a JSON object.

        Raises:
            BedstoneError: there is none after all tries, it isn't JSON, the key is refused, or the
                budget has no room.
        """
        body = {"model": self.address.model, **body}
        if self.cassette is not None and self.cassette.replay:
            found = self.cassette.answer(route, body)
            if REFUSED in found:
                raise Refused(str(found[REFUSED]))
            return found
        with self.budget.reserved(most_of(body)) as taken:
            try:
                found = self._tried(route, body, taken, self._answer)
            except Refused as error:
                if self.cassette is not None:
                    self.cassette.add(route, body, {REFUSED: str(error)})
                raise
            taken.settle(self._usage(found))
        if self.cassette is not None:
            self.cassette.add(route, body, found)
        return found

    def stream(self, route: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of an answer as they come.

        An answer that breaks off isn't asked for again, since part of it was given out.

        Raises:
            BedstoneError: as `post`; or it ended before its last event.
        """
        options = {"include_usage": True}
        body = {"model": self.address.model, **body, "stream": True, "stream_options": options}
        if self.cassette is not None and self.cassette.replay:
            yield from self.cassette.answer(route, body)["events"]
            return
        events: list[dict[str, Any]] = []
        with self.budget.reserved(most_of(body)) as taken:
            response = self._tried(route, body, taken, lambda response: response)
            ended = False
            for data in self._lines(response):
                if data == "[DONE]":
                    ended = True
                    break
                event = self._object(data.encode(), "event")
                if "error" in event:
                    raise self._said(200, json.dumps(event).encode())
                events.append(event)
                yield event
            if not ended:
                raise BedstoneError(
                    f"{self.address}: the answer broke off before its end, after {len(events)} "
                    "events. Ask again."
                )
            taken.settle(next(filter(None, map(self._reported, reversed(events))), None))
        if self.cassette is not None:
            self.cassette.add(route, body, {"events": events})

    # Tries.

    def _tried(
        self, route: str, body: Mapping[str, Any], taken: Reserved, read: Callable[..., T]
    ) -> T:
        """What `read` makes of a response with status 200, the first that comes whole."""
        headers = self._headers()
        for number in range(self.retries + 1):
            last = number == self.retries
            try:
                response = self._session.post(
                    f"{self.address.url}/{route}",
                    json=body,
                    headers=headers,
                    timeout=self.seconds,
                    stream=True,
                    allow_redirects=False,
                )
                if response.status_code == 200:
                    return read(response)
                content = self._content(response)
            except (BedstoneError, requests.RequestException) as error:
                if last:
                    raise self._broken(error) from None
                time.sleep(_pause(number, {}))
                continue
            again = response.status_code in AGAIN or response.status_code >= 500
            again = {"true": True, "false": False}.get(
                response.headers.get("x-should-retry", ""), again
            )
            if last or not again or response.status_code == 501:
                taken.free()
                raise self._said(response.status_code, content)
            time.sleep(_pause(number, response.headers))
        raise AssertionError

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self.address.key)
        if key is None and self.address.key == "OPENAI_API_KEY" and self.address.url == OPENAI:
            raise BedstoneError(
                "OPENAI_API_KEY: isn't set. Set it in the environment; it is read from nowhere "
                "else, and kept nowhere."
            )
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _content(self, response: requests.Response) -> bytes:
        """All of an answer, at most `LIMIT` bytes in `total` seconds."""
        began, parts, size = time.monotonic(), [], 0
        for part in response.iter_content(1 << 16):
            parts.append(part)
            size += len(part)
            self._check(began, size)
        return b"".join(parts)

    def _lines(self, response: requests.Response) -> Iterator[str]:
        """What stands behind `data:` in a stream of events."""
        began, size = time.monotonic(), 0
        try:
            for line in response.iter_lines(1):
                size += len(line)
                self._check(began, size)
                if line.startswith(b"data:"):
                    yield line[5:].strip().decode(errors="replace")
        except requests.RequestException as error:
            raise self._broken(error) from None

    def _check(self, began: float, size: int) -> None:
        if size > LIMIT:
            raise BedstoneError(f"{self.address}: the answer has over {LIMIT >> 20} MB.")
        if time.monotonic() - began > self.total:
            raise BedstoneError(
                f"{self.address}: the answer isn't whole after {self.total:g} seconds."
            )

    # What came back.

    def _answer(self, response: requests.Response) -> dict[str, Any]:
        return self._object(self._content(response), "answer")

    def _object(self, content: bytes, what: str) -> dict[str, Any]:
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            text = self._without_key(content[:200].decode(errors="replace"))
            raise BedstoneError(
                f"{self.address}: the {what} is no JSON object: {shown(text)}. Is it an endpoint "
                "with OpenAI's API, and does the address end in its version, such as /v1?"
            )
        return found

    def _usage(self, found: Mapping[str, Any]) -> Usage | None:
        usage = self._reported(found)
        self.usage_missing += usage is None
        return usage

    @staticmethod
    def _reported(found: Mapping[str, Any]) -> Usage | None:
        usage = found.get("usage")
        if not isinstance(usage, Mapping):
            return None
        read, written = (usage.get(f"{name}_tokens") for name in ("prompt", "completion"))
        if not isinstance(read, int):
            return None
        return Usage(read, written if isinstance(written, int) else 0)

    def _said(self, status: int, content: bytes) -> BedstoneError:
        """The error that a status stands for, with what the endpoint said."""
        try:
            found = json.loads(content)
            found = found.get("error", found)
            text = found.get("message", found) if isinstance(found, dict) else found
        except (ValueError, AttributeError):
            text = content[:300].decode(errors="replace")
        text = self._without_key(str(text))[:300].strip()
        said = f" It says: {text}" if text else ""
        if status in (401, 403):
            return BedstoneError(
                f"{self.address}: refused the key ({status}). Set {self.address.key} in the "
                f"environment.{said}"
            )
        if 300 <= status < 400:
            return BedstoneError(
                f"{self.address}: sends elsewhere ({status}), which isn't followed, since it would "
                "carry the key there. Give the address itself."
            )
        if status == 404:
            return Refused(f"{self.address}: {self._absent()}{said}", absent=True)
        if status in (400, 405, 422, 501):
            return Refused(f"{self.address}: refused the request ({status}).{said}")
        if status == 429:
            return BedstoneError(
                f"{self.address}: asks for fewer requests (429), also after {self.retries} more "
                f"tries. Wait, or check the account.{said}"
            )
        return BedstoneError(
            f"{self.address}: failed ({status}), also after {self.retries} more tries.{said}"
        )

    def _absent(self) -> str:
        """What a status of 404 means, by the models that the endpoint lists."""
        if self._listed is None:
            self._listed = self._names()
        wanted = self.address.model
        if not self._listed:
            return (
                "isn't there (404): no such model, or the address isn't that of an API. Does it "
                "end in its version, such as /v1?"
            )
        if wanted not in self._listed:
            some = ", ".join(self._listed[:NAMES])
            more = ", ..." if len(self._listed) > NAMES else ""
            return f"there is no model {shown(wanted)} (404); there are {some}{more}."
        return "has the model, and no such route for it (404)."

    def _names(self) -> list[str]:
        """Names of the models that the endpoint lists; none where it lists none."""
        try:
            response = self._session.get(
                f"{self.address.url}/models", headers=self._headers(), timeout=self.seconds,
                stream=True, allow_redirects=False,
            )  # fmt: skip
            found = json.loads(self._content(response)) if response.status_code == 200 else {}
            return [shown(each["id"]).strip("'\"") for each in found["data"]]
        except (BedstoneError, requests.RequestException, ValueError, KeyError, TypeError):
            return []

    def _broken(self, error: Exception) -> BedstoneError:
        if isinstance(error, BedstoneError):
            return error
        kind = "gave no answer in time" if isinstance(error, requests.Timeout) else "broke off"
        if isinstance(error, requests.ConnectionError) and not isinstance(error, requests.Timeout):
            kind = "can't be reached, or broke off"
        return BedstoneError(
            f"{self.address}: {kind}, also after {self.retries} more tries. Is it running there?"
        )

    def _without_key(self, text: str) -> str:
        key = os.environ.get(self.address.key)
        return text.replace(key, "***") if key else text


def _pause(number: int, headers: Mapping[str, str]) -> float:
    """Seconds before the next try."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            wanted = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if 0 < wanted <= PATIENCE:
            return wanted
    return min(FIRST * 2.0**number, LONGEST) * (1 - 0.25 * random.random())
