"""text-generation: texts that continue a prompt, or stand between it and a suffix."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bedstone.checkpoints.model import Model
from bedstone.data.bytes import check_characters
from bedstone.data.text.chat import is_conversation, render
from bedstone.data.text.fim import FimTokens, fim_tokens, prompt_room, without_overlap
from bedstone.errors import BedstoneError
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import BeamSearch, GenerationSettings, without_usual_length
from bedstone.generation.text import encode_prompt, write, write_beams
from bedstone.tasks.task import Options, Task, shown

BATCH = 32  # continuations written at a time


@dataclass(frozen=True)
class TextGenerationOptions(Options, GenerationSettings):
    """Options of text-generation: `GenerationSettings`, and what is returned.

    Attributes:
        return_full_text: whether the prompt stands before its continuation.
        continue_final_message: whether the last of several messages goes on, instead of a next one;
            by default where it is the assistant's.
        suffix: the text that stands behind what is generated, of a model that learnt to fill in
            the middle; the full text then ends with it. It may be empty.
    """

    return_full_text: bool = True
    continue_final_message: bool | None = None
    suffix: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.suffix, str | None):
            raise BedstoneError(
                f"suffix: {shown(self.suffix)} was given; expected a text, or None."
            )


@dataclass(frozen=True)
class Prompt:
    """A text to continue, and how."""

    text: str
    way: Sampling | BeamSearch
    messages: Sequence[Mapping[str, Any]] = ()
    continued: bool = False  # the last message
    suffix: str | None = None


class TextGeneration(Task):
    """A text, or a list of messages, -> [{"generated_text": ...}], one for each sequence asked for.

    Messages are written by the tokenizer's chat template; the result is then all messages, with the
    reply as the last. A last message that is the assistant's goes on.

    Of a form that is asked for (`json_schema`, `regex`, `choices`, `grammar`), a result says by
    `complete` whether the text is whole: one that was cut is not.

    With a `suffix`, what is generated stands between the two; it ends where the model ends a
    middle, without lines at its end that the suffix begins with.
    """

    name = "text-generation"
    fields = ("text",)
    metric = "perplexity"
    asks = "a decoder with its language head"
    settings = TextGenerationOptions

    @classmethod
    def fits(cls, model: Model) -> bool:
        return model.writes_text

    def is_one(self, inputs: Any) -> bool:
        return super().is_one(inputs) or is_conversation(inputs)

    @functools.cached_property
    def fim(self) -> FimTokens:
        """How the model fills in the middle."""
        return fim_tokens(self.tokenizer)

    def _between(self, value: Any, suffix: str, options: TextGenerationOptions) -> Prompt:
        """A prompt for what stands between a text and a suffix, cut to fit the context."""
        if not isinstance(value, str):
            raise BedstoneError(
                f"suffix: stands behind a text; the prompt is {shown(value)}. Leave it out."
            )
        check_characters(value, "the prompt")
        check_characters(suffix, "suffix")
        published = without_usual_length(self.model.generation)
        most = options.resolve(published, tokenizer=self.tokenizer).max_tokens
        room = prompt_room(int(self.model.config.context), most)
        text = self.fim.prompt(value, suffix, room=room)
        if text.warning:
            self.tell(text.warning)
        way = options.resolve(published, len(text.ids), tokenizer=self.tokenizer)
        return Prompt(text, way, suffix=suffix)

    def prepare(self, value: Any, options: TextGenerationOptions) -> Prompt:
        if options.suffix is not None:
            return self._between(value, options.suffix, options)
        messages = value if is_conversation(value) else ()
        continued = False
        if messages:
            continued = messages[-1]["role"] == "assistant"
            if options.continue_final_message is not None:
                continued = options.continue_final_message
            value = render(self.tokenizer, messages, continued=continued)
            if value.warning:
                self.tell(value.warning, once="system")
        if not isinstance(value, str):
            raise BedstoneError(f"the prompt is {shown(value)}; expected a string.")
        check_characters(value, "the prompt")
        size, context = len(encode_prompt(self.tokenizer, value)), int(self.model.config.context)
        if not size:
            raise BedstoneError("the prompt is empty, and the tokenizer begins no text on its own.")
        if size >= context:
            raise BedstoneError(
                f"the prompt has {size:,} tokens; the model's context is {context:,}, and at least "
                "one must be left to generate. Shorten the prompt."
            )
        published = without_usual_length(self.model.generation)
        way = options.resolve(published, size, tokenizer=self.tokenizer)
        return Prompt(value, way, messages, continued)

    def results(
        self, rows: Sequence[Prompt], options: TextGenerationOptions
    ) -> Iterator[list[Any]]:
        fim = None if options.suffix is None else self.fim
        by_way: dict[Sampling | BeamSearch, list[int]] = {}
        for number, row in enumerate(rows):
            by_way.setdefault(row.way, []).append(number)
        found: list[list[tuple[str, bool | None]]] = [[] for _ in rows]
        for way, numbers in by_way.items():
            texts = [rows[number].text for number in numbers]
            several = self._continued(texts, way, options.batch_size, fim)
            for number, own in zip(numbers, several, strict=True):
                found[number] = [(_middle(rows[number], text), whole) for text, whole in own]
        for row, several_texts in zip(rows, found, strict=True):
            yield [
                {"generated_text": _full(row, text, options)}
                | ({} if whole is None else {"complete": whole})
                for text, whole in several_texts
            ]

    def _continued(
        self,
        texts: Sequence[str],
        way: Sampling | BeamSearch,
        batch_size: int | None,
        fim: FimTokens | None,
    ) -> list[list[tuple[str, bool | None]]]:
        """The continuations of each text, or the middles behind each, and whether they are whole
        in the form that was asked for, if one was."""
        network, known, ends = self.engine.network, self.tokenizer, self.model.end_ids
        if fim is not None:
            known, ends = fim.tokenizer, ends | fim.stops
        if isinstance(way, BeamSearch):
            size = batch_size or max(1, BATCH // way.beams)
            return [
                [(one.text, None) for one in own]
                for start in range(0, len(texts), size)
                for own in write_beams(network, known, texts[start : start + size], way, eos=ends)
            ]
        size, each = batch_size or BATCH, way.returned
        seeds, prompts = way.seeds(len(texts)), [text for text in texts for _ in range(each)]
        said = [
            (one.text, one.complete)
            for part in (slice(start, start + size) for start in range(0, len(prompts), size))
            for one in write(network, known, prompts[part], way, eos=ends, seeds=seeds[part])
        ]
        return [said[start : start + each] for start in range(0, len(said), each)]


def _middle(row: Prompt, text: str) -> str:
    """What was generated, without what the suffix repeats."""
    return text if row.suffix is None else without_overlap(row.text, text, row.suffix)


def _full(row: Prompt, text: str, options: TextGenerationOptions) -> Any:
    """What is returned of a continuation."""
    if not options.return_full_text:
        return text
    if row.continued:
        *before, last = row.messages
        return [*before, {"role": last["role"], "content": last["content"] + text}]
    if row.messages:
        return [*row.messages, {"role": "assistant", "content": text}]
    return row.text + text + (row.suffix or "")
