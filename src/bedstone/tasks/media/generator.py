"""Generating images, sounds, videos and volumes: from prompts, from an image, between two, series.

Each row has a seed, and depends on nothing beside it. Signals come back decoded, about -1 to 1.

Shapes: B rows, C channels; *S the sizes of a signal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.checkpoints.model import Model
from bedstone.checkpoints.pipeline import DiffusionPipeline, MediaPipeline, check_parts
from bedstone.data.bytes import check_characters
from bedstone.data.signals.signals import Condition, class_condition, joined
from bedstone.diffusion.process import interpolate
from bedstone.diffusion.sample import (
    BATCH,
    Progress,
    SampleControls,
    SampleInputs,
    SamplingConfig,
    generators_of,
    invert,
)
from bedstone.diffusion.samplers import noise_like, slerp
from bedstone.diffusion.schedulers import Published, published
from bedstone.diffusion.times import check_steps
from bedstone.errors import BedstoneError, closest
from bedstone.models.dit.config import divided
from bedstone.models.dit.network import Conditioned
from bedstone.nn.fast.pick import prepared, settled
from bedstone.runtime import pick_precision
from bedstone.settings import check_whole, from_mapping
from bedstone.tasks.media.files import image_signal, mask_signal
from bedstone.tasks.task import shown


class GenerationEngine:
    """A pipeline with its device and precision.

    Raises:
        BedstoneError: the model draws nothing, or its parts don't fit one another.
    """

    def __init__(self, model: Model, precision: str = "fp32") -> None:
        if not isinstance(model, DiffusionPipeline):
            raise BedstoneError(
                f"{model.path or 'this model'}: is a {model.config.layout}, which draws nothing. "
                "Give the folder that `bedstone pretrain` reports for a recipe that draws, or a "
                "published DiT pipeline."
            )
        check_parts(model)
        self.model = model
        self.device = next(model.network.denoiser.parameters()).device
        self.precision = settled(model.network, pick_precision(precision, self.device))
        self.network: Any = prepared(model.network, self.precision)
        if model.autoencoder is not None:
            model.autoencoder.network.to(self.device)

    def sample(
        self,
        shape: tuple[int, ...],
        sampling: SamplingConfig,
        seeds: Sequence[int],
        condition: SampleInputs,
        null: SampleInputs,
        controls: SampleControls,
        progress: Progress | None,
        network: Any = None,
    ) -> Tensor:
        """Signals (B, C, *S) of all seeds.

        They are decoded one by one: an autoencoder's maps are large, and small batches cost it
        nothing.
        """
        return self.model.sample(
            seeds,
            condition=condition,
            null=null,
            sampling=sampling,
            shape=shape,
            controls=controls,
            network=network or self.network,
            autocast=self.precision.autocast,
            batch=BATCH,
            decoded=1,
            progress=progress,
        )

    def signal(self, image: Any, shape: tuple[int, ...]) -> Tensor:
        """The start of image-to-image, (1, C, *S)."""
        if isinstance(image, Tensor):
            if tuple(image.shape) != shape:
                raise BedstoneError(
                    f"image: a signal of {tuple(image.shape)} was given; expected {shape}, "
                    "channels first."
                )
            if not image.isfinite().all():
                raise BedstoneError("image: holds values that aren't finite. Mend it.")
            return image.detach().float().cpu()[None]
        if self.model.signal.kind != "image":
            raise BedstoneError(
                f"image: {shown(image)} was given; the model draws {self.model.signal.kind}, and "
                "begins from such a signal as a tensor, not from a picture."
            )
        return image_signal(image, shape)

    def mask(self, mask: Any, image: Any, shape: tuple[int, ...]) -> Tensor:
        """The inpainting mask, (1, 1, *S), 1 where the signal is generated anew."""
        if not isinstance(mask, Tensor):
            if isinstance(image, Tensor):
                raise BedstoneError("mask: is a picture, and the image is none; give a tensor.")
            return mask_signal(mask, image, shape)
        if tuple(mask.shape) != (1, *shape[1:]):
            raise BedstoneError(
                f"mask: its shape is {tuple(mask.shape)}; expected {(1, *shape[1:])}, the image's "
                "size, 1 where something is to be drawn."
            )
        return mask.detach().float().cpu()[None]

    def shrunk(self, mask: Tensor, drawn: tuple[int, ...]) -> Tensor:
        """The mask at the latents' size: a latent is masked if any of its pixels is."""
        if tuple(mask.shape[2:]) == drawn[1:]:
            return mask
        return torch.nn.functional.adaptive_max_pool2d(mask, drawn[1:])

    @torch.no_grad()
    def encoded(self, signals: Tensor) -> Tensor:
        if self.model.autoencoder is None:
            return signals
        latents: Tensor = self.model.autoencoder.network.latents(signals.to(self.device))
        return latents

    def noise(self, seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
        """(B, *shape): the initial noise of these seeds."""
        return noise_like(torch.empty(len(seeds), *shape), generators_of(seeds))

    def shown(self, x: Tensor) -> Tensor:
        """Signals of what a progress callback sees, noise among them: (B, C, *S), about -1 to 1."""
        spread = x.flatten(1).std(1).clamp_min(1).reshape(-1, *(1,) * (x.dim() - 1))
        return self.model.decode(x / spread, 1)


# Interpolation of conditions: text states of two texts, predictions of two classes.
#
# Shapes: B rows, C channels, M memories of width Dm; *S the sizes of a signal.


class MixedClasses(nn.Module):
    """A denoiser of two classes, whose predictions it mixes."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(
        self, x: Tensor, t: Tensor, *, classes: Tensor, others: Tensor, shares: Tensor
    ) -> Tensor:
        """(B, C or more, *S); `shares` (B,) are those of `others`."""
        one = self.denoiser(x, t, classes=classes)
        return torch.lerp(
            one, self.denoiser(x, t, classes=others), interpolate(shares, one).to(one)
        )


@torch.no_grad()
def interpolated(
    network: Conditioned, first: Condition, last: Condition, null: Condition, shares: Tensor
) -> tuple[Conditioned, Mapping[str, Tensor], Mapping[str, Tensor]]:
    """The network to sample with, and its conditions: rows from the first condition to the last,
    and a row of `null`.

    Args:
        first, last, null: of one row each.
        shares: (B,) of the last, 0 to 1.
    """
    device = next(network.denoiser.parameters()).device
    rows, shares = len(shares), shares.to(device)
    if first.classes is not None:
        assert last.classes is not None and null.classes is not None
        one, other, none = (each.classes.to(device) for each in (first, last, null))  # type: ignore[union-attr]
        mixed = {"classes": one.expand(rows), "others": other.expand(rows), "shares": shares}
        unguided = {"classes": none, "others": none, "shares": shares[:1]}
        return Conditioned(MixedClasses(network.denoiser)).eval(), mixed, unguided
    found = network.read_condition(**joined((first, last, null)).to(device).arguments())
    one, other, none = found["memory"]
    keep, beside, nothing = found["memory_keep"]
    # Where only one text has a word, that word stays: filling says nothing.
    part = shares[:, None].to(one) * (keep & beside) + (beside & ~keep)  # (B, M)
    memory = torch.lerp(
        one.expand(rows, *one.shape), other.expand(rows, *one.shape), part[..., None]
    )
    mixed = {"memory": memory, "memory_keep": (keep | beside).expand(rows, -1)}
    # At the ends it is the text alone.
    mixed["memory_keep"] = torch.where((shares <= 0)[:, None], keep, mixed["memory_keep"])
    mixed["memory_keep"] = torch.where((shares >= 1)[:, None], beside, mixed["memory_keep"])
    return network, mixed, {"memory": none[None], "memory_keep": nothing[None]}


# Prompts, sizes and settings of a call as conditions, shapes and sampling settings.
#
# Shapes: B rows, C channels; *S the sizes of a signal.

Prompt = str | int | None  # words, a class by its name or number, or nothing
REPORTED = 12  # classes that an error names


def conditions(
    model: MediaPipeline, prompts: Sequence[Prompt], negative: Prompt = None
) -> tuple[Condition | None, Condition | None]:
    """The condition of each prompt, and one row of what not to draw: nothing, or `negative`.

    Raises:
        BedstoneError: there is no prompt; a class is unknown; a text is none, or too long; the
            model takes no condition.
    """
    if not len(prompts):
        raise BedstoneError(f"prompt: none was given; the model draws {model.inputs()}.")
    condition = model.signal.condition
    if condition == "text":
        read = model.prompts
        texts = [_text(prompt) for prompt in (*prompts, negative)]
        return read.condition(texts[:-1]), read.condition(texts[-1:])
    if condition == "class":
        numbers = [class_number(model, prompt) for prompt in (*prompts, negative)]
        count = model.config.classes
        return class_condition(numbers[:-1], count), class_condition(numbers[-1:], count)
    for prompt in (*prompts, negative):
        if prompt not in (None, ""):
            raise BedstoneError(
                f"prompt: {shown(prompt)} was given; the model draws {model.inputs()}. Leave it "
                "out."
            )
    return None, None


def class_number(model: MediaPipeline, wanted: Prompt) -> int:
    """A class by its name, a part of its name between commas, or its number; the number of no class
    for None.

    Raises:
        BedstoneError: there is none of that name or number.
    """
    names, count = model.signal.names, int(model.config.classes)
    if wanted is None:
        return count
    if isinstance(wanted, str):
        known: dict[str, int] = {}
        for number, name in reversed(list(enumerate(names))):
            known |= {part.strip().casefold(): number for part in name.split(",")}
        known |= {name.strip().casefold(): number for number, name in enumerate(names)}
        word = wanted.strip()
        if word.casefold() in known:
            return known[word.casefold()]
        if not word.isdecimal():
            near = closest(word.casefold(), known)
            raise BedstoneError(f"class: {wanted[:60]!r} is unknown{near}. {_classes(names)}")
        wanted = int(word)
    if isinstance(wanted, bool) or not isinstance(wanted, int):
        raise BedstoneError(f"class: {shown(wanted)} was given; expected a name or a number.")
    if not 0 <= wanted < count:
        raise BedstoneError(
            f"class: {wanted} is out of range; the model knows {count} classes, 0 to {count - 1}. "
            f"{_classes(names)}"
        )
    return wanted


def settings(
    model: DiffusionPipeline, given: Mapping[str, Any]
) -> tuple[SamplingConfig, Published | None]:
    """The sampling settings: the model's own, overridden by those given; None is not given.

    Raises:
        BedstoneError: a setting that there is not, or a value that can't be.
    """
    given = {name: value for name, value in given.items() if value is not None}
    base = asdict(model.sampling)
    alone = model.signal.condition == "none"
    if alone and given.get("guidance", 1.0) != 1.0:
        raise BedstoneError(
            f"guidance: {given['guidance']} was given; the model draws {model.inputs()}, so there "
            "is nothing to be guided to. Leave it out."
        )
    base |= {"guidance": 1.0} if alone else {}
    sampling = from_mapping(type(model.sampling), {**base, **given}, "sampling")
    check_steps(model.process, sampling.steps)
    own = model.scheduler and not given.keys() & {"method", "spacing"}
    return sampling, published(model.scheduler) if own else None


def shapes(model: DiffusionPipeline, size: Sequence[int] = ()) -> tuple[tuple[int, ...], ...]:
    """(C, *S) of a signal, and of what the denoiser samples: signals or latents.

    Args:
        size: of the signal, where it isn't to be that which was learnt.

    Raises:
        BedstoneError: a size that the autoencoder or the patches don't divide.
    """
    channels, *usual = model.signal.shape
    if not size:
        return (channels, *usual), (model.config.channels, *model.config.size)
    sides = list(size) if isinstance(size, Sequence) and not isinstance(size, str) else []
    if len(sides) != len(usual) or not all(type(side) is int and side > 0 for side in sides):
        raise BedstoneError(
            f"size: {sides or repr(size)} was given; expected {len(usual)} whole numbers above 0, "
            f"as the model has {usual}."
        )
    if model.autoencoder is None:
        divided(tuple(size), model.config.patches, "size")
        return (channels, *size), (channels, *size)
    shrink = model.autoencoder.config.shrink
    if any(side % shrink for side in size):
        raise BedstoneError(
            f"size: {list(size)} was given; the autoencoder makes one place of {shrink} pixels a "
            f"side, so expected multiples of {shrink}."
        )
    places = tuple(side // shrink for side in size)
    if any(side % one for side, one in zip(places, model.config.patches, strict=True)):
        wanted = [shrink * one for one in model.config.patches]
        raise BedstoneError(
            f"size: {list(size)} was given; latents and patches divide it only if its sides are "
            f"multiples of {wanted}."
        )
    return (channels, *size), (model.config.channels, *places)


def _text(prompt: Prompt) -> str:
    if prompt is None:
        return ""
    if not isinstance(prompt, str):
        raise BedstoneError(f"prompt: {shown(prompt)} was given; expected words.")
    check_characters(prompt, "prompt")
    return prompt


def _classes(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > REPORTED else ""
    return f"These are {', '.join(names[:REPORTED])}{more}." if names else ""


STRENGTH = 0.6  # of drawing from an image, where nothing is said
SEEDS = 2**64  # how many torch knows


@dataclass(frozen=True)
class Generated:
    """Generated signals and how each was made.

    Attributes:
        signals: (B, C, *S) fp32, about -1 to 1, on the CPU.
        recipes: how each was made, as JSON has it.
        kind: image, audio, video or volume.
    """

    signals: Tensor
    recipes: list[dict[str, Any]]
    kind: str


class MediaGenerator:
    """A model that generates signals: `draw`, `variations`, `between`, `story`.

    What its methods share: `negative` is what not to draw, `size` another size than was learnt,
    `progress` sees each step, and `given` are fields of `SamplingConfig` that are to be otherwise.

    Raises:
        BedstoneError: the model draws nothing, or its parts don't fit one another.
    """

    def __init__(self, model: Model, precision: str = "fp32") -> None:
        self.engine = GenerationEngine(model, precision)
        self.model = self.engine.model

    def draw(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        *,
        negative: Prompt = None,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        size: Sequence[int] = (),
        noise: Tensor | None = None,
        progress: Progress | None = None,
        **given: Any,
    ) -> Generated:
        """A signal for each prompt and its seed.

        Args:
            prompts: words, classes by name or number, or None where the model takes no condition.
            seeds: as many.
            image: an image, or a clean signal (C, *S), to begin from.
            strength: share of the steps taken from there; 1 keeps nearly nothing of it. 0.6, and
                with a mask 1, where it isn't said.
            mask: an image of the image's size, or (1, *S) of 0 to 1: white is drawn anew, black
                stays as it is.
            noise: (B, C, *S) to begin with, of the latents where latents are drawn.

        Raises:
            BedstoneError: what is asked can't be, each said by its name.
        """
        check_seeds(seeds, len(prompts))
        sampling, way = settings(self.model, given)
        condition, null = conditions(self.model, prompts, negative)
        if negative is not None and sampling.guidance <= 1:
            raise BedstoneError(
                f"negative: {str(negative)[:60]!r} has no effect without guidance; give guidance "
                "above 1."
            )
        signal, drawn = shapes(self.model, size)
        record: dict[str, Any] = {"negative": negative, "size": list(size)}
        controls = SampleControls(noise=noise, way=way)
        if image is None:
            if strength is not None or mask is not None:
                name = "mask" if strength is None else "strength"
                raise BedstoneError(f"{name}: was given without an image; give the image too.")
            found = self.engine.sample(drawn, sampling, seeds, condition, null, controls, progress)
            return self._generated(found, prompts, seeds, sampling, controls, record)
        clean = self.engine.signal(image, signal)
        keep = None if mask is None else self.engine.mask(mask, image, signal)
        strength = strength if strength is not None else STRENGTH if mask is None else 1.0
        record |= {"image": named_image(image), "strength": strength, "mask": named_image(mask)}
        controls = replace(controls, start=self.engine.encoded(clean), strength=strength)
        if keep is not None:
            controls = replace(controls, mask=self.engine.shrunk(keep, drawn))
        found = self.engine.sample(drawn, sampling, seeds, condition, null, controls, progress)
        if keep is not None:  # what was to stay is as it was, also where an autoencoder blurs it
            found = torch.lerp(clean.expand_as(found), found, keep.expand_as(found))
        return self._generated(found, prompts, seeds, sampling, controls, record)

    def variations(
        self,
        image: Any,
        seeds: Sequence[int],
        *,
        prompt: Prompt = None,
        change: float = 0.3,
        progress: Progress | None = None,
        **given: Any,
    ) -> Generated:
        """Variations of a signal: its inverted noise is interpolated towards each seed's noise.

        Guidance is 1, and the method DDIM, unless they are given: by these the noise is found.

        Args:
            image: as in `draw`.
            prompt: what it shows, where the model takes a condition.
            change: from 0 (itself, as well as the model can draw it) to 1 (another).
        """
        if not 0 <= change <= 1:
            raise BedstoneError(
                f"strength: {change} was given; expected 0 (itself) to 1 (another)."
            )
        check_seeds(seeds, len(seeds))
        said = {name: value for name, value in given.items() if value is not None}
        sampling, _ = settings(self.model, {"method": "ddim", "guidance": 1.0, **said})
        condition, null = conditions(self.model, [prompt] * len(seeds))
        signal, drawn = shapes(self.model)
        clean = self.engine.encoded(self.engine.signal(image, signal))
        network = self.engine.network, self.model.process, self.model.target
        one = None if condition is None else condition.pick([0])
        how: dict[str, Any] = {"condition": one, "autocast": self.engine.precision.autocast}
        found = invert(*network, clean, sampling, **how)
        fresh = self.engine.noise(seeds, drawn).to(found)
        noise = slerp(found.expand_as(fresh), fresh, change)
        rows = self.engine.sample(
            drawn, sampling, seeds, condition, null, SampleControls(noise=noise), progress
        )
        record = {"variation_of": named_image(image), "change": change}
        return self._generated(
            rows, [prompt] * len(seeds), seeds, sampling, SampleControls(), record
        )

    def between(
        self,
        first: Prompt,
        last: Prompt,
        count: int,
        seeds: tuple[int, int] = (0, 0),
        *,
        negative: Prompt = None,
        size: Sequence[int] = (),
        progress: Progress | None = None,
        **given: Any,
    ) -> Generated:
        """Interpolation: `count` signals from one prompt and seed to another, ends included.

        The noise goes along the arc between both seeds' (`slerp`); see `interpolated` for prompts.
        """
        check_whole("count", count, 2)
        check_seeds(seeds, 2)
        sampling, way = settings(self.model, given)
        ends, null = conditions(self.model, [first, last], negative)
        _, drawn = shapes(self.model, size)
        shares = torch.linspace(0, 1, count)
        one, other = self.engine.noise(seeds, drawn)
        noise = slerp(one.expand(count, *drawn), other.expand(count, *drawn), shares)
        record: dict[str, Any] = {"negative": negative, "between": [first, last]}
        record |= {"seeds": list(seeds)}
        controls, fresh = SampleControls(noise=noise, way=way), [seeds[0]] * count
        if ends is None:
            rows = self.engine.sample(drawn, sampling, fresh, None, None, controls, progress)
        else:
            assert null is not None
            pair = ends.pick([0]), ends.pick([1])
            network, mixed, none = interpolated(self.engine.network, *pair, null, shares)
            rows = self.engine.sample(
                drawn, sampling, fresh, mixed, none, controls, progress, network=network
            )
        found = self._generated(rows, [first] * count, fresh, sampling, controls, record)
        for recipe, share in zip(found.recipes, shares.tolist(), strict=True):
            recipe["share"] = share
        return found

    def story(
        self, prompts: Sequence[str], seed: int = 0, *, style: str = "", **more: Any
    ) -> Generated:
        """A series: a signal for each prompt, all from one seed's noise and with one `style`.

        Args:
            style: words that are added to each prompt.
            more: as in `draw`.
        """
        if style and self.model.signal.condition != "text":
            raise BedstoneError(
                f"style: {style[:60]!r} was given; the model draws {self.model.inputs()}, and "
                "style is said in words. Leave it out."
            )
        whole = [f"{prompt}, {style}" if style else prompt for prompt in prompts]
        return self.draw(whole, [seed] * len(whole), **more)

    def _generated(
        self,
        signals: Tensor,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        sampling: SamplingConfig,
        controls: SampleControls,
        more: dict[str, Any],
    ) -> Generated:
        """The signals with their recipes.

        Raises:
            BedstoneError: one is not finite, which an image of it would hide.
        """
        for row in (~signals.isfinite().flatten(1).all(1)).nonzero()[:1, 0].tolist():
            raise BedstoneError(
                f"seed {seeds[row]}: what was drawn by {sampling.method} in {sampling.steps} steps "
                f"with guidance {sampling.guidance:g} isn't finite. Lower the guidance, take more "
                "steps, or draw in precision fp32."
            )
        said: dict[str, Any] = {**asdict(sampling), "interval": list(sampling.interval)}
        if controls.way is not None:
            said |= {"method": controls.way.method, "spacing": "as scheduler_config.json has it"}
        same = {"model": str(self.model.path or ""), "sampling": said}
        same["precision"] = self.engine.precision.name
        same |= {name: value for name, value in more.items() if value not in (None, "", [])}
        recipes = [
            {"prompt": prompt, "seed": seed, **same}
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return Generated(signals, recipes, self.model.signal.kind)


def rows_of(prompts: Sequence[Prompt], count: int, seed: int) -> tuple[list[Prompt], list[int]]:
    """`count` rows of each prompt, with the seeds `seed`, `seed` + 1, ..."""
    check_whole("count", count, 1)
    check_whole("seed", seed, 0)
    return [prompt for prompt in prompts for _ in range(count)], [
        seed + number for _ in prompts for number in range(count)
    ]


def check_seeds(seeds: Sequence[int], count: int) -> None:
    """Raises BedstoneError unless there are as many seeds as prompts, each one that torch knows."""
    if len(seeds) != count:
        raise BedstoneError(f"seed: {len(seeds)} were given for {count} prompts; give as many.")
    for seed in seeds:
        check_whole("seed", seed, 0)
        if seed >= SEEDS:
            raise BedstoneError(f"seed: {seed} was given; expected less than 2^64 ({SEEDS}).")


def named_image(value: Any) -> str | None:
    """What a recipe says of an image: its file, or what it is."""
    if value is None:
        return None
    return str(value) if isinstance(value, str | Path) else f"a {type(value).__name__}"
