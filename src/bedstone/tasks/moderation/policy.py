"""A moderation policy: categories in the user's own sentences, their thresholds and actions.

    counters: [small talk about anything]       # of every category; may be left out
    categories:
      insult:
        sentences: [a text that insults someone]
        counters: [friendly teasing]            # what looks alike and is meant to pass
        threshold: 0.6
        action: block                           # or flag, or allow: scored alone

Of a text classifier, `labels: [toxic]` stands in place of sentences. `bedstone calibrate` adds how
raw scores become probabilities.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml

from bedstone.errors import BedstoneError, nearest
from bedstone.files import write_text
from bedstone.reading import kind_of, read_text, to_path
from bedstone.settings import YAML_LIMIT, from_mapping, load_yaml


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
        message = str(error)
        raise BedstoneError(
            message if message.startswith(where) else f"{where}: {key}: {message}"
        ) from None


def plain(probability: Probability) -> dict[str, Any]:
    """Its kind and its values; lists of numbers are tuples."""
    return {"kind": probability.kind, **dataclasses.asdict(probability)}


ACTIONS = ("allow", "flag", "block")  # by how grave they are
PARTS = ("text", "image")
KEYS = ("counters", "categories", "calibrated")


@dataclass(frozen=True)
class Category:
    """What is looked for, and what is done about it.

    Attributes:
        sentences: each describes it; the nearest one counts.
        counters: each describes what looks alike but isn't it.
        labels: of a classifier, those that mean it; instead of sentences.
        threshold: the score from which on the action is taken.
        action: allow, flag or block.
        calibration: {part: how its raw scores become probabilities}.
    """

    sentences: tuple[str, ...] = ()
    counters: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    threshold: float = 0.5
    action: str = "flag"
    calibration: dict[str, Probability] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """Categories by name.

    Attributes:
        counters: those of every category.
        calibrated: for which model and sentences it was calibrated, and what was measured; empty
            where it wasn't.
        where: its file, for messages.
    """

    categories: dict[str, Category]
    counters: tuple[str, ...] = ()
    calibrated: dict[str, Any] = field(default_factory=dict)
    where: str = "policy"

    @property
    def by_labels(self) -> bool:
        """Whether a classifier's labels are asked for, not sentences."""
        return any(each.labels for each in self.categories.values())

    def sentences_of(self, name: str) -> tuple[list[str], list[str]]:
        """The sentences of a category, and its counter-sentences with those of all."""
        category = self.categories[name]
        return list(category.sentences), [*category.counters, *self.counters]

    def fingerprint(self) -> str:
        """A hash of what raw scores depend on: sentences, counters and labels."""
        record = [
            [name, *self.sentences_of(name), each.labels] for name, each in self.categories.items()
        ]
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()[:16]

    def plain(self) -> dict[str, Any]:
        """As `read_policy` reads it back; what is not said is left out."""
        record: dict[str, Any] = {"counters": list(self.counters)} if self.counters else {}
        record["categories"] = {}
        for name, each in self.categories.items():
            lists = {key: list(getattr(each, key)) for key in ("sentences", "counters", "labels")}
            values: dict[str, Any] = {key: value for key, value in lists.items() if value}
            values |= {"threshold": each.threshold, "action": each.action}
            if each.calibration:
                values["calibration"] = {part: plain(how) for part, how in each.calibration.items()}
            record["categories"][name] = values
        if self.calibrated:
            record["calibrated"] = self.calibrated
        return record

    def write(self, path: str | Path, comment: str = "") -> None:
        """Writes it as YAML, whole or not at all. Raises BedstoneError as `write_text` does."""
        head = "".join(f"# {line}\n" for line in comment.splitlines())
        text = yaml.dump(
            self.plain(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
        )
        write_text(path, head + text)


def read_policy(given: Any) -> Policy:
    """A policy from a YAML file, or from the mapping that such a file holds.

    Raises:
        BedstoneError: it can't be read, or says something that is no policy: naming the field,
            what it holds and what was expected.
    """
    if isinstance(given, Policy):
        return given
    if isinstance(given, Mapping):
        return _policy(given, "policy")
    if not isinstance(given, str | Path):
        raise BedstoneError(
            f"policy: {given!r} was given; expected a YAML file, or a dict with categories."
        )
    path = to_path(given)
    if not kind_of(path):
        raise BedstoneError(
            f"{path}: the policy can't be read (No such file or directory). "
            "`bedstone recipes moderation-policy > policy.yaml` writes one to begin with."
        )
    text = read_text(path, YAML_LIMIT)
    values = load_yaml(text, f"{path}: is no YAML")
    return _policy(values, str(path))


def _policy(values: Any, where: str) -> Policy:
    if not isinstance(values, Mapping) or not values.get("categories"):
        raise BedstoneError(f"{where}: has no categories; a policy names at least one of them.")
    for key in values:
        if key not in KEYS:
            raise BedstoneError(f"{where}: unknown key {str(key)!r}{nearest(str(key), KEYS)}.")
    named = values["categories"]
    if not isinstance(named, Mapping):
        raise BedstoneError(
            f"{where}: categories is a {type(named).__name__}; expected a section for each "
            "category, under its name."
        )
    common = _texts(values.get("counters"), where, "counters")
    categories = {}
    for name, inner in named.items():
        if not isinstance(name, str) or not name.strip():
            raise BedstoneError(
                f"{where}: categories: {name!r} is no name; expected a word. In YAML yes, no, on "
                "and off aren't words: put them in quotes."
            )
        categories[name] = _category(inner, where, f"categories.{name}", common)
    kinds = {bool(each.labels) for each in categories.values()}
    if len(kinds) > 1:
        raise BedstoneError(
            f"{where}: some categories have labels and others sentences; labels are read by a "
            "classifier, sentences by a model that embeds. Use one of the two."
        )
    calibrated = values.get("calibrated") or {}
    if not isinstance(calibrated, Mapping):
        raise BedstoneError(
            f"{where}: calibrated is {calibrated!r}; `bedstone calibrate` writes it."
        )
    if not calibrated and any(each.calibration for each in categories.values()):
        raise BedstoneError(
            f"{where}: has calibrations, but not for which model: the section `calibrated` is "
            "missing. Run bedstone calibrate again."
        )
    return Policy(categories, common, dict(calibrated), where)


def _category(values: Any, where: str, key: str, common: tuple[str, ...]) -> Category:
    if not isinstance(values, Mapping):
        raise BedstoneError(
            f"{where}: {key} is {values!r}; expected a section with sentences, threshold, action."
        )
    held = dict(values)
    for name in ("sentences", "counters", "labels"):
        held[name] = _texts(held.get(name), where, f"{key}.{name}")
    maps = held.pop("calibration", None) or {}
    if not isinstance(maps, Mapping) or set(maps) - set(PARTS):
        raise BedstoneError(f"{where}: {key}.calibration: expected a section {' or '.join(PARTS)}.")
    made = from_mapping(Category, held, where, f"{key}.")
    if bool(made.sentences) == bool(made.labels):
        what = "both sentences and labels" if made.labels else "no sentences (and no labels)"
        raise BedstoneError(
            f"{where}: {key} has {what}; expected sentences that describe the category, or the "
            "labels of a classifier."
        )
    if made.labels and (made.counters or common):
        raise BedstoneError(f"{where}: {key}: counters stand against sentences, not labels.")
    both = set(made.sentences) & {*made.counters, *common}
    if both:
        raise BedstoneError(
            f"{where}: {key}: {min(both)!r} is a sentence of the category and against it; keep one."
        )
    if not (math.isfinite(made.threshold) and 0 <= made.threshold <= 1):
        raise BedstoneError(
            f"{where}: {key}.threshold = {made.threshold}; expected a score from 0 to 1."
        )
    if made.action not in ACTIONS:
        raise BedstoneError(
            f"{where}: {key}.action = {made.action!r}{nearest(made.action, ACTIONS)}."
        )
    calibration = {
        part: read_probability(each, where, f"{key}.calibration.{part}")
        for part, each in maps.items()
    }
    return dataclasses.replace(made, calibration=calibration)


def _texts(given: Any, where: str, key: str) -> tuple[str, ...]:
    """A list of texts, or one."""
    found = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(found, list | tuple):
        raise BedstoneError(f"{where}: {key} = {given!r}; expected a list of texts.")
    for each in found:
        if not isinstance(each, str) or not each.strip():
            raise BedstoneError(
                f"{where}: {key}: holds {each!r}; expected texts that aren't empty."
            )
    return tuple(dict.fromkeys(each.strip() for each in found))


class _Dumper(yaml.SafeDumper):
    """Tuples, which are numbers here, stand in a row."""


_Dumper.add_representer(
    tuple,
    lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True),
)
