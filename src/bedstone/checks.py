"""Checks that settings share."""

from typing import Any

from bedstone.errors import BedstoneError


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


def check_whole(name: str, value: Any, least: int) -> None:
    """Checks one whole number, by the name that the user writes.

    Raises:
        BedstoneError: it is less than `least`, or no whole number.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BedstoneError(
            f"{name}: {value!r} was given; expected a whole number, at least {least}."
        )
