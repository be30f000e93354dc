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


def nearest(word: str, choices: Iterable[str]) -> str:
    """`; perhaps 'x' is meant` for the closest of `choices`, or their list if none is close."""
    choices = sorted(choices)
    return closest(word, choices) or f"; expected one of {', '.join(choices)}"


def closest(word: str, choices: Iterable[str]) -> str:
    """`; perhaps 'x' is meant` for the closest of `choices`; "" if none is close."""
    close = difflib.get_close_matches(word, sorted(choices), n=1, cutoff=0.5)
    return f"; perhaps {close[0]!r} is meant" if close else ""
