"""Probes: built-in inputs by which a network is known again, and what it makes of them.

What a model is given follows from its capabilities (`models.interfaces`), by the table
`CAPABILITIES`. No text or image of the user's is among the inputs.

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

from bedstone.checkpoints.probe_outputs import Numbers, Outputs, Tokens, numbers_of, spaced
from bedstone.data.images.contrastive import text_rows
from bedstone.data.images.image_text import padded
from bedstone.data.signals.signals import Condition, class_condition, text_condition
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
    EmbeddingPrior,
    EncoderDecoderModel,
    ImageEncoder,
    ImageTextModel,
    TextEncoder,
)
from bedstone.models.published import layout
from bedstone.nn.layers import Pooling, normalise, pool
from bedstone.runtime import Precision

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
PLACES = 192  # numbers that are kept of a signal
Bare = dict[str, Any]  # an input; without `ids`, it is without what the tokenizer makes of it


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


def _seeds(model: Any) -> list[Bare]:
    return [{"seed": seed} for seed in range(len(TEXTS))]


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
    found: list[Outputs] = [{"next": each} for each in numbers_of(list(logits))]
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
        match=numbers_of(logits, ["no", "yes"]),
        image=numbers_of(list(network.image_vectors(memory))),
        text=numbers_of([network.text_vectors(row, None) for row in rows]),
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
        image=numbers_of(list(images)),
        text=numbers_of(list(texts)),
        # a cosine is known as well as the vectors are, however small it is
        similarity=numbers_of(list(pairs), least=float(scale) / 20),
    )


def _image(work: Work, inputs: Sequence[Bare]) -> list[Outputs]:
    pixels, head = _pixels(work, inputs), getattr(work.model.config, "head", None)
    if head is not None and head.kind == "sequence":
        return _each(scores=numbers_of(list(work.network(pixels)), head.labels))
    return _each(vector=numbers_of(list(work.network.features(pixels))))


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
        return _each(vector=numbers_of(list(normalise(vectors) if pooling.normalise else vectors)))
    spans = packed.spans
    if kind == "pretraining":
        pairs = network.head.pairs(states[packed.starts[:-1]])
        words = network.head.words(states)
        return _each(
            words=_of_tokens([words[start:end] for start, end in spans], None),
            follows=numbers_of(list(pairs), ["yes", "no"]),
        )
    if (reads := getattr(network.head, "reads", "all")) != "all":
        places = [start if reads == "first" else end - 1 for start, end in spans]
        name, labels = ("scores", own) if kind == "sequence" else ("vector", None)
        return _each(**{name: numbers_of(list(network.head(states[places])), labels)})
    outputs = network.head(states)
    named: Mapping[str, Any] = {"tokens": ("tags", own), "spans": ("spans", ("start", "end"))}
    name, labels = named.get(kind, ("words", None))
    return _each(**{name: _of_tokens([outputs[start:end] for start, end in spans], labels)})


def _of_tokens(rows: Sequence[Tensor], labels: Sequence[str] | None) -> list[Numbers]:
    """Of each token (T, L) its best output and another, named by its place and the label."""
    found = []
    for one, row in zip(numbers_of(rows), rows, strict=True):
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
    elif model.signal.small:
        shape = (len(inputs), model.config.beside, *model.config.size)
        condition = Condition(beside=torch.linspace(0, 20, math.prod(shape)).sin().view(shape))
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
    if config.order != "raster":
        codes[:, ::2] = config.mask
    logits = work.network(ids.to(device), keep.to(device), codes.to(device))
    return _each(first=numbers_of(list(logits[:, 0])), last=numbers_of(list(logits[:, -1])))


def _embeddings(work: Work, inputs: Sequence[Bare]) -> list[Outputs]:
    """The clean embeddings of noise, words and states that follow from the seeds."""
    config, rows = work.model.config, []
    for one in inputs:
        chance = torch.Generator().manual_seed(one["seed"])
        wide = config.embed if config.projects_words else config.width
        shapes = (config.embed,), (config.words_embed,), (config.text_tokens, wide)
        rows.append([torch.randn(shape, generator=chance).to(work.device) for shape in shapes])
    x, words, text = (torch.stack(each) for each in zip(*rows, strict=True))
    keep = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    t = torch.arange(len(inputs), device=text.device) * 200
    found = work.network(x, t, words=words, text=text, text_keep=keep)
    return _each(embedding=numbers_of(list(found)))


def _signals(signals: Tensor) -> list[Numbers]:
    """Coarse means of signals (n, C, *S)."""
    sides = signals.shape[2:]
    most = 8 if len(sides) < 3 else 4
    coarse = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(sides) - 1]
    small: Any = [min(most, side) for side in sides]
    rows = coarse(signals.detach().float().cpu(), small).flatten(1)
    return numbers_of(list(rows), kept=spaced(rows.shape[1], PLACES))


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
    Capability("embeddings", _is(EmbeddingPrior), _seeds, _nothing, _embeddings),
    Capability("drawing", _is(Denoiser), _drawings, _drawn_text, _drawing),
)
