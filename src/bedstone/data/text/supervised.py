"""Examples of each supervised text task: what is read of a row, and what its targets are.

Texts or pairs of texts with labels or numbers; words with a tag each; questions with a context that
holds the answer; prompts with completions.

Shapes: n windows of a batch, M read states, L labels.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from bedstone.data import labels as labelling
from bedstone.data.dataset import Dataset
from bedstone.data.text.completions import CompletionExamples
from bedstone.data.text.conversations import (
    ConversationExamples,
    Conversations,
    holds_conversations,
)
from bedstone.data.text.encode import (
    Input,
    question_batch,
    read_words,
    text_batch,
    word_batch,
)
from bedstone.data.text.examples import Examples, Ragged, Targets
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError, nearest

# Texts, or pairs of texts, with a label, several labels, or figures.

PROBLEMS = ("single", "multi", "regression")


class TextExamples(Examples):
    """A row's `text`, with its `pair` where there is one, and its `label`.

    All windows of a long row learn its label, each for its share of one target.

    Args:
        labels: names of the outputs; None takes those of the rows.
        problem: single (one label of several), multi (a list of labels), regression (numbers);
            auto takes it from the labels.
        known: whether `labels` are those of a model: none else may come, and none is missed.

    Raises:
        BedstoneError: naming the file, row and column of what can't be learnt.
    """

    kind = "sequence"

    def __init__(
        self,
        rows: Dataset,
        tokenizer: Tokenizer,
        *,
        labels: Sequence[str] | None = None,
        problem: str = "auto",
        limit: int,
        stride: int = 0,
        known: bool = False,
    ) -> None:
        text, pair = rows.need("text"), rows.column("pair")
        self._texts = rows.texts(text)
        self._pairs = rows.texts(pair) if pair else None
        column = rows.need("label")
        if problem not in (*PROBLEMS, "auto"):
            raise BedstoneError(f"problem: {problem!r} is unknown{nearest(problem, PROBLEMS)}.")
        self.problem = labelling.find_problem(rows, column) if problem == "auto" else problem
        if self.problem == "regression":
            self._read_figures(rows, column, labels)
        else:
            self._read_labels(rows, column, labels, known)
        super().__init__(rows, tokenizer, limit=limit, stride=stride)
        count = np.bincount(self.owner)
        self._share = (1 / count).astype(np.float32) if (count > 1).any() else None

    def _read_figures(self, rows: Dataset, column: str, labels: Sequence[str] | None) -> None:
        self._all = labelling.figures(rows, column, len(labels) if labels else None)
        count = self._all.shape[1]
        self.labels = tuple(labels or ([column] if count == 1 else map(str, range(count))))
        self.actual = self._all[:, 0].tolist() if count == 1 else self._all.tolist()

    def _read_labels(
        self, rows: Dataset, column: str, labels: Sequence[str] | None, known: bool
    ) -> None:
        if self.problem == "multi":
            several = labelling.several(rows, column, labels)
            names = {name for each in several for name in each}
            names |= set(labelling.vector_names(rows, column, labels) or ())
        else:
            names = set(one := labelling.single(rows, column, labels))
        self.labels = tuple(labels) if labels else labelling.ordered(names)
        least = 1 if self.problem == "multi" or known else 2
        if len(self.labels if known else names) < least:
            raise BedstoneError(
                f"data {rows.name!r}: column {column!r} holds {len(names)} labels in "
                f"{len(rows):,} rows ({', '.join(sorted(names)) or 'none'}); expected {least} or "
                "more to tell apart. Name data with more rows."
            )
        places = {name: place for place, name in enumerate(self.labels)}
        if self.problem == "single":
            self.actual = one
            self._all = np.array([places[name] for name in one], dtype=np.int64)
            return
        self.actual = several
        self._all = np.zeros((len(rows), len(self.labels)), dtype=np.float32)
        for row, each in enumerate(several):
            self._all[row, [places[name] for name in each]] = 1

    def label_weights(self, weights: str | Mapping[str, float] | None) -> np.ndarray | None:
        if not weights or self.problem != "single":
            return super().label_weights(weights)
        counts = np.bincount(self._all, minlength=len(self.labels))
        return labelling.label_weights(weights, self.labels, counts)

    def _inputs(self, numbers: Sequence[int]) -> list[list[Input]]:
        return text_batch(
            self.tokenizer,
            [self._texts[i] for i in numbers],
            [self._pairs[i] for i in numbers] if self._pairs else None,
            limit=self.limit,
            stride=self.stride,
        )

    def _targets(
        self,
        windows: np.ndarray,
        starts: np.ndarray,
        reads: np.ndarray,
        weights: np.ndarray | None,
    ) -> Targets:
        owner = self.owner[windows]
        targets = self._all[owner]
        each = None if self._share is None else self._share[owner]
        count = None if each is None else float(each.sum())
        if weights is not None:
            each = weights[targets] * (1 if each is None else each)
        return Targets(reads, np.arange(len(windows)), targets, each, count=count)


# Words with a tag each: entities, parts of speech.


class TagExamples(Examples):
    """A row's `tokens` (words) and their `tags`.

    A word's tag is learnt at its first sub-word alone, once, whatever the windows it stands in.
    Words without any token, such as empty ones, have no target.

    Args:
        labels: the tags; None takes those of the rows, `O` first.

    Raises:
        BedstoneError: naming the file, row and column of what can't be learnt.
    """

    kind = "tokens"

    def __init__(
        self,
        rows: Dataset,
        tokenizer: Tokenizer,
        *,
        labels: Sequence[str] | None = None,
        limit: int,
        stride: int = 0,
    ) -> None:
        tokens, column = rows.need("tokens"), rows.need("tags")
        self.actual = labelling.tags(rows, tokens, column, labels)
        self._words = [rows.value(i, tokens) for i in range(len(rows))]
        names = {name for each in self.actual for name in each}
        self.labels = tuple(labels) if labels else labelling.ordered(names)
        self._places = {name: place for place, name in enumerate(self.labels)}
        self._counts = np.zeros(len(self.labels), dtype=np.int64)
        self._reads = Ragged()
        super().__init__(rows, tokenizer, limit=limit, stride=stride)
        if len(self.labels) < 2:
            raise BedstoneError(
                f"data {rows.name!r}: column {column!r} holds {len(self.labels)} tags; expected "
                "two or more to tell apart. Name data with more rows."
            )

    def label_weights(self, weights: str | Mapping[str, float] | None) -> np.ndarray | None:
        if not weights:
            return None
        return labelling.label_weights(weights, self.labels, self._counts)

    def _inputs(self, numbers: Sequence[int]) -> list[list[Input]]:
        words = [self._words[i] for i in numbers]
        return word_batch(self.tokenizer, words, limit=self.limit, stride=self.stride)

    def _keep(self, row: int, windows: list[Input]) -> None:
        for window, places in zip(windows, read_words(windows), strict=True):
            words = [word for at in places if (word := window.words[at]) is not None]
            tags = [self._places[self.actual[row][word]] for word in words]
            np.add.at(self._counts, tags, 1)
            self._reads.add(places, tags, words)

    def _targets(
        self,
        windows: np.ndarray,
        starts: np.ndarray,
        reads: np.ndarray,
        weights: np.ndarray | None,
    ) -> Targets:
        (places, tags, words), owners = self._reads.take(windows)
        each = None if weights is None else weights[tags]
        return Targets(places + starts[owners], owners, tags, each, words)


# Questions with a context that may hold the answer, as in SQuAD (Rajpurkar et al., 2016, 2018).

Answers = dict[str, list[Any]]  # text, answer_start


class SpanExamples(Examples):
    """A row's `question`, `context` and `answers`: {text: [...], answer_start: [...]}.

    The first answer is learnt, at the tokens it begins and ends in. A window that doesn't hold
    all of it, and a row without answers (or with `is_impossible`), has none: its first token is
    the target (BERT, Devlin et al., 2019, section 4.3).

    Raises:
        BedstoneError: naming the file, row and column of what can't be learnt, such as an answer
            that doesn't stand where it is said to.
    """

    kind = "spans"

    def __init__(self, rows: Dataset, tokenizer: Tokenizer, *, limit: int, stride: int = 0) -> None:
        question, context, column = (rows.need(p) for p in ("question", "context", "answers"))
        self._questions, self._contexts = rows.texts(question), rows.texts(context)
        self.actual = [
            find_answers(rows, row, column, self._contexts[row]) for row in range(len(rows))
        ]
        self._found: list[tuple[int, int]] = []
        super().__init__(rows, tokenizer, limit=limit, stride=stride)
        self._spans = np.array(self._found, dtype=np.int64)

    def _inputs(self, numbers: Sequence[int]) -> list[list[Input]]:
        return question_batch(
            self.tokenizer,
            [self._questions[i] for i in numbers],
            [self._contexts[i] for i in numbers],
            limit=self.limit,
            stride=self.stride,
        )

    def _keep(self, row: int, windows: list[Input]) -> None:
        answers = self.actual[row]
        if not answers["text"]:
            self._found += [(0, 0)] * len(windows)
            return
        text, start = answers["text"][0], answers["answer_start"][0]
        begin = start + len(text) - len(text.lstrip())  # outer spaces are no part of an answer
        end = begin + len(text.strip())
        tokens = {offsets for window in windows for offsets in context_offsets(window)}
        self._found += [span_places(window, begin, end, tokens) for window in windows]

    def _targets(
        self,
        windows: np.ndarray,
        starts: np.ndarray,
        reads: np.ndarray,
        weights: np.ndarray | None,
    ) -> Targets:
        lengths = self.lengths[windows]
        owners = np.repeat(np.arange(len(windows)), lengths)
        return Targets(np.arange(lengths.sum()), owners, self._spans[windows])


def context_offsets(window: Input) -> list[tuple[int, int]]:
    """The characters of the context that each of its tokens in a window covers."""
    pairs = zip(window.offsets, window.sources, strict=True)
    return [offsets for offsets, source in pairs if source == 1]


def span_places(
    window: Input, begin: int, end: int, tokens: Collection[tuple[int, int]] | None = None
) -> tuple[int, int]:
    """The places of the first and the last token that cover characters `begin` to `end`.

    Characters that no token covers, such as spaces and accents that are stripped, have no place.

    Args:
        tokens: the characters of all tokens of the context; None takes the window's.

    Returns:
        The two places; (0, 0) where the window doesn't hold all tokens of these characters.
    """

    def covers(offsets: tuple[int, int]) -> bool:
        return offsets[0] < end and offsets[1] > begin and offsets[0] < offsets[1]

    found = [
        place
        for place, (offsets, source) in enumerate(zip(window.offsets, window.sources, strict=True))
        if source == 1 and covers(offsets)
    ]
    own = context_offsets(window) if tokens is None else tokens
    if not found or {each for each in own if covers(each)} - {window.offsets[at] for at in found}:
        return 0, 0
    return found[0], found[-1]


def find_answers(rows: Dataset, row: int, column: str, context: str) -> Answers:
    """A row's answers as {text: [...], answer_start: [...]}, each checked against the context.

    Raises:
        BedstoneError: an answer isn't, or the column holds something else.
    """
    found: Answers = {"text": [], "answer_start": []}
    value = rows.rows[row].get(column)
    if not value or rows.rows[row].get("is_impossible"):
        return found

    def fault(what: str, advice: str = "Mend it, or leave the row out.") -> Exception:
        return rows.fault(row, column, what, advice)

    try:
        if isinstance(value, dict):
            texts, starts = value["text"], value["answer_start"]
            if isinstance(texts, str):
                texts, starts = [texts], [starts]
            pairs = list(zip(texts, starts, strict=True))
        else:
            pairs = [(each["text"], each["answer_start"]) for each in value]
    except (KeyError, TypeError, ValueError):
        raise fault(
            f"is {str(value)[:60]!r}; expected {{text: [...], answer_start: [...]}}, as many of "
            "one as of the other"
        ) from None
    for text, start in pairs:
        if not isinstance(text, str) or not text.strip() or type(start) is not int:
            raise fault(f"has the answer {text!r} at {start!r}; expected a text and a whole number")
        if not 0 <= start <= len(context) - len(text):
            raise fault(
                f"has the answer {text[:60]!r} at {start:,}, past the end of its context "
                f"({len(context):,} characters)"
            )
        stands = context[start : start + len(text)]
        if stands != text:
            near = context.find(text)
            hint = f"; it is at {near:,}" if near >= 0 else "; the context doesn't hold it"
            raise fault(
                f"has the answer {text[:60]!r} at {start:,}, where {stands[:60]!r} is{hint}"
            )
        found["text"].append(text)
        found["answer_start"].append(start)
    return found


# Examples by their task.

TASKS = ("text-classification", "token-classification", "question-answering", "text-generation")
PARTS = {
    "text-classification": ("text", "pair", "label"),
    "token-classification": ("tokens", "tags"),
    "question-answering": ("question", "context", "answers"),
    "text-generation": (
        *(
            "prompt",
            "instruction",
            "input",
            "text",
            "completion",
            "output",
            "messages",
            "history",
            "system",
            "tools",
        ),
    ),
}


def usable_rows(
    task: str, rows: Dataset, labels: Sequence[str] | None = None, problem: str = "auto"
) -> Dataset:
    """The rows that a task can learn; broken ones are left out and counted in `rows.faults`.

    Raises:
        BedstoneError: a column is missing, or too many rows are broken.
    """

    def check_cells(*columns: str) -> Callable[[int], Any]:
        return lambda row: [rows.text(row, column) for column in columns]

    if task == "text-classification":
        texts = [rows.need("text"), *filter(None, [rows.column("pair")])]
        column = rows.need("label")

        def check_present(row: int) -> None:
            check_cells(*texts)(row)
            rows.value(row, column)

        rows = rows.usable(check_present)
        kind = labelling.find_problem(rows, column) if problem == "auto" else problem
        return rows.usable(labelling.checker(rows, column, labels, kind))
    if task == "token-classification":
        tokens, column = rows.need("tokens"), rows.need("tags")
        namer = labelling.Namer(rows, column, labels, "tag")
        return rows.usable(lambda row: labelling.tags_of(namer, row, tokens))
    if task == "question-answering":
        question, context, column = (rows.need(p) for p in PARTS[task])

        def check_answers(row: int) -> None:
            check_cells(question, context)(row)
            find_answers(rows, row, column, rows.rows[row][context])

        return rows.usable(check_answers)
    if holds_conversations(rows):
        return rows.usable(Conversations(rows).read)
    needed = check_cells(*_learnt_columns(rows))
    spare = [name for part in ("prompt", "input") if (name := rows.column(part))]

    def check_completion(row: int) -> None:
        needed(row)
        for name in spare:
            rows.text(row, name, empty=True)

    return rows.usable(check_completion)


def _learnt_columns(rows: Dataset) -> list[str]:
    """The columns of text-generation that no row may lack."""
    if rows.column("completion"):
        return [rows.need("completion")]
    if rows.column("instruction"):
        return [rows.need("instruction"), rows.need("output")]
    return [rows.need("text")]


def make_examples(
    task: str,
    rows: Dataset,
    tokenizer: Tokenizer,
    *,
    labels: Sequence[str] | None = None,
    problem: str = "auto",
    **how: Any,
) -> Examples:
    """`examples_of` the rows that the task can learn; raises as `usable_rows` does."""
    rows = usable_rows(task, rows, labels, problem)
    return examples_of(task, rows, tokenizer, labels=labels, problem=problem, **how)


def examples_of(
    task: str,
    rows: Dataset,
    tokenizer: Tokenizer,
    *,
    labels: Sequence[str] | None = None,
    problem: str = "auto",
    limit: int,
    stride: int = 0,
    known: bool = False,
    keep_ends: bool = True,
    own_template: bool = True,
    turns: str = "all",
) -> Examples:
    """Rows that were checked as examples of a task, tokenised.

    Args:
        task: one of `TASKS`.
        labels: names of the outputs; None takes those of the rows.
        problem: of text-classification: single, multi, regression, or auto.
        limit: tokens of a row at most; what is longer becomes windows.
        stride: tokens that a window shares with the one before.
        known: whether labels and problem are those of a model that is there.
        keep_ends: of text-generation, whether of long prompts the end is kept.
        own_template: likewise, whether instructions are written by the model's own chat template.
        turns: of conversations, all answers are learnt, or the last one of each.
    """
    room = {"limit": limit, "stride": stride}
    if task == "text-classification":
        return TextExamples(rows, tokenizer, labels=labels, problem=problem, known=known, **room)
    if task == "token-classification":
        return TagExamples(rows, tokenizer, labels=labels, **room)
    if task == "question-answering":
        return SpanExamples(rows, tokenizer, **room)
    if task == "text-generation" and holds_conversations(rows):
        return ConversationExamples(rows, tokenizer, turns=turns, **room)
    if task == "text-generation":
        return CompletionExamples(
            rows, tokenizer, keep_ends=keep_ends, own_template=own_template, **room
        )
    raise BedstoneError(f"task: {task!r} can't be learnt from rows{nearest(task, TASKS)}.")
