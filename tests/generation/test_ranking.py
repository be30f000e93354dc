"""Ranked candidates: exact log-probabilities, prompts read once."""

import pytest
import torch
from test_beam import PROMPTS, Captioner, network

from bedstone.errors import BedstoneError
from bedstone.generation import ranking
from bedstone.generation.ranking import rank

CANDIDATES = [[5, 7], [1], [2, 3, 4, 5, 6], [5, 8, 9], [1, 1], [46], [5, 7]]


def full(model, prompt, candidate) -> float:
    with torch.no_grad():
        known = model.head(model.states(torch.tensor([[*prompt, *candidate]])))[0].log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(candidate) - 1)
    return sum(known[place, token].item() for place, token in zip(places, candidate, strict=True))


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    return network(request.param)


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["several", "one"])
@pytest.mark.parametrize("tokens", [ranking.TOKENS, 1], ids=["one group", "one by one"])
@pytest.mark.parametrize("logits", [ranking.LOGITS, 1], ids=["head at once", "head in parts"])
def test_equals_the_full_pass(model, monkeypatch, prompts, tokens, logits):
    monkeypatch.setattr(ranking, "TOKENS", tokens)
    monkeypatch.setattr(ranking, "LOGITS", logits)
    found = rank(model, prompts, CANDIDATES)
    want = torch.tensor([[full(model, one, each) for each in CANDIDATES] for one in prompts])
    torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-5)


def test_all_next_tokens_sum_to_one(model):
    found = rank(model, PROMPTS, [[token] for token in range(47)])
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(len(PROMPTS)))


def test_prompts_are_read_once(model, monkeypatch):
    seen = []
    states = model.states
    monkeypatch.setattr(
        model, "states", lambda ids, **more: seen.append(tuple(ids.shape)) or states(ids, **more)
    )
    monkeypatch.setattr(ranking, "TOKENS", 4 * 15 * 3)  # three candidates at a time
    rank(model, PROMPTS, CANDIDATES)
    assert seen == [(4, 11), (12, 1), (8, 4)]


@pytest.mark.parametrize("each", [1, 2])
def test_prompts_and_candidates_share_memories(each):
    memory = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))
    prompts = PROMPTS[: 2 * each]
    together = rank(Captioner(memory).eval(), prompts, CANDIDATES)
    for number, prompt in enumerate(prompts):
        alone = Captioner(memory[[number // each]]).eval()
        want = torch.tensor([full(alone, prompt, candidate) for candidate in CANDIDATES])
        torch.testing.assert_close(together[number], want, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("prompts", "candidates", "words"),
    [
        (PROMPTS, [], "candidates: the list is empty"),
        (PROMPTS, [[1], []], r"candidates\[1\]: is empty"),
        (PROMPTS, [[1], [2, 47]], r"candidates\[1\]: has id 47"),
        (PROMPTS, [[-1]], "id -1"),
        (PROMPTS, [[1] * 30], "30 tokens; the longest prompt leaves 29 of the model's context, 40"),
        ([[1], []], [[1]], r"prompts\[1\]: is empty"),
    ],
)
def test_refuses_what_cant_be_ranked(model, prompts, candidates, words):
    with pytest.raises(BedstoneError, match=words):
        rank(model, prompts, candidates)


def test_no_prompts_no_scores(model):
    assert rank(model, [], CANDIDATES).shape == (0, len(CANDIDATES))
