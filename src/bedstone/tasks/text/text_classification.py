"""text-classification, also called sentiment-analysis: labels of a text or of a pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bedstone.checkpoints.model import Model
from bedstone.data.text.encode import Input
from bedstone.data.text.packing import Packed
from bedstone.data.text.preference_examples import scored_input
from bedstone.errors import BedstoneError, nearest
from bedstone.models.heads import HeadConfig
from bedstone.settings import at_least
from bedstone.tasks.task import Options, Prepared, Reader, shown, text_of

ANSWERED = ("prompt", "completion", "tools")  # keys of an answer to be scored
FUNCTIONS = ("default", "sigmoid", "softmax", "none")
PROBLEM_FUNCTIONS = {"single": "softmax", "multi": "sigmoid", "regression": "none"}


@dataclass(frozen=True)
class ClassifyOptions(Options):
    """Options of text-classification.

    Attributes:
        top_k: how many labels to give, best first; None gives all. Left out, it is one.
        return_all_scores: True gives all labels in the model's order; `top_k` goes before it.
        function_to_apply: softmax, sigmoid or none; default (or None) is by the model's problem:
            softmax for one label of several, sigmoid for any number of them, none for figures.
    """

    top_k: Any = ""
    return_all_scores: bool | None = None
    function_to_apply: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k != "":
            at_least(self, 1, "top_k", optional=True)
        check_function(self.function_to_apply)


def check_function(name: str | None) -> None:
    """Raises BedstoneError where labels' figures aren't made by such a function."""
    if name is not None and str(name).lower() not in FUNCTIONS:
        raise BedstoneError(
            f"function_to_apply: {name!r} is unknown{nearest(str(name), FUNCTIONS)}."
        )


class TextClassification(Reader):
    """Labels of texts with their scores: `{"label": ..., "score": ...}`.

    An input is a text, or `{"text": ..., "text_pair": ...}`; of a reward model `{"prompt": ...,
    "completion": ...}`, texts or messages, which are read as they were in training. What is longer
    than a row is read in windows whose outputs are averaged; of a long prompt the end is read.
    Results nest as in version 4: a text alone gives a list of
    one; with `top_k`, each input gives a list.
    """

    name = "text-classification"
    fields = ("text", "label")
    metric = "classification"
    asks = "a head for labels of a text (ForSequenceClassification)"
    settings = ClassifyOptions

    @classmethod
    def fits(cls, model: Model) -> bool:
        return bool(model.config.head.kind == "sequence")

    def __call__(self, inputs: Any, **options: Any) -> Any:
        result = super().__call__(inputs, **options)
        return [result] if isinstance(inputs, str) and "top_k" not in options else result

    def prepare(self, value: Any, options: ClassifyOptions) -> Prepared:
        if isinstance(value, dict) and "completion" in value:
            if unknown := [key for key in value if key not in ANSWERED]:
                raise BedstoneError(
                    f"the key {unknown[0]!r} is unknown{nearest(str(unknown[0]), ANSWERED)}."
                )
            limit, causal = self.limit(options), bool(self.model.network.causal)
            row, cuts = scored_input(self.tokenizer, value, limit, causal=causal)
            if note := cuts.note(limit):
                self.tell(note)
            return Prepared(value, [row])
        text, pair = text_and_pair(value)
        return Prepared(value, self.text_windows(text, pair, options))

    def places(self, packed: Packed, rows: Sequence[Input]) -> Sequence[int]:
        return self.engine.row_places(packed, rows)

    def read(
        self, states: Tensor, packed: Packed, rows: Sequence[Input], options: ClassifyOptions
    ) -> Sequence[Tensor]:
        return self.engine.head(states).unbind()

    def finish(
        self, row: Any, windows: list[Input], outputs: list[Any], options: ClassifyOptions
    ) -> Any:
        head = self.model.config.head
        scores = scores_of(head, torch.stack(outputs).mean(0), options.function_to_apply)
        named = [
            {"label": label, "score": score}
            for label, score in zip(head.labels, scores.tolist(), strict=True)
        ]
        if options.top_k == "" and options.return_all_scores:
            return named
        best = sorted(named, key=lambda each: each["score"], reverse=True)
        return best[0] if options.top_k == "" else best[: options.top_k]


def scores_of(head: HeadConfig, logits: Tensor, function: str | None) -> Tensor:
    """A head's (L,) outputs as scores, by one of `FUNCTIONS`; None is default."""
    function = (function or "default").lower()
    if function == "default":
        function = PROBLEM_FUNCTIONS[head.problem]
        if function == "softmax" and len(head.labels) == 1:
            function = "sigmoid"
    if function == "none":
        return logits
    return logits.sigmoid() if function == "sigmoid" else logits.softmax(-1)


def text_and_pair(value: Any) -> tuple[str, str | None]:
    """The text and the pair that an input is.

    Raises:
        BedstoneError: it is neither a text, nor a dictionary of one or two.
    """
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], list | tuple):
        value = value[0]  # [[text, pair]], as version 4 has it
        if len(value) == 2:
            value = {"text": value[0], "text_pair": value[1]}
    if not isinstance(value, dict):
        if isinstance(value, list | tuple):
            raise BedstoneError(
                f"a list stands for one input: {shown(value)}; expected a string, or "
                '{"text": ..., "text_pair": ...} for a pair.'
            )
        return text_of(value), None
    if "text" not in value or not value.keys() <= {"text", "text_pair"}:
        keys = ", ".join(map(str, value))
        raise BedstoneError(
            f"the keys are {keys or 'none'}; expected text, and maybe text_pair; or prompt and "
            "completion."
        )
    pair = value.get("text_pair")
    return text_of(value["text"]), None if pair is None else text_of(pair, "text_pair")
