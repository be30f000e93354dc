"""Beam search: the likeliest continuations of each prompt, several followed at a time.

At each step every beam is continued by every token, and the best of all those stay (Lowerre,
1976; Graves, 2012). A continuation that ends is compared with other ended ones by its summed
log-probability over its length to the power of a penalty. When to stop, and every detail that
decides between equals, is as in `transformers`' `generate(num_beams=...)`: tokens and scores are
equal.

Beams may be in groups that are kept apart (diverse beam search: Vijayakumar et al., 2016), must
hold words (`generation.required`), or continue each of the likeliest next tokens. All are searches
of one prompt that step together.

A prompt is read once, its beams share the memory that cross-attention reads, and a search that is
done leaves the batch. Shapes: S searches of a turn, b beams of each (one before the first step), R
their rows, V vocabulary.
"""

import functools
from collections import Counter
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
from bedstone.generation.required import (
    START,
    RequiredWords,
    State,
    Word,
    allowed,
    in_turn,
    required_words,
)
from bedstone.generation.sampling import constrain, unconstrained
from bedstone.generation.settings import BeamSearch
from bedstone.nn.fast import passes
from bedstone.runtime import Precision

# The total of a beam that only fills a place; sums of log-probabilities never come near.
NONE = -1e9
COLUMNS = 256  # a row's largest numbers are found among the maxima of so many columns of it


@dataclass(frozen=True)
class Hypothesis:
    """One continuation of a prompt.

    Attributes:
        ids: its prefix, if it has one, and the new tokens; a final end token is among them.
        score: what it was chosen by: the summed log-probability of its new tokens, after penalties,
            over their number to the power of the length penalty. `sequences_scores` elsewhere.
        log_probability: of the new tokens under the model's own distribution, in nats.
        finish: "stop" (an end token) or "length" (max_tokens, or the end of the context).
    """

    ids: tuple[int, ...]
    score: float
    log_probability: float
    finish: Finish


@dataclass(slots=True)  # and never changed: thousands are made a second
class _Beam:
    """A continuation that goes on: `total` is what it is ranked by, `own` without penalties."""

    ids: tuple[int, ...] = ()
    total: float = 0.0
    own: float = 0.0
    state: State = frozenset()  # with the words that must occur


@dataclass
class _Search:
    """One prompt's search, or one of several that a prompt has.

    Attributes:
        room: the most tokens to add.
        beams: what goes on, best first; of the prompt alone there is one.
        sources: of each beam, the one before this step that it continues.
        ended: the best continuations that have ended, best first; at most as many as beams.
        number: of its prompt.
        turn: the number of its group: groups step one after another.
        pick: which of the likeliest next tokens it continues; None leaves all to it.
        row: of its first beam in the batch.
        best: the highest total of its last candidates.
        words: that must occur.
        spare: tokens at the end of the room that must be others than theirs.
        forced: the first token, where it is given and of no word.
        source: ids that the decoder's memory was made of.
    """

    prompt: Sequence[int]
    room: int
    beams: list[_Beam] = field(default_factory=lambda: [_Beam()])
    sources: list[int] = field(default_factory=list)
    ended: list[Hypothesis] = field(default_factory=list)
    number: int = 0
    turn: int = 0
    pick: int | None = None
    row: int = 0
    best: float = 0.0
    words: RequiredWords | None = None
    spare: int = 0
    forced: int | None = None
    source: Sequence[int] = ()

    def spaces(self, length: int) -> int:
        """How many tokens may follow so many and be any."""
        return self.room - length - self.spare

    def after(self, beam: _Beam, token: int) -> State:
        """How far a beam is with the words after one more token."""
        if self.words is None or (token == self.forced and not beam.ids):
            return beam.state
        return self.words.after(beam.state, [token])


# A continuation by one token: its total, the beam, the token, and its own log-probability.
Candidate = tuple[float, int, int, float]


@torch.inference_mode()
def beam_search(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    search: BeamSearch | None = None,
    *,
    eos: Iterable[int],
    precision: Precision | None = None,
    prefixes: Sequence[Sequence[int]] | None = None,
    words: Sequence[Sequence[Word]] | None = None,
    sources: Sequence[Sequence[int]] | None = None,
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
        prefixes: of each prompt, ids that its continuations begin with. Scores and limits count
            the tokens after them, as of `decoder_input_ids` in `transformers`.
        words: of each prompt, words that its continuations must hold beside `search.required`.
        sources: of each prompt, the ids that its memory was made of, for settings that compare
            with them; by default the prompt itself, as of a decoder alone in `transformers`.

    Returns:
        Of each prompt `search.returned` continuations, best first, or by the likelihood of the next
        token where they are alternatives; fewer only where fewer can be.

    Raises:
        BedstoneError: a prompt is empty, fills the context, or has an id that the network
            doesn't know; the vocabulary is too small for so many beams; words don't fit in the
            room or are banned; n-grams that may not repeat leave a prompt no continuation at all.
    """
    search = search or BeamSearch()
    ends = frozenset(eos)
    wide = max(2, 1 + len(ends)) * search.each  # so that `each` go on, whatever ends
    if search.alternatives:
        wide = max(wide, search.returned)
    begun = [()] * len(prompts) if prefixes is None else [tuple(ids) for ids in prefixes]
    whole = [[*ids, *prefix] for ids, prefix in zip(prompts, begun, strict=True)]
    check_prompts(decoder, prompts)
    check_prompts(decoder, whole)
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
    more: Sequence[Sequence[Word]] = [()] * len(whole) if words is None else words
    everyone = [
        _started(number, ids, min(search.max_tokens, context - len(ids)), search)
        for number, ids in enumerate(whole)
    ]
    for prefix, own, several in zip(begun, more, everyone, strict=True):
        _require(several, prefix, (*search.required, *own), search, ends, vocabulary)
    if sources is not None:
        for source, several in zip(sources, everyone, strict=True):
            for one in several:
                one.source = source
    capacity = max(len(one.prompt) + one.room for one, *_ in everyone)
    cache = decoder.new_cache(len(whole), capacity)
    logits = prefill(decoder, *pad(whole, cache.device), cache)  # (R, V)
    live = [one for several in everyone for one in several]
    while True:
        _turns(logits, live, search, ends, wide)
        going = [one for one in live if _goes_on(one, search)]
        if not going:
            break
        rows = [one.row + source for one in going for source in one.sources]
        move = cache.branch if len(going) == len(live) else cache.keep
        move(torch.tensor(rows, device=cache.device))
        for place, one in enumerate(going):
            one.row = place * search.each
        live = going
        tokens = [beam.ids[-1] for one in live for beam in one.beams]
        logits = decode(decoder, torch.tensor(tokens, device=cache.device), cache)
    found = [_results(several, search) for several in everyone]
    for number, results in enumerate(found):
        if not results:
            raise BedstoneError(
                f"prompts[{number}]: no token may follow any more: with no_repeat_ngram_size "
                f"{search.no_repeat_ngram} and encoder_no_repeat_ngram_size "
                f"{search.constraints.source_ngram}, each would be a repeat, or a word that must "
                "occur would. Raise them, or lower max_new_tokens."
            )
    return [
        [replace(one, ids=(*prefix, *one.ids)) if prefix else one for one in results]
        for prefix, results in zip(begun, found, strict=True)
    ]


def _started(number: int, prompt: Sequence[int], room: int, search: BeamSearch) -> list[_Search]:
    """The searches of one prompt: one, one of each group, or one of each alternative."""
    if search.alternatives:
        picks = range(search.returned)
        return [_Search(prompt, room, number=number, row=number, pick=pick) for pick in picks]
    turns = range(search.groups)
    return [_Search(prompt, room, number=number, row=number, turn=turn) for turn in turns]


def _require(
    several: list[_Search],
    prefix: Sequence[int],
    words: Sequence[Word],
    search: BeamSearch,
    ends: frozenset[int],
    vocabulary: int,
) -> None:
    """Gives a prompt's searches the words that must occur.

    Raises:
        BedstoneError: they don't fit, or are banned.
    """
    if not words:
        return
    search.check_words()
    rules, first = search.constraints, several[0]
    banned = (*rules.bad_words, *((token,) for token in rules.suppressed))
    required = required_words(allowed(words, banned, ends, vocabulary), search.joining)
    assert required is not None
    begins = len(first.prompt) - len(prefix) == 1  # no text is before it
    state = required.after(required.start, [START, *prefix] if begins else prefix)
    spare = int(bool(rules.forced_last) and first.room == search.max_tokens)
    forced = rules.forced_first if len(first.prompt) == 1 else None
    needed, room = required.needed(state), first.room - spare - (forced is not None)
    if needed > room:
        raise BedstoneError(
            f"prompts[{first.number}]: the words that must occur take {needed} tokens, and "
            f"max_new_tokens or the context leaves {room}. Raise it, or require fewer words."
        )
    for one in several:
        one.words, one.spare, one.forced = required, spare, forced
        one.beams = [_Beam(state=state)]


def _turns(
    logits: Tensor, live: list[_Search], search: BeamSearch, ends: frozenset[int], wide: int
) -> None:
    """One step of all searches: group after group, each kept from the tokens of those before.

    Args:
        logits: after each beam, (R, V).
    """
    chosen: dict[int, Counter[int]] = {}
    for turn in range(search.groups):
        now = [one for one in live if one.turn == turn]
        if not now:
            continue
        rows = [one.row + beam for one in now for beam in range(len(one.beams))]
        part = logits if rows == list(range(len(logits))) else logits[rows]
        candidates = _candidates(part.float(), now, search, ends, wide, chosen)
        for one, best in zip(now, candidates, strict=True):
            tokens = _step(one, best, search, ends)
            if search.diversity:
                chosen.setdefault(one.number, Counter()).update(tokens)


def _candidates(
    logits: Tensor,
    now: list[_Search],
    search: BeamSearch,
    ends: frozenset[int],
    wide: int,
    chosen: dict[int, Counter[int]],
) -> list[list[Candidate]]:
    """Of each search the `wide` best continuations by one token, best first.

    With them go, where words must occur, all that bring a beam nearer to them, and of every beam
    the best.

    Args:
        logits: after each beam, fp32, (R, V).
        chosen: of each prompt, how many beams of other groups go on by which token.
    """
    totals = torch.tensor([[beam.total for beam in one.beams] for one in now], device=logits.device)
    if not chosen and not any(one.words for one in now):
        bans = _bans(logits, now, search, ends, wide)
        if bans is not None:
            best = passes.best_tokens(logits, totals, wide, bans)
            whole = zip(*(each.tolist() for each in best), strict=True)
            return [list(zip(*row, strict=True)) for row in whole]
    own = logits.log_softmax(-1)
    found = _penalised(own, now, search, ends, chosen)
    values, beams, tokens = likeliest(found, totals, wide)
    each = totals.shape[1]
    rows = torch.arange(len(now), device=own.device)[:, None] * each + beams
    gained = own[rows, tokens]
    columns = zip(values.tolist(), beams.tolist(), tokens.tolist(), gained.tolist(), strict=True)
    result = [list(zip(*row, strict=True)) for row in columns]
    if any(one.words for one in now):
        _add_words(result, now, found, own, len(ends))
    return result


def _bans(
    logits: Tensor, now: list[_Search], search: BeamSearch, ends: frozenset[int], wide: int
) -> tuple[int, ...] | None:
    """The tokens that may not follow, if that is all that is asked of these searches' next tokens.

    None where more is, or where the engine can't take it.
    """
    vocabulary = logits.shape[-1]
    bans = _only_bans(search, ends)
    if bans is None or len(bans) > passes.MOST_BANNED or wide > passes.MOST_WANTED:
        return None
    if vocabulary < len(bans) + wide or any(token >= vocabulary for token in bans):
        return None
    if search.constraints.forced_last and any(
        len(one.beams[0].ids) == search.max_tokens - 1 for one in now
    ):
        return None
    return bans if passes.usable(logits) else None


@functools.lru_cache(maxsize=16)
def _only_bans(search: BeamSearch, ends: frozenset[int]) -> tuple[int, ...] | None:
    """Tokens that may never follow, where penalties and constraints ask for nothing else.

    But for the last token that `max_tokens` lets in, which `forced_last` may force.
    """
    rules = search.constraints
    longer = tuple(ids for ids in rules.bad_words if len(ids) > 1)
    rest = replace(rules, bad_words=longer, suppressed=(), forced_last=())
    if search.min_tokens or not unconstrained(replace(search, constraints=rest)):
        return None
    words = (ids[0] for ids in rules.bad_words if len(ids) == 1 and ids[0] not in ends)
    return tuple(dict.fromkeys((*words, *rules.suppressed)))


def likeliest(scores: Tensor, totals: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` largest of scores plus totals of each search: values, beams, tokens, (S, count).

    In two passes: the largest numbers of a row are among the `count` columns of it, folded to a
    table, that have the largest maxima.

    Args:
        scores: of each beam's next tokens, (S b, V).
        totals: of each beam so far, (S, b).
    """
    vocabulary, each = scores.shape[-1], totals.shape[1]
    deep = vocabulary // COLUMNS
    if deep < 4 or count > COLUMNS:
        flat = scores.view(len(totals), each, vocabulary) + totals[..., None]
        best = flat.flatten(1).topk(count)  # of b V
        return best.values, best.indices // vocabulary, best.indices % vocabulary
    maxima = scores[:, : deep * COLUMNS].unflatten(1, (deep, COLUMNS)).amax(1)
    rest = scores[:, deep * COLUMNS :]
    maxima[:, : rest.shape[1]] = torch.maximum(maxima[:, : rest.shape[1]], rest)
    maxima = maxima.view(*totals.shape, COLUMNS) + totals[..., None]
    places = maxima.flatten(1).topk(count).indices
    beams, columns = places // COLUMNS, places % COLUMNS  # (S, count)
    rows = torch.arange(len(totals), device=scores.device)[:, None] * each + beams
    depths = torch.arange(deep + 1, device=scores.device) * COLUMNS
    tokens = columns[..., None] + depths  # (S, count, depths)
    real = tokens < vocabulary
    values = scores[rows[..., None], tokens.clamp(max=vocabulary - 1)]
    values = (values + totals.gather(1, beams)[..., None]).masked_fill(~real, -torch.inf)
    best = values.flatten(1).topk(count)
    beams = beams.gather(1, best.indices // (deep + 1))
    return best.values, beams, tokens.flatten(1).gather(1, best.indices)


def _penalised(
    own: Tensor,
    now: list[_Search],
    search: BeamSearch,
    ends: frozenset[int],
    chosen: dict[int, Counter[int]],
) -> Tensor:
    """Log-probabilities (R, V) after penalties and bans, in the published order."""
    rules = search.constraints
    least = max(rules.min_new_tokens, search.min_tokens)
    how = replace(search, constraints=replace(rules, min_new_tokens=least))
    beams = [(one, beam) for one in now for beam in one.beams]
    taken = None
    if chosen:
        taken = [
            {token: -search.diversity * count for token, count in chosen[one.number].items()}
            if one.number in chosen
            else {}
            for one, _ in beams
        ]
    if taken is None and unconstrained(how):
        return own
    found = constrain(
        own,
        [[*one.prompt, *beam.ids] for one, beam in beams],
        how,
        [len(one.prompt) for one, _ in beams],
        ends,
        sources=[one.source or one.prompt for one, _ in beams],
        taken=taken,
    )
    return found.log_softmax(-1) if rules.renormalise else found


def _add_words(
    result: list[list[Candidate]], now: list[_Search], found: Tensor, own: Tensor, ends: int
) -> None:
    """Adds what brings a beam nearer to its words, and the best of every beam; best first."""
    best = found.topk(1 + ends).indices.tolist()  # one of them doesn't end
    row, places, rows, tokens = 0, [], [], []
    for place, (one, candidates) in enumerate(zip(now, result, strict=True)):
        known = {(source, token) for _, source, token, _ in candidates}
        for source, beam in enumerate(one.beams):
            if one.words is not None and beam.total > NONE / 2:
                for token in dict.fromkeys((*one.words.wanted(beam.state), *best[row])):
                    if (source, token) not in known:
                        places.append((place, source, beam.total))
                        rows.append(row)
                        tokens.append(token)
            row += 1
    values, gained = found[rows, tokens].tolist(), own[rows, tokens].tolist()
    for (place, source, total), token, value, gain in zip(
        places, tokens, values, gained, strict=True
    ):
        result[place].append((total + value, source, token, gain))
    for candidates in result:
        candidates.sort(key=lambda each: -each[0])


def _in_banks(
    one: _Search, best: list[Candidate], ends: frozenset[int]
) -> Iterable[tuple[int, Candidate]]:
    """Candidates that can still hold all words, by banks; only complete ones may end."""
    words = one.words
    assert words is not None
    found = []
    for candidate in best:
        total, source, token, _ = candidate
        if total <= NONE / 2:
            break
        beam = one.beams[source]
        needed = words.needed(one.after(beam, token))
        fits = needed <= one.spaces(len(beam.ids) + 1) or not needed
        if fits and not (needed and token in ends):
            found.append((needed, candidate))
    return in_turn(found)


def _step(
    one: _Search, best: list[Candidate], search: BeamSearch, ends: frozenset[int]
) -> list[int]:
    """Ended candidates are counted, and the best of the others go on, by the tokens returned.

    Only the best candidates, as many as beams, may end: the rest stand by for those that do.
    """
    one.best, each = best[0][0], search.each
    ranked = enumerate(best) if one.words is None else _in_banks(one, best, ends)
    if one.pick is not None and not one.beams[0].ids:
        ranked = [(0, candidate) for _, candidate in ranked][one.pick :][:1]
    length, free = len(one.beams[0].ids) + 1, one.words is None
    room, going = length < one.room, 0
    sources: list[int] = []
    beams: list[_Beam] = []
    tokens: list[int] = []  # of those that are at their full length, too
    for rank, (total, source, token, gain) in ranked:
        if total <= NONE / 2:  # banned, or no beam at all; so are those that follow
            break
        if rank >= each and going == each:
            break
        beam = one.beams[source]
        stops = token in ends
        if not stops and len(tokens) < each:
            tokens.append(token)
        if not stops and room:
            if going < each:
                state = beam.state if free else one.after(beam, token)
                beams.append(_Beam((*beam.ids, token), total, beam.own + gain, state))
                sources.append(source)
                going += 1
        elif rank < each:
            score = search.scored(total, length)
            finish: Finish = "stop" if stops else "length"
            one.ended.append(Hypothesis((*beam.ids, token), score, beam.own + gain, finish))
            one.ended.sort(key=lambda one: -one.score)  # stable: of equals the earlier one
    del one.ended[each:]
    if not free:  # banks have an order of their own
        order = sorted(range(going), key=lambda place: -beams[place].total)
        sources, beams = [sources[i] for i in order], [beams[i] for i in order]
    while beams and len(beams) < each:  # bans left too few
        sources.append(sources[0])
        beams.append(replace(beams[0], total=NONE))
    one.sources, one.beams = sources, beams
    return tokens


def _goes_on(one: _Search, search: BeamSearch) -> bool:
    """Whether a search's beams may still give something better than what has ended."""
    if not one.beams:  # all are as long as may be, or nothing may follow
        return False
    if len(one.ended) < search.each:
        return True
    if search.early:
        return False
    length = len(one.beams[0].ids)
    if search.early_stopping == "never" and search.length_penalty > 0:
        length = one.room
    # in groups as version 4 of transformers has it, where one that ended counts as well
    best = one.beams[0].total if search.groups == 1 else one.best
    return search.scored(best, length) > one.ended[-1].score


def _results(several: list[_Search], search: BeamSearch) -> list[Hypothesis]:
    """Of a prompt's searches what is returned: the best of all, or of each alternative."""
    if search.alternatives:
        return [one.ended[0] for one in several if one.ended]
    found = [each for one in several for each in one.ended]
    found.sort(key=lambda each: -each.score)
    return found[: search.returned]
