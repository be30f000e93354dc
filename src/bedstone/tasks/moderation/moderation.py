"""moderation: the action of a user's policy for a text, an image, or an item of both.

Scores of an uncalibrated policy only order things; after `bedstone calibrate` they are
probabilities. Shapes: n posts, C categories.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bedstone.checkpoints.model import Model, weights_hash
from bedstone.errors import BedstoneError
from bedstone.tasks.moderation.policy import ACTIONS, PARTS, Policy, read_policy
from bedstone.tasks.moderation.scorers import Scored, Scorer, classifies, scorer_of
from bedstone.tasks.task import Options, Task, shown, text_of
from bedstone.tasks.text.feature_extraction import Embeds, can_embed, embedder_of

KEYS = {"text", "image"}


@dataclass(frozen=True)
class Item:
    """A text, an image, or both; `number` is its place among several."""

    text: str | None = None
    image: Any = None
    number: int | None = None


def item_of(value: Any) -> Item:
    """The item that an input is: a string is a text, never a file's name.

    Raises:
        BedstoneError: it is neither text nor image, is empty, or has other keys.
    """
    text, image = value, None
    if isinstance(value, dict):
        if not value or not value.keys() <= KEYS:
            keys = ", ".join(map(str, value)) or "none"
            raise BedstoneError(f"the keys are {keys}; expected text, image or both.")
        text, image = value.get("text"), value.get("image")
        if text is None and image is None:
            raise BedstoneError("text and image are both None; give at least one.")
        image = Path(image) if isinstance(image, str) else image
    elif is_image_item(value):
        text, image = None, value
    if image is not None and not is_image_item(image):
        raise BedstoneError(
            f"image is {shown(image)}; expected a path, bytes, an array (H, W, 3) or Pillow's."
        )
    if text is None and image is not None:
        return Item(None, image)
    return Item(text_of(text), image)


def is_image_item(value: Any) -> bool:
    """Whether a value is an image or names one: a `Path`, bytes, an array or Pillow's image."""
    if isinstance(value, Path | bytes | bytearray):
        return True
    if isinstance(value, np.ndarray):
        return value.ndim in (2, 3)
    return hasattr(value, "convert") and hasattr(value, "getbands")


@dataclass(frozen=True)
class ModerationOptions(Options):
    """Options of moderation.

    Attributes:
        policy: a YAML file (see `tasks.moderation.policy`), what it holds as a dict, or a `Policy`.
    """

    policy: Any = None


class Moderation(Task):
    """An item -> `{"action", "reason", "scores", "categories"}`.

    A string is a text, never the name of a file: what strangers wrote must not open files. A
    image is a `Path`, bytes, an array (H, W, 3) or Pillow's image. `{"text": ..., "image": ...}`
    is a post of both, or one, whose `image` may be a string that names a file.

    Each category has the score of the part that shows it more. The action is the gravest of those
    categories whose score is at least their threshold.
    """

    name = "moderation"
    asks = "a model that embeds texts (and pictures: a CLIP), or a classifier's labels"
    settings: ClassVar[type[Any]] = ModerationOptions
    reads: ClassVar[str] = "both"

    def open(self, precision: str) -> None:
        self.precision = precision
        self.embedder: Embeds | None = None
        self._scorers: dict[str, tuple[Policy, Scorer]] = {}

    @classmethod
    def fits(cls, model: Model) -> bool:
        return can_embed(model) or classifies(model)

    def is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str | dict) or is_image_item(inputs)

    def prepare(self, value: Any, options: ModerationOptions) -> Item:
        return item_of(value)

    def stream(
        self, values: Iterable[Any], options: ModerationOptions, ahead: int
    ) -> Iterator[dict[str, Any]]:
        numbered = enumerate(values)
        while group := list(itertools.islice(numbered, ahead)):
            items = []
            for number, value in group:
                with self._naming(number):
                    items.append(dataclasses.replace(self.prepare(value, options), number=number))
            yield from self.results(items, options)

    def results(self, rows: Sequence[Item], options: ModerationOptions) -> Iterator[dict[str, Any]]:
        policy = self.policy(options)
        found = self.scored(rows, policy)
        scores = {part: probabilities(policy, part, scored) for part, (_, scored) in found.items()}
        for number in range(len(rows)):
            seen = [
                (part, scores[part][at], scored.why[at])
                for part, (numbers, scored) in found.items()
                if (at := numbers.get(number)) is not None
            ]
            yield judged(policy, seen)

    def policy(self, options: ModerationOptions) -> Policy:
        """The policy, read and made for this model.

        Raises:
            BedstoneError: there is none, it is wrong, or it was calibrated for another model or
                other sentences.
        """
        if options.policy is None:
            raise BedstoneError(
                "moderation: no policy was given; name its file: policy=policy.yaml. "
                "`bedstone recipes moderation-policy > policy.yaml` writes one to begin with."
            )
        policy = read_policy(options.policy)
        known = policy.calibrated
        if known and (known.get("policy"), known.get("model")) != self.made_for(policy):
            other = "model" if known.get("policy") == policy.fingerprint() else "wording"
            raise BedstoneError(
                f"{policy.where}: was calibrated for another {other} than is used here, so its "
                "probabilities and thresholds mean nothing now. Run bedstone calibrate again."
            )
        return policy

    def made_for(self, policy: Policy) -> tuple[str, str]:
        """What a calibration holds for: a hash of the policy's sentences, one of the weights."""
        if not hasattr(self, "_weights"):
            self._weights = weights_hash(self.model)[:16]
        return policy.fingerprint(), self._weights

    def scored(
        self, rows: Sequence[Item], policy: Policy
    ) -> dict[str, tuple[dict[int, int], Scored]]:
        """{part: (number of a row -> its number there, what was found)}, of parts that occur."""
        scorer = self._scorer(policy)
        found = {}
        for part in PARTS:
            numbers = [n for n, row in enumerate(rows) if getattr(row, part) is not None]
            if numbers:
                held = [getattr(rows[n], part) for n in numbers]
                read = scorer.texts if part == "text" else scorer.images
                try:
                    scored = read(held)
                except BedstoneError as error:
                    raise self._placed(error, read, [rows[n] for n in numbers], part) from error
                found[part] = {n: at for at, n in enumerate(numbers)}, scored
        return found

    def _placed(
        self, error: BedstoneError, read: Any, items: Sequence[Item], part: str
    ) -> BedstoneError:
        """The error with the number of the post that has it, if it is one of several's."""
        for item in items:
            try:
                read([getattr(item, part)])
            except BedstoneError as own:
                where = "" if item.number is None else f"inputs[{item.number}]: "
                return BedstoneError(f"{self.name}: {where}{own}")
        return error

    def _scorer(self, policy: Policy) -> Scorer:
        """Kept, so that the sentences are embedded once."""
        key = policy.fingerprint()
        if key not in self._scorers:
            if self.embedder is None and not policy.by_labels and can_embed(self.model):
                self.embedder = embedder_of(self.model, self.precision)
            scorer = scorer_of(self.model, self.embedder, policy, self.precision)
            self._scorers = {key: (policy, scorer)}
        return self._scorers[key][1]


def probabilities(policy: Policy, part: str, scored: Scored) -> np.ndarray:
    """(n, C) scores from 0 to 1 of one part of posts.

    Raises:
        BedstoneError: the policy was calibrated, but not for this part.
    """
    columns = []
    calibrated = any(each.calibration for each in policy.categories.values())
    for number, (name, category) in enumerate(policy.categories.items()):
        if not calibrated:
            columns.append(scored.plain[:, number])
            continue
        if part not in category.calibration:
            raise BedstoneError(
                f"{policy.where}: {name} was not calibrated for {part}s, so its threshold can't "
                f"judge one. Run bedstone calibrate on a sample that has {part}s too."
            )
        columns.append(category.calibration[part].of(scored.raw[:, number], scored.vectors))
    return np.stack(columns, axis=1)


def judged(policy: Policy, seen: Sequence[tuple[str, np.ndarray, Sequence[str]]]) -> dict[str, Any]:
    """The result of one post from (part, (C,) scores, (C,) reasons) of each of its parts."""
    categories = []
    for number, (name, category) in enumerate(policy.categories.items()):
        part, scores, why = max(seen, key=lambda each: each[1][number])
        score = float(scores[number])
        over = score >= category.threshold
        categories.append(
            {
                "category": name,
                "score": score,
                "threshold": category.threshold,
                "action": category.action if over else "allow",
                "over": over,
                "part": part,
                "nearest": why[number],
            }
        )
    categories.sort(key=lambda one: (ACTIONS.index(one["action"]), one["over"], one["score"]))
    categories.reverse()  # the gravest first
    return {
        "action": categories[0]["action"],
        "reason": reason(categories[0]),
        "scores": {name: _of(categories, name)["score"] for name in policy.categories},
        "categories": categories,
    }


def reason(found: dict[str, Any]) -> str:
    """The reason of the action, as a sentence."""
    side = "at least" if found["over"] else "below"
    return (
        f"{found['category']} {found['score']:.2f}, {side} its threshold of "
        f"{found['threshold']:.2f}; the {found['part']} is nearest to {found['nearest']!r}"
    )


def _of(categories: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(each for each in categories if each["category"] == name)
