"""Published schedulers: `scheduler_config.json` as a process, a sampler and its times.

The names in it are those of diffusers; its process is read by `diffusion.schedulers`. What a
sampler of diffusers does that none of ours does is refused, not guessed.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bedstone.diffusion.denoiser import Limit, clip, dynamic_threshold
from bedstone.diffusion.process import EDM, Discrete, Flow, Process
from bedstone.diffusion.samplers import METHODS
from bedstone.diffusion.targets import Target, target
from bedstone.diffusion.times import ends, even, karras, leading, linspace, log_snr, trailing
from bedstone.errors import BedstoneError, nearest
from bedstone.files import write_json
from bedstone.published_keys import Keys, keys
from bedstone.reading import read_object

NAME = "scheduler_config.json"
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
UNCLIP = "UnCLIPScheduler"  # DDPM by the cosine, its steps spread from the last to the first
SOLVERS = (SAMPLERS["dpm_solver_2m"], SAMPLERS["unipc"])
NAMES = (OURS, FLOW, GROWING, UNCLIP, *dict.fromkeys(SAMPLERS.values()))
COSINE = "squaredcos_cap_v2"
STEPPED = ("epsilon", "sample", "v_prediction")  # targets that every class of steps knows
STRAIGHT = ("epsilon", "sample")  # beside its own, targets of a flow that the solvers know


# What a class means by leaving a key out, where it isn't what the others mean.
DEFAULTS = {"HeunDiscreteScheduler": {"beta_start": 0.00085, "beta_end": 0.012}}


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
    config = {**DEFAULTS.get(name, {}), **config}
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
        str(config.get("beta_schedule", COSINE if name == UNCLIP else "linear")),
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
    if name == UNCLIP:
        return "ddpm"
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


# Every key of each class, with the values that ours can't do otherwise than.
_COMMON = Keys(
    honoured=keys("_class_name num_train_timesteps prediction_type"),
    harmless=keys("_diffusers_version _use_default_values _commit_hash _name_or_path"),
    remedy=f"Name a sampler instead: {', '.join(METHODS)}.",
)
_STEPS = _COMMON | Keys(
    honoured=keys("beta_start beta_end beta_schedule trained_betas steps_offset"),
    plain={"timestep_spacing": ("leading", "linspace", "trailing")},
)
_ZERO = keys("rescale_betas_zero_snr")
_LIMITS = keys("thresholding dynamic_thresholding_ratio sample_max_value")
_CLIPS = keys("clip_sample clip_sample_range")
_SPACED = Keys(
    honoured=keys("use_karras_sigmas use_exponential_sigmas"),
    plain={"use_beta_sigmas": (False,)},
)
_SHIFTED = Keys(
    harmless=keys("time_shift_type base_shift max_shift base_image_seq_len max_image_seq_len"),
    plain={"use_dynamic_shifting": (False,), "shift_terminal": ()},
)
_BOUNDED: dict[str, Any] = {"sigma_min": (), "sigma_max": ()}
_ENDS: dict[str, Any] = {"final_sigmas_type": ("zero", "sigma_min")}


def _more(base: Keys, honoured: frozenset[str] = frozenset(), **plain: tuple[Any, ...]) -> Keys:
    return base | Keys(honoured=honoured, plain=plain)


_SOLVED = _more(_STEPS | _SPACED | _SHIFTED, _ZERO | _LIMITS, **_ENDS) | Keys(
    honoured=keys("solver_order lower_order_final use_flow_sigmas flow_shift"),
)
KEYS: dict[str, Keys] = {
    "DDPMScheduler": _more(
        _STEPS,
        _ZERO | _LIMITS | _CLIPS,
        variance_type=("fixed_small", "fixed_small_log", "fixed_large"),
    ),
    # with linspace, diffusers' steps end at other times than the next ones begin
    "DDIMScheduler": _more(
        _STEPS,
        _ZERO | _LIMITS | _CLIPS | keys("set_alpha_to_one"),
        timestep_spacing=("leading", "trailing"),
    ),
    "EulerDiscreteScheduler": _more(
        _STEPS | _SPACED,
        _ZERO,
        interpolation_type=("linear",),
        timestep_type=("discrete",),
        **_ENDS,
        **_BOUNDED,
    ),
    "EulerAncestralDiscreteScheduler": _more(_STEPS, _ZERO),
    "HeunDiscreteScheduler": _more(_STEPS | _SPACED, _CLIPS),
    "DPMSolverMultistepScheduler": _more(
        _SOLVED,
        keys("euler_at_final use_lu_lambdas"),
        algorithm_type=("dpmsolver++", "sde-dpmsolver++"),
        solver_type=("midpoint",),
        lambda_min_clipped=(-math.inf,),
        variance_type=(),
    ),
    "UniPCMultistepScheduler": _more(
        _SOLVED,
        predict_x0=(True,),
        solver_type=("bh2",),
        disable_corrector=([],),
        solver_p=(),
        **_BOUNDED,
    ),
    "FlowMatchEulerDiscreteScheduler": _more(
        _COMMON | _SHIFTED,
        keys("shift"),
        invert_sigmas=(False,),
        stochastic_sampling=(False,),
        use_karras_sigmas=(False,),
        use_exponential_sigmas=(False,),
        use_beta_sigmas=(False,),
    ),
    UNCLIP: _more(
        _COMMON,
        _CLIPS,
        beta_schedule=(COSINE,),
        prediction_type=STRAIGHT,
        variance_type=("fixed_small_log",),  # the other is learnt, by channels of its own
    ),
    GROWING: _more(
        _COMMON,
        keys("sigma_min sigma_max sigma_data rho"),
        sigma_schedule=("karras",),
        **_ENDS,
    ),
    OURS: _more(
        _COMMON,
        keys("process target method")
        | {each.name for kind in KINDS.values() for each in fields(kind)},
    ),
}


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
    timestep: Callable[[Process], Callable[[Tensor], Tensor]]
    limit: Limit | None = None
    noise_stays: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def published(config: Mapping[str, Any]) -> Published:
    """The sampler of a `scheduler_config.json`.

    Raises:
        BedstoneError: a sampler, or a setting of one, that ours don't have.
    """
    name = config.get("_class_name", "")
    if name not in KEYS:
        raise BedstoneError(
            f"scheduler_config.json: the sampler {name!r} is not one of ours. Name a sampler "
            f"instead: {', '.join(METHODS)}."
        )
    KEYS[name].check(config, NAME)
    method = method_from(config)
    if method not in METHODS:
        raise BedstoneError(f"method: {method!r} is unknown{nearest(method, METHODS)}.")
    options: dict[str, Any] = {}
    if name == "DDPMScheduler":
        large = str(config.get("variance_type", "fixed_small")).startswith("fixed_large")
        options["variance"] = "large" if large else "small"
        if large and config.get("timestep_spacing") == "trailing":  # noise after the last step
            raise _refused("variance_type", config["variance_type"], "fixed_small with trailing")
    elif name == UNCLIP:
        process, _ = process_from(config)
        assert isinstance(process, Discrete)
        beta = process.betas[0]  # of the last step; their tables round what is left of the signal
        options["end"] = float(beta / (1 - (1 - beta)))
    elif name == "DPMSolverMultistepScheduler":
        method = _dpm_solver(config)
        if method.startswith("dpm"):
            options["calm_end"] = config.get("lower_order_final", True)
    elif name == "UniPCMultistepScheduler":
        options["order"] = config.get("solver_order", 2)
        options["calm_end"] = config.get("lower_order_final", True)
    return Published(
        method,
        _times(name, config),
        _described(name, config),
        _limit(name, config),
        noise_stays=name == "DDIMScheduler",  # its step's use_clipped_model_output is False
        options=options,
    )


def _dpm_solver(config: Mapping[str, Any]) -> str:
    kind = config.get("algorithm_type", "dpmsolver++")
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
        return karras(process, steps, rho=config.get("rho", 7.0))
    if name == UNCLIP:
        return ends(process, steps)
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


def _described(
    name: str, config: Mapping[str, Any]
) -> Callable[[Process], Callable[[Tensor], Tensor]]:
    """The timesteps of a scheduler: solvers round them to whole numbers."""
    rounded = config.get("use_karras_sigmas") or config.get("use_lu_lambdas")
    if name == "DPMSolverMultistepScheduler" and rounded:
        rounded = config.get("beta_schedule") != "squaredcos_cap_v2"

    def timestep(process: Process) -> Callable[[Tensor], Tensor]:
        if name not in SOLVERS:
            return process.timestep
        if rounded:
            return lambda t: process.timestep(t).round()
        return lambda t: (process.timestep(t) + 2e-4).floor()  # what float32 lost of a whole number

    return timestep


def _limit(name: str, config: Mapping[str, Any]) -> Limit | None:
    if config.get("thresholding"):
        share = config.get("dynamic_thresholding_ratio", 0.995)
        return dynamic_threshold(share, config.get("sample_max_value", 1.0))
    if config.get("clip_sample", name in ("DDPMScheduler", "DDIMScheduler", UNCLIP)):
        return clip(config.get("clip_sample_range", 1.0))
    return None


def _refused(name: str, value: Any, expected: str) -> BedstoneError:
    return BedstoneError(
        f"scheduler_config.json: {name} is {value!r}; expected {expected}. Name a sampler instead: "
        f"{', '.join(METHODS)}."
    )


# `scheduler_config.json` of a pipeline's folder: how its network's signals were noised.

VERSION = "0.39.0"  # of diffusers, whose form is written


def read_scheduler(folder: str | Path) -> tuple[Process, Target, str]:
    """The process, what the network predicts, and our sampler of the one that is named.

    Raises:
        BedstoneError: there is no such file, or it says what isn't known.
    """
    path = Path(folder) / NAME
    config = read_object(path)
    if (known := KEYS.get(str(config.get("_class_name")))) is not None:
        known.report(config, path)
    try:
        return *process_from(config), method_from(config)
    except BedstoneError as error:
        raise BedstoneError(f"{path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise BedstoneError(
            f"{path}: a value is of another kind than expected ({type(error).__name__}: {error}). "
            "Take the file that the model was published with."
        ) from error


def write_scheduler(
    folder: str | Path, process: Process, target: Target, method: str = "ddim"
) -> str:
    """Writes the file into an existing folder; gives the class that it names.

    Raises:
        BedstoneError: the method is unknown, or the disk refuses.
    """
    config = config_of(process, target, method)
    name = config.pop("_class_name")
    write_json(Path(folder) / NAME, {"_class_name": name, "_diffusers_version": VERSION, **config})
    return name
