"""Hyperparameter search: trials as runs, killed and resumed, stopped early, compared and shown."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import bedstone
from bedstone.cli import main
from bedstone.errors import BedstoneError
from bedstone.inspect import study as studies
from bedstone.inspect.space import Dimension, read_space
from bedstone.inspect.study import Journal, Study, StudySettings, create
from bedstone.inspect.tune import TrialWatch, run_trial, work, write_results
from bedstone.report.trials import Result, ranked, table
from bedstone.train.logs import read_log
from bedstone.train.loop import Trainer
from runs import losses, recipe_values, start

pytest.importorskip("optuna")
RATES = ["optim.lr=log:1e-4..1e-1", "optim.momentum=0.5,0.95"]


def small(folder: Path, **changes: object) -> dict[str, object]:
    """A recipe of under a second, with an evaluation at each tenth step."""
    quick = {"budget": "40 steps", "evaluate_every": 0, "accumulate": 1, "save_every": 10}
    return recipe_values(folder, precision="fp32", evaluate_tokens=300, **(quick | changes))


def begin(folder: Path, settings: StudySettings | None = None, **changes: object) -> Study:
    """A new study of two dimensions."""
    values = small(folder, **changes)
    return create(folder / "study", values, read_space(None, RATES), settings or StudySettings(), 1)


def run_all(study: Study, trials: int) -> None:
    """Runs trials in this process, as one worker does."""
    while True:
        with study.claimed(trials) as claim:
            if claim is None:
                return
            assert run_trial(study, *claim)


# The journal.


def test_half_a_line_of_a_dead_process_is_taken_away(tmp_path):
    path = tmp_path / "journal" / "journal.jsonl"
    one, other = Journal(path), Journal(path)
    one.append_logs([{"n": 0}, {"n": 1}])
    with path.open("ab") as file:
        file.write(b'{"n": 2, "cut')
    assert [each["n"] for each in other.read_logs(1)] == [1]
    other.append_logs([{"n": 2}])
    assert [each["n"] for each in one.read_logs(0)] == [0, 1, 2]
    assert [each["n"] for each in one.read_logs(2)] == [2]
    assert path.read_text().count("\n") == 3


@pytest.mark.slow  # two processes that load torch
def test_processes_that_write_one_journal_lose_nothing(tmp_path):
    path = tmp_path / "journal" / "journal.jsonl"
    code = (
        "import sys; from pathlib import Path; from bedstone.inspect.study import Journal\n"
        "j = Journal(Path(sys.argv[1]))\n"
        "for n in range(20): j.append_logs([{'who': sys.argv[2], 'n': n, 'pad': 'x' * 500}])"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), who]) for who in "ab"]
    assert [each.wait() for each in writers] == [0, 0]
    found = [(each["who"], each["n"]) for each in Journal(path).read_logs(0)]
    assert sorted(found) == [(who, n) for who in "ab" for n in range(20)]


# Trials.


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Eight trials, stopped early by ASHA, in this process."""
    folder = tmp_path_factory.mktemp("searched")
    study = begin(folder, StudySettings(first=0.25, reduction=2))
    run_all(study, 8)
    write_results(study)
    return study


def test_trials_are_runs_and_the_first_is_the_recipe_as_it_is(searched):
    results = searched.results()
    assert [each.number for each in results] == list(range(8))
    assert {each.state for each in results} == {"finished", "pruned"}
    assert results[0].values == {"optim.lr": 3e-3, "optim.momentum": 0.95}
    for each in results:
        run = searched.run_folder(each.number)
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        assert recipe["optim"]["lr"] == each.values["optim.lr"]
        last = [line for line in read_log(run / "log.jsonl") if "validation_loss" in line][-1]
        assert each.last == pytest.approx(last["validation_loss"])
        assert each.steps == last["step"]
        assert (run / "model").exists() == (each.state == "finished")
        assert (run / "checkpoints").exists() == (each.state == "finished")


def test_asha_stops_those_that_are_not_among_the_best_half(searched):
    first: list[float] = []
    for each in searched.results():  # in one process, in the order of their rungs
        value = next(v for at, v in each.curve if at >= 0.25)
        first.append(value)
        best = sorted(first)[max(len(first) // 2 - 1, 0)]
        if value > best:
            assert each.state == "pruned" and each.share < 0.5
        else:
            assert each.share >= 0.5


def test_the_best_recipe_gives_the_best_trial_again(searched, tmp_path):
    best = searched.best()
    finished = [each.value for each in searched.results() if each.state == "finished"]
    assert best.value == min(finished)
    run = bedstone.pretrain(searched.folder / "best.yaml", f"out={tmp_path / 'best'}", quiet=True)
    assert run.done.metrics["validation_loss"] == best.value
    assert losses(run.run) == losses(searched.run_folder(best.number))


def test_the_page_shows_trials_importance_and_the_best_recipe(searched):
    page = (searched.folder / "tune.html").read_text()
    assert page.count("data:image/png;base64") == 2
    for part in ("optim.lr", "What matters", "The best recipe", "finished", "pruned", "PED-ANOVA"):
        assert part in page
    shares, at = searched.importance()
    assert set(shares) == {"optim.lr", "optim.momentum"} and sum(shares.values()) == pytest.approx(
        1
    )
    assert at == pytest.approx(0.1, abs=0.03)


def test_a_study_goes_on_with_more_trials_and_nothing_else(searched, tmp_path):
    before = searched.results()
    again = Study(searched.folder)
    run_all(again, 8)
    assert again.results() == before
    values = yaml.safe_load((searched.folder / "recipe.yaml").read_text())
    space, same = searched.space, searched.settings
    assert create(searched.folder, values, space, same, 3).threads == 1  # those it began with
    for changed, said in (
        ((values, space[:1], same), "the search space"),
        ((values, space, StudySettings(first=0.5, reduction=2)), "--first"),
        ((values | {"context": 16}, space, same), "another recipe"),
    ):
        with pytest.raises(BedstoneError, match=said):
            create(searched.folder, *changed, 1)
    with pytest.raises(BedstoneError, match="holds a run"):
        create(searched.run_folder(0), values, space, same, 1)


def test_random_values_follow_from_the_seed_and_the_number(tmp_path):
    chosen = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        study = begin(tmp_path / name, StudySettings(sampler="random", seed=5))
        for _ in range(3):
            with study.claimed(9) as (trial, values):
                study.end(trial, "failed", fault="no run")
                chosen.append(values)
    assert chosen[:3] == chosen[3:]
    assert chosen[1] != chosen[2]


# What goes wrong in a trial.


def test_a_figure_that_is_not_finite_ends_a_trial_and_is_never_the_best(tmp_path):
    study = begin(tmp_path)
    values = iter([math.nan, 1.0, math.inf])
    for _ in range(3):
        with study.claimed(9) as (trial, _):
            (study.run_folder(trial.number)).mkdir(parents=True)
            value = next(values)
            ended = TrialWatch(study, trial)(0.05, {"validation_loss": value})
            assert ended == (not math.isfinite(value))
            if ended:
                study.end(trial, trial.user_attrs["ended"])
            else:
                study.end(trial, "finished", value)
    assert [each.state for each in study.results()] == ["diverged", "finished", "diverged"]
    assert study.best().number == 1
    with study.claimed(9) as (trial, chosen):  # the sampler takes them
        assert set(chosen) == {"optim.lr", "optim.momentum"}
    write_results(study)


def test_a_run_that_diverges_is_recorded_and_the_search_goes_on(tmp_path, monkeypatch):
    study = begin(tmp_path)

    def nan_loss(self, share):
        raise self._fault("the loss is nan", [next(self.batches)])

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "one_step", nan_loss)
        run_all(study, 1)
    run_all(study, 2)
    first, second = study.results()
    assert first.state == "diverged" and "the loss is nan" in first.fault
    assert second.state == "finished"


def test_trials_that_all_fail_stop_the_search(tmp_path):
    study = begin(tmp_path, StudySettings(by="validation_acuracy"))
    run_all(study, 3)
    assert {each.state for each in study.results()} == {"failed"}
    assert "isn't measured" in study.results()[0].fault
    assert "the first 3 trials failed" in study.stuck()
    with pytest.raises(BedstoneError, match="first 3 trials failed"):
        work(study.folder, 9)


def test_other_data_is_never_compared(tmp_path):
    study = begin(tmp_path)
    run_all(study, 1)
    text = tmp_path / "text" / "000.txt"
    whole = text.read_text()
    text.write_text(whole + " more")
    with pytest.raises(BedstoneError, match="isn't that of the trials before"):
        run_all(study, 3)
    assert [each.state for each in study.results()] == ["finished", "running"]
    text.write_text(whole)
    run_all(study, 3)
    assert {each.state for each in study.results()} <= {"finished", "pruned"}


def test_a_trial_whose_process_always_dies_is_given_up(tmp_path, monkeypatch):
    study = begin(tmp_path)
    monkeypatch.setattr("bedstone.inspect.tune.DEATHS", 2)

    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bedstone.inspect.tune.train", dies)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run_all(study, 1)
    run_all(study, 1)
    (only,) = study.results()
    assert only.state == "failed" and "ended 2 times" in only.fault


def test_a_decision_outlives_the_process_that_made_it(tmp_path, monkeypatch):
    """A worker dies after a trial was pruned and before that was recorded."""
    study = begin(tmp_path)
    monkeypatch.setattr(type(study.study.pruner), "prune", lambda *args: True)

    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Study, "end", dies)
        with pytest.raises(KeyboardInterrupt):
            run_all(study, 1)
    assert [each.state for each in study.results()] == ["running"]
    monkeypatch.setattr("bedstone.inspect.tune._run", dies)  # nobody goes on with it
    run_all(Study(study.folder), 1)
    (only,) = study.results()
    last = read_log(study.run_folder(0) / "log.jsonl")[-1]
    assert (only.state, only.steps, only.items) == ("pruned", last["step"], last["tokens"])
    assert only.steps < 40 and only.seconds > 0


def test_a_trial_is_held_by_one_process_at_a_time(tmp_path):
    study = begin(tmp_path)
    other = Study(study.folder)
    with study.claimed(2) as (one, _), other.claimed(2) as (two, _):
        assert (one.number, two.number) == (0, 1)
        with Study(study.folder).claimed(2) as three:
            assert three is None
    with Study(study.folder).claimed(2) as (again, values):  # both were let go of
        assert again.number == 0
        assert values == study.results()[0].values


# Processes that are killed.


def check_whole(study: Study, trials: int) -> None:
    """Every trial is there once and has ended, with the losses of a run without a stop."""
    results = study.results()
    assert [each.number for each in results] == list(range(trials))
    assert {each.state for each in results} <= {"finished", "pruned"}
    journal = [*Journal(study.folder / studies.JOURNAL).read_logs(0)]
    ends = [each["trial_id"] for each in journal if each["op_code"] == 6 and each["state"] != 0]
    assert sorted(ends) == list(range(trials))


def check_losses(study: Study, folder: Path) -> None:
    for each in study.results():
        run = study.run_folder(each.number)
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        recipe["out"] = str(folder / str(each.number))
        plain = bedstone.pretrain(recipe, quiet=True)
        whole, found = losses(plain.run), losses(run)
        assert found == {step: whole[step] for step in found}
        assert max(found) == each.steps


def test_a_killed_trial_goes_on_inside_itself(tmp_path):
    """A worker is killed after a checkpoint; another process ends the trial, bit for bit."""
    study = begin(tmp_path, StudySettings(pruner="none"), budget="60 steps")
    code = "import sys; from bedstone.inspect.tune import main; main(*sys.argv[1:])"
    worker = subprocess.Popen([sys.executable, "-c", code, str(study.folder), "1"])
    run = study.run_folder(0)
    until = time.monotonic() + 300
    while not (run / "checkpoints" / "step-00000010").exists() and time.monotonic() < until:
        time.sleep(0.005)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    before = losses(run)
    assert before and max(before) < 60
    assert [each.state for each in study.results()] == ["running"]
    run_all(study, 1)
    check_whole(study, 1)
    check_losses(study, tmp_path / "plain")


def logged_lines(study: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in study.glob("trials/*/log.jsonl"))


def workers_of(study: Path) -> list[int]:
    words = ["pgrep", "-f", f"bedstone.inspect.tune {study} "]
    return [int(each) for each in subprocess.run(words, capture_output=True).stdout.split()]


@pytest.mark.slow
def test_twenty_kills_of_two_workers_lose_no_trial(tmp_path):
    """Workers are killed as they train, and twice the process that started them, by kill -9."""
    trials, draw, folder = 10, random.Random(0), tmp_path / "study"
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small(tmp_path, budget="150 steps")))
    words = ["tune", path, "--out", folder, "--trials", trials, "--workers", 2, "--first", 0.2]
    words += [f"--over={each}" for each in RATES]
    process, kills = start(*words), 0
    while kills < 20 and process.poll() is None:
        more = logged_lines(folder) + draw.randrange(3, 15)
        until = time.monotonic() + 120
        while logged_lines(folder) < more and time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
        if kills % 8 == 7:
            process.kill()
            process.communicate()
            process = start(*words)
            kills += 1
        elif found := workers_of(folder):
            os.kill(draw.choice(found), signal.SIGKILL)
            kills += 1
    said, _ = process.communicate()
    assert (kills, process.returncode) == (20, 0), said
    study = Study(folder)
    check_whole(study, trials)
    check_losses(study, tmp_path / "plain")


# The command.


def test_the_command_searches_and_prints(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small(tmp_path)))
    words = ["tune", path, "--over", "optim.lr=log:1e-4..1e-2", "--trials", 2, "--json"]
    assert main([*map(str, words), "--out", str(tmp_path / "out")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [each["state"] for each in record["trials"]] == ["finished", "finished"] or (
        record["trials"][1]["state"] == "pruned"
    )
    assert record["trials"][0]["values"] == {"optim.lr": 3e-3}
    assert Path(record["recipe"]).is_file()
    assert (tmp_path / "out" / "tune.html").is_file()


def test_the_command_refuses_before_anything_runs(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small(tmp_path)))
    out = tmp_path / "out"
    for words, said in (
        (["--over", "optim.lrr=1..2"], "'optim.lr' is meant"),
        (["--over", "optim.lr=1e-3..1e-2", "--trials", "0"], "--trials"),
        (["--over", "optim.lr=1e-3..1e-2", "--sampler", "grid"], "sampler"),
        (["--over", "optim.lr=1e-3..1e-2", "--first", "1.0"], "first"),
        ([], "no field is varied"),
    ):
        assert main(["tune", str(path), *words, "--out", str(out)]) == 2
        assert said in capsys.readouterr().err
    assert not out.exists()


def test_a_missing_optuna_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(BedstoneError, match=r"pip install 'bedstone\[tune\]'"):
        begin(tmp_path)
    assert not (tmp_path / "study").exists()


def test_trials_are_ranked_by_how_far_they_came():
    made = [
        Result(0, "pruned", {"a": 1}, None, [(0.1, 1.0)]),
        Result(1, "finished", {"a": 2}, 2.0, [(0.1, 3.0), (1.0, 2.0)]),
        Result(2, "pruned", {"a": 3}, None, [(0.1, 4.0), (0.3, 3.0)]),
        Result(3, "failed", {"a": 4}, fault="no"),
        Result(4, "finished", {"a": 5}, 1.5, [(1.0, 1.5)]),
    ]
    assert [each.number for each in ranked(made, highest=False)] == [4, 1, 2, 0, 3]
    assert [each.number for each in ranked(made, highest=True)] == [1, 4, 2, 0, 3]
    rows = table(made, "loss")
    assert rows[0] == ["trial", "loss", "share", "state", "a"]
    assert rows[1] == ["0", "1.0000", "10%", "pruned", "1"]
    assert Dimension("a", 1, 5).holds(made[0].values["a"])
