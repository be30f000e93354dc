"""Pairs of texts: translation, summaries, any text from another (encoder-decoders)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bedstone.checkpoints.model import Model
from bedstone.data.text.seq2seq import (
    PairExamples,
    PairsConfig,
    TextPairs,
    open_pairs,
    pair_stream,
)
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import TokenizerConfig, train_pairs
from bedstone.errors import BedstoneError
from bedstone.evaluate.runner import Evaluation
from bedstone.evaluate.seq2seq import TASKS, PairScorer
from bedstone.generation.settings import BeamSearch, published_beams
from bedstone.models.encoder_decoder.config import LAYOUTS, EncoderDecoderConfig
from bedstone.models.encoder_decoder.network import build
from bedstone.nn.lora import LoraConfig
from bedstone.objectives.tokens import PairLoss
from bedstone.recipes.base import Method, Trainer
from bedstone.settings import from_mapping, number, one_of, share, whole
from bedstone.train.averaging import Decay, steady
from bedstone.train.data import Splits
from bedstone.train.loop import Batches, Objective
from bedstone.train.run import RunPlan, RunRecipe
from bedstone.train.start import Start, adapt


@dataclass
class PairTokenizer(TokenizerConfig):
    """`TokenizerConfig` of one vocabulary for both sides."""

    vocab_size: int = whole(1, default=6000)
    lowercase: bool = False


@dataclass
class Seq2SeqRecipe(RunRecipe):
    """Training of an encoder-decoder on pairs of texts, from scratch or going on from a model.

    Attributes, besides those of every run:
        task: translation, summarization or text2text-generation: what measures it.
        budget: how long to train: `10m`, `2000 steps`.
        init: a model to go on from, instead of fresh weights.
        model: the shape, in the fields of `models.encoder_decoder.config.EncoderDecoderConfig`.
        lora: train an adapter alone: the fields of `nn.lora.LoraConfig`, as `{rank: 16}`.
        data: the pairs.
        tokenizer: how text becomes tokens; trained on the pairs where none is named.
        batch_size: pairs in a micro-batch.
        smoothing: share of each target's probability that is spread over all tokens.
        r_drop: weight of the divergence between two passes of each batch (R-Drop); 0 makes one.
        average: decay of the weights' moving average, which is measured and kept, such as 0.999; 0
            keeps the weights.
        evaluate_rows: held-out pairs that an evaluation in training writes, greedily.
        beams: how many texts are followed at a time when the model writes, in measuring at the end
            and in use.
        length_penalty: of beams: above 1 favours longer texts, below shorter ones.
        lowercase_bleu: whether BLEU and chrF ignore letter case.
    """

    task: str = one_of(*TASKS, default="translation")
    out: str = "runs/seq2seq"
    budget: str = "2000 steps"
    init: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    data: PairsConfig = field(default_factory=PairsConfig)
    tokenizer: PairTokenizer = field(default_factory=PairTokenizer)
    batch_size: int = whole(1, default=128)
    smoothing: float = share(below_one=True, default=0.1)
    r_drop: float = number(0, default=0.0)
    average: float = share(below_one=True, default=0.0)
    evaluate_rows: int = whole(1, default=200)
    beams: int = whole(1, default=5)
    length_penalty: float = number(-10, 10, default=1.0)
    lowercase_bleu: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora and not self.init:
            raise BedstoneError(
                "lora: an adapter learns on a model that knows something; name it by init."
            )
        if self.lora and self.average:
            raise BedstoneError("average: an adapter's weights aren't averaged; leave it out.")


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
        if not recipe.init:
            from_mapping(
                EncoderDecoderConfig, {"vocab_size": 2**20, **recipe.model}, "recipe", "model."
            )
        BeamSearch(**published_beams(_beams(recipe)))

    def open(self, recipe: Seq2SeqRecipe, start: Start) -> Splits:
        data = recipe.data
        train = open_pairs(data, data.source, data.split)
        if data.validation:
            held = open_pairs(data, data.validation)
        else:
            rows, kept = train.rows.hold_out(data.validation_share)
            train, held = (_again(part, train) for part in (rows, kept))
        if data.most_rows:
            train = _again(train.rows.take(data.most_rows, recipe.seed), train)
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
        texts: Iterable[str] = splits.train.texts()
        return texts

    def trainers(self, recipe: Seq2SeqRecipe) -> Mapping[str, Trainer]:
        return {
            "bpe": lambda texts, section: train_pairs(
                texts, section.vocab_size, lowercase=section.lowercase
            )
        }

    def model(
        self, recipe: Seq2SeqRecipe, splits: Splits, tokenizer: Tokenizer | None, start: Start
    ) -> Model:
        assert tokenizer is not None
        model: Model = start.model or _fresh(recipe, tokenizer)
        _check_vocabulary(recipe, model, tokenizer)
        model.tokenizer = tokenizer
        config = model.config
        model.generation = {
            **model.generation,
            "decoder_start_token_id": config.start_id,
            "eos_token_id": config.eos_id,
            "pad_token_id": config.pad_id,
            **_beams(recipe),
        }
        if config.pad_id == config.start_id:  # what a text begins after is never written
            model.generation["bad_words_ids"] = [[config.pad_id]]
        if recipe.lora:
            adapt(model, recipe.lora, start, recipe.seed)
        return model

    def batches(self, recipe: Seq2SeqRecipe, model: Model, splits: Splits, start: Start) -> Batches:
        examples = _examples(recipe, model, splits.train)
        if note := examples.note():
            splits.notes.insert(1, note)
        return pair_stream(examples, recipe.batch_size, seed=recipe.seed)

    def objective(self, recipe: Seq2SeqRecipe, model: Model, start: Start) -> Objective:
        return PairLoss(recipe.smoothing, recipe.r_drop)

    def evaluations(self, recipe: Seq2SeqRecipe, plan: RunPlan) -> Sequence[Evaluation]:
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
            )
            for name, pairs in measured.items()
            if pairs is not None
        ]

    def average(self, recipe: Seq2SeqRecipe) -> Decay | None:
        return steady(recipe.average) if recipe.average else None


def _again(rows: Any, pairs: TextPairs) -> TextPairs:
    """The pairs of some of the rows."""
    texts = {
        id(row): pair
        for row, *pair in zip(pairs.rows.rows, pairs.sources, pairs.targets, strict=True)
    }
    chosen = [texts[id(row)] for row in rows.rows]
    return TextPairs(rows, [pair[0] for pair in chosen], [pair[1] for pair in chosen])


def _beams(recipe: Seq2SeqRecipe) -> dict[str, Any]:
    """The recipe's beams as generation_config.json has them."""
    return {"num_beams": recipe.beams, "length_penalty": recipe.length_penalty}


def _fresh(recipe: Seq2SeqRecipe, tokenizer: Tokenizer) -> Model:
    """New weights for a tokenizer."""
    tokens = tokenizer.vocab_size
    if tokenizer.eos_id is None or tokenizer.pad_id is None:
        raise BedstoneError(
            f"tokenizer: {tokenizer.path} has no {'end' if tokenizer.eos_id is None else 'padding'}"
            " token, which an encoder-decoder needs. Name another by tokenizer.path, or leave it "
            "out to train one."
        )
    # Products of matrices are fastest at multiples of 64; small vocabularies stay as they are.
    shape = {"vocab_size": -(-tokens // 64) * 64 if tokens > 512 else tokens}
    shape |= {"eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id, **recipe.model}
    config = from_mapping(EncoderDecoderConfig, shape, "recipe", "model.")
    network = build(config, seed=recipe.seed)
    return Model(network, tokenizer)


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
    if tokenizer.eos_id != model.config.eos_id:
        raise BedstoneError(
            f"tokenizer: its end token is {tokenizer.eos_id}, and the network's "
            f"{model.config.eos_id}. It is another model's; leave tokenizer.path out."
        )


def _examples(recipe: Seq2SeqRecipe, model: Model, pairs: TextPairs) -> PairExamples:
    config = model.config
    assert model.tokenizer is not None
    return PairExamples(
        pairs,
        model.tokenizer,
        config.start_id,
        (min(config.encoder.context, config.context), min(config.decoder.context, config.context)),
        cut=recipe.data.long_sources == "cut",
    )
