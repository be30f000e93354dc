"""Examples and their batches: whatever a row is, it is learnt once an epoch, as it is served."""

import json
import re

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from bedstone.data.dataset import Dataset
from bedstone.data.records import Reading
from bedstone.data.text.convert_tokenizer import wordpiece
from bedstone.data.text.encode import question_windows, text_input, text_windows, word_windows
from bedstone.data.text.examples import evaluation_batches, example_stream
from bedstone.data.text.supervised import make_examples
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_bpe, train_wordpiece
from bedstone.errors import BedstoneError

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "unfriendly",
    "dogs",
    "barked",
    "at",
    "Zoë",
    "in",
    "Paris",
]


@pytest.fixture(scope="module")
def bert():
    return train_wordpiece([" ".join(WORDS) * 3], 120)


@pytest.fixture(scope="module")
def gpt():
    return train_bpe([" ".join(WORDS) * 3], 300)


def texts(count=50, long=False):
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        size = 60 if long and number % 7 == 0 else int(random.integers(1, 9))
        rows.append({"text": " ".join(random.choice(WORDS, size)), "label": "ab"[number % 2]})
    return rows


def classes(rows, tokenizer, limit=64, **options):
    return make_examples("text-classification", Dataset(rows), tokenizer, limit=limit, **options)


# What every kind of example has


@pytest.mark.parametrize("reads", ["first", "last"])
def test_a_batch_is_its_rows_end_to_end(bert, reads):
    rows = texts()
    examples = classes(rows, bert)
    batch = examples.batch(np.array([3, 0, 7]), reads=reads)
    for place, (start, end) in enumerate(batch.rows.spans):
        row = rows[batch.origins[place]]
        served = text_input(bert, row["text"])
        assert batch.ids[0, start:end].tolist() == served.ids  # as it is served
        assert batch.rows.types[0, start:end].tolist() == served.types
        assert batch.rows.positions[0, start:end].tolist() == list(range(end - start))
        assert set(batch.rows.documents[0, start:end].tolist()) == {place}
        assert batch.read[place] == (start if reads == "first" else end - 1)
        assert examples.labels[batch.targets[place]] == row["label"]
    assert batch.origins == [3, 0, 7]
    assert batch.target_count == 3
    assert batch.weights is None
    assert "row 7" in batch.describe()


@pytest.mark.parametrize("size", [1, 7, 50, 80])
def test_each_row_comes_once_an_epoch(bert, size):
    batches = example_stream(classes(texts(), bert), size, seed=1)
    orders = []
    for epoch in range(2):
        seen = []
        for _ in range(batches.steps_per_epoch):
            seen += next(batches).origins
        assert sorted(seen) == list(range(50))
        assert batches.epoch == epoch + 1
        orders.append(seen)
    assert orders[0] != orders[1]


def test_resuming_is_exact(bert):
    examples = classes(texts(long=True), bert, limit=20)
    one = example_stream(examples, 4, seed=1)
    for _ in range(17):
        next(one)
    state = json.loads(json.dumps(one.state_dict()))
    other = example_stream(examples, 4, seed=1)
    other.load_state_dict(state)
    for _ in range(30):
        a, b = next(one), next(other)
        assert a.number == b.number
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.targets, b.targets)
        assert a.origins == b.origins
    with pytest.raises(BedstoneError, match="seed"):
        example_stream(examples, 4, seed=2).load_state_dict(state)
    with pytest.raises(BedstoneError, match="rows"):
        example_stream(classes(texts(20), bert), 4, seed=1).load_state_dict(state)


def test_evaluation_is_in_order_and_ends(bert):
    examples = classes(texts(long=True), bert, limit=20)
    found = list(evaluation_batches(examples, 6))
    origins = [origin for batch in found for origin in batch.origins]
    assert origins == sorted(origins)
    assert len(origins) == len(examples) > 50
    assert set(origins) == set(range(50))


def test_a_batch_moves_whole(bert):
    batch = classes(texts(long=True), bert, limit=20).batch(np.arange(3))
    moved = batch.to("meta")
    for tensor in (moved.ids, moved.rows.documents, moved.targets, moved.weights):
        assert tensor.device.type == "meta"
    assert moved.owners.device.type == "cpu"


# Texts


def test_all_windows_of_a_long_row_learn_its_label_as_one_target(bert):
    rows = texts(long=True)
    examples = classes(rows, bert, limit=20, stride=4)
    windows = text_windows(bert, rows[0]["text"], limit=20, stride=4)
    assert examples.input(0) == windows
    count = len(windows)
    assert count > 2
    batch = examples.batch(np.arange(count + 1))
    assert batch.origins == [0] * count + [1]
    assert batch.windows == [*range(count), 0]
    torch.testing.assert_close(batch.weights, torch.tensor([1 / count] * count + [1.0]))
    assert batch.target_count == pytest.approx(2)
    total = sum(each.target_count for each in evaluation_batches(examples, 8))
    assert total == pytest.approx(50)
    assert f"8 longer than 20 became {len(examples) - 42} windows" in examples.describe()


def test_pairs_are_read_as_pairs(bert):
    rows = [{"premise": "the cat", "hypothesis": "a mat sat", "label": n % 2} for n in range(2)]
    examples = classes(rows, bert)
    assert examples.input(0) == [text_input(bert, "the cat", "a mat sat")]
    assert examples.batch(np.arange(1)).rows.types.max() == 1


def test_problems_are_found_from_their_labels(bert):
    def head(values, column="label", **options):
        rows = [{"text": "the cat", column: value} for value in values]
        examples = classes(rows, bert, **options)
        return examples, examples.head

    assert head(["b", "a"])[1] == ("sequence", ("a", "b"), "single")
    assert head([10, 9, 2])[1] == ("sequence", ("2", "9", "10"), "single")
    assert head([True, False])[1] == ("sequence", ("False", "True"), "single")
    assert head([1, 0], labels=["no", "yes"])[0].actual == ["yes", "no"]
    several, found = head([["x", "y"], [], ["y"]], "labels")
    assert found == ("sequence", ("x", "y"), "multi")
    assert several.batch(np.arange(3)).targets.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert several.actual == [["x", "y"], [], ["y"]]
    number, found = head([1, 2.5], "score")
    assert found == ("sequence", ("score",), "regression")
    assert number.batch(np.arange(2)).targets.tolist() == [[1.0], [2.5]]
    assert number.actual == [1.0, 2.5]
    assert head([1, 2], problem="regression")[1][2] == "regression"
    assert head([1, 5], "stars")[1] == ("sequence", ("1", "5"), "single")
    two, found = head([[1, 2], [3, 4.5]], problem="regression")
    assert found[1] == ("0", "1")
    assert two.batch(np.arange(2)).targets.shape == (2, 2)


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        (["a", None], {}, "row 2: column 'label' is null"),
        (["a", ...], {}, "row 2: column 'label' is missing"),
        (["a", ""], {}, "row 2: column 'label' has the label ''"),
        (["a", 1], {}, r"row 2: .*label '1' of type int; expected str, as in rows: row 1"),
        ([1, 0, 0.5], {}, r"row 3: .*'0.5' of type float; .*problem: regression"),
        (["a", ["b"]], {}, r"row 1: column 'label' is 'a' of type str; expected a list"),
        (["a", "a"], {}, "holds 1 labels in 2 rows"),
        (["a", "c"], {"labels": ["a", "b"], "known": True}, "row 2: .*'c'.*none of the labels"),
        ([0, 2], {"labels": ["a", "b"]}, "row 2: .*'2' of type int; expected 0 to 1"),
        ([0, -1], {"labels": ["a", "b"]}, "row 2: .*'-1' of type int; expected 0 to 1"),
        ([1.5, float("nan")], {}, "row 2: column 'label' is 'nan'; expected a finite number"),
        ([1.5, "x"], {"problem": "regression"}, "row 2: column 'label' is 'x'"),
        ([[1.0], [1.0, 2.0]], {"problem": "regression"}, "row 2: .*has 2 numbers; expected 1"),
        (["a", "b"], {"problem": "singel"}, "'singel' is unknown; perhaps 'single'"),
    ],
)
def test_labels_that_are_none(bert, values, options, said):
    rows = [{"text": "the cat"} | ({} if value is ... else {"label": value}) for value in values]
    with pytest.raises(BedstoneError, match=said):
        classes(rows, bert, **options)


def test_known_labels_may_be_missed(bert):
    examples = classes(texts(1), bert, labels=["a", "b"], problem="single", known=True)
    assert examples.labels == ("a", "b")


def test_a_text_without_tokens_is_reported_with_its_row(bert):
    rows = [*texts(3), {"text": "\u200d", "label": "a"}]
    with pytest.raises(BedstoneError, match=r"row 4: text: .* holds no character"):
        classes(rows, bert)


def test_class_weights(bert):
    rows = [{"text": "the cat", "label": label} for label in "aaab"]
    examples = classes(rows, bert)
    batch = next(example_stream(examples, 4, weights="balanced", shuffle=False))
    torch.testing.assert_close(batch.weights, torch.tensor([2 / 3, 2 / 3, 2 / 3, 2.0]))
    assert batch.target_count == pytest.approx(4)
    batch = next(example_stream(examples, 4, weights={"b": 5}, shuffle=False))
    assert batch.weights.tolist() == [1, 1, 1, 5]
    assert batch.target_count == 4
    with pytest.raises(BedstoneError, match="'c' is no label"):
        example_stream(examples, 4, weights={"c": 5})
    for wrong in (0, -1, "x", float("nan")):
        with pytest.raises(BedstoneError, match=r"class_weights\.b"):
            example_stream(examples, 4, weights={"b": wrong})
    with pytest.raises(BedstoneError, match="expected 'balanced'"):
        example_stream(examples, 4, weights="balance")
    figures = classes([{"text": "the cat", "score": 1.5}], bert)
    with pytest.raises(BedstoneError, match="regression"):
        example_stream(figures, 4, weights="balanced")


# Tags

TAGGED = [
    {
        "tokens": ["Zoë", "barked", "unfriendly", "in", "Paris"],
        "ner_tags": ["B", "O", "O", "O", "L"],
    },
    {
        "tokens": ["the", "", "Paris", *["unfriendly", "cat"] * 20],
        "ner_tags": ["O", "B", "L", *["O", "B"] * 20],
    },
]


def tagged(rows, tokenizer, **options):
    return make_examples(
        "token-classification", Dataset(rows), tokenizer, **{"limit": 16, **options}
    )


@pytest.mark.parametrize("stride", [0, 8])
def test_a_words_tag_is_learnt_once_at_its_first_sub_word(bert, gpt, stride):
    for tokenizer in (bert, gpt):
        examples = tagged(TAGGED, tokenizer, stride=stride)
        assert examples.labels == ("O", "B", "L")
        found = {0: {}, 1: {}}
        for batch in evaluation_batches(examples, 2):
            for at, owner, target, word in zip(
                batch.read.tolist(), batch.owners.tolist(), batch.targets, batch.words, strict=True
            ):
                origin = batch.origins[owner]
                start, end = batch.rows.spans[owner]
                window = examples.input(origin)[batch.windows[owner]]
                place = at - start
                assert start <= at < end
                assert window.words[place] == word != window.words[place - 1]
                assert word.item() not in found[origin]
                found[origin][word.item()] = examples.labels[target]
        for number, row in enumerate(TAGGED):
            assert found[number] == {
                word: tag for word, tag in enumerate(row["ner_tags"]) if row["tokens"][word]
            }
        assert len(examples) > 3
        assert examples.input(0) == word_windows(tokenizer, TAGGED[0]["tokens"], limit=16)
        assert examples.actual[0] == TAGGED[0]["ner_tags"]


def test_weights_of_tags_count_what_is_read(bert):
    batch = next(example_stream(tagged(TAGGED[:1], bert), 1, weights="balanced"))
    expected = {"B": 5 / 3, "O": 5 / 9, "L": 5 / 3}
    weights = [expected[tag] for tag in TAGGED[0]["ner_tags"]]
    torch.testing.assert_close(batch.weights, torch.tensor(weights))


def test_tags_by_number(bert):
    rows = [{"tokens": ["the", "cat"], "tags": [0, 1]}]
    assert tagged(rows, bert, labels=["O", "B-CAT"]).actual == [["O", "B-CAT"]]
    named = Dataset(rows, reading=Reading(names={"tags": ["X", "Y"]}))
    assert make_examples("token-classification", named, bert, limit=9).labels == ("X", "Y")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, "row 2: .*has 1 tags for 2 words in 'tokens'"),
        ({"tokens": ["a", "b"], "ner_tags": ["O", 1]}, "row 2: .*'1' of type int; expected str"),
        ({"tokens": ["a", "b"], "ner_tags": ["O", None]}, "row 2: .*tag 'None'"),
        ({"tokens": ["a", "b"], "ner_tags": ["O", "Q"]}, "row 2: .*'Q'.*none of the labels"),
        ({"tokens": ["a", "b"], "ner_tags": "O B"}, "row 2: .*expected a list"),
        ({"tokens": "a b", "ner_tags": ["O", "B"]}, "row 2: column 'tokens' is 'a b'"),
        ({"tokens": ["a", 3], "ner_tags": ["O", "B"]}, "row 2: word 1: is 3; expected a string"),
        ({"tokens": [], "ner_tags": []}, "row 2: words: are empty"),
        ({"tokens": None, "ner_tags": []}, "row 2: column 'tokens' is null"),
        ({"tokens": ["a", "\ud800"], "ner_tags": ["O", "B"]}, "row 2: word 1: holds half"),
    ],
)
def test_tags_that_are_none(bert, row, said):
    with pytest.raises(BedstoneError, match=said):
        tagged([TAGGED[0], row], bert, labels=["O", "B", "L"])


# Answers

CONTEXT = "the cat sat on a mat and dogs barked at the unfriendly cat in Paris and the cat sat"


def answered(answers, tokenizer, **options):
    rows = [{"question": "the mat", "context": CONTEXT, "answers": answers}]
    return make_examples("question-answering", Dataset(rows), tokenizer, **{"limit": 64, **options})


def at(text):
    return {"text": [text], "answer_start": [CONTEXT.index(text)]}


@pytest.mark.parametrize("text", ["a mat", "the cat sat", "unfriendly", CONTEXT, "nfriendl"])
def test_an_answer_is_learnt_where_it_stands(bert, gpt, text):
    for tokenizer in (bert, gpt):
        examples = answered(at(text), tokenizer)
        batch = examples.batch(np.arange(1))
        first, last = batch.targets[0].tolist()
        (window,) = examples.input(0)
        found = CONTEXT[window.offsets[first][0] : window.offsets[last][1]]
        assert text in found
        assert len(found) <= len(text) + 4
        assert window.sources[first] == window.sources[last] == 1
        assert batch.read.tolist() == list(range(len(window)))


def test_windows_without_the_whole_answer_have_none(bert):
    examples = answered(at("unfriendly cat"), bert, limit=15, stride=4)
    windows = question_windows(bert, "the mat", CONTEXT, limit=15, stride=4)
    assert examples.input(0) == windows
    batch = examples.batch(np.arange(len(windows)))
    held = []
    for window, (first, last), (start, end) in zip(
        windows, batch.targets.tolist(), batch.rows.spans, strict=True
    ):
        assert last < end - start  # places within the window
        if (first, last) != (0, 0):
            held.append(CONTEXT[window.offsets[first][0] : window.offsets[last][1]])
    assert 0 < len(held) < len(windows)
    assert set(held) == {"unfriendly cat"}
    assert batch.owners.tolist() == batch.rows.documents[0].tolist()


def test_forms_of_answers(bert):
    pairs = [{"text": "a mat", "answer_start": CONTEXT.index("a mat")}]
    for given in (at("a mat"), pairs, {"text": "a mat", "answer_start": pairs[0]["answer_start"]}):
        assert answered(given, bert).actual == [at("a mat")]
    for given in ({"text": [], "answer_start": []}, [], None):
        examples = answered(given, bert)
        assert examples.actual == [{"text": [], "answer_start": []}]
        assert examples.batch(np.arange(1)).targets.tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"text": ["a mat"], "answer_start": [500]}, r"at 500, past the end .*\(83 characters\)"),
        ({"text": ["a mat"], "answer_start": [-2]}, "at -2, past"),
        ({"text": ["a mat"], "answer_start": [3]}, "at 3, where ' cat ' is; it is at 15"),
        ({"text": ["a dog"], "answer_start": [3]}, "the context doesn't hold it"),
        ({"text": ["a mat"], "answer_start": ["15"]}, "at '15'; expected"),
        ({"text": ["a mat"], "answer_start": []}, "as many of one"),
        ({"text": ["a mat"]}, "as many of one"),
        ("a mat", "as many of one"),
        ({"text": [""], "answer_start": [0]}, "expected a text"),
    ],
)
def test_answers_that_are_none(bert, answers, said):
    with pytest.raises(BedstoneError, match=f"row 1: column 'answers' .*{said}"):
        answered(answers, bert)


# Completions


def completed(rows, tokenizer, **options):
    return make_examples("text-generation", Dataset(rows), tokenizer, **{"limit": 64, **options})


def test_the_completion_and_its_stop_token_are_learnt(gpt):
    rows = [{"prompt": "the cat", "completion": " sat on"}, {"prompt": "", "completion": "a mat"}]
    batch = completed(rows, gpt).batch(np.arange(2))
    ids = batch.ids[0].tolist()
    first, second = gpt.encode(" sat on"), gpt.encode("a mat")
    assert batch.targets.tolist() == [*first, gpt.eos_id, *second[1:], gpt.eos_id]
    # each is foretold by the state before it
    assert [ids[place + 1] for place in batch.read.tolist()] == batch.targets.tolist()
    assert batch.owners.tolist() == [0] * (len(first) + 1) + [1] * len(second)
    assert batch.target_count == len(batch.targets)


@pytest.mark.parametrize("stride", [0, 1, 5])
@pytest.mark.parametrize("prompt", ["", "the cat", "the unfriendly dogs barked at " * 8])
def test_each_token_of_a_long_completion_is_learnt_once(gpt, prompt, stride):
    completion = "".join(f" {word}" for word in WORDS * 6)
    examples = completed(
        [{"prompt": prompt, "completion": completion}], gpt, limit=20, stride=stride
    )
    batch = examples.batch(np.arange(len(examples)))
    expected = [*gpt.encode(completion), gpt.eos_id]
    assert batch.targets.tolist() == expected[0 if prompt else 1 :]
    assert max(batch.rows.lengths) <= 20
    ids = batch.ids[0].tolist()
    assert [ids[place + 1] for place in batch.read.tolist()] == batch.targets.tolist()
    spans = batch.rows.spans
    for place, owner in zip(batch.read.tolist(), batch.owners.tolist(), strict=True):
        assert spans[owner][0] <= place < spans[owner][1] - 1


def test_alpaca_is_worded_as_published(gpt):
    rows = [
        {"instruction": "Sum.", "input": "1 2", "output": "3"},
        {"instruction": "Greet.", "input": "", "output": "Hi"},
    ]
    examples = completed(rows, gpt, limit=512)
    assert examples.prompts[0] == (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSum.\n\n### Input:\n1 2\n\n### Response:"
    )
    assert examples.prompts[1].endswith("### Instruction:\nGreet.\n\n### Response:")
    assert examples.actual == ["3", "Hi"]


def test_texts_alone_are_learnt_whole(gpt):
    examples = completed([{"text": "the cat sat"}], gpt)
    batch = examples.batch(np.arange(1))
    assert batch.targets.tolist() == [*gpt.encode("the cat sat")[1:], gpt.eos_id]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "a", "completion": ""}], "row 1: column 'completion': is empty"),
        ([{"prompt": "a", "completion": None}], "row 1: column 'completion' is null"),
        ([{"prompt": "\ud800", "completion": "a"}], "row 1: column 'prompt': holds half"),
        ([{"prompt": 3, "completion": "a"}], "row 1: column 'prompt': is '3' of type int"),
        ([{"instruction": "a"}], "no column for the output"),
        ([{"other": "a"}], "no column for the text"),
    ],
)
def test_completions_that_are_none(gpt, rows, said):
    with pytest.raises(BedstoneError, match=said):
        completed(rows, gpt)


def test_what_can_not_be(bert, gpt):
    with pytest.raises(BedstoneError, match="perhaps 'text-classification'"):
        make_examples("text-clasification", Dataset(texts()), bert, limit=9)
    with pytest.raises(BedstoneError, match="stride"):
        completed([{"text": "the cat"}], gpt, limit=9, stride=9)
    with pytest.raises(BedstoneError, match="batch_size"):
        example_stream(classes(texts(), bert), 0)


# Answers whose outer characters no token covers.

ANSWERS = (
    ("ada lives in rome .", "ada ", ["ada"]),
    ("ada lives in rome .", " rome", ["rome"]),
    ("ada lives in rome .", " lives ", ["lives"]),
    ("ada lives in rome ", "rome ", ["rome"]),
    ("ada  lives   in rome", "  lives   in ", ["lives", "in"]),
    ("zoe\u0308 lives in rome", "zoe\u0308", ["zoe"]),
    ("in rome lives zoe\u0308", "zoe\u0308", ["zoe"]),
)
SPOKEN = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SPOKEN += ["who", "ada", "lives", "in", "rome", "zoe", "."]


@pytest.mark.parametrize(("context", "answer", "wanted"), ANSWERS)
def test_spaces_and_accents_at_an_answers_ends_are_no_tokens(context, answer, wanted):
    tokenizer = Tokenizer(*wordpiece({word: number for number, word in enumerate(SPOKEN)}))
    begin = context.index(answer)
    row = {"question": "who", "context": context}
    row["answers"] = {"text": [answer], "answer_start": [begin]}
    made = make_examples("question-answering", Dataset([row]), tokenizer, limit=32)
    first, last = made.batch(np.arange(1)).targets[0].tolist()
    assert [SPOKEN[number] for number in made.ids[first : last + 1]] == wanted
    short = make_examples("question-answering", Dataset([row]), tokenizer, limit=5)  # one a window
    for number in range(len(short)):
        batch = short.batch(np.array([number]))
        held = [SPOKEN[each] for each in batch.rows.ids[0].tolist()]
        first, last = batch.targets[0].tolist()
        assert (first > 0) == (len(wanted) == 1 and held[3] == wanted[0])


@settings(deadline=None, derandomize=True, max_examples=60)
@hypothesis.given(st.data())
def test_the_tokens_of_an_answer_are_those_that_its_characters_meet(data):
    tokenizer = Tokenizer(*wordpiece({word: number for number, word in enumerate(SPOKEN)}))
    words = data.draw(st.lists(st.sampled_from(SPOKEN[6:-1]), min_size=1, max_size=12))
    context = "".join(word + " " * data.draw(st.integers(1, 3)) for word in words)
    first = data.draw(st.integers(0, len(words) - 1))
    count = data.draw(st.integers(1, len(words) - first))
    pieces = re.findall(r"\w+ *", context)
    begin = len("".join(pieces[:first]))
    answer = "".join(pieces[first : first + count])
    row = {"question": "who", "context": context}
    row["answers"] = {"text": [answer], "answer_start": [begin]}
    limit = data.draw(st.integers(5, 20))
    made = make_examples("question-answering", Dataset([row]), tokenizer, limit=limit)
    batch = made.batch(np.arange(len(made)))
    seen = 0
    for (start, end), (one, two) in zip(batch.rows.spans, batch.targets.tolist(), strict=True):
        ids = batch.rows.ids[0][start:end].tolist()
        if one:
            assert [SPOKEN[each] for each in ids[one : two + 1]] == words[first : first + count]
        seen += one > 0
        assert len(ids) <= limit
    assert seen or len(made) > 1


@pytest.mark.parametrize("words", [3, 20, 200])
def test_of_a_long_prompt_the_end_is_kept_and_what_was_cut_is_said(gpt, words):
    rows = [
        {"prompt": "the cat " * 100 + "on a mat", "completion": " dogs" * words},
        {"prompt": "the", "completion": " cat"},
    ]
    made = completed(rows, gpt, limit=32)
    first = made.owner.tolist().index(0)
    batch = made.batch(np.array([first]))
    ids = batch.rows.ids[0].tolist()
    learnt = batch.targets.tolist()
    assert len(ids) == 32
    assert gpt.decode(ids[: 32 - len(learnt)]).endswith("on a mat")
    assert len(learnt) == min(len(gpt.encode(" dogs" * words)) + 1, 16)
    assert "of 1 long prompts the first tokens were cut" in made.describe()
    total = sum(
        len(made.batch(np.array([n])).targets) for n in range(len(made)) if made.owner[n] == 0
    )
    assert total == len(gpt.encode(" dogs" * words)) + 1
    assert "cut" not in completed(rows[1:], gpt, limit=32).describe()
