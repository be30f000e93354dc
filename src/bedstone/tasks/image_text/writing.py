"""How a text about a picture is written: token by token, by chance, or by beam search.

Options have the names that `generate` of transformers has; what isn't given is as the model's
generation_config.json says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from bedstone.errors import BedstoneError, nearest
from bedstone.generation import sampling
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import BeamSearch, beam_search_of, chance_of
from bedstone.generation.settings import published_beams as beams_of
from bedstone.settings import check_whole, is_number
from bedstone.tasks.images.engine import ImageOptions
from bedstone.tasks.task import shown

WHOLE = {"max_new_tokens": 1, "max_length": 1, "num_beams": 1, "num_return_sequences": 1}
WHOLE |= {"no_repeat_ngram_size": 0, "min_new_tokens": 0, "top_k": 0, "seed": 0}
NUMBERS = ("length_penalty", "temperature", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class ImageTextGenerationOptions(ImageOptions):
    """How to write.

    Attributes:
        max_new_tokens: tokens to write, at most.
        num_beams, length_penalty, early_stopping, no_repeat_ngram_size, min_new_tokens: of beam
            search, as in `BeamSearch`; 1 beam takes the likeliest token each time.
        do_sample, temperature, top_p, min_p: of chance, as in `Sampling`; in `generate_kwargs`
            also `top_k`.
        repetition_penalty: above 1 makes what was written less likely.
        num_return_sequences: texts of each picture.
        seed: of chance: a picture then has the same texts each time, whatever stands beside it.
        generate_kwargs: any of these, and `max_length`, in a dictionary.
    """

    max_new_tokens: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    no_repeat_ngram_size: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    num_return_sequences: int | None = None
    seed: int | None = None
    generate_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """What was given, by its name in `generate`."""
        given = {name: getattr(self, name) for name in SETTINGS if name in _OWN}
        given = {name: value for name, value in given.items() if value is not None}
        more = {} if self.generate_kwargs is None else self.generate_kwargs
        if not isinstance(more, Mapping):
            raise BedstoneError(
                f"generate_kwargs: {shown(more)} was given; expected a dictionary, such as "
                '{"num_beams": 4}.'
            )
        for name in more:
            if name not in SETTINGS:
                raise BedstoneError(
                    f"generate_kwargs: {name!r} is unknown{nearest(str(name), SETTINGS)}."
                )
            if name in given:
                raise BedstoneError(f"generate_kwargs: {name!r} is given twice. Leave one out.")
        return given | {name: value for name, value in more.items() if value is not None}


_OWN = [each.name for each in fields(ImageTextGenerationOptions)]
_OTHER = [each.name for each in fields(ImageOptions)] + ["generate_kwargs"]
SETTINGS = [name for name in _OWN if name not in _OTHER] + ["top_k", "max_length"]


@dataclass(frozen=True)
class GenerationPlan:
    """One of the two ways to write, and how many texts of each picture.

    Attributes:
        search: by beams; None where `sampling` says how.
        sampling: token by token.
        each: texts of each prompt.
    """

    search: BeamSearch | None
    sampling: Sampling | None
    each: int = 1


def generation_plan(
    options: ImageTextGenerationOptions,
    published: Mapping[str, Any],
    begun: int,
    *,
    most: int,
    beams: int = 1,
    each: int = 1,
) -> GenerationPlan:
    """The way that options ask for.

    Args:
        published: what generation_config.json holds.
        begun: tokens that are there before the first new one, which `max_length` counts.
        most: tokens to write, at most, where nothing says how many.
        beams, each: how many there are where nothing says it.

    Raises:
        BedstoneError: two options don't fit, or a value is out of range.
    """
    given = options.settings
    held = {name: published[name] for name in SETTINGS if published.get(name) is not None}
    if "max_new_tokens" in given or "max_length" in given:
        held = {name: value for name, value in held.items() if not name.startswith("max_")}
    chance = chance_of(given)
    drawn_anyway = chance is None and held.get("do_sample") and "num_beams" not in given
    if each > 1 and not chance and not drawn_anyway:
        wide = given.get("num_beams", held.get("num_beams", beams))
        given = {"num_beams": wide, "num_return_sequences": min(each, wide)} | given
    known = held | given
    room = known.get("max_new_tokens") or max(known.get("max_length", most + begun) - begun, 1)
    search = beam_search_of(given, held, max_tokens=room)
    if search is not None:
        return GenerationPlan(search, None, search.returned)
    chance = bool(drawn_anyway if chance is None else chance)
    each = given.get("num_return_sequences", 1)
    if given.get("min_new_tokens"):
        if chance:
            raise BedstoneError(
                f"min_new_tokens: {given['min_new_tokens']} was given, which counts without chance "
                "alone. Leave it out, or give do_sample=False."
            )
        said = {**beams_of(held), "returned": 1, **beams_of(given)}
        return GenerationPlan(BeamSearch(**{**said, "beams": 1, "max_tokens": room}), None)
    drawn = Sampling(
        max_tokens=room,
        seed=known.get("seed"),
        **{"temperature": 0.0, **sampling.published(known, chance)},
    )
    if each > 1 and drawn.temperature == 0:
        raise BedstoneError(
            f"num_return_sequences: {each} texts of each picture were asked for, and without "
            "chance or beams all are the same. Give num_beams, or do_sample=True."
        )
    return GenerationPlan(None, drawn, each)


def _check(given: dict[str, Any]) -> None:
    """Raises BedstoneError for values of a wrong kind; their ranges are checked where used."""
    for name in WHOLE:
        if name in given:
            check_whole(name, given[name], WHOLE[name])
    for name in NUMBERS:
        if name in given and not is_number(given[name]):
            raise BedstoneError(f"{name}: {given[name]!r} was given; expected a number.")
