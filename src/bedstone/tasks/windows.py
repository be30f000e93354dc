"""Which of several windows a token of a long text is read in."""

from collections.abc import Sequence

from bedstone.data.inputs import Input


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
