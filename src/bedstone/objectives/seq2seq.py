"""Objectives of encoder-decoders: cross-entropy of targets given their sources, and R-Drop.

Shapes: N target tokens, D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bedstone.objectives.tokens import LARGEST, PairBatch, pair_loss


@dataclass(frozen=True)
class PairLoss:
    """(network, batch) to the sum of losses and the number of targets.

    Attributes:
        smoothing: the share of a target that goes to all tokens.
        r_drop: weight of the divergence between two passes with other dropout (Liang et al., 2021,
            equation 4, halved, so that cross-entropy counts once); 0 makes one pass.
    """

    smoothing: float = 0.0
    r_drop: float = 0.0

    def __call__(self, network: Any, batch: PairBatch) -> tuple[Tensor, int]:
        if not self.r_drop or not network.training:
            return pair_loss(network, batch, self.smoothing if network.training else 0.0)
        passes = [
            network.head.prepare(network.pair_states(batch.sources, batch.rows)) for _ in range(2)
        ]
        targets = batch.targets[0]
        rows = max(LARGEST // network.config.target_vocab_size, 64)
        parts = zip(passes[0].split(rows), passes[1].split(rows), targets.split(rows), strict=True)
        losses = [
            checkpoint(self._both, network.head.out, *part, use_reentrant=False) for part in parts
        ]
        return torch.stack(losses).sum(), len(targets)

    def _both(self, out: nn.Module, first: Tensor, second: Tensor, targets: Tensor) -> Tensor:
        """The loss of some tokens, of their states in both passes, (n, D)."""
        one, two = (out(states).float().log_softmax(-1) for states in (first, second))
        error = sum(
            F.cross_entropy(logp, targets, reduction="sum", label_smoothing=self.smoothing)
            for logp in (one, two)
        )
        apart = (one.exp() - two.exp()).mul(one - two).sum()  # KL(one, two) + KL(two, one)
        return 0.5 * error + 0.25 * self.r_drop * apart
