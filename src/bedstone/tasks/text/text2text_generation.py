"""text2text-generation and summarization: texts written over source texts.

Sources are encoded end to end without padding, a batch holds sources of similar length, and the
beams of a source share its keys and values. What is longer than the network reads is split at
sentences, each part is written by itself, and the texts are joined: nothing is cut unless
`truncation` says so.

A glossary requires target terms of the outputs of sources that hold their source terms. How much of
a source was read is the share of its tokens that got more than a third of an even share of
cross-attention at some token of the output, in the mean over the heads of all blocks. A third of
even, as attention is spread over many tokens where it decides little; all blocks, as which one
reads the source word by word differs between networks (Garg et al., 2019).

Shapes: P sources, S tokens of the longest, D width, n outputs, T tokens of the longest.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bedstone.checkpoints.model import Model
from bedstone.data.bytes import check_characters
from bedstone.data.text.encode import source_ids, target_ids
from bedstone.data.text.glossary import glossary_of
from bedstone.data.text.packing import lay
from bedstone.data.text.sentences import sentences
from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import generate
from bedstone.generation.beam import beam_search
from bedstone.generation.constraints import FILE
from bedstone.generation.required import START, Word, glossary_words, required_words
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import BeamSearch, GenerationSettings, without_usual_length
from bedstone.models.interfaces import EncoderDecoderModel
from bedstone.runtime import check_finite
from bedstone.settings import optional, whole
from bedstone.tasks.task import Options, Task, shown

BEAMS = 4  # where neither the call nor the model says how many
NEW_TOKENS = 512  # likewise, at most; fewer where the network's context is shorter
SOURCES, TOKENS = 32, 4096  # of a batch, at most: sources, and tokens of them, padding included
EVEN = 3  # a token is read where it gets more than an even share of attention, over so much
SLOTS = 1 << 14  # of the cache of a batch, about: beams of all sources times tokens of each


@dataclass(frozen=True)
class Text2TextOptions(Options, GenerationSettings):
    """Options of tasks that write a text given another: `GenerationSettings`, and these.

    Attributes:
        max_length: of generation: tokens of a text, at most, its start token included.
        min_length: tokens before the end token, its start token included.
        prefix: what goes before every source; None is what the model was published with for the
            task, such as "summarize: ".
        target_prefix: what an output begins with; a list has one for each source. Limits of length
            and scores are of what follows it.
        glossary: terms of sources and what they become in outputs: a CSV file, or a mapping
            {source term: target term, or a list of which one is enough}. Found by beams; results
            say how many terms are wanted and honoured, as `terms`.
        return_coverage: give the share of a source's tokens that the network read, as `coverage`.
        truncation: cut a source that is longer than the network reads, instead of splitting it.
        return_tensors: give the ids of a text, as `..._token_ids`, in its place.
        return_scores: give its probability too, as `score`.
        return_text, clean_up_tokenization_spaces: taken and of no effect.
    """

    min_length: int | None = optional(whole(0))
    prefix: str | None = None
    target_prefix: str | Sequence[str] | None = None
    glossary: Any = None
    return_coverage: bool = False
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
        begins = self.target_prefix
        several = list(begins) if isinstance(begins, list | tuple) else [begins]
        if not all(isinstance(one, str | None) for one in several):
            raise BedstoneError(
                f"target_prefix: {shown(begins)} was given; expected a text, or one a source."
            )
        if self.glossary is not None:
            object.__setattr__(self, "glossary", glossary_of(self.glossary))


@dataclass(frozen=True)
class Begun:
    """An input, and what its output begins with."""

    value: Any
    prefix: str | None


@dataclass(frozen=True)
class Part:
    """What is read and written at a time.

    Attributes:
        ids: of the source.
        begin: ids that the output begins with.
        words: that a glossary requires of it.
        lead: how many of `ids` come before the source's own.
    """

    ids: Sequence[int]
    begin: tuple[int, ...] = ()
    words: tuple[Word, ...] = ()
    lead: int = 0


@dataclass(frozen=True)
class Source:
    """A text's parts: one, more where it was split, none of a blank text."""

    text: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Output:
    """What was generated of a part; of its source, how many tokens were read of how many; of a form
    that was asked for, whether it is whole."""

    ids: tuple[int, ...]
    log_probability: float
    read: int = 0
    tokens: int = 0
    complete: bool | None = None


class Text2TextGeneration(Task):
    """A text -> [{"generated_text": ...}], as many as were asked for; of a list, a dictionary each
    where one was.

    A source of several parts has their number beside, as `parts`; with a glossary, `terms` says how
    many are wanted and honoured. A blank source gives an empty text, and nothing is generated.
    """

    name = "text2text-generation"
    asks = "an encoder-decoder (MarianMTModel, BartForConditionalGeneration, T5)"
    settings = Text2TextOptions
    key: ClassVar[str] = "generated"

    def __init__(self, model: Model, **options: Any) -> None:
        super().__init__(model, **options)
        self._check_tokenizer()
        self.start = self._start()
        self._way(self.options)  # faults in options are named now

    @classmethod
    def fits(cls, model: Model) -> bool:
        return isinstance(model.network, EncoderDecoderModel)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        begins = self.chosen(**options).target_prefix
        if isinstance(begins, list | tuple):
            options["target_prefix"] = None
            many = isinstance(inputs, list | tuple)
            pairs = self._begun([inputs] if self.is_one(inputs) else inputs, begins)
            inputs = next(pairs) if self.is_one(inputs) else list(pairs) if many else pairs
        found = super().__call__(inputs, **options)
        if isinstance(inputs, list | tuple) and all(len(own) == 1 for own in found):
            return [own[0] for own in found]  # as in version 4
        return found

    def _begun(self, inputs: Any, begins: Sequence[str | None]) -> Iterator[Begun]:
        """Inputs, each with what its output begins with."""
        nothing: Any = object()
        for value, prefix in zip_longest(inputs, begins, fillvalue=nothing):
            if value is nothing or prefix is nothing:
                raise BedstoneError(
                    f"{self.name}: target_prefix: {len(begins):,} were given for "
                    f"{'fewer' if value is nothing else 'more'} inputs; expected as many, or one "
                    "text for all."
                )
            yield Begun(value, prefix)

    def lead(self, text: str, options: Any) -> tuple[str, str]:
        """What goes before each part of a source, and the source."""
        config = self.model.config
        usual: str = config.prefixes.get(self.name, config.prefix)
        return (usual if options.prefix is None else options.prefix), text

    def is_one(self, inputs: Any) -> bool:
        return super().is_one(inputs) or isinstance(inputs, Begun)

    def prepare(self, value: Any, options: Text2TextOptions) -> Source:
        prefix = options.target_prefix
        if isinstance(value, Begun):
            value, prefix = value.value, value.prefix
        if not isinstance(prefix, str | None):
            raise BedstoneError("target_prefix: a list was given for one source; expected a text.")
        if not isinstance(value, str):
            raise BedstoneError(f"the source is {shown(value)}; expected a string.")
        check_characters(value, "the source")
        if not value.strip():
            return Source("", ())
        before, text = self.lead(value, options)
        limit = self.engine.limit

        def ids(part: str) -> list[int]:
            return source_ids(self.tokenizer, before + part)

        whole = ids(text)
        first = Part(whole, self._begin(prefix, options), lead=common(ids(""), whole))
        if len(whole) <= limit:
            return Source(text, (self._required(first, text, options),))
        if options.cuts:
            self.tell(
                f"a source of {len(whole):,} tokens was cut after {limit:,}, as truncation asks."
            )
            cut = replace(first, ids=[*whole[: limit - 1], whole[-1]])
            return Source(text, (self._required(cut, text, options),))
        if options.return_alternatives:
            raise BedstoneError(
                f"the source has {len(whole):,} tokens, and the network reads {limit:,} at most; "
                "alternatives are of one part. Shorten it, or leave return_alternatives out."
            )
        texts = list(split(text, ids, limit))
        parts = [
            self._required(
                Part(ids(part), () if number else first.begin, lead=first.lead), part, options
            )
            for number, part in enumerate(texts)
        ]
        self.tell(
            f"a source has {len(whole):,} tokens, and the network reads {limit:,} at most: it was "
            f"split at sentences into {len(parts)} parts, which are written one by one (`parts` "
            "in the result says how many).",
            once="split",
        )
        return Source(text, parts)

    def _begin(self, prefix: str | None, options: Text2TextOptions) -> tuple[int, ...]:
        """Ids that an output begins with, as a text has them that the model learns."""
        if not prefix or not prefix.strip():
            return ()
        check_characters(prefix, "target_prefix")
        ids = target_ids(self.tokenizer, prefix.strip())[:-1]
        forced = self._way(options).constraints.forced_first
        if forced is not None and ids[0] != forced:
            ids = [forced, *ids]
        room = self.model.config.decoder.context
        if len(ids) + 1 >= room:
            raise BedstoneError(
                f"target_prefix: {shown(prefix)} has {len(ids):,} tokens, and the network writes "
                f"{room:,} at most. Shorten it."
            )
        return tuple(ids)

    def _required(self, part: Part, text: str, options: Text2TextOptions) -> Part:
        """A part with the words that a glossary requires of its output."""
        if options.glossary is None:
            return part
        known, way = self.tokenizer.target, self._way(options)
        (words,) = glossary_words(options.glossary, known, [text])
        assert isinstance(way, BeamSearch)
        automaton = required_words((*way.required, *words), way.joining)
        if automaton is not None and words:
            begun = automaton.after(automaton.start, [START, *part.begin])
            needed, context = automaton.needed(begun), self.model.config.decoder.context
            room = min(way.max_tokens, context - 1 - len(part.begin))
            if needed > room:
                terms = ", ".join(repr(term.source) for term in options.glossary.find(text))
                raise BedstoneError(
                    f"glossary: what the source's terms, {terms}, become takes {needed} tokens, "
                    f"and max_new_tokens or the network leaves {room}. Raise it, or take terms out."
                )
        return replace(part, words=words)

    def results(
        self, rows: Sequence[Source], options: Text2TextOptions
    ) -> Iterator[list[dict[str, Any]]]:
        way = self._way(options)
        parts = [part for row in rows for part in row.parts]
        outputs = iter(self._write(parts, way, options))
        for row in rows:
            own = [next(outputs) for _ in row.parts]
            yield [self._result(row, texts, options) for texts in zip(*own, strict=False)] or [
                self._result(row, (), options) for _ in range(way.returned)
            ]

    def _result(
        self, row: Source, outputs: Sequence[Output], options: Text2TextOptions
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        text = ""
        if options.return_tensors:
            found[f"{self.key}_token_ids"] = [n for output in outputs for n in output.ids]
        if not options.return_tensors or options.glossary is not None:
            texts = (self.tokenizer.target.decode(output.ids).strip() for output in outputs)
            text = " ".join(text for text in texts if text)
        if not options.return_tensors:
            found[f"{self.key}_text"] = text
        if options.return_scores:
            found["score"] = math.exp(sum(output.log_probability for output in outputs))
        if options.glossary is not None:
            counted = options.glossary.honoured([row.text], [text])
            found["terms"] = {"wanted": counted.terms, "honoured": counted.found}
        if any(output.complete is not None for output in outputs):
            found["complete"] = all(output.complete for output in outputs)
        if options.return_coverage:
            tokens = sum(output.tokens for output in outputs)
            found["coverage"] = sum(output.read for output in outputs) / tokens if tokens else 1.0
        return {**found, "parts": len(outputs)} if len(outputs) > 1 else found

    def _write(
        self, parts: Sequence[Part], way: Sampling | BeamSearch, options: Text2TextOptions
    ) -> list[list[Output]]:
        """The texts of each part, best first."""
        done: list[list[Output]] = [[] for _ in parts]
        each = way.beams if isinstance(way, BeamSearch) else way.returned
        most = options.batch_size or max(1, min(SOURCES, SLOTS // (each * way.max_tokens)))
        for numbers in batches([len(part.ids) for part in parts], most):
            batch = [parts[number] for number in numbers]
            writer = self.engine.network.writer(*self.encode([part.ids for part in batch]))
            found = self._batch(writer, batch, way)
            if options.return_coverage:
                found = self._read(writer, batch, found)
            for number, own in zip(numbers, found, strict=True):
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
        self, writer: Any, parts: Sequence[Part], way: Sampling | BeamSearch
    ) -> list[list[Output]]:
        ends = self.model.end_ids or {self.model.config.eos_id}
        if isinstance(way, BeamSearch):
            found = beam_search(
                writer,
                [[self.start]] * len(parts),
                way,
                eos=ends,
                prefixes=[part.begin for part in parts],
                words=[part.words for part in parts],
                sources=[part.ids for part in parts],
            )
            return [[Output(one.ids, one.log_probability) for one in own] for own in found]
        each = way.returned
        several = [part for part in parts for _ in range(each)]
        rows = [[self.start, *part.begin] for part in several]
        read = [part.ids for part in several]
        seeds = way.seeds(len(parts))
        written = generate(writer, rows, way, eos=ends, seeds=seeds, sources=read)
        outputs = [
            Output((*part.begin, *one.ids), sum(one.log_probabilities), complete=one.complete)
            for part, one in zip(several, written, strict=True)
        ]
        return [outputs[at : at + each] for at in range(0, len(outputs), each)]

    @torch.inference_mode()
    def _read(
        self, writer: Any, parts: Sequence[Part], outputs: list[list[Output]]
    ) -> list[list[Output]]:
        """Outputs with how much of their sources was read, by one more pass over them."""
        each = max(map(len, outputs))
        rows = [[*own, *own[:1] * (each - len(own))] for own in outputs]
        flat = [output for own in rows for output in own]
        ids = torch.full((len(flat), max(len(one.ids) for one in flat)), self.start)
        for row, output in zip(ids, flat, strict=True):
            row[1 : len(output.ids)] = torch.tensor(output.ids[:-1])
        weights = writer.attention(ids.to(self.engine.device)).cpu()  # (n, T, S)
        found: list[list[Output]] = []
        for number, (part, own) in enumerate(zip(parts, outputs, strict=True)):
            size = len(part.ids)
            counted = []
            for output, shares in zip(own, weights[number * each :], strict=False):
                words = shares[: len(output.ids), part.lead : size - 1]  # but for the end token
                most = words.amax(0) if words.numel() else words.new_zeros(0)
                read = int((most * size * EVEN > 1).sum())
                counted.append(replace(output, read=read, tokens=len(most)))
            found.append(counted)
        return found

    def _way(self, options: Text2TextOptions) -> Sampling | BeamSearch:
        """How texts are generated."""
        said: dict[str, Any] = {"num_beams": BEAMS, **without_usual_length(self.model.generation)}
        if options.min_length is not None:
            said["min_length"] = options.min_length
        most, known = min(NEW_TOKENS, self.model.config.decoder.context - 1), self.tokenizer.target
        way = options.resolve(said, 1, usual=most, tokenizer=known)
        if options.glossary is None:
            return way
        if not isinstance(way, BeamSearch):
            raise BedstoneError(
                "glossary: was given, and its terms are found by beams. Give num_beams of 2 or "
                "more and no chance (do_sample, temperature, ...), or leave it out."
            )
        way.check_words()
        return replace(way, joining=known.joining_ids)

    def _check_tokenizer(self) -> None:
        """Raises BedstoneError for a tokenizer that isn't the network's."""
        config, known = self.model.config, self.tokenizer
        for side, own, most in (
            ("sources", known, config.vocab_size),
            ("targets", known.target, config.target_vocab_size),
        ):
            if own.vocab_size > most:
                raise BedstoneError(
                    f"{known.path}: has {own.vocab_size:,} tokens of {side}, and the network "
                    f"{most:,}. Take the tokenizer of the same model."
                )
        if known.eos_id is not None and known.eos_id != config.eos_id:
            raise BedstoneError(
                f"{known.path}: its end token is {known.eos_id}, and config.json says "
                f"{config.eos_id} (eos_token_id). Take the tokenizer of the same model."
            )

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
                f"{(model.path or Path()) / FILE}: decoder_start_token_id = {shown(found)}; "
                f"expected an id from 0 to {size - 1}. Is the file another model's?"
            )
        return found


class Summarization(Text2TextGeneration):
    """A text -> [{"summary_text": ...}]; the same as text2text-generation in all else."""

    name = "summarization"
    key = "summary"
    fields = ("source", "target")
    metric = "summaries"


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


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first ids two sequences share."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def split(text: str, ids: Callable[[str], list[int]], limit: int) -> Iterator[str]:
    """Parts of a text, each of at most `limit` ids: as many whole sentences as fit.

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
            yield held.strip()
        held = sentence
        while len(ids(held.strip())) > limit:
            at = _fits(held, ids, limit)
            yield held[:at].strip()
            held = held[at:]
    if held.strip():
        yield held.strip()


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
