"""`/openapi.json`: what the routes of a server take and give, as OpenAPI 3.1 describes it.

Bodies are described by the classes that read them, so a bound can't be said in two ways; fields
that hold more than a value are described here. Every route may give each error that the layers
before it give.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Protocol

from bedstone.settings import Number, OneOf, OrNone, Whole, bound_of

Schema = dict[str, Any]
KINDS: dict[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean"}
ERRORS = {
    400: "What was sent can't be read, or a field isn't taken; it is named.",
    401: "The key is missing or wrong.",
    403: "A server without keys refuses requests of other sites.",
    404: "There is no such model, task or index.",
    408: "Sending the body took too long.",
    413: "The body, or what it holds, is too large.",
    415: "The content type isn't taken, or the body is compressed.",
    421: "The Host header names no host of this server.",
    429: "Too much waits; Retry-After says when to come again.",
    500: "The server failed.",
    503: "The server is ending, or the model can't be opened now.",
}
_TEXT: Schema = {"type": "string"}
_SAID: Schema = {"type": "string", "pattern": r"\S"}
_OBJECT: Schema = {"type": "object"}
_OBJECTS: Schema = {"type": "array", "items": _OBJECT}
_NONE: Schema = {"type": "null"}
# The smallest picture: a grey pixel as PNG.
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAgg"
    "CBd81ytgAAAABJRU5ErkJggg=="
)
_DATA_URL: Schema = {"type": "string", "pattern": "^data:[^,]*;base64,", "examples": [PIXEL]}


def _object(fields: Schema, *needed: str, closed: bool = False) -> Schema:
    found: Schema = {"type": "object", "properties": fields, "required": list(needed)}
    return {**found, "additionalProperties": False} if closed else found


def _list(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    found: Schema = {"type": "array", "items": items, "minItems": least}
    return found if most is None else {**found, "maxItems": most}


_PARTS = _list(_object({"type": {"const": "text"}, "text": _TEXT}, "type", "text"))
_MESSAGE: Schema = {
    "anyOf": [
        _object(
            {"role": {"enum": ["system", "user", "assistant"]},
             "content": {"anyOf": [_TEXT, _PARTS]}}, "role", "content",
        ),
        _object(
            {"role": {"const": "tool"}, "tool_call_id": {"type": "string", "minLength": 1},
             "content": {"anyOf": [_TEXT, _PARTS]}}, "role", "tool_call_id", "content",
        ),
        _object(
            {"role": {"const": "assistant"}, "content": _NONE, "tool_calls": _OBJECTS},
            "role", "tool_calls",
        ),
    ]
}  # fmt: skip
_FUNCTION = _object(
    {"name": {"type": "string", "minLength": 1, "maxLength": 64}, "description": _TEXT,
     "parameters": _OBJECT}, "name",
)  # fmt: skip
_SCHEMA = _object({"name": _TEXT, "schema": _OBJECT}, "schema")
_CATEGORY = _object(
    {"sentences": {"anyOf": [_SAID, _list(_SAID, 1)]},
     "threshold": {"type": "number", "minimum": 0, "maximum": 1},
     "action": {"enum": ["allow", "flag", "block"]}}, "sentences",
)  # fmt: skip
_POLICY = _object({
    "categories": {"type": "object", "minProperties": 1, "additionalProperties": _CATEGORY,
                   "propertyNames": _SAID},
}, "categories")  # fmt: skip
_PROMPT: Schema = {"anyOf": [{**_TEXT, "maxLength": 4000}, {"type": "integer"}]}
# Fields that hold more than one value, by their names.
FIELDS: dict[str, Schema] = {
    "messages": _list(_MESSAGE, 1, 2048),
    "stop": {"anyOf": [{**_TEXT, "minLength": 1, "maxLength": 1000},
                       _list({**_TEXT, "minLength": 1, "maxLength": 1000}, 0, 4)]},
    "stream_options": _object({"include_usage": {"type": "boolean"},
                               "include_obfuscation": {"type": "boolean"}}, closed=True),
    "logit_bias": {
        "type": "object", "maxProperties": 300, "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    },
    "tools": _list(_object({"type": {"const": "function"}, "function": _FUNCTION},
                           "type", "function"), 0, 128),
    "tool_choice": {"anyOf": [
        {"enum": ["none", "auto", "required"]},
        _object({"type": {"const": "function"}, "function": _object({"name": _TEXT}, "name")},
                "type", "function")]},
    "response_format": {"anyOf": [
        _object({"type": {"enum": ["text", "json_object"]}}, "type"),
        _object({"type": {"const": "json_schema"}, "json_schema": _SCHEMA},
                "type", "json_schema")]},
    "prediction": _object({"type": {"const": "content"}, "content": {"anyOf": [_TEXT, _PARTS]}},
                          "type", "content"),
    "modalities": {"const": ["text"]},
    "policy": _POLICY,
    "image": _DATA_URL,
    "images": _list(_object({"image_url": _DATA_URL}, "image_url"), 1, 1),
    "mask": _DATA_URL,
    "metadata": _OBJECT,
    "text": _object({"format": {"anyOf": [
        _object({"type": {"enum": ["text", "json_object"]}}, "type"),
        _object({"type": {"const": "json_schema"}, "schema": _OBJECT}, "type", "schema")]},
        "verbosity": _TEXT}, closed=True),
    "include": _list({"const": "message.output_text.logprobs"}),
    "store": {"const": False},
    "stream": {"type": "boolean"},
}  # fmt: skip
# The same of a class alone, also where a bound says too little.
OWN: dict[tuple[str, str], Schema] = {
    ("ChatRequest", "chat_template_kwargs"): {"type": "object", "maxProperties": 0},
    ("ModerationRequest", "input"): {"anyOf": [
        _SAID, _list(_SAID, 1),
        _list(_object({"type": {"const": "text"}, "text": _SAID}, "type", "text"), 1)]},
    ("ResponsesRequest", "input"): {"anyOf": [_SAID, _list(_object(
        {"type": {"const": "message"}, "role": {"enum": ["user", "assistant", "system"]},
         "content": _TEXT}, "role", "content"), 1, 2048)]},
    ("ResponsesRequest", "tools"): _list(
        {**_FUNCTION, "properties": {**_FUNCTION["properties"], "type": {"const": "function"}},
         "required": ["type", "name"]}, 0, 128),
    ("ResponsesRequest", "tool_choice"): {"anyOf": [
        {"enum": ["none", "auto", "required"]},
        _object({"type": {"const": "function"}, "name": _TEXT}, "type", "name")]},
    ("ResponsesRequest", "stream_options"): _object(
        {"include_obfuscation": {"type": "boolean"}}, closed=True),
    ("ResponsesRequest", "store"): {"type": "boolean"},
    ("ResponsesRequest", "background"): {"const": False},
    ("ResponsesRequest", "truncation"): {"const": "disabled"},
    ("ImageRequest", "style"): _NONE,
    ("EditRequest", "style"): _NONE,
    ("EditRequest", "input_fidelity"): _NONE,
    ("SearchRequest", "query"): _SAID,
    ("SearchRequest", "where"): {**_TEXT, "maxLength": 1000},
    **{(kind, name): held for kind in ("ImageRequest", "EditRequest") for name, held in (
        ("prompt", _PROMPT), ("stream", {"const": False}), ("partial_images", {"const": 0}),
        ("response_format", {"const": "b64_json"}),
        ("size", {"type": "string", "pattern": "^(auto|[1-9][0-9]{0,2}x[1-9][0-9]{0,2})$"}))},
}  # fmt: skip


def _where(name: str, held: Schema, then: Schema) -> Schema:
    """A rule: where a field is such, the whole is so."""
    return {"if": _object({name: held}, name), "then": then}


_STREAMED = _where("stream_options", _OBJECT, _object({"stream": {"const": True}}, "stream"))
_CALLED = _where(
    "tool_choice", {"anyOf": [{"const": "required"}, _OBJECT]},
    _object({"tools": {"type": "array", "minItems": 1}}, "tools"),
)  # fmt: skip
_PACKED = _where(
    "output_compression", {"type": "integer", "maximum": 99},
    _object({"output_format": {"enum": ["jpeg", "webp"]}}, "output_format"),
)  # fmt: skip
RULES: dict[str, list[Schema]] = {
    "ChatRequest": [
        _STREAMED, _CALLED,
        _where("top_logprobs", {"type": "integer"},
               _object({"logprobs": {"const": True}}, "logprobs")),
    ],
    "CompletionRequest": [_STREAMED],
    "ResponsesRequest": [_CALLED],
    "ImageRequest": [_PACKED],
    "EditRequest": [_PACKED],
    "SearchRequest": [{"anyOf": [
        _object({"query": _SAID, "image": _NONE}, "query"),
        _object({"image": _DATA_URL, "query": _NONE}, "image")]}],
}  # fmt: skip
NEEDED = {
    "ChatRequest": ["messages"], "CompletionRequest": ["prompt"], "ResponsesRequest": ["input"],
    "EmbeddingRequest": ["input"], "ModerationRequest": ["input"],
}  # fmt: skip
_HELLO = {"max_tokens": 8, "temperature": 0.5, "seed": 1}
EXAMPLES: dict[str, Schema] = {
    "ChatRequest": {"messages": [{"role": "user", "content": "Hello."}], **_HELLO},
    "CompletionRequest": {"prompt": "Once upon", **_HELLO},
    "ResponsesRequest": {"input": "Hello.", "max_output_tokens": 8},
    "EmbeddingRequest": {"input": ["A red cat."]},
    "ModerationRequest": {"input": "You fool.", "policy": {
        "categories": {"insult": {"sentences": ["a text that insults"], "threshold": 0.6}}}},
    "SearchRequest": {"query": "a red circle", "count": 5},
    "ImageRequest": {"prompt": "a red circle", "steps": 2},
    "EditRequest": {"prompt": "a red circle", "image": PIXEL, "steps": 2},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a server's models bear.

    Attributes:
        tokens: of a prompt with its continuation, at most.
        vocabulary: ids of tokens, by the path of a route that takes them.
        indexes: names of indexes.
        models: of all models.
        tasks: names of all tasks.
        keyed: whether a key is needed.
    """

    tokens: int
    vocabulary: Mapping[str, int]
    indexes: Sequence[str]
    models: Sequence[str]
    tasks: Sequence[str]
    keyed: bool


class Described(Protocol):
    """What is said of a route (`serve.routes.Route`)."""

    @property
    def path(self) -> str: ...
    @property
    def kind(self) -> type[Any]: ...
    @property
    def what(self) -> str: ...
    @property
    def gives(self) -> Mapping[str, str]: ...
    @property
    def streams(self) -> bool: ...
    @property
    def form(self) -> bool: ...
    @property
    def usual(self) -> Any: ...


def describe(
    routes: Sequence[Described], task_path: str, able: Mapping[str, Sequence[str]], facts: Facts
) -> Schema:
    """A server's routes as an OpenAPI document.

    Args:
        task_path: of the route of tasks.
        able: names of models that can answer, by the path of the route.
    """
    paths: dict[str, Any] = {}
    for each in routes:
        models = able[each.path]
        body = _body(each, models, facts)
        example = dict(EXAMPLES[each.kind.__name__])
        if models and each.usual is None:
            example["model"] = models[0]
        if each.path.endswith("/variations"):
            example.pop("prompt")
        content: Schema = {"application/json": {"schema": body, "example": example}}
        if each.form:
            content["multipart/form-data"] = {"schema": _form(body)}
        given = {"application/json": {"schema": _answer(each.gives)}}
        if each.streams:
            event = _object({"data": _TEXT, "event": _TEXT}, "data")
            given["text/event-stream"] = {"schema": event}
        paths[each.path] = {"post": _operation(each.what, given, content)}
    paths[task_path] = {"post": _task(facts)}
    paths |= _plain(facts.models)
    keys = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Bedstone", "version": version("bedstone")},
        "paths": paths,
        "components": {
            "schemas": {"Error": _error()}, **({"securitySchemes": keys} if facts.keyed else {})
        },
        **({"security": [{"key": []}]} if facts.keyed else {}),
    }  # fmt: skip


def _task(facts: Facts) -> Schema:
    """The operation of all tasks; what each takes, `bedstone.pipeline` says."""
    takes = _object({"model": _one_of(facts.models), "inputs": {}, "parameters": _OBJECT},
                    "model", "inputs")  # fmt: skip
    answer = _answer({"object": "string", "created": "integer", "model": "string",
                      "task": "string"})  # fmt: skip
    answer["required"] = [*answer["required"], "results"]
    named = {"name": "task", "in": "path", "required": True, "schema": _one_of(facts.tasks)}
    example = {"model": facts.models[0] if facts.models else "", "inputs": "A red cat."}
    found = _operation(
        "Does a task, by the arguments of bedstone.pipeline.",
        {"application/json": {"schema": answer}},
        {"application/json": {"schema": takes, "example": example}},
    )
    return {**found, "parameters": [named]}


def _body(route: Described, models: Sequence[str], facts: Facts) -> Schema:
    """The schema of a request's body; null stands for what isn't given."""
    kind = route.kind
    hints, name = typing.get_type_hints(kind), kind.__name__
    most = facts.vocabulary.get(route.path, 1) - 1
    ids: Schema = _list({"type": "integer", "minimum": 0, "maximum": most}, 1)
    least = {**_SAID, "minLength": 1}
    texts: Schema = {"anyOf": [least, _list(least, 1), ids, _list(ids, 1)]}
    of_server: dict[str, Schema] = {
        **{each: {"type": "integer", "minimum": 1, "maximum": facts.tokens}
           for each in ("max_tokens", "max_completion_tokens", "max_output_tokens")},
        "index": _one_of(facts.indexes),
    }  # fmt: skip
    if name in ("CompletionRequest", "EmbeddingRequest"):
        of_server |= {"prompt": texts, "input": texts}
    if name == "CompletionRequest":
        of_server["max_tokens"] = {**of_server["max_tokens"], "minimum": 0}
    needed = NEEDED.get(name, [])
    fields: dict[str, Any] = {}
    for each in dataclasses.fields(kind):
        found = of_server.get(each.name) or OWN.get((name, each.name)) or FIELDS.get(each.name)
        found = found or _value(hints[each.name], bound_of(each))
        fields[each.name] = found if each.name in needed else _or_null(found)
    fields["model"] = _one_of(models) if route.usual is None else _or_null(_one_of(models))
    if route.path.endswith("/variations"):
        fields |= {"prompt": _NONE, "mask": _NONE}
    rules = RULES.get(name)
    return {
        **_object(fields, *(["model"] if route.usual is None else []), *needed, closed=True),
        **({"allOf": rules} if rules else {}),
    }


def _one_of(names: Sequence[str]) -> Schema:
    return {"enum": list(names)} if names else _TEXT


def _value(hint: Any, bound: Any) -> Schema:
    """The schema of a field that holds one value."""
    inner = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    found: Schema = {}
    kinds = [KINDS[each] for each in inner if each in KINDS]
    if len(kinds) == 1:
        found["type"] = kinds[0]
    bound = bound.inner if isinstance(bound, OrNone) else bound
    if isinstance(bound, Whole):
        found |= {"minimum": bound.least} | ({} if bound.most is None else {"maximum": bound.most})
    elif isinstance(bound, Number):
        found["exclusiveMinimum" if bound.open_least else "minimum"] = bound.least
        if bound.most < math.inf:
            found["exclusiveMaximum" if bound.open_most else "maximum"] = bound.most
    elif isinstance(bound, OneOf):
        found = {"enum": list(bound.choices)}
    return found


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]} if schema else {}


def _form(body: Schema) -> Schema:
    """A body as a form: images are files."""
    fields = dict(body["properties"])
    for name in ("image", "mask"):
        fields[name] = {"type": "string", "contentMediaType": "application/octet-stream"}
    fields.pop("images")
    return {**body, "properties": fields, "required": [*body["required"], "image"]}


def _answer(gives: Mapping[str, str]) -> Schema:
    return {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in gives.items()},
        "required": list(gives),
    }


def _error() -> Schema:
    fields = {
        "message": _TEXT, "type": _TEXT, "param": {"type": ["string", "null"]},
        "code": {"type": ["string", "null"]},
    }  # fmt: skip
    inner = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "object", "properties": {"error": inner}, "required": ["error"]}


def _operation(what: str, gives: Schema, takes: Schema | None = None) -> Schema:
    found: Schema = {
        "summary": what,
        "responses": {"200": {"description": "The answer.", "content": gives}, **_errors(ERRORS)},
    }
    if takes is not None:
        found["requestBody"] = {"required": True, "content": takes}
    return found


def _errors(statuses: Iterable[int]) -> Schema:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    retry = {"retry-after": {"schema": {"type": "integer", "minimum": 1}}}
    return {
        str(each): {
            "description": ERRORS[each], "content": content,
            **({"headers": retry} if each == 429 else {}),
        }
        for each in statuses
    }  # fmt: skip


def _plain(models: Sequence[str]) -> Schema:
    """Routes without a body."""
    listed = {"application/json": {"schema": _answer({"object": "string", "data": "array"})}}
    card = {"application/json": {"schema": _answer({"id": "string", "object": "string"})}}
    stands = {"application/json": {"schema": _answer({"ready": "boolean"})}}
    named = {"name": "name", "in": "path", "required": True, "schema": _one_of(models)}
    text = {"text/plain": {"schema": _TEXT}}
    version_ = {"application/json": {"schema": _answer({"version": "string"})}}
    ready = _operation("Whether all models are ready.", stands)
    ready["responses"]["503"] = {"description": "Not yet, or no longer.", "content": stands}
    kept = {"name": "name", "in": "path", "required": True, "schema": {**_TEXT, "minLength": 1}}
    pages: dict[str, Schema] = {
        "after": {**_TEXT, "minLength": 1}, "order": {"enum": ["asc", "desc"]},
        "limit": {"type": "integer", "minimum": 1, "maximum": 100},
    }  # fmt: skip
    queries = [{"name": each, "in": "query", "schema": held} for each, held in pages.items()]
    response = {"application/json": {"schema": _answer({"id": "string", "object": "string"})}}
    for each in (ready, health := _operation("Whether the server lives.", {})):
        each["security"] = []
    return {
        "/v1/models": {"get": _operation("Lists the models.", listed)},
        "/v1/models/{name}": {"get": {**_operation("One model.", card), "parameters": [named]}},
        "/v1/responses/{name}": {
            "get": {**_operation("A response that is kept.", response), "parameters": [kept]},
            "delete": {**_operation("Forgets a response.", response), "parameters": [kept]},
        },
        "/v1/responses/{name}/input_items": {
            "get": {
                **_operation("The items that a response answered.", listed),
                "parameters": [kept, *queries],
            }
        },
        "/health": {"get": health},
        "/ready": {"get": ready},
        "/version": {"get": _operation("The server's version.", version_)},
        "/metrics": {"get": _operation("Figures, as Prometheus reads them.", text)},
    }
