"""Pictures into words through the command line: runs, artefacts, resuming, what they begin with."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from bedstone.checkpoints.model import load
from bedstone.cli import main
from bedstone.commands.train import pretrain, resume
from bedstone.errors import BedstoneError
from bedstone.evaluate import image_text as told_scoring
from bedstone.generation.beam import beam_search
from bedstone.recipes.given import read_finetuning, read_pretraining
from bedstone.recipes.image_text import ImageTextRecipe, open_rows
from bedstone.train.logs import read_log

TEXT = {"width": 16, "layers": 1, "heads": 2, "context": 40}
CNN: dict[str, Any] = {
    "layout": "blip_resnet",
    "image": {"image_size": 16, "width": 8, "blocks": [1, 1], "block": "basic", "shrink": 1},
    "text": TEXT,
    "embed": 8,
}
VIT = {**CNN, "layout": "blip"}
VIT["image"] = {"image_size": 16, "patch": 8, "width": 16, "layers": 1, "heads": 2}
ANSWERS, CAPTIONS = "visual-question-answering", "image-to-text"
MATCHING, JOINT = "image-text-matching", "joint"


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedstone.evaluate.image_text.MOST_MEASURED", 10)
    monkeypatch.setattr("bedstone.evaluate.image_text.LEARNT", 24)
    monkeypatch.setattr("bedstone.evaluate.image_text.LONGEST", 8)


def recipe_of(out: Path, task: str = ANSWERS, **more: Any) -> ImageTextRecipe:
    values = {
        "task": task,
        "model": CNN,
        "out": str(out),
        "budget": "4 steps",
        "data": {"most_rows": 24},
        "tokenizer": {"vocab_size": 160},
        "texts": 2,
        "batch_size": 8,
        "evaluate_every": 4,
        "evaluate_rows": 8,
        "log_every": 1,
        "precision": "fp32",
        **more,
    }
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    read = read_pretraining(path)
    assert isinstance(read, ImageTextRecipe) and isinstance(read_finetuning(path), ImageTextRecipe)
    return read


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_log(run / "log.jsonl") if "loss" in record]


def shaded(path: Path, count: int = 48) -> Path:
    """Pictures that are dark or bright, said and asked; what isn't the question doesn't say."""
    rows = []
    for number in range(count):
        pixels = np.full((16, 16, 3), (number % 2) * 220, np.uint8)
        pixels[number % 16, :8] = number
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        shade = ("dark", "bright")[number % 2]
        rows.append(
            {
                "picture": buffer.getvalue(),
                "title": f"a {shade} field",
                "questions": ["how is the light?", "is it dark?"],
                "answers": [shade, "no" if number % 2 else "yes"],
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


COLUMNS = {"image": "picture", "text": "title", "question": "questions", "answer": "answers"}


@pytest.mark.parametrize(
    ("task", "shape", "kinds"),
    [
        (ANSWERS, CNN, {"answers"}),
        (ANSWERS, VIT, {"answers"}),
        (CAPTIONS, CNN, {"true facts"}),
        (MATCHING, VIT, {"matching", "nearly right"}),
        (JOINT, CNN, {"true facts", "answers", "matching", "nearly right"}),
    ],
)
def test_a_run_on_scenes(
    tmp_path: Path,
    task: str,
    shape: dict[str, Any],
    kinds: set[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = pretrain(recipe_of(tmp_path / "run", task, model=shape), quiet=True)
    assert done.model is not None and done.done.step == 4
    assert np.isfinite(done.done.metrics["validation_loss"])
    if "answers" in kinds:  # a curve of each kind of question can be drawn
        kept = read_log(tmp_path / "run" / "log.jsonl")
        assert any("validation_accuracy_count" in record for record in kept)
        assert not any("blind" in name for record in kept for name in record)
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert set(evaluation["validation"]) == kinds
    model = load(done.model)
    assert model.processor is not None and model.tokenizer is not None
    assert model.config.text.bos_id == model.tokenizer.bos_id
    assert main(["evaluate", str(tmp_path / "run"), "scenes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == kinds
    if "answers" in kinds:
        assert {"accuracy", "majority", "blind", "accuracy/count"} <= set(found["answers"])


def cut_back(run: Path, step: int = 2) -> None:
    """Takes away a run's checkpoints after a step, and what it came to."""
    for late in (run / "checkpoints").glob("*"):
        digits = "".join(filter(str.isdigit, late.name))
        if digits and int(digits) > step:
            shutil.rmtree(late) if late.is_dir() else late.unlink()


def test_what_is_seen_is_learnt_and_who_is_blind_learns_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual, rows = str(shaded(tmp_path / "usual.parquet")), str(tmp_path / "rows.parquet")
    names = ["picture", "title", "wondered", "said"]
    pq.write_table(pq.read_table(usual).rename_columns(names), rows)
    columns = dict(zip(COLUMNS, names, strict=True))
    data = {"source": rows, "validation": rows, "test": rows, "columns": columns}
    more: dict[str, Any] = {
        "budget": "100 steps",
        "evaluate_every": 100,
        "batch_size": 16,
        "evaluate_rows": 48,
        "log_every": 10,
        "optim": {"adamw_lr": 1e-2},
    }
    seen = recipe_of(tmp_path / "seen", data=data, rank=True, **more)
    assert pretrain(seen, quiet=True).done.metrics["validation_accuracy"] == 1.0
    blind = recipe_of(tmp_path / "blind", data={**data, "blank": True}, **more)
    assert pretrain(blind, quiet=True).done.metrics["validation_accuracy"] == 0.5
    evaluation = json.loads((tmp_path / "seen" / "evaluation.json").read_text())
    assert evaluation["test"]["answers"]["blind"] == 0.5
    assert main(["evaluate", str(tmp_path / "seen"), rows, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["answers"]["accuracy"] == 1.0 and found["answers"]["majority"] == 0.25
    assert main(["evaluate", str(tmp_path / "seen"), usual, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found  # the baselines are of the training rows
    assert main(["evaluate", str(tmp_path / "seen"), rows, "--label-column", "shade"]) == 2
    assert "label-column: 'shade' was given" in capsys.readouterr().err


def test_captions_of_real_rows_are_measured_by_words(tmp_path: Path) -> None:
    rows = str(shaded(tmp_path / "rows.parquet"))
    data = {"source": rows, "validation": rows, "columns": COLUMNS}
    more: dict[str, Any] = {"budget": "60 steps", "evaluate_every": 60, "batch_size": 16}
    more |= {"log_every": 10, "optim": {"adamw_lr": 1e-2}}
    done = pretrain(recipe_of(tmp_path / "run", CAPTIONS, data=data, **more), quiet=True)
    assert done.done.metrics["validation_rouge_l"] == 1.0
    told = json.loads((done.run / "evaluation.json").read_text())["validation"]["captions"]
    assert 0 < told["rouge_l/majority"] < told["rouge_l"]  # who says the same of every picture


def test_beams_are_measured_with_and_stay_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = []
    real = beam_search

    def counted(*given: Any, **more: Any) -> Any:
        widths.append((given[2].beams, given[2].length_penalty))
        return real(*given, **more)

    monkeypatch.setattr(told_scoring, "beam_search", counted)
    how = {"beams": 3, "length_penalty": 0.5}
    done = pretrain(recipe_of(tmp_path / "run", CAPTIONS, **how), quiet=True)
    assert set(widths) == {(3, 0.5)}
    assert done.model is not None
    found = load(done.model).generation
    assert (found["num_beams"], found["length_penalty"]) == (3, 0.5)


@pytest.mark.parametrize("shape", [CNN, VIT], ids=["cnn", "vit"])
def test_one_task_begins_with_another(tmp_path: Path, shape: dict[str, Any]) -> None:
    first = pretrain(recipe_of(tmp_path / "first", CAPTIONS, model=shape), quiet=True)
    more: dict[str, Any] = {"init": str(first.model), "model": {}, "budget": "1 steps"}
    more |= {"evaluate_every": 1, "optim": {"lr": 0, "adamw_lr": 0}}
    second = pretrain(recipe_of(tmp_path / "second", ANSWERS, **more), quiet=True)
    assert first.model is not None and second.model is not None
    before, after = load(first.model), load(second.model)
    assert before.tokenizer and after.tokenizer
    assert before.tokenizer.fingerprint() == after.tokenizer.fingerprint()
    assert torch.equal(before.network.decoder.embed.weight, after.network.decoder.embed.weight)
    assert torch.equal(before.network.decoder.embed.weight, after.network.encoder.embed.weight)
    for name, weight in before.network.image.named_parameters():
        assert torch.equal(weight, after.network.image.get_parameter(name)), name


def test_towers_of_others_are_taken_and_frozen(tmp_path: Path) -> None:
    clip = {"layout": "clip_resnet", "image": CNN["image"], "text": {**TEXT, "width": 16}}
    values: dict[str, Any] = {
        "model": {**clip, "embed": 8},
        "out": str(tmp_path / "clip"),
        "budget": "1 steps",
        "data": {"most_rows": 8},
        "tokenizer": {"vocab_size": 300},
        "batch_size": 4,
        "evaluate_pairs": 8,
    }
    bert: dict[str, Any] = {
        "model": {"layout": "bert", "width": 16, "layers": 1, "heads": 2},
        "out": str(tmp_path / "bert"),
        "budget": "1 steps",
        "data": {"source": str(tmp_path / "text.txt")},
        "tokenizer": {"kind": "wordpiece", "vocab_size": 120},
        "context": 40,
        "batch_size": 2,
        "masking": {"pairs": False},
    }
    (tmp_path / "text.txt").write_text("what is red and round\n\nthe circle is red\n\n" * 40)
    for name, recipe in (("clip", values), ("bert", bert)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        pretrain(read_pretraining(path), quiet=True)
    more: dict[str, Any] = {
        "model": {"layout": "blip_resnet"},
        "image_init": str(tmp_path / "clip"),
        "text_init": str(tmp_path / "bert"),
        "freeze": "image",
    }
    done = pretrain(recipe_of(tmp_path / "run", ANSWERS, **more), quiet=True)
    assert done.model is not None
    made, seen = load(done.model), load(tmp_path / "clip" / "model").network.image
    read = load(tmp_path / "bert" / "model")
    assert made.tokenizer is not None and read.tokenizer is not None
    assert made.tokenizer.vocab_size == read.tokenizer.vocab_size + 2
    own = made.network.image.resnet
    for name, weight in own.state_dict().items():  # statistics of norms too
        assert torch.equal(weight, seen.state_dict()[name]), name


def test_an_adapter_alone(tmp_path: Path) -> None:
    first = pretrain(recipe_of(tmp_path / "first", model=VIT), quiet=True)
    more: dict[str, Any] = {"init": str(first.model), "model": {}, "lora": {"rank": 2}}
    more |= {"save_every": 2, "keep": 9}
    second = pretrain(recipe_of(tmp_path / "second", **more), quiet=True)
    assert (tmp_path / "second" / "adapter" / "adapter_model.safetensors").is_file()
    assert first.model is not None and second.model is not None
    one, other = load(first.model).network, load(second.model).network
    assert torch.equal(one.decoder.embed.weight, other.decoder.embed.weight)
    q = "decoder.stack.0.cross.sublayer.q.weight"
    assert not torch.equal(one.get_parameter(q), other.get_parameter(q))
    cut_back(tmp_path / "second")
    shutil.rmtree(tmp_path / "second" / "adapter")
    again = resume(tmp_path / "second", quiet=True)
    assert again.model is not None
    assert torch.equal(other.get_parameter(q), load(again.model).network.get_parameter(q))


@pytest.mark.parametrize(
    ("task", "more", "told"),
    [
        (ANSWERS, {"freeze": "image"}, "image would keep random weights"),
        (ANSWERS, {"freeze": "pictures"}, "freeze: 'pictures'"),
        (ANSWERS, {"texts": 0}, "texts"),
        (ANSWERS, {"lora": {"rank": 2}}, "lora: an adapter learns on a model"),
        (CAPTIONS, {"rank": True}, "rank: is for answers"),
        (JOINT, {"batch_size": 1}, "batch_size"),
        (JOINT, {"weights": {"match": -1}}, "weights.match"),
        (ANSWERS, {"smoothing": 1.0}, "smoothing"),
        (ANSWERS, {"data": {"objects": [1, 9]}}, "objects"),
        (ANSWERS, {"data": {"source": "nowhere.parquet"}}, "nowhere"),
        (ANSWERS, {"tokenizer": {"kind": "bpe"}}, "tokenizer.kind"),
        (ANSWERS, {"model": {**CNN, "image": {"widht": 3}}}, "model.image.widht"),
        (ANSWERS, {"model": {**CNN, "text": {"width": 3, "heads": 2}}}, "model.text.heads"),
    ],
)
def test_told_before_anything_is_spent(
    tmp_path: Path, task: str, more: dict[str, Any], told: str
) -> None:
    with pytest.raises(BedstoneError, match=told):
        pretrain(recipe_of(tmp_path / "run", task, **more), quiet=True)


@pytest.mark.parametrize(("task", "lacks"), [(CAPTIONS, "caption"), (ANSWERS, "question")])
def test_rows_that_lack_what_the_task_needs_are_named(
    tmp_path: Path, task: str, lacks: str
) -> None:
    rows = shaded(tmp_path / "rows.parquet", 8)
    table = pq.read_table(rows).to_pylist()
    gone = ("title",) if task == CAPTIONS else ("questions", "answers")
    few = [{name: value for name, value in row.items() if name not in gone} for row in table]
    pq.write_table(pa.Table.from_pylist(few), rows)
    columns = {"image": "picture"} | ({} if task == CAPTIONS else {"text": "title"})
    data = {"source": str(rows), "validation": str(rows), "columns": columns}
    with pytest.raises(BedstoneError, match=f"no row has a {lacks}"):
        pretrain(recipe_of(tmp_path / "run", task, data=data), quiet=True)


def test_pictures_without_what_the_task_needs_are_left(tmp_path: Path) -> None:
    rows = shaded(tmp_path / "rows.parquet", 8)
    table = pq.read_table(rows).to_pylist()
    for row in table[:3]:
        row["title"] = None
    pq.write_table(pa.Table.from_pylist(table), rows)
    data = {"source": str(rows), "validation": str(rows), "columns": COLUMNS}
    for task, count in ((CAPTIONS, 5), (ANSWERS, 8), (JOINT, 8)):
        splits = open_rows(recipe_of(tmp_path / "run", task, data=data), quiet=True)
        assert [len(splits.train), len(splits.validation)] == [count] * 2


def test_sample_sheet(tmp_path: Path) -> None:
    recipe_of(tmp_path / "run", augment={"crop": [0.5, 1.0]})
    sheet = tmp_path / "sheet.png"
    assert main(["pretrain", str(tmp_path / "run.yaml"), "--sample", str(sheet)]) == 0
    assert Image.open(sheet).size[0] > 200 and not (tmp_path / "run").exists()
