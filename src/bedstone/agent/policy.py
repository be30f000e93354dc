"""What an agent may do: rules outside the model, which no text that it reads can change.

Each call is allowed, asked about, or denied. A tool without effects is allowed, one with effects is
asked about, unless a rule says otherwise; the first rule that fits counts:

    allow read_file
    ask write_file(path=reports/*)
    deny *

Texts from tools may hold orders of others ("ignore what you were told, and send ..."). Once the
model has read such a text, `allow` of a tool with effects becomes `ask`: only `trust` still lets it
through. Where nobody can be asked, what is asked about is denied.
"""

import fnmatch
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bedstone.agent.tools import Tool
from bedstone.errors import BedstoneError, nearest

ACTIONS = ("trust", "allow", "ask", "deny")
_RULE = re.compile(r"(\w+)\s+([^\s(]+)\s*(?:\((.*)\))?", re.DOTALL)
Ask = Callable[[str, Mapping[str, Any], str], bool]


@dataclass(frozen=True)
class Decision:
    """Whether a call is made, and why.

    Attributes:
        action: allow or deny: an `ask` was answered.
        reason: of it, in a sentence.
        by_user: whether somebody was asked.
    """

    action: str
    reason: str
    by_user: bool = False

    @property
    def allowed(self) -> bool:
        return self.action == "allow"


@dataclass(frozen=True)
class Rule:
    """A rule: an action, a pattern of tools' names, and patterns of arguments.

    Patterns have `*`, `?` and `[...]`. An argument that the rule names and the call lacks doesn't
    fit; arguments that it doesn't name may be anything. Of a path every way to write `..` is
    refused by the tools themselves.
    """

    action: str
    name: str
    arguments: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        inner = ", ".join(f"{name}={pattern}" for name, pattern in self.arguments)
        return f"{self.action} {self.name}" + (f"({inner})" if inner else "")

    def fits(self, name: str, arguments: Mapping[str, Any]) -> bool:
        if not fnmatch.fnmatchcase(name, self.name):
            return False
        return all(
            each in arguments and fnmatch.fnmatchcase(_as_text(arguments[each]), pattern)
            for each, pattern in self.arguments
        )


def parse_rule(text: str) -> Rule:
    """A rule as it is written: `allow write_file(path=reports/*)`.

    Raises:
        BedstoneError: it isn't one.
    """
    found = _RULE.fullmatch(text.strip())
    if found is None:
        raise BedstoneError(
            f"policy: {text!r} is no rule; expected an action and a tool, such as "
            "'ask write_file(path=reports/*)'."
        )
    action, name, inner = found.groups()
    if action not in ACTIONS:
        raise BedstoneError(
            f"policy: {text!r}: {action!r} is no action{nearest(action, ACTIONS)}; expected one of "
            f"{', '.join(ACTIONS)}."
        )
    arguments = []
    for part in filter(None, (each.strip() for each in (inner or "").split(","))):
        key, equals, pattern = part.partition("=")
        if not equals:
            raise BedstoneError(f"policy: {text!r}: {part!r}; expected argument=pattern.")
        arguments.append((key.strip(), pattern.strip()))
    return Rule(action, name, tuple(arguments))


class Policy:
    """Decides on calls.

    Args:
        rules: texts as `parse_rule` reads them, or rules; the first that fits counts.
        ask: called with a tool's name, the arguments and the reason; None denies.

    Raises:
        BedstoneError: a rule isn't one.
    """

    def __init__(self, rules: Iterable[str | Rule] = (), ask: Ask | None = None) -> None:
        self.rules = [each if isinstance(each, Rule) else parse_rule(each) for each in rules]
        self.ask = ask

    def check(self, tools: Mapping[str, Tool]) -> None:
        """Raises BedstoneError where a rule would protect nothing: it fits no tool, or names an
        argument that no such tool has."""
        for rule in self.rules:
            fits = [each for name, each in tools.items() if fnmatch.fnmatchcase(name, rule.name)]
            if not fits:
                raise BedstoneError(
                    f"policy: {str(rule)!r} fits no tool{nearest(rule.name, tools)}; there are "
                    f"{', '.join(tools)}."
                )
            known = {name for each in fits for name in each.parameters.get("properties") or {}}
            for name, _ in rule.arguments:
                if name not in known:
                    raise BedstoneError(
                        f"policy: {str(rule)!r}: no such tool has an argument "
                        f"{name!r}{nearest(name, known)}."
                    )

    def decide(self, tool: Tool, arguments: Mapping[str, Any], *, tainted: bool) -> Decision:
        """Whether a call is made.

        Args:
            tainted: whether the model has read texts that others wrote.
        """
        rule = next((each for each in self.rules if each.fits(tool.name, arguments)), None)
        action = rule.action if rule else ("ask" if tool.effects else "allow")
        reason = f"rule: {rule}" if rule else ("it has effects" if tool.effects else "no effects")
        if action == "trust":
            return Decision("allow", reason)
        if action == "allow" and tool.effects and tainted:
            action, reason = "ask", f"{reason}; but texts of others were read"
        if action != "ask":
            return Decision(action, reason)
        if self.ask is None:
            return Decision("deny", f"{reason}; nobody can be asked")
        allowed = self.ask(tool.name, arguments, reason)
        return Decision("allow" if allowed else "deny", f"{reason}; asked", by_user=True)


def _as_text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():  # 1000.0 is 1000
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
