"""The loss of tokens against the plain form: values, gradients, masks, accumulation."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.data.stream import IGNORED
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.objectives import tokens
from bedstone.objectives.tokens import next_token_loss, token_loss, token_losses

WIDTH, VOCABULARY = 12, 150


def problem(rows: int = 3, length: int = 70, *, bias: bool = False, ignored: float = 0.3):
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias)
    states = torch.randn(rows, length, WIDTH, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (rows, length))
    targets[torch.rand(rows, length) < ignored] = IGNORED
    return states, head, targets


def reference(states: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    logits = head(states).flatten(0, 1)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")


def gradients(loss: Tensor, states: Tensor, head: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss * 0.25, [states, *head.parameters()]))


# 1 chunks as finely as it goes (64 rows); the default takes all logits at once.
@pytest.mark.parametrize("largest", [1, 100 * VOCABULARY, 2**22])
@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradients_equal_the_plain_cross_entropy(largest: int, bias: bool) -> None:
    states, head, targets = problem(bias=bias)
    loss, count = token_loss(states, head, targets, largest=largest)
    plain = reference(states, head, targets)
    assert count == int((targets != IGNORED).sum()) < targets.numel()
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss, plain)
    ours, theirs = gradients(loss, states, head), gradients(plain, states, head)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert ours[0][targets == IGNORED].abs().max() == 0


def test_gradients_are_right_by_finite_differences() -> None:
    torch.manual_seed(0)
    head = nn.Linear(4, 9).double()
    states = torch.randn(2, 70, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 9, (2, 70))

    def chunked(states: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        head._parameters.update(weight=weight, bias=bias)
        return token_loss(states, head, targets, largest=1)[0]

    inputs = (states, *(p.detach().clone().requires_grad_() for p in head.parameters()))
    assert torch.autograd.gradcheck(chunked, inputs, fast_mode=True)


def test_under_autocast_products_are_bf16_and_the_loss_fp32() -> None:
    states, head, targets = problem()
    for largest in (1, 2**22):
        plain = reference(states, head, targets)
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = token_loss(states, head, targets, largest=largest)
        assert loss.dtype is torch.float32
        assert loss != plain  # it did round
        torch.testing.assert_close(loss, plain, rtol=2e-3, atol=0)
        for one, two in zip(
            gradients(loss, states, head), gradients(plain, states, head), strict=True
        ):
            assert one.dtype is torch.float32
            torch.testing.assert_close(one, two, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_takes_no_gradients(mode, monkeypatch) -> None:
    states, head, targets = problem()
    plain = reference(states, head, targets)
    monkeypatch.setattr(tokens._LinearLoss, "apply", None)
    with mode():
        loss, _ = token_loss(states, head, targets, largest=1)
    torch.testing.assert_close(loss, plain.detach())


def test_a_head_that_is_not_plain_linear_is_called_and_chunked() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    states, _, targets = problem()
    torch.manual_seed(1)
    head = Doubled(WIDTH, VOCABULARY)
    loss, _ = token_loss(states, head, targets, largest=1)
    plain = reference(states, head, targets)
    torch.testing.assert_close(loss, plain)
    for one, two in zip(gradients(loss, states, head), gradients(plain, states, head), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_no_targets_cost_nothing_and_give_zero_gradients() -> None:
    states, head, targets = problem()
    loss, count = token_loss(states, head, torch.full_like(targets, IGNORED))
    loss.backward()
    assert (loss.item(), count) == (0.0, 0)
    assert states.grad is not None and states.grad.abs().max() == 0


def test_a_frozen_head_learns_nothing_and_still_teaches() -> None:
    states, head, targets = problem()
    head.weight.requires_grad_(False)
    loss, _ = token_loss(states, head, targets, largest=1)
    loss.backward()
    assert head.weight.grad is None and states.grad is not None


def test_logits_never_stand_whole_when_they_are_large() -> None:
    """The largest tensor that the graph keeps is the gradient of the weights."""
    torch.manual_seed(0)
    head = nn.Linear(8, 1000)
    states = torch.randn(1, 4000, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        token_loss(states, head, torch.randint(0, 1000, (1, 4000)), largest=100_000)
    assert kept and max(kept) <= 4000 * 8


@pytest.mark.parametrize(
    ("width", "vocabulary", "largest", "rows"),
    [(576, 49152, 2**22, 576), (128, 1000, 2**22, 4194), (8, 1000, 1000, 64)],
)
def test_a_chunk_takes_as_much_as_the_gradient_that_it_adds(width, vocabulary, largest, rows):
    head = nn.Linear(width, vocabulary, device="meta")
    assert tokens._rows_at_once(head, largest) == rows


@pytest.mark.parametrize("bias", [True, False])
def test_few_rows_beside_the_vocabulary_give_the_same(bias: bool, monkeypatch) -> None:
    torch.manual_seed(0)
    head = nn.Linear(16, 400, bias=bias).double()
    states = torch.randn(1, 30, 16, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 400, (1, 30))
    plain = reference(states, head, targets)
    want = gradients(3 * plain, states, head)
    calls = []
    kept = tokens._KeptLoss.apply
    monkeypatch.setattr(tokens._KeptLoss, "apply", lambda *a: calls.append(1) or kept(*a))
    loss, _ = token_loss(states, head, targets)
    assert calls
    torch.testing.assert_close(loss, plain)
    for one, two in zip(gradients(3 * loss, states, head), want, strict=True):
        torch.testing.assert_close(one, two)
    far = (states * 1e4).detach().requires_grad_()  # a target's probability underflows
    torch.testing.assert_close(token_loss(far, head, targets)[0], reference(far, head, targets))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = token_loss(states, head, targets)
    torch.testing.assert_close(loss, plain, rtol=5e-3, atol=0)
    for one, two in zip(gradients(3 * loss, states, head), want, strict=True):
        assert (one - two).norm() < 0.02 * two.norm()


def small_gpt(layout: str = "qwen3", *, tied: bool = True) -> nn.Module:
    config = GPTConfig(
        layout=layout, vocab_size=50, width=16, layers=2, heads=2, context=32, tied=tied
    )
    network = build(config, seed=0)
    with torch.no_grad():  # what starts at zero hides what stands before it
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return network


def batch(rows: int, length: int, *, packed: bool = False) -> SimpleNamespace:
    ids = torch.randint(0, 50, (rows, length))
    documents = torch.zeros(rows, length, dtype=torch.long)
    positions = torch.arange(length).repeat(rows, 1)
    if packed:
        documents[:, length // 2 :] = 1
        positions[:, length // 2 :] -= length // 2
    targets = torch.randint(0, 50, (rows, length))
    return SimpleNamespace(ids=ids, targets=targets, documents=documents, positions=positions)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("largest", [1, 2**22])
def test_tied_weights_get_both_gradients(tied: bool, largest: int) -> None:
    network, data = small_gpt(tied=tied), batch(4, 30)
    states = network.states(data.ids)
    token_loss(states, network.head, data.targets, largest=largest)[0].backward()
    ours = {name: w.grad.clone() for name, w in network.named_parameters()}
    network.zero_grad()
    reference(network.states(data.ids), network.head, data.targets).backward()
    for name, weight in network.named_parameters():
        torch.testing.assert_close(ours[name], weight.grad, rtol=1e-3, atol=1e-4)


def test_micro_batches_averaged_over_real_targets_equal_one_large_batch() -> None:
    torch.manual_seed(0)
    network, data = small_gpt(), batch(4, 24)
    data.targets[0, 2:] = IGNORED  # rows that weigh very differently
    data.targets[1, 20:] = IGNORED
    total, count = next_token_loss(network, data)
    (total / count).backward()
    whole = {name: w.grad.clone() for name, w in network.named_parameters()}
    network.zero_grad()
    parts = [
        SimpleNamespace(**{key: value[rows] for key, value in vars(data).items()})
        for rows in (slice(0, 1), slice(1, 2), slice(2, 4))
    ]
    counts = 0
    for part in parts:
        loss, targets = next_token_loss(network, part)
        (loss / count).backward()
        counts += targets
    assert counts == count
    for name, weight in network.named_parameters():
        torch.testing.assert_close(weight.grad, whole[name], rtol=1e-4, atol=1e-6)


def test_packed_documents_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    network, data = small_gpt(), batch(2, 24, packed=True)
    together, count = next_token_loss(network, data)
    halves = []
    for part in (slice(0, 12), slice(12, 24)):
        alone = {key: value[:, part] for key, value in vars(data).items()}
        alone["documents"] = torch.zeros(2, 12, dtype=torch.long)
        halves.append(next_token_loss(network, SimpleNamespace(**alone)))
    assert count == sum(targets for _, targets in halves)
    torch.testing.assert_close(together, halves[0][0] + halves[1][0])


def test_gradients_of_confident_targets_are_no_worse_than_autocast_gives() -> None:
    torch.manual_seed(0)
    head = nn.Linear(16, 4000)
    states = F.normalize(torch.randn(32, 16), dim=-1) * 8
    targets = torch.arange(32)
    with torch.no_grad():
        head.weight.mul_(0.1)
        head.weight[targets] = F.normalize(states, dim=-1) * 2
        head.bias.zero_()
        chance = torch.softmax(head(states), -1)[targets, targets]
    assert 0.99 < float(chance.median()) < 1  # 1 - p is lost where p - y is formed in bf16

    def errors(loss_of, states, head) -> list[Tensor]:
        states = states.clone().requires_grad_()
        loss = loss_of(states, head)
        return list(torch.autograd.grad(loss, [states, *head.parameters()]))

    def plain(states: Tensor, head: nn.Module) -> Tensor:
        return F.cross_entropy(head(states).float(), targets, reduction="sum")

    exact = errors(plain, states.double(), copy.deepcopy(head).double())
    with torch.autocast("cpu", torch.bfloat16):
        ours = errors(lambda s, h: token_loss(s, h, targets)[0], states, head)
        theirs = errors(plain, states, head)
    for one, two, true in zip(ours, theirs, exact, strict=True):
        wrong = [float((each.double() - true).norm() / true.norm()) for each in (one, two)]
        assert wrong[0] < 1.1 * wrong[1] + 1e-3, wrong


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [30, 400])
def test_smoothed_targets_are_those_of_torch(bias: bool, rows: int) -> None:
    """In all forms: whole, by chunks, and kept."""
    torch.manual_seed(0)
    head = nn.Linear(16, 400, bias=bias).double()
    states = torch.randn(1, rows, 16, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 400, (1, rows))
    targets[0, 3] = IGNORED
    plain = F.cross_entropy(
        head(states)[0], targets[0], reduction="sum", label_smoothing=0.1, ignore_index=IGNORED
    )
    want = gradients(3 * plain, states, head)
    for largest in (1, 2**22):
        loss, count = token_loss(states, head, targets, largest=largest, smoothing=0.1)
        assert count == rows - 1
        torch.testing.assert_close(loss, plain, check_dtype=False, rtol=1e-6, atol=0)
        for one, two in zip(gradients(3 * loss, states, head), want, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("largest", [1, 2**22])
@pytest.mark.parametrize("kind", ["linear", "bias", "frozen", "other"])
def test_each_loss_and_its_own_weight(largest: int, kind: str) -> None:
    states, head, targets = problem(bias=kind == "bias", ignored=0.0)
    head.requires_grad_(kind != "frozen")
    used = nn.Sequential(head) if kind == "other" else head
    flat, wanted = states.flatten(0, 1), targets.flatten()
    weights = torch.randn(len(wanted))
    ours = token_losses(flat, used, wanted, largest=largest)
    plain = F.cross_entropy(head(flat), wanted, reduction="none")
    assert ours.shape == plain.shape and ours.dtype is torch.float32
    torch.testing.assert_close(ours, plain)
    with torch.no_grad():
        torch.testing.assert_close(token_losses(flat, used, wanted, largest=largest), plain)
    learnt = [states, *(each for each in head.parameters() if each.requires_grad)]
    found = torch.autograd.grad((ours * weights).sum(), learnt)
    expected = torch.autograd.grad((plain * weights).sum(), learnt)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
