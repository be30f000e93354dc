"""The recipes that come with Bedstone: found by name, listed, read and described by a JSON schema.

They are the YAML files of the folder `library/`. `tinyshakespeare`, `tinyshakespeare.yaml` and
`recipes/tinyshakespeare.yaml` all name the same one wherever no file of that name is there.
"""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError, closest
from bedstone.settings import helps_of

LIBRARY = Path(__file__).parent / "library"


def names() -> list[str]:
    """The names of all recipes, sorted."""
    return sorted(path.stem for path in LIBRARY.glob("*.yaml"))


def find(name: str | Path) -> Path:
    """The file of a recipe: the one that is named, or else one of the library.

    Raises:
        BedstoneError: there is none of that name; the nearest is named.
    """
    path = Path(name)
    try:
        there = path.exists() and not path.is_dir()
    except (OSError, ValueError):  # no name that a file could have
        there = False
    if there:
        return path
    plain = path.parent == Path("recipes") or len(path.parts) == 1
    own = LIBRARY / f"{path.name.removesuffix('.yaml')}.yaml"
    if plain and "\0" not in str(name) and own.name in {f"{each}.yaml" for each in names()}:
        return own
    text = str(name)
    shown = text if len(text) < 200 else f"{text[:200]}..."
    near = names()
    if "\0" not in text and len(text) < 4096 and path.parent.is_dir():
        near += [str(each) for each in path.parent.glob("*.y*ml")]
    raise BedstoneError(
        f"{shown!r}: no such recipe{closest(text[:200], near)}. `bedstone recipes` lists those "
        "that come with Bedstone; one of your own is named by its file."
    )


def comment(path: Path) -> str:
    """The text that a recipe begins with, without its comment signs."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines).strip()


def summary(path: Path) -> str:
    """The first sentence of a recipe's comment."""
    first = " ".join(comment(path).split("\n\n")[0].split())
    return first.partition(". ")[0].rstrip(".")


def command(path: Path) -> str:
    """The command that a recipe's comment gives: `pretrain`, `finetune` or another."""
    words = next((line for line in comment(path).splitlines() if "bedstone " in line), "").split()
    return words[words.index("bedstone") + 1] if "bedstone" in words else ""


def schema(kinds: dict[str, type[Any]]) -> dict[str, Any]:
    """A JSON schema of recipes, for editors that complete and check YAML.

    Args:
        kinds: classes of recipes by the name of their method.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Bedstone recipe",
        "anyOf": [{"title": name, **_section(kind)} for name, kind in kinds.items()],
    }


def _section(kind: Any) -> dict[str, Any]:
    hints, helps = typing.get_type_hints(kind), helps_of(kind)
    fields = {}
    for each in dataclasses.fields(kind):
        fields[each.name] = _kind(hints[each.name])
        if each.name in helps:
            fields[each.name] = {**fields[each.name], "description": helps[each.name]}
        if each.default is not dataclasses.MISSING and _is_plain(each.default):
            fields[each.name] = {**fields[each.name], "default": each.default}
    return {"type": "object", "properties": fields, "additionalProperties": False}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _kind(hint: Any) -> dict[str, Any]:
    """The schema of a field's type; what it doesn't describe may be anything."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _section(hint)
    if origin is typing.Literal:
        return {"enum": list(inner)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_kind(each) for each in inner]}
    if origin in (list, tuple):
        return {"type": "array", "items": _kind(inner[0])}
    if origin is dict or hint is dict:
        return {"type": "object"}
    if hint is float:  # YAML reads 1e-3 as text
        return {"type": ["number", "string"]}
    kinds = {int: "integer", str: "string", bool: "boolean", type(None): "null"}
    named = {"type": kinds[hint]} if hint in kinds else {}
    return {"type": ["string", "number"]} if hint is str else named
