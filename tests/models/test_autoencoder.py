"""The KL autoencoder: the shared network test, diffusers' files both ways, what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL as Published

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.tensors import load_tensors, save_tensors
from bedstone.errors import BedstoneError
from bedstone.models.autoencoder.config import AutoencoderConfig
from bedstone.models.autoencoder.network import Gaussian, build, make
from bedstone.models.published import layout
from networks import TOLERANCE, check_network, check_published, randomise

SHAPES: dict[str, dict[str, Any]] = {
    "one stage": {"widths": (8,), "groups": 4},
    "usual": {"widths": (8, 16), "groups": 8, "layers": 2},
    "three stages, equal widths": {"widths": (12, 12, 24), "groups": 6, "latent_channels": 16},
    "as in SD3": {
        "widths": (8, 16),
        "groups": 2,
        "latent_channels": 16,
        "quant_conv": False,
        "post_quant_conv": False,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "force_upcast": True,
    },
    "grey, no attention": {
        "widths": (6, 4),
        "groups": 2,
        "channels": 1,
        "out_channels": 3,
        "attention": False,
        "activation": "gelu",
    },
    "by channels": {
        "widths": (4, 8),
        "groups": 4,
        "latent_channels": 2,
        "post_quant_conv": False,
        "latents_mean": (0.1, -0.2),
        "latents_std": (0.5, 2.0),
        "image_size": (16, 24),
    },
}


def config(shape: str) -> AutoencoderConfig:
    return AutoencoderConfig(**SHAPES[shape])


@pytest.fixture(params=SHAPES)
def case(request: pytest.FixtureRequest) -> AutoencoderConfig:
    return config(request.param)


def pixels(case: AutoencoderConfig, high: int = 16, wide: int = 12) -> torch.Tensor:
    shape = (2, case.channels, high, wide)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def published(case: AutoencoderConfig) -> Published:
    values = layout("autoencoder_kl").write_config(case)
    return Published.from_config(values)


def test_network(case: AutoencoderConfig) -> None:
    shape = (2, case.out_channels, 16, 12)
    check_network(make(case), lambda network: network(pixels(case)), shape)


def test_weights_go_to_diffusers_and_back(case: AutoencoderConfig) -> None:
    network = make(case).eval()
    randomise(network)
    kind = layout("autoencoder_kl")
    x = pixels(case)
    check_published(
        kind, network, published(case), lambda own: own(x), lambda theirs: theirs(x).sample
    )


def test_latents_are_diffusers(case: AutoencoderConfig) -> None:
    network, theirs = make(case).eval(), published(case).eval()
    randomise(network)
    theirs.load_state_dict(
        {
            name.theirs: name.write(network.state_dict())
            for name in layout("autoencoder_kl").names(case)
        }
    )
    with torch.no_grad():
        ours, other = network.encode(pixels(case)), theirs.encode(pixels(case)).latent_dist
        assert (ours.mode() - other.mode()).abs().max() < TOLERANCE
        assert (ours.kl() - other.kl()).abs().max() < 1e-3 * other.kl().abs().max()
        one, two = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
        assert (ours.sample(one) - other.sample(two)).abs().max() < TOLERANCE * ours.sample().std()


@pytest.mark.parametrize("shape", ["usual", "as in SD3", "by channels"])
def test_a_folder_opens_in_diffusers(tmp_path: Path, shape: str) -> None:
    case = config(shape)
    network = build(case, seed=1)
    randomise(network)
    Model(network).save(tmp_path / "model")
    theirs = Published.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        x = pixels(case)
        assert (network.eval()(x) - theirs(x).sample).abs().max() < TOLERANCE
    assert theirs.config.shift_factor == case.shift_factor
    assert theirs.config.scaling_factor == case.scaling_factor
    theirs.save_pretrained(tmp_path / "again")
    again = bedstone.load(tmp_path / "again")
    assert again.config == case
    assert torch.equal(again.network(x), network(x))
    assert "`diffusers`" in (tmp_path / "model" / "README.md").read_text()


def test_files_of_the_first_versions_open(tmp_path: Path) -> None:
    network = build(config("usual"), seed=0)
    randomise(network)
    Model(network).save(tmp_path)
    tensors = load_tensors(tmp_path, name="diffusion_pytorch_model.safetensors")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in tensors.items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        as_convolution = "attentions" in name and tensor.dim() == 2 and "encoder" in name
        renamed[name] = (tensor[..., None, None] if as_convolution else tensor).clone()
    assert renamed.keys() != tensors.keys()
    save_tensors(tmp_path, renamed, name="diffusion_pytorch_model.safetensors")
    (tmp_path / "bedstone.json").unlink()
    values = json.loads((tmp_path / "config.json").read_text())
    for key in ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention", "shift_factor"):
        del values[key]  # which came later
    (tmp_path / "config.json").write_text(json.dumps(values))
    again = bedstone.load(tmp_path).network
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_scaled_latents_come_back() -> None:
    case = config("by channels")
    network = build(case, seed=0).eval()
    randomise(network)
    x = pixels(case)
    with torch.no_grad():
        mode = network.encode(x).mode()
        scaled = network.latents(x)
        assert torch.allclose(scaled[:, 1], (mode[:, 1] + 0.2) / 2.0 * 0.18215, atol=1e-5)
        there = network.pictures(scaled)
        assert torch.allclose(there, network.decode(mode).clamp(-1, 1), atol=1e-4)
        drawn = network.latents(x, torch.Generator().manual_seed(0))
        assert not torch.allclose(drawn, scaled)
        assert torch.equal(drawn, network.latents(x, torch.Generator().manual_seed(0)))


def test_nats_are_those_of_two_normal_distributions() -> None:
    found = Gaussian(torch.full((2, 1, 1, 2), 0.5), torch.full((2, 1, 1, 2), math.log(0.25)))
    one = torch.distributions.Normal(0.5, 0.5)
    truth = torch.distributions.kl_divergence(one, torch.distributions.Normal(0.0, 1.0))
    assert torch.allclose(found.kl(), 2 * truth.expand(2))
    draws = torch.stack([found.sample() for _ in range(4000)])
    assert abs(draws.mean() - 0.5) < 0.02 and abs(draws.std() - 0.5) < 0.02


@pytest.mark.parametrize(
    ("shape", "told"),
    [((2, 3, 18, 16), "multiples of 4"), ((2, 1, 16, 16), "3, height"), ((3, 16, 16), "3, height")],
)
def test_pictures_that_do_not_fit(shape: tuple[int, ...], told: str) -> None:
    network = make(config("three stages, equal widths"))
    with pytest.raises(BedstoneError, match=told):
        network.encode(torch.zeros(shape))


def test_latents_of_another_autoencoder() -> None:
    with pytest.raises(BedstoneError, match="16 channels"):
        make(config("three stages, equal widths")).decode(torch.zeros(1, 4, 4, 4))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"widths": (8, 10), "groups": 4}, "10 channels"),
        ({"widths": ()}, "model.widths"),
        ({"groups": 8, "activation": "sillu"}, "'silu'"),
        ({"groups": 8, "scaling_factor": 0.0}, "scaling_factor"),
        ({"groups": 8, "latents_mean": (1.0,)}, "latents_mean"),
        ({"groups": 8, "latents_std": (1.0, 0.0, 1.0, 1.0)}, "latents_std"),
        ({"groups": 8, "layout": "autoencoder"}, "autoencoder_kl"),
        ({"groups": 8, "latent_channels": 0}, "latent_channels"),
    ],
)
def test_shapes_that_can_not_be(values: dict[str, Any], told: str) -> None:
    with pytest.raises(BedstoneError, match=told):
        AutoencoderConfig(**values)


def test_stages_that_are_not_built() -> None:
    values = layout("autoencoder_kl").write_config(config("usual"))
    values["down_block_types"] = ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]
    with pytest.raises(BedstoneError, match="AttnDownEncoderBlock2D"):
        layout("autoencoder_kl").read_config(values)


def test_pixels_in_the_other_order_learn_too() -> None:
    """torch 2.13 ends the process in the backward pass of a group norm over channels last."""
    network = build(AutoencoderConfig(widths=(64,), groups=8), seed=0)
    network.encoder.into.requires_grad_(False)
    x = torch.randn(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    network(x).square().mean().backward()
    grad = network.encoder.stages[0][0].norm1.weight.grad
    assert grad is not None and grad.isfinite().all()
