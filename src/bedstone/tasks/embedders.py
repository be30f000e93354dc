"""One face for what embeds: a CLIP, for pictures and texts, or a text model, for texts alone."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from bedstone.checkpoints.artefact import Model
from bedstone.errors import BedstoneError
from bedstone.tasks.embed import SentenceEmbedding, unit
from bedstone.tasks.picture_engine import PictureEngine
from bedstone.tasks.task import compares, sees
from bedstone.tasks.zero_shot import SCALE


class Embeds(Protocol):
    """Embeddings of length 1, (n, E) fp32: `TextEmbedder`, `picture_engine.PictureEngine`."""

    def images(self, pictures: Iterable[Any]) -> np.ndarray:
        """Those of pictures."""

    def texts(self, texts: list[str]) -> np.ndarray:
        """Those of texts."""


class TextEmbedder:
    """Texts by sentence embeddings; a long one is read in windows."""

    def __init__(self, model: Model, precision: str = "fp32") -> None:
        self.embed = SentenceEmbedding(model, precision=precision, long="windows")
        self.width = self.embed.width

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, E), each of length 1."""
        return unit(self.embed.vectors(list(texts))) if texts else np.zeros((0, self.width), "f4")

    def images(self, pictures: Iterable[Any]) -> np.ndarray:
        """Raises BedstoneError: a text model sees no pictures."""
        raise BedstoneError(
            f"{self.embed.model.path}: reads text alone, and a picture was given; name a model for "
            "both, a CLIP."
        )


def can_embed(model: Model) -> bool:
    """Whether a model gives embeddings."""
    if sees(model):
        return compares(model)  # one of pictures alone has no words to compare them with
    kind = model.config.head.kind
    return model.pooling is not None or kind in ("states", "pooled")


def embedder_of(model: Model, precision: str = "fp32") -> Embeds:
    """What embeds by a model. Raises BedstoneError where it can't."""
    if compares(model):
        return PictureEngine(model, precision)
    return TextEmbedder(model, precision)


def scale_of(model: Model) -> float:
    """What cosines are multiplied by before they are weighed: as trained, else the usual."""
    scale = getattr(model.network, "scale", None)
    return SCALE if scale is None else float(scale.detach())
