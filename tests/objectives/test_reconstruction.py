"""How autoencoders learn: each term against its plain form, and who is moved by which."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bedstone.data.images.plain import PixelBatch
from bedstone.errors import BedstoneError
from bedstone.models.autoencoder import network as patchgan
from bedstone.models.autoencoder.config import (
    AutoencoderConfig,
    DiscreteConfig,
    DiscreteVAEConfig,
)
from bedstone.models.autoencoder.discrete import build_discrete, build_dvae, map_pixels
from bedstone.models.autoencoder.network import build
from bedstone.models.bert.network import BertConfig
from bedstone.models.bert.network import build as build_bert
from bedstone.models.resnet import network as resnet
from bedstone.models.resnet.network import ResNetConfig
from bedstone.models.vit import network as vit
from bedstone.models.vit.network import ViTConfig
from bedstone.objectives.reconstruction import (
    Adversary,
    Perceptual,
    Reconstruction,
    Relaxation,
    adaptive_weight,
    logit_laplace,
)

HALF = (0.5, 0.5, 0.5)


def batch(count: int = 4, number: int = 0) -> PixelBatch:
    drawn = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(number))
    return PixelBatch(drawn * 2 - 1, number, [""] * count)


def kl_network(judge: bool = False) -> Any:
    network = build(AutoencoderConfig(widths=(8, 8), groups=4), seed=0)
    if judge:
        network.discriminator = patchgan.build_patchgan(3, 8, 2, seed=1)
    return network


@pytest.mark.parametrize("pixel", ["l1", "l2"])
def test_pixels_and_nats(pixel: str) -> None:
    network, shown = kl_network(), batch()
    torch.manual_seed(7)
    loss, count = Reconstruction(pixel, kl=0.5)(network, shown)
    torch.manual_seed(7)
    found = network.encode(shown.pixels)
    apart = network.decode(found.sample()) - shown.pixels
    far = apart.abs() if pixel == "l1" else apart**2
    wanted = sum(far[i].mean() + 0.5 * found.kl()[i] / 768 for i in range(4))
    assert count == 4 and torch.allclose(loss, wanted, rtol=1e-5)


def test_a_picture_counts_the_same_in_any_batch() -> None:
    network = build_discrete(DiscreteConfig(widths=(8,), groups=4), seed=0)
    objective = Reconstruction()
    shown = batch(4)
    whole, _ = objective(network, shown)
    halves = [PixelBatch(part, 0, []) for part in shown.pixels.split(2)]
    parts = sum(objective(network, half)[0] for half in halves)
    assert torch.allclose(whole, parts, rtol=1e-5)


def feature_network(kind: str) -> nn.Module:
    if kind == "resnet":
        shape = ResNetConfig(image_size=16, width=8, blocks=(1, 1), block="basic", shrink=1)
        return resnet.build(shape, seed=0)
    return vit.build(
        ViTConfig(layout="vit", image_size=16, patch=4, width=16, layers=1, heads=2), seed=0
    )


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_what_a_network_sees(kind: str) -> None:
    seen = Perceptual(feature_network(kind), HALF, HALF)
    real = batch().pixels
    assert seen(real, real).abs().max() < 1e-5
    slightly, much = (real + noise * torch.randn_like(real) for noise in (0.05, 0.8))
    assert (seen(slightly, real) < seen(much, real)).all()
    assert seen(real, real).shape == (4,)
    # pictures of another size are resized, and the mean of the network's own is taken away
    assert seen(batch().pixels[:, :, :8, :8], real[:, :, :8, :8]).shape == (4,)
    other = Perceptual(feature_network(kind), (0.2, 0.2, 0.2), HALF)
    assert not torch.allclose(other(much, real), seen(much, real))


def test_what_a_network_sees_moves_the_autoencoder_alone() -> None:
    network, eye = kl_network(), feature_network("resnet")
    Reconstruction(perceptual=Perceptual(eye, HALF, HALF))(network, batch())[0].backward()
    assert all(weight.grad is None for weight in eye.parameters())
    assert network.last_weight.grad.abs().sum() > 0


def test_a_network_that_sees_nothing() -> None:
    tiny = BertConfig(layout="bert", vocab_size=20, width=8, layers=1, heads=2, context=8)
    with pytest.raises(BedstoneError, match="doesn't see pictures"):
        Perceptual(build_bert(tiny, seed=0), HALF, HALF)


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    return {n: w.grad.clone() for n, w in network.named_parameters() if w.grad is not None}


def test_the_judge_learns_the_hinge_loss_alone() -> None:
    network, shown = kl_network(judge=True), batch()
    torch.manual_seed(3)
    found = gradients(network, Reconstruction(adversary=Adversary(0.5))(network, shown)[0])
    torch.manual_seed(3)
    judge = network.discriminator
    made = network.learn(shown.pixels)[0].detach()
    real = torch.relu(1 - judge(shown.pixels)).flatten(1).mean(1)
    fake = torch.relu(1 + judge(made)).flatten(1).mean(1)
    wanted = gradients(judge, 0.5 * (real + fake).sum())
    for name, gradient in wanted.items():
        assert torch.allclose(found[f"discriminator.{name}"], gradient, rtol=1e-3, atol=1e-6), name


def test_the_judge_pulls_as_much_as_it_may() -> None:
    """At the last layer: `weight` times the gradient of the other terms (VQGAN, equation 7)."""
    network, shown = kl_network(judge=True), batch()
    name = "decoder.out.weight"

    def last(objective: Reconstruction) -> Tensor:
        torch.manual_seed(3)
        return gradients(network, objective(network, shown)[0])[name]

    alone = last(Reconstruction())
    pulled = last(Reconstruction(adversary=Adversary(0.5))) - alone
    assert pulled.norm() == pytest.approx(0.5 * alone.norm().item(), rel=0.01)
    late = last(Reconstruction(adversary=Adversary(0.5, after=1)))
    assert torch.equal(late, alone)
    shown = replace(shown, number=1)  # from that batch on
    begun = last(Reconstruction(adversary=Adversary(0.5, after=1)))
    torch.testing.assert_close(begun, alone + pulled)
    assert torch.equal(last(Reconstruction(adversary=Adversary(0.5, after=2))), alone)


def test_the_weight_is_bounded() -> None:
    weight = torch.ones(2, requires_grad=True)
    found = adaptive_weight(1e9 * weight.sum(), 1e-9 * weight.sum(), weight)
    assert found.item() == 1e4 and not found.requires_grad


def test_a_judge_of_patches() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    judge = patchgan.build_patchgan(3, 8, 2, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    shown = batch().pixels
    assert judge(shown).shape == (4, 1, 2, 2)
    assert judge(shown[..., : patchgan.least_side(2)]).shape == (4, 1, 2, 1)
    # a verdict depends on its own picture alone
    assert torch.allclose(judge(shown)[:1], judge(shown[:1]), atol=1e-5)


def test_an_unknown_distance() -> None:
    with pytest.raises(BedstoneError, match="perhaps 'l2'"):
        Reconstruction("l3")


def test_logit_laplace_is_a_density() -> None:
    """It sums to one over the values that pixels are mapped from, and is highest at its mean."""
    values = torch.linspace(0, 1, 20_001)
    x = map_pixels(values)
    mean, scale = torch.tensor(0.7), torch.tensor(-0.5)
    made = torch.stack((mean, scale)).view(1, 2, 1, 1).expand(len(x), -1, -1, -1)
    nats = logit_laplace(made, (2 * values - 1).view(-1, 1, 1, 1))
    density = torch.exp(-nats)
    logistic = torch.logit(x)
    plain = torch.exp(-(logistic - mean).abs() / scale.exp()) / (2 * scale.exp() * x * (1 - x))
    assert torch.allclose(density, plain, rtol=1e-4)
    inside = torch.trapezoid(density, x).item()
    ends = torch.logit(torch.tensor([0.1, 0.9])) - mean
    outside = 0.5 * torch.exp(-ends.abs() / scale.exp()).sum().item()
    assert inside + outside == pytest.approx(1.0, abs=1e-3)


def test_the_course_of_a_relaxation() -> None:
    how = Relaxation(start=1.0, end=0.25, until=0.5, kl_until=0.2)
    temperatures = [how.temperature(spent / 20) for spent in range(21)]
    assert temperatures[0] == 1.0 and temperatures[10] == temperatures[20] == 0.25
    assert temperatures == sorted(temperatures, reverse=True)
    assert [how.rise(spent) for spent in (0.0, 0.1, 0.2, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    at_once = Relaxation(until=0.0, kl_until=0.0)
    assert at_once.temperature(0.0) == at_once.end and at_once.rise(0.0) == 1.0
    network = build_dvae(DiscreteVAEConfig(image_size=16, codes=8, layers=2, width=4), seed=0)
    objective = Reconstruction("l2", kl=1.0, relaxation=how)
    objective.before_step(network, 0.25)
    assert network.temperature == how.temperature(0.25)


def test_the_weight_of_nats_does_not_depend_on_batch_or_size() -> None:
    """DALLE-pytorch sums them over both."""
    network = build_dvae(DiscreteVAEConfig(image_size=16, codes=8, layers=2, width=4), seed=0)
    for part in network.encoder.modules():  # the same logits at every place, edges too
        if isinstance(part, nn.Conv2d):
            nn.init.zeros_(part.weight)
    nn.init.normal_(network.encoder[-1].bias)
    for part in network.decoder.parameters():
        nn.init.zeros_(part)  # so that what is drawn is the same whatever the tokens
    wide = PixelBatch(torch.zeros(3, 3, 32, 48), 0, [])
    small = PixelBatch(torch.zeros(1, 3, 16, 16), 0, [])
    bare, full = Reconstruction("l2", kl=0.0), Reconstruction("l2", kl=2.0)
    shares = []
    for given in (wide, small):
        shares.append((full(network, given)[0] - bare(network, given)[0]) / len(given.pixels))
    assert shares[0] > 1e-3 and torch.allclose(shares[0], shares[1], rtol=1e-4)
