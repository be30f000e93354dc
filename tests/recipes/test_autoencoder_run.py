"""Autoencoders through the command line: a run, its artefact, resuming, what is refused."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from PIL import Image

from bedstone.checkpoints.model import load
from bedstone.cli import main
from bedstone.commands.preview import show_sample
from bedstone.commands.train import pretrain, resume
from bedstone.data.scenes.render import draw
from bedstone.data.scenes.world import make_scene
from bedstone.errors import BedstoneError
from bedstone.recipes.autoencoder import AutoencoderRecipe, objective_of
from bedstone.recipes.given import read_pretraining
from bedstone.train.logs import read_log

KL: dict[str, Any] = {
    "layout": "autoencoder_kl",
    "image_size": 16,
    "widths": [8, 8],
    "groups": 4,
    "attention": False,
}
FSQ: dict[str, Any] = {
    "layout": "fsq_autoencoder",
    "image_size": 16,
    "widths": [8, 8],
    "groups": 4,
    "levels": [5, 4],
}


def recipe_of(out: Path, **more: Any) -> AutoencoderRecipe:
    values = {
        "task": "autoencoding",
        "model": KL,
        "out": str(out),
        "budget": "6 steps",
        "data": {"most_rows": 24, "workers": 1},
        "batch_size": 8,
        "evaluate_every": 3,
        "evaluate_pictures": 10,
        "log_every": 1,
        "precision": "fp32",
        "device": "cpu",
        **more,
    }
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    read = read_pretraining(path)
    assert isinstance(read, AutoencoderRecipe)
    return read


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_log(run / "log.jsonl") if "loss" in record]


def folder(path: Path, count: int = 30) -> Path:
    path.mkdir()
    for number in range(count):
        Image.fromarray(draw(make_scene(number), 24)).save(path / f"{number:02}.png")
    return path


def test_latents_of_a_network_gone_on_from_have_a_mean_square_of_one(tmp_path: Path) -> None:
    """Whatever was done to its latents before: their scale is measured anew."""
    more = {"latents_mean": [0.5] * 4, "latents_std": [3.0] * 4, "shift_factor": 0.4}
    done = pretrain(recipe_of(tmp_path / "run", model={**KL, **more}), quiet=True)
    assert done.model is not None
    config = load(done.model).config
    assert (config.shift_factor, config.latents_mean, config.latents_std) == (None, None, None)
    deviation = done.done.metrics["validation_latent_deviation"]
    assert config.scaling_factor == pytest.approx(1 / deviation)


def test_latents_of_scenes(tmp_path: Path) -> None:
    done = pretrain(recipe_of(tmp_path / "run"), quiet=True)
    assert done.model is not None and done.done.step == 6
    figures = done.done.metrics
    for name in ("loss", "psnr", "ssim", "bits_per_pixel", "latent_deviation"):
        assert np.isfinite(figures[f"validation_{name}"])
    with Image.open(tmp_path / "run" / "pictures.png") as sheet:
        assert sheet.size[0] > 500
    model = load(done.model)
    scale = model.config.scaling_factor
    assert scale == pytest.approx(1 / figures["validation_latent_deviation"])
    theirs = AutoencoderKL.from_pretrained(done.model).eval()
    assert theirs.config.scaling_factor == pytest.approx(scale)
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert (theirs(x).sample - model.network(x)).abs().max() < 1e-4
    assert model.processor is not None and model.processor.size == (16, 16)


def test_codes_of_a_folder_of_pictures(tmp_path: Path) -> None:
    data = {"source": str(folder(tmp_path / "pictures")), "validation_share": 0.3, "enlarge": 1.25}
    recipe = recipe_of(
        tmp_path / "run", model=FSQ, data=data, augment={"crop": [0.6, 1.0], "flip": 0.5}
    )
    done = pretrain(recipe, quiet=True)
    assert done.model is not None
    assert 0 < done.done.metrics["validation_codes_used"] <= 1
    assert 1 <= done.done.metrics["validation_perplexity"] <= 20
    assert load(done.model).network.codebook_size == 20


def test_it_learns(tmp_path: Path) -> None:
    optim = {"kind": "adamw", "adamw_lr": 5e-3}
    recipe = recipe_of(tmp_path / "run", budget="60 steps", optim=optim, evaluate_every=60)
    pretrain(recipe, quiet=True)
    told = losses(tmp_path / "run")
    assert sum(told[-5:]) < 0.6 * sum(told[:5])


def test_codes_resume_exactly(tmp_path: Path) -> None:
    """With a judge and augmentation; the judge is in checkpoints and not in the artefact."""
    more: dict[str, Any] = {
        "model": FSQ,
        "augment": {"flip": 0.5, "brightness": 0.2},
        "adversarial": {"weight": 0.5, "after": 1, "width": 8, "layers": 2},
        "save_every": 2,
        "keep": 9,
    }
    whole = pretrain(recipe_of(tmp_path / "whole", **more), quiet=True)
    pretrain(recipe_of(tmp_path / "part", **more), quiet=True)
    kept = sorted((tmp_path / "part" / "checkpoints").iterdir())
    assert any((each / "discriminator.safetensors").is_file() for each in kept)
    for late in kept:
        digits = "".join(filter(str.isdigit, late.name))
        if digits and int(digits) > 2:
            shutil.rmtree(late)
    shutil.rmtree(tmp_path / "part" / "model")
    again = resume(tmp_path / "part", quiet=True)
    assert whole.model is not None and again.model is not None
    name = load(whole.model).layout.weights
    first, second = (
        hashlib.sha256((each / name).read_bytes()).hexdigest()
        for each in (whole.model, again.model)
    )
    assert first == second
    assert losses(tmp_path / "whole")[-4:] == losses(tmp_path / "part")[-4:]
    assert not (whole.model / "discriminator.safetensors").exists()


def test_going_on_and_what_another_network_sees(tmp_path: Path) -> None:
    first = pretrain(recipe_of(tmp_path / "first", budget="2 steps"), quiet=True)
    assert first.model is not None
    from bedstone.checkpoints.model import Model
    from bedstone.models.vit.network import ViTConfig, build

    shape = ViTConfig(layout="vit", image_size=16, patch=8, width=16, layers=1, heads=2)
    Model(build(shape, seed=0)).save(tmp_path / "vit")
    more = {"model": {}, "init": str(first.model), "budget": "2 steps"}
    seen = {"model": str(tmp_path / "vit"), "weight": 0.5}
    sees = objective_of(recipe_of(tmp_path / "meta", perceptual=seen), torch.device("meta"))
    assert sees.perceptual is not None  # it is where the pictures are
    assert {weight.device.type for weight in sees.perceptual.tower.parameters()} == {"meta"}
    second = pretrain(recipe_of(tmp_path / "second", perceptual=seen, **more), quiet=True)
    assert second.model is not None and load(second.model).config.widths == (8, 8)
    with pytest.raises(BedstoneError, match="leave model out"):
        pretrain(recipe_of(tmp_path / "third", init=str(first.model)), quiet=True)
    with pytest.raises(BedstoneError, match="no autoencoder"):
        more["init"] = str(tmp_path / "vit")
        pretrain(recipe_of(tmp_path / "fourth", **more), quiet=True)
    with pytest.raises(BedstoneError, match="doesn't see pictures"):
        seen["model"] = str(first.model)
        pretrain(recipe_of(tmp_path / "fifth", perceptual=seen), quiet=True)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"model": {**KL, "image_size": 17}}, "multiple of 2"),
        ({"model": {**KL, "channels": 1}}, "model.channels"),
        ({"model": {**KL, "groups": 3}}, "groups"),
        ({"model": {**KL, "layout": "autoencoder_lk"}}, "autoencoder_kl"),
        ({"model": {**FSQ, "levels": [1]}}, "levels"),
        ({"pixel": "l3"}, "pixel"),
        ({"kl": -1.0}, "kl"),
        ({"compile": True}, "compile"),
        ({"adversarial": {"weight": 0.1, "width": 6}}, "adversarial.width"),
        ({"adversarial": {"weight": 0.1, "layers": 3}}, "24 pixels"),
        ({"data": {"source": "no/such/folder"}}, "no/such/folder"),
        ({"data": {"columns": {"picture": "x"}, "source": "."}}, "data.columns"),
    ],
)
def test_what_is_refused(tmp_path: Path, more: dict[str, Any], told: str) -> None:
    with pytest.raises(BedstoneError, match=told):
        pretrain(recipe_of(tmp_path / "run", **more), quiet=True)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(tmp_path / "run", budget="1 steps", model=FSQ)
    assert main(["pretrain", str(tmp_path / "run.yaml")]) == 0
    assert "fsq_autoencoder" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "run" / "model")]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "scenes"]) == 2
    assert "evaluation.json" in capsys.readouterr().err
    assert main(["run", "image-classification", str(tmp_path / "run"), "a.png"]) == 2
    assert "is a fsq_autoencoder" in capsys.readouterr().err
    with pytest.raises(BedstoneError, match="its run draws"):
        show_sample(recipe, str(tmp_path / "sample.png"))
