"""The life of a chat model: each stage runs, is kept, goes on; own parts; what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from bedstone.cli import main
from bedstone.data import small_talk
from bedstone.demo import chat_life as life
from bedstone.errors import BedstoneError
from bedstone.train.logs import read_log
from runs import stop_after

pytestmark = pytest.mark.usefixtures("cache")
SMALL: dict[str, dict[str, Any]] = {
    "pretrain": {
        "model": {"layout": "qwen3", "width": 32, "layers": 1, "heads": 2, "kv_heads": 1},
        "context": 192,
        "batch_size": 2,
        "evaluate_tokens": 400,
        "budget": "3 steps",
    },
    "sft": {"batch_size": 4, "budget": "3 steps", "evaluate_every": 3},
    "dpo": {"batch_size": 4, "budget": "2 steps", "evaluate_every": 2},
    "grpo": {"prompts": 2, "group": 2, "budget": "2 steps", "evaluate_rows": 4},
}


def right_total(completions: list[Any], total: list[int]) -> list[float]:
    """A model of three steps is never right; but its answers differ."""
    return [len(each[0]["content"]) / 1000 for each in completions]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, recipe in SMALL.items():
        monkeypatch.setitem(life.RECIPES, name, {**life.RECIPES[name], **recipe})
    monkeypatch.setattr(life, "LONGEST", 6)
    monkeypatch.setitem(life.RECIPES["grpo"], "max_new_tokens", 6)
    monkeypatch.setitem(life.VOCABULARY, life.TALK, 320)
    monkeypatch.setattr(small_talk, "right_total", right_total)
    counts = {"DOCUMENTS": 60, "CHATS": 40, "PREFERENCES": 20, "PROBLEMS": 20, "HELD_OUT_ROWS": 6}
    for name, count in counts.items():
        monkeypatch.setattr(small_talk, name, count)


def test_all_stages_run_and_a_finished_one_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "life"
    assert main(["chat-life", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for stage in life.STAGES:
        assert stage.title in said
        assert (out / stage.name / "model" / "model.safetensors").is_file()
    record = json.loads((out / "life.json").read_text())["stages"]
    assert list(record) == ["pretrain", "sft", "dpo", "grpo"]
    for stage in life.STAGES:
        own = record[stage.name]
        assert own["before"].keys() == own["after"].keys() == stage.figures.keys()
        assert list(own["probes"]) == ["facts right", "answer first", "totals right"]
        assert all(0 <= each["mean"] <= 1 and each["rows"] == 6 for each in own["probes"].values())
    assert record["dpo"]["before"]["pairs told apart"] == 0.5  # the policy is its reference
    log = read_log(out / "sft" / "log.jsonl")
    assert record["sft"]["after"]["loss"] == log[-1]["validation_loss"]
    talk = json.loads((out / "transcript.json").read_text())
    assert [each["content"] for each in talk if each["role"] == "user"] == list(life.QUESTIONS)
    page = (out / "report.html").read_text()
    assert "Each stage by its own figures" in page and "totals right" in page
    for name in ("after pretrain", "after sft", "after dpo", "after grpo"):
        assert name in page

    monkeypatch.setattr(life, "train", lambda *given: pytest.fail("a stage was repeated"))
    assert main(["chat-life", "--out", str(out), "--minutes", "9"]) == 0
    assert json.loads((out / "life.json").read_text())["stages"] == record
    assert main(["chat-life", "--out", str(out), "--chats", "own.jsonl"]) == 2
    error = capsys.readouterr().err
    assert "holds a life with chats: small-talk-chats, and own.jsonl was given" in error


def test_a_stage_that_was_stopped_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "life"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)  # of pretraining
        with pytest.raises(SystemExit):
            life.chat_life(life.LifeParts(), out=str(out))
    began = json.loads((out / "life.json").read_text())["stages"]["pretrain"]
    assert "before" in began and "after" not in began
    life.chat_life(life.LifeParts(), out=str(out))
    steps = [line["step"] for line in read_log(out / "pretrain" / "log.jsonl") if "loss" in line]
    assert steps == sorted(set(steps))
    assert (
        json.loads((out / "life.json").read_text())["stages"]["pretrain"]["before"]
        == (began["before"])
    )


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_parts_of_one_s_own(tmp_path: Path) -> None:
    """A model of an earlier life, with text, conversations, pairs and prompts of other data."""
    asks = [[{"role": "user", "content": f"Add {n} letters."}] for n in range(30)]
    said = [[{"role": "assistant", "content": each}] for each in ("words", "sword")]
    rewards = tmp_path / "rewards.py"
    rewards.write_text(
        "def short(completions):\n    return [-len(each[0]['content']) for each in completions]\n"
    )
    (tmp_path / "text.txt").write_text("A letter and a word. " * 300)
    pairs = [{"prompt": ask, "chosen": said[0], "rejected": said[1]} for ask in asks]
    parts = {
        "text": str(tmp_path / "text.txt"),
        "chats": write(tmp_path / "chats.jsonl", [{"messages": [*ask, *said[0]]} for ask in asks]),
        "preferences": write(tmp_path / "pairs.jsonl", pairs),
        "prompts": write(tmp_path / "prompts.jsonl", [{"prompt": ask} for ask in asks]),
        "rewards": f"{rewards}:short",
    }
    first = tmp_path / "first"
    life.chat_life(life.LifeParts(**parts), out=str(first))
    record = json.loads((first / "life.json").read_text())["stages"]
    assert list(record["grpo"]["probes"]) == ["reward"]  # the others are of the built-in world
    page = (first / "report.html").read_text()
    assert "letters." in page
    second = tmp_path / "second"
    parts["model"] = str(first / "sft" / "model")
    life.chat_life(life.LifeParts(**parts), out=str(second))
    assert list(json.loads((second / "life.json").read_text())["stages"]) == ["sft", "dpo", "grpo"]
    assert not (second / "pretrain").exists() and not (second / "tokenizer").exists()


def test_prompts_and_rewards_come_together(tmp_path: Path) -> None:
    with pytest.raises(BedstoneError, match="--minutes: 0 was given"):
        life.chat_life(life.LifeParts(), out=str(tmp_path / "life"), minutes=0)
    assert not (tmp_path / "life").exists()
    for given in ({"prompts": "a.jsonl"}, {"rewards": "regex:x"}):
        with pytest.raises(BedstoneError, match="one was given without the other"):
            life.LifeParts(**given)


@pytest.mark.slow
def test_every_stage_gains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
