"""Pairs of texts: translation, summaries, any text from another (encoder-decoders).

Or plain text, from which pairs are made: noisy text as source, what was left out as target.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bedstone.checkpoints.model import Model
from bedstone.data.sources import open_source
from bedstone.data.text.bpe_dropout import RecutPairs
from bedstone.data.text.convert_tokenizer import sentencepiece_library
from bedstone.data.text.denoise import DenoiseConfig, NoisyTexts, add_noise_tokens, noise_tokens
from bedstone.data.text.marian_tokenizer import train_marian
from bedstone.data.text.sentences import Documents, Sentences
from bedstone.data.text.seq2seq import (
    PairExamples,
    PairsConfig,
    TextPairs,
    open_pairs,
    pair_stream,
)
from bedstone.data.text.token_cache import TokenSplit
from bedstone.data.text.tokenizer import Tokenizer, language_token
from bedstone.data.text.train_tokenizer import TokenizerConfig, train_pairs
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.runner import Evaluation, LogOnly, held_out_loss
from bedstone.evaluate.seq2seq import TASKS, PairScorer
from bedstone.generation.settings import BeamSearch, published_beams
from bedstone.models.encoder_decoder.config import LAYOUTS, EncoderDecoderConfig
from bedstone.models.encoder_decoder.network import EncoderDecoder, build
from bedstone.models.encoder_decoder.published import fresh_generation
from bedstone.nn.lora import LoraConfig
from bedstone.objectives.tokens import PairLoss
from bedstone.recipes.base import Method, Trainer
from bedstone.recipes.causal_lm import sampled_texts
from bedstone.settings import from_mapping, number, one_of, optional, share, whole
from bedstone.train.averaging import Decay, steady
from bedstone.train.data import Splits, cached
from bedstone.train.loop import Batches, Objective
from bedstone.train.run import RunPlan, RunRecipe
from bedstone.train.start import Start, adapt

MARIAN = "marian"  # kind of tokenizer, and the layout that has it


@dataclass
class PairTokenizer(TokenizerConfig):
    """`TokenizerConfig` of pairs.

    Attributes:
        path: a folder or file of a tokenizer to load; empty trains one on the pairs.
        kind: what to train: bpe (byte-level, one vocabulary for both sides) or marian (a
            SentencePiece model for each side, as OPUS-MT has them; of the layout marian).
        vocab_size: tokens to train; of marian those of each side.
        lowercase: whether texts are read and written in lower case.
        separate: of marian, whether sources and targets have vocabularies of their own, and
            embeddings; else their pieces share one.
    """

    vocab_size: int = whole(1, default=6000)
    lowercase: bool = False
    separate: bool = False


@dataclass
class Seq2SeqRecipe(RunRecipe):
    """Training of an encoder-decoder on pairs of texts, from scratch or going on from a model.

    Attributes, besides those of every run:
        task: translation, summarization or text2text-generation: what measures it.
        budget: how long to train: `10m`, `2000 steps`.
        init: a model to go on from, instead of fresh weights.
        model: the shape, in the fields of `models.encoder_decoder.config.EncoderDecoderConfig`.
        dropout: in training; null is as `model`, or the model of `init`, has it.
        lora: train an adapter alone: the fields of `nn.lora.LoraConfig`, as `{rank: 16}`.
        data: the pairs; with `denoise.kind` plain text, whose column `columns: {text: ...}` names.
        tokenizer: how text becomes tokens; trained on the pairs where none is named.
        denoise: noise in plain text, which the model learns to remove, before it learns from pairs.
        bpe_dropout: chance that a merge of the tokenizer is left out, so that texts are cut into
            other tokens in each epoch; 0 leaves none out.
        batch_size: pairs in a micro-batch.
        smoothing: share of each target's probability that is spread over all tokens.
        r_drop: weight of the divergence between two passes of each batch (R-Drop); 0 makes one.
        average: decay of the weights' moving average, which is measured and kept, such as 0.999; 0
            keeps the weights.
        evaluate_rows: held-out pairs that an evaluation in training writes, greedily.
        beams: how many texts are followed at a time when the model writes, in measuring at the end
            and in use.
        length_penalty: of beams: above 1 favours longer texts, below shorter ones.
        no_repeat_ngram_size: so many tokens in a row don't occur twice in what the model writes,
            likewise; 0 lets them.
        lowercase_bleu: whether BLEU and chrF ignore letter case.
    """

    task: str = one_of(*TASKS, default="translation")
    out: str = "runs/seq2seq"
    budget: str = "2000 steps"
    init: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    dropout: float | None = optional(share(below_one=True))
    lora: dict[str, Any] = field(default_factory=dict)
    data: PairsConfig = field(default_factory=PairsConfig)
    tokenizer: PairTokenizer = field(default_factory=PairTokenizer)
    denoise: DenoiseConfig = field(default_factory=DenoiseConfig)
    bpe_dropout: float = share(below_one=True, default=0.0)
    batch_size: int = whole(1, default=128)
    smoothing: float = share(below_one=True, default=0.1)
    r_drop: float = number(0, default=0.0)
    average: float = share(below_one=True, default=0.0)
    evaluate_rows: int = whole(1, default=200)
    beams: int = whole(1, default=5)
    length_penalty: float = number(-10, 10, default=1.0)
    no_repeat_ngram_size: int = whole(0, default=0)
    lowercase_bleu: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora and not self.init:
            raise BedstoneError(
                "lora: an adapter learns on a model that knows something; name it by init."
            )
        if self.lora and self.average:
            raise BedstoneError(
                f"average: {self.average} was given, by the recipe or the command, and an "
                "adapter's weights aren't averaged. Say average=0."
            )
        if self.denoise.kind:
            serves = {"bpe_dropout": self.bpe_dropout, "data.test": self.data.test}
            serves["data.most_rows"] = self.data.most_rows
            for name, value in serves.items():
                if value:
                    raise BedstoneError(
                        f"{name}: {value!r} was given; it serves pairs, and denoise.kind: "
                        f"{self.denoise.kind} learns from plain text. Leave one of them out."
                    )


class Seq2Seq(Method[Seq2SeqRecipe]):
    """An encoder-decoder that writes a target text from a source text."""

    name = "seq2seq"
    Recipe = Seq2SeqRecipe
    layouts = LAYOUTS
    tasks = tuple(TASKS)
    unit = "pairs"
    fault = "writes no text from another"

    def check(self, recipe: Seq2SeqRecipe) -> None:
        if not recipe.data.source:
            raise BedstoneError(
                "data.source: isn't given; name pairs of texts: a file, a folder or a hub id."
            )
        if recipe.lora:
            from_mapping(LoraConfig, recipe.lora, "recipe", "lora.")
        _check_kind(recipe)
        if not recipe.init:
            _shape(recipe)
        BeamSearch(**published_beams(_beams(recipe)))

    def open(self, recipe: Seq2SeqRecipe, start: Start) -> Splits:
        data = recipe.data
        if recipe.denoise.kind:
            return _open_plain(data)
        train = open_pairs(data, data.source, data.split)
        if data.validation:
            held = open_pairs(data, data.validation)
        else:
            rows, kept = train.rows.hold_out(data.validation_share)
            train, held = train.of(rows), train.of(kept)
        if data.most_rows:
            train = train.of(train.rows.take(data.most_rows, recipe.seed))
        test = open_pairs(data, data.test) if data.test else None
        record = {
            "source": data.source,
            "fingerprint": train.rows.fingerprint(),
            "rows": len(train),
            "left_out": len(train.rows.faults.broken),
        }
        notes = [f"{data.source}: {len(train):,} pairs{train.rows.faults.left_out('; ')}"]
        notes.append(f"held out: {len(held):,} pairs")
        return Splits(train, held, test, record, notes)

    def texts(self, recipe: Seq2SeqRecipe, splits: Splits, start: Start) -> Iterable[str]:
        if recipe.denoise.kind:
            return sampled_texts(splits.train, recipe.tokenizer, start.quiet)
        texts: Iterable[str] = splits.train.texts()
        return texts

    def trainers(self, recipe: Seq2SeqRecipe) -> Mapping[str, Trainer]:
        def bpe(texts: Iterable[str], section: Any) -> Tokenizer:
            context = recipe.denoise.most(_shape(recipe).context)
            room = section.vocab_size - len(noise_tokens(None, recipe.denoise, context))
            made = train_pairs(texts, room, lowercase=section.lowercase, languages=languages)
            return add_noise_tokens(made, recipe.denoise, context)

        def marian(texts: Iterable[str], section: Any) -> Tokenizer:
            both = list(texts)  # each source before its target
            return train_marian(
                both[::2],
                both[1::2],
                section.vocab_size,
                separate=section.separate,
                lowercase=section.lowercase,
                languages=languages,
            )

        languages = recipe.data.target_languages
        return {"bpe": bpe, "marian": marian}

    def model(
        self, recipe: Seq2SeqRecipe, splits: Splits, tokenizer: Tokenizer | None, start: Start
    ) -> Model:
        assert tokenizer is not None
        model: Model = start.model or _fresh(recipe, tokenizer)
        _check_vocabulary(recipe, model, tokenizer)
        if recipe.dropout is not None:
            network = EncoderDecoder(model.config.with_dropout(recipe.dropout))
            network.load_state_dict(model.network.state_dict())
            model.network = network
        model.tokenizer = tokenizer
        for name in ("source_lang", "target_lang"):  # what `translation` refuses others by
            language = getattr(recipe.data, name)
            if isinstance(language, list):  # its tokens say them
                tokenizer.settings.pop(name, None)
            elif language:
                tokenizer.settings[name] = language
        model.generation = {
            **model.generation,
            **fresh_generation(model.config),
            **_beams(recipe),
        }
        if recipe.lora:
            adapt(model, recipe.lora, start, recipe.seed)
        return model

    def batches(self, recipe: Seq2SeqRecipe, model: Model, splits: Splits, start: Start) -> Batches:
        if recipe.denoise.kind:
            _make_noisy(recipe, model, splits, start.quiet)
            return pair_stream(splits.train, recipe.batch_size, seed=recipe.seed)
        examples = _examples(recipe, model, splits.train)
        splits.cut = examples.left_out
        if note := examples.note():
            splits.notes.insert(1, note)
        if not recipe.bpe_dropout:
            return pair_stream(examples, recipe.batch_size, seed=recipe.seed)
        assert model.tokenizer is not None
        cut = RecutPairs(examples, model.tokenizer, recipe.bpe_dropout, _most(model))
        return pair_stream(cut, recipe.batch_size, seed=recipe.seed)

    def objective(self, recipe: Seq2SeqRecipe, model: Model, start: Start) -> Objective:
        return PairLoss(recipe.smoothing, recipe.r_drop, model.network.starts_from_zero())

    def evaluations(self, recipe: Seq2SeqRecipe, plan: RunPlan) -> Sequence[Evaluation]:
        if recipe.denoise.kind:
            return _noisy_evaluations(recipe, plan)
        measured = {"validation": plan.splits.validation, "test": plan.splits.test}
        return [
            PairScorer(
                plan.model,
                _examples(recipe, plan.model, pairs),
                plan.start.precision,
                recipe.task,
                recipe.lowercase_bleu,
                recipe.batch_size,
                recipe.evaluate_rows,
                name,
                recipe.data.long_sources == "cut",
            )
            for name, pairs in measured.items()
            if pairs is not None
        ]

    def average(self, recipe: Seq2SeqRecipe) -> Decay | None:
        return steady(recipe.average) if recipe.average else None


def _shape(recipe: Seq2SeqRecipe) -> EncoderDecoderConfig:
    """The shape of a new network; the vocabulary alone is not known before the data is."""
    shape = {"vocab_size": 2**20, "shared": not recipe.tokenizer.separate, **recipe.model}
    return from_mapping(EncoderDecoderConfig, shape, "recipe", "model.")


def _check_kind(recipe: Seq2SeqRecipe) -> None:
    """Raises BedstoneError for settings that don't go with the tokenizer to be trained."""
    section, layout = recipe.tokenizer, recipe.model.get("layout", "marian")
    if section.kind != MARIAN:
        if section.separate:
            raise BedstoneError(
                f"tokenizer.separate: true was given, and a tokenizer of kind {section.kind} has "
                f"one vocabulary for both sides. Set tokenizer.kind: {MARIAN}, or leave it out."
            )
        return
    if recipe.init or section.path:  # nothing is trained
        return
    for name, value, why in (
        (
            "model.layout",
            layout if layout != MARIAN else "",
            "other layouts are published with one vocabulary",
        ),
        (
            "model.shared",
            section.separate and recipe.model.get("shared"),
            "separate vocabularies have embeddings of their own",
        ),
        ("denoise.kind", recipe.denoise.kind, "it has no tokens for noise"),
        ("bpe_dropout", recipe.bpe_dropout, "its pieces aren't made by merges"),
    ):
        if value:
            raise BedstoneError(
                f"{name}: {value!r} was given with tokenizer.kind: {MARIAN}; {why}. Leave one of "
                "them out."
            )
    sentencepiece_library(f"tokenizer.kind: {MARIAN}")


def _open_plain(data: PairsConfig) -> Splits:
    """Plain text, to be noisy; the validation's likewise."""
    unknown = [part for part in data.columns if part != "text"]
    if unknown:
        raise BedstoneError(
            f"data.columns: {unknown[0]!r} was given, and denoise learns from plain text; name its "
            "column by text alone."
        )
    column = data.columns.get("text", "text")
    source, held = (
        open_source(name, text_column=column, split=data.split, most_broken=data.most_broken)
        if name
        else None
        for name in (data.source, data.validation)
    )
    assert source is not None
    return Splits(source, held, record={"source": source.name, "fingerprint": source.fingerprint()})


def _make_noisy(recipe: Seq2SeqRecipe, model: Model, splits: Splits, quiet: bool) -> None:
    """Tokenises plain text, which becomes windows with noise."""
    assert model.tokenizer is not None
    data, tokenizer, most = recipe.data, model.tokenizer, recipe.denoise.most(min(_most(model)))
    held = None
    if splits.validation is not None:
        held = cached(Sentences(splits.validation), tokenizer, 0.0, quiet).train
    share = 0.0 if held is not None else data.validation_share
    tokens = cached(Sentences(splits.train), tokenizer, share, quiet)
    held = tokens.validation if held is None else held

    def noisy(split: TokenSplit) -> NoisyTexts:
        return NoisyTexts.of(
            Documents(split),
            tokenizer,
            recipe.denoise,
            most,
            start=model.config.start_id,
            seed=recipe.seed,
            batch_size=recipe.batch_size,
        )

    splits.train, splits.validation = noisy(tokens.train), noisy(held) if len(held) else None
    splits.record["train_tokens"] = len(tokens.train)
    windows = splits.train.windows
    note = f"{data.source}: {len(tokens.train):,} tokens in {len(windows):,} windows"
    if windows.left_out:
        note += f"; {windows.left_out:,} tokens are in windows too short for noise and left out"
    splits.notes = [note]


def _noisy_evaluations(recipe: Seq2SeqRecipe, plan: RunPlan) -> Sequence[Evaluation]:
    """The loss of held-out text, always with the same noise."""
    rows = plan.splits.validation
    if rows is None:
        return []
    most = -(-recipe.evaluate_rows // recipe.batch_size)

    def log(network: Any) -> dict[str, float]:
        batches = rows.evaluation_batches(recipe.batch_size)
        loss, _ = held_out_loss(
            network, PairLoss(), batches, plan.start.precision, most_batches=most
        )
        return {"loss": loss}

    return [LogOnly(log)]


def _beams(recipe: Seq2SeqRecipe) -> dict[str, Any]:
    """The recipe's beams as generation_config.json has them."""
    found = {"num_beams": recipe.beams, "length_penalty": recipe.length_penalty}
    repeats = {"no_repeat_ngram_size": recipe.no_repeat_ngram_size}
    return found | (repeats if recipe.no_repeat_ngram_size else {})


def _fresh(recipe: Seq2SeqRecipe, tokenizer: Tokenizer) -> Model:
    """New weights for a tokenizer."""
    if tokenizer.eos_id is None or tokenizer.pad_id is None:
        raise BedstoneError(
            f"tokenizer: {tokenizer.path} has no {'end' if tokenizer.eos_id is None else 'padding'}"
            " token, which an encoder-decoder needs. Name another by tokenizer.path, or leave it "
            "out to train one."
        )
    if tokenizer.pad_id != tokenizer.target.pad_id:
        raise BedstoneError(
            f"tokenizer: {tokenizer.path} pads sources by {tokenizer.pad_id} and targets by "
            f"{tokenizer.target.pad_id}; a network has one padding token. Leave tokenizer.path "
            "out, and one is trained."
        )
    shape = {"vocab_size": _rows(tokenizer)}
    if tokenizer.separate:
        shape |= {"target_vocab_size": _rows(tokenizer.target), "shared": False}
    shape |= {"eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id, **recipe.model}
    config = from_mapping(EncoderDecoderConfig, shape, "recipe", "model.")
    network = build(config, seed=recipe.seed)
    return Model(network, tokenizer)


def _rows(tokenizer: Tokenizer) -> int:
    """Rows of an embedding: products of matrices are fastest at multiples of 64."""
    tokens = tokenizer.vocab_size
    return -(-tokens // 64) * 64 if tokens > 512 else tokens  # small ones stay as they are


def _check_vocabulary(recipe: Seq2SeqRecipe, model: Model, tokenizer: Tokenizer) -> None:
    """Raises BedstoneError for a tokenizer that the network has no rows for."""
    for name, own, most in (
        ("sources", tokenizer, model.config.vocab_size),
        ("targets", tokenizer.target, model.config.target_vocab_size),
    ):
        if own.vocab_size > most:
            raise BedstoneError(
                f"tokenizer: has {own.vocab_size:,} tokens of {name}, more than the {most:,} of "
                f"{recipe.init or 'model.vocab_size'}; leave tokenizer.path out, or raise "
                "model.vocab_size of a new model."
            )
        if own.eos_id != model.config.eos_id:
            raise BedstoneError(
                f"tokenizer: its end token of {name} is {own.eos_id}, and the network's "
                f"{model.config.eos_id}. It is another model's; leave tokenizer.path out."
            )
    for language in recipe.data.target_languages:
        if language not in tokenizer.languages:
            known = nearest(language, tokenizer.languages) if tokenizer.languages else ""
            raise BedstoneError(
                f"data.target_lang: {language!r} has no token {language_token(language)} in the "
                f"tokenizer of {recipe.init or recipe.tokenizer.path}{known}. Leave that out, and "
                "one with it is trained; or name one language, without brackets."
            )
    if recipe.tokenizer.separate and not tokenizer.separate:
        raise BedstoneError(
            f"tokenizer.separate: true was given, and {recipe.tokenizer.path or recipe.init} has "
            "one vocabulary for both sides. Leave one of them out."
        )


def _examples(recipe: Seq2SeqRecipe, model: Model, pairs: TextPairs) -> PairExamples:
    assert model.tokenizer is not None
    return PairExamples(
        pairs,
        model.tokenizer,
        model.config.start_id,
        _most(model),
        cut=recipe.data.long_sources == "cut",
    )


def _most(model: Model) -> tuple[int, int]:
    """Tokens of a source, and of a target, that the network reads."""
    config = model.config
    sides = config.encoder.context, config.decoder.context
    return min(sides[0], config.context), min(sides[1], config.context)
