"""How often a run evaluates and saves, and what fits into a budget of time.

A budget of seconds is spent on steps, evaluations and saves. The first steps, the first evaluation
and the first save are timed; then it is known how many steps fit. Evaluations and saves take at
most a quarter of the budget, whatever the recipe asks for. A budget into which hardly a step
fits is refused before it is spent.
"""

from dataclasses import dataclass, field

from bedstone.errors import BedstoneError
from bedstone.train.logs import clock, counted

BESIDE = 0.25  # of a budget of time, at most, for evaluations and saves, half for each
FEW, MANY = 5, 50  # steps: under the first a run is refused, under the second it is warned
TIMED = 3  # steps after which one is timed; the first ones are slower than the rest


@dataclass
class Pace:
    """How often things happen. A figure of 0 says "spread over the run" or "by the clock"."""

    evaluate_every: int = 0
    save_every: int = 0
    save_minutes: float = 5.0
    log_every: int = 10
    save_best: bool = False  # also save at every evaluation that is the best so far
    from_start: bool = False  # also evaluate before the first step, and save with save_best


@dataclass
class TimePlan:
    """What a budget of time is spent on.

    Attributes:
        seconds: of the budget.
        batch: how a message names what a step is of, such as `32 rows`.
        step: seconds of a step; 0 until it is known.
        evaluation, save: seconds of one, as the last one took.
        spent: seconds that all evaluations and all saves took so far.
    """

    seconds: float
    batch: str = ""
    step: float = 0.0
    evaluation: float = 0.0
    save: float = 0.0
    spent: dict[str, float] = field(default_factory=lambda: {"evaluation": 0.0, "save": 0.0})

    def allows(self, what: str, elapsed: float) -> bool:
        """Whether another evaluation or save fits in between; none does before a step is timed.

        Those so far and this one take at most their part of the time so far, and with the one that
        ends the run at most their part of the budget.
        """
        cost: float = getattr(self, what)
        spent, part = self.spent[what] + cost, BESIDE / 2
        fits = spent <= part * (elapsed + cost) and spent + cost <= part * self.seconds
        return fits and self.step > 0

    def took(self, what: str, seconds: float) -> None:
        """Counts an evaluation or a save."""
        setattr(self, what, seconds)
        self.spent[what] += seconds

    def steps(self, elapsed: float) -> int:
        """How many more steps fit, leaving room for what ends the run."""
        return int(max(self.seconds - elapsed - self.evaluation - self.save, 0) / self.step)

    def check(self, done: int, elapsed: float) -> str:
        """What fits, as a sentence; a warning where it is little.

        Args:
            done: steps so far.
            elapsed: seconds so far.

        Raises:
            BedstoneError: hardly a step fits.
        """
        total = done + self.steps(elapsed)
        each = f"a step takes {self._spoken(self.step)}"
        if self.evaluation:
            each += f", an evaluation {self._spoken(self.evaluation)}"
        # As much again as is needed for MANY steps beside what evaluations and saves may take.
        needed = (MANY * self.step + self.evaluation + self.save) / (1 - BESIDE)
        advice = (
            f"Give it more time (budget={self._rounded(needed)} makes about {MANY} steps), a "
            f"lower batch_size{f' (a step has {self.batch})' if self.batch else ''}, or a smaller "
            "model; or say the budget in steps (budget='200 steps')."
        )
        if total < FEW:
            raise BedstoneError(
                f"budget: {self.seconds:g} s is too short: {each}, so {counted(total, 'step')} "
                f"would be made. {advice}"
            )
        text = f"About {total:,} steps fit into {clock(self.seconds)}: {each}."
        if 2 * (self.evaluation + self.save) > BESIDE * self.seconds:
            text += (
                " Warning: evaluations take more than a quarter of the budget. Hold less data out "
                "(data.validation_share, evaluate_rows or evaluate_tokens)."
            )
        return f"{text} Warning: so few learn little. {advice}" if total < MANY else text

    @staticmethod
    def _spoken(seconds: float) -> str:
        return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"

    @staticmethod
    def _rounded(seconds: float) -> str:
        return f"{-(-seconds // 10) * 10:.0f}s" if seconds < 90 else f"{-(-seconds // 60):.0f}m"
