"""Sampling: the same kept tokens and probabilities as transformers; draws as probabilities say."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from bedstone.errors import BedstoneError
from bedstone.generation import sampling
from bedstone.generation.sampling import Sampling, draw


def logits(rows: int, vocabulary: int, seed: int, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=generator) * spread


def theirs(scores: torch.Tensor, ids: torch.Tensor, how: Sampling) -> torch.Tensor:
    """In the order of `GenerationMixin._get_logits_processor`."""
    chain: list = []
    if how.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(how.repetition_penalty))
    if how.temperature != 1:
        chain.append(TemperatureLogitsWarper(how.temperature))
    if how.top_k:
        chain.append(TopKLogitsWarper(how.top_k))
    if how.top_p < 1:
        chain.append(TopPLogitsWarper(how.top_p))
    if how.min_p > 0:
        chain.append(MinPLogitsWarper(how.min_p))
    for each in chain:
        scores = each(ids, scores)
    return scores


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.sampled_from([5, 64, 1500]),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 7, 5000]),
    top_p=st.sampled_from([0.05, 0.5, 0.93, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.7]),
    penalty=st.sampled_from([0.8, 1.0, 1.3]),
)
def test_distribution_is_that_of_transformers(
    seed, vocabulary, spread, temperature, top_k, top_p, min_p, penalty
):
    scores = logits(3, vocabulary, seed, spread)
    ids = torch.randint(0, vocabulary, (3, 9), generator=torch.Generator().manual_seed(seed))
    how = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
    )
    ours = how.warp(scores, ids.tolist())
    expected = theirs(scores, ids, how)
    differ = ours.isfinite() != expected.isfinite()
    if differ.any():
        # The two sum probabilities in opposite orders, so a token that stands within rounding of
        # the limit may fall on either side: it alone, and only there.
        assert top_p < 1 and differ.sum(-1).max() == 1
        warped = theirs(scores, ids, replace(how, top_p=1.0, min_p=0.0)).double().softmax(-1)
        own = (warped * differ).amax(-1, keepdim=True)
        before = (warped * (warped > own)).sum(-1)
        edge = torch.stack((before - top_p, before + own[:, 0] - top_p)).abs().amin(0)
        assert edge[differ.any(-1)].max() < 1e-5
    ours, expected = (each.masked_fill(differ, -math.inf) for each in (ours, expected))
    torch.testing.assert_close(ours.softmax(-1), expected.softmax(-1))


def halves(*values: float) -> torch.Tensor:
    """Logits of probabilities that fp32 holds exactly, and whose sums it does."""
    assert sum(values) == 1
    found = torch.tensor([values]).log()
    assert torch.equal(found.softmax(-1), torch.tensor([values]))
    return found


@pytest.mark.parametrize(
    ("p", "kept"),
    [(0.0, 1), (0.25, 1), (0.5, 1), (0.5001, 2), (0.74, 2), (0.75, 2), (0.76, 3), (0.875, 3)],
)
def test_top_p_keeps_the_fewest_that_reach_it(p, kept):
    """Those before a token may not have reached it; the one that reaches it is kept."""
    scores = halves(0.5, 0.25, 0.125, 0.0625, 0.0625)
    assert sampling.top_p(scores, p).isfinite()[0].tolist() == [place < kept for place in range(5)]
    assert sampling.top_p(scores.flip(-1), p).isfinite().sum() == kept


def test_min_p_keeps_what_is_exactly_as_likely():
    scores = halves(0.5, 0.25, 0.125, 0.125)
    for p, kept in ((0.0, 4), (0.25, 4), (0.26, 2), (0.5, 2), (0.51, 1), (1.0, 1)):
        assert sampling.min_p(scores, p).isfinite().sum() == kept
    assert sampling.min_p(torch.zeros(1, 5), 1.0).isfinite().all()


def test_top_p_comes_before_min_p():
    """Before top-p the tail takes a share of what top-p counts; after it, it would not."""
    scores = torch.tensor([[0.4, 0.2, 0.1, 0.1, 0.1, 0.1]]).log()
    how = Sampling(temperature=1.0, top_p=0.55, min_p=0.3)
    # 0.4 + 0.2 reach 0.55; had the tail gone first, 0.4 of 0.6 would.
    assert how.warp(scores, [[]]).isfinite()[0].tolist() == [True] * 2 + [False] * 4


def test_cuts_come_in_the_published_order():
    cuts = ("temperature", "top_k", "top_p", "min_p", "typical", "epsilon_cutoff", "eta_cutoff")
    called: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in cuts:
            plain = getattr(sampling, name)
            patch.setattr(
                sampling, name, lambda *a, name=name, plain=plain: called.append(name) or plain(*a)
            )
        Sampling(
            temperature=0.9,
            top_k=9,
            top_p=0.9,
            min_p=0.01,
            typical_p=0.9,
            epsilon_cutoff=1e-4,
            eta_cutoff=1e-4,
        ).warp(logits(2, 20, seed=0), [[], []])
    assert [name for name in called if name in cuts][: len(cuts) - 1] == list(cuts[:-1])
    assert "eta_cutoff" in called


@pytest.mark.parametrize(
    ("number", "token"),
    [(0.0, 1), (0.2499, 1), (0.2501, 2), (0.4999, 2), (0.5001, 4), (1 - 2**-53, 4)],
)
def test_a_draw_inverts_the_cumulative_distribution(number, token, monkeypatch):
    """The token at whose part of 0 to 1 the number stands; never one without a part."""
    scores = torch.tensor([[0.0, 0.25, 0.25, 0.0, 0.5, 0.0]]).log()
    monkeypatch.setattr(
        sampling.torch, "rand", lambda *a, **k: torch.tensor([number], dtype=torch.float64)
    )
    assert draw(scores, [torch.Generator()]).tolist() == [token]


def test_a_draw_never_runs_past_probabilities_that_sum_to_less_than_one(monkeypatch):
    """In fp32 the probabilities of a large vocabulary sum to a little less or more than 1."""
    monkeypatch.setattr(
        sampling.torch, "rand", lambda *a, **k: torch.tensor([1 - 2**-53], dtype=torch.float64)
    )
    for seed in range(20):
        scores = logits(1, 50_000, seed, spread=0.5)
        scores[:, 40_000:] = -math.inf
        assert draw(scores, [torch.Generator()]).item() < 40_000


def test_repetition_penalty_reads_each_rows_own_history():
    scores = torch.tensor([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0], [2.0, -2.0, 1.0]])
    found = sampling.repetition_penalty(scores, [[0, 0, 1], [2], []], 2.0)
    expected = torch.tensor([[1.0, -4.0, 1.0], [2.0, -2.0, 0.5], [2.0, -2.0, 1.0]])
    assert torch.equal(found, expected)


def test_repetition_penalty_passes_over_ids_past_the_vocabulary():
    scores = torch.ones(1, 3)
    assert torch.equal(sampling.repetition_penalty(scores, [[7, 1]], 2.0)[0, 1], torch.tensor(0.5))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 5), length=st.integers(1, 30))
def test_banned_ngrams_are_those_of_transformers(seed, size, length):
    ids = torch.randint(0, 4, (3, length), generator=torch.Generator().manual_seed(seed))
    scores = logits(3, 6, seed)
    found = sampling.no_repeat_ngram(scores, ids.tolist(), size)
    assert torch.equal(found, NoRepeatNGramLogitsProcessor(size)(ids, scores))


def test_banned_ngrams_are_each_rows_own():
    scores = torch.zeros(3, 5)
    found = sampling.no_repeat_ngram(scores, [[1, 2, 3, 1], [1, 9, 1], [1]], 2).isfinite()
    assert found.tolist() == [[True, True, False, True, True], [True] * 5, [True] * 5]


def test_says_when_every_token_would_be_a_repeat():
    how = Sampling(no_repeat_ngram=1)
    assert how.choose(torch.zeros(1, 3), [[0, 1]], []).tolist() == [2]
    with pytest.raises(BedstoneError, match=r"sampling\.no_repeat_ngram: with 1"):
        how.choose(torch.zeros(2, 3), [[0], [0, 1, 2]], [])


def test_top_p_sorts_all_where_the_distribution_is_flat():
    scores = torch.zeros(1, 4 * sampling.LIKELY)
    kept = sampling.top_p(scores, 0.75).isfinite().sum()
    assert abs(int(kept) - 3 * sampling.LIKELY) <= 1


@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_other_cuts_are_those_of_transformers(spread, seed):
    scores, ids = logits(4, 300, seed, spread), torch.zeros(4, 1, dtype=torch.long)
    pairs = [
        (sampling.typical, TypicalLogitsWarper, (0.2, 0.9)),
        (sampling.epsilon_cutoff, EpsilonLogitsWarper, (1e-4, 3e-3, 0.5)),  # 0.5: none is likely
        (sampling.eta_cutoff, EtaLogitsWarper, (1e-4, 3e-3, 0.3)),
    ]
    for ours, made, values in pairs:
        for value in values:
            found, expected = ours(scores, value), made(value)(ids, scores)
            assert torch.equal(found.isfinite(), expected.isfinite()), (made, value)
            assert found.isfinite().any(-1).all()


def test_top_p_looks_at_each_row():
    """A flat row needs all of its tokens, whatever the sure row beside it does."""
    scores = torch.zeros(2, 4 * sampling.LIKELY)
    scores[0, 7] = 50.0
    kept = sampling.top_p(scores, 0.75).isfinite().sum(-1)
    assert kept[0] == 1 and abs(int(kept[1]) - 3 * sampling.LIKELY) <= 1


def test_top_k_keeps_ties():
    assert sampling.top_k(torch.tensor([[3.0, 1.0, 1.0, 0.0]]), 2).isfinite().sum() == 3


@pytest.mark.parametrize(
    "how",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_k=8),
        Sampling(temperature=1.3, top_p=0.8),
        Sampling(temperature=1.0, min_p=0.1, repetition_penalty=1.4),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(how):
    """Pearson's chi-square at the 99.9 % point, by the Wilson-Hilferty approximation."""
    draws = 20_000
    row = logits(1, 20, seed=5, spread=1.5)
    history = [[1, 2, 3]]
    expected = how.warp(row, history).softmax(-1)[0].double() * draws
    generators = [torch.Generator().manual_seed(seed) for seed in range(draws // 100)]
    counts = torch.zeros(20, dtype=torch.double)
    for _ in range(100):
        chosen = how.choose(row.expand(len(generators), -1), history * len(generators), generators)
        counts += chosen.bincount(minlength=20)
    assert counts[expected == 0].sum() == 0
    live = expected > 5
    statistic = ((counts - expected)[live] ** 2 / expected[live]).sum().item()
    freedom = int(live.sum()) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**63 - 1))
def test_never_draws_what_has_no_probability(seed):
    row = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0, -math.inf]])
    assert draw(row, [torch.Generator().manual_seed(seed)]).item() in (1, 3)


def test_a_draw_doesnt_depend_on_its_neighbours():
    scores = logits(4, 50, seed=1)
    how = Sampling(temperature=1.0, top_p=0.9)
    together = how.choose(scores, [[]] * 4, Sampling(seed=7).generators(4))
    for row, generator in enumerate(Sampling(seed=7).generators(4)):
        assert how.choose(scores[row : row + 1], [[]], [generator])[0] == together[row]


def test_greedy_takes_the_likeliest_after_the_penalty():
    scores = torch.tensor([[3.0, 2.0]])
    assert Sampling().choose(scores, [[0]], []).item() == 0
    assert Sampling(repetition_penalty=2.0).choose(scores, [[0]], []).item() == 1


def test_no_seed_gives_fresh_generators():
    first, second = Sampling().generators(1), Sampling().generators(1)
    assert first[0].initial_seed() != second[0].initial_seed()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", -0.1),
        ("typical_p", 0.0),
        ("epsilon_cutoff", 1.0),
        ("eta_cutoff", -0.1),
        ("top_p", 1.1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("stop", ("",)),
        ("seed", -1),
    ],
)
def test_refuses_what_is_out_of_range(name, value):
    with pytest.raises(BedstoneError, match=f"sampling.{name}.*expected"):
        Sampling(**{name: value})


def test_one_stop_text_may_stand_alone():
    assert Sampling(stop="end").stop == ("end",)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [1e-7, 1e-40, 1e-320, 5e-324])
@pytest.mark.parametrize("spread", [1e-3, 3.0, 1e30])
def test_temperatures_near_zero_draw_the_likeliest_token(value, spread):
    scores = logits(4, 300, seed=0, spread=spread)
    scores[0, 7] = -math.inf
    warped = Sampling(temperature=value).warp(scores, [[]] * 4)
    assert torch.equal(warped.softmax(-1).argmax(-1), scores.argmax(-1))
    drawn = draw(warped, [torch.Generator().manual_seed(n) for n in range(4)])
    assert (drawn < 300).all()
    if spread > 1:
        assert torch.equal(drawn, scores.argmax(-1))


@pytest.mark.parametrize("penalty", [1e-46, 5e-324, 1e40, 1e300])
def test_extreme_penalties_draw_inside_the_vocabulary(penalty):
    scores = logits(2, 300, seed=1)
    history = [list(range(300)), [3, 4]]
    for temperature in (1.0, 1e-40):
        how = Sampling(temperature=temperature, repetition_penalty=penalty)
        warped = how.warp(scores, history)
        assert warped.softmax(-1).isfinite().all()
        assert (how.choose(scores, history, how.generators(2)) < 300).all()
