"""Schedules of `nn.noising.Discrete`: the variance that each step adds.

Linear as Ho et al., 2020, or linear in its root as latent diffusion has it (Rombach et al., 2022);
cosine as Nichol and Dhariwal, 2021; and a schedule changed so that no signal is left at its end
(Lin et al., 2023).
"""

import math

import torch
from torch import Tensor

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def schedule_betas(schedule: str, steps: int, start: float, end: float) -> Tensor:
    """(steps,) float32, rising from `start` to `end`; the cosine reads neither."""
    if schedule == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float32)
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    return _cosine_betas(steps)


def _cosine_betas(steps: int) -> Tensor:
    """Nichol and Dhariwal, 2021, equation 17."""

    def kept(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [1 - kept((i + 1) / steps) / kept(i / steps) for i in range(steps)]
    return torch.tensor([min(beta, 0.999) for beta in betas], dtype=torch.float32)


def without_end(betas: Tensor) -> Tensor:
    """Lin et al., 2023, algorithm 1: alpha falls to 0, from where it began."""
    alpha = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = alpha[0].clone(), alpha[-1].clone()
    return betas_of(((alpha - last) * (first / (first - last))) ** 2)


def betas_of(alphas_cumprod: Tensor) -> Tensor:
    """(steps,): the betas whose 1 - beta has this running product (steps,)."""
    ratios = alphas_cumprod[1:] / alphas_cumprod[:-1]
    return 1 - torch.cat([alphas_cumprod[:1], ratios])
