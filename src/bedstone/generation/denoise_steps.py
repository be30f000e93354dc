"""What every sampler of diffusion stands on: the noise at each of its times, and fresh noise.

A sampler goes through `times` (N+1,), falling from 1 (noise) to 0 (clean), or a part of that. Its
coefficients are plain numbers, computed once in float64, so that a step costs a few products and
nothing waits for the accelerator.

Shapes: B rows; *S the sizes of a signal.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.nn.noising import Process

# (x (B, *S), t (B,)) -> (the predicted clean signal x0, the predicted noise eps), so that
# x = alpha x0 + sigma eps.
Denoiser = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# One for the batch, or one for each row: a row's signal then doesn't depend on its neighbours.
Generators = torch.Generator | Sequence[torch.Generator] | None

# (step from 1, steps, x after the step, the clean signal predicted in it).
Callback = Callable[[int, int, Tensor, Tensor], None]


@dataclass(frozen=True)
class Level:
    """The noise at one time: x = alpha x0 + sigma eps.

    Attributes:
        t: the time.
        alpha, sigma: of the clean signal and of the noise.
        half: log(alpha / sigma), "lambda" in the papers on solvers; infinite at both ends.
    """

    t: float
    alpha: float
    sigma: float
    half: float


def levels(process: Process, times: Tensor | Sequence[float]) -> list[Level]:
    """The noise at each of `times`.

    Raises:
        BedstoneError: fewer than two times, or one outside 0 to 1.
    """
    at = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    if at.dim() != 1 or len(at) < 2:
        raise BedstoneError(
            f"times: {tuple(at.shape)} numbers were given; expected a list of at least two, from "
            "the noisiest to the cleanest."
        )
    if not bool(((at >= 0) & (at <= 1)).all()):
        raise BedstoneError(
            f"times: from {float(at.min()):g} to {float(at.max()):g} were given; expected numbers "
            "from 0 (clean) to 1 (noise)."
        )
    halves = process.log_snr(at) / 2
    rows = torch.stack([at, process.alpha(at), process.sigma(at), halves], dim=1).tolist()
    return [Level(*row) for row in rows]


def at(t: float, x: Tensor) -> Tensor:
    """The time of all rows of x: (B,), float32, or float64 where x is."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.full((x.shape[0],), t, dtype=dtype, device=x.device)


def kept(here: Level, there: Level) -> float:
    """Share of the noise's part of x that stays when fresh noise is mixed in, from here to there.

    It is (sigma / alpha) there over the same here, exp(-h) of the solvers' papers: 0 where there is
    no noise left or nothing but noise was.
    """
    return 0.0 if there.sigma == 0 else math.exp(here.half - there.half)


def fresh(share: float) -> float:
    """Standard deviation of the fresh noise that makes up for all but `share` of the old."""
    return math.sqrt(max(0.0, 1 - share**2))


def noise_like(x: Tensor, generator: Generators) -> Tensor:
    """Standard normal noise in x's shape, dtype and device.

    It is drawn where the generator lives, so that a seed of the CPU means the same everywhere.

    Raises:
        BedstoneError: a list of generators that isn't one a row.
    """
    if generator is None or isinstance(generator, torch.Generator):
        where = x.device if generator is None else generator.device
        drawn = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=where)
        return drawn.to(x.device)
    if len(generator) != x.shape[0]:
        raise BedstoneError(
            f"generator: {len(generator)} were given for {x.shape[0]} rows; expected one, or one "
            "for each row."
        )
    rows = [
        torch.randn(x.shape[1:], generator=each, dtype=x.dtype, device=each.device).to(x.device)
        for each in generator
    ]
    return torch.stack(rows)


def slerp(a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    """Noise between two, on the arc from a to b (Shoemake, 1985): it stays as long as they are.

    Drawing from noise on the straight line between two would draw from too little of it. Rows that
    point the same or opposite ways, where there is no arc, are mixed straight.

    Args:
        a, b: (B, *S).
        share: of b: one number, or (B,).
    """
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    part = torch.as_tensor(share, dtype=torch.float64, device=a.device).reshape(-1, 1)
    unit_a, unit_b = (each / each.norm(dim=1, keepdim=True) for each in (flat_a, flat_b))
    angle = (unit_a * unit_b).sum(1, keepdim=True).clamp(-1, 1).acos()
    straight = angle.sin() < 1e-6
    below = torch.where(straight, torch.ones_like(angle), angle.sin())
    of_a = torch.where(straight, 1 - part, ((1 - part) * angle).sin() / below)
    of_b = torch.where(straight, part.expand_as(angle), (part * angle).sin() / below)
    return (of_a * flat_a + of_b * flat_b).reshape(a.shape).to(a.dtype)
