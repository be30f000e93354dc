"""What prompts are read by: a decoder of ours, or a model behind an endpoint."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from bedstone.checkpoints.model import Model
from bedstone.data.text.chat import render
from bedstone.errors import BedstoneError
from bedstone.generation.likelihood import Likelihood, Scorer
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import GenerationSettings
from bedstone.generation.text import Written, encode_prompt, write
from bedstone.remote.model import RemoteModel
from bedstone.tasks.text.engine import Engine

UNKNOWN = 1 << 40  # tokens of a context that isn't known
STOPS = 4  # stop texts that the API takes, at most
Messages = Sequence[Mapping[str, Any]]


class Writer(Protocol):
    """Reads prompts and goes on with them.

    Attributes:
        context: tokens of a prompt and its continuation, at most.
        chats: whether it takes messages.
    """

    context: int
    chats: bool

    def size(self, text: str) -> int:
        """Tokens of a prompt."""

    def answer_size(self, text: str) -> int:
        """Tokens of a continuation."""

    def render(self, messages: Messages) -> str:
        """A conversation as a prompt."""

    def write(self, prompts: Sequence[str], most: int, stop: Sequence[str]) -> list[Written]:
        """What is likeliest behind each prompt, of `most` tokens at most."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """How likely each continuation is after its context."""


class LocalWriter(Writer):
    """A decoder of ours."""

    def __init__(self, model: Model, engine: Engine) -> None:
        self.model, self.network, self.tokenizer = model, engine.network, engine.tokenizer
        self.scorer = Scorer(self.network, self.tokenizer)
        self.context = int(model.config.context)
        self.chats = bool(self.tokenizer.chat_template)

    def size(self, text: str) -> int:
        return len(encode_prompt(self.tokenizer, text))

    def answer_size(self, text: str) -> int:
        return len(self.tokenizer.encode(text))

    def render(self, messages: Messages) -> str:
        return render(self.tokenizer, messages)

    def write(self, prompts: Sequence[str], most: int, stop: Sequence[str]) -> list[Written]:
        way = Sampling(max_tokens=most, stop=tuple(stop))
        return write(self.network, self.tokenizer, prompts, way, eos=self.model.end_ids)

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        return self.scorer.score(pairs)


class Conversation(str):
    """Messages for an endpoint, which has a template of its own; as a text, what they say.

    Attributes:
        messages: the messages.
    """

    messages: list[Mapping[str, Any]]


class RemoteWriter(Writer):
    """A model behind an endpoint: how many tokens a text has is known there alone."""

    context, chats = UNKNOWN, True

    def __init__(self, model: RemoteModel) -> None:
        self.model = model

    def size(self, text: str) -> int:
        return 0

    answer_size = size

    def render(self, messages: Messages) -> str:
        made = Conversation("\n\n".join(str(each["content"]) for each in messages))
        made.messages = list(messages)
        return made

    def write(self, prompts: Sequence[str], most: int, stop: Sequence[str]) -> list[Written]:
        settings = GenerationSettings(
            max_new_tokens=most, do_sample=False, stop=tuple(stop)[:STOPS]
        )

        def one(prompt: str) -> Written:
            if isinstance(prompt, Conversation):
                (reply,) = self.model.chat(prompt.messages, settings)
            else:
                (reply,) = self.model.complete(prompt, settings)
            return Written(text=reply.text, finish="length" if reply.finish == "length" else "stop")

        return self.model.map(one, prompts)

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        if any(isinstance(context, Conversation) for context, _ in pairs):
            raise BedstoneError(
                f"{self.model.address}: likelihoods are of plain text: an endpoint doesn't say how "
                "it writes messages. Take chat=none, or score=generate."
            )
        return [
            Likelihood(one.log_probability, one.greedy, one.tokens, len(text.encode()))
            for one, (_, text) in zip(self.model.score(pairs), pairs, strict=True)
        ]
