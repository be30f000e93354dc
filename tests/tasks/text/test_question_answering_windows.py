"""Each token of a long text is read once, where it has most around it."""

from itertools import pairwise

import pytest

from bedstone.data.text.encode import text_input, text_windows, word_windows
from bedstone.tasks.text.question_answering import best_places, shared
from small_models import SENTENCES, tokenizer

TEXT = " ".join(SENTENCES * 3)


@pytest.mark.parametrize("layout", ["bert", "roberta"])
@pytest.mark.parametrize(("limit", "stride"), [(20, 0), (20, 5), (20, 17), (12, 4), (1000, 3)])
def test_each_token_once_and_in_order(layout, limit, stride):
    known = tokenizer(layout)
    whole = text_input(known, TEXT)
    windows = text_windows(known, TEXT, limit=limit, stride=stride)
    places = best_places(windows)
    assert [windows[w].ids[p] for w, p in places] == whole.ids[1:-1]
    assert [windows[w].offsets[p] for w, p in places] == whole.offsets[1:-1]
    for one, two in pairwise(windows):
        assert shared(one, two) == stride
    for window, place in places:  # never near an edge that another window reaches over
        ahead = place - 1 if window else 99
        behind = len(windows[window]) - 2 - place if window < len(windows) - 1 else 99
        assert min(ahead, behind) >= (stride - 1) // 2 or stride == 0


@pytest.mark.parametrize(("limit", "stride"), [(20, 0), (20, 5), (20, 12)])
def test_each_word_once(limit, stride):
    known, words = tokenizer(), TEXT.split()
    windows = word_windows(known, words, limit=limit, stride=stride)
    places = best_places(windows)
    ids = [windows[w].ids[p] for w, p in places]
    assert ids == word_windows(known, words, limit=10_000)[0].ids[1:-1]
    assert len(windows) > 3


def test_a_text_of_one_letter_is_told_apart_by_its_offsets():
    windows = text_windows(tokenizer(), "a " * 90, limit=20, stride=7)
    assert len(best_places(windows)) == 90


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 7, 8])
def test_no_other_window_has_more_around_a_token(stride):
    windows = text_windows(tokenizer(), "a " * 60, limit=20, stride=stride)
    around: dict[tuple[int, int], list[tuple[int, int]]] = {}  # of each token: (least side, window)
    for number, window in enumerate(windows):
        last = len(window) - 2
        for place in range(1, last + 1):
            ahead = place - 1 if number else 99
            behind = last - place if number < len(windows) - 1 else 99
            around.setdefault(window.offsets[place], []).append((min(ahead, behind), number))
    places = best_places(windows)
    assert len(places) == len(around) == 60
    for window, place in places:
        held = around[windows[window].offsets[place]]
        assert {number: least for least, number in held}[window] == max(held)[0]
