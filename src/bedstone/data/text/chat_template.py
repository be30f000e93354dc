"""Rendering of chat templates (Jinja) in a process of its own, with limits of time and memory.

A template is code of others. It runs in Jinja's sandbox, which keeps it from Python's objects but
not from loops without end or texts of gigabytes; those end with the process. The process is started
at the first template, waits for the next one, and ends with the program. This file is also its
script, and imports nothing of Bedstone, so that it is there in a tenth of a second.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 1.5  # of one template
MEMORY = 1 << 30  # bytes of the process
MOST = 1 << 20  # characters of a rendered conversation
START = 60.0  # seconds until the process is there, on a machine that is busy


class TemplateFault(Exception):
    """Why a template can't be rendered, in its own words where it has some."""


class Written(NamedTuple):
    """What a template makes of its variables.

    Attributes:
        text: the rendered text.
        spans: (start, end) in characters of each `{% generation %}` block in it.
    """

    text: str
    spans: list[tuple[int, int]]


class Renderer:
    """The process that renders, from this side; one template at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0  # the process that started it: a fork can't share its pipes

    def render(self, template: str, variables: dict[str, Any]) -> Written:
        """The text that a template makes of its variables, which JSON can write.

        Raises:
            TemplateFault: it takes too long, too much memory, writes too much, or raises an error.
        """
        request = json.dumps({"template": template, "variables": variables})
        with self._lock:
            process = self._ready()
            reply = _within(SECONDS, process, lambda: _exchange(process, request))
            if not reply:
                self.close()
                raise TemplateFault(f"it was stopped, as it takes more than {SECONDS} seconds")
        found = json.loads(reply)
        if "text" not in found:
            raise TemplateFault(found["fault"])
        return Written(str(found["text"]), [(start, end) for start, end in found["spans"]])

    def close(self) -> None:
        """Ends the process; the next template starts another."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe and pipe.close()

    def _ready(self) -> "subprocess.Popen[str]":
        if self._owner != os.getpid():
            self._process = None
        if self._process is None or self._process.poll() is not None:
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).resolve())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="ascii",
                start_new_session=True,  # a Ctrl-C in the terminal isn't meant for it
            )
            process = self._process
            if not _within(START, process, lambda: _exchange(process)):
                self.close()
                raise TemplateFault("the process that renders templates can't be started")
        return self._process


def _within(seconds: float, process: "subprocess.Popen[str]", call: Callable[[], str]) -> str:
    """What a call gives; "" where the process was ended as the time was over, or by itself."""
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        return call()
    except BaseException as error:
        process.kill()  # a reply that nobody reads would be taken for the next one's
        if isinstance(error, OSError):
            return ""
        raise
    finally:
        timer.cancel()


def _exchange(process: "subprocess.Popen[str]", request: str = "") -> str:
    """The next line of the process, after a request if there is one."""
    assert process.stdin is not None and process.stdout is not None
    if request:
        process.stdin.write(request + "\n")
        process.stdin.flush()
    return process.stdout.readline()


RENDERER = Renderer()
atexit.register(RENDERER.close)


# The process itself.


def serve() -> None:
    """Reads requests, a line of JSON each, and replies to each in a line."""
    if sys.platform != "win32":
        import resource

        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    _compiled("")  # loads what the first template needs
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_reply(**json.loads(line))), flush=True)


class _Progress:
    """What is rendered so far: its characters, and the spans of `{% generation %}` blocks."""

    size = 0
    spans: list[tuple[int, int]] = []  # noqa: RUF012


def _reply(template: str, variables: dict[str, Any]) -> dict[str, Any]:
    try:
        parts: list[str] = []
        _Progress.size, _Progress.spans = 0, []
        for part in _compiled(template).generate(**variables):
            parts.append(part)
            _Progress.size += len(part)
            if _Progress.size > MOST:
                return {"fault": f"the text becomes longer than {MOST:,} characters"}
        return {"text": "".join(parts), "spans": _Progress.spans}
    except MemoryError:
        return {"fault": f"it takes more memory than {MOST:,} characters need"}
    except Exception as error:
        return {"fault": " ".join(str(error).split())[:200] or type(error).__name__}


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    """A template in the environment that `transformers` gives to templates."""
    from datetime import datetime

    from jinja2 import TemplateError, ext, nodes
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        """`{% generation %}` marks what the assistant writes, which is what training learns."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

        def mark(self, caller: Callable[[], str]) -> str:
            text = caller()
            _Progress.spans.append((_Progress.size, _Progress.size + len(text)))
            return text

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def raise_exception(message: Any) -> None:
        raise TemplateError(str(message))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


if __name__ == "__main__":
    serve()
