"""`bedstone chat`: a conversation with a model in a terminal, or one answer."""

import contextlib
import dataclasses
import io
import json
import os
import shlex
import sys
import time
import typing
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.bytes import check_text
from bedstone.data.text.chat import Rendered, check_messages, check_template, render
from bedstone.errors import BedstoneError, nearest
from bedstone.files import write_json
from bedstone.generation.autoregress import ready
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import (
    LISTS,
    GenerationSettings,
    read_prediction,
    without_usual_length,
)
from bedstone.generation.structure import read_held
from bedstone.generation.text import stream_text
from bedstone.reading import read_json, shown
from bedstone.runtime import Precision, pick_device, pick_precision
from bedstone.settings import fit
from bedstone.tasks.pipeline import open_decoder

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


def chat(
    model: str,
    settings: ChatSettings,
    *,
    message: str | None = None,
    system: str | None = None,
    as_json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> None:
    """Chat with a model; /help lists the commands of a conversation.

    Without a terminal, all of standard input is one message, and its answer is printed.

    Args:
        model: a folder, a name that `bedstone models` lists, or a hub id; with a chat template.
        message: answer this message alone.
        system: a system message, which says how to answer.
        as_json: print one JSON object: messages, finish reason, tokens, tokens per second.
        precision: of computation: auto, bf16, fp32, int8 or int4.
        device: auto, cpu, cuda or mps.

    Example:
        bedstone chat smollm2-135m-instruct
        bedstone chat runs/lora-instruct --message "Name three rivers." --temperature 0.7
        git diff | bedstone chat MODEL --system "Describe this change in one sentence."

    Raises:
        BedstoneError: the model can't be opened or has no chat template, a setting is out of
            range, or the message doesn't fit.
    """
    talks = message is None and sys.stdin.isatty()
    if talks and as_json:
        raise BedstoneError("--json: needs --message TEXT, or a message on standard input.")
    if message is None and not talks:
        message = _standard_input()
    how = pick_precision(precision, pick_device(device))
    opened = open_decoder(model, how.device)
    settings = dataclasses.replace(
        settings,
        prediction=read_prediction(settings.prediction),
        json_schema=read_held(settings.json_schema, "--json-schema"),
        grammar=read_held(settings.grammar, "--grammar"),
    )
    talk = Conversation(opened, settings, how)
    if system is not None:
        talk.set_system(system)
    if message is None:
        Terminal(talk).run(model)
        return
    answer = talk.answer(message, (lambda text: None) if as_json else _write)
    if not as_json:
        print()
    if answer.cut:
        talk.note(answer.cut)
    if as_json:
        facts = {
            "messages": talk.messages,
            "finish_reason": answer.finish,
            "tokens": answer.tokens,
            "tokens_per_second": round(answer.tokens_per_second, 2),
        }
        print(json.dumps(facts, ensure_ascii=False))


def _standard_input() -> str:
    """All of standard input. Raises BedstoneError where it is empty or no text."""
    try:
        if isinstance(sys.stdin, io.TextIOWrapper):  # whatever the locale says
            sys.stdin.reconfigure(encoding="utf-8", errors="strict")
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise BedstoneError(
            f"standard input: is not UTF-8 at byte {error.start:,}. Give it a text."
        ) from error
    if not text.strip():
        raise BedstoneError(
            "standard input: is empty, and no terminal; expected a message. Give one there, or as "
            "--message TEXT."
        )
    return text.removesuffix("\n")


def _write(text: str) -> None:
    print(text, end="", flush=True)


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
    """The messages so far, and the model that answers them.

    Attributes:
        messages: all of them; a system message is the first.
        unread: of the oldest turns, how many the model no longer reads.
        settings: of generation.

    Raises:
        BedstoneError: the model has no chat template.
    """

    def __init__(self, model: Model, settings: ChatSettings, precision: Precision) -> None:
        self.model, self.tokenizer = model, tokenizer_of(model)
        advice = f"bedstone generate {model.path or 'MODEL'} TEXT continues texts instead."
        check_template(self.tokenizer, advice)
        self.network = ready(model.network, precision)
        self.context = int(model.config.context)
        self.messages: list[Message] = []
        self.unread = 0
        self.settings = settings
        self._way(settings, 1)
        self._noted: set[str] = set()

    def note(self, text: str) -> None:
        """Says something about the conversation, beside it."""
        print(_dim(f"note: {text}"), file=sys.stderr, flush=True)

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
        self._way(settings, 1)
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
        said, tokens, finish, start = "", 0, "interrupted", time.perf_counter()
        done = False
        try:
            prompt = self._prompt(text)
            way = self._way(self.settings, len(prompt.ids))
            for piece in stream_text(
                self.network, self.tokenizer, [prompt], way, eos=self.model.end_ids
            ):
                said, tokens = said + piece.text, tokens + 1
                finish = piece.finish or finish
                write(piece.text)
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
        cut = ""
        if finish == "length":
            full = len(prompt.ids) + tokens >= self.context
            cut = f"the answer was cut after {tokens:,} tokens, " + (
                f"at the end of the context of {self.context:,}."
                if full
                else f"as max_new_tokens says; {2 * tokens} would let it go on."
            )
        return Answer(said, tokens, time.perf_counter() - start, finish, cut)

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


# The conversation in a terminal.

HELP = """\
/system TEXT   sets the system message, which says how to answer; without TEXT removes it
/reset         forgets the conversation, but for the system message
/undo          takes back the last message and its answer
/save FILE     writes the messages as JSON
/load FILE     goes on from messages that were saved
/set NAME=X    changes generation settings, such as temperature=0.3; NAME=none takes the model's own
/set           lists what is set
/help          this list
/exit          leaves, as Ctrl-D does

A line that ends in \\ goes on in the next one; \"\"\" begins and ends a message of several lines.
A message that begins with / is written with //. Ctrl-C stops an answer."""


class Terminal:
    """Reads messages and commands, line by line, and writes the answers."""

    def __init__(self, talk: Conversation) -> None:
        self.talk = talk
        self.commands: dict[str, Callable[[str], None]] = {
            "/system": self.system,
            "/reset": self.reset,
            "/undo": self.undo,
            "/save": self.save,
            "/load": self.load,
            "/set": self.set,
            "/help": self.help,
            "/exit": self.exit,
        }

    def run(self, name: str) -> None:
        """Until the user leaves."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # lets input() edit lines, and fetch earlier ones
        _say(f"{name}: /help lists commands, Ctrl-D leaves.")
        while True:
            try:
                self.take(*self.read())
            except KeyboardInterrupt:
                print()
                _say("(Ctrl-D or /exit leaves.)")
            except EOFError:
                print()
                return
            except UnicodeDecodeError:
                _say("bedstone: the line is not UTF-8. Type it again.")
            except BedstoneError as error:
                _say(f"bedstone: {error}")

    def read(self) -> tuple[str, bool]:
        """The next message or command, and whether it was marked as a message."""
        text = input("> ")
        if text.lstrip().startswith('"""'):
            text = text.lstrip()[3:]
            while not text.rstrip().endswith('"""'):
                text += "\n" + input(". ")
            return text.rstrip()[:-3].strip("\n"), True
        while text.endswith("\\"):
            text = text[:-1] + "\n" + input(". ")
        return text, False

    def take(self, text: str, is_message: bool) -> None:
        """Follows a command, or answers a message."""
        if not text.strip():
            return
        if is_message or not text.startswith("/"):
            self.answer(text)
        elif text.startswith("//"):
            self.answer(text[1:])
        else:
            name, _, rest = text.partition(" ")
            if name not in self.commands:
                raise BedstoneError(f"{name}: no such command{nearest(name, self.commands)}.")
            self.commands[name](rest.strip())

    def answer(self, text: str) -> None:
        """Answers a message; Ctrl-C stops that."""
        found = self.talk.answer(text, lambda text: _write(_safe(text)), interruptible=True)
        print()
        if found.finish == "interrupted":
            kept = "what was said is kept" if found.text.strip() else "the message is taken back"
            _say(f"(stopped; {kept}; /undo forgets it)" if found.text.strip() else f"({kept})")
        if found.cut:
            self.talk.note(found.cut)
        _say(f"[{found.tokens:,} tokens, {found.tokens_per_second:.1f} tokens/s]")

    def system(self, rest: str) -> None:
        self.talk.set_system(rest)
        _say("The system message is set." if rest else "There is no system message.")

    def reset(self, rest: str) -> None:
        self.talk.take(self.talk.system)
        kept = " The system message stays." if self.talk.system else ""
        _say(f"The conversation is forgotten.{kept}")

    def undo(self, rest: str) -> None:
        turns = self.talk.turns()
        if not turns:
            raise BedstoneError("/undo: there is no message yet.")
        *left, last = turns
        self.talk.take([*self.talk.system, *(message for turn in left for message in turn)])
        _say(f"Taken back: {shown(last[0]['content'], 60)}")

    def save(self, rest: str) -> None:
        path = _file("/save", rest)
        if path.exists():
            try:
                _messages(path)
            except BedstoneError as error:
                raise BedstoneError(
                    f"/save: {path} is there and holds no saved messages. Choose another name."
                ) from error
        write_json(path, self.talk.messages)
        _say(f"{len(self.talk.messages)} messages are in {path}.")

    def load(self, rest: str) -> None:
        path = _file("/load", rest)
        self.talk.take(_messages(path))
        _say(f"The conversation goes on from {len(self.talk.messages)} messages.")

    def set(self, rest: str) -> None:
        if rest:
            self.talk.set(_changes(rest))
        own = self.talk.settings.given.items()
        given = ", ".join(f"{name}={shown(value)}" for name, value in own)
        _say(f"Set: {given or 'nothing; the model has its own settings'}.")

    def help(self, rest: str) -> None:
        print(HELP)

    def exit(self, rest: str) -> None:
        raise EOFError


def _file(command: str, rest: str) -> Path:
    if not rest:
        raise BedstoneError(f"{command}: expected a file, such as {command} talk.json.")
    return Path(rest).expanduser()


def _messages(path: Path) -> list[Message]:
    """The messages of a file.

    Raises:
        BedstoneError: it can't be read, or holds something else.
    """
    found = read_json(path)
    if not isinstance(found, list):
        raise BedstoneError(f"{path}: holds {shown(found, 40)}; expected a list of messages.")
    check_messages(found, str(path))
    for number, message in enumerate(found):
        if number and message["role"] == "system":
            raise BedstoneError(
                f"{path}[{number}]: is a system message; expected one at the beginning alone."
            )
    if found and found[-1]["role"] == "user":
        raise BedstoneError(
            f"{path}: ends with a user's message; expected its answer. Take that message out, and "
            "write it in the chat."
        )
    return found


def _changes(rest: str) -> dict[str, Any]:
    """Settings written as `temperature=0.3 top_p=0.9`."""
    hints = typing.get_type_hints(ChatSettings)
    names = [field.name for field in dataclasses.fields(ChatSettings)]
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise BedstoneError(f"/set: {rest!r} has a quotation mark without its pair.") from error
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.replace("-", "_")
        if not equals:
            raise BedstoneError(f"/set: {word!r}; expected NAME=VALUE, such as temperature=0.3.")
        if name not in names:
            raise BedstoneError(f"/set: {name!r} is unknown{nearest(name, names)}.")
        if value.lower() in ("", "none", "null"):
            found[name] = () if name in LISTS else None
        elif name in LISTS:
            found[name] = (*found.get(name, ()), value)
        elif name == "prediction":
            found[name] = read_prediction(value)
        elif name in ("json_schema", "grammar"):
            found[name] = read_held(value, name)
        else:
            found[name] = fit(hints[name], value, name)
    return found


def _say(text: str) -> None:
    print(_dim(text), file=sys.stderr, flush=True)


def _dim(text: str) -> str:
    plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR")
    return text if plain else f"\033[2m{text}\033[0m"


def _safe(text: str) -> str:
    """A text for a terminal, which other control characters would command."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
