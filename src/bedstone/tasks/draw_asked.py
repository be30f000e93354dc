"""What is asked of a network that draws, made into what it takes: conditions, sizes, settings.

Shapes: B rows, C channels; *S the sizes of a signal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bedstone.checkpoints.drawing import DrawingModel
from bedstone.data.conditions import Condition, class_condition
from bedstone.data.reading import check_characters
from bedstone.errors import BedstoneError, closest, nearest
from bedstone.generation.denoise_multistep import METHODS
from bedstone.generation.denoise_published import Published, published
from bedstone.generation.denoise_times import SPACINGS, check_steps
from bedstone.mapping import from_mapping
from bedstone.models.dit_config import divided
from bedstone.recipes_diffusion import SamplingConfig
from bedstone.tasks.task import shown

Prompt = str | int | None  # words, a class by its name or number, or nothing
TOLD = 12  # classes that an error names


def conditions(
    model: DrawingModel, prompts: Sequence[Prompt], negative: Prompt = None
) -> tuple[Condition | None, Condition | None]:
    """The condition of each prompt, and one row of what not to draw: nothing, or `negative`.

    Raises:
        BedstoneError: there is no prompt; a class is unknown; a text is none, or too long; the
            model is told nothing.
    """
    if not len(prompts):
        raise BedstoneError(f"prompt: none was given; the model draws {model.told()}.")
    condition = model.signal.condition
    if condition == "text":
        read = model.prompts
        texts = [_text(prompt) for prompt in (*prompts, negative)]
        return read.condition(texts[:-1]), read.condition(texts[-1:])
    if condition == "class":
        numbers = [class_number(model, prompt) for prompt in (*prompts, negative)]
        count = model.config.classes
        return class_condition(numbers[:-1], count), class_condition(numbers[-1:], count)
    for prompt in (*prompts, negative):
        if prompt not in (None, ""):
            raise BedstoneError(
                f"prompt: {shown(prompt)} was given; the model draws {model.told()}. Leave it out."
            )
    return None, None


def class_number(model: DrawingModel, wanted: Prompt) -> int:
    """A class by its name, a part of its name between commas, or its number; the number of no class
    for None.

    Raises:
        BedstoneError: there is none of that name or number.
    """
    names, count = model.signal.names, int(model.config.classes)
    if wanted is None:
        return count
    if isinstance(wanted, str):
        known: dict[str, int] = {}
        for number, name in reversed(list(enumerate(names))):
            known |= {part.strip().casefold(): number for part in name.split(",")}
        known |= {name.strip().casefold(): number for number, name in enumerate(names)}
        word = wanted.strip()
        if word.casefold() in known:
            return known[word.casefold()]
        if not word.isdecimal():
            near = closest(word.casefold(), known)
            raise BedstoneError(f"class: {wanted[:60]!r} is unknown{near}. {_classes(names)}")
        wanted = int(word)
    if isinstance(wanted, bool) or not isinstance(wanted, int):
        raise BedstoneError(f"class: {shown(wanted)} was given; expected a name or a number.")
    if not 0 <= wanted < count:
        raise BedstoneError(
            f"class: {wanted} is out of range; the model knows {count} classes, 0 to {count - 1}. "
            f"{_classes(names)}"
        )
    return wanted


def settings(
    model: DrawingModel, given: Mapping[str, Any]
) -> tuple[SamplingConfig, Published | None]:
    """How to draw: as the model has it, but for what is given; None is not given.

    Raises:
        BedstoneError: a setting that there is not, or a value that can't be.
    """
    given = {name: value for name, value in given.items() if value is not None}
    base = asdict(model.sampling)
    alone = model.signal.condition == "none"
    if alone and given.get("guidance", 1.0) != 1.0:
        raise BedstoneError(
            f"guidance: {given['guidance']} was given; the model draws {model.told()}, so there is "
            "nothing to be guided to. Leave it out."
        )
    base |= {"guidance": 1.0} if alone else {}
    sampling = from_mapping(SamplingConfig, {**base, **given}, "sampling")
    for name, value, known in (
        ("method", sampling.method, METHODS),
        ("spacing", sampling.spacing, SPACINGS),
    ):
        if value not in known:
            raise BedstoneError(f"{name}: {value!r} is unknown{nearest(value, known)}.")
    check_steps(model.process, sampling.steps)
    own = model.scheduler and not given.keys() & {"method", "spacing"}
    return sampling, published(model.scheduler) if own else None


def shapes(model: DrawingModel, size: Sequence[int] = ()) -> tuple[tuple[int, ...], ...]:
    """(C, *S) of a signal, and of what the denoiser draws, which may be its latents.

    Args:
        size: of the signal, where it isn't to be that which was learnt.

    Raises:
        BedstoneError: a size that the autoencoder or the patches don't divide.
    """
    channels, *usual = model.signal.shape
    if not size:
        return (channels, *usual), (model.config.channels, *model.config.size)
    sides = list(size) if isinstance(size, Sequence) and not isinstance(size, str) else []
    if len(sides) != len(usual) or not all(type(side) is int and side > 0 for side in sides):
        raise BedstoneError(
            f"size: {sides or repr(size)} was given; expected {len(usual)} whole numbers above 0, "
            f"as the model has {usual}."
        )
    if model.autoencoder is None:
        divided(tuple(size), model.config.patches, "size")
        return (channels, *size), (channels, *size)
    shrink = model.autoencoder.config.shrink
    if any(side % shrink for side in size):
        raise BedstoneError(
            f"size: {list(size)} was given; the autoencoder makes one place of {shrink} pixels a "
            f"side, so expected multiples of {shrink}."
        )
    places = tuple(side // shrink for side in size)
    if any(side % one for side, one in zip(places, model.config.patches, strict=True)):
        wanted = [shrink * one for one in model.config.patches]
        raise BedstoneError(
            f"size: {list(size)} was given; latents and patches divide it only if its sides are "
            f"multiples of {wanted}."
        )
    return (channels, *size), (model.config.channels, *places)


def _text(prompt: Prompt) -> str:
    if prompt is None:
        return ""
    if not isinstance(prompt, str):
        raise BedstoneError(f"prompt: {shown(prompt)} was given; expected words.")
    check_characters(prompt, "prompt")
    return prompt


def _classes(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > TOLD else ""
    return f"These are {', '.join(names[:TOLD])}{more}." if names else ""
