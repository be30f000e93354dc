"""Rewards: functions, patterns, reward models, sums; what is no number is an error of its row."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bedstone
from bedstone.errors import BedstoneError
from bedstone.evaluate.rewards import Answers, RewardSum
from bedstone.models.heads import HeadConfig
from bedstone.runtime import Precision
from small_models import decoder

FP32 = Precision(torch.device("cpu"), torch.float32)
CODE = """
import helper

def exact(completions, answer, **rest):
    return [float(text.strip() == right) for text, right in zip(completions, answer)]

def length(completions):
    return np.array([len(text) for text in completions])

def flags(completions):
    return [helper.good(text) for text in completions]

def short(completions):
    return [1.0]

def missing(completions):
    return [1.0, None, 2.0]

def nan(completions):
    return [1.0, 0.0, float("nan")]

def word(completions):
    return ["1", "2", "3"]

def number(completions):
    return 1.0

def raises(completions):
    raise KeyError("answer")

def tokens(completion_ids, prompts):
    return [len(ids) for ids in completion_ids]

def messages(completions):
    return [len(each[0]["content"]) for each in completions]

async def later(completions):
    return [0.0] * 3

needed = 3
"""


def answers(**more: Any) -> Answers:
    how: dict[str, Any] = {
        "prompts": ["1+1=", "2+1=", "3+4="],
        "texts": ["2", " 3", "8"],
        "ids": [[4, 1], [5, 6, 1], [7, 1]],
        "columns": {"answer": ["2", "3", "7"]},
        "places": [f"rows.jsonl: line {n}" for n in (1, 2, 3)],
    }
    return Answers(**{**how, **more})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "rewards.py").write_text(f"import numpy as np\n{CODE}")
    (tmp_path / "helper.py").write_text("def good(text):\n    return text.strip() in ('2', '3')\n")
    return tmp_path / "rewards.py"


def scores(spec: Any, given: Answers | None = None) -> list[float]:
    rewards = RewardSum(spec, FP32)
    given = given or answers()
    rewards.check(list(given.columns))
    found: list[float] = rewards.total(rewards.score(given)).tolist()
    return found


def test_functions(file: Path) -> None:
    assert scores(f"{file}:exact") == [1.0, 1.0, 0.0]
    assert scores(f"{file}:length") == [1.0, 2.0, 1.0]
    assert scores(f"{file}:flags") == [1.0, 1.0, 0.0]
    assert scores(f"{file}:tokens") == [2.0, 3.0, 2.0]


def test_prompts_of_messages_get_answers_as_messages(file: Path) -> None:
    said = [[{"role": "user", "content": "1+1?"}]] * 3
    assert scores(f"{file}:messages", answers(prompts=said)) == [1.0, 2.0, 1.0]


def test_a_function_of_a_module(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.with_name("own_rewards.py").write_text(file.read_text())
    monkeypatch.syspath_prepend(str(file.parent))
    assert scores("own_rewards:exact") == [1.0, 1.0, 0.0]
    with pytest.raises(BedstoneError, match="nowhere can't be run: ModuleNotFoundError"):
        RewardSum("nowhere:exact", FP32)


def test_patterns() -> None:
    assert scores("regex:^\\s*[23]$") == [1.0, 1.0, 0.0]
    with pytest.raises(BedstoneError, match=r"is no regular expression"):
        RewardSum("regex:(", FP32)


def test_sums(file: Path) -> None:
    parts = [{"reward": f"{file}:exact", "weight": 2}, {"reward": "regex:8", "weight": "-5e-1"}]
    assert scores(parts) == [2.0, 2.0, -0.5]
    found = RewardSum([*parts, "regex:9"], FP32)
    assert found.names == ["exact_1", "regex_2", "regex_3"]
    assert found.score(answers()).shape == (3, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", r"gave 1 numbers for 3 answers"),
        ("missing", r"rows.jsonl: line 2: .*gave None for the answer ' 3'; expected a finite"),
        ("nan", r"rows.jsonl: line 3: .*gave nan for the answer '8'"),
        ("word", r"rows.jsonl: line 1: .*gave '1'"),
        ("number", r"gave 1.0; expected a list of 3 numbers"),
        ("raises", r"raised KeyError: 'answer', of 3 answers, the first to rows.jsonl: line 1"),
        ("later", "is async"),
        ("exakt", "has no function 'exakt'; perhaps 'exact' is meant"),
        ("needed", "has no function 'needed'"),
    ],
)
def test_what_is_no_reward(name: str, message: str, file: Path) -> None:
    with pytest.raises(BedstoneError, match=message):
        scores(f"{file}:{name}")


def test_what_a_function_asks_for_must_be_there(file: Path) -> None:
    with pytest.raises(BedstoneError, match="asks for 'answer', which the rows don't have"):
        scores(f"{file}:exact", answers(columns={"answr": ["2", "3", "7"]}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "is empty"),
        (3, "3 was given"),
        ([{"reward": "regex:a", "wieght": 1}], "perhaps 'weight'"),
        ([{"reward": "regex:a", "weight": "much"}], "weight: 'much' was given"),
        ([{"reward": "regex:a", "weight": float("nan")}], "weight: nan was given"),
        ([{"weight": 1}], "None was given"),
        ("gone.py:exact", "there is no such file"),
    ],
)
def test_bad_settings(given: Any, message: str) -> None:
    with pytest.raises(BedstoneError, match=message):
        RewardSum(given, FP32)


def test_a_file_that_fails(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(BedstoneError, match="can't be run: ZeroDivisionError"):
        RewardSum(f"{tmp_path / 'bad.py'}:exact", FP32)


def test_a_reward_that_never_changes_is_warned_of() -> None:
    rewards = RewardSum("regex:zzz", FP32)
    for _ in range(4):
        rewards.watch(np.zeros(3))
    with pytest.warns(UserWarning, match="have the reward 0, so nothing can be learnt"):
        rewards.watch(np.zeros(3))
    other = RewardSum("regex:zzz", FP32)
    for each in (0, 0, 1, 0, 0, 0):
        other.watch(np.full(3, float(each)))


def test_fingerprints_follow_the_source(file: Path) -> None:
    before = RewardSum(f"{file}:exact", FP32).fingerprint()
    assert RewardSum(f"{file}:exact", FP32).fingerprint() == before
    assert RewardSum({"reward": f"{file}:exact", "weight": 2}, FP32).fingerprint() != before
    file.write_text(file.read_text() + "\n# another\n")
    assert RewardSum(f"{file}:exact", FP32).fingerprint() != before


def test_reward_models(tmp_path: Path) -> None:
    head = HeadConfig("sequence", ("reward",), "regression")
    path = decoder(head, "llama").save(tmp_path / "reward")
    given = answers(texts=["go", " a film that is dull", ""])
    found = scores(str(path), given)
    task = bedstone.pipeline("text-classification", str(path))
    for number in (0, 1):
        value = {"prompt": given.prompts[number], "completion": given.texts[number]}
        assert found[number] == pytest.approx(task(value)["score"], abs=1e-5)
    other = decoder(HeadConfig(), "llama").save(tmp_path / "writer")
    with pytest.raises(BedstoneError, match="head gives no single score"):
        RewardSum(str(other), FP32)
