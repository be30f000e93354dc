"""`/v1/completions`: texts that continue a prompt, or stand between it and a suffix.

Log-probabilities have the legacy shape (tokens, token_logprobs, top_logprobs, text_offset), which
lm-evaluation-harness reads: with `echo` the prompt's own are among them. Whether a token is the
likeliest is then seen by comparing numbers, so both are the same number to the last bit.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from bedstone.data.text.fim import FimTokens, fim_tokens, without_overlap
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.generation.text import encode_prompt
from bedstone.reading import shown
from bedstone.serve.models import Served
from bedstone.serve.wire import DONE, ApiError, Context, event_of, events_of, listed
from bedstone.serve.work import Scored
from bedstone.serve.writing import (
    Choice,
    TokenTexts,
    WritingRequest,
    begin,
    bounded,
    check_length,
    check_rows,
    head_of,
    is_ids,
    room_of,
    tokenizer_of,
    usage_of,
)
from bedstone.settings import optional, whole

USUAL = 16  # tokens, as OpenAI has it


@dataclass(frozen=True)
class CompletionRequest(WritingRequest):
    """Fields of a completion."""

    prompt: Any = None
    best_of: int | None = optional(whole(1, 20))
    echo: bool = False
    logprobs: int | None = optional(whole(0, 5))
    suffix: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.best_of is not None and (self.best_of < self.n or self.stream):
            raise BedstoneError(
                f"best_of: {self.best_of} was given; expected at least n, {self.n}, and no stream."
            )
        if self.suffix is not None and self.echo:
            raise BedstoneError("suffix: doesn't go with echo. Leave one out.")
        if self.max_tokens == 0 and not self.echo:
            raise BedstoneError("max_tokens: 0 makes nothing without echo. Raise it.")

    @property
    def each(self) -> int:
        """Continuations of a prompt."""
        return self.best_of or self.n


@dataclass
class _Reply:
    """All that answers need."""

    request: CompletionRequest
    tokenizer: Tokenizer
    texts: list[str]  # of prompts
    prompts: list[list[int]]
    choices: list[Choice]

    def __post_init__(self) -> None:
        self.head = head_of("text_completion", "cmpl", self.request.model)
        self.scored: dict[int, Scored] = {}

    def prompt_of(self, number: int) -> int:
        return number // self.request.each

    def known(self, number: int, first: int = 0, at: int = 0) -> dict[str, Any] | None:
        """Log-probabilities in the legacy shape, of tokens from `first` on.

        Args:
            at: characters of the text before them.
        """
        if self.request.logprobs is None:
            return None
        choice, prompt = self.choices[number], self.prompts[self.prompt_of(number)]
        echoed = self.scored.get(number) if not first else None
        tokens, before = choice.tokens[first:], [*prompt, *choice.tokens[:first]]
        values: list[float | None] = [own for own, _ in choice.known[first:]]
        tops = [top for _, top in choice.known[first:]]
        if echoed is not None:
            tokens, before = [*prompt, *tokens], []
            values, tops = [*echoed.own, *values], [*echoed.top, *tops]
        texts = TokenTexts(self.tokenizer, before)
        shape: dict[str, list[Any]] = {
            "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [],
        }  # fmt: skip
        for token, value, top in zip(tokens, values, tops, strict=True):
            text, others = texts.of(token, [each for each, _ in top])
            shape["tokens"].append(text)
            shape["token_logprobs"].append(None if value is None else bounded(value))
            best = {text: bounded(value)} if value is not None else {}
            for other, (_, likely) in zip(others, top, strict=True):
                best[other] = max(bounded(likely), best.get(other, -1e9))
            shape["top_logprobs"].append(None if value is None else best)
            shape["text_offset"].append(at)
            at += len(text)
        return shape


async def complete(
    served: Served, request: CompletionRequest, context: Context, most_inputs: int
) -> dict[str, Any] | AsyncIterator[str]:
    """Continuations of one or more prompts, or their events.

    Raises:
        ApiError: one can't be continued.
    """
    tokenizer = tokenizer_of(served)
    given = _prompts(request.prompt, most_inputs)
    check_rows(len(given) * request.each, served, "n" if request.each > 1 else "prompt")
    wanted = USUAL if request.max_tokens is None else request.max_tokens
    ends: frozenset[int] = frozenset()
    encode, writes = _plain, None
    if request.suffix is not None:
        encode, fim = _middle, await asyncio.to_thread(_fim, tokenizer)
        ends, writes = frozenset(fim.stops), fim.tokenizer
    prompts, texts = await asyncio.to_thread(encode, served, tokenizer, given, request, wanted)
    rooms = [room_of(len(ids), wanted, served, "prompt") for ids in prompts]
    inbox, choices = begin(
        request, served, prompts, context, each=request.each, rooms=rooms,
        top=request.logprobs if request.best_of is None else request.logprobs or 0,
        scores=request.echo and request.logprobs is not None, ends=ends,
        tokenizer=writes,
    )  # fmt: skip
    reply = _Reply(request, tokenizer, texts, prompts, choices)
    if request.stream:
        return _stream(reply, inbox)
    async for found in events_of(inbox, len(choices)):
        if found is None:
            continue
        number, event = found
        if isinstance(event, Scored):
            reply.scored[number] = event
        else:
            choices[number].take(event)
    answers = [_answer(reply, number) for number in _kept(reply)]
    for index, answer in enumerate(answers):
        answer["index"] = index
    return {**reply.head, "choices": answers, "usage": usage_of(prompts, choices)}


def _kept(reply: _Reply) -> list[int]:
    """Numbers of the choices that are given: of each prompt the likeliest `n`."""
    each, n = reply.request.each, reply.request.n
    found: list[int] = []
    for start in range(0, len(reply.choices), each):
        own = list(range(start, start + each))
        if reply.request.best_of is not None:
            own.sort(key=lambda number: -_mean(reply.choices[number]))
        found += own[:n]
    return found


def _mean(choice: Choice) -> float:
    return sum(own for own, _ in choice.known) / max(len(choice.known), 1)


def _answer(reply: _Reply, number: int) -> dict[str, Any]:
    choice, place = reply.choices[number], reply.prompt_of(number)
    text = choice.text
    if reply.request.suffix is not None:
        text = without_overlap(reply.texts[place], text, reply.request.suffix)
    if reply.request.echo:
        text = reply.texts[place] + text
    return {
        "index": number,
        "text": text,
        "logprobs": reply.known(number),
        "finish_reason": choice.finish,
    }


async def _stream(reply: _Reply, inbox: Any) -> AsyncIterator[str]:
    request = reply.request
    usage = {"usage": None} if request.counts else {}

    def chunk(number: int, text: str, finish: Any = None, known: Any = None) -> str:
        choice = {"index": number, "text": text, "logprobs": known, "finish_reason": finish}
        return event_of({**reply.head, "choices": [choice], **usage})

    at = [len(reply.texts[reply.prompt_of(n)]) if request.echo else 0
          for n in range(len(reply.choices))]  # fmt: skip
    begun: set[int] = set()
    async for found in events_of(inbox, len(reply.choices)):
        if found is None:
            yield ": ping\n\n"
            continue
        number, event = found
        choice = reply.choices[number]
        if isinstance(event, Scored):
            reply.scored[number] = event
            continue
        first = len(choice.tokens)
        new = choice.take(event)
        known = None
        text = new
        if request.echo and number not in begun and (choice.tokens or choice.finish):
            begun.add(number)
            text = reply.texts[reply.prompt_of(number)] + new
            known = reply.known(number)
        elif len(choice.tokens) > first:
            known = reply.known(number, first, at[number])
        at[number] += len(new)
        if text or known or choice.finish:
            yield chunk(number, text, choice.finish, known)
    if request.counts:
        used = usage_of(reply.prompts, reply.choices)
        yield event_of({**reply.head, "choices": [], "usage": used})
    yield DONE


def _prompts(given: Any, most: int) -> list[str | list[int]]:
    """Prompts: a text, texts, ids or lists of ids."""
    found = [given] if isinstance(given, str) or is_ids(given) else given
    fits = listed(found, str) or (isinstance(found, list) and found and all(map(is_ids, found)))
    if not fits:
        raise ApiError(
            400, f"prompt: {shown(given)} was given; expected a text, texts, ids or lists of ids.",
            "prompt",
        )  # fmt: skip
    if len(found) > most:
        raise ApiError(400, f"prompt: {len(found):,} were given; at most {most:,}.", "prompt")
    return list(found)


def _plain(
    served: Served,
    tokenizer: Tokenizer,
    given: Sequence[str | list[int]],
    request: CompletionRequest,
    wanted: int,
) -> tuple[list[list[int]], list[str]]:
    """Ids and texts of prompts."""
    vocabulary = int(served.model.config.vocab_size)
    prompts, texts = [], []
    for each in given:
        if isinstance(each, str):
            check_length(each, served, "prompt")
            prompts.append(encode_prompt(tokenizer, each))
            texts.append(each)
            continue
        if len(each) > served.capacity:
            room_of(len(each), wanted, served, "prompt")
        if min(each) < 0 or max(each) >= vocabulary:
            raise ApiError(400, f"Ids of tokens are from 0 to {vocabulary - 1}.", "prompt")
        prompts.append(each)
        texts.append(tokenizer.decode(each) if request.echo else "")
    return prompts, texts


def _middle(
    served: Served,
    tokenizer: Tokenizer,
    given: Sequence[str | list[int]],
    request: CompletionRequest,
    wanted: int,
) -> tuple[list[list[int]], list[str]]:
    """Prompts for what stands between each text and the suffix."""
    fim, prompts, texts = fim_tokens(tokenizer), [], []
    assert request.suffix is not None
    for each in given:
        if not isinstance(each, str):
            raise ApiError(400, "suffix: stands behind a text, not behind ids.", "suffix")
        check_length(each + request.suffix, served, "prompt")
        prompts.append(fim.prompt(each, request.suffix).ids)
        texts.append(each)
    return prompts, texts


def _fim(tokenizer: Tokenizer) -> FimTokens:
    try:
        return fim_tokens(tokenizer)
    except BedstoneError as error:
        raise ApiError(400, str(error), "suffix") from None
