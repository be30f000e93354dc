"""Rows of preferences: forms of columns, what is broken, truncation, and their batches."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from bedstone.data.dataset import Dataset
from bedstone.data.records import Faults, Reading
from bedstone.data.text.chat import render
from bedstone.data.text.encode import completion_input
from bedstone.data.text.preference_examples import (
    PreferenceExamples,
    encode_answer,
    ends_answers,
    pad_apart,
    preference_batches,
    preference_stream,
)
from bedstone.data.text.preferences import read_judged, read_pair, usable_judged, usable_pairs
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_bpe, train_wordpiece
from bedstone.errors import BedstoneError

WORDS = "the cat sat on a mat and said yes or no to its dog in Paris"
USER = {"role": "user", "content": "cat?"}
YES, NO = ({"role": "assistant", "content": text} for text in ("yes", "no"))
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ':' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    found = train_bpe([WORDS, "user: assistant:"] * 3, 300)
    found.settings["chat_template"] = PLAIN_TEMPLATE
    return found


def rows_of(*rows: dict[str, Any], most_broken: float = 0.0) -> Dataset:
    reading = Reading(Faults("rows", most_broken, len(rows), option="data.most_broken"))
    return Dataset(list(rows), "rows", reading=reading)


def read(row: dict[str, Any]) -> Any:
    return read_pair(rows_of(row), 0)


@pytest.mark.parametrize(
    ("row", "prompt", "answers"),
    [
        ({"prompt": "cat?", "chosen": " yes", "rejected": " no"}, "cat?", (" yes", " no")),
        ({"chosen": "cat? yes", "rejected": "cat? no"}, "cat?", (" yes", " no")),
        ({"chosen": "cat? yesterday", "rejected": "cat? yes"}, "cat?", (" yesterday", " yes")),
        ({"chosen": "yes", "rejected": "no"}, "", ("yes", "no")),
        (
            {
                "chosen": "\n\nHuman: cat?\n\nAssistant: yes it is",
                "rejected": "\n\nHuman: cat?\n\nAssistant: yes it",
            },
            "\n\nHuman: cat?\n\nAssistant:",
            (" yes it is", " yes it"),
        ),
        ({"prompt": [USER], "chosen": [YES], "rejected": [NO]}, [USER], ([YES], [NO])),
        ({"chosen": [USER, YES], "rejected": [USER, NO]}, [USER], ([YES], [NO])),
        ({"prompt": "cat?", "chosen": [USER, YES], "rejected": [USER, NO]}, [USER], ([YES], [NO])),
        ({"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]}, [USER], ([YES], [NO])),
        ({"prompt": [USER], "chosen": "yes", "rejected": "no"}, [USER], ([YES], [NO])),
        (
            {
                "conversations": [{"from": "human", "value": "cat?"}],
                "chosen": {"from": "gpt", "value": "yes"},
                "rejected": {"from": "gpt", "value": "no"},
            },
            [USER],
            ([YES], [NO]),
        ),
        (
            {"prompt": json.dumps([USER]), "chosen": json.dumps([YES]), "rejected": "no"},
            None,
            "of two forms",
        ),
    ],
)
def test_forms_of_columns(row: dict[str, Any], prompt: Any, answers: Any) -> None:
    if prompt is None:
        with pytest.raises(BedstoneError, match=answers):
            read(row)
        return
    found = read(row)
    assert (found.prompt, found.answers) == (prompt, answers)


def test_margins_tools_and_json_in_a_column() -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    texts = {"prompt": json.dumps([USER]), "chosen": json.dumps([YES])}
    row = {**texts, "rejected": json.dumps([NO]), "margin": 2, "tools": json.dumps([tool])}
    found = read(row)
    assert (found.prompt, found.margin, found.tools) == ([USER], 2.0, [tool])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": " yes"}, "row 1: column 'chosen' is equal to the rejected answer"),
        ({"chosen": " "}, "row 1: column 'chosen' has an empty answer"),
        ({"chosen": ""}, "row 1: column 'chosen' has an empty answer"),
        ({"rejected": None}, "row 1: column 'rejected' is null"),
        ({"rejected": 3}, "column 'rejected' is 3; expected a text or a list of messages"),
        ({"margin": "much"}, "column 'margin' is 'much'; expected a number"),
        ({"margin": float("nan")}, "column 'margin' is nan; expected a number"),
        ({"tools": "look"}, "column 'tools' is .*; expected a list of JSON schemas"),
        ({"chosen": [{"role": "wizard", "content": "a"}]}, "of two forms|wizard"),
        ({"chosen": [YES], "rejected": [USER]}, "has no answer of the assistant"),
        ({"chosen": [], "rejected": [NO]}, "has no answer of the assistant"),
        (
            {"chosen": [{"role": "assistant", "content": " "}], "rejected": [NO]},
            "has an empty answer",
        ),
        ({"chosen": "a \ud800", "rejected": " no"}, "half a character"),
    ],
)
def test_broken_pairs_are_named(change: dict[str, Any], message: str) -> None:
    row = {"prompt": "cat?", "chosen": " yes", "rejected": " no", **change}
    with pytest.raises(BedstoneError, match=message):
        read(row)
    good = {"prompt": "cat?", "chosen": " yes", "rejected": " no"}
    good |= {"margin": 1.0} if "margin" in change else {}
    kept = usable_pairs(rows_of(*[good] * 30, row, most_broken=0.1))
    assert len(kept) == 30 and len(kept.faults.broken) == 1


@pytest.mark.parametrize(
    ("chosen", "rejected", "place"),
    [
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: c\n\nAssistant: d", "character 10"),
        ([USER, YES], [{**USER, "content": "dog?"}, NO], "message 1"),
    ],
)
def test_prompts_that_differ(chosen: Any, rejected: Any, place: str) -> None:
    with pytest.raises(BedstoneError, match=f"answers another prompt .* from {place}"):
        read({"chosen": chosen, "rejected": rejected})


def test_judged_rows() -> None:
    for label, expected in ((True, True), (0, False), ("true", True), (" False ", False)):
        row = {"prompt": "cat?", "completion": " yes", "label": label}
        assert read_judged(rows_of(row), 0).label is expected
    for label in ("good", 2, None, 0.5, [True]):
        row = {"prompt": "cat?", "completion": " yes", "label": label}
        with pytest.raises(BedstoneError, match="column 'label' is"):
            read_judged(rows_of(row), 0)
    with pytest.raises(BedstoneError, match="no column for the prompt"):
        read_judged(rows_of({"completion": " yes", "label": True}), 0)


@pytest.mark.parametrize(("label", "one", "other"), [(True, "", "un"), (False, "un", "")])
def test_one_sided_labels_are_refused(label: bool, one: str, other: str) -> None:
    row = {"prompt": "cat?", "completion": " yes", "label": label}
    expected = f"calls all 3 rows {one}desirable; .* Add {other}desirable ones"
    with pytest.raises(BedstoneError, match=expected):
        usable_judged(rows_of(row, row, row))


def test_a_text_is_encoded_as_generation_reads_it(words: Tokenizer) -> None:
    found = encode_answer(words, "the cat", "sat on")
    row, first = completion_input(words, "the cat", "sat on")
    assert found.prompt == row.ids[:first] and found.answer == row.ids[first:]
    assert found.answer[-1] == words.eos_id and all(found.learnt)


def test_messages_begin_with_the_ids_of_their_prompt(words: Tokenizer) -> None:
    # "assistant:" and " yes" would be other tokens where the colon merged with what follows
    merging = train_bpe(["assistant:yes assistant:yes :yes"] * 9, 300)
    merging.settings["chat_template"] = PLAIN_TEMPLATE
    for tokenizer in (words, merging):
        cue = render(tokenizer, [USER])
        found = encode_answer(tokenizer, [USER], [YES])
        assert found.prompt == cue.ids
        assert tokenizer.decode(found.answer).startswith("yes")
        assert found.answer[-1] == tokenizer.eos_id


def test_an_answer_of_several_turns(words: Tokenizer) -> None:
    found = encode_answer(words, [USER], [YES, {"role": "user", "content": "dog?"}, NO])
    learnt = [token for token, one in zip(found.answer, found.learnt, strict=True) if one]
    assert words.decode(learnt).replace(words.decode([words.eos_id]), "") == "yesno"


def long_rows(count: int = 6) -> list[dict[str, Any]]:
    rows = []
    for n in range(count):
        sides = (f" yes {'mat ' * n}", " no")[:: 1 if n % 2 else -1]
        row = {"chosen": sides[0], "rejected": sides[1]}
        rows.append({"prompt": f"{WORDS} {WORDS} {n}", **row})
    return rows


def test_long_prompts_lose_their_beginning_alone(words: Tokenizer) -> None:
    rows = rows_of(*long_rows())
    whole = PreferenceExamples(rows, words, limit=500)
    cut = PreferenceExamples(rows, words, limit=24)
    assert whole.cuts.note(500) == "" and cut.cuts.prompts == 6
    assert "of 6 long prompts the first tokens were cut" in cut.cuts.note(24)
    for row in range(6):
        one, other = (each.pairs(np.array([row])) for each in (whole, cut))
        prompts = [other.ids[0, slice(*span)].tolist() for span in other.rows.spans]
        for (start, end), short in zip(one.rows.spans, prompts, strict=True):
            long = one.ids[0, start:end].tolist()
            assert len(short) <= 24 and long[-len(short) :] == short
        counts = cut.counts()[2 * row : 2 * row + 2]
        left = [ids[: len(ids) - n] for ids, n in zip(prompts, counts, strict=True)]
        assert left[0] == left[1]  # both answers have one prompt


def test_rows_of_which_nothing_is_left(words: Tokenizer) -> None:
    same = " yes" * 40
    lost = {"prompt": "cat?", "chosen": f"{same} a", "rejected": f"{same} no"}
    good = {"prompt": "cat?", "chosen": " yes", "rejected": " no"}
    found = PreferenceExamples(rows_of(good, lost, good), words, limit=20)
    assert len(found.rows) == 2 and found.cuts.lost == ["rows: row 2"]
    assert "1 rows were left out, their answers being equal" in found.cuts.note(20)
    with pytest.raises(BedstoneError, match=r"2 of 3 rows both answers are equal .* row 1"):
        PreferenceExamples(rows_of(lost, lost, good), words, limit=20)
    with pytest.raises(BedstoneError, match="leave no room"):
        PreferenceExamples(rows_of(good), words, limit=1)


def test_a_batch_is_its_windows(words: Tokenizer) -> None:
    examples = PreferenceExamples(rows_of(*long_rows()), words, limit=64)
    examples.reference = np.arange(12, dtype=np.float32)
    batch = examples.pairs(np.array([4, 1]))
    assert batch.reference is not None and batch.reference.tolist() == [8.0, 2.0, 9.0, 3.0]
    assert batch.target_count == 2 and batch.places == ["rows: row 5", "rows: row 2"]
    for window, (start, end) in enumerate(batch.rows.spans):
        mine = batch.owners == window
        targets = batch.targets[mine].tolist()
        assert targets == batch.ids[0, end - len(targets) : end].tolist()
        assert batch.read[mine].tolist() == list(range(end - len(targets) - 1, end - 1))
        assert start < end - len(targets)
    assert "row 5" in batch.describe()
    assert sum(batch.half(n).items for n in (0, 1)) == batch.items


def test_the_stream_has_each_row_once_an_epoch(words: Tokenizer) -> None:
    examples = PreferenceExamples(rows_of(*long_rows(7)), words, limit=64)
    stream = preference_stream(examples, 3, seed=1)
    places = [place for _ in range(3) for place in next(stream).places]
    assert sorted(places) == sorted(examples.rows.where(row) for row in range(7))
    assert [len(each.places) for each in preference_batches(examples, 3)] == [3, 3, 1]


def test_answers_to_other_prompts(words: Tokenizer) -> None:
    rows = [
        {"prompt": f"cat {n}", "completion": f" yes {n}", "label": n % 2 == 0} for n in range(4)
    ]
    examples = PreferenceExamples(rows_of(*rows), words, limit=64, read=read_judged)
    batch = examples.pairs(np.arange(4))
    assert batch.labels.tolist() == [True, False, True, False]
    texts = [words.decode(batch.ids[0, a : b - 1].tolist()) for a, b in batch.rows.spans]
    assert texts[:4] == [f"cat {n} yes {n}" for n in range(4)]
    assert texts[4:] == [f"cat {n} yes {(n - 1) % 4}" for n in range(4)]


def test_scores_are_read_at_the_last_or_the_first_token(words: Tokenizer) -> None:
    rows = rows_of(*long_rows(2))
    examples = PreferenceExamples(rows, words, limit=64, scored=True)
    batch = examples.pairs(np.arange(2))
    assert batch.read.tolist() == [end - 1 for end in batch.rows.starts[1:]]
    encoder = train_wordpiece([WORDS] * 3, 120)
    both = PreferenceExamples(rows, encoder, limit=24, causal=False, scored=True)
    batch = both.pairs(np.arange(2), reads="first")
    assert batch.read.tolist() == batch.rows.starts[:-1]
    for start, end in batch.rows.spans:
        ids, types = batch.ids[0, start:end], batch.rows.types[0, start:end]
        assert len(ids) <= 24
        assert ids[0] == encoder.cls_id and ids[-1] == encoder.sep_id
        assert int((ids == encoder.sep_id).sum()) == 2 and types.tolist() == sorted(types.tolist())
    with pytest.raises(BedstoneError, match="an encoder has no chat template"):
        chat = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
        PreferenceExamples(rows_of(chat), encoder, limit=24, causal=False, scored=True)


def test_padding_of_scored_rows_is_no_end_token() -> None:
    tokenizer = train_bpe([WORDS] * 3, 300)
    names = set(tokenizer.hidden_names)
    pad_apart(tokenizer)
    if len(names) > 1:
        assert ends_answers(tokenizer) and tokenizer.settings["pad_token"] in names
    found = encode_answer(tokenizer, "cat", " yes", scored=True)
    assert (found.answer[-1] == tokenizer.eos_id) is ends_answers(tokenizer)
    assert torch.tensor(found.answer).ne(tokenizer.pad_id if tokenizer.pad_id else -1).all()


ASK, SHORT, LONG = (
    {"from": who, "value": text}
    for who, text in (("human", "cat?"), ("gpt", "yes"), ("gpt", "no no"))
)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("form", ["openai", "sharegpt", "one"])
def test_messages_may_be_json_in_a_text(form: str, indent: int | None) -> None:
    pairs: dict[str, Any] = {
        "openai": ([USER, YES], [USER, NO]),
        "sharegpt": ([ASK, SHORT], [ASK, LONG]),
        "one": (YES, NO),
    }
    row = {
        name: json.dumps(value, indent=indent)
        for name, value in zip(("chosen", "rejected"), pairs[form], strict=True)
    }
    found = read_pair(Dataset([{**row, **({"prompt": "cat?"} if form == "one" else {})}]), 0)
    assert found.prompt == [USER]
    assert [each[0]["role"] for each in found.answers] == ["assistant"] * 2  # type: ignore[index]


def test_a_text_that_only_looks_like_json_stays_one() -> None:
    found = read_pair(Dataset([{"prompt": "a", "chosen": '[{"x": 1}]', "rejected": "{}"}]), 0)
    assert found.answers == ('[{"x": 1}]', "{}")


@pytest.mark.parametrize(
    ("columns", "prompt"),
    [
        ({"question": "cat?"}, "cat?"),
        ({"instruction": "say", "input": "cat?"}, "say\n\ncat?"),
        ({"instruction": "say", "input": ""}, "say"),
        (
            {"system": "be short", "question": "cat?"},
            [{"role": "system", "content": "be short"}, USER],
        ),
        ({"system": "", "prompt": "cat?", "question": "other"}, "cat?"),
    ],
)
def test_prompts_by_other_columns(columns: dict[str, str], prompt: Any) -> None:
    row = {**columns, "chosen": "yes", "rejected": "no"}
    assert read_pair(Dataset([row]), 0).prompt == prompt


@pytest.mark.parametrize("label", [1.0, "1.0", 1, " True "])
def test_numbers_as_labels(label: Any) -> None:
    assert read_judged(Dataset([{"prompt": "a", "completion": "b", "label": label}]), 0).label


@pytest.mark.parametrize(("margin", "read"), [("0.5", 0.5), (2, 2.0), (1e308, None), ("a", None)])
def test_margins(margin: Any, read: float | None) -> None:
    rows = Dataset([{"prompt": "a", "chosen": "b", "rejected": "c", "margin": margin}])
    if read is None:
        with pytest.raises(BedstoneError, match=r"margin.*expected a number from -1e\+06 to 1e"):
            read_pair(rows, 0)
    else:
        assert read_pair(rows, 0).margin == read
