"""Model Context Protocol (https://modelcontextprotocol.io): tools of other programs as ours, and
ours for other programs. Extra `agent`.

What a server says of its tools is its own claim, so all have effects and results that others wrote,
whatever annotations say. A server that dies, hangs, answers nonsense or has lost a tool gives an
error as the result of that call.
"""

import contextlib
import importlib
import logging
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import ModuleType
from typing import Any

from bedstone.agent.tools import Tool, Toolbox
from bedstone.errors import BedstoneError
from bedstone.reading import shown

SECONDS = 60.0  # that a call may take
START = 30.0  # that a server may take to be there
MOST = 200  # tools of a server


class McpServer:
    """A server whose tools an agent may call; a context.

    Args:
        place: a command that starts it and talks by standard input and output, an address of
            http, or a server of the library in this process.
        seconds: that a call may take.
        start: seconds that a first answer may take.

    Raises:
        BedstoneError: it can't be started or reached, or says nothing in time.
    """

    def __init__(self, place: Any, *, seconds: float = SECONDS, start: float = START) -> None:
        self.place, self.seconds, self.start = place, seconds, start
        self._stack = contextlib.ExitStack()
        self._open()

    def __enter__(self) -> "McpServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection, and the program if it was started here."""
        with contextlib.suppress(Exception):
            self._stack.close()

    def tools(self) -> list[Tool]:
        """The server's tools.

        Raises:
            BedstoneError: it can't list them, has too many, or one has no name.
        """
        try:
            found = self._portal.call(self._within, self.start, self._client.list_tools)
            listed = [(each.name, each.description, each.input_schema) for each in found.tools]
        except Exception as error:
            raise BedstoneError(f"tools: {self}: lists no tools: {_cause(error)}.") from error
        if len(listed) > MOST:
            raise BedstoneError(f"tools: {self}: has {len(listed)} tools; expected at most {MOST}.")
        return [
            Tool(name, " ".join((said or "").split())[:500], schema or {"type": "object"},
                 self._caller(name))
            for name, said, schema in listed
        ]  # fmt: skip

    def __str__(self) -> str:
        return self.place if isinstance(self.place, str) else type(self.place).__name__

    def _caller(self, name: str) -> Callable[..., str]:
        def call(**arguments: Any) -> str:
            try:
                found = self._portal.call(
                    self._within, self.seconds, self._client.call_tool, name, arguments
                )
            except Exception as error:
                raise BedstoneError(f"{self}: {name}: {_cause(error)}") from error
            text = "\n".join(_content(each) for each in found.content or ())
            if found.is_error:
                raise BedstoneError(text or f"{name} failed")
            if not text and found.structured_content is not None:
                return str(found.structured_content)
            return text

        return call

    def _open(self) -> None:
        library = _library()
        logging.getLogger("mcp").setLevel(logging.CRITICAL)  # its errors are told as ours
        place = self.place
        if isinstance(place, str) and not place.startswith(("http://", "https://")):
            try:
                words = shlex.split(place)
            except ValueError as error:
                raise BedstoneError(
                    f"tools: mcp={place}: has a quotation mark without its pair."
                ) from error
            if not words:
                raise BedstoneError("tools: mcp: names no command; expected mcp:COMMAND.")
            stdio = importlib.import_module("mcp.client.stdio")
            place = stdio.StdioServerParameters(command=words[0], args=words[1:])
        anyio = importlib.import_module("anyio.from_thread")
        try:
            self._portal = self._stack.enter_context(anyio.start_blocking_portal())
            client = library.Client(place, read_timeout_seconds=self.start)
            self._client = self._stack.enter_context(
                self._portal.wrap_async_context_manager(client)
            )
        except Exception as error:
            self.close()
            raise BedstoneError(
                f"tools: {self}: can't be started or reached: {_cause(error)}. Try it by itself."
            ) from error

    @staticmethod
    async def _within(seconds: float, function: Callable[..., Any], *words: Any) -> Any:
        anyio = importlib.import_module("anyio")
        with anyio.fail_after(seconds):
            return await function(*words)


def renamed(tools: Iterable[Tool], prefix: str) -> list[Tool]:
    """Tools under names of their own, so that two servers may have tools of one name."""
    return [replace(each, name=f"{prefix}_{each.name}") for each in tools]


def make_server(tools: Iterable[Tool], name: str = "bedstone") -> Any:
    """A server of the protocol with tools of ours.

    A call is checked as an agent's is; what goes wrong is a result marked as an error. Whether it
    is made is decided by who calls.
    """
    _library()
    types = importlib.import_module("mcp_types")
    low = importlib.import_module("mcp.server")
    threads = importlib.import_module("anyio.to_thread")
    box = Toolbox(tools)
    listed = [
        types.Tool(
            name=each.name,
            description=each.description,
            input_schema=dict(each.parameters),
            annotations=types.ToolAnnotations(
                read_only_hint=not each.effects, open_world_hint=each.untrusted
            ),
        )
        for each in box.tools.values()
    ]

    async def list_tools(context: Any, params: Any) -> Any:
        return types.ListToolsResult(tools=listed)

    async def call_tool(context: Any, params: Any) -> Any:
        given = params.arguments or {}
        text, good = box.fault(params.name, given), False
        if not text:
            text, good = await threads.run_sync(box.run, params.name, given)
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=text)], is_error=not good
        )

    return low.Server(name, on_list_tools=list_tools, on_call_tool=call_tool)


def serve_stdio(tools: Iterable[Tool]) -> None:
    """Serves tools by standard input and output until the other side ends."""
    server = make_server(tools)
    stdio = importlib.import_module("mcp.server.stdio")
    anyio = importlib.import_module("anyio")

    async def run() -> None:
        async with stdio.stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    print("bedstone: serving tools by standard input and output", file=sys.stderr, flush=True)
    anyio.run(run)


def _content(part: Any) -> str:
    """A part of a result as text; what is none is named."""
    text = getattr(part, "text", None)
    return text if isinstance(text, str) else f"({getattr(part, 'type', 'something')})"


def _cause(error: BaseException) -> str:
    """What went wrong, in a line."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return "it didn't answer in time"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return shown(text, 200)[1:-1] if text.isprintable() else type(error).__name__


def _library() -> ModuleType:
    try:
        return importlib.import_module("mcp")
    except ImportError as error:
        raise BedstoneError(
            "MCP needs the library mcp. Install it: pip install 'bedstone[agent]'."
        ) from error
