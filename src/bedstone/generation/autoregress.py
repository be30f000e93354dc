"""Autoregressive generation: prefill, then decode, one token a step.

Prompts of different lengths share a batch: they are padded on the right, the cache knows
each row's length, and a row that has ended leaves the batch without touching the others.

A row that is alone may read several tokens a pass (`generation.lookup`). Rows of a batch don't:
they share what a pass costs already, and drafts of different lengths would pad each other.

Shapes: B rows, T tokens of the longest prompt, D width, V vocabulary.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.generation.lookup import MOST, Lookup
from bedstone.generation.sampling import Sampling
from bedstone.generation.structure import guided
from bedstone.nn.cache import Cache
from bedstone.nn.fast import passes
from bedstone.nn.fast.decoder import decoder_of
from bedstone.nn.fast.inference import for_inference, inference_bits, inference_dtype
from bedstone.nn.fast.pick import pick
from bedstone.runtime import Precision, check_finite

Finish = Literal["stop", "length"]


class Decoder(Protocol):
    """A decoder that generation can use, such as `models.gpt.network.GPT`.

    One whose `exact` is True gives a token the same numbers to the last bit, in `states` and
    `head`, whether it is read alone or with others of its row; without the attribute it isn't.
    """

    config: Any  # `context`: the most tokens a sequence may have; `vocab_size`
    head: Callable[[Tensor], Tensor]

    def states(self, ids: Tensor, *, cache: Cache | None = None) -> Tensor: ...

    def new_cache(self, batch: int, capacity: int) -> Cache: ...


@torch.inference_mode()
def prefill(
    network: Decoder, ids: Tensor, lengths: Tensor, cache: Cache, *, chunk: int | None = None
) -> Tensor:
    """Reads prompts into an empty cache; logits of the token after each, (B, V).

    The head is applied to the last state of each row alone.

    Args:
        ids: prompts, padded on the right with any id, (B, T).
        lengths: real tokens of each row, (B,).
        chunk: read at most so many columns at a time, which bounds the memory that a long
            prompt takes.
    """
    rows = torch.arange(len(ids), device=ids.device)
    last = lengths - 1
    end = ids.shape[1]
    chosen: Tensor | None = None  # (B, D)
    for start in range(0, end, chunk or end):
        part = ids[:, start : start + (chunk or end)]
        cache.coming = lengths[:, None]
        states = network.states(part, cache=cache)  # (B, chunk, D)
        here = states[rows, (last - start).clamp(0, part.shape[1] - 1)]
        chosen = here if chosen is None else torch.where((last >= start)[:, None], here, chosen)
    assert chosen is not None
    cache.set_lengths(lengths)
    return _logits(network, chosen)


@torch.inference_mode()
def decode(network: Decoder, tokens: Tensor, cache: Cache) -> Tensor:
    """Reads one more token a row, (B,), into the cache; logits of the one after, (B, V)."""
    logits = _after(network, tokens, cache)
    check_finite(logits.amax(-1), "the network's logits")
    return logits


def _after(network: Decoder, tokens: Tensor, cache: Cache) -> Tensor:
    """Logits (B, V) after one more token a row, in one call where the network has such."""
    step: Any = getattr(network, "step", None)
    if step is not None:
        found: Tensor = step(tokens, cache)
        return found
    return network.head(network.states(tokens[:, None], cache=cache)[:, 0])


class _Ahead:
    """Reads the tokens of one row, several a pass where a draft of what comes is at hand.

    Logits that a pass gave for a draft serve as long as the draft comes true; what it read past
    that, the cache forgets before the next pass.
    """

    def __init__(self, network: Decoder, cache: Cache, lookup: Lookup, end: int) -> None:
        self._network, self._cache, self._lookup = network, cache, lookup
        self._end = end  # the row's length at most
        self._draft: list[int] = []  # what is left of it
        self._logits: Tensor | None = None  # after the last token and the draft, (n, V)

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> Tensor:
        """Logits after a row's ids, (1, V), of which the last is new to the cache or a draft."""
        if self._logits is not None and self._draft and self._draft[0] == ids[-1]:
            self._draft, self._logits = self._draft[1:], self._logits[1:]
            check_finite(self._logits[0].amax(), "the network's logits")
            return self._logits[:1]
        self.settle(ids)
        draft = self._lookup.draft(ids, self._end - len(ids) - 1)
        start = time.perf_counter()
        device = self._cache.device
        tokens = torch.tensor([ids[-1], *draft], device=device)
        if draft:
            # each token's row is as long as if it were read alone
            self._cache.coming = torch.arange(len(draft) + 1, device=device)[None] + len(ids)
            states = self._network.states(tokens[None], cache=self._cache)
            logits = self._network.head(states[0])
        else:
            logits = _after(self._network, tokens, self._cache)
        check_finite(logits[0].amax(), "the network's logits")
        self._lookup.pace.took(len(draft) + 1, time.perf_counter() - start)
        self._draft, self._logits = draft, logits
        return logits[:1]

    def settle(self, ids: Sequence[int]) -> None:
        """Leaves the cache with what plain decoding would have read: all ids but the last."""
        if self._cache.length >= len(ids):
            self._cache.rewind(len(ids) - 1)


def _logits(network: Decoder, states: Tensor) -> Tensor:
    """The head's outputs (B, V) for states (B, D).

    Raises:
        BedstoneError: a row's largest isn't finite: nan spreads to it.
    """
    logits = network.head(states)
    check_finite(logits.amax(-1), "the network's logits")
    return logits


@dataclass(frozen=True)
class Step:
    """One new token of one row.

    Attributes:
        row: index of the prompt.
        token: its id.
        log_probability: of the token, under the model's own distribution, before
            temperature, penalty or any cut. In nats.
        top: the likeliest tokens there and their log-probabilities, as many as asked for.
        finish: why the row ends here: "stop" (an end token, or a stop text), "length"
            (max_tokens, or the end of the context); None where it goes on.
        complete: at the end of a row of a given form, whether its text is whole.
    """

    row: int
    token: int
    log_probability: float
    top: tuple[tuple[int, float], ...] = ()
    finish: Finish | None = None
    complete: bool | None = None


@dataclass
class Generated:
    """A prompt's continuation.

    Attributes:
        ids: the new tokens; a final end token is among them.
        finish: "stop" or "length".
        log_probabilities: of each token, as in `Step`.
        top: the likeliest tokens at each step, as in `Step`.
        complete: of a given form, whether the text is whole; None where none was asked for.
    """

    ids: list[int] = field(default_factory=list)
    finish: Finish = "length"
    log_probabilities: list[float] = field(default_factory=list)
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    complete: bool | None = None

    def add(self, step: Step) -> None:
        self.ids.append(step.token)
        self.log_probabilities.append(step.log_probability)
        self.top.append(step.top)
        self.finish = step.finish or self.finish
        self.complete = step.complete


def generate(
    network: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | None = None,
    *,
    eos: Iterable[int] = (),
    seeds: Sequence[int] | None = None,
    top: int = 0,
    precision: Precision | None = None,
    prediction: Sequence[int] = (),
    sources: Sequence[Sequence[int]] | None = None,
) -> list[Generated]:
    """Continues each prompt; arguments and errors as for `stream`."""
    done = [Generated() for _ in prompts]
    for step in stream(
        network,
        prompts,
        sampling,
        eos=eos,
        seeds=seeds,
        top=top,
        precision=precision,
        prediction=prediction,
        sources=sources,
    ):
        done[step.row].add(step)
    return done


def stream(
    network: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | None = None,
    *,
    eos: Iterable[int] = (),
    seeds: Sequence[int] | None = None,
    top: int = 0,
    precision: Precision | None = None,
    ended: Callable[[Step], bool] | None = None,
    prediction: Sequence[int] = (),
    sources: Sequence[Sequence[int]] | None = None,
) -> Iterator[Step]:
    """Continues each prompt, a token of every unfinished row at a time.

    What a row generates doesn't depend on the rows beside it, up to the rounding of matrix
    products. A row ends at the context's end as at `max_tokens`, with "length".

    Args:
        network: in evaluation mode, on one device.
        prompts: token ids, one sequence a row, of any lengths.
        sampling: how tokens are chosen; greedy where None. Its texts are the business of
            `generation.text`, which knows a tokenizer.
        eos: ids that end a row.
        seeds: one a row, instead of those that follow from `sampling.seed`.
        top: of how many likeliest tokens to report log-probabilities.
        precision: a copy of the network that is ready for it does the work; None takes the
            network as it is. To generate often, make that copy once:
            `nn.fast.inference.for_inference`.
        ended: called with each step, that of an end token too; True ends the row with "stop".
        prediction: ids of the text that is expected to come, with differences: where several tokens
            are read a pass, they are taken from it first. It changes no token.

    Yields:
        Steps, at each round in the order of rows.

    Raises:
        BedstoneError: a prompt is empty, fills the context, or has an id that the network
            doesn't know, or the prediction has one; the number of seeds isn't that of prompts.
    """
    sampling = sampling or Sampling()
    check_prompts(network, prompts)  # now, not at the first step
    check_ids(network, prediction, "prediction")
    if seeds is not None and len(seeds) != len(prompts):
        raise BedstoneError(
            f"seeds: {len(seeds)} were given for {len(prompts)} prompts; give one each."
        )
    ends = frozenset(eos)
    held = prompts if sources is None else sources
    return _stream(network, prompts, sampling, ends, seeds, top, precision, ended, prediction, held)


def _stream(
    network: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    eos: frozenset[int],
    seeds: Sequence[int] | None,
    top: int,
    precision: Precision | None,
    ended: Callable[[Step], bool] | None,
    prediction: Sequence[int],
    sources: Sequence[Sequence[int]],
) -> Iterator[Step]:
    if not prompts:
        return
    network = ready(network, precision)
    context = network.config.context
    rooms = [min(sampling.max_tokens, context - len(prompt)) for prompt in prompts]
    generators = sampling.generators(len(prompts))
    if seeds is not None:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    history = [list(prompt) for prompt in prompts]
    capacity = max(len(ids) + room for ids, room in zip(history, rooms, strict=True))
    cache = network.new_cache(len(prompts), capacity)
    logits = prefill(network, *pad(history, cache.device), cache)
    live = list(range(len(prompts)))  # rows of the batch, by index of the prompt
    exact = bool(getattr(network, "exact", False))
    most = sampling.prompt_lookup_num_tokens
    most = MOST * exact if most is None else most
    ahead: _Ahead | None = None
    form = sampling.form
    guides = [] if form is None else [form.start() for _ in prompts]
    while True:
        chosen = sampling.choose(
            guided(logits, [guides[row] for row in live], eos) if guides else logits,
            [history[row] for row in live],
            [generators[row] for row in live],
            [len(prompts[row]) for row in live],
            eos,
            [sources[row] for row in live],
        )
        staying = []
        for place, step in enumerate(_steps(live, logits, chosen, top)):
            row = step.row
            history[row].append(step.token)
            stopped = ended is not None and ended(step)
            if guides and step.token not in eos:
                guides[row].take(step.token)
                stopped |= guides[row].ended
            if step.token in eos or stopped:
                step = replace(step, finish="stop")
            elif len(history[row]) - len(prompts[row]) == rooms[row]:
                step = replace(step, finish="length")
            else:
                staying.append(place)
            if guides and step.finish is not None:
                step = replace(step, complete=step.finish == "stop" and guides[row].complete)
            yield step
        if not staying:
            if ahead is not None:
                ahead.settle(history[live[0]])
            return
        if len(staying) < len(live):
            kept = torch.tensor(staying, device=cache.device)
            cache.keep(kept)
            chosen = chosen[kept]
            live = [live[place] for place in staying]
        if most and len(live) == 1:
            (row,) = live
            if ahead is None:
                size = len(prompts[row])
                lookup = Lookup(size, prediction, most=most, measured=exact)
                ahead = _Ahead(network, cache, lookup, size + rooms[row])
            logits = ahead.read(history[row])
        else:
            logits = decode(network, chosen, cache)


def _steps(live: list[int], logits: Tensor, chosen: Tensor, top: int) -> Iterator[Step]:
    """What was chosen in each row, with log-probabilities; finishes are left open."""
    logits, ids = logits.float(), chosen[:, None]
    if top:
        best = logits.topk(min(top, logits.shape[-1])).indices
        ids = torch.cat((ids, best), 1)  # (B, 1 + top)
    if passes.usable(logits):
        known = passes.log_probabilities(logits, ids)
    else:
        known = logits.log_softmax(-1).gather(-1, ids)
    for row, tokens, values in zip(live, ids.tolist(), known.tolist(), strict=True):
        likeliest = tuple(zip(tokens[1:], values[1:], strict=True))
        yield Step(row, tokens[0], values[0], likeliest)


def pad(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts padded on the right with 0, (B, T), and their lengths, (B,)."""
    lengths = torch.tensor([len(ids) for ids in prompts], device=device)
    ids = torch.zeros(len(prompts), max(len(ids) for ids in prompts), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    return ids.to(device), lengths


def ready(network: Decoder, precision: Precision | None) -> Decoder:
    """The network itself, or a copy of it made ready to compute in `precision`; what that leaves
    open is measured (`nn.fast.pick`).

    A decoder over memories whose network is ready is its form over the engine, where it has one.
    """
    over = getattr(network, "over_engine", None)
    if over is not None:
        return over() or network
    if precision is None or not isinstance(network, nn.Module):
        return network
    chosen = pick(network, precision)
    precision = chosen.precision
    made_for = inference_dtype(network), inference_bits(network)
    if made_for == (precision.dtype, precision.bits):
        return network
    found: Any = None
    if chosen.backend == "engine":
        found = decoder_of(network, precision.dtype, precision.bits)
    return found or for_inference(network, precision.dtype, precision.bits)


def check_prompts(network: Decoder, prompts: Sequence[Sequence[int]]) -> None:
    """Raises BedstoneError for prompts that can't be continued."""
    context = network.config.context
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise BedstoneError(
                f"prompts[{index}]: is empty; give at least one token, such as the one that "
                "begins a text."
            )
        if len(prompt) >= context:
            raise BedstoneError(
                f"prompts[{index}]: has {len(prompt)} tokens; the model's context is {context}, "
                "and at least one must be left to generate. Shorten the prompt."
            )
        check_ids(network, prompt, f"prompts[{index}]")


def check_ids(network: Decoder, ids: Sequence[int], where: str) -> None:
    """Raises BedstoneError for ids that the network doesn't know."""
    vocabulary = network.config.vocab_size
    for each in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= each < vocabulary:
            raise BedstoneError(
                f"{where}: has id {each}; ids must be from 0 to {vocabulary - 1}. Is it another "
                "model's tokenizer?"
            )
