"""Where samplers ask the network."""

import pytest
import torch

from bedstone.diffusion.process import EDM, Discrete, Flow
from bedstone.diffusion.times import SPACINGS, shortened, times
from bedstone.errors import BedstoneError


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_times_fall_to_the_clean_end(spacing, steps):
    for process in (Discrete(), EDM(), Flow()):
        if isinstance(process, Flow) and spacing in ("leading", "karras", "log_snr"):
            continue
        if isinstance(process, EDM) and spacing == "leading":
            continue
        at = times(process, steps, spacing)
        assert at.shape == (steps + 1,) and at.dtype == torch.float64
        assert at[-1] == 0 and (at.diff() < 0).all()
        if spacing != "leading":
            assert abs(at[0] - 1) < 1e-9


def test_known_times():
    told = Discrete().timestep(times(Discrete(), 4, "trailing")[:-1])
    assert told.tolist() == [999, 749, 499, 249]
    assert Discrete().timestep(times(Discrete(), 4, "leading")[:-1]).tolist() == [750, 500, 250, 0]
    offset = times(Discrete(), 4, "leading", offset=1)[:-1]
    assert Discrete().timestep(offset).tolist() == [751, 501, 251, 1]
    assert Discrete().timestep(times(Discrete(), 4, "linspace")[:-1]).tolist() == [999, 666, 333, 0]
    assert times(Flow(), 4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_karras_times_are_even_in_the_root_of_the_noise():
    edm = EDM(0.002, 80.0, rho=7.0)  # whose t is that root
    at = times(edm, 5, "karras")[:-1]
    assert torch.allclose(at, torch.linspace(1, edm.first, 5, dtype=torch.float64))
    roots = edm.sigma(times(edm, 5, "karras", rho=3.0)[:-1]) ** (1 / 3)
    assert torch.allclose(roots.diff(), roots.diff()[0].expand(4))


def test_a_share_of_the_steps_from_a_signal():
    at = times(Flow(), 10)
    assert shortened(at, 1.0).tolist() == at.tolist()
    assert shortened(at, 0.3).tolist() == at[7:].tolist()
    assert shortened(at, 0.01).tolist() == at[9:].tolist()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: times(Flow(), 0), "steps"),
        (lambda: times(Discrete(steps=100), 101), "trained on 100"),
        (lambda: times(Flow(), 5, "trailling"), "trailing"),
        (lambda: times(Flow(), 5, "leading"), "leading"),
        (lambda: times(Flow(), 5, "karras"), "Choose trailing, linspace or even"),
        (lambda: shortened(times(Flow(), 5), 0.0), "strength"),
        (lambda: shortened(times(Flow(), 5), 1.1), "strength"),
    ],
)
def test_bad_spacings_are_refused(call, said):
    with pytest.raises(BedstoneError, match=said):
        call()


def test_between_two_times_of_a_flow():
    at = times(Flow(), 5, "log_snr", between=(0.99, 0.01))
    assert abs(at[0] - 0.99) < 1e-9 and abs(at[4] - 0.01) < 1e-9
