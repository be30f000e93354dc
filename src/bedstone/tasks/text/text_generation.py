"""Text that is continued: text-generation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bedstone.checkpoints.model import Model
from bedstone.data.records import check_characters
from bedstone.errors import BedstoneError
from bedstone.generation.sampling import Sampling, published
from bedstone.generation.settings import BeamSearch, beam_search_of, chance_of
from bedstone.generation.text import encode_prompt, write, write_beams
from bedstone.settings import at_least, is_number
from bedstone.tasks.task import Options, Task, shown

NEW_TOKENS = 256  # as in version 4, where nothing says how many
BATCH = 32  # continuations written at a time


@dataclass(frozen=True)
class TextGenerationOptions(Options):
    """How to continue. What isn't given is as the model's generation_config.json has it.

    Attributes:
        return_full_text: whether the prompt stands before its continuation.
        max_new_tokens: tokens to add, at most; 256.
        max_length: tokens of prompt and continuation, where `max_new_tokens` isn't given.
        do_sample: whether to draw tokens by chance; where it isn't given, whether one of
            `temperature`, `top_k`, `top_p` and `min_p` is, or as the model has it.
        temperature, top_k, top_p, min_p, repetition_penalty: as in `Sampling`.
        no_repeat_ngram_size: so many tokens never come twice in the same order; 0 lets them.
        num_beams: 2 or more search for the likeliest continuations instead, without chance.
        length_penalty, early_stopping: of that search, as in `BeamSearch`.
        num_return_sequences: continuations of each prompt; of beams the best, best first.
        stop: a text, or several, at which a continuation ends; it is cut off.
        seed: of chance: a prompt then has the same continuations each time, whatever stands beside
            it; the second of them has `seed` + 1. None draws others each time.
    """

    return_full_text: bool = True
    max_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    num_return_sequences: int = 1
    stop: str | Sequence[str] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "num_return_sequences")
        at_least(self, 1, "max_new_tokens", "num_beams", optional=True)
        at_least(self, 0, "top_k", "no_repeat_ngram_size", "seed", optional=True)
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            if value is not None and not is_number(value):
                raise BedstoneError(f"{name}: {value!r} was given; expected a number.")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        if not isinstance(stops, list | tuple) or not all(isinstance(one, str) for one in stops):
            raise BedstoneError(f"stop: {shown(self.stop)} was given; expected a text, or several.")


@dataclass(frozen=True)
class Prompt:
    """A text to continue, and how many tokens may follow."""

    text: str
    room: int


class TextGeneration(Task):
    """A text -> [{"generated_text": ...}], one for each sequence asked for."""

    name = "text-generation"
    asks = "a decoder with its language head"
    settings = TextGenerationOptions

    @classmethod
    def fits(cls, model: Model) -> bool:
        return bool(model.network.causal and model.config.head.kind == "language")

    def prepare(self, value: Any, options: TextGenerationOptions) -> Prompt:
        if not isinstance(value, str):
            raise BedstoneError(f"the prompt is {shown(value)}; expected a string.")
        check_characters(value, "the prompt")
        if self._search(options, 1) is None:  # now, not when it is written
            self._sampling(options, 1)
        size, context = len(encode_prompt(self.tokenizer, value)), int(self.model.config.context)
        if not size:
            raise BedstoneError("the prompt is empty, and the tokenizer begins no text on its own.")
        if size >= context:
            raise BedstoneError(
                f"the prompt has {size:,} tokens; the model's context is {context:,}, and at least "
                "one must be left to generate. Shorten the prompt."
            )
        room = options.max_new_tokens
        if room is None and options.max_length is not None:
            room = options.max_length - size
            if room < 1:
                raise BedstoneError(
                    f"max_length: is {options.max_length:,}, and the prompt alone has {size:,} "
                    "tokens. Raise it, or give max_new_tokens instead."
                )
        return Prompt(value, room or NEW_TOKENS)

    def results(
        self, rows: Sequence[Prompt], options: TextGenerationOptions
    ) -> Iterator[list[Any]]:
        search = self._search(options, 1)
        found = self._searched(rows, options, search) if search else self._drawn(rows, options)
        for row, texts in zip(rows, found, strict=True):
            before = row.text if options.return_full_text else ""
            yield [{"generated_text": before + text} for text in texts]

    def _drawn(self, rows: Sequence[Prompt], options: TextGenerationOptions) -> list[list[str]]:
        """Continuations token by token, with chance or without."""
        each = options.num_return_sequences
        drawn = [self._sampling(options, 1).generators(each) for _ in rows]
        seeds = [generator.initial_seed() for own in drawn for generator in own]
        texts = [""] * len(seeds)
        rooms = [rows[job // each].room for job in range(len(seeds))]
        for room, part in _together(rooms, options.batch_size or BATCH):
            written = write(
                self.engine.network,
                self.tokenizer,
                [rows[job // each].text for job in part],
                self._sampling(options, room),
                eos=self.model.end_ids,
                seeds=[seeds[job] for job in part],
            )
            for job, one in zip(part, written, strict=True):
                texts[job] = one.text
        return [texts[number * each : (number + 1) * each] for number in range(len(rows))]

    def _searched(
        self, rows: Sequence[Prompt], options: TextGenerationOptions, search: BeamSearch
    ) -> list[list[str]]:
        """Continuations by beam search."""
        texts: list[list[str]] = [[] for _ in rows]
        together = options.batch_size or max(1, BATCH // search.beams)
        for room, part in _together([row.room for row in rows], together):
            found = write_beams(
                self.engine.network,
                self.tokenizer,
                [rows[number].text for number in part],
                self._search(options, room),
                eos=self.model.end_ids,
            )
            for number, own in zip(part, found, strict=True):
                texts[number] = [one.text for one in own]
        return texts

    def _search(self, options: TextGenerationOptions, room: int) -> BeamSearch | None:
        """The beam search that is asked for, if one is."""
        search = beam_search_of(vars(options), self.model.generation, max_tokens=room)
        if search is not None and options.stop:
            raise BedstoneError(
                f"stop: {shown(options.stop)} was given, which beam search can't end at. Leave it "
                "out, or give num_beams=1."
            )
        return search

    def _sampling(self, options: TextGenerationOptions, room: int) -> Sampling:
        names = ("temperature", "top_k", "top_p", "min_p")
        given = {name: getattr(options, name) for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        sample = chance_of(vars(options))
        base = published(self.model.generation, sample)
        drawn = {**base, **(given if sample is not False else {})}
        if options.repetition_penalty is not None:
            drawn["repetition_penalty"] = options.repetition_penalty
        if options.no_repeat_ngram_size is not None:
            drawn["no_repeat_ngram"] = options.no_repeat_ngram_size
        stop = (options.stop,) if isinstance(options.stop, str) else tuple(options.stop)
        made = Sampling(max_tokens=room, stop=stop, seed=options.seed, **drawn)
        if options.num_return_sequences > 1 and made.temperature == 0:
            raise BedstoneError(
                f"num_return_sequences: {options.num_return_sequences} continuations were asked "
                "for, and without chance all are the same. Give do_sample=True, or num_beams."
            )
        return made


def _together(rooms: Sequence[int], most: int) -> Iterator[tuple[int, list[int]]]:
    """Rows of equal room, at most so many at a time: the room and their indices."""
    jobs = sorted(range(len(rooms)), key=lambda job: rooms[job])
    while jobs:
        room = rooms[jobs[0]]
        part = [job for job in jobs[:most] if rooms[job] == room]
        jobs = jobs[len(part) :]
        yield room, part
