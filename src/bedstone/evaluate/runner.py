"""Evaluation of a model on held-out data: the loss of its objective, and figures of predictions."""

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.runtime import Precision

Objective = Callable[[nn.Module, Any], tuple[Tensor, float]]


class Evaluation:
    """What measures a model in training, and at its end.

    Attributes:
        name: of the data: validation or test.
    """

    name: str

    def log(self, network: nn.Module) -> dict[str, float]:
        """Figures for the log, quickly, by `validation_...`; the loss is `validation_loss`."""
        raise NotImplementedError

    def report(
        self, folder: Path, metrics: dict[str, float], *, quiet: bool = False
    ) -> dict[str, Any]:
        """Figures of the finished model for `evaluation.json`; sheets and plots into the folder.

        Args:
            metrics: what `log` gave last.
        """
        return {}


class LogOnly(Evaluation):
    """Figures for the log alone.

    Args:
        figures: of a network, by `validation_...`.
    """

    def __init__(self, figures: Callable[[nn.Module], dict[str, float]]) -> None:
        self.figures = figures

    def log(self, network: nn.Module) -> dict[str, float]:
        return self.figures(network)


def held_out_loss(
    network: nn.Module,
    objective: Objective,
    batches: Iterable[Any],
    precision: Precision,
    *,
    most_batches: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[float, float]:
    """Mean loss a target, and how many targets were scored; of text in nats a token.

    Args:
        batches: each target stands in exactly one of them.
        most_batches: how many to read at most; None reads all.
        progress: called with the number of batches done.
    """
    total: float = 0.0
    count: float = 0  # whole where targets are counted in whole numbers
    network.eval()
    with torch.inference_mode(), precision.autocast():
        for number, batch in enumerate(islice(batches, most_batches)):
            loss, targets = objective(network, batch.to(precision.device))
            total += loss.item()
            count += targets
            progress(number + 1)
    return total / max(count, 1), count
