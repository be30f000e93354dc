"""Functions as commands: a signature is the options, a docstring is the help."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from inspect import Parameter, signature

import docstring_parser
from jsonargparse import ArgumentParser

from bedstone.settings import field_names

MAY_LACK = ("overrides", "text")  # lists at a command's end that may be empty


def parser_of(
    commands: Mapping[str, Callable[..., None]], recipes: Mapping[str, type]
) -> ArgumentParser:
    """The parser of all commands, by name; `recipes` are the classes that overrides set."""
    parser = ArgumentParser(
        prog="bedstone",
        description="The whole life of foundation models: pretrain, adapt, prompt, evaluate, use, "
        "serve. Add --debug to any command for full tracebacks.",
        version=version("bedstone"),
    )
    added = parser.add_subcommands(required=False, dest="command")
    for name, command in commands.items():
        told = docstring_parser.parse(command.__doc__ or "")
        sub = ArgumentParser(description=told.description)
        helps = {each.arg_name: each.description or "" for each in told.params}
        if "overrides" in helps and name in recipes:
            fields = field_names(recipes[name])
            helps["overrides"] += f" These are: {', '.join(fields)}."
        _add_arguments(sub, command, helps)
        added.add_subcommand(name, sub, help=told.short_description)
    return parser


def options_last(command: Callable[..., None], words: Sequence[str]) -> list[str]:
    """The words after a command with its options at the end, where argparse reads them all.

    A list of words that may be empty is read as empty before the first option, and words after it
    would be too many.
    """
    if "--" in words:
        return list(words)
    kinds = {name: each.annotation for name, each in signature(command).parameters.items()}
    alone = {f"--{name}" for name, kind in kinds.items() if kind is bool} | {"--help", "-h"}
    plain: list[str] = []
    options: list[str] = []
    waiting = False  # for the value of an option
    for word in words:
        is_option = word.startswith("--") or word == "-h"
        (options if is_option or waiting else plain).append(word)
        waiting = is_option and "=" not in word and word not in alone
    return [*plain, *options]


def _add_arguments(
    parser: ArgumentParser, command: Callable[..., None], told: dict[str, str]
) -> None:
    """The signature as arguments; switches and lists are written as shells have them."""
    kinds = {name: each.annotation for name, each in signature(command).parameters.items()}
    switches: set[str] = {name for name, kind in kinds.items() if kind is bool}
    lists: set[str] = {name for name, kind in kinds.items() if kind == list[str]}
    parser.add_function_arguments(
        command, as_group=False, as_positional=True, skip={*switches, *lists}
    )
    for name in lists:
        if signature(command).parameters[name].default is Parameter.empty:
            parser.add_argument(name, nargs="*" if name in MAY_LACK else "+", help=told[name])
        else:
            parser.add_argument(f"--{name}", action="append", default=[], help=told[name])
    for name in switches:
        parser.add_argument(f"--{name}", action="store_true", help=told[name])
