"""zero-shot-classification: candidate labels scored by entailment or by embeddings.

By entailment (Yin et al., 2019, https://arxiv.org/abs/1909.00161), or by embeddings.
Shapes: n texts, L labels, D width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.checkpoints.model import Model
from bedstone.data.text.encode import Input, text_input
from bedstone.data.text.packing import Packed
from bedstone.errors import BedstoneError
from bedstone.settings import one_of
from bedstone.tasks.task import shown, text_of
from bedstone.tasks.text.feature_extraction import LONG, SCALE, Embedder, EmbedOptions, unit


@dataclass(frozen=True)
class ZeroShotOptions(EmbedOptions):
    """Options of zero-shot-classification.

    Attributes:
        candidate_labels: a list, or one string with commas between.
        hypothesis_template: a sentence with {} for the label; None takes "This example is {}."
            for a model of entailment, the label alone for embeddings.
        multi_label: whether each label holds or not on its own, instead of one of them all.
        multi_class: an older name of `multi_label`.
        long: of embeddings; "windows" reads all of a long text.
    """

    candidate_labels: str | Sequence[str] = ()
    hypothesis_template: str | None = None
    multi_label: bool = False
    multi_class: bool | None = None
    long: str = one_of(*LONG, default="windows")

    def __post_init__(self) -> None:
        super().__post_init__()
        label_names(self.candidate_labels)
        if self.multi_class is not None:
            object.__setattr__(self, "multi_label", self.multi_class)
        template = self.hypothesis_template
        if template is not None and _filled(template, "a") == _filled(template, "b"):
            raise BedstoneError(
                f"hypothesis_template: {shown(template)} has no place for the label; put {{}} "
                "there."
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """The candidates, one by one."""
        return label_names(self.candidate_labels)


def label_names(given: Any) -> tuple[str, ...]:
    """Candidate labels, one by one: of a list, or of one string with commas between.

    Raises:
        BedstoneError: they are no names, or one is there twice: the scores, which sum to 1,
            would count it twice.
    """
    if isinstance(given, str):
        given = [label.strip() for label in given.split(",") if label.strip()]
    if not isinstance(given, list | tuple):
        raise BedstoneError(f"candidate_labels: {shown(given)} was given; expected a list.")
    seen: set[str] = set()
    for label in given:
        if not isinstance(label, str) or not label.strip():
            raise BedstoneError(f"candidate_labels: holds {shown(label)}; expected names.")
        if label.strip() in seen:
            raise BedstoneError(
                f"candidate_labels: {label[:80]!r} is there twice. Name each label once."
            )
        seen.add(label.strip())
    return tuple(given)


def _filled(template: Any, label: str) -> str:
    try:
        return str(template.format(label))
    except (AttributeError, IndexError, KeyError, ValueError):
        return ""


class ZeroShotClassification(Embedder):
    """Labels with their scores, best first: `sequence`, `labels`, `scores`.

    A model with a label that begins with `entail` reads each text with a hypothesis for each
    label. Scores are the softmax of entailment over the labels; with `multi_label`, or of one
    label, of entailment against contradiction for each. A long text is read in windows whose
    outputs are averaged.

    A model that embeds compares the text's embedding with each label's: scores are the softmax
    of 20 times the cosines; with `multi_label` the cosines themselves, 0 for those below.
    """

    name = "zero-shot-classification"
    fields = ("text", "label")
    metric = "zero_shot"
    asks = "a head for labels of a text, one of them named entailment, or a model that embeds texts"
    settings = ZeroShotOptions

    def __init__(self, model: Model, *, precision: str = "fp32", **options: Any) -> None:
        super().__init__(model, precision=precision, **options)
        self._known: tuple[Any, np.ndarray] | None = None  # labels that were embedded last

    @classmethod
    def fits(cls, model: Model) -> bool:
        head = model.config.head
        return _entailment(head) is not None or _embeds(model)

    def __call__(
        self,
        inputs: Any = None,
        candidate_labels: Any = None,
        *,
        sequences: Any = None,
        **options: Any,
    ) -> Any:
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        return super().__call__(sequences if inputs is None else inputs, **options)

    def is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str)

    def prepare(self, value: Any, options: ZeroShotOptions) -> tuple[str, list[list[Input]]]:
        """The text, and for a model of entailment its windows with each hypothesis."""
        if not options.labels:
            raise BedstoneError(
                "candidate_labels: none were given; name what the text may be, such as "
                "candidate_labels=['sport', 'weather']."
            )
        text = text_of(value)
        if _entailment(self.model.config.head) is None:
            text_input(self.tokenizer, text)  # raises here, where the row is known
            return text, []
        template = options.hypothesis_template or "This example is {}."
        return text, [
            self.text_windows(text, template.format(label), options) for label in options.labels
        ]

    def results(
        self, rows: Sequence[tuple[str, list[list[Input]]]], options: ZeroShotOptions
    ) -> Iterator[dict[str, Any]]:
        texts = [text for text, _ in rows]
        if _entailment(self.model.config.head) is None:
            scores = self._by_embeddings(texts, options)
        else:
            scores = self._by_entailment([pair for _, pairs in rows for pair in pairs], options)
        for text, own in zip(texts, scores.tolist(), strict=True):
            ranked = sorted(zip(own, options.labels, strict=True), key=lambda each: -each[0])
            yield {
                "sequence": text,
                "labels": [label for _, label in ranked],
                "scores": [score for score, _ in ranked],
            }

    def _by_entailment(self, pairs: list[list[Input]], options: ZeroShotOptions) -> Tensor:
        """(n, L) scores from n * L pairs."""

        def read(states: Tensor, packed: Packed, rows: Sequence[Input]) -> Sequence[Tensor]:
            return self.engine.head(states).unbind()

        outputs = self.engine.run(pairs, read, options.batch_size, self.engine.row_places)
        logits = torch.stack([torch.stack(each).mean(0) for each in outputs])
        logits = logits.view(-1, len(options.labels), logits.shape[-1])
        head = self.model.config.head
        yes = _entailment(head) or 0
        if options.multi_label or len(options.labels) == 1:
            return logits[..., [_contradiction(head), yes]].softmax(-1)[..., 1]
        return logits[..., yes].softmax(-1)

    def _by_embeddings(self, texts: list[str], options: ZeroShotOptions) -> Tensor:
        """(n, L) scores."""
        template = options.hypothesis_template or "{}"
        hypotheses = [template.format(label) for label in options.labels]
        key = (hypotheses, options.prompt, options.prompt_name, options.max_length)
        if self._known is None or self._known[0] != key:
            self._known = key, unit(self.vectors(hypotheses, options))
        cosines = torch.from_numpy(unit(self.vectors(texts, options)) @ self._known[1].T)
        if options.multi_label or len(options.labels) == 1:
            return cosines.clamp(0, 1)
        return (cosines * SCALE).softmax(-1)


def _entailment(head: Any) -> int | None:
    """Which output says that a hypothesis follows."""
    return _begins(head, "entail")


def _contradiction(head: Any) -> int:
    """Which says that it doesn't: by its name, else the outermost on the other side."""
    named = _begins(head, "contra")
    if named is not None:
        return named
    return len(head.labels) - 1 if _entailment(head) == 0 else 0


def _begins(head: Any, beginning: str) -> int | None:
    if head.kind != "sequence" or head.measured_as == "regression":
        return None
    return next((i for i, x in enumerate(head.labels) if x.lower().startswith(beginning)), None)


def _embeds(model: Model) -> bool:
    return model.pooling is not None or model.config.head.kind in ("states", "pooled")
