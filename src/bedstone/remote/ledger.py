"""What requests to an endpoint may cost, and recordings of them.

A budget is reserved before a request is sent, at the most that it can take, and settled by the
usage that the answer tells: so it isn't passed, however many requests are under way. A cassette
keeps answers by what was asked, and replays them without a network.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.reading import read_text, shown

MESSAGE = 16  # tokens that a chat template may set around a message
LONGEST = 256 << 20  # bytes of a cassette


@dataclass(frozen=True)
class Usage:
    """Tokens of a request: read, and written."""

    read: int = 0
    written: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.read + other.read, self.written + other.written)

    @property
    def tokens(self) -> int:
        return self.read + self.written


@dataclass(frozen=True)
class Price:
    """Money for a million tokens, read and written, in any currency."""

    read: float = 0.0
    written: float = 0.0

    def of(self, usage: Usage) -> float:
        return (self.read * usage.read + self.written * usage.written) / 1e6


class Budget:
    """Tokens and money that requests may take together; threads may share it.

    Args:
        tokens, money: at most; None has no limit.
        price: of the endpoint, which money needs.

    Attributes:
        spent: by requests that are done. One whose usage isn't known counts as what it could take.
        requests: how many were sent.

    Raises:
        BedstoneError: a limit isn't above 0, or money is given without a price.
    """

    def __init__(
        self,
        tokens: int | None = None,
        money: float | None = None,
        price: Price | None = None,
    ) -> None:
        for name, value in (("tokens", tokens), ("money", money)):
            if value is not None and not value > 0:
                raise BedstoneError(f"budget.{name}: {value} was given; expected more than 0.")
        if money is not None and price is None:
            raise BedstoneError(
                "budget.money: needs the price of a million tokens, read and written. Give it, or "
                "give tokens."
            )
        self.tokens, self.money, self.price = tokens, money, price or Price()
        self.spent, self._held = Usage(), Usage()
        self.requests = 0
        self._lock = threading.Lock()

    @property
    def cost(self) -> float:
        """Money that was spent."""
        return self.price.of(self.spent)

    @contextlib.contextmanager
    def reserved(self, most: Usage) -> Iterator["Reserved"]:
        """Room for a request that takes `most`; what isn't settled by it counts as taken.

        Raises:
            BedstoneError: there is no room.
        """
        with self._lock:
            self._check(self.spent + self._held + most)
            self._held += most
            self.requests += 1
        one = Reserved(most)
        try:
            yield one
        finally:
            with self._lock:
                self._held = Usage(self._held.read - most.read, self._held.written - most.written)
                self.spent += one.taken

    def _check(self, then: Usage) -> None:
        if self.tokens is not None and then.tokens > self.tokens:
            raise BedstoneError(
                f"budget.tokens: {self.spent.tokens:,} of {self.tokens:,} are spent, and the next "
                f"request may come to {then.tokens:,}. Raise it, or lower max_new_tokens."
            )
        if self.money is not None and self.price.of(then) > self.money:
            raise BedstoneError(
                f"budget.money: {self.cost:.4f} of {self.money:g} is spent, and the next request "
                f"may come to {self.price.of(then):.4f}. Raise it, or lower max_new_tokens."
            )


@dataclass
class Reserved:
    """What a request takes: at first all that it could."""

    taken: Usage

    def settle(self, usage: Usage | None) -> None:
        """Counts what the answer told; nothing told leaves it at the most."""
        if usage is not None:
            self.taken = usage

    def free(self) -> None:
        """Counts nothing: the endpoint refused the request."""
        self.taken = Usage()


def most_of(body: Mapping[str, Any]) -> Usage:
    """The most tokens that a request can take: no token is less than a byte."""
    read, messages = 0, body.get("messages")
    if isinstance(messages, list):
        read += sum(len(json.dumps(each, ensure_ascii=False).encode()) for each in messages)
        read += MESSAGE * (len(messages) + 1)
    for name in ("prompt", "suffix", "tools", "response_format"):
        if (value := body.get(name)) is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            read += len(text.encode())
    limit = body.get("max_completion_tokens", body.get("max_tokens", 0))
    return Usage(read, int(limit) * int(body.get("n") or 1))


class Cassette:
    """Answers by what was asked, in a file of a JSON object a line.

    The key is of route and body alone: no header is kept, so no secret is. The same request sent
    again has an answer of its own, which is the next of the same key.

    Args:
        path: of the file; to replay it must exist.
        replay: whether answers come from it and nothing is sent; else they are added to it.

    Raises:
        BedstoneError: it can't be read, or holds something else.
    """

    def __init__(self, path: str | Path, *, replay: bool) -> None:
        self.path, self.replay = Path(path), replay
        self._lock = threading.Lock()
        self._given: dict[str, int] = {}
        self._known: dict[str, list[dict[str, Any]]] = {}
        if replay or self.path.exists():
            self._read()

    def answer(self, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """What was answered to this request, the next of several.

        Raises:
            BedstoneError: it was never asked, or not so often.
        """
        key = _key(route, body)
        with self._lock:
            number = self._given.get(key, 0)
            known = self._known.get(key, [])
            if number >= len(known):
                often = f"{number} times only" if number else "never"
                raise BedstoneError(
                    f"{self.path}: this request to {route} was {often} recorded: "
                    f"{shown(json.dumps(body, ensure_ascii=False), 200)}. Record it again."
                )
            self._given[key] = number + 1
            return known[number]

    def add(self, route: str, body: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Keeps an answer; the line is on the disk when this returns."""
        row = {"key": _key(route, body), "route": route, "request": body, "answer": answer}
        line = json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n"
        with self._lock, self.path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> None:
        text = read_text(self.path, LONGEST)
        lines = text.split("\n")
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                row = json.loads(line)
                key, answer = row["key"], row["answer"]
                good = key == _key(row["route"], row["request"]) and isinstance(answer, dict)
            except (ValueError, KeyError, TypeError):
                good = False
            if good:
                self._known.setdefault(key, []).append(answer)
            elif number < len(lines) or self.replay:  # a last line that a kill cut is left out
                raise BedstoneError(
                    f"{self.path}: line {number} holds no recorded answer. Record it again."
                )
            else:
                self.path.write_text(text[: len(text) - len(line)], encoding="utf-8")


def _key(route: str, body: Mapping[str, Any]) -> str:
    text = json.dumps([route, body], ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
