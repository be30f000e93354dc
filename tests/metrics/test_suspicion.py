"""Signs that an output doesn't say what its source says, by their rules."""

import pytest

from bedstone.errors import BedstoneError
from bedstone.metrics.suspicion import repeats, signs, swapped, words

SOURCES = [
    "Zwei Kinder spielen im Garten.",
    "Ein Mann fährt mit dem Rad.",
    "Eine Frau kauft 1.000 Äpfel.",
    "Der Hund schläft vor der Tür.",
    "Drei Leute warten auf den Bus.",
    "Ein Junge springt ins Wasser.",
]
RIGHT = [
    "Two children play in the garden.",
    "A man is riding a bicycle.",
    "A woman buys 1,000 apples.",
    "The dog sleeps at the door.",
    "Three people wait for the bus.",
    "A boy jumps into the water.",
]
REFERENCES = [[text] for text in RIGHT]


def changed(row: int, text: str, **more):
    outputs = [*RIGHT[:row], text, *RIGHT[row + 1 :]]
    return signs(SOURCES, outputs, REFERENCES, **more)[row]


def test_right_outputs_have_no_signs():
    for found in (signs(SOURCES, RIGHT, REFERENCES), signs(SOURCES, RIGHT)):
        assert [each.reasons for each in found] == [{}] * 6
        assert [each.score for each in found] == [0.0] * 6


@pytest.mark.parametrize(
    ("row", "text", "reason"),
    [
        (0, "", "empty"),
        (0, "  \n", "empty"),
        (1, "ein mann  fährt mit dem Rad.", "copied"),
        (1, "A man rides a a a a bike.", "repeated"),
        (0, "Two children play in the garden and " * 3, "repeated"),
        (0, RIGHT[0] + " They are happy about all the flowers that their aunt sent.", "too long"),
        (4, "Bus.", "too short"),
        (2, "A woman buys apples.", "numbers missing"),
        (2, "A woman buys 1,000 apples for 7 people.", "numbers added"),
        (0, "Two children spielen in the garden.", "untranslated"),
    ],
)  # fmt: skip
def test_each_sign_is_seen(row, text, reason):
    found = changed(row, text)
    assert reason in found.reasons and 0 < found.score <= 1


def test_names_and_words_of_references_are_not_untranslated():
    found = signs(["Anna mag bitte pizza sehr"], ["Anna likes pizza a lot"], [["Anna loves pizza"]])
    assert found[0].untranslated == ()
    assert signs(["bitte pizza"], ["please pizza"])[0].untranslated == ()  # may be English too
    both = signs(["bitte eine pizza"], ["please eine pizza"])[0]
    assert both.untranslated == ("eine", "pizza")


def test_a_summary_may_copy_and_leave_numbers_out():
    source = "The meeting of 12 May is moved to room 40, please answer by Friday. " * 4
    found = signs([source], ["meeting moved to room 41"], [["meeting moved"]], translated=False)[0]
    assert found.missing_numbers == () and found.untranslated == ()
    assert found.added_numbers == ("41",)
    assert found.copied_share == 4 / 5


def test_coverage_counts_where_little_was_read():
    assert "source unread" in changed(0, RIGHT[0], coverage=[0.1] * 6).reasons
    assert changed(0, RIGHT[0], coverage=[0.9] * 6).reasons == {}
    with pytest.raises(BedstoneError, match=r"coverage, row 2: 1\.5"):
        signs(SOURCES, RIGHT, coverage=[0, 1, 1.5, 0, 0, 0])
    with pytest.raises(BedstoneError, match="outputs: 1 were given for 6 sources"):
        signs(SOURCES, ["a"])


def test_numbers_are_equal_whatever_separates_them():
    found = signs(["1.000 Euro und 3,5 km in 1905"], ["1,000 euros and 3.5 km in 1905"])[0]
    assert found.missing_numbers == found.added_numbers == ()


def test_loops_are_three_rounds_or_much_that_came_before():
    assert repeats(["a", "b", "a", "b", "a", "b"]) and repeats(["no", "no", "no"])
    assert not repeats(["very", "very", "good"]) and not repeats(["a", "b", "c", "a", "b", "c"])
    assert not repeats([])
    line = "one two three four five six seven eight"
    assert repeats(f"{line} nine {line} ten {line}".split())
    assert not repeats(line.split())


def test_small_differences_in_length_are_usual_where_there_are_none():
    found = signs(["ten letters"] * 5, ["zehn Lettern"] * 4 + ["zehn Buchstaben"])
    assert not any(each.over_long for each in found)


def test_scripts_without_spaces_have_lengths_too():
    found = signs(["你好世界"] * 5, ["hello world"] * 4 + ["hello world, " * 9])
    assert [each.over_long for each in found] == [False] * 4 + [True]
    assert words("Ähre 3.5") == ["ähre", "3.5"]
    assert signs([], []) == []


def test_pairs_that_look_swapped():
    assert swapped(SOURCES, RIGHT) == []
    sources = [f"Zwei Kinder und ein Hund spielen im Garten {row}" for row in range(6)]
    targets = [f"Two children and a dog play in the garden {row}" for row in range(6)]
    assert swapped(sources, targets) == []
    sources[4], targets[4] = targets[4], sources[4]
    assert swapped(sources, targets) == [4]
    targets[4] += " Q W E R T Z"  # words that no other row has say nothing
    assert swapped(sources, targets) == [4]
    assert swapped(["a", "b"], ["c", "d"]) == swapped([], []) == []
