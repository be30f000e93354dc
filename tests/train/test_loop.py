"""The loop by itself: what a step's gradient is, what is logged, when it stops, what is saved."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from bedstone.checkpoints.store import CheckpointStore
from bedstone.runtime import Precision
from bedstone.train.averaging import Unaveraged
from bedstone.train.logs import ProgressBar, RunLog, read_log
from bedstone.train.loop import Trainer
from bedstone.train.pace import Pace
from bedstone.train.schedule import parse_budget

SIZES = (5, 1, 2, 8, 3, 1)  # targets of the batches: no two of a step alike
RATE = 0.1


@dataclass
class Batch:
    rows: Tensor  # (n, 3)

    @property
    def target_count(self):
        return len(self.rows)

    items = target_count

    def describe(self):
        return f"{len(self.rows)} rows"

    def to(self, device):
        return self


class Batches:
    """Batches of `SIZES` rows, over and over."""

    def __init__(self):
        self.at = 0

    def __iter__(self):
        return self

    def __next__(self):
        generator = torch.Generator().manual_seed(self.at)
        size = SIZES[self.at % len(SIZES)]
        self.at += 1
        return Batch(torch.randn(size, 3, generator=generator))

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class Descent:
    """Plain gradient descent, which a wrong factor on the gradient doesn't escape."""

    def __init__(self, network):
        self.weights = list(network.parameters())

    @torch.no_grad()
    def step(self, factor):
        for weight in self.weights:
            weight -= RATE * factor * weight.grad

    def rates(self, factor):
        return {"learning_rate": RATE * factor}

    def zero_grad(self):
        for weight in self.weights:
            weight.grad = None

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        assert state == {}


def objective(network, batch):
    return network(batch.rows).square().sum(), len(batch.rows)


def network_of():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def trainer_of(folder, steps=4, **changes):
    network = network_of()
    given = {
        "network": network,
        "objective": objective,
        "batches": Batches(),
        "optimizer": Descent(network),
        "budget": parse_budget(f"{steps} steps"),
        "schedule": lambda share: 1.0,
        "precision": Precision(torch.device("cpu"), torch.float32),
        "store": CheckpointStore(folder / "checkpoints", 10),
        "write_model": lambda at, metrics: None,
        "clip": 0.0,
        "pace": Pace(log_every=1, save_every=1000),
    }
    return Trainer(**{**given, **changes})


def run(trainer, folder):
    """What was logged, line by line."""
    log = RunLog(folder, step=trainer.step)
    with ProgressBar("", quiet=True) as bar:
        trainer.run(log, bar)
    log.close()
    return read_log(folder / "log.jsonl")


def gradient_of(network, rows):
    """Of the mean over all targets."""
    loss = network(rows).square().sum() / len(rows)
    return torch.autograd.grad(loss, list(network.parameters()))


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_step_moves_by_the_mean_over_all_its_targets(tmp_path, accumulate):
    """Micro-batches of unequal sizes, unclipped, by plain descent: no factor is hidden."""
    trainer, batches = trainer_of(tmp_path, accumulate=accumulate), Batches()
    for _ in range(4):
        before = [weight.detach().clone() for weight in trainer.network.parameters()]
        rows = torch.cat([next(batches).rows for _ in range(accumulate)])
        gradients = gradient_of(trainer.network, rows)
        want = trainer.network(rows).square().sum().item() / len(rows)
        loss, norm, _ = trainer.one_step(0.0)
        assert loss == pytest.approx(want, rel=1e-5)
        assert norm == pytest.approx(math.hypot(*(g.norm().item() for g in gradients)), rel=1e-5)
        for weight, old, gradient in zip(
            trainer.network.parameters(), before, gradients, strict=True
        ):
            assert gradient.abs().max() > 0.01
            torch.testing.assert_close(old - weight, RATE * gradient)
            assert weight.grad is None


def test_a_gradient_is_clipped_before_the_step(tmp_path):
    trainer = trainer_of(tmp_path, clip=0.25)
    before = [weight.detach().clone() for weight in trainer.network.parameters()]
    _, norm, _ = trainer.one_step(0.0)
    assert norm > 0.5
    moved = [old - new for old, new in zip(before, trainer.network.parameters(), strict=True)]
    assert math.hypot(*(m.norm().item() for m in moved)) == pytest.approx(0.25 * RATE, rel=1e-4)


def test_the_schedule_is_a_factor_on_the_step(tmp_path):
    whole, half = trainer_of(tmp_path), trainer_of(tmp_path, schedule=lambda share: 0.5 - share)
    before = whole.network.weight.detach().clone()
    whole.one_step(0.25)
    assert half.one_step(0.25)[2] == 0.25
    moved = before - whole.network.weight
    torch.testing.assert_close(before - half.network.weight, 0.25 * moved)


def test_a_batch_without_targets_changes_nothing(tmp_path):
    class Empty(Batches):
        def __next__(self):
            return Batch(torch.zeros(0, 3))

    trainer = trainer_of(tmp_path, batches=Empty())
    before = trainer.network.weight.detach().clone()
    assert trainer.one_step(0.0)[:2] == (0.0, 0.0)
    assert torch.equal(trainer.network.weight, before)


def test_the_logged_loss_is_the_mean_since_the_last_line(tmp_path):
    plain = trainer_of(tmp_path)
    each = [plain.one_step(0.0)[0] for _ in range(6)]
    pace = Pace(log_every=2, save_every=1000)
    lines = run(trainer_of(tmp_path, steps=6, pace=pace), tmp_path)
    means = [(one + two) / 2 for one, two in zip(each[::2], each[1::2], strict=True)]
    assert [line["loss"] for line in lines] == pytest.approx(means)
    assert [line["tokens"] for line in lines] == [6, 16, 20]


def test_losses_not_yet_logged_survive_a_resume(tmp_path):
    pace = Pace(log_every=4, save_every=3)
    whole = run(trainer_of(tmp_path / "whole", steps=4, pace=pace), tmp_path / "whole")
    first = trainer_of(tmp_path / "half", steps=3, pace=pace)
    assert run(first, tmp_path / "half") == []
    second = trainer_of(tmp_path / "half", steps=4, pace=pace)
    second.network.load_state_dict(first.network.state_dict())
    second.resume(first.store.latest())
    lines = run(second, tmp_path / "half")
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in whole])


def evaluated(values):
    """An evaluation that gives these figures, one after the other."""
    left = iter(values)
    return lambda network: {"validation_loss": next(left)}


@pytest.mark.parametrize(
    ("patience", "values", "steps"),
    [
        (2, [3.0, 2.0, 2.5, 2.2, 1.0], 4),  # two in a row without a better one
        (2, [3.0, 2.0, 2.5, 1.9, 2.0, 2.0], 6),
        (2, [3.0, 2.0, 2.0, 2.0, 1.0], 4),  # as good isn't better
        (1, [2.0, 2.0, 1.0], 2),
        (1, [3.0, 2.0, 1.0], 3),
        (3, [1.0, 2.0, 3.0, 4.0, 0.5], 4),
        (0, [1.0, 2.0, 3.0, 4.0, 5.0], 5),  # never stops early
    ],
)
def test_it_stops_after_so_many_without_a_better_one(tmp_path, patience, values, steps):
    pace = Pace(evaluate_every=1, log_every=1, save_every=1000)
    trainer = trainer_of(
        tmp_path, len(values), evaluate=evaluated(values), patience=patience, pace=pace
    )
    run(trainer, tmp_path)
    assert trainer.step == steps


def test_the_best_so_far_is_saved_at_once(tmp_path):
    pace = Pace(evaluate_every=1, log_every=1, save_every=1000, save_best=True)
    trainer = trainer_of(tmp_path, 6, evaluate=evaluated([3, 2, 2.5, 2, 1, 4]), pace=pace)
    run(trainer, tmp_path)
    assert [each.step for each in trainer.store.list()] == [1, 2, 5, 6]
    assert trainer.store.best().step == 5


def test_figures_of_older_weights_are_not_saved_with_new_ones(tmp_path):
    pace = Pace(evaluate_every=2, log_every=1, save_every=1)
    trainer = trainer_of(tmp_path, 4, evaluate=evaluated([1.0, 2.0]), pace=pace)
    run(trainer, tmp_path)
    saved = {each.step: each.metrics for each in trainer.store.list()}
    assert saved == {1: {}, 2: {"validation_loss": 1.0}, 3: {}, 4: {"validation_loss": 2.0}}


def test_it_trains_in_training_mode_after_an_evaluation(tmp_path):
    modes = []

    def evaluate(network):
        network.eval()
        return {"validation_loss": 1.0}

    def watched(network, batch):
        modes.append(network.training)
        return objective(network, batch)

    pace = Pace(evaluate_every=1, log_every=1, save_every=1000)
    run(trainer_of(tmp_path, 3, evaluate=evaluate, objective=watched, pace=pace), tmp_path)
    assert modes == [True] * 3


def test_what_is_evaluated_and_written_is_the_average(tmp_path):
    seen = []

    class Zero(Unaveraged):
        """An average of nothing but zeros."""

        def applied(self):
            return self

        def __enter__(self):
            self.own = trainer.network.weight.detach().clone()
            trainer.network.weight.data.zero_()

        def __exit__(self, *_):
            trainer.network.weight.data.copy_(self.own)

    def look(network):
        seen.append(network.weight.abs().max().item())
        return {"validation_loss": 1.0}

    trainer = trainer_of(
        tmp_path,
        2,
        average=Zero(),
        evaluate=look,
        write_model=lambda at, metrics: look(trainer.network) and None,
        pace=Pace(evaluate_every=1, log_every=1, save_every=1),
    )
    run(trainer, tmp_path)
    assert len(seen) == 5 and set(seen) == {0.0}
    assert trainer.network.weight.abs().max() > 0


def test_after_each_update_the_objective_may_bound_the_network(tmp_path):
    class Bounded:
        def __call__(self, network, batch):
            return objective(network, batch)

        def after_step(self, network):
            network.weight.data.clamp_(-0.01, 0.01)

    trainer = trainer_of(tmp_path, objective=Bounded())
    trainer.one_step(0.0)
    assert trainer.network.weight.abs().max() <= 0.01
