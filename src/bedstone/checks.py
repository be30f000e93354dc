"""Checks that settings share."""

from collections.abc import Mapping
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
