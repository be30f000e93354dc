"""Classifier-free guidance."""

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from bedstone.diffusion.denoiser import conditioned, guided
from bedstone.diffusion.process import EDM, Discrete, Flow
from bedstone.errors import BedstoneError

X = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
CONDITION = {"classes": torch.tensor([1, 2, 3, 4])}
NULL = {"classes": torch.tensor([9])}


class Network:
    """Says its class, and remembers how many rows it got."""

    def __init__(self):
        self.rows = []

    def __call__(self, x, told, *, classes):
        self.rows.append(len(x))
        assert told.shape == classes.shape == (len(x),)
        out = x * classes[:, None, None, None] + told[:, None, None, None]
        return torch.cat([out, out], dim=1)  # a learnt variance beside it


def test_both_halves_go_in_one_batch():
    network, told = Network(), torch.full((4,), 500.0)
    out = guided(network, Discrete(), CONDITION, NULL, 3.0)(X, told)
    given, without = X * CONDITION["classes"][:, None, None, None] + 500, X * 9 + 500
    torch.testing.assert_close(out, without + 3 * (given - without))
    assert network.rows == [8]


@pytest.mark.parametrize("most", [1, 3, 8])
def test_large_batches_are_split(most):
    network, told = Network(), torch.full((4,), 500.0)
    whole = guided(network, Discrete(), CONDITION, NULL, 3.0)(X, told)
    parts = guided(network, Discrete(), CONDITION, NULL, 3.0, most_rows=most)(X, told)
    assert torch.equal(whole, parts) and max(network.rows[1:]) == most


def test_a_scale_of_one_asks_the_condition_alone():
    network, told = Network(), torch.full((4,), 500.0)
    out = guided(network, Discrete(), CONDITION, NULL, 1.0)(X, told)
    assert network.rows == [4] and out.shape == X.shape
    assert torch.equal(out, conditioned(network, CONDITION)(X, told)[:, :2])


def test_a_scale_a_row():
    told, scales = torch.zeros(4), torch.tensor([0.0, 1.0, 2.0, 5.0])
    out = guided(Network(), Discrete(), CONDITION, NULL, scales)(X, told)
    for row, scale in enumerate(scales.tolist()):
        one = guided(Network(), Discrete(), CONDITION, NULL, scale)(X, told)
        torch.testing.assert_close(out[row], one[row])


@pytest.mark.parametrize("process", [Discrete(), Flow(3.0), EDM()], ids=lambda p: type(p).__name__)
def test_guidance_only_in_its_interval(process):
    network = Network()
    ask = guided(network, process, CONDITION, NULL, 3.0, interval=(0.25, 0.75))
    for t in (0.0, 0.24, 0.25, 0.5, 0.75, 0.76, 1.0):
        ask(X, process.timestep(torch.full((4,), t)))
    assert network.rows == [4, 4, 8, 8, 8, 4, 4]
    whole = guided(network, process, CONDITION, NULL, 3.0)
    for t in (1e-3, 1.0):
        whole(X, process.timestep(torch.full((4,), t)))
    assert network.rows[7:] == [8, 8]


def test_rescaled_as_published():
    told = torch.zeros(4)
    given = X * CONDITION["classes"][:, None, None, None]
    plain = guided(Network(), Discrete(), CONDITION, NULL, 7.0)(X, told)
    found = guided(Network(), Discrete(), CONDITION, NULL, 7.0, rescale=0.7)(X, told)
    torch.testing.assert_close(found, rescale_noise_cfg(plain, given, 0.7))


@pytest.mark.parametrize(
    ("null", "options", "said"),
    [
        ({"memory": torch.zeros(1)}, {}, "same names"),
        (NULL, {"interval": (0.7, 0.3)}, "interval"),
        (NULL, {"rescale": 1.5}, "rescale"),
        (NULL, {"most_rows": -1}, "most_rows"),
    ],
)
def test_bad_settings_are_refused(null, options, said):
    with pytest.raises(BedstoneError, match=said):
        guided(Network(), Discrete(), CONDITION, null, 3.0, **options)


def test_conditions_of_different_length_are_refused():
    condition, null = {"memory": torch.zeros(4, 5, 2)}, {"memory": torch.zeros(1, 3, 2)}
    with pytest.raises(BedstoneError, match="padded"):  # before anything is drawn
        guided(lambda x, told, memory: x, Discrete(), condition, null, 3.0)


def test_both_conditions_are_joined_once():
    seen = []

    def network(x, told, *, classes):
        seen.append(classes)
        return x

    ask = guided(network, Discrete(), CONDITION, NULL, 3.0)
    for step in (900.0, 500.0):
        ask(X, torch.full((4,), step))
    assert seen[0] is seen[1]
    assert seen[0].tolist() == [1, 2, 3, 4, 9, 9, 9, 9]
