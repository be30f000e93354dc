"""Questions with a context that may hold the answer, as in SQuAD (Rajpurkar et al., 2016, 2018)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bedstone.data.example_rows import Examples, Targets
from bedstone.data.inputs import Input, question_batch
from bedstone.data.labelled import LabelledRows
from bedstone.data.tokenizer import Tokenizer

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

    def __init__(
        self, rows: LabelledRows, tokenizer: Tokenizer, *, limit: int, stride: int = 0
    ) -> None:
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
        for window in windows:
            if not answers["text"]:
                self._found.append((0, 0))
                continue
            begin = answers["answer_start"][0]
            self._found.append(span_places(window, begin, begin + len(answers["text"][0])))

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


def span_places(window: Input, begin: int, end: int) -> tuple[int, int]:
    """The places of the tokens in which characters `begin` to `end` of the context begin and end.

    (0, 0) where the window doesn't hold all of them.
    """
    inside = [place for place, source in enumerate(window.sources) if source == 1]
    if not inside or window.offsets[inside[0]][0] > begin or window.offsets[inside[-1]][1] < end:
        return 0, 0
    first = max(place for place in inside if window.offsets[place][0] <= begin)
    last = min(place for place in inside if window.offsets[place][1] >= end)
    return (first, last) if first <= last else (last, last)


def find_answers(rows: LabelledRows, row: int, column: str, context: str) -> Answers:
    """A row's answers as {text: [...], answer_start: [...]}, each of which is where it says.

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
