"""A server in a process of its own, and clients of it, as `bench/serve.py` measures them.

What a client does then takes nothing from the server but its share of the processors.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bedstone.runtime import resident
from result import ROOT

Answer = tuple[int, dict[str, str], bytes, float]  # status, headers, body, seconds
NAME = "model"  # of the decoder
LOOP = "requests"  # the thread that answers connections


class Running:
    """A server of one model or several, in a process of its own.

    Args:
        chosen: the command line's `model`, `precision`, `threads`, `requests`, `prompt`, `new`.
        sources: further models, by name.
        endless: whether the decoder's end tokens don't end texts, so that all have one length.
        limits: fields of `ServeSettings`.
    """

    def __init__(
        self,
        chosen: argparse.Namespace,
        sources: Mapping[str, str] | None = None,
        *,
        endless: bool = True,
        **limits: Any,
    ) -> None:
        usual = {"max_num_seqs": chosen.requests, "prefix_memory": 0.0, "kv_memory": 8.0}
        usual["max_model_len"] = chosen.prompt + chosen.new + 64
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        given = {NAME: chosen.model, **(sources or {})}
        words = (theirs, given, {**usual, **limits}, chosen.precision, chosen.threads, endless)
        self._process = context.Process(target=_serve, args=words, daemon=True)
        self._process.start()
        theirs.close()
        self.port, self.ids = self._line.recv()

    def __enter__(self) -> "Running":
        asyncio.run(self.ask(self.prompt(0, 8), 2))
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(BrokenPipeError, EOFError):
            self.said("stop")
        self._process.join(60)

    def said(self, what: str, *more: Any) -> Any:
        """What the server's process says: held, objects, seconds, idle, free, counts, decode
        (ids), stop."""
        self._line.send((what, *more))
        return self._line.recv()

    def prompt(self, number: int, size: int) -> list[int]:
        """A piece of the text, another for each number."""
        return piece(self.ids, number, size)

    async def ask(self, prompt: list[int], new: int, **more: Any) -> Answer:
        body = {"model": NAME, "prompt": prompt, "max_tokens": new, "temperature": 0, **more}
        return await post(self.port, "/v1/completions", body)


def license_ids(model: Any) -> list[int]:
    """The text of which requests ask pieces."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    return list(model.tokenizer.encode(text))


def piece(ids: list[int], number: int, size: int) -> list[int]:
    """So many tokens of a text, another piece for each number."""
    start = 16 * number % len(ids)
    return (ids * (2 + size // len(ids)))[start : start + size]


def _serve(
    line: Any,
    sources: dict[str, str],
    limits: dict[str, Any],
    precision: str,
    threads: int,
    endless: bool,
) -> None:
    """The server's process: answers what is asked over the line until it says stop."""
    from bedstone.serve.app import listen, server_of
    from bedstone.serve.gate import entrance_of
    from bedstone.serve.models import Models, ServeSettings
    from bedstone.serve.routes import Service

    torch.set_num_threads(threads)
    models = Models(sources, ServeSettings(**limits), precision, "cpu")
    models.open_all()
    entrance = entrance_of("127.0.0.1", {}, (), body=1 << 24, seconds=30.0, requests=10_000)
    listener = listen("127.0.0.1", 0)
    server = server_of(Service(models), entrance)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True, name=LOOP)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    served = models.entries[NAME].served
    assert served is not None and served.model.tokenizer is not None
    if endless:
        served.model.generation["eos_token_id"] = []
    line.send((listener.getsockname()[1], license_ids(served.model)))
    gate, scheduler = server.config.app, served.scheduler

    def idle() -> bool:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            each = [e.served.scheduler.idle for e in models.entries.values() if e.served]
            if all(each) and not gate.inside:
                return True
            time.sleep(0.01)
        return False

    does: dict[str, Callable[..., Any]] = {
        "decode": served.model.tokenizer.decode,
        "idle": idle,
        "held": lambda: (
            round(resident() / (1 << 20), 1),
            len(list(Path("/proc/self/fd").iterdir())),
            threading.active_count(),
        ),
        "objects": _objects,
        "seconds": _seconds,
        "free": lambda: len(scheduler._free),
        "counts": lambda: {
            name: value for name, value in vars(scheduler.metrics).items() if type(value) is int
        },
        "stop": lambda: setattr(server, "should_exit", True),
    }
    while True:
        what, *more = line.recv()
        line.send(does[what](*more))
        if what == "stop":
            break
    thread.join(60)


def _seconds() -> dict[str, float]:
    """Seconds of the processors that the loop of requests, the model and its helpers have had."""
    names = {each.native_id: each.name for each in threading.enumerate()}
    found = {"loop": 0.0, "model": 0.0, "others": 0.0}
    for task in Path("/proc/self/task").iterdir():
        name = names.get(int(task.name), "")
        kind = "model" if name.startswith("serve-") else "others"
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        found["loop" if name == LOOP else kind] += used
    return found


def _objects() -> int:
    """How many objects are alive, of those that the garbage collector knows."""
    gc.collect()
    return len(gc.get_objects())


async def post(port: int, path: str, body: Any, leave: int | None = None) -> Answer:
    """A request and its answer; with `leave`, the client goes once it read so many bytes."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    try:
        if leave is not None and leave < 0:  # within what it sends
            writer.write((head.encode() + data)[:leave])
            await writer.drain()
            return 0, {}, b"", time.perf_counter() - began
        writer.write(head.encode() + data)
        read = await (reader.read() if leave is None else reader.read(leave))
    finally:
        writer.close()
    taken = time.perf_counter() - began
    lines, _, content = read.partition(b"\r\n\r\n")
    first, *rest = lines.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in rest if ": " in line)
    status = int(first.split(" ")[1]) if leave is None else 0
    return status, headers, content, taken


def read(answer: Answer) -> dict[str, Any]:
    assert answer[0] == 200, answer
    found: dict[str, Any] = json.loads(answer[2])
    return found


def text_of(answer: Answer) -> str:
    return str(read(answer)["choices"][0]["text"])
