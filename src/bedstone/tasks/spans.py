"""Where an answer stands: from scores of starts and ends to stretches of the context.

Shapes: T tokens of a window.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bedstone.data.inputs import Input


class Span(NamedTuple):
    """A stretch of a context: characters `start` to `end`, and the sum of its two scores."""

    score: float
    start: int
    end: int


def spans_of(window: Input, logits: Tensor, *, longest: int = 30, count: int = 20) -> list[Span]:
    """The best stretches of the context within one window, best first.

    Args:
        window: with the context as its second text.
        logits: (T, 2) of starts and ends.
        longest: tokens of an answer at most.
        count: how many to give at most.
    """
    inside = [place for place, source in enumerate(window.sources) if source == 1]
    if not inside:
        return []
    first, last = inside[0], inside[-1] + 1
    start, end = logits[first:last].float().T
    sums = start[:, None] + end[None]  # (T, T): starts before ends, near them
    allowed = torch.ones_like(sums, dtype=torch.bool).triu().tril(longest - 1)
    best = sums.masked_fill(~allowed, float("-inf")).flatten().topk(min(count, sums.numel()))
    found = []
    for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        if score > float("-inf"):
            one, two = divmod(place, len(start))
            begin, finish = window.offsets[first + one][0], window.offsets[first + two][1]
            found.append(Span(score, begin, finish))
    return found


def best_answer(
    windows: list[tuple[Input, Tensor]], context: str, *, longest: int = 30, impossible: bool = True
) -> str:
    """The best answer over a context's windows; "" where none at all scores higher.

    Args:
        windows: each with its logits, (T, 2); the first token stands for "no answer".
        impossible: whether there may be no answer.
    """
    spans = [
        span
        for window, logits in windows
        for span in spans_of(window, logits, longest=longest, count=1)
    ]
    nothing = min(float(logits[0].float().sum()) for _, logits in windows)
    best = max(spans, default=Span(float("-inf"), 0, 0))
    if not spans or (impossible and nothing > best.score):
        return ""
    return context[best.start : best.end]
