"""An endpoint with OpenAI's API on loopback, whose faults a test chooses."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-secret-0123456789"


def usage(read: int = 5, written: int = 3) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def said(text: str = "hello", finish: str = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"choices": [choice], "usage": usage(), **more}


class Fake:
    """What the endpoint was asked, and what it answers.

    Attributes:
        asked: (route, body, headers) of each request.
        faults: of the next requests, one each: a status, (status, body, headers), or a function of
            the handler.
        answer: of a request without a fault: a function of route and body; None is 404.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.faults: list[Any] = []
        self.answer: Callable[[str, dict[str, Any]], Any] = lambda route, body: said()
        self.url = ""
        self.running = self.most = 0
        self.lock = threading.Lock()


def send(handler: Any, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    handler.send_response(status)
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def events(handler: Any, parts: list[Any], *, done: bool = True) -> None:
    """A stream of events; without `done` the connection ends in the middle."""
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.end_headers()
    for part in parts:
        handler.wfile.write(f"data: {json.dumps(part)}\n\n".encode())
    if done:
        handler.wfile.write(b"data: [DONE]\n\n")
    handler.close_connection = True


def hang(seconds: float) -> Callable[[Any], None]:
    return lambda handler: time.sleep(seconds)


def cut(handler: Any) -> None:
    """Half an answer, then nothing."""
    body = json.dumps(said("a long answer")).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


@contextlib.contextmanager
def endpoint() -> Iterator[Fake]:
    fake = Fake()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            route = self.path.removeprefix("/v1/")
            with fake.lock:
                fake.asked.append((route, body, dict(self.headers)))
                fault = fake.faults.pop(0) if fake.faults else None
                fake.running += 1
                fake.most = max(fake.most, fake.running)
            try:
                self.reply(route, body, fault)
            except BrokenPipeError:
                self.close_connection = True
            finally:
                with fake.lock:
                    fake.running -= 1

        def reply(self, route: str, body: Any, fault: Any) -> None:
            if callable(fault):
                fault(self)
                return
            if fault is not None:
                status, content, headers = fault if isinstance(fault, tuple) else (fault, {}, {})
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                send(self, status, raw, headers)
                return
            found = fake.answer(route, body)
            if found is None:
                send(self, 404, b'{"error": {"message": "no such route"}}')
            elif callable(found):
                found(self)
            else:
                send(self, 200, json.dumps(found).encode())

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
