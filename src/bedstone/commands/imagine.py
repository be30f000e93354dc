"""`bedstone imagine`: generate media with a model and write the files."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bedstone.bulk.places import Spread
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.pipeline import SignalSpec
from bedstone.commands.imagine_rows import draw_rows
from bedstone.diffusion.sample import Progress, SamplingStep
from bedstone.errors import BedstoneError
from bedstone.evaluate.systems import ALONE, CompareOptions, compare_systems
from bedstone.outputs import free_path, new_file, next_number
from bedstone.report.sheets import chosen_frames, samples_sheet, strip_sheet, to_images
from bedstone.runtime import pick_device, pick_precision
from bedstone.tasks.media.dalle import DalleGenerator
from bedstone.tasks.media.files import SUFFIXES, check_enlarged, file_name, write_generated
from bedstone.tasks.media.generator import Generated, MediaGenerator, Prompt, rows_of
from bedstone.tasks.media.unclip import UnclipGenerator, open_generator
from bedstone.train.logs import ProgressBar

NAME = "imagined"  # where nothing is said
PREVIEW = 4  # rows of a strip
LIMIT = 10  # moments of it
CELL = 128  # pixels of a cell in a sheet, at least
WIDEST = 512


@dataclass(frozen=True)
class Place:
    """Output paths.

    Attributes:
        file: the only one; None where there are several.
        folder: of several.
        sheet: of them all; of a single sound, video or volume, of what it looks like.
        first: the number of the first of several.
    """

    file: Path | None
    folder: Path
    sheet: Path
    first: int = 0

    def beside(self, word: str) -> Path:
        """A PNG beside the result."""
        if self.file is None and self.sheet.parent == self.folder:
            return self.folder / f"{word}.png"
        stem = (self.file or self.sheet).stem
        return self.sheet.parent / f"{stem}-{word}.png"


def planned(out: str | None, kind: str, *, several: bool, overwrite: bool = False) -> Place:
    """The places of the files, checked before anything is sampled.

    Samples of earlier calls are kept: numbers in a folder go on from theirs, and where no name was
    given the next free one is taken.

    Raises:
        BedstoneError: the name ends as no file of this kind does, or is taken; nothing can be
            written there.
    """
    place = _place(out, kind, several)
    if not overwrite:
        place = _kept(place, named=out is not None and Path(out).suffix != "")
    check_folder(place.folder, "--out")
    check_folder(place.sheet.parent, "--out")
    return place


def _kept(place: Place, *, named: bool) -> Place:
    """The place, or one beside it, so that no file that is there is replaced."""
    if named:
        for path in (place.file, place.sheet):
            if path is not None:
                new_file(path, "--out")
    if place.file is not None:
        file = place.file if named else free_path(place.file)
        sheet = file if place.sheet == place.file else file.with_name(f"{file.stem}-shown.png")
        return Place(file, place.folder, sheet)
    return replace(place, sheet=free_path(place.sheet), first=next_number(place.folder))


def check_folder(folder: Path, name: str) -> None:
    """Raises BedstoneError if a folder can't be written to, before anything is sampled."""
    folder = folder.resolve()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        fault = "can't be written to" if there.is_dir() else "is a file, where a folder was to be"
        raise BedstoneError(f"{name}: {there} {fault}. Choose another name.")


def _place(out: str | None, kind: str, several: bool) -> Place:
    path, suffix = Path(NAME if out is None else out), SUFFIXES[kind]
    ends = path.suffix.lower()
    if out is None and not several:
        path, ends = path.with_suffix(suffix), suffix
    if ends and ends not in (suffix, ".png"):
        raise BedstoneError(
            f"--out: {out} was given; {kind} is written as {suffix}. Give such a name, or a folder."
        )
    if path.is_dir() if ends else path.is_file():
        taken = "a folder" if ends else "a file"
        raise BedstoneError(f"--out: {path} is {taken}. Choose another name.")
    if not several and ends:
        file = path.with_suffix(suffix)
        sheet = file if kind == "image" else file.with_name(f"{file.stem}-shown.png")
        return Place(file, file.parent, sheet)
    if ends:  # a sheet of that name, and the files in a folder beside it
        return Place(None, path.with_suffix(""), path.with_suffix(".png"))
    return Place(None, path, path / "sheet.png")


def write_all(
    drawn: Generated, form: SignalSpec, place: Place, *, enlarge: int = 1, columns: int = 0
) -> list[Path]:
    """Writes all files; the sheet, if there is one, is the last.

    Raises:
        BedstoneError: the disk refuses.
    """
    files = []
    for number, (signal, recipe) in enumerate(zip(drawn.signals, drawn.recipes, strict=True)):
        name = file_name(place.first + number, recipe, form.kind)
        path = place.file or place.folder / name
        files.append(write_generated(signal, form, path, recipe, enlarge=enlarge))
    if len(files) > 1 or form.kind != "image":
        _sheet(drawn, form.kind, place.sheet, columns)
        files.append(place.sheet)
    return files


class Frames:
    """A strip of sampling steps: some rows with their predicted clean signals.

    Args:
        drawer: the generator whose steps are kept.
        path: the PNG to write.
    """

    def __init__(self, drawer: MediaGenerator, path: Path, *, overwrite: bool = False) -> None:
        new_file(path, "--strip", overwrite=overwrite)
        if path.suffix.lower() != ".png":
            raise BedstoneError(f"--strip: {path} was given; expected a name that ends in .png.")
        check_folder(path.parent, "--strip")
        self.drawer, self.path = drawer, path
        self.kept: list[tuple[int, Tensor]] = []  # (2B, C, *S) of each step

    def see(self, now: SamplingStep) -> None:
        """Keeps a step of the first rows; of several samplings, the last one."""
        if now.first:
            return
        if now.step == 1:
            self.kept = []
        rows = [torch.stack([x, clean]) for x, clean in zip(now.x, now.clean, strict=True)]
        self.kept.append((now.step, torch.cat(rows[:PREVIEW]).detach().float().cpu()))

    def write(self, recipes: Sequence[Mapping[str, Any]]) -> Path:
        """Writes the strip: above the signal after each step, below the predicted clean signal."""
        chosen = [self.kept[place] for place in chosen_frames(len(self.kept), LIMIT)]
        kind = self.drawer.model.signal.kind
        frames = [to_images(self.drawer.engine.shown(x), kind) for _, x in chosen]
        titles = [f"step {step}" for step, _ in chosen]
        recipe = {"drawn": [dict(each) for each in recipes[:PREVIEW]]}
        cell = min(max(*frames[0].shape[2:], 96), 256)
        return strip_sheet(frames, self.path, titles=titles, recipe=recipe, cell=cell)


def _sheet(drawn: Generated, kind: str, path: Path, columns: int) -> Path:
    """A sheet with a cell for each sample; a video or a volume has a row of frames."""
    signals, titles, recipe = drawn.signals, _titles(drawn.recipes), {"drawn": drawn.recipes}
    if kind in ("video", "volume"):
        chosen = chosen_frames(signals.shape[2])
        columns = len(chosen)
        titles = [title if n == 0 else "" for title in titles for n in range(columns)]
        signals = signals[:, :, chosen].transpose(1, 2).flatten(0, 1)
    shown = signals if kind != "audio" else to_images(signals, kind)
    cell = min(max(*shown.shape[2:], CELL), WIDEST)
    return samples_sheet(shown, path, titles=titles, recipe=recipe, columns=columns, cell=cell)


def _titles(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Titles of samples: their prompts if these differ, or else their seeds."""
    prompts = [recipe["prompt"] for recipe in recipes]
    if any("share" in recipe for recipe in recipes):
        return [f"{recipe['share']:.0%}" for recipe in recipes]
    if len({str(prompt) for prompt in prompts}) > 1 or len(recipes) == 1:
        return ["" if prompt is None else str(prompt) for prompt in prompts]
    return [f"seed {recipe['seed']}" for recipe in recipes]


HERE = Spread()
COUNTS = {"draw": 4, "variations": 4, "like": 4, "between": 7, "story": 1}


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling settings (default: the model's own).

    Attributes:
        steps: number of sampling steps; more are slower and better.
        method: of diffusion: the sampler, such as ddim, dpm_solver_2m, unipc, euler, heun, ddpm.
        spacing: of diffusion: of the sampling times, such as trailing, linspace, karras.
        guidance: scale of classifier-free guidance; 1 = none.
        interval: of diffusion: two times from 0 (clean) to 1 (noise) between which guidance
            applies, as 0.1,0.8.
        rescale: of diffusion: share by which guidance is rescaled against overexposure, 0 to 1.
        temperature: of a DALL-E: below 1 prefers likely codes; 0 takes the likeliest.
        top_k: of a DALL-E: draw from so many likeliest codes; 0 from all.
        top_p: of a DALL-E: draw from the fewest likeliest codes that reach this probability.
        candidates: of a DALL-E: images drawn for each one, of which its CLIP keeps the best.
        prior: of an unCLIP: its own, diffusion or autoregressive; or none for the words' own
            embedding.
        prior_steps: of an unCLIP: number of sampling steps of its diffusion prior.
        prior_guidance: of an unCLIP: scale of guidance in its prior; 1 = none.
        prior_samples: of an unCLIP: embeddings drawn, of which the nearest to the words is kept.
        upsample_steps: of an unCLIP with an up-sampler: number of its sampling steps.
        upsample_noise: of an unCLIP with an up-sampler: deviation of the noise that images get
            before they are enlarged, 0 to 1.
    """

    steps: int | None = None
    method: str | None = None
    spacing: str | None = None
    guidance: float | None = None
    interval: str | None = None
    rescale: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    candidates: int | None = None
    prior: str | None = None
    prior_steps: int | None = None
    prior_guidance: float | None = None
    prior_samples: int | None = None
    upsample_steps: int | None = None
    upsample_noise: float | None = None

    @property
    def given(self) -> dict[str, Any]:
        """Fields of the model's settings of sampling that are given."""
        found = {name: value for name, value in vars(self).items() if value is not None}
        return found | ({"interval": _interval(self.interval)} if self.interval else {})


@dataclass(frozen=True)
class ImagineOptions:
    """What to generate.

    Attributes:
        count: samples per prompt (default: 4; for a story 1, for an interpolation 7).
        seed: random seed of the first sample; each further one adds 1.
        negative: a negative prompt.
        size: another size than in training, in pixels, as 64x48 (height, width).
        image: an image to start from.
        strength: share of the image that is regenerated, 0 to 1, of a DALL-E from below; for
            variations, their distance; for an unCLIP, how far towards the other end.
        mask: an image of the same size: white is regenerated, black stays.
        variations: an image to generate variations of.
        like: of an unCLIP: an image whose embedding to draw from; a prompt says what it shows,
            for towards_text.
        towards: of an unCLIP: another image, to which to interpolate from like.
        towards_text: of an unCLIP: words for what like is to show instead.
        between: interpolate from the prompt to this one; without a text condition, to this seed.
        story: a file of prompts, one per line, all sampled from one seed.
        style: text added to each prompt; several prompts are then sampled from one seed.
    """

    count: int | None = None
    seed: int = 0
    negative: str | None = None
    size: str | None = None
    image: str | None = None
    strength: float | None = None
    mask: str | None = None
    variations: str | None = None
    like: str | None = None
    towards: str | None = None
    towards_text: str | None = None
    between: str | None = None
    story: str | None = None
    style: str = ""

    @property
    def way(self) -> str:
        """draw, variations, like, between or story.

        Raises:
            BedstoneError: two of them are asked for at once, or what one doesn't take.
        """
        said = {"variations": self.variations, "like": self.like, "between": self.between}
        said["story"] = self.story or self.style
        found = [name for name, value in said.items() if value]
        if len(found) > 1:
            raise BedstoneError(f"--{found[0]} and --{found[1]}: expected one of them at a time.")
        way = found[0] if found else "draw"
        takes = {
            "variations": ("strength",),
            "like": ("strength", "towards", "towards_text"),
            "between": ("negative", "size"),
        }.get(way)
        for name in ("towards", "towards_text"):
            if way != "like" and getattr(self, name) is not None:
                option = name.replace("_", "-")
                raise BedstoneError(f"--{option}: was given without --like, the image to begin at.")
        for name in ("negative", "size", "image", "strength", "mask"):
            if takes is not None and name not in takes and getattr(self, name) is not None:
                raise BedstoneError(f"--{name}: --{way} takes none. Leave it out.")
        return way


def imagine(
    model: str,
    text: list[str],
    options: ImagineOptions,
    sampling: SamplingOptions,
    compare: CompareOptions = ALONE,
    spread: Spread = HERE,
    out: str | None = None,
    enlarge: int = 1,
    strip: str | None = None,
    show_steps: bool = False,
    results: str | None = None,
    overwrite: bool = False,
    *,
    as_json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> list[Path]:
    """Generate images, audio, videos or volumes from text, a class, an image, or noise.

    One sample is written as a file; several are written into a folder with a sheet of them all. The
    metadata of each PNG records how it was made.

    Args:
        model: a folder, a name that `bedstone models` lists, or a hub id.
        text: prompts, or classes by name or number; one or more, or none for an unconditional
            model.
        out: a file, or a folder if it has no suffix (default: imagined.png or imagined/).
        enlarge: integer factor by which images are enlarged.
        strip: a PNG file to write the sampling steps of the first samples into.
        show_steps: write the sampling steps into a file beside the result.
        results: a file of what is drawn, as numbers. It is written, and a run that is stopped goes
            on from it; where it is there, the files are made of it and nothing is drawn. Needed for
            --shard, whose files are joined first.
        overwrite: replace files of the same names.
        as_json: print one JSON object per file.
        precision: of computation: auto, bf16, fp32, int8 or int4.
        device: auto, cpu, cuda or mps.

    Example:
        bedstone imagine runs/diffusion-scenes "a red circle left of a blue square" --count 8
        bedstone imagine runs/dalle-scenes "a red circle" --beside runs/unclip-scenes --page a.html

    Raises:
        BedstoneError: the model generates no media, or the options don't fit it.
    """
    way = options.way
    prompts = _prompts(text, options)
    check_enlarged(enlarge)
    spread.check()
    elsewhere = results is not None or not spread.is_usual
    if elsewhere and (way != "draw" or compare.given or strip is not None or show_steps):
        raise BedstoneError(
            "--results, --shard and --on: serve prompts and seeds alone, without --variations, "
            "--like, --between, --story, --style, --strip, --show-steps, --beside and --page."
        )
    if spread.shard is not None and results is None:
        raise BedstoneError("--shard: needs --results, the file that it is written to.")
    given = sampling.given
    where = pick_device(device)
    pick_precision(precision, where)
    if compare.given:
        if out is not None or strip is not None or show_steps or enlarge != 1:
            raise BedstoneError(
                "--out, --strip, --show-steps and --enlarge: belong to one model's files; with "
                "--beside or --page the images stand in the page. Leave them out."
            )
        _check_alone(options)
        page = compare_systems(
            [model, *compare.beside],
            [str(prompt) for prompt in prompts],
            compare,
            given,
            count=options.count or COUNTS["draw"],
            seed=options.seed,
            overwrite=overwrite,
            as_json=as_json,
            precision=precision,
            device=where,
        )
        return [page] if page is not None else []
    drawer = open_generator(open_model(model, device=where), precision)
    kind = drawer.model.signal.kind
    rows = max(len(prompts), 1)  # without a condition one row is sampled
    several = way != "draw" or rows * (options.count or COUNTS[way]) > 1
    place = planned(out, kind, several=several, overwrite=overwrite)
    frames = None
    if strip is not None or show_steps:
        if isinstance(drawer, DalleGenerator):
            raise BedstoneError(
                "--strip: shows an image as noise is taken from it, and a DALL-E writes codes. "
                "Leave --strip and --show-steps out."
            )
        steps = place.beside("steps")
        steps = Path(strip) if strip is not None else steps if overwrite else free_path(steps)
        frames = Frames(drawer, steps, overwrite=overwrite)
    began = time.monotonic()
    drawn: Generated | None
    with ProgressBar("drawing") as bar:

        def progress(now: SamplingStep) -> None:
            bar.update(now.share, step=f"{now.step}/{now.steps}")
            if frames is not None:
                frames.see(now)

        if elsewhere:
            if not prompts and drawer.model.signal.condition == "none":
                prompts = [None]
            count = COUNTS[way] if options.count is None else options.count
            drawn = draw_rows(
                model,
                *rows_of(prompts, count, options.seed),
                {**_draw_options(options), **given},
                spread,
                results=results,
                precision=precision,
                device=device,
                overwrite=overwrite,
                progress=bar.update,
            )
        else:
            drawn = _drawn(drawer, options, way, prompts, given, progress)
    if drawn is None:  # a share, whose results are written
        return []
    taken = time.monotonic() - began
    columns = len(prompts) if way == "story" else 0
    files = write_all(drawn, drawer.model.signal, place, enlarge=enlarge, columns=columns)
    if frames is not None:
        files.append(frames.write(drawn.recipes))
    if as_json:
        _print_rows(files, drawn)
        return files
    number = len(drawn.recipes)
    shown = [place.sheet] if number > 1 else files[: len(files) - (frames is not None)]
    print(f"{number} drawn in {taken:.1f} s: {', '.join(map(str, shown))}")
    if number > 1:
        print(f"each in {place.folder}")
    if frames is not None:
        print(f"step by step: {files[-1]}")
    return files


def _check_alone(options: ImagineOptions) -> None:
    """Raises BedstoneError for what systems that are compared don't take."""
    usual = ImagineOptions(count=options.count, seed=options.seed)
    for name, value in vars(options).items():
        if value != getattr(usual, name):
            raise BedstoneError(
                f"--{name.replace('_', '-')}: isn't there with --beside or --page, which draw "
                "prompts alone. Leave it out."
            )


def _print_rows(files: Sequence[Path], drawn: Generated) -> None:
    """Prints one object per file; files of a single sample have its recipe."""
    rows = [{"file": str(file)} for file in files]
    for row, recipe in zip(rows, drawn.recipes, strict=False):
        row |= recipe
    print(*(json.dumps(row, ensure_ascii=False) for row in rows), sep="\n")


def _drawn(
    drawer: MediaGenerator | DalleGenerator | UnclipGenerator,
    options: ImagineOptions,
    way: str,
    prompts: list[Prompt],
    given: dict[str, Any],
    progress: Progress,
) -> Generated:
    usual = "between" if options.towards or options.towards_text else way
    count = COUNTS[usual] if options.count is None else options.count
    if not prompts and drawer.model.signal.condition == "none":
        prompts = [None]
    more: dict[str, Any] = {"progress": progress, **given}
    if way in ("variations", "like"):
        if len(prompts) > 1:
            raise BedstoneError(f"--{way}: expected one prompt at most, of what it shows.")
        _, seeds = rows_of([None], count, options.seed)
        prompt = prompts[0] if prompts else None
        if way == "like":
            if not isinstance(drawer, UnclipGenerator):
                raise BedstoneError(
                    "--like: is drawn from a CLIP's embedding, and the model is no unCLIP. Take "
                    "--variations, or a run of unclip-scenes."
                )
            more |= {"strength": options.strength, "towards": options.towards}
            more |= {"towards_text": options.towards_text, "prompt": prompt}
            return drawer.like(options.like, seeds, **more)
        more |= {} if options.strength is None else {"change": options.strength}
        return drawer.variations(options.variations, seeds, prompt=prompt, **more)
    if way == "between":
        more |= {"negative": options.negative, "size": _size(options.size)}
        if len(prompts) != 1:
            raise BedstoneError("--between: expected one prompt to begin with, before it.")
        if drawer.model.signal.condition == "none":
            ends = options.seed, _seed(str(options.between))
            return drawer.between(prompts[0], None, count, ends, **more)
        ends = options.seed, options.seed + 1
        return drawer.between(prompts[0], options.between, count, ends, **more)
    more |= _draw_options(options)
    if way == "story":
        if count != 1:
            raise BedstoneError(f"--count: {count} was given; a series has one of each. Leave it.")
        return drawer.story(list(map(str, prompts)), options.seed, style=options.style, **more)
    rows, seeds = rows_of(prompts, count, options.seed)
    return drawer.draw(rows, seeds, **more)


def _draw_options(options: ImagineOptions) -> dict[str, Any]:
    """What `draw` takes of the options, besides prompts and seeds."""
    more = {"negative": options.negative, "size": _size(options.size)}
    return more | {"image": options.image, "strength": options.strength, "mask": options.mask}


def _prompts(text: list[str], options: ImagineOptions) -> list[Prompt]:
    if options.story is None:
        return list(text)
    if text:
        raise BedstoneError("--story: its file has the prompts; leave those before it out.")
    try:
        lines = Path(options.story).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise BedstoneError(f"{options.story}: can't be read ({reason}).") from error
    found: list[Prompt] = [line.strip() for line in lines if line.strip()]
    if not found:
        raise BedstoneError(f"{options.story}: has no line; expected a prompt on each.")
    return found


def _size(said: str | None) -> tuple[int, ...]:
    """64x48 as (64, 48)."""
    if said is None:
        return ()
    parts = said.lower().split("x")
    if not all(part.strip().isdecimal() for part in parts):
        raise BedstoneError(f"--size: {said!r} was given; expected numbers, as 64x48.")
    return tuple(int(part) for part in parts)


def _seed(said: str) -> int:
    if not said.isdecimal():
        raise BedstoneError(
            f"--between: {said!r} was given; the model is told nothing, so expected a seed to end "
            "with."
        )
    return int(said)


def _interval(said: str) -> list[float]:
    """0.1,0.8 as two numbers."""
    try:
        return [float(part) for part in said.split(",")]
    except ValueError:
        raise BedstoneError(
            f"--interval: {said!r} was given; expected two numbers, as 0.1,0.8."
        ) from None
