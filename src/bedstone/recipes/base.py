"""What recipes are made of, and the recipe of pretraining."""

import dataclasses
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bedstone.checkpoints.hub import resolve
from bedstone.checkpoints.model import Model, load
from bedstone.checkpoints.store import Checkpoint
from bedstone.data.sources import DataConfig, Source, open_source
from bedstone.data.text.causal_lm import PackedBatches, StreamedBatches
from bedstone.data.text.masked_lm import MaskingConfig, Sentences
from bedstone.data.text.token_cache import TokenSplit
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import (
    TokenizerConfig,
    train_bpe,
    train_characters,
    train_roberta,
    train_wordpiece,
)
from bedstone.errors import BedstoneError, nearest
from bedstone.files import read_json
from bedstone.models.bert.network import LAYOUTS as ENCODERS
from bedstone.runtime import Precision
from bedstone.settings import at_least, check_shares, from_mapping
from bedstone.train.data import MB, cached
from bedstone.train.logs import ProgressBar
from bedstone.train.optim import OptimConfig
from bedstone.train.run import RunRecipe, check_unchanged
from bedstone.train.schedule import ScheduleConfig


@dataclass
class PretrainRecipe(RunRecipe):
    """Pretraining a model from scratch, or going on from one.

    Attributes, besides those of every run:
        budget: how long to train: `5m`, `2h`, `1000 steps`, `20M tokens`.
        init: a model to go on from, instead of fresh weights.
        model: the shape, in the fields of `models.gpt.network.GPTConfig` or, where its `layout` is
            bert, roberta or distilbert, of `models.bert.network.BertConfig`.
        data: what to learn from.
        tokenizer: how text becomes tokens.
        masking: what an encoder is asked to restore.
        context: tokens a row.
        batch_size: rows in a micro-batch; of an encoder, so many full rows' tokens.
        evaluate_tokens: validation tokens an evaluation reads at most; 0 reads them all.
    """

    out: str = "runs/pretrain"
    budget: str = "1000 steps"
    init: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    context: int = 256
    batch_size: int = 16
    evaluate_tokens: int = 50_000

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "context", "batch_size")
        check_shares({"data.validation_share": self.data.validation_share})


# What recipes of pictures with texts have in common: where rows come from, how they are read.


@dataclass
class ImagesOptim(OptimConfig):
    """`OptimConfig` with CLIP's second beta and decay for small networks."""

    kind: str = "adamw"
    lr: float = 1e-3
    adamw_lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6


@dataclass
class ImagesSchedule(ScheduleConfig):
    """`ScheduleConfig` that falls by a cosine from the warm-up on."""

    warmup: float = 0.03
    decay: float = 0.97
    shape: str = "cosine"


# The network that a pretraining run begins with, for every family, and what the run will spend.


@dataclasses.dataclass(frozen=True)
class Fresh:
    """How a family's network is built.

    Attributes:
        config: its configuration's class.
        build: (configuration, seed) to the network.
        shape: fields that the run decides where the recipe doesn't say.
    """

    config: type[Any]
    build: Callable[..., Any]
    shape: dict[str, Any] = dataclasses.field(default_factory=dict)


def layout_of(recipe: PretrainRecipe, checkpoint: Checkpoint | None) -> str | None:
    """The layout that the recipe names, or that of the model it begins with."""
    if recipe.model or not (checkpoint or recipe.init):
        return recipe.model.get("layout")
    config = (checkpoint.path if checkpoint else resolve(recipe.init)) / "config.json"
    published = read_json(config) if config.is_file() else {}
    return published.get("model_type") if isinstance(published, dict) else None


def pretrain_model(
    recipe: PretrainRecipe, tokenizer: Tokenizer, checkpoint: Checkpoint | None, fresh: Fresh
) -> Model:
    """The checkpoint's, the initial one, or a new one; in fp32, its record empty."""
    if checkpoint is not None or recipe.init:
        if checkpoint is None and recipe.model:
            raise BedstoneError(
                f"model: the shape of init = {recipe.init} is what it is; leave model out, or init."
            )
        model = load(checkpoint.path if checkpoint else recipe.init, dtype=torch.float32)
        model.tokenizer, model.record = tokenizer, {}
        if tokenizer.vocab_size > model.config.vocab_size:
            raise BedstoneError(
                f"tokenizer: has {tokenizer.vocab_size} tokens, more than the "
                f"{model.config.vocab_size} of {recipe.init}; leave tokenizer.path out."
            )
        return model
    tokens = tokenizer.vocab_size
    # Products of matrices are fastest at multiples of 64; small vocabularies stay as they are.
    vocabulary = -(-tokens // 64) * 64 if tokens > 512 else tokens
    shape = {"vocab_size": vocabulary, "context": recipe.context, **fresh.shape, **recipe.model}
    config = from_mapping(fresh.config, shape, "recipe", "model.")
    if config.vocab_size < tokens:
        raise BedstoneError(
            f"model.vocab_size: {config.vocab_size} is less than the tokenizer's {tokens} tokens; "
            "leave it out, and it will fit."
        )
    if config.context < recipe.context:
        raise BedstoneError(
            f"context: {recipe.context} tokens a row is more than model.context = {config.context}."
        )
    return Model(fresh.build(config, seed=recipe.seed), tokenizer)


def plan(recipe: PretrainRecipe, model: Model, data: dict[str, Any], precision: Precision) -> str:
    """What is about to be spent, said before it is."""
    assert model.tokenizer is not None
    count = sum(parameter.numel() for parameter in model.network.parameters())
    step = recipe.context * recipe.batch_size * recipe.accumulate
    tokens = data.get("train_tokens")
    size = f"{tokens:,} tokens" if tokens else "streamed"
    return (
        f"{recipe.data.source}: {size}, vocabulary {model.tokenizer.vocab_size:,}\n"
        f"{model.config.layout}: {count / 1e6:.2f}M parameters, {precision.name} on "
        f"{precision.device}\n{step:,} tokens a step, budget {recipe.budget}, into {recipe.out}"
    )


# The text of a run as its tokenizer cuts it: tokenizer, token cache, batches.


@dataclass
class TextData:
    """What a run on text reads.

    Attributes:
        tokenizer: the run's own.
        batches: the endless stream it learns from.
        validation: what it is measured on; None where nothing is held out.
        record: what an artefact says of its data: source, fingerprints, tokens.
    """

    tokenizer: Tokenizer
    batches: PackedBatches | StreamedBatches
    validation: TokenSplit | None
    record: dict[str, Any]

    @classmethod
    def open(cls, recipe: PretrainRecipe, run: Path, *, quiet: bool = False) -> "TextData":
        """Finds the data, trains or loads the tokenizer, and fills the token cache.

        Raises:
            BedstoneError: the data can't be read or is too little, or isn't what the run in
                this folder began with.
        """
        data = recipe.data
        source, tokenizer, record = _open(recipe, run, quiet)
        held = None
        if data.validation:
            other = open_source(data.validation, text_column=data.column, split=data.split)
            held = cached(other, tokenizer, 0.0, quiet).train
        share = 0.0 if held else data.validation_share
        if data.streaming:
            batches = StreamedBatches(
                source,
                tokenizer,
                recipe.context,
                recipe.batch_size,
                recipe.seed,
                validation_share=share,
            )
            if held is None and share:
                held = batches.held_out(recipe.evaluate_tokens or MB)
            return cls(tokenizer, batches, held, record)
        cache = cached(source, tokenizer, share, quiet)
        packed = PackedBatches(cache.train, recipe.context, recipe.batch_size, recipe.seed)
        record["train_tokens"], record["train_bytes"] = len(cache.train), cache.train.bytes
        return cls(tokenizer, packed, held or cache.validation or None, record)


@dataclass
class SentenceData:
    """What a run on sentences reads: as `TextData`, but both splits know where sentences begin."""

    tokenizer: Tokenizer
    train: TokenSplit
    validation: TokenSplit | None
    record: dict[str, Any]

    @classmethod
    def open(cls, recipe: PretrainRecipe, run: Path, *, quiet: bool = False) -> "SentenceData":
        """As `TextData.open`.

        Raises:
            BedstoneError: as there; or the data is to be streamed.
        """
        data = recipe.data
        if data.streaming:
            raise BedstoneError(
                "data.streaming: rows of an encoder are made of whole documents, which a stream "
                "doesn't keep. Leave it out: tokens are kept on the disk, 2 bytes each."
            )
        source, tokenizer, record = _open(recipe, run, quiet)
        held = None
        if data.validation:
            other = open_source(data.validation, text_column=data.column, split=data.split)
            held = cached(Sentences(other), tokenizer, 0.0, quiet).train
        share = 0.0 if held else data.validation_share
        cache = cached(Sentences(source), tokenizer, share, quiet)
        record["train_tokens"], record["train_bytes"] = len(cache.train), cache.train.bytes
        return cls(tokenizer, cache.train, held or cache.validation or None, record)


def _open(
    recipe: PretrainRecipe, run: Path, quiet: bool
) -> tuple[Source, Tokenizer, dict[str, Any]]:
    """The source, the run's tokenizer, and what is recorded of them."""
    data = recipe.data
    source = open_source(data.source, text_column=data.column, split=data.split)
    # What is too much to keep is too much to hash; its size has to do.
    print_of = str(source.describe()["bytes"]) if data.streaming else source.fingerprint()
    record: dict[str, Any] = {"source": source.name, "fingerprint": print_of}
    check_unchanged(run, record)
    tokenizer = run_tokenizer(recipe, source, run, quiet=quiet)
    record["tokenizer"] = tokenizer.fingerprint()
    return source, tokenizer, record


def run_tokenizer(
    recipe: PretrainRecipe, source: Source, run: Path, *, quiet: bool = False
) -> Tokenizer:
    """The run's own if it has one; else the one named, the initial model's, or a new one."""
    own = run / "tokenizer"
    if (own / "tokenizer.json").is_file():
        return Tokenizer.load(own)
    chosen = recipe.tokenizer.path or recipe.init
    if chosen:
        tokenizer = Tokenizer.load(chosen)
    else:
        with ProgressBar("training the tokenizer", quiet=quiet) as bar:
            encoder = recipe.model.get("layout") in ENCODERS
            tokenizer = train_tokenizer(source, recipe.tokenizer, bar, encoder=encoder)
    own.mkdir(parents=True, exist_ok=True)
    tokenizer.save(own)
    return tokenizer


def train_tokenizer(
    source: Source, config: TokenizerConfig, bar: ProgressBar, *, encoder: bool = False
) -> Tokenizer:
    """A tokenizer for the source, from a sample spread over all of it.

    An `encoder` needs special tokens: its bpe is RoBERTa's.

    Raises:
        BedstoneError: the kind is unknown, or the vocabulary too small.
    """
    trainers = {
        "bpe": lambda texts: (train_roberta if encoder else train_bpe)(texts, config.vocab_size),
        "wordpiece": lambda texts: train_wordpiece(
            texts, config.vocab_size, lowercase=config.lowercase
        ),
        "characters": train_characters,
    }
    if config.kind not in trainers:
        raise BedstoneError(
            f"tokenizer.kind: {config.kind!r} is unknown{nearest(config.kind, trainers)}."
        )
    total = source.describe()["bytes"]
    # Every character must be known; merges are learnt from a sample as well.
    share = 1.0 if config.kind == "characters" or not total else config.sample_mb * MB / total

    def sample() -> Iterator[str]:
        read = 0
        for piece in source.pieces():
            data = piece.text.encode()
            read += len(data)
            bar.update(min(read / total, 1.0) if total else 0.0, read=f"{read / MB:,.0f} MB")
            if zlib.crc32(data[:4096]) < share * 2**32:
                yield piece.text

    return trainers[config.kind](sample())
