"""How signals become noise: beside diffusers, and by what must hold for every process."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler
from diffusers import FlowMatchEulerDiscreteScheduler as FlowScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.training_utils import compute_snr

from bedstone.diffusion.process import EDM, Discrete, Flow, add_noise
from bedstone.errors import BedstoneError

SCHEDULES = [
    ({}, Discrete()),
    (
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        Discrete(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    ),
    ({"beta_schedule": "squaredcos_cap_v2"}, Discrete(schedule="squaredcos_cap_v2")),
    ({"num_train_timesteps": 37}, Discrete(steps=37)),
]
PROCESSES = [
    Discrete(),
    Discrete(schedule="squaredcos_cap_v2"),
    Discrete(steps=50, schedule="scaled_linear", shift=3.0),
    Discrete(zero_terminal_snr=True),
    Flow(),
    Flow(shift=3.0),
    EDM(),
    EDM(sigma_min=0.01, sigma_max=50.0, rho=3.0, data_std=1.0),
]


def name(process):
    return f"{process}"


@pytest.mark.parametrize(("settings", "process"), SCHEDULES, ids=lambda each: str(each)[:40])
def test_steps_are_those_of_diffusers(settings, process):
    theirs = DDPMScheduler(**settings)
    assert torch.equal(process.betas, theirs.betas)
    assert torch.equal(process.alphas_cumprod, theirs.alphas_cumprod)
    steps = torch.arange(process.steps)
    t = process.time(steps)
    assert torch.equal(process.timestep(t), steps.float())
    x0, eps = torch.randn(2, process.steps, 3, 4)
    ours = add_noise(process, x0, eps, t)
    torch.testing.assert_close(ours, theirs.add_noise(x0, eps, steps), atol=2e-6, rtol=0)
    snr = compute_snr(theirs, steps)
    torch.testing.assert_close(process.log_snr(t).exp(), snr, atol=0, rtol=3e-5)


def test_a_schedule_without_signal_at_its_end_is_that_of_diffusers():
    theirs = DDIMScheduler(rescale_betas_zero_snr=True)
    ours = Discrete(zero_terminal_snr=True)
    assert torch.equal(ours.betas, theirs.betas)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    assert ours.alphas_cumprod[-1] == 0
    # What solvers that need its logarithm take instead.
    last = EulerDiscreteScheduler(rescale_betas_zero_snr=True).sigmas[0]
    torch.testing.assert_close((-ours.log_snr(1.0) / 2).exp(), last, atol=0, rtol=1e-5)


def test_noise_between_steps_is_what_diffusers_finds_the_step_of():
    theirs = EulerDiscreteScheduler()
    theirs.set_timesteps(8)
    sigmas = theirs._convert_to_karras(theirs.sigmas[:-1], 8)
    logs = ((1 - theirs.alphas_cumprod) / theirs.alphas_cumprod).sqrt().log().numpy()
    expected = [float(theirs._sigma_to_t(sigma, logs)) for sigma in sigmas]
    ours = Discrete()
    told = ours.timestep(ours.time_at(-2 * torch.tensor(sigmas).log()))
    torch.testing.assert_close(told.double(), torch.tensor(expected).double(), atol=2e-2, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_is_that_of_diffusers(shift):
    theirs = FlowScheduler(shift=shift)
    process = Flow(shift)
    t = torch.arange(1000, 0, -1) / 1000
    torch.testing.assert_close(process.sigma(t), theirs.sigmas)
    torch.testing.assert_close(process.timestep(t), theirs.timesteps)
    assert process.first == pytest.approx(t[-1].item())
    torch.testing.assert_close(process.alpha(t) + process.sigma(t), torch.ones(1000))


def test_growing_noise_is_that_of_diffusers():
    theirs = EDMEulerScheduler()
    theirs.set_timesteps(10)
    process = EDM()
    t = process.time_at(-2 * theirs.sigmas[:-1].log())
    torch.testing.assert_close(process.sigma(t), theirs.sigmas[:-1])
    torch.testing.assert_close(process.timestep(t), theirs.timesteps)
    assert t[0] == pytest.approx(1) and t[-1] == pytest.approx(process.first)
    x = torch.randn(10, 2)
    for row, scale in enumerate(process.scale_in(t)):
        theirs._step_index = row
        theirs.is_scale_input_called = False
        expected = theirs.precondition_inputs(x[row], theirs.sigmas[row])
        torch.testing.assert_close(scale * x[row], expected)


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_every_process_goes_from_clean_to_noise(process):
    assert (process.alpha(0.0), process.sigma(0.0)) == (1, 0)
    assert process.log_snr(0.0) == math.inf
    t = torch.linspace(process.first, 1, 200, dtype=torch.float64)[:-1]
    snr = process.log_snr(t)
    assert (snr.diff() < 0).all()
    expected = 2 * (process.alpha(t) / process.sigma(t)).log()
    torch.testing.assert_close(snr, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(process.time_at(snr), t, atol=1e-6, rtol=0)
    torch.testing.assert_close(process.time(process.timestep(t)), t, atol=1e-6, rtol=0)
    small = torch.tensor([process.first / 3, process.first / 2, process.first])
    assert (process.sigma(small).diff() > 0).all()
    if not isinstance(process, EDM):
        torch.testing.assert_close(process.time_at(process.log_snr(small)), small)


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_times_keep_their_shape_and_dtype(process):
    for t in (torch.rand(3, dtype=torch.float64), torch.rand(2), torch.tensor(0.5)):
        for found in (process.alpha(t), process.sigma(t), process.timestep(t), process.scale_in(t)):
            assert (found.shape, found.dtype) == (t.shape, t.dtype)
    assert process.sigma(0.5).dtype == torch.float32


def test_the_end_has_the_noise_that_drawing_starts_from():
    for process in (Discrete(), Discrete(zero_terminal_snr=True), Flow(3.0), EDM()):
        assert process.sigma(1.0) == pytest.approx(process.prior, rel=1e-4)


@pytest.mark.parametrize("make", [Discrete, Flow])
def test_a_shift_multiplies_noise_over_signal(make):
    t = torch.linspace(0.1, 0.9, 9)
    plain, shifted = make(), make(shift=2.0)
    expected = plain.log_snr(t) - 2 * math.log(2)
    torch.testing.assert_close(shifted.log_snr(t), expected, atol=1e-4, rtol=0)


def test_shifted_steps_are_steps_too():
    process = Discrete(shift=3.0)
    theirs = DDPMScheduler(trained_betas=process.betas.tolist())
    torch.testing.assert_close(theirs.alphas_cumprod, process.alphas_cumprod, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Discrete(schedule="cosin"), "schedule: 'cosin' is unknown"),
        (lambda: Discrete(steps=1), "steps: 1 was given"),
        (lambda: Discrete(beta_start=0.5, beta_end=0.1), "beta_start, beta_end: 0.5 and 0.1"),
        (lambda: Discrete(shift=0.0), "shift: 0.0 was given"),
        (lambda: Discrete(trained_betas=(0.1, 0.2)), "trained_betas: expected 1000"),
        (lambda: Flow(shift=-1.0), "shift: -1.0"),
        (lambda: EDM(sigma_min=2.0, sigma_max=1.0), "sigma_min, sigma_max: 2.0 and 1.0"),
        (lambda: EDM(rho=0.0), "rho: 0.0"),
        (lambda: EDM(rho=math.nan), "rho: nan"),
        (lambda: EDM(sigma_max=math.inf), "sigma_max: 0.002 and inf"),
    ],
)
def test_settings_out_of_range_are_refused(make, told):
    with pytest.raises(BedstoneError, match=told):
        make()
