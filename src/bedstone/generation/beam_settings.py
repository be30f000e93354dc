"""How beam search looks for continuations, and the published names of its settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bedstone.checks import at_least
from bedstone.data.labelled import is_number
from bedstone.errors import BedstoneError

# Fields of `BeamSearch` by the names that `generate` and generation_config.json have.
PUBLISHED = {
    "num_beams": "beams",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "min_new_tokens": "min_tokens",
    "num_return_sequences": "returned",
    "max_new_tokens": "max_tokens",
    "repetition_penalty": "repetition_penalty",
}


@dataclass(frozen=True)
class BeamSearch:
    """How continuations are searched for; in brackets the published names.

    Attributes:
        beams: followed at a time (num_beams); 1 is greedy.
        length_penalty: the power of the length that a sum of log-probabilities is divided by:
            above 0 favours longer continuations, below 0 shorter ones.
        early_stopping: True stops at as many ended continuations as there are beams; False when
            the best beam, at its length now, wouldn't be among them; "never" when it couldn't be
            at any length.
        no_repeat_ngram: so many tokens never come twice in the same order; 0 lets them
            (no_repeat_ngram_size).
        min_tokens: no end token before so many (min_new_tokens).
        returned: continuations to give of each prompt, best first (num_return_sequences).
        max_tokens: the most tokens to generate (max_new_tokens).
        repetition_penalty: above 1 makes what a beam already holds less likely.

    Raises:
        BedstoneError: a value is out of range, or two don't fit.
    """

    beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    no_repeat_ngram: int = 0
    min_tokens: int = 0
    returned: int = 1
    max_tokens: int = 64
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        at_least(self, 1, "beams", "returned", "max_tokens", prefix="beam_search.")
        at_least(self, 0, "no_repeat_ngram", "min_tokens", prefix="beam_search.")
        numbers = {
            "length_penalty": (lambda value: -10 <= value <= 10, "from -10 to 10"),
            "repetition_penalty": (lambda value: 0 < value <= 1e6, "above 0 (1 is no penalty)"),
        }
        for name, (good, expected) in numbers.items():
            value = getattr(self, name)
            if not is_number(value) or not good(value):
                raise BedstoneError(
                    f"beam_search.{name}: {value!r} was given; expected a number {expected}."
                )
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise BedstoneError(
                f"beam_search.early_stopping: {self.early_stopping!r} was given; expected true, "
                'false or "never".'
            )
        if self.returned > self.beams:
            raise BedstoneError(
                f"beam_search.returned: {self.returned} continuations were asked for, and "
                f"{self.beams} beams can give {self.beams}. Raise beams, or ask for fewer."
            )
        if self.min_tokens > self.max_tokens:
            raise BedstoneError(
                f"beam_search.min_tokens: is {self.min_tokens}, more than max_tokens, "
                f"{self.max_tokens}. Lower the one, or raise the other."
            )

    @property
    def early(self) -> bool:
        """Whether the first continuations to end are enough; of one beam they are."""
        return self.early_stopping is True or self.beams == 1

    def scored(self, total: float, length: int) -> float:
        """What continuations are compared by: log-probability `total` of `length` tokens."""
        return total / length**self.length_penalty


def published(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `BeamSearch` among settings that have their published names; None says nothing."""
    known = {name: settings.get(name) for name in PUBLISHED}
    return {PUBLISHED[name]: value for name, value in known.items() if value is not None}
