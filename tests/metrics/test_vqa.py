"""Answers about pictures: accuracy by kind of question, and what blind answers would get."""

from itertools import combinations

import pytest

from bedstone.data.scenes.questions import all_questions
from bedstone.data.scenes.world import make_scene
from bedstone.errors import BedstoneError
from bedstone.metrics.vqa import QuestionOnlyBaseline, agreement, right_answer, vqa_accuracy

TRAINED = [
    ("What colour is the star?", "red"),
    ("What colour is the star?", "Red."),
    ("What colour is the star?", "blue"),
    ("What colour is the moon?", "blue"),
    ("Is there a star?", "yes"),
    ("Is there a moon?", ["no"]),
    ("Is there a heart?", ["no"]),
    ("How many stars?", "two"),
]


def nine_of_ten(said, right):
    """The definition itself: the mean over all sets of all people but one."""
    sets = [list(each) for each in combinations(right, len(right) - 1)]
    return sum(min(each.count(said) / 3, 1) for each in sets) / len(sets)


@pytest.mark.parametrize("agreeing", range(11))
def test_ten_answers_are_votes(agreeing):
    right = ["red"] * agreeing + ["blue"] * (10 - agreeing)
    assert agreement("red", right) == pytest.approx(nine_of_ten("red", right))


def test_ten_answers_by_worked_numbers():
    """Of 10: none 0, one 0.3, two 0.6, three 0.9, four and more 1."""
    found = [agreement("red", ["red"] * n + ["x"] * (10 - n)) for n in range(6)]
    assert found == pytest.approx([0, 0.3, 0.6, 0.9, 1, 1])


def test_fewer_answers_are_all_right():
    assert agreement("sofa", ["couch", "sofa"]) == 1
    assert agreement("chair", ["couch", "sofa"]) == 0
    assert right_answer("The Sofa.", ["couch", "sofa"]) and not right_answer("chair", "sofa")


def test_accuracy_by_kind():
    found = vqa_accuracy(
        ["yes", "no", "two", "Red!"],
        ["yes", "yes", ["2", "a pair"], "red"],
        ["existence", "existence", "count", "colour"],
        resamples=0,
    )
    assert found.values == {
        "accuracy": 0.75,
        "accuracy/colour": 1,
        "accuracy/count": 1,
        "accuracy/existence": 0.5,
    }
    assert found.support == {"colour": 1, "count": 1, "existence": 2}
    told = vqa_accuracy(
        ["yes", "3", "cat"], ["no", "three", "cat"], ["", "", "animal"], resamples=0
    )
    assert set(told.support) == {"yes/no", "number", "animal"}


def test_the_blind_answer_backs_off():
    blind = QuestionOnlyBaseline(TRAINED)
    assert blind.guess("what colour is the star") == "red"
    assert blind.guess("What colour is the moon?") == "blue"
    assert blind.guess("Is there a star?") == "yes"  # that very question
    assert blind.guess("Is there a cross?") == "no"  # its first words
    assert blind.guess("What colour is the heart?") == "red"  # of equally many, red comes first
    assert blind.guess("How many moons?") == "2"
    assert blind.guess("Where?") == blind.guess("") == blind.majority
    assert blind.majority in ("red", "blue", "no")  # two each
    assert QuestionOnlyBaseline([("a?", "x"), ("b?", "y"), ("b?", "y")]).majority == "y"


def test_baselines_stand_beside():
    blind = QuestionOnlyBaseline(TRAINED)
    ask = ["Is there a star?", "Is there a cross?", "What colour is the star?"]
    truth = ["yes", "yes", "red"]
    found = vqa_accuracy(
        ["yes", "yes", "blue"], truth, ["is", "is", "what"], questions=ask, blind=blind
    )
    assert found["accuracy"] == pytest.approx(2 / 3) and found["accuracy/is"] == 1
    assert found["blind"] == pytest.approx(2 / 3)
    assert found["blind/is"] == 0.5 and found["blind/what"] == 1
    assert found["majority"] == pytest.approx(sum(t == blind.majority for t in truth) / 3)
    columns = [column.header for column in found.classes().columns]
    assert columns == ["", "majority", "blind", "accuracy", "95 % of resamples", "support"]
    with pytest.raises(BedstoneError, match="questions: there are 0 for 3 questions"):
        vqa_accuracy(truth, truth, blind=blind)
    with pytest.raises(BedstoneError, match="no answers to learn from"):
        QuestionOnlyBaseline([])


def test_intervals_draw_pictures_with_all_their_questions():
    truth = ["yes"] * 400
    said = (["yes"] * 10 + ["no"] * 10) * 20  # every twenty questions are about two pictures
    alone = vqa_accuracy(said, truth)
    together = vqa_accuracy(said, truth, images=[n // 10 for n in range(400)])
    assert alone.values == together.values
    widths = [high - low for low, high in (f.intervals["accuracy"] for f in (alone, together))]
    assert widths[1] > 2 * widths[0]
    assert alone == vqa_accuracy(said, truth)


def test_what_cannot_be_scored_is_named():
    with pytest.raises(BedstoneError, match="2 predictions for 1 questions"):
        vqa_accuracy(["a", "b"], ["a"])
    with pytest.raises(BedstoneError, match="no questions to score"):
        vqa_accuracy([], [])
    for wrong in ([], None, [3]):
        with pytest.raises(BedstoneError, match="actual, row 1"):
            vqa_accuracy(["a", "b"], ["a", wrong])
    with pytest.raises(BedstoneError, match="predicted, row 0: 3 is no text"):
        vqa_accuracy([3], ["3"])
    with pytest.raises(BedstoneError, match="kinds: there are 1 for 2 questions"):
        vqa_accuracy(["a", "b"], ["a", "b"], ["one"])
    with pytest.raises(BedstoneError, match="images: there are 1 for 2 questions"):
        vqa_accuracy(["a", "b"], ["a", "b"], images=[0])


def test_scenes_give_little_to_who_does_not_look():
    learn = [q for n in range(400) for q in all_questions(make_scene(n))]
    held = [q for n in range(100) for q in all_questions(make_scene(n, split="test"))]
    blind = QuestionOnlyBaseline((q.text, q.answer) for q in learn)
    found = vqa_accuracy(
        [q.answer for q in held],
        [q.answer for q in held],
        [q.kind for q in held],
        questions=[q.text for q in held],
        blind=blind,
        resamples=0,
    )
    assert found["accuracy"] == 1 and found["blind"] < 0.6
    assert found["majority"] < found["blind"]
