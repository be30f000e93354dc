"""What can be explained of networks that read text: labels, tags, answers, words, similarity.

A target is a number of the network's outputs, as a function of embedded tokens. It is a margin (the
log-odds of what was predicted against all else), since a softmax that is sure hardly has a
gradient. Tokens are merged into words by their offsets; special tokens stay as they are.

Shapes: B rows, T tokens, D width, M states that are read, L labels, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bedstone.data.text.encode import Input, read_texts, text_input
from bedstone.errors import BedstoneError, nearest
from bedstone.generation.text import encode_prompt
from bedstone.inspect.attribution import Case
from bedstone.inspect.lens import text_lens
from bedstone.models.heads import PretrainingHeads
from bedstone.nn.attention import self_attention
from bedstone.nn.layers import pool
from bedstone.tasks.task import text_of

TOKENS = 2048  # that are read at a time
BASELINES = ("auto", "mask", "mean", "zero")


@dataclass(frozen=True)
class Part:
    """A part of an input.

    Attributes:
        name: a word, or the row and column of a cell.
        text: which text the word is of; -1 of a cell.
        start, end: its characters there.
        box: of a cell: top, left, bottom, right in pixels.
    """

    name: str
    text: int = -1
    start: int = 0
    end: int = 0
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Target:
    """A number to explain, that can be read off any network of the same shape.

    Attributes:
        family: what the network does.
        number: which number of its outputs, in words.
        baseline: what stands in the place of a part that is gone, in words.
        predicted: what the model says of the input.
        parts: of the input, n of them.
        case: a network to its case.
        texts: that the input is made of, by their headings.
        picture: that it is made of, (h, w, 3) uint8.
        tokens: how the network reads the texts.
        rollout: a network to how attention reaches the parts, (n,).
        maps: of each word, a network to its case over the cells of the picture.
        lens: a network to what it would say after each block (`inspect.lens`).
        regions: a network to what it does to each place (h, w) that a word is gone, measured.
    """

    family: str
    number: str
    baseline: str
    predicted: str
    parts: tuple[Part, ...]
    case: Callable[[Any], Case]
    texts: dict[str, str] = field(default_factory=dict)
    picture: np.ndarray | None = None
    tokens: tuple[str, ...] = ()
    rollout: Callable[[Any], np.ndarray] | None = None
    maps: Mapping[str, Callable[[Any], Case]] = field(default_factory=dict)
    regions: Callable[[Any], dict[str, np.ndarray]] | None = None
    lens: Callable[[Any], Any] | None = None


def log_odds(logits: Tensor, which: int | Tensor) -> Tensor:
    """log p / (1 - p) of one of the last dimension's logits, (..., L) to (...)."""
    logits = logits.float()
    if logits.shape[-1] == 1:
        return logits[..., 0]
    chosen = torch.as_tensor(which, device=logits.device).expand(logits.shape[:-1])[..., None]
    others = logits.scatter(-1, chosen, float("-inf"))
    return logits.gather(-1, chosen)[..., 0] - others.logsumexp(-1)


@contextlib.contextmanager
def embedded(embed: nn.Module, values: Tensor) -> Iterator[None]:
    """While it lasts, an embedding gives `values` (B, T, D) for its first T tokens."""

    def give(_: nn.Module, __: Any, usual: Tensor) -> Tensor:
        given = values.to(usual.dtype)
        more = usual[:, values.shape[1] :]
        return torch.cat((given, more), 1) if more.shape[1] else given

    handle = embed.register_forward_hook(give)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Reading:
    """A row of tokens whose words can be taken away.

    Attributes:
        row: as the network reads it.
        parts: its words.
        owners: (T,) the number of each token's word, -1 of special tokens.
        blank: the id whose embedding stands for nothing; or mean, of all embeddings, or zero.
    """

    row: Input
    parts: tuple[Part, ...]
    owners: np.ndarray
    blank: int | str

    @property
    def ids(self) -> Tensor:
        """(1, T)."""
        return torch.tensor(self.row.ids)[None]

    def case(self, embed: Any, score: Callable[[Tensor], Tensor]) -> Case:
        """The case of a score of embedded tokens (B, T, D)."""
        device = embed.weight.device
        with torch.no_grad():
            values = embed(self.ids.to(device))[0].float()
            if self.blank == "mean":
                blank = embed.weight.float().mean(0)
            elif self.blank == "zero":
                blank = torch.zeros_like(values[0])
            else:
                blank = embed(torch.tensor([self.blank], device=device))[0].float()
            owners = torch.from_numpy(self.owners).to(device)[:, None]
            baseline = torch.where(owners < 0, values, blank)
        names = [part.name for part in self.parts]
        return Case(values, baseline, owners, names, score, max(1, TOKENS // len(self.row)))


def read_words(
    row: Input, texts: Sequence[str], *, blank: int | str, inside: Sequence[int] | None = None
) -> Reading:
    """A row with its words as parts.

    Args:
        texts: that it is made of.
        inside: places whose words are parts; all where None.
    """
    owners = np.full(len(row), -1)
    numbers: dict[tuple[int, int], int] = {}
    spans: list[list[int]] = []  # text, start, end
    for place, (source, word) in enumerate(zip(row.sources, row.words, strict=True)):
        if source is None or (inside is not None and place not in inside):
            continue
        key = (source, -1 - place if word is None else word)
        start, end = row.offsets[place]
        if key not in numbers:
            numbers[key] = len(spans)
            spans.append([source, start, end])
        owners[place] = numbers[key]
        own = spans[numbers[key]]
        own[1], own[2] = min(own[1], start), max(own[2], end)
    parts = tuple(
        Part(_name(texts[text][start:end]), text, start, end) for text, start, end in spans
    )
    if not parts:
        raise BedstoneError("explain: the input has no word that could be taken away.")
    return Reading(row, parts, owners, blank)


def _name(text: str) -> str:
    """A word's name; of white space what it is."""
    return text.strip() or repr(text)[1:-1].replace(" ", "␣")


def blank_of(tokenizer: Any, baseline: str) -> tuple[int | str, str]:
    """What stands for nothing in a text, and that in words.

    Raises:
        BedstoneError: there is no such baseline, or the tokenizer has no mask.
    """
    if baseline not in BASELINES:
        raise BedstoneError(f"--baseline: {baseline!r} is unknown{nearest(baseline, BASELINES)}.")
    mask = tokenizer.mask_id
    if baseline == "auto":
        baseline = "mean" if mask is None else "mask"
    if baseline == "mask":
        if mask is None:
            raise BedstoneError("--baseline: the tokenizer has no mask token; choose mean or zero.")
        return mask, f"{tokenizer.settings.get('mask_token')} in the place of each token of a word"
    if baseline == "zero":
        return "zero", "zeros in the place of a word's embeddings"
    return "mean", "the mean of all embeddings in the place of a word's"


def states_of(network: Any, row: Input, values: Tensor, read: Sequence[int] | None) -> Tensor:
    """The last states at the places `read`, (B, M, D), or all, of embedded tokens (B, T, D)."""
    device = values.device
    known: dict[str, Any] = {}
    places = None if read is None else torch.tensor(read, device=device)
    if network.segmented:
        known["types"] = torch.tensor(row.types, device=device).expand(len(values), -1)
    if network.narrows:
        known["read"] = places
    ids = torch.tensor(row.ids, device=device).expand(len(values), -1)
    with embedded(network.embed, values):
        states: Tensor = network.states(ids, **known)
    return states if places is None or network.narrows else states[:, places]


def rollout(network: Any, reading: Reading, places: Sequence[int]) -> np.ndarray:
    """Attention rollout (Abnar and Zuidema, 2020) from the tokens at `places` to words, (n,).

    The mean over heads, half of it the residual stream's own, is multiplied through all layers.
    """
    ids = reading.ids.to(network.embed.weight.device)
    known: dict[str, Any] = {}
    if network.segmented:
        known["types"] = torch.tensor([reading.row.types], device=ids.device)
    weights = self_attention(network, lambda: network.states(ids, **known))  # (L, 1, H, T, T)
    reached = torch.eye(ids.shape[1], device=ids.device)
    for layer in weights[:, 0].float().mean(1):
        reached = (layer + torch.eye(len(layer), device=ids.device)) / 2 @ reached
    shares = reached[list(places)].mean(0).cpu().numpy()
    known_tokens = reading.owners >= 0
    return np.bincount(
        reading.owners[known_tokens], shares[known_tokens], minlength=len(reading.parts)
    )


def _target(
    model: Any,
    reading: Reading,
    texts: dict[str, str],
    read: Sequence[int] | None,
    score: Callable[[Any, Tensor], Tensor],
    words: tuple[str, str, str, str],
    seen_from: Sequence[int],
) -> Target:
    """A target of states.

    Args:
        read: places whose states the score reads.
        score: (network, states (B, M, D)) to (B,).
        words: family, number, baseline, prediction.
        seen_from: places from which attention is followed.
    """

    def case(network: Any) -> Case:
        def of_values(values: Tensor) -> Tensor:
            return score(network, states_of(network, reading.row, values, read)).float()

        return reading.case(network.embed, of_values)

    name = model.tokenizer.backend.id_to_token
    family, number, baseline, predicted = words
    ids = reading.row.ids
    says_words = model.config.head.kind in ("language", "pretraining")
    return Target(
        family,
        number,
        baseline,
        predicted,
        reading.parts,
        case,
        texts,
        tokens=tuple(name(one) or "" for one in ids),
        rollout=lambda network: rollout(network, reading, seen_from),
        lens=(lambda network: text_lens(network, model.tokenizer, ids)) if says_words else None,
    )


def _head(network: Any, states: Tensor) -> Tensor:
    head = network.head.words if isinstance(network.head, PretrainingHeads) else network.head
    found: Tensor = head(states)
    return found


def _chosen(wanted: str | None, names: Sequence[str], best: int, what: str) -> int:
    """The number of what was asked for, or of the best."""
    if wanted is None:
        return best
    if wanted not in names:
        raise BedstoneError(f"--target: {what} {wanted!r} is unknown{nearest(wanted, names)}.")
    return list(names).index(wanted)


@torch.no_grad()
def _states(task: Any, row: Input, read: Sequence[int] | None) -> Tensor:
    """The served network's states of a row, (M, D)."""
    network = task.engine.network
    values = network.embed(torch.tensor([row.ids], device=task.engine.device))
    return states_of(network, row, values, read)[0]


def _only(windows: Sequence[Input], limit: int) -> Input:
    if len(windows) > 1:
        raise BedstoneError(
            f"input: is longer than the {limit:,} tokens that the model reads at once; explain a "
            "part of it."
        )
    return windows[0]


def label_target(task: Any, value: Any, wanted: str | None, baseline: str) -> Target:
    """The log-odds of a label of a text or a pair; of numbers, the number itself."""
    options = task.chosen()
    prepared = task.prepare(value, options)
    row = _only(prepared.windows, task.limit(options))
    given = value if isinstance(value, dict) else {"text": value}
    if "text" not in given:
        raise BedstoneError("input: expected a text, or text and text_pair.")
    texts = {"text": given["text"]}
    texts |= {"pair": given["text_pair"]} if given.get("text_pair") else {}
    blank, said = blank_of(task.tokenizer, baseline)
    reading = read_words(row, list(texts.values()), blank=blank)
    head = task.model.config.head
    place = len(row) - 1 if getattr(task.engine.network.head, "reads", "") == "last" else 0
    logits = _head(task.engine.network, _states(task, row, [place]))[0]
    which = _chosen(wanted, head.labels, int(logits.argmax()), "the label")
    plain = head.problem != "single" or len(head.labels) == 1

    def score(network: Any, states: Tensor) -> Tensor:
        found = _head(network, states[:, 0])
        return found[:, which] if plain else log_odds(found, which)

    kind = "output" if head.problem == "regression" else "log-odds"
    words = ("text classification", f"{kind} of the label {head.labels[which]!r}", said)
    predicted = head.labels[int(logits.argmax())]
    return _target(task.model, reading, texts, [place], score, (*words, predicted), [place])


def tag_target(task: Any, value: Any, wanted: str | None, baseline: str) -> Target:
    """The log-odds of a word's tag; the word is named before the tag, as in `Paris=B-LOC`.

    Without a name it is the word that is most surely an entity.
    """
    options = task.chosen()
    text = text_of(value)
    row = _only(task.prepare(text, options).windows, task.limit(options))
    blank, said = blank_of(task.tokenizer, baseline)
    reading = read_words(row, [text], blank=blank)
    labels = task.model.config.head.labels
    scores = _head(task.engine.network, _states(task, row, None)).softmax(-1)  # (T, L)
    firsts = [int((reading.owners == part).argmax()) for part in range(len(reading.parts))]
    word, _, label = (wanted or "").partition("=")
    names = [part.name for part in reading.parts]
    outside = labels.index("O") if "O" in labels else None
    sure = scores[firsts].clone()
    if outside is not None:
        sure[:, outside] = 0
    chosen = _chosen(word or None, names, int(sure.amax(1).argmax()), "the word")
    place = firsts[chosen]
    which = _chosen(label or None, labels, int(scores[place].argmax()), "the tag")

    def score(network: Any, states: Tensor) -> Tensor:
        return log_odds(_head(network, states[:, 0]), which)

    number = f"log-odds of the tag {labels[which]!r} of {names[chosen]!r}"
    predicted = labels[int(scores[place].argmax())]
    words = ("tags", number, said, predicted)
    return _target(task.model, reading, {"text": text}, [place], score, words, [place])


def answer_target(task: Any, value: Any, wanted: str | None, baseline: str) -> Target:
    """The log-odds of where an answer starts, plus those of where it ends."""
    if not isinstance(value, dict):
        raise BedstoneError("input: expected the context, and --question what is to be answered.")
    answer = task(dict(value))
    question, context = value["question"], value["context"]
    options = task.chosen()
    windows = task.ask(question, context, options)
    start, end = answer["start"], answer["end"]
    if wanted is not None:
        start = context.find(wanted)
        end = start + len(wanted)
        if start < 0 or not wanted:
            raise BedstoneError(f"--target: {wanted!r} doesn't stand in the context.")
    row, first, last = _window(windows, start, end)
    blank, said = blank_of(task.tokenizer, baseline)
    reading = read_words(row, [question, context], blank=blank)
    inside = [at for at, source in enumerate(row.sources) if source == 1]
    inside = [0, *inside] if row.sources[0] is None else inside  # where "no answer" stands
    places = inside.index(first), inside.index(last)

    def score(network: Any, states: Tensor) -> Tensor:
        logits = _head(network, states[:, inside])  # (B, M, 2)
        return log_odds(logits[..., 0], places[0]) + log_odds(logits[..., 1], places[1])

    shown = context[start:end]
    number = f"log-odds of the start and of the end of {shown!r}"
    words = ("answer span", number, said, answer["answer"])
    texts = {"question": question, "context": context}
    return _target(task.model, reading, texts, None, score, words, [first, last])


def _window(windows: Sequence[Input], start: int, end: int) -> tuple[Input, int, int]:
    """The window with characters `start` to `end` of the context, and their tokens in it."""
    for row in windows:
        places = [
            at
            for at, (source, (one, two)) in enumerate(zip(row.sources, row.offsets, strict=True))
            if source == 1 and one < end and two > start
        ]
        if places and row.offsets[places[0]][0] <= start and row.offsets[places[-1]][1] >= end:
            return row, places[0], places[-1]
    raise BedstoneError("--target: no window of the context holds the whole answer; shorten it.")


def next_token_target(task: Any, value: Any, wanted: str | None, baseline: str) -> Target:
    """The log-odds of the next token of a text."""
    text = text_of(value)
    known = task.tokenizer
    row = prompt_row(known, text)
    if len(row) >= task.model.config.context:
        raise BedstoneError(
            f"input: has {len(row):,} tokens; the context is {task.model.config.context:,}."
        )
    blank, said = blank_of(known, baseline)
    reading = read_words(row, [text], blank=blank)
    last = len(row) - 1
    logits = _head(task.engine.network, _states(task, row, [last]))[0]
    best = int(logits.argmax())
    which = best
    if wanted is not None:
        ids = known.encode(wanted)
        if len(ids) != 1:
            parts = ", ".join(repr(known.decode([one], skip_special=False)) for one in ids[:8])
            raise BedstoneError(
                f"--target: {wanted!r} is {len(ids)} tokens ({parts}); one token is explained. "
                "Name one of them."
            )
        which = ids[0]

    def score(network: Any, states: Tensor) -> Tensor:
        return log_odds(_head(network, states[:, 0]), which)

    named = [known.decode([one], skip_special=False) for one in (which, best)]
    words = ("next token", f"log-odds of {named[0]!r} as the next token", said, named[1])
    return _target(task.model, reading, {"text": text}, [last], score, words, [last])


def prompt_row(tokenizer: Any, text: str) -> Input:
    """A text to continue: with what the tokenizer sets before it, not after it."""
    return framed_row(tokenizer, text, encode_prompt(tokenizer, text))


def framed_row(tokenizer: Any, text: str, ids: Sequence[int]) -> Input:
    """Ids with a text in them as a row that knows the text's words.

    Raises:
        BedstoneError: the text's tokens aren't in them.
    """
    (own,) = read_texts(tokenizer, [text])
    size = len(own)
    starts = (at for at in range(len(ids) - size + 1) if list(ids[at : at + size]) == own.ids)
    before = next(starts, None)
    if before is None:
        raise BedstoneError("input: the tokenizer reads this text otherwise alone than in a row.")
    after = len(ids) - size - before
    return Input(
        list(ids),
        [0] * len(ids),
        [(0, 0)] * before + own.offsets + [(0, 0)] * after,
        [None] * before + [0] * size + [None] * after,
        [None] * before + own.words + [None] * after,
    )


def masked_target(task: Any, value: Any, wanted: str | None, baseline: str) -> Target:
    """The log-odds of a token in the place of the first mask."""
    text = text_of(value)
    known = task.tokenizer
    row = text_input(known, text, special_names=True)
    limit = task.limit(task.chosen())
    if known.mask_id not in row.ids or len(row) > limit:
        mask = known.settings.get("mask_token")
        raise BedstoneError(
            f"input: expected a text of at most {limit:,} tokens with {mask} in it."
        )
    blank, said = blank_of(known, baseline)
    place = row.ids.index(known.mask_id)
    others = [at for at in range(len(row)) if row.ids[at] != known.mask_id]
    reading = read_words(row, [text], blank=blank, inside=others)
    logits = _head(task.engine.network, _states(task, row, [place]))[0]
    best = int(logits.argmax())
    which = best
    if wanted is not None:
        found = known.id_of(wanted)
        if found is None:
            raise BedstoneError(f"--target: {wanted!r} is no token of the vocabulary.")
        which = found

    def score(network: Any, states: Tensor) -> Tensor:
        return log_odds(_head(network, states[:, 0]), which)

    named = [known.decode([one], skip_special=False) for one in (which, best)]
    words = ("masked word", f"log-odds of {named[0]!r} in the place of the mask", said, named[1])
    return _target(task.model, reading, {"text": text}, [place], score, words, [place])


def similarity_target(task: Any, value: Any, wanted: str | None, baseline: str) -> Target:
    """The cosine of a text's embedding with another's, explained by words of both."""
    if not isinstance(value, dict) or not value.get("text_pair"):
        raise BedstoneError("input: expected a text, and --text-pair the one to compare it with.")
    texts = {"text": text_of(value["text"]), "pair": text_of(value["text_pair"])}
    known, options = task.tokenizer, task.chosen()
    blank, said = blank_of(known, baseline)
    limit = min(task.pooling.max_tokens or task.engine.limit, task.limit(options))
    rows = [text_input(known, text) for text in texts.values()]
    if max(map(len, rows)) > limit:
        raise BedstoneError(f"input: a text has more than the {limit:,} tokens that are embedded.")
    both = [
        read_words(row, [text], blank=blank) for row, text in zip(rows, texts.values(), strict=True)
    ]
    sizes = [len(row) for row in rows]
    modes = task.pooling.modes
    names = [part.name for each in both for part in each.parts]

    def case(network: Any) -> Case:
        cases = [each.case(network.embed, lambda x: x) for each in both]

        def score(values: Tensor) -> Tensor:
            vectors = []
            for row, part in zip(rows, values.split(sizes, 1), strict=True):
                states = states_of(network, row, part, None)
                lengths = [len(row)] * len(states)
                vectors.append(pool(states.flatten(0, 1), lengths, modes))
            return torch.cosine_similarity(vectors[0], vectors[1], dim=-1)

        later = torch.where(cases[1].parts < 0, -1, cases[1].parts + len(both[0].parts))
        return Case(
            torch.cat([each.values for each in cases]),
            torch.cat([each.baseline for each in cases]),
            torch.cat((cases[0].parts, later)),
            names,
            score,
            max(1, TOKENS // sum(sizes)),
        )

    parts = (*both[0].parts, *(Part(p.name, 1, p.start, p.end) for p in both[1].parts))
    cosine = task({"source_sentence": texts["text"], "sentences": [texts["pair"]]})[0]
    name = known.backend.id_to_token
    tokens = tuple(name(one) or "" for row in rows for one in row.ids)
    number = "cosine of both embeddings"
    return Target("similarity", number, said, f"{cosine:.3f}", parts, case, texts, tokens=tokens)
