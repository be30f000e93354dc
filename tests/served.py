"""Small served models, and what their work gives, as the tests of the server use them."""

import json
import socket
import threading
import time
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import torch

from bedstone.checkpoints.model import Model
from bedstone.generation.autoregress import ready
from bedstone.generation.rows import EngineRows, TorchRows
from bedstone.generation.sampling import Sampling
from bedstone.generation.text import Piece
from bedstone.models.heads import HeadConfig
from bedstone.runtime import pick_precision
from bedstone.serve.app import listen, server_of
from bedstone.serve.gate import entrance_of
from bedstone.serve.indexes import open_indexes
from bedstone.serve.metrics import ModelMetrics
from bedstone.serve.models import Models, ServeSettings
from bedstone.serve.prefix import PrefixCache
from bedstone.serve.routes import Service
from bedstone.serve.rows import open_rows
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
    runs: Any = None,
    **limits: Any,
) -> Scheduler:
    """The scheduler of a small decoder."""
    network: Any = model.network
    if backend == "engine":
        network = ready(network, pick_precision(precision, CPU))
    rows = open_rows(network, int(model.config.context), count, 1 << 30)
    assert isinstance(rows, EngineRows if backend == "engine" else TorchRows)
    return Scheduler(
        "small", rows, model.tokenizer, runs or _runs, Turn(), ModelMetrics(),
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


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CALLING = (  # a template that writes calls as JSON and nothing else
    "{% for t in tools or [] %}{{ t.function.name + '\\n' }}{% endfor %}"
    "{% for m in messages %}{{ m.role + ': ' }}{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
KEY, OTHER_KEY = "key-of-the-tests-0123456789", "key-of-another-9876543210"


def saved_decoder(folder: Path, context: int = 512, template: str = CHATML) -> Path:
    """A small decoder with a chat template."""
    model = small_decoder(context)
    model.tokenizer.settings["chat_template"] = template
    path: Path = model.save(folder)
    return path


class Running:
    """A server on a free port of loopback, in a thread; `bedstone serve` without its command.

    Args:
        sources: what is served, by name.
        keys: by name.
        limits: fields of `ServeSettings`.
    """

    def __init__(
        self, sources: dict[str, str], *, keys: dict[str, str] | None = None,
        precision: str = "fp32", indexes: tuple[str, ...] = (), policy: Any = None, **limits: Any,
    ) -> None:  # fmt: skip
        settings = ServeSettings(**{"kv_memory": 0.05, "prefix_memory": 0.02, **limits})
        self.models = Models(sources, settings, precision, "cpu")
        self.models.open_all()
        self.entrance = entrance_of(
            "127.0.0.1", keys or {}, (), body=int(settings.max_body * (1 << 20)),
            seconds=settings.body_seconds, requests=200,
        )  # fmt: skip
        self.listener = listen("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        service = Service(self.models, open_indexes(indexes, self.models), policy)
        self.server = server_of(service, self.entrance)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],), daemon=True)
        self.thread.start()
        deadline = time.monotonic() + 20
        while not self.server.started and time.monotonic() < deadline:
            time.sleep(0.01)

    def client(self) -> Any:
        """OpenAI's client, which checks what it is given."""
        import openai

        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0,
            _strict_response_validation=True,
        )  # fmt: skip

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        self.models.close()
        self.listener.close()

    def raw(self, data: bytes, seconds: float = 5.0) -> tuple[int, dict[str, str], bytes]:
        """The status, headers and body that come back for bytes that are sent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as line:
            line.sendall(data)
            answer = HTTPResponse(line, method=data.partition(b" ")[0].decode())
            answer.begin()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def ask(
        self, path: str, body: Any = None, *, method: str | None = None, key: str | None = None,
        **headers: str,
    ) -> tuple[int, dict[str, str], Any]:  # fmt: skip
        """A request with a JSON body, or without any, and its answer read as JSON where it is."""
        line = HTTPConnection("127.0.0.1", self.port, timeout=60)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            given["Authorization"] = f"Bearer {key}"
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            given.setdefault("Content-Type", "application/json")
        line.request(method or ("GET" if body is None else "POST"), path, data, given)
        answer = line.getresponse()
        read = answer.read()
        line.close()
        found = {name.lower(): value for name, value in answer.getheaders()}
        if found.get("content-type") == "application/json" and read:
            return answer.status, found, json.loads(read)
        return answer.status, found, read

    def idle(self, seconds: float = 10.0) -> bool:
        """Whether no request is inside and no model has work, within some time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            served = [each.served for each in self.models.entries.values() if each.served]
            busy = any(each.users or not each.scheduler.idle for each in served)
            if not busy and not self.server.config.loaded_app.inside:
                return True
            time.sleep(0.01)
        return False
