"""The routes of a server that models answer: what each takes, and who answers it.

`serve.app` serves them, `serve.openapi` describes them; both go by this one table.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bedstone.serve.chat import ChatRequest, chat
from bedstone.serve.completions import CompletionRequest, complete
from bedstone.serve.images import EditRequest, ImageRequest, draw, edit, vary
from bedstone.serve.indexes import Indexes, SearchRequest, found_rows
from bedstone.serve.kept import Conversations
from bedstone.serve.models import (
    EMBED,
    LONGEST,
    PICTURES,
    Models,
    Served,
    ServeSettings,
)
from bedstone.serve.moderations import ModerationRequest, moderate, moderating
from bedstone.serve.openapi import Facts
from bedstone.serve.predictions import (
    OVER_INDEX,
    Budget,
    EmbeddingRequest,
    called,
    embed,
)
from bedstone.serve.responses import ResponsesRequest, respond
from bedstone.serve.wire import ApiError, Context
from bedstone.tasks.moderation.policy import Policy
from bedstone.tasks.pipeline import PROMPTED, TASKS

Known = Mapping[str, Any]  # what `/v1/models` says of a model


class Alone:
    """The processes that a server answers for: itself alone."""

    def ready(self, own: bool) -> bool:
        """Whether all are ready, of which this one is or isn't."""
        return own

    def figures(self, own: str) -> str:
        """The figures of all, in Prometheus' text format."""
        return own


@dataclass(eq=False)
class Service:
    """All that a server has.

    Attributes:
        policy: of moderation, where a request gives none.
        conversations: that responses can go on from.
        replicas: the processes that this one answers for.
    """

    models: Models
    indexes: Indexes = field(default_factory=Indexes)
    policy: Policy | None = None
    conversations: Conversations = field(default_factory=Conversations)
    replicas: Alone = field(default_factory=Alone)

    @property
    def limits(self) -> ServeSettings:
        return self.models.settings

    @property
    def pixels(self) -> int:
        """Of all images of a request, at most."""
        return int(self.limits.max_pixels * 1e6)


@dataclass(frozen=True)
class Route:
    """A route whose requests have a model.

    Attributes:
        kind: the class of its requests.
        what: it does, in words.
        does: gives an answer, or the events of a stream.
        gives: what each answer holds, by the kind of JSON.
        streams: whether an answer may be a stream.
        form: whether a request may be a form with files.
        able: whether a model can answer, by what `/v1/models` says of it.
        usual: the model of a request that names none; without it, each has to.
    """

    path: str
    kind: type[Any]
    what: str
    does: Callable[[Service, Served, Any, Context], Awaitable[Any]]
    gives: dict[str, str]
    able: Callable[[Known], bool]
    streams: bool = False
    form: bool = False
    usual: Callable[[Service, Any], str] | None = None


def facts_of(service: Service, keyed: bool) -> tuple[dict[str, list[str]], Facts]:
    """Names of models that can answer each route, and what they bear; models have been opened."""
    entries = service.models.entries
    able = {
        route.path: [name for name, each in entries.items() if route.able(each.known)]
        for route in ROUTES
    }
    able["/v1/search"] = [each.model for each in service.indexes]
    open_ = {name: each.served for name, each in entries.items() if each.served}
    sizes = {
        name: int(each.model.config.vocab_size)
        if each.capacity
        else each.model.tokenizer.vocab_size
        for name, each in open_.items()
        if each.model.tokenizer
    }
    ids = {
        path: max((sizes.get(name, 0) for name in names), default=0) or LONGEST
        for path, names in able.items()
    }
    tasks = {task for each in entries.values() for task in each.known.get("tasks", ())}
    tasks |= set(PROMPTED) if able["/v1/completions"] else set()
    tasks -= set() if service.indexes else set(OVER_INDEX)
    facts = Facts(
        max((each.capacity for each in open_.values()), default=0) or LONGEST, ids,
        [each.name for each in service.indexes], list(entries),
        [task for task in TASKS if task in tasks], keyed,
    )  # fmt: skip
    return able, facts


async def _chat(service: Service, served: Served, request: Any, context: Context) -> Any:
    return await chat(served, request, context, service.pixels)


async def _complete(service: Service, served: Served, request: Any, context: Context) -> Any:
    return await complete(served, request, context, service.limits.max_inputs)


async def _respond(service: Service, served: Served, request: Any, context: Context) -> Any:
    return await respond(served, request, context, service.pixels, service.conversations)


async def _embed(service: Service, served: Served, request: Any, context: Context) -> Any:
    return await embed(served, request, context, service.limits)


async def _moderate(service: Service, served: Served, request: Any, context: Context) -> Any:
    return await moderate(served, request, context, service.limits, service.policy)


async def _search(service: Service, served: Served, request: Any, context: Context) -> Any:
    searched = service.indexes.find(request.index, served.name)
    given, options = request.query, {}
    if request.image is not None:
        given = Budget(service.pixels).image(request.image, "image")
        options = {PICTURES: True}
    elif len(given) > service.limits.max_queue_tokens:
        raise ApiError(413, "query: is too long.", "query")
    (vector,) = await called(served, EMBED, [given], options, context, 64)
    return await found_rows(searched, request, vector)


def _index_model(service: Service, body: Any) -> str:
    if not service.indexes:
        raise ApiError(404, "This server has no index.", code="index_not_found")
    return service.indexes.find(body.get("index")).model


async def _draw(service: Service, served: Served, request: Any, context: Context) -> Any:
    return await draw(served, request, context, service.limits)


async def _edit(service: Service, served: Served, request: Any, context: Context) -> Any:
    return await edit(served, request, context, service.limits)


async def _vary(service: Service, served: Served, request: Any, context: Context) -> Any:
    return await vary(served, request, context, service.limits)


def _writes(known: Known) -> bool:
    return "text-generation" in known.get("tasks", ())


def _talks(known: Known) -> bool:
    return _writes(known) or "image-text-to-text" in known.get("tasks", ())


def _gives(kind: str) -> Callable[[Known], bool]:
    return lambda known: kind in known.get("architecture", {}).get("output_modalities", ())


_WRITTEN = {"id": "string", "object": "string", "created": "integer", "model": "string",
            "choices": "array", "usage": "object"}  # fmt: skip
_IMAGES = {"created": "integer", "data": "array"}
ROUTES = (
    Route(
        "/v1/chat/completions", ChatRequest, "Answers a conversation.", _chat, _WRITTEN,
        _talks, streams=True,
    ),
    Route(
        "/v1/completions", CompletionRequest, "Continues texts.", _complete, _WRITTEN, _writes,
        streams=True,
    ),
    Route(
        "/v1/responses", ResponsesRequest, "Answers a conversation of items.", _respond,
        {"id": "string", "object": "string", "status": "string", "output": "array"}, _talks,
        streams=True,
    ),
    Route(
        "/v1/embeddings", EmbeddingRequest, "Gives vectors of texts.", _embed,
        {"object": "string", "data": "array", "model": "string", "usage": "object"},
        _gives("embeddings"),
    ),
    Route(
        "/v1/moderations", ModerationRequest, "Judges texts and images by a policy.", _moderate,
        {"id": "string", "model": "string", "results": "array"},
        lambda known: "moderation" in known.get("tasks", ()),
        usual=lambda service, body: moderating(service.models),
    ),
    Route(
        "/v1/search", SearchRequest, "Searches an index of images.", _search,
        {"object": "string", "data": "array", "index": "string"}, lambda known: False,
        usual=_index_model,
    ),
    Route("/v1/images/generations", ImageRequest, "Draws images.", _draw, _IMAGES,
          _gives("image")),
    Route("/v1/images/edits", EditRequest, "Draws images from one.", _edit, _IMAGES,
          _gives("image"), form=True),
    Route("/v1/images/variations", EditRequest, "Draws images like one.", _vary, _IMAGES,
          _gives("image"), form=True),
)  # fmt: skip
