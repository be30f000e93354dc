"""The command line: parses and calls, and holds no logic.

A command is a function: its signature is the options, its docstring the help. A parameter that is a
dataclass becomes one option for each of its fields, in a group of their own. A command's module is
loaded only when that command runs or explains itself, so `bedstone --help` is quick.
"""

import argparse
import ast
import contextlib
import dataclasses
import errno
import importlib
import inspect
import os
import re
import shutil
import signal
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bedstone.errors import BedstoneError, closest, nearest
from bedstone.reading import printable, shown
from bedstone.settings import described_fields, field_helps, fit, helps_of

# Groups of commands, and where each command's function is.
COMMANDS = {
    "train": {
        "pretrain": "commands.train:pretrain_",
        "finetune": "commands.train:finetune_",
        "resume": "commands.train:resume_",
        "plan": "commands.plan:plan",
        "tune": "commands.tune:tune",
    },
    "use": {
        "generate": "commands.generate:generate",
        "complete": "commands.complete:complete",
        "chat": "commands.chat:chat",
        "prompt": "commands.prompt:prompt",
        "agent": "commands.agent:agent",
        "mcp": "commands.agent:mcp",
        "imagine": "commands.imagine:imagine",
        "run": "commands.run:run",
        "predict": "commands.predict:predict",
        "join": "commands.join:join",
        "index": "commands.search:index",
        "search": "commands.search:search",
        "export": "commands.export:export",
        "quantize": "commands.quantize:quantize",
        "models": "commands.models:models",
        "serve": "commands.serve:serve",
    },
    "measure": {
        "evaluate": "commands.evaluate:evaluate",
        "audit": "commands.audit:audit",
        "calibrate": "commands.calibrate:calibrate",
        "report": "commands.report:report",
        "compare": "commands.report:compare",
        "explain": "commands.explain:explain_",
        "info": "commands.info:info",
        "check": "commands.check:check",
        "card": "commands.card:card",
    },
    "learn": {
        "demo": "demo.start:run_demo",
        "chat-life": "demo.chat_life:chat_life",
        "recipes": "commands.recipes:recipes",
        "completion": "cli:completion",
    },
}
# The recipe whose fields a command's `overrides` set.
RECIPES = {
    "pretrain": ("bedstone.recipes.base", "PretrainRecipe"),
    "finetune": ("bedstone.recipes.supervised", "FinetuneRecipe"),
}
EVERYWHERE = (
    "json",
    "as_json",
    "precision",
    "device",
)  # options that most commands have, listed last
MAY_LACK_ONE = {"evaluate": "data"}  # a place of a command that may be empty
MAY_LACK = ("overrides", "text", "names")  # lists of words that may be empty
ABOUT = (
    "The whole life of foundation models: pretrain, adapt, prompt, evaluate, use, serve.\n"
    "`bedstone COMMAND --help` explains a command; --debug shows full tracebacks."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 2 for what the user can mend, or its own."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        code = _run([word for word in argv if word != "--debug"])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output left: `bedstone ... | head`
        _leave_stdout()
        return 0
    except BedstoneError as error:
        if debug:
            raise
        if type(error).__name__ == "EveryRank" and os.environ.get("RANK", "0") != "0":
            return 2  # rank 0 says it
        return _refuse(str(error))
    except OSError as error:
        if debug or not (reason := _reason(error)):
            raise
        return _refuse(reason)
    except KeyboardInterrupt as stop:  # by a second SIGTERM with its number
        return 128 + next(iter(stop.args), int(signal.SIGINT))
    return code


# What the system says of a file that a user named, or of a full disk; other numbers are our bugs.
_USERS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO}
_USERS |= {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR}


def _reason(error: OSError) -> str:
    """What the user can mend of a system's error; "" where it is none of theirs."""
    if error.errno not in _USERS:
        return ""
    if error.filename is None:
        _leave_stdout()
        return f"the output can't be written: {error.strerror}. Write it elsewhere."
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    return f"{shown(str(name), 300)}: {error.strerror}. Mend the name or its permissions."


def _refuse(reason: str) -> int:
    """Prints why nothing was done; control characters, as of a file's name, are escaped."""
    print(f"bedstone: {printable(reason, kept=chr(10))}", file=sys.stderr)
    return 2


def _leave_stdout() -> None:
    """What is still to be printed goes nowhere, without another error as the process ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str]) -> int:
    """The exit code: a command's own, where it gives a whole number."""
    known = [name for group in COMMANDS.values() for name in group]
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if argv[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(version("bedstone"))
        return 0
    name, *words = argv
    if name not in known:
        raise BedstoneError(f"{name}: no such command{nearest(name, known)}.")
    command = find_command(name)
    values = Parser(name, command, explain=bool({"-h", "--help"} & set(words))).read(words)
    found = command(**values)
    return found if type(found) is int else 0


def find_command(name: str) -> Callable[..., Any]:
    """The function of a command; its module is loaded."""
    place = next(group[name] for group in COMMANDS.values() if name in group)
    module, _, function = place.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(f"bedstone.{module}"), function)
    return found


def completion(shell: str) -> None:
    """Print a script that completes commands, options, recipes, tasks and models in a shell.

    Args:
        shell: bash, zsh or fish.

    Example:
        bedstone completion bash >> ~/.bashrc
        bedstone completion zsh >> ~/.zshrc
        bedstone completion fish > ~/.config/fish/completions/bedstone.fish

    Raises:
        BedstoneError: there is no such shell.
    """
    from bedstone.commands.recipes import completion_script
    from bedstone.tasks.pipeline import ALIASES, TASKS

    options = {}
    for name in (name for group in COMMANDS.values() for name in group):
        groups = Parser(name, find_command(name)).groups.values()
        options[name] = [*(each.flag for group in groups for each in group), "--help"]
    print(completion_script(shell, options, [*TASKS, *ALIASES]))


def _overview() -> str:
    """The help of `bedstone`: commands with the first lines of their docstrings, nothing loaded."""
    lines = ["usage: bedstone COMMAND ...", "", ABOUT]
    for title, group in COMMANDS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:<10} {_first_line(place)}" for name, place in group.items()]
    return "\n".join(lines)


def _first_line(place: str) -> str:
    """The first line of a command's docstring, read from its file without importing it."""
    module, _, function = place.partition(":")
    path = Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return (ast.get_docstring(node) or "").partition("\n")[0].rstrip(".")
    raise AssertionError(f"{path} has no function {function}")


@dataclasses.dataclass
class Option:
    """One option or positional argument of a command.

    Attributes:
        owner: the parameter it belongs to; its own name, or that of a dataclass.
    """

    owner: str
    name: str
    hint: Any
    default: Any
    help: str

    @property
    def is_switch(self) -> bool:
        return self.hint is bool

    @property
    def is_list(self) -> bool:
        return typing.get_origin(self.hint) in (list, tuple)

    @property
    def flag(self) -> str:
        """As the user types it; `as_json` is `--json`."""
        return "--" + self.name.removeprefix("as_").replace("_", "-")


class Parser:
    """Reads the words of a command, as its function's signature and docstring say.

    Args:
        explain: whether the help is to be shown, for which a recipe's fields are loaded.
    """

    def __init__(self, name: str, command: Callable[..., Any], *, explain: bool = False) -> None:
        self.name, self.explain = name, explain
        self.kinds: dict[str, Any] = {}  # parameters that are dataclasses
        self.groups: dict[str, list[Option]] = {"options": [], "output and hardware": []}
        self.places: list[Option] = []
        self.parser = _Argparse(
            prog=f"bedstone {name}",
            description=_text(command.__doc__),
            epilog=self._more() if explain else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self._read_signature(command)
        for place in self.places:
            self._add_place(place)
        flags = {each.name: each.flag for group in self.groups.values() for each in group}
        for title, options in self.groups.items():
            group = self.parser.add_argument_group(title)
            for option in options:
                option.help = re.sub(r"`(\w+)`", lambda m: flags.get(m[1], m[0]), option.help)
                _add_option(group, option)
            if title == "options":
                group.add_argument("-h", "--help", action="help", help="show this help and exit")

    def read(self, words: Sequence[str]) -> dict[str, Any]:
        """The values of the function's parameters.

        Raises:
            BedstoneError: an option is unknown, or a value is not of its kind.
        """
        words = [re.sub(r"^--[\w-]+", lambda m: m[0].replace("_", "-"), word) for word in words]
        found, unknown = self.parser.parse_known_args(self._options_last(words))
        options = [*self.places, *(each for group in self.groups.values() for each in group)]
        if unknown:
            flags = [each.flag for each in options if each not in self.places]
            known = closest(unknown[0].partition("=")[0], flags)
            raise BedstoneError(
                f"{self.name}: {unknown[0]!r} is no option or one word too many"
                f"{known}. See bedstone {self.name} --help."
            )
        values: dict[str, Any] = {}
        inner: dict[str, dict[str, Any]] = {name: {} for name in self.kinds}
        for option in options:
            given = getattr(found, option.name)
            if given is not None and not option.is_switch:
                where = option.name if option in self.places else option.flag
                given = fit(option.hint, given, where)
            elif given is None:
                given = option.default
            inner.get(option.owner, values)[option.name] = given
        return values | {name: kind(**inner[name]) for name, kind in self.kinds.items()}

    def _read_signature(self, command: Callable[..., Any]) -> None:
        hints = typing.get_type_hints(command)
        helps = field_helps(command.__doc__)
        for name, parameter in inspect.signature(command).parameters.items():
            hint = hints[name]
            if dataclasses.is_dataclass(hint):
                self._read_fields(name, hint)
                continue
            option = Option(name, name, hint, parameter.default, helps.get(name, ""))
            may_lack = MAY_LACK_ONE.get(self.name) == name
            if parameter.default is inspect.Parameter.empty or may_lack:
                self.places.append(option)
            else:
                shared = "output and hardware" if name in EVERYWHERE else "options"
                self.groups[shared].append(option)

    def _read_fields(self, owner: str, kind: Any) -> None:
        """The fields of a dataclass as a group of options, ahead of the command's own."""
        self.kinds[owner] = kind
        hints = typing.get_type_hints(kind)
        helps = helps_of(kind)
        title = _text(kind.__doc__).partition("\n")[0].rstrip(".")
        options = []
        for each in dataclasses.fields(kind):
            default = each.default
            if each.default_factory is not dataclasses.MISSING:
                default = each.default_factory()
            options.append(
                Option(owner, each.name, hints[each.name], default, helps.get(each.name, ""))
            )
        self.groups = {title[0].lower() + title[1:]: options, **self.groups}

    def _add_place(self, place: Option) -> None:
        text = place.help
        if place.name == "overrides" and self.name in RECIPES:
            text += " They are listed below."
        many: dict[str, Any] = {"nargs": "+"} if place.is_list else {}
        if MAY_LACK_ONE.get(self.name) == place.name:
            many = {"nargs": "?"}
        if place.is_list and place.name in MAY_LACK:
            many = {"nargs": "*", "default": []}
        self.parser.add_argument(place.name, help=_plain(text), **many)

    def _more(self) -> str:
        """What a command's help ends with: the fields of its recipe, or the names of tasks."""
        if self.name == "run":
            from bedstone.tasks.pipeline import ALIASES, TASKS

            names = textwrap.fill(
                ", ".join([*TASKS, *ALIASES]), _width() - 2, break_on_hyphens=False
            )
            return f"tasks:\n{textwrap.indent(names, '  ')}"
        if self.name not in RECIPES:
            return ""
        module, recipe = RECIPES[self.name]
        whose = " of a language model's recipe" if self.name == "pretrain" else ""
        lines = [f"fields{whose}, with their defaults:"]
        section = ""
        for name, default, meaning in described_fields(
            getattr(importlib.import_module(module), recipe)
        ):
            if (before := name.rpartition(".")[0]) != section:
                section = before
                lines.append("")
            value = "" if default in (None, "", (), [], {}) else _plain_value(default)
            lines.append(f"  {name}={value}")
            meant = textwrap.wrap(meaning, _width() - 6, break_on_hyphens=False)
            lines += [f"      {line}" for line in meant]
        lines += ["", "The fields of every method: bedstone recipes --schema"]
        return "\n".join(lines)

    def _options_last(self, words: Sequence[str]) -> list[str]:
        """The words with all options at their end, where argparse reads each of them.

        A list of words that may be empty is read as empty before the first option, and words after
        it would be too many.
        """
        if "--" in words:
            return list(words)
        switches = {each.flag for group in self.groups.values() for each in group if each.is_switch}
        plain: list[str] = []
        options: list[str] = []
        waiting = False  # for the value of an option
        for word in words:
            is_option = word.startswith("--") or word == "-h"
            (options if is_option or waiting else plain).append(word)
            waiting = is_option and "=" not in word and word not in {*switches, "--help", "-h"}
        return [*plain, *options]


class _Argparse(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        name = self.prog.removeprefix("bedstone ")
        if "expected one argument" in message:
            message += "; a value that begins with a dash is written --option=VALUE"
        raise BedstoneError(f"{name}: {message}. See {self.prog} --help.")


def _add_option(group: Any, option: Option) -> None:
    text = _plain(option.help)
    if option.is_switch:
        group.add_argument(option.flag, dest=option.name, action="store_true", help=text)
        return
    if option.default not in (None, "", (), []):
        text += f" (default: {option.default})"
    action = "append" if option.is_list else "store"
    kind = _metavar(option.hint)
    group.add_argument(option.flag, dest=option.name, action=action, metavar=kind, help=text)


def _metavar(hint: Any) -> str:
    """What stands for a value in the help: its type, or its choices."""
    inner = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return "|".join(_metavar(kind) for kind in inner)
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, inner))
    if typing.get_origin(hint) in (list, tuple):
        return _metavar(inner[0])
    return {int: "N", float: "X", bool: "true|false"}.get(hint, "TEXT")


def _plain_value(value: Any) -> str:
    """A default as it is written in an override."""
    if isinstance(value, bool):
        return str(value).lower()
    return (
        f"{value:g}" if isinstance(value, float) else str(value).replace("(", "[").replace(")", "]")
    )


def _width() -> int:
    """Columns of the help, as argparse has them."""
    return shutil.get_terminal_size().columns - 2


def _text(doc: str | None) -> str:
    """A docstring up to its arguments, with its example behind it."""
    text = inspect.cleandoc(doc or "")
    example = re.search(r"\n(Example:\n(?:[ ]+.*\n?)+)", text)
    head = re.split(r"\n(?:Args|Attributes|Raises|Returns|Example)[^\n]*:\n", text)[0].strip()
    return f"{head}\n\n{example[1].strip()}" if example else head


def _plain(text: str) -> str:
    return text.replace("%", "%%")


if __name__ == "__main__":
    sys.exit(main())
