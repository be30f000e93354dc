"""A DALL-E's folder: written and opened, parts that know each other, what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import bedstone
from bedstone.checkpoints.dalle import DallePipeline, check_dalle
from bedstone.checkpoints.golden import differences, read_golden
from bedstone.checkpoints.model import Model, fingerprint
from bedstone.cli import main
from bedstone.diffusion.sample import Generator
from bedstone.errors import BedstoneError
from bedstone.generation.codes import CodeSampling
from bedstone.models.autoencoder.config import DiscreteConfig
from bedstone.models.autoencoder.discrete import build_discrete
from bedstone.runtime import Precision
from dalles import coder, dalle
from drawings import coder as continuous
from image_models import clip_model

PROMPTS = ["a red circle", "two green stars", "ink"]


def drawn(model: DallePipeline, **options: Any) -> torch.Tensor:
    condition = model.prompts.condition(PROMPTS)
    return model.sample(range(3), condition=condition, **options)


@pytest.mark.parametrize("order", ["raster", "masked", "scale"])
def test_a_folder(tmp_path: Path, order: str) -> None:
    model = dalle(order, clip=True)
    assert isinstance(model, Generator)
    model.save(tmp_path / "model")
    again = bedstone.load(tmp_path / "model")
    assert isinstance(again, DallePipeline)
    assert again.config == model.config and again.sampling == model.sampling
    assert again.signal == model.signal and again.made_with == model.made_with
    images = drawn(model)
    assert images.shape == (3, 3, 16, 16) and images.abs().max() <= 1
    assert torch.equal(drawn(again), images)
    assert again.clip is not None and again.clip.tokenizer is not None
    assert f"{order} order" in (tmp_path / "model" / "README.md").read_text()
    golden = read_golden(tmp_path / "model")
    assert golden is not None and golden["cases"][0]["capability"] == "codes"
    fp32 = Precision(torch.device("cpu"), torch.float32)
    assert not differences(again, golden, fp32)
    with torch.no_grad():
        again.network.head.weight[0] += 1
    assert differences(again, golden, fp32)


def test_opened_in_another_dtype_its_parts_are_still_those(tmp_path: Path) -> None:
    dalle().save(tmp_path / "model")
    again = bedstone.load(tmp_path / "model", dtype=torch.bfloat16)
    assert again.network.head.weight.dtype is torch.bfloat16
    assert next(again.autoencoder.network.parameters()).dtype is torch.float32


def test_the_command_line_knows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dalle(clip=True).save(tmp_path / "model")
    assert main(["info", str(tmp_path / "model")]) == 0
    said = capsys.readouterr().out
    assert "raster order, code by code, guidance 2" in said and "parameters of clip" in said
    assert main(["check", str(tmp_path / "model")]) == 0
    assert main(["models", "--runs", str(tmp_path)]) == 0
    assert "text-to-image" in capsys.readouterr().out
    for command in (["quantize", str(tmp_path / "model"), str(tmp_path / "few")], ["export"]):
        words = command if len(command) > 1 else ["export", str(tmp_path / "model")]
        assert main(words) == 2
        assert "draws" in capsys.readouterr().err


# Parts that know each other.


def test_another_autoencoder_is_refused(tmp_path: Path) -> None:
    """Of the same shape, so that nothing else would show it."""
    dalle().save(tmp_path / "model")
    (tmp_path / "model" / "bedstone.json").unlink()
    shutil.rmtree(tmp_path / "model" / "vae")
    Model(coder(seed=9).network).save(tmp_path / "model" / "vae")
    with pytest.raises(BedstoneError, match=r"vae/ has the fingerprint .* was trained with"):
        bedstone.load(tmp_path / "model")
    other = build_discrete(DiscreteConfig(image_size=16, widths=(8, 8), groups=4, levels=(5, 5)))
    shutil.rmtree(tmp_path / "model" / "vae")
    Model(other).save(tmp_path / "model" / "vae")
    with pytest.raises(BedstoneError, match=r"trained for codes 20; vae/ has 25"):
        bedstone.load(tmp_path / "model")


def test_what_a_fingerprint_is_of() -> None:
    one = coder()
    assert fingerprint(one) == fingerprint(coder()) != fingerprint(coder(seed=9))
    swapped = DiscreteConfig(image_size=16, widths=(8, 8), groups=4, levels=(4, 5))
    other = build_discrete(swapped)
    other.load_state_dict(one.network.state_dict())
    assert fingerprint(Model(other)) != fingerprint(one)  # the same weights, other codes
    sized = dataclasses.replace(one.config, image_size=32)
    again = build_discrete(sized)
    again.load_state_dict(one.network.state_dict())
    assert fingerprint(Model(again)) == fingerprint(one)


def test_parts_that_do_not_fit() -> None:
    model = dalle(clip=True)
    with pytest.raises(BedstoneError, match="makes no codes"):
        check_dalle(dataclasses.replace(model, autoencoder=continuous()))
    with pytest.raises(BedstoneError, match="expected a CLIP"):
        check_dalle(dataclasses.replace(model, clip=coder()))
    with pytest.raises(BedstoneError, match=r"clip/ has the fingerprint"):
        check_dalle(dataclasses.replace(model, made_with={**model.made_with, "clip": "another"}))
    signal = dataclasses.replace(model.signal, shape=(3, 16, 32))
    with pytest.raises(BedstoneError, match="trained for grid"):
        check_dalle(dataclasses.replace(model, signal=signal))
    signal = dataclasses.replace(model.signal, shape=(1, 16, 16))
    with pytest.raises(BedstoneError, match="trained for channels"):
        check_dalle(dataclasses.replace(model, signal=signal))
    with pytest.raises(BedstoneError, match="transformer/ is a"):
        check_dalle(dataclasses.replace(model, network=coder().network))
    words = clip_model().tokenizer
    with pytest.raises(BedstoneError, match="the tokenizer has"):
        check_dalle(dataclasses.replace(model, tokenizer=words))


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("dalle.json", {"sampling": 3}, "damaged"),
        ("dalle.json", {"drops": "yes"}, "damaged"),
        ("dalle.json", {"sampling": {"guidance": -1}}, "sampling.guidance"),
        ("dalle.json", {"signal": {"kind": "smell"}}, "smell"),
        ("transformer/config.json", {"codes": 30}, "shape"),
        ("transformer/config.json", {"grid": [4, 8]}, "grid"),
        ("transformer/config.json", {"order": "spiral"}, "order"),
    ],
)
def test_damaged_files(tmp_path: Path, file: str, change: dict[str, Any], said: str) -> None:
    dalle().save(tmp_path / "model")
    (tmp_path / "model" / "bedstone.json").unlink()
    path = tmp_path / "model" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BedstoneError, match=said):
        bedstone.load(tmp_path / "model")


def test_a_part_that_is_gone(tmp_path: Path) -> None:
    dalle().save(tmp_path / "model")
    (tmp_path / "model" / "bedstone.json").unlink()
    shutil.rmtree(tmp_path / "model" / "vae")
    with pytest.raises(BedstoneError, match="without vae/"):
        bedstone.load(tmp_path / "model")


# What is drawn.


def test_the_empty_text_is_the_null_prompt() -> None:
    model = dalle()
    found = model.prompts.condition(["", "ink"])
    assert found.keep is not None and found.keep.sum(1).tolist() == [0, 3]
    plain = CodeSampling(guidance=1.0)
    said = model.codes([4], condition=model.prompts.condition([""]), sampling=plain)
    assert torch.equal(said, model.codes([4], sampling=plain))


@pytest.mark.parametrize("order", ["raster", "masked", "scale"])
def test_batches_change_nothing(order: str) -> None:
    model = dalle(order)
    ready = model.prepared(Precision(torch.device("cpu"), torch.float32))
    images = drawn(model, **ready)
    assert torch.equal(drawn(model, batch=2, **ready), images)
    assert torch.equal(drawn(model, batch=1, **ready), images)


@pytest.mark.parametrize("order", ["raster", "masked", "scale"])
def test_progress(order: str) -> None:
    shares: list[float] = []
    drawn(dalle(order), batch=2, progress=lambda step: shares.append(step.share))
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 4


def test_guidance_needs_the_null_prompt() -> None:
    model = dalle(drops=False)
    with pytest.raises(BedstoneError, match=r"guidance: 2 was given; .* 1 = none"):
        drawn(model, sampling=CodeSampling(guidance=2.0))
    assert drawn(model).isfinite().all()


def test_a_part_of_an_image_is_drawn_anew() -> None:
    below = torch.arange(4)[:, None].expand(4, 4) >= 2
    anywhere = torch.eye(4) > 0
    for order, mask in (
        ("raster", below),
        ("masked", below),
        ("masked", anywhere),
        ("scale", anywhere),
    ):
        model = dalle(order)
        start = model.codes(range(1))
        found = model.codes(range(3), start=start, mask=mask)
        assert torch.equal(found[:, ~mask], start[:, ~mask].expand(3, -1))
        assert not torch.equal(found[:, mask], start[:, mask].expand(3, -1))
    start = dalle().codes(range(1))
    for mask, said in (
        (torch.zeros(4, 4, dtype=torch.bool), "covers nothing"),
        (torch.ones(4, 4, dtype=torch.bool), "covers everything"),
        (anywhere, "raster order"),
        (torch.ones(2, 4, dtype=torch.bool), "has 8 places"),
    ):
        with pytest.raises(BedstoneError, match=f"mask: .*{said}"):
            dalle().codes([0], start=start, mask=mask)
