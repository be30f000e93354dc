"""What tasks share: lists, generators, batches, windows, bad inputs; and the ids of training."""

import logging

import numpy as np
import pytest

import bedstone
from bedstone.data.dataset import Dataset
from bedstone.data.text.encode import text_input
from bedstone.data.text.supervised import make_examples
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from small_models import NLI, SENTENCES, TAGS, model, tokenizer
from task_checks import near

LABELS = HeadConfig("sequence", ("bad", "fair", "good"))
HEADS = {
    "text-classification": LABELS,
    "token-classification": TAGS,
    "fill-mask": HeadConfig("language"),
    "zero-shot-classification": NLI,
}
ALL = {"aggregation_strategy": "simple", "ignore_labels": []}
OPTIONS = {
    "text-classification": {"function_to_apply": "none"},
    "token-classification": ALL,
    "zero-shot-classification": {"candidate_labels": ["sport", "film"]},
}
LONG = " ".join(SENTENCES * 8)


@pytest.fixture(scope="module", params=HEADS)
def task(request):
    name = request.param
    return bedstone.pipeline(name, model(HEADS[name]), **OPTIONS.get(name, {}))


def texts(task, several=SENTENCES):
    mask = " [MASK]" if task.name == "fill-mask" else ""
    return [text + mask for text in several]


class Spy:
    """A network's `packed_states` that keeps the rows it is fed."""

    def __init__(self, task, monkeypatch):
        self.rows = []
        inner = task.engine.network.packed_states

        def fed(packed, *read, **more):
            lengths = list(packed.lengths)
            parts = zip(packed.ids[0].split(lengths), packed.types[0].split(lengths), strict=True)
            self.rows += [(ids.tolist(), types.tolist()) for ids, types in parts]
            return inner(packed, *read, **more)

        monkeypatch.setattr(task.engine.network, "packed_states", fed)


def test_a_list_is_its_texts_whatever_the_batch(task):
    rows = texts(task, [*SENTENCES, LONG, "go", "a cat"])
    alone = [task([row, row])[0] for row in rows]
    for size in (None, 1, 2, 7, 100):
        assert near(task(rows, batch_size=size), alone)
    assert near(task(rows[::-1], batch_size=3), alone[::-1])
    assert near(task(tuple(rows)), alone)
    assert task([]) == []


def test_a_generator_is_read_as_results_are_taken(task):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield texts(task)[len(taken) % len(SENTENCES)]

    results = task(endless())
    assert not taken
    first = next(results)
    assert len(taken) == 1
    assert near(first, task([texts(task)[1]] * 2)[0])
    next(results)
    assert len(taken) == 2
    results = task(endless(), batch_size=4)
    taken.clear()
    next(results)
    assert len(taken) == 4


def test_a_long_text_is_read_to_its_end(task, monkeypatch):
    """No row is longer than the model reads, and what stands at the very end is in one."""
    spy = Spy(task, monkeypatch)
    [text] = texts(task, [LONG + " unfriendly"])
    task(text)
    assert max(len(ids) for ids, _ in spy.rows) <= 64
    end = text_input(task.tokenizer, text, special_names=True).ids[-4:-1]
    assert any(end == ids[at : at + 3] for ids, _ in spy.rows for at in range(len(ids)))


def test_truncation_is_told(task, monkeypatch, caplog):
    spy = Spy(task, monkeypatch)
    text = "[MASK] " + LONG if task.name == "fill-mask" else LONG
    with caplog.at_level(logging.WARNING, logger="bedstone.tasks"):
        task(text, truncation=True)
    assert f"{task.name}: a text was cut after 64 tokens" in caplog.text
    assert len(spy.rows) == (2 if task.name == "zero-shot-classification" else 1)
    assert all(len(ids) <= 64 for ids, _ in spy.rows)
    task(text, truncation=True, max_length=20)
    assert len(spy.rows[-1][0]) == 20


BAD = {
    "None": (None, "is None; expected a string"),
    "a number": (3, r"is 3 \(int\); expected a string"),
    "bytes": (b"go", "expected a string"),
    "an array": (np.zeros(3), "expected a string"),
    "empty": ("", "is empty"),
    "blank": (" \n\t ", "is empty"),
    "half a character": ("the \ud83d cat", r"half a character .*\\ud83d"),
    "10 MB of one letter": ("a" * 10_000_000, "10,000,000 characters"),
    "nothing the tokenizer reads": ("\x00\x01", "no character that the tokenizer reads"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_named_with_its_row(task, bad):
    value, said = BAD[bad]
    good = texts(task)[:2]
    with pytest.raises(BedstoneError, match=rf"{task.name}: inputs\[2\]: .*{said}"):
        task([*good, value, *good])
    with pytest.raises(BedstoneError, match=rf"{task.name}: inputs\[2\]: .*{said}"):
        list(task(iter([*good, value])))


@pytest.mark.parametrize("value", [None, 3, 2.5, object()])
def test_what_is_no_input_at_all(task, value):
    with pytest.raises(BedstoneError, match=f"{task.name}: .*expected text"):
        task(value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size: 0"),
        ({"batch_size": "2"}, "batch_size: '2'"),
        ({"stride": -1}, "stride: -1"),
        ({"max_length": 0}, "max_length: 0"),
        ({"max_length": 2}, "leave no room"),
        ({"trunction": True}, "'trunction' is unknown; perhaps 'truncation'"),
    ],
)
def test_bad_options(task, options, said):
    with pytest.raises(BedstoneError, match=said):
        task(texts(task)[0], **options)
    assert task(texts(task)[0])


# Train and serve


def learnt(examples):
    return sorted(
        (window.ids, window.types)
        for number in range(len(examples.rows))
        for window in examples.input(number)
    )


@pytest.mark.parametrize("layout", ["bert", "roberta"])
@pytest.mark.parametrize(("limit", "stride"), [(0, 0), (24, 0), (24, 6)])
@pytest.mark.parametrize("pair", [False, True])
def test_texts_are_served_as_they_were_learnt(layout, limit, stride, pair, monkeypatch):
    rows = [
        {"text": text, "label": label, **({"text_pair": SENTENCES[-2]} if pair else {})}
        for text, label in zip([*SENTENCES, LONG], LABELS.labels * 2, strict=True)
    ]
    made = model(LABELS, layout)
    examples = make_examples(
        "text-classification",
        Dataset(rows),
        tokenizer(layout),
        limit=limit or made.config.context,
        stride=stride,
    )
    recipe = {"task": "text-classification", "limit": limit, "stride": stride}
    made.record["recipe"] = recipe
    made.tokenizer.settings["model_max_length"] = 30  # training goes by the network's context
    task = bedstone.pipeline("text-classification", made)
    spy = Spy(task, monkeypatch)
    task([{key: row[key] for key in row if key != "label"} for row in rows])
    assert sorted(spy.rows) == learnt(examples)


@pytest.mark.parametrize("layout", ["bert", "roberta"])
@pytest.mark.parametrize(("limit", "stride"), [(0, 0), (24, 6)])
def test_words_are_served_as_they_were_learnt(layout, limit, stride, monkeypatch):
    rows = [{"tokens": text.split()} for text in [*SENTENCES, LONG]]
    for row in rows:
        row["ner_tags"] = ["B-PER", *["O"] * (len(row["tokens"]) - 1)]
    made = model(TAGS, layout)
    examples = make_examples(
        "token-classification",
        Dataset(rows),
        tokenizer(layout),
        labels=TAGS.labels,
        limit=limit or made.config.context,
        stride=stride,
    )
    made.record["recipe"] = {"task": "token-classification", "limit": limit, "stride": stride}
    task = bedstone.pipeline("token-classification", made)
    spy = Spy(task, monkeypatch)
    task([row["tokens"] for row in rows], is_split_into_words=True)
    assert sorted(spy.rows) == learnt(examples)
    spy.rows.clear()
    task(["the unfriendly dogs"])
    task([["the", "unfriendly", "dogs"]], is_split_into_words=True)
    assert spy.rows[0] == spy.rows[1]  # a plain sentence is its words
