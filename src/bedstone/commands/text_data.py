"""The text of a run as its tokenizer cuts it: tokenizer, token cache, batches."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedstone.commands.training import check_unchanged
from bedstone.config import PretrainRecipe, TokenizerConfig
from bedstone.data.batches import PackedBatches
from bedstone.data.sentences import Sentences
from bedstone.data.sources import Source, open_source
from bedstone.data.streamed import StreamedBatches
from bedstone.data.token_cache import TokenCache, token_cache
from bedstone.data.tokenizer import Tokenizer
from bedstone.data.tokenizer_training import (
    train_bpe,
    train_characters,
    train_roberta,
    train_wordpiece,
)
from bedstone.data.tokens import TokenSplit
from bedstone.errors import BedstoneError, nearest
from bedstone.models.bert import LAYOUTS as ENCODERS
from bedstone.train.progress import ProgressBar

MB = 1_000_000


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


def cached(source: Source, tokenizer: Tokenizer, share: float, quiet: bool = False) -> TokenCache:
    """The source's token cache, with a bar while it is made."""
    with ProgressBar("tokenising", quiet=quiet) as bar:

        def told(done: int, total: int | None) -> None:
            bar.update(done / total if total else 0.0, read=f"{done / MB:,.0f} MB")

        return token_cache(source, tokenizer, validation_share=share, progress=told)


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
