"""How beam search looks for continuations, and the published names of its settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bedstone.errors import BedstoneError
from bedstone.settings import check_whole

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
MINIMA = {"beams": 1, "returned": 1, "max_tokens": 1, "no_repeat_ngram": 0, "min_tokens": 0}
RANGES = {"length_penalty": (-10, 10), "repetition_penalty": (0.01, 100)}  # from, to
SAMPLED = ("temperature", "top_k", "top_p", "min_p")  # settings that ask for chance
OF_BEAMS = ("length_penalty", "early_stopping")  # settings that only beams have


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
        for name, field in PUBLISHED.items():
            value = getattr(self, field)
            if field in MINIMA:
                check_whole(name, value, MINIMA[field])
            elif field in RANGES:
                least, most = RANGES[field]
                if type(value) not in (int, float) or not least <= value <= most:
                    raise BedstoneError(
                        f"{name}: {value!r} was given; expected a number from {least} to {most}."
                    )
            elif not (isinstance(value, bool) or value == "never"):
                raise BedstoneError(
                    f'{name}: {value!r} was given; expected true, false or "never".'
                )
        if self.returned > self.beams:
            raise BedstoneError(
                f"num_return_sequences: {self.returned} continuations were asked for, and "
                f"num_beams, {self.beams}, gives no more than {self.beams}. Raise the one, or "
                "lower the other."
            )
        if self.min_tokens > self.max_tokens:
            raise BedstoneError(
                f"min_new_tokens: is {self.min_tokens}, more than max_new_tokens, "
                f"{self.max_tokens}. Lower the one, or raise the other."
            )

    @property
    def early(self) -> bool:
        """Whether the first continuations to end are enough; of one beam they are."""
        return self.early_stopping is True or self.beams == 1

    def scored(self, total: float, length: int) -> float:
        """What continuations are compared by: log-probability `total` of `length` tokens."""
        return total / length**self.length_penalty


def published_beams(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `BeamSearch` among settings that have their published names; None says nothing."""
    known = {name: settings.get(name) for name in PUBLISHED}
    return {PUBLISHED[name]: value for name, value in known.items() if value is not None}


def chance_of(given: Mapping[str, Any]) -> bool | None:
    """Whether settings, by their published names, ask for chance; None where they say nothing.

    A temperature of 0 leaves none, whatever stands beside it.
    """
    if given.get("temperature") == 0:
        return False
    if given.get("do_sample") is not None:
        return bool(given["do_sample"])
    return True if any(given.get(name) is not None for name in SAMPLED) else None


def beam_search_of(
    given: Mapping[str, Any], model: Mapping[str, Any], *, max_tokens: int
) -> BeamSearch | None:
    """The beam search that settings ask for; None where they ask for something else.

    Args:
        given: published names and what the caller says; None says nothing.
        model: the model's generation_config.json, which counts where the caller says nothing. Its
            beams give way to a caller who wants chance, its chance to one who wants beams.
        max_tokens: the most tokens to generate.

    Raises:
        BedstoneError: beams and chance are both asked for, or what only beams have without them;
            a value is out of range.
    """
    given = {name: value for name, value in given.items() if value is not None}
    chance = chance_of(given)
    if "num_beams" in given:
        beams = given["num_beams"]
        check_whole("num_beams", beams, 1)
        if beams > 1 and chance:
            raise BedstoneError(
                f"num_beams: {beams} beams were asked for together with chance (do_sample, "
                f"{', '.join(SAMPLED)}). Beam search draws nothing: leave one of the two out."
            )
    else:
        chance = model.get("do_sample") if chance is None else chance
        beams = 1 if chance else model.get("num_beams") or 1
    if beams == 1:
        for name in OF_BEAMS:
            if name in given:
                raise BedstoneError(
                    f"{name}: {given[name]!r} was given, which counts for beam search alone. Give "
                    "num_beams of 2 or more, or leave it out."
                )
        return None
    said = {**published_beams(model), "returned": 1}
    said["min_tokens"] = min(said.get("min_tokens", 0), max_tokens)  # the caller's limit wins
    return BeamSearch(
        **{**said, **published_beams(given), "beams": beams, "max_tokens": max_tokens}
    )
