"""Processes and targets in diffusers' own words, both ways."""

import diffusers
import pytest
import torch

from bedstone.diffusion.process import EDM, Discrete, Flow
from bedstone.diffusion.schedulers import OURS, SAMPLERS, config_of, method_from, process_from
from bedstone.diffusion.targets import TARGETS, target
from bedstone.errors import BedstoneError

PROCESSES = [
    Discrete(),
    Discrete(200, "scaled_linear", 0.00085, 0.012),
    Discrete(schedule="squaredcos_cap_v2"),
    Discrete(zero_terminal_snr=True),
    Discrete(3, trained_betas=(0.1, 0.2, 0.5)),
    Flow(),
    Flow(3.0, steps=500),
    EDM(0.01, 50.0, 5.0, 1.0),
]


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("method", SAMPLERS)
def test_every_process_and_target_comes_back(process, method):
    for aim in TARGETS.values():
        config = config_of(process, aim, method)
        assert process_from(config) == (process, aim)


def test_samplers_come_back_where_diffusers_has_them():
    for method in SAMPLERS:
        assert method_from(config_of(Discrete(), target("epsilon"), method)) == method
    for method in ("euler", "dpm_solver_2m", "dpm_solver_sde", "unipc"):
        assert method_from(config_of(Flow(), target("flow_prediction"), method)) == method
    assert method_from(config_of(Discrete(), target("edm"), "unipc")) == "unipc"
    assert method_from(config_of(EDM(), target("edm"), "heun")) == "euler"


@pytest.mark.parametrize("method", SAMPLERS)
@pytest.mark.parametrize(
    "process",
    [*PROCESSES[:5], Discrete(shift=2.0), Discrete(3, trained_betas=(0.1, 0.2, 0.5), shift=2.0)],
    ids=lambda each: str(each)[:60],
)
def test_diffusers_reads_the_same_steps(process, method):
    config = config_of(process, target("v_prediction"), method)
    kind = getattr(diffusers, config["_class_name"])
    theirs, unknown = kind.from_config(dict(config), return_unused_kwargs=True)
    assert {name for name in unknown if not name.startswith("_")} == set()
    assert theirs.config.prediction_type == "v_prediction"
    expected = process.alphas_cumprod.clone()
    if process.zero_terminal_snr and theirs.alphas_cumprod[-1] > 0:
        expected[-1] = 2**-24
    torch.testing.assert_close(theirs.alphas_cumprod, expected, atol=1e-6, rtol=0)
    again, _ = process_from(dict(theirs.config) | {"_class_name": config["_class_name"]})
    torch.testing.assert_close(again.alphas_cumprod, process.alphas_cumprod, atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["euler", "dpm_solver_2m", "unipc"])
def test_diffusers_reads_the_same_flow(method):
    config = config_of(Flow(3.0), target("flow_prediction"), method)
    theirs = getattr(diffusers, config["_class_name"]).from_config(dict(config))
    theirs.set_timesteps(4)
    told = theirs.timesteps.double()
    process, aim = process_from(dict(theirs.config) | {"_class_name": config["_class_name"]})
    assert (process, aim.name) == (Flow(3.0), "flow_prediction")
    sigma = process.sigma(process.time(told))
    torch.testing.assert_close(sigma, theirs.sigmas[:4].double(), atol=2e-3, rtol=0)


def test_diffusers_reads_the_same_growing_noise():
    config = config_of(EDM(0.01, 50.0, 5.0, 1.0), target("edm"))
    theirs = diffusers.EDMEulerScheduler.from_config(dict(config))
    assert (theirs.config.sigma_min, theirs.config.sigma_max) == (0.01, 50.0)
    assert (theirs.config.rho, theirs.config.sigma_data) == (5.0, 1.0)


def test_defaults_are_those_of_diffusers():
    for name, process, aim in (
        ("DDIMScheduler", Discrete(), "epsilon"),
        ("FlowMatchEulerDiscreteScheduler", Flow(), "flow_prediction"),
        ("EDMEulerScheduler", EDM(), "edm"),
    ):
        assert process_from({"_class_name": name}) == (process, target(aim))
        saved = dict(getattr(diffusers, name)().config)
        assert process_from({**saved, "_class_name": name}) == (process, target(aim))


def test_what_diffusers_cannot_do_it_does_not_open():
    for process, aim in (
        (Discrete(), "flow_prediction"),
        (Flow(), "v_prediction"),
        (EDM(), "epsilon"),
    ):
        assert config_of(process, target(aim))["_class_name"] == OURS
        assert not hasattr(diffusers, OURS)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "_class_name: '' is unknown"),
        ({"_class_name": "DDIMSchedule"}, "perhaps 'DDIMScheduler' is meant"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}, "'sigmoid' is unknown"),
        ({"_class_name": "DDPMScheduler", "beta_start": "a"}, "beta_start: 'a' was given"),
        ({"_class_name": "DDPMScheduler", "num_train_timesteps": 1.5}, "steps: 1.5 was given"),
        ({"_class_name": "DDPMScheduler", "trained_betas": "x"}, "trained_betas: expected a list"),
        ({"_class_name": "DDPMScheduler", "prediction_type": "eps"}, "target: 'eps' is unknown"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "isn't known"),
        ({"_class_name": OURS, "process": "flows"}, "perhaps 'flow' is meant"),
        (
            {
                "_class_name": "UniPCMultistepScheduler",
                "use_flow_sigmas": True,
                "prediction_type": "v_prediction",
            },
            "'v_prediction' of a flow",
        ),
    ],
)
def test_what_is_not_known_is_refused(config, told):
    with pytest.raises(BedstoneError, match=told):
        process_from(config)


def test_an_unknown_method_is_refused():
    with pytest.raises(BedstoneError, match="method: 'ddmi' is unknown; perhaps"):
        config_of(Discrete(), target("epsilon"), "ddmi")
