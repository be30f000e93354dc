"""question-answering and information-extraction: answer spans of a context.

Scores are those of version 4 of transformers (4.57): the probability of a start times that of an
end, each over the context of one window and its first token, which stands for "no answer".
question-answering adds the scores of answers with the same text, whatever their case, as version 4
does: of several windows, or of several places, so a score may be above 1; it stands at the first of
them. information-extraction takes the greatest instead, which is a probability.

Shapes: T tokens of a window, A tokens of the longest answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.checkpoints.model import Model
from bedstone.data.text.encode import Input, question_windows
from bedstone.data.text.packing import Packed
from bedstone.errors import BedstoneError
from bedstone.settings import optional, share, whole
from bedstone.tasks.task import Options, Prepared, Reader, shown, text_of

WINDOW, STRIDE = 384, 128  # tokens, as in version 4


class Found(NamedTuple):
    """The scores of a window: of no answer, and of its best spans.

    Attributes:
        nothing: the score of there being no answer.
        spans: (score, start, end) with characters of the context, best first.
    """

    nothing: float
    spans: list[tuple[float, int, int]]


@dataclass(frozen=True)
class SpanOptions(Options):
    """Options of extractive question answering.

    Attributes:
        max_seq_len: tokens of a window with its question; 384, or fewer where the model is smaller.
        doc_stride: tokens of the context that two windows share; 128, or half a small window.
        max_answer_len: tokens of an answer.
        handle_impossible_answer: whether there may be no answer, "".
        align_to_words: whether an answer begins and ends where words do.
        max_question_len: taken and of no effect: no question is cut.
    """

    max_seq_len: int | None = optional(whole(1))
    doc_stride: int | None = optional(whole(0))
    max_answer_len: int = whole(1, default=15)
    handle_impossible_answer: bool = False
    align_to_words: bool = True
    max_question_len: Any = None


class Answering(Reader):
    """A task that asks questions of contexts."""

    asks = "a question-answering head (spans)"

    @classmethod
    def fits(cls, model: Model) -> bool:
        return bool(model.config.head.kind == "spans")

    def ask(self, question: str, context: str, options: Any) -> list[Input]:
        """The windows of a question's context."""
        limit = min(options.max_seq_len or WINDOW, self.limit(options))
        stride = options.stride if options.doc_stride is None else options.doc_stride
        stride = min(STRIDE, limit // 2) if stride is None else stride
        windows = question_windows(self.tokenizer, question, context, limit=limit, stride=stride)
        return self.fitted(windows, options, limit)

    def read(
        self, states: Tensor, packed: Packed, rows: Sequence[Input], options: Any
    ) -> list[Found]:
        count = getattr(options, "top_k", 1)
        if options.align_to_words:
            count = 2 * count + 10  # as in version 4: some become one when they take whole words
        return [
            find(
                window,
                logits,
                longest=options.max_answer_len,
                count=count,
                whole=options.align_to_words,
            )
            for window, logits in zip(rows, self.engine.head_of_tokens(states, packed), strict=True)
        ]


@dataclass(frozen=True)
class AnswerOptions(SpanOptions):
    """Options of question-answering: `top_k` is the number of answers; above 1 gives a list."""

    top_k: int = whole(1, default=1)


class QuestionAnswering(Answering):
    """{"question", "context"} -> {"score", "start", "end", "answer"}."""

    name = "question-answering"
    fields = ("question", "context", "answers")
    metric = "answers"
    settings = AnswerOptions

    def __call__(
        self,
        inputs: Any = None,
        text: str | None = None,
        *,
        question: Any = None,
        context: Any = None,
        **options: Any,
    ) -> Any:
        """The answers to `inputs`: a dict, a list or a generator of dicts, or a question with its
        `text`; or to `question` in `context`: two texts, two lists, or a list and one text.
        As in version 4, a list of one gives that one's answer itself."""
        if isinstance(inputs, str):
            inputs = {"question": inputs, "context": text}
        elif inputs is None:
            inputs = {"question": question, "context": context}
        if isinstance(inputs, dict):
            inputs = self._pairs(inputs)
        if isinstance(inputs, list | tuple) and len(inputs) == 1:
            inputs = inputs[0]
        return super().__call__(inputs, **options)

    def prepare(self, value: Any, options: AnswerOptions) -> Prepared:
        if not isinstance(value, Mapping):
            raise BedstoneError(f"{shown(value)} was given; expected a dict: question, context.")
        question = text_of(value.get("question"), "the question")
        context = text_of(value.get("context"), "the context")
        return Prepared(context, self.ask(question, context, options))

    def finish(
        self, row: str, windows: list[Input], outputs: list[Found], options: AnswerOptions
    ) -> Any:
        answers = ranked(row, outputs, options.handle_impossible_answer, added=True)
        return answers[0] if options.top_k == 1 else answers[: options.top_k]

    def _pairs(self, given: Mapping[str, Any]) -> Any:
        """A dict of lists as a list of dicts; one text goes with each of the other's."""
        sides = [given.get("question"), given.get("context")]
        sizes = [len(side) for side in sides if isinstance(side, list | tuple)]
        if not sizes:
            return given
        size = sizes[0]
        if sizes[-1] != size:
            raise BedstoneError(
                f"{self.name}: {size} questions were given with {sizes[-1]} contexts; give as "
                "many of each, or a single context."
            )
        rows = [side if isinstance(side, list | tuple) else [side] * size for side in sides]
        return [
            {"question": one, "context": two} for one, two in zip(rows[0], rows[1], strict=True)
        ]


@dataclass(frozen=True)
class ExtractOptions(SpanOptions):
    """Options of information-extraction.

    Attributes:
        fields: {field: question}, or a list of questions, which are then the fields.
        threshold: what scores lower is not there.
    """

    fields: Any = None
    threshold: float = share(default=0.1)
    handle_impossible_answer: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.fields, list | tuple):
            object.__setattr__(self, "fields", {str(each): each for each in self.fields})
        if self.fields is not None:
            if not isinstance(self.fields, Mapping) or not self.fields:
                raise BedstoneError(
                    f"fields: {shown(self.fields)} was given; expected {{field: question}}, such "
                    "as {'place': 'Where was it?'}."
                )
            for name, question in self.fields.items():
                text_of(question, f"fields: the question of {name!r}")


class InformationExtraction(Answering):
    """A text -> {field: {"answer", "score", "start", "end"}, or None where it isn't there}."""

    name = "information-extraction"
    settings = ExtractOptions

    def prepare(self, value: Any, options: ExtractOptions) -> Prepared:
        if options.fields is None:
            raise BedstoneError(
                "fields: none were given; expected {field: question}, such as "
                "fields={'place': 'Where was it?'}."
            )
        text = text_of(value)
        rows = [self.ask(question, text, options) for question in options.fields.values()]
        return Prepared((text, [len(each) for each in rows]), [w for each in rows for w in each])

    def finish(
        self, row: Any, windows: list[Input], outputs: list[Found], options: ExtractOptions
    ) -> dict[str, Any]:
        text, sizes = row
        found: dict[str, Any] = {}
        left: Iterator[Found] = iter(outputs)
        for name, size in zip(options.fields, sizes, strict=True):
            own = [next(left) for _ in range(size)]
            best = ranked(text, own, options.handle_impossible_answer)[0]
            there = best["answer"] and best["score"] >= options.threshold
            found[name] = best if there else None
        return found


def find(window: Input, logits: Tensor, *, longest: int, count: int, whole: bool) -> Found:
    """The best answer spans of the context in one window.

    Args:
        window: with the context as its second text.
        logits: (T, 2) of starts and ends.
        longest: tokens of an answer, at most.
        count: stretches, at most.
        whole: whether to take whole words.
    """
    places = [place for place, source in enumerate(window.sources) if source == 1]
    first, last = places[0], places[-1] + 1
    marked = window.sources[0] is None  # a first token that stands for no answer
    scores = logits[first:last].float()
    if marked:
        scores = F.pad(scores, (0, 0, 1, 0))
        scores[0] = logits[0]
    scores = scores.softmax(0)
    nothing = float(scores[0].prod()) if marked else 0.0
    start, end = scores[1:].T if marked else scores.T
    ends = F.pad(end, (0, longest - 1), value=-1.0).unfold(0, longest, 1)  # (T, A)
    products = (start[:, None] * ends).masked_fill(ends < 0, -1.0).flatten()
    best = products.topk(min(count, len(products)))
    spans = []
    for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        if score >= 0:
            one, more = divmod(place, longest)
            spans.append((score, *_characters(window, first + one, first + one + more, whole)))
    return Found(nothing, spans)


def _characters(window: Input, start: int, end: int, whole: bool) -> tuple[int, int]:
    """Characters from token `start` to token `end`, or of the words that they are of."""
    words, sources = window.words, window.sources
    if whole and words[start] is not None and words[end] is not None:
        while sources[start - 1] == 1 and words[start - 1] == words[start]:
            start -= 1
        while end + 1 < len(words) and sources[end + 1] == 1 and words[end + 1] == words[end]:
            end += 1
    return window.offsets[start][0], window.offsets[end][1]


def ranked(
    context: str, outputs: Sequence[Found], impossible: bool, *, added: bool = False
) -> list[dict[str, Any]]:
    """Answers from all windows, best first; with none among them if there may be none.

    Args:
        added: whether answers with the same text are one, with the sum of their scores; otherwise
            those of the same place are, with the greatest.
    """
    found: dict[Any, dict[str, Any]] = {}
    for output in outputs:
        for score, start, end in output.spans:
            text = context[start:end]
            new = {"score": score, "start": start, "end": end, "answer": text}
            known = found.setdefault(text.lower() if added else (start, end), new)
            if known is not new:
                known["score"] = known["score"] + score if added else max(known["score"], score)
    answers = list(found.values())
    if impossible:
        least = min(output.nothing for output in outputs)
        answers.append({"score": least, "start": 0, "end": 0, "answer": ""})
    return sorted(answers, key=lambda answer: -answer["score"])


# Answer spans: from scores of starts and ends to characters of the context.
#
# Shapes: T tokens of a window.


class Span(NamedTuple):
    """A span of a context: characters `start` to `end`, and the sum of its two scores."""

    score: float
    start: int
    end: int


def spans_of(window: Input, logits: Tensor, *, longest: int = 30, count: int = 20) -> list[Span]:
    """The best answer spans of the context within one window, best first.

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


# Which of several windows a token of a long text is read in.


def shared(one: Input, two: Input) -> int:
    """How many tokens at the end of a window's text the next window begins with."""
    first, second = _tokens(one), _tokens(two)
    for at in range(len(first)):
        if first[at] == second[0] and first[at:] == second[: len(first) - at]:
            return len(first) - at
    return 0


def best_places(windows: Sequence[Input]) -> list[tuple[int, int]]:
    """(window, place) of each token of a text, once and in order: where it has most around it."""
    found: list[tuple[int, int]] = []
    for number, window in enumerate(windows):
        own = _places(window)
        again = shared(windows[number - 1], window) if number else 0
        for which, place in enumerate(own):
            at = len(found) - again + which if which < again else None
            if at is None:
                found.append((number, place))
            elif which >= again - which:  # nearer to the earlier window's end than to this start
                found[at] = (number, place)
    return found


def _places(window: Input) -> list[int]:
    return [place for place, source in enumerate(window.sources) if source is not None]


def _tokens(window: Input) -> list[tuple[int, tuple[int, int], int | None]]:
    return [
        (window.ids[place], window.offsets[place], window.words[place]) for place in _places(window)
    ]
