"""A small policy, what it was when it sampled, its reference, and answers, as for TRL."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.data.text.reinforcement import PolicyBatch, lay_answers
from bedstone.objectives.policy import (
    PolicyLoss,
    denominator,
    group_advantages,
    leave_one_out,
    sampled_log_probs,
)
from preference_cases import VOCABULARY, network

PROMPTS, GROUP, LIMIT, TEMPERATURE = 3, 4, 9, 0.8
REWARDS = torch.tensor([[1.0, 0.0, 0.5, 2.0], [0.0, 0.0, 1.0, 0.0], [3.0, 1.0, 2.5, 0.25]])


@dataclass(frozen=True)
class Case:
    """How a loss is made, ours; `trl` are the fields of TRL's configuration that say the same."""

    scale: str
    normalise: str
    trl: dict[str, Any]
    ratio: str = "token"
    kl: float = 0.0
    low: float = 0.2
    high: float = 0.28


CASES = {
    "dapo": Case("group", "token", {"loss_type": "dapo", "scale_rewards": "group"}, kl=0.1),
    "grpo": Case("none", "sequence", {"loss_type": "grpo", "scale_rewards": "none"}, kl=0.05),
    "dr_grpo": Case("batch", "constant", {"loss_type": "dr_grpo", "scale_rewards": "batch"}),
    "gspo": Case(
        "group",
        "sequence",
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        ratio="sequence",
        low=0.003,
        high=0.004,
    ),
}


def answers() -> tuple[list[list[int]], Tensor, Tensor]:
    """Prompts of all answers, answers padded with 0, and their lengths."""
    draw = np.random.default_rng(7)
    prompts: list[list[int]] = []
    for _ in range(PROMPTS):
        own = draw.integers(2, VOCABULARY, int(draw.integers(2, 6))).tolist()
        prompts += [own] * GROUP
    lengths = torch.from_numpy(draw.integers(1, LIMIT + 1, len(prompts)))
    ids = torch.from_numpy(draw.integers(2, VOCABULARY, (len(prompts), LIMIT)))
    return prompts, ids * (torch.arange(LIMIT) < lengths[:, None]), lengths


def log_probs_of(learner: Any) -> Tensor:
    """(M,) of a network at the temperature."""
    prompts, ids, lengths = answers()
    laid = lay_answers(prompts, ids, lengths)
    with torch.no_grad():
        return sampled_log_probs(learner, laid.states(learner), laid.targets, TEMPERATURE)


def near() -> Any:
    """The policy when it sampled: not far from what it is."""
    made = network(3)
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(1.02)
    return made


def policy_batch(case: Case | None) -> PolicyBatch:
    """The batch of a case; None is that of RLOO."""
    prompts, ids, lengths = answers()
    laid = lay_answers(prompts, ids, lengths)
    if case is None:
        found, normalise = leave_one_out(REWARDS), "sum"
    else:
        found, normalise = group_advantages(REWARDS, None, case.scale), case.normalise
    return PolicyBatch(
        rows=laid.rows,
        read=laid.read,
        targets=laid.targets,
        owners=laid.owners,
        advantages=found.flatten()[laid.owners],
        old=log_probs_of(near()),
        reference=log_probs_of(network(4)),
        values=None,
        returns=None,
        reward=0.0,
        target_count=denominator(len(laid.targets), len(prompts), normalise),
        number=0,
        places=[],
    )


def policy_loss(case: Case | None) -> PolicyLoss:
    """The objective of a case; None is that of RLOO."""
    how: dict[str, Any] = {"temperature": TEMPERATURE, "limit": LIMIT}
    if case is None:
        return PolicyLoss("product", "sum", 0.2, 0.28, **how)
    return PolicyLoss(case.ratio, case.normalise, case.low, case.high, kl=case.kl, **how)


def mean_loss(case: Case | None, learner: Any) -> Tensor:
    """The mean loss, of which the gradient can be taken."""
    batch, loss = policy_batch(case), policy_loss(case)
    states = batch.states(learner)
    log_probs = sampled_log_probs(learner, states, batch.targets, TEMPERATURE)
    return loss.of(log_probs, batch).sum() / batch.target_count
