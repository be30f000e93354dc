"""`preprocessor_config.json` of transformers' picture processors, to and from plain fields.

What a file leaves out is as the class that it names has it. Files of all ages are read: `size` and
`crop_size` may be numbers, the class may be a feature extractor, a fast or a Pillow one.
"""

import json
from collections.abc import Mapping
from typing import Any

from bedstone.errors import BedstoneError, nearest

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


def to_published(fields: Mapping[str, Any], out: tuple[int, int]) -> dict[str, Any]:
    """What `preprocessor_config.json` says of an `ImageProcessor`'s fields.

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
    """Fields of an `ImageProcessor` from what a published file holds.

    Raises:
        BedstoneError: its class isn't known, a value doesn't fit, or it asks for padding.
    """
    if not isinstance(values, Mapping):
        raise BedstoneError(f"{where}: expected a mapping of settings, found {values!r:.60}.")
    kind = _kind(values, where)
    size, crop, resample, mean, std = _USUAL[kind]
    said = {key: value for key, value in values.items() if value is not None}
    if said.get("do_pad"):
        raise BedstoneError(f"{where}: do_pad is true; padding isn't built. Set it to false.")
    crops = said.get("do_center_crop", crop is not None)
    size = said.get("size", size)
    try:
        fields = {
            "kind": kind,
            "resize": _resize(size, kind, where) if said.get("do_resize", True) else None,
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


def _resize(size: Any, kind: str, where: str) -> int | tuple[int, int]:
    # A bare number means the shorter side to CLIP and SigLIP, a square to ViT and BLIP.
    if isinstance(size, int) and kind in ("clip", "siglip"):
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
