"""Processes and targets as a published `scheduler_config.json` says them, both ways.

The file is of diffusers, whose class is the way to sample; the process is in its fields. What no
class of diffusers does is written as `BedstoneScheduler`, which diffusers refuses to open: better
than pictures of nothing.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from bedstone.errors import BedstoneError, nearest
from bedstone.nn.noise_targets import Target, target
from bedstone.nn.noising import EDM, Discrete, Flow, Process

OURS = "BedstoneScheduler"
KINDS: dict[str, type[Discrete | Flow | EDM]] = {"discrete": Discrete, "flow": Flow, "edm": EDM}
# Our samplers as diffusers names them, the first of a name where several share it.
SAMPLERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm_solver_2m": "DPMSolverMultistepScheduler",
    "dpm_solver_sde": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
FLOW, GROWING = "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"
SOLVERS = (SAMPLERS["dpm_solver_2m"], SAMPLERS["unipc"])
NAMES = (OURS, FLOW, GROWING, *dict.fromkeys(SAMPLERS.values()))
STEPPED = ("epsilon", "sample", "v_prediction")  # targets that every class of steps knows
STRAIGHT = ("epsilon", "sample")  # beside its own, targets of a flow that the solvers know


def process_from(config: Mapping[str, Any]) -> tuple[Process, Target]:
    """How noise is added, and what the network predicts.

    Raises:
        BedstoneError: a class that isn't known, or a field out of range; it says no file's name.
    """
    name = config.get("_class_name", "")
    if name not in NAMES:
        raise BedstoneError(f"_class_name: {name!r} is unknown{nearest(str(name), NAMES)}.")
    if name == OURS:
        return _ours(config)
    said = config.get("prediction_type", "epsilon")
    if name == FLOW:
        return Flow(_number(config, "shift", 1.0), steps_of(config)), target("flow_prediction")
    if name == GROWING:
        if said != "epsilon":
            raise BedstoneError(
                f"prediction_type: {said!r} of {GROWING} isn't known; expected 'epsilon'."
            )
        return _growing(config), target("edm")
    if config.get("use_flow_sigmas"):
        if said == "v_prediction":
            raise BedstoneError(
                "prediction_type: 'v_prediction' of a flow isn't known; expected "
                "'flow_prediction', 'epsilon' or 'sample'."
            )
        return Flow(_number(config, "flow_shift", 1.0), steps_of(config)), target(said)
    process = Discrete(
        steps_of(config),
        str(config.get("beta_schedule", "linear")),
        _number(config, "beta_start", 0.0001),
        _number(config, "beta_end", 0.02),
        zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
        trained_betas=_betas(config),
    )
    return process, target("sample" if said == "original_sample" else said)


def method_from(config: Mapping[str, Any]) -> str:
    """Our sampler of a config that `process_from` reads; dpm_solver_2m where none is said."""
    name = config.get("_class_name", "")
    if name in (FLOW, GROWING):
        return "euler"
    if str(config.get("algorithm_type", "")).startswith("sde-") and name == SOLVERS[0]:
        return "dpm_solver_sde"
    found = [method for method, known in SAMPLERS.items() if known == name]
    return str(config.get("method", "dpm_solver_2m")) if not found else found[0]


def config_of(process: Process, aim: Target, method: str = "ddim") -> dict[str, Any]:
    """What `process_from` and `method_from` read; the last step of a drawing is the clean end.

    Args:
        method: one of `SAMPLERS`; where diffusers has it not for the process, the nearest it has.

    Raises:
        BedstoneError: the method is unknown.
    """
    if method not in SAMPLERS:
        raise BedstoneError(f"method: {method!r} is unknown{nearest(method, SAMPLERS)}.")
    if isinstance(process, EDM) and aim.name == "edm":
        said = {"sigma_min": process.sigma_min, "sigma_max": process.sigma_max}
        more = {"rho": process.rho, "sigma_data": process.data_std, "prediction_type": "epsilon"}
        return {"_class_name": GROWING, **said, **more}
    if isinstance(process, Flow):
        return _config_of_flow(process, aim, method)
    if isinstance(process, Discrete) and aim.name in STEPPED:
        return _config_of_steps(process, aim, method)
    return _config_of_ours(process, aim, method)


def _config_of_flow(process: Flow, aim: Target, method: str) -> dict[str, Any]:
    steps = {"num_train_timesteps": process.steps}
    name = SAMPLERS[method]
    if aim.name == "flow_prediction" and name not in SOLVERS:
        return {"_class_name": FLOW, **steps, "shift": process.shift}
    if aim.name not in ("flow_prediction", *STRAIGHT):
        return _config_of_ours(process, aim, method)
    name = name if name in SOLVERS else SOLVERS[0]
    flow = {"use_flow_sigmas": True, "flow_shift": process.shift, "prediction_type": aim.name}
    return {"_class_name": name, **steps, **flow, **_solver(method)}


def _config_of_steps(process: Discrete, aim: Target, method: str) -> dict[str, Any]:
    # Heun's class has no field for a schedule without signal at its end.
    name = SAMPLERS["ddim" if method == "heun" and process.zero_terminal_snr else method]
    # Of a shifted schedule the steps themselves are written: no published field says the shift.
    betas = process.betas.tolist() if process.shift != 1 else process.trained_betas
    config: dict[str, Any] = {
        "_class_name": name,
        "num_train_timesteps": process.steps,
        "beta_start": process.beta_start,
        "beta_end": process.beta_end,
        "beta_schedule": process.schedule,
        "trained_betas": list(betas) or None,
        "prediction_type": aim.name,
        "timestep_spacing": "trailing",
        "steps_offset": 0,
    }
    if name != SAMPLERS["heun"]:
        # Steps that are written have lost their end already.
        config["rescale_betas_zero_snr"] = process.zero_terminal_snr and process.shift == 1
    if name in (SAMPLERS["ddpm"], SAMPLERS["ddim"]):
        config["clip_sample"] = False
    return {**config, **_solver(method)}


def _config_of_ours(process: Process, aim: Target, method: str) -> dict[str, Any]:
    kind = next(name for name, known in KINDS.items() if isinstance(process, known))
    said = asdict(process)  # type: ignore[call-overload]
    return {"_class_name": OURS, "process": kind, "target": aim.name, "method": method, **said}


def _solver(method: str) -> dict[str, Any]:
    return {"algorithm_type": "sde-dpmsolver++"} if method == "dpm_solver_sde" else {}


def _ours(config: Mapping[str, Any]) -> tuple[Process, Target]:
    name = str(config.get("process"))
    if (kind := KINDS.get(name)) is None:
        raise BedstoneError(f"process: {name!r} is unknown{nearest(name, KINDS)}.")
    known = {field.name for field in fields(kind)} & set(config)
    said = {name: config[name] for name in known}
    if "trained_betas" in said:
        said["trained_betas"] = _betas(config)
    for name in known - {"schedule", "trained_betas", "zero_terminal_snr", "steps"}:
        said[name] = _number(config, name, 0.0)
    return kind(**said), target(str(config.get("target")))


def _growing(config: Mapping[str, Any]) -> EDM:
    return EDM(
        _number(config, "sigma_min", 0.002),
        _number(config, "sigma_max", 80.0),
        _number(config, "rho", 7.0),
        _number(config, "sigma_data", 0.5),
    )


def steps_of(config: Mapping[str, Any]) -> int:
    """How many steps; checked by the process."""
    return config.get("num_train_timesteps", 1000)


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BedstoneError(f"{name}: {value!r} was given; expected a number.")
    return float(value)


def _betas(config: Mapping[str, Any]) -> tuple[float, ...]:
    betas = config.get("trained_betas") or ()
    if not isinstance(betas, list | tuple) or not all(isinstance(b, int | float) for b in betas):
        raise BedstoneError("trained_betas: expected a list of numbers, one for each step.")
    return tuple(map(float, betas))
