"""Losses of policies: signs, clipping, answers that don't count, the critic; TRL's figures.

The figures are those of TRL 1.16.0 on the same network and rollouts; `test_policy_loss_trl.py`
computes them anew where it is installed.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bedstone.objectives.policy import (
    Critic,
    PolicyLoss,
    clipped_tokens,
    denominator,
    generalised_advantages,
    group_advantages,
    kl_terms,
    leave_one_out,
    policy_terms,
    ratios,
    token_weights,
    value_terms,
    whitened,
    with_spread,
)
from policy_cases import CASES, mean_loss, policy_batch, policy_loss
from preference_cases import gradient_norm, network

# The mean loss and the norm of its gradient.
EXPECTED = {
    "dapo": (-0.061387, 1.321379),
    "grpo": (0.016581, 1.194329),
    "dr_grpo": (-0.035311, 0.678331),
    "gspo": (0.006028, 1.162954),
    "rloo": (0.031858, 8.937428),
}
REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 3.0]])


@pytest.mark.parametrize("name", EXPECTED)
def test_losses_are_those_of_trl(name: str) -> None:
    learner = network(3)
    loss = mean_loss(CASES.get(name), learner)
    found = loss.item(), gradient_norm(learner, loss)
    assert found == pytest.approx(EXPECTED[name], rel=1e-5, abs=1e-5)


def test_advantages_of_groups() -> None:
    assert with_spread(REWARDS).tolist() == [True, False, True]
    found = group_advantages(REWARDS)
    assert found[0].tolist() == [0.5, -0.5, -0.5, 0.5] and found[1].tolist() == [0.0] * 4
    scaled = group_advantages(REWARDS, None, "group")
    assert scaled[0, 0] == pytest.approx(0.5 / (REWARDS[0].std() + 1e-4))
    assert scaled[2, 3] == pytest.approx(2.25 / (REWARDS[2].std() + 1e-4))
    of_batch = group_advantages(REWARDS, None, "batch")
    assert of_batch[0, 0] == pytest.approx(0.5 / (REWARDS.std() + 1e-4))
    assert leave_one_out(REWARDS)[2].tolist() == pytest.approx([-1.0, -1.0, -1.0, 3.0])


def test_answers_that_do_not_count() -> None:
    kept = torch.tensor([[True, True, False, False], [True] * 4, [False, True, True, False]])
    assert with_spread(REWARDS, kept).tolist() == [True, False, False]
    found = leave_one_out(REWARDS, kept)
    assert found.tolist() == [[1.0, -1.0, 0.0, 0.0], [0.0] * 4, [0.0] * 4]
    alone = torch.tensor([[True, False, False, False]] * 3)
    for made in (group_advantages(REWARDS, alone, "group"), leave_one_out(REWARDS, alone)):
        assert not made.any() and made.isfinite().all()
    nothing = torch.zeros(3, 4, dtype=torch.bool)
    assert not group_advantages(REWARDS, nothing, "batch").any()


def test_equal_rewards_are_equal_in_spite_of_rounding() -> None:
    sums = torch.tensor([[0.1 + 0.2, 0.3]], dtype=torch.float64)
    assert not with_spread(sums).any()
    assert with_spread(torch.tensor([[1000.0, 1000.1]])).all()


def test_clipping_is_one_sided() -> None:
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    terms = policy_terms(ratio, advantages, 0.2, 0.3)
    assert terms.tolist() == pytest.approx([-1.3, 1.5, -0.5, 0.8, -1.1])
    terms.sum().backward()
    assert ratio.grad is not None
    assert ratio.grad.tolist() == [0.0, 1.0, -1.0, 0.0, -1.0]


def test_tokens_that_are_clipped_are_those_without_gradient() -> None:
    draw = torch.Generator().manual_seed(0)
    ratio = (torch.rand(500, generator=draw) + 0.5).requires_grad_()
    advantages = torch.randn(500, generator=draw) * (torch.rand(500, generator=draw) > 0.1)
    policy_terms(ratio, advantages, 0.2, 0.3).sum().backward()
    assert ratio.grad is not None
    still = (ratio.grad == 0) & (advantages != 0)
    down, up = clipped_tokens(ratio, advantages, 0.2, 0.3)
    assert int(down) == int((still & (advantages < 0)).sum()) > 0
    assert int(up) == int((still & (advantages > 0)).sum()) > 0


def test_the_share_of_clipped_tokens_is_counted_until_it_is_logged() -> None:
    case = CASES["dapo"]
    loss, batch = policy_loss(case), policy_batch(case)
    assert loss.figures() == {}
    log_probs = batch.old + torch.linspace(-0.5, 0.5, len(batch.targets))
    for _ in range(2):  # micro-batches
        loss.of(log_probs, batch)
    ratio = (log_probs - batch.old).exp()
    down = ((ratio < 0.8) & (batch.advantages < 0)).float().mean()
    up = ((ratio > 1.28) & (batch.advantages > 0)).float().mean()
    found = loss.figures()
    assert found == pytest.approx({"clipped_low": float(down), "clipped_high": float(up)})
    assert 0 < found["clipped_low"] < 1 and 0 < found["clipped_high"] < 1
    assert loss.figures() == {}
    loss.of(log_probs, replace(batch, old=None))  # on policy nothing can be clipped
    assert loss.figures() == {}


def test_ratios_of_tokens_sequences_and_answers() -> None:
    owners = torch.tensor([0, 0, 1])
    new, old = torch.tensor([0.3, 0.1, 0.5]), torch.zeros(3)
    assert ratios(new, old, owners, 2, "token").log().tolist() == pytest.approx([0.3, 0.1, 0.5])
    assert ratios(new, old, owners, 2, "sequence").log().tolist() == pytest.approx([0.2, 0.2, 0.5])
    assert ratios(new, old, owners, 2, "product").log().tolist() == pytest.approx([0.4, 0.4, 0.5])


def test_weights_of_tokens() -> None:
    owners = torch.tensor([0, 0, 0, 1])
    assert token_weights(owners, 2, "token").tolist() == [1.0] * 4
    assert token_weights(owners, 2, "sequence").tolist() == pytest.approx([1 / 3] * 3 + [1.0])
    assert token_weights(owners, 2, "constant", 8).tolist() == [0.125] * 4
    assert token_weights(owners, 2, "sum").tolist() == [1.0] * 4
    assert [denominator(4, 2, name) for name in ("token", "sequence", "constant", "sum")] == [
        4, 2, 2, 2,
    ]  # fmt: skip


def test_divergence_is_zero_where_nothing_changed_and_never_below() -> None:
    own, other = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -0.5])
    for name in ("k1", "k2", "k3"):
        assert not kl_terms(own, own, name).any()
    assert kl_terms(own, other, "k1").tolist() == [0.5, -1.5]
    assert (kl_terms(own, other, "k2") > 0).all() and (kl_terms(own, other, "k3") > 0).all()


def test_generalised_advantages() -> None:
    rewards = torch.tensor([[0.0, 1.0, 9.0], [2.0, 9.0, 9.0]])
    values = torch.tensor([[0.5, 0.25, 9.0], [1.0, 9.0, 9.0]])
    lengths = torch.tensor([2, 1])
    found, returns = generalised_advantages(rewards, values, lengths, 0.9, 0.5)
    last = 1.0 - 0.25
    first = 0.9 * 0.25 - 0.5 + 0.9 * 0.5 * last
    assert found[0].tolist() == pytest.approx([first, last, 0.0])
    assert found[1].tolist() == [1.0, 0.0, 0.0] and returns[1].tolist() == [2.0, 0.0, 0.0]
    assert whitened(torch.tensor([3.0])).tolist() == [0.0]
    assert float(whitened(torch.randn(50)).mean().abs()) < 1e-6


def test_values_move_no_further_than_their_clip() -> None:
    values = torch.tensor([1.0, 1.0], requires_grad=True)
    terms = value_terms(values, torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.5]), 0.2)
    assert terms.tolist() == pytest.approx([0.5 * 1.8**2, 0.5 * 0.5**2])
    assert value_terms(values, values, torch.tensor([2.0, 0.5]), 0.0).tolist() == [0.5, 0.125]


class Table(torch.nn.Module):
    """A learner whose states are its weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.states = torch.nn.Parameter(torch.randn(4, 3))
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.critic = Critic(3)


def batch(learner: Table, **more: Any) -> SimpleNamespace:
    made = SimpleNamespace(
        rows=SimpleNamespace(lengths=[3, 2]),
        targets=torch.tensor([0, 1, 2, 3]),
        owners=torch.tensor([0, 0, 0, 1]),
        advantages=torch.tensor([1.0, 1.0, 1.0, -2.0]),
        old=None, reference=None, values=None, returns=None, reward=0.75, target_count=4.0,
        states=lambda learner: learner.states,
    )  # fmt: skip
    return SimpleNamespace(**{**vars(made), **more})


def test_the_value_of_the_loss_is_minus_the_reward() -> None:
    learner = Table()
    total, count = PolicyLoss()(learner, batch(learner))
    assert count == 4.0 and total.item() / count == pytest.approx(-0.75)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_better_answers_become_likelier(temperature: float) -> None:
    learner = Table()
    given = batch(learner)

    def chances() -> torch.Tensor:
        logits = learner.head(learner.states) / temperature
        return logits.log_softmax(-1).gather(1, given.targets[:, None])[:, 0]

    before = chances().detach()
    total, _ = PolicyLoss(temperature=temperature)(learner, given)
    total.backward()
    with torch.no_grad():
        own = learner.states.grad
        assert own is not None
        learner.states -= 0.05 * own
    after = chances().detach()
    assert (after[:3] > before[:3]).all() and after[3] < before[3]
    # the gradient is that of the tempered log-probabilities
    learner.zero_grad()
    expected = torch.autograd.grad(-(given.advantages * chances()).sum(), learner.states)[0]
    total, _ = PolicyLoss(temperature=temperature)(learner, given)
    total.backward()
    torch.testing.assert_close(learner.states.grad, expected)


def test_a_critic_learns_beside_the_policy() -> None:
    learner = Table()
    given = batch(learner, values=torch.zeros(4), returns=torch.ones(4))
    total, _ = PolicyLoss(value=0.5)(learner, given)
    total.backward()
    assert learner.critic.out.bias.grad is not None
    assert float(learner.critic.out.bias.grad) == pytest.approx(-0.5 * 4)
