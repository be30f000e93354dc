"""The one test that every network passes; a family calls it with its own small cases."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bedstone.models.published import Layout, load_published, to_published

TOLERANCE = 1e-4


def randomise(network: nn.Module, seed: int = 0) -> None:
    """Every parameter random, so that none hides behind a zero or a one it started with."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            parameter.copy_(noise * 0.1 + (1.0 if parameter.dim() == 1 else 0.0))


def check_network(network: nn.Module, forward: Callable[[nn.Module], Tensor], shape: tuple) -> None:
    """Shape of the output; gradients reach every parameter; state saves and loads bitwise."""
    randomise(network)
    network.eval()
    out = forward(network)
    assert tuple(out.shape) == shape
    assert out.isfinite().all()
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * weights).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"no gradient reaches {name}"
        assert parameter.grad.abs().sum() > 0, f"the gradient of {name} is zero"
    network.zero_grad()
    twin = copy.deepcopy(network)
    randomise(twin, seed=2)
    assert not torch.equal(forward(twin), out)
    twin.load_state_dict(network.state_dict())
    assert torch.equal(forward(twin), out)


def check_published(
    layout: Layout,
    network: nn.Module,
    published: nn.Module,
    ours: Callable[[nn.Module], Tensor],
    theirs: Callable[[nn.Module], Tensor],
) -> None:
    """Weights go to the published network and back: the same outputs, the same bits."""
    written = to_published(layout, network)
    missing, unexpected = published.load_state_dict(written, strict=False)
    tied = set(getattr(published, "_tied_weights_keys", None) or ())
    assert set(missing) <= tied, missing
    assert not unexpected
    published.eval()
    with torch.no_grad():
        assert (ours(network) - theirs(published)).abs().max() < TOLERANCE
    again = layout.build(network.config)
    load_published(layout, again, dict(published.state_dict()), where="test")
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
