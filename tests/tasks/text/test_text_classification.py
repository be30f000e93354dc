"""text-classification: how results nest, which function makes scores, how long texts are read."""

import json

import pytest
import torch

import bedstone
from bedstone.checkpoints.model import load
from bedstone.data.text.encode import text_windows
from bedstone.data.text.packing import pack
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from bedstone.tasks.pipeline import pipeline
from bedstone.tasks.text.text_classification import TextClassification
from small_models import SENTENCES, model

LABELS = ("bad", "fair", "good")
LONG = " ".join(SENTENCES * 8)


@pytest.fixture(scope="module")
def classify():
    return bedstone.pipeline("text-classification", model(HeadConfig("sequence", LABELS)))


def test_results_nest_as_in_version_4(classify):
    [best] = classify("go")
    assert set(best) == {"label", "score"}
    assert classify(["go"]) == [best]
    assert classify({"text": "go"}) == best
    assert classify("go", top_k=1) == [best]
    assert classify(["go"], top_k=1) == [[best]]
    every = classify("go", top_k=None)
    assert every[0] == best
    assert len(every) == 3
    [unsorted] = classify("go", return_all_scores=True)
    assert [each["label"] for each in unsorted] == list(LABELS)
    assert sorted(unsorted, key=lambda each: -each["score"]) == every
    assert classify(["go"], return_all_scores=True) == [unsorted]
    assert classify(["go"], return_all_scores=False) == [best]
    assert classify([[["go", "a cat"]]]) == [classify({"text": "go", "text_pair": "a cat"})]
    always = pipeline("text-classification", classify.model, top_k=None)
    assert always("go") == [every]  # as there: an option of the pipeline, a text alone


def test_windows_are_averaged(classify):
    """The scores of a long text are those of the mean of its windows' outputs."""
    windows = text_windows(classify.tokenizer, LONG, limit=64)
    assert len(windows) > 3
    network = classify.model.network
    with torch.no_grad():
        logits = [network.head(network.packed_states(pack([window]))[0]) for window in windows]
    expected = torch.stack(logits).mean(0).softmax(-1)
    found = {each["label"]: each["score"] for each in classify(LONG, top_k=None)}
    assert [found[label] for label in LABELS] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("problem", "labels", "function"),
    [
        ("single", LABELS, "softmax"),
        ("multi", LABELS, "sigmoid"),
        ("regression", ("stars",), "none"),
        ("single", ("only",), "sigmoid"),
    ],
)
def test_the_function_is_that_of_the_problem(problem, labels, function):
    task = bedstone.pipeline("text-classification", model(HeadConfig("sequence", labels, problem)))
    named = task("a cat", function_to_apply=function, top_k=None)
    assert task("a cat", top_k=None) == named
    assert task("a cat", function_to_apply="default", top_k=None) == named
    assert task("a cat", function_to_apply=function.upper(), top_k=None) == named


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"txt": "go"}, "keys are txt; expected text"),
        ({"text": "go", "pair": "a"}, "keys are text, pair; expected text, and maybe text_pair"),
        ({"text": "go", "text_pair": ""}, "text_pair is empty"),
        ({"text": "go", "text_pair": 3}, "text_pair is 3"),
        ({}, "keys are none"),
        (["go", "a cat"], "a list stands for one input.*text_pair"),
    ],
)
def test_bad_pairs(classify, value, said):
    with pytest.raises(BedstoneError, match=rf"inputs\[1\]: .*{said}"):
        classify(["go", value])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_k": 0}, "top_k: 0"),
        ({"top_k": "all"}, "top_k: 'all'"),
        ({"function_to_apply": "sofmax"}, "perhaps 'softmax'"),
    ],
)
def test_bad_options(classify, options, said):
    with pytest.raises(BedstoneError, match=said):
        classify("go", **options)


@pytest.mark.parametrize("problem", [None, "regression"])
def test_one_output_without_a_problem_is_a_sigmoid(tmp_path, problem):
    """Rerankers and reward models: as transformers' own pipeline, before and after saving."""
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.BertConfig(vocab_size=7, intermediate_size=8, num_labels=1, **sizes)
    config.problem_type = problem
    network = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        network.classifier.bias.fill_(-3.0)
    network.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "vocab.txt").write_text("\n".join(words) + "\n")
    named = json.dumps({"tokenizer_class": "BertTokenizer"})
    (tmp_path / "a" / "tokenizer_config.json").write_text(named)
    load(tmp_path / "a").save(tmp_path / "b")
    scores = []
    for folder in ("a", "b"):
        pair = {"text": "a", "text_pair": "b"}
        theirs = transformers.pipeline("text-classification", str(tmp_path / folder))(pair)
        ours = TextClassification(load(tmp_path / folder))(pair)
        scores += [theirs["score"], ours["score"]]
    assert scores == pytest.approx([scores[0]] * 4, abs=1e-5)
    assert (0 < scores[0] < 0.1) if problem is None else scores[0] < -2


@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation_keeps_the_side_that_the_tokenizer_says(tmp_path, side):
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        intermediate_size=16,
        max_position_embeddings=8,
        initializer_range=0.5,
        **sizes,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "truncation_side": side, "model_max_length": 8}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = transformers.pipeline("text-classification", str(tmp_path))
    ours = TextClassification(load(tmp_path))
    for given in ("a b c d e f g h i j a j", {"text": "a b c d e f", "text_pair": "g h i j a b c"}):
        wanted = theirs(given, truncation=True, top_k=None)
        found = ours(given, truncation=True, top_k=None)
        scores = [{each["label"]: each["score"] for each in one} for one in (wanted, found)]
        assert scores[1] == pytest.approx(scores[0], abs=1e-5)
