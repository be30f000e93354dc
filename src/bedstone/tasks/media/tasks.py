"""Media generation tasks: text-to-X, class-to-X, unconditional-X-generation, image-to-image.

Of one image asked for, a dictionary; of several (`num_images_per_prompt`), a list of them. Each
has the `prompt` and the `seed`, and what was drawn: `image` (Pillow's), `audio` (L,) with
`sampling_rate`, as version 4 of transformers gives it, `video` (F, H, W, 3), `volume` (D, H, W);
or, where `out` names a folder, its `file` there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bedstone.checkpoints.model import Model
from bedstone.checkpoints.pipeline import MediaPipeline
from bedstone.checkpoints.unclip import UnclipPipeline, UnclipSampling
from bedstone.data.signals.signals import TASKS
from bedstone.diffusion.sample import SamplingStep
from bedstone.errors import BedstoneError
from bedstone.generation.codes import CodeSampling
from bedstone.outputs import next_number
from bedstone.settings import Settings, optional, whole
from bedstone.tasks.images.engine import is_image
from bedstone.tasks.media.dalle import DalleGenerator
from bedstone.tasks.media.files import as_result, file_name, to_image, write_generated
from bedstone.tasks.media.generator import Generated, conditions, rows_of
from bedstone.tasks.media.unclip import open_generator
from bedstone.tasks.task import Task, shown

ASKS = {"none": "nothing", "class": "a class", "text": "words"}
# Names of diffusers for our settings.
PLAIN = {"num_inference_steps": "steps", "guidance_scale": "guidance"}
SETTINGS = tuple(
    dict.fromkeys(field.name for kind in (UnclipSampling, CodeSampling) for field in fields(kind))
)


@dataclass(frozen=True)
class SampleOptions(Settings):
    """Options of media generation; settings that aren't given are the model's own.

    Attributes:
        num_images_per_prompt: how many of each prompt; the second has `seed` + 1.
        seed: of the first; a prompt gives the same each time, whatever stands beside it.
        negative_prompt: what not to draw.
        num_inference_steps, guidance_scale: of the sampler, as diffusers names them.
        method, spacing, interval, rescale: of diffusion, as in a recipe's `sampling`.
        temperature, top_k, top_p, noise: of a DALL-E, likewise.
        candidates: of a DALL-E: images that are drawn for each one, of which its CLIP keeps the
            best; their scores are returned.
        prior: of an unCLIP: its own, diffusion or autoregressive; or none for the words' own
            embedding.
        prior_steps, prior_guidance, prior_samples: of its prior, as in a recipe's `sampling`.
        upsample: of an unCLIP: False leaves images as they are where it would enlarge them.
        upsample_steps, upsample_noise: of what enlarges them, likewise.
        size: (height, width) and such, where it isn't to be what was learnt.
        strength: of drawing from an image, 0 to 1, which keeps nearly nothing of it.
        mask: an image of that one's size: white is drawn anew.
        prompt: what to make of an image.
        return_steps: how many sampling steps to give as `steps`, the last among them: images of
            the clean signal that was predicted in each.
        out: a folder to write files into.
        batch_size: taken and of no effect on what is drawn.
    """

    num_images_per_prompt: int = whole(1, default=1)
    seed: int = whole(0, default=0)
    negative_prompt: Any = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    method: str | None = None
    spacing: str | None = None
    interval: Any = None
    rescale: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    noise: float | None = None
    candidates: int | None = None
    prior: str | None = None
    prior_steps: int | None = None
    prior_guidance: float | None = None
    prior_samples: int | None = None
    upsample: bool | None = None
    upsample_steps: int | None = None
    upsample_noise: float | None = None
    size: Any = ()
    strength: float | None = None
    mask: Any = None
    prompt: Any = None
    return_steps: int = whole(0, default=0)
    out: Any = None
    batch_size: int | None = optional(whole(1))

    def settings(self) -> dict[str, Any]:
        """What is given of `SamplingConfig` or `CodeSampling`."""
        said = {PLAIN.get(field.name, field.name): field.name for field in fields(self)}
        found = {name: getattr(self, said[name]) for name in SETTINGS}
        return {name: value for name, value in found.items() if value is not None}


class KeptSteps:
    """Some of the sampling steps, evenly chosen: the clean signals predicted in them.

    Args:
        most: how many of each row, the last among them.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.rows: dict[int, list[Tensor]] = {}  # of each row (C, *S), latents where it has any

    def see(self, now: SamplingStep) -> None:
        """Keeps a step, if it is one of those."""
        from bedstone.report.sheets import chosen_frames  # which loads fonts and templates

        chosen = chosen_frames(now.steps, self.most) if self.most > 1 else [now.steps - 1]
        if now.step - 1 in chosen:
            for row, clean in enumerate(now.clean, now.first):
                self.rows.setdefault(row, []).append(clean.detach().float().cpu())


class MediaTask(Task):
    """A task over what draws."""

    settings: ClassVar[type[Any]] = SampleOptions
    reads: ClassVar[str] = "prompts"
    fields: ClassVar[tuple[str, ...]] = ("image",)
    metric: ClassVar[str] = "judges"
    condition: ClassVar[str]
    kind: ClassVar[str]

    def open(self, precision: str) -> None:
        self.drawer = open_generator(self.model, precision)

    @classmethod
    def fits(cls, model: Model) -> bool:
        if not isinstance(model, MediaPipeline):
            return False
        return (model.signal.condition, model.signal.kind) == (cls.condition, cls.kind)

    def __call__(self, inputs: Any = None, **options: Any) -> Any:
        return super().__call__(inputs, **options)

    def is_one(self, inputs: Any) -> bool:
        return inputs is None or isinstance(inputs, str | int)

    def prepare(self, value: Any, options: SampleOptions) -> dict[str, Any]:
        """The arguments of `MediaGenerator.draw`."""
        if options.prompt is not None or options.mask is not None or options.strength is not None:
            name = next(
                n for n in ("prompt", "mask", "strength") if getattr(options, n) is not None
            )
            raise BedstoneError(f"{name}: belongs to image-to-image. Leave it out.")
        if value is not None and not isinstance(value, str | int):
            raise BedstoneError(f"the prompt is {shown(value)}; expected {ASKS[self.condition]}.")
        conditions(self.drawer.model, [value])  # a prompt that it can't read is named now
        return {"prompt": value}

    def results(self, rows: Sequence[dict[str, Any]], options: SampleOptions) -> Iterator[Any]:
        for row in rows:  # one by one, so that each is there as soon as it is drawn
            inputs, kept = dict(row), None
            if options.return_steps:
                kept = self._kept_steps(options)
                inputs["progress"] = kept.see
            prompts, seeds = rows_of(
                [inputs.pop("prompt")], options.num_images_per_prompt, options.seed
            )
            drawn = self.draw(inputs, prompts, seeds, options)
            found = [self._result(drawn, number, options) for number in range(len(seeds))]
            for number, each in enumerate(found):
                if kept is not None:
                    model: Any = self.drawer.model
                    steps = model.decode(torch.stack(kept.rows[number]), 1)
                    each["steps"] = [to_image(step) for step in steps]
            yield found[0] if options.num_images_per_prompt == 1 else found

    def draw(
        self, inputs: dict[str, Any], prompts: list[Any], seeds: list[int], options: SampleOptions
    ) -> Generated:
        """What one input asks for, once for each seed."""
        return self.drawer.draw(
            prompts,
            seeds,
            negative=options.negative_prompt,
            size=options.size or (),
            **inputs,
            **options.settings(),
        )

    def _kept_steps(self, options: SampleOptions) -> KeptSteps:
        """Raises BedstoneError where there is nothing to keep."""
        why = ""
        if isinstance(self.drawer, DalleGenerator):
            why = "shows an image as noise is taken from it, and a DALL-E writes codes"
        elif self.drawer.model.signal.kind != "image":
            why = f"gives images, and the model draws {self.drawer.model.signal.kind}"
        elif options.out is not None:
            why = "gives images beside the one that is drawn, which out writes into a file"
        if why:
            raise BedstoneError(f"return_steps: {why}. Leave it out.")
        return KeptSteps(options.return_steps)

    def _result(self, drawn: Generated, number: int, options: SampleOptions) -> dict[str, Any]:
        recipe, signal = drawn.recipes[number], drawn.signals[number]
        shown_of = ("prompt", "seed", "scores", "candidate")
        result = {name: recipe[name] for name in shown_of if name in recipe}
        form = self.drawer.model.signal
        if options.out is None:
            return {**result, **as_result(signal, form)}
        recipe = {"task": self.name, **recipe}
        folder = Path(options.out)
        path = folder / file_name(next_number(folder), recipe, form.kind)
        return {**result, "file": str(write_generated(signal, form, path, recipe))}


class ImageToImage(MediaTask):
    """An image -> one drawn from it, by `prompt`, `strength` and `mask`; or
    `{"image": ..., "prompt": ..., "mask": ...}`."""

    name = "image-to-image"
    fields = ()
    metric = ""
    asks = "a model that draws pictures"

    @classmethod
    def fits(cls, model: Model) -> bool:
        return isinstance(model, MediaPipeline) and model.signal.kind == "image"

    def is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, Mapping) or is_image(inputs)

    def prepare(self, value: Any, options: SampleOptions) -> dict[str, Any]:
        inputs: dict[str, Any] = {"prompt": options.prompt, "mask": options.mask}
        if isinstance(value, Mapping) and "image" in value:
            more = set(value) - {"image", "prompt", "mask"}
            if more:
                raise BedstoneError(
                    f"the input has {', '.join(map(repr, sorted(more)))}; expected image, prompt "
                    "and mask."
                )
            inputs |= value
        else:
            inputs["image"] = value
        if not is_image(inputs["image"]):
            raise BedstoneError(f"the image is {shown(inputs['image'])}; expected a picture.")
        return {**inputs, "strength": options.strength}


class ImageVariation(MediaTask):
    """An image -> one that shows the like, by an unCLIP: with the same embedding of its CLIP."""

    name = "image-variation"
    fields = ()
    metric = ""
    asks = "an unCLIP"

    @classmethod
    def fits(cls, model: Model) -> bool:
        return isinstance(model, UnclipPipeline)

    def is_one(self, inputs: Any) -> bool:
        return is_image(inputs)

    def prepare(self, value: Any, options: SampleOptions) -> dict[str, Any]:
        for name in ("prompt", "mask", "strength", "negative_prompt", "size"):
            if getattr(options, name) not in (None, ()):
                raise BedstoneError(f"{name}: a variation is drawn of the image alone. Leave it.")
        if not is_image(value):
            raise BedstoneError(f"the image is {shown(value)}; expected a picture.")
        return {"image": value, "prompt": None}

    def draw(
        self, inputs: dict[str, Any], prompts: list[Any], seeds: list[int], options: SampleOptions
    ) -> Generated:
        drawer: Any = self.drawer
        found: Generated = drawer.variations(
            inputs["image"], seeds, progress=inputs.get("progress"), **options.settings()
        )
        return found


def _task(task: str) -> type[MediaTask]:
    condition, kind = TASKS[task]
    given = {"none": "None", "class": "A class, by its name or number,", "text": "Words"}[condition]
    body = {
        "__doc__": f"{given} -> {kind} drawn from it.",
        "__module__": __name__,
        "name": task,
        "asks": f"a model that draws {kind} from {ASKS[condition]}",
        "condition": condition,
        "kind": kind,
    }
    return type(task.title().replace("-", ""), (MediaTask,), body)


TextToImage = _task("text-to-image")
ClassToImage = _task("class-to-image")
UnconditionalImageGeneration = _task("unconditional-image-generation")
TextToAudio = _task("text-to-audio")
ClassToAudio = _task("class-to-audio")
UnconditionalAudioGeneration = _task("unconditional-audio-generation")
TextToVideo = _task("text-to-video")
ClassToVideo = _task("class-to-video")
UnconditionalVideoGeneration = _task("unconditional-video-generation")
TextToVolume = _task("text-to-volume")
ClassToVolume = _task("class-to-volume")
UnconditionalVolumeGeneration = _task("unconditional-volume-generation")
