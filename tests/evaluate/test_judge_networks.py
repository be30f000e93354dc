"""LeNet, CIFAR ResNets and the scene grid: published names and shapes, and what is counted."""

import pytest
import torch
from safetensors import safe_open

from bedstone.errors import BedstoneError
from bedstone.evaluate import scene_judge as scene_grid
from bedstone.evaluate.judges import CifarResNet, LeNet
from bedstone.evaluate.scene_judge import SceneGridConfig, counts


def shapes_of(network):
    return {
        key: tuple(value.shape)
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("mnist-lenet", LeNet()),
        ("cifar10-resnet20", CifarResNet(3)),
        ("cifar10-resnet56", CifarResNet(9)),
    ],
)
def test_names_are_the_published_ones(shared_data, name, network):
    with safe_open(shared_data / "weights" / f"{name}.safetensors", "pt") as file:
        theirs = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    assert shapes_of(network) == theirs


def test_depths_and_outputs():
    # He et al. (2016), table 6: 0.27M and 0.85M parameters
    for blocks, millions in ((3, 0.27), (9, 0.85)):
        network = CifarResNet(blocks)
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(
            millions, abs=0.01
        )
    network = CifarResNet(1, labels=4).eval()
    x = torch.randn(2, 3, 32, 32)
    assert network.features(x).shape == (2, 64) and network(x).shape == (2, 4)
    lenet = LeNet().eval()
    x = torch.rand(3, 1, 32, 32)
    assert lenet.features(x).shape == (3, 84)
    torch.testing.assert_close(lenet(x), lenet.fc["f7"](lenet.features(x)))


def test_shortcuts_take_every_second_pixel():
    block = CifarResNet(1).layer2[0].eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 16, 8, 8)
    found = block(x)
    assert (found[:, 8:24] == x[:, :, ::2, ::2]).all()
    assert (found[:, :8] == 0).all() and (found[:, 24:] == 0).all()


def test_a_grid_counts():
    config = SceneGridConfig(size=16, width=4, sizes=2, shapes=2, colours=3)
    network = scene_grid.build(config, seed=0)
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 2, 6, 4, 4)
    cells = torch.zeros(1, 2, 6, 4, 4)
    cells[:, :, 0] = -50  # nothing anywhere, but:
    for z, row, column, shape, colour in ((0, 0, 0, 0, 2), (1, 0, 0, 0, 2), (1, 2, 2, 1, 0)):
        cells[0, z, [0, 1 + shape, 3 + colour], row, column] = 50.0
    cells[0, 0, 0, 1, 3] = 0.0  # a half of something unknown, shared by all
    found = counts(cells, config)
    expected = torch.full((1, 2, 3), 0.5 / 6)
    expected[0, 0, 2] += 2
    expected[0, 1, 0] += 1
    torch.testing.assert_close(found, expected)
    assert found.sum() == pytest.approx(3.5)
    with pytest.raises(BedstoneError, match="multiple"):
        SceneGridConfig(size=30)
