"""HumanEval: programs of completions and answers, rows, figures, the command."""

import json
import re

import pytest

import small_models
from bedstone.cli import main
from bedstone.data.dataset import Dataset
from bedstone.errors import BedstoneError
from bedstone.evaluate import humaneval
from bedstone.evaluate.humaneval import (
    REQUEST,
    STOPS,
    CodeEvaluation,
    CodeSettings,
    Problem,
    read_problems,
)
from bedstone.models.heads import HeadConfig
from bedstone.sandbox.run import Limits, score_all, working_way

try:
    working_way()
    works = True
except BedstoneError:
    works = False
needs_sandbox = pytest.mark.skipif(not works, reason="no way of the sandbox works here")

PROMPT = (
    "from typing import List\n\n\ndef twice(x):\n    return 2 * x\n\n\n"
    'def total(xs: List[int]) -> int:\n    """ Twice the sum. """\n'
)
TESTS = (
    "def check(candidate):\n    assert candidate([1, 2]) == 6\n"
    "    assert candidate([5]) == twice(5)\n"
)
SOLUTION = "    return twice(sum(xs))\n"
PROBLEM = Problem("Own/0", PROMPT, TESTS, "total", SOLUTION)
ROW = {
    "task_id": "Own/0",
    "prompt": PROMPT,
    "canonical_solution": SOLUTION,
    "test": TESTS,
    "entry_point": "total",
}


def verdicts(problem: Problem, *programs: str) -> list[str]:
    cases = [(program, problem.checks) for program in programs]
    return [each.verdict for each in score_all(cases, Limits(seconds=5), workers=1)]


@needs_sandbox
def test_right_and_wrong_completions():
    programs = (PROBLEM.program(text) for text in (SOLUTION, "    pass\n", "    return 6\n"))
    assert verdicts(PROBLEM, *programs) == ["ok", "failed", "failed"]


@needs_sandbox
def test_helpers_of_the_prompt_can_t_be_replaced():
    """The tests call `twice`; a program that makes it anything else changes nothing there."""
    false = "    return [6, 0][len(xs) == 1]\n\ndef twice(x):\n    return 0\n"
    assert verdicts(PROBLEM, PROBLEM.program(false)) == ["failed"]


@needs_sandbox
@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Here:\n```python\ndef total(xs):\n    return 2 * sum(xs)\n```\nDone.", "ok"),
        ("```\ndef total(xs: List[int]):\n    return twice(sum(xs))\n```", "ok"),
        ("```python\nx = 1\n```\nthen\n```py\ndef total(xs):\n    return 2 * sum(xs)\n```", "ok"),
        ("```python\n    return 2 * sum(xs)\n```", "ok"),
        ("    return 2 * sum(xs)", "ok"),
        ("```python\ndef total(xs):\n    return 2 * sum(xs)", "ok"),  # cut before its end
        ("I can't.", "failed"),
        ("", "failed"),
    ],
)
def test_the_code_of_an_answer(answer, verdict):
    assert verdicts(PROBLEM, PROBLEM.program_of_answer(answer)) == [verdict]


def test_rows_are_read_and_their_faults_named():
    assert read_problems(Dataset([ROW])) == [PROBLEM]
    short = {name: value for name, value in ROW.items() if name != "entry_point"}
    with pytest.raises(BedstoneError, match="row 1: has no column 'entry_point'"):
        read_problems(Dataset([short]))
    with pytest.raises(BedstoneError, match="prompt is 5; expected a text"):
        read_problems(Dataset([ROW | {"prompt": 5}]))
    with pytest.raises(BedstoneError, match="entry_point is 'a b'; expected the name"):
        read_problems(Dataset([ROW | {"entry_point": "a b"}]))


def test_settings():
    assert CodeSettings().ks == (1,) and CodeSettings(completions=10).ks == (1, 10)
    assert CodeSettings(completions=20, k=(5, 1)).ks == (1, 5)
    assert CodeSettings().generation.temperature == 0
    assert CodeSettings(completions=2).generation.temperature == 0.8
    with pytest.raises(BedstoneError, match="k: 3 was given, and there are 2 completions"):
        CodeSettings(completions=2, k=(3,))


def test_stop_texts_are_those_of_the_published_harness():
    assert STOPS == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


def decoder(context=256):
    return small_models.decoder(HeadConfig("language"), "llama", context)


class Writes:
    """The task of a model that writes given texts, and keeps what was wanted of it."""

    def __init__(self, texts):
        self.texts, self.calls = texts, []

    def __call__(self, inputs, **options):
        self.calls.append((inputs, options))
        several = options.get("num_return_sequences", 1)
        return [[{"generated_text": one} for one in self.texts[:several]] for _ in inputs]


@needs_sandbox
def test_an_evaluation_runs_each_completion():
    texts = [SOLUTION, "    return 1\n", "    while True: pass\n", SOLUTION]
    settings = CodeSettings(completions=4, k=(1, 2), seconds=1.0)
    evaluation = CodeEvaluation(decoder(), [PROBLEM], settings)
    evaluation.task = Writes(texts)
    found = evaluation.predict()
    assert [each.outcome.verdict for each in found[0]] == ["ok", "failed", "timeout", "ok"]
    figures = evaluation.score(found, 100)["humaneval"]
    assert figures["pass@1"] == 0.5
    assert figures["pass@2"] == pytest.approx(1 - 1 / 6)
    inputs, options = evaluation.task.calls[0]
    assert inputs == [PROMPT] and options["stop"] == STOPS
    assert (options["temperature"], options["num_return_sequences"]) == (0.8, 4)


@needs_sandbox
def test_without_chance_one_completion_stands_for_all():
    evaluation = CodeEvaluation(decoder(), [PROBLEM], CodeSettings(completions=3, temperature=0))
    evaluation.task = Writes([SOLUTION])
    assert [each.outcome.passed for each in evaluation.predict()[0]] == [True] * 3
    assert "num_return_sequences" not in evaluation.task.calls[0][1]


@needs_sandbox
def test_chat_models_are_asked_for_a_code_block(monkeypatch):
    model = decoder()
    model.tokenizer.settings["chat_template"] = "{% for m in messages %}{{ m.content }}{% endfor %}"
    evaluation = CodeEvaluation(model, [PROBLEM])
    assert evaluation.chat
    evaluation.task = Writes(["Sure:\n```python\ndef total(xs):\n    return 2 * sum(xs)\n```"])
    assert evaluation.predict()[0][0].outcome.passed
    inputs, options = evaluation.task.calls[0]
    content = REQUEST.format(prompt=PROMPT.strip())
    assert inputs == [[{"role": "user", "content": content}]] and "stop" not in options
    assert not CodeEvaluation(model, [PROBLEM], CodeSettings(chat="none")).chat


def test_where_no_sandbox_works_nothing_is_generated(monkeypatch):
    def refuse():
        raise BedstoneError("sandbox: programs of others aren't run here")

    monkeypatch.setattr(humaneval, "working_way", refuse)
    monkeypatch.setattr(humaneval, "pipeline", lambda *_, **__: pytest.fail("a model was opened"))
    with pytest.raises(BedstoneError, match="aren't run here"):
        CodeEvaluation(decoder(), [PROBLEM])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("humaneval")
    decoder().save(place / "model")
    (place / "rows.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW) + "\n")
    return place


@needs_sandbox
def test_the_command(folder, capsys):
    command = ["evaluate", f"{folder}/model", f"{folder}/rows.jsonl", "--task", "humaneval"]
    more = ["--completions", "2", "--max-new-tokens", "4", "--out", f"{folder}/out"]
    assert main([*command, *more, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["humaneval"]
    assert found["main"] == "pass@1" and found["pass@1"] == 0.0 and found["rows"] == 2
    assert sum(found["support"].values()) == 4
    lines = (folder / "out" / "completions.jsonl").read_text().splitlines()
    assert [json.loads(line)["task_id"] for line in lines] == ["Own/0"] * 4
    assert not any(json.loads(line)["passed"] for line in lines)


@needs_sandbox
def test_prompts_that_are_too_long_are_counted(folder, capsys):
    decoder(16).save(folder / "short")
    command = ["evaluate", f"{folder}/short", f"{folder}/rows.jsonl", "--task", "humaneval"]
    assert main(command) == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "2 prompts were longer than the model's context of 16 tokens" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--completions", "3"], "--completions: 3 was given; it serves --task humaneval"),
        (["--task", "humaneval", "--page", "x.html"], "--page: x.html was given; humaneval has no"),
    ],
)
def test_options_of_other_tasks_are_refused(folder, capsys, words, message):
    assert main(["evaluate", f"{folder}/model", f"{folder}/rows.jsonl", *words]) == 2
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)


@needs_sandbox
@pytest.mark.shared
def test_published_solutions_pass_and_empty_bodies_don_t(shared_data):
    lines = (shared_data / "humaneval" / "test.jsonl").read_text("utf-8").splitlines()[::6]
    problems = read_problems(Dataset([json.loads(line) for line in lines]))
    for body, right in ((None, True), ("    pass\n", False)):
        cases = [(each.program(body or each.solution), each.checks) for each in problems]
        found = list(score_all(cases, Limits(seconds=20), workers=1))
        assert [each.passed for each in found] == [right] * len(problems)
