"""Learning to denoise: times, weights and losses."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import nn

from bedstone.diffusion.process import EDM, Discrete, Flow, add_noise
from bedstone.diffusion.targets import TARGETS, target
from bedstone.errors import BedstoneError
from bedstone.objectives.diffusion import TIMES, WEIGHTS, Denoising, spread

PROCESSES = [Discrete(), Discrete(20, shift=2.0), Flow(), Flow(3.0), EDM()]


@dataclass
class Batch:
    signals: torch.Tensor
    given: dict = field(default_factory=dict)

    def conditions(self, network):
        return self.given


class Listener(nn.Module):
    """Gives zeros and remembers what it was asked."""

    def __init__(self, channels=0):
        super().__init__()
        self.channels = channels

    def forward(self, x, t, **given):
        self.x, self.t, self.given = x, t, given
        return x.new_zeros(len(x), self.channels or x.shape[1], *x.shape[2:])


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("times", TIMES)
def test_times_are_within_what_a_network_is_asked(process, times):
    t = Denoising(process, target("v_prediction"), times=times).draw_times(500)
    assert t.min() >= process.first * (1 - 1e-6) and t.max() <= 1
    if isinstance(process, Discrete):
        told = process.timestep(t)
        assert torch.equal(told, told.round())
        assert told.min() >= 0 and told.max() <= process.steps - 1


def test_each_part_of_the_time_is_drawn_from_once():
    parts = spread(64)
    assert torch.equal((parts * 64).floor(), torch.arange(64.0))
    assert not torch.equal(parts, spread(64))
    # So each step of as many is learnt exactly once, where independent draws miss a third.
    told = Discrete(64).timestep(Denoising(Discrete(64), target("epsilon")).draw_times(64))
    assert torch.equal(told.sort().values, torch.arange(64.0))


def test_drawn_times_have_the_published_distributions():
    t = Denoising(Flow(), target("flow_prediction"), times="logit_normal").draw_times(20_000)
    logits = t.logit()
    assert logits.mean() == pytest.approx(0, abs=0.01)
    assert logits.std() == pytest.approx(1, abs=0.02)
    process = EDM()
    logs = process.sigma(Denoising(process, target("edm"), times="log_normal").draw_times(20_000))
    assert logs.log().mean() == pytest.approx(-1.2, abs=0.01)
    assert logs.log().std() == pytest.approx(1.2, abs=0.02)


@pytest.mark.parametrize("name", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights_are_those_of_the_paper(name):
    process, steps = Discrete(), torch.tensor([0, 10, 300, 700, 999])
    snr = compute_snr(DDPMScheduler(), steps)
    least = snr.clamp(max=5)
    expected = {"epsilon": least / snr, "v_prediction": least / (snr + 1), "sample": least}[name]
    found = Denoising(process, target(name), weight="min_snr").weights(process.time(steps))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7)


def test_weights_of_the_clean_signals_error_are_the_papers():
    """SNR, min(SNR, 5) and max(SNR, 1) at SNRs below, between and above the limits."""
    t = torch.linspace(0.05, 0.95, 31, dtype=torch.float64)
    snr = (Flow().alpha(t) / Flow().sigma(t)).square()
    for low, high in ((0, 0.5), (0.5, 1), (1, 4), (4, 5), (5, math.inf)):
        assert ((snr > low) & (snr < high)).any()
    expected = {"snr": snr, "min_snr": snr.clamp(max=5), "truncated": snr.clamp(min=1)}
    for weight, want in expected.items():
        found = Denoising(Flow(), target("sample"), weight=weight).weights(t)
        torch.testing.assert_close(found, want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("weight", [name for name in WEIGHTS if name != "uniform"])
def test_a_weight_is_the_same_error_whatever_is_predicted(process, weight):
    """One mistake in the clean signal, said by each target, costs the same."""
    t = torch.linspace(0.3, 0.9, 5, dtype=torch.float64)
    x0, eps, wrong = torch.randn(3, 5, 7, dtype=torch.float64)
    x = add_noise(process, x0, eps, t)
    costs = []
    for aim in TARGETS.values():
        guess = x0 + 0.1 * wrong
        mistaken = aim.of(process, guess, noise_left(process, x, guess, t), t)
        error = (mistaken - aim.of(process, x0, eps, t)).square().mean(1)
        costs.append(Denoising(process, aim, weight=weight).weights(t) * error)
    for cost in costs[1:]:
        torch.testing.assert_close(cost, costs[0], rtol=1e-6, atol=0)


def noise_left(process, x, x0, t):
    return target("sample").noise(process, x, x0, t)


def test_the_uniform_weight_is_one_and_weights_are_finite():
    t = torch.tensor([1e-3, 0.5, 1.0])
    for process in PROCESSES:
        for aim in TARGETS.values():
            for weight in WEIGHTS:
                found = Denoising(process, aim, weight=weight).weights(t.clamp_min(process.first))
                assert found.isfinite().all() and (found >= 0).all()
                assert weight != "uniform" or (found == 1).all()


@pytest.mark.parametrize("sizes", [(9,), (4, 6), (2, 4, 4)])
@pytest.mark.parametrize("process", [Discrete(), Flow(), EDM()], ids=str)
def test_a_network_is_told_what_its_process_says(process, sizes):
    network, batch = Listener(), Batch(torch.randn(6, 2, *sizes), {"classes": torch.arange(6)})
    objective = Denoising(process, target("v_prediction"))
    torch.manual_seed(3)
    total, count = objective(network, batch)
    torch.manual_seed(3)
    t = objective.draw_times(6)
    eps = torch.randn_like(batch.signals)
    assert count == 6
    assert torch.equal(network.t, process.timestep(t))
    assert network.given["classes"] is batch.given["classes"]
    rows = zip(batch.signals, eps, t, network.x, strict=True)
    expected = 0.0
    for x0, noise, when, x in rows:  # a row at a time, without anything of ours but the factors
        a, s = process.alpha(when), process.sigma(when)
        torch.testing.assert_close(x, process.scale_in(when) * (a * x0 + s * noise))
        expected += (a * noise - s * x0).square().mean().item()
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_channels_of_a_variance_are_left_alone():
    batch = Batch(torch.randn(3, 2, 4, 4))
    x = nn.Parameter(torch.randn(3, 4, 4, 4))
    objective = Denoising(Discrete(), target("epsilon"))
    total, _ = objective(lambda *_, **__: x, batch)
    total.backward()
    assert (x.grad[:, :2] != 0).any()
    assert (x.grad[:, 2:] == 0).all()


def test_a_network_of_other_channels_is_refused():
    with pytest.raises(BedstoneError, match=r"of \(2, 4, 4\) became predictions of \(3, 4, 4\)"):
        Denoising(Flow(), target("flow_prediction"))(Listener(3), Batch(torch.randn(3, 2, 4, 4)))


def test_the_right_network_has_no_loss():
    batch = Batch(torch.randn(4, 1, 8))
    for process in PROCESSES:
        for aim in TARGETS.values():
            objective = Denoising(process, aim, weight="min_snr")
            t, eps = objective.draw_times(4), torch.randn(4, 1, 8)
            right = aim.of(process, batch.signals, eps, t)
            losses = objective.losses(lambda *_, right=right, **__: right, batch, t, eps)
            assert losses.max() == 0


def test_a_learner_finds_the_least_loss_of_a_gaussian():
    """Of x0 ~ N(0, 1) the best flow network is linear; its loss is known."""
    process, aim = Flow(), target("flow_prediction")
    objective = Denoising(process, aim)
    torch.manual_seed(0)
    x0 = torch.randn(20_000, 1)
    t = torch.full((20_000,), 0.4)

    def best(x, told, **_):
        sigma = (told / 1000).reshape(-1, 1)
        alpha = 1 - sigma
        return x * (sigma - alpha) / (alpha**2 + sigma**2)

    found = objective.losses(best, Batch(x0), t, torch.randn_like(x0)).mean()
    assert found.item() == pytest.approx(1 / (0.4**2 + 0.6**2), rel=0.04)
    assert math.isfinite(found)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"weight": "minsnr"}, "weight: 'minsnr' is unknown; perhaps 'min_snr'"),
        ({"times": "normal"}, "times: 'normal' is unknown"),
    ],
)
def test_unknown_names_are_refused(settings, told):
    with pytest.raises(BedstoneError, match=told):
        Denoising(Flow(), target("flow_prediction"), **settings)


def test_noise_is_no_target_where_there_is_nothing_else():
    with pytest.raises(BedstoneError, match="zero_terminal_snr"):
        Denoising(Discrete(zero_terminal_snr=True), target("epsilon"))
