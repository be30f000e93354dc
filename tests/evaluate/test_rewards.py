"""Rewards: functions, patterns, reward models, sums; what is no number is an error of its row."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bedstone
from bedstone.data.scenes.captions import caption, negatives
from bedstone.data.scenes.world import Scene, Thing, make_scene
from bedstone.errors import BedstoneError
from bedstone.evaluate import rewards
from bedstone.evaluate.rewards import Answers, RewardSum
from bedstone.evaluate.scene_judge import described
from bedstone.models.heads import HeadConfig
from bedstone.runtime import Precision
from bedstone.sandbox.run import working_way
from small_models import decoder

try:
    working_way()
    works = True
except BedstoneError:
    works = False
needs_sandbox = pytest.mark.skipif(not works, reason="no way of the sandbox works here")
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
    made = RewardSum(spec, FP32)
    given = given or answers()
    made.check(given.columns, given.places)
    found: list[float] = made.total(made.score(given)).tolist()
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
    constant = RewardSum("regex:zzz", FP32)
    for _ in range(4):
        constant.watch(np.zeros(3))
    with pytest.warns(UserWarning, match="have the reward 0, so nothing can be learnt"):
        constant.watch(np.zeros(3))
    other = RewardSum("regex:zzz", FP32)
    for each in (0, 0, 1, 0, 0, 0):
        other.watch(np.full(3, float(each)))


def test_fingerprints_follow_the_source(file: Path) -> None:
    before = RewardSum(f"{file}:exact", FP32).fingerprint()
    assert RewardSum(f"{file}:exact", FP32).fingerprint() == before
    assert RewardSum({"reward": f"{file}:exact", "weight": 2}, FP32).fingerprint() != before
    file.write_text(file.read_text() + "\n# another\n")
    assert RewardSum(f"{file}:exact", FP32).fingerprint() != before


RIGHT = "def add(a, b):\n    return a + b\n"
CASES = {"add": ["assert add(1, 2) == 3", "assert add(2, 2) == 4\nassert add(-1, 1) == 0"]}
PROGRAMS = {
    f"Here it is:\n```python\n{RIGHT}```\nIt adds.": (1.0, 1.0),
    f"```bash\npip install adder\n```\n```\n{RIGHT}```\n```py\nprint(add(1, 1))\n```": (1.0, 1.0),
    RIGHT: (1.0, 1.0),
    "def add(a, b):\n    return 3\n": (0.0, 0.5),
    "def add(a, b):\n    while True: pass\n": (0.0, 0.0),
    "import os\nos._exit(0)": (0.0, 0.0),
    "class A:\n    __eq__ = lambda self, other: True\nadd = lambda a, b: A()": (0.0, 0.0),
    "I can't.": (0.0, 0.0),
    "": (0.0, 0.0),
}


@needs_sandbox
def test_code_is_run_with_the_tests_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedstone.evaluate.rewards.TEST_SECONDS", 0.5)
    texts = list(PROGRAMS)
    asks = [[{"role": "user", "content": "Write add."}]] * len(texts)
    rows: dict[str, Any] = {"prompts": asks, "texts": texts, "ids": [[1]] * len(texts)}
    rows["places"] = [f"row {n}" for n in range(len(texts))]
    joined = "\n".join(CASES["add"])
    found = scores("tests:check", answers(columns={"check": [joined] * len(texts)}, **rows))
    assert found == [whole for whole, _ in PROGRAMS.values()]
    found = scores("tests:check", answers(columns={"check": [CASES["add"]] * len(texts)}, **rows))
    assert found == [share for _, share in PROGRAMS.values()]  # of a list, the share that pass


@needs_sandbox
def test_equal_programs_run_once_and_a_text_prompt_is_continued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = []
    run = rewards.score_all
    monkeypatch.setattr(rewards, "score_all", lambda cases, limits: ran.extend(cases) or run(cases))
    begun = "def add(a, b):\n"
    given = answers(
        prompts=[begun] * 3,
        texts=["    return a + b\n", "    return a + b\n", "    return 0\n"],
        columns={"check": ["assert add(1, 2) == 3"] * 3},
    )
    assert scores("tests:check", given) == [1.0, 1.0, 0.0]
    assert [program for program, _ in ran] == [
        f"{begun}    return {each}\n" for each in ("a + b", 0)
    ]
    assert rewards.program_of("Write add.", RIGHT) == RIGHT  # the prompt is no Python


@needs_sandbox
def test_tests_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tests.py"
    file.write_text("assert f(1) == 2\n")
    given = answers(texts=["def f(x): return 2", "def f(x): return 3", "f = None"])
    assert scores(f"tests:{file}", given) == [1.0, 0.0, 0.0]
    before = RewardSum(f"tests:{file}", FP32).fingerprint()
    file.write_text("assert f(1) == 3\n")
    assert RewardSum(f"tests:{file}", FP32).fingerprint() != before
    file.write_text("assert f(1 ==\n")
    with pytest.raises(BedstoneError, match=r"tests.py: is 'assert f\(1 ==.*expected tests in Py"):
        RewardSum(f"tests:{file}", FP32)
    with pytest.raises(BedstoneError, match=r"gone.py"):
        RewardSum(f"tests:{tmp_path / 'gone.py'}", FP32)


@needs_sandbox
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"chek": ["1", "1", "1"]}, r"the rows have no column 'check'; perhaps 'chek' is meant"),
        ({"check": ["assert 1", None, "x"]}, r"line 2: check: is None; expected tests in Python"),
        ({"check": ["assert 1", "x", []]}, r"line 3: check: is \[\]; expected tests"),
        ({"check": ["assert 1", ["x", 5], "x"]}, r"line 2: check: is 5; expected tests"),
        ({"check": ["assert 1", "  ", "x"]}, r"line 2: check: is '  '; expected tests"),
        ({"check": ["assert 1", "x", "assert f(1) = 2"]}, r"line 3: check: is 'assert f\(1\) = 2'"),
    ],
)
def test_rows_without_tests_are_named_before_anything_runs(columns: Any, message: str) -> None:
    with pytest.raises(BedstoneError, match=message):
        scores("tests:check", answers(columns=columns))


def test_without_a_sandbox_no_code_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise BedstoneError("sandbox: programs of others aren't run here")

    monkeypatch.setattr(rewards, "working_way", none)
    with pytest.raises(BedstoneError, match="programs of others aren't run here"):
        RewardSum("tests:check", FP32)


SCENE = Scene(
    "meadow",
    (Thing("circle", "red", "large", 0.2, 0.2), Thing("star", "blue", "small", 0.8, 0.8)),
)
DESCRIBED = {
    "a red circle and a blue star": 1.0,
    "a red circle is above a blue star, on a meadow": 1.0,
    "two objects: a circle and a star": 1.0,
    "a red circle": 0.5,  # the star is left out
    "a red circle and a circle": 0.5,  # both are one thing
    "a red circle and a green star": 0.5 * 0.5,
    "a red circle and a blue star and a green heart": 2 / 3,
    "a red circle and a blue star hooray": 2 / 3,  # what can't be read is no true statement
    "a green heart": 0.0,
    "on a meadow": 0.0,
    "hooray": 0.0,
    "": 0.0,
}


def test_scenes_are_judged_by_what_they_hold() -> None:
    given = answers(
        prompts=["Describe it."] * len(DESCRIBED),
        texts=list(DESCRIBED),
        ids=[[1]] * len(DESCRIBED),
        columns={"truth": [asdict(SCENE), json.dumps(asdict(SCENE))] * (len(DESCRIBED) // 2)},
        places=["row"] * len(DESCRIBED),
    )
    assert scores("scene:truth", given) == pytest.approx(list(DESCRIBED.values()))


def test_true_captions_of_whole_scenes_are_worth_all_and_false_ones_less() -> None:
    for seed in range(40):
        scene = make_scene(seed)
        assert described(scene, caption(scene)) == 1.0
        assert all(described(scene, text) < 1.0 for text in negatives(scene))


BAD_SCENES: list[tuple[Any, str]] = [
    ("a red circle", "expected a scene"),
    (None, "expected a scene"),
    ({"objects": []}, "expected a scene"),
    ({"objects": [5]}, r"objects\[0\] is no mapping"),
    ({"objects": [{}]}, r"objects\[0\] "),
    ({"objects": "ab"}, "objects is no list"),
    ({**asdict(SCENE), "ground": 1}, "its key 'ground' is unknown"),
    ({**asdict(SCENE), "background": "medow"}, "background is 'medow'; perhaps 'meadow'"),
    ({**asdict(SCENE), "sign": {"text": 5, "x": 0.5, "y": 0.5}}, "sign.text is 5"),
    ({"objects": [{"shape": "circle"}]}, r"objects\[0\] has no colour"),
    ({"objects": [{**asdict(SCENE.objects[0]), "colour": "rde"}]}, "colour is 'rde'; perhaps"),
    ({"objects": [{**asdict(SCENE.objects[0]), "x": 3}]}, r"objects\[0\].x is 3; expected a num"),
    ({"objects": [{**asdict(SCENE.objects[0]), "z": 0.5}]}, r"z is 0.5; expected a whole"),
    ({"objects": [{**asdict(SCENE.objects[0]), "hue": 3}]}, r"has the unknown key 'hue'"),
]


@pytest.mark.parametrize(("value", "message"), BAD_SCENES)
def test_what_is_no_scene_is_named(value: Any, message: str) -> None:
    given = answers(columns={"truth": [asdict(SCENE), asdict(SCENE), value]})
    with pytest.raises(BedstoneError, match=f"line 3: truth: .*{message}"):
        scores("scene:truth", given)


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
