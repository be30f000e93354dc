"""How well a model predicts text: loss, perplexity, bits per byte."""

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.runtime import Precision

Objective = Callable[[nn.Module, Any], tuple[Tensor, int]]


def text_loss(
    network: nn.Module,
    objective: Objective,
    batches: Iterable[Any],
    precision: Precision,
    *,
    most_batches: int | None = None,
    told: Callable[[int], None] = lambda done: None,
) -> tuple[float, int]:
    """Mean loss in nats a target token, and how many targets were scored.

    Args:
        batches: each target stands in exactly one of them.
        most_batches: how many to read at most; None reads all.
        told: called with the number of batches done.
    """
    total, count = 0.0, 0
    network.eval()
    with torch.inference_mode(), precision.autocast():
        for number, batch in enumerate(islice(batches, most_batches)):
            loss, targets = objective(network, batch.to(precision.device))
            total += loss.item()
            count += targets
            told(number + 1)
    return total / max(count, 1), count


def text_figures(loss: float, tokens_a_byte: float) -> dict[str, float]:
    """`loss` in nats a token as perplexity and bits per byte of UTF-8.

    Bits per byte don't depend on the tokenizer, so models that have different ones compare.
    """
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": loss / math.log(2) * tokens_a_byte,
    }
