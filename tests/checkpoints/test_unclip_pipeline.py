"""An unCLIP's folder: written and opened, parts that know each other, what is refused."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

import bedstone
from bedstone.checkpoints.golden import differences, read_golden
from bedstone.checkpoints.model import Model, part_fingerprint
from bedstone.checkpoints.unclip import UnclipPipeline, check_unclip, load_unclip
from bedstone.cli import main
from bedstone.diffusion.sample import Generator
from bedstone.errors import BedstoneError
from bedstone.runtime import Precision
from drawings import coder
from image_models import clip_model
from unclips import prior_of, unclip

PROMPTS = ["a red circle", "this is a blue square.", "things"]


def drawn(model: UnclipPipeline) -> torch.Tensor:
    return model.sample(range(3), condition=model.prompts.condition(PROMPTS))


@pytest.mark.parametrize("prior", ["diffusion", "autoregressive", "none"])
def test_a_folder(tmp_path: Path, prior: str) -> None:
    model = unclip("clip_resnet", prior=prior != "none", codes=prior == "autoregressive")
    assert model.sampling.prior == prior
    assert isinstance(model, Generator)
    model.save(tmp_path / "model")
    again = bedstone.load(tmp_path / "model")
    assert isinstance(again, UnclipPipeline)
    assert again.config == model.config and again.sampling == model.sampling
    assert again.signal == model.signal and again.made_with == model.made_with
    assert torch.equal(drawn(again), drawn(model))
    golden = read_golden(tmp_path / "model")
    assert golden is not None
    fp32 = Precision(torch.device("cpu"), torch.float32)
    assert not differences(again, golden, fp32)
    with torch.no_grad():
        again.network.denoiser.conditions[0].embedding.weight[0] += 1
    assert differences(again, golden, fp32)


def test_the_command_line_knows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unclip().save(tmp_path / "model")
    assert main(["info", str(tmp_path / "model")]) == 0
    assert "parameters of prior" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "model")]) == 0
    assert main(["models", "--runs", str(tmp_path)]) == 0
    assert "text-to-image" in capsys.readouterr().out


@pytest.mark.parametrize("codes", [False, True])
def test_seeds_and_conditions_decide_alone(codes: bool) -> None:
    model = unclip(codes=codes)
    whole = drawn(model)
    one = model.sample([1], condition=model.prompts.condition(PROMPTS[1:2]))
    assert torch.allclose(one[0], whole[1], atol=1e-4)
    assert not torch.allclose(whole[0], whole[1], atol=1e-2)
    assert model.sample([5]).shape == (1, 3, 8, 8)  # of no words


# Parts that know each other.


@pytest.mark.parametrize("part", ["clip", "prior"])
def test_another_part_is_refused(tmp_path: Path, part: str) -> None:
    """Of the same shape, so that nothing else would show it."""
    unclip().save(tmp_path / "model")
    (tmp_path / "model" / "bedstone.json").unlink()
    other = clip_model() if part == "clip" else prior_of(clip_model(), seed=9)
    if part == "clip":
        with torch.no_grad():
            other.network.logit_scale += 1
    shutil.rmtree(tmp_path / "model" / part)
    other.save(tmp_path / "model" / part)
    with pytest.raises(BedstoneError, match=rf"{part}/ has the fingerprint .* was made with"):
        bedstone.load(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / part)
    with pytest.raises(BedstoneError, match=f"is an unCLIP without {part}/"):
        bedstone.load(tmp_path / "model")


def test_parts_that_do_not_fit() -> None:
    model = unclip()
    assert model.prior is not None
    for parts, said in (
        ({"clip": coder()}, "expected a CLIP"),
        ({"clip": clip_model("siglip")}, "of the layout clip or clip_resnet"),
        ({"clip": Model(model.clip.network, model.clip.tokenizer)}, "has no preprocessor_config"),
        ({"clip": clip_model("clip_resnet")}, r"embeddings of width 32; clip/ makes some of 24"),
        ({"prior": coder()}, "expected a prior_transformer"),
        ({"prior": prior_of(clip_model("clip_resnet"))}, "the CLIP has 32"),
    ):
        with pytest.raises(BedstoneError, match=said):
            check_unclip(dataclasses.replace(model, **parts))
    codes = unclip(codes=True)
    other = dataclasses.replace(codes.sampling, prior="diffusion")
    with pytest.raises(BedstoneError, match=r"sampling.prior is diffusion, .* is autoregressive"):
        check_unclip(dataclasses.replace(codes, sampling=other))
    with pytest.raises(BedstoneError, match=r"prior: diffusion was asked for, .* autoregressive"):
        codes.sample([0], sampling=other)
    recorded = Model(model.prior.network, record={"data": {"clip": "another"}})
    with pytest.raises(BedstoneError, match="trained with a CLIP of the fingerprint another"):
        check_unclip(dataclasses.replace(model, prior=recorded))


def test_a_prior_with_a_zero_std_is_refused(tmp_path: Path) -> None:
    model = unclip()
    made = prior_of(model.clip)
    made.network.std[3] = 0.0
    with pytest.raises(BedstoneError, match=r"prior/: prior: its clip_std is 0 .* 1 of 32"):
        check_unclip(dataclasses.replace(model, prior=made))


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("unclip.json", {"drops": 3}, "expected an object with drops and made_with"),
        ("drawing.json", {"sampling": {"prior": "x"}}, "prior"),
        (
            "prior_scheduler/scheduler_config.json",
            {"variance_type": "learned_range"},
            "variance_type = 'learned_range'",
        ),
    ],
)
def test_damaged_files(tmp_path: Path, file: str, change: dict, said: str) -> None:
    unclip().save(tmp_path / "model")
    (tmp_path / "model" / "bedstone.json").unlink()
    path = tmp_path / "model" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BedstoneError, match=said):
        bedstone.load(tmp_path / "model")


def test_parts_in_bf16_are_known_again_and_compute_in_fp32(tmp_path: Path) -> None:
    made = unclip()
    clip = Model(copy.deepcopy(made.clip.network).bfloat16())
    whole = Model(copy.deepcopy(clip.network).float())
    assert part_fingerprint(clip) == part_fingerprint(whole) != part_fingerprint(made.clip)
    made.save(tmp_path / "model")
    found = load_unclip(tmp_path / "model", dtype=torch.bfloat16)
    assert next(found.clip.network.parameters()).dtype is torch.float32
    assert next(found.network.denoiser.parameters()).dtype is torch.bfloat16
