"""What the engine does in one pass, beside torch's own operations."""

import pytest
import torch
import torch.nn.functional as F

from bedstone.generation.sampling import Sampling
from bedstone.nn.dropout import Dropout
from bedstone.nn.fast import kernels, passes
from bedstone.objectives import tokens

SETS = ("auto", "avx2")
ENGINE = pytest.mark.skipif(kernels.library() is None, reason="no engine here")


@pytest.fixture(params=SETS)
def instructions(request, monkeypatch):
    monkeypatch.setenv("BEDSTONE_ENGINE", request.param)
    if kernels.library() is None:
        pytest.skip(kernels.why_not())


def expected(logits, bias, targets, smoothing):
    """Losses and gradient by autograd, in fp64."""
    wide = logits.double().requires_grad_()
    biased = wide if bias is None else wide + bias.double()
    losses = F.cross_entropy(biased, targets, reduction="none", label_smoothing=smoothing)
    losses.sum().backward()
    return losses.detach(), wide.grad


@pytest.mark.parametrize("count", [1, 5, 16, 17, 31, 1000, 6016])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", passes.TYPES)
def test_errors_are_the_gradient_of_the_loss(instructions, count, smoothing, biased, dtype):
    torch.manual_seed(count)
    logits = (5 * torch.randn(37, count)).to(dtype)
    bias = torch.randn(count) if biased else None
    targets = torch.randint(count, (37,))
    losses, gradient = expected(logits, bias, targets, smoothing)
    found = passes.softmax_errors(logits, bias, targets, smoothing)
    torch.testing.assert_close(found.double(), losses, rtol=1e-5, atol=2e-5)
    loose = 4e-3 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(logits.double(), gradient, rtol=loose, atol=1e-6)


def test_a_confident_target_still_has_an_error(instructions):
    logits = torch.tensor([[12.0, 0.0, 0.0]]).bfloat16()
    passes.softmax_errors(logits, None, torch.tensor([0]), 0.0)
    wanted = torch.softmax(torch.tensor([12.0, 0.0, 0.0]), -1)[0] - 1
    assert logits[0, 0].item() == pytest.approx(wanted.item(), rel=0.05)


def test_extreme_logits(instructions):
    logits = torch.tensor([[3e38, -3e38, 0.0], [float("nan"), 0.0, 1.0], [-200.0, 0.0, 0.0]])
    losses = passes.softmax_errors(logits, None, torch.tensor([0, 1, 0]), 0.0)
    assert losses[0] == 0.0 and losses[1].isnan() and losses[2] == pytest.approx(200.693, abs=1e-3)
    assert logits[0].tolist() == pytest.approx([0.0, 0.0, 0.0])


@pytest.mark.parametrize("target", [-1, 3])
@ENGINE
def test_targets_out_of_the_vocabulary_are_refused(target):
    with pytest.raises(IndexError, match="vocabulary has 3"):
        passes.softmax_errors(torch.zeros(1, 3), None, torch.tensor([target]), 0.0)


@pytest.mark.parametrize("rows, chunks", [(40, 1), (500, 4)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@ENGINE
def test_the_loss_is_that_without_an_engine(monkeypatch, rows, chunks, smoothing):
    torch.manual_seed(0)
    head = torch.nn.Linear(24, 200)
    states = torch.randn(rows, 24, requires_grad=True)
    targets = torch.randint(200, (rows,))

    def gradients():
        loss, count = tokens.token_loss(
            states, head, targets, largest=rows * 200 // chunks - 1, smoothing=smoothing
        )
        assert count == rows
        return loss.detach(), *torch.autograd.grad(loss, (states, head.weight, head.bias))

    by_engine = gradients()
    monkeypatch.setattr(passes, "usable", lambda x: False)
    for one, other in zip(by_engine, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", passes.TYPES)
@pytest.mark.parametrize("count", [1, 15, 16, 4097, 100_003])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_dropout_keeps_its_share_and_its_gradient_the_same_values(
    instructions, dtype, count, share
):
    torch.manual_seed(count)
    x = (torch.rand(count) + 1).to(dtype).requires_grad_()
    layer = Dropout(share)
    out = layer(x)
    out.backward(torch.ones_like(out))
    kept = out != 0
    assert torch.equal(kept, x.grad != 0)
    torch.testing.assert_close(
        out[kept].float(), (x / (1 - share))[kept].float(), rtol=8e-3, atol=0
    )
    if count > 10_000:
        assert abs(kept.float().mean().item() - (1 - share)) < 5 * (0.25 / count) ** 0.5


def test_dropout_is_seeded_and_two_draws_are_independent(instructions):
    torch.manual_seed(7)
    x = torch.ones(200_000)
    layer = Dropout(0.5)
    first, second = layer(x) != 0, layer(x) != 0
    torch.manual_seed(7)
    assert torch.equal(layer(x) != 0, first) and torch.equal(layer(x) != 0, second)
    assert abs((first == second).float().mean().item() - 0.5) < 0.006
    # nor do values follow each other, within a register, a generator and a block
    for apart in (1, 4, 16, 64, 4096):
        assert abs((first[apart:] == first[:-apart]).float().mean().item() - 0.5) < 0.006


def test_dropout_doesn_t_depend_on_threads_or_instructions(monkeypatch):
    x = torch.randn(70_001)
    found = []
    for chosen in SETS:
        monkeypatch.setenv("BEDSTONE_ENGINE", chosen)
        if kernels.library() is None:
            pytest.skip(kernels.why_not())
        for threads in (1, 2):
            monkeypatch.setattr(kernels, "threads", lambda threads=threads: threads)
            found.append(passes.dropped(x, 11, 40_000, 1.5))
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_dropout_of_all_and_of_nothing(instructions, share):
    x = torch.randn(100)
    out = Dropout(share)(x)
    assert torch.equal(out, x if share == 0.0 else torch.zeros(100))


def plain_best(logits, totals, count, banned):
    """The same by a sort of all, in fp64: (values, beams, tokens, own)."""
    own = logits.double().log_softmax(-1)
    found = own.clone()
    found[:, list(banned)] = -torch.inf
    vocabulary = logits.shape[-1]
    whole = found.view(*totals.shape, vocabulary) + totals.double()[..., None]
    values, places = whole.flatten(1).topk(count)
    beams, tokens = places // vocabulary, places % vocabulary
    rows = torch.arange(len(totals))[:, None] * totals.shape[1] + beams
    return values, beams, tokens, own[rows, tokens]


@pytest.mark.parametrize("count, wanted", [(17, 3), (40, 10), (1000, 10), (6016, 64)])
@pytest.mark.parametrize("each", [1, 5])
@pytest.mark.parametrize("banned", [(), (0,), (3, 7, 16)])
def test_best_tokens_are_those_of_a_sort(instructions, count, wanted, each, banned):
    torch.manual_seed(count + each)
    logits = 4 * torch.randn(7 * each, count)
    totals = -3 * torch.rand(7, each)
    found = passes.best_tokens(logits, totals, wanted, banned)
    values, beams, tokens, own = plain_best(logits, totals, wanted, banned)
    assert torch.equal(found[1], beams) and torch.equal(found[2], tokens)
    torch.testing.assert_close(found[0].double(), values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[3].double(), own, rtol=1e-5, atol=1e-5)


def test_of_equal_tokens_the_earlier_ones_are_best(instructions):
    found = passes.best_tokens(torch.zeros(2, 40), torch.zeros(1, 2), 42)
    assert found[1].tolist() == [[0] * 40 + [1] * 2]
    assert found[2].tolist() == [[*range(40), 0, 1]]


def test_beams_that_only_fill_a_place_and_tokens_that_can_t_be(instructions):
    logits = torch.full((2, 20), -torch.inf)
    logits[:, 4] = 1.0
    found = passes.best_tokens(logits, torch.tensor([[0.0, -1e9]]), 3)
    assert found[0][0, :2].tolist() == [0.0, -1e9] and found[0][0, 2] == -torch.inf
    assert found[2][0, :2].tolist() == [4, 4]


@pytest.mark.parametrize("rows", [3, 2000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_move_all_at_a_time(instructions, rows, dtype):
    torch.manual_seed(0)
    held = torch.randn(rows, 7, 30).to(dtype)
    targets = torch.randperm(rows)[: rows // 2 + 1]
    sources = torch.randint(rows, (len(targets),))
    wanted = held.index_copy(0, targets, held[sources])
    passes.move_blocks(held, sources, targets)
    assert torch.equal(held, wanted)


@pytest.mark.parametrize("count", [1, 5, 16, 1000, 6017])
def test_log_probabilities_are_those_of_a_log_softmax(instructions, count):
    torch.manual_seed(count)
    logits = (6 * torch.randn(9, count + 3))[:, :count]  # rows that stand apart
    logits[0, : count // 2] = -torch.inf
    tokens = torch.randint(count, (9, 4))
    found = passes.log_probabilities(logits, tokens)
    expected = logits.double().log_softmax(-1).gather(-1, tokens)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert (found <= 0).all()
    with pytest.raises(IndexError, match="vocabulary"):
        passes.log_probabilities(logits, torch.full((9, 1), count))


CUTS = [
    {},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 9000},
    {"top_p": 0.9},
    {"top_p": 0.0},
    {"top_p": 0.9999},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 30, "top_p": 0.8, "min_p": 0.05},
    {"top_p": 0.95, "min_p": 0.02},
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("count", [1, 3, 17, 1000, 6017])
def test_drawn_tokens_are_those_of_torch(instructions, monkeypatch, count, cut):
    torch.manual_seed(count)
    logits = 3 * torch.randn(24, count)
    logits[::3, 1::3] = -torch.inf
    for temperature in (1e-8, 0.7, 1.0, 2.5):
        how = Sampling(temperature=temperature, seed=5, **cut)
        own = how.choose(logits, [[]] * 24, how.generators(24))
        with monkeypatch.context() as patch:
            patch.setattr(passes, "usable", lambda x: False)
            plain = how.choose(logits, [[]] * 24, how.generators(24))
        assert torch.equal(own, plain)


def test_of_many_that_tie_with_the_last_all_are_drawn_from(instructions):
    logits = torch.zeros(1, 3000)
    logits[0, 0] = 1.0
    numbers = torch.linspace(0, 1 - 1e-9, 500, dtype=torch.float64)
    how = kernels.Drawing(1.0, 0, 2, 1.0, 0.0)
    found = passes.drawn(logits.expand(500, -1), numbers, how)
    assert torch.equal(found, found.sort().values) and len(found.unique()) > 450


def test_a_row_without_a_distribution_is_left_to_others(instructions):
    logits = torch.stack((torch.full((40,), -torch.inf), torch.zeros(40)))
    logits[1, 7] = torch.inf
    numbers = torch.full((2,), 0.5, dtype=torch.float64)
    for cut in ((0, 1.0, 0.0), (5, 0.5, 0.1)):
        found = passes.drawn(logits, numbers, kernels.Drawing(1.0, 0, *cut))
        assert found.tolist() == [-1, -1]
