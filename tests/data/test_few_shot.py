"""Built-in documents of small tasks: unseen tasks are unseen, answers right, chances computed."""

import collections
import random

import numpy as np
import pytest

from bedstone.data import few_shot
from bedstone.data.few_shot import (
    NUMBERS,
    TASK_FAMILIES,
    document,
    documents,
    draw_task,
    held_out_pieces,
    task_pieces,
)
from bedstone.data.sources import open_source
from bedstone.data.text.causal_lm import PackedBatches, answers_alone
from bedstone.data.text.token_cache import TokenSplit
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError
from bedstone.recipes.causal_lm import _answer_tokens


def lines(text):
    return [tuple(line.split(" ")) for line in text.splitlines()]


def rules(family, held_out, count=1000):
    source = random.Random(1)
    return [draw_task(source, family, held_out=held_out).rule for _ in range(count)]


@pytest.mark.parametrize("family", TASK_FAMILIES)
def test_held_out_tasks_are_in_no_training_document(family):
    learnt, held = set(rules(family, False)), set(rules(family, True))
    assert learnt and held and not learnt & held


def test_training_has_thousands_of_tasks():
    source = random.Random(0)
    drawn = {draw_task(source).rule for _ in range(12_000)}
    assert len(drawn) > 6_000
    found = collections.Counter(draw_task(source).family for _ in range(2_000))
    for family, (_, count) in TASK_FAMILIES.items():
        assert found[family] / 2_000 == pytest.approx(count / 20, abs=0.05)


@pytest.mark.parametrize("family", TASK_FAMILIES)
def test_an_input_has_one_answer_in_a_document(family):
    source = random.Random(2)
    for _ in range(50):
        task = draw_task(source, family, held_out=True)
        examples = [task.draw(source) for _ in range(30)]
        answers = collections.defaultdict(set)
        for each in examples:
            answers[each.input].add(each.output)
        assert all(len(found) == 1 for found in answers.values())
        assert lines(document(examples)) == [tuple(each) for each in examples]


def test_answers_are_those_of_the_rule():
    source = random.Random(3)
    for _ in range(200):
        task = draw_task(source, "positions", held_out=bool(source.randrange(2)))
        length, _, places = task.rule.removeprefix("of ").partition(": ")
        given, answer = (text.split("-") for text in task.draw(source))
        assert len(given) == int(length) == len(set(given))
        assert answer == [given[int(place) - 1] for place in places.split()]
        task = draw_task(source, "mod")
        a, _, rest = task.rule.partition(" x + ")
        given, answer = task.draw(source)
        number = int(a) * NUMBERS.index(given) + int(rest.split()[0])
        assert answer == NUMBERS[number % 10]
        task = draw_task(source, "labels")
        given, answer = task.draw(source)
        names = [each.split(" is ") for each in task.rule.split(", ")]
        [name] = [name for name, label in names if label == answer]
        groups = {name: words for group in few_shot.GROUPS for name, words in group.items()}
        assert given in groups[name]


@pytest.mark.parametrize("family", TASK_FAMILIES)
def test_without_examples_the_best_guess_is_chance(family):
    source = random.Random(4)
    answers = collections.defaultdict(collections.Counter)
    drawn = 40_000
    for _ in range(drawn):
        task = TASK_FAMILIES[family][0](source)
        given, answer = task.draw(source)
        if family == "positions":  # what matters of an input is its length
            words = given.split("-")
            places = [str(words.index(each)) for each in answer.split("-")]
            given, answer = str(len(words)), "-".join(places)
        elif family != "mod":
            given = ""
        answers[given][answer] += 1
    best = sum(found.most_common(1)[0][1] for found in answers.values()) / drawn
    assert best == pytest.approx(task.chance, abs=0.01)


def test_documents_are_the_same_for_a_seed():
    assert list(documents(20, 3)) == list(documents(20, 3)) != list(documents(20, 4))
    assert list(documents(20, held_out=True)) != list(documents(20))
    least, most = few_shot.EXAMPLES
    found = [len(lines(text)) for text in documents(500)]
    assert min(found) == least and max(found) == most and 6 < np.median(found) < 10


def test_they_open_by_name(monkeypatch):
    monkeypatch.setattr(few_shot, "DOCUMENTS", 20)
    source = open_source("few-shot-tasks")
    assert next(iter(source.pieces())) == next(task_pieces())
    held = open_source("few-shot-tasks-held-out")
    assert next(iter(held.pieces())) == next(held_out_pieces())


def test_answers_alone_are_targets():
    texts = list(documents(40))
    tokenizer = train_bpe(texts, 600)
    made = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    split = TokenSplit.from_documents(made, eos_id=tokenizer.eos_id)
    only = answers_alone(split, *_answer_tokens(tokenizer, " "))
    wanted = [answer for text in texts for _, answer in lines(text)]
    kept = tokenizer.decode(split.tokens[only.targets].tolist()).splitlines()
    assert [line.strip() for line in kept] == wanted
    every, some = (PackedBatches(each, 32, 4, seed=1) for each in (split, only))
    for _ in range(5):
        whole, batch = next(every), next(some)
        assert np.array_equal(whole.ids, batch.ids)
        left = batch.targets != -100
        assert np.array_equal(whole.targets[left], batch.targets[left])
        assert batch.target_count == int(left.sum()) < whole.target_count


def test_an_answer_ends_with_its_document():
    split = TokenSplit.from_documents([[5, 1, 6], [7, 8, 1, 9, 2, 4]])
    after = answers_alone(split, 2, before=[1])
    assert after.targets.tolist() == [*2 * [False], True, *3 * [False], True, True, False]
    first = answers_alone(split, 2, first=[1])
    assert first.targets.tolist() == [False, True, True, *2 * [False], *3 * [True], False]


@pytest.mark.parametrize(
    ("text", "answers", "wanted"),
    [("a -> b c\n", " ->", " b c\n"), ("a b -> c\nd\n", " ", " b -> c\n")],
)
def test_an_answer_follows_a_token_or_begins_with_a_text(text, answers, wanted):
    tokenizer = train_bpe([text] * 9, 300)
    split = TokenSplit.from_documents([tokenizer.encode(text)])
    only = answers_alone(split, *_answer_tokens(tokenizer, answers))
    assert tokenizer.decode(split.tokens[only.targets].tolist()) == wanted


def test_a_text_that_no_token_begins_with_is_refused():
    tokenizer = train_bpe(["a b\n"] * 9, 300)
    with pytest.raises(BedstoneError, match=r"'==>' is 3 tokens of the tokenizer, and none begins"):
        _answer_tokens(tokenizer, "==>")


def test_data_without_answers_is_refused():
    with pytest.raises(BedstoneError, match=r"data\.answers: no line of the memory split"):
        answers_alone(TokenSplit.from_documents([[5, 6, 2], [7, 2]]), 2, before=[1])
