"""The application: its routes, behind the gate, and how it begins and ends.

FastAPI and uvicorn are the extra `serve`; they are loaded where a server is made.
"""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.serve.chat import ChatRequest, chat
from bedstone.serve.completions import CompletionRequest, complete
from bedstone.serve.gate import Entrance, Gate
from bedstone.serve.metrics import text_of
from bedstone.serve.models import Models, Served, unknown_model
from bedstone.serve.playground import add_playground
from bedstone.serve.predictions import (
    EmbeddingRequest,
    ImageRequest,
    draw,
    embed,
    run_task,
)
from bedstone.serve.wire import ApiError, Context, Failure, as_error, parse, read_json
from bedstone.serve.work import Busy

log = logging.getLogger("bedstone.serve")
BACKLOG = 2048  # connections that wait to be taken
NEEDED = (
    "bedstone serve: needs fastapi and uvicorn, which aren't installed: pip install "
    "'bedstone[serve]'"
)
Handler = Callable[[Served, dict[str, Any], Context], Awaitable[Any]]


def build_app(models: Models, entrance: Entrance) -> Gate:
    """The application of a server, as uvicorn takes it.

    Raises:
        BedstoneError: FastAPI isn't installed.
    """
    try:
        from fastapi import FastAPI, Request
        from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
        from starlette.exceptions import HTTPException
    except ImportError as error:
        raise BedstoneError(NEEDED) from error

    limits = models.settings
    app = FastAPI(
        title="Bedstone", version=version("bedstone"), docs_url=None, redoc_url=None,
        openapi_url=None, redirect_slashes=False,
    )  # fmt: skip

    def answer(error: ApiError) -> Any:
        return JSONResponse(error.body, error.status, headers=error.headers)

    async def refuse(request: Request, error: Exception) -> Any:
        if isinstance(error, HTTPException):
            said = {404: "There is no such route.", 405: "The method isn't allowed here."}
            error = ApiError(error.status_code, said.get(error.status_code, "Refused."))
        return answer(as_error(error))

    for kind in (HTTPException, ApiError, BedstoneError, Exception):
        app.add_exception_handler(kind, refuse)

    async def handle(request: Request, does: Handler) -> Any:
        context: Context = request.scope["bedstone.context"]
        body = read_json(await request.body())
        name = body.get("model")
        if name is None:
            raise ApiError(400, "you must provide a model parameter", "model")
        served = await _opened(models, name, context)
        served.scheduler.check_room()
        found = await does(served, body, context)
        if isinstance(found, dict):
            return JSONResponse(found)
        return StreamingResponse(_guarded(found, context), media_type="text/event-stream")

    def post(path: str, does: Handler) -> None:
        async def route(request: Request) -> Response:
            return await handle(request, does)

        app.add_api_route(path, route, methods=["POST"], name=path, response_model=None)

    pixels = int(limits.max_pixels * 1e6)
    post("/v1/chat/completions", lambda s, body, c: chat(s, parse(ChatRequest, body), c, pixels))
    post(
        "/v1/completions",
        lambda s, body, c: complete(s, parse(CompletionRequest, body), c, limits.max_inputs),
    )
    post("/v1/embeddings", lambda s, body, c: embed(s, parse(EmbeddingRequest, body), c, limits))
    post("/v1/images/generations", lambda s, body, c: draw(s, parse(ImageRequest, body), c, limits))

    async def task(request: Request) -> Response:
        name = request.path_params["task"]
        return await handle(request, lambda s, body, c: run_task(s, name, body, c, limits))

    app.add_api_route("/v1/tasks/{task}", task, methods=["POST"], response_model=None)

    async def listed(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_card(models, n) for n in models.entries]})

    async def one(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in models.entries:
            raise _unknown(models, name)
        return JSONResponse(_card(models, name))

    async def health(request: Request) -> Response:
        return Response(status_code=200)

    async def ready(request: Request) -> Response:
        return JSONResponse({"ready": models.ready}, 200 if models.ready else 503)

    async def said_version(request: Request) -> Response:
        return JSONResponse({"version": version("bedstone")})

    async def metrics(request: Request) -> Response:
        figures = {name: each.metrics for name, each in models.entries.items()}
        return PlainTextResponse(text_of(figures), media_type="text/plain; version=0.0.4")

    plain = {"/v1/models": listed, "/v1/models/{name:path}": one, "/health": health}
    plain |= {"/ready": ready, "/version": said_version, "/metrics": metrics}
    for path, does in plain.items():
        app.add_api_route(path, does, methods=["GET"], name=path, response_model=None)
    return Gate(app, entrance, add_playground(app) if limits.playground else ())


async def _opened(models: Models, name: Any, context: Context) -> Served:
    """A model, kept open until the request is over."""
    if not isinstance(name, str) or name not in models.entries:
        raise _unknown(models, name)
    use = models.use(name)
    opening = asyncio.ensure_future(asyncio.to_thread(use.__enter__))
    try:
        served = await asyncio.shield(opening)
    except asyncio.CancelledError:

        def leave(done: asyncio.Future[Served]) -> None:
            if not done.cancelled() and done.exception() is None:
                use.__exit__(None, None, None)

        opening.add_done_callback(leave)
        raise
    except Busy:
        raise
    except BedstoneError as error:
        log.error("%s: can't be opened: %s", name, error)
        raise ApiError(503, f"The model {name!r} can't be opened now.", "model") from None
    context.cleanup.callback(use.__exit__, None, None, None)
    return served


def _unknown(models: Models, name: Any) -> ApiError:
    text = str(name)[:100]
    return ApiError(404, unknown_model(text, list(models.entries)), "model", "model_not_found")


def _card(models: Models, name: str) -> dict[str, Any]:
    entry = models.entries[name]
    known = {"id": name, "object": "model", "created": 0, "owned_by": "bedstone"}
    return {**known, **entry.known}


async def _guarded(events: AsyncIterator[str], context: Context) -> AsyncIterator[str]:
    """A stream, in which an error is an event, the last one."""
    try:
        async for each in events:
            yield each
    except Exception as error:
        cause = error.args[0] if isinstance(error, Failure) else error
        if as_error(error).status == 500:
            log.error("%s: failed", context.number, exc_info=cause)
        yield f"data: {json.dumps(as_error(error).body, ensure_ascii=False)}\n\n"


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        BedstoneError: it can't be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        raise BedstoneError(
            f"--host {host} --port {port}: can't be listened on ({error}). Give others."
        ) from None
    return found


def server_of(models: Models, entrance: Entrance) -> Any:
    """The uvicorn server of an application, to be run on a socket.

    Raises:
        BedstoneError: FastAPI or uvicorn isn't installed.
    """
    app = build_app(models, entrance)
    try:
        import uvicorn
    except ImportError as error:
        raise BedstoneError(NEEDED) from error
    logging.getLogger("uvicorn.access").disabled = True  # the gate says what came, without queries
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, proxy_headers=False,
        ws="none", lifespan="off", timeout_keep_alive=30, h11_max_incomplete_event_size=64 << 10,
        timeout_graceful_shutdown=max(1, int(models.settings.drain_seconds)),
    )  # fmt: skip
    return uvicorn.Server(config)


def run(models: Models, entrance: Entrance, listener: socket.socket) -> None:
    """Serves until SIGTERM or SIGINT; what is at work then ends within the settings' time.

    Raises:
        BedstoneError: FastAPI or uvicorn isn't installed.
    """
    host, port = listener.getsockname()[:2]
    server = server_of(models, entrance)
    listener.listen(BACKLOG)
    log.info("serving on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    with contextlib.closing(listener):
        try:
            server.run(sockets=[listener])
        finally:
            models.close()
