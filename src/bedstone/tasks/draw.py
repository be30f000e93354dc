"""Drawing with a model: from words, a class or nothing; from a picture; between two; in a series.

Each row has a seed, and depends on nothing beside it. Signals come back decoded, about -1 to 1.

Shapes: B rows, C channels; *S the sizes of a signal.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bedstone.checkpoints.artefact import Model
from bedstone.checks import check_whole
from bedstone.errors import BedstoneError
from bedstone.generation.denoise_steps import slerp
from bedstone.generation.drawing import Asked, inverted
from bedstone.recipes_diffusion import SamplingConfig
from bedstone.tasks.draw_asked import Prompt, conditions, settings, shapes
from bedstone.tasks.draw_between import between
from bedstone.tasks.draw_engine import DrawingEngine, Watch

STRENGTH = 0.6  # of drawing from a picture, where nothing is said
SEEDS = 2**64  # how many torch knows


@dataclass(frozen=True)
class Drawn:
    """What was drawn.

    Attributes:
        signals: (B, C, *S) fp32, about -1 to 1, on the CPU.
        recipes: how each was made, as JSON has it.
        kind: image, audio, video or volume.
    """

    signals: Tensor
    recipes: list[dict[str, Any]]
    kind: str


class Drawer:
    """A model that is drawn with.

    What its methods share: `negative` is what not to draw, `size` another size than was learnt,
    `watch` sees each step, and `given` are fields of `SamplingConfig` that are to be otherwise.

    Raises:
        BedstoneError: the model draws nothing, or its parts don't fit one another.
    """

    def __init__(self, model: Model, precision: str = "fp32") -> None:
        self.engine = DrawingEngine(model, precision)
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
        watch: Watch | None = None,
        **given: Any,
    ) -> Drawn:
        """A signal for each prompt and its seed.

        Args:
            prompts: words, classes by name or number, or None where nothing is told.
            seeds: as many.
            image: a picture, or a clean signal (C, *S), to begin from.
            strength: share of the steps taken from there; 1 keeps nearly nothing of it. 0.6, and
                with a mask 1, where it isn't said.
            mask: a picture of the image's size, or (1, *S) of 0 to 1: white is drawn anew, black
                stays as it is.
            noise: (B, C, *S) to begin with, of the latents where latents are drawn.

        Raises:
            BedstoneError: what is asked can't be, each said by its name.
        """
        self._check_seeds(seeds, len(prompts))
        sampling, way = settings(self.model, given)
        condition, null = conditions(self.model, prompts, negative)
        if negative is not None and sampling.guidance <= 1:
            raise BedstoneError(
                f"negative: {str(negative)[:60]!r} has no effect without guidance; give guidance "
                "above 1."
            )
        signal, drawn = shapes(self.model, size)
        told: dict[str, Any] = {"negative": negative, "size": list(size)}
        asked = Asked(noise=noise, way=way)
        if image is None:
            if strength is not None or mask is not None:
                name = "mask" if strength is None else "strength"
                raise BedstoneError(f"{name}: was given without an image; give the image too.")
            rows = self.engine.draw(drawn, sampling, seeds, condition, null, asked, watch)
            return self._told(self.engine.decoded(rows), prompts, seeds, sampling, asked, told)
        clean = self.engine.signal(image, signal)
        keep = None if mask is None else self.engine.mask(mask, image, signal)
        strength = strength if strength is not None else STRENGTH if mask is None else 1.0
        told |= {"image": _named(image), "strength": strength, "mask": _named(mask)}
        asked = replace(asked, start=self.engine.encoded(clean), strength=strength)
        if keep is not None:
            asked = replace(asked, mask=self.engine.shrunk(keep, drawn))
        rows = self.engine.draw(drawn, sampling, seeds, condition, null, asked, watch)
        found = self.engine.decoded(rows)
        if keep is not None:  # what was to stay is as it was, also where an autoencoder blurs it
            found = torch.lerp(clean.expand_as(found), found, keep.expand_as(found))
        return self._told(found, prompts, seeds, sampling, asked, told)

    def variations(
        self,
        image: Any,
        seeds: Sequence[int],
        *,
        prompt: Prompt = None,
        change: float = 0.3,
        watch: Watch | None = None,
        **given: Any,
    ) -> Drawn:
        """Signals like one: the noise that it is drawn from is turned towards each seed's.

        Guidance is 1, and the method DDIM, unless they are given: by these the noise is found.

        Args:
            image: as in `draw`.
            prompt: what it shows, where that can be told.
            change: from 0 (itself, as well as the model can draw it) to 1 (another).
        """
        if not 0 <= change <= 1:
            raise BedstoneError(
                f"strength: {change} was given; expected 0 (itself) to 1 (another)."
            )
        self._check_seeds(seeds, len(seeds))
        said = {name: value for name, value in given.items() if value is not None}
        sampling, _ = settings(self.model, {"method": "ddim", "guidance": 1.0, **said})
        condition, null = conditions(self.model, [prompt] * len(seeds))
        signal, drawn = shapes(self.model)
        clean = self.engine.encoded(self.engine.signal(image, signal))
        network = self.engine.network, self.model.process, self.model.target
        one = None if condition is None else condition.pick([0])
        how: dict[str, Any] = {"condition": one, "autocast": self.engine.precision.autocast}
        found = inverted(*network, clean, sampling, **how)
        fresh = self.engine.noise(seeds, drawn).to(found)
        noise = slerp(found.expand_as(fresh), fresh, change)
        rows = self.engine.draw(drawn, sampling, seeds, condition, null, Asked(noise=noise), watch)
        told = {"variation_of": _named(image), "change": change}
        return self._told(
            self.engine.decoded(rows), [prompt] * len(seeds), seeds, sampling, Asked(), told
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
        watch: Watch | None = None,
        **given: Any,
    ) -> Drawn:
        """`count` signals on the way from one prompt and seed to another, both ends included.

        The noise goes along the arc between both seeds' (`slerp`); see `draw_between` for prompts.
        """
        check_whole("count", count, 2)
        self._check_seeds(seeds, 2)
        sampling, way = settings(self.model, given)
        ends, null = conditions(self.model, [first, last], negative)
        _, drawn = shapes(self.model, size)
        shares = torch.linspace(0, 1, count)
        one, other = self.engine.noise(seeds, drawn)
        noise = slerp(one.expand(count, *drawn), other.expand(count, *drawn), shares)
        told: dict[str, Any] = {"negative": negative, "between": [first, last]}
        told |= {"seeds": list(seeds)}
        asked, fresh = Asked(noise=noise, way=way), [seeds[0]] * count
        if ends is None:
            rows = self.engine.draw(drawn, sampling, fresh, None, None, asked, watch)
        else:
            assert null is not None
            pair = ends.pick([0]), ends.pick([1])
            network, given_told, none = between(self.engine.network, *pair, null, shares)
            rows = self.engine.draw(
                drawn, sampling, fresh, given_told, none, asked, watch, network=network
            )
        found = self._told(self.engine.decoded(rows), [first] * count, fresh, sampling, asked, told)
        for recipe, share in zip(found.recipes, shares.tolist(), strict=True):
            recipe["share"] = share
        return found

    def story(
        self, prompts: Sequence[str], seed: int = 0, *, style: str = "", **more: Any
    ) -> Drawn:
        """A signal for each prompt, alike: all begin from one seed's noise, and share `style`.

        Args:
            style: words that are added to each prompt.
            more: as in `draw`.
        """
        if style and self.model.signal.condition != "text":
            raise BedstoneError(
                f"style: {style[:60]!r} was given; the model draws {self.model.told()}, and style "
                "is said in words. Leave it out."
            )
        whole = [f"{prompt}, {style}" if style else prompt for prompt in prompts]
        return self.draw(whole, [seed] * len(whole), **more)

    def _told(
        self,
        signals: Tensor,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        sampling: SamplingConfig,
        asked: Asked,
        more: dict[str, Any],
    ) -> Drawn:
        """The signals with their recipes.

        Raises:
            BedstoneError: one is not finite, which a picture of it would hide.
        """
        for row in (~signals.isfinite().flatten(1).all(1)).nonzero()[:1, 0].tolist():
            raise BedstoneError(
                f"seed {seeds[row]}: what was drawn by {sampling.method} in {sampling.steps} steps "
                f"with guidance {sampling.guidance:g} isn't finite. Lower the guidance, take more "
                "steps, or draw in precision fp32."
            )
        said: dict[str, Any] = {**asdict(sampling), "interval": list(sampling.interval)}
        if asked.way is not None:
            said |= {"method": asked.way.method, "spacing": "as scheduler_config.json has it"}
        same = {"model": str(self.model.path or ""), "sampling": said}
        same["precision"] = self.engine.precision.name
        same |= {name: value for name, value in more.items() if value not in (None, "", [])}
        recipes = [
            {"prompt": prompt, "seed": seed, **same}
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return Drawn(signals, recipes, self.model.signal.kind)

    def _check_seeds(self, seeds: Sequence[int], count: int) -> None:
        if len(seeds) != count:
            raise BedstoneError(f"seed: {len(seeds)} were given for {count} prompts; give as many.")
        for seed in seeds:
            check_whole("seed", seed, 0)
            if seed >= SEEDS:
                raise BedstoneError(f"seed: {seed} was given; expected less than 2^64 ({SEEDS}).")


def rows_of(prompts: Sequence[Prompt], count: int, seed: int) -> tuple[list[Prompt], list[int]]:
    """`count` rows of each prompt, with the seeds `seed`, `seed` + 1, ..."""
    check_whole("count", count, 1)
    check_whole("seed", seed, 0)
    return [prompt for prompt in prompts for _ in range(count)], [
        seed + number for _ in prompts for number in range(count)
    ]


def _named(value: Any) -> str | None:
    """What a recipe says of a picture: its file, or what it is."""
    if value is None:
        return None
    return str(value) if isinstance(value, str | Path) else f"a {type(value).__name__}"
