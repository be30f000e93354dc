"""Samplers where the truth is known: Gaussians and mixtures of them, whose flow is exact.

In one dimension the flow keeps every point at its quantile, so that its end is the quantile of the
clean density: no solver is needed to know it.
"""

import functools
import math

import pytest
import torch

from bedstone.diffusion import samplers as denoise
from bedstone.diffusion import samplers as denoise_multistep
from bedstone.diffusion.process import EDM, Discrete, Flow
from bedstone.diffusion.samplers import (
    METHODS,
    ddim,
    ddim_invert,
    ddpm,
    dpm_solver_2m,
    dpm_solver_sde,
    euler,
    euler_ancestral,
    heun,
    levels,
    noise_like,
    slerp,
    unipc,
)
from bedstone.diffusion.times import times
from bedstone.errors import BedstoneError

DOUBLE = torch.float64
GAUSSIAN = [(1.0, 0.3, 0.5)]  # (share, mean, standard deviation)
MIXTURE = [(0.3, -1.0, 0.4), (0.7, 0.6, 0.3)]


@functools.cache
def level_at(process, t):
    return levels(process, [t, 0.0])[0]


def parts(process, t, mixture):
    """Shares, means and deviations of x at t, each (K,)."""
    level = level_at(process, t)
    shares, means, deviations = torch.tensor(mixture, dtype=DOUBLE).T
    return shares, level.alpha * means, (level.alpha**2 * deviations**2 + level.sigma**2).sqrt()


def exact(process, mixture):
    """The best denoiser of a mixture: the mean of x0 given x, and the noise that goes with it."""
    _, means, deviations = torch.tensor(mixture, dtype=DOUBLE).T

    def ask(x, t):
        now = float(t[0])
        shares, centres, widths = parts(process, now, mixture)
        level = level_at(process, now)
        far = (x[..., None] - centres) / widths
        weights = (shares.log() - widths.log() - far**2 / 2).softmax(-1)
        gain = level.alpha * deviations**2 / widths**2
        x0 = (weights * (means + gain * (x[..., None] - centres))).sum(-1)
        return x0, (x - level.alpha * x0) / level.sigma

    return ask


def carried(process, mixture, x, start, end):
    """Where the exact flow brings x (B, ...) from one time to another: to the same quantile."""

    def below(x, t):
        shares, centres, widths = parts(process, t, mixture)
        return (shares * torch.special.ndtr((x[..., None] - centres) / widths)).sum(-1)

    wanted = below(x, start)
    low, high = torch.full_like(x, -10.0), torch.full_like(x, 10.0)
    for _ in range(60):
        middle = (low + high) / 2
        less = below(middle, end) < wanted
        low, high = torch.where(less, middle, low), torch.where(less, high, middle)
    return (low + high) / 2


def spaced(process, steps, start, end):
    """Evenly in log(alpha / sigma), without the clean end."""
    first, last = (level.half for level in levels(process, [start, end]))
    halves = torch.linspace(first, last, steps + 1, dtype=DOUBLE)
    return process.time_at(2 * halves).clamp(0, 1)


def order_of(method, process, mixture, steps, ends, **options):
    """The slope of the error against the number of steps, log against log."""
    start, end = ends
    _, centres, widths = parts(process, start, mixture)
    x = (centres.mean() + torch.linspace(-1.5, 1.5, 7, dtype=DOUBLE) * widths.mean())[:, None]
    truth = carried(process, mixture, x, start, end)
    errors = [
        float(
            (
                method(
                    exact(process, mixture), x, spaced(process, n, start, end), process, **options
                )
                - truth
            )
            .abs()
            .mean()
        )
        for n in steps
    ]
    logs = torch.tensor([steps, errors], dtype=DOUBLE).log()
    spread = logs - logs.mean(1, keepdim=True)
    return -float((spread[0] * spread[1]).sum() / (spread[0] ** 2).sum()), errors


PROCESSES = {
    "linear": (Discrete(), (1.0, 0.02)),
    "cosine": (Discrete(schedule="squaredcos_cap_v2"), (0.95, 0.02)),
    "flow": (Flow(shift=3.0), (0.98, 0.02)),
    "edm": (EDM(0.002, 20.0), (1.0, 0.4)),
}
# Its order, the steps by which it shows, and how far from it the slope may be.
ORDERS = [
    (euler, 1, (20, 40, 80), {}),
    (ddim, 1, (20, 40, 80), {}),
    (heun, 2, (20, 40, 80), {}),
    (dpm_solver_2m, 2, (40, 80, 160), {}),
    (unipc, 2, (20, 40, 80), {"order": 1}),
    (unipc, 3, (20, 40, 80), {"order": 2, "calm_end": False}),
    (unipc, 4, (80, 160, 320), {"order": 3, "calm_end": False}),
]


@pytest.mark.parametrize("mixture", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(
    ("method", "order", "steps", "options"), ORDERS, ids=lambda v: getattr(v, "__name__", str(v))
)
def test_the_error_falls_at_the_published_order(method, order, steps, options, name, mixture):
    process, ends = PROCESSES[name]
    slope, errors = order_of(method, process, mixture, steps, ends, **options)
    assert abs(slope - order) < 0.2, errors
    assert errors[-1] < 0.05


def moments(monkeypatch, method, process, steps, ends, **options):
    """Mean and deviation of what a sampler with fresh noise draws of the Gaussian, exactly.

    All that it computes is linear: a row for the start and one for each step's noise say how much
    of it comes through.
    """
    drawn = []

    def one_at_a_time(x, generator):
        noise = torch.zeros_like(x)
        noise[2 + len(drawn)] = 1.0
        drawn.append(noise)
        return noise

    for module in (denoise, denoise_multistep):
        monkeypatch.setattr(module, "noise_like", one_at_a_time)
    start, end = ends
    _, centres, widths = parts(process, start, GAUSSIAN)
    x = centres.expand(steps + 2, 1).clone()
    x[1] += widths[0]
    y = method(exact(process, GAUSSIAN), x, spaced(process, steps, start, end), process, **options)
    assert len(drawn) == steps
    return float(y[0]), float((y[1:] - y[0]).square().sum().sqrt())


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(
    ("method", "order", "options"),
    [
        (ddpm, 1, {}),
        (ddim, 1, {"eta": 0.5}),
        (euler_ancestral, 1, {}),
        (dpm_solver_sde, 2, {}),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_mean_and_deviation_of_what_is_drawn_converge(monkeypatch, method, order, options, name):
    process, ends = PROCESSES[name]
    _, centres, widths = parts(process, ends[1], GAUSSIAN)
    errors = []
    for steps in (40, 160):
        mean, deviation = moments(monkeypatch, method, process, steps, ends, **options)
        errors.append(abs(mean - float(centres)) + abs(deviation - float(widths)))
    assert abs(math.log(errors[0] / errors[1], 4) - order) < 0.15, errors
    assert errors[1] < 0.02


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("method", METHODS)
def test_from_nothing_but_noise_to_the_clean_density(method, name):
    process = PROCESSES[name][0]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, generator=generator, dtype=DOUBLE) * process.prior
    steps = 60
    at = times(process, steps, "trailing" if name in ("linear", "flow") else "linspace")
    drawn = METHODS[method](exact(process, MIXTURE), x, at, process, generator=generator)
    ordered = drawn.flatten().sort().values
    shares, means, deviations = torch.tensor(MIXTURE, dtype=DOUBLE).T
    wanted = (shares * torch.special.ndtr((ordered[:, None] - means) / deviations)).sum(-1)
    found = torch.arange(1, 4001, dtype=DOUBLE) / 4000
    assert (wanted - found).abs().max() < 0.035  # Kolmogorov's 1 in 10,000 is 0.035


@pytest.mark.parametrize("name", PROCESSES)
def test_inversion_in_rounds_leads_back_exactly(name):
    process = PROCESSES[name][0]
    ask, at = exact(process, MIXTURE), times(process, 20, "linspace")
    x = torch.tensor([[-1.2], [0.1], [0.9]], dtype=DOUBLE)
    errors = [
        (ddim(ask, ddim_invert(ask, x, at, process, rounds=rounds), at, process) - x).abs().max()
        for rounds in (1, 4, 16)
    ]
    assert errors[2] < 1e-6 < 1e-3 < errors[0] and errors[1] < errors[0]


def test_every_step_is_told():
    process, seen = Flow(), []
    x = torch.randn(2, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    for name, method in METHODS.items():
        seen.clear()
        y = method(
            exact(process, GAUSSIAN),
            x,
            times(process, 3),
            process,
            callback=lambda *told: seen.append(told),
        )
        assert [told[:2] for told in seen] == [(1, 3), (2, 3), (3, 3)], name
        assert torch.equal(seen[-1][2], y) and seen[0][3].shape == x.shape


def test_a_seed_a_row_frees_a_row_of_its_neighbours():
    process, x = Flow(), torch.ones(3, 2)
    at = times(process, 4)

    def drawn(rows):
        seeds = [torch.Generator().manual_seed(row) for row in rows]
        ask = exact(process, GAUSSIAN)
        return dpm_solver_sde(ask, x[: len(rows)].double(), at, process, generator=seeds)

    together = drawn([4, 5, 6])
    assert torch.equal(together[1:], drawn([5, 6])) and not torch.equal(together[0], together[1])
    with pytest.raises(BedstoneError, match="2 were given for 3 rows"):
        noise_like(x, [torch.Generator(), torch.Generator()])


def test_noise_between_two_keeps_its_length():
    a, b = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    middle = slerp(a, b, 0.5)
    assert abs(middle.std() - 1) < 0.05 < abs(((a + b) / 2).std() - 1)
    assert torch.allclose(slerp(a, b, 0.0), a) and torch.allclose(slerp(a, b, 1.0), b)
    shares = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert torch.allclose(slerp(a, b, shares)[2], middle[2])
    assert torch.allclose(slerp(a, a, 0.3), a)
    assert torch.isfinite(slerp(a, -a, 0.5)).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: levels(Flow(), [0.5]), "at least two"),
        (lambda: levels(Flow(), [1.5, 0.0]), "from 0 to 1.5 were given"),
        (lambda: ddim(None, torch.ones(1, 1), [1.0, 0.0], Flow(), eta=2.0), "eta: 2.0"),
        (lambda: unipc(None, torch.ones(1, 1), [1.0, 0.0], Flow(), order=4), "order: 4"),
        (lambda: ddim_invert(None, torch.ones(1, 1), [1.0, 0.0], Flow(), rounds=0), "rounds: 0"),
    ],
)
def test_bad_settings_are_refused(call, said):
    with pytest.raises(BedstoneError, match=said):
        call()
