"""Sampling: the choice of the next token from logits.

Pure functions from logits (B, V) to logits (B, V), applied in the order that `transformers`
applies them: repetition penalty, no repeated n-grams, temperature, top-k, top-p, min-p. A token
that may not be chosen has -inf. Shapes: B rows, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bedstone.errors import BedstoneError
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


def no_repeat_ngram(logits: Tensor, history: Sequence[Sequence[int]], size: int) -> Tensor:
    """Logits without the tokens that would bring an n-gram of a row again.

    Paulus et al., 2018, section 2.5, for any n; 1 lets no token come twice.

    Args:
        history: each row's own prompt and generated ids, without padding.
        size: n, at least 1.
    """
    banned = torch.zeros(logits.shape, dtype=torch.bool)
    for row, ids in enumerate(history):
        if len(ids) >= size:
            known = torch.tensor(ids, dtype=torch.long)
            runs = known.unfold(0, size, 1)  # (n-grams, size)
            same = (runs[:, :-1] == known[len(ids) - size + 1 :]).all(-1)  # begin as the row ends
            last = runs[same, -1]
            banned[row, last[last < logits.shape[-1]]] = True
    return logits.masked_fill(banned.to(logits.device), -math.inf)


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


def draw(logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One token a row, (B,), from softmax(logits), by inversion of the cumulative distribution.

    A row costs its generator one number, so what it draws depends on neither its neighbours
    nor the size of the vocabulary. Generators live on the CPU whatever the logits' device.
    """
    numbers = [torch.rand(1, dtype=torch.float64, generator=each) for each in generators]
    uniform = torch.stack(numbers).to(logits.device)  # (B, 1)
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
        stop: texts at which generation ends; they are cut off.
        seed: of the first row, the next row's is one more; None draws a fresh one.
        returned: continuations of each prompt, for callers who make rows of prompts (`seeds`).

    Raises:
        BedstoneError: a value is out of range.
    """

    section: ClassVar[str] = "sampling."
    max_tokens: int = whole(1, default=128)
    temperature: float = number(0, default=0.0)
    top_k: int = whole(0, default=0)
    top_p: float = number(0, 1, open_least=True, default=1.0)
    min_p: float = share(default=0.0)
    repetition_penalty: float = number(0, open_least=True, default=1.0)
    no_repeat_ngram: int = whole(0, default=0)
    stop: tuple[str, ...] = ()
    seed: int | None = optional(whole(0, 2**63 - 1))
    returned: int = whole(1, default=1)

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        super().__post_init__()
        if not all(isinstance(text, str) and text for text in self.stop):
            raise BedstoneError(
                f"sampling.stop: {self.stop!r} was given; expected texts of at least one character."
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

    def warp(self, logits: Tensor, history: Sequence[Sequence[int]]) -> Tensor:
        """The logits, fp32, that a token is drawn from: softmax of them is its distribution."""
        logits = logits.float()
        if self.repetition_penalty != 1:
            logits = repetition_penalty(logits, history, self.repetition_penalty)
        if self.no_repeat_ngram:
            logits = no_repeat_ngram(logits, history, self.no_repeat_ngram)
            if (logits.amax(-1) == -math.inf).any():
                raise BedstoneError(
                    f"sampling.no_repeat_ngram: with {self.no_repeat_ngram}, a row has come to "
                    "where every token would be a repeat. Raise it, or lower max_tokens."
                )
        if self.temperature == 0:
            return logits
        if self.temperature != 1:
            logits = temperature(logits, self.temperature)
        if self.top_k:
            logits = top_k(logits, self.top_k)
        if self.top_p < 1:
            logits = top_p(logits, self.top_p)
        if self.min_p > 0:
            logits = min_p(logits, self.min_p)
        return logits

    def choose(
        self,
        logits: Tensor,
        history: Sequence[Sequence[int]],
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """The next token of each row, (B,).

        Args:
            logits: of the next token, (B, V).
            history: each row's ids so far, its prompt's and its own; read by the penalty alone.
            generators: one a row, on the CPU; unused where the temperature is 0.
        """
        logits = self.warp(logits, history)
        return logits.argmax(-1) if self.temperature == 0 else draw(logits, generators)
