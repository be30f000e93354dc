"""Autoencoders with a learnt codebook (VQ) and with relaxed tokens (dVAE): files of the libraries
that they come from, ids, gradients beside enumeration, and what training does to codes."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import VQModel as Published
from torch import Tensor, nn

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.tensors import save_tensors
from bedstone.errors import BedstoneError
from bedstone.models.autoencoder.config import DiscreteConfig, DiscreteVAEConfig, VQConfig
from bedstone.models.autoencoder.discrete import (
    ENCODED,
    CodebookAverages,
    VQModel,
    build_discrete,
    build_dvae,
    build_vq,
    categorical_nats,
    make_dvae,
    make_vq,
    map_pixels,
    reinmax_gradients,
    relaxed,
    unmap_pixels,
)
from bedstone.models.interfaces import ImageCoder
from bedstone.models.published import layout
from networks import TOLERANCE, check_network, check_published, randomise

VQ: dict[str, dict[str, Any]] = {
    "one stage": {"widths": (8,), "groups": 4, "codes": 16},
    "narrow codes": {
        "widths": (8, 16, 16),
        "groups": 8,
        "layers": 2,
        "latent_channels": 6,
        "code_width": 4,
        "codes": 50,
        "attention": False,
        "image_size": (16, 24),
    },
    "grey, by their names": {
        "widths": (6, 12),
        "groups": 3,
        "channels": 1,
        "out_channels": 3,
        "codes": 20,
        "code_width": 8,
        "lookup": True,
        "activation": "gelu",
    },
}
DVAE: dict[str, dict[str, Any]] = {
    "usual": {"image_size": 16, "codes": 8, "code_width": 6, "layers": 2, "width": 5},
    "blocks, grey": {
        "image_size": 8,
        "channels": 1,
        "codes": 11,
        "code_width": 4,
        "layers": 1,
        "blocks": 2,
        "width": 6,
        "mean": (0.3,),
        "std": (0.7,),
        "straight_through": True,
        "reinmax": True,
    },
    "distributions": {
        "image_size": 8,
        "codes": 9,
        "code_width": 4,
        "layers": 1,
        "blocks": 1,
        "width": 6,
        "logit_laplace": True,
    },
}


@pytest.fixture(params=VQ)
def vq(request: pytest.FixtureRequest) -> VQConfig:
    return VQConfig(**VQ[request.param])


@pytest.fixture(params=DVAE)
def dvae(request: pytest.FixtureRequest) -> DiscreteVAEConfig:
    return DiscreteVAEConfig(**DVAE[request.param])


def pixels(channels: int, count: int = 2, high: int = 16, wide: int = 24) -> Tensor:
    return torch.rand((count, channels, high, wide), generator=torch.Generator().manual_seed(1))


def random_codebook(network: VQModel) -> VQModel:
    """With vectors among the latents of `pixels`, so that many are near to some."""
    randomise(network)
    torch.manual_seed(3)
    with torch.no_grad():
        latents = network.latents(pixels(network.config.channels)).movedim(1, -1).flatten(0, 2)
    drawn = torch.randn(network.codebook.weight.shape)
    network.codebook.weight.copy_(latents.mean(0) + latents.std(0) * drawn)
    return network.eval()


# diffusers' VQModel.


def test_network(vq: VQConfig) -> None:
    shape = (2, vq.out_channels, 16, 24)
    check_network(make_vq(vq), lambda network: network(pixels(vq.channels)), shape)


def test_weights_go_to_diffusers_and_back(vq: VQConfig) -> None:
    network, kind = random_codebook(make_vq(vq)), layout("vq_model")
    theirs = Published.from_config(kind.write_config(vq))
    x = pixels(vq.channels)
    check_published(
        kind, network, theirs, lambda own: own(x), lambda other: other(x, return_dict=False)[0]
    )
    with torch.no_grad():
        latents = theirs.encode(x).latents
        ids = theirs.quantize(latents)[2][2].view(2, *latents.shape[2:])
    assert torch.equal(network.encode(x), ids) and ids.unique().numel() > 1


def test_a_folder_opens_in_diffusers(tmp_path: Path, vq: VQConfig) -> None:
    network = random_codebook(make_vq(vq))
    Model(network).save(tmp_path / "model")
    theirs = Published.from_pretrained(tmp_path / "model").eval()
    theirs.save_pretrained(tmp_path / "again")
    again = bedstone.load(tmp_path / "again")
    assert again.config == vq and isinstance(again.network, ImageCoder)
    x = pixels(vq.channels)
    ids = network.encode(x)
    assert torch.equal(again.network.encode(x), ids)
    assert torch.equal(again.network.decode(ids), network.decode(ids))
    assert (tmp_path / "model" / "golden.json").is_file()


def test_spatial_norms_are_refused(tmp_path: Path) -> None:
    Model(build_vq(VQConfig(**VQ["one stage"]), seed=0)).save(tmp_path)
    (tmp_path / "bedstone.json").unlink()
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "norm_type": "spatial"}))
    with pytest.raises(BedstoneError, match="norm_type"):
        bedstone.load(tmp_path)


# The same ids whatever stands beside an image, and whatever the network computes in.


@pytest.mark.parametrize("kind", ["fsq", "vq", "dvae"])
def test_ids_depend_on_neither_the_batch_nor_bf16(kind: str) -> None:
    made: Any = {
        "fsq": lambda: build_discrete(DiscreteConfig(widths=(8, 16), levels=(8, 5, 5)), seed=0),
        "vq": lambda: build_vq(VQConfig(widths=(8, 16), groups=4, codes=64), seed=0),
        "dvae": lambda: build_dvae(DiscreteVAEConfig(**DVAE["usual"]), seed=0),
    }[kind]()
    randomise(made)
    if kind == "vq":
        random_codebook(made)
    made.eval()
    x = 2 * pixels(3, ENCODED + 3) - 1
    ids = made.encode(x)
    assert ids.unique().numel() > 2 and ids.min() >= 0 and ids.max() < made.codebook_size
    for size in (1, 2, 5):
        assert torch.equal(torch.cat([made.encode(part) for part in x.split(size)]), ids)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made.encode(x), ids)
        drawn, _ = made.learn(x)
        assert drawn.isfinite().all()


def test_a_codebook_is_searched_in_fp32() -> None:
    """Vectors that bf16 can't tell from one another."""
    network = build_vq(VQConfig(widths=(8,), groups=4, codes=300, latent_channels=1), seed=0)
    network.codebook.weight.copy_(1 + torch.arange(300)[:, None] / 4096)
    with torch.autocast("cpu", torch.bfloat16):
        found = network.codebook.nearest(network.codebook.weight.clone())
    assert torch.equal(found, torch.arange(300))


# What moves a codebook.


def test_a_codebook_begins_with_latents_and_follows_them() -> None:
    torch.manual_seed(0)
    network = build_vq(VQConfig(widths=(8,), groups=4, codes=4, code_width=2), seed=0)
    averages = CodebookAverages(network.codebook, decay=0.5)
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    for _ in range(40):
        latents = centres.repeat(8, 1) + 0.1 * torch.randn(32, 2)
        averages.begin(network.codebook, latents)
        averages.see(latents, network.codebook.nearest(latents))
        averages.settle(network.codebook)
    found = network.codebook.weight
    order = network.codebook.nearest(centres)
    assert sorted(order.tolist()) == [0, 1, 2, 3]  # none is idle, none serves two
    assert (found[order] - centres).abs().max() < 0.2


def test_a_moving_average_is_the_published_one() -> None:
    network = build_vq(VQConfig(widths=(8,), groups=4, codes=2, code_width=1), seed=0)
    network.codebook.weight.copy_(torch.tensor([[0.0], [10.0]]))
    averages = CodebookAverages(network.codebook, decay=0.9, least=0.0)
    averages.started.fill_(1.0)
    latents = torch.tensor([[1.0], [1.0], [2.0], [12.0]])
    averages.see(latents, network.codebook.nearest(latents))
    averages.settle(network.codebook)
    # counts begin at 2 each, as if both codes had been used evenly and their latents had been them
    counts = [0.9 * 2 + 0.1 * 3, 0.9 * 2 + 0.1 * 1]
    sums = [0.9 * 0 + 0.1 * 4, 0.9 * 20 + 0.1 * 12]
    expected = [[total / count] for total, count in zip(sums, counts, strict=True)]
    assert torch.allclose(network.codebook.weight, torch.tensor(expected))


def test_idle_codes_become_latents() -> None:
    torch.manual_seed(0)
    network = build_vq(VQConfig(widths=(8,), groups=4, codes=3, code_width=1), seed=0)
    network.codebook.weight.copy_(torch.tensor([[1.0], [2.0], [900.0]]))
    averages = CodebookAverages(network.codebook, decay=0.5, least=0.1)
    averages.started.fill_(1.0)
    latents = torch.tensor([[1.0], [2.0]]).repeat(6, 1)
    for _ in range(6):
        averages.see(latents, network.codebook.nearest(latents))
        averages.settle(network.codebook)
    assert network.codebook.weight.max() < 3


def test_latents_learn_to_be_near_their_codes() -> None:
    network = build_vq(VQConfig(widths=(8,), groups=4, codes=8), seed=0)
    x = 2 * pixels(3) - 1
    made, apart = network.learn(x)
    assert made.shape == x.shape and apart.shape == (2,)
    latents = network.latents(x)
    chosen = network.vectors(network.encode(x))
    assert torch.allclose(apart[0] / x[0].numel(), (latents - chosen)[0].square().mean())
    apart.sum().backward()
    grad = network.moments.weight.grad
    assert grad is not None and grad.abs().sum() > 0
    assert network.codebook.weight.grad is None


# DALLE-pytorch's DiscreteVAE.


class PeerBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        three = [nn.Conv2d(width, width, size, padding=size // 2) for size in (3, 3, 1)]
        self.net = nn.Sequential(three[0], nn.ReLU(), three[1], nn.ReLU(), three[2])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + x


class Peer(nn.Module):
    """The network as DALLE-pytorch 1.6.6 lays it out, from its description alone."""

    def __init__(self, case: DiscreteVAEConfig) -> None:
        super().__init__()
        self.case = case
        down, up, width = [case.channels], [], case.width
        down += [width] * case.layers
        up = [width if case.blocks else case.code_width, *[width] * case.layers]
        encoder: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(a, b, 4, stride=2, padding=1), nn.ReLU())
            for a, b in pairwise(down)
        ]
        decoder: list[nn.Module] = [
            nn.Sequential(nn.ConvTranspose2d(a, b, 4, stride=2, padding=1), nn.ReLU())
            for a, b in pairwise(up)
        ]
        for _ in range(case.blocks):
            encoder.append(PeerBlock(width))
            decoder.insert(0, PeerBlock(width))
        if case.blocks:
            decoder.insert(0, nn.Conv2d(case.code_width, width, 1))
        encoder.append(nn.Conv2d(width, case.codes, 1))
        decoder.append(nn.Conv2d(width, case.channels, 1))
        self.codebook = nn.Embedding(case.codes, case.code_width)
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)

    def logits(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(each)[:, None, None] for each in (self.case.mean, self.case.std))
        return self.encoder((images - mean) / std)

    def decode(self, ids: Tensor) -> Tensor:
        return self.decoder(self.codebook(ids).permute(0, 3, 1, 2))


def test_a_dalle_pytorch_model_opens(tmp_path: Path) -> None:
    case = DiscreteVAEConfig(**DVAE["blocks, grey"])
    torch.manual_seed(0)
    peer = Peer(case)
    arguments = {
        "image_size": 8,
        "num_tokens": 11,
        "codebook_dim": 4,
        "num_layers": 1,
        "num_resnet_blocks": 2,
        "hidden_dim": 6,
        "channels": 1,
        "smooth_l1_loss": False,
        "temperature": 0.9,
        "straight_through": True,
        "reinmax": True,
        "kl_div_loss_weight": 0.0,
        "normalization": [[0.3], [0.7]],
    }
    save_tensors(tmp_path, peer.state_dict())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "discrete_vae", **arguments}))
    model = bedstone.load(tmp_path)
    assert model.config == case
    images = pixels(1, 3, 8, 8)  # from 0 to 1, as theirs are
    with torch.no_grad():
        theirs = peer.logits(images)
        assert (model.network.latents(2 * images - 1) - theirs).abs().max() < TOLERANCE
        ids = theirs.argmax(1)
        assert torch.equal(model.network.encode(2 * images - 1), ids)
        made = (peer.decode(ids) * 0.7 + 0.3) * 2 - 1  # they leave out to undo the normalisation
        assert (model.network.decode(ids) - made.clamp(-1, 1)).abs().max() < TOLERANCE
    Model(model.network).save(tmp_path / "again")
    again = bedstone.load(tmp_path / "again")
    assert again.config == case and torch.equal(
        again.network.decode(ids), model.network.decode(ids)
    )


def test_dvae_network(dvae: DiscreteVAEConfig) -> None:
    shape = (2, dvae.channels, 16, 24)
    if dvae.logit_laplace:  # the deviations are of no image
        network = build_dvae(dvae, seed=0)
        assert network(pixels(3)).shape == shape
        return
    check_network(make_dvae(dvae), lambda network: network(pixels(dvae.channels)), shape)


def test_dvae_ids_there_and_back(dvae: DiscreteVAEConfig) -> None:
    network = build_dvae(dvae, seed=0).eval()
    randomise(network)
    x = 2 * pixels(dvae.channels) - 1
    ids = network.encode(x)
    assert ids.shape == (2, 16 // dvae.shrink, 24 // dvae.shrink)
    with torch.no_grad():
        assert torch.allclose(network.decode(ids), network(x).clamp(-1, 1), atol=1e-5)


@pytest.mark.parametrize(
    "said", [[[0.5]], "half", [[], []], [[0.5], [0.0]], [[0.5] * 2, [0.5] * 3]]
)
def test_normalization_that_is_none(tmp_path: Path, said: Any) -> None:
    case = DiscreteVAEConfig(**DVAE["usual"])
    Model(build_dvae(case, seed=0)).save(tmp_path)
    (tmp_path / "bedstone.json").unlink()
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "normalization": said}))
    with pytest.raises(BedstoneError, match=r"normalization|mean|std"):
        bedstone.load(tmp_path)


def test_pixels_as_they_are(tmp_path: Path) -> None:
    case = DiscreteVAEConfig(**{**DVAE["usual"], "mean": (0.0,) * 3, "std": (1.0,) * 3})
    Model(build_dvae(case, seed=0)).save(tmp_path)
    (tmp_path / "bedstone.json").unlink()
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "normalization": None}))
    assert bedstone.load(tmp_path).config == case


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"reinmax": True}, "model.reinmax"),
        ({"codes": 1}, "codes"),
        ({"std": (0.0, 0.0, 0.0)}, "model.std"),
        ({"mean": (0.1, 0.2)}, "model.mean"),
        ({"image_size": (8, 8, 8)}, "model.image_size"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_shapes_that_can_not_be(values: dict[str, Any], said: str) -> None:
    with pytest.raises(BedstoneError, match=said):
        DiscreteVAEConfig(**values)


# Gradients through a choice, beside those of its enumeration.

LOGITS = torch.tensor([0.3, -1.0, 0.8, 0.1, -0.4, 1.2, -2.0, 0.5])


def enumerated(value: Any) -> Tensor:
    """d E[value(one token)] / d logits, by all eight tokens."""
    logits = LOGITS.clone().requires_grad_()
    probabilities = logits.softmax(0)
    sum(p * value(one) for p, one in zip(probabilities, torch.eye(8), strict=True)).backward()
    assert logits.grad is not None
    return logits.grad


def test_reinmax_is_exact_for_what_is_quadratic() -> None:
    """Liu et al., 2023, theorem 3.1: of second order."""
    torch.manual_seed(1)
    inner, outer = torch.randn(8, 8), torch.randn(8)

    def value(one: Tensor) -> Tensor:
        return (one @ inner @ one) + one @ outer

    found = torch.zeros(8)
    for chance, one in zip(LOGITS.softmax(0), torch.eye(8), strict=True):
        logits = LOGITS.clone().requires_grad_()
        value(reinmax_gradients(one[None], logits[None])[0]).backward()
        assert logits.grad is not None
        found += chance * logits.grad
    assert torch.allclose(found, enumerated(value), atol=1e-5)
    # the plain straight-through estimator isn't
    logits = LOGITS.clone().requires_grad_()
    plain = torch.zeros(8)
    for chance, one in zip(LOGITS.softmax(0), torch.eye(8), strict=True):
        soft = logits.softmax(0)
        (grad,) = torch.autograd.grad(value(one + soft - soft.detach()), logits)
        plain += chance * grad
    assert (plain - enumerated(value)).abs().max() > 0.05


def test_straight_through_draws_tokens_and_its_gradients_come_near() -> None:
    torch.manual_seed(0)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, -1.0, 2.0, 1.5])
    logits = LOGITS.repeat(100_000, 1).requires_grad_()
    drawn = relaxed(logits, 0.2, straight_through=True)
    assert ((drawn - drawn.round()).abs() < 1e-5).all()  # one token each
    often = drawn.detach().mean(0)
    assert (often - LOGITS.softmax(0)).abs().max() < 0.01
    (drawn @ weights).sum().backward()
    assert logits.grad is not None
    expected = enumerated(lambda one: one @ weights)
    assert (logits.grad.mean(0) - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_mixture_sums_to_one_and_is_nearly_a_token_where_it_is_cold() -> None:
    torch.manual_seed(0)
    warm, cold = (relaxed(LOGITS.repeat(64, 1), t) for t in (2.0, 1 / 16))
    for shares in (warm, cold):
        assert torch.allclose(shares.sum(1), torch.ones(64))
    assert cold.amax(1).mean() > 0.95 > 0.6 > warm.amax(1).mean()


def test_nats_of_a_pixel_do_not_depend_on_batch_or_size() -> None:
    logits = torch.randn(2, 8, 4, 6, generator=torch.Generator().manual_seed(0))
    nats = categorical_nats(logits)
    shares = logits[0].softmax(0)
    assert nats[0].item() == pytest.approx(
        float((shares * (shares / (1 / 8)).log()).sum()), rel=1e-5
    )
    assert torch.allclose(categorical_nats(logits.repeat(3, 1, 1, 1)), nats.repeat(3))
    wider = categorical_nats(logits.repeat(1, 1, 2, 3))  # an image of six times as many pixels
    assert torch.allclose(wider / 6, nats)
    assert categorical_nats(torch.zeros(1, 8, 3, 3)).abs().item() < 1e-5
    sure = categorical_nats(100 * torch.eye(8)[0].view(1, 8, 1, 1))
    assert sure.item() == pytest.approx(math.log(8), rel=1e-4)


def test_pixels_are_mapped_inside_and_back() -> None:
    values = torch.linspace(0, 1, 11)
    mapped = map_pixels(values)
    assert mapped.min() == pytest.approx(0.1) and mapped.max() == pytest.approx(0.9)
    assert torch.allclose(unmap_pixels(mapped), values, atol=1e-6)
    assert torch.equal(unmap_pixels(torch.tensor([0.0, 1.0])), torch.tensor([0.0, 1.0]))
