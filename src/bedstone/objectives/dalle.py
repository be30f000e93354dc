"""The loss of DALL-E: of words and of codes, with a share each (Ramesh et al., 2021, section 2.2).

The means of a row's words and of its codes are weighed, so that neither how long a text is nor what
stands beside it in a batch changes what an image counts for.

Shapes: B rows, T text places, N codes of an image, K codes there are.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.data.images.codes import CodeBatch


@dataclass(frozen=True)
class DalleLoss:
    """(network, batch) to the sum of losses in fp32 and the number of images.

    Attributes:
        image_share: of the loss, that of the codes; the rest is the words'. In masked order, which
            writes no words, it is all.
    """

    image_share: float = 7 / 8

    def parts(self, network: Any, batch: CodeBatch) -> tuple[Tensor, Tensor | None]:
        """Nats a code and nats a word of each row, (B,); None for words in masked order."""
        codes, hidden = batch.codes, batch.hidden
        shown = codes if hidden is None else codes.masked_fill(hidden, network.config.mask)
        logits, words = network.logits(batch.ids, batch.keep, shown)
        nats = _nats(logits, codes)
        of_codes = nats.mean(1) if hidden is None else _mean(nats, hidden)
        if words is None:
            return of_codes, None
        targets, real = batch.ids[:, 1:], batch.keep[:, 1:]
        return of_codes, _mean(_nats(words[:, : targets.shape[1]], targets), real)

    def weighed(self, of_codes: Tensor, of_words: Tensor | None) -> Tensor:
        """The loss of each row, (B,), of what `parts` gave."""
        if of_words is None:
            return of_codes
        return self.image_share * of_codes + (1 - self.image_share) * of_words

    def __call__(self, network: Any, batch: CodeBatch) -> tuple[Tensor, float]:
        return self.weighed(*self.parts(network, batch)).sum(), batch.items


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each target (B, S) by logits (B, S, K), fp32."""
    flat = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return flat.view(targets.shape)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Of those counted in each row (B, S), (B,); 0 where there are none."""
    total = torch.where(counted, values, 0.0).sum(1)
    return total / counted.sum(1).clamp_min(1)
