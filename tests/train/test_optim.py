"""Optimizers against torch's, by what Muon promises, and bit for bit through their state."""

import copy

import pytest
import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.objectives.tokens import token_loss
from bedstone.recipes.base import ImagesOptim
from bedstone.train.optim import (
    Muon,
    OptimConfig,
    Optimizer,
    build_optimizer,
    clip_gradients,
    orthogonalise,
)


def network(seed: int = 0) -> nn.Module:
    shape = GPTConfig(vocab_size=40, width=16, layers=2, heads=2, context=32)
    return build(shape, seed=seed)


def learn(net: nn.Module, optimizer: Optimizer, steps: range) -> list[float]:
    """Losses of steps, each on a batch drawn from its number."""
    losses = []
    for step in steps:
        ids = torch.randint(0, 40, (4, 17), generator=torch.Generator().manual_seed(step))
        loss, count = token_loss(net.states(ids[:, :-1]), net.head, ids[:, 1:])
        (loss / count).backward()
        optimizer.step(1.0 / (1 + step))
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("shape", [(3, 24, 48), (2, 40, 16), (2, 16, 40)])
def test_orthogonalised_matrices_are_near_orthogonal(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    result = orthogonalise(matrices)
    values = torch.linalg.svdvals(result.float())
    assert values.min() > 0.5 and values.max() < 1.3
    # The singular vectors stay: U^T result V is diagonal.
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    middle = u.mT @ result.float() @ vh.mT
    off = middle - torch.diag_embed(torch.diagonal(middle, dim1=-2, dim2=-1))
    assert off.abs().max() < 0.08


def test_kernels_are_matrices_with_a_row_for_each_output() -> None:
    torch.manual_seed(0)
    kernel = torch.randn(8, 6, 3, 3)
    flat = kernel.flatten(1).clone().requires_grad_()
    kernel.requires_grad_()
    for weight in (kernel, flat):
        weight.grad = torch.ones_like(weight) * torch.arange(8.0).view(-1, *[1] * (weight.ndim - 1))
        weight.grad += weight.detach()
        Muon({"w": weight}, lr=0.02).step()
    assert torch.equal(kernel.flatten(1), flat)


def test_muon_moves_convolutions_of_states_and_not_those_of_pixels() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    state = build_optimizer(net, OptimConfig(kind="muon")).state_dict()
    assert set(state["muon"]) == {"1.weight"}


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_muon_equals_torchs(decay: float) -> None:
    torch.manual_seed(0)
    start = {"a": torch.randn(24, 16), "b": torch.randn(24, 16), "c": torch.randn(16, 32)}
    ours = {name: w.clone().requires_grad_() for name, w in start.items()}
    theirs = {name: w.clone().requires_grad_() for name, w in start.items()}
    muon = Muon(ours, lr=0.02, momentum=0.9, weight_decay=decay)
    torchs = torch.optim.Muon(
        theirs.values(),
        lr=0.02,
        momentum=0.9,
        weight_decay=decay,
        adjust_lr_fn="match_rms_adamw",
    )
    for _ in range(5):
        for name in start:
            ours[name].grad = torch.randn_like(start[name])
            theirs[name].grad = ours[name].grad.clone()
        muon.step()
        torchs.step()
    for name in start:
        moved = (theirs[name] - start[name]).norm()
        assert moved > 0.1
        assert (ours[name] - theirs[name]).norm() < 0.02 * moved


def test_hidden_matrices_go_to_muon_and_the_rest_to_adamw() -> None:
    net = network()
    optimizer = build_optimizer(net, OptimConfig())
    by_muon = set(optimizer.parts["muon"].state_dict())
    every = {name for name, _ in net.named_parameters()}
    assert by_muon == {n for n in every if n.startswith("stack") and "norm" not in n}
    assert set(optimizer.parts["adamw"].named) == every - by_muon
    assert "embed.weight" in optimizer.parts["adamw"].named


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_weight_decay_shrinks_matrices_only(kind: str) -> None:
    net = network()
    for weight in net.parameters():
        weight.data.fill_(1.0)
        weight.grad = torch.zeros_like(weight)
    config = OptimConfig(kind=kind, lr=0.1, adamw_lr=0.1, weight_decay=0.5)
    build_optimizer(net, config).step()
    for name, weight in net.named_parameters():
        expected = 1.0 if weight.ndim < 2 else 0.95
        torch.testing.assert_close(weight, torch.full_like(weight, expected), msg=name)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_the_factor_scales_every_rate(kind: str) -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    optimizer = build_optimizer(net, OptimConfig(kind=kind))
    for weight in net.parameters():
        weight.grad = torch.randn_like(weight)
    optimizer.step(0.0)
    assert all(torch.equal(before[name], w) for name, w in net.state_dict().items())
    optimizer.step(1.0)
    assert not any(torch.equal(before[name], w) for name, w in net.named_parameters())


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_both_kinds_learn(kind: str) -> None:
    net = network()
    optimizer = build_optimizer(net, OptimConfig(kind=kind, lr=0.01, adamw_lr=0.01))
    ids = torch.randint(0, 40, (4, 17), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(30):
        loss, count = token_loss(net.states(ids[:, :-1]), net.head, ids[:, 1:])
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item() / count)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_state_goes_round_bit_for_bit(kind: str) -> None:
    config = OptimConfig(kind=kind)
    whole = network()
    straight = learn(whole, build_optimizer(whole, config), range(6))
    first = network()
    optimizer = build_optimizer(first, config)
    learn(first, optimizer, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    weights = copy.deepcopy(first.state_dict())
    second = network(seed=1)
    second.load_state_dict(weights)
    resumed = build_optimizer(second, config)
    resumed.load_state_dict(state)
    assert learn(second, resumed, range(3, 6)) == straight[3:]
    for one, two in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)


def test_state_that_is_loaded_is_copied() -> None:
    net = network()
    optimizer = build_optimizer(net, OptimConfig())
    learn(net, optimizer, range(1))
    state = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(state)
    optimizer.load_state_dict(state)
    learn(net, optimizer, range(1, 2))
    flat = [(a, b) for name in kept["muon"] for a, b in [(kept["muon"][name], state["muon"][name])]]
    for name, parts in kept["adamw"].items():
        flat += [(part, state["adamw"][name][key]) for key, part in parts.items()]
    assert flat and all(torch.equal(a, b) for a, b in flat)


def test_the_state_of_another_kind_is_refused() -> None:
    net = network()
    other = build_optimizer(net, OptimConfig(kind="adamw")).state_dict()
    with pytest.raises(BedstoneError, match=r"another network or another optim.kind"):
        build_optimizer(net, OptimConfig()).load_state_dict(other)


def test_frozen_weights_are_left_out() -> None:
    net = network()
    frozen = net.stack[0]["attn"].requires_grad_(False)
    before = copy.deepcopy(frozen.state_dict())
    learn(net, build_optimizer(net, OptimConfig()), range(2))
    assert all(torch.equal(before[name], w) for name, w in frozen.state_dict().items())
    with pytest.raises(BedstoneError, match="no weights to train"):
        build_optimizer(net.requires_grad_(False), OptimConfig())


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(BedstoneError, match=r"optim.kind.*perhaps 'muon'"):
        build_optimizer(network(), OptimConfig(kind="moun"))


def gradients_of(net: nn.Module, value: float) -> list[Tensor]:
    for weight in net.parameters():
        weight.grad = torch.full_like(weight, value)
    return [w.grad for w in net.parameters() if w.grad is not None]


def test_clipping_keeps_the_direction_and_returns_the_norm() -> None:
    net = network()
    gradients = gradients_of(net, 0.5)
    expected = 0.5 * sum(g.numel() for g in gradients) ** 0.5
    assert clip_gradients(net, 1.0) == pytest.approx(expected, rel=1e-5)
    assert torch.cat([g.flatten() for g in gradients]).norm().item() == pytest.approx(1.0, rel=1e-4)
    assert len({round(float(x), 8) for g in gradients for x in g.unique()}) == 1


@pytest.mark.parametrize("limit", [0.0, 1e9])
def test_small_gradients_or_no_limit_are_left_alone(limit: float) -> None:
    net = network()
    gradients = gradients_of(net, 0.5)
    clip_gradients(net, limit)
    assert all(bool((g == 0.5).all()) for g in gradients)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_the_norm_and_is_not_spread(wrong: float) -> None:
    net = network()
    gradients = gradients_of(net, 0.5)
    gradients[0].view(-1)[0] = wrong
    norm = clip_gradients(net, 1.0)
    assert not norm < float("inf")
    assert all(bool((g == 0.5).all()) for g in gradients[1:])


@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_every_number_of_adamw_is_the_recipes(eps: float) -> None:
    """Gradients of the size of eps, which then halves the step; against torch's own."""
    ours, theirs = network(), network()
    config = OptimConfig(kind="adamw", adamw_lr=0.01, weight_decay=0.3, betas=(0.7, 0.8), eps=eps)
    matrices = [w for w in theirs.parameters() if w.ndim >= 2]
    vectors = [w for w in theirs.parameters() if w.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.3},
        {"params": vectors, "weight_decay": 0.0},
    ]
    other = torch.optim.AdamW(groups, lr=0.01, betas=(0.7, 0.8), eps=eps)
    optimizer, before = build_optimizer(ours, config), copy.deepcopy(ours)
    for size in (eps, 3 * eps):
        gradients_of(ours, size)
        gradients_of(theirs, size)
        optimizer.step()
        other.step()
    for got, want, old in zip(
        ours.parameters(), theirs.parameters(), before.parameters(), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
        assert not torch.equal(got, old)


def test_weights_that_were_renamed_go_on_with_their_state() -> None:
    def named(name: str) -> torch.nn.Module:
        net = torch.nn.Module()
        net.add_module(name, torch.nn.Linear(3, 2))
        return net

    config = OptimConfig(kind="adamw")
    old, new = build_optimizer(named("look"), config), build_optimizer(named("image_norm"), config)
    gradients = [torch.ones_like(weight) for weight in old.weights]
    for weight, gradient in zip(old.weights, gradients, strict=True):
        weight.grad = gradient
    old.step(1.0)
    new.load_state_dict(old.state_dict())
    first, second = old.state_dict()["adamw"], new.state_dict()["adamw"]
    assert torch.equal(first["look.weight"]["exp_avg"], second["image_norm.weight"]["exp_avg"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "x"),
        ("kind", ["muon"]),
        ("lr", -1),
        ("lr", float("nan")),
        ("adamw_lr", float("inf")),
        ("weight_decay", -0.1),
        ("momentum", 1.0),
        ("betas", (1.0, 2.0)),
        ("betas", (0.9,)),
        ("eps", float("nan")),
        ("clip", -1),
    ],
)
@pytest.mark.parametrize("config", [OptimConfig, ImagesOptim])
def test_values_that_no_optimizer_takes_are_refused_by_name(config, field, value) -> None:
    with pytest.raises(BedstoneError, match=f"optim.{field}"):
        config(**{field: value})


def test_the_log_has_rates_not_the_schedules_factor() -> None:
    muon = build_optimizer(network(), OptimConfig(lr=0.2, adamw_lr=0.1))
    assert muon.rates(0.5) == {"learning_rate": 0.05, "muon_learning_rate": 0.1}
    adamw = build_optimizer(network(), OptimConfig(kind="adamw", lr=0.2, adamw_lr=0.1))
    assert adamw.rates(0.5) == {"learning_rate": 0.05}
