"""Losses of codes: of DALL-E, and of the autoregressive prior of DALL-E 2.

DALL-E's is of words and of codes, with a share each (Ramesh et al., 2021, section 2.2). The means
of a row's words and of its codes are weighed, so that neither how long a text is nor what stands
beside it in a batch changes what an image counts for.

Shapes: B rows, T text places, N codes of an image, K codes there are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.data.images.codes import CodeBatch
from bedstone.data.signals.batches import SignalBatch


@dataclass(frozen=True)
class DalleLoss:
    """(network, batch) to the sum of losses in fp32 and the number of images.

    Attributes:
        image_share: of the loss, that of the codes; the rest is the words'. In orders other than
            raster, which write no words, it is all.
    """

    image_share: float = 7 / 8

    def parts(self, network: Any, batch: CodeBatch) -> tuple[Tensor, Tensor | None]:
        """Nats a code and nats a word of each row, (B,); None for words where none are written."""
        codes, hidden = batch.codes, batch.hidden
        shown = codes if hidden is None else codes.masked_fill(hidden, network.config.mask)
        logits, words = network.logits(batch.ids, batch.keep, shown)
        nats = _nats(logits, codes)
        of_codes = nats.mean(1) if batch.learnt is None else _mean(nats, batch.learnt)
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


@dataclass(frozen=True)
class EmbeddingCodeLoss:
    """(network, batch) to the sum over rows of the mean nats of an embedding's codes, and the rows.

    Rows without their words have the empty text; how well image and words fit is said of the true
    ones (Ramesh et al., 2022, section 2.2).

    Attributes:
        read: tokens (B, T) and which are real to words' embeddings (B, E) and states (B, T, E), by
            the CLIP.
    """

    read: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    def __call__(self, network: Any, batch: SignalBatch) -> tuple[Tensor, float]:
        own, null, x = batch.condition, batch.null, batch.signals
        assert own is not None and null is not None
        given = own.but(batch.drop, null)
        assert own.ids is not None and own.keep is not None
        assert given.ids is not None and given.keep is not None
        fits = network.fits_of(network.restored(x), self.read(own.ids, own.keep)[0])
        words, states = self.read(given.ids, given.keep)
        codes = network.codes_of(x)
        prefix = network.prefix(words, states, given.keep, fits)
        return _nats(network.logits(prefix, codes), codes).mean(1).sum(), len(x)


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each target (B, S) by logits (B, S, K), fp32."""
    flat = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return flat.view(targets.shape)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Of those counted in each row (B, S), (B,); 0 where there are none."""
    total = torch.where(counted, values, 0.0).sum(1)
    return total / counted.sum(1).clamp_min(1)
