"""Budgets of runs, and learning rate schedules over them.

A budget is a number of steps, tokens or seconds; how far along a run is, is the share of it
that is spent. A schedule is a pure function of that share, so a resumed run goes on exactly
with its rates for a budget in steps or tokens, and a budget in seconds decays on time whatever
the speed of the machine.

The shape is warm-up, stable, decay (WSD: Hu et al., 2024, MiniCPM, section 4). `decay=1.0` with
`shape="cosine"` is the schedule of GPT-3; `sqrt` falls as 1 - sqrt (Hägele et al., 2024).
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from bedstone.errors import BedstoneError
from bedstone.settings import Settings, one_of, share


@dataclass
class ScheduleConfig:
    """How the learning rate moves over the budget.

    Attributes:
        warmup: share of the budget over which the rate rises linearly, from a tenth of the peak.
        decay: share of the budget, at the end, over which it falls.
        shape: of the fall: linear, cosine or sqrt.
        floor: what it falls to, as a share of the peak.
    """

    warmup: float = 0.02
    decay: float = 0.4
    shape: str = "linear"
    floor: float = 0.0


START = 0.1  # of the peak, where the warm-up begins: a first step at zero would be wasted

# Share of the decay done, 0 to 1, to what is left of the rate, 1 to 0.
SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "sqrt": lambda done: 1.0 - math.sqrt(done),
}

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_NUMBER = r"(\d+(?:\.\d*)?(?:e\d+)?)"
ACCEPTED = (
    "expected a time (`300s`, `5m`, `2h`, `1d`), steps (`1000 steps`, or just `1000`) "
    "or tokens (`20M tokens`)"
)


@dataclass(frozen=True)
class Budget:
    """What a run may spend: `amount` of `unit`, which is steps, tokens or seconds."""

    amount: float
    unit: str

    def share(self, *, step: int = 0, tokens: int = 0, seconds: float = 0.0) -> float:
        """How much of it is spent, 0 to 1, after so many steps, tokens and seconds."""
        spent = {"steps": step, "tokens": tokens, "seconds": seconds}[self.unit]
        return min(max(spent / self.amount, 0.0), 1.0)

    def __str__(self) -> str:
        amount = int(self.amount) if self.amount == int(self.amount) else self.amount
        return f"{amount} {self.unit}"


def parse_budget(text: str | int) -> Budget:
    """A budget as people write one: `5m`, `300s`, `2h`, `1000 steps`, `20M tokens`, 1000.

    Raises:
        BedstoneError: it can't be read, or isn't above zero.
    """
    amount: float
    given = str(text).strip().lower().replace("_", "").replace(",", "")
    if match := re.fullmatch(rf"{_NUMBER}\s*([kmbgt]?)\s*(steps?|tokens?)", given):
        number, scale, unit = match.groups()
        amount, unit = round(float(number) * _COUNTS[scale]), unit.rstrip("s") + "s"
    elif match := re.fullmatch(rf"{_NUMBER}\s*(s|m|h|d)(?:ec|econd|in|inute|r|our|ay)?s?", given):
        amount, unit = float(match[1]) * _SECONDS[match[2]], "seconds"
    elif match := re.fullmatch(_NUMBER, given):
        amount, unit = round(float(match[1])), "steps"
    else:
        raise BedstoneError(f"budget: {text!r} can't be read; {ACCEPTED}.")
    if not 0 < amount < math.inf:
        raise BedstoneError(f"budget: {text!r} is not above zero and finite; {ACCEPTED}.")
    return Budget(amount, unit)


@dataclass(frozen=True)
class Schedule(Settings):
    """Share of the budget spent, 0 to 1, to a factor on the peak learning rate.

    Attributes:
        warmup: share of the budget over which the factor rises linearly from a tenth to 1.
        decay: share of the budget, at its end, over which it falls.
        shape: of the fall: linear, cosine or sqrt.
        floor: what it falls to.

    Raises:
        BedstoneError: an unknown shape, or shares that don't fit into one budget.
    """

    section = "schedule."
    warmup: float = share(default=0.0)
    decay: float = share(default=0.0)
    shape: str = one_of(*SHAPES, default="linear")
    floor: float = share(default=0.0)

    def __call__(self, share: float) -> float:
        factor = 1.0
        if share < self.warmup:
            factor = START + (1.0 - START) * share / self.warmup
        begins = 1.0 - self.decay
        if self.decay and share > begins:
            left = SHAPES[self.shape](min((share - begins) / self.decay, 1.0))
            factor *= self.floor + (1.0 - self.floor) * left
        return factor


def build_schedule(config: ScheduleConfig) -> Schedule:
    """The schedule that a recipe asks for."""
    return Schedule(config.warmup, config.decay, config.shape, config.floor)
