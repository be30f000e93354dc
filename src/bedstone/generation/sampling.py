"""Sampling: the choice of the next token from logits.

Pure functions from logits (B, V) to logits (B, V), applied in the order that `transformers`
applies them: biases, repetition penalty, no repeated n-grams, the other constraints, temperature,
top-k, top-p, min-p, typical, epsilon and eta. A token that may not be chosen has -inf. Shapes: B
rows, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.generation.constraints import FILE, NONE, Constraints
from bedstone.generation.structure import Form
from bedstone.nn.fast import kernels, passes
from bedstone.settings import Settings, number, optional, share, whole

# Top-p looks at this many tokens before it sorts a whole vocabulary.
LIKELY = 512
# Divisors in fp32: below the first, quotients may overflow; below the second, they are 0 / 0.
_COLD, _TINY = 1e-6, 1e-30


def repetition_penalty(logits: Tensor, history: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Logits of tokens already in a row, made smaller (Keskar et al., 2019, section 4.1).

    As in use everywhere, positive logits are divided by `penalty` and negative ones
    multiplied; a token counts once, however often it came.

    Args:
        history: each row's own prompt and generated ids, without padding.
        penalty: above 1 discourages repetition, below 1 invites it.
    """
    vocabulary = logits.shape[-1]
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    for row, ids in enumerate(history):
        known = torch.tensor(ids, dtype=torch.long)
        seen[row, known[known < vocabulary]] = True
    seen = seen.to(logits.device)
    penalised = torch.where(logits < 0, logits * penalty, logits / max(penalty, _TINY))
    largest = torch.finfo(logits.dtype).max  # of two infinite logits no distribution is known
    return torch.where(seen & logits.isfinite(), penalised.clamp(-largest, largest), logits)


def no_repeat_ngram(
    logits: Tensor,
    history: Sequence[Sequence[int]],
    size: int,
    sources: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """Logits without the tokens that would bring an n-gram of a row, or of its source, again.

    Paulus et al., 2018, section 2.5, for any n; 1 lets no token come twice.

    Args:
        history: each row's own prompt and generated ids, without padding.
        size: n, at least 1.
        sources: of each row, ids whose n-grams may not come; by default its own.
    """
    rows: list[int] = []
    columns: list[int] = []
    for row, ids in enumerate(history):
        held = ids if sources is None else sources[row]
        if len(ids) >= size - 1:
            found = set(_followers(held, ids[len(ids) - size + 1 :]))
            columns += [token for token in found if token < logits.shape[-1]]
            rows += [row] * (len(columns) - len(rows))
    return _without(logits, rows, columns)


def _followers(ids: Sequence[int], part: Sequence[int]) -> Iterator[int]:
    """What comes after each occurrence of a part in a row."""
    if not part:
        yield from ids
        return
    size, part = len(part), list(part)
    at = size - 1  # where the part may end
    while True:
        try:
            at = ids.index(part[-1], at, len(ids) - 1)
        except ValueError:
            return
        if list(ids[at - size + 1 : at + 1]) == part:
            yield ids[at + 1]
        at += 1


class Penalties(Protocol):
    """What `constrain` reads of the settings of sampling or of beam search."""

    @property
    def repetition_penalty(self) -> float: ...
    @property
    def no_repeat_ngram(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def constraints(self) -> Constraints: ...


def unconstrained(how: Penalties) -> bool:
    """Whether `constrain` changes nothing."""
    return how.constraints == NONE and how.repetition_penalty == 1 and not how.no_repeat_ngram


def constrain(
    logits: Tensor,
    history: Sequence[Sequence[int]],
    how: Penalties,
    sizes: Sequence[int],
    ends: Iterable[int],
    *,
    sources: Sequence[Sequence[int]] | None = None,
    taken: Sequence[Mapping[int, float]] | None = None,
) -> Tensor:
    """Logits, or log-probabilities of beams, after penalties and constraints, (B, V).

    Args:
        logits: fp32, (B, V).
        history: each row's own prompt and generated ids, without padding.
        sizes: the number of tokens in each row's prompt.
        ends: ids that end a continuation.
        sources: ids that each row's memory was made of; by default its prompt.
        taken: of each row, what is added to tokens that other groups of beams go on by.

    Raises:
        BedstoneError: constraints leave a row no token.
    """
    rules = how.constraints
    if rules.sequence_bias:
        logits = _biased(logits, history, rules.sequence_bias)
    if taken is not None:
        less = [(row, *one) for row, own in enumerate(taken) for one in own.items()]
        logits = _added(logits, less)
    if sources is None and rules.compares:
        sources = [ids[:size] for ids, size in zip(history, sizes, strict=True)]
    if rules.source_penalty != 1:
        assert sources is not None
        logits = repetition_penalty(logits, sources, 1 / rules.source_penalty)
    if how.repetition_penalty != 1:
        logits = repetition_penalty(logits, history, how.repetition_penalty)
    if how.no_repeat_ngram:
        logits = no_repeat_ngram(logits, history, how.no_repeat_ngram)
    if rules == NONE:
        return logits
    if rules.source_ngram:
        logits = no_repeat_ngram(logits, history, rules.source_ngram, sources)
    last = [end for end in ends if 0 <= end < logits.shape[-1]]
    words = [ids for ids in rules.bad_words if len(ids) > 1 or ids[0] not in last]
    if words:
        logits = _biased(logits, history, [(ids, -math.inf) for ids in words])
    lengths = [len(ids) for ids in history]
    made = [length - size for length, size in zip(lengths, sizes, strict=True)]
    early = [
        length < rules.min_length or new < rules.min_new_tokens
        for length, new in zip(lengths, made, strict=True)
    ]
    logits = _banned(logits, early, last)
    if rules.forced_first is not None:
        logits = _forced(logits, [length == 1 for length in lengths], [rules.forced_first])
    if rules.forced_last:
        logits = _forced(logits, [new == how.max_tokens - 1 for new in made], rules.forced_last)
    if rules.decay is not None:
        logits = _likelier(logits, made, last, rules.decay)
    logits = _banned(logits, [True] * len(made), rules.suppressed)
    shifts = [int(size == 1 and rules.forced_first is not None) for size in sizes]
    begins = [new == shift for new, shift in zip(made, shifts, strict=True)]
    logits = _banned(logits, begins, rules.suppressed_first)
    ngrams = how.no_repeat_ngram or rules.source_ngram  # who may leave none, and says so itself
    if not ngrams and (logits.amax(-1) == -math.inf).any():
        raise BedstoneError(
            f"{FILE}: no token may follow any more: suppress_tokens, begin_suppress_tokens and "
            "bad_words_ids leave none. Shorten them."
        )
    return logits


def _biased(
    logits: Tensor, history: Sequence[Sequence[int]], biases: Iterable[tuple[Sequence[int], float]]
) -> Tensor:
    """Logits with a bias on the last of several ids each, in rows that end with the others."""
    added = []
    for (*first, last), bias in biases:
        if last >= logits.shape[-1]:
            raise BedstoneError(
                f"{FILE}: the token {last:,} of bad_words_ids or sequence_bias isn't one of the "
                f"vocabulary's {logits.shape[-1]:,}. Is the file another model's?"
            )
        for row, own in enumerate(history):
            if not first or list(own[-len(first) :]) == first:
                added.append((row, last, bias))
    return _added(logits, added)


def _added(logits: Tensor, added: Sequence[tuple[int, int, float]]) -> Tensor:
    """Logits with numbers added in places: (row, token, number)."""
    if not added:
        return logits
    rows, tokens, numbers = zip(*added, strict=True)
    places = torch.tensor(rows).to(logits.device), torch.tensor(tokens).to(logits.device)
    more = torch.tensor(numbers, dtype=logits.dtype).to(logits.device)
    return logits.index_put(places, more, accumulate=True)


def _without(logits: Tensor, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """Logits of which those in some places are -inf."""
    if not rows:
        return logits
    places = torch.tensor(rows).to(logits.device), torch.tensor(tokens).to(logits.device)
    return logits.index_put(places, logits.new_tensor(-math.inf))


def _banned(logits: Tensor, rows: Sequence[bool], ids: Iterable[int]) -> Tensor:
    """Logits without those tokens, in the rows that are True."""
    known = [number for number in ids if 0 <= number < logits.shape[-1]]
    places = [row for row, chosen in enumerate(rows) if chosen]
    return _without(logits, [row for row in places for _ in known], known * len(places))


def _forced(logits: Tensor, rows: Sequence[bool], ids: Sequence[int]) -> Tensor:
    """Logits of 0 for those tokens and none for others, in the rows that are True."""
    if not any(rows):
        return logits
    forced = torch.full_like(logits, -math.inf)
    forced[:, [number for number in ids if number < logits.shape[-1]]] = 0.0
    return torch.where(torch.tensor(list(rows), device=logits.device)[:, None], forced, logits)


def _likelier(
    logits: Tensor, made: Sequence[int], ends: Sequence[int], decay: tuple[int, float]
) -> Tensor:
    """The end tokens' logits raised by a penalty on length that grows exponentially.

    Args:
        made: tokens of each row's continuation.
        decay: from how many of them on, and the factor of a step.
    """
    start, factor = decay
    grown = [factor ** max(new - start, 0) - 1 for new in made]
    own = logits[:, list(ends)]
    more = own.abs() * torch.tensor(grown, dtype=logits.dtype, device=logits.device)[:, None]
    places = torch.tensor(list(ends), device=logits.device, dtype=torch.long)
    return logits.index_add(1, places, more.masked_fill(~own.isfinite(), 0.0))


def likeliest(logits: Tensor) -> Tensor:
    """The first of each row's largest logits, (B,)."""
    if logits.device.type == "cpu" and logits.dtype is torch.float32:
        return torch.from_numpy(logits.detach().numpy().argmax(-1))  # a tenth of torch's time
    return logits.argmax(-1)


def temperature(logits: Tensor, value: float) -> Tensor:
    """Logits divided by a temperature above 0 (Ackley et al., 1985)."""
    if value < _COLD:  # the quotients of all but the largest may then be infinite
        logits = logits - logits.amax(-1, keepdim=True)
    return logits / max(value, _TINY)


def top_k(logits: Tensor, k: int) -> Tensor:
    """The k likeliest tokens of each row, and those that tie with the last (Fan et al., 2018)."""
    least = logits.topk(min(k, logits.shape[-1])).values[..., -1, None]
    return logits.masked_fill(logits < least, -math.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """The fewest likeliest tokens whose probability reaches p (Holtzman et al., 2020)."""
    probabilities = logits.softmax(-1)
    likely = probabilities.topk(min(LIKELY, logits.shape[-1]))
    values, order = likely.values, likely.indices
    if (values.sum(-1) < p).any():  # a flat distribution: all of it is needed
        values, order = probabilities.sort(descending=True)
    before = values.cumsum(-1) - values  # probability of all that are likelier
    keep = before < p
    keep[..., 0] = True
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, keep)
    return logits.masked_fill(~kept, -math.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens at least p times as likely as the likeliest (Nguyen et al., 2024)."""
    probabilities = logits.softmax(-1)
    least = p * probabilities.amax(-1, keepdim=True)
    return logits.masked_fill(probabilities < least, -math.inf)


def typical(logits: Tensor, mass: float) -> Tensor:
    """Tokens whose surprise is nearest to the entropy, up to a mass (Meister et al., 2022)."""
    known = logits.log_softmax(-1)
    entropy = -(known.exp() * known).nansum(-1, keepdim=True)
    distance, order = (-known - entropy).abs().sort()
    total = logits.gather(-1, order).softmax(-1).cumsum(-1)
    last = (total < mass).sum(-1).clamp(max=logits.shape[-1] - 1)
    cut = distance > distance.gather(-1, last[:, None])
    cut[..., 0] = False
    return logits.masked_fill(cut.scatter(-1, order, cut), -math.inf)


def epsilon_cutoff(logits: Tensor, least: float | Tensor) -> Tensor:
    """Tokens at least that likely, and the likeliest (Hewitt et al., 2022, section 4)."""
    probabilities = logits.softmax(-1)
    unlikely = (probabilities < least) & (logits < logits.amax(-1, keepdim=True))
    return logits.masked_fill(unlikely, -math.inf)


def eta_cutoff(logits: Tensor, least: float) -> Tensor:
    """`epsilon_cutoff`, lower where the entropy is high (Hewitt et al., 2022, section 4)."""
    known = logits.log_softmax(-1)
    entropy = -(known.exp() * known).nansum(-1, keepdim=True)
    return epsilon_cutoff(logits, (math.sqrt(least) * (-entropy).exp()).clamp(max=least))


def log_probabilities(logits: Tensor) -> Tensor:
    """The log-probabilities of logits (..., V), in fp32.

    `log_softmax` adds shares up one by one, where the small ones of a large vocabulary are lost
    beside a large one: of 49,152 tokens it is off by up to 1e-5 nats, all to one side. `sum` adds
    them pairwise.
    """
    logits = logits.float()
    below = logits - logits.amax(-1, keepdim=True)
    return below.sub_(below.exp().sum(-1, keepdim=True).log())


def draw(logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One token a row, (B,), from softmax(logits), by inversion of the cumulative distribution.

    A row costs its generator one number, so what it draws depends on neither its neighbours
    nor the size of the vocabulary. Generators live on the CPU whatever the logits' device.
    """
    return _inverted(logits, _numbers(generators))


def _numbers(generators: Sequence[torch.Generator]) -> Tensor:
    """A uniform number of each generator, (B, 1) in fp64."""
    return torch.stack([torch.rand(1, dtype=torch.float64, generator=g) for g in generators])


def _inverted(logits: Tensor, numbers: Tensor) -> Tensor:
    """The tokens (B,) at which cumulative distributions pass numbers (B, 1)."""
    uniform = numbers.to(logits.device)
    cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    # Just below 1, so that rounding can't reach past the last token that has probability.
    target = uniform * cumulative[..., -1:] * (1 - 1e-12)
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


@dataclass(frozen=True)
class Sampling(Settings):
    """Settings of sampling a continuation, and where it ends.

    Attributes:
        max_tokens: the most tokens to generate.
        temperature: 0 always takes the likeliest token; 1 samples as the model has it.
        top_k: sample from this many likeliest tokens; 0 from all.
        top_p: sample from the fewest likeliest tokens that reach this probability.
        min_p: leave out tokens less likely than this share of the likeliest.
        repetition_penalty: above 1 makes what a row already holds less likely; 1 is no penalty.
        no_repeat_ngram: so many tokens never come twice in the same order; 0 lets them.
        typical_p: sample from tokens of typical surprise that reach this probability; 1 from all.
        epsilon_cutoff: leave out tokens less likely than this.
        eta_cutoff: the same, less where many are likely.
        constraints: on the next token, of a model's generation_config.json.
        stop: texts at which generation ends; they are cut off.
        keep_stop: whether they stay instead, with all of their last token, as in transformers.
        seed: of the first row, the next row's is one more; None draws a fresh one.
        returned: continuations of each prompt, for callers who make rows of prompts (`seeds`).
        prompt_lookup_num_tokens: the most tokens that are looked up in the text itself and read in
            one pass with the last one, where a row is alone; 0 reads one token a pass, and None
            looks some up where the decoder is `exact`.
        prediction: the text that is expected to come: tokens are looked up there first.
        form: what the text must be; tokens that can't go on with it are left out.

    Raises:
        BedstoneError: a value is out of range.
    """

    section: ClassVar[str] = "sampling."
    max_tokens: int = whole(1, default=128)
    temperature: float = number(0, default=0.0)
    top_k: int = whole(0, default=0)
    top_p: float = share(default=1.0)
    min_p: float = share(default=0.0)
    repetition_penalty: float = number(0, open_least=True, default=1.0)
    no_repeat_ngram: int = whole(0, default=0)
    typical_p: float = number(0, 1, open_least=True, default=1.0)
    epsilon_cutoff: float = share(below_one=True, default=0.0)
    eta_cutoff: float = share(below_one=True, default=0.0)
    constraints: Constraints = NONE
    stop: tuple[str, ...] = ()
    keep_stop: bool = False
    seed: int | None = optional(whole(0, 2**63 - 1))
    returned: int = whole(1, default=1)
    prompt_lookup_num_tokens: int | None = optional(whole(0))
    prediction: str = ""
    form: Form | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        super().__post_init__()
        if not all(isinstance(text, str) and text for text in self.stop):
            raise BedstoneError(
                f"sampling.stop: {self.stop!r} was given; expected texts of at least one character."
            )
        if self.form is not None and self.stop:
            raise BedstoneError(
                f"stop: {self.stop!r} was given beside {self.form.kind}, which says itself where a "
                "text ends. Leave one of the two out."
            )

    def generators(self, rows: int) -> list[torch.Generator]:
        """A generator a row, seeded `seed`, `seed` + 1, ..."""
        first = torch.Generator().seed() % 2**62 if self.seed is None else self.seed
        return [torch.Generator().manual_seed((first + row) % 2**63) for row in range(rows)]

    def seeds(self, prompts: int) -> list[int]:
        """Seeds of `returned` rows of each prompt: every prompt has the same, or all have others
        where `seed` is None."""
        if self.seed is None:
            return [each.initial_seed() for each in self.generators(prompts * self.returned)]
        return [(self.seed + row) % 2**63 for row in range(self.returned)] * prompts

    def warp(
        self,
        logits: Tensor,
        history: Sequence[Sequence[int]],
        sizes: Sequence[int] | None = None,
        ends: Iterable[int] = (),
        sources: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """The logits, fp32, that a token is drawn from: softmax of them is its distribution."""
        logits = self._allowed(logits, history, sizes, ends, sources)
        return self._cut(logits) if self.temperature else logits

    def _allowed(
        self,
        logits: Tensor,
        history: Sequence[Sequence[int]],
        sizes: Sequence[int] | None,
        ends: Iterable[int],
        sources: Sequence[Sequence[int]] | None,
    ) -> Tensor:
        """The logits, fp32, with penalties and constraints."""
        sizes = [0] * len(history) if sizes is None else sizes
        logits = constrain(logits.float(), history, self, sizes, ends, sources=sources)
        ngrams = {
            "sampling.no_repeat_ngram": self.no_repeat_ngram,
            "encoder_no_repeat_ngram_size": self.constraints.source_ngram,
        }
        said = [f"{name}: with {size}" for name, size in ngrams.items() if size]
        if said and (logits.amax(-1) == -math.inf).any():
            raise BedstoneError(
                f"{', '.join(said)}, a row has come to "
                "where every token would be a repeat. Raise it, or lower max_tokens."
            )
        return logits

    def _cut(self, logits: Tensor) -> Tensor:
        """The logits at the temperature, -inf where no token is drawn."""
        if self.temperature != 1:
            logits = temperature(logits, self.temperature)
        if self.top_k:
            logits = top_k(logits, self.top_k)
        if self.top_p < 1:
            logits = top_p(logits, self.top_p)
        if self.min_p > 0:
            logits = min_p(logits, self.min_p)
        if self.typical_p < 1:
            logits = typical(logits, self.typical_p)
        if self.epsilon_cutoff:
            logits = epsilon_cutoff(logits, self.epsilon_cutoff)
        return eta_cutoff(logits, self.eta_cutoff) if self.eta_cutoff else logits

    def choose(
        self,
        logits: Tensor,
        history: Sequence[Sequence[int]],
        generators: Sequence[torch.Generator],
        sizes: Sequence[int] | None = None,
        ends: Iterable[int] = (),
        sources: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """The next token of each row, (B,).

        Args:
            logits: of the next token, (B, V).
            history: each row's ids so far, its prompt's and its own.
            generators: one a row, on the CPU; unused where the temperature is 0.
            sizes: tokens of each row's prompt; None counts none.
            ends: ids that end a row.
            sources: ids that each row's memory was made of; None takes its prompt.
        """
        plain = logits.dtype is torch.float32  # of rounded ones, many tie
        logits = self._allowed(logits, history, sizes, ends, sources)
        if self.temperature == 0:
            return likeliest(logits)
        numbers = _numbers(generators)
        others = self.typical_p < 1 or self.epsilon_cutoff or self.eta_cutoff
        if plain and not others and passes.usable(logits):
            cold = self.temperature < _COLD
            divisor = max(self.temperature, _TINY)
            how = kernels.Drawing(divisor, cold, self.top_k, self.top_p, self.min_p)
            found = passes.drawn(logits, numbers, how)
            if bool((found >= 0).all()):
                return found
        return _inverted(self._cut(logits), numbers)
