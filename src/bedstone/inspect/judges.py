"""Judges: networks that say what a made picture is, and by whose features sets are compared.

A judge reads pictures as files would hold them: values are brought to 8 bits first, made ones like
real ones. Each does to them what was done in its own training.

- A file of the published LeNet or CIFAR ResNet, known by its tensors.
- A folder with a model of ours that tells pictures apart (image-classification).
- A folder with a judge of scenes, which has features and no labels.

Shapes: B pictures, C channels, H and W; F features, L labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.checkpoints.opening import open_model
from bedstone.checkpoints.tensors import load_tensors
from bedstone.errors import BedstoneError
from bedstone.files import read_json
from bedstone.inspect.scene_judge import KIND, open_scene_judge
from bedstone.models import lenet
from bedstone.models.cifar_resnet import CifarResNet
from bedstone.models.lenet import LeNet

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
    def read(self, pictures: Tensor, batch: int = BATCH) -> tuple[Tensor, Tensor | None]:
        """Features (B, F) and logits (B, L) of pictures in one pass, fp32; logits None without
        labels.

        Args:
            pictures: (B, 1 or 3, H, W), about [-1, 1], of any size.

        Raises:
            BedstoneError: they have another shape, there are none, or one is not finite.
        """
        _check(pictures)
        features, logits = [], []
        for part in pictures.split(batch):
            # What a file holds: neither values between two greys nor ones beyond white.
            whole = ((part.float() + 1) * 127.5).round().clamp(0, 255)
            seen, said = self.look(self.prepare(whole))
            features.append(seen.float())
            if said is not None:
                logits.append(said.float())
        return torch.cat(features), torch.cat(logits) if logits else None

    def features(self, pictures: Tensor, batch: int = BATCH) -> Tensor:
        """(B, F) as `read` has it."""
        return self.read(pictures, batch)[0]

    def logits(self, pictures: Tensor, batch: int = BATCH) -> Tensor:
        """(B, L) as `read` has it.

        Raises:
            BedstoneError: as `read` does, or the judge has no labels.
        """
        found = self.read(pictures, batch)[1]
        if found is None:
            raise BedstoneError(f"judge {self.name!r}: has features alone, and no labels.")
        return found


@dataclass(frozen=True)
class ClassAccuracy:
    """How often made pictures are taken for what they were to be: in all, and of each class."""

    accuracy: float
    classes: tuple[float, ...]  # nan of a class that was never asked for
    count: int


def class_accuracy(logits: Tensor, asked: Tensor) -> ClassAccuracy:
    """The share of pictures whose most likely class is that which was asked for.

    Args:
        logits: (B, L) of a judge.
        asked: (B,) whole numbers, from 0 to L - 1.

    Raises:
        BedstoneError: lengths differ, there are none, or a class that the judge doesn't know.
    """
    labels = logits.shape[1]
    if len(logits) != len(asked) or not len(asked):
        raise BedstoneError(
            f"judge: {len(logits)} pictures and {len(asked)} classes were given; expected one "
            "class for each."
        )
    if int(asked.min()) < 0 or int(asked.max()) >= labels:
        wrong = int(asked.min()) if int(asked.min()) < 0 else int(asked.max())
        raise BedstoneError(f"judge: class {wrong} was asked for; it knows 0 to {labels - 1}.")
    right = (logits.argmax(1) == asked).double()
    of_each = [float(right[asked == number].mean()) for number in range(labels)]
    return ClassAccuracy(float(right.mean()), tuple(of_each), len(asked))


def open_judge(path: str | Path) -> Judge:
    """The judge in a file of published weights or in a folder.

    Raises:
        BedstoneError: there is none, or it can't judge pictures.
    """
    path = Path(path)
    if path.is_dir():
        config = path / "config.json"
        kind = read_json(config).get("model_type") if config.is_file() else None
        return _scenes(path) if kind == KIND else _model(path)
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
        return _resized(_grey(whole), lenet.SIDE) / 255

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


def _resized(pictures: Tensor, side: int) -> Tensor:
    """Squeezed to a square, bilinear, averaging where it shrinks."""
    if pictures.shape[-2:] == (side, side):
        return pictures
    shrinks = max(pictures.shape[-2:]) > side
    return F.interpolate(pictures, (side, side), mode="bilinear", antialias=shrinks)


def _rgb(pictures: Tensor) -> Tensor:
    return pictures if pictures.shape[1] == 3 else pictures.expand(-1, 3, -1, -1)


def _grey(pictures: Tensor) -> Tensor:
    if pictures.shape[1] == 1:
        return pictures
    return (pictures * torch.tensor(_GREY)[:, None, None]).sum(1, keepdim=True)


def _check(pictures: Tensor) -> None:
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or not len(pictures):
        raise BedstoneError(
            f"judge: pictures of shape {tuple(pictures.shape)} were given; expected (pictures, 1 "
            "or 3 channels, height, width), and at least one."
        )
    finite = pictures.isfinite().flatten(1).all(1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise BedstoneError(
            f"judge: picture {row} holds values that are not finite. Look at how it was drawn."
        )
