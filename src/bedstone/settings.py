"""Dataclasses from plain values and back: YAML, `key=value`, and errors that name the key."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from bedstone.errors import BedstoneError, nearest

T = TypeVar("T")


def read_recipe(
    cls: type[T], path: str | Path | None, overrides: Sequence[str] = (), **defaults: Any
) -> T:
    """A recipe from a YAML file, with `key=value` overrides (`optim.lr=1e-3`).

    Raises:
        BedstoneError: the file can't be read, a key is unknown or a value has the wrong type.
    """
    values = {**defaults, **read_values(path, overrides)}
    return from_mapping(cls, values, "recipe" if path is None else str(path))


def read_values(path: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a YAML file and the overrides say, whatever recipe it is of.

    Raises:
        BedstoneError: the file can't be read, or an override isn't one.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            folder = Path(path).parent
            near = [str(folder / p.name) for p in folder.glob("*.y*ml")] if folder.is_dir() else []
            raise BedstoneError(
                f"{path}: no such recipe{nearest(str(path), near) if near else ''}."
            ) from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            told = " ".join(str(error).split())
            raise BedstoneError(f"{path}: is not a YAML recipe that can be read: {told}.") from None
        if not isinstance(loaded, dict | None):
            raise BedstoneError(f"{path}: a recipe is a mapping of keys to values.")
        values.update(loaded or {})
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise BedstoneError(f"{override!r}: an override is written key=value, as budget=5m.")
        _set(values, key.strip().split("."), _yaml_value(text), override)
    return values


def _yaml_value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _set(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise BedstoneError(f"{override!r}: {key} holds a value, not a section.")
    values[keys[-1]] = value


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str, prefix: str = "") -> T:
    """A dataclass from plain values, each checked against the type of its field.

    Raises:
        BedstoneError: a key is unknown (the nearest is named) or a value doesn't fit.
    """
    hints = typing.get_type_hints(cls)
    known = {item.name for item in dataclasses.fields(typing.cast(Any, cls))}
    chosen = {}
    for key, value in values.items():
        if key not in known:
            raise BedstoneError(
                f"{where}: unknown key {prefix + str(key)!r}{nearest(str(key), known)}."
            )
        chosen[key] = _fit(hints[key], value, where, prefix + key)
    return cls(**chosen)


def _fit(hint: Any, value: Any, where: str, key: str) -> Any:
    """`value` as the type `hint`, or BedstoneError."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, typing.cast(type, hint)):
        return value
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_mapping(typing.cast(type, hint), value, where, key + ".")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        first, *others = (kind for kind in inner if kind is not type(None))
        for kind in others:
            try:
                return _fit(kind, value, where, key)
            except BedstoneError:
                continue
        return _fit(first, value, where, key)
    if origin in (tuple, list) and isinstance(value, list | tuple):
        return origin(_fit(inner[0], item, where, key) for item in value)
    if (hint is Any or origin is dict or hint is dict) and (hint is Any or isinstance(value, dict)):
        return value
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as a string
        except ValueError:
            pass
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    wanted_text = wanted.get(hint, "a list" if origin in (tuple, list) else "a section of keys")
    raise BedstoneError(f"{where}: {key} = {value!r}; expected {wanted_text}.")


def field_names(cls: Any, prefix: str = "") -> list[str]:
    """Every field of a recipe as it is written in an override, sections opened."""
    hints = typing.get_type_hints(cls)
    names = []
    for item in dataclasses.fields(cls):
        inner = hints[item.name]
        if dataclasses.is_dataclass(inner):
            names += field_names(inner, f"{prefix}{item.name}.")
        else:
            names.append(prefix + item.name)
    return names


def to_yaml(recipe: Any) -> str:
    """The recipe, every field said, as YAML that `read_recipe` reads back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return yaml.safe_dump(plain(dataclasses.asdict(recipe)), sort_keys=False, allow_unicode=True)


# Checks that settings share.


def at_least(owner: Any, least: int, *names: str, prefix: str = "", optional: bool = False) -> None:
    """Checks whole numbers among the attributes of `owner`.

    Args:
        prefix: what stands before a name where the user writes it, as `model.`.
        optional: None passes too.

    Raises:
        BedstoneError: one is less than `least`, or no whole number.
    """
    for name in names:
        value = getattr(owner, name)
        if not (optional and value is None):
            check_whole(f"{prefix}{name}", value, least)


def check_shares(shares: Mapping[str, float]) -> None:
    """Checks shares that are less than the whole, by the names that the user writes.

    Raises:
        BedstoneError: one is less than 0, or not less than 1.
    """
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise BedstoneError(f"{name}: {value} was given; it is a share, from 0 to below 1.")


def check_whole(name: str, value: Any, least: int) -> None:
    """Checks one whole number, by the name that the user writes.

    Raises:
        BedstoneError: it is less than `least`, or no whole number.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BedstoneError(
            f"{name}: {value!r} was given; expected a whole number, at least {least}."
        )
