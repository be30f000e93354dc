"""Estimators of the policy gradient beside the exact one, on a policy small enough to enumerate.

Three tokens, of which the first ends an answer, and at most two tokens an answer: seven answers, so
that expectations over answers, and over groups of three of them, are sums. The policy is a table of
logits for each prefix. Expected gradients are computed here from the definitions; the estimates, of
200,000 sampled answers, by the functions that training calls.
"""

import itertools
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bedstone.objectives.policy import (
    PolicyLoss,
    denominator,
    generalised_advantages,
    group_advantages,
    kl_terms,
    leave_one_out,
    per_answer,
    with_spread,
)

ANSWERS = [(0,), *((a, b) for a in (1, 2) for b in (0, 1, 2))]
PREFIXES = {(): 0, (1,): 1, (2,): 2}
COUNT, GROUP, LIMIT, SAMPLES = len(ANSWERS), 3, 4, 200_001
BETA = 0.3
GROUPS = torch.tensor(list(itertools.product(range(COUNT), repeat=GROUP)))  # (343, 3)
LENGTHS = torch.tensor([len(each) for each in ANSWERS])


def draw(seed: int, *shape: int) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made


LOGITS, REFERENCE, OTHER = (draw(seed, 3, 3) for seed in (1, 2, 3))
REWARDS = draw(4, COUNT) + 0.5  # all different, so groups without spread are of one answer
VALUES = draw(5, 3)  # of the state of each prefix


def token_log_probs(logits: Tensor) -> Tensor:
    """(7, 2) log-probabilities of the tokens of all answers; 0 past their ends."""
    known = logits.log_softmax(-1)
    rows = []
    for answer in ANSWERS:
        own = [known[PREFIXES[answer[:at]], token] for at, token in enumerate(answer)]
        rows.append(torch.stack([*own, *[known.new_zeros(())] * (2 - len(own))]))
    return torch.stack(rows)


def gradients(function, logits: Tensor = LOGITS) -> Tensor:
    """(n, 9) gradients of n values."""
    found: Tensor = torch.autograd.functional.jacobian(function, logits)
    return found.flatten(1)


SCORES = gradients(lambda logits: token_log_probs(logits).flatten()).view(COUNT, 2, 9)
LOG_PROBS = token_log_probs(LOGITS)
CHANCE = LOG_PROBS.sum(1).exp()  # of each answer
assert abs(float(CHANCE.sum()) - 1) < 1e-12
OF_GROUPS = CHANCE[GROUPS].prod(1)


def exact(objective) -> Tensor:
    """The gradient of the expectation of a value of each answer, which may depend on logits."""
    chances = lambda logits: token_log_probs(logits).sum(1).exp()  # noqa: E731
    return gradients(lambda logits: (chances(logits) * objective(logits)).sum()[None])[0]


@dataclass
class Batch:
    """Sampled answers, in the place of `PolicyBatch`."""

    advantages: Tensor
    owners: Tensor
    rows: SimpleNamespace
    old: Tensor | None = None
    reference: Tensor | None = None


def laid(answers: Tensor) -> tuple[Tensor, Tensor]:
    """(M,) the place in a flattened (7, 2) of each token of answers, and (M,) its owner."""
    lengths = LENGTHS[answers]
    owners = torch.arange(len(answers)).repeat_interleave(lengths)
    within = torch.arange(len(owners)) - (lengths.cumsum(0) - lengths)[owners]
    return answers[owners] * 2 + within, owners


def estimate(
    loss: PolicyLoss,
    answers: Tensor,
    advantages: Tensor,
    live: Tensor,
    *,
    old: Tensor | None = None,
) -> Tensor:
    """The gradient of minus the loss, (9,), of (n,) answers.

    Args:
        advantages: (n,), or (M,) of tokens.
        live: (n,) bool, those that are learnt.
        old: logits that they were sampled by.
    """
    logits = LOGITS.clone().requires_grad_()
    chosen = answers[live]
    places, owners = laid(chosen)
    of_tokens = advantages
    if len(advantages) == len(answers):
        of_tokens = advantages[live][owners]
    batch = Batch(
        of_tokens,
        owners,
        SimpleNamespace(lengths=[0] * len(chosen)),
        None if old is None else token_log_probs(old).flatten()[places],
        token_log_probs(REFERENCE).flatten()[places],
    )
    total = loss.of(token_log_probs(logits).flatten()[places], batch).sum()
    count = denominator(int(LENGTHS[answers].sum()), len(answers), loss.normalise)
    (-total / count).backward()
    assert logits.grad is not None
    return logits.grad.flatten()


def sample(chances: Tensor = CHANCE, seed: int = 0) -> Tensor:
    """(n,) answers, groups of three side by side."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(chances, SAMPLES, True, generator=generator)


def check(found: Tensor, expected: Tensor, each: Tensor, chances: Tensor, count: float) -> None:
    """|found - expected| within three standard errors, those of a mean of `count` draws of rows of
    `each` (n, 9), whose mean is `expected`."""
    variance = (chances[:, None] * (each - expected).square()).sum(0)
    errors = (variance / count).sqrt()
    assert float(expected.norm()) > 10 * float(errors.max())  # a gradient of 0 would not pass
    apart = (found - expected).abs()
    assert bool((apart <= 3 * errors + 1e-12).all()), (apart / errors).tolist()


# Methods without bias: the exact gradient of the expected reward, and of the divergence.


def penalised(estimator: str) -> Tensor:
    """(7,) rewards less the divergence of each answer."""
    terms = kl_terms(LOG_PROBS, token_log_probs(REFERENCE), estimator)
    return REWARDS - BETA * terms.sum(1)


def test_reinforce() -> None:
    answers = sample()
    every = torch.ones(SAMPLES, dtype=torch.bool)
    found = estimate(PolicyLoss(normalise="sum"), answers, REWARDS[answers], every)
    expected = exact(lambda logits: REWARDS)
    each = REWARDS[:, None] * SCORES.sum(1)
    torch.testing.assert_close((CHANCE[:, None] * each).sum(0), expected)
    check(found, expected, each, CHANCE, SAMPLES)


@pytest.mark.parametrize("ratio", ["product", "token"])
def test_leave_one_out_is_the_exact_gradient(ratio: str) -> None:
    answers = sample(seed=1)
    grouped = REWARDS[answers].view(-1, GROUP)
    live = with_spread(grouped).repeat_interleave(GROUP)
    loss = PolicyLoss(ratio=ratio, normalise="sum")
    found = estimate(loss, answers, leave_one_out(grouped).flatten(), live)
    expected = exact(lambda logits: REWARDS)
    check(found, expected, one_out(REWARDS), OF_GROUPS, SAMPLES / GROUP)


def one_out(rewards: Tensor) -> Tensor:
    """(343, 9): of each group, the mean of (r - mean of the others) times the score."""
    own = rewards[GROUPS]
    others = (own.sum(1, keepdim=True) - own) / (GROUP - 1)
    return ((own - others)[..., None] * SCORES.sum(1)[GROUPS]).mean(1)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_divergence_in_the_reward(estimator: str) -> None:
    answers = sample(seed=2)
    rewards = penalised(estimator)
    grouped = REWARDS[answers].view(-1, GROUP)
    live = with_spread(grouped).repeat_interleave(GROUP)
    advantages = leave_one_out(rewards[answers].view(-1, GROUP)).flatten()
    loss = PolicyLoss(ratio="product", normalise="sum")
    found = estimate(loss, answers, advantages, live)
    expected = exact(lambda logits: rewards)
    if estimator == "k1":  # then it is the gradient of E r - beta KL(policy, reference)
        own = exact(
            lambda logits: (
                REWARDS - BETA * (token_log_probs(logits) - token_log_probs(REFERENCE)).sum(1)
            )
        )
        torch.testing.assert_close(expected, own)
    check(found, expected, one_out(rewards), OF_GROUPS, SAMPLES / GROUP)


@pytest.mark.parametrize("decay", [1.0, 0.7])
def test_ppo_s_first_step(decay: float) -> None:
    """With lambda 1 a critic changes nothing in the mean, however wrong it is."""
    values = torch.stack([VALUES[[PREFIXES[a[:at]] for at in range(len(a))] + [0] * (2 - len(a))]
                          for a in ANSWERS])  # fmt: skip
    rewards = torch.zeros(COUNT, 2, dtype=torch.float64)
    rewards[torch.arange(COUNT), LENGTHS - 1] = REWARDS
    advantages, returns = generalised_advantages(rewards, values, LENGTHS, 1.0, decay)
    for number, answer in enumerate(ANSWERS):  # by the definition, a sum of errors ahead
        errors = [
            (REWARDS[number] if at == len(answer) - 1 else VALUES[PREFIXES[answer[: at + 1]]])
            - VALUES[PREFIXES[answer[:at]]]
            for at in range(len(answer))
        ]
        for at in range(len(answer)):
            own = sum(decay ** (n - at) * errors[n] for n in range(at, len(answer)))
            torch.testing.assert_close(advantages[number, at], own)
            torch.testing.assert_close(returns[number, at], own + values[number, at])
    answers = sample(seed=3)
    places, _ = laid(answers)
    every = torch.ones(SAMPLES, dtype=torch.bool)
    loss = PolicyLoss(normalise="sum")
    found = estimate(loss, answers, advantages.flatten()[places], every)
    each = (advantages[..., None] * SCORES).sum(1)
    expected = (CHANCE[:, None] * each).sum(0)
    if decay == 1.0:
        torch.testing.assert_close(expected, exact(lambda logits: REWARDS))
    check(found, expected, each, CHANCE, SAMPLES)


def test_answers_of_another_policy_are_weighed_by_their_ratio() -> None:
    others = token_log_probs(OTHER)
    chances = others.sum(1).exp()
    answers = sample(chances, seed=4)
    every = torch.ones(SAMPLES, dtype=torch.bool)
    loss = PolicyLoss(ratio="product", normalise="sum", low=1e9, high=1e9)
    found = estimate(loss, answers, REWARDS[answers], every, old=OTHER)
    expected = exact(lambda logits: REWARDS)
    ratio = (LOG_PROBS - others).sum(1).exp()
    each = (REWARDS * ratio)[:, None] * SCORES.sum(1)
    check(found, expected, each, chances, SAMPLES)


# Methods with bias: the expectation of the estimator itself, over all groups.


def of_groups(
    scale: str, normalise: str, kl: str = "", corrected: bool = True
) -> tuple[Tensor, Tensor]:
    """(343, 9) sums of a group's weighted gradients, and (343,) what they count for below the line;
    groups of equal rewards give 0, by the divergence too."""
    own = REWARDS[GROUPS]
    apart = own - own.mean(1, keepdim=True)
    if scale == "group":
        apart = apart / (own.std(1, keepdim=True) + 1e-4)
    if scale == "batch":
        mean = (CHANCE * REWARDS).sum()
        apart = apart / ((CHANCE * (REWARDS - mean).square()).sum().sqrt() + 1e-4)
    each = apart[..., None, None] * SCORES[GROUPS]  # (343, 3, 2, 9)
    if kl:
        d = LOG_PROBS - token_log_probs(REFERENCE)
        slope = {"k1": torch.ones_like(d), "k2": d, "k3": 1 - torch.exp(-d)}[kl]
        if corrected:  # the ratio is 1, and its gradient is the score
            slope = slope + {"k1": d, "k2": d.square() / 2, "k3": torch.exp(-d) - 1 + d}[kl]
        each = each - BETA * (slope[..., None] * SCORES)[GROUPS]
    lengths = LENGTHS[GROUPS]
    live = (own.max(1).values > own.min(1).values).double()
    weights = {"sequence": 1 / lengths, "constant": torch.full(lengths.shape, 1 / LIMIT)}
    each = each * weights.get(normalise, torch.ones(lengths.shape))[..., None, None]
    below = lengths.sum(1).double() if normalise == "token" else torch.full((343,), float(GROUP))
    return each.sum((1, 2)) * live[:, None], below


def check_groups(scale: str, normalise: str, kl: str, seed: int, corrected: bool = True) -> None:
    answers = sample(seed=seed)
    grouped = REWARDS[answers].view(-1, GROUP)
    live = with_spread(grouped).repeat_interleave(GROUP)
    loss = PolicyLoss(
        normalise=normalise,
        limit=LIMIT,
        kl=BETA if kl else 0.0,
        estimator=kl or "k3",
        corrected=corrected,
    )
    found = estimate(loss, answers, group_advantages(grouped, None, scale).flatten(), live)
    sums, below = of_groups(scale, normalise, kl, corrected)
    mean = (OF_GROUPS * below).sum()
    expected = (OF_GROUPS[:, None] * sums).sum(0) / mean
    # a quotient of means: its errors are those of the sums less the mean times what is below
    each = (sums - expected * below[:, None]) / mean + expected
    check(found, expected, each, OF_GROUPS, SAMPLES / GROUP)


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
@pytest.mark.parametrize("normalise", ["token", "sequence", "constant", "sum"])
def test_groups(scale: str, normalise: str) -> None:
    check_groups(scale, normalise, "", seed=10)


@pytest.mark.parametrize("normalise", ["token", "sequence", "constant", "sum"])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@pytest.mark.parametrize("corrected", [True, False])
def test_divergence_in_the_loss(corrected: bool, kl: str, normalise: str) -> None:
    check_groups("none", normalise, kl, 11, corrected)


def test_what_the_gradients_of_estimators_are() -> None:
    """In the mean: of k1 nothing, of k2 the divergence's at each token; k1's and k3's with the
    ratio."""
    reference = token_log_probs(REFERENCE)
    apart = LOG_PROBS - reference
    means = {}
    for name in ("k1", "k2", "k3"):
        slope = gradients(
            lambda logits, name=name: kl_terms(token_log_probs(logits), reference, name).flatten()
        ).view(COUNT, 2, 9)
        means[name] = (CHANCE[:, None] * slope.sum(1)).sum(0)
    assert float(means["k1"].norm()) < 1e-12
    own = (CHANCE[:, None, None] * apart[..., None] * SCORES).sum((0, 1))
    torch.testing.assert_close(means["k2"], own)
    assert float((means["k3"] - own).norm()) > 0.05 * float(own.norm())
    for name, with_ratio in (("k1", True), ("k2", False), ("k3", True)):
        terms = kl_terms(LOG_PROBS, reference, name) if with_ratio else torch.zeros_like(apart)
        more = (CHANCE[:, None, None] * terms[..., None] * SCORES).sum((0, 1))
        torch.testing.assert_close(means[name] + more, own)
    for name in ("k1", "k3"):  # in the mean they are the divergence itself
        terms = (CHANCE[:, None] * kl_terms(LOG_PROBS, reference, name)).sum()
        if name == "k1":
            exactly = (CHANCE * (LOG_PROBS - reference).sum(1)).sum()
            torch.testing.assert_close(terms, exactly)
        assert float(terms) > 0


def test_a_group_gives_no_gradient_without_spread() -> None:
    answers = torch.tensor([4, 4, 4])
    grouped = REWARDS[answers].view(1, 3)
    assert not with_spread(grouped).any()
    for scale in ("none", "group", "batch"):
        assert not group_advantages(grouped, None, scale).any()
    assert not leave_one_out(grouped).any()


def test_sums_of_answers() -> None:
    found = per_answer(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2]), 3)
    assert found.tolist() == [3.0, 0.0, 4.0]
