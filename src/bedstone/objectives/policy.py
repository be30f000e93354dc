"""Losses of reinforcement learning on answers that a policy sampled: REINFORCE, GRPO, RLOO, PPO.

An answer's reward becomes an advantage, by how much it is better than what was to be expected; the
tokens of better answers are made likelier, as far as clipping allows (Schulman et al., 2017,
https://arxiv.org/abs/1707.06347, equation 7). The methods differ in what is to be expected:

- GRPO: the mean of a group of answers to one prompt (Shao et al., 2024,
  https://arxiv.org/abs/2402.03300, section 4.1.2);
- RLOO: the mean of the others of the group (Ahmadian et al., 2024,
  https://arxiv.org/abs/2402.14740, section 3.3), without bias;
- PPO: a value, learnt for each token.

A group whose rewards are all equal says nothing of which answer is better: it gives no gradient at
all, not by the divergence from the reference either, which would pull back what is solved, and at
the strength of all other terms where most groups are.

Shapes: P prompts, G answers to each, n answers, T tokens of the longest, M tokens of all answers,
laid end to end.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bedstone.objectives.tokens import token_losses

SCALES = ("none", "group", "batch")
NORMALISATIONS = ("token", "sequence", "constant", "sum")
RATIOS = ("token", "sequence", "product")
ESTIMATORS = ("k1", "k2", "k3")
EPSILON = 1e-4  # added to a standard deviation
EQUAL = 1e-6  # rewards of a group that differ by no more, beside their size, are equal


# Advantages.


def with_spread(rewards: Tensor, kept: Tensor | None = None) -> Tensor:
    """Which groups have answers of different rewards, (P,) bool.

    Args:
        rewards: (P, G).
        kept: (P, G) bool, which answers count; None counts all.
    """
    kept = torch.ones_like(rewards, dtype=torch.bool) if kept is None else kept
    most = rewards.masked_fill(~kept, -torch.inf).amax(1)
    least = rewards.masked_fill(~kept, torch.inf).amin(1)
    size = rewards.masked_fill(~kept, 0.0).abs().amax(1)
    return (kept.sum(1) > 1) & (most - least > EQUAL * (1.0 + size))


def group_advantages(rewards: Tensor, kept: Tensor | None = None, scale: str = "none") -> Tensor:
    """GRPO: rewards less the mean of their group, (P, G); 0 in groups without spread.

    Args:
        rewards, kept: as for `with_spread`; answers that don't count have an advantage of 0.
        scale: divides by a standard deviation, of the `group` (Shao et al.) or of the `batch`, or
            by `none`: the group's makes hard and easy prompts weigh more (Liu et al., 2025,
            https://arxiv.org/abs/2503.20783, section 3.1).
    """
    kept = torch.ones_like(rewards, dtype=torch.bool) if kept is None else kept
    weights = kept.to(rewards.dtype)
    count = weights.sum(1, keepdim=True)
    apart = (rewards - (rewards * weights).sum(1, keepdim=True) / count.clamp(min=1.0)) * weights
    if scale == "group":
        variance = apart.square().sum(1, keepdim=True) / (count - 1.0).clamp(min=1.0)
        apart = apart / (variance.sqrt() + EPSILON)
    elif scale == "batch":
        some = rewards[kept]
        apart = apart / ((some.std() if len(some) > 1 else some.new_zeros(())) + EPSILON)
    return apart * with_spread(rewards, kept)[:, None]


def leave_one_out(rewards: Tensor, kept: Tensor | None = None) -> Tensor:
    """RLOO: rewards less the mean of the others of their group, (P, G); arguments as above."""
    kept = torch.ones_like(rewards, dtype=torch.bool) if kept is None else kept
    count = kept.sum(1, keepdim=True).to(rewards.dtype)
    return group_advantages(rewards, kept) * count / (count - 1.0).clamp(min=1.0)


def generalised_advantages(
    rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float = 1.0, decay: float = 0.95
) -> tuple[Tensor, Tensor]:
    """PPO: advantages and returns of each token, (n, T); 0 past an answer's end.

    A_t = sum_l (gamma lambda)^l (r_t+l + gamma V_t+l+1 - V_t+l) (Schulman et al., 2015,
    https://arxiv.org/abs/1506.02438, equation 16); the value after the last token is 0.

    Args:
        rewards, values: (n, T) of each token, and of the state before it.
        lengths: (n,) tokens of each answer.
        decay: lambda.
    """
    real = torch.arange(rewards.shape[1], device=rewards.device) < lengths[:, None]
    rewards, values = (each.masked_fill(~real, 0.0) for each in (rewards, values))
    found = torch.zeros_like(rewards)
    after = following = rewards.new_zeros(len(rewards))
    for at in reversed(range(rewards.shape[1])):
        after = rewards[:, at] + gamma * following - values[:, at] + gamma * decay * after
        after = after.masked_fill(~real[:, at], 0.0)
        found[:, at], following = after, values[:, at]
    return found, found + values


def whitened(values: Tensor) -> Tensor:
    """Values less their mean, by their standard deviation; a single one becomes 0."""
    if len(values) < 2:
        return torch.zeros_like(values)
    return (values - values.mean()) / (values.std() + EPSILON)


# Losses.


def kl_terms(log_probs: Tensor, reference: Tensor, estimator: str = "k3") -> Tensor:
    """Estimates of the divergence KL(policy, reference) of each sampled token (Schulman, 2020,
    http://joschu.net/blog/kl-approx.html).

    With d = log p - log p_ref: k1 is d, k2 d^2 / 2, k3 exp(-d) - 1 + d. As a part of the reward,
    k1 has the gradient of the divergence. In the loss, times the ratio of probabilities, k1 and k3
    have it, token by token (DeepSeek-V3.2, 2025, https://arxiv.org/abs/2512.02556, equation 7);
    without the ratio k2 has it, k3 nearly so where policies are near, and the gradient of k1 is 0
    in the mean.
    """
    apart = log_probs - reference
    if estimator == "k1":
        return apart
    return 0.5 * apart.square() if estimator == "k2" else torch.expm1(-apart) + apart


def per_answer(values: Tensor, owners: Tensor, count: int) -> Tensor:
    """Sums of (M,) values of tokens over each of `count` answers, (n,)."""
    return values.new_zeros(count).index_add(0, owners, values)


def ratios(log_probs: Tensor, old: Tensor, owners: Tensor, count: int, kind: str) -> Tensor:
    """How many times as likely as when it was sampled each token is, (M,).

    Args:
        kind: of each token by itself; of its `sequence`, the geometric mean over tokens (GSPO,
            Zheng et al., 2025, https://arxiv.org/abs/2507.18071, equation 7); or of the answer as
            a whole, their `product`.
    """
    apart = log_probs - old
    if kind != "token":
        sums = per_answer(apart, owners, count)
        if kind == "sequence":
            sums = sums / torch.bincount(owners, minlength=count).clamp(min=1)
        apart = sums[owners]
    return apart.exp()


def policy_terms(ratio: Tensor, advantages: Tensor, low: float = 0.2, high: float = 0.2) -> Tensor:
    """-min(r A, clip(r, 1 - low, 1 + high) A) of each token, (M,); see `ratios`."""
    clipped = ratio.clamp(1.0 - low, 1.0 + high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def clipped_tokens(
    ratio: Tensor, advantages: Tensor, low: float = 0.2, high: float = 0.2
) -> tuple[Tensor, Tensor]:
    """How many tokens give no gradient, as they have moved far enough: down, and up.

    These are the tokens of which `policy_terms` takes the clipped ratio.
    """
    down = (ratio < 1.0 - low) & (advantages < 0.0)
    up = (ratio > 1.0 + high) & (advantages > 0.0)
    return down.sum(), up.sum()


def token_weights(owners: Tensor, count: int, normalise: str, limit: int = 1) -> Tensor:
    """What a token's term weighs in the sum of losses, (M,) in fp32; see `denominator`.

    Args:
        normalise: `token` weighs all tokens of a batch alike (DAPO, Yu et al., 2025,
            https://arxiv.org/abs/2503.14476, equation 12); `sequence` takes the mean of each answer
            (Shao et al.), `constant` the sum of it by `limit` (Dr. GRPO, Liu et al., section 3.2),
            and `sum` its sum.
        limit: the most tokens that an answer may have.
    """
    weights = torch.ones(len(owners), device=owners.device)
    if normalise == "sequence":
        return weights / torch.bincount(owners, minlength=count)[owners]
    return weights / limit if normalise == "constant" else weights


def denominator(tokens: int, answers: int, normalise: str) -> int:
    """What the sum of losses is divided by: tokens, or answers."""
    return tokens if normalise == "token" else answers


def value_terms(values: Tensor, old: Tensor, returns: Tensor, clip: float = 0.2) -> Tensor:
    """Half the squared error of each token's value, (M,), the larger of that and of the value
    clipped to within `clip` of what it was; 0 doesn't clip."""
    errors = (values - returns).square()
    if clip:
        near = old + (values - old).clamp(-clip, clip)
        errors = torch.maximum(errors, (near - returns).square())
    return 0.5 * errors


class Critic(nn.Module):
    """The value of each state (M, D) to (M,): a linear map that begins at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: Tensor) -> Tensor:
        found: Tensor = self.out(states).float()
        return found[:, 0]


class SampledBatch(Protocol):
    """What `PolicyLoss` reads of a batch of sampled answers.

    Attributes:
        rows: n prompts with their answers, laid end to end.
        targets: (M,) tokens of the answers.
        owners: (M,) which answer each is of.
        advantages: (M,) of each token.
        old: (M,) log-probabilities when the answers were sampled; None where the weights are still
            the same.
        reference: (M,) log-probabilities by the reference; None where it isn't asked.
        values, returns: (M,) what values were, and are to be; None without a critic.
        reward: the mean of the rewards of the rollout.
        target_count: see `denominator`.
    """

    @property
    def rows(self) -> Any: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def owners(self) -> Tensor: ...
    @property
    def advantages(self) -> Tensor: ...
    @property
    def old(self) -> Tensor | None: ...
    @property
    def reference(self) -> Tensor | None: ...
    @property
    def values(self) -> Tensor | None: ...
    @property
    def returns(self) -> Tensor | None: ...
    @property
    def reward(self) -> float: ...
    @property
    def target_count(self) -> float: ...
    def states(self, network: Any) -> Tensor:
        """(M, D): the states before each token of the answers."""
        ...


def sampled_log_probs(
    network: Any, states: Tensor, targets: Tensor, temperature: float = 1.0
) -> Tensor:
    """(M,) log-probabilities of tokens under the distribution that they were drawn from.

    The head is linear and has no bias, so that states are divided in the place of logits.
    """
    return -token_losses(states / temperature, network.head, targets)


@dataclass
class Clipped:
    """Counts of clipped tokens since the log's last line.

    Attributes:
        down, up: as of `clipped_tokens`.
        tokens: that had a ratio.
    """

    down: Tensor | int = 0
    up: Tensor | int = 0
    tokens: int = 0

    def shares(self) -> dict[str, float]:
        """The shares of all tokens, and forgets them; none where no token had a ratio."""
        if not self.tokens:
            return {}
        found = {
            "clipped_low": int(self.down) / self.tokens,
            "clipped_high": int(self.up) / self.tokens,
        }
        self.down = self.up = self.tokens = 0
        return found


@dataclass(frozen=True)
class PolicyLoss:
    """(network, batch) to the sum of losses, and what it is divided by.

    On policy the value of such a loss says nothing: advantages are centred, so it is about 0
    whatever the policy does. What is returned has its gradient, and the value of what is made
    smaller: minus the mean reward.

    Attributes:
        ratio: one of `RATIOS`; a `product` is one term an answer.
        normalise: one of `NORMALISATIONS`.
        low, high: how far ratios may be below and above 1.
        limit: the most tokens that an answer may have.
        kl: weight of the divergence from the reference in the loss.
        estimator: of it, one of `ESTIMATORS`.
        corrected: whether it is multiplied by the ratio; see `kl_terms`.
        temperature: that answers were sampled at.
        value: weight of the critic's loss, of `network.critic`.
        value_clip: as for `value_terms`.
        clipped: counts what is clipped.
    """

    ratio: str = "token"
    normalise: str = "token"
    low: float = 0.2
    high: float = 0.2
    limit: int = 1
    kl: float = 0.0
    estimator: str = "k3"
    corrected: bool = True
    temperature: float = 1.0
    value: float = 0.0
    value_clip: float = 0.2
    clipped: Clipped = field(default_factory=Clipped, compare=False)

    def figures(self) -> dict[str, float]:
        """For the log: the shares of clipped tokens since the last call."""
        return self.clipped.shares()

    def __call__(self, network: Any, batch: SampledBatch) -> tuple[Tensor, float]:
        states = batch.states(network)
        log_probs = sampled_log_probs(network, states, batch.targets, self.temperature)
        total = self.of(log_probs, batch).sum()
        if self.value:
            assert batch.values is not None and batch.returns is not None
            values = network.critic(states)
            errors = value_terms(values, batch.values, batch.returns, self.value_clip)
            total = total + self.value * errors.sum()
        shown = -batch.reward * batch.target_count
        return total - total.detach() + shown, batch.target_count

    def of(self, log_probs: Tensor, batch: SampledBatch) -> Tensor:
        """The weighted term of each token, (M,), without the critic's."""
        count, owners = len(batch.rows.lengths), batch.owners
        old = log_probs.detach() if batch.old is None else batch.old
        ratio = ratios(log_probs, old, owners, count, self.ratio)
        if batch.old is not None:
            self._count(ratio.detach(), batch.advantages)
        terms = policy_terms(ratio, batch.advantages, self.low, self.high)
        if self.ratio == "product":
            terms = terms / torch.bincount(owners, minlength=count)[owners]
        if self.kl:
            assert batch.reference is not None, "the reference's log-probabilities aren't there"
            apart = kl_terms(log_probs, batch.reference, self.estimator)
            terms = terms + self.kl * (apart * ratio if self.corrected else apart)
        return terms * token_weights(owners, count, self.normalise, self.limit)

    def _count(self, ratio: Tensor, advantages: Tensor) -> None:
        down, up = clipped_tokens(ratio, advantages, self.low, self.high)
        seen = self.clipped
        seen.down, seen.up, seen.tokens = seen.down + down, seen.up + up, seen.tokens + len(ratio)
