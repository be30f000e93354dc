"""`bedstone recipes`: recipes that come with Bedstone; scripts that complete words in shells."""

import json

from bedstone.checkpoints.names import known_names
from bedstone.errors import BedstoneError
from bedstone.recipes import library

SHELLS = ("bash", "zsh", "fish")
# Commands whose first word is a model.
OF_MODELS = (
    "chat",
    "check",
    "generate",
    "imagine",
    "predict",
    "prompt",
    "export",
    "quantize",
    "evaluate",
    "explain",
    "audit",
    "card",
    "info",
)


def recipes(names: list[str], schema: bool = False) -> None:
    """List the recipes that come with Bedstone, or print some of them.

    Args:
        names: recipes to print; without any, all are listed.
        schema: print a JSON schema of recipes, by which editors complete and check their keys.

    Example:
        bedstone recipes
        bedstone recipes tinyshakespeare > mine.yaml
        bedstone pretrain mine.yaml
        bedstone recipes --schema > recipe.schema.json

    Raises:
        BedstoneError: there is no such recipe.
    """
    if schema:
        from bedstone.recipes.base import METHODS, load_method

        kinds = {each: load_method(each).Recipe for each in METHODS}
        print(json.dumps(library.schema(kinds), indent=1))
        return
    for name in names:
        print(library.find(name).read_text(encoding="utf-8"), end="")
    if names:
        return
    found = [(library.command(path), path) for path in map(library.find, library.names())]
    for title in dict.fromkeys(sorted(command for command, _ in found)):
        print(f"bedstone {title}:")
        for command, path in found:
            if command == title:
                print(f"  {path.stem:<24} {library.summary(path)}")
        print()
    print("Print one: bedstone recipes NAME. Use one: by its name, or by the file of your copy.")


def completion_script(shell: str, options: dict[str, list[str]], tasks: list[str]) -> str:
    """A script that completes commands, options, recipes, tasks and short names of models.

    Args:
        shell: bash, zsh or fish.
        options: of each command, as they are typed.

    Raises:
        BedstoneError: there is no such shell.
    """
    if shell not in SHELLS:
        raise BedstoneError(f"shell: {shell!r} is unknown; expected one of {', '.join(SHELLS)}.")
    first = dict.fromkeys(("pretrain", "finetune", "plan", "recipes"), library.names())
    first |= dict.fromkeys(OF_MODELS, known_names())
    first |= {"run": tasks, "completion": list(SHELLS)}
    return _fish(options, first) if shell == "fish" else _bash(options, first, shell == "zsh")


def _bash(options: dict[str, list[str]], first: dict[str, list[str]], zsh: bool) -> str:
    lines = ["autoload -U +X bashcompinit && bashcompinit"] if zsh else []
    lines += [
        "_bedstone() {",
        '  local word="${COMP_WORDS[COMP_CWORD]}" words=""',
        '  if [ "$COMP_CWORD" -eq 1 ]; then',
        f'    words="{" ".join(options)}"',
        "  else",
        '    case "${COMP_WORDS[1]}" in',
    ]
    for name, own in options.items():
        lines.append(f'      {name}) words="{" ".join(own)}"')
        if name in first:
            lines.append('        [ "$COMP_CWORD" -eq 2 ] &&')
            lines.append(f'          words="$words {" ".join(first[name])}"')
        lines.append("        ;;")
    lines += ["    esac", "  fi", '  COMPREPLY=($(compgen -W "$words" -- "$word"))', "}"]
    return "\n".join([*lines, "complete -o default -F _bedstone bedstone"])


def _fish(options: dict[str, list[str]], first: dict[str, list[str]]) -> str:
    start = "complete -c bedstone"
    lines = [f"{start} -n __fish_use_subcommand -f -a '{' '.join(options)}'"]
    for name, own in options.items():
        here = f"{start} -n '__fish_seen_subcommand_from {name}'"
        lines += [f"{here} -l {option.removeprefix('--')}" for option in own]
        if name in first:
            lines.append(f"{here} -a '{' '.join(first[name])}'")
    return "\n".join(lines)
