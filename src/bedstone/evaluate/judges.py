"""Judges: classifiers whose labels and features evaluate generated signals.

A judge reads pictures as files would hold them: values are brought to 8 bits first, made ones like
real ones. Each does to them what was done in its own training.

- A file of the published LeNet or CIFAR ResNet, known by its tensors.
- A folder with a model of ours that tells pictures apart (image-classification).
- A folder with a judge of scenes, which has features and no labels.

Shapes: B pictures, C channels, H and W; F features, L labels.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.tensors import load_tensors, save_tensors
from bedstone.errors import BedstoneError
from bedstone.evaluate.scene_judge import SCENE_GRID, open_scene_judge
from bedstone.files import atomic_folder, write_json
from bedstone.reading import is_plain, read_object
from bedstone.settings import Settings, from_mapping, whole

SIDE = 32  # of the pictures it reads
WIDTH = 84  # of its features


class LeNet(nn.Module):
    """Grey pictures (B, 1, 32, 32) from 0 (paper) to 1 (ink) to logits (B, L)."""

    def __init__(self, labels: int = 10) -> None:
        super().__init__()
        maps = {"c1": (1, 6), "c3": (6, 16), "c5": (16, 120)}
        self.convnet = nn.ModuleDict({name: nn.Conv2d(*sides, 5) for name, sides in maps.items()})
        self.fc = nn.ModuleDict({"f6": nn.Linear(120, WIDTH), "f7": nn.Linear(WIDTH, labels)})

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 84): the states before the labels."""
        x = F.max_pool2d(self.convnet["c1"](pixels).relu(), 2)  # (B, 6, 14, 14)
        x = F.max_pool2d(self.convnet["c3"](x).relu(), 2)  # (B, 16, 5, 5)
        return self.fc["f6"](self.convnet["c5"](x).relu().flatten(1)).relu()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.fc["f7"](self.features(pixels))


# ResNet-20, -56 and their like for pictures of 32 pixels: `cifar10-resnet*.safetensors`.
#
# He et al. (2016), section 4.2: three stages of 16, 32 and 64 channels; a shortcut that changes
# size takes every second pixel and adds channels of zeros (option A). Names are those of
# akamaster's implementation, whose weights are published.
#
# Shapes: B pictures, H and W of one, L labels.

WIDTHS = (16, 32, 64)  # channels of the stages; the last is the features'


class CifarBlock(nn.Module):
    """relu(x + two convolutions), without a bias, each with its norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if inner.shape != x.shape:
            more = (inner.shape[1] - x.shape[1]) // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more))
        return (inner + x).relu()


class CifarResNet(nn.Module):
    """Normalised pictures (B, 3, H, W) to logits (B, L).

    Args:
        blocks: of each of the three stages: 3 make a ResNet-20, 9 a ResNet-56.
    """

    def __init__(self, blocks: int = 3, labels: int = 10) -> None:
        super().__init__()
        first = WIDTHS[0]
        self.conv1 = nn.Conv2d(3, first, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, WIDTHS[0], blocks, 1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks, 2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks, 2)
        self.linear = nn.Linear(WIDTHS[2], labels)

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 64): the mean of the last map."""
        x = self.bn1(self.conv1(pixels)).relu()
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.linear(self.features(pixels))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [CifarBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(CifarBlock(inputs, outputs, stride), *rest)


BATCH = 256
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # which the CIFAR ResNets were fed
_CIFAR_SIDE = 32

Prepare = Callable[[Tensor], Tensor]  # (B, C, H, W) of whole values 0 to 255 to what is read
Look = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # to features and logits


@dataclass(frozen=True)
class Judge:
    """A network that judges pictures.

    Attributes:
        name: stands beside each figure.
        labels: names of its classes, in the order of its logits; none of a judge without.
        prepare: makes its inputs of pictures.
        look: gives features (B, F), those before the labels, and logits (B, L).
    """

    name: str
    labels: tuple[str, ...]
    prepare: Prepare
    look: Look

    @torch.inference_mode()
    def read(self, images: Tensor, batch: int = BATCH) -> tuple[Tensor, Tensor | None]:
        """Features (B, F) and logits (B, L) of pictures in one pass, fp32; logits None without
        labels.

        Args:
            images: (B, 1 or 3, H, W), about [-1, 1], of any size.

        Raises:
            BedstoneError: they have another shape, there are none, or one is not finite.
        """
        _check(images)
        features, logits = [], []
        for part in images.split(batch):
            # What a file holds: neither values between two greys nor ones beyond white.
            whole = ((part.float() + 1) * 127.5).round().clamp(0, 255)
            seen, said = self.look(self.prepare(whole))
            features.append(seen.float())
            if said is not None:
                logits.append(said.float())
        return torch.cat(features), torch.cat(logits) if logits else None

    def features(self, images: Tensor, batch: int = BATCH) -> Tensor:
        """(B, F) as `read` has it."""
        return self.read(images, batch)[0]

    def logits(self, images: Tensor, batch: int = BATCH) -> Tensor:
        """(B, L) as `read` has it.

        Raises:
            BedstoneError: as `read` does, or the judge has no labels.
        """
        found = self.read(images, batch)[1]
        if found is None:
            raise BedstoneError(f"judge {self.name!r}: has features alone, and no labels.")
        return found


@dataclass(frozen=True)
class ClassAccuracy:
    """How often made pictures are taken for what they were to be: in all, and of each class."""

    accuracy: float
    classes: tuple[float, ...]  # nan of a class that was never asked for
    count: int


def class_accuracy(logits: Tensor, classes: Tensor) -> ClassAccuracy:
    """The share of pictures whose most likely class is that which was asked for.

    Args:
        logits: (B, L) of a judge.
        asked: (B,) whole numbers, from 0 to L - 1.

    Raises:
        BedstoneError: lengths differ, there are none, or a class that the judge doesn't know.
    """
    labels = logits.shape[1]
    if len(logits) != len(classes) or not len(classes):
        raise BedstoneError(
            f"judge: {len(logits)} pictures and {len(classes)} classes were given; expected one "
            "class for each."
        )
    if int(classes.min()) < 0 or int(classes.max()) >= labels:
        wrong = int(classes.min()) if int(classes.min()) < 0 else int(classes.max())
        raise BedstoneError(f"judge: class {wrong} was asked for; it knows 0 to {labels - 1}.")
    right = (logits.argmax(1) == classes).double()
    of_each = [float(right[classes == number].mean()) for number in range(labels)]
    return ClassAccuracy(float(right.mean()), tuple(of_each), len(classes))


def open_judge(path: str | Path) -> Judge:
    """The judge in a file of published weights or in a folder.

    Raises:
        BedstoneError: there is none, or it can't judge pictures.
    """
    path = Path(path)
    if path.is_dir():
        config = path / "config.json"
        kind = read_object(config).get("model_type") if is_plain(config) else None
        return _scenes(path) if kind == SCENE_GRID else _model(path)
    if not path.is_file():
        raise BedstoneError(
            f"{path}: no such file or folder. Name the weights of a judge, or a folder with a "
            "model that tells pictures apart."
        )
    tensors = load_tensors(path.parent, name=path.name)
    if "convnet.c1.weight" in tensors:
        return _lenet(path, tensors)
    if "layer1.0.conv1.weight" in tensors and "linear.weight" in tensors:
        return _cifar(path, tensors)
    raise BedstoneError(
        f"{path}: its tensors are neither a LeNet's (convnet.c1.weight) nor a CIFAR ResNet's "
        "(layer1.0.conv1.weight, linear.weight)."
    )


def _lenet(path: Path, tensors: dict[str, Tensor]) -> Judge:
    network = _filled(path, LeNet(len(tensors.get("fc.f7.bias", ()))), tensors)

    def prepare(whole: Tensor) -> Tensor:
        return _resized(_grey(whole), SIDE) / 255

    return _judge(path.stem, network, network.fc["f7"], prepare)


def _cifar(path: Path, tensors: dict[str, Tensor]) -> Judge:
    blocks = len({key.split(".")[1] for key in tensors if key.startswith("layer1.")})
    network = _filled(path, CifarResNet(blocks, len(tensors["linear.weight"])), tensors)
    mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))

    def prepare(whole: Tensor) -> Tensor:
        return (_resized(_rgb(whole), _CIFAR_SIDE) / 255 - mean) / std

    return _judge(path.stem, network, network.linear, prepare)


def _model(path: Path) -> Judge:
    """A model of ours, fed through the processor of its folder."""
    model = open_model(path)
    head = getattr(model.config, "head", None)
    processor = model.processor
    if processor is None or head is None or head.kind != "sequence":
        raise BedstoneError(
            f"{path}: is no model that tells pictures apart; a judge has a head for their labels "
            "(ForImageClassification) and a preprocessor_config.json."
        )

    def prepare(whole: Tensor) -> Tensor:
        pixels = _rgb(whole).byte().permute(0, 2, 3, 1).numpy()
        return processor(list(pixels))

    return _judge(path.name, model.network.eval(), model.network.head, prepare, tuple(head.labels))


def _scenes(path: Path) -> Judge:
    judge = open_scene_judge(path)

    def prepare(whole: Tensor) -> Tensor:
        return _resized(_rgb(whole), judge.size) / 127.5 - 1

    def look(pixels: Tensor) -> tuple[Tensor, None]:
        return judge.network.maps(pixels).mean((2, 3)), None

    return Judge(path.name, (), prepare, look)


def _judge(
    name: str, network: Any, head: Any, prepare: Prepare, labels: tuple[str, ...] = ()
) -> Judge:
    def look(pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = network.features(pixels)
        return features, head(features)

    if not labels:
        labels = tuple(str(number) for number in range(head.out_features))
    return Judge(name, labels, prepare, look)


def _filled(path: Path, network: Any, tensors: dict[str, Tensor]) -> Any:
    """The network with the weights of a file."""
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    # Written before torch counted batches, some files lack what is used in training alone.
    given = {key: value for key, value in tensors.items() if not key.endswith("_tracked")}
    wanted = {key: shape for key, shape in wanted.items() if not key.endswith("_tracked")}
    for key in sorted(wanted.keys() | given.keys()):
        has = tuple(given[key].shape) if key in given else "nothing"
        expected = tuple(wanted[key]) if key in wanted else "nothing"
        if has != expected:
            raise BedstoneError(
                f"{path}: tensor {key!r}: {has} was found; expected {expected} in a "
                f"{type(network).__name__}."
            )
    network.load_state_dict(given, strict=False)
    return network.float().eval()


def _resized(images: Tensor, side: int) -> Tensor:
    """Squeezed to a square, bilinear, averaging where it shrinks."""
    if images.shape[-2:] == (side, side):
        return images
    shrinks = max(images.shape[-2:]) > side
    return F.interpolate(images, (side, side), mode="bilinear", antialias=shrinks)


def _rgb(images: Tensor) -> Tensor:
    return images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    return (images * torch.tensor(_GREY)[:, None, None]).sum(1, keepdim=True)


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise BedstoneError(
            f"judge: pictures of shape {tuple(images.shape)} were given; expected (pictures, 1 "
            "or 3 channels, height, width), and at least one."
        )
    finite = images.isfinite().flatten(1).all(1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise BedstoneError(
            f"judge: picture {row} holds values that are not finite. Look at how it was drawn."
        )


# A small convolutional network that tells signals of one to three sides apart: a judge.
#
# Stages of a convolution, a norm over groups and a ReLU, twice; each further stage has half of
# every side that is left, and twice the channels, up to a limit. The mean of what is left goes to
# labels.
#
# Shapes: B signals, C channels, S sides, F features, L labels.

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MOST = 4  # a stage is at most so many times as wide as the first
GROUPS = 8


@dataclass(frozen=True)
class SignalClassifierConfig(Settings):
    """The shape of it.

    Attributes:
        shape: of a signal, (C, *S).
        labels: names of the classes.
        width: channels of the first stage.
        stages: how many.
    """

    shape: tuple[int, ...] = (1, 28, 28)
    labels: tuple[str, ...] = ()
    width: int = whole(1, default=32)
    stages: int = whole(1, default=4)

    section: ClassVar[str] = "judge."

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "labels", tuple(self.labels))
        if not 2 <= len(self.shape) <= 4 or min(self.shape) < 1 or self.width % GROUPS:
            raise BedstoneError(
                f"judge: signals of {self.shape} and a width of {self.width} were given; expected "
                f"channels and one to three sides, and a width that {GROUPS} divides."
            )
        if len(self.labels) < 2:
            raise BedstoneError("judge.labels: expected two classes or more to tell apart.")


class SignalClassifier(nn.Module):
    """Signals (B, C, *S) to logits (B, L)."""

    def __init__(self, config: SignalClassifierConfig) -> None:
        super().__init__()
        self.config = config
        channels, *sides = config.shape
        convolution, pool = _CONVOLUTIONS[len(sides) - 1], _POOLS[len(sides) - 1]
        parts: list[nn.Module] = []
        for stage in range(config.stages):
            width = config.width * min(2**stage, MOST)
            if stage:
                halves: Any = tuple(2 if side > 1 else 1 for side in sides)
                parts.append(pool(halves))
                sides = [side // half for side, half in zip(sides, halves, strict=True)]
            for _ in range(2):
                parts += [convolution(channels, width, 3, padding=1, bias=False)]
                parts += [nn.GroupNorm(GROUPS, width), nn.ReLU()]
                channels = width
        self.body = nn.Sequential(*parts)
        self.out = nn.Linear(channels, len(config.labels))

    def features(self, signals: Tensor) -> Tensor:
        """(B, F)."""
        return self.body(signals).flatten(2).mean(2)

    def forward(self, signals: Tensor) -> Tensor:
        return self.out(self.features(signals))


# A judge of signals, trained on real ones: says what a drawn sound, video or volume is.
#
# Shapes: B signals, C channels, S sides; F features, L labels.

SIGNAL_CLASSIFIER = "signal_classifier"
Made = Callable[[Tensor], Tensor]


class SignalJudge:
    """A trained network, and what it says of signals.

    Attributes:
        name: stands beside each figure.
        made: what is done to signals before they are judged, such as making them heard.
    """

    def __init__(
        self, network: SignalClassifier, record: dict[str, Any] | None = None, name: str = "judge"
    ) -> None:
        self.network, self.record, self.name = network.eval(), record or {}, name
        self.made: Made | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        return self.network.config.labels

    @torch.inference_mode()
    def read(self, signals: Tensor, batch: int = 128) -> tuple[Tensor, Tensor]:
        """Features (B, F) and logits (B, L).

        Raises:
            BedstoneError: signals of another shape, or none.
        """
        wanted = self.network.config.shape
        if tuple(signals.shape[1:]) != wanted or not len(signals):
            raise BedstoneError(
                f"judge {self.name!r}: signals of {tuple(signals.shape)} were given; it reads "
                f"{wanted} each. Train one on signals of that shape."
            )
        signals = self.made(signals) if self.made is not None else signals
        features = [self.network.features(part.clamp(-1, 1)) for part in signals.split(batch)]
        found = torch.cat(features)
        return found, self.network.out(found)

    def save(self, folder: str | Path) -> Path:
        """Writes `config.json`, `model.safetensors` and `bedstone.json`, whole or not at all."""
        with atomic_folder(Path(folder)) as made:
            write_json(
                made / "config.json",
                {"model_type": SIGNAL_CLASSIFIER, **asdict(self.network.config)},
            )
            save_tensors(made, self.network.state_dict())
            write_json(made / "bedstone.json", self.record)
        return Path(folder)


def open_signal_judge(folder: str | Path) -> SignalJudge:
    """The judge that `SignalJudge.save` wrote.

    Raises:
        BedstoneError: there is none, or its files don't fit each other.
    """
    folder = Path(folder)
    path = folder / "config.json"
    values = read_object(path) if is_plain(path) else {}
    if values.pop("model_type", None) != SIGNAL_CLASSIFIER:
        raise BedstoneError(
            f"{folder}: holds no judge of signals. Train one: python bench/signal_judge.py RECIPE "
            f"{folder}"
        )
    network = SignalClassifier(from_mapping(SignalClassifierConfig, values, str(path)))
    try:
        network.load_state_dict(load_tensors(folder))
    except RuntimeError as error:
        raise BedstoneError(f"{folder}: its weights are not of its config.json.") from error
    record = folder / "bedstone.json"
    return SignalJudge(
        network, read_object(record, finite=False) if is_plain(record) else {}, folder.name
    )
