"""Runs of reinforcement learning: adapters, resuming, the monitor, pages, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import bedstone
from bedstone.checkpoints.load import open_model
from bedstone.commands.train import finetune, resume
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError
from bedstone.generation.tool_rollout import Tools
from bedstone.models.heads import HeadConfig
from bedstone.recipes import library
from bedstone.train.logs import read_log
from methods import check_method
from runs import losses, stop_after
from small_models import SENTENCES, decoder, model

pytestmark = pytest.mark.usefixtures("cache")
REWARD = """
def vowels(completions):
    return [0.01 + sum(text.count(each) for each in "aeiou") / 10 for text in completions]

def capitals(completions, kind):
    return [0.01 + sum(map(str.isupper, text)) / 10 for text in completions]

def fewer(completions):
    return [-value for value in vowels(completions)]
"""


def rows(count: int = 40) -> list[dict[str, Any]]:
    words = " ".join(SENTENCES).split()
    return [
        {"prompt": f"{words[n % len(words)]} {n}", "kind": f"kind {n % 3}"} for n in range(count)
    ]


@pytest.fixture
def gpt(tmp_path: Path) -> str:
    return str(decoder(HeadConfig(), "llama").save(tmp_path / "gpt"))


def recipe(folder: Path, gpt: str, method: str = "grpo", **changes: Any) -> dict[str, Any]:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    (folder / "rewards.py").write_text(REWARD)
    return {
        "method": method,
        "model": gpt,
        "out": str(folder / "run"),
        "data": {"train": str(path), "validation_share": 0.3},
        "rewards": f"{folder / 'rewards.py'}:vowels",
        "prompts": 6,
        "group": 6,
        "max_new_tokens": 8,
        "batch_size": 16,
        "optim": {"adamw_lr": 5e-3},
        "budget": "8 steps",
        "evaluate_every": 4,
        "device": "cpu",
        "precision": "fp32",
        "log_every": 1,
        **changes,
    }


@pytest.mark.parametrize(
    "method", ["grpo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rloo", "ppo"))]
)
def test_an_adapter_alone(method: str, gpt: str, tmp_path: Path) -> None:
    values = recipe(tmp_path, gpt, method, lora={"rank": 4}, optim={"adamw_lr": 2e-2}, kl=0.01)
    run = check_method(method, values, tmp_path)
    assert (run.run / "adapter" / "adapter_config.json").is_file()
    assert run.done.metrics["validation_kl"] > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"updates": 2, "minibatches": 2, "kl": 0.05, "scale": "group", "ratio": "sequence"},
        {"truncated": "skip", "normalise": "constant", "temperature": 1.2, "max_new_tokens": 30},
        {"kl": 0.05, "kl_in": "reward", "kl_estimator": "k2", "normalise": "sequence"},
    ],
)
def test_runs_go_on_exactly(changes: dict[str, Any], gpt: str, tmp_path: Path) -> None:
    whole = finetune(recipe(tmp_path, gpt, out=str(tmp_path / "whole"), **changes), quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)  # within a rollout's updates where it has several
        finetune(recipe(tmp_path, gpt, **changes), quiet=True)
    again = resume(tmp_path / "run", quiet=True)
    assert losses(again.run) == losses(whole.run)
    assert again.done.metrics == whole.done.metrics


def test_figures_and_files(gpt: str, tmp_path: Path) -> None:
    values = recipe(tmp_path, gpt, budget="12 steps", kl=0.01)
    place = str(tmp_path / "rewards.py")
    values["rewards"] = [
        {"reward": f"{place}:vowels"},
        {"reward": f"{place}:capitals", "weight": 0.5},
    ]
    run = finetune(values, quiet=True)
    lines = read_log(run.run / "log.jsonl")
    names = {"reward", "reward_vowels", "reward_capitals", "truncated", "no_spread", "entropy"}
    assert names <= lines[-2].keys() | lines[-1].keys()
    first = next(line for line in lines if "reward" in line)
    assert first["loss"] == pytest.approx(-first["reward"])
    metrics = run.done.metrics
    assert metrics["validation_loss"] == -metrics["validation_reward"]
    assert metrics["validation_reward"] == pytest.approx(
        metrics["validation_reward_vowels"] + 0.5 * metrics["validation_reward_capitals"]
    )
    found = json.loads((run.run / "evaluation.json").read_text())["validation"]
    assert found["reward"] > found["before"]["reward"] and found["misleading"] is False
    assert found["reward_low"] <= found["reward"] <= found["reward_high"]
    page = (run.run / "advantages.html").read_text()
    assert "the last rollout" in page and "background" in page and "reward" in page
    assert json.loads((run.run / "data.json").read_text())["rewards"]
    assert run.model is not None
    assert "critic" not in "".join(open_model(run.model).network.state_dict())


def test_a_reward_that_misleads_ends_the_run_at_its_best(gpt: str, tmp_path: Path) -> None:
    values = recipe(tmp_path, gpt, budget="200 steps", evaluate_every=3, save_every=0)
    values |= {"monitor": f"{tmp_path / 'rewards.py'}:fewer", "prompts": 12}
    values["data"] = {"train": values["data"]["train"], "validation_share": 0.5}
    with pytest.warns(UserWarning, match=r"the reward misleads.*The run ends, with the weights"):
        run = finetune(values, quiet=True)
    assert run.done.reason == "finished" and run.done.step < 200
    found = json.loads((run.run / "evaluation.json").read_text())["validation"]
    assert found["misleading"] is True and found["warning"].startswith("No better than the model")
    scored = [line for line in read_log(run.run / "log.jsonl") if "validation_truth" in line]
    best = max(line["validation_truth"] for line in scored)
    assert run.done.metrics["validation_truth"] == best
    assert len(scored) <= 8
    again = resume(run.run, quiet=True)  # it stays at its end
    assert again.done.step == run.done.step


@pytest.mark.slow
def test_honest_rewards_are_left_alone(gpt: str, tmp_path: Path) -> None:
    for seed in range(10):
        values = recipe(tmp_path, gpt, out=str(tmp_path / f"run-{seed}"), budget="36 steps")
        values |= {"seed": seed, "evaluate_every": 3, "optim": {"adamw_lr": 2e-3}}
        run = finetune(values, quiet=True)
        found = json.loads((run.run / "evaluation.json").read_text())["validation"]
        assert run.done.step == 36 and found["misleading"] is False, seed
        assert found["reward"] > found["before"]["reward"], seed


def test_a_guard_that_only_warns(gpt: str, tmp_path: Path) -> None:
    values = recipe(tmp_path, gpt, budget="24 steps", evaluate_every=3, save_every=0, guard="warn")
    values |= {"monitor": f"{tmp_path / 'rewards.py'}:fewer", "prompts": 12}
    values["data"] = {"train": values["data"]["train"], "validation_share": 0.5}
    with pytest.warns(UserWarning, match="the reward misleads"):
        assert finetune(values, quiet=True).done.step == 24


def test_messages_and_a_reward_model(tmp_path: Path) -> None:
    chat = decoder(HeadConfig(), "llama")
    assert chat.tokenizer is not None
    chat.tokenizer.settings["chat_template"] = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    path = str(chat.save(tmp_path / "chat"))
    head = HeadConfig("sequence", ("reward",), "regression")
    scorer = decoder(head, "llama")
    assert scorer.tokenizer is not None
    scorer.tokenizer.settings["chat_template"] = chat.tokenizer.settings["chat_template"]
    scorer.save(tmp_path / "reward")
    values = recipe(tmp_path, path, rewards=str(tmp_path / "reward"))
    said = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows()]
    values["data"]["train"] = str(tmp_path / "chats.jsonl")
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    run = finetune(values, quiet=True)
    assert run.done.step == 8


CALLS = (
    "{% for m in messages %}{{ m.role + ':' }}{{ m.content }}{% for c in m.tool_calls or [] %}"
    '{{ \'[call]{"name": "\' + c.function.name + \'", "arguments": \' }}'
    "{{ c.function.arguments | tojson + '}' }}{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
TOOLS = """
def length(text: str) -> int:
    'How long a text is.'
    return len(text)
"""


@pytest.fixture
def calling(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A chat model; each of its answers of an odd number of tokens counts as a call."""
    chat = decoder(HeadConfig(), "llama", 256)
    assert chat.tokenizer is not None
    chat.tokenizer.settings["chat_template"] = CALLS
    said = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows()]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    (tmp_path / "tools.py").write_text(TOOLS)
    read = Tools.reply

    def reply(self: Tools, ids: list[int]) -> list[int] | None:
        answer = f'[call]{{"name": "length", "arguments": {{"text": "{"a" * len(ids)}"}}}}'
        return read(self, [*self.tokenizer.encode(answer), ids[-1]]) if len(ids) % 2 else None

    monkeypatch.setattr(Tools, "reply", reply)
    return str(chat.save(tmp_path / "chat"))


def with_tools(folder: Path, chat: str, method: str = "grpo", **changes: Any) -> dict[str, Any]:
    values = recipe(folder, chat, method, tools=[f"{folder / 'tools.py'}:length"], **changes)
    values["data"]["train"] = str(folder / "chats.jsonl")
    (folder / "rewards.py").write_text(
        "def turns(completions):\n"
        "    return [len(each) + 0.01 * len(each[-1]['content']) for each in completions]\n"
    )
    return {**values, "rewards": f"{folder / 'rewards.py'}:turns", "max_new_tokens": 60}


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_answers_with_tools_are_learnt_and_runs_go_on(
    method: str, calling: str, tmp_path: Path
) -> None:
    how = {"budget": "4 steps", "updates": 2, "kl": 0.05}
    whole = finetune(
        with_tools(tmp_path, calling, method, out=str(tmp_path / "whole"), **how), quiet=True
    )
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        finetune(with_tools(tmp_path, calling, method, **how), quiet=True)
    again = resume(tmp_path / "run", quiet=True)
    assert losses(again.run) == losses(whole.run)
    assert again.done.metrics["validation_reward"] > 1  # answers with calls have three messages
    assert (whole.run / "advantages.html").is_file()
    tools = tmp_path / "tools.py"
    tools.write_text(tools.read_text() + "\n# changed\n")
    with pytest.raises(BedstoneError, match=r"tools: .* has changed since the run began"):
        resume(tmp_path / "run", "budget=9 steps", quiet=True)


def test_what_tools_need(calling: str, gpt: str, tmp_path: Path) -> None:
    with pytest.raises(BedstoneError, match="tools: a critic values each token"):
        finetune(with_tools(tmp_path, calling, "ppo"), quiet=True)
    with pytest.raises(BedstoneError, match="messages: the tokenizer has no chat_template"):
        finetune(with_tools(tmp_path, gpt), quiet=True)
    values = with_tools(tmp_path, calling)
    bad = {
        "gone.py:f": "tools: gone.py: there is no such file",
        f"{tmp_path / 'tools.py'}:lenght": "tools: .*perhaps 'length'",
    }
    for spec, message in bad.items():
        with pytest.raises(BedstoneError, match=message):
            finetune({**values, "tools": [spec]}, quiet=True)
    values["data"]["train"] = str(tmp_path / "prompts.jsonl")
    with pytest.raises(BedstoneError, match="is a text, and functions are called in conversations"):
        finetune(values, quiet=True)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_groups_of_equal_rewards_are_sampled_again(gpt: str, tmp_path: Path) -> None:
    (tmp_path / "few.py").write_text(
        "def few(completions, kind):\n"
        "    return [(n == 'kind 1') * len(text) for n, text in zip(kind, completions)]\n"
    )
    values = recipe(tmp_path, gpt, resample=2, updates=2, budget="4 steps")
    run = finetune({**values, "rewards": f"{tmp_path / 'few.py'}:few"}, quiet=True)
    lines = read_log(run.run / "log.jsonl")
    assert any(line.get("resampled", 0) > 0 for line in lines)
    shares = [line["clipped_low"] + line["clipped_high"] for line in lines if "clipped_low" in line]
    assert shares and all(0 <= share <= 1 for share in shares)
    with pytest.raises(BedstoneError, match="resample: 1 was given; it replaces groups"):
        finetune(recipe(tmp_path, gpt, "ppo", resample=1), quiet=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": ""}, "rewards: none was given"),
        ({"group": 1}, "group: 1 was given.*method: ppo"),
        ({"accumulate": 2}, "accumulate: 2 was given"),
        ({"minibatches": 99}, "minibatches: 99 steps"),
        ({"max_new_tokens": 64}, "leave no room for a prompt in a context of 64"),
        ({"temperature": 0}, "temperature"),
        ({"scale": "std"}, "scale: 'std'.*group"),
        ({"kl_in": "los"}, "kl_in"),
        ({"guard": "on"}, "guard"),
        ({"gamma": 1.0}, "unknown key 'gamma'"),
        ({"rewards": "gone.py:exact"}, "there is no such file"),
        ({"lora": {"rank": 2, "dropout": 0.1}}, "lora.dropout: makes"),
    ],
)
def test_bad_recipes(changes: dict[str, Any], message: str, gpt: str, tmp_path: Path) -> None:
    with pytest.raises(BedstoneError, match=message):
        finetune(recipe(tmp_path, gpt, **changes), quiet=True)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_must_stay_as_it_was(gpt: str, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        finetune(recipe(tmp_path, gpt, kl=0.1), quiet=True)
    rewards = tmp_path / "rewards.py"
    before = rewards.read_text()
    rewards.write_text(before + "\n# changed\n")
    with pytest.raises(BedstoneError, match=r"rewards: .* has changed since the run began"):
        resume(tmp_path / "run", quiet=True)
    rewards.write_text(before)
    other = decoder(HeadConfig(), "llama")
    with torch.no_grad():
        other.network.embed.weight.add_(0.1)
    other.save(tmp_path / "gpt")
    with pytest.raises(BedstoneError, match="isn't the model that it was when the run began"):
        resume(tmp_path / "run", quiet=True)


def test_models_that_can_not(gpt: str, tmp_path: Path) -> None:
    bert = str(model(HeadConfig("pooled")).save(tmp_path / "bert"))
    endless = decoder(HeadConfig(), "llama")
    endless.tokenizer = train_bpe(SENTENCES, 300, special_tokens=("<none>",))
    endless.tokenizer.settings.clear()
    endless.save(tmp_path / "endless")
    for path, message in ((bert, "writes no text"), (tmp_path / "endless", "has no end token")):
        with pytest.raises(BedstoneError, match=message):
            finetune(recipe(tmp_path, str(path)), quiet=True)


def test_rows_of_the_callers_own_and_the_recipes(gpt: str, tmp_path: Path) -> None:
    for method in ("grpo", "rloo", "ppo"):
        assert (library.LIBRARY / f"{method}-own.yaml").is_file()
    (tmp_path / "rewards.py").write_text(REWARD)
    run = bedstone.finetune(
        "grpo-own",
        data={"train": rows(), "validation_share": 0.3},
        model=gpt,
        rewards=f"{tmp_path / 'rewards.py'}:capitals",
        out=str(tmp_path / "own"),
        max_new_tokens=6,
        device="cpu",
        quiet=True,
        **{"lora.rank": 2},
    )
    assert run.model is not None and (run.run / "rows" / "train.parquet").is_file()
