"""Samplers of diffusion models, from noise to signal; `METHODS` has them by name.

Pure functions `(denoiser, x, times, process) -> x`. The denoiser predicts the clean signal x0 and
the noise eps of x at a time; `times` (N+1,) falls from where x is to where it should go, 0 being
clean. `generator` gives the fresh noise of samplers that need some; `callback` sees each step and
the clean signal predicted in it. Call them under `torch.no_grad()`.

In the formulas below, alpha, sigma stand for here and alpha', sigma' for there, the step's end.

Shapes: B rows; *S the sizes of a signal.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from bedstone.diffusion.process import Process
from bedstone.errors import BedstoneError

# (x (B, *S), t (B,)) -> (the predicted clean signal x0, the predicted noise eps), so that
# x = alpha x0 + sigma eps.
Denoiser = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# One for the batch, or one for each row: a row's signal then doesn't depend on its neighbours.
Generators = torch.Generator | Sequence[torch.Generator] | None

# (step from 1, steps, x after the step, the clean signal predicted in it).
Callback = Callable[[int, int, Tensor, Tensor], None]


@dataclass(frozen=True)
class Level:
    """The noise level at one time: x = alpha x0 + sigma eps.

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
    """The noise level at each of `times`.

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
    """Spherical interpolation from noise a to b (Shoemake, 1985), which keeps the norm.

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


def ddpm(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    process: Process,
    *,
    variance: Literal["small", "large"] = "small",
    end: float = 1.0,
    generator: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Ancestral sampling (Ho et al., 2020, algorithm 2), a draw from q(x' | x, x0) at each step.

    Mean and variance are equations 6 and 7, written for any alpha and sigma as in Kingma et al.,
    2021, appendix A.2: with a = alpha / alpha' and s2 = sigma^2 - a^2 sigma'^2,

        mean = alpha' s2 / sigma^2 x0 + a sigma'^2 / sigma^2 x,  variance = s2 sigma'^2 / sigma^2.

    Args:
        x: (B, *S), noise at the first of `times`.
        variance: "large" takes s2 itself, the other of the two choices in section 3.2.
        end: what the clean signal is multiplied by in a step that ends clean.
    """
    steps = levels(process, times)
    for i, (here, there) in enumerate(pairwise(steps), 1):
        x0, _ = denoiser(x, at(here.t, x))
        share = kept(here, there)
        a = here.alpha / there.alpha
        of_x0 = there.alpha * (1 - share**2) * (end if there.sigma == 0 else 1.0)
        of_x = a * (there.sigma / here.sigma) ** 2
        x = of_x0 * x0 + of_x * x
        deviation = (there.sigma if variance == "small" else here.sigma) * fresh(share)
        if there.sigma > 0 and deviation > 0:  # the last step adds none
            x = x + deviation * noise_like(x, generator)
        if callback is not None:
            callback(i, len(steps) - 1, x, x0)
    return x


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    process: Process,
    *,
    eta: float = 0.0,
    generator: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """DDIM (Song et al., 2021a, equations 12 and 16).

        x' = alpha' x0 + sqrt(sigma'^2 - d^2) eps + d noise,
        d = eta sigma' sqrt(1 - (sigma' alpha / (sigma alpha'))^2)

    Args:
        x: (B, *S), noise at the first of `times`.
        eta: 0 draws no noise on the way, 1 is DDPM of the small variance.
    """
    if not 0 <= eta <= 1:
        raise BedstoneError(f"eta: {eta} was given; expected 0 (no fresh noise) to 1 (DDPM).")
    steps = levels(process, times)
    for i, (here, there) in enumerate(pairwise(steps), 1):
        x0, eps = denoiser(x, at(here.t, x))
        new = eta * fresh(kept(here, there))  # of there's noise, how much is drawn
        x = there.alpha * x0 + there.sigma * fresh(new) * eps
        if there.sigma * new > 0:
            x = x + there.sigma * new * noise_like(x, generator)
        if callback is not None:
            callback(i, len(steps) - 1, x, x0)
    return x


def ddim_invert(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    process: Process,
    *,
    rounds: int = 1,
    callback: Callback | None = None,
) -> Tensor:
    """The noise from which `ddim` draws x: its steps, backwards.

    One round is the usual inversion (Dhariwal and Nichol, 2021, appendix F): a step's noise is
    predicted from where it starts instead of where it ends. More rounds predict again where the
    last round ended (Pan et al., 2023, equation 9), so that DDIM's own step leads back ever more
    exactly. There the noise is kept from the prediction near the clean end, as in the paper, and
    the clean signal where there is more noise than signal, as each converges in its part only.

    Args:
        x: (B, *S), clean, or at the last of `times`.
        times: those of the drawing, falling as for `ddim`; they are gone through backwards.
        rounds: predictions a step.
    """
    if rounds < 1:
        raise BedstoneError(f"rounds: {rounds} was given; expected at least 1 prediction a step.")
    steps = levels(process, times)[::-1]
    for i, (here, there) in enumerate(pairwise(steps), 1):
        start = x
        for again in range(rounds):
            x0, eps = denoiser(x, at(there.t, x))
            if again and here.sigma > here.alpha:
                eps = (start - here.alpha * x0) / here.sigma
            else:
                x0 = (start - here.sigma * eps) / here.alpha
            x = there.alpha * x0 + there.sigma * eps
        if callback is not None:
            callback(i, len(steps) - 1, x, x0)
    return x


def euler(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    process: Process,
    *,
    generator: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Euler's method on the probability flow (Karras et al., 2022, algorithm 1 without line 6).

    In x / alpha, the flow's slope by sigma / alpha is eps; on a straight path from noise to signal,
    it is eps - x0 by t. Both lead to x' = alpha' x0 + sigma' eps, which is DDIM.

    Args:
        x: (B, *S), noise at the first of `times`.
        generator: not needed; every sampler can be given one.
    """
    return ddim(denoiser, x, times, process, generator=generator, callback=callback)


def euler_ancestral(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    process: Process,
    *,
    generator: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Euler's method past each step's end, and fresh noise up to it again (k-diffusion's
    `get_ancestral_step`).

    With s = sigma / alpha, it goes down to s'^2 / s and adds s' sqrt(1 - (s' / s)^2) of noise: the
    variance of q(x' | x, x0), so that it is DDIM of eta 1.

    Args:
        x: (B, *S), noise at the first of `times`.
    """
    return ddim(denoiser, x, times, process, eta=1.0, generator=generator, callback=callback)


def heun(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    process: Process,
    *,
    generator: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """Heun's method on the probability flow (Karras et al., 2022, algorithm 1): second order for
    two predictions a step, one in a step that ends clean.

    The slope is averaged in coordinates where the way is nearly straight: x / alpha along
    sigma / alpha, as in the paper; for a process that starts from nothing but noise, where that
    would be infinite, x / (alpha + sigma) along sigma / (alpha + sigma), which for a flow are x
    and t themselves.

    Args:
        x: (B, *S), noise at the first of `times`.
        generator: not needed; every sampler can be given one.
    """
    steps = levels(process, times)
    straight = any(level.alpha == 0 for level in levels(process, [0.0, 1.0]))
    for i, (here, there) in enumerate(pairwise(steps), 1):
        x0, eps = denoiser(x, at(here.t, x))
        end = there.alpha * x0 + there.sigma * eps
        if there.sigma > 0:
            x0_there, eps_there = denoiser(end, at(there.t, x))
            if straight:
                long, far = here.alpha + here.sigma, there.alpha + there.sigma
                way = there.sigma / far - here.sigma / long
                slope = (eps - x0 + eps_there - x0_there) / 2
                end = far * (x / long + way * slope)
            else:
                way = there.sigma / there.alpha - here.sigma / here.alpha
                end = there.alpha * (x / here.alpha + way * (eps + eps_there) / 2)
        x = end
        if callback is not None:
            callback(i, len(steps) - 1, x, x0)
    return x


# From noise to signal: samplers that remember their last predictions, one prediction a step.
#
# Both papers solve the probability flow in lambda = log(alpha / sigma), where all but the predicted
# clean signal m is exact, and extrapolate m from the last steps. Arguments are those of
# `denoise.py`; alpha, sigma stand for here and alpha', sigma' for there, h = lambda' - lambda.
# `METHODS` holds every sampler by name.
#
# Shapes: B rows; *S the sizes of a signal.

FEW = 15  # below so many steps, the solvers' authors end with a step of lower order


def dpm_solver_2m(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    process: Process,
    *,
    calm_end: bool = True,
    generator: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al., 2022, algorithm 2), second order.

        x' = sigma' / sigma x + alpha' (1 - exp(-h)) D,  D = m + h / (2 h_before) (m - m_before)

    Args:
        x: (B, *S), noise at the first of `times`.
        calm_end: the last of few steps is of the first order. A step that ends clean always is.
        generator: not needed; every sampler can be given one.
    """
    steps = levels(process, times)
    before: tuple[Level, Tensor] | None = None
    for i, (here, there) in enumerate(pairwise(steps), 1):
        m, _ = denoiser(x, at(here.t, x))
        plain = there.sigma == 0 or _calm(i, len(steps) - 1, calm_end)
        d = m if plain else _extrapolated(m, before, here, there)
        x = there.sigma / here.sigma * x + there.alpha * (1 - kept(here, there)) * d
        before = (here, m)
        if callback is not None:
            callback(i, len(steps) - 1, x, m)
    return x


def dpm_solver_sde(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    process: Process,
    *,
    calm_end: bool = True,
    generator: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al., 2022, section 5.4 and appendix B.3): the reverse diffusion
    instead of the flow, so that errors of early steps are forgotten.

        x' = sigma' / sigma exp(-h) x + alpha' (1 - exp(-2h)) D + sigma' sqrt(1 - exp(-2h)) noise

    with D as in `dpm_solver_2m`, whose arguments it takes.
    """
    steps = levels(process, times)
    before: tuple[Level, Tensor] | None = None
    for i, (here, there) in enumerate(pairwise(steps), 1):
        m, _ = denoiser(x, at(here.t, x))
        plain = there.sigma == 0 or _calm(i, len(steps) - 1, calm_end)
        d = m if plain else _extrapolated(m, before, here, there)
        share = kept(here, there)
        x = there.sigma / here.sigma * share * x + there.alpha * (1 - share**2) * d
        if there.sigma * fresh(share) > 0:
            x = x + there.sigma * fresh(share) * noise_like(x, generator)
        before = (here, m)
        if callback is not None:
            callback(i, len(steps) - 1, x, m)
    return x


def unipc(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    process: Process,
    *,
    order: int = 2,
    calm_end: bool = True,
    generator: Generators = None,
    callback: Callback | None = None,
) -> Tensor:
    """UniPC of the clean signal with B_2(h) (Zhao et al., 2023, algorithms 5 to 8).

    Each step is predicted from the last `order` predictions, and corrected by the prediction made
    at its end, which the next step needs anyway: order + 1 for one prediction a step. The last step
    stays uncorrected, and the clean end is reached by a step of the first order.

    Args:
        x: (B, *S), noise at the first of `times`.
        order: 1 to 3 of the predictor.
        calm_end: the last steps are of ever lower order, as in section 3.4.
        generator: not needed; every sampler can be given one.
    """
    if order not in (1, 2, 3):
        raise BedstoneError(f"order: {order} was given; expected 1, 2 or 3.")
    steps = levels(process, times)
    count = len(steps) - 1
    known: list[tuple[Level, Tensor]] = []  # predictions so far, the newest first
    started, used = x, 0  # of the step before: where it started, and its order
    for i, (here, there) in enumerate(pairwise(steps), 1):
        m, _ = denoiser(x, at(here.t, x))
        if used:
            x = _unified(started, known[:used], here, m)
        known = [(here, m), *known][:order]
        useful = [pair for pair in known if math.isfinite(pair[0].half)]  # not from pure noise
        left = count - i + 1 if calm_end else order
        used = 1 if there.sigma == 0 else max(1, min(order, left, len(useful)))
        started = x
        x = _unified(started, known[:used], there, None)
        if callback is not None:
            callback(i, count, x, m)
    return x


def _calm(step: int, steps: int, wanted: bool) -> bool:
    return wanted and step == steps and steps < FEW


def _extrapolated(
    m: Tensor, before: tuple[Level, Tensor] | None, here: Level, there: Level
) -> Tensor:
    """The clean signal in the middle of the step, from the last two predictions."""
    if before is None:
        return m
    level, older = before
    share = (there.half - here.half) / (here.half - level.half) / 2  # 0 after pure noise
    return m + share * (m - older) if share else m


def _unified(
    x: Tensor, known: list[tuple[Level, Tensor]], there: Level, corrected: Tensor | None
) -> Tensor:
    """A step from the newest of `known` to there: equation 8 with a prediction made there, which
    corrects the step, and equation 9 without.

    Args:
        x: where the step starts.
        known: levels and predicted clean signals, the newest first; their number is the order.
        corrected: the clean signal predicted at the step's end.
    """
    here, m = known[0]
    h = there.half - here.half
    alone = -math.expm1(-h)  # -B_2(h) of predicted clean signals
    base = there.sigma / here.sigma * x + there.alpha * alone * m
    places = [(level.half - here.half) / h for level, _ in known[1:]]  # below 0: before here
    slopes = [(each - m) / place for (_, each), place in zip(known[1:], places, strict=True)]
    if corrected is not None:
        places, slopes = [*places, 1.0], [*slopes, corrected - m]
    for weight, slope in zip(_weights(places, h), slopes, strict=True):
        base = base + there.alpha * alone * weight * slope
    return base


def _weights(places: list[float], h: float) -> list[float]:
    """a_1 to a_p of theorem 3.1, for the slopes to predictions at `places` of the step.

    One slope gets 1/2, which fulfils the theorem whatever its place (appendix F).
    """
    if len(places) <= 1:
        return [0.5] * len(places)
    below = math.expm1(-h)  # B_2 of predicted clean signals
    part, wanted = below / -h - 1, []  # phi_2 times -h, then phi_3 times h^2, ...
    for k in range(1, len(places) + 1):
        wanted.append(math.factorial(k) * part / below)
        part = part / -h - 1 / math.factorial(k + 1)
    rows = [[place**k for place in places] for k in range(len(places))]
    matrix = torch.tensor(rows, dtype=torch.float64)
    return torch.linalg.solve(matrix, torch.tensor(wanted, dtype=torch.float64)).tolist()


# Every sampler that goes from noise to signal, by the name that a recipe or a command gives it.
METHODS: dict[str, Callable[..., Tensor]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm_solver_2m": dpm_solver_2m,
    "dpm_solver_sde": dpm_solver_sde,
    "unipc": unipc,
}
