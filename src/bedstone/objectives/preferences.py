"""Losses of preferences: DPO and its kin, KTO, and reward models.

With r = log p(answer | prompt) - log p_ref(answer | prompt), summed over the answer's tokens,
beta r is the reward that a policy has learnt implicitly (Rafailov et al., 2023,
https://arxiv.org/abs/2305.18290, equation 5). Losses are sums beside a count of rows.

Shapes: P rows, n = 2 P windows: the first of all rows, then the second; M learnt tokens.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.models.heads import Head
from bedstone.objectives.tokens import token_losses

LOSSES = ("sigmoid", "hinge", "ipo", "robust", "sigmoid_norm")


class AnswerBatch(Protocol):
    """What these objectives read of a batch: two windows a row.

    Attributes:
        rows: n windows laid end to end.
        targets: (M,) learnt tokens of the answers.
        owners: (M,) which window each is of.
        reference: (n,) log-probabilities of the answers by the reference.
        labels: (P,) bool, whether an answer is desirable.
        margins: (P,) by how much the chosen answer is better.
        target_count: P.
    """

    @property
    def rows(self) -> Any: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def owners(self) -> Tensor: ...
    @property
    def reference(self) -> Tensor | None: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def margins(self) -> Tensor: ...
    @property
    def target_count(self) -> float: ...
    def states(self, network: Any) -> Tensor:
        """(M, D): the states before each learnt token, or those that the head reads."""
        ...

    def half(self, number: int) -> "AnswerBatch":
        """The first windows of all rows alone (0), or the second (1)."""
        ...


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of answers.

    Attributes:
        sums: (n,) of whole answers, in fp32.
        counts: (n,) tokens of each, in fp32.
    """

    sums: Tensor
    counts: Tensor


def answer_log_probs(network: Any, batch: AnswerBatch) -> LogProbs:
    """The log-probability of each window's answer; logits stand a part at a time."""
    states, head = batch.states(network), network.head
    if isinstance(head, Head):
        states, head = head.prepare(states), head.out
    losses = token_losses(states, head, batch.targets)
    count = len(batch.rows.lengths)
    sums = losses.new_zeros(count).index_add(0, batch.owners, losses)
    tokens = torch.bincount(batch.owners, minlength=count).to(losses.dtype)
    return LogProbs(-sums, tokens)


def log_ratios(found: LogProbs, batch: AnswerBatch) -> Tensor:
    """(n,) log p - log p_ref of each answer."""
    assert batch.reference is not None, "the reference's log-probabilities aren't there"
    return found.sums - batch.reference


@dataclass(frozen=True)
class PairPreferenceLoss:
    """(network, batch) to the sum of losses over pairs, and their number.

    With d = r(chosen) - r(rejected):

    - sigmoid: -log sigmoid(beta d) (DPO, equation 7);
    - hinge: max(0, 1 - beta d) (SLiC, Zhao et al., 2023, https://arxiv.org/abs/2305.10425);
    - ipo: (d - 1 / (2 beta))^2, r averaged over an answer's tokens (Azar et al., 2023,
      https://arxiv.org/abs/2310.12036, equation 17);
    - robust: ((1 - e) -log sigmoid(beta d) - e -log sigmoid(-beta d)) / (1 - 2 e), e the share of
      labels that are flipped (Chowdhury et al., 2024, https://arxiv.org/abs/2403.00409);
    - sigmoid_norm: as sigmoid, r averaged over an answer's tokens.

    Attributes:
        loss: one of `LOSSES`.
        beta: how strongly answers are bound to the reference.
        flipped: of robust: the share of labels that are wrong.
        sft: weight of the cross-entropy of the chosen answers, a token, added for each pair.
    """

    loss: str = "sigmoid"
    beta: float = 0.1
    flipped: float = 0.0
    sft: float = 0.0

    def __call__(self, network: Any, batch: AnswerBatch) -> tuple[Tensor, float]:
        found = answer_log_probs(network, batch)
        return self.of(found, batch).sum(), batch.target_count

    def of(self, found: LogProbs, batch: AnswerBatch) -> Tensor:
        """The loss of each pair, (P,)."""
        ratios = log_ratios(found, batch)
        if self.loss in ("ipo", "sigmoid_norm"):
            ratios = ratios / found.counts.clamp(min=1.0)
        chosen, rejected = ratios.chunk(2)
        apart = chosen - rejected
        if self.loss == "hinge":
            losses = torch.relu(1.0 - self.beta * apart)
        elif self.loss == "ipo":
            losses = (apart - 0.5 / self.beta).square()
        else:
            losses = -F.logsigmoid(self.beta * apart)
            if self.loss == "robust":
                turned = -F.logsigmoid(-self.beta * apart)
                losses = (1.0 - self.flipped) * losses - self.flipped * turned
                losses = losses / (1.0 - 2.0 * self.flipped)
        if self.sft:
            pairs = len(chosen)
            nats = -found.sums[:pairs].sum() / found.counts[:pairs].sum()
            losses = losses + self.sft * nats
        return losses


@dataclass(frozen=True)
class JudgedLoss:
    """KTO: (network, batch) to the sum of losses over judged answers, and their number.

    An answer's loss is its weight times 1 - sigmoid(beta (r - z)) where it is desirable, else
    1 - sigmoid(beta (z - r)); z, at least 0, is the mean of r over prompts with answers to other
    prompts, without a gradient (Ethayarajh et al., 2024, https://arxiv.org/abs/2402.01306,
    equation 7 and section 3.2). It is of the rows of a micro-batch.

    Attributes:
        beta: how strongly answers are bound to the reference.
        desirable, undesirable: weights of both kinds.
    """

    beta: float = 0.1
    desirable: float = 1.0
    undesirable: float = 1.0

    def __call__(self, network: Any, batch: AnswerBatch) -> tuple[Tensor, float]:
        answers, others = batch.half(0), batch.half(1)
        with torch.no_grad():
            away = log_ratios(answer_log_probs(network, others), others)
        ratios = log_ratios(answer_log_probs(network, answers), answers)
        return self.of(ratios, away, batch.labels).sum(), batch.target_count

    def of(self, ratios: Tensor, away: Tensor, good: Tensor) -> Tensor:
        """The loss of each answer, (P,).

        Args:
            ratios: (P,) log-ratios of answers to their prompts.
            away: (P,) log-ratios of answers to other prompts.
            good: (P,) bool, whether an answer is desirable.
        """
        apart = self.beta * (ratios - away.detach().mean().clamp(min=0.0))
        losses = torch.sigmoid(torch.where(good, -apart, apart))
        return losses * torch.where(good, self.desirable, self.undesirable)


@dataclass(frozen=True)
class RewardLoss:
    """Reward models: (network, batch) to the sum of losses over pairs, and their number.

    -log sigmoid(s(chosen) - s(rejected) - margin) + c (s(chosen) + s(rejected))^2, of scores s
    (Bradley and Terry, 1952; margins: Touvron et al., 2023, https://arxiv.org/abs/2307.09288,
    equation 2; centring: Eisenstein et al., 2023, https://arxiv.org/abs/2312.09244).

    Attributes:
        centring: c, which keeps the mean of scores near 0.
    """

    centring: float = 0.01

    def __call__(self, network: Any, batch: AnswerBatch) -> tuple[Tensor, float]:
        return self.of(answer_scores(network, batch), batch).sum(), batch.target_count

    def of(self, scores: Tensor, batch: AnswerBatch) -> Tensor:
        """The loss of each pair, (P,), of the (n,) scores."""
        chosen, rejected = scores.chunk(2)
        losses = -F.logsigmoid(chosen - rejected - batch.margins)
        return losses + self.centring * (chosen + rejected).square()


def answer_scores(network: Any, batch: AnswerBatch) -> Tensor:
    """The score of each window, (n,) in fp32."""
    found: Tensor = network.head(batch.states(network)).float()
    return found[:, 0]
