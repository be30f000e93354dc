"""Results equal those of transformers' own pipelines on the same small random models."""

import pytest

import bedstone
from bedstone.models.heads import HeadConfig
from small_models import SENTENCES, TAGS, decoder, saved
from task_checks import same

transformers = pytest.importorskip("transformers")
LAYOUTS = ("bert", "roberta", "distilbert")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(ours, theirs) of a task over a model of a layout with a head."""
    made = {}

    def make(task, head, layout):
        key = task, head, layout
        if key not in made:
            folder = saved(tmp_path_factory.mktemp(layout), head, layout)
            theirs = transformers.pipeline(task, model=str(folder), device="cpu")
            made[key] = bedstone.pipeline(task, folder, device="cpu"), theirs
        return made[key]

    return make


HEADS = {
    "single": HeadConfig("sequence", ("bad", "fair", "good")),
    "multi": HeadConfig("sequence", ("bad", "fair", "good"), "multi"),
    "regression": HeadConfig("sequence", ("stars",), "regression"),
}
PAIR = {"text": SENTENCES[0], "text_pair": SENTENCES[1]}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("problem", HEADS)
def test_text_classification(both, layout, problem):
    ours, theirs = both("text-classification", HEADS[problem], layout)
    for inputs in (SENTENCES[0], SENTENCES, SENTENCES[:1], PAIR, [PAIR, PAIR]):
        for options in ({}, {"top_k": 1}, {"top_k": None}, {"top_k": 2}):
            same(ours(inputs, **options), theirs(inputs, **options))
    for function in ("none", "softmax", "sigmoid"):
        options = {"function_to_apply": function, "top_k": None}
        same(ours(SENTENCES, **options), theirs(SENTENCES, **options))


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_token_classification(both, layout, strategy):
    ours, theirs = both("token-classification", TAGS, layout)
    texts = SENTENCES
    if layout == "roberta" and strategy not in ("none", "simple"):
        # transformers takes a word and the sign after it for one word there; we part them
        texts = ["the unfriendly dogs barked at a small red cat"]
    options = {"aggregation_strategy": strategy}
    for ignored in (["O"], [], ["PER", "B-PER"]):
        found = ours(texts, ignore_labels=ignored, **options)
        same(found, theirs(texts, ignore_labels=ignored, **options))
        assert ignored or all(found)
    same(ours(texts[0], **options), theirs(texts[0], **options))


@pytest.mark.parametrize("strategy", ["none", "first"])
def test_words_given_in_a_list(both, strategy):
    ours, theirs = both("token-classification", TAGS, "bert")
    rows = [["unfriendly", "dogs", "in", "Bremen"], ["Zoë", "Müller", "flew"]]
    options = {"aggregation_strategy": strategy, "is_split_into_words": True}
    for inputs in (rows, rows[0]):
        same(ours(inputs, **options), theirs(inputs, **options))
    options["delimiter"] = "--"
    same(ours(rows, **options), theirs(rows, **options))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fill_mask(both, layout):
    ours, theirs = both("fill-mask", HeadConfig("language"), layout)
    mask = theirs.tokenizer.mask_token
    one, two = f"the {mask} dogs barked at a small, red cat.", f"a {mask} that is {mask}"
    for inputs in (one, two, [one, two], [one]):
        for options in ({}, {"top_k": 2}, {"targets": ["cat", "dull", "xyzzy", "cat"]}):
            same(ours(inputs, **options), theirs(inputs, **options))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "labels", [("contradiction", "neutral", "entailment"), ("ENTAILMENT", "not_entailment")]
)
def test_zero_shot(both, layout, labels):
    ours, theirs = both("zero-shot-classification", HeadConfig("sequence", labels), layout)
    for inputs in (SENTENCES[1], SENTENCES):
        for options in (
            {},
            {"multi_label": True},
            {"hypothesis_template": "A {} of it."},
            {"candidate_labels": "sport"},
        ):
            options = {"candidate_labels": "sport, weather, film", **options}
            same(ours(inputs, **options), theirs(inputs, **options))
    same(ours("go", ["film", "sport"]), theirs("go", ["film", "sport"]))


@pytest.mark.parametrize("layout", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize(
    ("task", "head"), [("text-classification", HEADS["single"]), ("token-classification", TAGS)]
)
def test_decoders_too(tmp_path, layout, task, head):
    folder = decoder(head, layout).save(tmp_path / "model")
    ours = bedstone.pipeline(task, folder, device="cpu")
    theirs = transformers.pipeline(task, model=str(folder), device="cpu")
    same(ours(SENTENCES), theirs(SENTENCES))
