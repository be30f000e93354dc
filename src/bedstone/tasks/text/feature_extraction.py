"""feature-extraction, sentence embeddings and sentence-similarity.

An embedding is what sentence-transformers gives (Reimers and Gurevych, 2019,
https://arxiv.org/abs/1908.10084), pooled as the model's folder says; where it says nothing, it is
the mean. Shapes: n texts, T tokens, D width.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from bedstone.checkpoints.model import Model
from bedstone.data.text.encode import Input, text_batch, text_input
from bedstone.data.text.packing import Packed
from bedstone.errors import BedstoneError, nearest
from bedstone.models.interfaces import TextEncoder
from bedstone.nn.layers import Pooling, normalise, pool
from bedstone.settings import one_of
from bedstone.tasks.images.engine import ImageEngine
from bedstone.tasks.task import (
    Options,
    Prepared,
    Reader,
    Task,
    embeds_both,
    embeds_images,
    shown,
    text_of,
)

BATCH = 4096  # texts that are tokenised, and sorted by length, together
LONG = ("cut", "windows")


@dataclass(frozen=True)
class FeatureOptions(Options):
    """Options of feature-extraction: `return_tensors` returns tensors instead of lists."""

    return_tensors: bool | str = False


class FeatureExtraction(Reader):
    """A text -> the last states of its tokens, (1, T, D), as nested lists or a tensor.

    A text of several windows gives each of its tokens once, from the window where it stands
    further from the edge.
    """

    name = "feature-extraction"
    asks = "a network that reads text"
    settings = FeatureOptions

    @classmethod
    def fits(cls, model: Model) -> bool:
        return isinstance(model.network, TextEncoder)

    def prepare(self, value: Any, options: FeatureOptions) -> Prepared:
        stride = self._stride(options)
        return Prepared(None, self.text_windows(text_of(value), None, options, stride))

    def read(
        self, states: Tensor, packed: Packed, rows: Sequence[Input], options: Any
    ) -> Sequence[Tensor]:
        return states.float().cpu().split(list(packed.lengths))

    def finish(
        self, row: Any, windows: list[Input], outputs: list[Tensor], options: FeatureOptions
    ) -> Any:
        states = joined(windows, outputs, self._stride(options))[None]
        return states if options.return_tensors else states.tolist()

    def _stride(self, options: FeatureOptions) -> int:
        return self.limit(options) // 4 if options.stride is None else options.stride


def joined(windows: Sequence[Input], outputs: Sequence[Tensor], stride: int) -> Tensor:
    """States of a whole text, (T, D), from those of windows that share `stride` tokens."""
    parts = []
    last = len(windows) - 1
    for number, (window, states) in enumerate(zip(windows, outputs, strict=True)):
        own = [place for place, source in enumerate(window.sources) if source is not None]
        start = own[0] + stride - stride // 2 if number else 0
        end = own[-1] + 1 - stride // 2 if number < last else len(window)
        parts.append(states[start:end])
    return torch.cat(parts)


@dataclass(frozen=True)
class EmbedOptions(Options):
    """Options of tasks that embed texts.

    Attributes:
        prompt: goes before each text.
        prompt_name: the name of one of the model's own prompts.
        long: of a text longer than the model embeds, "cut" takes the beginning, as
            sentence-transformers does, and tells it once; "windows" takes the mean of all.
    """

    prompt: str | None = None
    prompt_name: str | None = None
    long: str = one_of(*LONG, default="cut")


class Embedder(Task):
    """The base of tasks that embed texts."""

    asks = "a network that reads text"
    settings: ClassVar[type[Options]] = EmbedOptions

    def __init__(self, model: Model, *, precision: str = "fp32", **options: Any) -> None:
        super().__init__(model, precision=precision, **options)
        self.pooling = model.pooling or Pooling()

    @classmethod
    def fits(cls, model: Model) -> bool:
        return isinstance(model.network, TextEncoder)

    def vectors(
        self, texts: Sequence[str], options: Any = None, *, first: int | None = None
    ) -> np.ndarray:
        """Embeddings (n, D) in fp32 of checked texts.

        Args:
            first: the number of the first text, where messages are to give numbers.

        Raises:
            BedstoneError: one can't be read.
        """
        options = options or self.options
        prompt = self.prompt(options)
        done = [
            self._together(
                texts[start : start + BATCH],
                prompt,
                options,
                None if first is None else first + start,
            )
            for start in range(0, len(texts), BATCH)
        ]
        if not done:
            return np.zeros((0, self.width), dtype=np.float32)
        return torch.cat(done).numpy()

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        whole = int(self.model.config.width) * len(self.pooling.modes)
        return min(whole, self.pooling.width or whole)

    def prompt(self, options: Any) -> str:
        """What goes before each text.

        Raises:
            BedstoneError: the model has no prompt of the name asked for.
        """
        if options.prompt is not None:
            return str(options.prompt)
        name = options.prompt_name or self.pooling.default_prompt
        if name is None:
            return ""
        if name not in self.pooling.prompts:
            has = nearest(name, self.pooling.prompts) if self.pooling.prompts else "; it has none"
            raise BedstoneError(f"{self.name}: the model has no prompt {name!r}{has}.")
        return self.pooling.prompts[name]

    def _together(
        self, texts: Sequence[str], prompt: str, options: Any, first: int | None
    ) -> Tensor:
        rows = self._rows([prompt + text for text in texts] if prompt else texts, options, first)
        size = len(prompt) if prompt and not self.pooling.include_prompt else 0

        def read(states: Tensor, packed: Packed, windows: Sequence[Input]) -> Sequence[Tensor]:
            skipped = [_of_prompt(window, size) for window in windows] if size else None
            return pool(states, packed.lengths, self.pooling.modes, skipped=skipped).cpu().unbind()

        outputs = self.engine.run(rows, read, options.batch_size)
        vectors = torch.stack([_mean(row, own) for row, own in zip(rows, outputs, strict=True)])
        vectors = normalise(vectors) if self.pooling.normalise else vectors
        return vectors[:, : self.pooling.width]

    def _rows(self, texts: Sequence[str], options: Any, first: int | None) -> list[list[Input]]:
        limit = min(self.pooling.max_tokens or self.engine.limit, self.limit(options))
        try:
            from_end = options.long == "cut" and self.tokenizer.keeps_end
            rows = text_batch(self.tokenizer, texts, limit=limit, from_end=from_end)
        except BedstoneError:
            for number, text in enumerate(texts):  # which one was it?
                with self._naming(None if first is None else first + number):
                    text_input(self.tokenizer, text)
            raise
        if options.long == "cut":
            longest = max(map(len, rows))
            if longest > 1:
                self.tell(
                    f"texts are cut {self.cut_to(limit)}, as sentence-transformers does: the "
                    f"model embeds no more, and one has about {longest * limit:,}. "
                    "long='windows' embeds all of it.",
                    once="cut",
                )
            rows = [row[:1] for row in rows]
        return rows


class SentenceEmbedding(Embedder):
    """A text -> its embedding, (D,); a list of them -> (n, D), numpy."""

    name = "sentence-embedding"

    def __call__(self, inputs: Any, **options: Any) -> Any:
        result = super().__call__(inputs, **options)
        if isinstance(result, list):
            return np.stack(result) if result else np.zeros((0, self.width), dtype=np.float32)
        return result

    def prepare(self, value: Any, options: Any) -> str:
        return text_of(value)

    def results(self, rows: Sequence[str], options: Any) -> Iterable[np.ndarray]:
        return self.vectors(rows, options)

    def stream(self, values: Iterable[Any], options: Any, ahead: int) -> Iterator[np.ndarray]:
        if isinstance(values, list | tuple):  # more at a time than results of other tasks allow
            ahead = BATCH
        left, first = iter(values), 0
        while group := list(itertools.islice(left, ahead)):
            for number, text in enumerate(group, first):
                with self._naming(number):
                    text_of(text)
            yield from self.vectors(group, options, first=first)
            first += len(group)


class SentenceSimilarity(Embedder):
    """{"source_sentence", "sentences"} -> the cosine of each sentence with the source."""

    name = "sentence-similarity"
    fields = ("text", "pair", "label")
    metric = "similarity"

    def __call__(
        self,
        inputs: Any = None,
        *,
        source_sentence: Any = None,
        sentences: Any = None,
        **options: Any,
    ) -> Any:
        if inputs is None:
            inputs = {"source_sentence": source_sentence, "sentences": sentences}
        return super().__call__(inputs, **options)

    def prepare(self, value: Any, options: Any) -> list[str]:
        if not isinstance(value, Mapping):
            raise BedstoneError(
                f"{shown(value)} was given; expected a dict: source_sentence, sentences."
            )
        source = text_of(value.get("source_sentence"), "source_sentence")
        others = value.get("sentences")
        others = [others] if isinstance(others, str) else others
        if not isinstance(others, list | tuple) or not others:
            raise BedstoneError(f"sentences is {shown(others)}; expected a list of texts.")
        return [source, *(text_of(one, f"sentences[{i}]") for i, one in enumerate(others))]

    def results(self, rows: Sequence[list[str]], options: Any) -> Iterator[list[float]]:
        known = list(dict.fromkeys(text for row in rows for text in row))  # each once
        vectors = unit(self.vectors(known, options))
        place = {text: number for number, text in enumerate(known)}
        for row in rows:
            own = vectors[[place[text] for text in row]]
            yield (own[1:] @ own[0]).tolist()


def unit(vectors: np.ndarray) -> np.ndarray:
    """Each vector (..., D) at length 1."""
    return normalise(torch.from_numpy(vectors)).numpy()


def _mean(row: Sequence[Input], vectors: Sequence[Tensor]) -> Tensor:
    """The mean of a text's windows, each weighing as much as it has tokens."""
    if len(row) == 1:
        return vectors[0]
    weights = torch.tensor([float(len(window)) for window in row])
    return (torch.stack(list(vectors)) * (weights / weights.sum())[:, None]).sum(0)


def _of_prompt(window: Input, size: int) -> int:
    """Tokens up to the end of a prompt of `size` characters; none in a window without any."""
    own = [
        place
        for place, (source, (_, end)) in enumerate(zip(window.sources, window.offsets, strict=True))
        if source is not None and end <= size
    ]
    return own[-1] + 1 if own else 0


SCALE = 20.0  # of cosines, as sentence-transformers trains them against each other


# One interface for embedding: a CLIP, for images and texts, or a text model, for texts alone.


class Embeds(Protocol):
    """Embeddings of length 1, (n, E) fp32: `TextEmbedder`, `images.engine.ImageEngine`."""

    def images(self, images: Iterable[Any]) -> np.ndarray:
        """Those of images."""

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

    def images(self, images: Iterable[Any]) -> np.ndarray:
        """Raises BedstoneError: a text model sees no images."""
        raise BedstoneError(
            f"{self.embed.model.path}: reads text alone, and a picture was given; name a model for "
            "both, a CLIP."
        )


def can_embed(model: Model) -> bool:
    """Whether a model gives embeddings."""
    if embeds_images(model):
        return embeds_both(model)  # one of images alone has no words to compare them with
    kind = model.config.head.kind
    return model.pooling is not None or kind in ("states", "pooled")


def embedder_of(model: Model, precision: str = "fp32") -> Embeds:
    """The embedder of a model. Raises BedstoneError where it can't embed."""
    if embeds_both(model):
        return ImageEngine(model, precision)
    return TextEmbedder(model, precision)


def scale_of(model: Model) -> float:
    """The scale of cosines before a softmax: as trained, else `SCALE`."""
    scale = getattr(model.network, "scale", None)
    return SCALE if scale is None else float(scale.detach())
