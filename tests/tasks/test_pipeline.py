"""Tasks by name: which there are, what they ask of a model, and what is said where it lacks it."""

import pytest
import torch

import bedstone
from bedstone.data.text.glossary import words_of_text
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from bedstone.tasks.pipeline import ALIASES, TASKS, task_class
from bedstone.tasks.text.text_classification import TextClassification
from bedstone.tasks.text.token_classification import TokenClassification
from small_models import NLI, TAGS, decoder, model, saved

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
        (lambda: bedstone.pipeline(3, model(LABELS)), "3 is unknown"),
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


def test_arguments_of_transformers_stand_for_ours(tmp_path):
    folder = saved(tmp_path, LABELS)
    plain = bedstone.pipeline("text-classification", folder, device="cpu")("go")
    same = [
        {"dtype": torch.float32},
        {"torch_dtype": "float32", "device_map": "cpu"},
        {"device_map": {"": "cpu"}, "framework": "pt", "use_fast": True, "token": None},
        {"model_kwargs": {"torch_dtype": torch.float32, "low_cpu_mem_usage": True}},
        {"revision": None, "trust_remote_code": False},
    ]
    for given in same:
        assert bedstone.pipeline("text-classification", folder, **given)("go") == plain
    near = bedstone.pipeline("text-classification", folder, dtype=torch.bfloat16)
    assert near.engine.network is not plain
    assert near("go") == bedstone.pipeline("text-classification", folder, precision="bf16")("go")
    assert near("go") != plain


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"torch_dtype": torch.float16}, "torch_dtype: 'float16' isn't computed in.*bfloat16"),
        ({"device_map": "balanced"}, "device_map: .* expected one device"),
        ({"token": "x"}, "token: .*HF_TOKEN"),
        ({"trust_remote_code": True}, "trust_remote_code: no code"),
        ({"streamer": object()}, "streamer: stream by"),
        ({"model_kwargs": {"nosuch": 1}}, "model_kwargs: 'nosuch' is unknown"),
        ({"model_kwargs": 3}, "model_kwargs: .* expected a dictionary"),
        ({"generation_config": 3}, "generation_config: .* expected a dictionary"),
        ({"generation_config": {"num_beams": 2}}, "option 'num_beams' is unknown"),
    ],
)
def test_arguments_that_are_refused_say_what_to_use(given, message, tmp_path):
    with pytest.raises(BedstoneError, match=message):
        bedstone.pipeline("text-classification", model(LABELS), **given)


def test_a_model_says_its_task():
    made = {
        "text-classification": model(LABELS),
        "token-classification": model(TAGS),
        "feature-extraction": model(HeadConfig("states")),
        "fill-mask": model(HeadConfig("language")),
        "text-generation": decoder(HeadConfig("language"), "llama"),
    }
    for name, each in made.items():
        task = bedstone.pipeline(model=each)
        assert task.name == name
        assert name in repr(task)
        assert repr(each) in repr(task)
        assert each.config.layout in repr(each)
        assert len(repr(task)) < 300
    with pytest.raises(BedstoneError, match="none was given, and no model"):
        bedstone.pipeline()


def test_generation_settings_of_transformers_are_taken():
    transformers = pytest.importorskip("transformers")
    made = decoder(HeadConfig("language"), "llama")
    config = transformers.GenerationConfig(max_new_tokens=3, num_beams=2)
    one = bedstone.pipeline("text-generation", made)("go", generation_config=config)
    two = bedstone.pipeline("text-generation", made)("go", max_new_tokens=3, num_beams=2)
    three = bedstone.pipeline("text-generation", made, generation_config={"max_new_tokens": 3})
    assert one == two
    assert three("go", num_beams=2) == two


def test_rows_that_are_fetched_by_number_are_read_one_by_one():
    class Rows:
        def __len__(self):
            return 3

        def __getitem__(self, number):
            if number >= 3:
                raise IndexError
            return ["go", "a cat", "go"][number]

    task = bedstone.pipeline("text-classification", model(LABELS))
    found = task(Rows())
    assert not isinstance(found, list)
    assert list(found) == task(["go", "a cat", "go"])


def test_words_by_text_alternatives_and_groups_are_generated():
    made = decoder(HeadConfig("language"), "llama")
    task = bedstone.pipeline("text-generation", made, return_full_text=False, max_new_tokens=12)

    def texts(**settings):
        return [each[0]["generated_text"] for each in task(["go", "a cat"], **settings)]

    assert not any("film" in words_of_text(text) for text in texts(num_beams=3))
    for word in ("film", "cat|film", ["film", "cat"]):
        held = texts(num_beams=3, force_words=word)
        wanted = {"film", "cat"} if isinstance(word, list) else {"film"}
        if word == "cat|film":
            assert all({"film", "cat"} & {*words_of_text(text)} for text in held)
        else:
            assert all(wanted <= {*words_of_text(text)} for text in held)
    more = {"num_beams": 4, "num_return_sequences": 4}
    several = task("go", return_alternatives=True, **{**more, "num_return_sequences": 6})
    assert len(several) == 6
    groups = task("go", num_beam_groups=4, diversity_penalty=99.0, **more)
    assert len({each["generated_text"] for each in groups}) > 1
    with pytest.raises(BedstoneError, match=r"words that must occur take \d+ .* leaves 12"):
        task("go", num_beams=2, force_words=["film"] * 72)


def test_a_column_of_a_table_is_read_in_its_own_order():
    pandas = pytest.importorskip("pandas")
    column = pandas.Series(["go", "a cat", "the dogs"], index=[2, 0, 1])
    task = bedstone.pipeline("text-classification", model(LABELS))
    assert list(task(column)) == task(list(column))
    assert list(task(column[column != "go"])) == task(["a cat", "the dogs"])


def test_a_model_generates_moves_and_shows_itself(tmp_path):
    made = decoder(HeadConfig("language"), "llama")
    task = bedstone.pipeline("text-generation", made, return_full_text=False, max_new_tokens=5)
    assert made.generate("go", max_new_tokens=5) == task("go")[0]["generated_text"]
    assert made.generate(["go", "a cat"], max_new_tokens=5, num_beams=2) == [
        each[0]["generated_text"] for each in task(["go", "a cat"], num_beams=2)
    ]
    assert made.to("cpu", dtype=torch.bfloat16) is made
    assert next(made.network.parameters()).dtype == torch.bfloat16
    with pytest.raises(BedstoneError, match="writes no text"):
        model(LABELS).generate("go")
    with pytest.raises(BedstoneError, match="not token ids"):
        made.generate([[1, 2]])
    assert "llama" in repr(made)


def test_a_run_is_opened_by_the_names_of_transformers(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("task: text-classification\n")
    folder = saved(run, LABELS)
    expected = bedstone.pipeline("text-classification", folder)("go")
    opened = bedstone.Model.from_pretrained(run)
    assert bedstone.pipeline("text-classification", opened, tokenizer=run)("go") == expected
