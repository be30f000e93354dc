"""The one exception a user is meant to read."""

import difflib
import re
from collections.abc import Iterable


class BedstoneError(Exception):
    """Something the user can mend: one paragraph that names the thing and what to do.

    The command line prints it without a traceback and leaves with exit code 2.
    Everything else that escapes is a bug of ours and keeps its traceback. A word longer than a
    file's name can be, out of somebody's file, is shown by its beginning.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_LONG.sub(lambda word: f"{word[0][:80]}…", str(message)))


_LONG = re.compile(r"[^\s/]{300,}")


LISTED = 40  # choices that a message lists
CLOSE = 0.7  # the least share of letters in common (`difflib`) of a misspelt name


def nearest(word: str, choices: Iterable[str]) -> str:
    """`; perhaps 'x' is meant` for the closest of `choices`, or their list if none is close."""
    choices = sorted(choices)
    more = f", ... ({len(choices):,} in all)" if len(choices) > LISTED else ""
    return closest(word, choices) or f"; expected one of {', '.join(choices[:LISTED])}{more}"


def closest(word: str, choices: Iterable[str]) -> str:
    """`; perhaps 'x' is meant` for the closest of `choices`; "" if none is close."""
    choices = sorted(choices)
    longer = [choice for choice in choices if len(word) > 2 and choice.startswith(word)]
    found = near_name(word, choices) or (longer[0] if len(longer) == 1 else "")
    return f"; perhaps {found!r} is meant" if found else ""


def near_name(word: str, choices: Iterable[str]) -> str:
    """The choice that a word misspells; "" where it is far from each."""
    choices = sorted(choices)
    if len(word) == 2:  # one letter elsewhere is another word: es is no de
        choices = [n for n in choices if len(n) != 2 or n[0] == word[0] or n[1] == word[1]]
    for choice in difflib.get_close_matches(word, choices, n=5, cutoff=0.5):
        match = difflib.SequenceMatcher(None, choice, word)
        other = len(word) + len(choice) - 2 * sum(each.size for each in match.get_matching_blocks())
        one_letter = other <= 2 and abs(len(word) - len(choice)) <= 1
        if one_letter or match.ratio() >= CLOSE:
            return choice
    return ""
