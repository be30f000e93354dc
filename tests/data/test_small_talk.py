"""The built-in small world: true sums, held-out facts, rows of each kind, rewards."""

import random
import re

import pytest

from bedstone.data import small_talk
from bedstone.data.open import open_dataset
from bedstone.data.small_talk import (
    MOST,
    STEPS,
    answer_first,
    facts,
    held_out_problems,
    problem_rows,
    right_fact,
    right_total,
    story,
    talk_pieces,
)
from bedstone.data.sources import open_source


@pytest.fixture(autouse=True)
def few(monkeypatch):
    for name, count in (("DOCUMENTS", 900), ("CHATS", 200), ("PREFERENCES", 100)):
        monkeypatch.setattr(small_talk, name, count)
    monkeypatch.setattr(small_talk, "PROBLEMS", 200)


def test_stories_are_worked_out_rightly():
    for seed in range(300):
        one = story(random.Random(seed), seed % 4)
        numbers = [int(each) for each in re.findall(r"\d+", one.text)]
        total = numbers[0]
        for line, count in zip(one.sums, numbers[1:], strict=True):
            before, sign, change, after = re.fullmatch(r"(\d+) ([+-]) (\d+) = (\d+)", line).groups()
            assert (int(before), int(change)) == (total, count)
            total = total + count if sign == "+" else total - count
            assert int(after) == total and 2 <= total <= MOST
        assert total == one.total and one.answer.endswith(f"{one.who} has {total} {one.things}.")
        assert one.question.startswith(one.text) and "?" in one.question


def test_a_fifth_of_the_facts_is_held_out_and_each_is_asked_for_once():
    held, others = facts(True), facts(False)
    assert set(held) | set(others) == set(facts()) and not set(held) & set(others)
    assert 0.12 < len(held) / len(facts()) < 0.28
    assert len({fact.asks for fact in facts()}) == len(facts())
    fact = facts()[0]
    assert (fact.first, fact.last) == (
        "Paris is the capital of France.",
        "The capital of France is Paris.",
    )


def test_documents_know_all_facts_and_conversations_no_held_out_one():
    source = open_source("small-talk")
    texts = list(source.documents())
    assert len(texts) == 900 and source.fingerprint() == open_source("small-talk").fingerprint()
    text = " ".join(texts)
    known = [fact for fact in facts(True) if fact.first in text or fact.last in text]
    assert len(known) > 0.9 * len(facts(True))
    for name in ("small-talk-chats", "small-talk-preferences"):
        said = str(open_dataset(name).rows)
        assert not [fact for fact in facts(True) if fact.first in said or fact.last in said]
        said = str(open_dataset(f"{name}-held-out").rows)
        assert not [fact for fact in facts(False) if fact.first in said or fact.last in said]


def test_rows_are_those_of_the_methods():
    chats = open_dataset("small-talk-chats").rows
    for row in chats:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
    names = [row for row in chats if row["messages"][-1]["content"].startswith("Your name is")]
    for row in names:
        name = row["messages"][-1]["content"].removeprefix("Your name is ").removesuffix(".")
        assert any(message["content"] == f"My name is {name}." for message in row["messages"])
    assert names
    for row in open_dataset("small-talk-preferences").rows:
        chosen, rejected = ([row[key][0]["content"]] for key in ("chosen", "rejected"))
        answer = [row["answer"]]
        assert answer_first(chosen, answer) == [1.0] and answer_first(rejected, answer) == [0.0]
        assert right_fact(chosen, answer) == right_fact(rejected, answer) == [1.0]
        assert len(chosen[0]) == len(rejected[0])


def test_held_out_problems_are_in_no_other_rows():
    train = {row["prompt"][0]["content"] for row in problem_rows()}
    chats = {m["content"] for row in open_dataset("small-talk-chats").rows for m in row["messages"]}
    held = held_out_problems()
    assert len(held) == small_talk.HELD_OUT_ROWS
    assert not {row["prompt"][0]["content"] for row in held} & (train | chats)
    assert all(row["prompt"][0]["content"].count(".") == STEPS + 1 for row in held)
    assert all(story.count("=") == 0 for story in train)  # nothing says how they are worked out


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("4 + 8 = 12. Mia has 12 books.", 1.0),
        ("12", 1.0),
        ("4 + 8 = 12. Mia has 11 books.", 0.0),
        ("Mia has 112 books.", 0.0),
        ("I don't know.", 0.0),
        ("", 0.0),
    ],
)
def test_a_total_is_right_by_its_last_number(text, right):
    assert right_total([text, [{"role": "assistant", "content": text}]], [12, 12]) == [right] * 2


def test_facts_that_are_not_right():
    assert right_fact(["Rome is the capital of France.", "Paris", ""], ["Paris"] * 3) == [0.0] * 3
    assert answer_first(["The capital of France is Paris."], ["Paris"]) == [0.0]
    assert len(list(talk_pieces())) == 900
