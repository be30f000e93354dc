"""How a published folder wants to be sampled: `scheduler_config.json` as a sampler and its times.

The names in it are those of diffusers; its process is read by `nn.noise_config`. What a sampler of
diffusers does that none of ours does is refused, not guessed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bedstone.errors import BedstoneError, nearest
from bedstone.generation.denoise_multistep import METHODS
from bedstone.generation.denoise_times import even, karras, leading, linspace, log_snr, trailing
from bedstone.generation.denoiser import Limit, clip, dynamic_threshold
from bedstone.nn.noise_config import GROWING, OURS, SOLVERS, method_from
from bedstone.nn.noising import Flow, Process

NAMES = (
    "DDPMScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    *SOLVERS,
    GROWING,
    OURS,
)
# Spacings of noise that none of ours is.
UNKNOWN = ("use_beta_sigmas", "use_dynamic_shifting", "stochastic_sampling", "shift_terminal")


@dataclass(frozen=True)
class Published:
    """A published way to sample.

    Attributes:
        method: the sampler's name in `METHODS`.
        options: further arguments of the sampler.
        times: (process, steps) -> (steps+1,).
        told: (process) -> what the network is told for a time, for `denoiser`.
        limit: of the clean signal, for `denoiser`; None for none.
        noise_stays: for `denoiser` too.
    """

    method: str
    times: Callable[[Process, int], Tensor]
    told: Callable[[Process], Callable[[Tensor], Tensor]]
    limit: Limit | None = None
    noise_stays: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def published(config: Mapping[str, Any]) -> Published:
    """The sampler of a `scheduler_config.json`.

    Raises:
        BedstoneError: a sampler, or a setting of one, that ours don't have.
    """
    name = config.get("_class_name", "")
    if name not in NAMES:
        raise BedstoneError(
            f"scheduler_config.json: the sampler {name!r} is not one of ours. Name a sampler "
            f"instead: {', '.join(METHODS)}."
        )
    for setting in UNKNOWN:
        if config.get(setting):
            raise _refused(setting, config[setting], "nothing")
    method = method_from(config)
    if method not in METHODS:
        raise BedstoneError(f"method: {method!r} is unknown{nearest(method, METHODS)}.")
    options: dict[str, Any] = {}
    if name == "DDPMScheduler":
        large = str(config.get("variance_type", "fixed_small")).startswith("fixed_large")
        options["variance"] = "large" if large else "small"
    elif name == "DPMSolverMultistepScheduler":
        method = _dpm_solver(config)
        if method.startswith("dpm"):
            options["calm_end"] = config.get("lower_order_final", True)
    elif name == "UniPCMultistepScheduler":
        _only(config, "solver_type", "bh2")
        _only(config, "predict_x0", True)
        options["order"] = config.get("solver_order", 2)
        options["calm_end"] = config.get("lower_order_final", True)
    return Published(
        method,
        _times(name, config),
        _told(name, config),
        _limit(name, config),
        noise_stays=name == "DDIMScheduler",  # its step's use_clipped_model_output is False
        options=options,
    )


def _dpm_solver(config: Mapping[str, Any]) -> str:
    kind = config.get("algorithm_type", "dpmsolver++")
    if kind not in ("dpmsolver++", "sde-dpmsolver++"):
        raise _refused("algorithm_type", kind, "dpmsolver++ or sde-dpmsolver++")
    _only(config, "solver_type", "midpoint")
    if config.get("euler_at_final") and config.get("final_sigmas_type", "zero") != "zero":
        raise _refused("euler_at_final", True, "False")
    order = config.get("solver_order", 2)
    if order not in (1, 2):
        raise _refused("solver_order", order, "1 or 2")
    if order == 1:
        return "ddim" if kind == "dpmsolver++" else "euler_ancestral"
    return "dpm_solver_2m" if kind == "dpmsolver++" else "dpm_solver_sde"


def _times(name: str, config: Mapping[str, Any]) -> Callable[[Process, int], Tensor]:
    def times(process: Process, steps: int) -> Tensor:
        inner, first = _inner(name, config, process, steps), process.first
        if name == "DDIMScheduler" and not config.get("set_alpha_to_one", True):
            last = first
        else:
            last = first if config.get("final_sigmas_type") == "sigma_min" else 0.0
        return torch.cat([inner, torch.tensor([last], dtype=torch.float64)])

    return times


def _inner(name: str, config: Mapping[str, Any], process: Process, steps: int) -> Tensor:
    """The times at which the network is asked."""
    if name == OURS:
        return trailing(process, steps)
    if name == GROWING:
        if config.get("sigma_schedule", "karras") != "karras":
            raise _refused("sigma_schedule", config["sigma_schedule"], "karras")
        return karras(process, steps, rho=config.get("rho", 7.0))
    if isinstance(process, Flow):
        return _flow_times(name, config, process, steps)
    of_logs = config.get("use_exponential_sigmas") or config.get("use_lu_lambdas")
    if name in SOLVERS:
        if config.get("use_karras_sigmas"):
            return karras(process, steps)
        if of_logs:
            return log_snr(process, steps)
        return _spaced(name, config, process, steps + 1)[:steps]
    inner = _spaced(name, config, process, steps)
    between = (float(inner[0]), float(inner[-1]))
    if config.get("use_karras_sigmas"):
        return karras(process, steps, between=between)
    return log_snr(process, steps, between=between) if of_logs else inner


def _spaced(name: str, config: Mapping[str, Any], process: Process, steps: int) -> Tensor:
    default = "leading" if name in ("DDPMScheduler", "DDIMScheduler") else "linspace"
    spacing = config.get("timestep_spacing", default)
    if spacing == "leading":
        return leading(process, steps, config.get("steps_offset", 0))
    if spacing == "trailing":
        return trailing(process, steps - (name in SOLVERS))  # none of it is left out
    whole = name in ("DDPMScheduler", "DDIMScheduler", *SOLVERS)
    return linspace(process, steps) if whole else even(process, steps)


def _flow_times(name: str, config: Mapping[str, Any], process: Flow, steps: int) -> Tensor:
    """Those of a flow, whose least noise counts as shifted already in one of them."""
    least = 1 / process.steps
    if config.get("use_karras_sigmas") or config.get("use_exponential_sigmas"):
        raise _refused("use_karras_sigmas or use_exponential_sigmas", True, "False for a flow")
    if name == "FlowMatchEulerDiscreteScheduler":
        last = float(process.sigma(torch.tensor(least, dtype=torch.float64)))
        return torch.linspace(1, last, steps, dtype=torch.float64)
    if name == "DPMSolverMultistepScheduler":
        return torch.linspace(1 - least, 0, steps + 1, dtype=torch.float64)[:-1]
    inner = torch.linspace(1, least, steps + 1, dtype=torch.float64)[:-1]
    inner[0] = process.time(process.steps * (1 - 1e-6))  # so that its logarithm is a number
    return inner


def _told(name: str, config: Mapping[str, Any]) -> Callable[[Process], Callable[[Tensor], Tensor]]:
    """The solvers tell whole numbers, whatever they computed."""
    rounded = config.get("use_karras_sigmas") or config.get("use_lu_lambdas")
    if name == "DPMSolverMultistepScheduler" and rounded:
        rounded = config.get("beta_schedule") != "squaredcos_cap_v2"

    def told(process: Process) -> Callable[[Tensor], Tensor]:
        if name not in SOLVERS:
            return process.told
        if rounded:
            return lambda t: process.told(t).round()
        return lambda t: (process.told(t) + 2e-4).floor()  # what float32 lost of a whole number

    return told


def _limit(name: str, config: Mapping[str, Any]) -> Limit | None:
    if config.get("thresholding"):
        share = config.get("dynamic_thresholding_ratio", 0.995)
        return dynamic_threshold(share, config.get("sample_max_value", 1.0))
    if config.get("clip_sample", name in ("DDPMScheduler", "DDIMScheduler")):
        return clip(config.get("clip_sample_range", 1.0))
    return None


def _only(config: Mapping[str, Any], name: str, wanted: Any) -> None:
    if config.get(name, wanted) != wanted:
        raise _refused(name, config[name], str(wanted))


def _refused(name: str, value: Any, expected: str) -> BedstoneError:
    return BedstoneError(
        f"scheduler_config.json: {name} is {value!r}; expected {expected}. Name a sampler instead: "
        f"{', '.join(METHODS)}."
    )
