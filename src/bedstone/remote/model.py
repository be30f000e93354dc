"""A model behind an endpoint: what it can do, found out by asking, and texts that it writes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.generation.settings import NEW_TOKENS, GenerationSettings
from bedstone.generation.structure import schema_text
from bedstone.reading import shown
from bedstone.remote.endpoint import Address, Endpoint, Refused, parse_address
from bedstone.remote.ledger import Budget, Cassette

TOGETHER = 8  # requests under way at a time
REQUESTS = 6  # of a probe
PROBES = ("chat", "usage", "seed", "json_schema", "tools", "echo", "suffix")
# Settings of generation by the names that the API has; no other is understood everywhere.
SENT = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "num_return_sequences": "n",
}
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """What an endpoint wrote.

    Attributes:
        text: of the answer; "" where it calls tools alone.
        finish: stop, length, tool_calls or content_filter.
        calls: of tools: (id, name, arguments as text).
        complete: of a form that was asked for, whether the text is whole; None without one.
    """

    text: str
    finish: str
    calls: tuple[tuple[str, str, str], ...] = ()
    complete: bool | None = None


@dataclass(frozen=True)
class Scored:
    """The log-probability of a continuation in nats, and whether it is the likeliest one."""

    log_probability: float
    tokens: int
    greedy: bool


class RemoteModel:
    """A model that is asked over a network, under the names of a local one.

    Args:
        name: `openai:NAME`, or `http://host/v1#NAME`.
        budget: of tokens and money; without one there is no limit.
        cassette: records answers, or replays them offline.
        abilities: which of `PROBES` the endpoint has; None finds out when first needed.

    Raises:
        BedstoneError: the name is no address.
    """

    def __init__(
        self,
        name: str,
        *,
        budget: Budget | None = None,
        cassette: Cassette | None = None,
        abilities: Mapping[str, bool] | None = None,
        **endpoint: Any,
    ) -> None:
        self.address: Address = parse_address(name)
        self.endpoint = Endpoint(self.address, budget=budget, cassette=cassette, **endpoint)
        self._abilities = None if abilities is None else dict(abilities)

    def __repr__(self) -> str:
        return f"<RemoteModel {self.address}>"

    @property
    def abilities(self) -> dict[str, bool]:
        """Which of `PROBES` the endpoint really has: six small requests, asked once."""
        if self._abilities is None:
            self._abilities = probe(self.endpoint)
        return self._abilities

    def needs(self, ability: str, what: str) -> None:
        """Raises BedstoneError where the endpoint lacks what a task needs."""
        if not self.abilities.get(ability):
            raise BedstoneError(
                f"{what}: needs {_WHAT[ability]}, which {self.address} doesn't give. Take a local "
                "model for it, or another endpoint."
            )

    def check(self, settings: GenerationSettings) -> None:
        """Raises BedstoneError for settings that can't be sent."""
        self._body(settings)

    def chat(
        self,
        messages: Sequence[Message],
        settings: GenerationSettings | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: Any = None,
    ) -> list[Reply]:
        """Answers to a conversation, as many as were asked for.

        Raises:
            BedstoneError: the endpoint gives none, or a setting can't be sent.
        """
        body = self._body(settings or GenerationSettings())
        if tools:
            body["tools"] = list(tools)
        if tool_choice is not None:
            body["tool_choice"] = tool_choice
        found = self.endpoint.post("chat/completions", {"messages": list(messages), **body})
        schema = (settings or GenerationSettings()).json_schema
        return [_reply(one, self.address, schema is not None) for one in _choices(found, self)]

    def stream(
        self, messages: Sequence[Message], settings: GenerationSettings | None = None
    ) -> Iterator[Reply]:
        """An answer to a conversation in parts; the last has the reason why it ended."""
        body = {"messages": list(messages), **self._body(settings or GenerationSettings())}
        finish, said = "", False
        for event in self.endpoint.stream("chat/completions", body):
            for one in event.get("choices") or ():
                finish = one.get("finish_reason") or finish
                text = (one.get("delta") or {}).get("content")
                if text is not None and not isinstance(text, str):
                    raise BedstoneError(
                        f"{self.address}: streamed {shown(text, 60)} as a text. Is it an endpoint "
                        "with OpenAI's API?"
                    )
                if text:
                    said = True
                    yield Reply(text, "")
        if not (said or finish):
            raise BedstoneError(f"{self.address}: answered without a text.")
        yield Reply("", finish or "stop")

    def complete(
        self,
        prompt: str,
        settings: GenerationSettings | None = None,
        *,
        suffix: str | None = None,
    ) -> list[Reply]:
        """Texts that go on from a prompt, or stand between it and a suffix.

        An endpoint that has no route for it is asked in a conversation.

        Raises:
            BedstoneError: as `chat`; or of a suffix, that the endpoint can't fill in.
        """
        settings = settings or GenerationSettings()
        if suffix is not None:
            self.needs("suffix", "suffix")
        if suffix is None and settings.json_schema is not None:
            return self.chat([{"role": "user", "content": prompt}], settings)
        body = {"prompt": prompt, **self._body(settings, chat=False)}
        if suffix is not None:
            body["suffix"] = suffix
        try:
            found = self.endpoint.post("completions", body)
        except Refused:
            if suffix is not None:
                raise
            return self.chat([{"role": "user", "content": prompt}], settings)
        return [_reply(one, self.address, False) for one in _choices(found, self)]

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
        """Log-probabilities of continuations behind contexts.

        Raises:
            BedstoneError: the endpoint doesn't give log-probabilities of a prompt.
        """
        self.needs("echo", "likelihoods of given texts")
        return self.map(self._scored, pairs)

    def map(self, function: Any, values: Sequence[Any]) -> list[Any]:
        """The function of each value, `TOGETHER` at a time, in order; the first error is raised."""
        if len(values) < 2:
            return [function(value) for value in values]
        with ThreadPoolExecutor(TOGETHER) as pool:
            waiting = [pool.submit(function, value) for value in values]
            try:
                return [one.result() for one in waiting]
            except BaseException:
                for one in waiting:
                    one.cancel()
                raise

    def _scored(self, pair: tuple[str, str]) -> Scored:
        context, continuation = pair
        whole = context + continuation
        body = {"prompt": whole, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
        (one,) = _choices(self.endpoint.post("completions", body), self)
        logprobs = one.get("logprobs") or {}
        offsets, values = logprobs.get("text_offset"), logprobs.get("token_logprobs")
        best = logprobs.get("top_logprobs") or ()
        if not offsets or not values or len(offsets) != len(values):
            raise BedstoneError(
                f"{self.address}: gives no log-probabilities of this prompt. Take a local model."
            )
        # a token across the boundary counts to the continuation, as it holds its first characters
        ends = [*offsets[1:], len(whole)]
        places = [
            n
            for n, (start, end) in enumerate(zip(offsets, ends, strict=True))
            if end > len(context) and start < len(whole)
        ]
        if not places or any(values[n] is None for n in places):
            raise BedstoneError(
                f"{self.address}: gives no log-probability of the first token. Give a context of "
                "at least one."
            )
        greedy = all(
            n < len(best) and best[n] and values[n] >= max(best[n].values()) - 1e-6 for n in places
        )
        return Scored(sum(values[n] for n in places), len(places), greedy)

    def _body(self, settings: GenerationSettings, *, chat: bool = True) -> dict[str, Any]:
        """Settings as the API has them.

        Raises:
            BedstoneError: it has no such setting.
        """
        given = dict(settings.given)
        most = given.pop("max_new_tokens", None) or NEW_TOKENS
        openai = self.address.key == "OPENAI_API_KEY" and chat
        body: dict[str, Any] = {"max_completion_tokens" if openai else "max_tokens": most}
        samples = given.pop("do_sample", None)
        if samples is False:
            given.pop("temperature", None)
            body["temperature"] = 0
        if (stop := given.pop("stop", None)) is not None:
            body["stop"] = [stop] if isinstance(stop, str) else list(stop)
        if (schema := given.pop("json_schema", None)) is not None:
            self.needs("json_schema", "json_schema")
            held = {"name": "answer", "schema": json.loads(schema_text(schema)), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": held}
        if (text := given.pop("prediction", None)) is not None and chat:
            body["prediction"] = {"type": "content", "content": text}
        for name, theirs in SENT.items():
            if name in given:
                body[theirs] = given.pop(name)
        if given:
            raise BedstoneError(
                f"{next(iter(given))}: was given, which {self.address} isn't asked for by OpenAI's "
                f"API. Leave it out; it has max_new_tokens, do_sample, stop, json_schema, "
                f"prediction, {', '.join(SENT)}."
            )
        return body


def probe(endpoint: Endpoint) -> dict[str, bool]:
    """Which of `PROBES` an endpoint really has, by six requests of a few tokens each.

    What an endpoint accepts and passes over in silence counts as absent: log-probabilities of a
    prompt must be there for each token, a seed must give the same text twice, JSON must follow its
    schema, a tool that is required must be called.

    Raises:
        BedstoneError: the endpoint can't be asked at all, or has no such model.
    """
    absent: list[Refused] = []
    hello = [{"role": "user", "content": "Write ten words about the sea."}]
    found = dict.fromkeys(PROBES, False)
    drawn = {"messages": hello, "max_tokens": 16, "temperature": 1, "seed": 7}
    drawn = _renamed(endpoint, drawn)
    said = []
    for _ in range(2):
        answer = _tried(endpoint, "chat/completions", drawn, absent)
        if answer is not None:
            said.append(_text(answer))
            found["chat"] = True
            found["usage"] = isinstance(answer.get("usage"), Mapping)
    found["seed"] = len(said) == 2 and said[0] == said[1] != ""
    schema = {
        "type": "object",
        "properties": {"sea": {"type": "boolean"}},
        "required": ["sea"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    body = _renamed(endpoint, {"messages": hello, "max_tokens": 64, "response_format": form})
    answer = _tried(endpoint, "chat/completions", body, absent)
    found["json_schema"] = answer is not None and _follows(_text(answer))
    tool = {"name": "look", "description": "Looks.", "parameters": schema}
    body = {"messages": hello, "max_tokens": 128, "tool_choice": "required"}
    body = _renamed(endpoint, body | {"tools": [{"type": "function", "function": tool}]})
    answer = _tried(endpoint, "chat/completions", body, absent)
    calls = [] if answer is None else _first(answer).get("message", {}).get("tool_calls") or []
    found["tools"] = bool(calls) and _follows((calls[0].get("function") or {}).get("arguments"))
    body = {"prompt": "The sea is", "max_tokens": 1, "echo": True, "logprobs": 1}
    logprobs = _first(_tried(endpoint, "completions", body, absent) or {}).get("logprobs") or {}
    values = logprobs.get("token_logprobs") or []
    found["echo"] = len(values) > 2 and all(isinstance(each, float | int) for each in values[1:])
    body = {"prompt": "The sea ", "suffix": " blue.", "max_tokens": 2}
    found["suffix"] = _tried(endpoint, "completions", body, absent) is not None
    if len(absent) == REQUESTS:
        raise BedstoneError(str(absent[0]))
    return found


_WHAT = {
    "chat": "conversations",
    "usage": "the number of tokens used",
    "seed": "seeds",
    "json_schema": "answers that follow a schema",
    "tools": "calls of tools",
    "echo": "log-probabilities of a prompt's tokens (echo)",
    "suffix": "texts before a suffix",
}


def _tried(
    endpoint: Endpoint, route: str, body: Mapping[str, Any], absent: list[Refused]
) -> dict[str, Any] | None:
    try:
        return endpoint.post(route, body)
    except Refused as error:
        absent += [error] if error.absent else []
        return None


def _renamed(endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
    if endpoint.address.key == "OPENAI_API_KEY":
        body["max_completion_tokens"] = body.pop("max_tokens")
    return body


def _first(found: Mapping[str, Any]) -> dict[str, Any]:
    choices = found.get("choices")
    one = choices[0] if isinstance(choices, list) and choices else {}
    return one if isinstance(one, dict) else {}


def _text(found: Mapping[str, Any]) -> str:
    return str((_first(found).get("message") or {}).get("content") or "")


def _follows(text: Any) -> bool:
    """Whether a text is JSON of the probe's schema."""
    try:
        found = json.loads(text)
    except (ValueError, TypeError):
        return False
    return isinstance(found, dict) and found.keys() == {"sea"} and isinstance(found["sea"], bool)


def _choices(found: Mapping[str, Any], model: RemoteModel) -> list[dict[str, Any]]:
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices:
        raise BedstoneError(
            f"{model.address}: answered without choices: {shown(json.dumps(found), 200)}."
        )
    return [one if isinstance(one, dict) else {} for one in choices]


def _reply(one: Mapping[str, Any], address: Address, formed: bool) -> Reply:
    message = one.get("message") or {}
    text = one.get("text") if "text" in one else message.get("content")
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        name, given = function.get("name"), function.get("arguments")
        if not isinstance(name, str):
            raise BedstoneError(f"{address}: called a tool without a name: {shown(call)}.")
        calls.append((str(call.get("id") or ""), name, str(given or "{}")))
    finish = str(one.get("finish_reason") or "stop")
    if text is None and not calls:
        refusal = message.get("refusal")
        raise BedstoneError(
            f"{address}: answered without a text ({finish})."
            + (f" It says: {shown(refusal)}" if refusal else "")
        )
    complete = None
    if formed:
        complete = finish == "stop" and _is_json(text or "")
    return Reply(str(text or ""), finish, tuple(calls), complete)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
