"""Image processors: resize, crop and normalise images exactly as a network was trained.

The arithmetic is that of transformers' Pillow processors, whose `preprocessor_config.json` is read
and written: Pillow's resampling on 8-bit pixels, the longer side rounded down, a centre crop that
pads small pictures with black, then `(value * rescale - mean) / std`.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bedstone.errors import BedstoneError, nearest
from bedstone.files import write_json
from bedstone.published_keys import Keys, keys
from bedstone.reading import kind_of, read_object

CLASSES = {
    "clip": "CLIPImageProcessor",
    "vit": "ViTImageProcessor",
    "siglip": "SiglipImageProcessor",
    "blip": "BlipImageProcessor",
}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
BILINEAR, BICUBIC = 2, 3  # Pillow's numbers

# What the classes do where a file says nothing: size, crop, filter, mean, deviation.
_USUAL: dict[str, tuple[Any, Any, int, tuple[float, ...], tuple[float, ...]]] = {
    "clip": ({"shortest_edge": 224}, [224, 224], BICUBIC, CLIP_MEAN, CLIP_STD),
    "vit": ([224, 224], None, BILINEAR, HALF, HALF),
    "siglip": ([224, 224], None, BICUBIC, HALF, HALF),
    "blip": ([384, 384], None, BICUBIC, CLIP_MEAN, CLIP_STD),
}
KEYS = Keys(
    honoured=keys(
        """crop_size default_to_square do_center_crop do_convert_rgb do_normalize do_rescale
        do_resize feature_extractor_type image_mean image_processor_type image_std resample
        rescale_factor size"""
    ),
    harmless=keys(
        """_processor_class _valid_processor_keys device disable_grouping do_reduce_labels
        image_seq_length input_data_format processor_class return_tensors"""
    ),
    plain={
        "crop_pct": (),
        "data_format": ("channels_first",),
        "do_flip_channel_order": (False,),
        "do_pad": (False,),
        "pad_size": (),
        "size_divisor": (),
    },
    reported=keys("auto_map"),
    remedy="Set it so, if the model can do without it.",
)
WHOLE_KEYS = Keys(
    honoured=keys("image_processor"), harmless=keys("processor_class"), reported=keys("auto_map")
)


def to_published(fields: Mapping[str, Any], out: tuple[int, int]) -> dict[str, Any]:
    """An `ImageProcessor`'s fields as `preprocessor_config.json` has them.

    Args:
        fields: by their names.
        out: (height, width) of what comes out.
    """
    resize, crop = fields["resize"], fields["crop"]
    if isinstance(resize, int):
        size = {"shortest_edge": resize}
    else:
        size = dict(zip(("height", "width"), resize or out, strict=True))
    values = {
        "do_center_crop": crop is not None,
        "do_convert_rgb": fields["convert_rgb"],
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": resize is not None,
        "image_mean": list(fields["mean"]),
        "image_processor_type": CLASSES[fields["kind"]],
        "image_std": list(fields["std"]),
        "resample": fields["resample"],
        "rescale_factor": fields["rescale"],
        "size": size,
    }
    if crop is not None:
        values["crop_size"] = {"height": crop[0], "width": crop[1]}
    return dict(sorted(values.items()))


def from_published(values: Any, where: str) -> dict[str, Any]:
    """The fields of an `ImageProcessor` from a published file.

    Raises:
        BedstoneError: its class isn't known, a value doesn't fit, or it asks for padding.
    """
    if not isinstance(values, Mapping):
        raise BedstoneError(f"{where}: expected a mapping of settings, found {values!r:.60}.")
    kind = _kind(values, where)
    KEYS.check(values, where)
    size, crop, resample, mean, std = _USUAL[kind]
    said = {key: value for key, value in values.items() if value is not None}
    # A bare number means the shorter side to CLIP and SigLIP, a square to ViT and BLIP.
    square = bool(said.get("default_to_square", kind not in ("clip", "siglip")))
    crops = said.get("do_center_crop", crop is not None)
    size = said.get("size", size)
    try:
        fields = {
            "kind": kind,
            "resize": _resize(size, square, where) if said.get("do_resize", True) else None,
            "crop": _pair(said.get("crop_size", crop or size), where, "crop_size")
            if crops
            else None,
            "resample": said.get("resample", resample),
            "mean": _three(said.get("image_mean", mean)),
            "std": _three(said.get("image_std", std)),
            "rescale": float(said.get("rescale_factor", 1 / 255)),
            "convert_rgb": bool(said.get("do_convert_rgb", True)),
        }
    except (TypeError, ValueError) as error:
        raise BedstoneError(f"{where}: a value doesn't fit ({error}).") from error
    if not said.get("do_normalize", True):
        fields |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if not said.get("do_rescale", True):
        fields["rescale"] = 1.0
    return fields


def _kind(values: Mapping[str, Any], where: str) -> str:
    name = str(values.get("image_processor_type") or values.get("feature_extractor_type"))
    plain = name.replace("FeatureExtractor", "ImageProcessor")
    for ending in ("Pil", "Fast"):
        plain = plain.removesuffix(ending)
    for kind, known in CLASSES.items():
        if plain == known:
            return kind
    raise BedstoneError(
        f"{where}: image_processor_type is {name!r}{nearest(name, CLASSES.values())}."
    )


def _resize(size: Any, square: bool, where: str) -> int | tuple[int, int]:
    if isinstance(size, int) and not square:
        return size
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return size["shortest_edge"]
    return _pair(size, where, "size")


def _pair(size: Any, where: str, name: str) -> tuple[int, int]:
    """(height, width) of {"height": ..., "width": ...}, [height, width] or a number."""
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return size["height"], size["width"]
    if isinstance(size, list | tuple) and len(size) == 2:
        return size[0], size[1]
    if isinstance(size, int):
        return size, size
    raise BedstoneError(f"{where}: {name} is {json.dumps(size)}; expected a height and a width.")


def _three(value: Any) -> tuple[float, float, float]:
    values = [value] * 3 if isinstance(value, int | float) else value
    first, second, third = (float(item) for item in values)
    return first, second, third


FILE = "preprocessor_config.json"
WHOLE = "processor_config.json"  # version 5 writes it for tokenizer and pictures together
FILES = (FILE, WHOLE)

_LARGE = 4 * 1024**2  # pixels of a resized picture: beyond, only what the crop keeps is made


@dataclass(frozen=True)
class ImageProcessor:
    """The preprocessing of images: resize, crop, normalisation.

    Attributes:
        kind: whose published form it has: clip, vit, siglip or blip.
        resize: the shorter side's pixels; or (height, width), whatever the image's shape; or
            None, which leaves the image as it is.
        crop: (height, width) cut from the middle; None where `resize` says both already.
        resample: Pillow's number of a filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box,
            5 Hamming.
        mean, std: a channel each, of the values after `rescale`.
        rescale: what 8-bit values are multiplied by.
        convert_rgb: kept for the file; images are RGB here.
    """

    kind: str = "clip"
    resize: int | tuple[int, int] | None = 224
    crop: tuple[int, int] | None = (224, 224)
    resample: int = BICUBIC
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    rescale: float = 1 / 255
    convert_rgb: bool = True

    def __post_init__(self) -> None:
        if self.kind not in CLASSES:
            raise BedstoneError(f"processor.kind: {self.kind!r}{nearest(self.kind, CLASSES)}.")
        if self.crop is None and not isinstance(self.resize, tuple):
            raise BedstoneError(
                "processor: a shorter side alone, without a crop, leaves pictures of different "
                "shapes; give `resize` as (height, width) or add a `crop`."
            )
        sides = [*(self.crop or ())]
        sides += [self.resize] if isinstance(self.resize, int) else [*(self.resize or ())]
        if not all(isinstance(side, int) and 0 < side <= 16384 for side in sides):
            raise BedstoneError(
                f"processor: resize {self.resize!r} and crop {self.crop!r}; expected pixels from "
                "1 to 16384."
            )
        if self.resample not in range(6):
            raise BedstoneError(f"processor.resample: {self.resample!r}; expected 0 to 5.")
        if not (len(self.mean) == len(self.std) == 3 and all(self.std)):
            raise BedstoneError(
                f"processor: mean {self.mean} and std {self.std}; expected three numbers each, "
                "those of std not 0."
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the result."""
        if self.crop is not None:
            return self.crop
        assert isinstance(self.resize, tuple)
        return self.resize

    def fit(self, image: np.ndarray) -> np.ndarray:
        """Resizes and crops alone: (H, W, 3) uint8 to (h, w, 3) uint8.

        Raises:
            BedstoneError: the picture has another shape or type.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise BedstoneError(
                f"a picture of shape {image.shape} and type {image.dtype}; expected (H, W, 3) "
                "of uint8, as `data.images.decode.decode` gives."
            )
        height, width = image.shape[:2]
        target = self._resized(height, width)
        if self.crop is not None and target[0] * target[1] > _LARGE:
            return self._kept_part(image, target)
        if target != (height, width):
            resized = Image.fromarray(np.ascontiguousarray(image))
            image = np.asarray(resized.resize(target[::-1], self.resample))
        return image if self.crop is None else _centre(image, self.crop)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, h, w, 3) uint8 to (B, 3, h, w) fp32."""
        table = _table(self.rescale, self.mean, self.std).to(pixels.device)  # (3, 256)
        out = table.new_empty(len(pixels), 3, *pixels.shape[1:3])
        for channel in range(3):  # as exact as a division, in a third of its time
            places = pixels[..., channel].flatten().int()
            out[:, channel] = table[channel].index_select(0, places).view(out[:, 0].shape)
        return out

    def __call__(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Images (H, W, 3) uint8 of any sizes to (B, 3, h, w) fp32; raises as `fit` does."""
        height, width = self.size
        if not len(images):
            return torch.empty(0, 3, height, width)
        return self.normalise(torch.from_numpy(np.stack([self.fit(image) for image in images])))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing."""
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        short, long = sorted((height, width))
        longer = int(self.resize * long / short)
        return (longer, self.resize) if width <= height else (self.resize, longer)

    def _kept_part(self, image: np.ndarray, target: tuple[int, int]) -> np.ndarray:
        """The crop of a very long or large result, which is never made whole.

        A 1 x 65,535 image would have 3 billion pixels at 224.
        """
        assert self.crop is not None
        sides, box = [], []
        for out, kept, source in zip(target, self.crop, image.shape, strict=False):
            start = max((out - kept) // 2, 0)
            end = min(start + kept, out)
            sides.append(end - start)
            box.append((start * source / out, end * source / out))
        (top, bottom), (left, right) = box
        cut = Image.fromarray(np.ascontiguousarray(image))
        cut = cut.resize((sides[1], sides[0]), self.resample, (left, top, right, bottom))
        return _centre(np.asarray(cut), self.crop)

    @classmethod
    def read(cls, folder: str | Path) -> "ImageProcessor | None":
        """The processor of a published folder; None where it has none.

        Raises:
            BedstoneError: its file is broken, or asks for what isn't built.
        """
        for name in FILES:
            if kind_of(path := Path(folder) / name):
                values: Any = read_object(path)
                if name == WHOLE:
                    WHOLE_KEYS.check(values, path)
                    values = values.get("image_processor")
                    if values is None:  # of a tokenizer and sounds, say
                        continue
                try:
                    return cls(**from_published(values, str(path)))
                except BedstoneError as error:
                    text = str(error)
                    raise BedstoneError(
                        text if text.startswith(str(path)) else f"{path}: {text}"
                    ) from error
        return None

    def write(self, folder: str | Path) -> None:
        """Writes `preprocessor_config.json`, which transformers' `AutoImageProcessor` opens."""
        values = to_published(dataclasses.asdict(self), self.size)
        write_json(Path(folder) / FILE, values)


def clip_processor(size: int = 224) -> ImageProcessor:
    """CLIP's processor: shorter side to `size`, centre crop, OpenAI's mean and deviation."""
    return ImageProcessor("clip", size, (size, size))


def vit_processor(size: int = 224) -> ImageProcessor:
    """ViT's processor: resized to a square, bilinear, values from -1 to 1."""
    return ImageProcessor("vit", (size, size), None, BILINEAR, HALF, HALF)


def siglip_processor(size: int = 224) -> ImageProcessor:
    """SigLIP's processor: resized to a square, bicubic, values from -1 to 1."""
    return ImageProcessor("siglip", (size, size), None, BICUBIC, HALF, HALF)


def blip_processor(size: int = 384) -> ImageProcessor:
    """BLIP's processor: resized to a square, bicubic, OpenAI's mean and deviation."""
    return ImageProcessor("blip", (size, size), None)


def plain_processor(
    size: int | tuple[int, int],
    mean: tuple[float, float, float] = HALF,
    std: tuple[float, float, float] = HALF,
) -> ImageProcessor:
    """A processor that resizes to (height, width), bicubic, with the mean and deviation given."""
    sides = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    return ImageProcessor("vit", sides, None, BICUBIC, mean, std)


def _centre(image: np.ndarray, crop: tuple[int, int]) -> np.ndarray:
    """The middle (h, w) of an image, black where it is smaller."""
    take, put, whole = [], [], True
    for side, kept in zip(image.shape, crop, strict=False):
        start, offset = max((side - kept) // 2, 0), max((kept - side + 1) // 2, 0)
        take.append(slice(start, start + kept))
        put.append(slice(offset, offset + side))
        whole &= side >= kept
    if whole:
        return image[take[0], take[1]]
    canvas = np.zeros((*crop, 3), np.uint8)
    canvas[put[0], put[1]] = image[take[0], take[1]]
    return canvas


@lru_cache(maxsize=16)
def _table(rescale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """(3, 256): the normalised value of each 8-bit value, rounded where transformers rounds."""
    values = (np.arange(256, dtype=np.float64) * rescale).astype(np.float32)
    centre, spread = np.array(mean, np.float32)[:, None], np.array(std, np.float32)[:, None]
    return torch.from_numpy((values - centre) / spread)
