"""What `/v1/chat/completions` and `/v1/completions` share: fields, limits, and continuations.

Names and ranges are OpenAI's, with `top_k`, `min_p` and `repetition_penalty` as vLLM adds them. A
setting that isn't given is that of the model's generation_config.json, else OpenAI's.
"""

import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import GenerationSettings, without_usual_length
from bedstone.reading import shown
from bedstone.serve.models import Served
from bedstone.serve.prefix import scope_of
from bedstone.serve.wire import ApiError, Context, Inbox, listed, submit
from bedstone.serve.work import Begun, Generation
from bedstone.settings import Settings, number, optional, share, whole

STOPS, STOP_LENGTH = 4, 1000  # texts at which a continuation ends, and their characters
BIASES = 300  # tokens whose logits a request may change
LEAST = -9999.0  # what a log-probability of minus infinity is written as, as OpenAI does
PER_TOKEN = 256  # characters of a token, at most: a text with more can't fit


@dataclass(frozen=True)
class WritingRequest(Settings):
    """Fields of a request for continuations, by OpenAI's names.

    Those of the second part are taken and change nothing here.
    """

    model: str = ""
    max_tokens: int | None = optional(whole(0))
    temperature: float | None = optional(number(0, 2))
    top_p: float | None = optional(share())
    n: int = whole(1, 128, default=1)
    seed: int | None = optional(whole(-(2**63), 2**63 - 1))
    stop: Any = None
    stream: bool = False
    stream_options: Any = None
    presence_penalty: float = number(-2, 2, default=0.0)
    frequency_penalty: float = number(-2, 2, default=0.0)
    logit_bias: Any = None
    top_k: int | None = optional(whole(-1))
    min_p: float | None = optional(share())
    repetition_penalty: float | None = optional(number(0.01, 100))
    cache_salt: str = ""

    user: str = ""
    safety_identifier: str = ""
    metadata: Any = None
    store: bool = False
    service_tier: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        stops = self.stops
        if len(stops) > STOPS or not all(
            isinstance(each, str) and 0 < len(each) <= STOP_LENGTH for each in stops
        ):
            raise BedstoneError(
                f"stop: {shown(self.stop)} was given; expected a text, or up to {STOPS}, of 1 to "
                f"{STOP_LENGTH:,} characters."
            )
        options = self.stream_options
        if options is not None and not self.stream:
            raise BedstoneError("stream_options: is of streams alone. Leave it out.")
        known = {"include_usage", "include_obfuscation"}
        if options is not None and not (
            isinstance(options, dict)
            and options.keys() <= known
            and all(isinstance(each, bool) for each in options.values())
        ):
            raise BedstoneError(
                f"stream_options: {shown(options)} was given; expected include_usage, true or "
                "false."
            )
        if self.store:
            raise BedstoneError("store: nothing is stored here. Leave it out.")

    @property
    def stops(self) -> tuple[Any, ...]:
        if self.stop is None:
            return ()
        return tuple(self.stop) if isinstance(self.stop, list) else (self.stop,)

    @property
    def counts(self) -> bool:
        """Whether a stream ends with what it used."""
        return bool(self.stream_options and self.stream_options.get("include_usage"))

    def bias(self, vocabulary: int) -> dict[int, float]:
        """What is added to logits.

        Raises:
            ApiError: a key is no token, or a value no number from -100 to 100.
        """
        given = self.logit_bias or {}
        found: dict[int, float] = {}
        fits = isinstance(given, dict) and len(given) <= BIASES
        for key, value in given.items() if fits else ():
            fits = key.isdecimal() and len(key) < 10 and int(key) < vocabulary
            fits = fits and type(value) in (int, float) and -100 <= value <= 100
            if not fits:
                break
            found[int(key)] = float(value)
        if not fits:
            raise ApiError(
                400, f"logit_bias: expected up to {BIASES} ids of tokens below {vocabulary:,}, "
                "each with a number from -100 to 100.", "logit_bias",
            )  # fmt: skip
        return found

    def sampling(self, served: Served, room: int) -> Sampling:
        """How tokens are chosen."""
        model = served.model
        published = without_usual_length(model.generation)
        heat = self.temperature
        if heat is None:
            heat = published.get("temperature", 1.0)
            heat = heat if published.get("do_sample", True) else 1.0
        top_k = published.get("top_k", 0) if self.top_k is None else max(self.top_k, 0)
        # a smallest share of 0 takes the likeliest alone, as OpenAI's does
        settings = GenerationSettings(
            max_new_tokens=max(room, 1), do_sample=heat > 0, temperature=float(heat),
            top_k=top_k, top_p=self.top_p, min_p=self.min_p, num_beams=1,
            num_return_sequences=1, repetition_penalty=self.repetition_penalty, stop=self.stops,
            seed=0,
        )  # fmt: skip
        found = settings.resolve(published, tokenizer=model.tokenizer)
        assert isinstance(found, Sampling)
        return replace(found, seed=None)


@dataclass
class Choice:
    """A continuation as it grows.

    Attributes:
        tokens: ids that were made.
        known: of each its log-probability and the likeliest ones.
    """

    work: Generation
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    known: list[tuple[float, tuple[tuple[int, float], ...]]] = field(default_factory=list)
    finish: str | None = None
    cached: int = 0

    def take(self, event: Any) -> str:
        """Adds an event; what text is new."""
        if isinstance(event, Begun):
            self.cached = event.cached
            return ""
        step = getattr(event, "step", None)
        if step is None:
            self.finish = self.finish or "length"
            return ""
        self.tokens.append(step.token)
        self.known.append((step.log_probability, step.top))
        self.finish = step.finish
        self.text += event.text
        return str(event.text)


def tokenizer_of(served: Served) -> Tokenizer:
    """The tokenizer of a model that continues texts.

    Raises:
        ApiError: it doesn't.
    """
    if not served.capacity or served.model.tokenizer is None:
        raise ApiError(
            400, f"The model {served.name!r} continues no texts; see /v1/models for what it does.",
            "model", "unsupported_model",
        )  # fmt: skip
    return served.model.tokenizer


def check_length(text: str, served: Served, param: str) -> None:
    """Raises ApiError for a text that can't fit, before it is made into tokens."""
    if len(text) > PER_TOKEN * served.capacity:
        raise too_long(len(text) // 8, 0, served, param, "about ")


def check_rows(count: int, served: Served, param: str) -> None:
    """Raises ApiError for more continuations than could ever wait, before prompts are read."""
    most = served.scheduler.most
    if count > most:
        raise ApiError(
            400, f"{param}: {count:,} continuations were asked for in one request; at most "
            f"{most:,}. Ask for fewer at a time.", param,
        )  # fmt: skip


def too_long(size: int, room: int, served: Served, param: str, about: str = "") -> ApiError:
    more = f", and {room:,} were asked for" if room else ""
    return ApiError(
        400, f"This model's maximum context length is {served.capacity:,} tokens; the prompt has "
        f"{about}{size:,}{more}. Shorten the prompt or lower max_tokens.",
        param, "context_length_exceeded",
    )  # fmt: skip


def room_of(size: int, wanted: int | None, served: Served, param: str) -> int:
    """Tokens to make after a prompt: as many as are wanted, or as fit.

    Raises:
        ApiError: the prompt is empty, or both don't fit.
    """
    if not size:
        raise ApiError(400, "The prompt is empty.", param)
    free = served.capacity - size
    if free < (1 if wanted is None else wanted) or free < 0:
        raise too_long(size, wanted or 0, served, param)
    return free if wanted is None else wanted


def begin(
    request: WritingRequest,
    served: Served,
    prompts: Sequence[Sequence[int]],
    context: Context,
    *,
    each: int,
    rooms: Sequence[int],
    top: int | None,
    scores: bool = False,
    ends: frozenset[int] = frozenset(),
    guides: Sequence[Any] = (),
    tokenizer: Tokenizer | None = None,
    prediction: Sequence[int] = (),
    halts: Sequence[Callable[[int, str], bool]] = (),
) -> tuple[Inbox, list[Choice]]:
    """Hands in `each` continuations of each prompt.

    Raises:
        ApiError: a setting doesn't fit, or there is no room.
    """
    inbox, choices = Inbox(), []
    vocabulary = int(served.model.config.vocab_size)
    for ids in prompts:
        if min(ids) < 0 or max(ids) >= vocabulary:
            raise ApiError(400, f"Ids of tokens are from 0 to {vocabulary - 1}.", "prompt")
    bias = request.bias(vocabulary)
    first = secrets.randbits(62) if request.seed is None else request.seed % 2**63
    scope = scope_of(model=served.name, key=context.identity, salt=request.cache_salt)
    for group, (ids, room) in enumerate(zip(prompts, rooms, strict=True)):
        sampling = request.sampling(served, room)
        for row in range(each):
            place = group * each + row
            work = Generation(
                tuple(ids), sampling, inbox.of(place), room, (first + row) % 2**63,
                ends=frozenset(served.model.end_ids) | ends, scope=scope, top=top, scores=scores,
                bias=bias, presence=request.presence_penalty,
                frequency=request.frequency_penalty, guide=guides[place] if guides else None,
                tokenizer=tokenizer, prediction=prediction,
                halts=halts[place] if halts else None,
            )  # fmt: skip
            choices.append(Choice(work))
    submit(served.scheduler, [each.work for each in choices], context)
    return inbox, choices


def usage_of(prompts: Sequence[Sequence[int]], choices: Sequence[Choice]) -> dict[str, Any]:
    """Tokens that a request took; those of a prompt count once."""
    read, made = sum(map(len, prompts)), sum(len(each.tokens) for each in choices)
    cached = max((each.cached for each in choices), default=0)
    return {
        "prompt_tokens": read,
        "completion_tokens": made,
        "total_tokens": read + made,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {
            "accepted_prediction_tokens": sum(each.work.accepted for each in choices),
            "rejected_prediction_tokens": sum(each.work.rejected for each in choices),
            "reasoning_tokens": 0,
        },
    }


def head_of(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """What each answer begins with; the same for all chunks of one."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def bounded(value: float) -> float:
    """A log-probability as JSON can hold it."""
    return max(float(value), LEAST)


class TokenTexts:
    """The texts that tokens add to a continuation, one after another.

    Args:
        before: ids that stand before the first.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int]) -> None:
        self._tokenizer, self._ids = tokenizer, list(before)[-16:]

    def of(self, token: int, others: Sequence[int] = ()) -> tuple[str, list[str]]:
        """The text that a token adds, and those that others would add in its place."""
        own = [self._one(token), [self._one(each) for each in others]]
        self._ids = [*self._ids, token][-16:]
        return own[0], own[1]  # type: ignore[return-value]

    def _one(self, token: int) -> str:
        return self._tokenizer.parts(self._ids, [token])[0]


def is_ids(value: Any) -> bool:
    """Whether a value is a list of ids of tokens."""
    return listed(value, int)
