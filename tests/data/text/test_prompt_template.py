"""Templates of prompts: what they write, and what is refused."""

import pytest

from bedstone.data.text.prompt_template import (
    TASK_FIELDS,
    PromptTemplate,
    open_template,
    template_names,
    with_labels,
)
from bedstone.errors import BedstoneError

REVIEW = {
    "task": "text-classification",
    "input": "Review: {text}\nSentiment:",
    "output": " {label}",
    "labels": {"good": "great", "bad": "awful"},
}


def test_every_built_in_template_opens_and_every_task_has_one():
    assert {open_template(name).task for name in template_names()} == set(TASK_FIELDS)
    for task in TASK_FIELDS:
        assert open_template("", task).task == task
        assert task in template_names(task)


def test_a_prompt_as_text():
    template = open_template(REVIEW)
    given = template.write("input", {"text": "dull"})
    assert given == "Review: dull\nSentiment:"
    shots = [("Review: fine\nSentiment:", " great")]
    want = "Review: fine\nSentiment: great\n\nReview: dull\nSentiment:"
    assert template.text("", shots, given) == want
    assert template.text("Judge.", shots, given) == f"Judge.\n\n{want}"
    assert template.text("", [], given) == given
    assert template.cue == "Sentiment:"


def test_a_prompt_as_messages():
    template = open_template(REVIEW)
    shots = [("in 1:", " out 1")]
    assert template.messages("Judge.", shots, "in 2: ", turns=True) == [
        {"role": "system", "content": "Judge."},
        {"role": "user", "content": "in 1:"},
        {"role": "assistant", "content": "out 1"},
        {"role": "user", "content": "in 2:"},
    ]
    assert template.messages("Judge.", shots, "in 2:", turns=False) == [
        {"role": "user", "content": "Judge.\n\nin 1: out 1\n\nin 2:"}
    ]


def test_columns_and_braces():
    template = open_template({**REVIEW, "input": "{{x}} {text} {my column}:"})
    assert template.fields("input") == ["text", "my column"]
    assert template.write("input", {"text": "a", "my column": 3}) == "{x} a 3:"
    own = open_template({**REVIEW, "input": "{sentence}:"})  # another column than the usual
    assert own.write("input", {"sentence": "a", "text": "b"}) == "a:"


@pytest.mark.parametrize(
    ("pattern", "text", "want"),
    [
        ("", "  yes \n", "yes"),
        (r"Answer: (\w+)", "so. Answer: Bremen.", "Bremen"),
        (r"\d+", "about 12 or 13", "12"),
        (r"Answer: (\w+)", "no", None),
    ],
)
def test_the_answer_in_a_text(pattern, text, want):
    assert open_template({**REVIEW, "answer": pattern}).find(text) == want


def test_label_words():
    template = open_template("text-classification")
    assert with_labels(template, "good=very good,bad").labels == {"good": "very good", "bad": "bad"}
    assert with_labels(template, ["a", "b"]).labels == {"a": "a", "b": "b"}
    with pytest.raises(BedstoneError, match="'bad' has no label word"):
        with_labels(template, {"good": "yes", "bad": " "})
    with pytest.raises(BedstoneError, match="expected words by label"):
        with_labels(template, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input": "Sentiment:"}, r"input: 'Sentiment:' has no \{text\}"),
        ({"output": " yes"}, r"output: ' yes' has no \{label\}"),
        ({"input": "{text"}, "Write a brace that is meant as such twice"),
        ({"input": "{text[0]}{text}"}, "is no name of a field"),
        ({"input": "{text!r}"}, "is no name of a field"),
        ({"task": "fill-mask"}, "'fill-mask' can't be done by prompting"),
        ({"answer": "("}, "is no regular expression"),
        ({"seperator": "x"}, "perhaps 'separator' is meant"),
        ({"labels": {"good": ""}}, "'good' has no label word"),
    ],
)
def test_templates_that_cannot_be_used(changes, words):
    with pytest.raises(BedstoneError, match=words):
        open_template({**REVIEW, **changes})


def test_an_unknown_field_is_named_with_the_nearest():
    template = open_template({**REVIEW, "input": "{text} {titel}"})
    with pytest.raises(BedstoneError, match=r"the field \{titel\}.*perhaps 'title' is meant"):
        template.write("input", {"text": "a", "title": "b"})


def test_files_and_names(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text('task: text-classification\ninput: "{text} ="\noutput: " {label}"\n')
    found = open_template(path, "text-classification")
    assert isinstance(found, PromptTemplate) and found.name == str(path)
    assert open_template(found) is found
    with pytest.raises(BedstoneError, match="perhaps 'sentiment' is meant"):
        open_template("sentimant", "text-classification")
    with pytest.raises(BedstoneError, match="is for translation, not for text-classification"):
        open_template("translation", "text-classification")
    with pytest.raises(BedstoneError, match="there is no file"):
        open_template(str(tmp_path / "none.yaml"), "text-classification")


def test_labels_are_texts(tmp_path):
    file = tmp_path / "numbers.yaml"
    head = 'task: text-classification\ninput: "{text}"\noutput: " {label}"\n'
    file.write_text(head + "labels: {0: bad, 1: good}\n")
    assert open_template(str(file), "text-classification").labels == {"0": "bad", "1": "good"}
    file.write_text(head + "labels: {yes: good, no: bad}\n")
    with pytest.raises(BedstoneError, match=r'YAML reads yes, no.*in quotes: "yes"'):
        open_template(str(file), "text-classification")
