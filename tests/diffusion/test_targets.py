"""What networks predict, and back from it: for every process and target."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from bedstone.diffusion.process import EDM, Discrete, Flow, add_noise
from bedstone.diffusion.targets import TARGETS, target
from bedstone.errors import BedstoneError

PROCESSES = [
    Discrete(),
    Discrete(schedule="squaredcos_cap_v2", shift=2.0),
    Flow(),
    Flow(3.0),
    EDM(),
    EDM(data_std=1.0),
]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    process=st.sampled_from(PROCESSES),
    name=st.sampled_from(sorted(TARGETS)),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    where=st.floats(0.05, 0.95),
    seed=st.integers(0, 1000),
)
def test_signal_and_noise_come_back_from_what_is_predicted(process, name, sizes, where, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    x0, eps = torch.randn(2, 3, *sizes, **draw)
    t = process.first + (1 - process.first) * torch.tensor([where, where / 2, 0.5]).double()
    x = add_noise(process, x0, eps, t)
    aim = target(name)
    out = aim.of(process, x0, eps, t)
    torch.testing.assert_close(aim.clean(process, x, out, t), x0, atol=1e-7, rtol=1e-7)
    # Of a little noise in a signal of which all is known, few digits are left.
    loose = 1e-7 / process.sigma(t).min().item() ** 2
    torch.testing.assert_close(aim.noise(process, x, out, t), eps, atol=max(loose, 1e-7), rtol=0)


def test_v_is_that_of_diffusers():
    theirs, process = DDPMScheduler(), Discrete()
    x0, eps = torch.randn(2, 5, 3, 4)
    steps = torch.tensor([0, 10, 500, 900, 999])
    expected = theirs.get_velocity(x0, eps, steps)
    ours = target("v_prediction").of(process, x0, eps, process.time(steps))
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("std", [0.5, 1.0])
def test_preconditioning_is_that_of_diffusers(std):
    theirs, process = EDMEulerScheduler(sigma_data=std), EDM(data_std=std)
    x, out = torch.randn(2, 6, 3, 4)
    sigmas = torch.tensor([0.002, 0.1, 0.5, 2.0, 10.0, 80.0])
    expected = torch.stack(
        [theirs.precondition_outputs(*row) for row in zip(x, out, sigmas, strict=True)]
    )
    t = process.time_at(-2 * sigmas.log())
    torch.testing.assert_close(target("edm").clean(process, x, out, t), expected)


def test_what_is_preconditioned_has_unit_variance():
    process = EDM()
    x0, eps = 0.5 * torch.randn(6, 20_000), torch.randn(6, 20_000)
    t = process.time_at(-2 * torch.tensor([0.002, 0.1, 0.5, 2.0, 10.0, 80.0]).log())
    spread = target("edm").of(process, x0, eps, t).std(1)
    torch.testing.assert_close(spread, torch.ones(6), atol=0.03, rtol=0)


def test_the_preconditioned_target_is_v_where_variance_is_kept():
    process, t = Discrete(), torch.rand(4)
    x0, eps = torch.randn(2, 4, 3)
    v = target("v_prediction").of(process, x0, eps, t)
    torch.testing.assert_close(target("edm").of(process, x0, eps, t), -v, atol=1e-6, rtol=1e-6)


def test_nothing_is_infinite_at_the_ends():
    for process in (Discrete(), Flow(), EDM()):
        for aim in TARGETS.values():
            for t in (0.0, 1.0):
                x, out = torch.randn(2, 2, 3)
                assert aim.clean(process, x, out, t).isfinite().all()
                assert aim.noise(process, x, out, t).isfinite().all()


def test_an_unknown_target_is_refused():
    with pytest.raises(BedstoneError, match="'v_predicton' is unknown; perhaps 'v_prediction'"):
        target("v_predicton")
