"""image-classification, zero-shot-image-classification and image-feature-extraction.

Shapes: L labels, T patches, D width, E joint width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.checkpoints.model import Model
from bedstone.errors import BedstoneError
from bedstone.models.clip.network import states_of
from bedstone.settings import optional, whole
from bedstone.tasks.images.engine import ImageOptions, ImageTask, LabelledQuery, image_vectors
from bedstone.tasks.task import embeds_both, embeds_images, shown
from bedstone.tasks.text.text_classification import check_function, scores_of
from bedstone.tasks.text.zero_shot_classification import label_names

TEMPLATE = "This is a photo of {}."  # version 4's
CACHE_SIZE = 16  # sets of labels whose embeddings are kept


@dataclass(frozen=True)
class LabelOptions(ImageOptions):
    """Options of image-classification.

    Attributes:
        top_k: how many labels to give, best first; None gives all.
        function_to_apply: softmax, sigmoid or none; default (or None) is by the model's problem.
    """

    top_k: int | None = optional(whole(1, default=5))
    function_to_apply: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_function(self.function_to_apply)


class ImageClassification(ImageTask):
    """An image -> its labels with their scores, best first: `[{"label", "score"}, ...]`."""

    name = "image-classification"
    fields = ("image", "class")
    metric = "classification"
    asks = "a head for labels of a picture (ForImageClassification)"
    settings = LabelOptions

    @classmethod
    def fits(cls, model: Model) -> bool:
        head = getattr(model.config, "head", None)
        return embeds_images(model) and head is not None and head.kind == "sequence"

    def look(self, network: Any, pixels: Tensor, options: LabelOptions) -> Sequence[Tensor]:
        return network(pixels).float().cpu().unbind()

    def finish(
        self, row: LabelledQuery, output: Tensor, options: LabelOptions
    ) -> list[dict[str, Any]]:
        head = self.model.config.head
        scores = scores_of(head, output, options.function_to_apply).tolist()
        return _ranked(zip(head.labels, scores, strict=True), ("label", "score"))[: options.top_k]


@dataclass(frozen=True)
class ZeroShotImageOptions(ImageOptions):
    """Options of zero-shot-image-classification.

    Attributes:
        candidate_labels: a list, or one string with commas between.
        hypothesis_template: a sentence with {} for the label, or a list of them: a label is then
            the mean of its sentences' vectors (Radford et al., 2021, section 3.1.4).
        tokenizer_kwargs: taken and of no effect: texts are made as in training.
    """

    candidate_labels: str | Sequence[str] = ()
    hypothesis_template: str | Sequence[str] = TEMPLATE
    tokenizer_kwargs: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        label_names(self.candidate_labels)
        if not isinstance(self.hypothesis_template, str | list | tuple):
            raise BedstoneError(
                f"hypothesis_template: {shown(self.hypothesis_template)} was given; expected a "
                "sentence, or a list."
            )
        for template in self.templates:
            if not isinstance(template, str) or "{}" not in template:
                raise BedstoneError(
                    f"hypothesis_template: {shown(template)} has no place for the label; put {{}} "
                    "there."
                )
        if not self.templates:
            raise BedstoneError(
                "hypothesis_template: the list is empty; give one sentence or more."
            )

    @property
    def templates(self) -> tuple[str, ...]:
        given = self.hypothesis_template
        return (given,) if isinstance(given, str) else tuple(given)


class ZeroShotImageClassification(ImageTask):
    """An image and labels -> their scores, best first: `[{"score", "label"}, ...]`.

    A CLIP gives the softmax over the labels; a model that was trained with the sigmoid (SigLIP)
    gives each label's own probability.
    """

    name = "zero-shot-image-classification"
    fields = ("image", "class")
    metric = "zero_shot"
    asks = "a model of pictures and words, such as a CLIP"
    settings = ZeroShotImageOptions
    keys = ("image", "candidate_labels", "text")

    def __init__(self, model: Model, *, precision: str = "fp32", **options: Any) -> None:
        super().__init__(model, precision=precision, **options)
        self._known: dict[Any, np.ndarray] = {}  # of labels that were asked for lately
        with torch.inference_mode():
            network = model.network
            self._scale = float(network.scale)
            self._bias = None if network.bias is None else float(network.bias)

    @classmethod
    def fits(cls, model: Model) -> bool:
        return embeds_both(model)

    def __call__(self, inputs: Any = None, candidate_labels: Any = None, **options: Any) -> Any:
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        return super().__call__(inputs, **options)

    def prepare(self, value: Any, options: ZeroShotImageOptions) -> LabelledQuery:
        query = super().prepare(value, options)
        own: Any = None
        if isinstance(value, dict):
            own = value.get("candidate_labels", value.get("text"))
        labels = label_names(options.candidate_labels if own is None else own)
        if not labels:
            raise BedstoneError(
                "candidate_labels: none were given; name what the picture may show, such as "
                "candidate_labels=['a cat', 'a dog']."
            )
        return LabelledQuery(query.image, labels)

    def look(self, network: Any, pixels: Tensor, options: Any) -> Sequence[np.ndarray]:
        return list(image_vectors(network, pixels))

    def finish(
        self, row: LabelledQuery, output: np.ndarray, options: ZeroShotImageOptions
    ) -> list[dict[str, Any]]:
        logits = torch.from_numpy(self.vectors(row.labels, options.templates) @ output)
        logits = logits * self._scale
        scores = logits.softmax(-1) if self._bias is None else (logits + self._bias).sigmoid()
        return _ranked(zip(row.labels, scores.tolist(), strict=True), ("score", "label"))

    def vectors(self, labels: tuple[str, ...], templates: tuple[str, ...]) -> np.ndarray:
        """(L, E) of length 1: of each label the mean over the templates."""
        key = labels, templates
        if key not in self._known:
            texts = [each.replace("{}", label) for label in labels for each in templates]
            found = self.engine.texts(texts).reshape(len(labels), len(templates), -1).mean(1)
            found /= np.linalg.norm(found, axis=-1, keepdims=True).clip(1e-12)
            while len(self._known) >= CACHE_SIZE:
                del self._known[next(iter(self._known))]
            self._known[key] = found
        return self._known[key]


@dataclass(frozen=True)
class ImageFeatureOptions(ImageOptions):
    """Options of image-feature-extraction.

    Attributes:
        pool: one vector an image, instead of one a patch.
        return_tensors: results are tensors, not lists.
    """

    pool: bool = False
    return_tensors: bool | str = False


class ImageFeatureExtraction(ImageTask):
    """An image -> the states of its patches, (1, T, D), or with `pool` one vector, (1, D).

    The vector is what the network's head is handed; of a CLIP, the image's place in the space
    that it shares with words.
    """

    name = "image-feature-extraction"
    asks = "a network that reads pictures"
    settings = ImageFeatureOptions

    @classmethod
    def fits(cls, model: Model) -> bool:
        return embeds_images(model)

    def look(self, network: Any, pixels: Tensor, options: ImageFeatureOptions) -> Sequence[Any]:
        if options.pool:
            found = getattr(network, "image_features", None) or network.features
        else:
            found = states_of(getattr(network, "image", network))
        return found(pixels).float().cpu().unbind()

    def finish(self, row: LabelledQuery, output: Tensor, options: ImageFeatureOptions) -> Any:
        return output[None] if options.return_tensors else output[None].tolist()


def _ranked(pairs: Iterable[tuple[str, float]], keys: tuple[str, str]) -> list[dict[str, Any]]:
    """Labels and scores, best first, in dictionaries whose keys are in that order."""
    best = sorted(pairs, key=lambda pair: -pair[1])
    return [{key: pair[key == "score"] for key in keys} for pair in best]
