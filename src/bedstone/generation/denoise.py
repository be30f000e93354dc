"""From noise to signal: samplers that look one step back. Those that look further, and the table
of all by name, are in `denoise_multistep.py`.

Pure functions `(denoiser, x, times, process) -> x`. The denoiser predicts the clean signal x0 and
the noise eps of x at a time; `times` (N+1,) falls from where x is to where it should go, 0 being
clean. `generator` gives the fresh noise of samplers that need some; `callback` sees each step and
the clean signal predicted in it. Call them under `torch.no_grad()`.

In the formulas below, alpha, sigma stand for here and alpha', sigma' for there, the step's end.

Shapes: B rows; *S the sizes of a signal.
"""

from itertools import pairwise
from typing import Literal

from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.generation.denoise_steps import (
    Callback,
    Denoiser,
    Generators,
    at,
    fresh,
    kept,
    levels,
    noise_like,
)
from bedstone.nn.noising import Process


def ddpm(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    process: Process,
    *,
    variance: Literal["small", "large"] = "small",
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
    """
    steps = levels(process, times)
    for i, (here, there) in enumerate(pairwise(steps), 1):
        x0, _ = denoiser(x, at(here.t, x))
        share = kept(here, there)
        a = here.alpha / there.alpha
        of_x0 = there.alpha * (1 - share**2)
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
