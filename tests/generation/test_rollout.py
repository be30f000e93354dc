"""Rollouts: what is drawn, with which probability, where answers end."""

from typing import Any

import numpy as np
import pytest
import torch

from bedstone.data.text.reinforcement import lay_answers
from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import generate
from bedstone.generation.rollout import Sampled, _draw, sample_answers
from bedstone.nn.fast import kernels
from bedstone.objectives.policy import sampled_log_probs
from bedstone.runtime import Precision
from preference_cases import network

FP32 = Precision(torch.device("cpu"), torch.float32)
PROMPTS = [[5, 9, 3], [7], [4, 4, 8, 11, 2], [30, 31]]
ENDS = [1, 2]


def sampled(learner: Any, prompts: list[list[int]] = PROMPTS, **more: Any) -> Sampled:
    how: dict[str, Any] = {"group": 3, "max_tokens": 12, "random": np.random.default_rng(0)}
    return sample_answers(learner, prompts, ENDS, precision=FP32, **{**how, **more})


def training_log_probs(learner: Any, found: Sampled, group: int, temperature: float) -> Any:
    prompts = [prompt for prompt in PROMPTS for _ in range(group)]
    laid = lay_answers(prompts, found.ids, found.lengths)
    with torch.no_grad():
        own = sampled_log_probs(learner, laid.states(learner), laid.targets, temperature)
    made = torch.zeros_like(found.log_probs)
    made.view(-1)[laid.places] = own
    return made


@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_training(
    engine: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine and kernels.library() is None:
        pytest.skip(kernels.why_not())
    if not engine:
        monkeypatch.setattr("bedstone.generation.autoregress.decoder_of", lambda *given: None)
    learner = network(3)
    found = sampled(learner, temperature=temperature)
    expected = training_log_probs(learner, found, 3, temperature)
    assert found.real().sum() > 40
    assert float((found.log_probs - expected).abs().max()) < 1e-4
    assert not found.log_probs[~found.real()].any() and not found.ids[~found.real()].any()


def test_weights_are_read_as_they_are_now() -> None:
    learner = network(3)
    before = sampled(learner)
    with torch.no_grad():
        for weight in learner.parameters():
            weight.mul_(1.3)
    after = sampled(learner)
    expected = training_log_probs(learner, after, 3, 1.0)
    assert float((after.log_probs - expected).abs().max()) < 1e-4
    assert before.ids.shape != after.ids.shape or not torch.equal(before.ids, after.ids)


def test_answers_end_with_an_end_token_or_are_cut() -> None:
    found = sampled(network(3), group=16)
    assert 0 < int(found.ended.sum()) < len(found.ended)
    for ids, ended in zip(found.answers(), found.ended.tolist(), strict=True):
        assert (ids[-1] in ENDS) == ended and not set(ids[:-1]) & set(ENDS)
        assert ended or len(ids) == 12
    assert (found.entropy[found.real()] > 0).all()


def test_an_answer_depends_on_its_own_numbers_alone() -> None:
    learner = network(3)
    whole = sampled(learner)
    for rows in (1, 6, 100):
        again = sampled(learner, rows=rows)
        assert torch.equal(again.ids, whole.ids) and torch.equal(again.lengths, whole.lengths)
    first = sampled(learner, PROMPTS[:1])
    assert first.answers() == whole.answers()[:3]
    other = sampled(learner, random=np.random.default_rng(1))
    assert other.answers() != whole.answers()


def test_greedy_answers_are_those_of_generation() -> None:
    learner = network(3)
    found = sampled(learner, group=1, temperature=0.0, random=None)
    from bedstone.generation.sampling import Sampling

    expected = generate(learner, PROMPTS, Sampling(max_tokens=12), eos=ENDS)
    assert found.answers() == [each.ids for each in expected]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_by_their_probabilities(temperature: float) -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]])
    count = 40_000
    numbers = torch.from_numpy(np.random.default_rng(0).random(count))
    tokens, log_probs, entropy = _draw(logits.expand(count, -1), temperature, numbers)
    chances = (logits[0] / temperature).softmax(-1)
    shares = torch.bincount(tokens, minlength=4) / count
    errors = (chances * (1 - chances) / count).sqrt()
    assert ((shares - chances).abs() < 4 * errors).all()
    torch.testing.assert_close(log_probs, chances.log()[tokens])
    assert float(entropy[0]) == pytest.approx(-float((chances * chances.log()).sum()), rel=1e-5)


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(BedstoneError, match="the model's context is 64"):
        sampled(network(3), [[5] * 64])


def test_sampling_without_numbers_to_draw_by_is_refused() -> None:
    with pytest.raises(ValueError, match="random: none was given"):
        sampled(network(0), random=None)
