"""Autoencoders through the command line: a run, its artefact, resuming, what is refused."""

import hashlib
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from PIL import Image

from bedstone.checkpoints.model import Model, load
from bedstone.cli import main
from bedstone.commands.preview import show_sample
from bedstone.commands.train import pretrain, resume
from bedstone.data.images.processor import plain_processor
from bedstone.data.scenes.render import draw
from bedstone.data.scenes.world import make_scene
from bedstone.errors import BedstoneError
from bedstone.evaluate.autoencoder import Codes
from bedstone.evaluate.scene_judge import SceneGridConfig, SceneJudge
from bedstone.evaluate.scene_judge import build as build_judge
from bedstone.models.heads import HeadConfig
from bedstone.models.vit.network import ViTConfig
from bedstone.models.vit.network import build as build_vit
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


VQ: dict[str, Any] = {
    "layout": "vq_model",
    "image_size": 16,
    "widths": [8, 8],
    "groups": 4,
    "codes": 12,
    "attention": False,
}
DVAE: dict[str, Any] = {
    "layout": "discrete_vae",
    "image_size": 16,
    "codes": 12,
    "code_width": 8,
    "layers": 2,
    "width": 8,
}


@pytest.mark.parametrize(
    ("model", "more"),
    [
        (VQ, {}),
        (DVAE, {"kl": 1e-3}),
        ({**DVAE, "straight_through": True, "reinmax": True}, {"pixel": "logit_laplace"}),
    ],
)
def test_codebooks_learn_and_resume_exactly(
    tmp_path: Path, model: dict[str, Any], more: dict[str, Any]
) -> None:
    more = {**more, "model": model, "budget": "12 steps", "save_every": 4, "keep": 9}
    more["optim"] = {"kind": "adamw", "adamw_lr": 5e-3}
    whole = pretrain(recipe_of(tmp_path / "whole", **more), quiet=True)
    curve = losses(tmp_path / "whole")
    if "reinmax" not in model:  # whose temperature falls: what is drawn first is worth most
        assert sum(curve[-3:]) < sum(curve[:3])
    pretrain(recipe_of(tmp_path / "part", **more), quiet=True)
    for late in (tmp_path / "part" / "checkpoints").iterdir():
        if (digits := "".join(filter(str.isdigit, late.name))) and int(digits) > 4:
            shutil.rmtree(late)
    shutil.rmtree(tmp_path / "part" / "model")
    kept = list((tmp_path / "part" / "checkpoints").glob("*/averages.safetensors"))
    assert bool(kept) == (model is VQ)
    again = resume(tmp_path / "part", quiet=True)
    assert losses(tmp_path / "part") == curve
    assert again.done.metrics == whole.done.metrics
    assert whole.model is not None and not (whole.model / "averages.safetensors").exists()
    opened = load(whole.model)
    assert opened.network.codebook_size == 12
    assert opened.config.layout == model["layout"]
    if model is not VQ:
        assert opened.config.temperature == 1 / 16
        assert opened.config.logit_laplace == ("pixel" in more)


def test_a_codebook_goes_on_from_that_of_another_run(tmp_path: Path) -> None:
    first = pretrain(recipe_of(tmp_path / "first", model=VQ), quiet=True)
    assert first.model is not None
    before = load(first.model).network.codebook.weight
    more: dict[str, Any] = {"model": {}, "init": str(first.model), "budget": "1 steps"}
    second = pretrain(recipe_of(tmp_path / "second", **more), quiet=True)
    assert second.model is not None
    apart = (load(second.model).network.codebook.weight - before).abs().max()
    assert 0 < apart < 0.1 * before.std()


def test_a_collapse_stops_the_run_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bedstone.evaluate.autoencoder.MINUTE", 0.0)
    monkeypatch.setattr("bedstone.evaluate.autoencoder.LEAST", 1.0)  # none is enough
    with pytest.raises(BedstoneError, match=r"has collapsed\. Lower kl"):
        pretrain(recipe_of(tmp_path / "run", model=DVAE), quiet=True)
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(("counts", "fine"), [([9, 0, 0], False), ([8, 1, 0], True)])
def test_what_is_a_collapse(counts: list[int], fine: bool) -> None:
    codes = Codes(1000)
    codes.counts[: len(counts)] = torch.tensor(counts, dtype=torch.float64)
    with nullcontext() if fine else pytest.raises(BedstoneError, match="1 of 1,000 are used"):
        codes.check("vq_model")
    codes.counts[:15] = 100  # 15 of 1,000
    with pytest.raises(BedstoneError, match="15 of 1,000 are used"):
        codes.check("fsq_autoencoder")


def test_a_judge_of_what_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bedstone.evaluate.autoencoder.HELD", 12)
    data = {"most_rows": 24, "objects": [1, 2], "textures": False, "sizes": ["large"]}
    pretrain(recipe_of(tmp_path / "run", model=FSQ, data=data), quiet=True)
    SceneJudge(build_judge(SceneGridConfig(size=16, width=8), seed=0)).save(tmp_path / "judge")
    given = [str(tmp_path / "run"), "scenes", "--judge", str(tmp_path / "judge"), "--json"]
    assert main(["evaluate", *given]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 12 and found["psnr"] > 0 and 0 < found["codes_used"] <= 1
    assert found["judge/images"] == found["judge/reconstructions"] == 0  # it has learnt nothing
    rows = folder(tmp_path / "rows", 6)
    (rows / "metadata.jsonl").write_text(
        "".join(
            json.dumps({"file_name": f"{n:02}.png", "label": str(n % 2)}) + "\n" for n in range(6)
        )
    )
    assert main(["evaluate", str(tmp_path / "run"), str(rows)]) == 0
    shape = ViTConfig(layout="vit", image_size=16, patch=8, width=16, layers=1, heads=2,
                      head=HeadConfig("sequence", ("0", "1")))  # fmt: skip
    Model(build_vit(shape, seed=0), processor=plain_processor(16)).save(tmp_path / "vit")
    capsys.readouterr()
    given = [str(tmp_path / "run"), str(rows), "--judge", str(tmp_path / "vit"), "--json"]
    assert main(["evaluate", *given]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["judge/images"] <= 1


def test_going_on_and_what_another_network_sees(tmp_path: Path) -> None:
    first = pretrain(recipe_of(tmp_path / "first", budget="2 steps"), quiet=True)
    assert first.model is not None
    shape = ViTConfig(layout="vit", image_size=16, patch=8, width=16, layers=1, heads=2)
    Model(build_vit(shape, seed=0)).save(tmp_path / "vit")
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
        ({"pixel": "logit_laplace"}, "logit_laplace"),
        ({"pixel": "logit_laplace", "adversarial": {"weight": 1}}, "adversarial.weight"),
        ({"model": {**DVAE, "logit_laplace": True}}, "pixel: l1"),
        ({"model": {**VQ, "codes": 1}}, "codes"),
        ({"relaxation": {"end": 0}}, "relaxation.end"),
        ({"data": {"sizes": ["huge"]}}, "huge"),
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
    assert main(["evaluate", str(tmp_path / "run"), "scenes", "--clip", "x"]) == 2
    assert "draws nothing" in capsys.readouterr().err
    assert main(["run", "image-classification", str(tmp_path / "run"), "a.png"]) == 2
    assert "is a fsq_autoencoder" in capsys.readouterr().err
    with pytest.raises(BedstoneError, match="its run draws"):
        show_sample(recipe, str(tmp_path / "sample.png"))
