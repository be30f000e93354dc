"""Pictures as codes: rounding, codes there and back, the shared network test, the folder."""

from pathlib import Path
from typing import Any

import pytest
import torch

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.errors import BedstoneError
from bedstone.models.autoencoder.config import DiscreteConfig
from bedstone.models.autoencoder.discrete import (
    FSQ,
    FSQAutoencoder,
    build_discrete,
    make_discrete,
)
from bedstone.models.interfaces import ImageCoder
from networks import check_network, randomise

SHAPES: dict[str, dict[str, Any]] = {
    "usual": {"widths": (8, 16), "groups": 4, "levels": (8, 5, 5, 5)},
    "grey, attention": {
        "widths": (6,),
        "groups": 3,
        "channels": 1,
        "patch": 4,
        "levels": (3, 2, 4),
        "attention": True,
    },
    "no patch": {"widths": (4, 8, 8), "groups": 4, "patch": 1, "levels": (7, 5)},
}


@pytest.fixture(params=SHAPES)
def case(request: pytest.FixtureRequest) -> DiscreteConfig:
    return DiscreteConfig(**SHAPES[request.param])


def pixels(case: DiscreteConfig) -> torch.Tensor:
    return torch.randn((2, case.channels, 16, 24), generator=torch.Generator().manual_seed(1))


def network_of(case: DiscreteConfig) -> FSQAutoencoder:
    network = make_discrete(case)
    randomise(network)
    return network.eval()


def test_network(case: DiscreteConfig) -> None:
    shape = (2, case.channels, 16, 24)
    check_network(make_discrete(case), lambda network: network(pixels(case)), shape)


def test_codes_there_and_back(case: DiscreteConfig) -> None:
    network = network_of(case)
    assert isinstance(network, ImageCoder)
    with torch.no_grad():
        codes = network.encode(pixels(case))
        assert codes.shape == (2, 16 // case.shrink, 24 // case.shrink)
        assert codes.dtype == torch.int64 and codes.unique().numel() > 1
        again = network.decode(codes)
        assert torch.allclose(again, network(pixels(case)).clamp(-1, 1), atol=1e-5)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2,), (3, 4), (7, 5, 5, 5, 5)])
def test_every_code_is_a_grid_point_of_its_own(levels: tuple[int, ...]) -> None:
    fsq = FSQ(levels)
    codes = torch.arange(fsq.count).view(1, 1, -1)
    numbers = fsq.numbers(codes)
    assert torch.equal(fsq.codes(numbers), codes)
    assert numbers.min() >= -1 and numbers.max() <= 1
    for number, level in enumerate(levels):
        assert numbers[0, number].unique().numel() == level


@pytest.mark.parametrize("level", [2, 3, 4, 5, 8])
def test_rounding_reaches_all_levels_and_no_others(level: int) -> None:
    fsq = FSQ((level,))
    z = torch.linspace(-8, 8, 801).view(1, 1, 1, -1)
    quantized = fsq.quantize(z)
    assert torch.equal(fsq.codes(quantized).unique(), torch.arange(level))
    assert quantized.diff().ge(0).all()
    # zero lies on a level, so that an encoder that gives nothing is rounded to one place
    assert fsq.bounded(torch.zeros(1, 1, 1, 1)).abs().item() < 1e-6


def test_gradients_pass_the_rounding() -> None:
    fsq = FSQ((5, 4))
    z = torch.randn(1, 2, 3, 3, requires_grad=True)
    fsq.quantize(z).sum().backward()
    plain = z.detach().clone().requires_grad_()
    half = torch.tensor([2.0, 2.0])[:, None, None]
    (fsq.bounded(plain) / half).sum().backward()
    assert z.grad is not None and torch.allclose(z.grad, plain.grad)


def test_a_folder(tmp_path: Path, case: DiscreteConfig) -> None:
    network = network_of(case)
    Model(network).save(tmp_path / "model")
    again = bedstone.load(tmp_path / "model")
    assert again.config == case and again.network.codebook_size == case.codes
    assert torch.equal(again.network.encode(pixels(case)), network.encode(pixels(case)))


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        (torch.full((1, 2, 2), 1000), "from 0 to 999"),
        (torch.full((1, 2, 2), -1), "from 0 to 999"),
        (torch.zeros(2, 2, dtype=torch.long), "images, rows, columns"),
        (torch.zeros(1, 2, 2), "float32"),
    ],
)
def test_what_are_no_codes(codes: torch.Tensor, told: str) -> None:
    with pytest.raises(BedstoneError, match=told):
        network_of(DiscreteConfig(**SHAPES["usual"])).decode(codes)


def test_pictures_that_do_not_fit() -> None:
    network = build_discrete(DiscreteConfig(**SHAPES["usual"]), seed=0)
    with pytest.raises(BedstoneError, match="multiples of 4"):
        network.encode(torch.zeros(1, 3, 14, 16))
    with pytest.raises(BedstoneError, match="3 channels"):
        network.encode(torch.zeros(1, 1, 16, 16))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"levels": ()}, "model.levels"),
        ({"levels": (5, 1)}, "model.levels"),
        ({"levels": (2,) * 25}, "33,554,432 codes"),
        ({"patch": 0}, "patch"),
    ],
)
def test_shapes_that_can_not_be(values: dict[str, Any], told: str) -> None:
    with pytest.raises(BedstoneError, match=told):
        DiscreteConfig(**values)
