"""What a served model is given to do, and how what it did comes back.

Work is handed in by any thread and done by the model's own (`serve.scheduler`). What it gives is
handed to `deliver` on that thread, an event at a time, the last of which ends it.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.generation.sampling import Sampling
from bedstone.generation.text import Piece


class Busy(BedstoneError):
    """There is no room for more work now.

    Attributes:
        seconds: after which there may be, by how fast work has been done so far.
    """

    def __init__(self, message: str, seconds: float = 1.0) -> None:
        super().__init__(message)
        self.seconds = seconds


ENDING = "The server is ending; try again."


class Leaving(Busy):
    """The server is ending, or can't hold the model now."""


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of a prompt's tokens: of each its own, and of the likeliest there.

    Attributes:
        own: None for the first token, which follows nothing.
        top: of each token, pairs of an id and its log-probability.
    """

    own: list[float | None]
    top: list[tuple[tuple[int, float], ...]]


@dataclass(frozen=True)
class Begun:
    """A continuation's prompt has been read.

    Attributes:
        cached: tokens of the prompt that were known already.
    """

    cached: int


@dataclass(frozen=True)
class Result:
    """What a task gave for each input."""

    values: list[Any]


@dataclass(frozen=True)
class Ended:
    """The last event of a continuation that makes no token."""


Event = Piece | Scored | Begun | Result | Ended | Exception


class Work:
    """Something to do, which may be called off at any time, by any thread."""

    deliver: Callable[[Event], None]

    def __init__(self) -> None:
        self._off = threading.Event()

    def cancel(self) -> None:
        self._off.set()

    @property
    def cancelled(self) -> bool:
        return self._off.is_set()

    @property
    def tokens(self) -> int:
        """What it counts in a queue."""
        raise NotImplementedError


@dataclass(eq=False)
class Generation(Work):
    """One continuation of a prompt.

    Attributes:
        prompt: ids.
        sampling: how tokens are chosen, and stop texts.
        deliver: is handed `Begun`, then pieces, the last with a finish; or `Ended`, or what failed.
        room: tokens to make, at most; 0 makes none.
        seed: of the row's own chance.
        ends: ids that end it.
        scope: the name of all that may share what was read (`serve.prefix.scope_of`).
        top: of how many likeliest tokens log-probabilities are given; None gives none at all.
        scores: whether the prompt's own tokens are scored too, as `Scored`.
        bias: added to the logits of ids.
        presence, frequency: taken from the logits of ids that were made: once, and for each time.
        guide: which tokens may follow; None lets all.
        tokenizer: another than the model's own, to write tokens as text.
        prediction: ids of a text that is expected to come; it changes nothing but the speed.
        halts: is given each token and the text that it adds; whether the text ends there.
        accepted, rejected: tokens of it that came true, and that were read in vain.
    """

    prompt: Sequence[int]
    sampling: Sampling
    deliver: Callable[[Event], None]
    room: int
    seed: int
    ends: frozenset[int] = frozenset()
    scope: bytes = b""
    top: int | None = None
    scores: bool = False
    bias: Mapping[int, float] = field(default_factory=dict)
    presence: float = 0.0
    frequency: float = 0.0
    guide: Any = None
    tokenizer: Tokenizer | None = None
    prediction: Sequence[int] = ()
    halts: Callable[[int, str], bool] | None = None
    accepted: int = 0
    rejected: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def tokens(self) -> int:
        return len(self.prompt) + self.room


@dataclass(eq=False)
class Call(Work):
    """Inputs of a task.

    Attributes:
        task: its name.
        inputs: one or more, as `bedstone.pipeline` takes them.
        options: of the call.
        key: equal for calls that may be read together: they have the same task and options.
        cost: what it counts in a queue, in tokens.
        found: results of its first inputs, where it is done in several parts.
    """

    task: str
    inputs: list[Any]
    options: Mapping[str, Any]
    deliver: Callable[[Event], None]
    key: str
    cost: int = 1
    found: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def tokens(self) -> int:
        return self.cost

    def part(self, tokens: int, most: int) -> list[Any]:
        """The next inputs: of so many tokens, about, but at least one and at most so many."""
        each = max(self.cost // len(self.inputs), 1)
        start = len(self.found)
        return self.inputs[start : start + min(max(tokens // each, 1), most)]
