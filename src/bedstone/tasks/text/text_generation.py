"""text-generation: texts that continue a prompt."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bedstone.checkpoints.model import Model
from bedstone.data.bytes import check_characters
from bedstone.data.text.chat import is_conversation, render
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
    """

    return_full_text: bool = True
    continue_final_message: bool | None = None


@dataclass(frozen=True)
class Prompt:
    """A text to continue, and how."""

    text: str
    way: Sampling | BeamSearch
    messages: Sequence[Mapping[str, Any]] = ()
    continued: bool = False  # the last message


class TextGeneration(Task):
    """A text, or a list of messages, -> [{"generated_text": ...}], one for each sequence asked for.

    Messages are written by the tokenizer's chat template; the result is then all messages, with the
    reply as the last. A last message that is the assistant's goes on.
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

    def prepare(self, value: Any, options: TextGenerationOptions) -> Prompt:
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
        by_way: dict[Sampling | BeamSearch, list[int]] = {}
        for number, row in enumerate(rows):
            by_way.setdefault(row.way, []).append(number)
        found: list[list[str]] = [[] for _ in rows]
        for way, numbers in by_way.items():
            texts = [rows[number].text for number in numbers]
            several = self._continued(texts, way, options.batch_size)
            for number, own in zip(numbers, several, strict=True):
                found[number] = own
        for row, texts in zip(rows, found, strict=True):
            yield [{"generated_text": _full(row, text, options)} for text in texts]

    def _continued(
        self, texts: Sequence[str], way: Sampling | BeamSearch, batch_size: int | None
    ) -> list[list[str]]:
        """The continuations of each text."""
        network, known, ends = self.engine.network, self.tokenizer, self.model.end_ids
        if isinstance(way, BeamSearch):
            size = batch_size or max(1, BATCH // way.beams)
            return [
                [one.text for one in own]
                for start in range(0, len(texts), size)
                for own in write_beams(network, known, texts[start : start + size], way, eos=ends)
            ]
        size, each = batch_size or BATCH, way.returned
        seeds, prompts = way.seeds(len(texts)), [text for text in texts for _ in range(each)]
        said = [
            one.text
            for part in (slice(start, start + size) for start in range(0, len(prompts), size))
            for one in write(network, known, prompts[part], way, eos=ends, seeds=seeds[part])
        ]
        return [said[start : start + each] for start in range(0, len(said), each)]


def _full(row: Prompt, text: str, options: TextGenerationOptions) -> Any:
    """What is returned of a continuation."""
    if not options.return_full_text:
        return text
    if row.continued:
        *before, last = row.messages
        return [*before, {"role": last["role"], "content": last["content"] + text}]
    if row.messages:
        return [*row.messages, {"role": "assistant", "content": text}]
    return row.text + text
