"""`/v1/images/generations`, `/v1/images/edits` and `/v1/images/variations`: what draws images.

An edit goes by the task image-to-image, a variation by image-variation where the model is an
unCLIP, else by image-to-image without words. Nothing is kept at an address: images are given back
as base64, each with its seed, by which it is drawn again.
"""

import asyncio
import io
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from bedstone.errors import BedstoneError
from bedstone.reading import shown
from bedstone.serve.models import Served, ServeSettings
from bedstone.serve.predictions import SIDE, Budget, called, encoded
from bedstone.serve.wire import ApiError, Context, bytes_of
from bedstone.settings import Settings, number, one_of, optional, share, whole
from bedstone.tasks.pipeline import task_class

PIXELS = 100_000  # that count as one token of a queue, about
PROMPT = 4000  # characters

BY_CONDITION = {
    "text": "text-to-image", "class": "class-to-image", "none": "unconditional-image-generation"
}  # fmt: skip


@dataclass(frozen=True)
class ImageRequest(Settings):
    """Fields of a request for images.

    `seed`, `steps`, `guidance` and `negative_prompt` are none of OpenAI's. Of a field that chooses
    among ways to draw that aren't here, only the values that say what is done are taken; `user`
    changes nothing.
    """

    model: str = ""
    prompt: Any = None
    n: int = whole(1, 10, default=1)
    size: str | None = None
    response_format: str = one_of("b64_json", "url", default="b64_json")
    output_format: str = one_of("png", "jpeg", "webp", default="png")
    seed: int | None = optional(whole(0, 2**53))
    steps: int | None = optional(whole(1, 1000))
    guidance: float | None = optional(number(0, 100))
    negative_prompt: str | None = None
    output_compression: int | None = optional(whole(0, 100))
    quality: str = one_of("auto", "standard", default="auto")
    background: str = one_of("auto", "opaque", default="auto")
    moderation: str = one_of("auto", "low", default="auto")
    style: Any = None
    user: str = ""
    partial_images: int | None = optional(whole(0, 0))
    stream: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.response_format == "url":
            raise BedstoneError(
                "response_format: no images are kept at an address; expected b64_json."
            )
        if self.stream:
            raise BedstoneError("stream: images come whole. Leave it out.")
        if self.style is not None:
            raise BedstoneError("style: isn't a field of these models. Say it in the prompt.")
        if self.output_compression not in (None, 100) and self.output_format == "png":
            raise BedstoneError("output_compression: is of jpeg and webp; a png loses nothing.")
        prompt = self.prompt
        fits = prompt is None or type(prompt) is int
        if not fits and not (isinstance(prompt, str) and len(prompt) <= PROMPT):
            raise BedstoneError(f"prompt: expected a text of up to {PROMPT:,} characters.")

    def shape(self) -> list[int]:
        """Height and width; none where the model's own is wanted."""
        if self.size in (None, "auto"):
            return []
        wide, cross, high = str(self.size).partition("x")
        if not (cross and wide.isdecimal() and high.isdecimal() and len(self.size or "") < 12):
            raise ApiError(400, f"size: {shown(self.size)}; expected such as 256x256.", "size")
        if not (0 < int(wide) <= SIDE and 0 < int(high) <= SIDE):
            raise ApiError(400, f"size: expected sides of up to {SIDE:,} pixels.", "size")
        return [int(high), int(wide)]


@dataclass(frozen=True)
class EditRequest(ImageRequest):
    """Fields of an edit: one image, as a data URL or a file of the form.

    `strength`, 0 to 1, is none of OpenAI's: 1 keeps nearly nothing of the image. Transparent
    pixels of a mask are drawn anew; of a mask without transparency, white ones.
    """

    image: Any = None
    images: Any = None
    mask: Any = None
    strength: float | None = optional(share())
    input_fidelity: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input_fidelity is not None:
            raise BedstoneError(
                "input_fidelity: isn't a field of these models. Give strength, from 0 to 1."
            )

    def given(self) -> Any:
        """The image.

        Raises:
            ApiError: there is none, or several.
        """
        found = self.image if self.images is None else self.images
        several = found if isinstance(found, list) else [found]
        if len(several) != 1 or several[0] is None or None not in (self.image, self.images):
            raise ApiError(400, "image: expected one image.", "image")
        (one,) = several
        return one.get("image_url") if isinstance(one, dict) else one


async def draw(
    served: Served, request: ImageRequest, context: Context, limits: ServeSettings
) -> dict[str, Any]:
    """Images of a prompt.

    Raises:
        ApiError: the model draws none, or what is given isn't taken.
    """
    task = BY_CONDITION[_signal(served).condition]
    given = None if task.startswith("unconditional") else request.prompt
    if task == BY_CONDITION["text"] and not (isinstance(given, str) and given.strip()):
        raise ApiError(400, "prompt: expected what the image shall show.", "prompt")
    return await _drawn(served, request, task, given, {}, context)


async def edit(
    served: Served, request: EditRequest, context: Context, limits: ServeSettings
) -> dict[str, Any]:
    """Images drawn from one, by a prompt and a mask.

    Raises:
        ApiError: as `draw`; or there is no image, or no prompt.
    """
    signal = _signal(served)
    if request.prompt is None and signal.condition != "none":
        raise ApiError(400, "prompt: expected what the image shall show.", "prompt")
    budget = Budget(int(limits.max_pixels * 1e6))
    image = await asyncio.to_thread(budget.image, request.given(), "image")
    options: dict[str, Any] = {"prompt": request.prompt, "strength": request.strength}
    if request.mask is not None:
        options["mask"] = await asyncio.to_thread(_mask, request.mask, budget)
    return await _drawn(served, request, "image-to-image", image, options, context)


async def vary(
    served: Served, request: EditRequest, context: Context, limits: ServeSettings
) -> dict[str, Any]:
    """Images like one.

    Raises:
        ApiError: as `draw`; or there is no image.
    """
    _signal(served)
    for name in ("prompt", "mask"):
        if getattr(request, name) is not None:
            raise ApiError(400, f"{name}: a variation has none. Leave it out.", name)
    budget = Budget(int(limits.max_pixels * 1e6))
    image = await asyncio.to_thread(budget.image, request.given(), "image")
    own = task_class("image-variation").fits(served.model)
    task = "image-variation" if own else "image-to-image"
    return await _drawn(served, request, task, image, {"strength": request.strength}, context)


def _signal(served: Served) -> Any:
    """What a model draws. Raises ApiError where it is no image."""
    signal = getattr(served.model, "signal", None)
    if signal is None or signal.kind != "image":
        raise ApiError(
            400, f"The model {served.name!r} draws no images.", "model", "unsupported_model"
        )
    return signal


def _mask(given: Any, budget: Budget) -> np.ndarray:
    """A mask (H, W, 3) uint8: white is drawn anew."""
    pixels = budget.image(given, "mask")
    with Image.open(io.BytesIO(bytes_of(given, "mask"))) as image:
        if "A" not in image.getbands() and "transparency" not in image.info:
            return pixels
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
    if alpha.shape != pixels.shape[:2]:
        raise ApiError(400, "mask: is turned; give it upright.", "mask")
    return np.repeat(np.where(alpha < 128, 255, 0).astype(np.uint8)[..., None], 3, -1)


async def _drawn(
    served: Served,
    request: ImageRequest,
    task: str,
    given: Any,
    more: Mapping[str, Any],
    context: Context,
) -> dict[str, Any]:
    """Images of an input, each with its seed."""
    first = int(np.random.default_rng().integers(2**31)) if request.seed is None else request.seed
    wanted = {
        "num_images_per_prompt": request.n, "seed": first, "size": request.shape(),
        "num_inference_steps": request.steps, "guidance_scale": request.guidance,
        "negative_prompt": request.negative_prompt, **more,
    }  # fmt: skip
    options = {
        name: value
        for name, value in wanted.items()
        if value is not None and not (isinstance(value, list) and not value)
    }
    sides: Any = options.get("size") or _signal(served).shape[1:]
    pixels = math.prod(sides) * request.n
    found = await called(served, task, [given], options, context, 1 + pixels // PIXELS)
    drawn = found[0] if isinstance(found[0], list) else [found[0]]
    packed = None if request.output_format == "png" else request.output_compression
    data = await asyncio.to_thread(
        lambda: [
            {
                "b64_json": encoded(each["image"], request.output_format, packed),
                "seed": each["seed"],
            }
            for each in drawn
        ]
    )
    created = int(time.time())
    return {"created": created, "data": data, "output_format": request.output_format}
