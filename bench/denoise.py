"""Pictures drawn of noise: Bedstone beside diffusers with an equal network, in one process.

    python bench/denoise.py --model RUN [--real TEST.parquet --judge LENET] [--threads 2] [--write]
    python bench/denoise.py --source TRAIN.parquet [--minutes 10] ...

The network is a DiT of diffusers' own layout, which both read from one folder: that of RUN, a run
of recipes/diffusion-mnist.yaml with model.layout=dit and process.kind=discrete; without RUN, one is
trained here first. diffusers draws by the loop of its DiTPipeline, fp32 and bf16, both halves of
the guidance in one batch: by DDIM, and by its own solver of higher order (DPM-Solver++ or UniPC) in
few evaluations; all that training didn't settle is as its scheduler has it. Bedstone draws by the
same DDIM and by the same solver, in as many evaluations and with the same times (the same pictures,
in fp32): like for like. `tuned` is that solver as Bedstone would use it: the spacing named, the
signal clipped, guided in an interval if one is given. An evaluation is one call of the network, of
both halves or of one.

Contestants take turns on the same noise and classes; medians and ranges are over rounds, ratios
within each. Seconds of the processor, which other programs on the machine hardly change, are told
beside those of the clock. Gates: the same sampler in fp32 draws diffusers' pictures, and FID within
5 % of its peer's.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import torch
from diffusers import DiTTransformer2DModel, SchedulerMixin
from torch import Tensor

from bedstone.checkpoints.model import Model
from bedstone.checkpoints.pipeline import DiffusionPipeline, load_pipeline
from bedstone.data.signals.signals import class_condition
from bedstone.diffusion.denoiser import clip
from bedstone.diffusion.sample import SampleControls, SamplingConfig, generators_of, sample
from bedstone.diffusion.schedulers import config_of, published
from bedstone.evaluate.judges import open_judge
from bedstone.metrics.generative import Moments, frechet_distance
from bedstone.nn.fast.inference import for_inference
from diffusion_peer import read
from result import OURS, Side, add_write, write
from rounds import orders, spread

RECIPE = Path(__file__).parent.parent / "recipes" / "diffusion-mnist.yaml"
LEARNT = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
WITHIN = 0.05  # of FID

# (noise (B, C, H, W), classes (B,)) -> pictures in [-1, 1].
Draws = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Contestant:
    """One way to draw, and what it took in each round.

    Attributes:
        equal: the contestant whose pictures it should draw, up to rounding.
        quality: of all pictures: how far from those at most; FID and accuracy where judged.
    """

    name: str
    draws: Draws
    equal: str = ""
    quality: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)

    def turn(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        clock, processor = time.perf_counter(), time.process_time()
        found = [self.draws(noise, classes) for noise, classes in batches]
        self.seconds.append(time.perf_counter() - clock)
        self.processor.append(time.process_time() - processor)
        self.pictures += found


def trained(source: Path, minutes: float, folder: Path) -> Path:
    """A run of a small network in diffusers' layout."""
    told = {"data.source": source, "out": folder, "budget": f"{minutes}m", "samples": 0}
    told |= {"model.layout": "dit", "process.kind": "discrete", "times": "uniform"}
    command = [sys.executable, "-c", "from bedstone.cli import main; main()", "pretrain", RECIPE]
    subprocess.run([*command, *(f"{name}={value}" for name, value in told.items())], check=True)
    return folder


def scheduler_of(model: DiffusionPipeline, method: str, tuned: bool) -> SchedulerMixin:
    """diffusers' own as it comes, but for what the network was trained with; tuned: trailing, and
    DDIM unclipped."""
    config = config_of(model.process, model.target, method)
    kind = getattr(diffusers, config.pop("_class_name"))
    return kind(**{name: value for name, value in config.items() if tuned or name in LEARNT})


def theirs(
    name: str,
    scheduler: SchedulerMixin,
    folder: Path,
    dtype: torch.dtype,
    steps: int,
    scale: float,
) -> Contestant:
    """The loop of diffusers' DiTPipeline; the class that is none is the network's, not 1000."""
    network = DiTTransformer2DModel.from_pretrained(folder, torch_dtype=dtype).eval()
    none = network.config.num_embeds_ada_norm

    def draws(noise: Tensor, classes: Tensor) -> Tensor:
        x = torch.cat([noise.to(dtype)] * 2)
        labels = torch.cat([classes, torch.full_like(classes, none)])
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            half = x[: len(x) // 2]
            x = scheduler.scale_model_input(torch.cat([half, half]), t)
            out = network(x, timestep=t[None].expand(len(x)), class_labels=labels).sample
            given, without = out.chunk(2)
            guided = without + scale * (given - without)
            x = scheduler.step(torch.cat([guided, guided]), t, x).prev_sample
        return x.chunk(2)[0].float().clamp(-1, 1)

    return Contestant(name, draws)


def ours(
    name: str,
    model: DiffusionPipeline,
    dtype: torch.dtype,
    sampling: SamplingConfig,
    asked: SampleControls,
    equal: str = "",
) -> Contestant:
    network = for_inference(model.network, dtype)
    count = model.config.classes
    shape = (model.config.channels, *model.config.size)

    def draws(noise: Tensor, classes: Tensor) -> Tensor:
        given = {"condition": class_condition(classes.tolist(), count)}
        given["null"] = class_condition([count], count)
        how = SampleControls(noise=noise, limit=asked.limit, way=asked.way)
        seeds = generators_of(range(len(noise)))
        parts = (network, model.process, model.target, shape, sampling, seeds)
        return sample(*parts, **given, controls=how).clamp(-1, 1)

    return Contestant(name, draws, equal)


def contestants(
    options: argparse.Namespace, model: DiffusionPipeline, folder: Path
) -> list[Contestant]:
    Model(model.network.denoiser).write_network(folder)
    scale, sides = options.guidance, []
    for method, steps in (("ddim", options.steps), (options.method, options.evaluations)):
        scheduler = scheduler_of(model, method, options.tuned)
        peer = f"diffusers {method}-{steps}"
        for name, dtype in ((peer, torch.float32), (f"{peer} bf16", torch.bfloat16)):
            sides.append(theirs(name, scheduler, folder, dtype, steps, scale))
        known = {"_class_name": type(scheduler).__name__, **scheduler.config}
        same = SamplingConfig(method=method, steps=steps, guidance=scale)
        way, mine = SampleControls(way=published(known)), f"{OURS} {method}-{steps}"
        for name, dtype in ((mine, torch.float32), (f"{mine} bf16", torch.bfloat16)):
            sides.append(ours(name, model, dtype, same, way, equal=peer))
    few = SamplingConfig(
        method=options.method,
        steps=options.evaluations,
        spacing=options.spacing,
        guidance=scale,
        interval=tuple(options.interval),
    )
    limited = SampleControls(limit=clip())
    name = f"{OURS} tuned-{options.evaluations} bf16"
    return [*sides, ours(name, model, torch.bfloat16, few, limited)]


def report(
    sides: list[Contestant], count: int, options: argparse.Namespace, classes: Tensor
) -> None:
    """`count` pictures a round; `classes` of all."""
    if options.judge and options.real:
        judge = open_judge(options.judge)
        real = Moments.of(judge.read(read(options.real)[0])[0])
        for each in sides:
            seen, said = judge.read(torch.cat(each.pictures))
            each.quality["fid"] = frechet_distance(Moments.of(seen), real)
            each.quality["accuracy"] = (said.argmax(1) == classes).float().mean().item()
            print("{:32} FID {fid:.3f}, accuracy {accuracy:.4f}".format(each.name, **each.quality))
    print(f"\n{'':32}{'pictures/s':>24}{'processor s / 1000':>30}{'from the equal':>16}")
    drawn = {each.name: torch.cat(each.pictures) for each in sides}
    for each in sides:
        rates = [count / seconds for seconds in each.seconds]
        work = [1000 * seconds / count for seconds in each.processor]
        print(f"{each.name:32}{spread(rates, 2):>24}{spread(work, 1):>30}", end="")
        if each.equal:
            far = (drawn[each.name] - drawn[each.equal]).abs().max().item()
            each.quality["from the equal"] = far
        print(f"{each.quality['from the equal']:16.6f}" if each.equal else "")
    print()
    mine = [each for each in sides if each.name.startswith(OURS)]
    peers = [each for each in sides if each not in mine]
    for peer, each in itertools.product(peers, mine):
        ratios = [b / a for a, b in zip(each.seconds, peer.seconds, strict=True)]
        work = [b / a for a, b in zip(each.processor, peer.processor, strict=True)]
        told = ""
        if "fid" in each.quality:
            higher = each.quality["fid"] / peer.quality["fid"] - 1
            verdict = "within" if higher <= WITHIN else "NOT within"
            told = f"; FID {higher:+.1%}, {verdict} {WITHIN:.0%}"
        print(
            f"{each.name} / {peer.name}: {spread(ratios, 2)} times the pictures a second, "
            f"{statistics.median(work):.2f} by the processor's time{told}"
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", type=Path, help="a run whose layout is dit")
    options.add_argument("--source", type=Path, help="what to train one on, without --model")
    options.add_argument("--minutes", type=float, default=10, help="of that training")
    options.add_argument("--real", type=Path, help="pictures for FID: a Parquet file")
    options.add_argument("--judge", type=Path, help="weights of the network that judges")
    options.add_argument("--steps", type=int, default=50, help="of DDIM")
    options.add_argument("--tuned", action="store_true", help="the peer's DDIM trailing, unclipped")
    options.add_argument("--evaluations", type=int, default=10)
    options.add_argument("--method", default="dpm_solver_2m", choices=("dpm_solver_2m", "unipc"))
    options.add_argument("--spacing", default="trailing", help="of `tuned`")
    options.add_argument("--guidance", type=float, default=1.5)
    options.add_argument("--interval", type=float, nargs=2, default=(0.0, 1.0), help="of `tuned`")
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--batches", type=int, default=3, help="a round")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    add_write(options)
    chosen = options.parse_args()
    if not chosen.model and not chosen.source:
        options.error("--model or --source is needed")
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        run = chosen.model or trained(chosen.source, chosen.minutes, Path(folder) / "run")
        model = load_pipeline(run / "model" if (run / "model").is_dir() else run)
        with torch.inference_mode():
            compete(chosen, model, Path(folder) / "network")


def compete(options: argparse.Namespace, model: DiffusionPipeline, folder: Path) -> None:
    folder.mkdir()
    sides = contestants(options, model, folder)
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, model.config.channels, *model.config.size)
    classes = torch.arange(options.batch) % model.config.classes
    count = options.batch * options.batches
    for number, order in enumerate(orders(sides, options.rounds)):
        if number == 0:
            for each in sides:
                each.draws(torch.zeros(1, *shape[1:]), classes[:1])  # warms up
        noise = [torch.randn(shape, generator=generator) for _ in range(options.batches)]
        for each in order:
            each.turn([(one, classes) for one in noise])
        told = (f"{each.name} {count / each.seconds[-1]:,.2f}" for each in sides)
        print(f"round {number + 1}: {', '.join(told)} pictures/s", flush=True)
    report(sides, count, options, classes.repeat(options.batches * options.rounds))
    if options.write:
        kept = {
            each.name: Side(each.seconds, count, {**each.quality, "processor": each.processor})
            for each in sides
        }
        interval = list(options.interval)
        write(options.write, "denoise", "images", kept, batch=options.batch, interval=interval)


if __name__ == "__main__":
    main()
