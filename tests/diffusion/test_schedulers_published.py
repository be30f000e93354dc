"""Our samplers beside diffusers' schedulers: the same network, noise and steps."""

import diffusers
import pytest
import torch

from bedstone.diffusion.denoiser import clip, denoiser
from bedstone.diffusion.process import EDM, Flow
from bedstone.diffusion.samplers import METHODS, ddim_invert
from bedstone.diffusion.schedulers import (
    GROWING,
    KEYS,
    OURS,
    UNCLIP,
    config_of,
    process_from,
    published,
)
from bedstone.diffusion.targets import target
from bedstone.errors import BedstoneError

NOISE = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def made(name, steps, network_kind="epsilon", **settings):
    """A scheduler of diffusers with its times set, and the config as a folder has it."""
    if name != "FlowMatchEulerDiscreteScheduler":
        settings["prediction_type"] = network_kind
    scheduler = getattr(diffusers, name)(**settings)
    scheduler.set_timesteps(steps)
    return scheduler, {**scheduler.config, "_class_name": name}


def process_of(config):
    return process_from(config)[0]


def network_of(process, kind):
    """A curved network that is right about the noise it is told: (x, told) -> out."""
    weight = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(1)) / 4

    def network(x, told):
        t = process.time(told.float().expand(len(x)))
        moved = torch.nn.functional.conv2d(x, weight, padding=1)
        x0 = torch.tanh(moved + (t * 3).cos()[:, None, None, None])
        alpha, sigma = (each[:, None, None, None] for each in (process.alpha(t), process.sigma(t)))
        return target(kind).of(process, x0, (x - alpha * x0) / sigma.clamp_min(1e-4), t)

    return network


def theirs(scheduler, network, noise, generator, scaled):
    x = noise * (scheduler.sigmas[0] ** 2 + 1) ** 0.5 if scaled else noise
    stochastic = {"generator": generator} if generator is not None else {}
    after = dict(zip(scheduler.timesteps.tolist(), scheduler.timesteps[1:].tolist(), strict=False))
    for t in scheduler.timesteps:
        if isinstance(scheduler, diffusers.UnCLIPScheduler):
            stochastic["prev_timestep"] = after.get(int(t))
        entered = (
            scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        )
        x = scheduler.step(network(entered, t), t, x, **stochastic).prev_sample
    return x


def both(name, steps, kind="epsilon", drawn=False, step=None, **settings):
    scheduler, config = made(name, steps, kind, **settings)
    process, way = process_of(config), published(config)
    network, noise = network_of(process, kind), NOISE
    seeds = [torch.Generator().manual_seed(5) if drawn else None for _ in range(2)]
    scaled = name.startswith(("EulerD", "EulerA", "Heun"))
    expected = theirs(scheduler, network, noise, seeds[0], scaled)
    ask = denoiser(network, process, target(kind), limit=way.limit, timestep=way.timestep(process))
    times = way.times(process, steps)
    found = METHODS[way.method](ask, noise, times, process, generator=seeds[1], **way.options)
    if scaled and times[-1] > 0:
        expected = expected * process.alpha(times[-1]).float()
    return found, expected


def same(found, expected, within=1e-4):
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=within, rtol=within)


KINDS = ["epsilon", "v_prediction", "sample"]
SPACINGS = ["leading", "trailing", "linspace"]
WHOLE = {"clip_sample": False}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddpm(kind, spacing):
    for variance, steps in (("fixed_small", 20), ("fixed_small", 7), ("fixed_large", 20)):
        if variance == "fixed_large" and spacing == "trailing":
            continue  # theirs adds noise after the last step
        settings = {"timestep_spacing": spacing, "variance_type": variance}
        same(*both("DDPMScheduler", steps, kind, drawn=True, **WHOLE, **settings))


def test_ddpm_clips_the_clean_signal():
    same(*both("DDPMScheduler", 20, drawn=True, clip_sample=True, clip_sample_range=0.4))
    same(*both("DDPMScheduler", 20, drawn=True, thresholding=True, sample_max_value=1.5))


@pytest.mark.parametrize("kind", ["sample", "epsilon"])
@pytest.mark.parametrize("steps", [25, 7, 2])
def test_unclip(kind, steps):
    """With the timestep that each step leads to said, as published pipelines do."""
    found, expected = both(UNCLIP, steps, kind, drawn=True, clip_sample_range=5.0)
    same(found, expected)
    cut = both(UNCLIP, steps, kind, drawn=True, clip_sample_range=0.4)
    same(*cut)
    assert not torch.allclose(cut[0], found)
    same(*both(UNCLIP, steps, kind, drawn=True, clip_sample=False, num_train_timesteps=300))


def test_unclip_draws_nothing_by_learnt_variances():
    config = {"_class_name": UNCLIP, "variance_type": "learned_range"}
    with pytest.raises(BedstoneError, match="variance_type = 'learned_range'"):
        published(config)


# Its other steps than those that divide 1000 go by 1000 // steps, which isn't where they lead.
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 20), ("leading", 7), ("trailing", 25)])
def test_ddim(kind, spacing, steps):
    settings = {"timestep_spacing": spacing, **WHOLE}
    same(*both("DDIMScheduler", steps, kind, **settings))
    same(*both("DDIMScheduler", steps, kind, beta_schedule="scaled_linear", **settings))
    same(*both("DDIMScheduler", steps, kind, beta_schedule="squaredcos_cap_v2", **settings))
    same(*both("DDIMScheduler", steps, kind, set_alpha_to_one=False, **settings))


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_fresh_noise(eta):
    scheduler, config = made("DDIMScheduler", 20, **WHOLE)
    process, noise = process_of(config), NOISE
    network, seed = network_of(process, "epsilon"), torch.Generator().manual_seed(3)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, eta=eta, generator=seed).prev_sample
    way, seed = published(config), torch.Generator().manual_seed(3)
    ask = denoiser(network, process, target("epsilon"))
    times = way.times(process, 20)
    same(METHODS["ddim"](ask, noise, times, process, eta=eta, generator=seed), x)


def test_ddim_of_a_limited_signal():
    """A limit holds for the noise too, which is theirs of `use_clipped_model_output`."""
    scheduler, config = made("DDIMScheduler", 20, "sample", clip_sample=True)
    process, noise = process_of(config), NOISE
    network, x = network_of(process, "sample"), noise * 2
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t) * 3, t, x, use_clipped_model_output=True).prev_sample
    tripled = denoiser(lambda x, t: network(x, t) * 3, process, target("sample"), limit=clip(1.0))
    times = published(config).times(process, 20)
    same(METHODS["ddim"](tripled, noise * 2, times, process), x)


@pytest.mark.parametrize("steps", [20, 7])
def test_ddim_inversion(steps):
    settings = {"timestep_spacing": "leading", "clip_sample": False}
    _, config = made("DDIMScheduler", steps, **settings)
    inverse, _ = made("DDIMInverseScheduler", steps, **settings)
    process, x0 = process_of(config), NOISE / 2
    network, x = network_of(process, "epsilon"), x0
    for t in inverse.timesteps:
        x = inverse.step(network(x, t), t, x).prev_sample
    ask = denoiser(network, process, target("epsilon"))
    same(ddim_invert(ask, x0, published(config).times(process, steps), process), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("steps", [20, 7])
def test_euler_and_heun(name, kind, steps):
    for spacing in SPACINGS if kind == "epsilon" else ["trailing"]:
        same(*both(name, steps, kind, timestep_spacing=spacing))
    if kind != "epsilon":
        return
    same(*both(name, steps, kind, use_karras_sigmas=True))
    same(*both(name, steps, kind, use_exponential_sigmas=True))


def test_euler_to_the_least_noise():
    same(*both("EulerDiscreteScheduler", 20, final_sigmas_type="sigma_min"))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_euler_ancestral(kind, spacing):
    name = "EulerAncestralDiscreteScheduler"
    same(*both(name, 20, kind, drawn=True, timestep_spacing=spacing))
    same(*both(name, 7, kind, drawn=True, timestep_spacing=spacing))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("steps", [20, 7])
def test_dpm_solver(kind, algorithm, steps):
    name, drawn = "DPMSolverMultistepScheduler", algorithm.startswith("sde")
    settings = {"algorithm_type": algorithm, "drawn": drawn}
    for spacing in SPACINGS if kind == "epsilon" else ["trailing"]:
        same(*both(name, steps, kind, timestep_spacing=spacing, **settings))
    if kind != "epsilon":
        return
    same(*both(name, steps, kind, use_karras_sigmas=True, **settings))
    same(*both(name, steps, kind, use_lu_lambdas=True, **settings))
    same(*both(name, steps, kind, use_exponential_sigmas=True, **settings))
    same(*both(name, steps, kind, solver_order=1, **settings))
    same(*both(name, steps, kind, final_sigmas_type="sigma_min", **settings))
    last = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
    same(*both(name, steps, kind, **last, **settings))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [20, 7])
def test_unipc(kind, order, steps):
    name = "UniPCMultistepScheduler"
    for spacing in SPACINGS if kind == "epsilon" else ["trailing"]:
        same(*both(name, steps, kind, timestep_spacing=spacing, solver_order=order))
    if kind != "epsilon":
        return
    same(*both(name, steps, kind, use_karras_sigmas=True, solver_order=order))
    same(*both(name, steps, kind, use_exponential_sigmas=True, solver_order=order))
    last = {"final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"}
    same(*both(name, steps, kind, solver_order=order, **last))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [20, 7])
def test_flow(shift, steps):
    kind = "flow_prediction"
    same(*both("FlowMatchEulerDiscreteScheduler", steps, kind, shift=shift))
    flow = {"use_flow_sigmas": True, "flow_shift": shift}
    same(*both("UniPCMultistepScheduler", steps, kind, **flow))
    same(*both("DPMSolverMultistepScheduler", steps, kind, **flow))
    sde = {"algorithm_type": "sde-dpmsolver++", "drawn": True}
    same(*both("DPMSolverMultistepScheduler", steps, kind, **sde, **flow))


def test_flow_heun():
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(9)
    process, noise = Flow(shift=3.0), NOISE
    network, x = network_of(process, "flow_prediction"), noise
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    sigmas = [*scheduler.sigmas[:-1:2].tolist(), 0.0]
    ask = denoiser(network, process, target("flow_prediction"))
    times = process.time(torch.tensor(sigmas, dtype=torch.float64) * 1000)
    same(METHODS["heun"](ask, noise, times, process), x)


def test_growing_noise():
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(20)
    config = {**scheduler.config, "_class_name": "EDMEulerScheduler"}
    (process, aim), way = process_from(config), published(config)
    network = lambda x, told: (x + told.reshape(-1, 1, 1, 1)).tanh()  # noqa: E731
    x = start = NOISE * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    ask = denoiser(network, process, aim, timestep=way.timestep(process))
    same(METHODS[way.method](ask, start, way.times(process, 20), process), x)


def test_a_config_of_ours():
    config = config_of(EDM(), target("v_prediction"), "unipc")
    way = published(config)
    assert way.method == "unipc" and way.limit is None
    times = way.times(EDM(), 5)
    assert times[0] == 1 and times[-2] == EDM().first and times[-1] == 0


@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]
)
def test_a_schedule_without_signal_at_its_end(name):
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    same(*both(name, 20, "v_prediction", beta_schedule="scaled_linear", **settings))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"_class_name": "PNDMScheduler"}, "PNDMScheduler"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "solver_order"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_type": "heun"}, "solver_type"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"},
            "algorithm",
        ),
        ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"}, "solver_type"),
        ({"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True}, "use_beta_sigmas"),
    ],
)
def test_what_ours_have_not_is_refused(config, said):
    with pytest.raises(BedstoneError, match=said):
        published(config)


# Values other than the default of each key, where it isn't a switch.
VALUES = {
    "num_train_timesteps": [500],
    "beta_start": [0.001],
    "beta_end": [0.015],
    "beta_schedule": ["scaled_linear", "squaredcos_cap_v2"],
    "trained_betas": [[0.001 + 0.00001 * step for step in range(1000)]],
    "prediction_type": ["sample", "v_prediction"],
    "timestep_spacing": SPACINGS,
    "steps_offset": [1],
    "variance_type": ["fixed_large", "fixed_small_log", "learned_range"],
    "clip_sample_range": [0.5],
    "dynamic_thresholding_ratio": [0.9],
    "sample_max_value": [2.0],
    "solver_order": [1, 3],
    "solver_p": ["a solver"],
    "algorithm_type": ["dpmsolver", "sde-dpmsolver++"],
    "solver_type": ["heun", "bh1"],
    "final_sigmas_type": ["sigma_min"],
    "sigma_min": [0.1],
    "sigma_max": [10.0],
    "interpolation_type": ["log_linear"],
    "timestep_type": ["continuous"],
    "lambda_min_clipped": [-3.0],
    "disable_corrector": [[0, 1]],
    "flow_shift": [3.0],
    "shift": [3.0],
    "time_shift_type": ["linear"],
    "base_shift": [0.7],
    "max_shift": [2.0],
    "base_image_seq_len": [100],
    "max_image_seq_len": [100],
    "shift_terminal": [0.1],
    "sigma_schedule": ["exponential"],
    "sigma_data": [0.7],
    "rho": [5.0],
}
PUBLISHED = [name for name in KEYS if name != OURS]


def defaults(name):
    config = dict(getattr(diffusers, name)().config)
    return {key: value for key, value in config.items() if not key.startswith("_")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_key_of_a_scheduler_is_in_a_list(name):
    assert list(KEYS[name].unknown({**getattr(diffusers, name)().config})) == []
    KEYS[name].check(defaults(name) | {"timestep_spacing": "leading"}, "its defaults")


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_key_counts_or_is_refused(name):
    if name == GROWING:
        pytest.skip("its network is told otherwise: test_edm compares it")
    counted, usual = set(), {"clip_sample": False} if "clip_sample" in defaults(name) else {}
    noisy = name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler", UNCLIP)
    for key, value in defaults(name).items():
        for other in [not value] if isinstance(value, bool) else VALUES[key]:
            settings = {**usual, key: other}
            kind = settings.pop("prediction_type", "epsilon")
            if name.startswith("Flow"):
                kind = "flow_prediction"
            try:
                published({**defaults(name), **settings, "_class_name": name})
            except BedstoneError as error:
                assert key in str(error)
                continue
            if key.startswith("use_flow") or other == "sde-dpmsolver++":
                continue  # compared above, each with what it needs
            if (name[:6], kind) in (("EulerA", "sample"), ("UnCLIP", "v_prediction")):
                continue  # theirs has none
            counted.add(key)
            found, expected = both(name, 20, kind, drawn=noisy, **settings)
            if expected.isfinite().all():  # theirs isn't with UniPC's last steps of full order
                steep = key == "beta_schedule" and name.startswith("Heun")  # noise of 20,000
                same(found, expected, within=0.05 if steep else 1e-3)
    assert counted


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "DDIMScheduler"])
def test_what_a_file_leaves_out_is_as_its_class_has_it(name):
    whole = {**defaults(name), "_class_name": name}
    assert process_from({"_class_name": name}) == process_from(whole)


def test_an_unknown_spacing_is_refused():
    config = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "even"}
    with pytest.raises(BedstoneError, match="timestep_spacing = 'even'"):
        published(config)


def test_noise_after_the_last_step_is_refused():
    large = {"_class_name": "DDPMScheduler", "variance_type": "fixed_large"}
    with pytest.raises(BedstoneError, match=r"variance_type is 'fixed_large'.*trailing"):
        published({**large, "timestep_spacing": "trailing"})
