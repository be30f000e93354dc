"""Log-probabilities of continuations: those of each request read alone, and of other programs."""

import logging
import random
from dataclasses import replace

import pytest
import torch

import bedstone
from bedstone.errors import BedstoneError
from bedstone.generation import likelihood
from bedstone.generation.likelihood import Request, RowScorer, Scorer, scorer_of
from bedstone.generation.rows import EngineRows
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.models.heads import HeadConfig
from bedstone.nn.fast import kernels
from bedstone.nn.fast.inference import for_inference
from bedstone.runtime import pick_precision
from networks import randomise
from small_models import SENTENCES, decoder

CONTEXT = 64
LAYOUTS = {
    "gpt2": {},
    "llama": {},
    "qwen3": {"kv_heads": 2},
    "mistral": {"window": 5},
    "scaled": {"layout": "llama", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
}


def network(layout: str):
    named = {"layout": layout, **LAYOUTS[layout]}
    shape = {"vocab_size": 61, "width": 32, "layers": 2, "heads": 4, "context": CONTEXT}
    made = build(GPTConfig(**shape, **named), seed=1)
    randomise(made, seed=3)
    return made.eval()


def alone(model, request: Request) -> tuple[float, bool]:
    """The same by a full pass over this request."""
    with torch.no_grad():
        ids = torch.tensor([request.ids[:-1]])
        known = model.head(model.states(ids))[0].log_softmax(-1)
    places = [place - 1 for place in request.places]
    own = [known[place, request.ids[place + 1]].item() for place in places]
    best = [known[place].argmax().item() == request.ids[place + 1] for place in places]
    return sum(own), all(best)


def requests(seed: int = 0, count: int = 60) -> list[Request]:
    """Requests that share beginnings of all lengths, and some that share none."""
    draw = random.Random(seed)
    made, known = [], [()]
    for _ in range(count):
        start = draw.choice(known)[: draw.randrange(40)]
        ids = (*start, *(draw.randrange(61) for _ in range(draw.randrange(2, 20))))
        made.append(Request(ids, draw.randrange(1, len(ids))))
        known.append(ids)
    return made + made[:3]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("tokens", "pays"), [(512, 16), (1, 16), (40, 1), (40, 1000)])
def test_equals_each_request_read_alone(layout, tokens, pays, monkeypatch):
    monkeypatch.setitem(likelihood.TOKENS, "cpu", tokens)
    monkeypatch.setattr(likelihood, "ALONE", pays)
    monkeypatch.setattr(likelihood, "LOGITS", 61 * 3)
    model, given = network(layout), requests()
    if layout == "scaled":  # its positions depend on a text's length: no two share a beginning
        given = [Request((number, *each.ids[1:]), each.first) for number, each in enumerate(given)]
        given = given[:60]
    scorer = Scorer(model, None)
    for part in (given, given[::-1]):  # what the cache holds changes nothing
        for found, each in zip(scorer.score_ids(part), part, strict=True):
            sum_alone, greedy = alone(model, each)
            assert found.log_probability == pytest.approx(sum_alone, abs=1e-4)
            assert found.greedy == greedy
            assert found.tokens == len(each.ids) - each.first


@pytest.mark.skipif(kernels.library() is None, reason="the engine doesn't run here")
@pytest.mark.parametrize("layout", ["gpt2", "llama", "qwen3", "mistral"])
@pytest.mark.parametrize(("pays", "logits"), [(16, 2**25), (1, 61 * 3), (1000, 61)])
def test_the_engine_gives_each_request_what_it_has_alone(layout, pays, logits, monkeypatch):
    monkeypatch.setattr(likelihood, "ALONE", pays)
    monkeypatch.setattr(likelihood, "LOGITS", logits)
    model, given = network(layout), requests()
    places = tuple(range(given[5].first, len(given[5].ids)))[::2]
    given.append(replace(given[5], scored=places))
    scorer = scorer_of(model, pick_precision("fp32", torch.device("cpu")), None)
    assert isinstance(scorer, RowScorer)
    shares = []
    found = scorer.score_ids(given, shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    for one, each in zip(found, given, strict=True):
        assert [one] == scorer.score_ids([each])  # to the last bit
        sum_alone, greedy = alone(model, each)
        assert one.log_probability == pytest.approx(sum_alone, abs=1e-4)
        assert (one.greedy, one.tokens) == (greedy, len(each.places))
    assert found[::-1] == scorer.score_ids(given[::-1])
    assert scorer.score_ids([]) == []


def test_rows_copy_what_they_share_and_read_it_once(monkeypatch):
    scorer = scorer_of(network("llama"), pick_precision("fp32", torch.device("cpu")), None)
    if not isinstance(scorer, RowScorer):
        pytest.skip("the engine doesn't run here")
    seen, read = [], EngineRows.read
    monkeypatch.setattr(
        EngineRows,
        "read",
        lambda rows, parts: seen.append(sum(len(p.tokens) for p in parts)) or read(rows, parts),
    )
    prefix = tuple(range(30))
    rows = [(*prefix, 40 + row, 50, 51) for row in range(4)]
    scorer.score_ids([Request((*row, label), 33) for row in rows for label in (1, 2, 3)])
    # the first row; then what others have beyond it, and the token before each label anew
    assert seen[0] == 33
    assert sum(seen) == 33 + 3 * 3 + 8


def test_only_the_places_that_count_are_summed():
    draw = random.Random(4)
    given = [
        replace(
            each,
            scored=tuple(
                sorted(
                    draw.sample(
                        range(each.first, len(each.ids)),
                        draw.randint(1, len(each.ids) - each.first),
                    )
                )
            ),
        )
        for each in requests(seed=2)
    ]
    assert any(len(each.places) < len(each.ids) - each.first for each in given)
    model = network("llama")
    for found, each in zip(Scorer(model, None).score_ids(given), given, strict=True):
        sum_alone, greedy = alone(model, each)
        assert found.log_probability == pytest.approx(sum_alone, abs=1e-4)
        assert (found.greedy, found.tokens) == (greedy, len(each.places))


def test_what_requests_share_is_read_once(monkeypatch):
    model, seen = network("llama"), []
    states = model.states
    monkeypatch.setattr(
        model, "states", lambda ids, **more: seen.append(ids.shape[1]) or states(ids, **more)
    )
    prefix = tuple(range(30))
    rows = [(*prefix, 40 + row, 50, 51) for row in range(4)]
    given = [Request((*row, label), 33) for row in rows for label in (1, 2, 3)]
    scorer = Scorer(model, None)
    scorer.score_ids(given)
    assert seen == [30, 12]  # the prefix, and three tokens of each row
    seen.clear()
    scorer.score_ids(given[:3])  # the prefix is still in the cache
    assert seen == [3]
    seen.clear()
    monkeypatch.setitem(likelihood.TOKENS, "cpu", 6)
    scorer.score_ids(given)
    assert seen == [6, 6]


def pairs() -> list[tuple[str, str]]:
    """All kinds of requests: ordinary, a space at the end, a merging boundary, empty, too long."""
    draw, found = random.Random(1), []
    text = " ".join(SENTENCES * 40)
    for number in range(200):
        place, cut = draw.randrange(len(text) - 60), draw.randrange(3, 20)
        piece = text[place : place + cut + 8].strip()
        after = draw.choice([" a small red cat", " go", " evening!", "x y"])
        kind = number % 5
        if kind == 0:
            found.append((f"{piece}:", after))
        elif kind == 1:
            found.append((f"{piece}: ", after.strip()))
        elif kind == 2:
            found.append((piece[:-3], piece[-3:] + after))
        elif kind == 3:
            found.append(("", piece))
        else:
            found.append((text[place : place + 400], after))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return decoder(HeadConfig("language"), "llama").save(tmp_path_factory.mktemp("gpt") / "model")


@pytest.fixture(scope="module")
def scorer(folder):
    model = bedstone.load(folder)
    return Scorer(for_inference(model.network, torch.float32), model.tokenizer)


def encoded(tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """A pair as lm-evaluation-harness encodes it (`TemplateLM.loglikelihood`, version 0.4.13)."""
    if not context:
        own = tokenizer.encode(continuation, add_special_tokens=False)
        first = tokenizer.bos_token_id or tokenizer.eos_token_id
        return ([first], own) if own[0] != first else (own[:1], own[1:])
    spaces = len(context) - len(context.rstrip())
    if spaces:
        continuation = context[-spaces:] + continuation
        context = context[:-spaces]
    before = tokenizer.encode(context)
    return before, tokenizer.encode(context + continuation)[len(before) :]


def by_transformers(folder) -> list[tuple[float, list[int], bool, int]]:
    """Of each pair: its log-probability, its ids, whether they are greedy, and tokens cut."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for pair in pairs():
        before, own = encoded(tokenizer, *pair)
        read = (before + own)[-(CONTEXT + 1) :][:-1]
        with torch.no_grad():
            known = model(torch.tensor([read])).logits[0].float().log_softmax(-1)[-len(own) :]
        total = known.gather(-1, torch.tensor(own)[:, None]).sum().item()
        cut = max(len(before) + len(own) - CONTEXT - 1, 0)
        found.append((total, own, known.argmax(-1).tolist() == own, cut))
    return found


def test_equals_transformers_by_the_rules_of_lm_eval(folder, scorer):
    pytest.importorskip("transformers")
    wanted = by_transformers(folder)
    for pair, found, want in zip(pairs(), scorer.score(pairs()), wanted, strict=True):
        total, own, greedy, cut = want
        assert found.log_probability == pytest.approx(total, abs=1e-4), pair
        assert (found.greedy, found.tokens, found.cut) == (greedy, len(own), cut)
        assert found.bytes == len(pair[1].encode())


# Of the first pairs, from `by_transformers`.
FROZEN = [-35.1354, -23.4306, -28.7194, -89.5374, -23.9222, -15.4616, -55.7318, -63.8133, -34.5816]
FROZEN += [-16.8403, -53.4529, -27.0063, -23.9449, -68.0431, -32.3646, -16.9551, -17.3285, -65.9825]
FROZEN += [-82.3553, -34.7942]


def test_equals_frozen_numbers(scorer):
    found = [each.log_probability for each in scorer.score(pairs()[: len(FROZEN)])]
    assert found == pytest.approx(FROZEN, abs=1e-4)


def test_equals_lm_eval(folder, scorer):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    more = {"batch_size": 8, "logits_cache": False}  # it mixes up texts that are cut at two places
    peer = HFLM(pretrained=str(folder), device="cpu", dtype="float32", **more)
    wanted_pairs = [Instance("loglikelihood", {}, pair, 0) for pair in pairs()]
    theirs = peer.loglikelihood(wanted_pairs, disable_tqdm=True)
    for found, (want, greedy) in zip(scorer.score(pairs()), theirs, strict=True):
        assert found.log_probability == pytest.approx(want, abs=1e-4)
        assert found.greedy == greedy
    texts = [" ".join(SENTENCES * times) for times in (1, 3, 10)] + ["go"]
    rolled = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    wanted = peer.loglikelihood_rolling(rolled, disable_tqdm=True)
    for found, want in zip(scorer.rolling(texts), wanted, strict=True):
        assert found.log_probability == pytest.approx(want, rel=1e-6)


def test_rolling_scores_every_token_once(scorer):
    text = " ".join(SENTENCES * 5)
    ids = scorer.tokenizer.encode(text)
    (found,) = scorer.rolling([text])
    assert found.tokens == len(ids) > 2 * CONTEXT
    assert found.bytes == len(text.encode())
    (short,) = scorer.rolling(["a small red cat"])
    (pair,) = scorer.score([("", "a small red cat")])
    assert short.log_probability == pytest.approx(pair.log_probability, abs=1e-5)


def test_a_context_that_is_cut_is_said(scorer, caplog):
    text = " ".join(SENTENCES * 10)
    with caplog.at_level(logging.WARNING):
        found = scorer.score([(text, " go"), ("a cat", " go")])
    assert "1 of 2 contexts are longer than the model's context, 64 tokens" in caplog.text
    assert found[0].cut > 100 and not found[1].cut
    assert f"{found[0].cut:,} tokens" in caplog.text


@pytest.mark.parametrize(
    ("context", "continuation", "words"),
    [
        ("a cat", "", "no token of its own"),
        ("a cat", " ".join(SENTENCES * 3), "Shorten it"),
        ("a \ud800", "cat", "half a character"),
    ],
)
def test_what_cannot_be_scored_is_named(scorer, context, continuation, words):
    with pytest.raises(BedstoneError, match=words) as error:
        scorer.score([("go", " go"), (context, continuation)])
    assert "requests[1]" in str(error.value)
    assert scorer.score([]) == []
