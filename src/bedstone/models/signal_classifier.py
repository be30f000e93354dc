"""A small convolutional network that tells signals of one to three sides apart: a judge.

Stages of a convolution, a norm over groups and a ReLU, twice; each further stage has half of every
side that is left, and twice the channels, up to a limit. The mean of what is left goes to labels.

Shapes: B signals, C channels, S sides, F features, L labels.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bedstone.checks import at_least
from bedstone.errors import BedstoneError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MOST = 4  # a stage is at most so many times as wide as the first
GROUPS = 8


@dataclass(frozen=True)
class SignalClassifierConfig:
    """The shape of it.

    Attributes:
        shape: of a signal, (C, *S).
        labels: names of the classes.
        width: channels of the first stage.
        stages: how many.
    """

    shape: tuple[int, ...] = (1, 28, 28)
    labels: tuple[str, ...] = ()
    width: int = 32
    stages: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "labels", tuple(self.labels))
        at_least(self, 1, "width", "stages", prefix="judge.")
        if not 2 <= len(self.shape) <= 4 or min(self.shape) < 1 or self.width % GROUPS:
            raise BedstoneError(
                f"judge: signals of {self.shape} and a width of {self.width} were given; expected "
                f"channels and one to three sides, and a width that {GROUPS} divides."
            )
        if len(self.labels) < 2:
            raise BedstoneError("judge.labels: expected two classes or more to tell apart.")


class SignalClassifier(nn.Module):
    """Signals (B, C, *S) to logits (B, L)."""

    def __init__(self, config: SignalClassifierConfig) -> None:
        super().__init__()
        self.config = config
        channels, *sides = config.shape
        convolution, pool = _CONVOLUTIONS[len(sides) - 1], _POOLS[len(sides) - 1]
        parts: list[nn.Module] = []
        for stage in range(config.stages):
            width = config.width * min(2**stage, MOST)
            if stage:
                halves: Any = tuple(2 if side > 1 else 1 for side in sides)
                parts.append(pool(halves))
                sides = [side // half for side, half in zip(sides, halves, strict=True)]
            for _ in range(2):
                parts += [convolution(channels, width, 3, padding=1, bias=False)]
                parts += [nn.GroupNorm(GROUPS, width), nn.ReLU()]
                channels = width
        self.body = nn.Sequential(*parts)
        self.out = nn.Linear(channels, len(config.labels))

    def features(self, signals: Tensor) -> Tensor:
        """(B, F)."""
        return self.body(signals).flatten(2).mean(2)

    def forward(self, signals: Tensor) -> Tensor:
        return self.out(self.features(signals))
