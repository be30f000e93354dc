"""Evaluation of contrastive models: loss, retrieval recall both ways, zero-shot accuracy.

Shapes: P pictures, T texts, E joint width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.dataset import Dataset
from bedstone.data.images.contrastive import ContrastiveTexts, encoder_of, text_rows
from bedstone.data.images.pixels import ImageCache
from bedstone.data.open import PairsConfig
from bedstone.data.scenes.datasets import NAME as SCENES
from bedstone.data.scenes.datasets import heldout_scene_pairs
from bedstone.data.text.packing import Packed, pack
from bedstone.errors import BedstoneError
from bedstone.evaluate.runner import Evaluation, Progress, present
from bedstone.metrics.figures import Figures
from bedstone.metrics.retrieval import class_vectors, prompts, retrieval, zero_shot
from bedstone.models.published import fresh_processor
from bedstone.objectives.contrastive import sigmoid_loss, softmax_loss
from bedstone.report.plots import draw_confusion
from bedstone.runtime import Precision
from bedstone.train.data import cached_images, recorded_columns, recorded_data
from bedstone.train.logs import ProgressBar

BATCH = 64  # pictures or texts that go through a tower at a time


@dataclass
class ContrastiveScorer(Evaluation):
    """Loss, retrieval and zero-shot figures of a contrastive model on images with texts.

    Attributes:
        model: with image and text towers.
        images: of the rows, as the model reads them.
        texts: of the rows, tokenised.
        precision: of the matrix products.
        kind: softmax or sigmoid: which loss is reported.
        batch_size: pairs in a batch of the loss.
    """

    model: Model
    images: ImageCache
    texts: ContrastiveTexts
    precision: Precision
    kind: str = "softmax"
    batch_size: int = 256

    @property
    def rows(self) -> Dataset:
        rows: Any = self.images.rows
        return rows

    def predict(self, progress: Progress = None) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of rows (P,) and their images' vectors (P, E), of unit length."""
        with torch.no_grad():
            return self._images(progress)

    @torch.no_grad()
    def score(self, found: tuple[np.ndarray, np.ndarray], resamples: int) -> dict[str, Figures]:
        """`retrieval` where rows have texts of their own, `zero-shot` where they have labels."""
        numbers, images = found
        pairs = [self.rows[int(i)] for i in numbers]
        figures: dict[str, Figures] = {}
        own = [i for i, pair in enumerate(pairs) if not pair.made]
        if len(own) > 1:
            chosen = [self.texts.captions[numbers[i]] for i in own]
            owners = np.repeat(np.arange(len(own)), [len(each) for each in chosen])
            flat = np.array([text for each in chosen for text in each])
            vectors = self._texts(flat)
            figures["retrieval"] = retrieval(
                images[own], vectors, owners, flat, resamples=resamples
            )
        labelled = [i for i, pair in enumerate(pairs) if pair.label is not None]
        classes = self.rows.classes
        if labelled and len(classes) > 1:
            known = {name: number for number, name in enumerate(classes)}
            actual = np.array([known[str(pairs[i].label)] for i in labelled])
            vectors = self.class_vectors(classes, self.rows.templates)
            figures["zero-shot"] = zero_shot(
                images[labelled], vectors, actual, classes, resamples=resamples
            )
        return figures

    def log(self, network: Any) -> dict[str, float]:
        network.eval()
        found = self.predict()
        figures = self.score(found, 0)
        values = {"loss": self._loss(*found)}
        if "retrieval" in figures:
            values |= figures["retrieval"].values
        if "zero-shot" in figures:
            values["zero_shot_accuracy"] = figures["zero-shot"]["accuracy"]
        return {f"validation_{name}": value for name, value in values.items()}

    def report(
        self, folder: Path, metrics: dict[str, float], *, quiet: bool = False
    ) -> dict[str, Any]:
        record = {name: figures.record() for name, figures in self.figures().items()}
        for figures in record.values():
            figures.pop("confusion", None)
        return record

    def class_vectors(self, classes: Sequence[str], templates: Sequence[str]) -> np.ndarray:
        """(C, E), each the mean of its prompts."""
        tokenizer, config = tokenizer_of(self.model), self.model.config
        texts, parts = prompts(classes, templates), []
        for at in range(0, len(texts), BATCH):
            rows = pack(text_rows(tokenizer, texts[at : at + BATCH], config))
            parts.append(self._text_vectors(rows))
        return class_vectors(np.concatenate(parts), len(classes))

    def _images(self, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of rows (P,) and their vectors (P, E), of unit length."""
        processor, device = self.model.processor, self.precision.device
        assert processor is not None
        numbers, vectors = [], []
        readable = self.images.readable
        for at in range(0, len(readable), BATCH):
            read, pixels = self.images.read(readable[at : at + BATCH])
            shown = processor.normalise(torch.from_numpy(pixels)).to(device)
            with torch.no_grad(), self.precision.autocast():
                found = self.model.network.image_features(shown)
            numbers.append(read)
            vectors.append(_unit(found))
            if progress is not None:
                progress(at / len(readable))
        return np.concatenate(numbers), np.concatenate(vectors)

    def _texts(self, chosen: np.ndarray) -> np.ndarray:
        """(T, E), each distinct text read once."""
        distinct, places = np.unique(chosen, return_inverse=True)
        parts = [
            self._text_vectors(self.texts.pack(distinct[at : at + BATCH]))
            for at in range(0, len(distinct), BATCH)
        ]
        return np.concatenate(parts)[places]

    def _text_vectors(self, rows: Packed) -> np.ndarray:
        with torch.no_grad(), self.precision.autocast():
            return _unit(self.model.network.text_features(rows.to(self.precision.device)))

    @torch.no_grad()
    def _loss(self, numbers: np.ndarray, images: np.ndarray) -> float:
        """A pair's loss among `batch_size` of them, each picture with its first text."""
        network = self.model.network
        first = np.array([self.texts.captions[i][0] for i in numbers])
        vectors, groups = self._texts(first), self.texts.group[first]
        scale = network.scale.detach().float().cpu()
        bias = 0.0 if network.bias is None else network.bias.detach().float().cpu()
        order = np.random.default_rng(0).permutation(len(numbers))  # classes may stand in order
        total = 0.0
        for at in range(0, len(order), self.batch_size):
            part = order[at : at + self.batch_size]
            image, text = torch.from_numpy(images[part]), torch.from_numpy(vectors[part])
            group = torch.from_numpy(groups[part])
            if self.kind == "sigmoid":
                total += float(sigmoid_loss(image, text, scale, group, bias))
            else:
                total += float(softmax_loss(image, text, scale, group))
        return total / len(order)


def _unit(vectors: Tensor) -> np.ndarray:
    return F.normalize(vectors.float(), dim=-1).cpu().numpy()


# `bedstone evaluate` for a contrastive model.


def evaluate_contrastive(
    model: Model,
    data: str,
    precision: Precision,
    *,
    columns: dict[str, str] | None = None,
    split: str | None = None,
    as_json: bool = False,
    confusion: str | None = None,
) -> dict[str, Any]:
    """Prints and returns the figures over all pairs, with 95 % intervals.

    Columns, templates and names of classes are those of the model's own recipe where it has one.

    Args:
        model: with image and text towers.
        data: pairs, as `data.sources` reads them, or `scenes`.
        columns: which column holds what (text, label), where it isn't the recipe's.
        confusion: a PNG to draw the confusion matrix of zero-shot classification into.

    Raises:
        BedstoneError: the pairs can't be read, or there is nothing to measure.
    """
    settings = recorded_data(PairsConfig, model.record)
    settings.columns = recorded_columns(model.record, data, columns, split=split, images=True)
    if data == SCENES:
        side = max(model.config.image.size)
        rows = heldout_scene_pairs(split or "test", size=side, **settings.drawn)
    else:
        rows = settings.open(data, split, option="")
    if model.processor is None:
        model.processor = fresh_processor(model.config)
    images = cached_images(rows, model.processor, settings, "reading pictures", as_json)
    texts = ContrastiveTexts(rows, encoder_of(tokenizer_of(model), model.config))
    kind = "sigmoid" if model.config.layout == "siglip" else "softmax"
    scorer = ContrastiveScorer(model, images, texts, precision, kind)
    with ProgressBar("evaluating", quiet=as_json) as bar:
        found = scorer.figures(progress=bar.update)
    if not found:
        raise BedstoneError(
            f"data {data!r}: has neither texts of its own to find nor two classes to tell apart."
        )
    record = {name: figures.record() for name, figures in found.items()}
    if confusion is not None:
        if "zero-shot" not in found:
            raise BedstoneError("confusion: the rows have no labels, so there is no such matrix.")
        labelled, title = found["zero-shot"], f"{model.path} on {Path(data).name}"
        draw_confusion(labelled.confusion or [], labelled.labels, confusion, title)
    return present(
        record,
        {f"{model.path} on {data}: {name}": figures.table() for name, figures in found.items()},
        notes=list(filter(None, [rows.faults.left_out()])),
        as_json=as_json,
    )
