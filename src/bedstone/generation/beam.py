"""Beam search: the likeliest continuations of each prompt, several followed at a time.

At each step every beam is continued by every token, and the best of all those stay (Lowerre,
1976; Graves, 2012). A continuation that ends is compared with other ended ones by its summed
log-probability over its length to the power of a penalty. When to stop, and every detail that
decides between equals, is as in `transformers`' `generate(num_beams=...)`: tokens and scores are
equal.

A prompt is read once, its beams share the memory that cross-attention reads, and a prompt that is
done leaves the batch. Shapes: L prompts still being continued, b beams of each (one before the
first step), V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import (
    Decoder,
    Finish,
    check_prompts,
    decode,
    pad,
    prefill,
    ready,
)
from bedstone.generation.sampling import constrain
from bedstone.generation.settings import BeamSearch
from bedstone.runtime import Precision

# The total of a beam that only fills a place; sums of log-probabilities never come near.
NONE = -1e9


@dataclass(frozen=True)
class Hypothesis:
    """One continuation of a prompt.

    Attributes:
        ids: the new tokens; a final end token is among them.
        score: what it was chosen by: its summed log-probability, after penalties, over its length
            to the power of the length penalty. `sequences_scores` elsewhere.
        log_probability: of all its tokens under the model's own distribution, in nats.
        finish: "stop" (an end token) or "length" (max_tokens, or the end of the context).
    """

    ids: tuple[int, ...]
    score: float
    log_probability: float
    finish: Finish


@dataclass(frozen=True)
class _Beam:
    """A continuation that goes on: `total` is what it is ranked by, `own` without penalties."""

    ids: tuple[int, ...] = ()
    total: float = 0.0
    own: float = 0.0


@dataclass
class _Search:
    """One prompt's search.

    Attributes:
        room: the most tokens to add.
        beams: what goes on, best first; of the prompt alone there is one.
        sources: of each beam, the one before this step that it continues.
        ended: the best continuations that have ended, best first; at most as many as beams.
    """

    prompt: Sequence[int]
    room: int
    beams: list[_Beam] = field(default_factory=lambda: [_Beam()])
    sources: list[int] = field(default_factory=list)
    ended: list[Hypothesis] = field(default_factory=list)


@torch.inference_mode()
def beam_search(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    search: BeamSearch | None = None,
    *,
    eos: Iterable[int],
    precision: Precision | None = None,
) -> list[list[Hypothesis]]:
    """Continues each prompt by beam search.

    What a prompt gets doesn't depend on those beside it, up to the rounding of matrix products.
    It ends at the context's end as at `max_tokens`, with "length".

    Args:
        decoder: in evaluation mode, on one device. If it reads memories, one serves the prompts
            that it serves in `generate`, and all their beams.
        prompts: token ids, one sequence a prompt, of any lengths.
        eos: ids that end a continuation.
        precision: as for `autoregress.stream`.

    Returns:
        Of each prompt `search.returned` continuations, best first; fewer only where n-grams that
        may not repeat leave no more.

    Raises:
        BedstoneError: a prompt is empty, fills the context, or has an id that the network
            doesn't know; the vocabulary is too small for so many beams; n-grams that may not
            repeat leave a prompt no continuation at all.
    """
    search = search or BeamSearch()
    ends = frozenset(eos)
    wide = max(2, 1 + len(ends)) * search.beams  # so that `beams` go on, whatever ends
    check_prompts(decoder, prompts)
    vocabulary = decoder.config.vocab_size
    if vocabulary < wide:
        raise BedstoneError(
            f"num_beams: {search.beams} beams need a vocabulary of at least {wide} tokens; the "
            f"model's has {vocabulary}. Ask for fewer beams."
        )
    if not prompts:
        return []
    decoder = ready(decoder, precision)
    context = decoder.config.context
    rooms = [min(search.max_tokens, context - len(prompt)) for prompt in prompts]
    capacity = max(len(ids) + room for ids, room in zip(prompts, rooms, strict=True))
    cache = decoder.new_cache(len(prompts), capacity)
    logits = prefill(decoder, *pad(prompts, cache.device), cache)  # (L, V)
    everyone = [_Search(ids, room) for ids, room in zip(prompts, rooms, strict=True)]
    live = everyone
    while True:
        each = len(live[0].beams)  # 1, then as many as asked for
        candidates = _candidates(logits.float(), live, search, ends, wide)
        for one, best in zip(live, candidates, strict=True):
            _step(one, best, search, ends)
        going = [place for place, one in enumerate(live) if _goes_on(one, search)]
        if not going:
            break
        sources = [place * each + source for place in going for source in live[place].sources]
        move = cache.branch if len(going) == len(live) else cache.keep
        move(torch.tensor(sources, device=cache.device))
        live = [live[place] for place in going]
        tokens = [beam.ids[-1] for one in live for beam in one.beams]
        logits = decode(decoder, torch.tensor(tokens, device=cache.device), cache)  # (L b, V)
    for number, one in enumerate(everyone):
        if not one.ended:
            raise BedstoneError(
                f"prompts[{number}]: no token may follow any more: with no_repeat_ngram_size "
                f"{search.no_repeat_ngram}, each would be a repeat. Raise it, or lower "
                "max_new_tokens."
            )
    return [one.ended[: search.returned] for one in everyone]


def _candidates(
    logits: Tensor, live: list[_Search], search: BeamSearch, ends: frozenset[int], wide: int
) -> list[list[tuple[int, _Beam]]]:
    """Of each prompt the `wide` best continuations by one token, and which beam each continues.

    Args:
        logits: after each beam, fp32, (L b, V).
    """
    vocabulary = logits.shape[-1]
    own = logits.log_softmax(-1)
    found = _penalised(own, live, search, ends)
    totals = torch.tensor([[beam.total for beam in one.beams] for one in live])  # (L, b)
    found = found.view(*totals.shape, vocabulary) + totals.to(found.device)[..., None]
    best = found.flatten(1).topk(wide)  # of b V
    gained = own.view(len(live), -1).gather(1, best.indices)
    result = []
    for one, *columns in zip(
        live, best.values.tolist(), best.indices.tolist(), gained.tolist(), strict=True
    ):
        row = []
        for total, index, gain in zip(*columns, strict=True):
            source, token = divmod(index, vocabulary)
            beam = one.beams[source]
            row.append((source, _Beam((*beam.ids, token), total, beam.own + gain)))
        result.append(row)
    return result


def _penalised(
    own: Tensor, live: list[_Search], search: BeamSearch, ends: frozenset[int]
) -> Tensor:
    """Log-probabilities (L b, V) after penalties and bans, in the published order."""
    history = [[*one.prompt, *beam.ids] for one in live for beam in one.beams]
    sizes = [len(one.prompt) for one in live for _ in one.beams]
    rules = search.constraints
    least = max(rules.min_new_tokens, search.min_tokens)
    how = replace(search, constraints=replace(rules, min_new_tokens=least))
    found = constrain(own, history, how, sizes, ends)
    return found.log_softmax(-1) if rules.renormalise else found


def _step(
    one: _Search, best: list[tuple[int, _Beam]], search: BeamSearch, ends: frozenset[int]
) -> None:
    """Ended candidates are counted, and the best of the others go on.

    Only the best `beams` candidates may end: the rest stand by for those that do.
    """
    going = []
    for rank, (source, beam) in enumerate(best):
        if beam.total <= NONE / 2:  # banned, or no beam at all; so are those that follow
            break
        length = len(beam.ids)
        stops = beam.ids[-1] in ends
        if not stops and length < one.room:
            going.append((source, beam))
        elif rank < search.beams:
            score = search.scored(beam.total, length)
            finish: Finish = "stop" if stops else "length"
            one.ended.append(Hypothesis(beam.ids, score, beam.own, finish))
    one.ended.sort(key=lambda each: -each.score)  # stable: of equals the earlier one
    del one.ended[search.beams :]
    going = going[: search.beams]
    while going and len(going) < search.beams:  # bans left too few
        source, beam = going[0]
        going.append((source, _Beam(beam.ids, NONE, beam.own)))
    one.sources = [source for source, _ in going]
    one.beams = [beam for _, beam in going]


def _goes_on(one: _Search, search: BeamSearch) -> bool:
    """Whether a prompt's beams may still give something better than what has ended."""
    if not one.beams:  # all are as long as may be, or nothing may follow
        return False
    if len(one.ended) < search.beams:
        return True
    if search.early:
        return False
    length = len(one.beams[0].ids)
    if search.early_stopping == "never" and search.length_penalty > 0:
        length = one.room
    return search.scored(one.beams[0].total, length) > one.ended[-1].score
