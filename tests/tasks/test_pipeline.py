"""Tasks by name: which there are, what they ask of a model, and what is said where it lacks it."""

import pytest
import torch

import bedstone
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from bedstone.tasks.pipeline import ALIASES, TASKS, task_class
from bedstone.tasks.text.text_classification import TextClassification
from bedstone.tasks.text.token_classification import TokenClassification
from small_models import NLI, TAGS, model, saved

LABELS = HeadConfig("sequence", ("bad", "good"))


def test_every_name_has_its_task():
    for name in TASKS:
        kind = task_class(name)
        assert kind.name == name
        assert kind.asks
        assert kind.__doc__
    assert task_class("ner") is TokenClassification
    assert task_class("sentiment-analysis") is TextClassification
    assert set(ALIASES.values()) <= set(TASKS)


def test_a_model_a_folder_or_a_tokenizer_of_its_own(tmp_path):
    folder = saved(tmp_path, LABELS)
    one = bedstone.pipeline("sentiment-analysis", folder)("go")
    two = bedstone.pipeline("text-classification", bedstone.load(folder), device=-1)("go")
    three = bedstone.pipeline("text-classification", str(folder), tokenizer=folder)("go")
    assert one == two == three
    assert set(one[0]) == {"label", "score"}


def test_the_folder_of_a_run_stands_for_its_model(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("task: text-classification\n")
    with pytest.raises(BedstoneError, match="no checkpoint yet"):
        bedstone.pipeline("text-classification", run)
    folder = saved(run, LABELS)
    expected = bedstone.pipeline("text-classification", folder)("go")
    assert bedstone.pipeline("text-classification", run)("go") == expected


def test_the_model_itself_stays_as_it_is():
    made = model(LABELS)
    before = {name: value.clone() for name, value in made.network.state_dict().items()}
    bedstone.pipeline("text-classification", made, precision="bf16")(["go", "a cat"])
    after = made.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_bf16_is_near():
    made = model(LABELS)
    exact = bedstone.pipeline("text-classification", made, function_to_apply="none", top_k=None)
    near = bedstone.pipeline(
        "text-classification", made, precision="bf16", function_to_apply="none", top_k=None
    )
    one, two = ({x["label"]: x["score"] for x in task(["a cat"])[0]} for task in (exact, near))
    assert one == pytest.approx(two, abs=0.1)


WRONG = {
    "text-classification": (TAGS, "'tokens' with the labels O, B-PER.*can do token-classification"),
    "ner": (LABELS, "token-classification: needs .*'sequence'.*can do text-classification"),
    "fill-mask": (LABELS, "fill-mask: needs .*masked words"),
    "zero-shot-classification": (LABELS, "entailment.*with the labels bad, good"),
}


@pytest.mark.parametrize("task", WRONG)
def test_a_head_that_cannot(task):
    head, said = WRONG[task]
    with pytest.raises(BedstoneError, match=said):
        bedstone.pipeline(task, model(head))


def test_the_tasks_of_a_head_are_named():
    with pytest.raises(BedstoneError) as error:
        bedstone.pipeline("fill-mask", model(NLI))
    assert "text-classification, zero-shot-classification" in str(error.value)
    assert "question-answering" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bedstone.pipeline("fil-mask", model(LABELS)), "perhaps 'fill-mask'"),
        (lambda: bedstone.pipeline(None, model(LABELS)), "None is unknown"),
        (lambda: bedstone.pipeline("ner"), "no model was named.*ForTokenClassification"),
        (lambda: bedstone.pipeline("ner", "no/such/folder"), "no/such/folder"),
        (lambda: bedstone.pipeline("ner", model(TAGS), precision="fp8"), "'fp8' is unknown"),
        (lambda: bedstone.pipeline("ner", model(TAGS), device="cuda:77"), "can't be used"),
        (lambda: bedstone.pipeline("ner", model(TAGS), agregation_strategy="max"), "perhaps"),
        (lambda: bedstone.pipeline("ner", model(TAGS), tokenizer="/none"), "/none"),
    ],
)
def test_what_is_wrong_is_told(call, said):
    with pytest.raises(BedstoneError, match=said):
        call()


def test_a_model_without_a_tokenizer():
    made = model(LABELS)
    made.tokenizer = None
    with pytest.raises(BedstoneError, match="no tokenizer"):
        bedstone.pipeline("text-classification", made)
