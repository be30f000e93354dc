"""question-answering and information-extraction, beside a plain version without packing."""

import numpy as np
import pytest
import torch

from bedstone.checkpoints.model import Model
from bedstone.data.text.encode import Input, question_windows
from bedstone.data.text.train_tokenizer import train_wordpiece
from bedstone.errors import BedstoneError
from bedstone.models.bert.network import BertConfig, build
from bedstone.models.heads import HeadConfig
from bedstone.tasks.text import question_answering
from bedstone.tasks.text.question_answering import (
    Found,
    InformationExtraction,
    QuestionAnswering,
    best_answer,
    ranked,
)
from networks import randomise

WORDS = "the boat of Ada is red and Bob has unbelievable white horses in a distant town."
FILLER = "the boat is red and in a town. "


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece([WORDS * 3], 120)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        width=16,
        layers=2,
        heads=2,
        context=40,
        head=HeadConfig("spans"),
    )
    network = build(config, seed=0).eval()
    randomise(network)
    with torch.no_grad():
        network.head.out.weight.mul_(20)  # so that scores differ
    return Model(network, tokenizer)


def plain(model, question, context, *, limit=40, stride=20, longest=15, impossible=False, count=16):
    """What version 4.57 does: a window's best pairs of tokens, and the sum of equal answers."""
    answers, nothing = [], []
    for row in question_windows(model.tokenizer, question, context, limit=limit, stride=stride):
        with torch.no_grad():
            logits = model.network(torch.tensor([row.ids]), types=torch.tensor([row.types]))[0]
        keep = np.array([place == 0 or source == 1 for place, source in enumerate(row.sources)])
        both = np.where(keep[:, None], logits.double().numpy(), -10000.0)
        both = np.exp(both - both.max(0))
        both /= both.sum(0)
        nothing.append(both[0, 0] * both[0, 1])
        spans = []
        for start in range(1, len(row)):
            for end in range(start, min(start + longest, len(row))):
                if keep[start] and keep[end]:
                    words = row.words
                    inner = [i for i in range(len(row)) if row.sources[i] == 1]
                    one = min(i for i in inner if words[i] == words[start])
                    two = max(i for i in inner if words[i] == words[end])
                    span = row.offsets[one][0], row.offsets[two][1]
                    spans.append((both[start, 0] * both[end, 1], *span))
        for score, start, end in sorted(spans, reverse=True)[:count]:
            text = context[start:end].lower()
            same = next((one for one in answers if context[one[1] : one[2]].lower() == text), None)
            if same is None:
                answers.append([score, start, end])
            else:
                same[0] += score
    if impossible:
        answers.append([min(nothing), 0, 0])
    return sorted(answers, key=lambda answer: -answer[0])


@pytest.mark.parametrize("context", [WORDS, WORDS * 4], ids=["a window", "several"])
@pytest.mark.parametrize("impossible", [False, True])
def test_answers_are_those_of_a_plain_version(model, context, impossible):
    task = QuestionAnswering(model)
    question = "Who has horses?"
    got = task(
        question=question,
        context=context,
        top_k=3,
        max_answer_len=5,
        handle_impossible_answer=impossible,
    )
    expected = plain(model, question, context, longest=5, impossible=impossible)  # 2 * 3 + 10
    assert len(question_windows(model.tokenizer, question, context, limit=40, stride=20)) == (
        1 if context == WORDS else 5
    )
    assert len(got) == min(3, len(expected)) > 1
    for ours, (score, start, end) in zip(got, expected[:3], strict=True):
        assert list(ours) == ["score", "start", "end", "answer"]
        assert ours["score"] == pytest.approx(score, rel=1e-3)
        assert (ours["start"], ours["end"]) == (start, end)
        assert ours["answer"] == context[start:end]


def pointing(task, monkeypatch, name, strength=12.0):
    """Makes the head point at one token, wherever it comes."""
    (wanted,) = task.tokenizer.encode(name)

    def head(states, packed):
        logits = (packed.ids[0] == wanted).float()[:, None].expand(-1, 2) * strength
        return logits.split(list(packed.lengths))

    monkeypatch.setattr(task.engine, "head_of_tokens", head)


def test_equal_answers_add_their_scores(model, monkeypatch):
    task = QuestionAnswering(model)
    pointing(task, monkeypatch, "red", strength=3.0)
    once = task("Which?", "the boat is red and distant")
    twice = task("Which?", "the boat is red and the town Red")
    assert once["answer"] == "red" == twice["answer"].lower()
    both = 2 * (once["score"] / 2) ** 2  # two places that share the starts and the ends
    assert twice["score"] > both
    pointing(task, monkeypatch, "white")
    context = FILLER * 2 + "white horses " + FILLER * 3  # in two windows: as version 4 has it
    assert task("Which?", context)["score"] == pytest.approx(2, abs=0.01)
    took = InformationExtraction(model, fields=["Which?"], threshold=0.0)(FILLER * 7)["Which?"]
    assert took["score"] < 1


def test_an_answer_in_the_last_window_is_found_where_it_stands(model, monkeypatch):
    task = QuestionAnswering(model)
    pointing(task, monkeypatch, "white")
    context = FILLER * 30 + "Bob has white horses."
    got = task({"question": "Which horses?", "context": context})
    assert got["answer"] == "white"
    assert context[got["start"] : got["end"]] == "white"
    assert got["start"] == context.index("white")
    assert got["score"] > 0.99


def test_no_answer_is_an_answer_where_it_may_be(model, monkeypatch):
    task = QuestionAnswering(model)
    cls = task.tokenizer.cls_id

    def head(states, packed):
        logits = (packed.ids[0] == cls).float()[:, None].expand(-1, 2) * 12
        return logits.split(list(packed.lengths))

    monkeypatch.setattr(task.engine, "head_of_tokens", head)
    none = task("Who?", WORDS, handle_impossible_answer=True)
    assert (none["answer"], none["start"], none["end"]) == ("", 0, 0)
    assert none["score"] > 0.99
    assert task("Who?", WORDS)["answer"]


def test_no_answer_scores_as_in_the_window_where_it_is_least_likely():
    windows = [Found(0.6, [(0.3, 0, 3)]), Found(0.2, [(0.5, 4, 7)]), Found(0.9, [])]
    found = ranked("one two", windows, impossible=True)
    assert [(each["answer"], each["score"]) for each in found] == [
        ("two", 0.5),
        ("one", 0.3),
        ("", 0.2),
    ]
    assert [each["answer"] for each in ranked("one two", windows, False)] == ["two", "one"]


@pytest.mark.parametrize(
    ("nothing", "impossible", "answer"),
    [(1.0, True, "two"), (5.0, True, ""), (4.0, True, "two"), (5.0, False, "two")],
)
def test_the_best_answer_is_none_only_where_none_scores_higher(nothing, impossible, answer):
    """Places: 0 stands for no answer, 1 and 2 are the words; sums are of a start and an end."""
    window = Input([2, 7, 8], [0, 1, 1], [(0, 0), (0, 3), (4, 7)], [None, 1, 1], [None, 0, 1])
    logits = torch.tensor([[nothing / 2, nothing / 2], [1.0, 0.0], [1.5, 2.5]])
    found = best_answer([(window, logits)], "one two", longest=2, impossible=impossible)
    assert found == answer
    assert best_answer([(window, logits.flip(1))], "one two", longest=1, impossible=False) == "two"


@pytest.mark.parametrize(("score", "there"), [(0.25, True), (0.2499, False)])
def test_what_scores_the_threshold_is_there(model, monkeypatch, score, there):
    answer = {"score": score, "start": 0, "end": 3, "answer": "one"}
    monkeypatch.setattr(question_answering, "ranked", lambda *a, **k: [answer])
    found = InformationExtraction(model, fields=["Which?"], threshold=0.25)("one two")
    assert found == {"Which?": answer if there else None}


def test_a_piece_of_a_word_takes_all_of_it(model, monkeypatch):
    task = QuestionAnswering(model)
    pieces = question_windows(task.tokenizer, "Who?", "unhorsed", limit=40)[0]
    ids = [number for number, source in zip(pieces.ids, pieces.sources, strict=True) if source == 1]
    assert len(ids) > 1

    def head(states, packed):
        logits = (packed.ids[0] == ids[-1]).float()[:, None].expand(-1, 2) * 12
        return logits.split(list(packed.lengths))

    monkeypatch.setattr(task.engine, "head_of_tokens", head)
    assert task("Who?", "a unhorsed boat")["answer"] == "unhorsed"
    bare = task("Who?", "a unhorsed boat", align_to_words=False)["answer"]
    assert "unhorsed".endswith(bare)
    assert bare != "unhorsed"


def test_inputs_as_in_version_4(model):
    task = QuestionAnswering(model)
    one = task(question="Who?", context=WORDS)
    two = task(question="Whose boat?", context=WORDS)
    rows = [{"question": "Who?", "context": WORDS}, {"question": "Whose boat?", "context": WORDS}]
    for got in (
        task(rows),
        task(question=["Who?", "Whose boat?"], context=WORDS),
        task(question=["Who?", "Whose boat?"], context=[WORDS, WORDS]),
        list(task(iter(rows))),
        task(rows, batch_size=1),
    ):
        assert [each["answer"] for each in got] == [one["answer"], two["answer"]]
    assert task(rows[:1])["answer"] == one["answer"]
    assert task([]) == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            [{"question": "Who?", "context": "a"}, {"question": "Who?"}],
            r"\[1\].*context.*None",
        ),
        ([{"question": " ", "context": "a"}] * 2, r"inputs\[0\].*question.*empty"),
        ([3, 4], r"inputs\[0\].*3.*dict"),
        ({"question": "Who?", "context": "a\ud800"}, "surrogate"),
        ({"question": "Who? " * 40, "context": WORDS}, "question.*tokens"),
        ({"question": ["a", "b"], "context": ["c"]}, "2 questions.*1 contexts"),
    ],
)
def test_bad_input_is_named(model, given, told):
    with pytest.raises(BedstoneError, match=told):
        QuestionAnswering(model)(given)


def test_bad_options_are_named(model):
    task = QuestionAnswering(model)
    for options, told in (({"top_k": 0}, "top_k"), ({"topk": 1}, "perhaps 'top_k'")):
        with pytest.raises(BedstoneError, match=told):
            task("Who?", WORDS, **options)


def test_fields_are_extracted_or_none(model, monkeypatch):
    task = InformationExtraction(model, fields={"colour": "Which colour?", "who": "Who?"})
    pointing(task, monkeypatch, "white")
    there, lacks = FILLER * 20 + "white horses", "the boat of Ada"
    got = task([there, lacks])
    assert [list(each) for each in got] == [["colour", "who"]] * 2
    assert got[0]["colour"]["answer"] == "white"
    assert got[0]["colour"]["start"] == there.index("white")
    assert got[1] == {"colour": None, "who": None}
    listed = task(there, fields=["Which colour?"])
    assert listed["Which colour?"]["answer"] == "white"
    assert task(there, threshold=1.0)["colour"] is None


@pytest.mark.parametrize(
    ("fields", "told"),
    [(None, "none were given"), ("who", "expected {field"), ({"who": ""}, "'who' is empty")],
)
def test_bad_fields_are_named(model, fields, told):
    with pytest.raises(BedstoneError, match=told):
        InformationExtraction(model)("the boat", fields=fields)
