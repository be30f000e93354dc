"""`bedstone explain` of small random models of each family: the number, its parts, the page."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import bedstone
from bedstone.cli import main
from bedstone.commands.explain import explain_
from bedstone.errors import BedstoneError
from bedstone.inspect.attribution import integrated_gradients, occlusion
from bedstone.inspect.explain import TARGETS, open_task, twin
from bedstone.inspect.text_targets import embedded, log_odds, read_words
from bedstone.models.heads import HeadConfig
from bedstone.nn.attention import SelfAttention, self_attention
from bedstone.nn.blocks import Context
from bedstone.nn.masks import Causal, Full
from drawings import drawing
from image_models import clip_model, labelled_model, pictures
from image_text_models import sighted_model, told_model
from small_models import NLI, SENTENCES, TAGS, decoder, model, saved

LANGUAGE, SPANS = HeadConfig("language"), HeadConfig("spans")
PICTURE = pictures(1)[0]
MASKED = "the unfriendly [MASK] barked at a small red cat."
QUESTION = {"question": "who barked?", "context": SENTENCES[1]}
SEEN = {"image": PICTURE, "question": "how many green stars are there?"}
# Of each family: a model, its task, an input.
FAMILIES = {
    "labels": lambda: (model(NLI), "text-classification", SENTENCES[2]),
    "pairs": lambda: (
        model(NLI),
        "text-classification",
        {"text": SENTENCES[1], "text_pair": SENTENCES[2]},
    ),
    "labels of a decoder": lambda: (decoder(NLI, "qwen3"), "text-classification", SENTENCES[2]),
    "numbers": lambda: (
        model(HeadConfig("sequence", ("score",), "regression")),
        "text-classification",
        SENTENCES[2],
    ),
    "tags": lambda: (model(TAGS), "token-classification", SENTENCES[0]),
    "answers": lambda: (model(SPANS), "question-answering", QUESTION),
    "next token": lambda: (decoder(LANGUAGE, "llama"), "text-generation", SENTENCES[1]),
    "masked": lambda: (model(LANGUAGE), "fill-mask", MASKED),
    "similarity": lambda: (
        model(HeadConfig("states")),
        "sentence-similarity",
        {"text": SENTENCES[1], "text_pair": SENTENCES[3]},
    ),
    "clip": lambda: (
        clip_model(),
        "zero-shot-image-classification",
        {"image": PICTURE, "text": "a photo of a red circle"},
    ),
    "siglip": lambda: (
        clip_model("siglip"),
        "zero-shot-image-classification",
        {"image": PICTURE, "text": ["a photo of a red circle", "this is a blue square."]},
    ),
    "images": lambda: (labelled_model(), "image-classification", PICTURE),
    "captions": lambda: (told_model(), "image-to-text", PICTURE),
    "questions": lambda: (told_model(), "visual-question-answering", SEEN),
    "questions of a GPT": lambda: (sighted_model(), "visual-question-answering", SEEN),
    "drawings": lambda: (
        drawing("text"),
        "text-to-image",
        {"prompt": "a red circle and a blue square", "seed": 1},
    ),
}


def targets(family, wanted=None):
    made, task, value = FAMILIES[family]()
    whole, ready = open_task(made, task)
    found = TARGETS[task](ready, value, wanted, "auto")
    return found if isinstance(found, list) else [found], whole, ready


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_every_family_add_up(family):
    for target in targets(family)[0]:
        whole = targets(family)[1]
        case = target.case(whole)
        assert len(case) == len(target.parts) > 1
        found = integrated_gradients(case)
        full, empty = case.at(np.stack([np.ones(len(case)), np.zeros(len(case))]))
        assert found.completeness.change == pytest.approx(full - empty, rel=1e-3, abs=1e-4)
        assert found.scores.sum() == pytest.approx(full - empty, abs=0.011 * abs(full - empty))
        assert found.completeness.met
        for make in list(target.maps.values())[:1]:
            assert integrated_gradients(make(whole)).completeness.error < 0.05
        if target.rollout is not None:
            shares = target.rollout(whole)
            assert len(shares) == len(case) and 0 < shares.sum() <= 1 + 1e-5


def test_the_number_of_a_label_is_its_log_odds_as_the_task_has_it():
    (target,), whole, ready = targets("labels", "neutral")
    probability = {each["label"]: each["score"] for each in ready(SENTENCES[2], top_k=None)}
    p = probability["neutral"]
    full = target.case(whole).at(np.ones((1, len(target.parts))))[0]
    assert full == pytest.approx(np.log(p / (1 - p)), abs=1e-4)
    assert target.predicted == max(probability, key=probability.get)


def test_a_target_of_several_tokens_is_refused():
    made = decoder(HeadConfig("language"), "gpt2")
    with pytest.raises(BedstoneError, match=r"--target: 'Zoë Müller flew' is \d+ tokens"):
        bedstone.explain(made, SENTENCES[1], target="Zoë Müller flew", shuffles=0)


def test_the_number_of_a_next_token_is_its_log_odds():
    (target,), whole, ready = targets("next token")
    ids = torch.tensor([ready.tokenizer.encode(SENTENCES[1])])
    logits = whole(ids)[0, -1]
    expected = log_odds(logits, int(logits.argmax()))
    full = target.case(whole).at(np.ones((1, len(target.parts))))[0]
    assert full == pytest.approx(float(expected), abs=1e-4)


def test_what_is_gone_is_read_as_the_mask():
    (target,), whole, ready = targets("labels")
    words = SENTENCES[2].split()
    gone = [part.name for part in target.parts].index("dull")
    kept = np.ones((1, len(target.parts)))
    kept[0, gone] = 0
    row = ready.prepare(SENTENCES[2], ready.chosen()).windows[0]
    ids = [
        ready.tokenizer.mask_id
        if source is not None and SENTENCES[2][start:end] in "dull" and word_of(row, at, "dull")
        else number
        for at, (number, source, (start, end)) in enumerate(
            zip(row.ids, row.sources, row.offsets, strict=True)
        )
    ]
    logits = whole(torch.tensor([ids]))[0]
    which = whole.config.head.labels.index(target.predicted)
    assert target.case(whole).at(kept)[0] == pytest.approx(float(log_odds(logits, which)), abs=1e-4)
    assert "dull" in " ".join(words)


def word_of(row, place, word):
    start = SENTENCES[2].index(word)
    own, end = row.offsets[place]
    return start <= own and end <= start + len(word)


def test_tokens_are_merged_into_words_and_special_ones_are_of_none():
    made = model(NLI)
    _, ready = open_task(made, "text-classification")
    row = ready.prepare(SENTENCES[3], ready.chosen()).windows[0]
    reading = read_words(row, [SENTENCES[3]], blank="zero")
    assert reading.owners[0] == reading.owners[-1] == -1
    names = [part.name for part in reading.parts]
    assert names[:4] == ["nobody", "in", "Bremen", "expected"]
    assert "unhurried" in names and len(row) - 2 > len(names)  # some words are of several tokens
    for part in reading.parts:
        assert SENTENCES[3][part.start : part.end] == part.name
    counted = np.bincount(reading.owners[1:-1])
    assert counted.sum() == len(row) - 2 and counted.max() > 1


def test_an_embedding_is_as_it_was_afterwards():
    made = decoder(LANGUAGE, "gpt2").network
    ids = torch.tensor([[5, 6, 7]])
    before = made(ids)
    given = torch.randn(1, 2, 32)
    with embedded(made.embed, given):
        inside = made.embed(ids)
        assert torch.equal(inside[:, :2], given)
        assert torch.equal(inside[0, 2], made.embed.weight[7])
    assert torch.equal(made(ids), before)
    with pytest.raises(RuntimeError), embedded(made.embed, given):
        raise RuntimeError
    assert torch.equal(made(ids), before)


@pytest.mark.parametrize("mask", [Full(), Causal(), Causal(2)])
def test_weights_of_self_attention_are_those_it_uses(mask):
    torch.manual_seed(0)
    attention = SelfAttention(16, 4, kv_heads=2)
    x, context = torch.randn(2, 5, 16), Context(mask=mask)
    weights = attention.weights(x, context)
    _, _, values = attention.project(x, context)
    mixed = weights @ values.repeat_interleave(2, 1)
    expected = attention.mix(x, context)
    torch.testing.assert_close(mixed.transpose(1, 2).flatten(2), expected, atol=1e-5, rtol=1e-5)
    found = self_attention(attention, lambda: attention(x, context))
    assert torch.equal(found[0], weights)


def test_a_network_without_attention_says_so():
    with pytest.raises(BedstoneError, match="no self-attention"):
        self_attention(torch.nn.Linear(2, 2), lambda: None)


def test_the_twin_is_whole_and_keeps_a_graph():
    made = drawing("text").network
    found = twin(made)
    assert {weight.dtype for weight in found.parameters()} == {torch.float32}
    assert not any(weight.requires_grad for weight in found.parameters())
    assert not found.training


@pytest.mark.parametrize("family", ["labels", "next token"])
def test_a_served_network_in_eight_bits_is_asked_itself(family):
    made, task, value = FAMILIES[family]()
    found = bedstone.explain(
        made, value, task=task, precision="int8", orders=4, shuffles=0, methods=["occlusion"]
    )
    agreement = found.agreement
    assert agreement.precision == "int8"
    assert agreement.served == found.views[0].full != agreement.twin
    assert agreement.served == pytest.approx(agreement.twin, abs=0.5)
    assert agreement.correlation > 0.2
    whole, _ = open_task(made, task)
    scores = occlusion(targets(family)[0][0].case(whole)).scores
    assert not np.array_equal(found.views[0].main.attribution.scores, scores)
    np.testing.assert_allclose(found.views[0].main.attribution.scores, scores, atol=0.5)


def test_words_that_a_label_rests_on_are_found():
    """Of a network that reads one word alone, all other words being as the mask to it."""
    made = model(NLI)
    embed, (word,) = made.network.embed, made.tokenizer.encode("cat")
    with torch.no_grad():
        own = embed.weight[word].clone()
        embed.weight[:] = embed.weight[made.tokenizer.mask_id]
        embed.weight[word] = own
    for method in ("integrated-gradients", "occlusion", "shapley", "gradient-x-input"):
        scores = bedstone.explain(made, SENTENCES[1], methods=[method], orders=2, shuffles=0).scores
        assert abs(scores.pop("cat")) > 1e-4
        assert max(map(abs, scores.values())) < 1e-6


def test_a_text_of_two_words_is_not_said_to_hold():
    found = bedstone.explain(model(NLI), "go", shuffles=0)
    assert not found.holds
    assert "too few parts" in found.views[0].failures[0]


def test_a_page_shows_all_and_needs_nothing_else(tmp_path):
    made, _, value = FAMILIES["clip"]()
    found = bedstone.explain(made, value, orders=4, shuffles=1)
    text = found.save(tmp_path / "why.html").read_text(encoding="utf-8")
    assert text.count("<section>") == 2
    assert text.count("<svg") == 4
    assert text.count("data:image/png") >= 4  # the picture, all cells, words
    assert not re.search(r'(src|href)="(?!data:)', text)
    marked = any(view.failures for view in found.views)
    assert ("Not to be trusted" in text) == marked
    assert "mean colour" in text and "rank correlation with shuffled weights" in text


def test_an_explanation_that_fails_is_marked(tmp_path):
    found = bedstone.explain(model(NLI), "go", shuffles=0)
    text = found.save(tmp_path / "why.html").read_text(encoding="utf-8")
    assert "Not to be trusted" in text and "passed all tests" not in text


def test_the_command_prints_json_and_writes_a_page(tmp_path, capsys):
    folder = saved(tmp_path, NLI)
    page = tmp_path / "why.html"
    words = ["explain", str(folder), SENTENCES[2], "--orders", "4", "--shuffles", "0"]
    code = main([*words, "--json", "--out", str(page)])
    found = json.loads(capsys.readouterr().out)
    view = found["views"][0]
    assert code == int(bool(view["failures"]))
    assert len(view["parts"]) == len(view["methods"]["integrated-gradients"]["scores"])
    assert view["methods"]["integrated-gradients"]["completeness"]["error"] <= 0.01
    assert set(view["methods"]) == {"integrated-gradients", "occlusion", "attention-rollout"}
    assert view["tokens"][0] == "[CLS]"
    assert page.is_file()
    main([*words, "--method", "shapley"])
    assert "shapley" in capsys.readouterr().out


def test_the_command_reads_an_image_and_a_question(tmp_path, capsys):
    folder = told_model().save(tmp_path / "model")
    image = tmp_path / "seen.png"
    Image.fromarray(PICTURE).save(image)
    words = ["explain", str(folder), str(image), "--question", "how many green stars are there?"]
    main([*words, "--orders", "2", "--shuffles", "0", "--json", "--method", "occlusion"])
    views = json.loads(capsys.readouterr().out)["views"]
    assert [view["family"] for view in views] == ["answer", "answer"]
    assert len(views[0]["parts"]) == 64
    assert "green" in views[1]["parts"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["gradients"]}, "--method: 'gradients' is unknown"),
        ({"methods": ["attention-rollout"]}, "no proof"),
        ({"target": "neutrall"}, "--target: the label 'neutrall' is unknown"),
        ({"baseline": "grey"}, "--baseline: 'grey' is unknown"),
        ({"task": "translation"}, "--task: translation can't be explained"),
        ({"task": "fill-mask"}, "needs a head for masked words"),
        ({"orders": 1}, "--orders: 1 was given"),
    ],
)
def test_what_cannot_be_explained_is_refused(options, message):
    with pytest.raises(BedstoneError, match=re.escape(message)):
        bedstone.explain(model(NLI), SENTENCES[2], **options)


@pytest.mark.parametrize(
    ("family", "more", "options", "message"),
    [
        ("masked", {"text_pair": "more"}, {}, "--text-pair: fill-mask has no use for it"),
        ("labels", {"question": "who?"}, {}, "--question: text-classification has no use"),
        ("answers", {"text": "a"}, {}, "--text: question-answering has no use for it"),
        ("images", {"question": "what?"}, {"task": "image-classification"}, "--question: image"),
        ("labels", {}, {"maps": False}, "--no-maps: text-classification has no maps"),
        ("clip", {}, {"methods": ["occlusion", "attention-rollout"]}, "--method: attention-roll"),
    ],
)
def test_what_a_task_has_no_use_for_is_refused_by_name(family, more, options, message):
    made, task, value = FAMILIES[family]()
    first = {"masked": "text", "labels": "text", "images": "image"}
    given = dict(value) if isinstance(value, dict) else {first[family]: value}
    with pytest.raises(BedstoneError, match=re.escape(message)):
        bedstone.explain(made, {**given, **more}, **{"task": task, **options})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a text", "--text", "another"], "--text: is what an image is compared with"),
        (["a text", "--question", "who?", "--context", "we"], "--context: the input is"),
        (["a text", "--no-maps"], "--no-maps: text-classification has no maps"),
        (["a text", "--question", "who?"], "needs a question-answering head"),
        (["rows.jsonl", "--probe", "--lens"], "--lens: --probe has no use for it"),
        (["rows.jsonl", "--probe", "--precision", "int8"], "--precision: --probe has no use"),
    ],
)
def test_options_that_would_be_dropped_are_refused(words, message, tmp_path, capsys):
    folder = saved(tmp_path, NLI)
    assert main(["explain", str(folder), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_seed_is_of_any_task(tmp_path, capsys):
    folder = saved(tmp_path, NLI)
    words = ["explain", str(folder), SENTENCES[2], "--seed", "3", "--orders", "2", "--json"]
    assert main([*words, "--method", "occlusion", "--shuffles", "0"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["task"] == "text-classification"


def test_a_wrong_name_of_the_page_is_refused_before_the_model_is_read(tmp_path):
    with pytest.raises(BedstoneError, match=r"\.html"):
        explain_("nowhere", "a text", out=str(tmp_path / "page.pdf"))
