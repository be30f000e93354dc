"""Candidate continuations ranked by their likelihood, such as answers from a list.

The score of a candidate is log p(candidate | prompt), the sum of its tokens' log-probabilities:
the loss of a language model, turned around (Li et al., 2022, section 4.4, rank answers by it).
Candidates that hold their end token are whole texts, and the probabilities of all whole texts sum
to one: scores of different lengths compare as they are. It is exact: every candidate is read, in
groups of similar lengths that share the prompt's keys and values.

Shapes: n prompts, C candidates, G of a group, T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import Decoder, check_ids, check_prompts, pad, prefill
from bedstone.nn.cache import Cache
from bedstone.runtime import check_finite

# Tokens that the caches of a group may hold together, which bounds its memory.
TOKENS = 8192
LOGITS = 2**25  # numbers of a head's output at a time


@torch.inference_mode()
def rank(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[int]],
) -> Tensor:
    """Log-probabilities of each candidate after each prompt, fp32, (n, C), in nats.

    A prompt is read once, whatever the number of candidates.

    Args:
        decoder: in evaluation mode, on one device; a memory serves the prompts that it serves in
            `generate`.
        prompts: token ids, one sequence a prompt, of any lengths.
        candidates: token ids of each continuation, its end token among them where it counts.

    Raises:
        BedstoneError: there is no candidate, one is empty or has an id that the network doesn't
            know, or together with a prompt it is longer than the context; a prompt can't be
            continued.
    """
    check_prompts(decoder, prompts)
    _check(decoder, prompts, candidates)
    if not prompts:
        return torch.zeros(0, len(candidates))
    longest = max(map(len, candidates))
    cache = decoder.new_cache(len(prompts), max(map(len, prompts)) + longest - 1)
    first = prefill(decoder, *pad(prompts, cache.device), cache)  # (n, V)
    begins = torch.tensor([ids[0] for ids in candidates], device=cache.device)
    scores = first.float().log_softmax(-1)[:, begins]  # (n, C)
    for group in _groups(candidates, len(prompts) * cache.capacity):
        scores[:, group] += _rest(decoder, cache, [candidates[index] for index in group])
    check_finite(scores, "the candidates' log-probabilities")
    return scores


def _groups(candidates: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
    """Indices of candidates of two tokens or more, by length; `tokens` is what one costs."""
    longer = [index for index, ids in enumerate(candidates) if len(ids) > 1]
    longer.sort(key=lambda index: len(candidates[index]))
    together = max(1, TOKENS // tokens)
    for start in range(0, len(longer), together):
        yield longer[start : start + together]


def _rest(decoder: Decoder, cache: Cache, group: list[Sequence[int]]) -> Tensor:
    """Log-probability of what follows each candidate's first token, (n, G).

    The cache holds the prompts, and stays as it is.
    """
    ids, lengths = pad(group, cache.device)  # (G, T)
    prompts = cache.rows
    rows = torch.arange(prompts, device=cache.device).repeat_interleave(len(group))
    forked = cache.fork(rows)
    held = forked.length if forked.lengths is None else forked.lengths
    forked.coming = (held + lengths.repeat(prompts) - 1)[:, None]
    states = decoder.states(ids[:, :-1].repeat(prompts, 1), cache=forked)
    real = torch.arange(1, ids.shape[1], device=cache.device) < lengths[:, None]  # (G, T - 1)
    real = real.repeat(prompts, 1)
    states, wanted = states[real], ids[:, 1:].repeat(prompts, 1)[real]
    some = max(1, LOGITS // decoder.config.vocab_size)
    gained = [
        decoder.head(part).float().log_softmax(-1).gather(-1, own[:, None])[:, 0]
        for part, own in zip(states.split(some), wanted.split(some), strict=True)
    ]
    each = torch.zeros(real.shape, device=cache.device).masked_scatter(real, torch.cat(gained))
    return each.sum(-1).view(prompts, len(group))


def _check(
    decoder: Decoder, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]
) -> None:
    """Raises BedstoneError for candidates that can't be ranked."""
    if not candidates:
        raise BedstoneError("candidates: the list is empty; give at least one to rank.")
    context = decoder.config.context
    room = context - max(map(len, prompts), default=0)
    for index, ids in enumerate(candidates):
        if not ids:
            raise BedstoneError(f"candidates[{index}]: is empty; give it at least one token.")
        check_ids(decoder, ids, f"candidates[{index}]")
        if len(ids) > room:
            raise BedstoneError(
                f"candidates[{index}]: has {len(ids)} tokens; the longest prompt leaves {room} of "
                f"the model's context, {context}. Shorten the one or the other."
            )
