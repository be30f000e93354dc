"""From noise to signal: samplers that remember their last predictions, one prediction a step.

Both papers solve the probability flow in lambda = log(alpha / sigma), where all but the predicted
clean signal m is exact, and extrapolate m from the last steps. Arguments are those of
`denoise.py`; alpha, sigma stand for here and alpha', sigma' for there, h = lambda' - lambda.
`METHODS` holds every sampler by name.

Shapes: B rows; *S the sizes of a signal.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.generation.denoise import ddim, ddpm, euler, euler_ancestral, heun
from bedstone.generation.denoise_steps import (
    Callback,
    Denoiser,
    Generators,
    Level,
    at,
    fresh,
    kept,
    levels,
    noise_like,
)
from bedstone.nn.noising import Process

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
