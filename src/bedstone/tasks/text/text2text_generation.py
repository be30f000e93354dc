"""text2text-generation and summarization: texts written over source texts.

Sources are encoded end to end without padding, a batch holds sources of similar length, and the
beams of a source share its keys and values. What is longer than the network reads is split at
sentences, each part is written by itself, and the texts are joined: nothing is cut unless
`truncation` says so.

Shapes: P sources, S tokens of the longest, D width.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bedstone.checkpoints.model import Model
from bedstone.data.bytes import check_characters
from bedstone.data.text.encode import source_ids
from bedstone.data.text.packing import lay
from bedstone.data.text.sentences import sentences
from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import generate
from bedstone.generation.beam import beam_search
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import BeamSearch, GenerationSettings, without_usual_length
from bedstone.models.interfaces import EncoderDecoderModel
from bedstone.runtime import check_finite
from bedstone.settings import optional, whole
from bedstone.tasks.task import Options, Task, shown

BEAMS = 4  # where neither the call nor the model says how many
NEW_TOKENS = 512  # likewise, at most; fewer where the network's context is shorter
SOURCES, TOKENS = 32, 4096  # of a batch, at most: sources, and tokens of them, padding included
SLOTS = 1 << 14  # of the cache of a batch, about: beams of all sources times tokens of each


@dataclass(frozen=True)
class Text2TextOptions(Options, GenerationSettings):
    """Options of tasks that write a text given another: `GenerationSettings`, and these.

    Attributes:
        max_length: of generation: tokens of a text, at most, its start token included.
        min_length: tokens before the end token, its start token included.
        prefix: what goes before every source; None is what the model was published with for the
            task, such as "summarize: ".
        truncation: cut a source that is longer than the network reads, instead of splitting it.
        return_tensors: give the ids of a text, as `..._token_ids`, in its place.
        return_scores: give its probability too, as `score`.
        return_text, clean_up_tokenization_spaces: taken and of no effect.
    """

    min_length: int | None = optional(whole(0))
    prefix: str | None = None
    return_tensors: bool = False
    return_scores: bool = False
    return_text: Any = None
    clean_up_tokenization_spaces: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("stop", "prediction", "prompt_lookup_num_tokens"):
            if value := getattr(self, name):
                raise BedstoneError(
                    f"{name}: {shown(value)} was given; it serves text-generation, not texts over "
                    "a source. Leave it out."
                )
        if not isinstance(self.prefix, str | None):
            raise BedstoneError(f"prefix: {shown(self.prefix)} was given; expected a text.")


@dataclass(frozen=True)
class Source:
    """The ids of a source's parts: one, more where it was split, none of a blank text."""

    parts: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Output:
    """What was generated of a part."""

    ids: tuple[int, ...]
    log_probability: float


class Text2TextGeneration(Task):
    """A text -> [{"generated_text": ...}], as many as were asked for; of a list, a dictionary each
    where one was.

    A source of several parts has their number beside, as `parts`. A blank source gives an empty
    text, and nothing is generated.
    """

    name = "text2text-generation"
    asks = "an encoder-decoder (MarianMTModel, BartForConditionalGeneration, T5)"
    settings = Text2TextOptions
    key: ClassVar[str] = "generated"

    def __init__(self, model: Model, **options: Any) -> None:
        super().__init__(model, **options)
        self.start = self._start()
        self._way(self.options)  # faults in options are named now

    @classmethod
    def fits(cls, model: Model) -> bool:
        return isinstance(model.network, EncoderDecoderModel)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        found = super().__call__(inputs, **options)
        if isinstance(inputs, list | tuple) and all(len(own) == 1 for own in found):
            return [own[0] for own in found]  # as in version 4
        return found

    def lead(self, text: str, options: Any) -> tuple[str, str]:
        """What goes before each part of a source, and the source."""
        config = self.model.config
        usual: str = config.prefixes.get(self.name, config.prefix)
        return (usual if options.prefix is None else options.prefix), text

    def prepare(self, value: Any, options: Text2TextOptions) -> Source:
        if not isinstance(value, str):
            raise BedstoneError(f"the source is {shown(value)}; expected a string.")
        check_characters(value, "the source")
        if not value.strip():
            return Source(())
        before, text = self.lead(value, options)
        limit = self.engine.limit

        def ids(part: str) -> list[int]:
            return source_ids(self.tokenizer, before + part)

        whole = ids(text)
        if len(whole) <= limit:
            return Source((whole,))
        if options.cuts:
            self.tell(
                f"a source of {len(whole):,} tokens was cut after {limit:,}, as truncation asks."
            )
            return Source(([*whole[: limit - 1], whole[-1]],))
        parts = list(split(text, ids, limit))
        self.tell(
            f"a source has {len(whole):,} tokens, and the network reads {limit:,} at most: it was "
            f"split at sentences into {len(parts)} parts, which are written one by one (`parts` "
            "in the result says how many).",
            once="split",
        )
        return Source(parts)

    def results(
        self, rows: Sequence[Source], options: Text2TextOptions
    ) -> Iterator[list[dict[str, Any]]]:
        way = self._way(options)
        parts = [part for row in rows for part in row.parts]
        outputs = iter(self._write(parts, way, options.batch_size))
        for row in rows:
            own = [next(outputs) for _ in row.parts]
            yield [self._result(texts, options) for texts in zip(*own, strict=False)] or [
                self._result((), options) for _ in range(way.returned)
            ]

    def _result(self, outputs: Sequence[Output], options: Text2TextOptions) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if options.return_tensors:
            found[f"{self.key}_token_ids"] = [n for output in outputs for n in output.ids]
        else:
            texts = (self.tokenizer.target.decode(output.ids).strip() for output in outputs)
            found[f"{self.key}_text"] = " ".join(text for text in texts if text)
        if options.return_scores:
            found["score"] = math.exp(sum(output.log_probability for output in outputs))
        return {**found, "parts": len(outputs)} if len(outputs) > 1 else found

    def _write(
        self, sources: Sequence[Sequence[int]], way: Sampling | BeamSearch, batch_size: int | None
    ) -> list[list[Output]]:
        """The texts of each source, best first."""
        done: list[list[Output]] = [[] for _ in sources]
        each = way.beams if isinstance(way, BeamSearch) else way.returned
        most = batch_size or max(1, min(SOURCES, SLOTS // (each * way.max_tokens)))
        for numbers in batches([len(ids) for ids in sources], most):
            batch = [sources[number] for number in numbers]
            writer = self.engine.network.writer(*self.encode(batch))
            for number, own in zip(numbers, self._batch(writer, batch, way), strict=True):
                done[number] = own
        return done

    @torch.inference_mode()
    def encode(self, sources: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
        """States (P, S, D) of sources, and which are real, (P, S); None says all."""
        lengths = np.array([len(ids) for ids in sources])
        flat = np.concatenate([np.asarray(ids, np.int64) for ids in sources])
        packed = lay(flat, np.zeros_like(flat), lengths).to(self.engine.device)
        states = self.engine.network.packed_memory(packed)  # (N, D)
        check_finite(states, "the encoder's states")
        keep = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None]).to(states.device)
        if bool(keep.all()):
            return states.view(len(sources), -1, states.shape[-1]), None
        memory = states.new_zeros((*keep.shape, states.shape[-1]))
        memory[keep] = states
        return memory, keep

    def _batch(
        self, writer: Any, sources: Sequence[Sequence[int]], way: Sampling | BeamSearch
    ) -> list[list[Output]]:
        ends = self.model.end_ids or {self.model.config.eos_id}
        if isinstance(way, BeamSearch):
            starts = [[self.start]] * len(sources)
            found = beam_search(writer, starts, way, eos=ends, sources=sources)
            return [[Output(one.ids, one.log_probability) for one in own] for own in found]
        each = way.returned
        rows = [[self.start]] * (len(sources) * each)
        read = [ids for ids in sources for _ in range(each)]
        seeds = way.seeds(len(sources))
        written = generate(writer, rows, way, eos=ends, seeds=seeds, sources=read)
        outputs = [Output(tuple(one.ids), sum(one.log_probabilities)) for one in written]
        return [outputs[at : at + each] for at in range(0, len(outputs), each)]

    def _way(self, options: Text2TextOptions) -> Sampling | BeamSearch:
        """How texts are generated."""
        said: dict[str, Any] = {"num_beams": BEAMS, **without_usual_length(self.model.generation)}
        if options.min_length is not None:
            said["min_length"] = options.min_length
        most = min(NEW_TOKENS, self.model.config.decoder.context - 1)
        return options.resolve(said, 1, usual=most)

    def _start(self) -> int:
        """The token that a text is generated after."""
        model = self.model
        found = model.generation.get("decoder_start_token_id", model.config.start_id)
        if found is None:
            raise BedstoneError(
                f"{model.path or 'this model'}: decoder_start_token_id stands neither in "
                "generation_config.json nor in config.json, so nothing says which token a text "
                "begins after. Add it: it is pad_token_id of Marian and T5, eos_token_id of BART."
            )
        size = model.config.target_vocab_size
        if not isinstance(found, int) or not 0 <= found < size:
            raise BedstoneError(
                f"generation_config.json: decoder_start_token_id = {shown(found)}; expected an id "
                f"from 0 to {size - 1}. Is the file another model's?"
            )
        return found


class Summarization(Text2TextGeneration):
    """A text -> [{"summary_text": ...}]; the same as text2text-generation in all else."""

    name = "summarization"
    key = "summary"


def batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Numbers of sources, the longest first, in batches of similar length."""
    part: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        most = min(batch_size, max(1, TOKENS // lengths[part[0]] if part else 1))
        if part and len(part) >= most:
            yield part
            part = []
        part.append(number)
    if part:
        yield part


def split(text: str, ids: Callable[[str], list[int]], limit: int) -> Iterator[list[int]]:
    """The ids of parts of a text, each of at most `limit`: as many whole sentences as fit.

    A sentence that is longer is split between words, and a word that is longer between characters.

    Args:
        ids: of a part, with all that goes before and after it.

    Raises:
        BedstoneError: not even one character fits.
    """
    held = ""
    for sentence in sentences(text):
        if len(ids(held + sentence)) <= limit:
            held += sentence
            continue
        if held.strip():
            yield ids(held.strip())
        held = sentence
        while len(ids(held.strip())) > limit:
            at = _fits(held, ids, limit)
            yield ids(held[:at].strip())
            held = held[at:]
    if held.strip():
        yield ids(held.strip())


def _fits(text: str, ids: Callable[[str], list[int]], limit: int) -> int:
    """How many first characters fit: whole words where one does."""
    for ends in ([found.end() for found in re.finditer(r"\s*\S+", text)], range(1, len(text) + 1)):
        count = bisect_right(ends, limit, key=lambda end: len(ids(text[:end].strip())))
        if count:
            return ends[count - 1]
    raise BedstoneError(
        f"the source: the network reads {limit:,} tokens at most, and what goes before a text "
        "takes them all. Give a shorter prefix."
    )


def pair_names(prefixes: Mapping[str, str]) -> list[str]:
    """Names of translations that a model knows a prefix for."""
    return [name for name in prefixes if name.startswith("translation_")]
