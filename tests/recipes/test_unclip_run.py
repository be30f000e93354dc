"""An unCLIP trained: stages in order, stopped in each, parts reused, embeddings kept, refusals."""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, fingerprint
from bedstone.checkpoints.tensors import load_tensors
from bedstone.checkpoints.unclip import UnclipPipeline
from bedstone.cli import main
from bedstone.commands.train import pretrain, resume
from bedstone.data.scenes.render import draw
from bedstone.data.scenes.world import make_scene
from bedstone.errors import BedstoneError
from bedstone.evaluate.scene_judge import SceneGridConfig, SceneJudge
from bedstone.evaluate.scene_judge import build as build_judge
from bedstone.models.unclip.autoregressive import CodePrior
from bedstone.models.unclip.network import Prior
from bedstone.recipes.base import read
from bedstone.recipes.prior import PriorRecipe
from bedstone.recipes.unclip import UnclipRecipe
from bedstone.train.run import RunResult
from image_models import clip_model
from runs import losses, stop_after
from unclips import prior_of

SIZE = {"width": 16, "layers": 1, "heads": 2}
CLIP = {
    "model": {
        "layout": "clip",
        "embed": 8,
        "image": {"patch": 8, **SIZE},
        "text": {**SIZE, "context": 24},
    },
    "tokenizer": {"vocab_size": 300},
    "batch_size": 8,
    "evaluate_pairs": 8,
    "evaluate_every": 50,
}
PRIOR = {
    "model": {"layout": "prior_transformer", **SIZE},
    "batch_size": 8,
    "evaluate_rows": 8,
    "evaluate_every": 50,
}


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ONES", 6), ("SEVERAL", 4)):
            patch.setattr(f"bedstone.data.scenes.datasets.{name}", value)
        yield


def values_of(out: Path, **more: Any) -> dict[str, Any]:
    return {
        "method": "unclip",
        "out": str(out),
        "budget": "20 steps",
        "model": {"patch": 4, **SIZE},
        "data": {
            "source": "scenes",
            "size": [16, 16],
            "most_rows": 16,
            "objects": [1, 1],
            "workers": 1,
        },
        "clip": CLIP,
        "prior": PRIOR,
        "evaluate_every": 50,
        "shares": {"clip": 0.2, "prior": 0.2},
        "text": {**SIZE, "context": 24},
        "batch_size": 8,
        "evaluate_rows": 8,
        "samples": 2,
        "sampling": {"steps": 2, "prior_steps": 2},
        "log_every": 1,
        "precision": "fp32",
        "device": "cpu",
        **more,
    }


def recipe_of(out: Path, **more: Any) -> UnclipRecipe:
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values_of(out, **more)))
    found = read(path)
    assert isinstance(found, UnclipRecipe)
    return found


def train(out: Path, **more: Any) -> RunResult:
    return pretrain(recipe_of(out, **more), quiet=True)


def weights(folder: Path) -> list[str]:
    files = sorted(folder.rglob("*.safetensors"))
    assert files
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP that exists already."""
    return clip_model().save(tmp_path_factory.mktemp("parts") / "clip")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run that wasn't stopped."""
    return train(tmp_path_factory.mktemp("whole") / "run")


def test_all_stages_within_one_budget(whole: RunResult) -> None:
    done, parts = whole, whole.run / "parts"
    steps = {name: len(losses(parts / name)) for name in ("clip", "prior")}
    assert steps == {"clip": 4, "prior": 4} and done.done.step == 12  # shares of twenty
    assert done.model is not None
    model = open_model(done.model)
    assert isinstance(model, UnclipPipeline) and model.prior is not None
    for name, part in (("clip", model.clip), ("prior", model.prior)):
        assert fingerprint(open_model(parts / name)) == fingerprint(part) == model.made_with[name]
    assert model.config.embedding_width == 8 and model.signal.context == 24
    own = open_model(parts / "prior")
    assert isinstance(own.network, Prior)
    own.network.check()
    assert own.record["data"]["clip"] == model.made_with["clip"]
    report = json.loads((parts / "prior" / "evaluation.json").read_text())["validation"]
    assert {"retrieval", "retrieval_words", "retrieval_shuffled", "cosine"} <= report.keys()
    assert done.done.metrics["validation_loss"] > 0
    with Image.open(whole.run / "samples.png") as sheet:
        assert sheet.size[0] > 20
    kept = load_tensors(parts / "prior", name="embeddings-train.safetensors")["embeddings"]
    whitening = model.network.denoiser.whitening
    torch.testing.assert_close(whitening.mean, kept.mean(0), atol=1e-6, rtol=0)
    assert whitening(kept).mean(0).abs().max() < 1e-4 and not whitening(kept).allclose(kept)
    assert kept.dtype is torch.float32 and tuple(kept.shape) == (16, 8)
    assert torch.allclose(kept.square().mean(1), torch.ones(16), atol=1e-4)
    # computed once: what draws takes those of the stage before it
    assert not (whole.run / "embeddings-train.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["clip", "prior", "decoder"])
def test_stopped_in_any_stage_it_goes_on_to_the_same_weights(
    tmp_path: Path, stage: str, whole: RunResult
) -> None:
    assert whole.model is not None
    place = {"clip": 2, "prior": 6, "decoder": 12}[stage]  # steps of all runs so far
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, place)
        stopped = train(tmp_path / "part")
    assert stopped.model is None and stopped.run == tmp_path / "part"
    moved = (tmp_path / "part").rename(tmp_path / "moved")
    again = resume(moved, quiet=True)
    assert again.model is not None
    assert weights(again.model) == weights(whole.model)
    assert losses(moved) == losses(whole.run)


def test_evaluate(whole: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SceneJudge(build_judge(SceneGridConfig(size=16, width=8), seed=0)).save(tmp_path / "judge")
    given = ["evaluate", str(whole.run), "scenes", "--samples", "4", "--json"]
    judge = ["--judge", str(tmp_path / "judge"), "--out", str(tmp_path / "sheets")]
    assert main([*given, *judge]) == 0
    found = json.loads(capsys.readouterr().out)
    wanted = {"right", "right/no prior", "gain of the prior", "prior/retrieval", "prior/cosine"}
    wanted |= {"prior/retrieval_words", "prior/retrieval_shuffled", "variations/agreement"}
    wanted |= {"variations/distance", "between/spearman", "differences/changed"}
    wanted |= {"right/image embedding", "right/other embedding"}
    assert wanted <= found.keys()
    assert found["gain of the prior"] == pytest.approx(found["right"] - found["right/no prior"])
    assert (tmp_path / "sheets" / "drawn.png").is_file()
    assert main(given) == 2
    assert "nothing can be said of drawings without one" in capsys.readouterr().err


def test_parts_that_exist_are_not_trained(tmp_path: Path, clip: Path) -> None:
    before = weights(clip)
    one = train(tmp_path / "one", clip={}, parts={"clip": str(clip)})
    assert not (tmp_path / "one" / "parts" / "clip").exists() and weights(clip) == before
    assert one.done.step == 16  # the CLIP's share is the rest's
    prior = tmp_path / "one" / "parts" / "prior"
    both = {"clip": str(clip), "prior": str(prior)}
    done = train(tmp_path / "two", clip={}, prior={}, parts=both)
    assert not (tmp_path / "two" / "parts").exists() and done.done.step == 20
    assert done.model is not None
    model: Any = open_model(done.model)
    assert model.made_with == {name: fingerprint(open_model(each)) for name, each in both.items()}
    assert (tmp_path / "two" / "embeddings-train.json").is_file()
    more = {"clip": {}, "prior": {}, "model": {}}
    again = train(tmp_path / "more", init=str(done.model), **more)
    assert again.model is not None and open_model(again.model).made_with == model.made_with
    with pytest.raises(BedstoneError, match=r"parts: init = .* has its own"):
        train(tmp_path / "x", init=str(done.model), **more, parts={"clip": str(clip)})
    with pytest.raises(BedstoneError, match=r"init: .* is no unCLIP"):
        train(tmp_path / "x", init=str(clip), **more)


def test_a_mixed_pair_is_refused(tmp_path: Path, clip: Path) -> None:
    first = train(tmp_path / "one", clip={}, parts={"clip": str(clip)})
    prior = first.run / "parts" / "prior"
    other = open_model(clip)
    with torch.no_grad():
        other.network.text_projection.weight[0] += 1
    other.save(tmp_path / "other")
    more: dict[str, Any] = {"clip": {}, "prior": {}}
    parts = {"clip": str(tmp_path / "other"), "prior": str(prior)}
    with pytest.raises(BedstoneError, match=r"was trained with a CLIP of the fingerprint"):
        train(tmp_path / "two", **more, parts=parts)
    prior_of(open_model(clip)).save(tmp_path / "stray")
    parts = {"clip": str(clip), "prior": str(tmp_path / "stray")}
    with pytest.raises(BedstoneError, match="doesn't say which CLIP"):
        train(tmp_path / "three", **more, parts=parts)
    with pytest.raises(BedstoneError, match=r"parts.prior: .* given without the CLIP"):
        train(tmp_path / "four", clip=CLIP, prior={}, parts={"prior": str(prior)})
    with pytest.raises(BedstoneError, match=r"expected a prior_transformer"):
        train(tmp_path / "five", **more, parts={"clip": str(clip), "prior": str(clip)})
    clip_model("siglip").save(tmp_path / "siglip")
    with pytest.raises(BedstoneError, match=r"expected a CLIP of the layout clip"):
        train(tmp_path / "six", clip={}, parts={"clip": str(tmp_path / "siglip")})


def test_a_clip_that_changed_since_embeddings_were_made(tmp_path: Path, clip: Path) -> None:
    own = clip_model().save(tmp_path / "clip")
    more = {"clip": {}, "prior": {}, "parts": {"clip": str(own)}, "save_every": 1}
    more |= {"sampling": {"steps": 2, "prior": "none"}}
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        train(tmp_path / "run", **more)
    path = tmp_path / "run" / "embeddings-train.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**known, "CLIP": "another"}))
    with pytest.raises(BedstoneError, match=r"the CLIP changed since embeddings were made of them"):
        resume(tmp_path / "run", quiet=True)
    path.write_text(json.dumps(known))
    assert resume(tmp_path / "run", quiet=True).model is not None


def test_without_a_prior_words_have_their_own_embedding(tmp_path: Path, clip: Path) -> None:
    more: dict[str, Any] = {"clip": {}, "prior": {}, "parts": {"clip": str(clip)}}
    with pytest.raises(BedstoneError, match=r"sampling.prior: diffusion .* there is no prior"):
        train(tmp_path / "no", **more)
    done = train(tmp_path / "run", **more, sampling={"steps": 2, "prior": "none"})
    assert done.model is not None
    model: Any = open_model(done.model)
    assert model.prior is None and set(model.made_with) == {"clip"}
    with pytest.raises(BedstoneError, match=r"prior: diffusion was asked for, and .* has none"):
        model.sample([0], sampling=type(model.sampling)(steps=2))


def test_an_autoregressive_prior(tmp_path: Path, clip: Path) -> None:
    model = {"layout": "autoregressive_prior", "components": 4, "buckets": 4, "fits": 2, **SIZE}
    more: dict[str, Any] = {"clip": {}, "parts": {"clip": str(clip)}}
    more |= {"prior": {**PRIOR, "model": model, "optim": {"lr": 1e-2, "adamw_lr": 1e-2}}}
    with pytest.raises(BedstoneError, match=r"sampling.prior: diffusion .* kind autoregressive"):
        train(tmp_path / "no", **more)
    sampling = {"steps": 2, "prior": "autoregressive", "prior_guidance": 2.0}
    more |= {"budget": "40 steps", "shares": {"prior": 0.9}, "sampling": sampling}
    done = train(tmp_path / "run", **more)
    assert done.model is not None
    parts = done.run / "parts"
    nats = list(losses(parts / "prior").values())
    assert nats[0] == pytest.approx(math.log(4), abs=0.02) and min(nats[-8:]) < nats[0] - 0.05
    report = json.loads((parts / "prior" / "evaluation.json").read_text())["validation"]
    assert {"retrieval", "retrieval_words", "retrieval_shuffled", "cosine"} <= report.keys()
    made = open_model(done.model)
    assert isinstance(made, UnclipPipeline) and made.prior is not None
    assert isinstance(made.prior.network, CodePrior) and (done.model / "golden.json").is_file()
    assert "autoregressive prior, guidance 2" in made.how
    with pytest.raises(BedstoneError, match=r"model.layout: 'prior' was given; expected"):
        train(tmp_path / "other", **{**more, "prior": {"model": {"layout": "prior"}}})


def test_own_images_with_captions(tmp_path: Path, clip: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    lines = []
    for number in range(24):
        Image.fromarray(draw(make_scene(number), 20)).save(rows / f"{number:02}.png")
        lines.append({"file_name": f"{number:02}.png", "text": f"scene number {number % 5}"})
    write_rows(rows, lines)
    data = {"source": str(rows), "size": [16, 16], "validation_share": 0.3, "workers": 1}
    done = train(tmp_path / "run", data=data)
    assert done.model is not None
    named: dict[str, Any] = {"clip": {}, "parts": {"clip": str(clip)}, "data": data}
    lines[3]["text"] = "  "
    write_rows(rows, lines)
    with pytest.raises(BedstoneError, match=r"empty|text|caption"):
        train(tmp_path / "empty", **{**named, "data": {**data, "most_broken": 0.0}})
    lines[3]["text"] = "a grey one"
    write_rows(rows, lines)
    Image.new("RGB", (20, 20), (9, 9, 9)).save(rows / "03.png")
    with pytest.raises(BedstoneError, match="of one value all over"):
        train(tmp_path / "flat", **named)


def write_rows(folder: Path, lines: list[dict[str, str]]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"drop": 0.0}, r"drop: 0 was given"),
        ({"drop_text": 0.0}, r"drop_text: 0 was given"),
        ({"augment": {"flip": 0.5}}, "embeddings are made once"),
        ({"text": {"encoder": "x"}}, "reads words by its CLIP's tokenizer"),
        ({"model": {"layout": "pixart"}}, "bedstone_dit alone reads embeddings"),
        ({"model": {"embedding_width": 3}}, "model.embedding_width: is decided"),
        ({"model": {"heads": 3}}, "model.heads: 3 heads don't divide"),
        ({"model": {"patch": 5}}, "isn't divided by the patches"),
        ({"autoencoder": "nowhere"}, "nowhere: there is no such folder"),
        ({"process": {"kind": "flow", "shift": -1.0}}, "process.shift: -1.0 was given"),
        ({"upsampler": {"model": {"heads": 3}}}, "upsampler: model.heads: 3 heads don't divide"),
        ({"parts": {"clap": "x"}}, r"parts.clap: there is no such part.*clip"),
        ({"shares": {"clip": 0.7, "prior": 0.5}}, "leave none of the budget"),
        ({"shares": {"clip": 0}}, "shares.clip: 0 was given"),
        ({"parts": {"clip": 3}}, "parts.clip: 3 was given"),
        ({"parts": {"clip": "x"}}, "leave the section clip out"),
        ({"prior": {**PRIOR, "budget": "5 steps"}}, r"budget: is that of the whole run"),
        ({"prior": {"model": {"layout": "prior_transformer", "embed": 4}}}, "model.embed: is dec"),
        ({"prior": {**PRIOR, "tokens": 99}}, "the CLIP reads 24 at most"),
        ({"sampling": {"prior": "autoregresive"}}, "prior"),
        ({"compile": True, "prior": {**PRIOR, "compile": True}}, "compile: isn't there"),
    ],
)
def test_what_can_not_be(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(BedstoneError, match=said):
        train(tmp_path / "run", **given)
    assert not (tmp_path / "run" / "parts").exists()  # said before anything was trained


def test_a_prior_without_a_clip(tmp_path: Path) -> None:
    recipe = PriorRecipe(out=str(tmp_path / "prior"), device="cpu", precision="fp32")
    with pytest.raises(BedstoneError, match="clip: none was named, and none stands beside"):
        pretrain(recipe, quiet=True)


def test_a_clip_that_has_learnt_nothing(tmp_path: Path) -> None:
    model: Model = clip_model()
    with torch.no_grad():
        model.network.image_projection.weight.zero_()
        model.network.image_projection.weight[0] = 1.0
    model.save(tmp_path / "clip")
    more = {"clip": {}, "parts": {"clip": str(tmp_path / "clip")}}
    with pytest.raises(BedstoneError, match="it has learnt nothing"):
        train(tmp_path / "run", **more)


def test_its_plan_has_a_part_for_each_stage(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values_of(tmp_path / "run")))
    main(["plan", str(path), "--seconds", "3"])
    out = capsys.readouterr().out
    places = [
        out.index(each) for each in ("1. clip", "2. prior", "3. the run itself", "all 3 runs")
    ]
    assert places == sorted(places)
    assert f"into {tmp_path / 'run'}" in out and "about 4 steps" in out and "about 12 steps" in out
    assert not (tmp_path / "run").exists()
