"""Settings: dataclasses with declared bounds, read from YAML and `key=value` and written back.

A field declares what it may hold (`layers: int = whole(1, default=6)`); a dataclass that derives
from `Settings` checks its fields when one is made. Errors name the field as the user writes it.
"""

import copy
import dataclasses
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import yaml

from bedstone.errors import BedstoneError, near_name, nearest
from bedstone.reading import kind_of, read_text, shown, to_path

T = TypeVar("T")
_BOUND = "bound"  # the key of a field's metadata


Overrides = Sequence["str | Mapping[str, Any]"]  # `optim.lr=1e-3`, or {"optim": {"lr": 1e-3}}


def read_recipe(
    cls: type[T],
    path: str | Path | Mapping[str, Any] | None,
    overrides: Overrides = (),
    **defaults: Any,
) -> T:
    """A recipe from a YAML file or from values by name, with overrides.

    Raises:
        BedstoneError: the file can't be read, a key is unknown or a value has the wrong type.
    """
    values = {**defaults, **read_values(path, overrides)}
    return from_mapping(cls, values, str(path) if isinstance(path, str | Path) else "recipe")


def read_values(
    path: str | Path | Mapping[str, Any] | None, overrides: Overrides = ()
) -> dict[str, Any]:
    """What a YAML file, or values by name, and the overrides say, whatever recipe it is of.

    Raises:
        BedstoneError: the file can't be read, or an override isn't one.
    """
    values: dict[str, Any] = {}
    if isinstance(path, Mapping):
        values = copy.deepcopy(dict(path))
    elif path is not None:
        if not kind_of(to_path(path)):
            folder = Path(path).parent
            near = [str(folder / p.name) for p in folder.glob("*.y*ml")] if folder.is_dir() else []
            raise BedstoneError(
                f"{path}: no such recipe{nearest(str(path), near) if near else ''}."
            )
        loaded = load_yaml(read_text(to_path(path), YAML_LIMIT), f"{path}: is not a YAML recipe")
        if not isinstance(loaded, dict | None):
            raise BedstoneError(f"{path}: a recipe is a mapping of keys to values.")
        values.update(loaded or {})
    for override in overrides:
        if isinstance(override, Mapping):
            _merge(values, override)
            continue
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise BedstoneError(f"{override!r}: an override is written key=value, as budget=5m.")
        _set(values, key.strip().split("."), _yaml_value(text), override)
    return values


def _merge(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Sets fields by name; `optim.lr` is one of a section, and a section keeps its other fields."""
    for key, value in changes.items():
        section, dot, rest = str(key).partition(".")
        if dot:
            _merge(values, {section: {rest: value}})
        elif isinstance(value, Mapping) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = dict(value) if isinstance(value, Mapping) else value


class Cleared(str):
    """The value of an override without one, as `data.test=`: nothing, in the field's own type."""


def _cleared(hint: Any) -> Any:
    if type(None) in typing.get_args(hint):
        return None
    kind = typing.get_origin(hint) or hint
    return kind() if kind in (list, dict, tuple) else ""


YAML_LIMIT = 1 << 20  # bytes of a recipe or a policy
VALUES = 100_000  # that one holds at most, those behind its aliases counted as often as they stand


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice: the second value would replace the first."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} is there twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def load_yaml(text: str, fault: str) -> Any:
    """The value of a YAML text.

    Args:
        fault: what the error begins with: the file and what it isn't.

    Raises:
        BedstoneError: it can't be read, or is larger with its aliases written out, or nested
            deeper, than any recipe.
    """
    try:
        made = _Loader(text)
        try:
            value = made.get_single_data()
        finally:
            made.dispose()
    except RecursionError:
        raise BedstoneError(f"{fault}: it is nested too deeply.") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        why = " ".join(str(error).split())[:300]
        raise BedstoneError(f"{fault} that can be read: {why}.") from None
    if _count(value, {}, ()) > VALUES:
        raise BedstoneError(
            f"{fault}: with its aliases written out it holds over {VALUES:,} values, or itself."
        )
    return value


def _count(value: Any, known: dict[int, int], around: tuple[int, ...]) -> int:
    """How many values one is made of, its aliases written out."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) in around or len(around) > 50:
        return VALUES + 1
    if id(value) not in known:
        inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        around = (*around, id(value))
        known[id(value)] = 1 + sum(_count(each, known, around) for each in inner)
    return known[id(value)]


def _yaml_value(text: str) -> Any:
    if not text.strip():
        return Cleared()
    try:
        return load_yaml(text, "")
    except BedstoneError:
        return text


def _set(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise BedstoneError(f"{override!r}: {key} holds a value, not a section.")
    values[keys[-1]] = value


def from_mapping(
    cls: type[T], values: Mapping[str, Any], where: str, prefix: str = "", root: Any = None
) -> T:
    """A dataclass from plain values, each checked against the type of its field.

    Args:
        prefix: of a section's keys, as `optim.`.
        root: the recipe's class, of which `cls` is a section; None where it is the recipe's.

    Raises:
        BedstoneError: a key is unknown (the nearest is named) or a value doesn't fit.
    """
    hints = typing.get_type_hints(cls)
    known = {item.name for item in dataclasses.fields(typing.cast(Any, cls))}
    chosen = {}
    for key, value in values.items():
        if key not in known:
            hint = _near_key(str(key), prefix, known, field_names(root or cls))
            raise BedstoneError(f"{where}: unknown key {prefix + str(key)!r}{hint}.")
        chosen[str(key)] = _fit(hints[key], value, where, prefix + str(key), root or cls)
    return cls(**chosen)


def _near_key(key: str, prefix: str, known: Iterable[str], every: Sequence[str]) -> str:
    """What may be meant by an unknown key: a field of its section, or else of another one.

    Args:
        known: the fields of the key's own section.
        every: all fields of the recipe, in full.
    """
    if own := near_name(key, known):
        return f"; perhaps {prefix + own!r} is meant"
    by_name: dict[str, list[str]] = {}
    for each in every:
        by_name.setdefault(each.rpartition(".")[2], []).append(each)
    found = by_name.get(key) or by_name.get(near_name(key, by_name))
    if found and len(found) <= 3:
        return f"; perhaps {' or '.join(map(repr, found))} is meant"
    return nearest(key, known)


def _fit(hint: Any, value: Any, where: str, key: str, root: Any = None) -> Any:
    """`value` as the type `hint`, or BedstoneError."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, Cleared):
        value = _cleared(hint)
    if origin is typing.Literal and not isinstance(value, dict | list) and value in inner:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(value, typing.cast(type, hint)):
        return value
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_mapping(typing.cast(type, hint), value, where, key + ".", root)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        first, *others = (kind for kind in inner if kind is not type(None))
        for kind in others:
            try:
                return _fit(kind, value, where, key, root)
            except BedstoneError:
                continue
        return _fit(first, value, where, key, root)
    if origin is list and isinstance(value, str):
        value = _listed(value)
    if origin in (tuple, list) and isinstance(value, list | tuple):
        return origin(_fit(inner[0], item, where, key, root) for item in value)
    if (hint is Any or origin is dict or hint is dict) and (hint is Any or isinstance(value, dict)):
        return value
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as a string
        except (ValueError, OverflowError):
            pass
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    other = "a list" if origin in (tuple, list) else "a section of keys"
    if origin is typing.Literal:
        other = "one of " + ", ".join(map(str, inner))
    place = f"{where}: " if where else ""
    raise BedstoneError(f"{place}{key} = {shown(value)}; expected {wanted.get(hint, other)}.")


def _listed(text: str) -> list[str]:
    """A text where a list of texts is expected: one, or several as `[a photo of a {label}, x]`.

    Braces are no YAML inside a list without quotes.
    """
    if text.startswith("[") and text.endswith("]"):
        return [each.strip().strip("'\"") for each in text[1:-1].split(",") if each.strip()]
    return [text] if text else []


def fit(hint: Any, text: Any, name: str) -> Any:
    """A word of the command line, or a list of them, as the type `hint`.

    Raises:
        BedstoneError: it isn't of that type; `name` is the option's.
    """
    if isinstance(text, list):
        return [fit((typing.get_args(hint) or (str,))[0], each, name) for each in text]
    return _fit(hint, _word(hint, text), "", name)


def _word(hint: Any, text: str) -> Any:
    kinds = typing.get_args(hint) or (hint,)
    if str in kinds:
        return text
    value = _yaml_value(text)
    return text if value is None else value


def section_of(hint: Any) -> Any:
    """The dataclass that a field holds, or may hold; None where it is no section."""
    kinds = [each for each in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(each)]
    return kinds[0] if kinds else None


def field_names(cls: Any, prefix: str = "") -> list[str]:
    """Every field of a recipe as it is written in an override, sections opened."""
    return [name for name, _, _ in described_fields(cls, prefix)]


def helps_of(cls: Any) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of each field."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        found |= field_helps(each.__doc__)
    return found


def described_fields(cls: Any, prefix: str = "") -> list[tuple[str, Any, str]]:
    """Every field of a recipe as `field_names` has it, with its default and what it means."""
    hints, helps = typing.get_type_hints(cls), helps_of(cls)
    found = []
    for item in dataclasses.fields(cls):
        inner = section_of(hints[item.name])
        if inner is not None:
            found += described_fields(inner, f"{prefix}{item.name}.")
            continue
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        found.append((prefix + item.name, default, helps.get(item.name, "")))
    return found


def field_helps(doc: str | None) -> dict[str, str]:
    """What a docstring says of each argument or attribute."""
    found: dict[str, str] = {}
    section = re.search(r"\n\s*(?:Args|Attributes)[^\n]*:\n(.*?)(?:\n\s*\n|\Z)", doc or "", re.S)
    name = ""
    lines = inspect.cleandoc(section[1]).splitlines() if section else []
    for line in lines:
        if opens := re.match(r"(\w+(?:, \w+)*): (.*)", line):
            names, text = opens[1].split(", "), opens[2]
            found |= dict.fromkeys(names, text)
            name = names[-1]
        elif name:
            found[name] += " " + line.strip()
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a recipe by their names in overrides: `optim.lr`; an empty section is one."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def to_yaml(recipe: Any) -> str:
    """A recipe, or its values by name, as YAML that `read_recipe` reads back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    values = recipe if isinstance(recipe, dict) else dataclasses.asdict(recipe)
    return yaml.safe_dump(plain(values), sort_keys=False, allow_unicode=True)


# Words on the command line that have a meaning and are not JSON.
WORDS = {"true": True, "false": False, "none": None, "null": None}


def read_options(task: str, settings: type[Any], given: Sequence[str]) -> dict[str, Any]:
    """Options `key=value`; a value is JSON, or true, false or none in any case, or else text."""
    names = {each.name for each in dataclasses.fields(settings)}
    found: dict[str, Any] = {}
    for each in given:
        key, equals, value = each.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise BedstoneError(f"--option {each!r}: expected key=value, such as top_k=3.")
        if key not in names:
            raise BedstoneError(
                f"--option {key!r}: {task} has no such option{nearest(key, names)}."
            )
        found[key] = _value(value)
    return found


def _value(word: str) -> Any:
    if word.lower() in WORDS:
        return WORDS[word.lower()]
    try:
        return json.loads(word)
    except (ValueError, RecursionError):
        return word


# Bounds that a field declares: `layers: int = whole(1, default=6)`.


class Settings:
    """Base of dataclasses whose fields declare bounds; they are checked when one is made.

    Attributes:
        section: what stands before a field's name where the user writes it, such as `lora.`.
    """

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_bounds(self)


class Bound(Protocol):
    """What a field's value must be; `check` raises BedstoneError naming the field."""

    def check(self, name: str, value: Any) -> None: ...


@dataclasses.dataclass(frozen=True)
class Whole:
    """A whole number from `least` to `most`, both included."""

    least: int
    most: int | None = None

    def check(self, name: str, value: Any) -> None:
        check_whole(name, value, self.least)
        if self.most is not None and value > self.most:
            raise BedstoneError(
                f"{name}: {shown(value)} was given; expected a whole number, at most {self.most:,}."
            )


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number from `least` to `most`; an open end is not included itself."""

    least: float
    most: float = math.inf
    open_least: bool = False
    open_most: bool = False

    def check(self, name: str, value: Any) -> None:
        if is_number(value) and self._holds(float(value)):
            return
        raise BedstoneError(f"{name}: {shown(value)} was given; expected {self._range()}.")

    def _holds(self, value: float) -> bool:
        above = value > self.least if self.open_least else value >= self.least
        below = value < self.most if self.open_most else value <= self.most
        return math.isfinite(value) and above and below

    def _range(self) -> str:
        low = f"above {self.least:g}" if self.open_least else f"{self.least:g} or more"
        if self.most == math.inf:
            return f"a number, {low}"
        high = f"below {self.most:g}" if self.open_most else f"at most {self.most:g}"
        return f"a number, {low} and {high}"


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of a few values."""

    choices: tuple[Any, ...]

    def check(self, name: str, value: Any) -> None:
        if isinstance(value, dict | list) or value not in self.choices:
            raise BedstoneError(
                f"{name}: {value!r} is unknown{nearest(str(value), map(str, self.choices))}."
            )


@dataclasses.dataclass(frozen=True)
class OrNone:
    """What another bound allows, or None."""

    inner: Bound

    def check(self, name: str, value: Any) -> None:
        if value is not None:
            self.inner.check(name, value)


def whole(least: int, most: int | None = None, **more: Any) -> Any:
    """A dataclass field that holds a whole number; `default=` and the like go to `field`."""
    return bounded(Whole(least, most), **more)


def number(
    least: float,
    most: float = math.inf,
    *,
    open_least: bool = False,
    open_most: bool = False,
    **more: Any,
) -> Any:
    """A dataclass field that holds a finite number from `least` to `most`."""
    return bounded(Number(least, most, open_least, open_most), **more)


def share(*, below_one: bool = False, **more: Any) -> Any:
    """A dataclass field that holds a share, 0 to 1; with `below_one`, less than the whole."""
    return number(0.0, 1.0, open_most=below_one, **more)


def one_of(*choices: Any, **more: Any) -> Any:
    """A dataclass field that holds one of the choices."""
    return bounded(OneOf(choices), **more)


def optional(field: Any) -> Any:
    """A bounded field that may hold None too, which is its default where it has none."""
    default = None if field.default is dataclasses.MISSING else field.default
    return bounded(OrNone(field.metadata[_BOUND]), default=default)


def bounded(bound: Bound, **more: Any) -> Any:
    """A dataclass field with a bound, checked by `Settings`."""
    return dataclasses.field(metadata={_BOUND: bound}, **more)


def bound_of(field: dataclasses.Field[Any]) -> Bound | None:
    """The bound that a field declares; None where it declares none."""
    found: Bound | None = field.metadata.get(_BOUND)
    return found


def check_bounds(owner: Any) -> None:
    """Checks every field that declares a bound.

    Raises:
        BedstoneError: a value is out of its bounds; the field is named as the user writes it.
    """
    for each in dataclasses.fields(owner):
        if bound := bound_of(each):
            bound.check(owner.section + each.name, getattr(owner, each.name))


# Checks of values that are no field of their own.


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
            f"{name}: {shown(value)} was given; expected a whole number, at least {least}."
        )


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold."""
    if type(value) is int:
        return value.bit_length() < 1024
    return type(value) is float and math.isfinite(value)
