"""Learning from pairs through the command line: a run, its artefact, resuming, frozen towers."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

import bedstone
from bedstone.checkpoints.model import load
from bedstone.cli import main
from bedstone.commands.train import pretrain
from bedstone.errors import BedstoneError
from bedstone.recipes.contrastive import ContrastiveRecipe
from bedstone.recipes.given import read_pretraining
from bedstone.train.logs import read_log

SHAPE: dict[str, Any] = {
    "layout": "clip",
    "embed": 8,
    "image": {"image_size": 16, "patch": 8, "width": 16, "layers": 1, "heads": 2},
    "text": {"width": 16, "layers": 1, "heads": 2, "context": 24},
}
SIGLIP = {**SHAPE, "layout": "siglip"}
del SIGLIP["embed"]
CNN = {
    **SHAPE,
    "layout": "clip_resnet",
    "image": {"image_size": 16, "width": 8, "blocks": [1, 1], "block": "basic", "shrink": 1},
}


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedstone.data.scenes.datasets.ONES", 12)
    monkeypatch.setattr("bedstone.data.scenes.datasets.SEVERAL", 10)


def recipe_of(out: Path, **more: Any) -> ContrastiveRecipe:
    values = {
        "model": SHAPE,
        "out": str(out),
        "budget": "6 steps",
        "data": {"most_rows": 24, "workers": 1},
        "tokenizer": {"vocab_size": 300},
        "batch_size": 8,
        "evaluate_every": 3,
        "evaluate_pairs": 60,
        "log_every": 1,
        "precision": "fp32",
        **more,
    }
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    read = read_pretraining(path)
    assert isinstance(read, ContrastiveRecipe)
    return read


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_log(run / "log.jsonl") if "loss" in record]


def labelled(path: Path, count: int = 40) -> Path:
    rows = []
    for number in range(count):
        pixels = np.full((16, 16, 3), (number % 2) * 200, np.uint8)
        pixels[number % 16] = number
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": number % 2})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("shape", [SHAPE, SIGLIP, CNN], ids=["clip", "siglip", "clip_resnet"])
def test_a_run_on_scenes(
    tmp_path: Path, shape: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    done = pretrain(recipe_of(tmp_path / "run", model=shape, hard_negatives=1), quiet=True)
    assert done.model is not None and done.done.step == 6
    for name in ("validation_loss", "validation_zero_shot_accuracy"):
        assert np.isfinite(done.done.metrics[name])
    assert "validation_text_to_image_recall@10" in done.done.metrics
    records = read_log(tmp_path / "run" / "log.jsonl")
    assert 0 <= records[0]["waited"] <= 1
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert set(evaluation) == {"retrieval", "zero-shot"}
    model = load(done.model)
    assert model.processor is not None and model.processor.size == (16, 16)
    assert model.tokenizer is not None
    assert main(["evaluate", str(tmp_path / "run"), "scenes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["retrieval"]["rows"] == 10 and found["zero-shot"]["rows"] == 12
    assert len(found["zero-shot"]["labels"]) == 80


def test_chunks_learn_the_same(tmp_path: Path) -> None:
    pretrain(recipe_of(tmp_path / "plain"), quiet=True)
    pretrain(recipe_of(tmp_path / "chunks", chunk=3), quiet=True)
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "chunks"), abs=1e-4)


@pytest.mark.parametrize("shape", [SHAPE, CNN], ids=["clip", "clip_resnet"])
def test_frozen_tower_is_unchanged(tmp_path: Path, shape: dict[str, Any]) -> None:
    first = pretrain(recipe_of(tmp_path / "first", model=shape), quiet=True)
    path = str(first.model)
    less = {name: value for name, value in shape.items() if name != "image"}
    second = pretrain(
        recipe_of(tmp_path / "second", model=less, image_init=path, freeze="image", seed=1),
        quiet=True,
    )
    assert first.model is not None and second.model is not None
    before, after = load(first.model).network, load(second.model).network
    for name, weight in before.image.state_dict().items():
        assert torch.equal(weight, after.image.state_dict()[name]), name
    assert not torch.equal(before.text.embed.weight, after.text.embed.weight)


def test_goes_on_from_a_model(tmp_path: Path) -> None:
    first = pretrain(recipe_of(tmp_path / "first"), quiet=True)
    more = {"init": str(first.model), "model": {}, "freeze": "text"}
    second = pretrain(recipe_of(tmp_path / "second", **more), quiet=True)
    assert first.model is not None and second.model is not None
    before, after = load(first.model), load(second.model)
    assert before.tokenizer is not None and after.tokenizer is not None
    assert before.tokenizer.fingerprint() == after.tokenizer.fingerprint()
    assert torch.equal(before.network.text.embed.weight, after.network.text.embed.weight)


def test_labels_become_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {
        "source": str(labelled(tmp_path / "rows.parquet")),
        "templates": ["a {label} field", "it is {label}"],
        "classes": {0: "dark", 1: "bright"},
        "validation_share": 0.3,
        "most_rows": 0,
    }
    recipe = recipe_of(tmp_path / "run", data=data, budget="30 steps", evaluate_every=30)
    done = pretrain(recipe, quiet=True)
    assert done.done.metrics["validation_zero_shot_accuracy"] == 1.0
    assert not any("recall" in name for name in done.done.metrics)
    assert main(["evaluate", str(done.model), str(tmp_path / "rows.parquet"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["zero-shot"]["labels"] == ["dark", "bright"]  # names by the recipe in the folder
    assert found["zero-shot"]["accuracy"] == 1.0
    rows = pq.read_table(tmp_path / "rows.parquet")
    renamed = ["shade" if name == "label" else name for name in rows.column_names]
    pq.write_table(rows.rename_columns(renamed), tmp_path / "renamed.parquet")
    words = [str(done.model), str(tmp_path / "renamed.parquet"), "--label-column", "shade"]
    assert main(["evaluate", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_sample_sheet(tmp_path: Path) -> None:
    recipe_of(tmp_path / "run", augment={"crop": [0.5, 1.0]})
    sheet = tmp_path / "sheet.png"
    assert main(["pretrain", str(tmp_path / "run.yaml"), "--sample", str(sheet)]) == 0
    assert Image.open(sheet).size[0] > 500 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"freeze": "image"}, "image tower would keep random weights"),
        ({"freeze": "pictures"}, "freeze: 'pictures'"),
        ({"objective": "sigmoid"}, "has no bias"),
        ({"model": CNN, "chunk": 2}, "batch norm"),
        ({"model": CNN, "patch_dropout": 0.5}, "no patches"),
        ({"augment": {"crops": [0.5, 1]}}, "augment.crops"),
        ({"batch_size": 1}, "batch_size"),
        ({"data": {"source": "scenes", "objects": [1, 9]}}, "objects"),
        ({"data": {"source": "nowhere.parquet"}}, "nowhere"),
        ({"tokenizer": {"kind": "wordpiece"}}, "tokenizer.kind"),
        ({"model": {**SHAPE, "image": {"widht": 3}}}, "model.image.widht"),
        ({"data": {"templates": ["a photo"], "source": "x"}}, "no place for a label"),
    ],
)
def test_told_before_anything_is_spent(tmp_path: Path, more: dict[str, Any], told: str) -> None:
    with pytest.raises(BedstoneError, match=told):
        pretrain(recipe_of(tmp_path / "run", **more), quiet=True)


def test_opens_elsewhere(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    done = pretrain(recipe_of(tmp_path / "run"), quiet=True)
    assert done.model is not None
    theirs = transformers.CLIPModel.from_pretrained(done.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(done.model)
    ours = bedstone.load(done.model)
    pixels = torch.randn(2, 3, 16, 16)
    ids = torch.tensor([tokenizer("a red circle")["input_ids"]])
    with torch.no_grad():
        logits = theirs(input_ids=ids, pixel_values=pixels).logits_per_image
        torch.testing.assert_close(ours.network(pixels, ids), logits, atol=1e-4, rtol=1e-4)


def test_a_layout_nobody_knows_is_named(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {layout: clipp}\ndata: {source: scenes, most_rows: 10}\n")
    with pytest.raises(BedstoneError, match=r"recipe\.yaml: model\.layout: 'clipp'.*'clip'"):
        read_pretraining(recipe)
