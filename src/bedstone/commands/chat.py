"""`bedstone chat`: a conversation with a model in a terminal, or one answer."""

import contextlib
import dataclasses
import io
import json
import shlex
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bedstone.commands.conversation import (
    ChatSettings,
    Conversation,
    LocalConversation,
    Message,
    RemoteConversation,
    dim,
    for_terminal,
)
from bedstone.commands.remote import Asking, open_remote, refuse_for_remote, spent
from bedstone.data.text.chat import check_messages
from bedstone.errors import BedstoneError, nearest
from bedstone.files import write_json
from bedstone.generation.settings import (
    LISTS,
    read_prediction,
)
from bedstone.generation.structure import read_held
from bedstone.reading import printable, read_json, shown
from bedstone.runtime import pick_device, pick_precision
from bedstone.settings import fit
from bedstone.tasks.pipeline import open_decoder


def chat(
    model: str,
    settings: ChatSettings,
    asking: Asking,
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
        model: a folder, a name that `bedstone models` lists, or a hub id, with a chat template; or
            one behind an endpoint, openai:NAME or http://host/v1#NAME.
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
    remote = open_remote(model, asking)
    if remote is not None:
        refuse_for_remote(model, precision=precision, device=device)
    settings = dataclasses.replace(
        settings,
        prediction=read_prediction(settings.prediction),
        json_schema=read_held(settings.json_schema, "--json-schema"),
        grammar=read_held(settings.grammar, "--grammar"),
    )
    if remote is not None:
        talk: Conversation = RemoteConversation(remote, settings)
    else:
        how = pick_precision(precision, pick_device(device))
        talk = LocalConversation(open_decoder(model, how.device), settings, how)
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
    elif remote is not None:
        talk.note(spent(remote))


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
    print(for_terminal(text), end="", flush=True)


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
        found = self.talk.answer(text, lambda text: _write(printable(text)), interruptible=True)
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
    print(dim(text), file=sys.stderr, flush=True)
