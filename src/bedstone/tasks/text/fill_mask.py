"""fill-mask: the likeliest tokens for each mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bedstone.checkpoints.model import Model
from bedstone.data.text.encode import Input, text_input
from bedstone.data.text.packing import Packed
from bedstone.errors import BedstoneError
from bedstone.settings import optional, whole
from bedstone.tasks.task import Options, Prepared, Reader, shown, text_of
from bedstone.tasks.text.question_answering import best_places


@dataclass(frozen=True)
class FillOptions(Options):
    """Options of fill-mask.

    Attributes:
        top_k: how many tokens to give for a mask, the likeliest first.
        targets: the words that a mask may be, one or a list; None allows all.
    """

    top_k: int | None = optional(whole(1, default=5))
    targets: str | Sequence[str] | None = None


@dataclass(frozen=True)
class Masked:
    """A text with masks.

    Attributes:
        ids: of the whole text.
        masks: where in `ids` the masks stand.
        homes: the window and the place in it where each mask is read.
    """

    ids: list[int]
    masks: list[int]
    homes: list[tuple[int, int]]


class FillMask(Reader):
    """Likely tokens for each mask: `score`, `token`, `token_str` and the whole `sequence`.

    A text with one mask gives a list of those, one with several a list for each mask. A text that
    is longer than a row is read in windows around its masks. As in version 4, a list of one text
    gives that text's result itself.
    """

    name = "fill-mask"
    fields = ("text",)
    metric = "masked_tokens"
    asks = "a head for masked words (ForMaskedLM, ForPreTraining) and a tokenizer with a mask"
    settings = FillOptions

    def __init__(self, model: Model, *, precision: str = "fp32", **options: Any) -> None:
        self._targets: dict[tuple[str, ...], list[int]] = {}
        super().__init__(model, precision=precision, **options)

    @classmethod
    def fits(cls, model: Model) -> bool:
        known = model.tokenizer is not None and model.tokenizer.mask_id is not None
        words = model.config.head.kind in ("language", "pretraining")
        return bool(known and words and not model.network.causal)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        result = super().__call__(inputs, **options)
        return result[0] if isinstance(inputs, list) and len(inputs) == 1 else result

    def prepare(self, value: Any, options: FillOptions) -> Prepared:
        self._target_ids(options.targets)  # wrong ones are told before anything is read
        text = text_of(value)
        mask = self.tokenizer.mask_id
        whole = text_input(self.tokenizer, text, special_names=True)
        if mask not in whole.ids:
            name = self.tokenizer.settings.get("mask_token")
            raise BedstoneError(f"{shown(text)} holds no mask; write {name} where a word is asked.")
        if len(whole) <= self.limit(options):
            windows = [whole]
        else:
            usual = self.limit(options) // 2
            windows = self.text_windows(text, None, options, usual, special_names=True)
        inner = [at for at, source in enumerate(whole.sources) if source is not None]
        masks, homes = [], []
        for at, home in zip(inner, best_places(windows), strict=False):  # fewer if it was cut
            if whole.ids[at] == mask:
                masks.append(at)
                homes.append(home)
        if not masks:
            raise BedstoneError("the masks stand in what truncation cuts; leave truncation out.")
        used = sorted({window for window, _ in homes})
        homes = [(used.index(window), place) for window, place in homes]
        return Prepared(Masked(whole.ids, masks, homes), [windows[number] for number in used])

    def places(self, packed: Packed, rows: Sequence[Input]) -> list[int]:
        return [
            start + at
            for start, row in zip(packed.starts[:-1], rows, strict=True)
            for at in self._mask_places(row)
        ]

    def _mask_places(self, row: Input) -> list[int]:
        return [at for at, token in enumerate(row.ids) if token == self.tokenizer.mask_id]

    def read(
        self, states: Tensor, packed: Packed, rows: Sequence[Input], options: FillOptions
    ) -> list[dict[int, list[tuple[float, int]]]]:
        """For each row, by place, the best tokens with their scores."""
        scores = self.engine.head(states).softmax(-1)  # (M, V)
        targets = self._target_ids(options.targets)
        if targets is not None:
            scores = scores[:, targets]
        values, found = scores.topk(min(options.top_k or 5, scores.shape[-1]))
        tokens = found if targets is None else torch.tensor(targets)[found]
        pairs = (
            list(zip(*each, strict=True))
            for each in zip(values.tolist(), tokens.tolist(), strict=True)
        )
        return [{at: next(pairs) for at in self._mask_places(row)} for row in rows]

    def finish(
        self, row: Masked, windows: list[Input], outputs: list[Any], options: FillOptions
    ) -> list[Any]:
        result = []
        for at, (window, place) in zip(row.masks, row.homes, strict=True):
            filled = []
            for score, token in outputs[window][place]:
                ids = [*row.ids[:at], token, *row.ids[at + 1 :]]
                filled.append(
                    {
                        "score": score,
                        "token": token,
                        "token_str": self.tokenizer.decode([token], skip_special=False),
                        "sequence": self.tokenizer.decode(
                            [number for number in ids if number != self.tokenizer.pad_id],
                            skip_special=len(row.masks) == 1,
                        ),
                    }
                )
            result.append(filled)
        return result[0] if len(result) == 1 else result

    def _target_ids(self, targets: Any) -> list[int] | None:
        """The tokens of the words that are allowed, each once; a longer word's first token."""
        if targets is None:
            return None
        words = [targets] if isinstance(targets, str) else targets
        words = list(words) if isinstance(words, list | tuple | set) else []
        if not words or not all(isinstance(word, str) and word.strip() for word in words):
            raise BedstoneError(f"targets: {shown(targets)} was given; expected one or more words.")
        key = tuple(words)
        if key not in self._targets:
            self._targets[key] = list(dict.fromkeys(self._target_id(word) for word in words))
        return self._targets[key]

    def _target_id(self, word: str) -> int:
        token = self.tokenizer.id_of(word)
        if token is None:
            read = text_input(self.tokenizer, word)
            inner = [n for n, s in zip(read.ids, read.sources, strict=True) if s is not None]
            token = inner[0]
            named = self.tokenizer.backend.id_to_token(token)
            self.tell(
                f"the target {word!r} is no token; {named!r} stands for it.", once=f"target {word}"
            )
        return token
