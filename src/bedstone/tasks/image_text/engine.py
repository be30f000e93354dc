"""Tasks on images and texts: one image encoding shared by all questions about the image.

Consecutive inputs with the same image share its states: it is decoded once, goes through the image
encoder once, and its keys and values are computed once for all its texts.

Shapes: P images, n = m P texts (row i of image i // m), S states of an image, D width.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.bytes import check_text
from bedstone.errors import BedstoneError, nearest
from bedstone.generation.autoregress import generate
from bedstone.generation.beam import beam_search
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import NAMES, BeamSearch, GenerationSettings
from bedstone.models.interfaces import ImageTextModel, TextFormat
from bedstone.models.published import layout
from bedstone.runtime import check_finite
from bedstone.tasks.images.engine import Faults, ImageEngine, ImageOptions, ImageTask, LabelledQuery
from bedstone.tasks.task import shown


def generates(model: Model) -> bool:
    """Whether a model captions images."""
    return _can(model, "captions")


def answers(model: Model) -> bool:
    """Whether a model answers questions about images."""
    return _can(model, "answers")


def matches(model: Model) -> bool:
    """Whether a model says which text belongs to which image."""
    return _can(model, "matching")


def _can(model: Model, ability: str) -> bool:
    network = model.network
    return isinstance(network, ImageTextModel) and ability in network.abilities


def text_format(model: Model) -> TextFormat:
    """How the model's family reads and writes text."""
    made = layout(model.config.layout).text_format
    assert made is not None  # a layout of an image-text model has one
    return made(tokenizer_of(model), model.config)


SHARE = 32  # inputs that share an image's states at a time
BATCH = 64  # texts written at a time
CACHE_SIZE = 16  # sets of candidates whose ids are kept


@dataclass(frozen=True)
class ImageTextGenerationOptions(ImageOptions, GenerationSettings):
    """Options of tasks that generate texts about images: `GenerationSettings` without texts.

    Attributes:
        generate_kwargs: any of these in a dictionary, as version 4 has it.
    """

    generate_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.generation()  # faults in generate_kwargs are named now

    def generation(self) -> GenerationSettings:
        """The settings that are given, in fields or in `generate_kwargs`.

        Raises:
            BedstoneError: `generate_kwargs` has an unknown setting, or one that is given already.
        """
        given = {name: self.given[name] for name in self.given if name not in self.other_meaning}
        more = {} if self.generate_kwargs is None else self.generate_kwargs
        if not isinstance(more, Mapping):
            raise BedstoneError(
                f"generate_kwargs: {shown(more)} was given; expected a dictionary, such as "
                '{"num_beams": 4}.'
            )
        for name in more:
            if name not in NAMES:
                raise BedstoneError(
                    f"generate_kwargs: {name!r} is unknown{nearest(str(name), NAMES)}."
                )
            if name in given:
                raise BedstoneError(f"generate_kwargs: {name!r} is given twice. Leave one out.")
        made = GenerationSettings(**{**given, **more})
        if made.stop:
            raise BedstoneError(
                f"stop: {made.stop!r} was given; texts about images end at the model's own end "
                "token alone. Leave it out."
            )
        if made.prediction:
            raise BedstoneError(
                f"prediction: {shown(made.prediction)} was given; it serves text-generation, not "
                "texts about images. Leave it out."
            )
        return made

    @property
    def other_meaning(self) -> tuple[str, ...]:
        """Fields that mean something else than in `GenerationSettings`."""
        return ()


@dataclass(frozen=True)
class Generated:
    """A generated text: its new tokens and their probability given the image, and of a form that
    was asked for whether it is whole."""

    ids: list[int]
    probability: float
    complete: bool | None = None

    @property
    def wholeness(self) -> dict[str, bool]:
        """What a result says of it."""
        return {} if self.complete is None else {"complete": self.complete}


class ImageTextEngine(ImageEngine):
    """An image-text network for inference, with its image processor and text format.

    Raises:
        BedstoneError: the model has no processor, or no tokenizer of its kind.
    """

    def __init__(self, model: Model, precision: str = "fp32") -> None:
        super().__init__(model, precision)
        self.tokenizer = tokenizer_of(model)
        self.form = text_format(model)
        self.words = self.form.words

    def see(self, pixels: Tensor) -> Tensor:
        """Image states (P, S, D) of resized pixels (P, H, W, 3) uint8."""
        found: Tensor = self.network.memory(self.processor.normalise(pixels.to(self.device)))
        check_finite(found, "the states of images")
        return found

    def write(
        self, writer: Any, prompts: Sequence[Sequence[int]], way: Sampling | BeamSearch
    ) -> list[list[Generated]]:
        """`way.returned` texts after each prompt over a writer's memories; of beams best first."""
        ends = [self.words.end]
        if way.constraints.compares:
            raise BedstoneError(
                "encoder_no_repeat_ngram_size, encoder_repetition_penalty: compare with the tokens "
                "of a source, and an image has none. Leave them out, here and in "
                "generation_config.json."
            )
        if isinstance(way, BeamSearch):
            found = beam_search(writer, prompts, way, eos=ends)
            return [
                [Generated(list(one.ids), math.exp(one.log_probability)) for one in row]
                for row in found
            ]
        if way.stop:
            raise BedstoneError(
                f"generation_config.json: stop_strings = {way.stop!r}; texts about images end at "
                "the model's own end token alone. Take the key out of the file."
            )
        each, seeds = way.returned, way.seeds(len(prompts))
        rows = [prompt for prompt in prompts for _ in range(each)]
        done = generate(writer, rows, way, eos=ends, seeds=seeds)
        texts = [
            Generated(one.ids, math.exp(sum(one.log_probabilities)), one.complete) for one in done
        ]
        return [texts[at : at + each] for at in range(0, len(texts), each)]

    def text(self, ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens."""
        return self.tokenizer.decode(ids).strip()


class ImageTextTask(ImageTask):
    """A task over pairs of an image and a text; consecutive rows may share an image."""

    engine: ImageTextEngine

    def __init__(
        self,
        model: Model,
        *,
        precision: str = "fp32",
        engine: ImageTextEngine | None = None,
        **options: Any,
    ) -> None:
        """`engine`: another task's, to be shared with it."""
        self._engine = engine
        super().__init__(model, precision=precision, **options)

    def open(self, precision: str) -> None:
        self.engine = self._engine or ImageTextEngine(self.model, precision)
        # candidates that were asked for lately: their ids, and which is the longest
        self._known: dict[tuple[str, ...], tuple[list[list[int]], int]] = {}

    def say(self, memory: Tensor, rows: Sequence[Sequence[Any]], options: Any) -> list[list[Any]]:
        """The outputs of each row, given the image states (P, S, D) and the rows of each image."""
        raise NotImplementedError

    def finish(self, row: Any, output: Any, options: Any) -> Any:
        return output

    def cut(
        self,
        text: Any,
        ids: Callable[[str], Any],
        room: int,
        what: str,
        options: Any,
        kept: slice | None = None,
    ) -> Any:
        """A text's ids, at most `room`: `truncation` cuts what is longer.

        Args:
            kept: of those that are too many, the ones that stay; None keeps the first.

        Raises:
            BedstoneError: it is none, is empty, or is longer and may not be cut.
        """
        check_text(text, what)
        found = ids(text)
        if len(found) <= room:
            return found
        message = (
            f"{what}: has {len(text.split()):,} words, {len(found):,} tokens; the network reads "
            f"{room:,} at most"
        )
        if not may_cut(options):
            raise BedstoneError(f"{message}. Shorten it, or let it be cut by truncation=True.")
        self.tell(f"{message}; it was cut to that, as truncation asks.")
        return found[slice(room) if kept is None else kept]

    def candidate_ids(
        self, candidates: tuple[str, ...], options: Any, begun: int = 0
    ) -> list[list[int]]:
        """Candidates as they are written, their end included, after `begun` tokens of a prompt.

        Raises:
            BedstoneError: one is longer than fits, and may not be cut; the answers that the model
                learnt from always may.
        """
        words = self.engine.words
        if candidates not in self._known:
            while len(self._known) >= CACHE_SIZE:
                del self._known[next(iter(self._known))]
            said = self.engine.form.output(candidates)
            longest = max(range(len(said)), key=lambda number: len(said[number]))
            self._known[candidates] = [[*ids.tolist(), words.end] for ids in said], longest
        rows, longest = self._known[candidates]
        size, room = len(rows[longest]) - 1, words.context - len(words.begin) - 1 - begun
        if size <= room:
            return rows
        message = (
            f"candidates[{longest}]: has {size:,} tokens, where the network has room for {room:,}"
        )
        learnt = candidates == getattr(self, "known_answers", None)  # training cut them too
        if not (learnt or may_cut(options)):
            raise BedstoneError(f"{message}. Shorten it, or let it be cut by truncation=True.")
        why = "as they were in training" if learnt else "as truncation asks"
        message += f"; candidates that are too long were cut, {why}."
        self.tell(message, once=message)
        return [[*ids[:-1][:room], words.end] for ids in rows]

    def _run(
        self,
        rows: Iterable[LabelledQuery],
        options: Any,
        ahead: int | None,
        faults: Faults | None = None,
    ) -> Iterator[tuple[int, Any]]:
        held: dict[int, list[tuple[int, LabelledQuery]]] = {}  # of images on their way, who asks

        def images() -> Iterator[Any]:
            groups = shared(enumerate(rows), 1 if ahead == 1 else SHARE)
            for number, group in enumerate(groups):
                held[number] = group
                yield group[0][1].image

        def left_out(number: int, error: BedstoneError) -> None:
            assert faults is not None
            for row, _ in held.pop(number):
                faults(row, error)

        def where(number: int) -> str:
            return self.name if ahead is None else f"{self.name}: inputs[{held[number][0][0]}]"

        for numbers, pixels in self.engine.batches(
            images(),
            options.batch_size or min(ahead or 1, self.engine.batch_size),
            ahead=ahead != 1,
            faults=left_out if faults else None,
            where=where,
        ):
            groups = [held.pop(number) for number in numbers]
            with torch.inference_mode():
                memory = self.engine.see(pixels)
                queries = [[row for _, row in group] for group in groups]
                outputs = self.say(memory, queries, options)
            for group, own in zip(groups, outputs, strict=True):
                for (row, _), output in zip(group, own, strict=True):
                    yield row, output


def shared(
    rows: Iterable[tuple[int, LabelledQuery]], most: int
) -> Iterator[list[tuple[int, LabelledQuery]]]:
    """Consecutive rows with the same image, at most `most` in a group."""
    group: list[tuple[int, LabelledQuery]] = []
    for number, row in rows:
        if group and _name(group[0][1].image) != _name(row.image):
            yield group
            group = []
        group.append((number, row))
        if len(group) == most:
            yield group
            group = []
    if group:
        yield group


def _name(image: Any) -> Any:
    """What is equal for the same image: its file, or the object that holds it."""
    return str(image) if isinstance(image, str | Path) else id(image)


def may_cut(options: Any) -> bool:
    """Whether the options ask for truncation."""
    return options.truncation not in (None, False, "do_not_truncate")


def image_of(inputs: Any, options: dict[str, Any]) -> Any:
    """The inputs of a call, whichever of their names (inputs, image, images) was used."""
    for name in ("image", "images", "inputs"):
        if inputs is None and name in options:
            inputs = options.pop(name)
    return inputs


def by_count(
    memory: Tensor, rows: Sequence[Sequence[Any]]
) -> Iterator[tuple[list[int], Tensor, list[Any]]]:
    """Groups of images with the same number of rows: their places, their states, their rows.

    So that each image's rows share its states, none is filled up.
    """
    for count in sorted({len(own) for own in rows}):
        places = [place for place, own in enumerate(rows) if len(own) == count]
        queries = [row for place in places for row in rows[place]]
        yield places, memory if len(places) == len(rows) else memory[places], queries


def by_value(rows: Sequence[Any], key: Callable[[Any], Any]) -> Iterator[tuple[Any, list[int]]]:
    """Each value of `key` over the rows, with the places of the rows that have it."""
    found: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        found.setdefault(key(row), []).append(place)
    yield from found.items()


def some_at_a_time(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Batches of at most `BATCH` rows."""
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


def texts_of(given: Any, what: str) -> tuple[str, ...]:
    """The distinct candidates, in their order.

    Raises:
        BedstoneError: there is none, or one is no text.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise BedstoneError(f"{what}: {given!r:.60} was given; expected a list of texts.")
    if not given:
        raise BedstoneError(f"{what}: the list is empty; give at least one text, or leave it out.")
    for number, text in enumerate(given):
        check_text(text, f"{what}[{number}]")
    return tuple(dict.fromkeys(given))


def ranked(texts: Sequence[str], scores: Tensor) -> list[tuple[str, float]]:
    """Texts with their scores, (C,), best first; of equals the earlier."""
    order = scores.argsort(descending=True, stable=True).tolist()
    values = scores.tolist()
    return [(texts[place], values[place]) for place in order]
