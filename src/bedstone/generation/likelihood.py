"""Log-probabilities of continuations after contexts, as few-shot evaluation needs them.

Requests are read as a tree: what several begin with, such as the examples of a prompt or a row
before each of its labels, is read once. Tokens of a pass lie end to end without padding, and each
sees those that it follows (`nn.masks.Branches`); a long common beginning stays in the key/value
cache from pass to pass. So the numbers are those of each request read alone.

Over the C++ engine each request is a row of its own, which begins with a copy of what it shares
with the one before. Then its numbers are those of the request read alone to the last bit, and so
those that `bedstone serve` gives.

Texts become tokens as in lm-evaluation-harness (Gao et al., 2021, `TemplateLM._encode_pair` and
`HFLM.loglikelihood`), so the figures of both compare.

Shapes: N tokens of a pass, D width, V vocabulary.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.data.bytes import check_characters
from bedstone.data.text.chat import Rendered
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import Decoder, check_ids, ready
from bedstone.generation.rows import EngineRows, Part
from bedstone.generation.sampling import log_probabilities
from bedstone.generation.text import encode_prompt
from bedstone.nn.fast.decoder import Decoder as EngineDecoder
from bedstone.nn.masks import Branches
from bedstone.runtime import Precision, check_finite

log = logging.getLogger("bedstone.generation")
TOKENS = {"cpu": 512}  # new tokens of a pass, by device: attention takes N squared
MANY = 4096  # on other devices
ALONE = 16  # tokens of a common beginning that pay for a pass of their own
LOGITS = 2**25  # numbers of a head's output at a time
ROWS = 16  # requests that the engine reads side by side


@dataclass(frozen=True)
class Likelihood:
    """How likely a continuation is.

    Attributes:
        log_probability: of its tokens after the context that count, in nats.
        greedy: whether each token is the likeliest one there.
        tokens: of the continuation.
        bytes: of the continuation as it was given, in UTF-8.
        cut: tokens of the context that were left out, from its beginning.
    """

    log_probability: float
    greedy: bool
    tokens: int
    bytes: int = 0
    cut: int = 0


@dataclass(frozen=True)
class Request:
    """Tokens to score.

    Attributes:
        ids: of the context's end and of the continuation.
        first: the place of the continuation's first token, at least 1.
        cut: tokens of the context that were left out.
        bytes: of the continuation.
        scored: places of the continuation's tokens that count; None is all of them.
    """

    ids: tuple[int, ...]
    first: int
    cut: int = 0
    bytes: int = 0
    scored: tuple[int, ...] | None = None

    @property
    def places(self) -> Sequence[int]:
        """Of the tokens that count."""
        return range(self.first, len(self.ids)) if self.scored is None else self.scored


class Scorer:
    """Scores continuations with one network.

    What it has read last stays in a key/value cache, also between calls.

    Args:
        network: in evaluation mode, on one device.
        tokenizer: that made its texts into tokens.
    """

    def __init__(self, network: Decoder, tokenizer: Tokenizer) -> None:
        self.network, self.tokenizer = network, tokenizer
        self.context = int(network.config.context)
        self._cache: Any = None
        self._held: tuple[int, ...] = ()  # the tokens that it holds

    # Texts.

    def score(
        self, pairs: Sequence[tuple[str, str]], progress: Callable[[float], None] | None = None
    ) -> list[Likelihood]:
        """How likely each continuation is after its context.

        Spaces at a context's end go to the continuation, since most tokenizers join them to the
        next word; both are encoded together, and the continuation is what is longer than the
        context alone. An empty context is the token that begins a text, or else the one that ends
        one. A context that doesn't fit with its continuation loses its beginning, with a warning.
        A context that a chat template wrote (`data.text.chat.Rendered`) keeps its tokens.

        Args:
            pairs: of a context and a continuation.
            progress: is handed the share done.

        Raises:
            BedstoneError: a continuation has no token of its own, is longer than the model's
                context, or holds half a character; there is no token for an empty context.
        """
        requests = [self.request(*pair, number) for number, pair in enumerate(pairs)]
        cut = [each.cut for each in requests if each.cut]
        if cut:
            log.warning(
                "%s of %s contexts are longer than the model's context, %s tokens, with their "
                "continuation: they lost their first %s tokens (%s in all).",
                f"{len(cut):,}",
                f"{len(requests):,}",
                f"{self.context:,}",
                f"{max(cut):,}" if min(cut) == max(cut) else f"{min(cut):,} to {max(cut):,}",
                f"{sum(cut):,}",
            )
        return self.score_ids(requests, progress)

    def rolling(self, texts: Sequence[str]) -> list[Likelihood]:
        """How likely whole texts are, each token after as many as the context holds.

        The first token follows the one that begins a text. A text longer than the context is read
        in windows that don't overlap, but the last, which is as long as the others.

        Raises:
            BedstoneError: as `score`; a text is empty.
        """
        windows, owners = [], []
        for number, text in enumerate(texts):
            check_characters(text, f"texts[{number}]")
            ids = tuple(self._encode(text))
            if not ids:
                raise BedstoneError(f"texts[{number}]: is empty; give it at least one token.")
            for start in range(0, len(ids), self.context):
                end = min(start + self.context, len(ids))
                first = max(end - self.context - 1, -1) if start else -1
                before = (self._prefix(),) if first < 0 else (ids[first],)
                read = before + ids[first + 1 : end]
                windows.append(Request(read, len(read) - (end - start)))
                owners.append(number)
        found = [Likelihood(0.0, True, 0, len(text.encode())) for text in texts]
        for owner, one in zip(owners, self.score_ids(windows), strict=True):
            so_far = found[owner]
            found[owner] = Likelihood(
                so_far.log_probability + one.log_probability,
                so_far.greedy and one.greedy,
                so_far.tokens + one.tokens,
                so_far.bytes,
            )
        return found

    def request(self, context: str, continuation: str, number: int = 0) -> Request:
        """A context and a continuation as tokens, cut to the model's context; see `score`."""
        where = f"requests[{number}]"
        check_characters(context, f"{where}: the context")
        check_characters(continuation, f"{where}: the continuation")
        size = len(continuation.encode())
        if isinstance(context, Rendered):
            before: Sequence[int] = context.ids
            own: Sequence[int] = self.tokenizer.encode(continuation)
        else:
            before, own = self._pair(context, continuation)
        if not own:
            raise BedstoneError(
                f"{where}: the continuation {continuation[:60]!r} has no token of its own after "
                f"{context[-30:]!r}. Give it at least one."
            )
        if len(own) > self.context:
            raise BedstoneError(
                f"{where}: the continuation has {len(own):,} tokens; the model's context is "
                f"{self.context:,}. Shorten it."
            )
        cut = max(len(before) + len(own) - self.context - 1, 0)
        return Request((*before[cut:], *own), len(before) - cut, cut, size)

    def _pair(self, context: str, continuation: str) -> tuple[Sequence[int], Sequence[int]]:
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        if not bare:
            own, first = self.tokenizer.encode(continuation), self._prefix()
            return ([first], own) if own[:1] != [first] else (own[:1], own[1:])
        before = self._encode(bare)
        return before, self._encode(bare + continuation)[len(before) :]

    def _encode(self, text: str) -> list[int]:
        """Ids of a text that begins one; one that spells its first token out gets no other."""
        first = self.tokenizer.bos_id
        begun = first is not None and text.startswith(
            self.tokenizer.decode([first], skip_special=False)
        )
        return self.tokenizer.encode(text) if begun else encode_prompt(self.tokenizer, text)

    def _prefix(self) -> int:
        """The token that an empty context is."""
        known = (self.tokenizer.bos_id, self.tokenizer.eos_id)
        found = next((each for each in known if each is not None), None)
        if found is None:
            raise BedstoneError(
                "the context is empty, and the tokenizer has no token that begins or ends a text. "
                "Give a context, or name bos_token or eos_token in tokenizer_config.json."
            )
        return found

    # Tokens.

    @torch.inference_mode()
    def score_ids(
        self, requests: Sequence[Request], progress: Callable[[float], None] | None = None
    ) -> list[Likelihood]:
        """How likely the continuation of each request is; a result each, in order."""
        for number, each in enumerate(requests):
            check_ids(self.network, each.ids, f"requests[{number}]")
        sums = np.zeros(len(requests))
        greedy = np.ones(len(requests), dtype=bool)
        order = sorted(range(len(requests)), key=lambda number: requests[number].ids)
        for done in self._passes(requests, order, sums, greedy):
            if progress is not None:
                progress(done / len(order))
        check_finite(torch.from_numpy(sums), "the continuations' log-probabilities")
        return [
            Likelihood(
                float(sums[number]),
                bool(greedy[number]),
                len(each.places),
                each.bytes,
                each.cut,
            )
            for number, each in enumerate(requests)
        ]

    def _passes(
        self,
        requests: Sequence[Request],
        order: Sequence[int],
        sums: np.ndarray,
        greedy: np.ndarray,
    ) -> Iterator[int]:
        """Reads the requests in an order, adds to their sums, and yields how many are done."""
        done = 0
        for batch in self._batches([requests[number] for number in order]):
            chosen = order[done : done + batch]
            done += batch
            self._read([requests[number] for number in chosen], chosen, sums, greedy)
            yield done

    def _batches(self, requests: Sequence[Request]) -> Iterator[int]:
        """How many of the sorted requests are read together, again and again."""
        most = TOKENS.get(self._device.type, MANY)
        count = tokens = shared = 0
        for number, each in enumerate(requests):
            inputs = each.ids[:-1]
            common = _common(inputs, requests[number - 1].ids[:-1]) if count else len(inputs)
            grown = tokens + len(inputs) - common if count else len(inputs)
            least = min(shared, common, each.first - 1) if count else each.first - 1
            if count and grown - least > most:
                yield count
                count, grown, least = 0, len(inputs), each.first - 1
            count, tokens, shared = count + 1, grown, least
        if count:
            yield count

    def _read(
        self, batch: Sequence[Request], numbers: Sequence[int], sums: np.ndarray, greedy: np.ndarray
    ) -> None:
        """Reads one batch; adds to the sums of its requests, by their numbers."""
        first = batch[0].ids
        shared = min(_common(first, batch[-1].ids), *(each.first - 1 for each in batch))
        keep = min(_common(self._held, first), shared)
        if shared - keep >= ALONE:
            keep = self._extend(first[:shared], keep, len(first))
        tree = _Tree(batch, keep)
        cache = self._room(keep, len(tree.ids))
        cache.coming = torch.tensor([tree.lengths], device=self._device)
        positions = torch.tensor([tree.positions], device=self._device)
        mask = Branches(torch.from_numpy(tree.seen()).to(self._device), positions[0])
        ids = torch.tensor([tree.ids], device=self._device)
        network: Any = self.network
        states = network.states(ids, mask=mask, positions=positions, cache=cache)[0]  # (N, D)
        self._keep(keep)
        places = sorted({place for place, _, _ in tree.targets})
        index = {place: row for row, place in enumerate(places)}
        rows = torch.tensor([index[place] for place, _, _ in tree.targets])
        wanted = torch.tensor([token for _, token, _ in tree.targets])
        known, best = self._known(states[places], rows, wanted)
        for (_, token, owner), value, likeliest in zip(tree.targets, known, best, strict=True):
            sums[numbers[owner]] += value
            greedy[numbers[owner]] &= likeliest == token

    def _known(self, states: Tensor, rows: Tensor, wanted: Tensor) -> tuple[list[float], list[int]]:
        """Log-probabilities of tokens at some rows of (n, D) states, and the likeliest there."""
        known, best = torch.zeros(len(rows)), torch.zeros(len(rows), dtype=torch.long)
        size = max(1, LOGITS // int(self.network.config.vocab_size))
        for start in range(0, len(states), size):
            logits = self.network.head(states[start : start + size]).float()
            own = ((rows >= start) & (rows < start + size)).nonzero()[:, 0]
            if len(own):
                local = (rows[own] - start).to(logits.device)
                values = log_probabilities(logits)[local, wanted[own].to(logits.device)]
                known[own] = values.cpu()
                best[own] = logits.argmax(-1)[local].cpu()
        return known.tolist(), best.tolist()

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device  # type: ignore[attr-defined]

    def _extend(self, ids: tuple[int, ...], keep: int, longest: int) -> int:
        """Reads a common beginning into the cache, which holds `keep` of it; its length."""
        cache = self._room(keep, len(ids) - keep)
        cache.coming = torch.tensor([[longest]], device=self._device)
        new = torch.tensor([ids[keep:]], device=self._device)
        self.network.states(new, cache=cache)
        self._held = ids
        return len(ids)

    def _room(self, keep: int, new: int) -> Any:
        """The cache with its first `keep` tokens, and room for `new` more."""
        if self._cache is None or self._cache.capacity < keep + new:
            made = self.network.new_cache(1, max(2 * (keep + new), MANY))
            for own, old in zip(made.layers, self._cache.layers if keep else [], strict=False):
                own.keys[:, :, :keep] = old.keys[:, :, :keep]
                own.values[:, :, :keep] = old.values[:, :, :keep]
            made.length, self._cache = keep, made
        self._keep(keep)
        return self._cache

    def _keep(self, keep: int) -> None:
        self._cache.rewind(keep)
        self._held = self._held[:keep]


@dataclass(eq=False)
class _Row:
    """A request as a row of the engine.

    Attributes:
        number: of the request.
        place: of its keys and values.
        before: the row with which it shares its first `shared` tokens; None once it has a copy.
        read: tokens that its place holds.
        needed: whether the request after it may still take a copy.
    """

    number: int
    request: Request
    place: int
    before: "_Row | None" = None
    shared: int = 0
    read: int = 0
    needed: bool = True

    @property
    def size(self) -> int:
        return len(self.request.ids) - 1

    def parts(self, most: int, scored: int) -> Iterator[Part]:
        """What is read of it next: at most so many tokens, so many of them to score."""
        ids, first = self.request.ids, min(self.request.places) - 1
        for wanted, end in (("none", min(first, self.size)), ("all", self.size)):
            count = min(end - self.read, most, scored if wanted == "all" else most)
            if count > 0:
                start, self.read = self.read, self.read + count
                yield Part(self.place, start, ids[start : self.read], wanted)
                most -= count


class RowScorer(Scorer):
    """A `Scorer` over the C++ engine. It keeps nothing between calls."""

    network: Any

    def _passes(
        self,
        requests: Sequence[Request],
        order: Sequence[int],
        sums: np.ndarray,
        greedy: np.ndarray,
    ) -> Iterator[int]:
        waiting = deque(order)
        longest = max((len(each.ids) - 1 for each in requests), default=1)
        rows = EngineRows(self.network, ROWS, longest)
        free, done = list(range(rows.count)), 0
        live: list[_Row] = []
        last: _Row | None = None
        while waiting or live:
            while waiting and free:
                number = waiting.popleft()
                last = _after(last, _Row(number, requests[number], free.pop()))
                live.append(last)
            if last is not None and not waiting:
                last.needed = False
            self._advance(rows, live, sums, greedy)
            for row in [each for each in live if each.read == each.size and not each.needed]:
                live.remove(row)
                free.append(row.place)
                done += 1
            yield done

    def _advance(
        self, rows: EngineRows, live: Sequence[_Row], sums: np.ndarray, greedy: np.ndarray
    ) -> None:
        """Reads one pass of rows that have, or can now copy, what they begin with."""
        for row in live:
            if row.before is not None and row.before.read >= row.shared:
                rows.copy(row.before.place, row.place, row.shared)
                row.read, row.before.needed, row.before = row.shared, False, None
        given: list[Part] = []
        targets: list[tuple[_Row, int]] = []  # a row, and the place of a token to score
        left, scored = rows.most, max(1, LOGITS // int(self.network.config.vocab_size))
        for row in live:
            for part in row.parts(left, scored) if row.before is None else ():
                given.append(part)
                left -= len(part.tokens)
                if part.wanted == "all":
                    scored -= len(part.tokens)
                    targets += [(row, part.start + 1 + n) for n in range(len(part.tokens))]
        logits = rows.read(given)
        if not targets:
            return
        wanted = torch.tensor([row.request.ids[place] for row, place in targets])
        known = log_probabilities(logits).gather(-1, wanted[:, None])[:, 0].tolist()
        best = (logits.argmax(-1) == wanted).tolist()
        for (row, place), value, likeliest in zip(targets, known, best, strict=True):
            if place in row.request.places:
                sums[row.number] += value
                greedy[row.number] &= likeliest


def _after(last: _Row | None, row: _Row) -> _Row:
    """A row that begins with a copy of the one before, where that saves enough."""
    if last is not None:
        first = min(row.request.places) - 1
        shared = min(_common(last.request.ids[:-1], row.request.ids), first)
        last.needed = shared >= ALONE
        if last.needed:
            row.before, row.shared = last, shared
    return row


def scorer_of(network: Any, how: Precision, tokenizer: Tokenizer) -> Scorer:
    """A network made ready to score, by the engine where `generation` would use it."""
    made: Any = ready(network, how)
    return (RowScorer if isinstance(made, EngineDecoder) else Scorer)(made, tokenizer)


class _Tree:
    """The tokens of a batch of sorted requests, what they share once.

    Attributes:
        ids, positions: (N,) of each token.
        lengths: (N,) tokens of the longest request that goes through each.
        targets: (place, token, request) of each token to score: it follows the one at `place`.
    """

    def __init__(self, batch: Sequence[Request], held: int) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.lengths: list[int] = []
        self.targets: list[tuple[int, int, int]] = []
        self._parents: list[int] = []
        path: list[int] = []  # places of the last request's tokens
        before: Sequence[int] = ()
        for number, each in enumerate(batch):
            inputs = each.ids[held:-1]
            path = path[: _common(inputs, before)]
            for place in path:
                self.lengths[place] = max(self.lengths[place], held + len(inputs))
            for depth in range(len(path), len(inputs)):
                self._parents.append(path[-1] if path else -1)
                path.append(len(self.ids))
                self.ids.append(inputs[depth])
                self.positions.append(held + depth)
                self.lengths.append(held + len(inputs))
            for at in each.places:
                self.targets.append((path[at - 1 - held], each.ids[at], number))
            before = inputs

    def seen(self) -> np.ndarray:
        """(N, N) whether a token follows another, or is it."""
        found = np.eye(len(self.ids), dtype=bool)
        for place, parent in enumerate(self._parents):
            if parent >= 0:
                found[place, : parent + 1] = found[parent, : parent + 1]
        return found


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs: Iterable[tuple[int, int]] = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
