"""How DALL-E is kept: by our own names, as nobody has published the weights of one.

OpenAI published the dVAE alone, DALLE-pytorch no trained model.
"""

from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from bedstone.models.dalle.network import DalleConfig, make
from bedstone.models.published import TRANSFORMERS, Layout, Name
from bedstone.published_keys import Keys
from bedstone.runtime import without_weights
from bedstone.settings import from_mapping

CLASS = "BedstoneDalle"
FIELDS = tuple(item.name for item in fields(DalleConfig))


def read_dalle(config: dict[str, Any]) -> DalleConfig:
    """Our configuration; what a file leaves out has our default."""
    known = {name: config[name] for name in FIELDS if config.get(name) is not None}
    return from_mapping(DalleConfig, known, "config.json")


def write_dalle(config: DalleConfig) -> dict[str, Any]:
    """The `config.json` of a network."""
    values = {"model_type": config.layout, **asdict(config)}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def names_dalle(config: DalleConfig) -> Iterator[Name]:
    """Every tensor, by the name that it has here."""
    with without_weights():
        network = make(config)
    yield from (Name(name, (name,)) for name in network.state_dict())


LAYOUTS = {
    "dalle": Layout(
        model_type="dalle",
        architecture=lambda config: None,
        read_config=read_dalle,
        write_config=write_dalle,
        build=make,
        names=names_dalle,
        keys=TRANSFORMERS | Keys(honoured=frozenset(FIELDS)),
    ),
}
