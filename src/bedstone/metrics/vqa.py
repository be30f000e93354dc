"""Visual question answering accuracy by kind of question, with a question-only baseline.

Accuracy is that of VQA (Antol et al., 2015, section 3.3): answers are compared in one plain form
(`metrics.vqa`), and where ten people answered, min(people who said so / 3, 1), the mean over
all sets of nine of them. A row of fewer answers lists what is right: any of them is.

Two baselines answer without the image: `majority` gives one answer to all, `blind` the one most
often right of that question in training. A model that does not beat them does not use the image.

Shapes: N questions, K kinds, P pictures, R resamples.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.metrics.figures import Figures, bootstrap, check_lengths, grouped, named, with_ends

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}

_THOUSANDS = re.compile(r"(?<=\d),(?=\d)")
_PERIOD = re.compile(r"\.(?!\d)")  # not that of 3.5
_MARKS = re.compile(r"[^\w\s.:$%&*~^|#]|_")  # what the published script keeps is kept


def normalise_answer(answer: str) -> str:
    """An answer in the form that is compared.

    >>> plain("The  two red-ish T-shirts.")
    '2 red ish t shirts'
    """
    text = answer.lower().replace("'", "").replace("’", "")
    text = _MARKS.sub(" ", _PERIOD.sub("", _THOUSANDS.sub("", text)))
    found = (_DIGITS.get(word, word) for word in text.split())
    # an answer that is nothing but an article or marks stays what it is
    return " ".join(word for word in found if word not in _ARTICLES) or answer.lower().strip()


def answer_kind(answers: list[str] | tuple[str, ...]) -> str:
    """What is asked for, told by the answers, as VQA groups its questions: yes/no, number, other.

    The kind that most of them are of; the first of equals.
    """
    kinds = [_kind(normalise_answer(answer)) for answer in answers]
    return max(kinds, key=kinds.count, default="other")


def _kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if re.fullmatch(r"\d+(\.\d+)?", answer) else "other"


PEOPLE = 10  # as many answers are votes
ENOUGH = 3  # people who make an answer wholly right

Answers = str | Sequence[str]


class QuestionOnlyBaseline:
    """A baseline that reads the question alone, learnt from questions and their answers.

    To a question that training asked, the most common of its answers; to another, that of the
    questions that begin with the most of its words; to one that begins like none, the most common
    of all. Of equally common ones, the one more common among all.

    Args:
        questions: and their right answers, of training.

    Raises:
        BedstoneError: there are none.
    """

    def __init__(self, questions: Iterable[tuple[str, Answers]]) -> None:
        self.all: Counter[str] = Counter()
        self.by: dict[tuple[str, ...], Counter[str]] = {}  # of the whole question, and its starts
        for question, given in questions:
            said = [normalise_answer(answer) for answer in _listed(given)]
            self.all.update(said)
            for start in _starts(question):
                self.by.setdefault(start, Counter()).update(said)
        if not self.all:
            raise BedstoneError(
                "blind: there are no answers to learn from; give those of training."
            )
        self.majority = self._best(self.all)
        self.known = {start: self._best(found) for start, found in self.by.items() if found}

    def guess(self, question: str) -> str:
        """The best answer without the picture."""
        return next((self.known[s] for s in _starts(question) if s in self.known), self.majority)

    def _best(self, found: Counter[str]) -> str:
        return max(found, key=lambda answer: (found[answer], self.all[answer]))


def vqa_accuracy(
    predicted: Sequence[str],
    actual: Sequence[Answers],
    kinds: Sequence[str] = (),
    *,
    questions: Sequence[str] = (),
    blind: QuestionOnlyBaseline | None = None,
    images: Sequence[int] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """`accuracy`, and `accuracy/KIND`; with `blind` also `majority` and `blind` in the same way.

    Args:
        predicted: an answer a question.
        actual: a question's right answers: a text or a list of them.
        kinds: of the questions; without them, or where one is empty, yes/no, number or other, by
            the right answers.
        questions: their texts, which `blind` needs.
        blind: learnt from the questions of training; None leaves the baselines out.
        images: the number of each question's image. Questions about one image are right
            together: intervals draw images, each with all its questions. None draws questions.
        resamples: of the bootstrap; 0 leaves intervals out.

    Raises:
        BedstoneError: lengths differ, there are no rows, a row has no right answer, or something
            is no text.
    """
    rows = check_lengths(predicted, actual, "questions")
    truth = [
        [normalise_answer(answer) for answer in _checked(given, row)]
        for row, given in enumerate(actual)
    ]
    for row, answer in enumerate(predicted):
        if not isinstance(answer, str):
            raise BedstoneError(f"predicted, row {row}: {answer!r} is no text.")
    given = {"questions": questions if blind else None, "kinds": kinds or None}
    for name, listed in [*given.items(), ("images", images)]:
        if listed is not None and len(listed) != rows:
            raise BedstoneError(f"{name}: there are {len(listed):,} for {rows:,} questions.")
    known = [kind or answer_kind(truth[row]) for row, kind in enumerate(kinds or [""] * rows)]
    sorts = sorted(set(known))
    who = {"accuracy": [normalise_answer(answer) for answer in predicted]}
    if blind is not None:  # before accuracy, which intervals of a kind are given for
        guesses = [blind.guess(question) for question in questions]
        who = {"majority": [blind.majority] * rows, "blind": guesses, **who}
    right = np.stack([_scores(said, truth) for said in who.values()], 1)  # (N, B)
    member = np.array([[kind == sort for sort in sorts] for kind in known], dtype=float)  # (N, K)
    member = np.c_[np.ones(rows), member]  # all questions, then each kind
    sums = (member[:, :, None] * right[:, None]).reshape(rows, -1)  # (N, (1 + K) B)
    counts = np.c_[sums, member]
    if images is not None:
        _, owner = np.unique(np.asarray(images), return_inverse=True)
        together = np.zeros((owner.max() + 1, counts.shape[1]))
        np.add.at(together, owner, counts)
        counts = together  # (P, ...)
    distinct, repeats = grouped(counts)
    names = [name + (f"/{sort}" if sort else "") for sort in ["", *sorts] for name in who]

    def figures(drawn: np.ndarray) -> np.ndarray:
        found = drawn @ distinct
        below = np.repeat(found[:, -member.shape[1] :], len(who), axis=1)
        with np.errstate(invalid="ignore"):
            return found[:, : len(names)] / below

    ends = bootstrap(figures, repeats, resamples=resamples, seed=seed) if resamples else None
    all_values = named(names, figures(repeats[None].astype(float))[0])
    return Figures(
        kind="asked",
        main="accuracy",
        values=all_values,
        intervals={} if ends is None else with_ends(names, ends),
        rows=rows,
        support={sort: known.count(sort) for sort in sorts},
        baselines={name: all_values[name] for name in ("majority", "blind") if name in all_values},
    )


def agreement(said: str, right: Sequence[str]) -> float:
    """How right an answer is, 0 to 1; both sides in their plain form.

    Of ten answers or more: an answer that c of n people gave is matched in the sets that leave out
    one of the c by c - 1, in the others by c.
    """
    count = list(right).count(said)
    if len(right) < PEOPLE:
        return float(count > 0)
    least, most = min((count - 1) / ENOUGH, 1), min(count / ENOUGH, 1)
    return (count * least + (len(right) - count) * most) / len(right)


def right_answer(said: str, right: Answers) -> bool:
    """Whether an answer is right at all: for marking it on a page."""
    return (
        agreement(normalise_answer(said), [normalise_answer(answer) for answer in _listed(right)])
        > 0.5
    )


def _scores(said: list[str], truth: list[list[str]]) -> np.ndarray:
    return np.array([agreement(one, right) for one, right in zip(said, truth, strict=True)])


def _listed(given: Answers) -> Sequence[str]:
    return [given] if isinstance(given, str) else given


def _checked(given: Answers, row: int) -> Sequence[str]:
    found = _listed(given) if given is not None else []
    if not len(found) or not all(isinstance(answer, str) for answer in found):
        raise BedstoneError(
            f"actual, row {row}: {given!r} was given; expected a right answer or a list of them."
        )
    return found


def _starts(question: str) -> list[tuple[str, ...]]:
    """All its words, then all but the last, and so on to the first."""
    words = tuple(normalise_answer(question).split())
    return [words[:length] for length in range(len(words), 0, -1)]
