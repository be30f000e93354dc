"""CLIPs, and their image towers with labels, which are published under the same `model_type`.

The class in `architectures` tells them apart: `CLIPModel` or `CLIPForImageClassification`.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from bedstone.checkpoints import clip_layouts
from bedstone.checkpoints.convert import Layout, Name
from bedstone.checkpoints.published_heads import read_head, write_head
from bedstone.models import clip, labelled_tower
from bedstone.models.clip import CLIPConfig
from bedstone.models.heads import HeadConfig
from bedstone.models.labelled_tower import LabelledTowerConfig

ENDING = "ForImageClassification"
_STEMS = {"clip": "CLIP", "siglip": "Siglip", "clip_resnet": "CLIPResNet"}


def _architecture(config: Any, *, plain: Layout) -> Any:
    if isinstance(config, LabelledTowerConfig):
        return None if config.layout == "clip_resnet" else _STEMS[config.layout] + ENDING
    return plain.architecture(config)


def _read(config: dict[str, Any], *, plain: Layout) -> Any:
    whole: CLIPConfig = plain.read_config(config)
    if not (config.get("architectures") or [""])[0].endswith(ENDING):
        return whole
    # labels are published as those of text are, by another class
    head: HeadConfig = read_head(
        {**config, "architectures": ["ForSequenceClassification"]}, bare=""
    )
    return LabelledTowerConfig(whole.layout, whole.image, head)


def _write(config: Any, *, plain: Layout) -> dict[str, Any]:
    if not isinstance(config, LabelledTowerConfig):
        return plain.write_config(config)
    published = plain.write_config(_around(config))
    named = [_STEMS[config.layout] + ENDING]
    return {**published, "architectures": named, **write_head(config.head)}


def _build(config: Any) -> nn.Module:
    made = labelled_tower if isinstance(config, LabelledTowerConfig) else clip
    return made.make(config)


def _names(config: Any, *, plain: Layout) -> Iterator[Name]:
    if not isinstance(config, LabelledTowerConfig):
        yield from plain.names(config)
        return
    for name in plain.names(_around(config)):
        if all(ours.startswith("image.") for ours in name.ours):
            yield name
    if config.head.kind == "sequence":
        for leaf in ("weight", "bias"):
            yield Name(f"classifier.{leaf}", (f"head.out.{leaf}",))


def _around(config: LabelledTowerConfig) -> CLIPConfig:
    """A CLIP with that tower; its text tower is as usual, and not there."""
    return CLIPConfig(config.layout, config.image)


def _layout(plain: Layout) -> Layout:
    return replace(
        plain,
        architecture=partial(_architecture, plain=plain),
        read_config=partial(_read, plain=plain),
        write_config=partial(_write, plain=plain),
        build=_build,
        names=partial(_names, plain=plain),
    )


LAYOUTS = {name: _layout(plain) for name, plain in clip_layouts.LAYOUTS.items()}
