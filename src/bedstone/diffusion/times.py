"""Spacings: the times at which a sampler evaluates the network.

`times` gives (N+1,) float64 numbers that fall to 0, the clean end, where nothing is asked any
more. Published names of spacings are kept (Lin et al., 2023, table 2).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bedstone.diffusion.process import EDM, Discrete, Process
from bedstone.errors import BedstoneError, nearest
from bedstone.settings import check_whole

DOUBLE = torch.float64


def trailing(process: Process, steps: int) -> Tensor:
    """Evenly from the noisiest, N steps of equal length to the clean end.

    Of growing noise it is `linspace`: a whole step before the end would be below its least noise.
    """
    if isinstance(process, EDM):
        return linspace(process, steps)
    if not isinstance(process, Discrete):
        return torch.linspace(1, 0, steps + 1, dtype=DOUBLE)[:-1]
    ends = process.steps - process.steps / steps * torch.arange(steps, dtype=DOUBLE)
    return process.time(ends.round() - 1)


def leading(process: Process, steps: int, offset: int = 0) -> Tensor:
    """Evenly up from the first step of training; the noisiest ones are left out."""
    if not isinstance(process, Discrete):
        raise BedstoneError(
            "spacing: 'leading' starts short of the noisiest step, and only processes in steps "
            "have one to start from; expected 'trailing'."
        )
    timestep = torch.arange(steps - 1, -1, -1, dtype=DOUBLE) * (process.steps // steps) + offset
    return process.time(timestep.clamp(max=process.steps - 1))


def linspace(process: Process, steps: int) -> Tensor:
    """Evenly from the noisiest to the least noisy of training, in whole steps if it has steps."""
    if not isinstance(process, Discrete):
        return torch.linspace(1, process.first, steps, dtype=DOUBLE)
    return process.time(torch.linspace(process.steps - 1, 0, steps, dtype=DOUBLE).round())


def ends(process: Process, steps: int) -> Tensor:
    """Whole steps spread from the last to the first, as unCLIP's published scheduler has them."""
    assert isinstance(process, Discrete)
    spread = torch.arange(steps - 1, -1, -1, dtype=DOUBLE) * (
        (process.steps - 1) / (steps - 1 or 1)
    )
    return process.time(spread.round() if steps > 1 else spread + process.steps - 1)


def even(process: Process, steps: int) -> Tensor:
    """As `linspace`, between whole steps too."""
    return torch.linspace(1, process.first, steps, dtype=DOUBLE)


def karras(
    process: Process, steps: int, rho: float = 7.0, between: tuple[float, float] | None = None
) -> Tensor:
    """Evenly in (sigma / alpha)^(1 / rho) (Karras et al., 2022, equation 5).

    Args:
        between: the first and the last time; all of the process by default.
    """
    noisy, calm = _ends(process, between)
    roots = torch.linspace(1, 0, steps, dtype=DOUBLE)
    low, high = (-calm / rho).exp(), (-noisy / rho).exp()
    return process.time_at(-2 * rho * (low + roots * (high - low)).log())


def log_snr(process: Process, steps: int, between: tuple[float, float] | None = None) -> Tensor:
    """Evenly in log(alpha / sigma), where solvers of high order are at home (Lu et al., 2022)."""
    noisy, calm = _ends(process, between)
    return process.time_at(2 * (noisy + torch.linspace(0, 1, steps, dtype=DOUBLE) * (calm - noisy)))


SPACINGS: dict[str, Callable[..., Tensor]] = {
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
    "even": even,
    "karras": karras,
    "log_snr": log_snr,
}


def times(process: Process, steps: int, spacing: str = "trailing", **options: object) -> Tensor:
    """The times of a drawing in `steps` steps, (steps+1,), from noise to the clean end.

    Args:
        process: the network's.
        steps: how many; of a process in steps, at most its own.
        spacing: one of `SPACINGS`.
        options: of the spacing.

    Raises:
        BedstoneError: an unknown spacing, or too many or too few steps.
    """
    check_steps(process, steps)
    if spacing not in SPACINGS:
        raise BedstoneError(f"spacing: {spacing!r} is unknown{nearest(spacing, SPACINGS)}.")
    inner = SPACINGS[spacing](process, steps, **options)
    return torch.cat([inner, torch.zeros(1, dtype=DOUBLE)])


def check_steps(process: Process, steps: int) -> None:
    """Raises BedstoneError where a process hasn't so many steps."""
    check_whole("steps", steps, 1)
    if isinstance(process, Discrete) and steps > process.steps:
        raise BedstoneError(
            f"steps: {steps} were given, but the network was trained on {process.steps}; expected "
            "at most as many."
        )


def shortened(times: Tensor, strength: float) -> Tensor:
    """The end of `times`, for a drawing that starts from a signal (image to image).

    Start it from `noised(process, signal, noise, times[0])`.

    Args:
        strength: share of the steps that is taken, above 0; 1 keeps nearly nothing of the signal.
    """
    if not 0 < strength <= 1:
        raise BedstoneError(
            f"strength: {strength} was given; expected above 0 to 1 (a new picture)."
        )
    steps = len(times) - 1
    return times[steps - max(1, min(steps, int(steps * strength + 1e-9))) :]


def _ends(process: Process, between: tuple[float, float] | None) -> tuple[Tensor, Tensor]:
    """log(alpha / sigma) at the first and the last time."""
    start, end = between or (1.0, process.first)
    noisy, calm = process.log_snr(torch.tensor([start, end], dtype=DOUBLE)) / 2
    if not bool(torch.isfinite(noisy)):
        raise BedstoneError(
            "spacing: karras and log_snr divide the way from one level of noise to another, and "
            "this process starts from nothing but noise, which has none. Choose trailing, "
            "linspace or even."
        )
    return noisy, calm
