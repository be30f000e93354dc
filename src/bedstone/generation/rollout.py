"""Many answers to each of many prompts, sampled together: what reinforcement learning learns from.

A prompt is read once and its keys and values are copied for each of its answers. Choosing tokens is
a few operations on all rows, where `generation.autoregress` gives a step of each row out; the
distribution is the same. What an answer draws depends on its own numbers alone, so a rollout is the
same whatever is sampled beside it, up to the rounding of matrix products.

Shapes: P prompts, G answers to each, n = P G answers, T tokens of the longest, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad as pad_columns

from bedstone.generation.autoregress import Decoder, check_prompts, decode, pad, prefill, ready
from bedstone.generation.sampling import likeliest
from bedstone.runtime import Precision

ROWS = 256  # answers that are written at a time: their states stay in the processor's cache
LEAVE = 0.75  # share of rows that still write, below which those that ended leave
ELEMENTS = 2**23  # of probabilities that are held at a time


@dataclass
class Sampled:
    """Answers as tokens.

    Attributes:
        ids: (n, T) tokens, 0 past an answer's end; the end token is among them.
        lengths: (n,) tokens of each answer.
        ended: (n,) bool, whether an end token ended it; False where the limit cut it.
        log_probs: (n, T) fp32, of each token under the distribution it was drawn from.
        entropy: (n, T) fp32, of that distribution, in nats.
        read: (n, T) bool, tokens that weren't sampled: results of calls. None says that there are
            none.
    """

    ids: Tensor
    lengths: Tensor
    ended: Tensor
    log_probs: Tensor
    entropy: Tensor
    read: Tensor | None = None

    def answers(self) -> list[list[int]]:
        """The tokens of each answer."""
        sizes = self.lengths.tolist()
        return [row[:size] for row, size in zip(self.ids.tolist(), sizes, strict=True)]

    def real(self) -> Tensor:
        """(n, T) bool, which places hold a token that was sampled."""
        real = torch.arange(self.ids.shape[1])[None] < self.lengths[:, None]
        return real if self.read is None else real & ~self.read

    def pick(self, answers: Tensor) -> "Sampled":
        """Some answers, by their numbers, without columns that none of them reaches."""
        given = vars(self).items()
        some = {name: value[answers] for name, value in given if value is not None}
        longest = int(some["lengths"].max())
        return Sampled(
            **{
                name: value[:, :longest].clone() if value.dim() > 1 else value
                for name, value in some.items()
            }
        )


def joined(parts: Sequence[Sampled]) -> Sampled:
    """The answers of all parts, in their order; all of them have `read`, or none."""
    longest = max(part.ids.shape[1] for part in parts)

    def whole(name: str) -> Tensor:
        values = [getattr(part, name) for part in parts]
        if values[0].dim() > 1:
            values = [pad_columns(each, (0, longest - each.shape[1])) for each in values]
        return torch.cat(values)

    known = vars(parts[0]).items()
    return Sampled(**{name: whole(name) for name, value in known if value is not None})


@torch.no_grad()
def sample_answers(
    network: Any,
    prompts: Sequence[Sequence[int]],
    ends: Iterable[int],
    *,
    group: int = 1,
    max_tokens: int,
    temperature: float = 1.0,
    random: np.random.Generator | None = None,
    precision: Precision,
    rows: int = ROWS,
) -> Sampled:
    """Samples `group` answers to each prompt; those of a prompt stand side by side.

    Args:
        network: a decoder; its weights are read as they are now.
        prompts: token ids of each, which leave room for `max_tokens`.
        ends: ids that end an answer.
        temperature: 0 takes the likeliest tokens; the log-probabilities are then of temperature 1.
        random: draws (n, max_tokens) numbers, whatever lengths become; needed but at temperature 0.
        rows: answers that are written at a time.

    Raises:
        ValueError: there is a temperature, and nothing to draw with.
        BedstoneError: a prompt can't be continued, or the network's outputs aren't finite.
    """
    check_prompts(network, prompts)
    if temperature and random is None:
        raise ValueError("random: none was given; only temperature 0 needs none.")
    count = len(prompts) * group
    numbers = torch.zeros(count, max_tokens, dtype=torch.float64)
    if random is not None and temperature:
        numbers = torch.from_numpy(random.random((count, max_tokens)))
    known, per = frozenset(ends), max(rows // group, 1)
    was_training = network.training
    network.eval()
    try:
        decoder = ready(network, precision)
        parts = [
            _some(
                decoder,
                prompts[at : at + per],
                known,
                group,
                temperature,
                numbers[at * group : (at + per) * group],
            )
            for at in range(0, len(prompts), per)
        ]
    finally:
        network.train(was_training)
    return joined(parts).pick(torch.arange(count))


def _some(
    network: Decoder,
    prompts: Sequence[Sequence[int]],
    ends: frozenset[int],
    group: int,
    temperature: float,
    numbers: Tensor,
) -> Sampled:
    """The answers of some prompts, all at a time."""
    count, limit = numbers.shape
    cache = network.new_cache(len(prompts), max(map(len, prompts)) + limit)
    device = cache.device
    logits = prefill(network, *pad(prompts, device), cache)
    if group > 1:
        cache.branch(torch.arange(len(prompts), device=device).repeat_interleave(group))
        logits = logits.repeat_interleave(group, 0)
    made = Sampled(
        torch.zeros(count, limit, dtype=torch.long),
        torch.zeros(count, dtype=torch.long),
        torch.zeros(count, dtype=torch.bool),
        torch.zeros(count, limit),
        torch.zeros(count, limit),
    )
    last = torch.tensor(sorted(ends), dtype=torch.long)
    rows = torch.arange(count)  # which answer each row of the cache is
    writes = torch.ones(count, dtype=torch.bool)  # which of the cache's rows
    for step in range(limit):
        chosen, log_probs, entropy = (
            each.cpu() for each in _draw(logits, temperature, numbers[rows, step].to(device))
        )
        mine = rows[writes]
        made.ids[mine, step] = chosen[writes]
        made.log_probs[mine, step], made.entropy[mine, step] = log_probs[writes], entropy[writes]
        made.lengths[mine] += 1
        over = torch.isin(chosen, last) & writes
        made.ended[rows[over]] = True
        writes = writes & ~over
        left = int(writes.sum())
        if not left or step == limit - 1:
            break
        if left < LEAVE * len(rows):
            kept = writes.nonzero()[:, 0]
            cache.keep(kept.to(device))
            rows, chosen, writes = rows[kept], chosen[kept], writes[kept]
        logits = decode(network, chosen.to(device), cache)
    return made


def _draw(logits: Tensor, temperature: float, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A token of each row, its log-probability, and the entropy, each (B,).

    By inversion of the cumulative distribution, as `sampling.draw`.
    """
    size = max(ELEMENTS // logits.shape[1], 1)
    if len(logits) > size:
        parts = zip(logits.split(size), numbers.split(size), strict=True)
        found = [_draw(some, temperature, own) for some, own in parts]
        tokens, log_probs, entropy = (torch.cat(each) for each in zip(*found, strict=True))
        return tokens, log_probs, entropy
    logits = logits.float()
    known = (logits / temperature if temperature else logits).log_softmax(-1)
    probabilities = known.exp()
    entropy = -(probabilities * known).sum(-1)
    if temperature:
        cumulative = probabilities.cumsum(-1, dtype=torch.float64)
        # just below 1, so that rounding can't reach past the last token that has probability
        target = numbers[:, None] * cumulative[:, -1:] * (1 - 1e-12)
        tokens = torch.searchsorted(cumulative, target, right=True)[:, 0]
    else:
        tokens = likeliest(known)
    return tokens, known.gather(-1, tokens[:, None])[:, 0], entropy
