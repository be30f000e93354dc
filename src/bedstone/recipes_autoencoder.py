"""The recipe of autoencoders: pictures to latents or codes, and back."""

from dataclasses import dataclass, field
from typing import Any

from bedstone.checks import at_least
from bedstone.config import OptimConfig, RunRecipe
from bedstone.errors import BedstoneError, nearest
from bedstone.recipes_pictures import PicturesConfig, PicturesSchedule

TASK = "autoencoding"
LAYOUTS = ("autoencoder_kl", "fsq_autoencoder")
PIXELS = ("l1", "l2")


@dataclass
class PerceptualConfig:
    """A term by what a frozen network sees.

    Attributes:
        model: a picture model of ours: a ViT, a ResNet, with labels, or of pairs; empty is none.
        weight: of the term.
    """

    model: str = ""
    weight: float = 0.1


@dataclass
class AdversarialConfig:
    """A judge of patches that is trained beside.

    Attributes:
        weight: how much it pulls beside all other terms; 0 is none.
        after: batches before it begins.
        width: channels of its first map, a multiple of 4.
        layers: how often it halves its map.
    """

    weight: float = 0.0
    after: int = 0
    width: int = 32
    layers: int = 2


@dataclass
class AutoencoderOptim(OptimConfig):
    """`OptimConfig` without decay: latents are held by their own term."""

    weight_decay: float = 0.0


@dataclass
class AutoencoderRecipe(RunRecipe):
    """Learning to give pictures back from latents, or from codes.

    Attributes, besides those of every run:
        task: autoencoding.
        budget: how long to train: `5m`, `2000 steps`.
        init: an autoencoder to go on from, instead of fresh weights.
        model: the shape: `layout: autoencoder_kl` in the fields of
            `models.autoencoder_config.AutoencoderConfig`, or `fsq_autoencoder` in those of
            `DiscreteConfig`. Pictures are made `image_size` large.
        data: what to learn from; texts and labels of rows are passed over.
        augment: how pictures are changed: the fields of `data.image_augment.ImageAugment`.
        pixel: the distance of pixels: l1 or l2.
        kl: weight of the latents' nats, of autoencoder_kl.
        perceptual: a term by what a frozen network sees.
        adversarial: a judge of patches that is trained beside.
        batch_size: pictures in a micro-batch.
        evaluate_pictures: held-out pictures that an evaluation reads at most; 0 reads them all.
    """

    task: str = TASK
    out: str = "runs/autoencoder"
    budget: str = "2000 steps"
    init: str = ""
    model: dict[str, Any] = field(default_factory=lambda: {"layout": "autoencoder_kl"})
    data: PicturesConfig = field(default_factory=PicturesConfig)
    augment: dict[str, Any] = field(default_factory=dict)
    pixel: str = "l1"
    kl: float = 1e-6
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    batch_size: int = 32
    evaluate_pictures: int = 128
    optim: AutoencoderOptim = field(default_factory=AutoencoderOptim)
    schedule: PicturesSchedule = field(default_factory=PicturesSchedule)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "batch_size")
        at_least(self, 0, "evaluate_pictures")
        if self.task != TASK:
            raise BedstoneError(f"task: {self.task!r} was given; an autoencoder's is {TASK}.")
        layout = self.model.get("layout", LAYOUTS[0])
        if layout not in LAYOUTS:
            raise BedstoneError(f"model.layout: {layout!r} is unknown{nearest(layout, LAYOUTS)}.")
        if self.pixel not in PIXELS:
            raise BedstoneError(f"pixel: {self.pixel!r} is unknown{nearest(self.pixel, PIXELS)}.")
        weights = {
            "kl": self.kl,
            "perceptual.weight": self.perceptual.weight,
            "adversarial.weight": self.adversarial.weight,
        }
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise BedstoneError(f"{name}: {weight} was given; expected a weight from 0 on.")
        at_least(self.adversarial, 0, "after", prefix="adversarial.")
        at_least(self.adversarial, 1, "width", "layers", prefix="adversarial.")
        if self.adversarial.width % 4:
            raise BedstoneError(
                f"adversarial.width: {self.adversarial.width} was given; expected a multiple of 4."
            )
        if self.compile:
            raise BedstoneError("compile: isn't there for autoencoders; leave it out.")
