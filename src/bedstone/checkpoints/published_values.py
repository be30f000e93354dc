"""Reading values of a published `config.json`, each checked."""

from typing import Any

from bedstone.errors import BedstoneError


def need(config: dict[str, Any], key: str) -> int:
    """A size that every published configuration of the layout has."""
    size = config.get(key)
    if not isinstance(size, int) or isinstance(size, bool):
        found = f"is {size!r}" if key in config else "is missing"
        raise BedstoneError(f"config.json: {key!r} {found}; expected a whole number.")
    return size


def refuse(config: dict[str, Any], unsupported: dict[str, Any]) -> None:
    """Raises BedstoneError if a key has a value that changes the network in ways we don't build."""
    for key, plain in unsupported.items():
        if config.get(key, plain) not in (plain, None):
            raise BedstoneError(
                f"config.json: {key} = {config[key]!r} is not supported; only {plain!r} is."
            )
