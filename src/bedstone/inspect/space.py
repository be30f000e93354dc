"""Search spaces: which fields of a recipe are varied, and over which values.

    optim.lr=log:1e-4..1e-2     a number, evenly on a logarithmic scale
    model.layers=2..8           a whole number; 2..8/2 takes every second one
    schedule.decay=0.2..1.0     a number
    batch_size=8,16,32          one of these values

In a YAML file, a field's value is such a text, or a list of values; sections may be nested.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.reading import shown
from bedstone.recipes.base import method_of, read
from bedstone.settings import flat, load_yaml, read_values
from bedstone.train.run import check_values

FORMS = "expected a range (1e-4..1e-2, log:1e-4..1e-2, 2..8, 2..8/2) or values (8,16,32)"
_RANGE = re.compile(r"(log:)?\s*([^\s,]+?)\s*\.\.\s*([^\s,/]+)(?:\s*/\s*(\S+))?")
_WHOLE = re.compile(r"[+-]?\d+")
# Fields that no trial is better by: where and how a run is kept, and what it is measured on.
_KEPT = "says how a run is kept or computed, which makes no recipe better"
_MEASURED = "changes what trials are measured on, so their figures wouldn't compare"
FIXED = {
    **dict.fromkeys(("out", "device", "compile", "strict", "keep", "log", "log_every"), _KEPT),
    **dict.fromkeys(("save_every", "save_minutes", "evaluate_every", "method"), _KEPT),
    "seed": "tries luck: the best of several seeds is no better recipe",
    "budget": "is what trials spend, and what they are stopped at shares of",
    "epochs": "is what trials spend, and what they are stopped at shares of",
    **dict.fromkeys(("task", "evaluate_rows", "evaluate_tokens", "evaluate_pairs"), _MEASURED),
}
SECTIONS = ("data", "masking", "fim")  # those of which the same holds


@dataclass(frozen=True)
class Dimension:
    """One field of a recipe and the values that it may take.

    Attributes:
        name: of the field, as an override has it.
        low, high: of a range, both included.
        log: whether a range is even on a logarithmic scale.
        step: of a range; 0 has none.
        choices: the values; empty of a range.
    """

    name: str
    low: float = 0
    high: float = 0
    log: bool = False
    step: float = 0
    choices: tuple[Any, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether a range is of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def suggest(self, trial: Any) -> Any:
        """The field's value in an optuna trial: chosen now, or before."""
        if self.choices:
            texts = [json.dumps(each) for each in self.choices]
            return json.loads(trial.suggest_categorical(self.name, texts))
        more = {"log": self.log, **({"step": self.step} if self.step else {})}
        kind = trial.suggest_int if self.whole else trial.suggest_float
        return kind(self.name, self.low, self.high, **more)

    def stored(self, value: Any) -> Any:
        """A value as optuna keeps it."""
        return json.dumps(value) if self.choices else value

    def read(self, kept: Any) -> Any:
        """A value of what optuna keeps."""
        return json.loads(kept) if self.choices else kept

    def holds(self, value: Any) -> bool:
        """Whether a value is one that the field may take."""
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        on_step = not self.step or math.isclose((value - self.low) % self.step, 0, abs_tol=1e-12)
        return self.low <= value <= self.high and on_step and (not self.whole or value % 1 == 0)

    def probes(self) -> tuple[Any, ...]:
        """Values that show whether a recipe takes them: all choices, or both ends."""
        return self.choices or (self.low, self.high)

    def record(self) -> Any:
        """As a YAML file has it."""
        if self.choices:
            return list(self.choices)
        step = f"/{self.step!r}" if self.step else ""
        return f"{'log:' if self.log else ''}{self.low!r}..{self.high!r}{step}"


def read_space(path: str | Path | None, words: Sequence[str] = ()) -> list[Dimension]:
    """The search space of a YAML file and of `key=values` on the command line.

    Raises:
        BedstoneError: the file or a range can't be read, a field is there twice, or none is.
    """
    found: dict[str, Dimension] = {}
    pairs = list(flat(read_values(path)).items()) if path is not None else []
    for word in (each for text in words for each in text.split()):
        name, equals, values = word.partition("=")
        if not equals or not name:
            raise BedstoneError(f"--over {word!r}: is written key=values, as optim.lr=1e-4..1e-2.")
        pairs.append((name, values))
    for name, values in pairs:
        if name in found:
            raise BedstoneError(f"{name}: is in the search space twice. Keep one of the two.")
        found[name] = _dimension(name, values)
    if not found:
        raise BedstoneError(
            "tune: no field is varied. Name one by --over, as --over optim.lr=log:1e-4..1e-2, or "
            "several in a YAML file by --space."
        )
    return list(found.values())


def _dimension(name: str, values: Any) -> Dimension:
    if isinstance(values, str) and (match := _RANGE.fullmatch(values.strip())):
        return _range(name, values, *match.groups())
    if isinstance(values, str):
        values = [load_yaml(each, f"{name}: {each!r}") for each in values.split(",")]
    if not isinstance(values, list) or len(values) < 2:
        raise BedstoneError(f"{name}: {shown(values)} is one value; {FORMS}.")
    choices = tuple(_number(each) for each in values)
    if len({json.dumps(each) for each in choices}) < len(choices):
        raise BedstoneError(f"{name}: a value is there twice in {shown(values)}. Keep one of them.")
    return Dimension(name, choices=choices)


def _number(value: Any) -> Any:
    """A value of YAML, which reads 1e-3 as a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _range(name: str, text: str, log: str, low: str, high: str, step: str) -> Dimension:
    whole = all(_WHOLE.fullmatch(each) for each in (low, high, step or "1"))
    try:
        ends = [(int if whole else float)(each) for each in (low, high, step or "0")]
    except ValueError:
        raise BedstoneError(f"{name}: {text!r} can't be read; {FORMS}.") from None
    first, last, every = ends
    if not all(map(math.isfinite, ends)) or first >= last:
        raise BedstoneError(f"{name}: {text!r}: expected two finite numbers, the lower one first.")
    if log and (first <= 0 or step):
        raise BedstoneError(f"{name}: {text!r}: log: takes numbers above 0, without a step.")
    if step and not 0 < every <= last - first:
        raise BedstoneError(f"{name}: {text!r}: the step has to be above 0 and within the range.")
    return Dimension(name, first, last, bool(log), every)


def check_space(space: Sequence[Dimension], recipe: Mapping[str, Any], by: str) -> None:
    """Refuses what no trial could be run or compared by, before one is.

    Args:
        recipe: the values that trials share.
        by: the figure that they are compared by.

    Raises:
        BedstoneError: a field is unknown or fixed, or a value isn't one that it takes.
    """
    kind = type(read(recipe, usual="supervised"))
    for each in space:
        section = each.name.partition(".")[0]
        why = _MEASURED if section in SECTIONS else FIXED.get(each.name, "")
        if section == "tokenizer" and by.removeprefix("-") != "validation_bits_per_byte":
            why = f"{_MEASURED}: a token is another unit then. Compare by validation_bits_per_byte"
        if why:
            raise BedstoneError(f"{each.name}: {why}. Leave it out of the search space.")
        for value in each.probes():
            made = read(recipe, [{each.name: value}], usual="supervised")
            if type(made) is not kind:
                raise BedstoneError(
                    f"{each.name}: {shown(value)} makes it a recipe of another method, "
                    f"{type(made).__name__}. Tune each method by itself."
                )
            check_values(method_of(made), made)
