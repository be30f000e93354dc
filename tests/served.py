"""Small served models, and what their work gives, as the tests of the server use them."""

import threading
from collections.abc import Sequence
from typing import Any

import torch

from bedstone.checkpoints.model import Model
from bedstone.generation.autoregress import ready
from bedstone.generation.sampling import Sampling
from bedstone.generation.text import Piece
from bedstone.models.heads import HeadConfig
from bedstone.runtime import pick_precision
from bedstone.serve.metrics import ModelMetrics
from bedstone.serve.prefix import PrefixCache
from bedstone.serve.rows import EngineRows, TorchRows, open_rows
from bedstone.serve.scheduler import Scheduler, Turn
from bedstone.serve.work import Begun, Ended, Generation, Scored
from small_models import decoder

SCOPE = b"one"
CPU = torch.device("cpu")


def small_decoder(context: int = 512) -> Model:
    return decoder(HeadConfig("language"), "llama", context=context, kv_heads=2)


def scheduler(
    model: Model,
    *,
    backend: str = "engine",
    precision: str = "fp32",
    count: int = 4,
    prefixes: int = 0,
    **limits: Any,
) -> Scheduler:
    """The scheduler of a small decoder."""
    network: Any = model.network
    if backend == "engine":
        network = ready(network, pick_precision(precision, CPU))
    rows = open_rows(network, int(model.config.context), count, 1 << 30)
    assert isinstance(rows, EngineRows if backend == "engine" else TorchRows)
    return Scheduler(
        "small", rows, model.tokenizer, _runs, Turn(), ModelMetrics(),
        prefixes=PrefixCache(prefixes), **limits,
    )  # fmt: skip


def _runs(task: str, inputs: list[Any], options: dict[str, Any]) -> list[Any]:
    raise AssertionError(task)


class Collected:
    """What a continuation gave, in order; `wait` returns once it has ended."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.done = threading.Event()
        self.some = threading.Event()

    def __call__(self, event: Any) -> None:
        self.events.append(event)
        self.some.set()
        if isinstance(event, Exception | Ended) or getattr(event, "finish", None):
            self.done.set()

    def wait(self, seconds: float = 60.0) -> "Collected":
        assert self.done.wait(seconds), "the work has not ended"
        return self

    @property
    def pieces(self) -> list[Piece]:
        return [each for each in self.events if isinstance(each, Piece)]

    @property
    def text(self) -> str:
        return "".join(each.text for each in self.pieces)

    @property
    def steps(self) -> list[tuple[Any, ...]]:
        """Tokens with all that is said of them, to be compared to the last bit."""
        return [
            (each.step.token, each.step.log_probability, each.step.top, each.step.finish)
            for each in self.pieces
        ]

    @property
    def cached(self) -> int:
        return next(each.cached for each in self.events if isinstance(each, Begun))

    @property
    def scored(self) -> Scored:
        return next(each for each in self.events if isinstance(each, Scored))


def generation(
    prompt: Sequence[int], *, room: int = 12, seed: int = 7, temperature: float = 0.9, **more: Any
) -> tuple[Generation, Collected]:
    """A continuation to hand in, and what will hold what it gives."""
    found = Collected()
    sampling = Sampling(max_tokens=max(room, 1), temperature=temperature, top_k=40, top_p=0.95)
    more = {"top": 3, "scope": SCOPE, **more}
    work = Generation(tuple(prompt), sampling, found, room, seed, **more)
    return work, found


def ids(number: int, length: int) -> list[int]:
    """A prompt of that length, another for each number."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(5, 250, (length,), generator=generator).tolist()
