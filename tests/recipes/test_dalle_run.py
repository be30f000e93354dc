"""A DALL-E trained: stages in order, stopped in each, parts reused, codes kept, what is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from bedstone.checkpoints.dalle import DallePipeline
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, fingerprint
from bedstone.checkpoints.tensors import load_tensors
from bedstone.cli import main
from bedstone.commands.train import pretrain, resume
from bedstone.data.scenes.render import draw
from bedstone.data.scenes.world import make_scene
from bedstone.errors import BedstoneError
from bedstone.evaluate.dalle import rerank_curve
from bedstone.evaluate.scene_judge import SceneGridConfig, SceneJudge
from bedstone.evaluate.scene_judge import build as build_judge
from bedstone.models.autoencoder.config import AutoencoderConfig, DiscreteConfig
from bedstone.models.autoencoder.discrete import build_discrete
from bedstone.models.autoencoder.network import build as build_kl
from bedstone.recipes.base import read
from bedstone.recipes.dalle import DalleRecipe
from bedstone.recipes.stages import part_of
from bedstone.train.logs import read_log
from bedstone.train.run import RunResult
from image_models import clip_model
from runs import losses, stop_after

SIZE = {"width": 16, "layers": 1, "heads": 2}
CODER = {"model": {"widths": [8, 8], "groups": 4, "levels": [5, 4]}, "batch_size": 8}
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
}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ONES", 6), ("SEVERAL", 4)):
        monkeypatch.setattr(f"bedstone.data.scenes.datasets.{name}", value)


def values_of(out: Path, **more: Any) -> dict[str, Any]:
    return {
        "method": "dalle",
        "out": str(out),
        "budget": "10 steps",
        "model": {"layout": "dalle", **SIZE},
        "data": {
            "source": "scenes",
            "size": [16, 16],
            "most_rows": 16,
            "objects": [1, 1],
            "workers": 1,
        },
        "autoencoder": {**CODER, "evaluate_pictures": 4},
        "tokenizer": {"vocab_size": 120},
        "text": {"tokens": 40},
        "batch_size": 8,
        "evaluate_rows": 8,
        "samples": 2,
        "log_every": 1,
        "precision": "fp32",
        "device": "cpu",
        **more,
    }


def recipe_of(out: Path, **more: Any) -> DalleRecipe:
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values_of(out, **more)))
    found = read(path)
    assert isinstance(found, DalleRecipe)
    return found


def train(out: Path, **more: Any) -> RunResult:
    return pretrain(recipe_of(out, **more), quiet=True)


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder that exists already."""
    config = DiscreteConfig(image_size=16, widths=(8, 8), groups=4, levels=(5, 4))
    return Model(build_discrete(config, seed=0)).save(tmp_path_factory.mktemp("parts") / "coder")


def weights(folder: Path) -> list[str]:
    files = sorted(folder.rglob("*.safetensors"))
    assert files
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def test_a_stage_keeps_what_its_section_leaves_out(tmp_path: Path) -> None:
    """The images' size, however deep in the section of a stage the usual value stands."""
    image = {"width": 8, "blocks": [1, 1, 1], "block": "basic", "shrink": 1, "heads": 2}
    clip = {"model": {"layout": "clip_resnet", "image": image}}
    stages = {one.name: one for one in recipe_of(tmp_path / "run").to_train}
    assert "clip" not in stages
    whole = recipe_of(tmp_path / "run", clip=clip)
    (stage,) = [one for one in whole.to_train if one.name == "clip"]
    made = stage.recipe(whole).model["image"]
    assert made == {**image, "image_size": 16}
    given = recipe_of(tmp_path / "run", clip={"model": {"image": {**image, "image_size": 32}}})
    (stage,) = [one for one in given.to_train if one.name == "clip"]
    assert stage.recipe(given).model["image"]["image_size"] == 32


def test_all_stages_within_one_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(tmp_path / "run", clip=CLIP, sampling={"candidates": 2})
    done = pretrain(recipe)
    said = capsys.readouterr().err
    steps = {
        name: len(losses(tmp_path / "run" / "parts" / name)) for name in ("autoencoder", "clip")
    }
    assert steps == {"autoencoder": 1, "clip": 2} and done.done.step == 7  # shares of ten
    assert "autoencoder: 1 steps of 10 steps" in said
    assert "autoencoder: the budget was too small for one epoch: 8 of 16 images" in said
    assert done.model is not None
    model = open_model(done.model)
    assert isinstance(model, DallePipeline) and model.clip is not None
    parts = tmp_path / "run" / "parts"
    for name, part in (("autoencoder", model.autoencoder), ("clip", model.clip)):
        own = open_model(parts / name)
        assert fingerprint(own) == fingerprint(part) == model.made_with[name]
    assert model.config.codes == 20 and tuple(model.config.grid) == (4, 4)
    assert model.sampling.candidates == 2
    for name in ("loss", "code_nats", "word_nats"):
        assert done.done.metrics[f"validation_{name}"] > 0
    with Image.open(tmp_path / "run" / "samples.png") as sheet:
        assert sheet.size[0] > 20
    kept = load_tensors(tmp_path / "run", name="codes-train.safetensors")["codes"]
    assert kept.dtype is torch.uint16 and tuple(kept.shape) == (16, 4, 4)
    assert (tmp_path / "run" / "evaluation.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["autoencoder", "clip", "dalle"])
def test_stopped_in_any_stage_it_goes_on_to_the_same_weights(tmp_path: Path, stage: str) -> None:
    more = {"clip": CLIP, "budget": "20 steps", "save_every": 1}
    whole = train(tmp_path / "whole", **more)
    assert whole.model is not None
    place = {"autoencoder": 1, "clip": 3, "dalle": 9}[stage]  # steps of all runs so far
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, place)
        stopped = train(tmp_path / "part", **more)
    assert stopped.model is None and stopped.run == tmp_path / "part"
    moved = (tmp_path / "part").rename(tmp_path / "moved")
    again = resume(moved, quiet=True)
    assert again.model is not None
    assert weights(again.model) == weights(whole.model)
    assert losses(moved) == losses(whole.run)


def test_a_part_that_exists_is_not_trained(tmp_path: Path, coder: Path) -> None:
    before = weights(coder)
    done = train(tmp_path / "run", autoencoder={}, parts={"autoencoder": str(coder)})
    assert done.done.step == 10  # its share is the rest's
    assert not (tmp_path / "run" / "parts").exists() and weights(coder) == before
    assert done.model is not None
    model: Any = open_model(done.model)
    assert model.made_with == {"autoencoder": fingerprint(open_model(coder))}
    assert model.clip is None
    again = train(tmp_path / "more", init=str(done.model), autoencoder={}, model={})
    assert again.model is not None and open_model(again.model).made_with == model.made_with
    curve = list(losses(tmp_path / "more").values())
    assert curve[0] < next(iter(losses(tmp_path / "run").values()))
    with pytest.raises(BedstoneError, match=r"parts: init = .* has its own"):
        train(tmp_path / "x", init=str(done.model), autoencoder={}, parts={"clip": "x"})


@pytest.mark.parametrize("order", ["masked", "scale"])
def test_several_codes_at_once(tmp_path: Path, coder: Path, order: str) -> None:
    more = {"autoencoder": {}, "parts": {"autoencoder": str(coder)}}
    more |= {"model": {"layout": "dalle", "order": order, **SIZE}, "budget": "20 steps"}
    more |= {"optim": {"lr": 1e-2, "adamw_lr": 1e-2}}
    done = train(tmp_path / "run", **more)
    curve = list(losses(tmp_path / "run").values())
    assert sum(curve[-4:]) < sum(curve[:4])
    assert done.model is not None
    model: Any = open_model(done.model)
    assert model.masked and "validation_word_nats" not in done.done.metrics


def test_own_images_with_captions(tmp_path: Path, coder: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    lines = []
    for number in range(24):
        Image.fromarray(draw(make_scene(number), 20)).save(rows / f"{number:02}.png")
        lines.append({"file_name": f"{number:02}.png", "text": f"scene number {number % 5}"})
    write_rows(rows, lines)
    data = {"source": str(rows), "size": [16, 16], "validation_share": 0.3, "workers": 1}
    more: dict[str, Any] = {"autoencoder": {**CODER, "evaluate_pictures": 2}, "data": data}
    done = train(tmp_path / "run", **more)
    assert done.model is not None
    lines[3]["text"] = "  "
    write_rows(rows, lines)
    named = {"autoencoder": {}, "parts": {"autoencoder": str(coder)}, "data": data}
    with pytest.raises(BedstoneError, match=r"empty|text|caption"):
        train(tmp_path / "empty", **{**named, "data": {**data, "most_broken": 0.0}})
    lines[3]["text"] = "a grey one"
    write_rows(rows, lines)
    Image.new("RGB", (20, 20), (9, 9, 9)).save(rows / "03.png")
    with pytest.raises(BedstoneError, match="of one value all over"):
        train(tmp_path / "flat", **named)
    (rows / "03.png").write_bytes(b"no image")
    with pytest.raises(BedstoneError, match=r"03\.png"):
        train(tmp_path / "broken", **{**named, "data": {**data, "most_broken": 0.0}})


def write_rows(folder: Path, lines: list[dict[str, str]]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_codes_are_encoded_once_and_belong_to_their_autoencoder(
    tmp_path: Path, coder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"autoencoder": {}, "parts": {"autoencoder": str(coder)}, "save_every": 1}
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        train(tmp_path / "run", **more)
    calls: list[int] = []
    kind = type(open_model(coder).network)
    plain = kind.encode

    def encode(self: Any, pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        return plain(self, pixels)

    monkeypatch.setattr(kind, "encode", encode)
    resume(tmp_path / "run", quiet=True)
    assert not calls
    path = tmp_path / "run" / "codes-train.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**known, "autoencoder": "another"}))
    with pytest.raises(BedstoneError, match="the autoencoder changed since codes were made"):
        resume(tmp_path / "run", "budget=12 steps", quiet=True)


def test_captions_are_cut_only_where_that_is_said(
    tmp_path: Path, coder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more: dict[str, Any] = {"autoencoder": {}, "parts": {"autoencoder": str(coder)}}
    with pytest.raises(BedstoneError, match=r"text.tokens: \d+ of \d+ captions .* longer than 3"):
        train(tmp_path / "run", **more, text={"tokens": 3})
    pretrain(recipe_of(tmp_path / "cut", **more, text={"tokens": 3, "cut": True}))
    assert "captions are cut" in capsys.readouterr().err


def test_an_autoencoder_that_says_nothing(tmp_path: Path) -> None:
    config = DiscreteConfig(image_size=16, widths=(8, 8), groups=4, levels=(5, 4))
    network = build_discrete(config, seed=0)
    torch.nn.init.zeros_(network.encoder.out.weight)
    Model(network).save(tmp_path / "dull")
    with pytest.raises(BedstoneError, match="the same codes of all images"):
        train(tmp_path / "run", autoencoder={}, parts={"autoencoder": str(tmp_path / "dull")})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"drop": 0.0}, "drop: 0 was given"),
        ({"sampling": {"candidates": 2}}, "there is no CLIP to choose"),
        ({"sampling": {"candidates": 0}}, "sampling.candidates"),
        (
            {
                "model": {"layout": "dalle", "order": "masked"},
                "sampling": {"temperature": 0},
            },
            "sampling.temperature: 0",
        ),
        ({"model": {"layout": "dalle", "order": "scales"}}, "model.order: 'scales'"),
        ({"model": {"layout": "dalle", "codes": 9}}, "model.codes: is decided"),
        ({"model": {"layout": "dalle", "heads": 3}}, "model.heads"),
        ({"model": {"layout": "dal"}}, "model.layout"),
        ({"shares": {"autoencoder": 1.0}}, "shares.autoencoder"),
        ({"shares": {"autoencoder": 0.6, "clip": 0.5}, "clip": CLIP}, "leave none of the budget"),
        ({"shares": {"clop": 0.1}}, "parts.clop: there is no such part"),
        ({"parts": {"coder": "x"}}, "there is no such part"),
        ({"parts": {"autoencoder": "x"}}, "leave the section autoencoder out"),
        ({"parts": {"autoencoder": 3}, "autoencoder": {}}, "parts.autoencoder"),
        ({"parts": {"autoencoder": "no/such"}, "autoencoder": {}}, "no/such"),
        ({"autoencoder": {"budget": "5m"}}, "shares.autoencoder"),
        ({"autoencoder": {"model": {"levels": [1]}}}, "autoencoder: .*levels"),
        ({"autoencoder": {"model": {"layout": "autoencoder_kl"}}}, "makes no codes"),
        ({"clip": {"model": {"layout": "clop"}}}, "clip: .*layout"),
        ({"data": {"source": "scenes", "size": [18, 18]}}, "multiple of 4"),
        ({"text": {"tokens": 1}}, "text.tokens"),
        ({"image_share": 0.0}, "image_share"),
        ({"compile": True}, "compile"),
        ({"budget": "soon"}, "budget"),
        ({"init": "no/such", "autoencoder": {}, "model": {}}, "no/such"),
    ],
)
def test_what_is_refused(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(BedstoneError, match=said):
        train(tmp_path / "run", **more)


def test_parts_of_another_kind_are_refused(tmp_path: Path, coder: Path) -> None:
    shape = AutoencoderConfig(image_size=16, widths=(8, 8), groups=4, attention=False)
    kl = Model(build_kl(shape, seed=0)).save(tmp_path / "kl")
    for parts, said in (
        ({"autoencoder": str(kl)}, "makes no codes of images"),
        ({"autoencoder": str(coder), "clip": str(coder)}, "expected a CLIP"),
    ):
        with pytest.raises(BedstoneError, match=said):
            train(tmp_path / "run", autoencoder={}, parts=parts)
    with pytest.raises(BedstoneError, match="is no DALL-E"):
        train(tmp_path / "run", init=str(coder), autoencoder={}, model={})
    with pytest.raises(BedstoneError, match="multiples of that"):
        data = {"source": "scenes", "size": [18, 18], "most_rows": 8}
        train(tmp_path / "run", autoencoder={}, parts={"autoencoder": str(coder)}, data=data)
    with pytest.raises(BedstoneError, match=r"data\.channels: 1"):
        rows = tmp_path / "rows"
        rows.mkdir()
        for number in range(12):
            Image.fromarray(draw(make_scene(number), 20)).save(rows / f"{number}.png")
        write_rows(rows, [{"file_name": f"{n}.png", "text": "a scene"} for n in range(12)])
        grey = {"source": str(rows), "size": [16, 16], "channels": 1, "validation_share": 0.3}
        train(tmp_path / "run", autoencoder={}, parts={"autoencoder": str(coder)}, data=grey)


def test_a_share_of_a_budget() -> None:
    assert part_of("60m", 0.1) == "360 seconds"
    assert part_of("1000 steps", 0.25) == "250 steps"
    assert part_of("3", 0.1) == "1 steps"
    assert part_of("2M tokens", 0.5) == "1000000 tokens"


# What re-ranking is worth.


def test_the_curve_of_candidates() -> None:
    right = torch.tensor([[0.0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]).numpy()
    scores = torch.tensor(
        [[0.1, 0.3, 0.2, 0.0], [0.2, 0.5, 0.1, 0.0], [1, 2, 3, 4], [0.0, 0.1, 0.2, 0.9]]
    ).numpy()
    found = rerank_curve(scores, right, [1, 2, 1, 2])
    assert [found[f"right/{n}"] for n in (1, 2, 4)] == [0.25, 0.25, 0.5]
    assert [found[f"oracle/{n}"] for n in (1, 2, 4)] == [0.25, 0.5, 0.75]
    assert [found[f"random/{n}"] for n in (1, 2, 4)] == [0.25, 0.25, 0.25]
    assert found["gain"] == 0.25 and found["gain_of_oracle"] == 0.5
    assert found["right/4/1 thing"] == 0.5 and found["right/4/2 things"] == 0.5
    low, high = found.intervals["right/4"]
    assert 0.1 < low < 0.5 < high < 0.9
    assert "right/3" in rerank_curve(scores[:, :3], right[:, :3]).values
    with pytest.raises(BedstoneError, match="as many of both"):
        rerank_curve(scores[:, :2], right)


def test_evaluate(tmp_path: Path, coder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = clip_model().save(tmp_path / "clip")
    parts = {"autoencoder": str(coder), "clip": str(clip)}
    train(tmp_path / "run", autoencoder={}, parts=parts)
    SceneJudge(build_judge(SceneGridConfig(size=16, width=8), seed=0)).save(tmp_path / "judge")
    given = ["evaluate", str(tmp_path / "run"), "scenes", "--samples", "6", "--json"]
    judge = ["--judge", str(tmp_path / "judge")]
    assert main([*given, *judge]) == 0
    assert json.loads(capsys.readouterr().out)["right"] == 0
    assert main([*given, *judge, "--candidates", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"right/1", "right/2", "oracle/2", "random/2", "gain"} <= found.keys()
    assert main([*given, "--candidates", "2"]) == 2
    assert "by --judge" in capsys.readouterr().err
    assert main(["evaluate", str(coder), "scenes", "--candidates", "2", *judge]) == 2
    assert "is no DALL-E" in capsys.readouterr().err


def test_the_log_counts_images(tmp_path: Path, coder: Path) -> None:
    train(tmp_path / "run", autoencoder={}, parts={"autoencoder": str(coder)}, budget="2 steps")
    assert [each["images"] for each in read_log(tmp_path / "run" / "log.jsonl")][-1] == 16


def test_its_plan_has_a_part_for_each_stage(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    values = values_of(tmp_path / "run", clip=CLIP, shares={"autoencoder": 0.2, "clip": 0.3})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    words = ["plan", str(path), "--seconds", "3", "--price-hour", "1"]
    assert main([*words, "--json"]) in (0, 1)  # so few rows may leak
    found = json.loads(capsys.readouterr().out)
    stages = list(found["stages"].values())
    assert list(found["stages"]) == ["autoencoder", "clip"]
    assert [each["time"]["steps"] for each in (*stages, found)] == [2, 3, 5]
    for key in ("seconds", "from_seconds", "to_seconds"):
        parts = [each["time"][key] for each in (*stages, found)]
        assert found["whole"][key] == pytest.approx(sum(parts))
    peaks = [each["memory_bytes"]["peak"] for each in (*stages, found)]
    assert found["whole"]["peak_bytes"] == max(peaks)
    assert len({each["parameters"] for each in (*stages, found)}) == 3
    assert not (tmp_path / "run").exists()
    pretrain(recipe_of(tmp_path / "run", clip=CLIP), quiet=True)
    network = open_model(tmp_path / "run" / "model").network
    assert found["trained_parameters"] == sum(each.numel() for each in network.parameters())
    main(words)
    out = capsys.readouterr().out
    assert "autoencoder: is finished, and taken as it is" in out and "1. " not in out
