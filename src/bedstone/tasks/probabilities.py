"""From a category's raw score to the probability that the category holds.

Three ways, each fitted on a labelled sample by `bedstone calibrate` and kept in the policy file:
Platt (1999), a logistic curve of the raw score; isotonic regression, any rising steps (Zadrozny and
Elkan, 2002); and a direction, a logistic regression on the embedding itself, which learns the
category anew and no longer asks what its sentences say.

Shapes: n posts, E numbers of an embedding.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bedstone.errors import BedstoneError, nearest
from bedstone.mapping import from_mapping


@dataclass(frozen=True)
class Platt:
    """1 / (1 + exp(-(slope * raw + offset)))."""

    kind: ClassVar[str] = "platt"
    slope: float
    offset: float

    def of(self, raw: np.ndarray, vectors: np.ndarray | None) -> np.ndarray:
        """(n,) raw scores to (n,) probabilities."""
        return sigmoid(self.slope * raw + self.offset)


@dataclass(frozen=True)
class Isotonic:
    """Straight lines between points; beyond them as at the outermost."""

    kind: ClassVar[str] = "isotonic"
    raw: tuple[float, ...]
    probability: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(
            list(each) == sorted(each) and all(map(math.isfinite, each))
            for each in (self.raw, self.probability)
        )
        if len(self.raw) != len(self.probability) or not self.raw or not rising:
            raise BedstoneError(
                "raw and probability: expected as many of both, at least one, each in rising order."
            )
        if not 0 <= self.probability[0] <= self.probability[-1] <= 1:
            raise BedstoneError("probability: goes beyond 0 to 1.")

    def of(self, raw: np.ndarray, vectors: np.ndarray | None) -> np.ndarray:
        """(n,) raw scores to (n,) probabilities."""
        return np.interp(raw, self.raw, self.probability)


@dataclass(frozen=True)
class Direction:
    """1 / (1 + exp(-(weights . embedding + offset)))."""

    kind: ClassVar[str] = "direction"
    weights: tuple[float, ...]
    offset: float

    def of(self, raw: np.ndarray, vectors: np.ndarray | None) -> np.ndarray:
        """(n, E) embeddings to (n,) probabilities."""
        if vectors is None or vectors.shape[1] != len(self.weights):
            has = "none" if vectors is None else f"{vectors.shape[1]} numbers"
            raise BedstoneError(
                f"policy: a direction of {len(self.weights)} numbers was learnt for a category, "
                f"and the model's embeddings have {has}. Calibrate the policy for this model."
            )
        return sigmoid(vectors.astype(float) @ np.array(self.weights) + self.offset)


Probability = Platt | Isotonic | Direction
KINDS: dict[str, type[Any]] = {each.kind: each for each in (Platt, Isotonic, Direction)}


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def read_probability(values: Any, where: str, key: str) -> Probability:
    """One from plain values, as `plain` gives them.

    Raises:
        BedstoneError: the kind is unknown, or a value is missing or doesn't fit.
    """
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise BedstoneError(f"{where}: {key}.kind is {kind!r}{nearest(str(kind), KINDS)}.")
    left = {name: value for name, value in values.items() if name != "kind"}
    missing = {each.name for each in dataclasses.fields(KINDS[kind])} - set(left)
    if missing:
        raise BedstoneError(
            f"{where}: {key} has no {' and no '.join(sorted(missing))}; `bedstone calibrate` "
            "writes them. Run it again."
        )
    try:
        made: Probability = from_mapping(KINDS[kind], left, where, f"{key}.")
        numbers = [x for each in vars(made).values() for x in np.atleast_1d(each).tolist()]
        if not all(map(math.isfinite, numbers)):
            raise BedstoneError("a number is not finite.")
        return made
    except BedstoneError as error:
        told = str(error)
        raise BedstoneError(told if told.startswith(where) else f"{where}: {key}: {told}") from None


def plain(probability: Probability) -> dict[str, Any]:
    """Its kind and its values; lists of numbers are tuples."""
    return {"kind": probability.kind, **dataclasses.asdict(probability)}
