"""Budgets of time, on a clock that only work moves: what fits is said, what doesn't is refused."""

import itertools
from types import SimpleNamespace

import pytest
from test_loop import objective, trainer_of

from bedstone.errors import BedstoneError
from bedstone.train.logs import ProgressBar, RunLog, read_log
from bedstone.train.pace import BESIDE, Pace, TimePlan
from bedstone.train.schedule import parse_budget


class Machine:
    """A trainer's surroundings, in which steps, evaluations and saves take seconds as said."""

    def __init__(self, folder, monkeypatch, budget, *, step, evaluation, save, **pace):
        self.now, self.spent, self.folder = (
            1000.0,
            {"step": 0.0, "evaluation": 0.0, "save": 0.0},
            folder,
        )
        self.costs = {"step": step, "evaluation": evaluation, "save": save}
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr("bedstone.train.loop.time", clock)
        self.trainer = trainer_of(
            folder,
            budget=parse_budget(budget),
            objective=self.step,
            evaluate=self.evaluate,
            write_model=lambda at, metrics: self.take("save"),
            pace=Pace(**{"log_every": 1, "save_minutes": 1e-3, **pace}),
        )

    def take(self, what):
        self.now += self.costs[what]
        self.spent[what] += self.costs[what]

    def step(self, network, batch):
        self.take("step")
        return objective(network, batch)

    def evaluate(self, network):
        self.take("evaluation")
        return {"validation_loss": 1000 - self.now / 1000}  # always the best so far

    def run(self):
        log = RunLog(self.folder)
        try:
            return self.trainer.run(log, ProgressBar("", quiet=True))
        finally:
            log.close()


@pytest.mark.parametrize("evaluate_every", [0, 1])
@pytest.mark.parametrize("save_best", [False, True])
def test_evaluations_and_saves_take_a_quarter_at_most(
    evaluate_every, save_best, tmp_path, monkeypatch
):
    machine = Machine(
        tmp_path, monkeypatch, "600s", step=1.0, evaluation=20.0, save=5.0,
        evaluate_every=evaluate_every, save_best=save_best,
    )  # fmt: skip
    done = machine.run()
    beside = machine.spent["evaluation"] + machine.spent["save"]
    assert beside <= BESIDE * 600
    assert beside >= 0.5 * BESIDE * 600  # the allowance is used
    assert done.step >= 0.7 * 600
    assert done.seconds <= 600 + 1
    steps = [line["step"] for line in read_log(tmp_path / "log.jsonl") if "validation_loss" in line]
    assert len(steps) >= 3
    assert steps[-1] == done.step
    assert max(b - a for a, b in itertools.pairwise(steps)) < 0.8 * done.step


@pytest.mark.slow
def test_a_cheap_evaluation_comes_as_often_as_before(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch, "20s", step=0.1, evaluation=0.01, save=0.01)
    machine.run()
    lines = [line for line in read_log(tmp_path / "log.jsonl") if "validation_loss" in line]
    assert 10 <= len(lines) <= 12


def test_a_budget_into_which_hardly_a_step_fits_is_refused_at_once(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch, "120s", step=51.0, evaluation=30.0, save=1.0)
    with pytest.raises(
        BedstoneError, match=r"budget: 120 s is too short: a step takes 51\.0 s"
    ) as e:
        machine.run()
    assert machine.spent == {"step": 51.0, "evaluation": 0.0, "save": 0.0}
    assert "budget=57m makes about 50 steps" in str(e.value)
    assert "budget='200 steps'" in str(e.value)
    assert not list((tmp_path / "checkpoints").glob("*/"))


def test_an_evaluation_that_leaves_no_room_is_refused(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch, "60s", step=2.0, evaluation=50.0, save=1.0)
    with pytest.raises(BedstoneError, match=r"an evaluation 50\.0 s, so 3 steps would be made"):
        machine.run()


def test_what_fits_is_said_and_little_is_warned_of():
    plan = TimePlan(600, "32 rows", step=1.0, evaluation=2.0, save=1.0)
    said = plan.check(3, 6.0)
    assert said == "About 594 steps fit into 10:00: a step takes 1.0 s, an evaluation 2.0 s."
    plan = TimePlan(60, "32 rows", step=2.0, evaluation=1.0, save=0.5)
    said = plan.check(3, 8.0)
    assert "About 28 steps" in said
    assert "Warning: so few learn little. Give it more time (budget=3m makes about 50" in said
    plan = TimePlan(600, step=0.1, evaluation=80.0, save=1.0)
    assert "Warning: evaluations take more than a quarter" in plan.check(3, 90.0)


def test_a_budget_in_steps_is_left_alone(tmp_path, monkeypatch):
    machine = Machine(
        tmp_path, monkeypatch, "3 steps", step=50.0, evaluation=500.0, save=5.0, evaluate_every=1
    )
    assert machine.run().step == 3
    assert machine.spent["evaluation"] == 1500


def test_a_run_that_goes_on_is_not_refused_for_the_little_that_is_left(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch, "100s", step=1.0, evaluation=1.0, save=1.0)
    machine.trainer.step, machine.trainer.seconds = 90, 94.0
    done = machine.run()
    assert 91 <= done.step <= 96
