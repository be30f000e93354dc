"""image-to-text: captions of images, generated or ranked from candidates.

Shapes: P images, S states of an image, D width, C candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bedstone.checkpoints.model import Model
from bedstone.errors import BedstoneError
from bedstone.generation.ranking import rank
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import BeamSearch
from bedstone.settings import optional, whole
from bedstone.tasks.image_text.engine import (
    ImageTextGenerationOptions,
    ImageTextTask,
    by_value,
    generates,
    ranked,
    texts_of,
)
from bedstone.tasks.images.engine import LabelledQuery
from bedstone.tasks.task import shown

NEW_TOKENS = 64  # of a caption, at most, where nothing says how many


@dataclass(frozen=True)
class CaptionOptions(ImageTextGenerationOptions):
    """Options of image-to-text.

    Attributes:
        prompt: words that each caption begins with.
        candidates: captions to rank, instead of writing one.
        top_k: without candidates, of chance: the tokens to draw from; with them, how many to give.
        return_scores: give each text's probability too, as `score`; ranked ones always have it.
        truncation: cut a prompt or candidate that is too long, and say so.
    """

    prompt: str | None = None
    candidates: Sequence[str] | None = None
    top_k: int | None = optional(whole(1))
    return_scores: bool = False
    truncation: bool | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates is not None:
            object.__setattr__(self, "candidates", texts_of(self.candidates, "candidates"))

    @property
    def other_meaning(self) -> tuple[str, ...]:
        return () if self.candidates is None else ("top_k",)


@dataclass(frozen=True)
class Captioned(LabelledQuery):
    """An image, the prompt of its caption, and candidate captions."""

    prompt: tuple[int, ...] = ()
    candidates: tuple[str, ...] = ()


class ImageToText(ImageTextTask):
    """An image -> [{"generated_text": ...}], as many as were asked for.

    Given `candidates`, all of them with their probabilities, best first: of each, that the model
    would write it, if it had to write one of them.
    """

    name = "image-to-text"
    fields = ("image", "captions")
    metric = "captions"
    asks = "a network that writes captions (BlipForConditionalGeneration)"
    settings = CaptionOptions
    keys = ("image", "prompt", "candidates")

    def __init__(self, model: Model, **options: Any) -> None:
        super().__init__(model, **options)
        self._way(self.options, 1)  # faults in options are named now

    @classmethod
    def fits(cls, model: Model) -> bool:
        return generates(model)

    def prepare(self, value: Any, options: CaptionOptions) -> Captioned:
        query = super().prepare(value, options)
        own = value if isinstance(value, dict) else {}
        prompt = own.get("prompt", options.prompt)
        candidates = options.candidates
        if own.get("candidates") is not None:
            candidates = texts_of(own["candidates"], "candidates")
        if prompt is not None and not isinstance(prompt, str):
            raise BedstoneError(f"prompt: {shown(prompt)} was given; expected a string.")
        ids: list[int] = []
        words = self.engine.words
        if prompt and prompt.strip():
            room = words.context - len(words.begin) - 1
            form = self.engine.form
            ids = self.cut(prompt, lambda text: form.output([text])[0], room, "prompt", options)
            ids = [int(token) for token in ids]
        begun = len(words.begin) + len(ids)
        self._way(options, begun)
        if candidates:
            self.candidate_ids(tuple(candidates), options, len(ids))
        return Captioned(query.image, prompt=tuple(ids), candidates=tuple(candidates or ()))

    def say(
        self, memory: Tensor, rows: Sequence[Sequence[Captioned]], options: CaptionOptions
    ) -> list[list[Any]]:
        flat = [row for own in rows for row in own]
        owners = [place for place, own in enumerate(rows) for _ in own]
        results: list[Any] = [None] * len(flat)
        for (prompt, candidates), places in by_value(
            flat, lambda row: (row.prompt, row.candidates)
        ):
            found = self.captions(
                memory[[owners[place] for place in places]], prompt, candidates, options
            )
            for place, one in zip(places, found, strict=True):
                results[place] = one
        rest = iter(results)
        return [[next(rest) for _ in own] for own in rows]

    def captions(
        self,
        memory: Tensor,
        prompt: tuple[int, ...],
        candidates: tuple[str, ...],
        options: CaptionOptions,
    ) -> list[list[dict[str, Any]]]:
        """The captions of each of (P, S, D)."""
        engine = self.engine
        begin = [*engine.words.begin, *prompt]
        writer = engine.network.writer(memory)
        if candidates:
            given = self.candidate_ids(candidates, options, len(prompt))
            scores = rank(writer, [begin] * len(memory), given).softmax(-1)  # (P, C)
            best = [ranked(candidates, own)[: options.top_k] for own in scores]
            return [[{"generated_text": text, "score": p} for text, p in own] for own in best]
        way = self._way(options, len(begin))
        return [
            [
                {"generated_text": engine.text([*prompt, *one.ids])}
                | ({"score": one.probability} if options.return_scores else {})
                | one.wholeness
                for one in own
            ]
            for own in engine.write(writer, [begin] * len(memory), way)
        ]

    def _way(self, options: CaptionOptions, begun: int) -> Sampling | BeamSearch:
        """How a caption is generated after `begun` tokens of a prompt."""
        return options.generation().resolve(
            self.model.generation, begun, usual=NEW_TOKENS, tokenizer=self.engine.tokenizer
        )
