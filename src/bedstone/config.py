"""What recipes are made of, and the recipe of pretraining."""

from dataclasses import dataclass, field
from typing import Any

from bedstone.checks import at_least, check_shares
from bedstone.errors import BedstoneError


@dataclass
class DataConfig:
    """What to learn from.

    Attributes:
        source: a built-in name (python-docs), a file, a folder, a glob or a hub id.
        column: the column that holds the text, in formats that have columns.
        split: of a hub id or a folder with splits.
        validation: another source to validate on; empty holds out a share of `source`.
        validation_share: the share of documents held out; of a single document, its end.
        streaming: tokenise as it trains, for what doesn't fit on the disk twice.
    """

    source: str = "python-docs"
    column: str = "text"
    split: str | None = None
    validation: str = ""
    validation_share: float = 0.02
    streaming: bool = False


@dataclass
class TokenizerConfig:
    """How text becomes tokens.

    Attributes:
        path: a folder or file of a tokenizer to load; empty trains one on the data.
        kind: what to train: bpe (byte-level), wordpiece (as BERT has it) or characters.
        vocab_size: tokens to train, for bpe and wordpiece.
        lowercase: whether wordpiece reads everything as lower case, without accents.
        sample_mb: megabytes of text it is trained on, at most.
    """

    path: str = ""
    kind: str = "bpe"
    vocab_size: int = 8192
    lowercase: bool = True
    sample_mb: float = 50.0


@dataclass
class MaskingConfig:
    """What an encoder is asked to restore: words that are hidden, and which text follows which.

    Attributes:
        share: of the tokens that are hidden.
        mask: share of these that become the mask token.
        other: share of these that become another token; the rest stays and is asked for too.
        whole_words: hide all pieces of a word or none.
        pairs: ask too whether the second of two texts follows the first; null does in bert alone.
        short_rows: share of the rows of pairs that are made shorter than `context`, at random.
    """

    share: float = 0.15
    mask: float = 0.8
    other: float = 0.1
    whole_words: bool = False
    pairs: bool | None = None
    short_rows: float = 0.1

    def __post_init__(self) -> None:
        for name in ("share", "mask", "other", "short_rows"):
            if not 0 <= getattr(self, name) <= 1:
                raise BedstoneError(
                    f"masking.{name}: {getattr(self, name)} was given; it is a share, 0 to 1."
                )
        if not self.share or self.mask + self.other > 1:
            raise BedstoneError(
                f"masking: share {self.share} must be above 0, and mask {self.mask} and other "
                f"{self.other} at most 1 together."
            )


@dataclass
class OptimConfig:
    """How weights move.

    Attributes:
        kind: muon (Muon for hidden matrices, AdamW for the rest) or adamw.
        lr: peak learning rate of hidden matrices under Muon, in AdamW's scale.
        adamw_lr: peak learning rate of the rest, or of all under adamw.
        weight_decay: decoupled, on matrices only, times the learning rate.
        momentum: of Muon.
        betas: of AdamW.
        eps: of AdamW.
        clip: the largest global norm of the gradient; 0 doesn't clip.
    """

    kind: str = "muon"
    lr: float = 3e-3
    adamw_lr: float = 3e-3
    weight_decay: float = 0.1
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip: float = 1.0


@dataclass
class ScheduleConfig:
    """How the learning rate moves over the budget.

    Attributes:
        warmup: share of the budget over which it rises linearly, from a tenth of the peak.
        decay: share of the budget, at the end, over which it falls.
        shape: of the fall: linear, cosine or sqrt.
        floor: what it falls to, as a share of the peak.
    """

    warmup: float = 0.02
    decay: float = 0.4
    shape: str = "linear"
    floor: float = 0.0


@dataclass
class RunRecipe:
    """What every recipe says of its run.

    Attributes:
        out: the folder of the run.
        seed: of all that is drawn: fresh weights, the order of the data, dropout.
        optim: how weights move.
        schedule: how the learning rate moves.
        accumulate: micro-batches a step.
        precision: auto, bf16 or fp32.
        device: auto, cpu, cuda, mps.
        compile: whether to compile the step; it pays on long runs.
        evaluate_every: steps between evaluations; 0 spreads ten over the run.
        save_every: steps between checkpoints; 0 saves every `save_minutes`.
        save_minutes: minutes between checkpoints.
        keep: checkpoints to keep besides the best.
        log_every: steps between lines of the log.
    """

    out: str = "runs/run"
    seed: int = 0
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    accumulate: int = 1
    precision: str = "auto"
    device: str = "auto"
    compile: bool = False
    evaluate_every: int = 0
    save_every: int = 0
    save_minutes: float = 5.0
    keep: int = 2
    log_every: int = 10

    def __post_init__(self) -> None:
        at_least(self, 1, "accumulate", "keep", "log_every")
        at_least(self, 0, "seed")
        if self.seed >= 2**63:
            raise BedstoneError(f"seed: {self.seed} was given; expected less than 2^63.")
        if self.save_minutes <= 0:
            raise BedstoneError(f"save_minutes: {self.save_minutes} was given; it must be above 0.")


@dataclass
class PretrainRecipe(RunRecipe):
    """Pretraining a model from scratch, or going on from one.

    Attributes, besides those of every run:
        budget: how long to train: `5m`, `2h`, `1000 steps`, `20M tokens`.
        init: a model to go on from, instead of fresh weights.
        model: the shape, in the fields of `models.gpt_config.GPTConfig` or, where its `layout` is
            bert, roberta or distilbert, of `models.bert.BertConfig`.
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
