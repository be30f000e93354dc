"""What a sampler is answered: limits, known parts, other numbers told."""

import pytest
import torch

from bedstone.diffusion.denoiser import clip, denoiser, dynamic_threshold, with_inpainting
from bedstone.diffusion.process import EDM, Discrete, Flow, add_noise
from bedstone.diffusion.samplers import METHODS
from bedstone.diffusion.targets import target
from bedstone.diffusion.times import shortened, times
from bedstone.errors import BedstoneError

PROCESSES = [Discrete(), Flow(), EDM()]


def signals(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", ["epsilon", "v_prediction", "sample", "flow_prediction", "edm"])
def test_a_right_network_is_understood(process, name):
    x0, eps, t = signals(0, 2, 1, 4, 4), signals(1, 2, 1, 4, 4), torch.tensor([0.3, 0.3])
    x, asked = add_noise(process, x0, eps, t), []

    def network(x, told):
        asked.append((x, told))
        right = target(name).of(process, x0, eps, t)
        return torch.cat([right, right * 7], dim=1)  # a learnt variance beside it

    found = denoiser(network, process, target(name))(x, t)
    torch.testing.assert_close(found[0], x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1], eps, atol=1e-4, rtol=1e-4)
    assert torch.equal(asked[0][1], process.timestep(t))
    torch.testing.assert_close(asked[0][0], x * process.scale_in(t)[:, None, None, None])


def test_another_number_can_be_told():
    asked = []
    network = lambda x, told: asked.append(told) or x  # noqa: E731
    process = Discrete()
    ask = denoiser(
        network, process, target("epsilon"), timestep=lambda t: process.timestep(t).round()
    )
    ask(torch.zeros(1, 1, 2), torch.tensor([0.5004]))
    assert asked[0].tolist() == [499.0]


def test_a_limit_holds_for_both_answers():
    process, x, t = Flow(), signals(0, 2, 1, 4, 4) * 3, torch.tensor([0.4, 0.4])
    network = lambda x, told: x * 2  # noqa: E731
    x0, eps = denoiser(network, process, target("sample"), limit=clip(0.5))(x, t)
    assert x0.abs().max() == 0.5
    torch.testing.assert_close(add_noise(process, x0, eps, t), x)


def test_dynamic_threshold_is_the_quantile():
    x = signals(0, 3, 2, 5, 5) * torch.tensor([0.1, 1.0, 5.0])[:, None, None, None]
    found = dynamic_threshold(0.9, most=3.0)(x)
    size = torch.quantile(x.flatten(1).abs(), 0.9, dim=1).clamp(1, 3)[:, None, None, None]
    torch.testing.assert_close(found, x.clamp(-size, size) / size)
    with pytest.raises(BedstoneError, match="share"):
        dynamic_threshold(0.0)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", METHODS)
def test_what_is_known_stays(process, name):
    known, mask = signals(0, 1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
    mask[..., 2:] = 1
    x, seen = signals(1, 2, 2, 4, 4) * process.prior, []
    network = lambda x, told: 0.3 * x.tanh() + 0.1  # noqa: E731
    ask = denoiser(network, process, target("sample"))
    steps = times(process, 12)
    drawn = METHODS[name](
        with_inpainting(ask, process, known, mask),
        x,
        steps,
        process,
        generator=torch.Generator().manual_seed(2),
        callback=lambda i, n, x, x0: seen.append(x),
    )
    torch.testing.assert_close(drawn[..., :2], known.expand(2, -1, -1, -1)[..., :2])
    plain = METHODS[name](ask, x, steps, process, generator=torch.Generator().manual_seed(2))
    assert not torch.allclose(drawn[..., 2:], known[..., 2:], atol=0.1)
    torch.testing.assert_close(drawn[..., 2:], plain[..., 2:], atol=1e-4, rtol=1e-4)
    # On the way, the known part has the noise of the step.
    middle = float(steps[6])
    left = seen[5][..., :2] - process.alpha(middle) * known[..., :2]
    assert 0.5 < left.std() / process.sigma(middle) < 1.6


def test_a_mask_of_another_size_is_refused():
    ask, known = (lambda x, t: (x, x)), torch.zeros(1, 3, 8, 8)
    with pytest.raises(BedstoneError, match=r"mask: its shape is \(1, 1, 4, 4\)"):
        with_inpainting(ask, Flow(), known, torch.ones(1, 1, 4, 4))
    with pytest.raises(BedstoneError, match="0 to 255"):
        with_inpainting(ask, Flow(), known, torch.tensor([0.0, 255.0]).repeat(1, 1, 8, 4))
    with pytest.raises(BedstoneError, match="known: its shape"):
        with_inpainting(ask, Flow(), known, torch.ones(1, 1, 8, 8))(
            torch.ones(1, 3, 4, 4), torch.ones(1)
        )


def test_masks_of_many_rows_and_of_channels():
    ask, known = (lambda x, t: (x * 0, x)), torch.ones(1, 3, 4, 4)
    mask = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)
    x, t = torch.ones(2, 3, 4, 4), torch.full((2,), 0.5)
    x0, _ = with_inpainting(ask, Flow(), known, mask)(x, t)
    assert (x0[0] == 1).all() and (x0[1] == 0).all()
    of_one = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    x0, _ = with_inpainting(ask, Flow(), known, of_one)(x, t)
    assert x0[1, :, 0, 0].tolist() == [0, 1, 1]
    with pytest.raises(BedstoneError, match="mask: has 3 rows"):
        with_inpainting(ask, Flow(), known, torch.ones(3, 1, 4, 4))(x, t)
    with pytest.raises(BedstoneError, match="mask: has 2 channels"):
        with_inpainting(ask, Flow(), known, torch.ones(1, 2, 4, 4))
    with pytest.raises(BedstoneError, match="mask: its numbers"):
        with_inpainting(ask, Flow(), known, torch.full((1, 1, 4, 4), torch.nan))


def test_a_drawing_from_a_signal_stays_near_it_as_far_as_it_is_weak():
    process, x0, noise = Flow(), signals(0, 4, 1, 8, 8) / 2, signals(1, 4, 1, 8, 8)
    still = torch.zeros_like(x0)
    ask = denoiser(lambda x, told: still, process, target("flow_prediction"))
    distances = []
    for strength in (0.1, 0.5, 1.0):
        at = shortened(times(process, 10), strength)
        start = add_noise(process, x0, noise, at[0].float())
        distances.append(float((METHODS["euler"](ask, start, at, process) - x0).abs().mean()))
    assert distances[0] < distances[1] < distances[2]
