"""text-generation by a model behind an endpoint: the same calls and results as of a local one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bedstone.data.bytes import check_characters
from bedstone.data.text.chat import check_messages, is_conversation
from bedstone.data.text.fim import without_overlap
from bedstone.errors import BedstoneError
from bedstone.generation.settings import NAMES, GenerationSettings
from bedstone.remote.model import RemoteModel, Reply
from bedstone.tasks.task import Task, shown
from bedstone.tasks.text.text_generation import TextGenerationOptions


@dataclass(frozen=True)
class RemotePrompt:
    """A prompt: a text, or messages."""

    text: str = ""
    messages: tuple[Any, ...] = ()


class RemoteTextGeneration(Task):
    """A text, or a list of messages, -> [{"generated_text": ...}], as many as were asked for.

    Inputs of a list are asked for several at a time; results are in their order.
    """

    name = "text-generation"
    fields = ("text",)
    asks = "a model that writes text"
    settings = TextGenerationOptions
    model: RemoteModel  # type: ignore[assignment]

    @classmethod
    def fits(cls, model: Any) -> bool:
        return isinstance(model, RemoteModel)

    def __repr__(self) -> str:
        return f"<{self.name} of {self.model!r}>"

    def open(self, precision: str) -> None:
        """Nothing is computed here, so there is nothing to open."""

    def is_one(self, inputs: Any) -> bool:
        return super().is_one(inputs) or is_conversation(inputs)

    def prepare(self, value: Any, options: TextGenerationOptions) -> RemotePrompt:
        if is_conversation(value):
            check_messages(value)
            if options.suffix is not None:
                raise BedstoneError("suffix: stands behind a text, not messages. Leave it out.")
            if value[-1]["role"] == "assistant" or options.continue_final_message:
                raise BedstoneError(
                    "the last message is the assistant's, which an endpoint doesn't go on from. "
                    "End with the user's."
                )
            return RemotePrompt(messages=tuple(value))
        if not isinstance(value, str) or not value:
            raise BedstoneError(f"the prompt is {shown(value)}; expected a text, or messages.")
        check_characters(value, "the prompt")
        return RemotePrompt(value)

    def results(
        self, rows: Sequence[RemotePrompt], options: TextGenerationOptions
    ) -> list[list[dict[str, Any]]]:
        settings = GenerationSettings(**{name: getattr(options, name) for name in NAMES})

        def answers(row: RemotePrompt) -> list[Reply]:
            if row.messages:
                return self.model.chat(row.messages, settings)
            return self.model.complete(row.text, settings, suffix=options.suffix)

        found = self.model.map(answers, rows)
        return [
            [self._result(row, reply, options) for reply in replies]
            for row, replies in zip(rows, found, strict=True)
        ]

    @staticmethod
    def _result(row: RemotePrompt, reply: Reply, options: TextGenerationOptions) -> dict[str, Any]:
        text: Any = reply.text
        if options.suffix is not None:
            text = without_overlap(row.text, text, options.suffix)
        if options.return_full_text and row.messages:
            text = [*row.messages, {"role": "assistant", "content": text}]
        elif options.return_full_text:
            text = row.text + text + (options.suffix or "")
        whole = {} if reply.complete is None else {"complete": reply.complete}
        return {"generated_text": text, **whole}
