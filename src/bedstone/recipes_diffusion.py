"""The recipe of learning to draw: pictures, sounds, videos or volumes out of noise."""

from dataclasses import dataclass, field
from typing import Any

from bedstone.checks import at_least, check_shares
from bedstone.config import OptimConfig, RunRecipe, ScheduleConfig, TokenizerConfig
from bedstone.errors import BedstoneError, nearest

KINDS = {"image": 2, "audio": 1, "video": 3, "volume": 3}  # of signals, and how many sides each has
# What is made, by what it is asked for: (what it is told, the kind of signal).
TASKS = {
    f"{told}-to-{kind}" if told != "none" else f"unconditional-{kind}-generation": (told, kind)
    for kind in KINDS
    for told in ("none", "class", "text")
}
PROCESSES = ("discrete", "flow", "edm")
TARGETS = ("epsilon", "v_prediction", "sample", "flow_prediction", "edm")
WEIGHTS = ("uniform", "snr", "min_snr", "truncated")
TIMES = ("uniform", "logit_normal", "log_normal")
CAPTIONS = ("whole", "all")


@dataclass
class SignalsConfig:
    """What to learn from.

    Attributes:
        source: built in: scenes, moving-scenes (video) or solids (volumes); else a Parquet, Arrow,
            JSONL or CSV file, a folder, a glob or a hub id of rows with pictures or sounds; of
            videos and volumes, a .npz file (`data.signal_arrays`).
        validation: another source to validate on; empty holds out a share of `source`.
        split: of a hub id or a folder with splits.
        validation_share: share of the rows held out.
        columns: which column holds what, where the usual names aren't used, as `{label: digit}`;
            parts: image or audio, label, text.
        templates: texts made of a label, as `the digit {label}`, where rows have no text.
        classes: names of the classes by what stands in the rows: a list or a mapping.
        size: of a signal: [height, width], [frames] of sounds, [frames, height, width] of videos,
            [depth, height, width] of volumes.
        channels: of pictures: 3, or 1 for grey ones.
        sound: how sounds become signals: the fields of `data.sounds.Spectrogram` but `frames`.
        most_rows: take this many rows at most, drawn by the seed; 0 takes all. Of what is built
            in, how many are drawn; 0 is as many as suits it.
        most_broken: share of rows that may be broken; such rows are left out and named.
        objects: things in a picture of scenes, the fewest and the most.
        captions: of scenes: whole, sentences that name every thing with its colour, or all kinds.
        signs: whether scenes may have signs with words.
        sizes: of things in scenes, moving or not: small, medium, large; empty is all of them. A
            small one in a picture of 32 pixels has 6 from side to side.
        textures: whether things in scenes, moving ones too, may be striped or dotted.
        memory_mb: megabytes that the signals may take, all of them.
        workers: threads that make batches ready.
    """

    source: str = "scenes"
    validation: str = ""
    split: str | None = None
    validation_share: float = 0.05
    columns: dict[str, Any] = field(default_factory=dict)
    templates: list[str] = field(default_factory=list)
    classes: Any = field(default_factory=list)
    size: tuple[int, ...] = ()
    channels: int = 3
    sound: dict[str, Any] = field(default_factory=dict)
    most_rows: int = 0
    most_broken: float = 0.05
    objects: tuple[int, ...] = (1, 2)
    captions: str = "whole"
    signs: bool = False
    sizes: list[str] = field(default_factory=list)
    textures: bool = True
    memory_mb: float = 4096.0
    workers: int = 1

    def __post_init__(self) -> None:
        at_least(self, 0, "most_rows", "workers", prefix="data.")
        for name in ("most_broken", "validation_share"):
            check_shares({f"data.{name}": getattr(self, name)})
        if any(side < 1 for side in self.size):
            raise BedstoneError(f"data.size: {list(self.size)} was given; expected 1 or more each.")
        if self.channels not in (1, 3):
            raise BedstoneError(
                f"data.channels: {self.channels} was given; expected 3, or 1 for grey pictures."
            )
        if len(self.objects) != 2:
            raise BedstoneError(
                f"data.objects: {list(self.objects)} was given; expected two numbers, the fewest "
                "and the most things in a picture."
            )
        if self.captions not in CAPTIONS:
            raise BedstoneError(
                f"data.captions: {self.captions!r} is unknown{nearest(self.captions, CAPTIONS)}."
            )
        if not isinstance(self.classes, list | dict):
            raise BedstoneError(
                f"data.classes: {self.classes!r} was given; expected a list of names, or a "
                "mapping from what stands in the rows to names."
            )

    @property
    def things(self) -> tuple[int, int]:
        """The fewest and the most things in a scene."""
        return self.objects[0], self.objects[1]


@dataclass
class SignalAugment:
    """How signals are changed when they are learnt from.

    Attributes:
        flip: share of pictures and videos that are mirrored, left for right; none whose text names
            a side is.
    """

    flip: float = 0.0

    def __post_init__(self) -> None:
        check_shares({"augment.flip": self.flip})


@dataclass
class TextConfig:
    """What reads the words that a signal is made from.

    Attributes:
        encoder: a CLIP or BERT of ours, a folder or a hub id; empty trains a small one with the
            network.
        frozen: whether a named encoder keeps its weights.
        layers, width, heads: of the small one.
        context: tokens of a text at most; longer ones are cut.
    """

    encoder: str = ""
    frozen: bool = True
    layers: int = 2
    width: int = 128
    heads: int = 4
    context: int = 32

    def __post_init__(self) -> None:
        at_least(self, 1, "layers", "width", "heads", prefix="text.")
        if self.width % self.heads:
            raise BedstoneError(
                f"text.heads: {self.heads} don't divide text.width, {self.width}; choose a divisor."
            )
        at_least(self, 4, "context", prefix="text.")


@dataclass
class CaptionTokenizer(TokenizerConfig):
    """`TokenizerConfig` of the small vocabulary of captions: wordpiece alone is trained."""

    kind: str = "wordpiece"
    vocab_size: int = 2048


@dataclass
class SamplingConfig:
    """How signals are drawn, when the network is evaluated and when it is used.

    Attributes:
        method: a sampler, of those in `generation.denoise.METHODS`.
        steps: of it.
        spacing: of its times, of those in `generation.denoise_times.SPACINGS`.
        guidance: how much farther than without a condition to go towards it; 1 goes no farther.
        interval: the times, from 0 (clean) to 1 (noise), in which there is guidance.
        rescale: share by which a guided signal's spread is brought back to that of the condition's.
    """

    method: str = "dpm_solver_2m"
    steps: int = 20
    spacing: str = "trailing"
    guidance: float = 2.0
    interval: tuple[float, ...] = (0.0, 1.0)
    rescale: float = 0.0

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", prefix="sampling.")
        if not 0 <= self.guidance < float("inf"):
            raise BedstoneError(
                f"sampling.guidance: {self.guidance} was given; expected 0 or more."
            )
        low, high = self.interval if len(self.interval) == 2 else (1.0, 0.0)
        if not 0 <= low < high <= 1:
            raise BedstoneError(
                f"sampling.interval: {list(self.interval)} was given; expected two times, from 0 "
                "(clean) to 1 (noise), the earlier first."
            )
        if not 0 <= self.rescale <= 1:
            raise BedstoneError(f"sampling.rescale: {self.rescale} was given; it is a share.")


@dataclass
class DiffusionOptim(OptimConfig):
    """`OptimConfig` without decay: a network that draws is averaged, not shrunk."""

    lr: float = 2e-3
    adamw_lr: float = 2e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass
class DiffusionRecipe(RunRecipe):
    """Learning to draw signals out of noise.

    Attributes, besides those of every run:
        task: what is drawn from what: class-to-image, text-to-image,
            unconditional-image-generation, and the same with audio, video and volume.
        budget: how long to train: `10m`, `2000 steps`.
        init: a model to go on from, instead of fresh weights.
        model: the network's shape, in the fields of `models.dit_config.DiTConfig`; what the data
            decides (size, channels, classes) is left out.
        process: how noise is added: `kind` (discrete, flow, edm) and the fields of that kind in
            `nn.noising`.
        target: what the network says: epsilon, v_prediction, sample, flow_prediction, edm; empty is
            the process's own.
        weight: what a time counts for: uniform, snr, min_snr, truncated.
        times: how they are drawn: uniform, logit_normal, log_normal.
        drop: share of rows that are learnt without their condition, for guidance.
        average: decay of the weights' moving average, which is what is evaluated and kept; 0 has
            none.
        text: what reads the words, of text-to tasks.
        tokenizer: how words become tokens; trained on the captions where none is named.
        autoencoder: a model whose latents are drawn, instead of pixels; empty draws pixels.
        data: what to learn from.
        augment: how signals are changed.
        batch_size: signals in a micro-batch.
        sampling: how signals are drawn.
        evaluate_rows: held-out rows that an evaluation in training reads at most.
        samples: how many are drawn and shown when the network is evaluated.
    """

    task: str = "class-to-image"
    out: str = "runs/diffusion"
    budget: str = "2000 steps"
    init: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    process: dict[str, Any] = field(default_factory=lambda: {"kind": "flow"})
    target: str = ""
    weight: str = "uniform"
    times: str = "uniform"
    drop: float = 0.1
    average: float = 0.999
    text: TextConfig = field(default_factory=TextConfig)
    tokenizer: CaptionTokenizer = field(default_factory=CaptionTokenizer)
    autoencoder: str = ""
    data: SignalsConfig = field(default_factory=SignalsConfig)
    augment: SignalAugment = field(default_factory=SignalAugment)
    batch_size: int = 128
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    evaluate_rows: int = 1000
    samples: int = 64
    optim: DiffusionOptim = field(default_factory=DiffusionOptim)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in TASKS:
            raise BedstoneError(f"task: {self.task!r} is unknown{nearest(self.task, TASKS)}.")
        kind = self.process.get("kind", "flow")
        for name, value, known in (
            ("process.kind", kind, PROCESSES),
            ("target", self.target or TARGETS[0], TARGETS),
            ("weight", self.weight, WEIGHTS),
            ("times", self.times, TIMES),
        ):
            if value not in known:
                raise BedstoneError(f"{name}: {value!r} is unknown{nearest(str(value), known)}.")
        check_shares({"drop": self.drop, "average": self.average})
        at_least(self, 1, "batch_size", "evaluate_rows")
        at_least(self, 0, "samples")
        sides = KINDS[self.kind]
        if self.data.size and len(self.data.size) != sides:
            raise BedstoneError(
                f"data.size: {list(self.data.size)} was given; {self.task} has signals of {sides} "
                f"side{'s' if sides > 1 else ''}, so expected as many numbers."
            )
        if self.augment.flip and self.kind not in ("image", "video"):
            raise BedstoneError(
                f"augment.flip: mirrors pictures and videos; {self.task} makes none. Leave it out."
            )
        if self.condition == "none" and self.sampling.guidance > 1:
            self.sampling.guidance = 1.0  # there is nothing to be guided to

    @property
    def condition(self) -> str:
        """What a signal is made from: none, class or text."""
        return TASKS[self.task][0]

    @property
    def kind(self) -> str:
        """What is made: image, audio, video or volume."""
        return TASKS[self.task][1]
