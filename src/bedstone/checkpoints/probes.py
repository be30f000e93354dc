"""Probes: built-in inputs by which a network is known again, and what it makes of them.

What a model is given follows from its capabilities (`models.interfaces`), by the table
`CAPABILITIES`. No text or image of the user's is among the inputs. Numbers are compared by their
root mean square difference, in units of the spread of that output; tokens by their ids, as far as
the choice between two wasn't a matter of rounding.

Shapes: n inputs, N tokens of all, V vocabulary, C channels; *S the sizes of a signal.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.data.images.contrastive import text_rows
from bedstone.data.images.image_text import padded
from bedstone.data.signals.signals import class_condition, text_condition
from bedstone.data.text.encode import text_batch
from bedstone.data.text.packing import Packed, lay
from bedstone.diffusion.sample import SampleControls
from bedstone.diffusion.schedulers import published
from bedstone.generation.autoregress import (
    check_ids,
    check_prompts,
    generate,
    pad,
    prefill,
    ready,
)
from bedstone.generation.sampling import Sampling
from bedstone.generation.text import encode_prompt
from bedstone.models.interfaces import (
    Autoencoder,
    CausalLM,
    CodeWriter,
    Denoiser,
    DualEncoder,
    EncoderDecoderModel,
    ImageEncoder,
    ImageTextModel,
    TextEncoder,
)
from bedstone.models.published import layout
from bedstone.nn.layers import Pooling, normalise, pool
from bedstone.runtime import Precision, check_finite

TEXTS = (
    "The cat sat on the mat.",
    "In 1905 the town had 42 houses and one bridge.",
    "def add(a, b):\n    return a + b",
    "Zwei Kinder spielen im Garten, ein Hund schläft.",
    "Is a red circle left of the blue square?",
)
CONTEXT = "A cat and a dog live in a small house by the river."  # that questions are about
WORDS = 32  # tokens of an input, at most
WRITTEN = 8  # tokens that are generated
STEPS = 2  # of sampling
FIRST, SPACED = 8, 8  # numbers that are kept of an output: the largest, and some from all over
PLACES = 192  # numbers that are kept of a signal
EXTREMES = 4.0  # a single number may be so many times as far off as a root mean square
Bare = dict[str, Any]  # an input; without `ids`, it is without what the tokenizer makes of it


@dataclass(frozen=True)
class Numbers:
    """An output of named numbers, such as logits or a vector.

    Attributes:
        names: of the numbers: labels, token ids, or their places.
        values: the numbers.
        spread: the unit that differences are measured in.
        kept: places of those that are stored.
    """

    names: Sequence[Any]
    values: Tensor
    spread: float
    kept: Sequence[int]

    def record(self) -> dict[str, Any]:
        values = [_short(float(self.values[place])) for place in self.kept]
        names = [self.names[place] for place in self.kept]
        return {"names": names, "values": values, "spread": _short(self.spread)}

    def compare(self, stored: Mapping[str, Any], tolerance: float) -> tuple[Any, Any, float] | None:
        """Of an output that differs what was expected, what there is, and the size."""
        places: Any = self.names  # a range has its own places
        if not isinstance(places, range):
            places = {name: place for place, name in enumerate(self.names)}
        names, expected = stored["names"], stored["values"]
        if unknown := [name for name in names if name not in places]:
            return unknown, list(self.names[: len(unknown)]), math.inf
        got = self.values[[places[name] for name in names]].double()
        apart = (got - torch.tensor(expected, dtype=torch.float64)).square().mean().sqrt()
        size = float(apart) / stored["spread"]
        if size <= tolerance:
            return None
        mine = [_short(each) for each in got.tolist()]
        pairs = [list(zip(names, values, strict=True)) for values in (expected, mine)]
        return pairs[0], pairs[1], size if math.isfinite(size) else math.inf


@dataclass(frozen=True)
class Tokens:
    """An output of generated tokens.

    Attributes:
        ids: of the tokens.
        scores: their log-probabilities.
        margins: how much likelier each is than the next best.
        spread: of the logits.
    """

    ids: Sequence[int]
    scores: Sequence[float]
    margins: Sequence[float]
    spread: float

    def record(self) -> dict[str, Any]:
        found = {"scores": self.scores, "margins": self.margins}
        short = {name: [_short(each) for each in values] for name, values in found.items()}
        return {"ids": list(self.ids), **short, "spread": _short(self.spread)}

    def compare(self, stored: Mapping[str, Any], tolerance: float) -> tuple[Any, Any, float] | None:
        """As `Numbers.compare`, up to the first token that is another one.

        Another token is as far off as the stored one was likelier than the next best.
        """
        size = 0.0 if len(self.ids) >= len(stored["ids"]) else math.inf
        columns = stored["ids"], self.ids, stored["scores"], self.scores, stored["margins"]
        for token, own, score, mine, margin in zip(*columns, strict=False):
            apart = margin if token != own else abs(score - mine)
            size = max(size, apart / stored["spread"] / EXTREMES)
            if token != own:
                break
        if size <= tolerance:
            return None
        scores = [_short(each) for each in self.scores]
        return [stored["ids"], stored["scores"]], [list(self.ids), scores], size


Outputs = dict[str, Numbers | Tokens]


def _short(value: float) -> float:
    """Six digits: far finer than any tolerance."""
    return float(f"{value:.6g}")


def _numbers(
    rows: Sequence[Tensor],
    names: Sequence[Any] | None = None,
    kept: Sequence[int] | None = None,
    least: float = 1e-6,
) -> list[Numbers]:
    """An output for each row of numbers; all are measured in the spread of all.

    Args:
        names: of a row's numbers; None numbers them.
        kept: places of those that are stored; None keeps the largest and some from all over.
        least: the spread, at least.
    """
    rows = [row.detach().flatten().float().cpu() for row in rows]
    whole = torch.cat(rows)
    check_finite(whole, "the outputs")
    # numbers that hardly differ are known no better than their size lets them be
    deviation = float(whole.std()) if len(whole) > 1 else 0.0
    spread = max(deviation, float(whole.square().mean().sqrt()) / 4, least)
    return [
        Numbers(
            range(len(row)) if names is None else names,
            row,
            spread,
            _places(row) if kept is None else kept,
        )
        for row in rows
    ]


def _places(row: Tensor) -> list[int]:
    """Places of the largest numbers, the largest first, and of some from all over."""
    largest = row.topk(min(FIRST, len(row))).indices.tolist()
    return list(dict.fromkeys([*largest, *_spaced(len(row), SPACED)]))


def _spaced(count: int, most: int) -> list[int]:
    return sorted(
        {place * count // most for place in range(most)} if count > most else range(count)
    )


@dataclass(frozen=True)
class Work:
    """A model with its network as it computes now.

    Attributes:
        model: a `checkpoints.model.Model`.
        network: its network, or a copy of that made ready for a precision.
        precision: in which tokens are generated, and drawings sampled; None as the network is.
        brief: whether outputs that take several passes are left out.
    """

    model: Any
    network: Any
    precision: Precision | None = None
    brief: bool = False

    @property
    def device(self) -> torch.device:
        found: torch.device = next(self.model.network.parameters()).device
        return found


# Text: what tokenizers make of it.


def _text_format(model: Any) -> Any:
    made = layout(model.config.layout).text_format
    assert made is not None  # a layout of an image-text model has one
    return made(model.tokenizer, model.config)


def _prompt(model: Any, one: Bare) -> Bare:
    """Ids of a text to go on with, room for what is generated left."""
    room = max(min(WORDS, model.config.context - WRITTEN), 1)
    return {"ids": encode_prompt(model.tokenizer, one["text"])[:room] or [0]}


def _source(model: Any, one: Bare) -> Bare:
    """Ids of a text for an encoder, its end token included."""
    return {"ids": model.tokenizer.encode(one["text"], special=True)}


def _row(model: Any, one: Bare) -> Bare:
    """Ids of a text, or of a pair, with special tokens."""
    pairs = [one["pair"]] if "pair" in one else None
    limit = min(WORDS, model.config.context)
    found = text_batch(model.tokenizer, [one["text"]], pairs, limit=limit)[0][0]
    return {"ids": found.ids, "types": found.types}


def _tower_row(model: Any, one: Bare) -> Bare:
    return {"ids": text_rows(model.tokenizer, [one["text"]], model.config)[0].ids}


def _question(model: Any, one: Bare) -> Bare:
    form = _text_format(model)
    ids = form.question(one["text"])
    return {"ids": form.framed(ids if len(ids) <= form.room else ids[form.kept])}


def _drawn_text(model: Any, one: Bare) -> Bare:
    if "text" not in one:
        return {}
    return {"ids": model.prompts.encode([one["text"]])[0][: model.signal.context]}


def _nothing(model: Any, one: Bare) -> Bare:
    return {}


def _texts(model: Any) -> list[Bare]:
    """The built-in texts; ids alone where the model has no tokenizer."""
    if model.tokenizer is not None:
        return [{"text": text} for text in TEXTS]
    count = model.config.vocab_size
    return [{"ids": [(7 * n + 11 * at + 1) % count for at in range(8)]} for n in range(len(TEXTS))]


def _head_texts(model: Any) -> list[Bare]:
    """Questions about a context where spans are found in one; else texts."""
    head = getattr(model.config, "head", None)
    if head is not None and head.kind == "spans" and model.tokenizer is not None:
        return [{**one, "pair": CONTEXT} for one in _texts(model)]
    return _texts(model)


def _drawings(model: Any) -> list[Bare]:
    signal, seeds = model.signal, range(len(TEXTS))
    if signal.condition == "text":
        return [{"text": text, "seed": seed} for seed, text in enumerate(TEXTS)]
    if signal.condition == "class":
        return [
            {"class": seed * model.config.classes // len(TEXTS), "seed": seed} for seed in seeds
        ]
    return [{"seed": seed} for seed in seeds]


def _images(model: Any) -> list[Bare]:
    return [{"image": number} for number in range(len(TEXTS))]


def _image_texts(model: Any) -> list[Bare]:
    return [{"image": number, "text": text} for number, text in enumerate(TEXTS)]


def golden_image(number: int, height: int = 60, width: int = 80, channels: int = 3) -> np.ndarray:
    """(H, W, C) uint8: slopes of light with a disc and a bar, by whole numbers alone."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    planes = []
    for channel in range(channels):
        slope = (x * (number + 2) + y * (channel + 1) * 3) * 2 % 256
        centre = height // 2 + 3 * number, width // 3 + 7 * channel
        disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (height // 4) ** 2
        bar = (x * 5 // width) == number % 5
        planes.append(np.where(disc, 255 - slope, np.where(bar, 40 * channel + 60, slope)))
    return np.stack(planes, -1).astype(np.uint8)


def _pixels(work: Work, inputs: Sequence[Bare]) -> Tensor:
    """Pixels (n, C, H, W) as the network reads them."""
    processor = work.model.processor
    if processor is not None:
        fitted = [processor.fit(golden_image(one["image"])) for one in inputs]
        made: Tensor = processor.normalise(torch.from_numpy(np.stack(fitted)))
        return made.to(work.device)
    config = getattr(work.model.config, "image", work.model.config)
    sides = config.size if hasattr(config, "size") else config.image_size
    sides = (sides, sides) if isinstance(sides, int) else sides
    shape = (*sides, getattr(config, "channels", 3))
    drawn = np.stack([golden_image(one["image"], *shape) for one in inputs])
    return (torch.from_numpy(drawn).movedim(-1, 1).float() / 127.5 - 1).to(work.device)


# Outputs, by capability.


def _written(work: Work, decoder: Any, prompts: Sequence[Sequence[int]]) -> list[Outputs]:
    """Logits after each prompt, and the likeliest tokens that follow."""
    check_prompts(decoder, prompts)
    decoder = ready(decoder, work.precision)
    room = max(min(WRITTEN, decoder.config.context - max(map(len, prompts))), 1)
    cache = decoder.new_cache(len(prompts), max(map(len, prompts)) + room)
    logits = prefill(decoder, *pad(prompts, cache.device), cache)  # (n, V)
    found: list[Outputs] = [{"next": each} for each in _numbers(list(logits))]
    if work.brief:
        return found
    done = generate(decoder, prompts, Sampling(max_tokens=room), top=2)
    for outputs, logit, own in zip(found, logits, done, strict=True):
        margins = [best[0][1] - best[-1][1] for best in own.top]
        spread = max(float(logit.float().std()), 1e-6)
        outputs["tokens"] = Tokens(own.ids, own.log_probabilities, margins, spread)
    return found


def _language(work: Work, inputs: Sequence[Bare]) -> list[Outputs]:
    # `ready` chooses what tokens are generated by: the engine, where it can
    network = work.network if work.precision is None else work.model.network
    return _written(work, network, [one["ids"] for one in inputs])


def _text_to_text(work: Work, inputs: Sequence[Bare]) -> list[Outputs]:
    """What a decoder writes over each source."""
    start = work.model.generation.get("decoder_start_token_id")
    if start is None:
        start = getattr(work.model.config, "start_id", None) or 0
    ids, keep = padded([one["ids"] for one in inputs], 0)
    network = work.network
    memory = network.memory(ids.to(work.device), keep.to(work.device))
    writer = network.writer(memory, keep.to(work.device))
    return _written(work, writer, [[start]] * len(inputs))


def _captions(work: Work, inputs: Sequence[Bare]) -> list[Outputs]:
    writer = work.network.writer(work.network.memory(_pixels(work, inputs)))
    begin = list(_text_format(work.model).words.begin)
    return _written(work, writer, [begin] * len(inputs))


def _answers(work: Work, inputs: Sequence[Bare]) -> list[Outputs]:
    memory = work.network.memory(_pixels(work, inputs))
    questions = [one["ids"] for one in inputs]
    reading = _text_format(work.model).read(work.network, questions, memory)
    return _written(work, *reading.part(range(len(inputs))))


def _matching(work: Work, inputs: Sequence[Bare]) -> list[Outputs]:
    network = work.network
    memory = network.memory(_pixels(work, inputs))
    rows = [torch.tensor([one["ids"]], device=work.device) for one in inputs]
    logits = [network.match_logits(row, None, memory[at : at + 1]) for at, row in enumerate(rows)]
    return _each(
        match=_numbers(logits, ["no", "yes"]),
        image=_numbers(list(network.image_vectors(memory))),
        text=_numbers([network.text_vectors(row, None) for row in rows]),
    )


def _both(work: Work, inputs: Sequence[Bare]) -> list[Outputs]:
    """Vectors of images and texts, and the scaled cosine of each image with its text."""
    network = work.network
    images = network.image_features(_pixels(work, inputs)).float()
    texts = network.text_features(_packed(work, inputs)).float()
    scale, bias = getattr(network, "scale", 1.0), getattr(network, "bias", None)
    pairs = (normalise(images) * normalise(texts)).sum(-1) * scale
    pairs = pairs if bias is None else pairs + bias
    return _each(
        image=_numbers(list(images)),
        text=_numbers(list(texts)),
        # a cosine is known as well as the vectors are, however small it is
        similarity=_numbers(list(pairs), least=float(scale) / 20),
    )


def _image(work: Work, inputs: Sequence[Bare]) -> list[Outputs]:
    pixels, head = _pixels(work, inputs), getattr(work.model.config, "head", None)
    if head is not None and head.kind == "sequence":
        return _each(scores=_numbers(list(work.network(pixels)), head.labels))
    return _each(vector=_numbers(list(work.network.features(pixels))))


def _reconstruction(work: Work, inputs: Sequence[Bare]) -> list[Outputs]:
    network = work.model.network  # in the precision that it is stored in: there is no other
    pixels = _pixels(work, inputs).to(next(network.parameters()).dtype)
    return _each(image=_signals(network(pixels)))


def _packed(work: Work, inputs: Sequence[Bare]) -> Packed:
    rows = [one["ids"] for one in inputs]
    types = [one.get("types") or [0] * len(one["ids"]) for one in inputs]
    ids = np.array([each for row in rows for each in row], dtype=np.int64)
    check_ids(work.model.network, ids.tolist(), "ids")
    flat = np.array([each for row in types for each in row], dtype=np.int64)
    return lay(ids, flat, np.array([len(row) for row in rows])).to(work.device)


def _head(work: Work, inputs: Sequence[Bare]) -> list[Outputs]:
    """What a head on a text encoder gives: scores, tags, spans, words or vectors."""
    network, packed = work.network, _packed(work, inputs)
    states = network.packed_states(packed)  # (N, D)
    head = getattr(work.model.config, "head", None)
    kind, own = ("states", ()) if head is None else (head.kind, head.labels)
    pooling = work.model.pooling
    if pooling is not None or kind in ("states", "towers"):
        pooling = pooling or Pooling()
        vectors = pool(states, packed.lengths, pooling.modes)
        return _each(vector=_numbers(list(normalise(vectors) if pooling.normalise else vectors)))
    spans = packed.spans
    if kind == "pretraining":
        pairs = network.head.pairs(states[packed.starts[:-1]])
        words = network.head.words(states)
        return _each(
            words=_of_tokens([words[start:end] for start, end in spans], None),
            follows=_numbers(list(pairs), ["yes", "no"]),
        )
    if (reads := getattr(network.head, "reads", "all")) != "all":
        places = [start if reads == "first" else end - 1 for start, end in spans]
        name, labels = ("scores", own) if kind == "sequence" else ("vector", None)
        return _each(**{name: _numbers(list(network.head(states[places])), labels)})
    outputs = network.head(states)
    named: Mapping[str, Any] = {"tokens": ("tags", own), "spans": ("spans", ("start", "end"))}
    name, labels = named.get(kind, ("words", None))
    return _each(**{name: _of_tokens([outputs[start:end] for start, end in spans], labels)})


def _of_tokens(rows: Sequence[Tensor], labels: Sequence[str] | None) -> list[Numbers]:
    """Of each token (T, L) its best output and another, named by its place and the label."""
    found = []
    for one, row in zip(_numbers(rows), rows, strict=True):
        tokens, count = row.shape
        best = row.argmax(-1).tolist()
        kept = [at * count + each for at in range(tokens) for each in (best[at], 7 * at % count)]
        names: Sequence[Any] = range(row.numel())
        if labels is not None:
            names = [f"{at} {label}" for at in range(tokens) for label in labels]
        found.append(replace(one, names=names, kept=list(dict.fromkeys(kept))))
    return found


def _drawing(work: Work, inputs: Sequence[Bare]) -> list[Outputs]:
    """Coarse means of signals that are sampled in few steps."""
    if work.brief:
        return [{} for _ in inputs]
    model, precision, condition = work.model, work.precision, None
    if model.signal.condition == "text":
        condition = text_condition([one["ids"] for one in inputs], pad=model.prompts.pad)
    elif model.signal.condition == "class":
        condition = class_condition([one["class"] for one in inputs], model.config.classes)
    own = published(model.scheduler) if model.scheduler else None
    signals = model.sample(
        [one["seed"] for one in inputs],
        condition=condition,
        # guidance would multiply what a precision rounds
        sampling=replace(model.sampling, steps=STEPS, guidance=1.0),
        controls=SampleControls(way=own),
        network=work.network,
        autocast=contextlib.nullcontext if precision is None else precision.autocast,
    )
    return _each(means=_signals(signals))


def _written_codes(work: Work, inputs: Sequence[Bare]) -> list[Outputs]:
    """Logits of the first and the last code after each text and some codes."""
    config, device = work.model.config, work.device
    ids, keep = padded([one["ids"][: config.text_tokens] for one in inputs], 0)
    rows = torch.arange(len(inputs))[:, None]
    codes = (7 * torch.arange(config.places) + 11 * rows) % config.codes
    if config.order == "masked":
        codes[:, ::2] = config.mask
    logits = work.network(ids.to(device), keep.to(device), codes.to(device))
    return _each(first=_numbers(list(logits[:, 0])), last=_numbers(list(logits[:, -1])))


def _signals(signals: Tensor) -> list[Numbers]:
    """Coarse means of signals (n, C, *S)."""
    sides = signals.shape[2:]
    most = 8 if len(sides) < 3 else 4
    coarse = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(sides) - 1]
    small: Any = [min(most, side) for side in sides]
    rows = coarse(signals.detach().float().cpu(), small).flatten(1)
    return _numbers(list(rows), kept=_spaced(rows.shape[1], PLACES))


def _each(**outputs: Sequence[Numbers]) -> list[Outputs]:
    """The outputs of each input, from each output's list."""
    rows = zip(*outputs.values(), strict=True)
    return [dict(zip(outputs, row, strict=True)) for row in rows]


# The capabilities, and what is kept of each.


@dataclass(frozen=True)
class Capability:
    """Something that networks can do.

    Attributes:
        name: as the file has it.
        has: whether a model can do it.
        inputs: the built-in inputs.
        encoded: (model, input) -> what the tokenizer makes of it: ids, and maybe types.
        outputs: what the network makes of inputs, one after another.
    """

    name: str
    has: Callable[[Any], bool]
    inputs: Callable[[Any], list[Bare]]
    encoded: Callable[[Any, Bare], Bare]
    outputs: Callable[[Work, Sequence[Bare]], list[Outputs]]

    def whole(self, model: Any, one: Bare) -> Bare:
        """An input with its ids; those of a model without a tokenizer are there already."""
        return one if "ids" in one else {**one, **self.encoded(model, one)}


OF_IMAGES = (ImageTextModel, DualEncoder, ImageEncoder)


def _can(ability: str) -> Callable[[Any], bool]:
    def has(model: Any) -> bool:
        network = model.network
        return isinstance(network, ImageTextModel) and ability in network.abilities

    return has


def _writes(model: Any) -> bool:
    network = model.network
    causal = isinstance(network, CausalLM) and network.causal
    return causal and not isinstance(network, OF_IMAGES) and model.config.head.kind == "language"


def _reads_pairs(model: Any) -> bool:
    network = model.network
    return isinstance(network, EncoderDecoderModel) and not isinstance(network, OF_IMAGES)


def _reads(model: Any) -> bool:
    network, other = model.network, (*OF_IMAGES, Denoiser, EncoderDecoderModel)
    return (
        isinstance(network, TextEncoder) and not isinstance(network, other) and not _writes(model)
    )


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda model: isinstance(model.network, kind)


CAPABILITIES = (
    Capability("language", _writes, _texts, _prompt, _language),
    Capability("text to text", _reads_pairs, _texts, _source, _text_to_text),
    Capability("text", _reads, _head_texts, _row, _head),
    Capability("image and text", _is(DualEncoder), _image_texts, _tower_row, _both),
    Capability("image", _is(ImageEncoder), _images, _nothing, _image),
    Capability("captions", _can("captions"), _images, _nothing, _captions),
    Capability("answers", _can("answers"), _image_texts, _question, _answers),
    Capability("matching", _can("matching"), _image_texts, _question, _matching),
    Capability("reconstruction", _is(Autoencoder), _images, _nothing, _reconstruction),
    Capability("codes", _is(CodeWriter), _texts, _drawn_text, _written_codes),
    Capability("drawing", _is(Denoiser), _drawings, _drawn_text, _drawing),
)
