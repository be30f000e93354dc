"""What enlarges images: learnt, opened, refused; and as the last stage of an unCLIP."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from bedstone.checkpoints.enlarging import enlarge
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.pipeline import DiffusionPipeline
from bedstone.checkpoints.unclip import UnclipPipeline
from bedstone.cli import main
from bedstone.commands.train import pretrain
from bedstone.data.signals.enlarging import USUAL_NOISE, Enlarging, larger, read_beside, smaller
from bedstone.errors import BedstoneError
from bedstone.recipes.base import read
from bedstone.tasks.media.unclip import UnclipGenerator, open_generator
from bedstone.train.run import RunResult
from method_recipes import SIZE, unclip, upsample
from runs import losses


def train(folder: Path, values: dict[str, Any]) -> RunResult:
    path = folder.with_suffix(".yaml")
    shared = {"log_every": 1, "device": "cpu", "precision": "fp32", "out": str(folder)}
    path.write_text(yaml.safe_dump({**shared, **values}))
    return pretrain(read(path), quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Of images of 16 pixels out of such of 8."""
    folder = tmp_path_factory.mktemp("enlarging")
    return train(folder / "run", upsample(folder))


def test_what_is_read_beside_images() -> None:
    images = torch.rand(3, 3, 8, 8) * 2 - 1
    found = Enlarging(factor=2, noise=0.3)(images, None)
    assert tuple(found.shape) == (3, 4, 8, 8)
    assert torch.equal(found, Enlarging(factor=2, noise=0.3)(images, None))
    assert torch.allclose(found[:, 3], torch.full((3, 8, 8), USUAL_NOISE))  # the level that is told
    clean = Enlarging(factor=2, noise=0.0)(images, None)
    small = smaller(images, 2)
    assert torch.allclose(small[0, 0, 0, 0], images[0, 0, :2, :2].mean())
    wide = torch.nn.functional.interpolate(small, size=(8, 8), mode="bilinear")
    assert torch.allclose(clean[:, :3], wide) and not clean[:, 3].any()
    drawn = Enlarging(factor=2, noise=0.3)(images.repeat(50, 1, 1, 1), np.random.default_rng(1))
    levels = drawn[:, 3, 0, 0]
    assert 0 <= levels.min() < 0.03 and 0.27 < levels.max() <= 0.3
    far = (drawn[:, :3] - wide.repeat(50, 1, 1, 1)).flatten(1).std(1)
    assert torch.corrcoef(torch.stack([far, levels]))[0, 1] > 0.9  # as noisy as it says
    told = read_beside(small, (8, 8), torch.tensor([0.0, 0.5, 1.0]), torch.zeros_like(small))
    assert torch.equal(told[:, 3, 0, 0], torch.tensor([0.0, 0.5, 1.0]))


def test_a_run(run: RunResult) -> None:
    assert run.model is not None
    model = open_model(run.model)
    assert isinstance(model, DiffusionPipeline)
    assert model.signal.small == (3, 8, 8) and model.config.beside == 4
    report = json.loads((run.run / "evaluation.json").read_text())["validation"]
    assert {"psnr", "psnr_bicubic"} <= report.keys() and (run.run / "samples.png").is_file()
    images = torch.rand(3, 3, 8, 8) * 2 - 1
    found = enlarge(model, images, [5, 6, 5])
    assert tuple(found.shape) == (3, 3, 16, 16) and found.abs().max() <= 1
    alone = enlarge(model, images[1:2], [6])
    assert torch.allclose(alone[0], found[1], atol=1e-5)  # whatever stands beside it
    assert not torch.allclose(enlarge(model, images[:1], [9])[0], found[0], atol=1e-3)
    with pytest.raises(BedstoneError, match=r"enlarges images of \[3, 8, 8\] .* have \[3, 4, 8\]"):
        enlarge(model, images[:, :, :4], [0, 1, 2])
    with pytest.raises(BedstoneError, match=r"beside: none was given; this network reads"):
        model.sample([0])


@pytest.mark.slow
def test_it_comes_nearer_than_interpolation(tmp_path: Path) -> None:
    values = upsample(tmp_path) | {"budget": "600 steps", "evaluate_every": 600, "samples": 16}
    values["data"] |= {"size": [32, 32], "most_rows": 800, "sizes": ["large"], "textures": False}
    values["model"] = {"patch": 4, "width": 96, "layers": 2, "heads": 2, "conv_in": 2}
    values |= {"sampling": {"steps": 8, "guidance": 1.0}, "average": 0.98, "evaluate_rows": 16}
    values |= {"batch_size": 16, "optim": {"lr": 5e-3, "adamw_lr": 4e-3}}
    done = train(tmp_path / "run", values)
    found = json.loads((done.run / "evaluation.json").read_text())["validation"]
    assert found["psnr"] > found["psnr_bicubic"]
    curve = list(losses(done.run).values())
    assert curve[-1] < 0.5 * curve[0]


def test_imagine(run: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 20, 3), np.uint8)).save(
        tmp_path / "small.png"
    )
    given = ["imagine", str(run.run), "--count", "1", "--out", str(tmp_path / "large.png")]
    assert main([*given, "--image", str(tmp_path / "small.png")]) == 0
    with Image.open(tmp_path / "large.png") as image:
        assert image.size == (16, 16)
    capsys.readouterr()
    for more, said in (
        ([], "image: none was given"),
        (["--image", str(tmp_path / "small.png"), "--strength", "0.5"], "strength: 0.5"),
        (["--image", str(tmp_path / "small.png"), "--negative", "ink"], "negative: 'ink'"),
    ):
        assert main([*given, *more, "--overwrite"]) == 2
        assert said in capsys.readouterr().err
    assert main(["imagine", str(run.run), "ink", "--image", str(tmp_path / "small.png")]) == 2
    assert "prompt: 'ink'" in capsys.readouterr().err


def test_the_last_stage_of_an_unclip(tmp_path: Path, run: RunResult) -> None:
    values = unclip(tmp_path) | {"budget": "20 steps", "evaluate_every": 20}
    shared = {"model": {"patch": 4, **SIZE}, "samples": 2, "evaluate_rows": 8, "batch_size": 8}
    values |= {"upsampler": {**shared, "sampling": {"steps": 2, "guidance": 1.0}}}
    done = train(tmp_path / "run", values | {"shares": {"prior": 0.3, "upsampler": 0.2}})
    assert len(losses(done.run / "parts" / "upsampler")) == 4 and done.model is not None
    model = open_model(done.model)
    assert isinstance(model, UnclipPipeline) and model.upsampler is not None
    assert model.upsampler.signal.shape == (3, 32, 32)
    assert set(model.made_with) == {"clip", "prior"}
    drawer = open_generator(model)
    assert isinstance(drawer, UnclipGenerator)
    large = drawer.draw(["a red circle", "a ring"], [3, 4]).signals
    small = drawer.draw(["a red circle", "a ring"], [3, 4], upsample=False).signals
    assert tuple(large.shape) == (2, 3, 32, 32) and tuple(small.shape) == (2, 3, 16, 16)
    assert torch.equal(model.enlarged(small, [3, 4]), large)
    model.save(tmp_path / "saved")
    again = open_model(tmp_path / "saved")
    drawn = open_generator(again)
    assert torch.equal(drawn.draw(["a red circle", "a ring"], [3, 4]).signals, large)
    alone = drawn.draw(["a red circle"], [3]).signals
    assert torch.allclose(alone, large[:1], atol=1e-4)  # sums of other lengths round otherwise
    assert tuple(larger(small, (32, 32)).shape) == (2, 3, 32, 32)
    assert run.model is not None
    wrong = values | {"upsampler": {}, "prior": {}, "sampling": {"prior": "none", "steps": 2}}
    wrong |= {"parts": {**values["parts"], "upsampler": str(run.model)}, "shares": {}}
    with pytest.raises(BedstoneError, match=r"parts.upsampler: .* enlarges images of \[3, 8, 8\]"):
        train(tmp_path / "wrong", wrong)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"enlarging": {"factor": 1}}, "enlarging.factor: 1"),
        ({"enlarging": {"factor": 3}}, "enlarging.factor = 3 doesn't divide it"),
        ({"enlarging": {"noise": 2.0}}, "enlarging.noise: 2.0"),
        ({"enlarging": {"blur": 1}}, "blur"),
        ({"model": {"beside": 3}}, "model.beside: is decided"),
        ({"model": {"layout": "pixart"}}, "bedstone_dit alone reads smaller images"),
        ({"autoencoder": "runs/x"}, "enlarged as pixels"),
        ({"task": "text-to-image"}, "task"),
        ({"sampling": {"steps": 0}}, "steps"),
    ],
)
def test_what_can_not_be(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(BedstoneError, match=said):
        train(tmp_path / "run", upsample(tmp_path) | given)
