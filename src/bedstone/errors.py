"""The one exception a user is meant to read."""

import difflib
from collections.abc import Iterable


class BedstoneError(Exception):
    """Something the user can mend: one paragraph that names the thing and what to do.

    The command line prints it without a traceback and leaves with exit code 2.
    Everything else that escapes is a bug of ours and keeps its traceback.
    """


def nearest(word: str, choices: Iterable[str]) -> str:
    """`; perhaps 'x' is meant` for the closest of `choices`, or their list if none is close."""
    choices = sorted(choices)
    return closest(word, choices) or f"; expected one of {', '.join(choices)}"


def closest(word: str, choices: Iterable[str]) -> str:
    """`; perhaps 'x' is meant` for the closest of `choices`; "" if none is close."""
    close = difflib.get_close_matches(word, sorted(choices), n=1, cutoff=0.5)
    return f"; perhaps {close[0]!r} is meant" if close else ""
