"""Answers to questions about pictures, brought to one form before they are compared.

As the evaluation of VQA does it (Antol et al., 2015, section 3.3): lower case; numbers in digits;
no articles; no punctuation, save periods and commas inside numbers. One thing is simpler here:
apostrophes are left out on both sides, where the published script puts missing ones in.
"""

import re

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}

_THOUSANDS = re.compile(r"(?<=\d),(?=\d)")
_PERIOD = re.compile(r"\.(?!\d)")  # not that of 3.5
_MARKS = re.compile(r"[^\w\s.:$%&*~^|#]|_")  # what the published script keeps is kept


def plain(answer: str) -> str:
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
    kinds = [_kind(plain(answer)) for answer in answers]
    return max(kinds, key=kinds.count, default="other")


def _kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if re.fullmatch(r"\d+(\.\d+)?", answer) else "other"
