"""The rows of a run as `data.lint` reads them, and what their tokens say: targets and stops.

Rows are taken from the splits that a method opened, so that what is looked at is what is learnt:
broken rows are left out, held-out rows are held out, prompts are those that are read.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bedstone.data.dataset import Dataset
from bedstone.data.fields import Sample
from bedstone.data.images.pixels import decoded
from bedstone.data.lint import Finding, Item, Rows, by_level, lint
from bedstone.data.signals.signals import Signals
from bedstone.data.sources import Source
from bedstone.data.text.completions import CompletionExamples
from bedstone.data.text.conversations import ConversationExamples
from bedstone.data.text.denoise import NoisyTexts
from bedstone.data.text.examples import Examples
from bedstone.data.text.preference_examples import PreferenceExamples
from bedstone.data.text.reinforcement import Prompts
from bedstone.data.text.seq2seq import TextPairs
from bedstone.data.text.supervised import SpanExamples, TagExamples, TextExamples
from bedstone.data.text.token_cache import TokenSplit
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.train.data import Splits

FEW = 0.01  # share of tokens that are trained, below which it is a warning
CUT = 0.1  # share of targets that are cut, from which it is an error
STREAMED = 200_000  # documents of a stream that are looked at
SECONDS = 0.6  # that a run looks at its rows before it begins
# What the summary of a run's rows says as well.
SUMMARISED = ("leak", "conflicts", "unknown-class")


def lint_splits(splits: Splits, tokenizer: Tokenizer | None) -> list[Finding]:
    """All that is found in the rows of a run, the gravest first."""
    found = lint(_named(splits, tokenizer))
    return by_level([*found, *target_findings(splits)])


def first_errors(splits: Splits, tokenizer: Tokenizer | None) -> list[Finding]:
    """The errors that are found within `SECONDS`, without near-duplicates and pictures; those that
    the summary of the rows says already are left out."""
    until = time.monotonic() + SECONDS
    named = _named(splits, tokenizer)
    for rows in named.values():
        rows.items = itertools.takewhile(lambda _: time.monotonic() < until, rows.items)
    found = [*lint(named, near=False, images=0), *target_findings(splits)]
    known = SUMMARISED if splits.understood and splits.understood.doubts else ()
    return [each for each in found if each.level == "error" and each.check not in known]


def _named(splits: Splits, tokenizer: Tokenizer | None) -> dict[str, Rows]:
    """The rows of each split that has rows."""
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    found, known = {}, set[str]()
    for name, split in named.items():
        if split is not None and (rows := rows_of(split, tokenizer)) is not None:
            # what was left out before the rows were split is known of both sides
            rows.broken = [each for each in rows.broken if each not in known]
            known |= set(rows.broken)
            found[name] = rows
    return found


class _Items:
    """Items that are made as they are read, of a known number."""

    def __init__(self, count: int, make: Any) -> None:
        self.count, self.make = count, make

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Item]:
        return map(self.make, range(self.count))


def rows_of(split: Any, tokenizer: Tokenizer | None = None) -> Rows | None:
    """A split of any method as rows; None where it has none that can be read.

    Args:
        tokenizer: reads the tokens of a token cache.
    """
    if isinstance(split, NoisyTexts):
        split = split.windows.documents.split
    if isinstance(split, TokenSplit):
        return None if tokenizer is None else _documents(split, tokenizer)
    if isinstance(split, Source):
        texts = itertools.islice(split.documents(), STREAMED)
        made = (Item(target=text) for text in texts)
        return Rows(made, lambda row: f"{split.name}: document {row + 1:,}")
    if isinstance(split, Signals):
        return _signals(split)
    if isinstance(split, TextPairs):
        inputs = split.inputs()
        items = _Items(len(split), lambda row: Item(inputs[row], str(split.targets[row])))
        return Rows(items, split.where, split.rows.faults.broken)
    rows = split if isinstance(split, Dataset) else getattr(split, "rows", None)
    if not isinstance(rows, Dataset):
        return None
    make = _maker(split, rows)
    near = not isinstance(split, SpanExamples)  # many questions have one context
    return Rows(_Items(len(rows), make), rows.where, rows.faults.broken, near)


def _documents(split: TokenSplit, tokenizer: Tokenizer) -> Rows:
    ends = np.append(split.starts[1:], len(split.tokens))

    def make(row: int) -> Item:
        ids = np.asarray(split.tokens[split.starts[row] : ends[row]]).tolist()
        # a document that is split by its tokens may begin or end within a character
        return Item(target=tokenizer.decode(ids).strip("\ufffd"))

    return Rows(_Items(split.documents, make), lambda row: f"{split.name}: document {row + 1:,}")


def _signals(split: Signals) -> Rows:
    drawn = callable(getattr(split, "_draw", None))

    def make(row: int) -> Item:
        label = None if split.classes is None else split.names[split.classes[row]]
        texts = None if split.captions is None else "\n".join(split.captions[row])
        key = split.places[row] if drawn else split.values[row].tobytes()
        return Item("", texts, label, hash(key) or 1)

    return Rows(_Items(len(split), make), split.places.__getitem__, split.faults.broken)


def _maker(split: Any, rows: Dataset) -> Any:
    """What makes the item of a row by its number."""
    if rows.samples:
        return lambda row: _sample(rows[row])
    if isinstance(split, TextExamples):
        texts, pairs = split._texts, split._pairs

        def labelled(row: int) -> Item:
            text = texts[row] if pairs is None else f"{texts[row]}\n{pairs[row]}"
            return Item(text, label=split.actual[row])

        return labelled
    if isinstance(split, TagExamples):
        return lambda row: Item(" ".join(map(str, split._words[row])), label=split.actual[row])
    if isinstance(split, SpanExamples):

        def asks(row: int) -> Item:
            answers = split.actual[row]["text"]
            text = f"{split._questions[row]}\n{split._contexts[row]}"
            return Item(text, answers[0] if answers else "(no answer)")

        return asks
    if isinstance(split, CompletionExamples):
        parts = [each for each in ("instruction", "input") if rows.column(each)]
        columns = [rows.need(each) for each in parts] if not rows.column("completion") else []

        def completes(row: int) -> Item:
            read = split.prompts[row]
            if columns:  # without the form around them, which all rows share
                read = "\n".join(str(rows[row].get(column) or "") for column in columns)
            return Item(read, split.completions[row])

        return completes
    if isinstance(split, ConversationExamples):
        return lambda row: _conversation(split.actual[row])
    if isinstance(split, PreferenceExamples):

        def judged(row: int) -> Item:
            found = split.judged[row]
            answers = "\n".join(map(_plain, found.answers))
            return Item(_plain(found.prompt), answers, None if split._paired else str(found.label))

        return judged
    if isinstance(split, Prompts):
        return lambda row: Item(_plain(split.texts[row]))
    return lambda row: Item("\n".join(str(each) for each in rows[row].values()))


def _sample(row: Sample) -> Item:
    image, pixels = row.image, None
    if image is None or callable(image):  # a drawn one is drawn by its place
        key = hash(row.audio if image is None else row.place)
    else:
        pixels = lambda: decoded(row, 32)  # noqa: E731
        key = hash(image.read_bytes() if hasattr(image, "read_bytes") else bytes(image))
    texts = [] if row.made else list(row.captions)
    answers = [", ".join(one.answers) for one in row.questions]
    target = "\n".join([*texts, *answers]) if texts or answers else None
    return Item("\n".join(one.question for one in row.questions), target, row.label, key, pixels)


def _plain(text: Any) -> str:
    """A text, or the contents of messages."""
    if isinstance(text, str):
        return text
    return "\n".join(str(each.get("content") or "") for each in text or ())


def _conversation(messages: Sequence[dict[str, Any]]) -> Item:
    answers = [at for at, each in enumerate(messages) if each.get("role") == "assistant"]
    last = answers[-1] if answers else len(messages)
    answer = messages[last] if answers else {}
    target = str(answer.get("content") or answer.get("tool_calls") or "")
    return Item(_plain(messages[:last]), target)


# What the tokens say.


def target_findings(splits: Splits) -> list[Finding]:
    """Which share of the tokens is trained, which targets are cut, and whether answers end."""
    train, found = splits.train, []
    if isinstance(train, Examples | TokenSplit):
        found += _trained_share(train)
    if cut := splits.cut or getattr(getattr(train, "cuts", None), "answers", 0):
        share = cut / max(len(getattr(train, "rows", train)), 1)
        level = "error" if share >= CUT else "warning"
        what = f"{cut:,} targets of train are longer than the network reads"
        advice = "Raise the limit or the context, or shorten the rows."
        found.append(Finding("cut", level, what, cut, [], advice))
    open_ended = getattr(train, "open_ended", 0)
    if open_ended:
        level = "error" if open_ended >= CUT * len(train.rows) else "warning"
        what = f"{open_ended:,} rows of train have answers that no special token ends"
        advice = "The model won't learn where to stop: mend the chat template, or the tokenizer."
        found.append(Finding("no-stop", level, what, open_ended, [], advice))
    return found


def _trained_share(train: Examples | TokenSplit) -> list[Finding]:
    if isinstance(train, TokenSplit):
        if train.targets is None:
            return []
        trained, tokens = int(train.targets.sum()), len(train)
    elif (count := getattr(train, "trained_count", None)) is not None:
        trained, tokens = count, train.token_count
    else:
        return []
    share = trained / max(tokens, 1)
    level = "error" if not trained else "warning" if share < FEW else "note"
    advice = "" if level == "note" else "Most of what is computed is not learnt from: cut prompts."
    what = f"{trained:,} of {tokens:,} tokens of train ({share:.1%}) are trained"
    return [Finding("trained-share", level, what, trained, [], advice)]
