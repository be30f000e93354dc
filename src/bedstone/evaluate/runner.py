"""Evaluation of a model on held-out data: the loss of its objective, and figures of predictions."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.rule import Rule
from torch import Tensor, nn

from bedstone.metrics.figures import Figures
from bedstone.runtime import Precision

Objective = Callable[[nn.Module, Any], tuple[Tensor, float]]
Progress = Callable[[float], None] | None  # is handed the share done


class Evaluation:
    """What measures a model: in training for the log, at its end, and in `bedstone evaluate`.

    A subclass predicts and scores, or gives its own `log` and `report`.

    Attributes:
        name: of the data: validation or test.
    """

    name: str

    def predict(self, progress: Progress = None) -> Any:
        """What the model says of all rows."""
        raise NotImplementedError

    def score(self, found: Any, resamples: int) -> dict[str, Figures]:
        """Figures of predictions, by kind.

        Args:
            resamples: of the bootstrap; 0 leaves intervals out.
        """
        raise NotImplementedError

    def figures(self, *, resamples: int = 1000, progress: Progress = None) -> dict[str, Figures]:
        """Figures of the model's predictions on all rows, by kind."""
        return self.score(self.predict(progress), resamples)

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
        return {self.name: {kind: each.record() for kind, each in self.figures().items()}}


class LogOnly(Evaluation):
    """Figures for the log alone.

    Args:
        figures: of a network, by name.
    """

    def __init__(self, measured: Callable[[nn.Module], Mapping[str, float]]) -> None:
        self.measured = measured

    def log(self, network: nn.Module) -> dict[str, float]:
        return {f"validation_{name}": value for name, value in self.measured(network).items()}

    def report(
        self, folder: Path, metrics: dict[str, float], *, quiet: bool = False
    ) -> dict[str, Any]:
        return {}


_batch_losses: list[tuple[float, float]] | None = None  # those that are being collected


@contextlib.contextmanager
def batch_losses() -> Iterator[list[tuple[float, float]]]:
    """Collects (sum of losses, targets) of each batch that `held_out_loss` reads in the block."""
    global _batch_losses
    before, _batch_losses = _batch_losses, []
    try:
        yield _batch_losses
    finally:
        _batch_losses = before


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
            if _batch_losses is not None:
                _batch_losses.append((loss.item(), targets))
            progress(number + 1)
    return total / max(count, 1), count


def present(
    record: dict[str, Any], parts: Mapping[str, Any], *, notes: Iterable[str] = (), as_json: bool
) -> dict[str, Any]:
    """Prints an evaluation, as one JSON object or for people; returns the record.

    Args:
        record: what the JSON object holds.
        parts: what people read, by its heading; a heading of "" is not printed.
        notes: lines after them.
    """
    if as_json:
        print(json.dumps(record))
        return record
    console = Console()
    for heading, part in parts.items():
        if heading:
            console.print(Rule(heading, align="left"))
        console.print(part)
    for note in notes:
        console.print(note, highlight=False)
    return record
