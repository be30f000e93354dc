"""What training on preferences shares: rows, their examples, the reference, the measure.

The methods are `reward`, `dpo` and `kto`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.checkpoints.store import Checkpoint
from bedstone.data.dataset import Dataset
from bedstone.data.open import open_dataset
from bedstone.data.records import MOST_BROKEN
from bedstone.data.summary import summarise
from bedstone.data.text.preference_examples import (
    PreferenceExamples,
    preference_stream,
)
from bedstone.data.text.preferences import PROMPTS, read_pair, usable_pairs
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.evaluate.preferences import PreferenceEvaluation
from bedstone.evaluate.runner import Evaluation
from bedstone.nn.lora import LoraConfig
from bedstone.recipes.base import Method
from bedstone.recipes.supervised import TuneOptim, TuneSchedule, set_dropout
from bedstone.settings import Settings, from_mapping, number, one_of, share, whole
from bedstone.train.data import Splits
from bedstone.train.logs import ProgressBar
from bedstone.train.loop import Batches
from bedstone.train.reference import kept_log_probs, reference_log_probs, weights_print
from bedstone.train.resume import record_of
from bedstone.train.run import RunPlan, RunRecipe, Stopping
from bedstone.train.start import Start, adapt

R = TypeVar("R", bound="PreferenceRecipe")
BEST = ("last", "loss", "accuracy", "margin")


@dataclass
class PreferenceConfig(Settings):
    """What to learn from: preferences.

    Attributes:
        train: a file, a folder, a glob or a hub id of rows.
        validation: rows to validate on; empty holds out a share of `train`.
        test: rows to measure the finished model on.
        split: of a hub id or a folder with splits.
        columns: which column holds what, where the usual names aren't used: prompt, chosen,
            rejected, margin, tools; of judged answers prompt, completion, label.
        validation_share: the share of rows held out.
        most_rows: take this many training rows at most, drawn by the seed; 0 takes all.
        most_broken: share of rows that may be broken; such rows are left out and named.
    """

    section: ClassVar[str] = "data."
    train: str = ""
    validation: str = ""
    test: str = ""
    split: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    validation_share: float = number(0, 1, open_least=True, open_most=True, default=0.1)
    most_rows: int = whole(0, default=0)
    most_broken: float = share(below_one=True, default=MOST_BROKEN)

    def open(
        self, seed: int, usable: Callable[[Dataset], Dataset] = lambda rows: rows
    ) -> dict[str, Dataset]:
        """The rows of training, validation and, where it is named, test, by split.

        Args:
            seed: of the draw of `most_rows`.
            usable: rows to those that can be learnt.

        Raises:
            BedstoneError: a source can't be read, or has too few rows.
        """

        def opened(name: str) -> Dataset:
            rows: Dataset = open_dataset(
                name, columns=self.columns, split=self.split, most_broken=self.most_broken
            )
            return usable(rows)

        learnt = opened(self.train)
        if self.validation:
            held = opened(self.validation)
        else:
            learnt, held = learnt.hold_out(self.validation_share)
        found = {"train": learnt.take(self.most_rows, seed), "validation": held}
        return {**found, "test": opened(self.test)} if self.test else found


@dataclass
class PreferenceOptim(TuneOptim):
    """`TuneOptim` with a smaller rate: preferences move a policy far in few steps."""

    lr: float = 1e-5
    adamw_lr: float = 1e-5
    weight_decay: float = 0.0


@dataclass
class PreferenceRecipe(RunRecipe):
    """Training on preferences: the fields that reward models, DPO and KTO share.

    Attributes, besides those of every run:
        model: the model to start from: a folder, a name that `bedstone models` lists, or a hub id.
        data: what to learn from.
        epochs: passes over the training rows.
        budget: `5m`, `1000 steps`: takes the place of `epochs` where it is given.
        limit: tokens of a prompt with an answer at most; the beginning of longer prompts is cut. 0
            takes the model's context.
        batch_size: rows in a micro-batch; each is two answers.
        lora: train only a LoRA adapter: the fields of `nn.lora.LoraConfig`, as `{rank: 16}`.
        best: the figure that selects the best checkpoint; `last` keeps the last weights.
        patience: stop after this many evaluations without a better one; 0 goes on to the end.
    """

    model: str = ""
    data: PreferenceConfig = field(default_factory=PreferenceConfig)
    epochs: float = number(0, open_least=True, default=1.0)
    budget: str = ""
    limit: int = whole(0, default=0)
    batch_size: int = whole(1, default=8)
    lora: dict[str, Any] = field(default_factory=dict)
    best: str = one_of(*BEST, default="last")
    patience: int = whole(0, default=0)
    optim: TuneOptim = field(default_factory=PreferenceOptim)
    schedule: TuneSchedule = field(default_factory=TuneSchedule)
    keep: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model:
            raise BedstoneError("model: none was given; name a folder or a hub id.")
        if not self.data.train:
            raise BedstoneError("data.train: none was given; name a file or folder of rows.")


@dataclass
class PolicyRecipe(PreferenceRecipe):
    """What DPO and KTO share: a policy beside its reference.

    Attributes, besides those of `PreferenceRecipe`:
        beta: how strongly the policy is bound to the reference.
        reference: another model as the reference; empty is the model that the run begins with.
    """

    beta: float = number(0, open_least=True, default=0.1)
    reference: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora and from_mapping(LoraConfig, self.lora, "recipe", "lora.").dropout:
            raise BedstoneError(
                "lora.dropout: makes the implicit reward of an answer noise; leave it out."
            )


class Preferences(Method[R]):
    """What the methods share: rows, their examples, their measure."""

    epochs = True
    reader: ClassVar[Any] = staticmethod(read_pair)  # (rows, number of a row) to `Answered`
    usable: ClassVar[Any] = staticmethod(usable_pairs)  # rows to those that can be learnt
    scored: ClassVar[bool] = False

    def begin(self, recipe: R, checkpoint: Checkpoint | None) -> Model:
        place = recipe.model if recipe.lora or checkpoint is None else checkpoint.path
        model = open_model(place, dtype=torch.float32)
        model.network.float()
        model.record = {}
        return model

    def open(self, recipe: R, start: Start) -> Splits:
        data, model = recipe.data, start.model

        found = data.open(recipe.seed, type(self).usable)
        with ProgressBar("reading the rows", quiet=start.quiet):
            examples = {split: self.examples(recipe, model, rows) for split, rows in found.items()}
        train = examples["train"]
        record = {
            "source": data.train,
            "fingerprint": train.fingerprint(),
            "rows": len(train.rows),
            "left_out": len(train.rows.faults.broken),
        }
        notes = [
            f"{data.train}: {train.describe()}",
            f"held out: {len(found['validation']):,} rows",
        ]
        notes += filter(None, (each.cuts.note(train.limit) for each in examples.values()))
        understood = summarise(
            {split: each.rows for split, each in examples.items()},
            self.labels(examples),
            type(self).fields,
        )
        tested = examples.get("test")
        return Splits(train, examples["validation"], tested, record, notes, understood)

    fields: ClassVar[tuple[str, ...]] = (*PROMPTS, "input", "system", "chosen", "rejected")

    def labels(self, examples: dict[str, PreferenceExamples]) -> dict[str, list[Any]]:
        """The classes of rows by their split; none of pairs."""
        return {}

    def examples(self, recipe: R, model: Model, rows: Dataset) -> PreferenceExamples:
        """Rows as examples of the model."""
        context = model.config.context
        return PreferenceExamples(
            rows,
            tokenizer_of(model),
            limit=min(recipe.limit or context, context),
            read=type(self).reader,
            causal=model.network.causal,
            scored=self.scored,
        )

    def model(self, recipe: R, splits: Splits, tokenizer: Tokenizer | None, start: Start) -> Model:
        model: Model = start.model
        self.ready(recipe, model)
        if recipe.lora:
            adapt(model, recipe.lora, start, recipe.seed)
        return model

    def ready(self, recipe: R, model: Model) -> None:
        """Gives the network its head, and takes its dropout away."""
        set_dropout(model.network, 0.0)

    def batches(self, recipe: R, model: Model, splits: Splits, start: Start) -> Batches:
        reads = getattr(model.network.head, "reads", "last")
        return preference_stream(splits.train, recipe.batch_size, reads=reads, seed=recipe.seed)

    def evaluations(self, recipe: R, plan: RunPlan) -> Sequence[Evaluation]:
        found = {"validation": plan.splits.validation, "test": plan.splits.test}
        objective: Any = plan.objective
        return [
            PreferenceEvaluation(name, plan.model, examples, plan.start.precision, objective)
            for name, examples in found.items()
            if examples is not None
        ]

    def budget(self, recipe: R, splits: Splits) -> str:
        rows = len(splits.train.rows)
        steps = round(recipe.epochs * math.ceil(rows / (recipe.batch_size * recipe.accumulate)))
        return recipe.budget or f"{max(steps, 1)} steps"

    def stopping(self, recipe: R, model: Model) -> Stopping:
        figure = {"accuracy": "-validation_accuracy", "margin": "-validation_margin"}
        best_by = figure.get(recipe.best, "validation_loss")
        return Stopping(best_by, recipe.patience, recipe.best != "last")


P = TypeVar("P", bound=PolicyRecipe)


class Policy(Preferences[P]):
    """What DPO and KTO share: a decoder beside its reference."""

    def begin(self, recipe: P, checkpoint: Checkpoint | None) -> Model:
        model = super().begin(recipe, checkpoint)
        check_writes(model, "model", recipe.model)
        return model

    def batches(self, recipe: P, model: Model, splits: Splits, start: Start) -> Batches:
        measured = [splits.train, splits.validation, splits.test]
        self.refer(recipe, model, [each for each in measured if each is not None], splits, start)
        return super().batches(recipe, model, splits, start)

    def refer(
        self,
        recipe: P,
        model: Model,
        examples: Sequence[PreferenceExamples],
        splits: Splits,
        start: Start,
    ) -> None:
        """Gives examples the log-probabilities of the reference: the base of an adapter, the model
        that is named, or the one that the run began with.

        A run that goes on takes what is kept on disk; where that is gone, it opens the reference.

        Raises:
            BedstoneError: the reference has another vocabulary, or isn't the one it was.
        """
        network, precision = model.network, start.precision
        began = (record_of(start.checkpoint).get("data") or {}).get("reference")
        if began is not None:
            kept = [kept_log_probs(each, precision, began) for each in examples]
            if all(found is not None for found in kept):
                for each, found in zip(examples, kept, strict=True):
                    each.reference = found
                splits.record["reference"] = began
                return
        other = recipe.reference or (recipe.model if start.checkpoint and not recipe.lora else "")
        if other:
            opened = open_model(other, dtype=torch.float32)
            check_writes(opened, "reference", other)
            check_vocabulary(opened, model, other)
            set_dropout(opened.network, 0.0)
            network = opened.network.to(precision.device)
        weights = weights_print(network)
        if began not in (None, weights):
            raise BedstoneError(
                f"reference: {other or recipe.model} isn't the model that it was when the run "
                "began, and what that made of the rows is no longer kept. Bring it back, or start "
                "a new run."
            )
        for each in examples:
            each.reference = reference_log_probs(
                network, each, precision, weights, quiet=start.quiet
            )
        splits.record["reference"] = weights


def check_writes(model: Model, name: str, path: str) -> None:
    """Raises BedstoneError where a model writes no text; `name` is the recipe's field of it."""
    head = getattr(getattr(model, "config", None), "head", None)
    if not getattr(model.network, "causal", False) or head is None or head.kind != "language":
        raise BedstoneError(
            f"{name}: {path} is a {model.config.layout}, which writes no text; name a GPT."
        )


def check_vocabulary(reference: Model, model: Model, path: str) -> None:
    """Raises BedstoneError where the tokens of both don't mean the same."""
    theirs, own = (tokenizer_of(each).backend.get_vocab() for each in (reference, model))
    if theirs != own:
        token = next((name for name in own if theirs.get(name) != own[name]), None)
        token = token or next(name for name in theirs if name not in own)
        raise BedstoneError(
            f"reference: {path} has another vocabulary than the model: its token {token!r} is "
            f"{theirs.get(token)}, the model's {own.get(token)}. Log-probabilities of both can't "
            "be compared; name a reference with the model's own tokenizer."
        )
