"""Runs on preferences: adapters, the reference on disk, reward models, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import bedstone
from bedstone.checkpoints.load import open_model
from bedstone.cli import main
from bedstone.commands.train import finetune, resume
from bedstone.errors import BedstoneError
from bedstone.files import cache_folder
from bedstone.models.heads import HeadConfig
from bedstone.recipes import library
from bedstone.train import reference
from methods import check_method
from runs import losses, stop_after
from small_models import SENTENCES, decoder, model

pytestmark = pytest.mark.usefixtures("cache")
RATE = {"adamw_lr": 1e-3}


def pairs(count: int = 24) -> list[dict[str, Any]]:
    """An answer in upper case is the better one."""
    words = " ".join(SENTENCES).split()
    rows = []
    for number in range(count):
        one, two = words[number % len(words)], words[(number * 3 + 1) % len(words)]
        chosen, rejected = f" {two.upper()}{number}", f" {two.lower()}{number}"
        rows.append({"prompt": f"say {one}", "chosen": chosen, "rejected": rejected})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def gpt(tmp_path: Path) -> str:
    return str(decoder(HeadConfig(), "llama").save(tmp_path / "gpt"))


def recipe(folder: Path, gpt: str, **changes: Any) -> dict[str, Any]:
    return {
        "method": "dpo",
        "model": gpt,
        "out": str(folder / "run"),
        "data": {"train": write(folder / "pairs.jsonl", pairs()), "validation_share": 0.3},
        "optim": RATE,
        "batch_size": 4,
        "epochs": 3,
        "device": "cpu",
        "precision": "fp32",
        "log_every": 1,
        "save_every": 1,
        **changes,
    }


@pytest.mark.parametrize(
    "method", ["dpo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("kto", "reward"))]
)
def test_an_adapter_alone(method: str, gpt: str, tmp_path: Path) -> None:
    values = recipe(tmp_path, gpt, method=method, lora={"rank": 4}, optim={"adamw_lr": 1e-2})
    if method == "kto":
        rows = [
            {"prompt": row["prompt"], "completion": row[kind], "label": kind == "chosen"}
            for row in pairs()
            for kind in ("chosen", "rejected")
        ]
        values["data"]["train"] = write(tmp_path / "judged.jsonl", rows)
        values["epochs"] = 2
    run = check_method(method, values, tmp_path)
    assert (run.run / "adapter" / "adapter_config.json").is_file()


def test_a_reward_model_of_an_encoder(tmp_path: Path) -> None:
    base = model(HeadConfig("pooled")).save(tmp_path / "bert")
    values = recipe(tmp_path, str(base), method="reward", epochs=4, limit=24, dropout=0.1)
    values["optim"] = {"adamw_lr": 1e-2}
    with pytest.raises(BedstoneError, match="the tokenizer reads both as one text"):
        finetune(values, quiet=True)  # its texts are in lower case
    spelt = [{**row, "rejected": f"{row['rejected']} long"} for row in pairs()]
    values["data"]["train"] = write(tmp_path / "spelt.jsonl", spelt)
    run = check_method("reward", values, tmp_path)
    found = json.loads((run.run / "evaluation.json").read_text())["validation"]
    assert {"accuracy", "accuracy_low", "margin", "length_correlation"} <= found.keys()
    assert found["baselines"].keys() <= {"shorter", "longer"}
    opened = open_model(run.model)
    assert opened.config.head == HeadConfig("sequence", ("reward",), "regression")
    task = bedstone.pipeline("text-classification", opened)
    scores = [task({"prompt": "say go", "completion": text})["score"] for text in (" GO1", " go1")]
    assert all(isinstance(score, float) for score in scores)


def test_a_reward_model_is_evaluated_on_pairs(
    gpt: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = recipe(tmp_path, gpt, method="reward", epochs=6)
    run = finetune(values, quiet=True)
    assert main(["evaluate", str(run.run), values["data"]["train"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "preferences" and found["rows"] == 24
    assert found["accuracy"] > 0.8 and 0 <= found["accuracy_low"] <= found["accuracy_high"] <= 1


def test_figures_of_a_policy(gpt: str, tmp_path: Path) -> None:
    run = finetune(recipe(tmp_path, gpt, sft=0.2), quiet=True)
    names = ("loss", "accuracy", "margin", "reward_chosen", "reward_rejected", "kl")
    assert {f"validation_{name}" for name in names} <= run.done.metrics.keys()
    found = json.loads((run.run / "evaluation.json").read_text())["validation"]
    assert found["log_prob_chosen"] == pytest.approx(run.done.metrics["validation_log_prob_chosen"])
    assert found["tokens_chosen"] > 1 and found["accuracy"] > 0.5
    assert run.done.metrics["validation_margin"] > 0
    assert found["reward_chosen"] - found["reward_rejected"] == pytest.approx(found["margin"])


def test_the_reference_is_computed_once(
    gpt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEDSTONE_CACHE", str(tmp_path / "cache"))
    counted = []
    computed = reference._computed
    monkeypatch.setattr(
        reference, "_computed", lambda *given: counted.append(1) or computed(*given)
    )
    first = finetune(recipe(tmp_path, gpt), quiet=True)
    assert len(counted) == 2  # training and validation
    again = finetune(recipe(tmp_path, gpt, out=str(tmp_path / "again")), quiet=True)
    assert len(counted) == 2 and losses(again.run) == losses(first.run)
    adapter = recipe(tmp_path, gpt, out=str(tmp_path / "adapter"), lora={"rank": 2})
    finetune(adapter, quiet=True)
    assert len(counted) == 2  # the base is the same
    finetune(recipe(tmp_path, gpt, out=str(tmp_path / "cut"), limit=12), quiet=True)
    assert len(counted) == 4
    for path in cache_folder("reference").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")  # damaged: computed anew
    whole = finetune(recipe(tmp_path, gpt, out=str(tmp_path / "anew")), quiet=True)
    assert len(counted) == 6 and losses(whole.run) == losses(first.run)


@pytest.mark.parametrize("lora", [{}, {"rank": 2}])
def test_a_run_goes_on_without_what_was_kept(
    lora: dict[str, Any], gpt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEDSTONE_CACHE", str(tmp_path / "cache"))
    whole = finetune(recipe(tmp_path, gpt, out=str(tmp_path / "whole"), lora=lora), quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 5)
        finetune(recipe(tmp_path, gpt, lora=lora), quiet=True)
    shutil.rmtree(tmp_path / "cache")
    if not lora:
        other = decoder(HeadConfig(), "llama")
        with torch.no_grad():
            other.network.embed.weight.add_(0.1)
        kept = (tmp_path / "gpt").rename(tmp_path / "kept")
        other.save(tmp_path / "gpt")
        with pytest.raises(BedstoneError, match="isn't the model that it was when the run began"):
            resume(tmp_path / "run", quiet=True)
        shutil.rmtree(tmp_path / "gpt")
        kept.rename(tmp_path / "gpt")
    resume(tmp_path / "run", quiet=True)
    assert losses(tmp_path / "run") == losses(whole.run)


def test_another_reference(gpt: str, tmp_path: Path) -> None:
    twin = decoder(HeadConfig(), "qwen3")
    twin.save(tmp_path / "twin")
    run = finetune(recipe(tmp_path, gpt, reference=str(tmp_path / "twin")), quiet=True)
    assert run.model is not None
    strange = decoder(HeadConfig(), "qwen3")
    assert strange.tokenizer is not None
    from bedstone.data.text.train_tokenizer import train_bpe

    strange.tokenizer = train_bpe(["quite other words are here to be read"] * 3, 300)
    strange.save(tmp_path / "strange")
    values = recipe(tmp_path, gpt, reference=str(tmp_path / "strange"), out=str(tmp_path / "other"))
    with pytest.raises(BedstoneError, match=r"strange has another vocabulary than the model"):
        finetune(values, quiet=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "model: none was given"),
        ({"data": {}}, r"data.train: none was given"),
        ({"lora": {"rank": 2, "dropout": 0.1}}, r"lora.dropout: makes the implicit reward"),
        ({"loss": "sigmoidal"}, "loss: 'sigmoidal'.*sigmoid"),
        ({"flipped": 0.5}, "flipped"),
        ({"beta": 0}, "beta"),
        ({"sft": -1}, "sft"),
        ({"best": "f1"}, "best"),
        ({"desirable": 1}, "unknown key 'desirable'"),
        ({"method": "dpoo"}, "perhaps 'dpo'"),
    ],
)
def test_bad_recipes(changes: dict[str, Any], message: str, gpt: str, tmp_path: Path) -> None:
    with pytest.raises(BedstoneError, match=message):
        finetune(recipe(tmp_path, gpt, **changes), quiet=True)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_models_that_can_not(gpt: str, tmp_path: Path) -> None:
    bert = str(model(HeadConfig("pooled")).save(tmp_path / "bert"))
    for method in ("dpo", "kto"):
        with pytest.raises(BedstoneError, match="is a bert, which writes no text; name a GPT"):
            finetune(recipe(tmp_path, bert, method=method), quiet=True)


def test_rows_that_can_not_be_learnt(gpt: str, tmp_path: Path) -> None:
    same = [{**row, "rejected": row["chosen"]} for row in pairs()]
    values = recipe(tmp_path, gpt)
    values["data"]["train"] = write(tmp_path / "same.jsonl", same)
    with pytest.raises(BedstoneError, match=r"24 of 24 rows are broken.*equal to the rejected"):
        finetune(values, quiet=True)
    values["data"]["train"] = write(tmp_path / "bare.jsonl", [{"text": "a"}] * 9)
    with pytest.raises(BedstoneError, match="no column for the chosen"):
        finetune(values, quiet=True)
    judged = [{"prompt": "a", "completion": f"b{n}", "label": True} for n in range(20)]
    values = recipe(tmp_path, gpt, method="kto")
    values["data"]["train"] = write(tmp_path / "judged.jsonl", judged)
    with pytest.raises(BedstoneError, match="calls all 20 rows desirable"):
        finetune(values, quiet=True)


def test_rows_of_the_callers_own_and_the_recipes(gpt: str, tmp_path: Path) -> None:
    for method in ("dpo", "kto", "reward"):
        assert (library.LIBRARY / f"{method}-own.yaml").is_file()
    data = {"train": pairs(), "validation_share": 0.3}
    fields = {"out": str(tmp_path / "own"), "limit": 0, "device": "cpu", "lora.rank": 2}
    run = finetune("dpo-own", data=data, model=gpt, quiet=True, **fields)
    assert run.model is not None and (run.run / "rows" / "train.parquet").is_file()


@pytest.mark.slow
@pytest.mark.shared
def test_conversations_of_shared_data(shared_data: Path, tmp_path: Path) -> None:
    chat = decoder(HeadConfig(), "llama")
    assert chat.tokenizer is not None
    chat.tokenizer.settings["chat_template"] = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    path = str(chat.save(tmp_path / "chat"))
    values = recipe(tmp_path, path, epochs=1, batch_size=8, save_every=0)
    values["data"]["train"] = str(shared_data / "preference" / "dpo-en.jsonl")
    run = finetune(values, quiet=True)
    assert run.done.reason == "finished"
    record = json.loads((run.run / "data.json").read_text())
    assert 190 <= record["rows"] <= 300 and record["left_out"] <= 3
