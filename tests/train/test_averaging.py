"""Moving averages of weights: what they are, and that runs with them are resumed exactly."""

from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bedstone.checkpoints.store import CheckpointStore
from bedstone.errors import BedstoneError
from bedstone.runtime import Precision
from bedstone.train.averaging import Average, Unaveraged, power, steady
from bedstone.train.logs import ProgressBar, RunLog
from bedstone.train.loop import Trainer
from bedstone.train.optim import OptimConfig, build_optimizer
from bedstone.train.pace import Pace
from bedstone.train.schedule import parse_budget


@dataclass
class Batch:
    ids: torch.Tensor
    target_count: int = 1

    @property
    def items(self):
        return self.ids.numel()

    def to(self, device):
        return self


class Batches:
    def __init__(self):
        self.at = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.at += 1
        return Batch(torch.full((1, 3), float(self.at)))

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def objective(network, batch):
    noise = torch.randn(3)
    return (network(batch.ids / 10 + noise) ** 2).sum(), 1


def network_of(seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    network[0].bias.requires_grad_(False)
    network.register_buffer("seen", torch.ones(2))
    return network


def trainer_of(network, folder, steps, *, averaged=True):
    seen = []

    def evaluate(network):
        seen.append(network[1].weight.clone())
        return {"validation_loss": network[1].weight.sum().item()}

    def write(at, metrics):
        tensors = {name: value.clone() for name, value in network.state_dict().items()}
        save_file(tensors, at / "model.safetensors")

    trainer = Trainer(
        network=network,
        objective=objective,
        batches=Batches(),
        optimizer=build_optimizer(network, OptimConfig(kind="adamw", adamw_lr=0.05)),
        budget=parse_budget(f"{steps} steps"),
        schedule=lambda share: 1.0,
        precision=Precision(torch.device("cpu"), torch.float32),
        store=CheckpointStore(folder / "checkpoints", 2),
        write_model=write,
        evaluate=evaluate,
        average=Average(network, steady(0.9)) if averaged else Unaveraged(),
        pace=Pace(evaluate_every=5, save_every=5, log_every=1),
    )
    trainer.seen = seen
    return trainer


def run(trainer, folder):
    log = RunLog(folder, step=trainer.step)
    with ProgressBar("", quiet=True) as bar:
        done = trainer.run(log, bar)
    log.close()
    return done


def test_an_average_is_what_its_formula_says():
    network = network_of()
    average = Average(network, steady(0.999))
    expected = network[1].weight.detach().double().clone()
    for step in range(1, 6):
        with torch.no_grad():
            network[1].weight += step
            network.seen += 1
        average.update()
        decay = (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * network[1].weight.detach().double()
    own = network[1].weight.detach().clone()
    frozen = network[0].bias.detach().clone()
    with average.applied():
        torch.testing.assert_close(network[1].weight.double(), expected, rtol=1e-5, atol=1e-5)
        assert 1 < network.seen[0] < 6
        assert torch.equal(network[0].bias, frozen)
    assert torch.equal(network[1].weight, own)
    assert network.seen[0] == 6
    average.settle()
    torch.testing.assert_close(network[1].weight.double(), expected, rtol=1e-5, atol=1e-5)


def test_own_weights_are_back_after_an_error():
    network = network_of()
    average = Average(network, steady(0.9))
    own = network[1].weight.detach().clone()
    average.means["1.weight"].zero_()
    with pytest.raises(RuntimeError), average.applied():
        raise RuntimeError
    assert torch.equal(network[1].weight, own)


def test_decays():
    decay = steady(0.999)
    assert (decay(1), decay(10**6)) == (2 / 11, 0.999)
    assert steady(0.0)(5) == 0
    # Exactly the mean of all steps' weights, each counted n^g: the spread is what was asked for.
    for spread in (0.05, 0.1, 0.2):
        weights, fall = torch.zeros(4000, dtype=torch.float64), power(spread)
        for step in range(1, 4001):
            weights *= fall(step)
            weights[step - 1] = 1 - fall(step)
        time = torch.arange(1, 4001).double() / 4000
        mean = (weights * time).sum()
        deviation = (weights * (time - mean) ** 2).sum().sqrt()
        assert weights.sum() == pytest.approx(1)
        assert deviation == pytest.approx(spread, rel=0.01)
    for make in (lambda: steady(1.0), lambda: steady(-0.1), lambda: power(0.5), lambda: power(0)):
        with pytest.raises(BedstoneError, match="average: "):
            make()


def test_an_averaged_run_is_resumed_bit_for_bit(tmp_path):
    whole = trainer_of(network_of(), tmp_path / "whole", 20)
    run(whole, tmp_path / "whole")

    first = trainer_of(network_of(), tmp_path / "half", 10)
    run(first, tmp_path / "half")
    checkpoint = first.store.latest()
    assert checkpoint.step == 10
    network = network_of(seed=5)
    network.load_state_dict(load_file(checkpoint.path / "model.safetensors"))
    # What is written is the average, not the network as the last step left it.
    assert torch.equal(network[1].weight, first.average.means["1.weight"])
    assert not torch.equal(network[1].weight, first.network[1].weight)

    second = trainer_of(network, tmp_path / "half", 20)
    torch.manual_seed(99)
    second.resume(checkpoint)
    assert torch.equal(network[1].weight, first.network[1].weight)
    run(second, tmp_path / "half")
    assert second.average.step == whole.average.step == 20
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name
    for name, value in whole.average.means.items():
        assert torch.equal(value, second.average.means[name]), name
    assert whole.history == second.history
    # Judged by the average too.
    assert torch.equal(whole.seen[-1], whole.average.means["1.weight"])


def test_an_average_changes_nothing_of_what_is_learnt(tmp_path):
    plain = trainer_of(network_of(), tmp_path / "plain", 8, averaged=False)
    run(plain, tmp_path / "plain")
    averaged = trainer_of(network_of(), tmp_path / "averaged", 8)
    run(averaged, tmp_path / "averaged")
    assert torch.equal(plain.network[1].weight, averaged.network[1].weight)
    assert torch.equal(plain.seen[-1], plain.network[1].weight)


def test_a_state_of_another_network_is_refused():
    average = Average(network_of(), steady(0.9))
    state = Average(nn.Linear(2, 2), steady(0.9)).state_dict()
    with pytest.raises(BedstoneError, match="Resume with the recipe"):
        average.load_state_dict(state)


class Bounded:
    """An objective that keeps a weight at most 0.01 after each update."""

    def __call__(self, network, batch):
        return objective(network, batch)

    def after_step(self, network):
        with torch.no_grad():
            network[1].weight.clamp_(max=0.01)


def test_what_an_objective_bounds_is_bounded_before_it_is_averaged(tmp_path):
    trainer = trainer_of(network_of(), tmp_path, 5)
    trainer.objective = Bounded()
    trainer.network[1].weight.data.fill_(0.01)
    run(trainer, tmp_path)
    assert float(trainer.network[1].weight.max()) <= 0.01 + 1e-7
    with trainer.average.applied():
        assert float(trainer.network[1].weight.max()) <= 0.01 + 1e-7
