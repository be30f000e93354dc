"""Tasks by prompting: scores, calibration, examples that don't fit, and what is refused."""

import dataclasses
import functools
import math

import numpy as np
import pytest

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.data.dataset import Dataset
from bedstone.errors import BedstoneError
from bedstone.evaluate.tasks import Choices
from bedstone.generation.likelihood import Scorer
from bedstone.models.heads import HeadConfig
from bedstone.tasks.pipeline import PROMPTED, TASKS, prompted_class
from bedstone.tasks.text.prompting import NO_LABEL
from small_models import SENTENCES, decoder, model
from task_checks import check_task

ROWS = [
    {"text": text, "label": "good" if number % 2 else "bad"}
    for number, text in enumerate(SENTENCES)
]
TEMPLATE = {"input": "{text} =", "output": " {label}", "separator": "; "}
ANSWER = {"input": "{source} =", "output": " {target}", "separator": "; "}


@functools.cache
def gpt(context: int = 512) -> Model:
    return decoder(HeadConfig("language"), "llama", context)


def classify(**options):
    options = {"template": TEMPLATE, "examples": ROWS, "shots": 2, **options}
    return bedstone.pipeline("text-classification", gpt(), **options)


def scores(task, text: str, **options) -> dict[str, float]:
    (found,) = task(text, return_all_scores=True, **options)
    return {each["label"]: each["score"] for each in found}


def likelihoods(context: str, words=("bad", "good")) -> list:
    return Scorer(gpt().network, gpt().tokenizer).score([(context, f" {each}") for each in words])


def share(values) -> list[float]:
    raised = np.exp(np.array(values) - max(values))
    return (raised / raised.sum()).tolist()


def test_every_prompted_task_is_of_the_table():
    assert set(PROMPTED) <= set(TASKS)
    for name in PROMPTED:
        assert prompted_class(name).name == name
    with pytest.raises(BedstoneError, match="'fill-mask' can't be done by prompting"):
        prompted_class("fill-mask")


CASES = {
    "text-classification": (SENTENCES[:4], {"template": TEMPLATE, "examples": ROWS, "shots": 2}),
    "zero-shot-classification": (SENTENCES[:4], {"candidate_labels": ["sport", "film"]}),
    "question-answering": (
        [{"question": each[:9], "context": each} for each in SENTENCES[:4]],
        {"max_new_tokens": 1},
    ),
    "summarization": (SENTENCES[:4], {"template": ANSWER, "max_new_tokens": 4}),
    "translation": (SENTENCES[:4], {"template": ANSWER, "max_new_tokens": 4}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_holds_for_every_task(name):
    inputs, options = CASES[name]
    check_task(name, gpt(), inputs, 3, "expected", **options)


def test_the_score_of_a_label_is_its_likelihood_after_the_prompt():
    task = classify()
    one, two = task.setup(task.options).examples.choose(2)
    shown = [f"{ROWS[each]['text']} = {ROWS[each]['label']}" for each in (one, two)]
    context = "; ".join([*shown, "a dog ="])
    found = likelihoods(context)
    sums = [each.log_probability for each in found]
    assert list(scores(task, "a dog").values()) == pytest.approx(share(sums), abs=1e-5)
    by_token = [each.log_probability / each.tokens for each in found]
    assert list(scores(task, "a dog", score="token").values()) == pytest.approx(share(by_token))
    by_byte = [each.log_probability / each.bytes for each in found]
    assert list(scores(task, "a dog", score="byte").values()) == pytest.approx(share(by_byte))
    alone = [each.log_probability for each in likelihoods("=")]
    pmi = [own - other for own, other in zip(sums, alone, strict=True)]
    assert list(scores(task, "a dog", score="pmi").values()) == pytest.approx(share(pmi), abs=1e-5)


def test_calibration_divides_by_inputs_without_content():
    task = classify(shots=0)
    empty = []
    for text in ("N/A", "", "[MASK]"):
        empty.append(share([each.log_probability for each in likelihoods(f"{text} =")]))
    plain = np.array(share([each.log_probability for each in likelihoods("a dog =")]))
    want = plain / np.mean(empty, axis=0)
    found = scores(task, "a dog", calibration="content-free")
    assert list(found.values()) == pytest.approx((want / want.sum()).tolist(), abs=1e-5)
    for text in ("N/A",):  # an input without content has no favourite
        given = {**TEMPLATE, "content_free": [text]}
        found = scores(classify(shots=2, template=given), text, calibration="content-free")
        assert list(found.values()) == pytest.approx([0.5, 0.5], abs=1e-5)


def test_calibration_keeps_other_columns():
    template = {**TEMPLATE, "input": "{year} {text} ="}
    rows = [{**row, "year": 1990 + number} for number, row in enumerate(ROWS)]
    task = classify(template=template, examples=rows, calibration="content-free")
    assert task({"text": "a dog", "year": 2001})


def test_domain_calibration_draws_words_of_the_examples():
    task = classify()
    first = scores(task, "a dog", calibration="domain")
    assert scores(task, "a dog", calibration="domain") == first
    assert scores(task, "a dog") != first
    with pytest.raises(BedstoneError, match="domain draws words from examples"):
        classify(examples=None, shots=0, labels="good,bad")("a dog", calibration="domain")


def test_labels_with_the_same_first_token():
    words = {"good": "film that is lovely", "bad": "film that is dull"}
    ids = [gpt().tokenizer.encode(f" {each}") for each in words.values()]
    assert ids[0][:4] == ids[1][:4]
    found = scores(classify(shots=0, labels=words), "a dog")
    sums = [each.log_probability for each in likelihoods("a dog =", words.values())]
    assert list(found.values()) == pytest.approx(share(sums), abs=1e-5)
    assert found["good"] != pytest.approx(found["bad"])


def test_examples_that_do_not_fit_are_dropped_or_refused(caplog):
    small = gpt(64)
    options = {"template": TEMPLATE, "examples": ROWS, "shots": 4}
    task = bedstone.pipeline("text-classification", small, **options)
    task(["go", "a cat"])
    assert "prompts with 4 examples are longer than the model's context of 64" in caplog.text
    prompts, dropped = task.dropped
    assert prompts == 2 and 2 <= dropped <= 8
    with pytest.raises(BedstoneError, match=r"inputs\[0\]: the prompt has .* Lower shots"):
        task(["go", "a cat"], overflow="refuse")


def test_a_prompt_beyond_the_context():
    task = bedstone.pipeline("text-classification", gpt(64), template=TEMPLATE, labels="good,bad")
    with pytest.raises(BedstoneError, match=r"inputs\[1\]: the prompt has \d+ tokens with 0 exam"):
        task(["go", " ".join(SENTENCES)])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"examples": None, "shots": 0}, "there is no label word"),
        ({"shots": 6}, "6 were wanted, and examples has 5 rows"),
        ({"examples": None, "labels": "good,bad"}, "there are no examples"),
        ({"examples": ROWS[1:2] * 3, "select": "balanced"}, "all are 'good'"),
        ({"labels": "good,fair"}, "'bad', for which there is no label word"),
        ({"labels": {"good": "yes", "bad": "yes"}}, "both have the words 'yes'"),
        ({"labels": {"good": "yes", "bad": ""}}, "'bad' has no label word"),
        ({"template": {**TEMPLATE, "input": "="}}, r"has no \{text\}"),
        ({"template": {**TEMPLATE, "input": "{text} {titel}"}}, r"the field \{titel\}"),
        ({"select": "similar"}, "name a model of them by embed"),
        ({"chat": "turns"}, "the model has no chat template"),
        ({"examples": [3]}, "expected a dictionary of columns"),
        ({"score": "generate", "calibration": "domain"}, "no probabilities to calibrate"),
        ({"max_length": 9}, "prompts are read whole"),
        ({"selekt": "random"}, "perhaps 'select' is meant"),
    ],
)
def test_what_is_refused(options, words):
    with pytest.raises(BedstoneError, match=words):
        classify(**options)("a dog")


def test_an_encoder_is_refused():
    with pytest.raises(BedstoneError, match="needs a decoder with its language head"):
        bedstone.pipeline("multiple-choice", model(HeadConfig("language")))
    with pytest.raises(BedstoneError, match="needs a head for labels of a text"):
        bedstone.pipeline("text-classification", model(HeadConfig("language")))


def test_pairs_need_a_template_that_reads_them():
    pair = {"text": "a dog", "text_pair": "a cat"}
    with pytest.raises(BedstoneError, match="Take template=text-pair-classification"):
        classify(shots=0, labels="good,bad")(pair)
    task = classify(shots=0, examples=None, labels="good,bad", template="text-pair-classification")
    other = {"text": "a dog", "text_pair": "go"}
    assert task(pair) != task(other)
    rows = [{**row, "text_pair": "go"} for row in ROWS]
    task = classify(examples=rows, template="")
    assert task.setup(task.options).template.name == "text-pair-classification"


def test_similar_examples_by_our_own_embeddings():
    body = model(HeadConfig("states"))
    task = classify(select="similar", embed=body, shots=1)
    rows = task.setup(task.options).examples
    given = "Zoë Müller flew to New York ="
    vectors = rows._embed([*rows.inputs, given])
    best = int((vectors[:-1] @ vectors[-1]).argmax())
    assert rows.choose(1, "similar", given=given) == [best]
    assert task("Zoë Müller flew to New York")
    with pytest.raises(BedstoneError, match=r"embed: .* gives no embeddings"):
        classify(select="similar", embed=gpt())("a dog")


class Said:
    """A task whose model writes what it is to write."""

    def __new__(cls, name: str, *texts: str, **options):
        task = bedstone.pipeline(name, gpt(), **options)
        queue = list(texts)

        def write(prompts, template, options):
            for _ in prompts:
                text = queue.pop(0)
                found = template.find(text)
                task.unread += found is None
                yield (
                    found,
                    dataclasses.make_dataclass("W", ["text", "log_probabilities"])(
                        text, [math.log(0.5)]
                    ),
                )

        task.answers = write
        return task


def test_labels_by_generation():
    task = Said(
        "text-classification", " Good!", "bad, not good", "goodness", examples=ROWS, shots=0
    )
    found = task(["x", "y", "z"], score="generate")
    assert [each["label"] for each in found] == ["good", "bad", NO_LABEL]
    assert [each["score"] for each in found] == [1.0, 1.0, 0.0]
    assert task.unread == 1


def test_an_answer_without_a_label_is_said_by_every_task_that_chooses():
    how = {"score": "generate", "shots": 0}
    task = Said("text-classification", *["hm"] * 2, examples=ROWS, **how)
    (every,) = task(["x"], top_k=None)
    assert [each["label"] for each in every] == [NO_LABEL, "bad", "good"]
    (all_scores,) = task(["x"], return_all_scores=True)
    assert all_scores == [{"label": name, "score": 0.0} for name in ("bad", "good")]
    task = Said("zero-shot-classification", "hm", "sport", **how)
    none, one = task(["x", "y"], candidate_labels=["sport", "art"])
    assert (none["labels"], none["scores"]) == ([NO_LABEL, "sport", "art"], [0.0] * 3)
    assert one["labels"] == ["sport", "art"]
    task = Said("multiple-choice", "hm", "a cat", **how)
    row = {"question": "which?", "choices": ["a dog", "a cat"]}
    none, one = task([row, row])
    assert none == {"choice": None, "answer": NO_LABEL, "scores": [0.0, 0.0]}
    assert (one["choice"], one["answer"]) == (1, "a cat")


def test_such_answers_count_as_wrong_where_choices_are_measured():
    rows = Dataset([{"question": "q", "choices": ["a dog", "a cat"], "answer": n} for n in (0, 1)])
    metric = Choices(rows, None)
    results = [{"choice": None, "scores": [0.0, 0.0]}, {"choice": 1, "scores": [0.0, 1.0]}]
    figures = metric.score(results, 0)
    assert figures.values["accuracy"] == 0.5 and figures.baselines["chance"] == 0.5


def test_choices_may_be_json_in_a_text(tmp_path):
    (tmp_path / "mc.csv").write_text(
        'question,choices,answer\none?,"[""a"", ""b""]",1\ntwo?,"[""a dog"", ""a cat""]",a cat\n'
    )
    task = bedstone.pipeline("multiple-choice", gpt(), examples=str(tmp_path / "mc.csv"), shots=2)
    assert task.setup(task.options).examples.outputs == [" b", " a cat"]
    found = task({"question": "four?", "choices": '["go", "a film"]'})
    assert found["answer"] in ("go", "a film") and len(found["scores"]) == 2
    for text in ("[go", "go, a film", '["go"]'):
        with pytest.raises(BedstoneError, match="expected a list of 2 to 26 texts"):
            task({"question": "four?", "choices": text})


def test_examples_may_be_a_table():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS)
    listed, how = gpt(), {"shots": 3, "seed": 1}
    expected = bedstone.pipeline("text-classification", listed, examples=ROWS, **how)("a film")
    for given in (frame, {name: list(frame[name]) for name in frame.columns}):
        task = bedstone.pipeline("text-classification", listed, examples=given, **how)
        assert task("a film") == expected
        setup = task.setup(task.options)
        assert task.setup(task.options) is setup  # read once
        assert task(["a film"], examples=frame.head(4))[0]["label"] in ("good", "bad")
    for bad, words in ((frame.head(0), "examples: has no rows"), ([5], "is int; expected a dict"),
                       (5, "int was given; expected a list")):  # fmt: skip
        with pytest.raises(BedstoneError, match=words):
            bedstone.pipeline("text-classification", listed, examples=bad)("a film")


def test_answers_are_found_in_their_context():
    task = Said("question-answering", "Bremen", "Rome", "unanswerable")
    rows = [{"question": "where?", "context": "Ada flew to Bremen."}] * 3
    found = task(rows, handle_impossible_answer=True)
    assert found[0] == {"score": 0.5, "start": 12, "end": 18, "answer": "Bremen"}
    assert (found[1]["start"], found[1]["answer"], found[2]["answer"]) == (None, "Rome", "")


def test_entities_are_found_in_their_text():
    rows = [{"tokens": ["Ada", "Byron", "ran"], "ner_tags": ["B-PER", "I-PER", "O"]}]
    rows += [{"tokens": ["in", "Rome"], "ner_tags": ["O", "B-LOC"]}]
    answer = "Ada Byron (PER); Bremen (LOC); Rome (LOC); Ada (X); so"
    task = Said("token-classification", answer, "none", answer, examples=rows, shots=2)
    assert task.setup(task.options).examples.outputs == [" Ada Byron (PER)", " Rome (LOC)"]
    text = "Ada Byron flew to Bremen"
    (first, none) = task([text, "nobody ran"])
    assert [(each["entity_group"], each["word"]) for each in first] == [
        ("PER", "Ada Byron"),
        ("LOC", "Bremen"),
    ]
    assert all(text[each["start"] : each["end"]] == each["word"] for each in first)
    assert none == [] and task.unread == 3
    (words,) = task(text.split(), is_split_into_words=True, aggregation_strategy="none")
    assert [each["entity"] for each in words] == ["B-PER", "I-PER", "B-LOC"]


def test_multiple_choice_reads_numbers_letters_and_texts():
    rows = [
        {"question": "one?", "choices": ["a", "b"], "answer": 1},
        {"question": "two?", "choices": ["a", "b"], "answer": "A"},
        {"question": "three?", "choices": ["a dog", "a cat"], "answer": "a cat"},
    ]
    task = bedstone.pipeline("multiple-choice", gpt(), examples=rows, shots=3)
    examples = task.setup(task.options).examples
    assert examples.outputs == [" b", " a", " a cat"] and examples.classes == ["B", "A", "B"]
    found = task({"question": "four?", "choices": ["go", "a film", "a dog"]})
    assert found["answer"] == ["go", "a film", "a dog"][found["choice"]]
    assert sum(found["scores"]) == pytest.approx(1)
    letters = {"input": "{question}\n{choices}\nAnswer:", "output": " {letter}"}
    task = bedstone.pipeline("multiple-choice", gpt(), template=letters, examples=rows, shots=1)
    assert set(task.setup(task.options).examples.outputs) == {" A", " B"}
    for bad in ({**rows[0], "answer": 2}, {**rows[0], "answer": "c"}):
        with pytest.raises(BedstoneError, match="none of 2 choices"):
            task(rows[0], examples=[bad])
    with pytest.raises(BedstoneError, match="expected a list of 2 to 26 texts"):
        task({"question": "four?", "choices": ["go"]})


def test_translation_names_its_languages():
    rows = [{"translation": {"en": "a dog", "de": "ein Hund"}}]
    task = bedstone.pipeline("translation_en_to_de", gpt(), examples=rows, max_new_tokens=3)
    setup = task.setup(task.options)
    assert setup.examples.inputs == ["English: a dog\nGerman:"]
    assert setup.examples.outputs == [" ein Hund"]
    assert set(task("a cat")[0]) == {"translation_text", "score"}
    with pytest.raises(BedstoneError, match="src_lang: none was given"):
        bedstone.pipeline("translation", gpt())("a cat")


def test_equal_choices_are_refused_where_they_are_given():
    """Rows of a data set may hold such: they are scored as they are."""
    rows = [{"question": "q", "choices": ["a", "a", "b"], "answer": 2}] * 3
    task = bedstone.pipeline("multiple-choice", gpt(), examples=rows, shots=1)
    for choices in (["a", "b", "a"], ["a", "a "], '["a", "a"]'):
        with pytest.raises(BedstoneError, match="the choices hold 'a' twice"):
            task({"question": "q", "choices": choices})
    found = task({"question": "q", "choices": ["a", "b"]})
    assert sum(found["scores"]) == pytest.approx(1)
