"""Losses of preferences: TRL's figures, gradients, and what a batch's form doesn't change.

The figures are those of TRL 1.16.0 on the same network and rows; `test_preference_loss_trl.py`
computes them anew where it is installed.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

from bedstone.objectives.preferences import (
    JudgedLoss,
    PairPreferenceLoss,
    RewardLoss,
    answer_log_probs,
    answer_scores,
    log_ratios,
)
from preference_cases import (
    BETA,
    PAIR_LOSSES,
    PAIRS,
    SCORE,
    gradient_norm,
    judged_batch,
    network,
    pair_batch,
    with_reference,
)

NEAR: dict[str, Any] = {"rel": 1e-5, "abs": 1e-5}
# The mean loss and the norm of its gradient.
EXPECTED = {
    "sigmoid": (0.694857, 2.387622),
    "hinge": (0.768680, 4.065202),
    "ipo": (1.529219, 6.889893),
    "robust": (0.608382, 4.194332),
    "sigmoid_norm": (0.657061, 0.628760),
    "sigmoid_sft": (1.944236, 2.832924),
}
RATIOS = [-0.205236, 1.735657, 1.839970, 1.046040, -2.110100]
RATIOS += [-2.869520, 0.257496, -0.847054, 0.340754, 2.181850]
SCORES = [0.802397, -0.163120, 0.796222, 0.450060, 0.067271]
SCORES += [0.550530, -0.162409, 0.104718, 0.278195, -0.104935]


@pytest.mark.parametrize("case", PAIR_LOSSES)
def test_pairs_as_trl(case: str) -> None:
    loss, flipped, sft = PAIR_LOSSES[case]
    batch, learner = with_reference(pair_batch()), network(3)
    total, count = PairPreferenceLoss(loss, BETA, flipped, sft)(learner, batch)
    norm = gradient_norm(learner, total / count)
    assert (float(total.detach() / count), norm) == pytest.approx(EXPECTED[case], **NEAR)
    found = log_ratios(answer_log_probs(learner, batch), batch)
    assert found.tolist() == pytest.approx(RATIOS, **NEAR)


@pytest.mark.parametrize(
    ("weights", "lower", "expected"),
    [
        ((1.0, 1.0), 0.0, (0.441778, 0.899888)),
        ((0.7, 1.3), 0.0, (0.425356, 0.837684)),
        ((0.7, 1.3), 1.0, (0.426078, 0.830523)),
    ],
)
def test_judged_as_trl(
    weights: tuple[float, float], lower: float, expected: tuple[float, float]
) -> None:
    batch, learner = with_reference(judged_batch(), lower), network(3)
    total, count = JudgedLoss(BETA, *weights)(learner, batch)
    norm = gradient_norm(learner, total / count)
    assert (float(total.detach() / count), norm) == pytest.approx(expected, **NEAR)


@pytest.mark.parametrize(
    ("centring", "margins", "expected"),
    [
        (0.0, False, (0.579257, 2.295456)),
        (0.0, True, (1.017498, 3.321128)),
        (0.05, False, (0.612056, 2.487507)),
        (0.05, True, (1.050297, 3.498207)),
    ],
)
def test_rewards_as_trl(centring: float, margins: bool, expected: tuple[float, float]) -> None:
    batch, learner = pair_batch(scored=True), network(3, SCORE)
    if not margins:
        batch = replace(batch, margins=torch.zeros(PAIRS))
    total, count = RewardLoss(centring)(learner, batch)
    norm = gradient_norm(learner, total / count)
    assert (float(total.detach() / count), norm) == pytest.approx(expected, **NEAR)
    assert answer_scores(learner, batch).tolist() == pytest.approx(SCORES, **NEAR)


def test_log_probabilities_are_those_of_each_answer_alone() -> None:
    batch, learner = pair_batch(), network(3)
    found = answer_log_probs(learner, batch)
    for number, (start, end) in enumerate(batch.rows.spans):
        ids = batch.rows.ids[:, start:end]
        logp = learner(ids).log_softmax(-1)[0]
        own = batch.targets[batch.owners == number]
        assert int(found.counts[number]) == len(own)
        places = range(ids.shape[1] - len(own) - 1, ids.shape[1] - 1)
        alone = sum(float(logp[at, token]) for at, token in zip(places, own, strict=True))
        assert float(found.sums[number]) == pytest.approx(alone, **NEAR)


def test_at_the_reference_nothing_is_preferred() -> None:
    with torch.no_grad():
        batch = pair_batch()
        batch = replace(batch, reference=answer_log_probs(network(3), batch).sums)
        loss, _ = PairPreferenceLoss()(network(3), batch)
    assert float(loss) / PAIRS == pytest.approx(0.693147, **NEAR)


def test_the_halves_of_a_batch_are_its_windows() -> None:
    batch, learner = with_reference(judged_batch()), network(3)
    whole = answer_log_probs(learner, batch)
    for number in (0, 1):
        part = batch.half(number)
        found = answer_log_probs(learner, part)
        assert torch.allclose(found.sums, whole.sums.chunk(2)[number], atol=1e-5)
        assert torch.equal(found.counts, whole.counts.chunk(2)[number])
        assert torch.equal(part.reference, batch.reference.chunk(2)[number])


def test_nothing_is_learnt_from_answers_to_other_prompts() -> None:
    batch, learner = with_reference(judged_batch(), 1.0), network(3)
    ratios = log_ratios(answer_log_probs(learner, batch), batch)
    away = ratios.chunk(2)[1]
    assert float(away.mean()) > 0
    away.retain_grad()
    JudgedLoss(BETA).of(ratios.chunk(2)[0], away, batch.labels).sum().backward()
    assert away.grad is None
