"""A conversation with a model, turn by turn: one of ours, or one behind an endpoint."""

import dataclasses
import os
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.bytes import check_text
from bedstone.data.text.chat import Rendered, check_template, render
from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import ready
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import GenerationSettings, without_usual_length
from bedstone.generation.text import stream_text
from bedstone.reading import printable
from bedstone.remote.model import RemoteModel
from bedstone.runtime import Precision

NEW_TOKENS = 512  # of an answer, at most, where no length is given
KEPT_SHARE = 4  # of a context, a quarter at most is kept free for the answer
Message = dict[str, Any]


@dataclass(frozen=True)
class ChatSettings(GenerationSettings):
    """Generation settings (default: the model's generation_config.json).

    Attributes:
        max_new_tokens: maximum number of tokens of an answer (default: 512).
        stop: stop at this text; may be given several times.
        bad_words: a word that is never generated, in any case; may be given several times.
        num_beams: 1, as answers are streamed.
        num_return_sequences: 1, as a conversation goes one way.
        prediction: file with a text that answers are expected to be, with differences, such as code
            that is to be edited: drafts are copied from it first.
        json_schema: a JSON schema that answers follow, or @FILE; true takes any object.
        choices: a text that may be an answer; given several times, one of them is.
        grammar: a grammar in Lark's notation that answers follow, or @FILE.
    """

    stop: tuple[str, ...] = ()
    force_words: tuple[str, ...] = ()
    bad_words: tuple[str, ...] = ()
    json_schema: str | None = None
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_beams", "num_return_sequences"):
            if (getattr(self, name) or 1) > 1:
                raise BedstoneError(
                    f"{name}: {getattr(self, name)} was given; a chat streams one answer, so "
                    "expected 1. Leave it out, or use bedstone generate --chat."
                )


@dataclass(frozen=True)
class Answer:
    """What the model said, and how quickly.

    Attributes:
        finish: "stop", "length", or "interrupted" by Ctrl-C.
        cut: what ended an answer that isn't whole; "" where it is.
    """

    text: str
    tokens: int
    seconds: float
    finish: str
    cut: str = ""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


class Conversation:
    """The messages so far, and how they are answered.

    Attributes:
        messages: all of them; a system message is the first.
        unread: of the oldest turns, how many the model no longer reads.
        settings: of generation.
    """

    def __init__(self, settings: ChatSettings) -> None:
        self.messages: list[Message] = []
        self.unread = 0
        self.settings = settings
        self.check(settings)

    # What a kind of model has of its own.

    def check(self, settings: ChatSettings) -> None:
        """Raises BedstoneError for settings that the model can't follow."""
        raise NotImplementedError

    def pieces(self, text: str) -> Iterator[tuple[str, str | None]]:
        """The answer to the messages, the last of which is `text`, piece by piece; with the last
        why it ended: stop or length."""
        raise NotImplementedError

    def tokens(self, pieces: int) -> int:
        """How many tokens an answer of so many pieces had."""
        return pieces

    def why_cut(self, tokens: int) -> str:
        """What ended an answer that isn't whole, as a sentence."""
        raise NotImplementedError

    # Messages.

    def note(self, text: str) -> None:
        """Says something about the conversation, beside it."""
        print(dim(f"note: {text}"), file=sys.stderr, flush=True)

    @property
    def system(self) -> list[Message]:
        """The system message, if there is one."""
        return [each for each in self.messages[:1] if each["role"] == "system"]

    def turns(self) -> list[list[Message]]:
        """Each message of the user with its answer."""
        found: list[list[Message]] = []
        for message in self.messages[len(self.system) :]:
            if message["role"] == "user" or not found:
                found.append([])
            found[-1].append(message)
        return found

    def take(self, messages: Sequence[Message]) -> None:
        """Goes on from other messages."""
        self.messages, self.unread = list(messages), 0

    def set_system(self, text: str) -> None:
        """Sets the system message, or removes it with an empty text."""
        if text:
            check_text(text, "the system message")
        new = [{"role": "system", "content": text}] if text else []
        self.take([*new, *self.messages[len(self.system) :]])

    def set(self, changes: dict[str, Any]) -> None:
        """Changes generation settings, all or none."""
        settings = dataclasses.replace(self.settings, **changes)
        self.check(settings)
        self.settings = settings

    def answer(
        self, text: str, write: Callable[[str], None], *, interruptible: bool = False
    ) -> Answer:
        """The answer to a message, written piece by piece; both are kept.

        Args:
            interruptible: whether Ctrl-C ends the answer alone; what was said is kept.

        Raises:
            BedstoneError: the message doesn't fit, or the template refuses it. It isn't kept.
        """
        check_text(text, "the message")
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        said, count, finish, start = "", 0, "interrupted", time.perf_counter()
        done = False
        try:
            for piece, ended in self.pieces(text):
                said, count = said + piece, count + 1
                finish = ended or finish
                write(piece)
            done = True
        except KeyboardInterrupt:
            if not interruptible:
                raise
            done = bool(said.strip())
        finally:
            if done:
                self.messages.append({"role": "assistant", "content": said})
            else:
                self.messages = before
        tokens = self.tokens(count)
        cut = self.why_cut(tokens) if finish == "length" else ""
        return Answer(said, tokens, time.perf_counter() - start, finish, cut)


class LocalConversation(Conversation):
    """One with a decoder of ours.

    Raises:
        BedstoneError: the model has no chat template.
    """

    def __init__(self, model: Model, settings: ChatSettings, precision: Precision) -> None:
        self.model, self.tokenizer = model, tokenizer_of(model)
        advice = f"bedstone generate {model.path or 'MODEL'} TEXT continues texts instead."
        check_template(self.tokenizer, advice)
        self.network = ready(model.network, precision)
        self.context = int(model.config.context)
        self._noted: set[str] = set()
        self._read = 0  # tokens of the last prompt
        super().__init__(settings)

    def check(self, settings: ChatSettings) -> None:
        self._way(settings, 1)

    def pieces(self, text: str) -> Iterator[tuple[str, str | None]]:
        prompt = self._prompt(text)
        self._read = len(prompt.ids)
        way = self._way(self.settings, self._read)
        ends = self.model.end_ids
        for piece in stream_text(self.network, self.tokenizer, [prompt], way, eos=ends):
            yield piece.text, piece.finish

    def why_cut(self, tokens: int) -> str:
        full = self._read + tokens >= self.context
        return f"the answer was cut after {tokens:,} tokens, " + (
            f"at the end of the context of {self.context:,}."
            if full
            else f"as max_new_tokens says; {2 * tokens} would let it go on."
        )

    def _way(self, settings: ChatSettings, prompt_tokens: int) -> Sampling:
        one = dataclasses.replace(settings, num_beams=1)  # whatever the model's own settings say
        published = without_usual_length(self.model.generation)
        way = one.resolve(published, prompt_tokens, usual=NEW_TOKENS, tokenizer=self.tokenizer)
        assert isinstance(way, Sampling)
        return way

    def _prompt(self, text: str) -> Rendered:
        """What the model reads: without the oldest turns, if there is no room for them."""
        size = len(self.tokenizer.encode(text))
        if size >= self.context:
            raise self._too_long(size, size)
        wanted = self._way(self.settings, 1).max_tokens
        room = self.context - min(wanted, max(1, self.context // KEPT_SHARE))
        turns, system = self.turns(), self.system

        def written(left: int) -> Rendered:
            rest = [message for turn in turns[left:] for message in turn]
            return render(self.tokenizer, [*system, *rest])

        choices = range(self.unread, len(turns) - 1)
        left = self.unread + bisect_left(
            choices, True, key=lambda left: len(written(left).ids) <= room
        )
        prompt = written(left)
        if len(prompt.ids) >= self.context:
            raise self._too_long(size, len(prompt.ids))
        if left > self.unread:
            count = "oldest turn" if left == 1 else f"{left:,} oldest turns"
            self.note(
                f"the context of {self.context:,} tokens is full; the model no longer reads the "
                f"{count}."
            )
            self.unread = left
        if prompt.warning and prompt.warning not in self._noted:
            self._noted.add(prompt.warning)
            self.note(prompt.warning)
        return prompt

    def _too_long(self, size: int, whole: int) -> BedstoneError:
        around = max(whole - size, 0)
        with_what = f", the template and the system message take {around:,}" if around else ""
        return BedstoneError(
            f"the message has {size:,} tokens, and there is room for "
            f"{max(self.context - around - 1, 0):,}: the model's context is {self.context:,}"
            f"{with_what}, and at least one must be left to answer. Shorten it."
        )


class RemoteConversation(Conversation):
    """One with a model behind an endpoint, which reads all turns, or says that it can't."""

    def __init__(self, model: RemoteModel, settings: ChatSettings) -> None:
        self.model = model
        self._written = 0  # tokens that the endpoint has reported before an answer
        super().__init__(settings)

    def check(self, settings: ChatSettings) -> None:
        self.model.check(settings)

    def pieces(self, text: str) -> Iterator[tuple[str, str | None]]:
        self._written = self.model.endpoint.budget.spent.written
        most = self.settings.max_new_tokens or NEW_TOKENS
        settings = dataclasses.replace(self.settings, max_new_tokens=most)
        for reply in self.model.stream(self.messages, settings):
            yield reply.text, reply.finish or None

    def tokens(self, pieces: int) -> int:
        return self.model.endpoint.budget.spent.written - self._written or pieces

    def why_cut(self, tokens: int) -> str:
        return (
            f"the answer was cut after {tokens:,} tokens, as max_new_tokens says, or where the "
            "endpoint's own limit is."
        )


def for_terminal(text: str) -> str:
    """A text for standard output: as it is, but in a terminal without what would command it."""
    return printable(text) if sys.stdout.isatty() else text


def dim(text: str) -> str:
    """A text in a fainter colour, where a terminal shows it."""
    plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR")
    return text if plain else f"\033[2m{text}\033[0m"
