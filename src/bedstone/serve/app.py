"""The application: its routes, behind the gate, and how it begins and ends.

FastAPI and uvicorn are the extra `serve`; they are loaded where a server is made.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.serve.forms import read_form
from bedstone.serve.gate import FORM, Entrance, Gate
from bedstone.serve.kept import check_query
from bedstone.serve.metrics import text_of
from bedstone.serve.models import Models, Served, unknown_model
from bedstone.serve.openapi import describe
from bedstone.serve.playground import add_playground
from bedstone.serve.predictions import run_task
from bedstone.serve.routes import ROUTES, Route, Service, facts_of
from bedstone.serve.wire import (
    ApiError,
    Context,
    as_error,
    event_of,
    logged_error,
    parse,
    read_json,
)
from bedstone.serve.work import Busy

log = logging.getLogger("bedstone.serve")
BACKLOG = 2048  # connections that wait to be taken
GRACE = 5  # seconds in which clients are told that the server has ended before their answers
TASK_PATH = "/v1/tasks/{task}"
KEPT_PATH = "/v1/responses/{name}"
NEEDED = (
    "bedstone serve: needs fastapi and uvicorn, which aren't installed: pip install "
    "'bedstone[serve]'"
)


def build_app(service: Service, entrance: Entrance) -> Gate:
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

    models = service.models
    app = FastAPI(
        title="Bedstone", version=version("bedstone"), docs_url=None, redoc_url=None,
        openapi_url=None, redirect_slashes=False,
    )  # fmt: skip

    async def refuse(request: Request, error: Exception) -> Any:
        headers = {}
        if isinstance(error, HTTPException):
            said = {404: "There is no such route.", 405: "The method isn't allowed here."}
            headers = {k: v for k, v in (error.headers or {}).items() if k.lower() == "allow"}
            error = ApiError(error.status_code, said.get(error.status_code, "Refused."))
        found = as_error(error)
        return JSONResponse(found.body, found.status, headers={**headers, **found.headers})

    for kind in (HTTPException, ApiError, BedstoneError, Exception):
        app.add_exception_handler(kind, refuse)

    async def handle(request: Request, route: Route | None = None) -> Any:
        context: Context = request.scope["bedstone.context"]
        body = await _body(request, route)
        name = body.get("model")
        if name is None and route is not None and route.usual is not None:
            name = body["model"] = route.usual(service, body)
        if name is None:
            raise ApiError(400, "you must provide a model parameter", "model")
        entry = models.entries.get(name) if isinstance(name, str) else None
        if entry is not None and entry.served is not None:  # what is refused costs nothing more
            entry.served.scheduler.check_room()
        asks = None if route is None else parse(route.kind, body)
        served = await _opened(models, name, context)
        served.scheduler.check_room()
        if route is None:
            task = request.path_params["task"]
            found: Any = await run_task(
                served, task, body, context, service.limits, service.indexes
            )
        else:
            found = await route.does(service, served, asks, context)
        if isinstance(found, dict):
            return JSONResponse(found)
        return StreamingResponse(_guarded(found, context), media_type="text/event-stream")

    def post(route: Route) -> None:
        async def answer(request: Request) -> Response:
            return await handle(request, route)

        app.add_api_route(
            route.path, answer, methods=["POST"], name=route.path, response_model=None
        )

    for each in ROUTES:
        post(each)

    async def task(request: Request) -> Response:
        return await handle(request)

    app.add_api_route(TASK_PATH, task, methods=["POST"], response_model=None)

    async def listed(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_card(service, n) for n in models.entries]})

    async def one(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in models.entries:
            raise _unknown(models, name)
        return JSONResponse(_card(service, name))

    async def health(request: Request) -> Response:
        return Response(status_code=200)

    async def ready(request: Request) -> Response:
        found = await asyncio.to_thread(service.replicas.ready, models.ready)
        return JSONResponse({"ready": found}, 200 if found else 503)

    async def said_version(request: Request) -> Response:
        return JSONResponse({"version": version("bedstone")})

    async def metrics(request: Request) -> Response:
        figures = {name: each.metrics for name, each in models.entries.items()}
        text = await asyncio.to_thread(service.replicas.figures, text_of(figures))
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    description = describe(ROUTES, TASK_PATH, *facts_of(service, bool(entrance.keys)))

    async def described(request: Request) -> Response:
        return JSONResponse(description)

    async def kept(request: Request) -> Response:
        name, query = request.path_params["name"], request.query_params
        identity, held = request.scope["bedstone.context"].identity, service.conversations
        if request.url.path.endswith("/input_items"):
            return JSONResponse(held.items(identity, name, query))
        if request.method == "DELETE":
            check_query(query, ())
            return JSONResponse(held.delete(identity, name))
        found = held.get(identity, name).response
        check_query(query, ())
        return JSONResponse(found)

    app.add_api_route(KEPT_PATH, kept, methods=["GET", "DELETE"], response_model=None)
    app.add_api_route(f"{KEPT_PATH}/input_items", kept, methods=["GET"], response_model=None)
    plain = {"/v1/models": listed, "/v1/models/{name:path}": one, "/health": health}
    plain |= {"/ready": ready, "/version": said_version, "/metrics": metrics}
    plain |= {"/openapi.json": described}
    for path, does in plain.items():
        app.add_api_route(path, does, methods=["GET"], name=path, response_model=None)
    public = add_playground(app) if service.limits.playground else ()
    return Gate(app, entrance, public, models.check_room)


async def _body(request: Any, route: Route | None) -> dict[str, Any]:
    """The fields of a request, of JSON or of a form."""
    kind = request.headers.get("content-type", "")
    data = await request.body()
    if route is None or not route.form or kind.partition(";")[0].strip().lower() != FORM:
        return read_json(data)
    return await asyncio.to_thread(read_form, data, kind, route.kind)


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


def _card(service: Service, name: str) -> dict[str, Any]:
    entry = service.models.entries[name]
    known = {"id": name, "object": "model", "created": 0, "owned_by": "bedstone"}
    indexes = [each.name for each in service.indexes if each.model == name]
    return {**known, **entry.known, **({"indexes": indexes} if indexes else {})}


async def _guarded(events: AsyncIterator[str], context: Context) -> AsyncIterator[str]:
    """A stream, in which an error is an event, the last one."""
    try:
        async for each in events:
            yield each
    except Exception as error:
        yield event_of(logged_error(error, context.number).body)


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        BedstoneError: it can't be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # without its protocol named, asyncio leaves TCP_NODELAY off: 40 ms of waiting for each answer
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        raise BedstoneError(
            f"--host {host} --port {port}: can't be listened on ({error}). Give others."
        ) from None
    return found


def server_of(service: Service, entrance: Entrance) -> Any:
    """The uvicorn server of an application, to be run on a socket.

    Raises:
        BedstoneError: FastAPI or uvicorn isn't installed.
    """
    app, settings = build_app(service, entrance), service.limits
    try:
        import uvicorn
        from uvicorn.protocols.http.h11_impl import H11Protocol
    except ImportError as error:
        raise BedstoneError(NEEDED) from error

    class Timed(H11Protocol):
        """Closes a connection whose next request's head isn't whole in time."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._timer = self.loop.call_later(settings.body_seconds, self._late)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            waits = self.conn.their_state is self.conn.our_state  # both idle: no request is read
            if waits and self._timer is None:
                self._timer = self.loop.call_later(settings.body_seconds, self._late)
            elif not waits:
                self._stop()

        def connection_lost(self, reason: Exception | None) -> None:
            self._stop()
            super().connection_lost(reason)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _late(self) -> None:
            self.transport.close()

    class Server(uvicorn.Server):
        """Lets its models finish, or tell why they don't, while connections are waited for."""

        async def shutdown(self, sockets: Any = None) -> None:
            service.models.closing = True  # from here on nothing new is begun
            ending = asyncio.ensure_future(asyncio.to_thread(service.models.close))
            await super().shutdown(sockets)
            await ending

    logging.getLogger("uvicorn.access").disabled = True  # the gate says what came, without queries
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, proxy_headers=False,
        ws="none", lifespan="off", timeout_keep_alive=30, h11_max_incomplete_event_size=64 << 10,
        timeout_graceful_shutdown=int(settings.drain_seconds) + GRACE, http=Timed,
    )  # fmt: skip
    return Server(config)


def run(service: Service, entrance: Entrance, listener: socket.socket) -> None:
    """Serves until SIGTERM or SIGINT; what is at work then ends within the settings' time.

    Raises:
        BedstoneError: FastAPI or uvicorn isn't installed.
    """
    host, port = listener.getsockname()[:2]
    server = server_of(service, entrance)
    listener.listen(BACKLOG)
    log.info("serving on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    with contextlib.closing(listener):
        try:
            server.run(sockets=[listener])
        finally:
            service.models.close()
